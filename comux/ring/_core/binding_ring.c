/* binding_ring.c - Attachment (a topic as this process sees it) and the module. */
#include "binding.h"
#include <string.h>

/* -- numbers ----------------------------------------------------------------------------------------------------------------------------------- */

static bool usable(Attachment *self) { return cx_usable(self, true, !self->open); }

#define GETTER(name, expression)                                   \
    static PyObject *get_##name(Attachment *self, void *unused)    \
    {                                                              \
        (void)unused;                                              \
        if (!usable(self)) return NULL;                            \
        const cx_att *a = self->a;                                 \
        return expression;                                         \
    }
GETTER(log_start, PyLong_FromUnsignedLongLong(LDA(a->ctl->tail)))
GETTER(high_water, PyLong_FromUnsignedLongLong(LDA(a->ctl->published)))
GETTER(epoch, PyLong_FromUnsignedLong(cx_epoch(LDA(a->ctl->state))))
GETTER(ended, PyBool_FromLong((long)(LDA(a->ctl->state) & CX_STATE_END)))
GETTER(paused, PyBool_FromLong(cx_topic_paused(a)))
GETTER(end_offset, LDA(a->ctl->state) & CX_STATE_END ? PyLong_FromUnsignedLongLong(LDA(a->ctl->end_offset)) : Py_NewRef(Py_None))

static PyObject *offset_or_none(uint64_t offset)
{
    if (offset == CX_NOWHERE) Py_RETURN_NONE;
    return PyLong_FromUnsignedLongLong(offset);
}

static PyObject *get_closed(Attachment *self, void *unused)
{
    (void)unused;
    return PyBool_FromLong(!self->open || self->a->forked);
}
static PyObject *get_name(Attachment *self, void *unused)
{
    (void)unused;
    return PyUnicode_FromString(self->a->super.name);
}
static PyObject *get_path(Attachment *self, void *unused)
{
    (void)unused;
    return PyUnicode_DecodeFSDefault(self->a->path);
}

/* Everything of the superblock that the façade turns back into a RingSpec. */
static PyObject *get_config(Attachment *self, void *unused)
{
    const cx_super *s = &self->a->super;
    (void)unused;
    return Py_BuildValue("{s:s,s:i,s:i,s:I,s:K,s:K,s:K,s:K,s:K,s:I,s:I,s:I,s:K,s:K,s:K,s:K,s:I,s:I,s:I}", "spec", s->spec, "kind", s->kind, "policy", s->policy, "options",
                         s->options, "slots", (unsigned long long)s->n_records, "data_bytes", (unsigned long long)s->data_bytes, "item_bytes",
                         (unsigned long long)s->item_bytes, "stride", (unsigned long long)s->slot_stride, "max_record", (unsigned long long)s->max_record,
                         "max_procs", s->max_procs, "max_ports", s->max_ports, "max_groups", s->max_groups, "first_offset",
                         (unsigned long long)s->first_offset, "group_grace_ns", (unsigned long long)s->group_grace_ns, "heartbeat_ns",
                         (unsigned long long)s->heartbeat_ns, "total_bytes", (unsigned long long)s->total_bytes, "created_pid", s->creator_pid, "pins", s->n_pins, "look_back", s->look_back);
}

/* -- looking things up --------------------------------------------------------------------------------------------------------------------------- */

static PyObject *att_peek(Attachment *self, PyObject *arg)
{
    cx_view v;
    uint64_t offset = PyLong_AsUnsignedLongLong(arg);
    if (offset == (uint64_t)-1 && PyErr_Occurred()) return NULL;
    if (!usable(self)) return NULL;
    int rc = cx_peek(self->a, offset, &v);
    if (rc == CX_OK) return cx_view_new(self, &v);
    if (rc < 0) return cx_raise(rc);
    Py_RETURN_NONE;
}

static PyObject *att_latest(Attachment *self, PyObject *unused)
{
    cx_view v;
    (void)unused;
    if (!usable(self)) return NULL;
    int rc = cx_latest(self->a, &v);
    if (rc == CX_OK) return cx_view_new(self, &v);
    if (rc < 0) return cx_raise(rc);
    Py_RETURN_NONE;
}

