/* binding_util.c - errors, arguments, time, sleeping, headers. */
#include "binding.h"
#include <errno.h>
#include <string.h>

static PyObject *errors[16]; /* exception class of core result -i */
PyObject *cx_exc_not_retained, *cx_exc_end_of_stream, *cx_exc_closed, *cx_exc_stale, *cx_exc_config;

static void *block_begin(void) { return PyGILState_Check() ? PyEval_SaveThread() : NULL; }

static int block_end(void *token, int interruptible)
{
    if (!token) return 0;
    PyEval_RestoreThread(token);
    return interruptible ? PyErr_CheckSignals() : 0;
}

int cx_util_start(void)
{
    static const struct {
        int code;
        const char *name;
    } table[] = {
        {CX_ECLOSED, "ClosedError"},     {CX_ECORRUPT, "TopicCorruptError"}, {CX_EBUSY, "TopicBusyError"},     {CX_ETOOBIG, "RecordTooLargeError"},
        {CX_ECONFIG, "ConfigError"},     {CX_ESTALE, "StaleLeaseError"},     {CX_ETIMEOUT, "WaitTimeoutError"}, {CX_EOS, "TopicError"},
        {CX_ENOSPACE, "NoSpaceError"},   {CX_ENOTOPIC, "UnknownTopicError"}, {CX_EEXISTS, "TopicExistsError"}, {CX_ELAYOUT, "LayoutMismatchError"},
        {CX_EENDED, "EndOfStream"},
    };
    PyObject *module = PyImport_ImportModule("comux.errors");
    if (!module) return -1;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (!(errors[-table[i].code] = PyObject_GetAttrString(module, table[i].name))) return -1;
    cx_exc_not_retained = PyObject_GetAttrString(module, "NotRetainedError");
    cx_exc_end_of_stream = errors[-CX_EENDED];
    cx_exc_closed = errors[-CX_ECLOSED];
    cx_exc_stale = errors[-CX_ESTALE];
    cx_exc_config = errors[-CX_ECONFIG];
    Py_DECREF(module);
    cx_hook_block_begin = block_begin;
    cx_hook_block_end = block_end;
    return cx_exc_not_retained ? 0 : -1;
}

PyObject *cx_raise_text(int code, const char *text)
{
    if (code == CX_ESIGNAL && PyErr_Occurred()) return NULL;
    PyObject *class = code < 0 && -code < 16 && errors[-code] ? errors[-code] : PyExc_RuntimeError;
    PyErr_SetString(class, text);
    return NULL;
}

PyObject *cx_raise(int code) { return cx_raise_text(code, cx_error_text()); }

/* Fills out[0..n) with borrowed references or NULL. The first `positional` may be given by position; the rest by name only. */
bool cx_keywords(const char *function, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames, Py_ssize_t positional, const Keyword *names,
                 Py_ssize_t n, PyObject **out)
{
    for (Py_ssize_t i = 0; i < n; i++) out[i] = i < nargs ? args[i] : NULL;
    if (nargs > positional) {
        PyErr_Format(PyExc_TypeError, "%s() takes at most %zd positional arguments, %zd were given", function, positional, nargs);
        return false;
    }
    Py_ssize_t given = kwnames ? PyTuple_GET_SIZE(kwnames) : 0;
    for (Py_ssize_t k = 0; k < given; k++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, k);
        Py_ssize_t i = 0;
        while (i < n && names[i].object != name && !(names[i].name[0] && PyUnicode_CompareWithASCIIString(name, names[i].name) == 0)) i++;
        if (i == n || out[i]) {
            PyErr_Format(PyExc_TypeError, i == n ? "%s() got an unexpected keyword argument %R" : "%s() got multiple values for %R", function, name);
            return false;
        }
        out[i] = args[nargs + k];
    }
    return true;
}

bool cx_deadline(PyObject *timeout, int64_t *deadline)
{
    *deadline = -1;
    if (!timeout || timeout == Py_None) return true;
    double seconds = PyFloat_AsDouble(timeout);
    if (seconds == -1.0 && PyErr_Occurred()) return false;
    if (seconds != seconds) {
        PyErr_SetString(cx_exc_config, "timeout is not a number; give seconds or None");
        return false;
    }
    if (seconds <= 0)
        *deadline = 0;
    else if (seconds < 9e8)
        *deadline = cx_now_ns() + (int64_t)(seconds * 1e9);
    return true;
}

