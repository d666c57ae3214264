/* consume.c - members of a group: take, start, ack, nack, steal.
 *
 * A take under the lock gives the member a run of records (PREFETCHED | me), so that the lock is paid once per run. Handing a record out is
 * one CAS (PREFETCHED | me -> STARTED | me), acknowledging it another (STARTED | me -> ACKED); both without the lock. A run is short
 * where records are large or slow to process, and never more than a fair share, so that nobody hoards; a member that finds nothing
 * steals the upper half of a fellow's run that is not started, by CAS under the lock. Who wins a word is always decided by its CAS.
 *
 * Order of stores in a take: the words first, then `next`. In the other order a death leaves records below `next` that nobody holds.
 *
 * A member with on_end = stop sees the end of its epoch only when everything before it is finished by the whole group: an idle member must
 * stay while another one may still die holding records. `hole_end` names the ack it waits for.
 *
 *   SIGKILL right after     leaves                              recovery
 *   words                   marks at or above next              ignored; the next taker overwrites them
 *   next                    a run owned by a dead port          each word -> RED, count kept
 *   STARTED                 one record                          RED, marked redelivered
 *   ACKED                   final                               whoever locks next moves `done`
 *   ack, before the holes   a producer asleep                   its next look or heartbeat
 *   CAS of a steal          PREFETCHED of the thief             as above
 */
#include "core.h"
#include <limits.h>
#include <string.h>

#define RUN_MAX 256
#define RUN_BYTES 65536
#define RUN_NS 200000

/* -- how much ---------------------------------------------------------------------------------------------------------------------- */

static uint64_t record_bytes(const cx_att *a, uint64_t o)
{
    if (a->fixed) return a->super.item_bytes;
    uint64_t len = cx_desc_at(a, o)->claim_len;
    return len ? len : 64;
}

static uint64_t quota(const cx_member *m, uint64_t first, uint64_t ready, uint64_t want, bool direct)
{
    const cx_att *a = m->a;
    if (direct) return want < ready ? want : ready;
    uint64_t members = LD(a->groups[m->group].nmembers), size = record_bytes(a, first);
    uint64_t n = RUN_MAX, fair = (ready + (members ? members : 1) - 1) / (members ? members : 1);
    if (n > RUN_BYTES / size) n = RUN_BYTES / size;
    if (m->per_record_ns > 0 && n > (uint64_t)(RUN_NS / m->per_record_ns)) n = (uint64_t)(RUN_NS / m->per_record_ns);
    if (n > 2 * m->run_first) n = 2 * m->run_first; /* grows with experience */
    if (n > fair) n = fair;
    return n ? n : 1;
}

static bool beyond(const cx_member *m, uint64_t o) { return m->stop_at_end && cx_desc_epoch(m->a, cx_desc_at(m->a, o)) > m->epoch; }

/* How many of the n records from `first` may go into one run: up to a tombstone, or the end of the member's epoch. */
static uint64_t clean_run(const cx_member *m, uint64_t first, uint64_t n)
{
    const cx_att *a = m->a;
    bool epochs = m->stop_at_end && cx_epoch(LD(a->ctl->state)) > m->epoch, stones = cx_tombstones_between(a, first, first + n);
    if (!epochs && !stones) return n;
    uint64_t i = 0;
    while (i < n && LD(cx_desc_at(a, first + i)->word) == CX_D_WORD(first + i, CX_COMMITTED) && !(epochs && beyond(m, first + i))) i++;
    return i;
}

/* -- take, lock held ----------------------------------------------------------------------------------------------------------------- */

static uint32_t mine(const cx_member *m, uint32_t count, bool direct)
{
    if (!direct) return CX_W_MAKE(CX_PREFETCHED, count, m->port);
    return CX_W_MAKE(CX_STARTED, count < 0xfff ? count + 1 : count, m->port);
}

static void stamp(const cx_member *m, uint64_t first, uint64_t n)
{
    uint32_t now = cx_ticks();
    for (uint64_t i = 0; i < n; i++) ST(*cx_time_at(m->a, m->group, first + i), now);
}

