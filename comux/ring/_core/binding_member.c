/* binding_member.c - Member, and the leases and runs it hands out.
 *
 * The common case of take is one CAS on a prefetched record and one small object from a free list; ack is one CAS. Everything that
 * may sleep leaves the interpreter first and looks at the handle anew when it is back, because another thread may have closed it.
 */
#include "binding.h"
#include <string.h>

#define FREE_LEASES 256

#ifndef Py_GIL_DISABLED
static Lease *free_leases[FREE_LEASES]; /* guarded by the interpreter lock */
static int free_lease_n;
#endif

/* -- lease ------------------------------------------------------------------------------------------------------------------------------------ */

static PyObject *lease_new(Member *member, uint64_t offset)
{
    cx_att *a = member->att->a;
    const cx_desc *d = cx_desc_at(a, offset);
    Lease *self;
#ifndef Py_GIL_DISABLED
    if (CX_LIKELY(free_lease_n)) {
        self = free_leases[--free_lease_n];
        (void)PyObject_Init((PyObject *)self, &LeaseType);
    } else
#endif
    {
        self = PyObject_New(Lease, &LeaseType);
        if (!self) return NULL; /* the record stays started and goes back when the member closes */
    }
    Py_INCREF(member);
    self->member = member;
    self->s.att = member->att; /* kept by the member */
    self->s.offset = offset;
    self->s.exports = 0;
    memcpy(&self->s.d, d, 64);
    if (CX_UNLIKELY(d->bits & CX_BIT_APPEND)) self->s.d.append_ns = d->append_ns;
    self->count = CX_W_COUNT(LD(*cx_word_at(a, member->m.group, offset)));
    self->state = LEASE_LIVE;
    if (CX_LIKELY(self->s.d.word == CX_D_WORD(offset, CX_COMMITTED) && cx_desc_sane(a, &self->s.d))) return (PyObject *)self;
    cx_fail(CX_ECORRUPT, "topic '%s': the descriptor of offset %llu contradicts itself; run check(), recreate the topic", a->super.name, (unsigned long long)offset);
    self->state = LEASE_NACKED;
    Py_DECREF(self);
    return cx_raise(CX_ECORRUPT);
}

static PyObject *already(const Shown *s, uint8_t state)
{
    PyErr_Format(cx_exc_stale, "topic '%s': offset %llu was %s already", s->att->a->super.name, (unsigned long long)s->offset,
                 state == LEASE_ACKED ? "acknowledged" : "given back");
    return NULL;
}

/* One exchange decides who releases; a second release is a clean error. */
static bool claim_release(uint8_t *state, uint8_t to) { return __atomic_exchange_n(state, to, __ATOMIC_ACQ_REL) == LEASE_LIVE; }

static PyObject *release(Shown *s, Member *member, uint8_t *state, uint64_t n, uint8_t to)
{
    uint8_t was = *state;
    if (was != LEASE_LIVE || !claim_release(state, to)) return already(s, was);
    int rc;
    CX_ENTER(member);
    if (CX_UNLIKELY(s->att->a->forked))
        rc = cx_fail(CX_ECLOSED, "topic '%s': inherited through a fork; the parent holds this record", s->att->a->super.name);
    else
        rc = to == LEASE_ACKED ? cx_ack(&member->m, s->offset, n) : cx_nack(&member->m, s->offset, n);
    CX_LEAVE();
    if (CX_UNLIKELY(rc != CX_OK)) return cx_raise(rc);
    Py_RETURN_NONE;
}

static PyObject *lease_ack(Lease *self, PyObject *unused)
{
    (void)unused;
    return release(&self->s, self->member, &self->state, 1, LEASE_ACKED);
}

static PyObject *lease_nack(Lease *self, PyObject *unused)
{
    (void)unused;
    return release(&self->s, self->member, &self->state, 1, LEASE_NACKED);
}

static PyObject *shown_enter(PyObject *self, PyObject *unused)
{
    (void)unused;
    return Py_NewRef(self);
}

