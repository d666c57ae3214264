/* core.h - the ring's inside interface: no Python in any file that includes only this.
 *
 * Conventions. Every function that can fail returns CX_OK or a code below and leaves one line of text in cx_error_text(). Functions that
 * would have to wait return CX_WAIT with a filled cx_wait ticket; the caller sleeps (cx_futex_wait, without the interpreter lock) and
 * calls again with the same ticket, or gives it up with the matching *_leave. "Lock held" means the topic lock of this attachment.
 * Handle state (cx_producer, cx_member, cx_reader) is guarded by the caller: the interpreter lock, or a critical section on the handle.
 * The topic lock is the only lock; none is ever taken while another is held.
 */
#ifndef CX_CORE_H
#define CX_CORE_H

#include "failpoint.h"
#include "layout.h"
#include <stdbool.h>
#include <sys/stat.h>

/* -- atomics on the segment ------------------------------------------------------------------------------------------------------ */
#define LD(x) __atomic_load_n(&(x), __ATOMIC_RELAXED)
#define LDA(x) __atomic_load_n(&(x), __ATOMIC_ACQUIRE)
#define LDS(x) __atomic_load_n(&(x), __ATOMIC_SEQ_CST)
#define ST(x, v) __atomic_store_n(&(x), (v), __ATOMIC_RELAXED)
#define STR(x, v) __atomic_store_n(&(x), (v), __ATOMIC_RELEASE)
#define XCHG(x, v) __atomic_exchange_n(&(x), (v), __ATOMIC_SEQ_CST)
#define FENCE() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define FENCE_ACQ() __atomic_thread_fence(__ATOMIC_ACQUIRE)
#define INC(x, n) ST(x, LD(x) + (n)) /* statistics: one writer at a time by construction */
#define CX_LIKELY(x) __builtin_expect(!!(x), 1)
#define CX_UNLIKELY(x) __builtin_expect(!!(x), 0)

static inline bool cx_cas32(uint32_t *p, uint32_t from, uint32_t to)
{
    return __atomic_compare_exchange_n(p, &from, to, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}

/* -- results --------------------------------------------------------------------------------------------------------------------- */
enum {
    CX_OK = 0,
    CX_WAIT = 1,    /* registered in the ticket: sleep, then call again */
    CX_DROPPED = 2, /* drop_newest: counted, nothing published */
    CX_NONE = 3,    /* nothing there (no wait was asked for) */
    CX_END = 4,     /* the stream this handle reads has ended */
    CX_SPENT = 5,   /* a record that was delivered max_deliveries times: it is held, to be buried */
    CX_ECLOSED = -1,
    CX_ECORRUPT = -2,
    CX_EBUSY = -3,
    CX_ETOOBIG = -4,
    CX_ECONFIG = -5,
    CX_ESTALE = -6,
    CX_ETIMEOUT = -7,
    CX_ESIGNAL = -8, /* the hook already raised */
    CX_EOS = -9,     /* the operating system refused; errno in cx_error_errno() */
    CX_ENOSPACE = -10,
    CX_ENOTOPIC = -11,
    CX_EEXISTS = -12,
    CX_ELAYOUT = -13,
    CX_EENDED = -14, /* the epoch of this producer was ended */
};
int cx_fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));
int cx_fail_os(int error, const char *format, ...) __attribute__((format(printf, 2, 3)));
const char *cx_error_text(void);
int cx_error_errno(void);

/* Hooks of the binding: leave and re-enter the interpreter around a sleep inside cx_lock. end returns -1 where a signal handler raised. */
extern void *(*cx_hook_block_begin)(void);
extern int (*cx_hook_block_end)(void *token, int interruptible);

