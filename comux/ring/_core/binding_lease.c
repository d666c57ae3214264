/* binding_lease.c - Lease and Run: records held by a member, in place.
 *
 * One exchange of the lease's state decides who releases it, so that a second release is a clean error. Dropped without a release they are
 * given back, with a warning.
 */
#include "binding.h"
#include <string.h>

#define FREE_LEASES 256

#ifndef Py_GIL_DISABLED
static Lease *free_leases[FREE_LEASES]; /* guarded by the interpreter lock */
static int free_lease_n;
#endif

/* -- lease ------------------------------------------------------------------------------------------------------------------------------------ */

static PyObject *contradicts(const cx_att *a, uint64_t offset)
{
    cx_fail(CX_ECORRUPT, "topic '%s': the descriptor of offset %llu contradicts itself; run check(), recreate the topic", a->super.name, (unsigned long long)offset);
    return cx_raise(CX_ECORRUPT);
}

/* What is taken soon lies in the writer's cache: fetched while this record is worked on. Addresses only: what stands there now does not matter. */
static inline void prefetch_after(const cx_att *a, uint64_t offset, const cx_desc *d)
{
    __builtin_prefetch(cx_desc_at(a, offset + 3));
    if (a->fixed && !a->pool) __builtin_prefetch(a->ro + cx_phys(a, d->pos + 3 * a->stride));
}

PyObject *cx_lease_new(Member *member, uint64_t offset)
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
    prefetch_after(a, offset, d);
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
    self->state = LEASE_NACKED;
    Py_DECREF(self);
    return contradicts(a, offset);
}

static PyObject *already(const Shown *s, uint8_t state)
{
    PyErr_Format(cx_exc_stale, "topic '%s': offset %llu was %s already", s->att->a->super.name, (unsigned long long)s->offset,
                 state == LEASE_ACKED ? "acknowledged" : state == LEASE_NACKED ? "given back" : "put with the dead letters");
    return NULL;
}

/* One exchange decides who releases; a second release is a clean error. */
static bool claim_release(uint8_t *state, uint8_t to) { return __atomic_exchange_n(state, to, __ATOMIC_ACQ_REL) == LEASE_LIVE; }

static PyObject *release(Shown *s, Member *member, uint8_t *state, uint64_t n, uint32_t count, uint8_t to)
{
    uint8_t was = *state;
    if (was != LEASE_LIVE || !claim_release(state, to)) return already(s, was);
    int rc;
    CX_ENTER(member);
    if (CX_UNLIKELY(s->att->a->forked))
        rc = cx_fail(CX_ECLOSED, "topic '%s': inherited through a fork; the parent holds this record", s->att->a->super.name);
    else if (CX_UNLIKELY(to == LEASE_BURIED))
        rc = cx_bury(&member->m, s->offset);
    else
        rc = to == LEASE_ACKED ? cx_ack(&member->m, s->offset, n, count) : cx_nack(&member->m, s->offset, n, count);
    CX_LEAVE();
    if (CX_UNLIKELY(rc != CX_OK)) return cx_raise(rc);
    Py_RETURN_NONE;
}

static PyObject *lease_ack(Lease *self, PyObject *unused)
{
    (void)unused;
    return release(&self->s, self->member, &self->state, 1, self->count, LEASE_ACKED);
}

static PyObject *lease_nack(Lease *self, PyObject *unused)
{
    (void)unused;
    return release(&self->s, self->member, &self->state, 1, self->count, LEASE_NACKED);
}

/* The record was copied to the dead-letter topic. */
static PyObject *lease_bury(Lease *self, PyObject *unused)
{
    (void)unused;
    return release(&self->s, self->member, &self->state, 1, self->count, LEASE_BURIED);
}

static PyObject *shown_enter(PyObject *self, PyObject *unused)
{
    (void)unused;
    return Py_NewRef(self);
}

