/* binding_producer.c - Producer and Claim.
 *
 * put is claim, copy, commit in one call. Copies of 64 kB and more run without the interpreter lock. With several writers other threads may
 * go on meanwhile, each claim being its own; with one writer the next record's place is only known after this one's, so the handle is
 * marked busy and other threads wait for it (a private futex), while the same thread, which would wait for itself, gets an error.
 */
#include "binding.h"
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <string.h>

static uint64_t this_thread(void) { return (uint64_t)(uintptr_t)pthread_self(); }

/* -- one writer: one record at a time --------------------------------------------------------------------------------------------------- */

static bool wait_until_free(Producer *self, int64_t deadline)
{
    while (self->busy) {
        if (self->busy_since == this_thread()) {
            cx_fail(CX_EBUSY, "topic '%s' has one writer and this thread has a claim open; commit or abort it first, or create the topic with writers='many'",
                    self->att->a->super.name);
            cx_raise(CX_EBUSY);
            return false;
        }
        if (!cx_may_wait(deadline)) {
            cx_fail(CX_ETIMEOUT, "topic '%s': another thread of this producer has a claim open; commit it, or wait longer", self->att->a->super.name);
            cx_raise(CX_ETIMEOUT);
            return false;
        }
        int64_t slice = 100000000;
        if (deadline > 0 && deadline - cx_now_ns() < slice) slice = deadline - cx_now_ns();
        Py_BEGIN_ALLOW_THREADS
        cx_futex_wait(&self->busy, 1, slice);
        Py_END_ALLOW_THREADS
        if (PyErr_CheckSignals() != 0) return false;
    }
    return true;
}

void cx_set_busy(Producer *self)
{
    self->busy = 1;
    self->busy_since = this_thread();
}

void cx_clear_busy(Producer *self)
{
    if (!self->busy) return;
    ST(self->busy, 0);
    cx_futex_wake(&self->busy, INT_MAX);
}

/* -- options ---------------------------------------------------------------------------------------------------------------------------- */

enum { K_VALUE, K_KEY, K_HEADERS, K_TIMESTAMP, K_FLAGS, K_TAG, K_TIMEOUT, K_PUT_N };
static Keyword put_names[] = {{"", NULL}, {"key", NULL}, {"headers", NULL}, {"timestamp_ns", NULL}, {"flags", NULL}, {"tag", NULL}, {"timeout", NULL}};

void cx_options_free(Options *o)
{
    if (o->key.obj) PyBuffer_Release(&o->key);
    cx_encoded_free(&o->headers);
}

/* args: key, headers, timestamp_ns, flags, tag in this order, each NULL or an object. */
bool cx_options_from(PyObject **args, const cx_att *a, Options *o)
{
    PyObject *key = args[0], *ts = args[2], *flags = args[3], *tag = args[4];
    if (!cx_encode_headers(args[1], &o->headers)) return false;
    if (key && key != Py_None) {
        if (PyObject_GetBuffer(key, &o->key, PyBUF_SIMPLE) != 0) goto fail;
        o->m.bits |= CX_BIT_KEY;
        o->m.key = o->key.buf;
        o->m.key_len = (uint64_t)o->key.len;
    }
    o->m.hdr_len = o->headers.n;
    o->m.n_headers = o->headers.count;
    if (o->m.key_len > 65535) {
        PyErr_Format(cx_exc_config, "topic '%s': a key of %zd bytes; the limit is 65535", a->super.name, o->key.len);
        goto fail;
    }
    if (a->fixed && o->m.key_len + o->m.hdr_len > CX_FIXED_AUX) {
        cx_fail(CX_ETOOBIG, "topic '%s': key and headers take %llu bytes; fixed slots have room for %d; shorten them or use a variable topic", a->super.name,
                (unsigned long long)(o->m.key_len + o->m.hdr_len), CX_FIXED_AUX);
        cx_raise(CX_ETOOBIG);
        goto fail;
    }
    if (ts && ts != Py_None) {
        o->m.ts_ns = PyLong_AsLongLong(ts);
        o->m.has_ts = true;
        if (o->m.ts_ns == -1 && PyErr_Occurred()) goto fail;
    }
    if (flags) {
        long v = PyLong_AsLong(flags);
        if (v < 0 || v > 0xffff) {
            if (!PyErr_Occurred()) PyErr_Format(cx_exc_config, "flags=%R: 16 bits", flags);
            goto fail;
        }
        o->m.flags = (uint16_t)v;
    }
    if (tag) {
        o->m.tag = PyLong_AsLongLong(tag);
        if (o->m.tag == -1 && PyErr_Occurred()) goto fail;
    }
    return true;
fail:
    cx_options_free(o);
    return false;
}