/* -- attachment ------------------------------------------------------------------------------------------------------------------ */
typedef struct cx_att {
    struct cx_att *next; /* list of all, for the fork handler and for sharing */
    int users;           /* open Ring objects; at 0 the process detaches */
    int maps;            /* everything that may still show a view; at 0 the memory is unmapped */
    int fd;              /* -1 once detached or inherited through a fork */
    int forked;
    uint64_t dev, ino;
    cx_super super; /* a checked private copy: later damage of the file's geometry cannot reach an address */
    uint8_t *meta;
    uint64_t meta_bytes;
    cx_control *ctl;
    cx_proc *procs;
    cx_port *ports;
    cx_group *groups;
    uint32_t *words, *times;
    uint8_t *descs;
    cx_pool *pool; /* NULL but with layout="pool" */
    uint8_t *rw, *ro; /* the data region, each twice in a row */
    uint64_t n, dmask, c, cmask, stride; /* cmask: c - 1 where c is a power of two, else 0 */
    uint32_t desc_stride, me, slot;
    bool one_writer, fixed;
    uint32_t chunk; /* records by which the tail moves ahead of need */
    int64_t reaped_ns; /* when a call with a short time-out last looked for the dead */
    char *path;
} cx_att;

typedef struct {
    const char *path, *name, *spec;
    uint64_t n, data_bytes, stride, item_bytes, max_record, first_offset, group_grace_ns, heartbeat_ns;
    uint32_t kind, policy, options, max_procs, max_ports, max_groups, mode, pins, look_back;
} cx_config;

uint64_t cx_required_bytes(const cx_config *config);
void cx_super_from(const cx_config *config, cx_super *out);
int cx_check_super(const cx_super *s, const char *path, uint64_t file_bytes);
uint32_t cx_super_crc(const cx_super *s);
void cx_boot_id(uint8_t out[16]);
int cx_create(const cx_config *config, cx_att **out);
int cx_attach(const char *path, cx_att **out); /* shares the process's attachment of the same file */
int cx_attach_fresh(const char *path, cx_att **out); /* where nobody alive is attached, what is in it is forgotten first */
void cx_detach(cx_att *a);                     /* one user less; the last one gives the process slot back */
void cx_hold(cx_att *a);                       /* one user more */
void cx_unmap(cx_att *a);                      /* one map less; the last one frees everything */
int cx_unlink(const char *path, bool force);
void cx_populate(const cx_att *a, bool writable);
void cx_place(cx_att *a, uint8_t *meta); /* the parts of the metadata; the data region is not touched */

/* -- removal, told from outside (survey.c, segment.c) ----------------------------------------------------------------------------- */
enum { CX_REMOVE_SESSION = 1, CX_REMOVE_PERSISTENT = 2, CX_REMOVE_HALF_MADE = 4 };
typedef struct {
    uint64_t bytes, records, unread; /* unread: by the group that is furthest behind */
    uint32_t users, groups, pid;     /* processes attached; pid and command of one of them */
    uint8_t slots[256];
    bool passing, session, earlier_boot, removed; /* passing: somebody is attaching or removing */
    char command[33], problem[512];               /* why it is no topic of ours; empty where it is one */
} cx_survey;
int cx_survey_file(const char *path, uint32_t remove, cx_survey *out); /* remove: of which kinds, where nobody alive uses it */
int cx_open_checked(const char *path, int *fd, struct stat *st);
bool cx_same_file(int fd, const char *path);
int cx_lock_all(int fd); /* nobody attached, nobody attaching, and nobody can until it is unlocked or closed; 0 or errno */
void cx_unlock_all(int fd);
int cx_remove_name(int fd, const char *path); /* 0 or errno */
uint32_t cx_crc32(const void *data, size_t n);

static inline cx_desc *cx_desc_at(const cx_att *a, uint64_t offset)
{
    return (cx_desc *)(a->descs + (offset & a->dmask) * a->desc_stride);
}
static inline uint32_t *cx_word_at(const cx_att *a, uint32_t group, uint64_t offset)
{
    return a->words + (size_t)group * (a->dmask + 1) + (offset & a->dmask);
}
static inline uint32_t *cx_time_at(const cx_att *a, uint32_t group, uint64_t offset)
{
    return a->times + (size_t)group * (a->dmask + 1) + (offset & a->dmask);
}
/* The upper bits of `bits` seal a committed record's descriptor: what a reader goes by is what its producer wrote, or it says so. A sum of the
 * words times odd constants, of which the top 12 bits are kept; the constants were searched so that any change of a single byte changes
 * those (a wider damage: all but one of 4096), and the thirteenth bit is the parity of the lower three, because one of those
 * says whether append_ns counts at all. The word is compared with the offset by itself; cum_aborted is written by whoever publishes. */
