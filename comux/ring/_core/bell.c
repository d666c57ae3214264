/* bell.c - a file descriptor that is readable while a member or a reader has something to be looked at.
 *
 * The problem. Selectors and asyncio wait for descriptors; the ring's waits are futexes. A thread that never touches the interpreter stands
 * between: it waits as a lossy reader does and writes to an eventfd.
 *
 * It waits in the class that is woken all at once (pub_ec), so it cannot swallow a wake-up that was meant for one member. Whatever else makes
 * records deliverable (given back, claimed, resumed, a death) signals that class too.
 *
 *   ARMED   the thread looks and sleeps; where there is something: ARMED -> RUNG, write
 *   RUNG    the thread sleeps on the bell's own word. The descriptor stays readable until a take or poll finds nothing, which empties it and
 *           arms the bell; the thread then looks again before it sleeps, so that nothing falls between
 *   STOP    the thread ends, and the descriptor is left readable for whoever still waits on a copy of it
 *
 * Readable means "look": another member may be faster. A slice that passes looks for the dead, and rings where somebody holds records that
 * could be stolen or come back; it backs off to ten heartbeats where nothing can be stuck, like every wait.
 *
 * A forked child has no such thread: there the bell is only memory and a descriptor. */
#define _GNU_SOURCE
#include "core.h"
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { RUNG = 0, ARMED = 1, STOP = 2 };

struct cx_bell {
    cx_att *a;
    cx_bell_look *look;
    const void *handle;
    int fd;
    uint32_t word;
    pthread_t thread;
};

static void strike(cx_bell *b)
{
    uint64_t one = 1;
    ssize_t n = write(b->fd, &one, sizeof one); /* cannot block: it would have to be struck 2^64 times */
    (void)n;
}

/* Looks, and sleeps a slice where there is nothing. */
static void watch(cx_bell *b, cx_wait *w)
{
    cx_att *a = b->a;
    uint32_t count = __atomic_fetch_or(&a->ctl->pub_ec, 1u, __ATOMIC_ACQ_REL) | 1u; /* announce first, then test */
    FENCE(); /* SYNC sleepers (acquire) */
    int found = b->look(b->handle);
    if (found == CX_BELL_YES || (found == CX_BELL_MAYBE && w->reap)) {
        w->reap = false;
        if (cx_cas32(&b->word, ARMED, RUNG)) strike(b);
        return;
    }
    w->reap = false;
    if (!w->max_ns) w->max_ns = (int64_t)a->super.heartbeat_ns;
    cx_wait_word words[2] = {{&a->ctl->pub_ec, count}, {&b->word, ARMED}};
    int patience = found == CX_BELL_NO ? cx_patience(a, NULL) : 1;
    if (cx_futex_wait_any(words, 2, cx_slice(a, w, patience)) != ETIMEDOUT) return;
    cx_wait_expired(a, w, patience);
    cx_reap(a);
}

static void *run(void *arg)
{
    cx_bell *b = arg;
    cx_wait w = {0};
    for (;;) {
        uint32_t word = LDA(b->word);
        if (word == STOP) return NULL;
        if (word == ARMED) {
            watch(b, &w);
        } else {
            w.max_ns = 0;
            cx_futex_wait(&b->word, RUNG, INT64_MAX / 4);
        }
    }
}

cx_bell *cx_bell_hang(cx_att *a, cx_bell_look *look, const void *handle)
{
    cx_bell *b = calloc(1, sizeof *b);
    sigset_t all, before;
    if (!b) {
        cx_fail_os(ENOMEM, "topic '%s': a bell", a->super.name);
        return NULL;
    }
    b->a = a;
    b->look = look;
    b->handle = handle;
    b->word = ARMED;
    b->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int e = b->fd < 0 ? errno : 0;
    if (!e) { /* signals are for the threads that have an interpreter */
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        e = pthread_create(&b->thread, NULL, run, b);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    if (!e) return b;
    if (b->fd >= 0) close(b->fd);
    free(b);
    cx_fail_os(e, "topic '%s': a descriptor and a thread to wait with", a->super.name);
    return NULL;
}

int cx_bell_fd(const cx_bell *b) { return b->fd; }

void cx_bell_ring(cx_bell *b) { strike(b); }

void cx_bell_arm(cx_bell *b)
{
    uint64_t count;
    ssize_t n = read(b->fd, &count, sizeof count); /* nothing to read: it was not rung, or a copy of us was faster */
    (void)n;
    if (cx_cas32(&b->word, RUNG, ARMED)) cx_futex_wake(&b->word, 1);
}

void cx_bell_stop(cx_bell *b)
{
    if (!b->a->forked) {
        XCHG(b->word, STOP);
        cx_futex_wake(&b->word, 1);
        pthread_join(b->thread, NULL);
        strike(b);
    }
    close(b->fd);
    free(b);
}

/* -- what there is to be looked at -------------------------------------------------------------------------------------------------- */

int cx_member_look(const void *handle)
{
    const cx_member *m = handle;
    const cx_att *a = m->a;
    const cx_group *g = &a->groups[m->group];
    uint64_t next = LDA(g->next), done = LDA(g->done), state = LDA(a->ctl->state);
    bool paused = LD(g->flags) & CX_GROUP_PAUSED;
    if (!paused && (LD(g->nred) || next < LDA(a->ctl->published) || LD(m->r0) < LD(m->r1))) return CX_BELL_YES;
    while (done < next && CX_W_STATE(LDA(*cx_word_at(a, m->group, done))) == CX_ACKED) done++;
    bool over = m->stop_at_end && ((state & CX_STATE_END) || cx_epoch(state) != m->epoch);
    if (done >= next) return over ? CX_BELL_YES : CX_BELL_NO;
    return paused ? CX_BELL_NO : CX_BELL_MAYBE;
}

int cx_reader_look(const void *handle)
{
    const cx_reader *r = handle;
    const cx_att *a = r->a;
    uint64_t state = LDA(a->ctl->state);
    if (LD(r->cursor) < LDA(a->ctl->published)) return CX_BELL_YES;
    return r->stop_at_end && ((state & CX_STATE_END) || cx_epoch(state) != r->epoch) ? CX_BELL_YES : CX_BELL_NO;
}