/* -- values ----------------------------------------------------------------------------------------------------------------------------- */

static bool same_dtype(Attachment *att, PyObject *value)
{
    PyObject *dtype = PyObject_GetAttrString(value, "dtype");
    if (!dtype) return false;
    bool same = dtype == att->dtype || dtype == att->accepted;
    if (!same) {
        int rc = PyObject_RichCompareBool(dtype, att->dtype, Py_EQ);
        if (rc == 1) Py_XSETREF(att->accepted, Py_NewRef(dtype));
        same = rc == 1;
    }
    if (!same && !PyErr_Occurred())
        PyErr_Format(cx_exc_config, "topic '%s' holds dtype %R, the value has %R; convert it with astype()", att->a->super.name, att->dtype, dtype);
    Py_DECREF(dtype);
    return same;
}

static bool same_shape(Attachment *att, PyObject *value, PyObject *first_any)
{
    PyObject *shape = PyObject_GetAttrString(value, "shape");
    if (!shape) return false;
    int rc;
    if (first_any) { /* (k, *shape) */
        PyObject *rest = PyTuple_GetSlice(shape, 1, PyTuple_GET_SIZE(shape));
        rc = rest && PyTuple_GET_SIZE(shape) ? PyObject_RichCompareBool(rest, att->shape, Py_EQ) : rest ? 0 : -1;
        Py_XDECREF(rest);
    } else {
        rc = PyObject_RichCompareBool(shape, att->shape, Py_EQ);
    }
    if (rc == 0)
        PyErr_Format(cx_exc_config, "topic '%s' holds records of shape %R, the value has %R%s", att->a->super.name, att->shape, shape,
                     first_any ? " (one more axis in front is expected)" : "");
    Py_DECREF(shape);
    return rc == 1;
}

/* The value as bytes in *view (obj NULL for exact bytes objects and None). many: an array of k records. */
static bool value_from(Producer *self, PyObject *value, bool many, cx_meta *m, Py_buffer *view)
{
    Attachment *att = self->att;
    view->obj = NULL;
    if (PyBytes_CheckExact(value)) {
        m->value = PyBytes_AS_STRING(value);
        m->val_len = (uint64_t)PyBytes_GET_SIZE(value);
    } else if (value == Py_None && !att->a->fixed) {
        m->bits &= (uint16_t)~CX_BIT_VALUE;
        m->val_len = 0;
        return true;
    } else {
        if (att->dtype && (PyObject_TypeCheck(value, (PyTypeObject *)att->ndarray) || PyObject_TypeCheck(value, (PyTypeObject *)att->generic)) &&
            !(same_dtype(att, value) && same_shape(att, value, many ? value : NULL)))
            return false;
        if (PyObject_GetBuffer(value, view, PyBUF_SIMPLE) != 0) {
            if (PyErr_ExceptionMatches(PyExc_TypeError)) return false; /* no buffer at all: the message names the type */
            PyErr_Clear();
            PyErr_Format(cx_exc_config, "topic '%s': the value is not C-contiguous; pass numpy.ascontiguousarray(value)", att->a->super.name);
            return false;
        }
        m->value = view->buf;
        m->val_len = (uint64_t)view->len;
    }
    m->bits |= CX_BIT_VALUE;
    uint64_t item = att->a->super.item_bytes;
    if (!att->a->fixed || (many ? m->val_len % item == 0 && m->val_len > 0 : m->val_len == item)) return true;
    PyErr_Format(cx_exc_config, "topic '%s': the value has %llu bytes, a record has %llu", att->a->super.name, (unsigned long long)m->val_len, (unsigned long long)item);
    if (view->obj) PyBuffer_Release(view);
    return false;
}

