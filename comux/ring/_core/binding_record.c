/* binding_record.c - what a record looks like from Python: the attributes leases and views share, and the view itself.
 *
 * The descriptor was copied when the record was handed out, so offset, times, flags and tag stay true. Key, headers and value are
 * looked up in the segment: for a lease while it is held, for a view as long as the record is retained, which is tested after reading.
 */
#include "binding.h"
#include <string.h>

#define VIEW(self) ((View *)(self))

static int no_longer(Shown *s, const char *what)
{
    PyErr_Format(cx_exc_not_retained, "topic '%s': offset %llu was overwritten before its %s could be read; read faster, raise slots, or join a group",
                 s->att->a->super.name, (unsigned long long)s->offset, what);
    return -1;
}

bool cx_lease_alive(Shown *s)
{
    const Lease *l = (Lease *)s;
    if (l->state == LEASE_LIVE && !l->member->m.closed && !s->att->a->forked) return true;
    PyErr_Format(cx_exc_stale, "topic '%s': offset %llu was released; take what you need before", s->att->a->super.name, (unsigned long long)s->offset);
    return false;
}

/* A view is alive as long as nobody says otherwise: validity is tested after reading. */
bool cx_view_alive(Shown *s)
{
    (void)s;
    return true;
}

static bool lease_holds(Shown *s)
{
    (void)s;
    return true; /* what a living member has started is not overwritten */
}
static bool view_holds(Shown *s) { return cx_valid(s->att->a, s->offset); }

typedef struct {
    bool (*alive)(Shown *); /* may the segment be looked at? Raises where not */
    bool (*holds)(Shown *); /* was what we read still this record? */
} Rules;
static const Rules lease_rules = {cx_lease_alive, lease_holds}, view_rules = {cx_view_alive, view_holds};

static PyObject *get_offset(Shown *s, void *rules)
{
    (void)rules;
    return PyLong_FromUnsignedLongLong(s->offset);
}
static PyObject *get_epoch(Shown *s, void *rules)
{
    (void)rules;
    return PyLong_FromUnsignedLong(cx_desc_epoch(s->att->a, &s->d));
}
static PyObject *get_timestamp(Shown *s, void *rules)
{
    (void)rules;
    return PyLong_FromLongLong(s->d.ts_ns);
}
static PyObject *get_append(Shown *s, void *rules)
{
    (void)rules;
    return PyLong_FromLongLong(s->d.bits & CX_BIT_APPEND ? s->d.append_ns : s->d.ts_ns);
}
static PyObject *get_flags(Shown *s, void *rules)
{
    (void)rules;
    return PyLong_FromLong(s->d.flags);
}
static PyObject *get_tag(Shown *s, void *rules)
{
    (void)rules;
    return PyLong_FromLongLong(s->d.tag);
}
static PyObject *get_producer(Shown *s, void *rules)
{
    (void)rules;
    return PyLong_FromUnsignedLong(s->d.producer);
}
static PyObject *get_nbytes(Shown *s, void *rules)
{
    (void)rules;
    if (!(s->d.bits & CX_BIT_VALUE)) return PyLong_FromLong(0);
    return PyLong_FromUnsignedLong(s->d.val_len);
}

static const uint8_t *keys_of(Shown *s)
{
    cx_att *a = s->att->a;
    return cx_keys_at(a, &s->d, cx_desc_at(a, s->offset), a->ro);
}

static PyObject *get_key(Shown *s, const Rules *rules)
{
    if (!(s->d.bits & CX_BIT_KEY)) Py_RETURN_NONE;
    if (!rules->alive(s)) return NULL;
    PyObject *key = PyBytes_FromStringAndSize((const char *)keys_of(s), s->d.key_len);
    if (key && !rules->holds(s)) {
        Py_CLEAR(key);
        no_longer(s, "key");
    }
    return key;
}

static PyObject *get_headers(Shown *s, const Rules *rules)
{
    if (!s->d.n_headers) return PyTuple_New(0);
    if (!rules->alive(s)) return NULL;
    PyObject *copy = PyBytes_FromStringAndSize((const char *)keys_of(s) + s->d.key_len, s->d.hdr_len);
    if (!copy) return NULL;
    if (!rules->holds(s)) {
        Py_DECREF(copy);
        no_longer(s, "headers");
        return NULL;
    }
    PyObject *headers = cx_decode_headers((const uint8_t *)PyBytes_AS_STRING(copy), s->d.hdr_len, s->d.n_headers);
    Py_DECREF(copy);
    if (!headers && !PyErr_Occurred()) {
        cx_fail(CX_ECORRUPT, "topic '%s': the headers of offset %llu contradict themselves", s->att->a->super.name, (unsigned long long)s->offset);
        return cx_raise(CX_ECORRUPT);
    }
    return headers;
}