static PyObject *att_find_flag(Attachment *self, PyObject *args)
{
    unsigned short flag;
    unsigned long long after;
    if (!PyArg_ParseTuple(args, "HK", &flag, &after) || !usable(self)) return NULL;
    return offset_or_none(cx_find_flag(self->a, flag, after));
}

static PyObject *att_find_time(Attachment *self, PyObject *arg)
{
    long long ts = PyLong_AsLongLong(arg);
    if ((ts == -1 && PyErr_Occurred()) || !usable(self)) return NULL;
    return offset_or_none(cx_find_time(self->a, ts));
}

/* -- groups and statistics ------------------------------------------------------------------------------------------------------------------------- */

static bool append_new(PyObject *list, PyObject *item)
{
    if (!item) return false;
    int rc = PyList_Append(list, item);
    Py_DECREF(item);
    return rc == 0;
}

/* Names are cut to the room there is and commands are whatever a process calls itself: neither need be whole UTF-8. */
static PyObject *name_text(const char *name) { return PyUnicode_DecodeUTF8(name, (Py_ssize_t)strlen(name), "replace"); }

/* Read without the lock: each number is right, the set is of nearly one instant. */
static PyObject *group_info(const cx_att *a, uint32_t index)
{
    const cx_group *g = &a->groups[index];
    char name[sizeof g->name + 1] = {0};
    uint64_t published = LDA(a->ctl->published), done = LDA(g->done), next = LDA(g->next);
    uint64_t delivered = LD(g->delivered), acked = LD(g->acked), redelivered = LD(g->redelivered);
    while (done < next && CX_W_STATE(LDA(*cx_word_at(a, index, done))) == CX_ACKED) done++; /* acks do not move it themselves */
    for (uint32_t i = 0; i < a->super.max_ports; i++) {
        const cx_port *p = &a->ports[i];
        if (LDA(p->state) != CX_PORT_USED || p->kind != CX_PORT_MEMBER || p->group != index) continue;
        delivered += LD(p->n);
        acked += LD(p->acked);
        redelivered += LD(p->redelivered);
    }
    memcpy(name, g->name, sizeof g->name);
    uint32_t flags = LD(g->flags);
    return Py_BuildValue("{s:N,s:K,s:K,s:K,s:K,s:I,s:K,s:O,s:O,s:K,s:K,s:K,s:K,s:K,s:I,s:O}", "name", name_text(name), "start", (unsigned long long)LD(g->start), "next",
                         (unsigned long long)next, "done", (unsigned long long)done, "committed", (unsigned long long)done, "members", LD(g->nmembers), "lag",
                         (unsigned long long)(published > done ? published - done : 0), "suspended", flags & CX_GROUP_SUSPENDED ? Py_True : Py_False, "durable",
                         flags & CX_GROUP_DURABLE ? Py_True : Py_False, "delivered", (unsigned long long)delivered, "acked", (unsigned long long)acked,
                         "redelivered", (unsigned long long)redelivered, "lost", (unsigned long long)LD(g->lost), "dead_letters", (unsigned long long)LD(g->dead_letters),
                         "max_deliveries", LD(g->max_deliveries), "paused", flags & CX_GROUP_PAUSED ? Py_True : Py_False);
}

static PyObject *att_groups(Attachment *self, PyObject *unused)
{
    (void)unused;
    if (!usable(self)) return NULL;
    PyObject *out = PyList_New(0);
    for (uint32_t i = 0; out && i < self->a->super.max_groups; i++)
        if (LDA(self->a->groups[i].state) == CX_GROUP_USED && !append_new(out, group_info(self->a, i))) Py_CLEAR(out);
    return out;
}

static PyObject *att_remove_group(Attachment *self, PyObject *arg)
{
    const char *name = PyUnicode_AsUTF8(arg);
    if (!name || !usable(self)) return NULL;
    int rc = cx_group_remove(self->a, name);
    if (rc != CX_OK) return cx_raise(rc);
    Py_RETURN_NONE;
}

/* pause(paused) the topic, pause(paused, group) a group. */
static PyObject *att_pause(Attachment *self, PyObject *args)
{
    const char *group = NULL;
    int paused;
    if (!PyArg_ParseTuple(args, "p|s", &paused, &group) || !usable(self)) return NULL;
    int rc = group ? cx_pause_group(self->a, group, paused) : cx_pause_topic(self->a, paused);
    if (rc != CX_OK) return cx_raise(rc);
    Py_RETURN_NONE;
}