static PyObject *lease_exit(Lease *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (self->state != LEASE_LIVE) Py_RETURN_NONE;
    return release(&self->s, self->member, &self->state, 1, nargs > 0 && args[0] != Py_None ? LEASE_NACKED : LEASE_ACKED);
}

static PyObject *lease_bytes(Lease *self, PyObject *unused)
{
    (void)unused;
    return cx_shown_bytes(&self->s, cx_lease_alive);
}

static PyObject *lease_reduce(PyObject *self, PyObject *unused)
{
    (void)unused;
    PyErr_Format(PyExc_TypeError, "a %s cannot be pickled: it holds records for this process; send bytes() or the offset", Py_TYPE(self)->tp_name);
    return NULL;
}

static void give_back_dropped(Shown *s, Member *member, uint8_t *state, uint64_t n)
{
    if (*state != LEASE_LIVE || s->att->a->forked || member->m.closed) return;
    *state = LEASE_NACKED;
    CX_ENTER(member);
    cx_nack(&member->m, s->offset, n);
    CX_LEAVE();
}

static void lease_dealloc(Lease *self)
{
    if (CX_UNLIKELY(self->state == LEASE_LIVE && !self->s.att->a->forked && !self->member->m.closed)) {
        cx_warn_dropped("a lease was dropped without ack or nack: given back, the record", self->s.offset);
        give_back_dropped(&self->s, self->member, &self->state, 1);
    }
    Py_DECREF(self->member);
#ifndef Py_GIL_DISABLED
    if (CX_LIKELY(free_lease_n < FREE_LEASES)) {
        free_leases[free_lease_n++] = self;
        return;
    }
#endif
    PyObject_Free(self);
}

static int lease_getbuffer(Lease *self, Py_buffer *view, int flags)
{
    if (!(self->s.d.bits & CX_BIT_VALUE)) {
        PyErr_SetString(PyExc_BufferError, "the record has no value");
        return -1;
    }
    if (!cx_lease_alive(&self->s)) {
        PyErr_Clear();
        PyErr_Format(PyExc_BufferError, "offset %llu was released; take what you need before", (unsigned long long)self->s.offset);
        return -1;
    }
    return cx_shown_buffer(&self->s, view, flags, self->s.d.val_len);
}

static void shown_releasebuffer(Shown *self, Py_buffer *view)
{
    (void)view;
    self->exports--;
}

static PyObject *lease_repr(Lease *self)
{
    return PyUnicode_FromFormat("<Lease of topic '%s' offset %llu, %u bytes, %s>", self->s.att->a->super.name, (unsigned long long)self->s.offset,
                                self->s.d.val_len, self->state == LEASE_LIVE ? "held" : self->state == LEASE_ACKED ? "acknowledged" : "given back");
}