/* -- claim and wait --------------------------------------------------------------------------------------------------------------------- */

/* CX_OK, CX_DROPPED, or -1 with an exception. */
int cx_claim_wait(Producer *self, uint64_t n, const uint64_t *sizes, int64_t deadline, cx_slot *slot)
{
    cx_wait w = {0};
    for (;;) {
        if (CX_UNLIKELY(!cx_usable(self->att, self->opened, self->p.closed)) || (CX_UNLIKELY(self->busy) && !wait_until_free(self, deadline))) {
            cx_claim_leave(&self->p, &w);
            return -1;
        }
        bool may_wait = w.since_ns ? cx_may_wait(deadline) : deadline != 0;
        int rc = cx_claim(&self->p, n, sizes, &w, may_wait, deadline, slot);
        if (CX_LIKELY(rc == CX_OK || rc == CX_DROPPED)) return rc;
        if (rc != CX_WAIT) {
            char text[512];
            memcpy(text, cx_error_text(), sizeof text);
            cx_claim_leave(&self->p, &w);
            cx_raise_text(rc, text);
            return -1;
        }
        if (cx_sleep(self->att->a, &w, deadline, 1) != 0) {
            cx_claim_leave(&self->p, &w);
            return -1;
        }
    }
}

void cx_write_meta(cx_att *a, cx_desc *d, const cx_meta *m, const void *headers)
{
    cx_describe(d, m);
    uint8_t *at = cx_keys_at(a, d, d, a->rw);
    if (m->key_len) memcpy(at, m->key, m->key_len);
    if (m->hdr_len) memcpy(at + m->key_len, headers, m->hdr_len);
}

uint64_t cx_key_of(const cx_meta *m, uint64_t offset) { return m->flags & 1 ? offset + 1 : 0; }

/* -- put --------------------------------------------------------------------------------------------------------------------------------- */

static PyObject *put_one(Producer *self, cx_meta *m, const void *headers, int64_t deadline)
{
    cx_att *a = self->att->a;
    uint64_t size = CX_ROUND8(m->val_len) + m->key_len + m->hdr_len;
    cx_slot slot;
    int rc = cx_claim_wait(self, 1, &size, deadline, &slot);
    if (CX_UNLIKELY(rc != CX_OK)) {
        if (rc < 0) return NULL;
        self->offered++;
        self->dropped++;
        Py_RETURN_NONE;
    }
    cx_desc *d = cx_desc_at(a, slot.offset);
    cx_write_meta(a, d, m, headers);
    FAILPOINT("put.filling");
    if (CX_LIKELY(m->val_len < COPY_WITHOUT_GIL)) {
        if (m->val_len) memcpy(cx_value_at(a, d, a->rw), m->value, m->val_len);
    } else {
        if (a->one_writer) cx_set_busy(self);
        cx_copy(cx_value_at(a, d, a->rw), m->value, m->val_len);
        if (a->one_writer) cx_clear_busy(self);
    }
    rc = cx_commit(&self->p, slot.offset, 1, m->val_len, cx_key_of(m, slot.offset));
    self->offered++;
    if (rc != CX_OK) {
        self->aborted++;
        return cx_raise(rc);
    }
    self->published++;
    return PyLong_FromUnsignedLongLong(slot.offset);
}