#define CLAIMS_MAX 256

/* A list of (offset, pid, command, member's name, seconds it was held); at most CLAIMS_MAX, the oldest offsets first. */
PyObject *cx_claim_stale_py(Attachment *att, uint32_t group, uint32_t spare, uint32_t idle_ms)
{
    const cx_att *a = att->a;
    cx_claimed claimed[CLAIMS_MAX];
    size_t n;
    int rc = cx_claim_stale(att->a, group, spare, idle_ms, claimed, CLAIMS_MAX, &n);
    if (rc != CX_OK) return cx_raise(rc);
    PyObject *out = PyList_New(0);
    for (size_t i = 0; out && i < n; i++) {
        uint32_t slot = (claimed[i].owner & 0xff) - 1;
        char command[33] = {0};
        if (slot < a->super.max_procs) memcpy(command, a->procs[slot].command, 32);
        if (!append_new(out, Py_BuildValue("(KINNd)", (unsigned long long)claimed[i].offset, slot < a->super.max_procs ? LD(a->procs[slot].pid) : 0,
                                           name_text(command), name_text(claimed[i].name), claimed[i].age_ms / 1e3)))
            Py_CLEAR(out);
    }
    return out;
}

static PyObject *att_claim_stale(Attachment *self, PyObject *args)
{
    const char *group;
    unsigned int idle;
    if (!PyArg_ParseTuple(args, "sI", &group, &idle) || !usable(self)) return NULL;
    int index = cx_group_find(self->a, group);
    if (index < 0) return PyErr_Format(cx_exc_config, "topic '%s' has no group '%s'", self->a->super.name, group);
    return cx_claim_stale_py(self, (uint32_t)index, CX_NO_PORT, idle);
}

/* What a port holds of its group: how many records, the oldest of them and for how long. Read without the lock. */
typedef struct {
    uint64_t n, oldest;
    uint32_t age_ms;
} holding;

static void holdings(const cx_att *a, holding *of)
{
    uint32_t now = cx_ticks();
    for (uint32_t i = 0; i < a->super.max_groups; i++) {
        const cx_group *g = &a->groups[i];
        uint64_t o = LDA(g->done), next = LDA(g->next);
        if (LDA(g->state) != CX_GROUP_USED || next - o > a->dmask + 1) continue;
        for (; o < next; o++) {
            uint32_t w = LDA(*cx_word_at(a, i, o)), port = CX_W_PORT(w), age = now - LD(*cx_time_at(a, i, o));
            if (CX_W_STATE(w) != CX_STARTED || port >= a->super.max_ports) continue;
            if ((int32_t)age < 0) age = 0;
            holding *h = &of[port];
            if (!h->n++ || age > h->age_ms) {
                h->age_ms = age;
                h->oldest = o;
            }
        }
    }
}

static PyObject *port_info(const cx_att *a, const cx_port *p, const holding *h)
{
    static const char *kinds[] = {"?", "producer", "member", "reader"};
    char name[sizeof p->name + 1] = {0}, group[49] = {0}, command[33] = {0};
    uint32_t slot = (p->owner & 0xff) - 1;
    memcpy(name, p->name, sizeof p->name);
    if (p->kind == CX_PORT_MEMBER && p->group < a->super.max_groups) memcpy(group, a->groups[p->group].name, 48);
    if (slot < a->super.max_procs) memcpy(command, a->procs[slot].command, 32);
    bool dead = cx_owner_dead(a, p->owner, true);
    uint64_t start;
    char state[2] = {0};
    uint32_t pid = slot < a->super.max_procs ? LD(a->procs[slot].pid) : 0;
    if (!dead && LD(a->procs[slot].pid_ns) == cx_pid_namespace() && !cx_process_identity(pid, &start, state)) state[0] = 0;
    return Py_BuildValue("{s:s,s:N,s:N,s:I,s:N,s:K,s:K,s:K,s:K,s:K,s:d,s:I,s:O,s:s,s:K,s:K,s:d}", "kind", kinds[p->kind < 4 ? p->kind : 0], "name", name_text(name), "group", name_text(group), "pid",
                         pid, "command", name_text(command), "id", (unsigned long long)p->id, "records",
                         (unsigned long long)LD(p->n), "bytes", (unsigned long long)LD(p->bytes), "last_offset", (unsigned long long)LD(p->last_offset), "lost",
                         (unsigned long long)LD(p->lost), "blocked_s", (double)LD(p->blocked_ns) / 1e9, "waiting", LD(p->waiting), "alive",
                         dead ? Py_False : Py_True, "state", state, "held", (unsigned long long)(h ? h->n : 0), "oldest_held",
                         (unsigned long long)(h ? h->oldest : 0), "held_s", h && h->n ? h->age_ms / 1e3 : 0.0);
}

