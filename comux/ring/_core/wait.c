/* wait.c - sleeping and waking.
 *
 * Groups and producers. Registration, test and signal all happen under the topic lock: who finds nothing raises nwait, remembers the event
 * count, unlocks and sleeps on that count; who changes something and sees sleepers bumps the count, unlocks and wakes. No wake-up can fall
 * between test and sleep, because the count has changed by then and the kernel refuses to sleep. A member that leaves without taking
 * passes the wake-up on where records are there (the baton), or it is lost.
 *
 * The one writer publishes without the lock. It must not look at every group after each record, so the waiters tell it when to look:
 * wake_min is the smallest `published` at which anybody is due. Waiter (lock held): store wake_at and wake_min, full fence, read `published`
 * again. Writer: exchange `published` (a full fence), read wake_min. At least one of the two sees the other.
 *
 * Lock-free readers use one word, seq << 1 | W. Reader: announce (fetch_or W), full fence, test, sleep on the announced value. Publisher:
 * store, full fence, load; where W is set CAS to seq + 1 without W and wake all. Announce first, then test: the other order loses wake-ups.
 *
 * Space. Acks take no lock, so a producer that waits says which ack concerns it: per group `hole_space` is the highest unfinished record
 * below space_want. Only the ack of that record takes the lock, looks for the next lower one, and where none is left wakes the producers (all
 * of them: wake-one hung with two). space_want lies a quarter of the ring ahead, so that a slow consumer does not wake the producer for each
 * single slot; after 1 ms the producer is content with one. `hole_end` is the same for members that wait until everything before
 * the end of the stream is finished.
 *
 * Every sleep is cut into slices of a heartbeat, because the one who should have woken us may be dead. A slice that passes looks for the dead.
 * While nothing is held by anybody slices double, up to ten heartbeats, so that idle topics cost nothing; up to two in a group of several,
 * because the record that wakes a fellow only, and dies with it, is to come to us soon. A wait that follows one which found nothing goes on
 * with its slices.
 */
#define _GNU_SOURCE
#include "core.h"
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int cx_futex_wait(uint32_t *addr, uint32_t value, int64_t timeout_ns)
{
    if (timeout_ns < 0) timeout_ns = 0;
    struct timespec t = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    long rc = syscall(SYS_futex, addr, FUTEX_WAIT, value, &t, NULL, 0);
    return rc == 0 || errno == EAGAIN ? 0 : errno;
}

void cx_futex_wake(uint32_t *addr, int n) { syscall(SYS_futex, addr, FUTEX_WAKE, n, NULL, NULL, 0); }

#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif

/* Sleeps until one of the words changes. Kernels without futex_waitv (before 5.16) and filters that refuse it: short sleeps on one. */
int cx_futex_wait_any(const cx_wait_word *words, uint32_t n, int64_t timeout_ns)
{
    struct {
        uint64_t val, uaddr;
        uint32_t flags, reserved;
    } v[128];
    static int unsupported;
    for (uint32_t i = 0; i < n; i++)
        if (LDA(*words[i].addr) != words[i].value) return 0;
#ifdef COMUX_FAILPOINTS
    if (getenv("COMUX_NO_WAITV")) ST(unsupported, 1); /* a test of what older kernels do */
#endif
    if (n <= 128 && !LD(unsupported)) {
        for (uint32_t i = 0; i < n; i++) {
            v[i].val = words[i].value;
            v[i].uaddr = (uint64_t)(uintptr_t)words[i].addr;
            v[i].flags = 2; /* 32 bits, shared */
            v[i].reserved = 0;
        }
        int64_t at = cx_now_ns() + timeout_ns;
        struct timespec t = {at / 1000000000, at % 1000000000};
        if (syscall(SYS_futex_waitv, v, n, 0, &t, CLOCK_MONOTONIC) >= 0 || errno == EAGAIN) return 0;
        if (errno != ENOSYS && errno != EPERM) return errno;
        ST(unsupported, 1);
    }
    int64_t until = cx_now_ns() + timeout_ns, step = 1000000;
    for (;;) {
        int64_t left = until - cx_now_ns();
        if (left <= 0) return ETIMEDOUT;
        int e = cx_futex_wait(words[0].addr, words[0].value, left < step ? left : step);
        if (e == EINTR) return e;
        for (uint32_t i = 0; i < n; i++)
            if (LDA(*words[i].addr) != words[i].value) return 0;
        if (step < 5000000) step += 1000000;
    }
}

int cx_patience(const cx_att *a, const cx_group *g)
{
    if (cx_head(a) != LDA(a->ctl->published)) return 1;
    if (!g) return 10;
    return LD(g->done) != LD(g->next) ? 1 : LD(g->nmembers) > 1 ? 2 : 10;
}

int64_t cx_slice(const cx_att *a, const cx_wait *w, int patience)
{
    int64_t most = patience * (int64_t)a->super.heartbeat_ns;
    return w->max_ns < most ? w->max_ns : most;
}

void cx_wait_expired(const cx_att *a, cx_wait *w, int patience)
{
    int64_t beat = (int64_t)a->super.heartbeat_ns;
    w->reap = true;
    w->phase = 1;
    w->max_ns = w->max_ns < beat ? beat : 2 * w->max_ns;
    w->max_ns = cx_slice(a, w, patience);
}

/* -- signals --------------------------------------------------------------------------------------------------------------------- */