/* Delivered as often as the group allows and never finished: whoever takes it now is not to work on it. */
static bool spent(const cx_group *g, uint32_t w)
{
    uint32_t most = LD(g->max_deliveries);
    return CX_UNLIKELY(most && CX_W_COUNT(w) >= most);
}

/* CX_OK: a run. CX_SPENT: one record, started without being counted as another delivery. CX_NONE. */
static int take_red(cx_member *m, uint64_t want, bool direct, uint64_t *first, uint64_t *n)
{
    cx_att *a = m->a;
    cx_group *g = &a->groups[m->group];
    uint64_t o = LD(g->done), next = LD(g->next), limit = direct ? want : 1;
    while (o < next && (CX_W_STATE(LDA(*cx_word_at(a, m->group, o))) != CX_RED || beyond(m, o))) o++;
    if (o == next) return CX_NONE;
    *first = o;
    for (*n = 0; *n < limit && o < next; o++, ++*n) {
        uint32_t *at = cx_word_at(a, m->group, o), w = LDA(*at);
        bool last = spent(g, w);
        if (CX_W_STATE(w) != CX_RED || beyond(m, o) || (last && *n)) break;
        if (direct || last) stamp(m, o, 1);
        STR(*at, last ? CX_W_MAKE(CX_STARTED, CX_W_COUNT(w), m->port) : mine(m, CX_W_COUNT(w), direct));
        ST(g->nred, LD(g->nred) - 1);
        FAILPOINT("take.red");
        if (last) {
            *n = 1;
            FAILPOINT("take.spent");
            return CX_SPENT;
        }
    }
    return CX_OK;
}

static bool take_new(cx_member *m, uint64_t want, bool direct, uint64_t *first, uint64_t *n)
{
    cx_att *a = m->a;
    cx_group *g = &a->groups[m->group];
    uint64_t next = LD(g->next), published = LDA(a->ctl->published);
    if (next >= published) return false;
    *n = clean_run(m, next, quota(m, next, published - next, want, direct));
    if (!*n) return false; /* the member's epoch ends here */
    *first = next;
    if (direct) stamp(m, next, *n);
    for (uint64_t i = 0; i < *n; i++) STR(*cx_word_at(a, m->group, next + i), mine(m, 0, direct));
    FAILPOINT("take.words");
    STR(g->next, next + *n);
    FAILPOINT("take.next");
    return true;
}

/* The upper half of the newest run that a fellow has not started. */
static bool steal(cx_member *m, uint64_t want, bool direct, uint64_t *first, uint64_t *n)
{
    cx_att *a = m->a;
    cx_group *g = &a->groups[m->group];
    uint64_t done = LD(g->done), top = LD(g->next), low;
    uint32_t victim = 0;
    while (top > done) {
        uint32_t w = LDA(*cx_word_at(a, m->group, top - 1));
        if (CX_W_STATE(w) == CX_PREFETCHED && CX_W_PORT(w) != m->port && !beyond(m, top - 1)) {
            victim = CX_W_PORT(w);
            break;
        }
        top--;
    }
    for (low = top; low > done && top - low < RUN_MAX; low--) {
        uint32_t w = LDA(*cx_word_at(a, m->group, low - 1));
        if (CX_W_STATE(w) != CX_PREFETCHED || CX_W_PORT(w) != victim) break;
    }
    uint64_t stop = low + (top - low) / 2, o = top;
    if (direct && top - stop > want) stop = top - want;
    if (direct) stamp(m, stop, top - stop); /* of PREFETCHED words; whoever starts one now stamps the same time */
    while (o > stop) {
        uint32_t *at = cx_word_at(a, m->group, o - 1), w = LDA(*at);
        if (CX_W_STATE(w) != CX_PREFETCHED || CX_W_PORT(w) != victim || !cx_cas32(at, w, mine(m, CX_W_COUNT(w), direct))) break;
        o--;
        FAILPOINT("steal.after_cas");
    }
    *first = o;
    *n = top - o;
    return *n > 0;
}