static bool add_claims(const cx_att *a, PyObject *list)
{
    if (a->one_writer) return true;
    uint64_t o = LDA(a->ctl->published), head = LDA(a->ctl->head);
    for (; o < head && head - o <= a->n; o++) {
        const cx_desc *d = cx_desc_at(a, o);
        if (LDA(d->word) != CX_D_WORD(o, CX_CLAIMED) || d->port >= a->super.max_ports) continue;
        PyObject *info = port_info(a, &a->ports[d->port], NULL), *since = info ? PyLong_FromLongLong(d->bits & CX_BIT_APPEND ? d->append_ns : 0) : NULL;
        if (!since || PyDict_SetItemString(info, "claimed_ns", since) != 0) Py_CLEAR(info);
        Py_XDECREF(since);
        PyObject *pair = info ? Py_BuildValue("(KN)", (unsigned long long)o, info) : NULL;
        if (!append_new(list, pair)) return false;
    }
    return true;
}

static PyObject *att_stats(Attachment *self, PyObject *unused)
{
    (void)unused;
    if (!usable(self)) return NULL;
    const cx_att *a = self->a;
    const cx_control *c = a->ctl;
    uint64_t committed = LD(c->committed), bytes = LD(c->bytes), dropped = LD(c->dropped_newest), aborted = LD(c->aborted), blocked = LD(c->blocked_ns);
    PyObject *ports = PyList_New(0), *claims = PyList_New(0);
    holding *holdings_of = PyMem_Calloc(a->super.max_ports, sizeof *holdings_of);
    bool ok = ports && claims && holdings_of;
    if (holdings_of)
        holdings(a, holdings_of);
    else
        PyErr_NoMemory();
    for (uint32_t i = 0; ok && i < a->super.max_ports; i++) {
        const cx_port *p = &a->ports[i];
        if (LDA(p->state) != CX_PORT_USED) continue;
        if (p->kind == CX_PORT_PRODUCER) {
            committed += LD(p->n);
            bytes += LD(p->bytes);
            dropped += LD(p->dropped);
            aborted += LD(p->aborted);
            blocked += LD(p->blocked_ns);
            if (LD(p->blocked_since)) blocked += (uint64_t)cx_now_ns() - LD(p->blocked_since);
        }
        ok = append_new(ports, port_info(a, p, &holdings_of[i]));
    }
    PyMem_Free(holdings_of);
    if (!ok || !add_claims(a, claims)) {
        Py_XDECREF(ports);
        Py_XDECREF(claims);
        return NULL;
    }
    uint64_t tail = LDA(c->tail), published = LDA(c->published), used = published > tail ? published - tail : 0, held = 0;
    if (used) held = a->fixed ? used * a->super.item_bytes : cx_data_end(a, published) - cx_desc_at(a, tail)->pos;
    return Py_BuildValue("{s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:I,s:K,s:d,s:N,s:N}", "slots", (unsigned long long)a->n, "used",
                         (unsigned long long)used, "bytes_used", (unsigned long long)held, "published", (unsigned long long)published, "log_start",
                         (unsigned long long)tail, "committed", (unsigned long long)committed, "bytes", (unsigned long long)bytes, "aborted",
                         (unsigned long long)aborted, "reaped", (unsigned long long)LD(c->reaped), "dropped_oldest", (unsigned long long)LD(c->dropped_oldest),
                         "dropped_newest", (unsigned long long)dropped, "suspensions", (unsigned long long)LD(c->suspensions), "takeovers", LD(c->takeovers),
                         "data_bytes", (unsigned long long)a->c, "blocked_s", (double)blocked / 1e9, "open_claims", claims, "ports", ports);
}

