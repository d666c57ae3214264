/* binding_record.c - what a record looks like from Python: the attributes leases and views share, and the view itself.
 *
 * The descriptor was copied when the record was handed out, so offset, times, flags and tag stay true. Key, headers and value are
 * looked up in the segment: for a lease while it is held, for a view as long as the record is retained, which is tested after reading. A view
 * of a pool topic is kept instead: it pins its slot (pool.c) and has key and headers copied; where no pin is left the value is copied too.
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
    bool live = l->state == LEASE_LIVE && !l->member->m.closed && !s->att->a->forked;
    if (CX_LIKELY(live && cx_valid(s->att->a, s->offset))) return true;
    PyErr_Format(cx_exc_stale, "topic '%s': offset %llu was %s; take what you need before", s->att->a->super.name, (unsigned long long)s->offset,
                 live ? "claimed by another member and overwritten" : "released");
    return false;
}

/* A view is alive as long as nobody says otherwise: validity is tested after reading. */
bool cx_view_alive(Shown *s)
{
    (void)s;
    return true;
}

static bool view_holds(Shown *s) { return VIEW(s)->kept || cx_valid(s->att->a, s->offset); }
static bool lease_holds(Shown *s) { return cx_valid(s->att->a, s->offset); }

static const uint8_t *lease_value(Shown *s) { return cx_value_at(s->att->a, &s->d, s->att->a->ro); }
static const uint8_t *lease_keys(Shown *s)
{
    cx_att *a = s->att->a;
    return cx_keys_at(a, &s->d, cx_desc_at(a, s->offset), a->ro);
}
static const uint8_t *view_value(Shown *s) { return VIEW(s)->value; }
static const uint8_t *view_keys(Shown *s) { return VIEW(s)->keys; }

typedef struct {
    bool (*alive)(Shown *); /* may the segment be looked at? Raises where not */
    bool (*holds)(Shown *); /* was what we read still this record? */
    const uint8_t *(*value)(Shown *), *(*keys)(Shown *);
} Rules;
static const Rules lease_rules = {cx_lease_alive, lease_holds, lease_value, lease_keys}, view_rules = {cx_view_alive, view_holds, view_value, view_keys};

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

static PyObject *get_key(Shown *s, const Rules *rules)
{
    if (!(s->d.bits & CX_BIT_KEY)) Py_RETURN_NONE;
    if (!rules->alive(s)) return NULL;
    PyObject *key = PyBytes_FromStringAndSize((const char *)rules->keys(s), s->d.key_len);
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
    PyObject *copy = PyBytes_FromStringAndSize((const char *)rules->keys(s) + s->d.key_len, s->d.hdr_len);
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
    cx_copy(PyBytes_AS_STRING(out), rules->value(s), s->d.val_len);
    if (rules->holds(s)) return out;
    Py_DECREF(out);
    no_longer(s, "value");
    return NULL;
}

PyObject *cx_shown_bytes(Shown *s, bool (*alive)(Shown *)) { return copy_value(s, alive == cx_lease_alive ? &lease_rules : &view_rules); }

int cx_shown_buffer(Shown *s, Py_buffer *view, int flags, const uint8_t *at, size_t n)
{
    if (PyBuffer_FillInfo(view, (PyObject *)s, (void *)at, (Py_ssize_t)n, 1, flags) != 0) return -1;
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
static PyObject *get_kept(View *v, void *unused)
{
    (void)unused;
    return PyBool_FromLong(v->kept);
}
static PyObject *get_pinned(View *v, void *unused)
{
    (void)unused;
    return PyBool_FromLong(v->pin != CX_NO_PIN);
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
    const Member *m = l->member;
    bool live = l->state == LEASE_LIVE && !m->m.closed && !l->s.att->a->forked && cx_holds(&m->m, l->s.offset);
    return PyBool_FromLong(live && CX_W_COUNT(LDA(*cx_word_at(m->m.a, m->m.group, l->s.offset))) == l->count);
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
    {"kept", (getter)get_kept, NULL, "Whether it shows this record for as long as it exists (topics with layout='pool'), whatever the producer does.", NULL},
    {"pinned", (getter)get_pinned, NULL, "Whether it is kept by a pin on shared memory; kept and not pinned: a copy, because every pin was taken.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

/* -- view ------------------------------------------------------------------------------------------------------------------------- */

static View *new_view(Attachment *att, const cx_view *v)
{
    View *self = PyObject_New(View, &ViewType);
    if (!self) return NULL;
    Py_INCREF(att);
    self->s.att = att;
    self->s.offset = v->offset;
    self->s.exports = 0;
    self->s.d = v->d;
    self->skipped = v->skipped;
    self->value = cx_value_at(att->a, &v->d, att->a->ro);
    self->keys = cx_keys_at(att->a, &v->d, cx_desc_at(att->a, v->offset), att->a->ro);
    self->own = NULL;
    self->pin = CX_NO_PIN;
    self->kept = false;
    return self;
}

PyObject *cx_view_new(Attachment *att, const cx_view *v) { return (PyObject *)new_view(att, v); }

/* Key and headers, which live beside the descriptor, are copied in any case, the value where it could not be pinned. */
static bool own_parts(View *self)
{
    size_t aux = (size_t)self->s.d.key_len + self->s.d.hdr_len, value = self->pin == CX_NO_PIN ? self->s.d.val_len : 0;
    if (!aux && !value) return true;
    self->own = PyMem_Malloc(value + aux);
    if (!self->own) return PyErr_NoMemory() != NULL;
    if (value) cx_copy(self->own, self->value, value);
    if (aux) memcpy(self->own + value, self->keys, aux);
    if (value) self->value = self->own;
    self->keys = self->own + value;
    return true;
}

PyObject *cx_view_kept(Attachment *att, const cx_view *v, bool *lapped)
{
    View *self = new_view(att, v);
    if (!self) return NULL;
    int rc = cx_pin(att->a, v, &self->pin);
    if (rc == CX_OK) cx_hold(att->a);            /* the pin ends with the process's attachment, so that stays */
    if (rc == CX_DROPPED) cx_short_slice_passed(att->a); /* perhaps the dead hold them */
    bool ok = rc != CX_NONE && own_parts(self);
    *lapped = rc == CX_NONE || (ok && self->own && !cx_valid(att->a, v->offset)); /* the copied parts are whole */
    self->kept = true;
    if (ok && !*lapped) return (PyObject *)self;
    Py_DECREF(self);
    return NULL;
}

static void view_dealloc(View *self)
{
    cx_att *a = self->s.att->a;
    if (self->pin != CX_NO_PIN && !a->forked) {
        cx_unpin(a, self->pin);
        cx_detach(a);
    }
    PyMem_Free(self->own);
    Py_DECREF(self->s.att);
    PyObject_Free(self);
}

static int view_getbuffer(View *self, Py_buffer *view, int flags)
{
    if (self->s.d.bits & CX_BIT_VALUE) return cx_shown_buffer(&self->s, view, flags, self->value, self->s.d.val_len);
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
    return PyBool_FromLong(view_holds(&self->s));
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
    cx_copy(view.buf, self->value, self->s.d.val_len);
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
    .tp_doc = "A record of a lossy read, looked at in place: believe what was read only after valid(), or where it is `kept`.",
    .tp_methods = view_methods,
    .tp_getset = cx_view_getset,
    .tp_as_buffer = &view_buffer,
};