static inline uint16_t cx_desc_seal(const cx_desc *d)
{
    uint16_t low = d->bits & CX_BITS;
    uint64_t lengths = (uint64_t)d->claim_len | (uint64_t)d->val_len << 32, from = (uint64_t)d->hdr_len | (uint64_t)d->producer << 32;
    uint64_t small = (uint64_t)d->port | (uint64_t)d->epoch << 16 | (uint64_t)d->key_len << 32 | (uint64_t)d->flags << 48;
    uint64_t sum = d->pos * 0xc963cfe0afae5a3bull + (uint64_t)d->ts_ns * 0xe1454c40c439f34bull + (uint64_t)d->tag * 0x26b563b1e794ee15ull;
    sum += lengths * 0xe7ca430e92ac3d43ull + from * 0x6e82a012b5c5cd1ull + small * 0x1333bc1cfe6c2b03ull;
    sum += ((uint64_t)low | (uint64_t)d->n_headers << 16) * 0x20050ed31a6e72b9ull;
    if (CX_UNLIKELY(low & CX_BIT_APPEND)) sum += (uint64_t)d->append_ns * 0x94a67f00f335c357ull;
    return (uint16_t)((sum >> 52) << 4 | (uint64_t)((low ^ low >> 1 ^ low >> 2) & 1) << 3 | low);
}
static inline uint64_t cx_phys(const cx_att *a, uint64_t pos) { return a->cmask ? (pos & a->cmask) : pos % a->c; }
static inline uint64_t cx_head(const cx_att *a) { return a->one_writer ? LDA(a->ctl->published) : LD(a->ctl->head); }
static inline uint32_t cx_epoch(uint64_t state) { return (uint32_t)(state >> 32); }

/* -- lock, liveness, recovery ---------------------------------------------------------------------------------------------------- */
#define CX_NO_DEADLINE (-1) /* cannot fail but in a forked child */
#define CX_GIVE_UP (-2)     /* not interruptible; CX_ETIMEOUT after 1 s without progress: its holder is stopped */
int cx_lock(cx_att *a, int64_t deadline_ns); /* else: CX_ETIMEOUT after the deadline and at least 1 s, or CX_ESIGNAL */
void cx_unlock(cx_att *a);
bool cx_owner_dead(const cx_att *a, uint32_t owner, bool deep);
void cx_owner_text(const cx_att *a, uint32_t owner, char *out, size_t n);
bool cx_process_identity(uint32_t pid, uint64_t *start_time, char *state);
uint64_t cx_pid_namespace(void);
void cx_recover(cx_att *a); /* lock held */
bool cx_sane(const cx_att *a);
int cx_reap(cx_att *a);        /* takes the lock only where somebody is dead; ports freed */
int cx_check(cx_att *a, char *out, size_t n); /* violated invariants, one a line; their number */
int64_t cx_now_ns(void);  /* monotonic, shared by all processes of the machine */
int64_t cx_wall_ns(void); /* Unix time */
uint32_t cx_ticks(void);  /* monotonic milliseconds, to a few of them: what a delivery time is in */

/* -- waiting --------------------------------------------------------------------------------------------------------------------- */
typedef struct {
    uint32_t *addr;
    uint32_t value;
    int64_t max_ns;   /* longest sleep before the next look */
    bool registered;  /* counted in nwait */
    bool reap;        /* a slice expired: look for the dead first */
    uint8_t phase;    /* producers: 0 wants a quarter of the ring, 1 takes a single slot */
    int64_t since_ns; /* when waiting began, 0 before */
} cx_wait;

