/* binding_reader.c - Reader, and waiting for any of several handles. */
#include "binding.h"
#include <errno.h>
#include <string.h>

/* A record that poll returned was overwritten before it could be kept or copied: it counts as lost, and the next one says so. */
static void retract(cx_reader *r, uint64_t skipped)
{
    r->delivered--;
    r->lost++;
    r->skip_pending += 1 + skipped;
}

/* A view, or NULL: *rc says CX_NONE or CX_END, or an exception is set. */
static PyObject *poll_one(Reader *self, int64_t deadline, int *rc)
{
    cx_wait w = {.max_ns = self->idle_ns};
    cx_view v;
    bool slept = false;
    self->idle_ns = 0;
    for (;;) {
        if (CX_UNLIKELY(!cx_usable(self->att, self->opened, self->r.closed))) return NULL;
        bool may_wait = slept ? cx_may_wait(deadline) : deadline != 0;
        if (self->r.wakes != self->wakes_seen) may_wait = false;
        *rc = cx_poll(&self->r, &w, may_wait, &v);
        if (CX_LIKELY(*rc == CX_OK)) {
            bool lapped = false;
            PyObject *view = self->att->a->pool ? cx_view_kept(self->att, &v, &lapped) : cx_view_new(self->att, &v);
            if (!lapped) return view;
            retract(&self->r, v.skipped);
            continue;
        }
        if (*rc == CX_NONE) {
            self->wakes_seen = self->r.wakes;
            self->idle_ns = w.max_ns;
        }
        if (*rc < 0) return cx_raise(*rc);
        if (*rc != CX_WAIT) return NULL;
        slept = true;
        if (self->r.wakes != self->wakes_seen) continue;
        if (cx_sleep(self->att->a, &w, deadline, cx_patience(self->att->a, NULL)) != 0) return NULL;
    }
}

static PyObject *end_of_stream(const Reader *self)
{
    PyErr_Format(cx_exc_end_of_stream, "topic '%s': epoch %lu ended and was read to its end (offset %llu)", self->att->a->super.name, (unsigned long)self->r.epoch,
                 (unsigned long long)self->r.cursor);
    return NULL;
}

static Keyword poll_names[] = {{"timeout", NULL}};

static PyObject *reader_poll(Reader *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *timeout = NULL, *view;
    int64_t deadline = -1;
    int rc = CX_OK;
    if ((nargs || kwnames) && (!cx_keywords("poll", args, nargs, kwnames, 1, poll_names, 1, &timeout) || !cx_deadline(timeout, &deadline))) return NULL;
    CX_ENTER(self);
    view = poll_one(self, deadline, &rc);
    CX_LEAVE();
    if (view || PyErr_Occurred()) return view;
    if (rc == CX_END) return end_of_stream(self);
    if (self->bell) cx_bell_arm(self->bell);
    Py_RETURN_NONE;
}

static PyObject *reader_retract(Reader *self, PyObject *arg)
{
    if (Py_TYPE(arg) != &ViewType) {
        PyErr_SetString(PyExc_TypeError, "retract() takes a View");
        return NULL;
    }
    CX_ENTER(self);
    retract(&self->r, ((View *)arg)->skipped);
    CX_LEAVE();
    Py_RETURN_NONE;
}

static PyObject *reader_seek(Reader *self, PyObject *arg)
{
    uint64_t offset = PyLong_AsUnsignedLongLong(arg);
    if (offset == (uint64_t)-1 && PyErr_Occurred()) return NULL;
    if (!cx_usable(self->att, self->opened, self->r.closed)) return NULL;
    CX_ENTER(self);
    cx_seek(&self->r, offset);
    if (self->bell) cx_bell_ring(self->bell);
    CX_LEAVE();
    Py_RETURN_NONE;
}