/* 0: not at the end. 1: at the end, and everything before it is finished. 2: at the end, but somebody still holds records. */
static int end_of(const cx_member *m)
{
    const cx_att *a = m->a;
    const cx_group *g = &a->groups[m->group];
    uint64_t state = LD(a->ctl->state), next = LD(g->next), done = LD(g->done), published = LDA(a->ctl->published);
    if (!m->stop_at_end || (cx_epoch(state) == m->epoch && !(state & CX_STATE_END))) return 0;
    if (next < published ? !beyond(m, next) : published < LD(a->ctl->end_offset)) return 0;
    return done >= next || beyond(m, done) ? 1 : 2;
}

/* -- waiting ----------------------------------------------------------------------------------------------------------------------- */

static void leave_line(cx_member *m, cx_wait *w)
{
    cx_group *g = &m->a->groups[m->group];
    if (!w->registered) return;
    w->registered = false;
    if (m->closed) return; /* close() has taken this handle's waiters off the count */
    if (LD(g->nwait)) ST(g->nwait, LD(g->nwait) - 1);
    cx_port *port = &m->a->ports[m->port];
    if (LD(port->waiting)) ST(port->waiting, LD(port->waiting) - 1);
    if (LD(g->nwait)) return;
    ST(g->wake_at, CX_NOWHERE);
    ST(g->hole_end, CX_NOWHERE);
    cx_update_wake_min(m->a);
}

/* `seen`: published as it was before the look that found nothing; the one writer may have moved it since. False where it has: look again. */
static bool stand_in_line(cx_member *m, cx_wait *w, uint64_t seen, bool for_end, cx_wakes *wakes)
{
    cx_att *a = m->a;
    cx_group *g = &a->groups[m->group];
    uint64_t next = LD(g->next);
    FAILPOINT("take.nothing");
    ST(g->nwait, LD(g->nwait) + 1);
    INC(a->ports[m->port].waiting, 1);
    w->registered = true;
    w->addr = &g->ec;
    w->value = LD(g->ec);
    if (!w->max_ns) w->max_ns = (int64_t)a->super.heartbeat_ns;
    uint64_t due = (next > seen ? next : seen) + 1;
    bool paused = cx_group_paused(a, m->group); /* then no record is a reason to wake up */
    if (paused)
        ST(g->wake_at, CX_NOWHERE);
    else if (due < LD(g->wake_at))
        ST(g->wake_at, due);
    cx_update_wake_min(a);
    FENCE(); /* SYNC wake-min (acquire): the one writer sees wake_min, or we see its record */
    FAILPOINT("wait.member_registered");
    if (for_end) {
        ST(g->hole_end, next); /* any value but NOWHERE: cx_signal_space places it, or wakes us at once */
        cx_signal_space(a, wakes);
    }
    if (paused || LDS(a->ctl->published) == seen) return true;
    leave_line(m, w);
    return false;
}

/* A member leaves without taking what it may have been woken for. */
static void pass_baton(cx_member *m, cx_wakes *wakes)
{
    cx_att *a = m->a;
    cx_group *g = &a->groups[m->group];
    if (cx_group_paused(a, m->group)) return;
    if (LD(g->nwait) && (LD(g->nred) || LD(g->next) < LDA(a->ctl->published))) cx_wake_group(a, wakes, m->group, 1);
}

static void tell_time(cx_member *m, bool at_grant, uint64_t n)
{
    int64_t now = cx_now_ns();
    if (at_grant) {
        m->run_first = n;
        m->run_ns = now;
    } else if (m->run_ns && m->run_first) {
        int64_t each = (now - m->run_ns) / (int64_t)m->run_first;
        m->per_record_ns = m->per_record_ns ? (m->per_record_ns + each) / 2 : each;
        m->run_ns = 0;
    }
}