static PyObject *put(Producer *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *given[K_PUT_N];
    Options o;
    Py_buffer view;
    memset(&o.m, 0, sizeof o.m);
    o.key.obj = NULL;
    o.headers.data = NULL;
    o.deadline = -1;
    if (CX_UNLIKELY(!cx_usable(self->att, self->opened, self->p.closed))) return NULL;
    if (kwnames || nargs != 1) {
        if (!cx_keywords("put", args, nargs, kwnames, 1, put_names, K_PUT_N, given)) return NULL;
        if (!given[K_VALUE]) {
            PyErr_SetString(PyExc_TypeError, "put() needs a value");
            return NULL;
        }
        if (!cx_deadline(given[K_TIMEOUT], &o.deadline) || !cx_options_from(given + K_KEY, self->att->a, &o)) return NULL;
    } else {
        given[K_VALUE] = args[0];
    }
    PyObject *result = NULL;
    if (value_from(self, given[K_VALUE], false, &o.m, &view)) {
        result = put_one(self, &o.m, o.headers.data, o.deadline);
        if (view.obj) PyBuffer_Release(&view);
    }
    cx_options_free(&o);
    return result;
}

static PyObject *producer_put(Producer *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *result;
    CX_ENTER(self);
    result = put(self, args, nargs, kwnames);
    CX_LEAVE();
    return result;
}

/* -- put_many ----------------------------------------------------------------------------------------------------------------------------- */

static PyObject *finish_many(Producer *self, const cx_slot *slot, uint64_t n, uint64_t bytes, const cx_meta *m)
{
    int rc = cx_commit(&self->p, slot->offset, n, bytes, m->flags & 1 ? slot->offset + n : 0);
    self->offered += n;
    if (rc != CX_OK) {
        self->aborted += n;
        return cx_raise(rc);
    }
    self->published += n;
    return PyLong_FromUnsignedLongLong(slot->offset);
}

static PyObject *dropped_many(Producer *self, uint64_t n, int rc)
{
    if (rc < 0) return NULL;
    self->offered += n;
    self->dropped += n;
    Py_RETURN_NONE;
}

static PyObject *put_array(Producer *self, PyObject *value, cx_meta *m, int64_t deadline)
{
    cx_att *a = self->att->a;
    Py_buffer view;
    cx_slot slot;
    if (!value_from(self, value, true, m, &view)) return NULL;
    uint64_t item = a->super.item_bytes, bytes = m->val_len, n = bytes / item;
    PyObject *result = NULL;
    int rc = cx_claim_wait(self, n, NULL, deadline, &slot);
    if (rc != CX_OK) {
        result = dropped_many(self, n, rc);
        goto out;
    }
    m->val_len = item;
    cx_desc *first = cx_desc_at(a, slot.offset);
    cx_describe(first, m);
    for (uint64_t i = 1; i < n; i++) {
        cx_desc *d = cx_desc_at(a, slot.offset + i);
        memcpy(&d->ts_ns, &first->ts_ns, sizeof d->ts_ns);
        d->tag = m->tag;
        d->val_len = (uint32_t)item;
        d->hdr_len = 0;
        d->key_len = d->n_headers = 0;
        d->flags = m->flags;
        d->bits = first->bits;
        d->append_ns = first->append_ns;
    }
    FAILPOINT("put_many.filling");
    uint8_t *to = cx_value_at(a, first, a->rw);
    bool large = bytes >= COPY_WITHOUT_GIL;
    if (large && a->one_writer) cx_set_busy(self);
    if (a->stride == item && !a->pool)
        cx_copy(to, m->value, bytes);
    else
        for (uint64_t i = 0; i < n; i++) cx_copy(cx_value_at(a, cx_desc_at(a, slot.offset + i), a->rw), (const uint8_t *)m->value + i * item, item);
    if (large && a->one_writer) cx_clear_busy(self);
    result = finish_many(self, &slot, n, bytes, m);
out:
    if (view.obj) PyBuffer_Release(&view);
    return result;
}