static PyObject *reader_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    Attachment *att;
    const char *name;
    PyObject *start;
    int stop;
    uint64_t at;
    (void)kwargs;
    if (!PyArg_ParseTuple(args, "O!Ops", &AttachmentType, &att, &start, &stop, &name)) return NULL;
    if (!cx_usable(att, true, !att->open)) return NULL;
    int kind = cx_start_of(start, &at);
    if (kind < 0) return NULL;
    Reader *self = (Reader *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    self->att = (Attachment *)Py_NewRef((PyObject *)att);
    int rc = cx_reader_open(att->a, kind, at, stop, name, &self->r);
    if (rc != CX_OK) {
        Py_DECREF(self);
        return cx_raise(rc);
    }
    self->opened = true;
    return (PyObject *)self;
}

static PyObject *reader_close(Reader *self, PyObject *unused)
{
    (void)unused;
    CX_ENTER(self);
    if (self->opened && !self->r.closed) cx_reader_close(&self->r);
    cx_bell *bell = self->bell;
    self->bell = NULL;
    if (bell) cx_bell_stop(bell);
    CX_LEAVE();
    Py_RETURN_NONE;
}

static void reader_dealloc(Reader *self)
{
    if (self->att) {
        if (self->bell) cx_bell_stop(self->bell);
        if (self->opened && !self->r.closed) cx_reader_close(&self->r);
        Py_DECREF(self->att);
    }
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *reader_wakeup(Reader *self, PyObject *unused)
{
    (void)unused;
    if (self->opened && !self->r.closed) cx_reader_wake(&self->r);
    CX_ENTER(self);
    if (self->bell) cx_bell_ring(self->bell);
    CX_LEAVE();
    Py_RETURN_NONE;
}

static PyObject *reader_fileno(Reader *self, PyObject *unused)
{
    (void)unused;
    int fd = -1;
    CX_ENTER(self);
    if (cx_usable(self->att, self->opened, self->r.closed)) {
        if (!self->bell && !(self->bell = cx_bell_hang(self->att->a, cx_reader_look, &self->r))) cx_raise(CX_EOS);
        if (self->bell) fd = cx_bell_fd(self->bell);
    }
    CX_LEAVE();
    return fd < 0 ? NULL : PyLong_FromLong(fd);
}

/* One instant: delivered, lost (lapped), jumped, aborted (passed over, no loss). */
static PyObject *reader_counts(Reader *self, PyObject *unused)
{
    (void)unused;
    return Py_BuildValue("KKKK", (unsigned long long)self->r.delivered, (unsigned long long)self->r.lost, (unsigned long long)self->r.jumped,
                         (unsigned long long)self->r.aborted);
}

static PyObject *reader_get_position(Reader *self, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(self->r.cursor);
}
static PyObject *reader_get_lost(Reader *self, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(self->r.lost);
}
static PyObject *reader_get_lag(Reader *self, void *unused)
{
    (void)unused;
    uint64_t published = LDA(self->att->a->ctl->published);
    return PyLong_FromUnsignedLongLong(published > self->r.cursor ? published - self->r.cursor : 0);
}
static PyObject *reader_get_closed(Reader *self, void *unused)
{
    (void)unused;
    return PyBool_FromLong(self->r.closed || self->att->a->forked);
}
static PyObject *reader_get_epoch(Reader *self, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(self->r.epoch);
}

static PyMethodDef reader_methods[] = {
    {"poll", (PyCFunction)(void (*)(void))reader_poll, METH_FASTCALL | METH_KEYWORDS, "poll(timeout=None) -> View, or None where the time passed"},
    {"seek", (PyCFunction)reader_seek, METH_O, "The next record read is the one at this offset, or the oldest retained."},
    {"fileno", (PyCFunction)reader_fileno, METH_NOARGS, "Descriptor for selectors: readable until a poll() returns None. A thread of its own watches the topic."},
    {"wakeup", (PyCFunction)reader_wakeup, METH_NOARGS, "A poll() that waits, or would wait next, returns None at once."},
    {"close", (PyCFunction)reader_close, METH_NOARGS, "Closes the handle; a poll() that waits raises ClosedError."},
    {"_retract", (PyCFunction)reader_retract, METH_O, NULL},
    {"_counts", (PyCFunction)reader_counts, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef reader_getset[] = {
    {"_position", (getter)reader_get_position, NULL, NULL, NULL},
    {"lost", (getter)reader_get_lost, NULL, "Records that were overwritten before this reader came to them; aborted ones do not count.", NULL},
    {"lag", (getter)reader_get_lag, NULL, "Records published and not read yet.", NULL},
    {"closed", (getter)reader_get_closed, NULL, "Whether the handle was closed or inherited through a fork.", NULL},
    {"epoch", (getter)reader_get_epoch, NULL, "The epoch the reader was opened in.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyTypeObject ReaderType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = CX_MODULE "Reader",
    .tp_basicsize = sizeof(Reader),
    .tp_new = reader_new,
    .tp_dealloc = (destructor)reader_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_doc = "Reads without a group: never slows a producer, may be lapped, is told exactly how much it lost.",
    .tp_methods = reader_methods,
    .tp_getset = reader_getset,
};

/* -- wait_any ---------------------------------------------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject *handle;
    Member *member; /* or NULL */
    Reader *reader;
    cx_wait w;
} Armed;

/* 1 ready (also at its end, closed, or woken), 0 armed, -1 raised. A record that shows readiness is not consumed. */
static int arm(Armed *x)
{
    if (x->member) {
        Member *m = x->member;
        uint64_t first, n;
        if (!cx_usable(m->att, m->opened, m->m.closed)) return -1;
        if (m->m.wakes != m->wakes_seen || (m->m.r0 < m->m.r1 && !cx_group_paused(m->att->a, m->m.group))) return 1;
        int rc;
        do rc = cx_take(&m->m, 1, false, &x->w, true, -1, &first, &n);
        while (rc == CX_SPENT && cx_member_bury(m, first));
        if (rc == CX_SPENT) return -1;
        if (rc < 0) cx_raise(rc);
        return rc < 0 ? -1 : rc != CX_WAIT; /* a run that was taken stays in the handle for the next take() */
    }
    Reader *r = x->reader;
    if (!cx_usable(r->att, r->opened, r->r.closed)) return -1;
    if (r->r.wakes != r->wakes_seen) return 1;
    cx_reader probe = r->r; /* the copy moves, the reader does not */
    cx_view v;
    cx_port *port = &r->att->a->ports[r->r.port];
    uint64_t n = LD(port->n), last = LD(port->last_offset), lost = LD(port->lost);
    int rc = cx_poll(&probe, &x->w, true, &v);
    ST(port->n, n);
    ST(port->last_offset, last);
    ST(port->lost, lost);
    if (rc < 0) cx_raise(rc);
    return rc < 0 ? -1 : rc != CX_WAIT;
}

static void disarm(Armed *armed, Py_ssize_t n)
{
    for (Py_ssize_t i = 0; i < n; i++)
        if (armed[i].member) cx_take_leave(&armed[i].member->m, &armed[i].w);
}

/* Arms everything; the number of ready ones, or -1. */
static Py_ssize_t arm_all(Armed *armed, Py_ssize_t n, bool *ready)
{
    Py_ssize_t found = 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        int rc = arm(&armed[i]);
        if (rc < 0) return -1;
        ready[i] = rc;
        found += rc;
    }
    return found;
}

static cx_att *att_of(const Armed *x) { return x->member ? x->member->att->a : x->reader->att->a; }

static int patience_of(const Armed *x) { return cx_patience(att_of(x), x->member ? &att_of(x)->groups[x->member->m.group] : NULL); }

static int64_t *idle_of(const Armed *x) { return x->member ? &x->member->idle_ns : &x->reader->idle_ns; }

static int sleep_on_all(Armed *armed, Py_ssize_t n, int64_t deadline)
{
    cx_wait_word words[128];
    int64_t slice = INT64_MAX;
    for (Py_ssize_t i = 0; i < n; i++) {
        const Armed *x = &armed[i];
        int64_t its = cx_slice(att_of(x), &x->w, patience_of(x));
        words[i].addr = x->w.addr;
        words[i].value = x->w.value;
        if (its < slice) slice = its;
    }
    bool whole = true;
    if (deadline >= 0 && deadline - cx_now_ns() < slice) {
        slice = deadline - cx_now_ns();
        whole = false;
    }
    int e = 0;
    Py_BEGIN_ALLOW_THREADS
    e = cx_futex_wait_any(words, (uint32_t)n, slice > 0 ? slice : 0);
    Py_END_ALLOW_THREADS
    if (e == ETIMEDOUT)
        for (Py_ssize_t i = 0; i < n; i++) {
            Armed *x = &armed[i];
            if (whole)
                cx_wait_expired(att_of(x), &x->w, patience_of(x));
            else
                cx_short_slice_passed(att_of(x));
        }
    return PyErr_CheckSignals(); /* whatever ended the slice: see cx_sleep */
}

static PyObject *ready_list(const Armed *armed, const bool *ready, Py_ssize_t n)
{
    PyObject *out = PyList_New(0);
    for (Py_ssize_t i = 0; out && i < n; i++)
        if (ready[i] && PyList_Append(out, armed[i].handle) != 0) Py_CLEAR(out);
    return out;
}

static PyObject *wait_any(PyObject *handles, int64_t deadline)
{
    Armed armed[128];
    bool ready[128] = {false};
    Py_ssize_t n = PyTuple_GET_SIZE(handles);
    memset(armed, 0, sizeof *armed * (size_t)n);
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *h = armed[i].handle = PyTuple_GET_ITEM(handles, i);
        if (PyObject_TypeCheck(h, &MemberType))
            armed[i].member = (Member *)h;
        else if (PyObject_TypeCheck(h, &ReaderType))
            armed[i].reader = (Reader *)h;
        else
            return PyErr_Format(PyExc_TypeError, "wait_any() takes readers and members, not %s", Py_TYPE(h)->tp_name);
        armed[i].w.max_ns = *idle_of(&armed[i]);
    }
    Py_ssize_t found;
    for (;;) {
        found = arm_all(armed, n, ready);
        if (found || n == 0 || !cx_may_wait(deadline)) break;
        if (sleep_on_all(armed, n, deadline) != 0) {
            found = -1;
            break;
        }
    }
    for (Py_ssize_t i = 0; i < n; i++) *idle_of(&armed[i]) = found ? 0 : armed[i].w.max_ns;
#if PY_VERSION_HEX >= 0x030c0000
    PyObject *pending = PyErr_GetRaisedException();
    disarm(armed, n);
    PyErr_SetRaisedException(pending);
#else
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    disarm(armed, n);
    PyErr_Restore(type, value, trace);
#endif
    return found < 0 ? NULL : ready_list(armed, ready, n);
}

PyObject *cx_wait_any_py(PyObject *module, PyObject *args)
{
    PyObject *sequence, *timeout = Py_None;
    int64_t deadline;
    (void)module;
    if (!PyArg_ParseTuple(args, "O|O", &sequence, &timeout) || !cx_deadline(timeout, &deadline)) return NULL;
    PyObject *handles = PySequence_Tuple(sequence);
    if (!handles) return NULL;
    PyObject *out = NULL;
    if (PyTuple_GET_SIZE(handles) > 128)
        PyErr_Format(cx_exc_config, "wait_any: %zd handles, at most 128", PyTuple_GET_SIZE(handles));
    else
        out = wait_any(handles, deadline);
    Py_DECREF(handles);
    return out;
}

int cx_reader_start(void) { return (poll_names[0].object = PyUnicode_InternFromString("timeout")) ? 0 : -1; }