/* A caller that comes back again and again with time-outs below the heartbeat never sleeps a whole slice; somebody must look all the same. */
void cx_short_slice_passed(cx_att *a)
{
    int64_t now = cx_now_ns(), last = LD(a->reaped_ns);
    if (now - last < (int64_t)a->super.heartbeat_ns) return;
    ST(a->reaped_ns, now);
    cx_reap(a);
}

int cx_sleep(cx_att *a, cx_wait *w, int64_t deadline, int patience)
{
    int64_t slice = cx_slice(a, w, patience);
    bool whole = true;
    if (deadline >= 0) {
        int64_t left = deadline - cx_now_ns();
        if (left <= 0) return 0;
        if (left < slice) {
            slice = left;
            whole = false;
        }
    }
    int e;
    Py_BEGIN_ALLOW_THREADS
    e = cx_futex_wait(w->addr, w->value, slice);
    Py_END_ALLOW_THREADS
    if (e == ETIMEDOUT && whole)
        cx_wait_expired(a, w, patience);
    else if (e == ETIMEDOUT)
        cx_short_slice_passed(a);
    /* Not only after EINTR: a signal just before the sleep, or one that another thread received, interrupts nothing. */
    return PyErr_CheckSignals();
}

void cx_copy(void *to, const void *from, size_t n)
{
    if (n < COPY_WITHOUT_GIL) {
        memcpy(to, from, n);
        return;
    }
    Py_BEGIN_ALLOW_THREADS
    memcpy(to, from, n);
    Py_END_ALLOW_THREADS
}

bool cx_usable(const Attachment *att, bool opened, bool closed)
{
    if (CX_LIKELY(opened && !closed && !att->a->forked)) return true;
    if (!opened)
        PyErr_SetString(cx_exc_closed, "this handle was never opened");
    else if (att->a->forked)
        PyErr_Format(cx_exc_closed, "topic '%s': inherited through a fork; attach again in this process", att->a->super.name);
    else
        PyErr_Format(cx_exc_closed, "topic '%s': this handle was closed", att->a->super.name);
    return false;
}

int cx_start_of(PyObject *start, uint64_t *offset)
{
    *offset = 0;
    if (!start) return CX_START_END;
    if (PyUnicode_Check(start)) {
        if (PyUnicode_CompareWithASCIIString(start, "beginning") == 0) return CX_START_BEGINNING;
        if (PyUnicode_CompareWithASCIIString(start, "end") == 0) return CX_START_END;
    } else if (PyIndex_Check(start)) {
        PyObject *number = PyNumber_Index(start);
        if (!number) return -1;
        *offset = PyLong_AsUnsignedLongLong(number);
        Py_DECREF(number);
        if (*offset == (uint64_t)-1 && PyErr_Occurred()) PyErr_Clear();
        else return CX_START_OFFSET;
    }
    PyErr_Format(cx_exc_config, "start=%R: give 'beginning', 'end' or an offset", start);
    return -1;
}

/* Without the object as the warning's source: whoever kept it would keep freed memory. */
void cx_warn_dropped(const char *what, uint64_t offset)
{
#if PY_VERSION_HEX >= 0x030c0000
    PyObject *pending = PyErr_GetRaisedException();
#else
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
#endif
    if (PyErr_ResourceWarning(NULL, 1, "%s of offset %llu", what, (unsigned long long)offset) != 0) PyErr_WriteUnraisable(NULL);
#if PY_VERSION_HEX >= 0x030c0000
    PyErr_SetRaisedException(pending);
#else
    PyErr_Restore(type, value, trace);
#endif
}

/* -- headers ----------------------------------------------------------------------------------------------------------------------- */

void cx_encoded_free(Encoded *e)
{
    if (e->data && e->data != e->small) PyMem_Free(e->data);
    e->data = NULL;
}

static bool encode_room(Encoded *e, size_t *room, size_t more)
{
    if (e->n + more <= *room) return true;
    size_t want = (e->n + more) * 2;
    void *data = PyMem_Malloc(want);
    if (!data) {
        PyErr_NoMemory();
        return false;
    }
    memcpy(data, e->data, e->n);
    cx_encoded_free(e);
    e->data = data;
    *room = want;
    return true;
}

