/* binding_claim.c - Claim: a place to write one record in.
 *
 * The claim is a writable buffer on the segment until it is committed or aborted. The value comes first and key and headers behind it,
 * because they are known at commit only; a claim reserves some room for them and gives back what was not used.
 */
#include "binding.h"
#include <string.h>

typedef struct {
    PyObject_HEAD
    Producer *producer;
    uint64_t offset, nbytes, room; /* room: bytes of the whole claim */
    Py_ssize_t exports;
    uint8_t state; /* 0 open, 1 committed, 2 aborted */
    PyObject *array; /* weak reference */
} Claim;

#define CLAIM_HEADROOM 1024 /* for key and headers, which are known at commit only; what is left is given back */

/* -- claim ---------------------------------------------------------------------------------------------------------------------------------- */

Keyword cx_claim_names[3] = {{"nbytes", NULL}, {"timeout", NULL}, {"meta_bytes", NULL}};

static PyObject *claim_open(Producer *self, uint64_t nbytes, uint64_t headroom, int64_t deadline)
{
    cx_att *a = self->att->a;
    cx_slot slot;
    if (a->fixed) nbytes = a->super.item_bytes;
    uint64_t size = CX_ROUND8(nbytes) + headroom;
    if (size > a->super.max_record && nbytes <= a->super.max_record) size = a->super.max_record > CX_ROUND8(nbytes) ? a->super.max_record : CX_ROUND8(nbytes);
    int rc = cx_claim_wait(self, 1, &size, deadline, &slot);
    if (rc < 0) return NULL;
    self->offered++;
    if (rc == CX_DROPPED) {
        self->dropped++;
        Py_RETURN_NONE;
    }
    Claim *claim = PyObject_New(Claim, &ClaimType);
    if (!claim) {
        self->aborted++;
        cx_abort(&self->p, slot.offset, 1);
        return NULL;
    }
    Py_INCREF(self);
    claim->producer = self;
    claim->offset = slot.offset;
    claim->nbytes = nbytes;
    claim->room = slot.claim_len;
    claim->exports = 0;
    claim->state = 0;
    claim->array = NULL;
    self->open_claims++;
    cx_desc *d = cx_desc_at(a, slot.offset);
    d->append_ns = cx_wall_ns(); /* who looks at open claims learns their age */
    d->bits = CX_BIT_APPEND;
    if (a->one_writer) cx_set_busy(self);
    FAILPOINT("claim.open");
    return (PyObject *)claim;
}

PyObject *cx_producer_claim(Producer *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *given[3], *result = NULL;
    int64_t deadline;
    if (!cx_keywords("claim", args, nargs, kwnames, 1, cx_claim_names, 3, given) || !cx_deadline(given[1], &deadline)) return NULL;
    Py_ssize_t n = 0, headroom = CLAIM_HEADROOM;
    if (given[0] && given[0] != Py_None && (n = PyLong_AsSsize_t(given[0])) < 0) {
        if (!PyErr_Occurred()) PyErr_Format(cx_exc_config, "claim(%zd): a negative size", n);
        return NULL;
    }
    if (given[2] && (headroom = PyLong_AsSsize_t(given[2])) < 0) {
        if (!PyErr_Occurred()) PyErr_Format(cx_exc_config, "claim(meta_bytes=%zd): a negative size", headroom);
        return NULL;
    }
    if (!self->att->a->fixed && (!given[0] || given[0] == Py_None)) {
        PyErr_Format(cx_exc_config, "topic '%s' has variable records: claim(nbytes) needs a size", self->att->a->super.name);
        return NULL;
    }
    if (self->att->a->fixed && given[0] && given[0] != Py_None && (uint64_t)n != self->att->a->super.item_bytes) {
        PyErr_Format(cx_exc_config, "topic '%s': a record has %llu bytes, %zd were claimed", self->att->a->super.name,
                     (unsigned long long)self->att->a->super.item_bytes, n);
        return NULL;
    }
    CX_ENTER(self);
    if (cx_usable(self->att, self->opened, self->p.closed)) result = claim_open(self, (uint64_t)n, (uint64_t)headroom, deadline);
    CX_LEAVE();
    return result;
}

