/* Python's door to pixels.c: checks every size against its buffer, then works without the GIL. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "pixels.h"

#define LARGEST_SIDE 65536

/* Whether a plane of rows x width bytes fits into its buffer; sets ValueError where it does not. */
static int fits(const char *name, Py_ssize_t length, Py_ssize_t stride, Py_ssize_t width, Py_ssize_t rows)
{
    if (stride < width || stride > PY_SSIZE_T_MAX / LARGEST_SIDE || (rows - 1) * stride + width > length) {
        PyErr_Format(PyExc_ValueError, "plane %s: %zd bytes with a stride of %zd do not hold %zd rows of %zd bytes", name,
                     length, stride, rows, width);
        return 0;
    }
    return 1;
}

static int sides_ok(Py_ssize_t width, Py_ssize_t height)
{
    if (width < 1 || height < 1 || width > LARGEST_SIDE || height > LARGEST_SIDE) {
        PyErr_Format(PyExc_ValueError, "picture of %zdx%zd: each side is 1 to %d pixels", width, height, LARGEST_SIDE);
        return 0;
    }
    return 1;
}

static int check_picture(const Py_buffer *y, const Py_buffer *u, const Py_buffer *v, const Py_buffer *out,
                         const comux_picture *p)
{
    if (!sides_ok(p->width, p->height) || !sides_ok(p->out_width, p->out_height))
        return 0;
    if (p->chroma_rows != 1 && p->chroma_rows != 2) {
        PyErr_Format(PyExc_ValueError, "chroma_rows is %d, not 1 or 2", p->chroma_rows);
        return 0;
    }
    Py_ssize_t chroma_w = (p->width + 1) / 2 * (p->v == NULL ? 2 : 1);
    Py_ssize_t chroma_h = (p->height + p->chroma_rows - 1) / p->chroma_rows;
    return fits("Y", y->len, p->y_stride, p->width, p->height) &&
           fits("U", u->len, p->u_stride, chroma_w, chroma_h) &&
           (p->v == NULL || fits("V", v->len, p->v_stride, chroma_w, chroma_h)) &&
           fits("out", out->len, p->out_stride, 3 * p->out_width, p->out_height);
}

/* Without the GIL; -1 where there was no memory. */
static int work(const comux_picture *p)
{
    int code = 0;
    Py_BEGIN_ALLOW_THREADS
    if (p->width != p->out_width || p->height != p->out_height)
        code = comux_resize(p);
    else if (p->u != NULL)
        comux_convert(p);
    else
        comux_gray(p);
    Py_END_ALLOW_THREADS
    return code;
}

static PyObject *done(const comux_picture *p)
{
    return work(p) < 0 ? PyErr_NoMemory() : Py_NewRef(Py_None);
}

PyDoc_STRVAR(yuv_doc, "yuv_to_packed(y, y_stride, u, u_stride, v, v_stride, width, height, chroma_rows, kr, kb,\n"
                      "              full_range, rgb, out, out_stride, out_width, out_height)\n\n"
                      "Convert one picture; v is None for NV12. See _convert.pyi.");

static PyObject *yuv_to_packed(PyObject *self, PyObject *args)
{
    (void)self;
    Py_buffer y = {0}, u = {0}, v = {0}, out = {0};
    comux_picture p = {0};
    double kr, kb;
    int full_range;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "y*ny*nz*nnniddppw*nnn:yuv_to_packed", &y, &p.y_stride, &u, &p.u_stride, &v,
                          &p.v_stride, &p.width, &p.height, &p.chroma_rows, &kr, &kb, &full_range, &p.rgb, &out,
                          &p.out_stride, &p.out_width, &p.out_height))
        return NULL;
    p.y = y.buf, p.u = u.buf, p.v = v.buf, p.out = out.buf;
    if (!(kr > 0 && kb > 0 && kr + kb < 1)) {
        PyErr_SetString(PyExc_ValueError, "kr and kb are positive and their sum is below 1");
    } else if (check_picture(&y, &u, &v, &out, &p)) {
        comux_matrix_make(&p.m, kr, kb, full_range);
        result = done(&p);
    }
    PyBuffer_Release(&y);
    PyBuffer_Release(&u);
    PyBuffer_Release(&v);
    PyBuffer_Release(&out);
    return result;
}

PyDoc_STRVAR(gray_doc, "luma_to_gray(y, y_stride, width, height, full_range, out, out_stride, out_width,\n"
                       "             out_height)\n\n"
                       "Convert a luma plane. See _convert.pyi.");

static PyObject *luma_to_gray(PyObject *self, PyObject *args)
{
    (void)self;
    Py_buffer y = {0}, out = {0};
    comux_picture p = {.chroma_rows = 1};
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "y*nnnpw*nnn:luma_to_gray", &y, &p.y_stride, &p.width, &p.height, &p.full_range, &out,
                          &p.out_stride, &p.out_width, &p.out_height))
        return NULL;
    p.y = y.buf, p.out = out.buf;
    if (sides_ok(p.width, p.height) && sides_ok(p.out_width, p.out_height) &&
        fits("Y", y.len, p.y_stride, p.width, p.height) &&
        fits("out", out.len, p.out_stride, p.out_width, p.out_height)) {
        comux_matrix_make(&p.m, 0.299, 0.114, p.full_range); /* luma's part is the same in all of them */
        result = done(&p);
    }
    PyBuffer_Release(&y);
    PyBuffer_Release(&out);
    return result;
}

static PyObject *instruction_sets(PyObject *self, PyObject *args)
{
    (void)self, (void)args;
    PyObject *list = PyList_New(0);
    for (const char *const *name = comux_isa_available(); list != NULL && *name != NULL; name++) {
        PyObject *text = PyUnicode_FromString(*name);
        if (text == NULL || PyList_Append(list, text) < 0)
            Py_CLEAR(list);
        Py_XDECREF(text);
    }
    if (list == NULL)
        return NULL;
    PyObject *tuple = PyList_AsTuple(list);
    Py_DECREF(list);
    return tuple;
}

static PyObject *instruction_set(PyObject *self, PyObject *args)
{
    (void)self, (void)args;
    return PyUnicode_FromString(comux_isa_current());
}

static PyObject *use_instruction_set(PyObject *self, PyObject *name)
{
    (void)self;
    const char *text = PyUnicode_AsUTF8(name);
    if (text == NULL)
        return NULL;
    if (comux_isa_use(text) < 0)
        return PyErr_Format(PyExc_ValueError, "instruction set %R is not available here", name);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"yuv_to_packed", yuv_to_packed, METH_VARARGS, yuv_doc},
    {"luma_to_gray", luma_to_gray, METH_VARARGS, gray_doc},
    {"instruction_sets", instruction_sets, METH_NOARGS, "Those this machine can run, best first."},
    {"instruction_set", instruction_set, METH_NOARGS, "The one in use."},
    {"use_instruction_set", use_instruction_set, METH_O, "Choose one, for the whole process; for tests."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "comux.decoders._convert",
    .m_doc = "Pixels in C: planes to packed arrays.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__convert(void)
{
    return PyModuleDef_Init(&module);
}