static int take_locked(cx_member *m, uint64_t want, bool direct, cx_wait *w, bool may_wait, uint64_t *first, uint64_t *n, cx_wakes *wakes)
{
    cx_att *a = m->a;
    cx_group *g = &a->groups[m->group];
    leave_line(m, w);
    if (m->closed) return cx_fail(CX_ECLOSED, "topic '%s': this member of group '%.47s' was closed", a->super.name, g->name);
    bool paused = cx_group_paused(a, m->group);
    if (!direct && !paused && m->r0 < m->r1) { /* another thread of this handle was faster */
        *first = m->r0;
        *n = m->r1 - m->r0;
        return CX_OK;
    }
    for (;;) {
        uint64_t done = LD(g->done), seen = LDA(a->ctl->published); /* before the look, or a record published behind it is slept through */
        cx_advance_done(a, m->group);
        int red = LD(g->nred) && !paused ? take_red(m, want, direct, first, n) : CX_NONE;
        bool got = red == CX_OK;
        if (red == CX_NONE && !paused) {
            cx_skip_tombstones(a, m->group);
            got = take_new(m, want, direct, first, n) || steal(m, want, direct, first, n);
        }
        if (LD(g->done) != done && LD(a->ctl->space_nwait)) cx_signal_space(a, wakes);
        if (red == CX_SPENT) {
            pass_baton(m, wakes);
            return CX_SPENT;
        }
        if (got) {
            if (!direct) {
                m->r0 = *first;
                m->r1 = *first + *n;
                tell_time(m, true, *n);
            }
            pass_baton(m, wakes);
            return CX_OK;
        }
        int end = end_of(m);
        if (end == 1) {
            pass_baton(m, wakes);
            if (LD(g->nwait)) cx_wake_group(a, wakes, m->group, INT_MAX); /* the others see the end as well */
            return CX_END;
        }
        if (!may_wait) {
            pass_baton(m, wakes);
            return CX_NONE;
        }
        if (stand_in_line(m, w, seen, end == 2, wakes)) return CX_WAIT;
    }
}

/* Gives a run: *first, *n. direct: the records are STARTED already and are the caller's; else they are PREFETCHED, in m->r0..r1, and each
 * wants cx_start. CX_SPENT: *first alone, STARTED, which is to be put with the dead letters and then given to cx_bury, or to cx_nack. */
int cx_take(cx_member *m, uint64_t want, bool direct, cx_wait *w, bool may_wait, int64_t deadline, uint64_t *first, uint64_t *n)
{
    cx_wakes wakes;
    cx_wakes_init(&wakes);
    if (w->reap) cx_reap(m->a);
    w->reap = false;
    if (!w->registered && !direct) tell_time(m, false, 0);
    int rc = cx_lock(m->a, deadline);
    if (rc != CX_OK) return rc;
    rc = take_locked(m, want, direct, w, may_wait, first, n, &wakes);
    cx_unlock(m->a);
    if (cx_wakes_any(&wakes)) cx_wakes_run(m->a, &wakes);
    if (rc == CX_SPENT) m->started++; /* not counted in the port: nobody is to work on it */
    if (rc == CX_OK && direct) {
        cx_port *port = &m->a->ports[m->port];
        m->started += *n;
        INC(port->n, *n);
        ST(port->last_offset, *first + *n - 1);
        for (uint64_t i = 0; i < *n; i++)
            if (CX_W_COUNT(LD(*cx_word_at(m->a, m->group, *first + i))) > 1) INC(port->redelivered, 1);
    }
    return rc;
}

void cx_take_leave(cx_member *m, cx_wait *w)
{
    cx_wakes wakes;
    cx_wakes_init(&wakes);
    if (m->a->forked || !w->registered || cx_lock(m->a, CX_NO_DEADLINE) != CX_OK) return;
    leave_line(m, w);
    if (!m->closed) pass_baton(m, &wakes);
    cx_unlock(m->a);
    cx_wakes_run(m->a, &wakes);
}

/* -- without the lock ---------------------------------------------------------------------------------------------------------------- */

bool cx_start(cx_member *m, uint64_t offset)
{
    uint32_t *at = cx_word_at(m->a, m->group, offset), w = LDA(*at);
    if (CX_UNLIKELY(CX_W_STATE(w) != CX_PREFETCHED || CX_W_PORT(w) != m->port)) return false;
    ST(*cx_time_at(m->a, m->group, offset), cx_ticks());
    if (CX_UNLIKELY(!cx_cas32(at, w, mine(m, CX_W_COUNT(w), true)))) return false;
    FAILPOINT("start.after_word");
    cx_port *port = &m->a->ports[m->port];
    m->started++;
    INC(port->n, 1);
    ST(port->last_offset, offset);
    if (CX_UNLIKELY(CX_W_COUNT(w))) INC(port->redelivered, 1);
    return true;
}