static bool claim_is_open(Claim *self)
{
    const char *name = self->producer->att->a->super.name;
    if (self->state == 0 && cx_usable(self->producer->att, true, self->producer->p.closed)) return true;
    if (!PyErr_Occurred())
        PyErr_Format(cx_exc_stale, "topic '%s': the claim of offset %llu was %s already", name, (unsigned long long)self->offset,
                     self->state == 1 ? "committed" : "aborted");
    return false;
}

/* The array last handed out, where somebody still has it: a weak reference, because the array keeps the claim. */
static PyObject *living_array(Claim *self)
{
    PyObject *array = self->array ? PyObject_CallNoArgs(self->array) : NULL;
    if (array == Py_None) Py_CLEAR(array);
    return array;
}

static void claim_done(Claim *self, uint8_t state)
{
    Producer *p = self->producer;
    self->state = state;
    p->open_claims--;
    if (p->att->a->one_writer) cx_clear_busy(p);
    if (self->array) { /* what the user still holds must not write into a published record */
        PyObject *array = living_array(self);
        PyObject *flags = array ? PyObject_GetAttrString(array, "flags") : NULL;
        if (flags && PyObject_SetAttrString(flags, "writeable", Py_False) != 0) PyErr_Clear();
        Py_XDECREF(flags);
        Py_XDECREF(array);
        Py_CLEAR(self->array);
    }
}

Keyword cx_commit_names[6] = {{"used", NULL}, {"key", NULL}, {"headers", NULL}, {"timestamp_ns", NULL}, {"flags", NULL}, {"tag", NULL}};

static PyObject *claim_publish(Claim *self, PyObject **given)
{
    Producer *p = self->producer;
    cx_att *a = p->att->a;
    uint64_t used = self->nbytes;
    if (!claim_is_open(self)) return NULL;
    if (given[0] && given[0] != Py_None) {
        used = PyLong_AsUnsignedLongLong(given[0]);
        if (used == (uint64_t)-1 && PyErr_Occurred()) return NULL;
        if (used > self->nbytes || (a->fixed && used != self->nbytes)) {
            PyErr_Format(cx_exc_config, "topic '%s': used=%llu of a claim of %llu bytes%s", a->super.name, (unsigned long long)used,
                         (unsigned long long)self->nbytes, a->fixed ? "; fixed slots are used whole" : "");
            return NULL;
        }
    }
    Options o;
    memset(&o, 0, offsetof(Options, headers));
    if (!cx_options_from(given + 1, a, &o)) return NULL;
    o.m.bits |= CX_BIT_VALUE;
    o.m.val_len = used;
    uint64_t size = CX_ROUND8(used) + o.m.key_len + o.m.hdr_len;
    if (!a->fixed && size > self->room) {
        cx_fail(CX_ETOOBIG, "topic '%s': value, key and headers take %llu bytes, the claim has %llu; claim with meta_bytes=%llu", a->super.name,
                (unsigned long long)size, (unsigned long long)self->room, (unsigned long long)(o.m.key_len + o.m.hdr_len));
        cx_options_free(&o);
        return cx_raise(CX_ETOOBIG);
    }
    cx_write_meta(a, cx_desc_at(a, self->offset), &o.m, o.headers.data);
    uint64_t last_key = cx_key_of(&o.m, self->offset);
    cx_options_free(&o);
    int rc = cx_trim(&p->p, self->offset, size);
    if (rc == CX_OK) rc = cx_commit(&p->p, self->offset, 1, used, last_key);
    claim_done(self, rc == CX_OK ? 1 : 2);
    if (rc != CX_OK) {
        p->aborted++;
        return cx_raise(rc);
    }
    p->published++;
    return PyLong_FromUnsignedLongLong(self->offset);
}

static PyObject *claim_commit(Claim *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *given[6], *result;
    if (!cx_keywords("commit", args, nargs, kwnames, 1, cx_commit_names, 6, given)) return NULL;
    CX_ENTER(self->producer);
    result = claim_publish(self, given);
    CX_LEAVE();
    return result;
}

static void claim_give_up(Claim *self)
{
    CX_ENTER(self->producer);
    if (self->state == 0) {
        Producer *p = self->producer;
        if (!p->p.closed) cx_abort(&p->p, self->offset, 1);
        p->aborted++;
        claim_done(self, 2);
    }
    CX_LEAVE();
}