static PyObject *get_buffer(Shown *s, const Rules *rules)
{
    if (!(s->d.bits & CX_BIT_VALUE)) Py_RETURN_NONE;
    if (!rules->alive(s)) return NULL;
    return PyMemoryView_FromObject((PyObject *)s);
}

static PyObject *get_array(Shown *s, const Rules *rules)
{
    if (!(s->d.bits & CX_BIT_VALUE)) Py_RETURN_NONE;
    if (!rules->alive(s)) return NULL;
    if (!s->att->array_factory) {
        PyErr_SetString(PyExc_RuntimeError, "the attachment has no array factory");
        return NULL;
    }
    return PyObject_CallOneArg(s->att->array_factory, (PyObject *)s);
}

/* A copy of the value as bytes, None where the record has none. */
static PyObject *copy_value(Shown *s, const Rules *rules)
{
    if (!(s->d.bits & CX_BIT_VALUE)) Py_RETURN_NONE;
    if (!rules->alive(s)) return NULL;
    PyObject *out = PyBytes_FromStringAndSize(NULL, s->d.val_len);
    if (!out) return NULL;
    cx_copy(PyBytes_AS_STRING(out), cx_value_at(s->att->a, &s->d, s->att->a->ro), s->d.val_len);
    if (rules->holds(s)) return out;
    Py_DECREF(out);
    no_longer(s, "value");
    return NULL;
}

PyObject *cx_shown_bytes(Shown *s, bool (*alive)(Shown *)) { return copy_value(s, alive == cx_lease_alive ? &lease_rules : &view_rules); }

int cx_shown_buffer(Shown *s, Py_buffer *view, int flags, size_t n)
{
    cx_att *a = s->att->a;
    if (PyBuffer_FillInfo(view, (PyObject *)s, cx_value_at(a, &s->d, a->ro), (Py_ssize_t)n, 1, flags) != 0) return -1;
    s->exports++;
    return 0;
}

#define COMMON(rules)                                                                                                                       \
    {"offset", (getter)get_offset, NULL, "Number of the record in its topic; 64 bits, never reused.", NULL},                                \
    {"epoch", (getter)get_epoch, NULL, "Which life of the stream the record belongs to.", NULL},                                             \
    {"timestamp_ns", (getter)get_timestamp, NULL, "Unix time in nanoseconds, as the producer gave it.", NULL},                               \
    {"append_ns", (getter)get_append, NULL, "Unix time in nanoseconds at which the ring took the record.", NULL},                            \
    {"flags", (getter)get_flags, NULL, "Bit 0 keyframe; bits 8-15 the user's.", NULL},                                                       \
    {"tag", (getter)get_tag, NULL, "The producer's 64-bit number.", NULL},                                                                   \
    {"producer_id", (getter)get_producer, NULL, "Which producer handle wrote it.", NULL},                                                    \
    {"nbytes", (getter)get_nbytes, NULL, "Bytes of the value; 0 where there is none.", NULL},                                                \
    {"key", (getter)get_key, NULL, "Key as bytes, or None.", (void *)(rules)},                                                               \
    {"headers", (getter)get_headers, NULL, "Tuple of (name, bytes or None), in the producer's order.", (void *)(rules)},                     \
    {"buffer", (getter)get_buffer, NULL, "Read-only memoryview of the value in shared memory; None where there is none.", (void *)(rules)}, \
    {"array", (getter)get_array, NULL, "Read-only ndarray of the value in shared memory; None where there is none.", (void *)(rules)}

static PyObject *get_skipped(View *v, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(v->skipped);
}
static PyObject *get_count(Lease *l, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(l->count);
}
static PyObject *get_redelivered(Lease *l, void *unused)
{
    (void)unused;
    return PyBool_FromLong(l->count > 1);
}
static PyObject *get_live(Lease *l, void *unused)
{
    (void)unused;
    return PyBool_FromLong(l->state == LEASE_LIVE && !l->member->m.closed);
}

