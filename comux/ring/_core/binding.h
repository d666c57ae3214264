/* binding.h - what the files of the CPython binding share. The core knows nothing of this.
 *
 * Ownership: array -> lease, run or view -> (handle ->) Attachment -> cx_att. The mapping goes when the last of them is gone, so a view can
 * show other data than it did but can never fault.
 * Guard: state of a handle is only touched inside of CX_ENTER/CX_LEAVE: the interpreter lock, or a critical section without one.
 */
#ifndef CX_BINDING_H
#define CX_BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "core.h"

#if PY_VERSION_HEX >= 0x030d0000
#define CX_ENTER(self) Py_BEGIN_CRITICAL_SECTION(self)
#define CX_LEAVE() Py_END_CRITICAL_SECTION()
#else
#define CX_ENTER(self) {
#define CX_LEAVE() }
#endif

#define COPY_WITHOUT_GIL 65536

#ifdef COMUX_FAILPOINTS
#define CX_MODULE "comux.ring._ring_failpoints."
#else
#define CX_MODULE "comux.ring._ring."
#endif

typedef struct {
    PyObject_HEAD
    cx_att *a;
    bool open;
    PyObject *dtype, *shape, *ndarray, *generic; /* fixed slots: what put accepts */
    PyObject *array_factory, *record_factory;    /* (object with a buffer) -> array; (view) -> Record or None */
    PyObject *accepted;                          /* the dtype object last found equal to dtype */
} Attachment;

typedef struct {
    PyObject_HEAD
    Attachment *att;
    cx_producer p;
    uint32_t busy;       /* one writer: a claim is open or a large copy runs without the interpreter lock */
    uint64_t busy_since; /* thread that is busy */
    uint64_t offered, published, dropped, aborted, open_claims;
    bool opened;
} Producer;

typedef struct {
    PyObject_HEAD
    Attachment *att;
    cx_member m;
    cx_bell *bell;   /* NULL: nobody asked for a descriptor */
    int64_t idle_ns; /* how long its last wait, which found nothing, came to sleep at a time: the next one goes on there */
    uint32_t wakes_seen;
    bool opened;
} Member;

typedef struct {
    PyObject_HEAD
    Attachment *att;
    cx_reader r;
    cx_bell *bell;
    int64_t idle_ns; /* as a member's */
    uint32_t wakes_seen;
    bool opened;
} Reader;

/* What a lease and a view have in common. */
typedef struct {
    PyObject_HEAD
    Attachment *att;
    uint64_t offset;
    Py_ssize_t exports;
    cx_desc d; /* a copy: stays true after the record is released */
} Shown;

enum { LEASE_LIVE = 0, LEASE_ACKED = 1, LEASE_NACKED = 2, LEASE_BURIED = 3 };

typedef struct {
    Shown s;
    Member *member;
    uint32_t count; /* how often delivered, this time included */
    uint8_t state;
} Lease;

typedef struct {
    Shown s; /* of the first record */
    Member *member;
    uint64_t n;
    uint8_t state;
} Run;

typedef struct {
    Shown s;
    uint64_t skipped;
    const uint8_t *value, *keys; /* in the segment, or in `own` */
    uint8_t *own;
    uint32_t pin;
    bool kept; /* stays what it is until released: pinned, or a copy */
} View;

extern PyTypeObject AttachmentType, ProducerType, ClaimType, MemberType, LeaseType, RunType, ReaderType, ViewType;

/* binding_util.c */
typedef struct {
    const char *name;
    PyObject *object; /* interned at module start */
} Keyword;
int cx_util_start(void);
PyObject *cx_raise(int code); /* the exception of a core result; always NULL */
PyObject *cx_raise_text(int code, const char *text);
extern PyObject *cx_exc_not_retained, *cx_exc_end_of_stream, *cx_exc_closed, *cx_exc_stale, *cx_exc_config;
bool cx_keywords(const char *function, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames, Py_ssize_t positional, const Keyword *names,
                 Py_ssize_t n, PyObject **out);
bool cx_deadline(PyObject *timeout, int64_t *deadline); /* None -> -1; seconds -> monotonic ns; 0 -> 0 */
static inline bool cx_may_wait(int64_t deadline) { return deadline < 0 || (deadline > 0 && cx_now_ns() < deadline); }
int cx_sleep(cx_att *a, cx_wait *w, int64_t deadline, int patience); /* 0 look again, -1 raised */
void cx_short_slice_passed(cx_att *a); /* looks for the dead, once a heartbeat at most */
void cx_copy(void *to, const void *from, size_t n);                          /* large ones without the interpreter lock */
bool cx_usable(const Attachment *att, bool opened, bool closed);            /* else ClosedError is set */
typedef struct {
    void *data;
    size_t n;
    uint16_t count;
    char small[512];
} Encoded;
bool cx_encode_headers(PyObject *headers, Encoded *out);
void cx_encoded_free(Encoded *e);
PyObject *cx_decode_headers(const uint8_t *data, size_t n, uint16_t count); /* NULL without exception where the bytes are no headers */
int cx_start_of(PyObject *start, uint64_t *offset);                         /* "beginning", "end" or an offset; -1 raised */
void cx_warn_dropped(const char *what, uint64_t offset);

/* what put and claims share (binding_producer.c) */
typedef struct {
    cx_meta m;
    Py_buffer key;
    Encoded headers;
    int64_t deadline;
} Options;

void cx_options_free(Options *o);
bool cx_options_from(PyObject **args, const cx_att *a, Options *o); /* key, headers, timestamp_ns, flags, tag: each NULL or an object */
int cx_claim_wait(Producer *self, uint64_t n, const uint64_t *sizes, int64_t deadline, cx_slot *slot); /* CX_OK, CX_DROPPED or -1: raised */
void cx_write_meta(cx_att *a, cx_desc *d, const cx_meta *m, const void *headers);
uint64_t cx_key_of(const cx_meta *m, uint64_t offset);
void cx_set_busy(Producer *self);
void cx_clear_busy(Producer *self);
PyObject *cx_producer_claim(Producer *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
extern Keyword cx_claim_names[3], cx_commit_names[6];
int cx_producer_start(void);

PyObject *cx_claim_stale_py(Attachment *att, uint32_t group, uint32_t spare, uint32_t idle_ms); /* binding_ring.c */

/* what a member hands out (binding_lease.c) */
PyObject *cx_lease_new(Member *member, uint64_t offset);
PyObject *cx_run_new(Member *member, uint64_t offset, uint64_t n);

/* getters shared by leases and views (binding_record.c) */
extern PyGetSetDef cx_lease_getset[], cx_view_getset[];
PyObject *cx_shown_bytes(Shown *s, bool (*alive)(Shown *));
int cx_shown_buffer(Shown *s, Py_buffer *view, int flags, const uint8_t *at, size_t n);
bool cx_lease_alive(Shown *s);
bool cx_view_alive(Shown *s);
PyObject *cx_view_new(Attachment *att, const cx_view *v);
PyObject *cx_view_kept(Attachment *att, const cx_view *v, bool *lapped); /* pool: nothing ever changes under it; NULL and lapped, or an exception */
PyObject *cx_wait_any_py(PyObject *module, PyObject *args);
bool cx_member_bury(Member *self, uint64_t offset); /* what CX_SPENT gave; false: raised */
int cx_member_start(void);
int cx_reader_start(void);

#endif