int cx_futex_wait(uint32_t *addr, uint32_t value, int64_t timeout_ns); /* 0 woken or changed, else ETIMEDOUT or EINTR */
void cx_futex_wake(uint32_t *addr, int n);
typedef struct {
    uint32_t *addr;
    uint32_t value;
} cx_wait_word;
int cx_futex_wait_any(const cx_wait_word *words, uint32_t n, int64_t timeout_ns);
int cx_patience(const cx_att *a, const cx_group *g);               /* heartbeats that a sleep may take now; g: NULL for readers */
int64_t cx_slice(const cx_att *a, const cx_wait *w, int patience); /* nanoseconds of the next sleep */
void cx_wait_expired(const cx_att *a, cx_wait *w, int patience); /* after a slice passed without a wake-up */

/* What must be woken after the lock is free. */
typedef struct {
    uint64_t groups; /* bit g: wake group g */
    bool space, readers;
    int group_n[64]; /* of the groups named above only */
} cx_wakes;
static inline void cx_wakes_init(cx_wakes *w)
{
    w->groups = 0;
    w->space = w->readers = false;
}
static inline bool cx_wakes_any(const cx_wakes *w) { return w->groups || w->space || w->readers; }
void cx_wakes_run(cx_att *a, const cx_wakes *w);
void cx_signal_published(cx_att *a, cx_wakes *w); /* lock held: groups that wait for what is published now */
void cx_signal_readers(cx_att *a);                /* no lock: bump and wake the lossy readers if any sleeps */
void cx_signal_space(cx_att *a, cx_wakes *w);     /* lock held: done or published moved */
void cx_signal_all(cx_att *a, cx_wakes *w);       /* lock held: everybody looks again */
void cx_wake_group(cx_att *a, cx_wakes *w, uint32_t group, int n); /* lock held */
void cx_update_wake_min(cx_att *a);                                /* lock held */

/* -- ports and groups ------------------------------------------------------------------------------------------------------------ */
int cx_port_open(cx_att *a, uint32_t kind, uint32_t group, const char *name, uint32_t *port); /* lock held */
void cx_port_fold(cx_att *a, uint32_t port);                                                   /* lock held: counters into the totals, then free */
int cx_group_find(const cx_att *a, const char *name);
int cx_group_add(cx_att *a, const char *name, uint64_t start, bool durable, uint32_t max_deliveries, uint32_t *group); /* lock held */
int cx_group_remove(cx_att *a, const char *name);
bool cx_gates(const cx_group *g);
static inline bool cx_topic_paused(const cx_att *a) { return LD(a->ctl->state) & CX_STATE_PAUSED; }
static inline bool cx_group_paused(const cx_att *a, uint32_t group) { return LD(a->groups[group].flags) & CX_GROUP_PAUSED; }
int cx_pause_topic(cx_att *a, bool paused);
int cx_pause_group(cx_att *a, const char *name, bool paused);
void cx_advance_done(cx_att *a, uint32_t group); /* lock held */
void cx_skip_tombstones(cx_att *a, uint32_t group); /* lock held */
uint64_t cx_gate(const cx_att *a);               /* lock held: min done of the gating groups, at most published */
bool cx_tombstones_between(const cx_att *a, uint64_t from, uint64_t to);
void cx_release_words(cx_att *a, uint32_t group, uint32_t port); /* lock held: what the port holds is to be redelivered */
uint32_t cx_desc_epoch(const cx_att *a, const cx_desc *d);
bool cx_advance_published(cx_att *a); /* lock held; several writers */
uint64_t cx_data_end(const cx_att *a, uint64_t head); /* virtual position after the newest record */

/* -- producers ------------------------------------------------------------------------------------------------------------------- */
typedef struct {
    cx_att *a;
    uint32_t port, id;
    uint32_t epoch;
    uint64_t head, limit, data_head, data_limit; /* the one writer's private view */
    bool closed, ended;
    int64_t reaped_ns; /* when it last looked for the dead before blocking */
} cx_producer;

typedef struct {
    const void *key, *value;
    uint64_t key_len, hdr_len, val_len;
    uint16_t n_headers, flags, bits;
    int64_t ts_ns, tag;
    bool has_ts;
} cx_meta;