static PyObject *att_check(Attachment *self, PyObject *unused)
{
    char text[8192];
    (void)unused;
    if (!usable(self)) return NULL;
    int rc = cx_check(self->a, text, sizeof text);
    if (rc < 0) return cx_raise(rc);
    PyObject *all = PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text), "replace");
    PyObject *lines = all ? PyUnicode_Splitlines(all, 0) : NULL;
    Py_XDECREF(all);
    return lines;
}

static PyObject *att_reap(Attachment *self, PyObject *unused)
{
    (void)unused;
    if (!usable(self)) return NULL;
    return PyLong_FromLong(cx_reap(self->a));
}

/* -- life -------------------------------------------------------------------------------------------------------------------------------------------- */

static PyObject *att_types(Attachment *self, PyObject *args)
{
    PyObject *dtype, *shape, *ndarray, *generic, *array_factory, *record_factory;
    if (!PyArg_ParseTuple(args, "OOO!O!OO", &dtype, &shape, &PyType_Type, &ndarray, &PyType_Type, &generic, &array_factory, &record_factory)) return NULL;
    if (dtype != Py_None) {
        Py_XSETREF(self->dtype, Py_NewRef(dtype));
        Py_XSETREF(self->shape, Py_NewRef(shape));
    }
    Py_XSETREF(self->ndarray, Py_NewRef(ndarray));
    Py_XSETREF(self->generic, Py_NewRef(generic));
    Py_XSETREF(self->array_factory, Py_NewRef(array_factory));
    Py_XSETREF(self->record_factory, Py_NewRef(record_factory));
    Py_RETURN_NONE;
}

static PyObject *att_close(Attachment *self, PyObject *unused)
{
    (void)unused;
    bool was;
    CX_ENTER(self);
    was = self->open;
    self->open = false;
    CX_LEAVE();
    if (was && !self->a->forked) cx_detach(self->a);
    Py_RETURN_NONE;
}

