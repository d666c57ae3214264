/* binding_member.c - Member: take, and what it hands out is in binding_lease.c.
 *
 * The common case of take is one CAS on a prefetched record and one small object from a free list; ack is one CAS. Everything that
 * may sleep leaves the interpreter first and looks at the handle anew when it is back, because another thread may have closed it.
 */
#include "binding.h"
#include <string.h>

/* -- take ---------------------------------------------------------------------------------------------------------------------------------------- */

/* CX_OK with a run, CX_NONE, CX_END, or -1 with an exception. */
static int take_wait(Member *self, uint64_t want, bool direct, int64_t deadline, uint64_t *first, uint64_t *n)
{
    cx_wait w = {.max_ns = self->idle_ns};
    bool slept = false;
    self->idle_ns = 0;
    for (;;) {
        bool may_wait = slept ? cx_may_wait(deadline) : deadline != 0;
        if (self->m.wakes != self->wakes_seen) may_wait = false;
        int rc = cx_take(&self->m, want, direct, &w, may_wait, deadline, first, n);
        if (rc == CX_NONE) {
            self->wakes_seen = self->m.wakes;
            self->idle_ns = w.max_ns;
        }
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
        if (cx_sleep(self->att->a, &w, deadline, cx_patience(self->att->a, &self->att->a->groups[self->m.group])) != 0 || !cx_usable(self->att, true, self->m.closed)) {
            cx_take_leave(&self->m, &w);
            return -1;
        }
    }
}

/* The façade copies the record to the dead-letter topic and then acknowledges it as one, or gives it back and raises. */
bool cx_member_bury(Member *self, uint64_t offset)
{
    PyObject *lease = cx_lease_new(self, offset);
    PyObject *done = lease ? PyObject_CallMethod((PyObject *)self, "_bury", "O", lease) : NULL;
    Py_XDECREF(lease);
    Py_XDECREF(done);
    return done != NULL;
}