bool cx_holds(const cx_member *m, uint64_t offset)
{
    const cx_group *g = &m->a->groups[m->group];
    if (offset < LDA(g->done) || offset >= LDA(g->next)) return false;
    uint32_t w = LDA(*cx_word_at(m->a, m->group, offset));
    return CX_W_STATE(w) == CX_STARTED && CX_W_PORT(w) == m->port;
}

/* Words are reused every D offsets. What this member holds lies in [done, next), so an offset outside of it (a lease whose record was
 * finished by its offset, or a wrong number) must not reach the word that now belongs to another record. */
static inline bool in_window(const cx_group *g, uint64_t offset, uint64_t n) { return offset >= LDA(g->done) && offset + n <= LDA(g->next); }

int cx_stale(const cx_member *m, uint64_t offset)
{
    return cx_fail(CX_ESTALE, "topic '%s': offset %llu is no longer held by this member of group '%.47s'; it was acknowledged, given back or redelivered",
                   m->a->super.name, (unsigned long long)offset, m->a->groups[m->group].name);
}

static int ack_slow(cx_member *m)
{
    cx_wakes wakes;
    cx_wakes_init(&wakes);
    if (cx_lock(m->a, CX_GIVE_UP) != CX_OK) return CX_OK; /* the ack itself is done; who waits for it has a heartbeat */
    cx_advance_done(m->a, m->group);
    cx_signal_space(m->a, &wakes);
    cx_unlock(m->a);
    FAILPOINT("ack.before_wake");
    cx_wakes_run(m->a, &wakes);
    return CX_OK;
}

/* Somebody claimed what this member held, and the member finds out. */
static int taken_away(cx_member *m, uint64_t offset, uint64_t n)
{
    uint64_t held = m->started - m->acked - m->nacked - m->buried - m->claimed;
    if (!m->closed) m->claimed += n < held ? n : held;
    return cx_stale(m, offset);
}

static uint64_t ack_words(cx_member *m, uint64_t offset, uint64_t n)
{
    const cx_group *g = &m->a->groups[m->group];
    uint64_t done = LDA(g->done), next = LDA(g->next), got = 0;
    for (uint64_t o = offset < done ? done : offset; o < offset + n && o < next; o++) {
        uint32_t *at = cx_word_at(m->a, m->group, o), w = LD(*at);
        if (CX_UNLIKELY(CX_W_STATE(w) != CX_STARTED || CX_W_PORT(w) != m->port)) continue;
        got += cx_cas32(at, w, w | CX_ACKED);
    }
    return got;
}

/* A run that this handle started as one. Under the lock nobody claims any of it meanwhile, which plain stores would overwrite; it costs one
 * round for the whole run. Where the lock is not to be had (its holder is stopped) each word is exchanged by itself. */
static int ack_run(cx_member *m, uint64_t offset, uint64_t n)
{
    cx_att *a = m->a;
    cx_group *g = &a->groups[m->group];
    cx_wakes wakes;
    cx_wakes_init(&wakes);
    uint64_t got = 0;
    bool locked = cx_lock(a, CX_GIVE_UP) == CX_OK;
    if (!locked) {
        got = ack_words(m, offset, n);
    } else {
        uint64_t done = LD(g->done), next = LD(g->next);
        for (uint64_t o = offset < done ? done : offset; o < offset + n && o < next; o++) {
            uint32_t *at = cx_word_at(a, m->group, o), w = LD(*at);
            if (CX_UNLIKELY(CX_W_STATE(w) != CX_STARTED || CX_W_PORT(w) != m->port)) continue;
            STR(*at, w | CX_ACKED);
            got++;
        }
        FAILPOINT("ack.run_words");
        cx_advance_done(a, m->group);
        if (LD(g->hole_space) - offset < n || LD(g->hole_end) - offset < n) cx_signal_space(a, &wakes);
        cx_unlock(a);
    }
    m->acked += got;
    INC(a->ports[m->port].acked, got);
    if (cx_wakes_any(&wakes)) cx_wakes_run(a, &wakes);
    return CX_LIKELY(got == n) ? CX_OK : taken_away(m, offset, n - got);
}