static void att_dealloc(Attachment *self)
{
    if (self->a) {
        if (self->open && !self->a->forked) cx_detach(self->a);
        cx_unmap(self->a);
    }
    Py_XDECREF(self->dtype);
    Py_XDECREF(self->shape);
    Py_XDECREF(self->ndarray);
    Py_XDECREF(self->generic);
    Py_XDECREF(self->array_factory);
    Py_XDECREF(self->record_factory);
    Py_XDECREF(self->accepted);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *att_wrap(cx_att *a)
{
    Attachment *self = (Attachment *)AttachmentType.tp_alloc(&AttachmentType, 0);
    if (!self) {
        cx_detach(a);
        cx_unmap(a);
        return NULL;
    }
    self->a = a;
    self->open = true;
    return (PyObject *)self;
}

static PyMethodDef att_methods[] = {
    {"peek", (PyCFunction)att_peek, METH_O, NULL},
    {"latest", (PyCFunction)att_latest, METH_NOARGS, NULL},
    {"find_flag", (PyCFunction)att_find_flag, METH_VARARGS, NULL},
    {"find_time", (PyCFunction)att_find_time, METH_O, NULL},
    {"groups", (PyCFunction)att_groups, METH_NOARGS, NULL},
    {"remove_group", (PyCFunction)att_remove_group, METH_O, NULL},
    {"pause", (PyCFunction)att_pause, METH_VARARGS, NULL},
    {"claim_stale", (PyCFunction)att_claim_stale, METH_VARARGS, NULL},
    {"stats", (PyCFunction)att_stats, METH_NOARGS, NULL},
    {"check", (PyCFunction)att_check, METH_NOARGS, NULL},
    {"reap", (PyCFunction)att_reap, METH_NOARGS, NULL},
    {"types", (PyCFunction)att_types, METH_VARARGS, NULL},
    {"close", (PyCFunction)att_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef att_getset[] = {
    {"name", (getter)get_name, NULL, NULL, NULL},
    {"path", (getter)get_path, NULL, NULL, NULL},
    {"config", (getter)get_config, NULL, NULL, NULL},
    {"closed", (getter)get_closed, NULL, NULL, NULL},
    {"log_start", (getter)get_log_start, NULL, NULL, NULL},
    {"high_water", (getter)get_high_water, NULL, NULL, NULL},
    {"epoch", (getter)get_epoch, NULL, NULL, NULL},
    {"ended", (getter)get_ended, NULL, NULL, NULL},
    {"paused", (getter)get_paused, NULL, NULL, NULL},
    {"end_offset", (getter)get_end_offset, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyTypeObject AttachmentType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = CX_MODULE "Attachment",
    .tp_basicsize = sizeof(Attachment),
    .tp_dealloc = (destructor)att_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_doc = "A topic's segment as this process has it mapped.",
    .tp_methods = att_methods,
    .tp_getset = att_getset,
};

/* -- module --------------------------------------------------------------------------------------------------------------------------------------- */

static char *config_names[] = {"path",         "name",      "spec",      "kind",       "policy",       "options",         "slots",        "data_bytes", "item_bytes",
                               "max_record",   "max_procs", "max_ports", "max_groups", "first_offset", "group_grace_ns",  "heartbeat_ns", "mode",       "pins",            "look_back",    NULL};

static bool config_from(PyObject *kwargs, cx_config *k)
{
    PyObject *none = PyTuple_New(0);
    unsigned long long n, data, item, record, first, grace, beat;
    memset(k, 0, sizeof *k);
    bool ok = none && PyArg_ParseTupleAndKeywords(none, kwargs, "$sssIIIKKKKIIIKKKIII", config_names, &k->path, &k->name, &k->spec, &k->kind, &k->policy, &k->options,
                                                  &n, &data, &item, &record, &k->max_procs, &k->max_ports, &k->max_groups, &first, &grace, &beat, &k->mode, &k->pins, &k->look_back);
    Py_XDECREF(none);
    if (!ok) return false;
    k->n = n;
    k->data_bytes = data;
    k->item_bytes = item;
    k->max_record = record;
    k->first_offset = first;
    k->group_grace_ns = grace;
    k->heartbeat_ns = beat;
    if (strlen(k->spec) < CX_SPEC_BYTES && strlen(k->name) < CX_NAME_BYTES) return true;
    PyErr_Format(cx_exc_config, "topic '%s': dtype and metadata take %zd bytes as JSON, %d fit; shorten the metadata", k->name, (Py_ssize_t)strlen(k->spec),
                 CX_SPEC_BYTES - 1);
    return false;
}

static PyObject *module_create(PyObject *module, PyObject *args, PyObject *kwargs)
{
    cx_config k;
    cx_att *a;
    int rc;
    (void)module;
    (void)args;
    if (!config_from(kwargs, &k)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    rc = cx_create(&k, &a);
    Py_END_ALLOW_THREADS
    return rc == CX_OK ? att_wrap(a) : cx_raise(rc);
}

static PyObject *module_required(PyObject *module, PyObject *args, PyObject *kwargs)
{
    cx_config k;
    (void)module;
    (void)args;
    if (!config_from(kwargs, &k)) return NULL;
    return PyLong_FromUnsignedLongLong(cx_required_bytes(&k));
}

static PyObject *module_attach(PyObject *module, PyObject *args)
{
    PyObject *bytes;
    cx_att *a;
    int rc, fresh = 0;
    (void)module;
    if (!PyArg_ParseTuple(args, "O&|p", PyUnicode_FSConverter, &bytes, &fresh)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    rc = fresh ? cx_attach_fresh(PyBytes_AS_STRING(bytes), &a) : cx_attach(PyBytes_AS_STRING(bytes), &a);
    Py_END_ALLOW_THREADS
    Py_DECREF(bytes);
    return rc == CX_OK ? att_wrap(a) : cx_raise(rc);
}

static PyObject *module_unlink(PyObject *module, PyObject *args)
{
    PyObject *bytes;
    int force;
    (void)module;
    if (!PyArg_ParseTuple(args, "O&p", PyUnicode_FSConverter, &bytes, &force)) return NULL;
    int rc = cx_unlink(PyBytes_AS_STRING(bytes), force);
    Py_DECREF(bytes);
    if (rc != CX_OK) return cx_raise(rc);
    Py_RETURN_NONE;
}

static PyObject *module_survey(PyObject *module, PyObject *args)
{
    PyObject *bytes;
    unsigned int remove;
    cx_survey s;
    int rc;
    (void)module;
    if (!PyArg_ParseTuple(args, "O&I", PyUnicode_FSConverter, &bytes, &remove)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    rc = cx_survey_file(PyBytes_AS_STRING(bytes), remove, &s);
    Py_END_ALLOW_THREADS
    Py_DECREF(bytes);
    if (rc != CX_OK) return cx_raise(rc);
    return Py_BuildValue("{s:K,s:K,s:K,s:I,s:I,s:I,s:N,s:N,s:O,s:O,s:O,s:O}", "bytes", (unsigned long long)s.bytes, "records", (unsigned long long)s.records, "unread",
                         (unsigned long long)s.unread, "users", s.users, "groups", s.groups, "pid", s.pid, "command", name_text(s.command), "problem",
                         name_text(s.problem), "passing", s.passing ? Py_True : Py_False, "session", s.session ? Py_True : Py_False, "earlier_boot",
                         s.earlier_boot ? Py_True : Py_False, "removed", s.removed ? Py_True : Py_False);
}

#ifdef COMUX_FAILPOINTS
static PyObject *module_failpoint(PyObject *module, PyObject *args)
{
    const char *name;
    int nth, action;
    (void)module;
    if (!PyArg_ParseTuple(args, "sii", &name, &nth, &action)) return NULL;
    if (cx_failpoint_arm(name, nth, action) == 0) Py_RETURN_NONE;
    return PyErr_Format(cx_exc_config, "no failpoint '%s' (nth=%d)", name, nth);
}

static PyObject *module_failpoints(PyObject *module, PyObject *unused)
{
    const cx_failpoint *first;
    size_t n = cx_failpoint_list(&first);
    (void)module;
    (void)unused;
    PyObject *out = PyList_New(0);
    for (size_t i = 0; out && i < n; i++)
        if (!append_new(out, PyUnicode_FromString(first[i].name))) Py_CLEAR(out);
    return out;
}
#endif

static PyMethodDef module_methods[] = {
    {"create", (PyCFunction)(void (*)(void))module_create, METH_VARARGS | METH_KEYWORDS, NULL},
    {"required_bytes", (PyCFunction)(void (*)(void))module_required, METH_VARARGS | METH_KEYWORDS, NULL},
    {"attach", module_attach, METH_VARARGS, NULL},
    {"unlink", module_unlink, METH_VARARGS, NULL},
    {"survey", module_survey, METH_VARARGS, NULL},
    {"wait_any", cx_wait_any_py, METH_VARARGS, NULL},
#ifdef COMUX_FAILPOINTS
    {"failpoint", module_failpoint, METH_VARARGS, NULL},
    {"failpoints", module_failpoints, METH_NOARGS, NULL},
#endif
    {NULL, NULL, 0, NULL},
};

static int module_exec(PyObject *module)
{
    PyTypeObject *types[] = {&AttachmentType, &ProducerType, &ClaimType, &MemberType, &LeaseType, &RunType, &ReaderType, &ViewType};
    if (cx_util_start() != 0 || cx_producer_start() != 0 || cx_member_start() != 0 || cx_reader_start() != 0) return -1;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (PyModule_AddType(module, types[i]) != 0) return -1;
    if (PyModule_AddIntConstant(module, "LAYOUT_MAJOR", CX_LAYOUT_MAJOR) != 0 || PyModule_AddIntConstant(module, "FIXED_AUX", CX_FIXED_AUX) != 0) return -1;
    return 0;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#if PY_VERSION_HEX >= 0x030c0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#if PY_VERSION_HEX >= 0x030d0000
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

#ifdef COMUX_FAILPOINTS
#define MODULE_NAME "_ring_failpoints"
#define MODULE_INIT PyInit__ring_failpoints
#else
#define MODULE_NAME "_ring"
#define MODULE_INIT PyInit__ring
#endif

static PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = MODULE_NAME,
    .m_doc = "The comux ring's C core; use comux.ring.",
    .m_methods = module_methods,
    .m_slots = module_slots,
};

PyMODINIT_FUNC MODULE_INIT(void) { return PyModuleDef_Init(&module_def); }