/* A new lease, NULL with or without an exception; *rc says why without. */
static inline PyObject *take_one(Member *self, int64_t deadline, int *rc)
{
    for (;;) {
        if (CX_UNLIKELY(!cx_usable(self->att, self->opened, self->m.closed))) return NULL;
        while (self->m.r0 < self->m.r1 && !cx_group_paused(self->att->a, self->m.group)) {
            uint64_t o = self->m.r0++;
            if (CX_LIKELY(cx_start(&self->m, o))) return cx_lease_new(self, o);
        }
        uint64_t first, n;
        *rc = take_wait(self, 1, false, deadline, &first, &n);
        if (CX_UNLIKELY(*rc == CX_SPENT)) {
            if (!cx_member_bury(self, first)) return NULL;
        } else if (*rc != CX_OK) {
            return NULL;
        }
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
    if (self->bell) cx_bell_arm(self->bell);
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
    while (self->m.r0 < self->m.r1 && n < want && !cx_group_paused(self->att->a, self->m.group)) {
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
    if (!self->att->a->fixed || self->att->a->pool) {
        PyErr_SetString(cx_exc_config, "runs are for fixed slots that stand in the order of their records");
        return NULL;
    }
    CX_ENTER(self);
    if (cx_usable(self->att, self->opened, self->m.closed)) {
        uint64_t first, n = start_run(self, (uint64_t)want, &first);
        if (!n)
            do rc = take_wait(self, (uint64_t)want, true, deadline, &first, &n);
            while (rc == CX_SPENT && cx_member_bury(self, first) && cx_usable(self->att, true, self->m.closed));
        if (n && rc == CX_OK) run = cx_run_new(self, first, n);
    }
    CX_LEAVE();
    if (run || PyErr_Occurred()) return run;
    if (rc == CX_END) return end_of_stream(self);
    if (self->bell) cx_bell_arm(self->bell);
    Py_RETURN_NONE;
}

/* -- member --------------------------------------------------------------------------------------------------------------------------------------- */

static PyObject *member_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    Attachment *att;
    const char *group, *name;
    PyObject *start;
    int durable, stop;
    long long most;
    cx_terms terms;
    (void)kwargs;
    if (!PyArg_ParseTuple(args, "O!sOppsLI", &AttachmentType, &att, &group, &start, &durable, &stop, &name, &most, &terms.usual)) return NULL;
    if (!cx_usable(att, true, !att->open)) return NULL;
    terms.start_kind = cx_start_of(start, &terms.start);
    terms.durable = durable;
    terms.max_deliveries = most;
    if (terms.start_kind < 0) return NULL;
    Member *self = (Member *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    self->att = (Attachment *)Py_NewRef((PyObject *)att);
    int rc = cx_member_open(att->a, group, &terms, stop, name, &self->m);
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
    cx_bell *bell = self->bell;
    self->bell = NULL;
    if (bell) cx_bell_stop(bell);
    CX_LEAVE();
    Py_RETURN_NONE;
}

static void member_dealloc(Member *self)
{
    if (self->att) {
        if (self->bell) cx_bell_stop(self->bell);
        if (self->opened && !self->m.closed) cx_member_close(&self->m);
        Py_DECREF(self->att);
    }
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *member_wakeup(Member *self, PyObject *unused)
{
    (void)unused;
    if (self->opened && !self->m.closed) cx_member_wake(&self->m);
    CX_ENTER(self);
    if (self->bell) cx_bell_ring(self->bell);
    CX_LEAVE();
    Py_RETURN_NONE;
}

static PyObject *member_fileno(Member *self, PyObject *unused)
{
    (void)unused;
    int fd = -1;
    CX_ENTER(self);
    if (cx_usable(self->att, self->opened, self->m.closed)) {
        if (!self->bell && !(self->bell = cx_bell_hang(self->att->a, cx_member_look, &self->m))) cx_raise(CX_EOS);
        if (self->bell) fd = cx_bell_fd(self->bell);
    }
    CX_LEAVE();
    return fd < 0 ? NULL : PyLong_FromLong(fd);
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
        rc = to == LEASE_ACKED ? cx_ack(&self->m, offset, 1, 0) : cx_nack(&self->m, offset, 1, 0);
    CX_LEAVE();
    if (rc != CX_OK) return cx_raise(rc);
    Py_RETURN_NONE;
}

static PyObject *member_ack(Member *self, PyObject *arg) { return by_offset(self, arg, LEASE_ACKED); }
static PyObject *member_nack(Member *self, PyObject *arg) { return by_offset(self, arg, LEASE_NACKED); }

static PyObject *member_claim_stale(Member *self, PyObject *args)
{
    unsigned int idle;
    if (!PyArg_ParseTuple(args, "I", &idle) || !cx_usable(self->att, self->opened, self->m.closed)) return NULL;
    return cx_claim_stale_py(self->att, self->m.group, self->m.port, idle);
}

/* One instant: started = acked + nacked + buried + claimed + held. */
static PyObject *member_counts(Member *self, PyObject *unused)
{
    (void)unused;
    return Py_BuildValue("KKKKK", (unsigned long long)self->m.started, (unsigned long long)self->m.acked, (unsigned long long)self->m.nacked,
                         (unsigned long long)self->m.buried, (unsigned long long)self->m.claimed);
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
    return PyLong_FromUnsignedLongLong(self->m.started - self->m.acked - self->m.nacked - self->m.buried - self->m.claimed);
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
    {"fileno", (PyCFunction)member_fileno, METH_NOARGS, "Descriptor for selectors: readable until a take() returns None. A thread of its own watches the topic."},
    {"wakeup", (PyCFunction)member_wakeup, METH_NOARGS, "A take() that waits, or would wait next, returns None at once."},
    {"close", (PyCFunction)member_close, METH_NOARGS, "Gives back what it holds and leaves the group, which stays."},
    {"_claim_stale", (PyCFunction)member_claim_stale, METH_VARARGS, NULL},
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