PyGetSetDef cx_lease_getset[] = {
    COMMON(&lease_rules),
    {"delivery_count", (getter)get_count, NULL, "1 at the first delivery.", NULL},
    {"redelivered", (getter)get_redelivered, NULL, "Whether an earlier delivery was not acknowledged.", NULL},
    {"held", (getter)get_live, NULL, "Whether the record is still held by this lease.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyGetSetDef cx_view_getset[] = {
    COMMON(&view_rules),
    {"skipped", (getter)get_skipped, NULL, "Records lost or jumped immediately before this one.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

/* -- view ------------------------------------------------------------------------------------------------------------------------- */

PyObject *cx_view_new(Attachment *att, const cx_view *v)
{
    View *self = PyObject_New(View, &ViewType);
    if (!self) return NULL;
    Py_INCREF(att);
    self->s.att = att;
    self->s.offset = v->offset;
    self->s.exports = 0;
    self->s.d = v->d;
    self->skipped = v->skipped;
    return (PyObject *)self;
}

static void view_dealloc(View *self)
{
    Py_DECREF(self->s.att);
    PyObject_Free(self);
}

static int view_getbuffer(View *self, Py_buffer *view, int flags)
{
    if (self->s.d.bits & CX_BIT_VALUE) return cx_shown_buffer(&self->s, view, flags, self->s.d.val_len);
    PyErr_SetString(PyExc_BufferError, "the record has no value");
    return -1;
}

static void shown_releasebuffer(Shown *self, Py_buffer *view)
{
    (void)view;
    self->exports--;
}

static PyObject *view_valid(View *self, PyObject *unused)
{
    (void)unused;
    return PyBool_FromLong(cx_valid(self->s.att->a, self->s.offset));
}

static PyObject *view_bytes(View *self, PyObject *unused)
{
    (void)unused;
    return copy_value(&self->s, &view_rules);
}

static PyObject *view_copy(View *self, PyObject *unused)
{
    (void)unused;
    if (!self->s.att->record_factory) {
        PyErr_SetString(PyExc_RuntimeError, "the attachment has no record factory");
        return NULL;
    }
    return PyObject_CallOneArg(self->s.att->record_factory, (PyObject *)self);
}

static PyObject *view_copy_into(View *self, PyObject *target)
{
    Py_buffer view;
    if (PyObject_GetBuffer(target, &view, PyBUF_WRITABLE) != 0) return NULL;
    if ((size_t)view.len != self->s.d.val_len || !(self->s.d.bits & CX_BIT_VALUE)) {
        PyErr_Format(PyExc_ValueError, "the target has %zd bytes, the record %u", view.len, self->s.d.val_len);
        PyBuffer_Release(&view);
        return NULL;
    }
    cx_copy(view.buf, cx_value_at(self->s.att->a, &self->s.d, self->s.att->a->ro), self->s.d.val_len);
    PyBuffer_Release(&view);
    if (!view_holds(&self->s)) {
        no_longer(&self->s, "value");
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *view_repr(View *self)
{
    return PyUnicode_FromFormat("<View of topic '%s' offset %llu, %u bytes>", self->s.att->a->super.name, (unsigned long long)self->s.offset, self->s.d.val_len);
}

static PyMethodDef view_methods[] = {
    {"valid", (PyCFunction)view_valid, METH_NOARGS, "Whether the view still shows this record; call it after reading."},
    {"bytes", (PyCFunction)view_bytes, METH_NOARGS, "A validated copy of the value. Raises NotRetainedError where it was overwritten meanwhile."},
    {"copy", (PyCFunction)view_copy, METH_NOARGS, "The record as a validated copy. Raises NotRetainedError where it was overwritten meanwhile."},
    {"copy_into", (PyCFunction)view_copy_into, METH_O, "Copies the value into a writable buffer of the same size and validates it."},
    {NULL, NULL, 0, NULL},
};

static PyBufferProcs view_buffer = {(getbufferproc)view_getbuffer, (releasebufferproc)shown_releasebuffer};

PyTypeObject ViewType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = CX_MODULE "View",
    .tp_basicsize = sizeof(View),
    .tp_dealloc = (destructor)view_dealloc,
    .tp_repr = (reprfunc)view_repr,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_doc = "A record of a lossy read, looked at in place: believe what was read only after valid().",
    .tp_methods = view_methods,
    .tp_getset = cx_view_getset,
    .tp_as_buffer = &view_buffer,
};