typedef struct {
    uint64_t offset, pos;
    uint64_t claim_len; /* bytes of the first record's claim */
} cx_slot;

typedef struct {
    uint64_t n, bytes, head, data_head; /* what is wanted, and where it would stand */
} cx_demand;
bool cx_make_room(cx_att *a, const cx_demand *w);                            /* lock held */
uint64_t cx_wanted(const cx_att *a, const cx_demand *w, bool generous);      /* lock held */
static inline uint64_t cx_pos_of(const cx_att *a, const cx_demand *w, uint64_t t) { return t < w->head ? cx_desc_at(a, t)->pos : w->data_head; }

int cx_producer_open(cx_att *a, const char *name, cx_producer *p);
void cx_producer_close(cx_producer *p, bool clean);
int cx_producer_end(cx_producer *p);
int cx_claim(cx_producer *p, uint64_t n, const uint64_t *sizes, cx_wait *w, bool may_wait, int64_t deadline, cx_slot *out);
void cx_claim_leave(cx_producer *p, cx_wait *w);
void cx_describe(cx_desc *d, const cx_meta *m); /* fills the private descriptor of a claim */
int cx_commit(cx_producer *p, uint64_t offset, uint64_t n, uint64_t bytes, uint64_t last_key_plus1);
int cx_trim(cx_producer *p, uint64_t offset, uint64_t used);
void cx_abort(cx_producer *p, uint64_t offset, uint64_t n);
static inline uint8_t *cx_value_at(const cx_att *a, const cx_desc *d, uint8_t *base) { return base + cx_phys(a, d->pos); }
/* Key, then headers; `at` is the descriptor in the segment, `d` it or a copy of it. */
static inline uint8_t *cx_keys_at(const cx_att *a, const cx_desc *d, const cx_desc *at, uint8_t *base)
{
    return a->fixed ? (uint8_t *)at + sizeof(cx_desc) : base + cx_phys(a, d->pos) + CX_ROUND8(d->val_len);
}

/* -- members of groups ----------------------------------------------------------------------------------------------------------- */
typedef struct {
    cx_att *a;
    uint32_t port, id, group, epoch;
    bool stop_at_end, closed;
    uint64_t r0, r1;    /* the prefetched run still to be started */
    uint64_t run_first; /* its length when it was taken, and when: how long a record takes here */
    int64_t run_ns, per_record_ns;
    uint64_t started, acked, nacked, buried, claimed; /* private totals; claimed: taken away while it was held here */
    uint32_t wakes;                  /* bumped by wakeup() */
} cx_member;

typedef struct {
    int start_kind; /* where a new group begins */
    uint64_t start;
    bool durable;
    int64_t max_deliveries; /* of a new group; -1: an existing one keeps what it has, a new one gets `usual` */
    uint32_t usual;
} cx_terms;
int cx_member_open(cx_att *a, const char *group, const cx_terms *terms, bool stop_at_end, const char *name, cx_member *m);
void cx_member_close(cx_member *m);
int cx_take(cx_member *m, uint64_t want, bool direct, cx_wait *w, bool may_wait, int64_t deadline, uint64_t *first, uint64_t *n);
void cx_take_leave(cx_member *m, cx_wait *w);
bool cx_start(cx_member *m, uint64_t offset); /* PREFETCHED -> STARTED; false where it was stolen or dropped */
/* count: which delivery of a single record is meant (a claimed one may come to the same member again); 0: the one it holds */
int cx_ack(cx_member *m, uint64_t offset, uint64_t n, uint32_t count);
int cx_nack(cx_member *m, uint64_t offset, uint64_t n, uint32_t count);
int cx_bury(cx_member *m, uint64_t offset); /* a record given by CX_SPENT is safe elsewhere: it is finished, as a dead letter */
typedef struct {
    uint64_t offset;
    uint32_t port, owner, age_ms;
    char name[48];
} cx_claimed;
#define CX_NO_PORT UINT32_MAX
int cx_claim_stale(cx_att *a, uint32_t group, uint32_t spare, uint32_t min_idle_ms, cx_claimed *out, size_t room, size_t *n);
void cx_finish_bury(cx_att *a, uint32_t group); /* lock held, after a death */
bool cx_holds(const cx_member *m, uint64_t offset);
int cx_stale(const cx_member *m, uint64_t offset); /* the error of a record that is no longer held */
void cx_member_wake(cx_member *m); /* everybody asleep in this group looks again */
enum { CX_START_BEGINNING = 0, CX_START_END = 1, CX_START_OFFSET = 2 };