static PyObject *lease_exit(Lease *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (self->state != LEASE_LIVE) Py_RETURN_NONE;
    return release(&self->s, self->member, &self->state, 1, self->count, nargs > 0 && args[0] != Py_None ? LEASE_NACKED : LEASE_ACKED);
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

static void give_back_dropped(Shown *s, Member *member, uint8_t *state, uint64_t n, uint32_t count)
{
    if (*state != LEASE_LIVE || s->att->a->forked || member->m.closed) return;
    *state = LEASE_NACKED;
    CX_ENTER(member);
    cx_nack(&member->m, s->offset, n, count);
    CX_LEAVE();
}

static void lease_dealloc(Lease *self)
{
    if (CX_UNLIKELY(self->state == LEASE_LIVE && !self->s.att->a->forked && !self->member->m.closed)) {
        cx_warn_dropped("a lease was dropped without ack or nack: given back, the record", self->s.offset);
        give_back_dropped(&self->s, self->member, &self->state, 1, self->count);
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
    const cx_att *a = self->s.att->a;
    return cx_shown_buffer(&self->s, view, flags, cx_value_at(a, &self->s.d, a->ro), self->s.d.val_len);
}

static void shown_releasebuffer(Shown *self, Py_buffer *view)
{
    (void)view;
    self->exports--;
}

static PyObject *lease_repr(Lease *self)
{
    return PyUnicode_FromFormat("<Lease of topic '%s' offset %llu, %u bytes, %s>", self->s.att->a->super.name, (unsigned long long)self->s.offset,
                                self->s.d.val_len, self->state == LEASE_LIVE ? "held" : self->state == LEASE_ACKED ? "acknowledged" : self->state == LEASE_NACKED ? "given back" : "a dead letter");
}

static PyMethodDef lease_methods[] = {
    {"ack", (PyCFunction)lease_ack, METH_NOARGS, "The record is finished for the group. Raises StaleLeaseError where it is no longer held."},
    {"release", (PyCFunction)lease_ack, METH_NOARGS, "The same as ack()."},
    {"nack", (PyCFunction)lease_nack, METH_NOARGS, "Gives the record back: some member gets it again, marked redelivered."},
    {"_bury", (PyCFunction)lease_bury, METH_NOARGS, NULL},
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

/* Every record of the run is where the first one says: its descriptor is looked at, and that the last one's agrees. */
PyObject *cx_run_new(Member *member, uint64_t offset, uint64_t n)
{
    const cx_att *a = member->att->a;
    for (uint64_t o = offset;; o = offset + n - 1) {
        const cx_desc *d = cx_desc_at(a, o);
        if (CX_UNLIKELY(d->word != CX_D_WORD(o, CX_COMMITTED) || !cx_desc_sane(a, d) || d->pos != cx_desc_at(a, offset)->pos + (o - offset) * a->stride))
            return contradicts(a, o);
        if (o == offset + n - 1) break;
    }
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
    return release(&self->s, self->member, &self->state, self->n, 0, LEASE_ACKED);
}

static PyObject *run_nack(Run *self, PyObject *unused)
{
    (void)unused;
    return release(&self->s, self->member, &self->state, self->n, 0, LEASE_NACKED);
}

static PyObject *run_exit(Run *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (self->state != LEASE_LIVE) Py_RETURN_NONE;
    return release(&self->s, self->member, &self->state, self->n, 0, nargs > 0 && args[0] != Py_None ? LEASE_NACKED : LEASE_ACKED);
}

static void run_dealloc(Run *self)
{
    if (self->state == LEASE_LIVE && !self->s.att->a->forked && !self->member->m.closed) {
        cx_warn_dropped("a batch was dropped without ack or nack: given back, its records from that", self->s.offset);
        give_back_dropped(&self->s, self->member, &self->state, self->n, 0);
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
    return cx_shown_buffer(&self->s, view, flags, cx_value_at(a, &self->s.d, a->ro), (self->n - 1) * a->stride + a->super.item_bytes);
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
    const cx_att *a = self->s.att->a;
    PyObject *out = PyList_New((Py_ssize_t)self->n);
    for (uint64_t i = 0; out && i < self->n; i++) {
        const cx_desc *d = cx_desc_at(a, self->s.offset + i);
        PyObject *ts = cx_desc_sane(a, d) ? PyLong_FromLongLong(d->ts_ns) : contradicts(a, self->s.offset + i);
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