static bool encode_one(PyObject *pair, Encoded *e, size_t *room)
{
    if ((!PyTuple_Check(pair) && !PyList_Check(pair)) || PySequence_Fast_GET_SIZE(pair) != 2) {
        PyErr_Format(PyExc_TypeError, "header %R is not a pair (name, value)", pair);
        return false;
    }
    PyObject *name = PySequence_Fast_GET_ITEM(pair, 0), *value = PySequence_Fast_GET_ITEM(pair, 1);
    if (!PyUnicode_Check(name)) {
        PyErr_Format(PyExc_TypeError, "header name %R is %s, not str", name, Py_TYPE(name)->tp_name);
        return false;
    }
    Py_ssize_t name_n;
    const char *text = PyUnicode_AsUTF8AndSize(name, &name_n);
    if (!text) return false;
    Py_buffer view = {0};
    if (value != Py_None && PyUnicode_Check(value)) {
        PyErr_Format(PyExc_TypeError, "header %R has a value of type str, not bytes or None", name);
        return false;
    }
    if (value != Py_None && PyObject_GetBuffer(value, &view, PyBUF_SIMPLE) != 0) return false;
    uint32_t lengths[2] = {(uint32_t)name_n, value == Py_None ? CX_NO_VALUE : (uint32_t)view.len};
    bool ok = name_n < UINT32_MAX && view.len < UINT32_MAX && encode_room(e, room, 8 + (size_t)name_n + (size_t)view.len);
    if (ok) {
        uint8_t *at = (uint8_t *)e->data + e->n;
        memcpy(at, lengths, 8);
        memcpy(at + 8, text, (size_t)name_n);
        if (view.len) memcpy(at + 8 + name_n, view.buf, (size_t)view.len);
        e->n += 8 + (size_t)name_n + (size_t)view.len;
        e->count++;
    } else if (!PyErr_Occurred()) {
        PyErr_SetString(cx_exc_config, "a header of 4 GB or more");
    }
    if (value != Py_None) PyBuffer_Release(&view);
    return ok;
}

bool cx_encode_headers(PyObject *headers, Encoded *e)
{
    e->data = e->small;
    e->n = 0;
    e->count = 0;
    if (!headers || headers == Py_None) return true;
    PyObject *list = PySequence_Fast(headers, "headers is not a sequence of (name, value) pairs");
    if (!list) return false;
    size_t room = sizeof e->small;
    bool ok = PySequence_Fast_GET_SIZE(list) < 65536;
    if (!ok) PyErr_SetString(cx_exc_config, "more than 65535 headers");
    for (Py_ssize_t i = 0; ok && i < PySequence_Fast_GET_SIZE(list); i++) ok = encode_one(PySequence_Fast_GET_ITEM(list, i), e, &room);
    Py_DECREF(list);
    if (!ok) cx_encoded_free(e);
    return ok;
}

PyObject *cx_decode_headers(const uint8_t *data, size_t n, uint16_t count)
{
    PyObject *out = PyTuple_New(count);
    if (!out) return NULL;
    for (uint16_t i = 0; i < count; i++) {
        uint32_t lengths[2];
        PyObject *pair = NULL;
        if (n >= 8) {
            memcpy(lengths, data, 8);
            size_t value_n = lengths[1] == CX_NO_VALUE ? 0 : lengths[1];
            if ((uint64_t)lengths[0] + value_n <= n - 8) {
                const char *text = (const char *)data + 8;
                PyObject *name = PyUnicode_DecodeUTF8(text, lengths[0], NULL);
                PyObject *value = !name ? NULL : lengths[1] == CX_NO_VALUE ? Py_NewRef(Py_None) : PyBytes_FromStringAndSize(text + lengths[0], (Py_ssize_t)value_n);
                pair = value ? PyTuple_Pack(2, name, value) : NULL;
                Py_XDECREF(name);
                Py_XDECREF(value);
                data += 8 + lengths[0] + value_n;
                n -= 8 + lengths[0] + value_n;
            }
        }
        if (!pair) {
            if (PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) PyErr_Clear();
            Py_DECREF(out);
            return NULL;
        }
        PyTuple_SET_ITEM(out, i, pair);
    }
    return out;
}