static PyObject *put_sequence(Producer *self, PyObject *values, cx_meta *m, int64_t deadline)
{
    cx_att *a = self->att->a;
    PyObject *list = PySequence_Tuple(values); /* nobody changes a tuple while we wait */
    if (!list) return NULL;
    Py_ssize_t n = PyTuple_GET_SIZE(list), held = 0;
    uint64_t bytes = 0;
    PyObject *result = NULL;
    Py_buffer *views = PyMem_Calloc((size_t)n + 1, sizeof *views);
    cx_meta *metas = PyMem_Calloc((size_t)n + 1, sizeof *metas);
    uint64_t *sizes = PyMem_Calloc((size_t)n + 1, sizeof *sizes);
    if (!views || !metas || !sizes) {
        PyErr_NoMemory();
        goto out;
    }
    if (n == 0) PyErr_SetString(cx_exc_config, "put_many: no records");
    for (; held < n; held++) {
        metas[held] = *m;
        if (!value_from(self, PyTuple_GET_ITEM(list, held), false, &metas[held], &views[held])) goto out;
        sizes[held] = CX_ROUND8(metas[held].val_len);
        bytes += metas[held].val_len;
    }
    if (n == 0) goto out;
    cx_slot slot;
    int rc = cx_claim_wait(self, (uint64_t)n, sizes, deadline, &slot);
    if (rc != CX_OK) {
        result = dropped_many(self, (uint64_t)n, rc);
        goto out;
    }
    if (a->one_writer) cx_set_busy(self);
    for (Py_ssize_t i = 0; i < n; i++) {
        cx_desc *d = cx_desc_at(a, slot.offset + (uint64_t)i);
        cx_describe(d, &metas[i]);
        if (metas[i].val_len) cx_copy(cx_value_at(a, d, a->rw), metas[i].value, metas[i].val_len);
    }
    FAILPOINT("put_many.filling");
    if (a->one_writer) cx_clear_busy(self);
    result = finish_many(self, &slot, (uint64_t)n, bytes, m);
out:
    for (Py_ssize_t i = 0; views && i < held; i++)
        if (views[i].obj) PyBuffer_Release(&views[i]);
    PyMem_Free(views);
    PyMem_Free(metas);
    PyMem_Free(sizes);
    Py_DECREF(list);
    return result;
}

static Keyword many_names[] = {{"", NULL}, {"timestamp_ns", NULL}, {"flags", NULL}, {"tag", NULL}, {"timeout", NULL}};

static PyObject *producer_put_many(Producer *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *given[5], *result = NULL;
    if (!cx_keywords("put_many", args, nargs, kwnames, 1, many_names, 5, given)) return NULL;
    if (!given[0]) {
        PyErr_SetString(PyExc_TypeError, "put_many() needs values");
        return NULL;
    }
    CX_ENTER(self);
    if (cx_usable(self->att, self->opened, self->p.closed)) {
        PyObject *options[5] = {NULL, NULL, given[1], given[2], given[3]};
        Options o;
        memset(&o, 0, offsetof(Options, headers));
        if (cx_deadline(given[4], &o.deadline)) {
            int64_t deadline = o.deadline;
            if (cx_options_from(options, self->att->a, &o)) {
                bool block = self->att->a->fixed && !PyList_CheckExact(given[0]) && !PyTuple_CheckExact(given[0]);
                result = block ? put_array(self, given[0], &o.m, deadline) : put_sequence(self, given[0], &o.m, deadline);
                cx_options_free(&o);
            }
        }
    }
    CX_LEAVE();
    return result;
}

/* -- producer ------------------------------------------------------------------------------------------------------------------------------- */

static PyObject *producer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    Attachment *att;
    const char *name;
    (void)kwargs;
    if (!PyArg_ParseTuple(args, "O!s", &AttachmentType, &att, &name)) return NULL;
    if (!cx_usable(att, true, !att->open)) return NULL;
    Producer *self = (Producer *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    self->att = (Attachment *)Py_NewRef((PyObject *)att);
    int rc = cx_producer_open(att->a, name, &self->p);
    if (rc != CX_OK) {
        Py_DECREF(self);
        return cx_raise(rc);
    }
    self->opened = true;
    return (PyObject *)self;
}

static bool producer_shut(Producer *self, bool clean)
{
    bool ok = true;
    CX_ENTER(self);
    if (self->opened && !self->p.closed) {
        /* A large copy of another thread ends by itself; an open claim is given up with the handle. */
        while (self->busy && self->open_claims == 0 && ok) ok = wait_until_free(self, -1);
        if (!self->p.closed) cx_producer_close(&self->p, clean);
    }
    CX_LEAVE();
    return ok;
}