int cx_ack(cx_member *m, uint64_t offset, uint64_t n, uint32_t count)
{
    cx_att *a = m->a;
    cx_group *g = &a->groups[m->group];
    cx_port *port = &a->ports[m->port];
    if (CX_UNLIKELY(m->closed || (uint32_t)LD(port->id) != m->id)) return cx_stale(m, offset);
    if (n > 1) return ack_run(m, offset, n);
    if (CX_UNLIKELY(!in_window(g, offset, 1))) return taken_away(m, offset, 1);
    uint32_t *at = cx_word_at(a, m->group, offset), w = LD(*at);
    if (CX_UNLIKELY(CX_W_STATE(w) != CX_STARTED || CX_W_PORT(w) != m->port || (count && CX_W_COUNT(w) != count))) return taken_away(m, offset, 1);
    FAILPOINT("ack.before_word");
    if (CX_UNLIKELY(!cx_cas32(at, w, w | CX_ACKED))) return taken_away(m, offset, 1); /* SYNC hole (release) */
    FAILPOINT("ack.after_word");
    m->acked++;
    INC(port->acked, 1);
    uint64_t space = LDS(g->hole_space), end = LDS(g->hole_end);
    if (CX_UNLIKELY(space == offset || end == offset)) return ack_slow(m);
    return CX_OK;
}

int cx_nack(cx_member *m, uint64_t offset, uint64_t n, uint32_t count)
{
    cx_att *a = m->a;
    cx_group *g = &a->groups[m->group];
    uint64_t given = 0;
    cx_wakes wakes;
    cx_wakes_init(&wakes);
    if (m->closed || a->forked || !in_window(g, offset, n)) return cx_stale(m, offset);
    int rc = cx_lock(a, CX_GIVE_UP);
    if (rc != CX_OK) return rc;
    for (uint64_t i = 0; i < n; i++) {
        uint32_t *at = cx_word_at(a, m->group, offset + i), w = LD(*at);
        if (CX_W_STATE(w) != CX_STARTED || CX_W_PORT(w) != m->port || (count && CX_W_COUNT(w) != count)) continue;
        if (!cx_cas32(at, w, CX_W_MAKE(CX_RED, CX_W_COUNT(w), 0))) continue;
        FAILPOINT("nack.after_word");
        ST(g->nred, LD(g->nred) + 1);
        given++;
    }
    m->nacked += given;
    INC(a->ports[m->port].nacked, given);
    if (given) pass_baton(m, &wakes);
    wakes.readers = given; /* bells, see bell.c */
    cx_unlock(a);
    cx_wakes_run(a, &wakes);
    return given == n ? CX_OK : taken_away(m, offset, n - given);
}

/* -- open and close ------------------------------------------------------------------------------------------------------------------ */

/* A member came back to a group that was suspended: it gates again, from where it stands, or from the end with the rest counted as lost. */
static void resume_group(cx_att *a, uint32_t index, int start_kind)
{
    cx_group *g = &a->groups[index];
    if (LD(g->flags) & CX_GROUP_SUSPENDED) {
        uint64_t o = LD(g->next), published = LDA(a->ctl->published);
        uint64_t tail = LD(a->ctl->tail);
        if (o < tail) o = tail;
        if (start_kind == CX_START_END && o < published) {
            for (; o < published; o++) {
                if (LD(cx_desc_at(a, o)->word) != CX_D_WORD(o, CX_ABORTED)) INC(g->lost, 1);
                STR(*cx_word_at(a, index, o), CX_W_MAKE(CX_ACKED, 0, 0));
            }
            STR(g->next, published);
            cx_advance_done(a, index);
        }
        ST(g->flags, LD(g->flags) & ~(uint32_t)CX_GROUP_SUSPENDED);
    }
}