static PyMethodDef lease_methods[] = {
    {"ack", (PyCFunction)lease_ack, METH_NOARGS, "The record is finished for the group. Raises StaleLeaseError where it is no longer held."},
    {"release", (PyCFunction)lease_ack, METH_NOARGS, "The same as ack()."},
    {"nack", (PyCFunction)lease_nack, METH_NOARGS, "Gives the record back: some member gets it again, marked redelivered."},
    {"bytes", (PyCFunction)lease_bytes, METH_NOARGS, "A copy of the value; None where there is none."},
    {"__enter__", shown_enter, METH_NOARGS, NULL},
    {"__exit__", (PyCFunction)(void (*)(void))lease_exit, METH_FASTCALL, "Acknowledges, or gives back where the block raised."},
    {"__reduce__", lease_reduce, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyBufferProcs lease_buffer = {(getbufferproc)lease_getbuffer, (releasebufferproc)shown_releasebuffer};

PyTypeObject LeaseType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = CX_MODULE "Lease",
    .tp_basicsize = sizeof(Lease),
    .tp_dealloc = (destructor)lease_dealloc,
    .tp_repr = (reprfunc)lease_repr,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_doc = "One record held by a member, in place. Leaving its block acknowledges it.",
    .tp_methods = lease_methods,
    .tp_getset = cx_lease_getset,
    .tp_as_buffer = &lease_buffer,
};

/* -- run: several records of fixed slots as one buffer --------------------------------------------------------------------------------------- */

static PyObject *run_new(Member *member, uint64_t offset, uint64_t n)
{
    Run *self = PyObject_New(Run, &RunType);
    if (!self) return NULL;
    self->member = (Member *)Py_NewRef((PyObject *)member);
    self->s.att = member->att;
    self->s.offset = offset;
    self->s.exports = 0;
    self->s.d = *cx_desc_at(member->att->a, offset);
    self->n = n;
    self->state = LEASE_LIVE;
    return (PyObject *)self;
}

static PyObject *run_ack(Run *self, PyObject *unused)
{
    (void)unused;
    return release(&self->s, self->member, &self->state, self->n, LEASE_ACKED);
}

static PyObject *run_nack(Run *self, PyObject *unused)
{
    (void)unused;
    return release(&self->s, self->member, &self->state, self->n, LEASE_NACKED);
}

static PyObject *run_exit(Run *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (self->state != LEASE_LIVE) Py_RETURN_NONE;
    return release(&self->s, self->member, &self->state, self->n, nargs > 0 && args[0] != Py_None ? LEASE_NACKED : LEASE_ACKED);
}

static void run_dealloc(Run *self)
{
    if (self->state == LEASE_LIVE && !self->s.att->a->forked && !self->member->m.closed) {
        cx_warn_dropped("a batch was dropped without ack or nack: given back, its records from that", self->s.offset);
        give_back_dropped(&self->s, self->member, &self->state, self->n);
    }
    Py_DECREF(self->member);
    PyObject_Free(self);
}

static int run_getbuffer(Run *self, Py_buffer *view, int flags)
{
    if (!cx_lease_alive(&self->s) && PyErr_Occurred()) {
        PyErr_Clear();
        PyErr_Format(PyExc_BufferError, "the batch from offset %llu was released; take what you need before", (unsigned long long)self->s.offset);
        return -1;
    }
    const cx_att *a = self->s.att->a;
    return cx_shown_buffer(&self->s, view, flags, (self->n - 1) * a->stride + a->super.item_bytes);
}

static PyObject *run_get_first(Run *self, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(self->s.offset);
}
static Py_ssize_t run_length(Run *self) { return (Py_ssize_t)self->n; }

/* Timestamps, or delivery counts, of all its records. */
static PyObject *run_timestamps(Run *self, PyObject *unused)
{
    (void)unused;
    if (self->state != LEASE_LIVE) return already(&self->s, self->state);
    PyObject *out = PyList_New((Py_ssize_t)self->n);
    for (uint64_t i = 0; out && i < self->n; i++) {
        PyObject *ts = PyLong_FromLongLong(cx_desc_at(self->s.att->a, self->s.offset + i)->ts_ns);
        if (!ts) Py_CLEAR(out);
        else PyList_SET_ITEM(out, (Py_ssize_t)i, ts);
    }
    return out;
}

static PyMethodDef run_methods[] = {
    {"ack", (PyCFunction)run_ack, METH_NOARGS, "All records of the batch are finished for the group."},
    {"nack", (PyCFunction)run_nack, METH_NOARGS, "Gives all records of the batch back."},
    {"timestamps", (PyCFunction)run_timestamps, METH_NOARGS, "Timestamps of the records in nanoseconds."},
    {"__enter__", shown_enter, METH_NOARGS, NULL},
    {"__exit__", (PyCFunction)(void (*)(void))run_exit, METH_FASTCALL, "Acknowledges, or gives back where the block raised."},
    {"__reduce__", lease_reduce, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef run_getset[] = {
    {"first", (getter)run_get_first, NULL, "Offset of the first record.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyBufferProcs run_buffer = {(getbufferproc)run_getbuffer, (releasebufferproc)shown_releasebuffer};
static PySequenceMethods run_sequence = {.sq_length = (lenfunc)run_length};

PyTypeObject RunType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = CX_MODULE "Run",
    .tp_basicsize = sizeof(Run),
    .tp_dealloc = (destructor)run_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_doc = "Consecutive records of fixed slots held by a member, as one buffer.",
    .tp_methods = run_methods,
    .tp_getset = run_getset,
    .tp_as_buffer = &run_buffer,
    .tp_as_sequence = &run_sequence,
};

/* -- take ---------------------------------------------------------------------------------------------------------------------------------------- */

static bool nobody_may_be_dead(const Member *self)
{
    const cx_att *a = self->att->a;
    const cx_group *g = &a->groups[self->m.group];
    return LD(g->done) == LD(g->next) && cx_head(a) == LDA(a->ctl->published);
}

/* CX_OK with a run, CX_NONE, CX_END, or -1 with an exception. */
static int take_wait(Member *self, uint64_t want, bool direct, int64_t deadline, uint64_t *first, uint64_t *n)
{
    cx_wait w = {0};
    bool slept = false;
    for (;;) {
        bool may_wait = slept ? cx_may_wait(deadline) : deadline != 0;
        if (self->m.wakes != self->wakes_seen) may_wait = false;
        int rc = cx_take(&self->m, want, direct, &w, may_wait, deadline, first, n);
        if (rc == CX_NONE) self->wakes_seen = self->m.wakes;
        if (rc >= 0 && rc != CX_WAIT) return rc;
        if (rc < 0) {
            char text[512];
            memcpy(text, cx_error_text(), sizeof text);
            cx_take_leave(&self->m, &w);
            cx_raise_text(rc, text);
            return -1;
        }
        slept = true;
        if (self->m.wakes != self->wakes_seen) continue; /* while we waited for the lock */
        if (cx_sleep(self->att->a, &w, deadline, nobody_may_be_dead(self)) != 0 || !cx_usable(self->att, true, self->m.closed)) {
            cx_take_leave(&self->m, &w);
            return -1;
        }
    }
}

/* A new lease, NULL with or without an exception; *rc says why without. */
static inline PyObject *take_one(Member *self, int64_t deadline, int *rc)
{
    for (;;) {
        if (CX_UNLIKELY(!cx_usable(self->att, self->opened, self->m.closed))) return NULL;
        while (self->m.r0 < self->m.r1) {
            uint64_t o = self->m.r0++;
            if (CX_LIKELY(cx_start(&self->m, o))) return lease_new(self, o);
        }
        uint64_t first, n;
        *rc = take_wait(self, 1, false, deadline, &first, &n);
        if (*rc != CX_OK) return NULL;
    }
}

static PyObject *end_of_stream(const Member *self)
{
    const cx_att *a = self->att->a;
    PyErr_Format(cx_exc_end_of_stream, "topic '%s': epoch %lu ended at offset %llu and group '%s' has finished it", a->super.name,
                 (unsigned long)self->m.epoch, (unsigned long long)LD(a->ctl->end_offset), a->groups[self->m.group].name);
    return NULL;
}

static Keyword take_names[] = {{"timeout", NULL}};

static PyObject *member_take(Member *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *timeout = NULL, *lease;
    int64_t deadline = -1;
    int rc = CX_OK;
    if ((nargs || kwnames) && (!cx_keywords("take", args, nargs, kwnames, 1, take_names, 1, &timeout) || !cx_deadline(timeout, &deadline))) return NULL;
    CX_ENTER(self);
    lease = take_one(self, deadline, &rc);
    CX_LEAVE();
    if (CX_LIKELY(lease != NULL) || PyErr_Occurred()) return lease;
    if (rc == CX_END) return end_of_stream(self);
    Py_RETURN_NONE;
}

/* Iteration waits for ever and stops at the end; a wakeup() makes it look again. */
static PyObject *member_next(Member *self)
{
    PyObject *lease;
    int rc;
    do {
        rc = CX_OK;
        CX_ENTER(self);
        lease = take_one(self, -1, &rc);
        CX_LEAVE();
    } while (!lease && rc == CX_NONE && !PyErr_Occurred());
    return lease;
}

/* What is left of the prefetched run, started, as far as it is contiguous. */
static uint64_t start_run(Member *self, uint64_t want, uint64_t *first)
{
    uint64_t n = 0;
    while (self->m.r0 < self->m.r1 && n < want) {
        uint64_t o = self->m.r0++;
        if (cx_start(&self->m, o)) {
            if (n++ == 0) *first = o;
        } else if (n) {
            break;
        }
    }
    return n;
}

static Keyword run_names[] = {{"k", NULL}, {"timeout", NULL}};

static PyObject *member_take_run(Member *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *given[2], *run = NULL;
    int64_t deadline;
    int rc = CX_OK;
    if (!cx_keywords("take_run", args, nargs, kwnames, 2, run_names, 2, given) || !cx_deadline(given[1], &deadline)) return NULL;
    Py_ssize_t want = given[0] ? PyLong_AsSsize_t(given[0]) : 0;
    if (want < 1) {
        if (!PyErr_Occurred()) PyErr_Format(cx_exc_config, "take_many(%zd): at least 1", want);
        return NULL;
    }
    if (!self->att->a->fixed) {
        PyErr_SetString(cx_exc_config, "runs are for fixed slots");
        return NULL;
    }
    CX_ENTER(self);
    if (cx_usable(self->att, self->opened, self->m.closed)) {
        uint64_t first, n = start_run(self, (uint64_t)want, &first);
        if (!n) rc = take_wait(self, (uint64_t)want, true, deadline, &first, &n);
        if (n && rc == CX_OK) run = run_new(self, first, n);
    }
    CX_LEAVE();
    if (run || PyErr_Occurred()) return run;
    if (rc == CX_END) return end_of_stream(self);
    Py_RETURN_NONE;
}

/* -- member --------------------------------------------------------------------------------------------------------------------------------------- */

static PyObject *member_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    Attachment *att;
    const char *group, *name;
    PyObject *start;
    int durable, stop;
    uint64_t at;
    (void)kwargs;
    if (!PyArg_ParseTuple(args, "O!sOpps", &AttachmentType, &att, &group, &start, &durable, &stop, &name)) return NULL;
    if (!cx_usable(att, true, !att->open)) return NULL;
    int kind = cx_start_of(start, &at);
    if (kind < 0) return NULL;
    Member *self = (Member *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    self->att = (Attachment *)Py_NewRef((PyObject *)att);
    int rc = cx_member_open(att->a, group, kind, at, durable, stop, name, &self->m);
    if (rc != CX_OK) {
        Py_DECREF(self);
        return cx_raise(rc);
    }
    self->opened = true;
    return (PyObject *)self;
}

static PyObject *member_close(Member *self, PyObject *unused)
{
    (void)unused;
    CX_ENTER(self);
    if (self->opened && !self->m.closed) cx_member_close(&self->m);
    CX_LEAVE();
    Py_RETURN_NONE;
}

static void member_dealloc(Member *self)
{
    if (self->att) {
        if (self->opened && !self->m.closed) cx_member_close(&self->m);
        Py_DECREF(self->att);
    }
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *member_wakeup(Member *self, PyObject *unused)
{
    (void)unused;
    if (self->opened && !self->m.closed) cx_member_wake(&self->m);
    Py_RETURN_NONE;
}

static PyObject *by_offset(Member *self, PyObject *arg, uint8_t to)
{
    if (Py_TYPE(arg) == &LeaseType || Py_TYPE(arg) == &RunType) {
        Lease *lease = (Lease *)arg;
        if (lease->member != self) {
            PyErr_SetString(cx_exc_stale, "this lease belongs to another member");
            return NULL;
        }
        return PyObject_CallMethod(arg, to == LEASE_ACKED ? "ack" : "nack", NULL);
    }
    uint64_t offset = PyLong_AsUnsignedLongLong(arg);
    if (offset == (uint64_t)-1 && PyErr_Occurred()) return NULL;
    int rc;
    if (!cx_usable(self->att, self->opened, self->m.closed)) return NULL;
    CX_ENTER(self);
    if (!cx_holds(&self->m, offset))
        rc = cx_fail(CX_ESTALE, "topic '%s': offset %llu is not held by this member", self->att->a->super.name, (unsigned long long)offset);
    else
        rc = to == LEASE_ACKED ? cx_ack(&self->m, offset, 1) : cx_nack(&self->m, offset, 1);
    CX_LEAVE();
    if (rc != CX_OK) return cx_raise(rc);
    Py_RETURN_NONE;
}

static PyObject *member_ack(Member *self, PyObject *arg) { return by_offset(self, arg, LEASE_ACKED); }
static PyObject *member_nack(Member *self, PyObject *arg) { return by_offset(self, arg, LEASE_NACKED); }

/* One instant: started = acked + nacked + held. */
static PyObject *member_counts(Member *self, PyObject *unused)
{
    (void)unused;
    return Py_BuildValue("KKK", (unsigned long long)self->m.started, (unsigned long long)self->m.acked, (unsigned long long)self->m.nacked);
}

static PyObject *member_get_position(Member *self, void *unused)
{
    (void)unused;
    if (self->m.r0 < self->m.r1) return PyLong_FromUnsignedLongLong(self->m.r0);
    return PyLong_FromUnsignedLongLong(LDA(self->att->a->groups[self->m.group].next));
}
static PyObject *member_get_lag(Member *self, void *unused)
{
    (void)unused;
    uint64_t next = LDA(self->att->a->groups[self->m.group].next), published = LDA(self->att->a->ctl->published);
    uint64_t left = self->m.r1 > self->m.r0 ? self->m.r1 - self->m.r0 : 0;
    return PyLong_FromUnsignedLongLong((published > next ? published - next : 0) + left);
}
static PyObject *member_get_held(Member *self, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(self->m.started - self->m.acked - self->m.nacked);
}
static PyObject *member_get_closed(Member *self, void *unused)
{
    (void)unused;
    return PyBool_FromLong(self->m.closed || self->att->a->forked);
}
static PyObject *member_get_epoch(Member *self, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(self->m.epoch);
}

static PyMethodDef member_methods[] = {
    {"take", (PyCFunction)(void (*)(void))member_take, METH_FASTCALL | METH_KEYWORDS, "take(timeout=None) -> Lease, or None where the time passed"},
    {"_take_run", (PyCFunction)(void (*)(void))member_take_run, METH_FASTCALL | METH_KEYWORDS, NULL},
    {"ack", (PyCFunction)member_ack, METH_O, "ack(lease or offset)"},
    {"nack", (PyCFunction)member_nack, METH_O, "nack(lease or offset)"},
    {"wakeup", (PyCFunction)member_wakeup, METH_NOARGS, "A take() that waits, or would wait next, returns None at once."},
    {"close", (PyCFunction)member_close, METH_NOARGS, "Gives back what it holds and leaves the group, which stays."},
    {"_counts", (PyCFunction)member_counts, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef member_getset[] = {
    {"position", (getter)member_get_position, NULL, "Offset of the next record that was never taken.", NULL},
    {"lag", (getter)member_get_lag, NULL, "Records published and not handed out yet.", NULL},
    {"held", (getter)member_get_held, NULL, "Records handed out and not acknowledged.", NULL},
    {"closed", (getter)member_get_closed, NULL, "Whether the handle was closed or inherited through a fork.", NULL},
    {"epoch", (getter)member_get_epoch, NULL, "The epoch the member was opened in.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyTypeObject MemberType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = CX_MODULE "Member",
    .tp_basicsize = sizeof(Member),
    .tp_new = member_new,
    .tp_dealloc = (destructor)member_dealloc,
    .tp_iter = PyObject_SelfIter,
    .tp_iternext = (iternextfunc)member_next,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_doc = "One member of a consumer group. Thread-safe.",
    .tp_methods = member_methods,
    .tp_getset = member_getset,
};

int cx_member_start(void)
{
    Keyword *all[] = {take_names, &run_names[0], &run_names[1]};
    for (size_t i = 0; i < 3; i++)
        if (!(all[i]->object = PyUnicode_InternFromString(all[i]->name))) return -1;
    return 0;
}