static PyObject *producer_close(Producer *self, PyObject *unused)
{
    (void)unused;
    if (!producer_shut(self, true)) return NULL;
    Py_RETURN_NONE;
}

static PyObject *producer_end(Producer *self, PyObject *unused)
{
    (void)unused;
    int rc = CX_OK;
    if (!cx_usable(self->att, self->opened, self->p.closed)) return NULL;
    CX_ENTER(self);
    if (!self->p.ended) rc = cx_producer_end(&self->p);
    CX_LEAVE();
    if (rc != CX_OK) return cx_raise(rc);
    Py_RETURN_NONE;
}

/* One instant: offered = published + dropped + aborted + open claims. */
static PyObject *producer_counts(Producer *self, PyObject *unused)
{
    (void)unused;
    double blocked = self->opened && !self->p.closed ? (double)LD(self->att->a->ports[self->p.port].blocked_ns) / 1e9 : 0.0;
    return Py_BuildValue("KKKKKd", (unsigned long long)self->offered, (unsigned long long)self->published, (unsigned long long)self->dropped,
                         (unsigned long long)self->aborted, (unsigned long long)self->open_claims, blocked);
}

static void producer_dealloc(Producer *self)
{
    if (self->att) {
        if (self->opened && !self->p.closed) cx_producer_close(&self->p, false);
        Py_DECREF(self->att);
    }
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *producer_get_closed(Producer *self, void *unused)
{
    (void)unused;
    return PyBool_FromLong(self->p.closed || self->att->a->forked);
}
static PyObject *producer_get_epoch(Producer *self, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(self->p.epoch);
}
static PyObject *producer_get_id(Producer *self, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(self->p.id);
}

static PyMethodDef producer_methods[] = {
    {"put", (PyCFunction)(void (*)(void))producer_put, METH_FASTCALL | METH_KEYWORDS,
     "put(value, *, key=None, headers=(), timestamp_ns=None, flags=0, tag=0, timeout=None) -> offset, or None where drop_newest dropped it"},
    {"put_many", (PyCFunction)(void (*)(void))producer_put_many, METH_FASTCALL | METH_KEYWORDS,
     "put_many(values, *, timestamp_ns=None, flags=0, tag=0, timeout=None) -> first offset"},
    {"claim", (PyCFunction)(void (*)(void))cx_producer_claim, METH_FASTCALL | METH_KEYWORDS, "claim(nbytes=None, *, timeout=None, meta_bytes=1024) -> Claim"},
    {"end", (PyCFunction)producer_end, METH_NOARGS, "Closes the epoch: consumers see the end after the last record."},
    {"close", (PyCFunction)producer_close, METH_NOARGS, "Clean close; with end='auto' the last living producer's close ends the stream."},
    {"_counts", (PyCFunction)producer_counts, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef producer_getset[] = {
    {"closed", (getter)producer_get_closed, NULL, "Whether the handle was closed or inherited through a fork.", NULL},
    {"epoch", (getter)producer_get_epoch, NULL, "The epoch this producer writes.", NULL},
    {"producer_id", (getter)producer_get_id, NULL, "What its records say in producer_id.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyTypeObject ProducerType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = CX_MODULE "Producer",
    .tp_basicsize = sizeof(Producer),
    .tp_new = producer_new,
    .tp_dealloc = (destructor)producer_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_doc = "Writes records. Thread-safe.",
    .tp_methods = producer_methods,
    .tp_getset = producer_getset,
};

int cx_producer_start(void)
{
    Keyword *all[] = {put_names, many_names, cx_claim_names, cx_commit_names};
    size_t n[] = {K_PUT_N, 5, 3, 6};
    for (size_t t = 0; t < 4; t++)
        for (size_t i = 0; i < n[t]; i++)
            if (all[t][i].name[0] && !(all[t][i].object = PyUnicode_InternFromString(all[t][i].name))) return -1;
    return 0;
}