static int open_locked(cx_att *a, const char *group, const cx_terms *terms, const char *name, cx_member *m)
{
    int found = cx_group_find(a, group);
    uint64_t tail = LD(a->ctl->tail), published = LDA(a->ctl->published), lost = 0;
    if (found < 0) {
        uint64_t at = terms->start_kind == CX_START_BEGINNING ? tail : terms->start_kind == CX_START_END ? published : terms->start;
        uint32_t most = terms->max_deliveries < 0 ? terms->usual : (uint32_t)terms->max_deliveries;
        if (at > published)
            return cx_fail(CX_ECONFIG, "topic '%s': group '%s' cannot start at offset %llu, the next record is %llu", a->super.name, group,
                           (unsigned long long)at, (unsigned long long)published);
        if (at < tail) {
            lost = tail - at;
            at = tail;
        }
        int rc = cx_group_add(a, group, at, terms->durable, most, &m->group);
        if (rc != CX_OK) return rc;
        a->groups[m->group].lost = lost;
    } else {
        m->group = (uint32_t)found;
    }
    int rc = cx_port_open(a, CX_PORT_MEMBER, m->group, name, &m->port);
    if (rc != CX_OK) {
        if (found < 0) STR(a->groups[m->group].state, CX_GROUP_FREE); /* it would gate with nobody in it */
        return rc;
    }
    cx_group *g = &a->groups[m->group];
    ST(g->nmembers, LD(g->nmembers) + 1);
    resume_group(a, m->group, terms->start_kind);
    if (terms->durable) ST(g->flags, LD(g->flags) | CX_GROUP_DURABLE);
    if (terms->max_deliveries >= 0) ST(g->max_deliveries, (uint32_t)terms->max_deliveries);
    m->id = (uint32_t)a->ports[m->port].id;
    m->epoch = cx_epoch(LD(a->ctl->state));
    return CX_OK;
}

int cx_member_open(cx_att *a, const char *group, const cx_terms *terms, bool stop_at_end, const char *name, cx_member *m)
{
    memset(m, 0, sizeof *m);
    m->a = a;
    m->stop_at_end = stop_at_end;
    m->run_first = 4;
    cx_reap(a);
    int rc = cx_lock(a, 0);
    if (rc != CX_OK) return rc;
    rc = open_locked(a, group, terms, name, m);
    cx_unlock(a);
    if (rc == CX_OK) cx_populate(a, false);
    return rc;
}

void cx_member_close(cx_member *m)
{
    cx_att *a = m->a;
    if (a->forked || cx_lock(a, CX_GIVE_UP) != CX_OK) { /* the port is reaped when this process is gone */
        m->closed = true;
        return;
    }
    cx_wakes wakes;
    cx_wakes_init(&wakes);
    cx_group *g = &a->groups[m->group];
    m->closed = true;
    m->r0 = m->r1;
    cx_release_words(a, m->group, m->port);
    uint32_t waiting = LD(a->ports[m->port].waiting);
    ST(g->nwait, LD(g->nwait) > waiting ? LD(g->nwait) - waiting : 0);
    ST(g->nmembers, LD(g->nmembers) ? LD(g->nmembers) - 1 : 0);
    if (!LD(g->nmembers)) ST(g->unattended_ns, (uint64_t)cx_now_ns());
    m->nacked = m->started - m->acked - m->buried - m->claimed;
    FAILPOINT("close.member_words");
    cx_port_fold(a, m->port);
    cx_wake_group(a, &wakes, m->group, INT_MAX); /* threads of this handle, and who may take what it held */
    wakes.readers = true;
    cx_update_wake_min(a);
    cx_unlock(a);
    cx_wakes_run(a, &wakes);
}

void cx_member_wake(cx_member *m)
{
    cx_wakes wakes;
    cx_wakes_init(&wakes);
    m->wakes++;
    if (m->a->forked || cx_lock(m->a, CX_GIVE_UP) != CX_OK) return;
    cx_wake_group(m->a, &wakes, m->group, INT_MAX);
    cx_unlock(m->a);
    cx_wakes_run(m->a, &wakes);
}