static PyObject *claim_abort(Claim *self, PyObject *unused)
{
    (void)unused;
    claim_give_up(self);
    Py_RETURN_NONE;
}

static PyObject *claim_enter(PyObject *self, PyObject *unused)
{
    (void)unused;
    return Py_NewRef(self);
}

static PyObject *claim_exit(Claim *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (self->state == 0) {
        if (nargs > 0 && args[0] != Py_None) {
            claim_give_up(self);
        } else {
            PyObject *given[6] = {NULL}, *done;
            CX_ENTER(self->producer);
            done = claim_publish(self, given);
            CX_LEAVE();
            if (!done) return NULL;
            Py_DECREF(done);
        }
    }
    Py_RETURN_NONE;
}

static int claim_getbuffer(Claim *self, Py_buffer *view, int flags)
{
    if (!claim_is_open(self)) {
        PyErr_Clear();
        PyErr_Format(PyExc_BufferError, "the claim of offset %llu is closed", (unsigned long long)self->offset);
        return -1;
    }
    cx_att *a = self->producer->att->a;
    if (PyBuffer_FillInfo(view, (PyObject *)self, a->rw + cx_phys(a, cx_desc_at(a, self->offset)->pos), (Py_ssize_t)self->nbytes, 0, flags) != 0) return -1;
    self->exports++;
    return 0;
}

static void claim_releasebuffer(Claim *self, Py_buffer *view)
{
    (void)view;
    self->exports--;
}

static PyObject *claim_get_buffer(Claim *self, void *unused)
{
    (void)unused;
    return PyMemoryView_FromObject((PyObject *)self);
}

static PyObject *claim_get_array(Claim *self, void *unused)
{
    (void)unused;
    if (!claim_is_open(self)) return NULL;
    PyObject *array = living_array(self);
    if (array || PyErr_Occurred()) return array;
    if (!(array = PyObject_CallOneArg(self->producer->att->array_factory, (PyObject *)self))) return NULL;
    Py_XSETREF(self->array, PyWeakref_NewRef(array, NULL));
    if (!self->array) Py_CLEAR(array);
    return array;
}

static PyObject *claim_get_offset(Claim *self, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(self->offset);
}

static PyObject *claim_get_nbytes(Claim *self, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(self->nbytes);
}

static void claim_dealloc(Claim *self)
{
    if (self->state == 0 && !self->producer->att->a->forked && !self->producer->p.closed) {
        cx_warn_dropped("a claim was dropped without commit: aborted, as was the record", self->offset);
        claim_give_up(self);
    }
    Py_CLEAR(self->array);
    Py_DECREF(self->producer);
    PyObject_Free(self);
}

static PyMethodDef claim_methods[] = {
    {"commit", (PyCFunction)(void (*)(void))claim_commit, METH_FASTCALL | METH_KEYWORDS,
     "commit(used=None, *, key=None, headers=(), timestamp_ns=None, flags=0, tag=0) -> offset"},
    {"abort", (PyCFunction)claim_abort, METH_NOARGS, "Gives the claim up: nothing is published. Does nothing after commit or abort."},
    {"__enter__", claim_enter, METH_NOARGS, NULL},
    {"__exit__", (PyCFunction)(void (*)(void))claim_exit, METH_FASTCALL, "Commits, or aborts where the block raised."},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef claim_getset[] = {
    {"buffer", (getter)claim_get_buffer, NULL, "Writable memoryview of the claimed bytes.", NULL},
    {"array", (getter)claim_get_array, NULL, "Writable ndarray of the claimed bytes; read-only after commit.", NULL},
    {"offset", (getter)claim_get_offset, NULL, "The record's offset; readers see it after commit.", NULL},
    {"nbytes", (getter)claim_get_nbytes, NULL, "Bytes claimed for the value.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyBufferProcs claim_buffer = {(getbufferproc)claim_getbuffer, (releasebufferproc)claim_releasebuffer};

PyTypeObject ClaimType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = CX_MODULE "Claim",
    .tp_basicsize = sizeof(Claim),
    .tp_dealloc = (destructor)claim_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_doc = "A place to write one record in; invisible until commit.",
    .tp_methods = claim_methods,
    .tp_getset = claim_getset,
    .tp_as_buffer = &claim_buffer,
};