/* -- lossy readers --------------------------------------------------------------------------------------------------------------- */
typedef struct {
    uint64_t offset;
    cx_desc d; /* a validated copy */
    uint64_t skipped;
} cx_view;

typedef struct {
    cx_att *a;
    uint32_t port, id, epoch;
    bool stop_at_end, closed, has_port;
    uint64_t cursor;
    uint32_t cum; /* aborted records below the cursor, low 32 bits */
    uint64_t lost, jumped, aborted, delivered, skip_pending;
    uint32_t wakes;
} cx_reader;

/* -- a descriptor to wait on ------------------------------------------------------------------------------------------------------ */
typedef struct cx_bell cx_bell;
enum { CX_BELL_NO = 0, CX_BELL_YES = 1, CX_BELL_MAYBE = 2 /* ask again after a heartbeat */ };
typedef int cx_bell_look(const void *handle); /* without the lock, from the bell's thread */
int cx_member_look(const void *member);
int cx_reader_look(const void *reader);
cx_bell *cx_bell_hang(cx_att *a, cx_bell_look *look, const void *handle); /* NULL: see cx_error_text */
int cx_bell_fd(const cx_bell *b);
void cx_bell_arm(cx_bell *b);  /* a take or poll found nothing */
void cx_bell_ring(cx_bell *b); /* whatever there is: look */
void cx_bell_stop(cx_bell *b); /* joins the thread and frees it; copies of the descriptor stay readable */

int cx_reader_open(cx_att *a, int start_kind, uint64_t start, bool stop_at_end, const char *name, cx_reader *r);
void cx_reader_close(cx_reader *r);
int cx_poll(cx_reader *r, cx_wait *w, bool may_wait, cx_view *out);
void cx_seek(cx_reader *r, uint64_t offset);
void cx_reader_wake(cx_reader *r);
int cx_peek(const cx_att *a, uint64_t offset, cx_view *out); /* CX_OK or CX_NONE */
int cx_latest(const cx_att *a, cx_view *out);
bool cx_valid(const cx_att *a, uint64_t offset);
uint64_t cx_find_flag(const cx_att *a, uint16_t flag, uint64_t after); /* CX_NOWHERE where there is none */
uint64_t cx_find_time(const cx_att *a, int64_t ts_ns);
bool cx_desc_sane(const cx_att *a, const cx_desc *d);

/* -- pool: any slot for any offset, and pins ------------------------------------------------------------------------------------- */
#define CX_NO_PIN UINT32_MAX
void cx_pool_rebuild(cx_att *a);                                /* lock held, the one writer's claim not open: all of it derived anew */
void cx_pool_reclaim(cx_att *a, uint64_t from, uint64_t to);    /* after the tail moved and its fence: their slots become free, or wait for pins */
int cx_pool_take(cx_att *a, uint64_t *pos);                     /* CX_OK or CX_ECORRUPT */
void cx_pool_put_back(cx_att *a, uint64_t pos);                 /* of a claim that never became a record */
uint64_t cx_pool_tail(const cx_att *a, uint64_t t, uint64_t gate, uint64_t head); /* how far the tail may go without need */
const char *cx_pool_check(const cx_att *a, uint64_t tail, uint64_t head, uint64_t *slot); /* lock held; NULL where all is well */
bool cx_pool_dead_pins(const cx_att *a);
void cx_pool_unpin_dead(cx_att *a);                             /* lock held */
int cx_pin(cx_att *a, const cx_view *v, uint32_t *pin);         /* CX_OK; CX_NONE: overwritten meanwhile; CX_DROPPED: every pin is taken */
void cx_unpin(cx_att *a, uint32_t pin);

#endif