void cx_wakes_run(cx_att *a, const cx_wakes *w)
{
    for (uint64_t left = w->groups; left; left &= left - 1) {
        int g = __builtin_ctzll(left);
        FAILPOINT("wake.group");
        cx_futex_wake(&a->groups[g].ec, w->group_n[g]);
    }
    if (w->space) {
        FAILPOINT("wake.space");
        cx_futex_wake(&a->ctl->space_ec, INT_MAX);
    }
    if (w->readers) cx_signal_readers(a);
}

void cx_wake_group(cx_att *a, cx_wakes *w, uint32_t g, int n)
{
    ST(a->groups[g].ec, LD(a->groups[g].ec) + 1);
    if (!(w->groups >> g & 1) || n > w->group_n[g]) w->group_n[g] = n;
    w->groups |= 1ull << g;
}

void cx_update_wake_min(cx_att *a)
{
    uint64_t least = CX_NOWHERE;
    for (uint32_t i = 0; i < a->super.max_groups; i++) {
        cx_group *g = &a->groups[i];
        if (LD(g->state) == CX_GROUP_USED && LD(g->nwait) && LD(g->wake_at) < least) least = LD(g->wake_at);
    }
    ST(a->ctl->wake_min, least);
}

void cx_signal_published(cx_att *a, cx_wakes *w)
{
    uint64_t published = LDA(a->ctl->published);
    bool changed = false;
    if (CX_LIKELY(published < LD(a->ctl->wake_min))) return;
    for (uint32_t i = 0; i < a->super.max_groups; i++) {
        cx_group *g = &a->groups[i];
        uint32_t waiting = LD(g->nwait);
        if (LD(g->state) != CX_GROUP_USED || !waiting || LD(g->wake_at) > published) continue;
        uint64_t ready = published > LD(g->next) ? published - LD(g->next) : 0;
        int n = ready < waiting ? (int)ready : (int)waiting;
        /* Those that are not woken now are due with the next record. */
        ST(g->wake_at, (uint32_t)n < waiting ? published + 1 : CX_NOWHERE);
        if (n) cx_wake_group(a, w, i, n);
        changed = true;
    }
    if (changed) cx_update_wake_min(a);
}

void cx_signal_readers(cx_att *a)
{
    uint32_t v = LDS(a->ctl->pub_ec);
    while (v & 1)
        if (__atomic_compare_exchange_n(&a->ctl->pub_ec, &v, (v + 2) & ~1u, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
            FAILPOINT("wake.readers");
            cx_futex_wake(&a->ctl->pub_ec, INT_MAX);
            return;
        }
}

/* The highest record below `limit` that the group has not finished, CX_NOWHERE where all are. The pair of the fence here is the seq_cst
 * CAS of the ack: either we see the ack or it sees the hole. */
static uint64_t place_hole(cx_att *a, uint32_t group, uint64_t *hole, uint64_t limit)
{
    cx_group *g = &a->groups[group];
    uint64_t done = LD(g->done), next = LD(g->next), o = limit;
    while (o > done) {
        o--;
        /* An aborted record that the group has not come to is acknowledged by nobody; whoever wants the room passes it (cx_make_room). */
        if (o < next ? CX_W_STATE(LDS(*cx_word_at(a, group, o))) == CX_ACKED : LD(cx_desc_at(a, o)->word) == CX_D_WORD(o, CX_ABORTED)) continue;
        ST(*hole, o);
        FENCE(); /* SYNC hole (acquire) */
        if (o >= next || CX_W_STATE(LDS(*cx_word_at(a, group, o))) != CX_ACKED) return o;
    }
    ST(*hole, CX_NOWHERE);
    return CX_NOWHERE;
}

void cx_signal_space(cx_att *a, cx_wakes *w)
{
    cx_control *c = a->ctl;
    for (uint32_t i = 0; i < a->super.max_groups; i++) { /* members that wait for the end */
        cx_group *g = &a->groups[i];
        if (LD(g->state) != CX_GROUP_USED || LD(g->hole_end) == CX_NOWHERE) continue;
        cx_advance_done(a, i);
        if (place_hole(a, i, &g->hole_end, LD(g->next)) == CX_NOWHERE && LD(g->nwait)) cx_wake_group(a, w, i, INT_MAX);
    }
    if (!LD(c->space_nwait)) return;
    uint64_t want = LD(c->space_want);
    bool enough = LDA(c->published) >= want;
    for (uint32_t i = 0; i < a->super.max_groups; i++) {
        cx_group *g = &a->groups[i];
        if (LD(g->state) != CX_GROUP_USED || !cx_gates(g)) continue;
        cx_advance_done(a, i);
        if (LD(g->done) < want && place_hole(a, i, &g->hole_space, want) != CX_NOWHERE)
            enough = false;
        else
            cx_advance_done(a, i);
    }
    if (!enough) return;
    ST(c->space_want, CX_NOWHERE); /* signalled once; who is not content registers anew */
    ST(c->space_ec, LD(c->space_ec) + 1);
    w->space = true;
}

void cx_signal_all(cx_att *a, cx_wakes *w)
{
    for (uint32_t i = 0; i < a->super.max_groups; i++)
        if (LD(a->groups[i].state) == CX_GROUP_USED) cx_wake_group(a, w, i, INT_MAX);
    ST(a->ctl->space_ec, LD(a->ctl->space_ec) + 1);
    w->space = true;
    w->readers = true;
}
