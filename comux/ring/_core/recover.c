/* recover.c - making the state whole again after a death, and the list of what "whole" means.
 *
 * cx_recover is a pure function of the segment: what dead ports own is resolved, then everything derived is computed anew from the primary
 * words. It can be killed at any store and simply be run again by the next one: a port is freed only after all it owned is resolved.
 *
 *   claims of a dead producer   -> ABORTED (a tombstone readers skip); later records become visible
 *   records of a dead member    -> RED; the next member gets them, marked redelivered where they had been started
 *   pins of a dead process      -> 0; the slot is free when the pool is next looked through
 *   derived: published (several writers), data_head, aborted_below, done, nred, nmembers, nwait, wake_at; free slots (several writers)
 *   then everybody is woken and looks again.
 */
#include "core.h"
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

uint64_t cx_data_end(const cx_att *a, uint64_t head)
{
    if (a->fixed) return head * a->stride;
    if (head == a->super.first_offset) return 0;
    const cx_desc *d = cx_desc_at(a, head - 1); /* overwritten by offset head - 1 + D at the earliest: always there */
    return d->pos + d->claim_len;
}

/* Whether the primary words are in an order that no crash can upset: what every loop over offsets relies on. Looked at when attaching. */
bool cx_sane(const cx_att *a)
{
    uint64_t tail = LD(a->ctl->tail), published = LD(a->ctl->published), head = a->one_writer ? published : LD(a->ctl->head);
    bool sane = a->super.first_offset <= tail && tail <= published && published <= head && head - tail <= a->n && head < (uint64_t)1 << 61;
    for (uint32_t i = 0; sane && i < a->super.max_groups; i++) {
        const cx_group *g = &a->groups[i];
        if (LD(g->state) == CX_GROUP_FREE) continue;
        sane = LD(g->state) == CX_GROUP_USED && tail <= LD(g->done) && LD(g->done) <= LD(g->next) && LD(g->next) <= published;
    }
    for (uint32_t i = 0; sane && i < a->super.max_ports; i++) {
        const cx_port *p = &a->ports[i];
        sane = LD(p->state) == CX_PORT_FREE || (LD(p->state) == CX_PORT_USED && p->kind <= CX_PORT_READER && p->group < a->super.max_groups);
    }
    return sane;
}

/* Over everything that is no longer CLAIMED. Readers trust nothing at or above `published`, so one store at the end shows all of it. */
bool cx_advance_published(cx_att *a)
{
    cx_control *c = a->ctl;
    uint64_t was = LD(c->published), at = was, head = LD(c->head);
    uint32_t cum = (uint32_t)LD(c->aborted_below);
    for (; at < head; at++) {
        cx_desc *d = cx_desc_at(a, at);
        uint64_t word = LD(d->word);
        if (word != CX_D_WORD(at, CX_COMMITTED) && word != CX_D_WORD(at, CX_ABORTED)) break;
        STR(d->cum_aborted, cum); /* SYNC count (release): who sees it sees that the word is no longer the old record's */
        if ((word & 7) == CX_ABORTED)
            cum++;
        else if (d->flags & 1)
            ST(c->last_key_plus1, at + 1);
    }
    if (at == was) return false;
    FAILPOINT("publish.before");
    STR(c->published, at); /* SYNC published (release) */
    FAILPOINT("publish.between");
    STR(c->aborted_below, at << 32 | cum); /* SYNC aborted (release) */
    FENCE(); /* SYNC sleepers (release): a reader announces itself in pub_ec, then tests */
    return true;
}

static void resolve_claims(cx_att *a, uint32_t port)
{
    uint64_t head = LD(a->ctl->head), o = LD(a->ctl->published);
    if (a->one_writer || head - o > a->n) return;
    for (; o < head; o++) {
        cx_desc *d = cx_desc_at(a, o);
        if (LD(d->word) != CX_D_WORD(o, CX_CLAIMED) || d->port != port) continue;
        INC(a->ctl->aborted, 1);
        STR(d->word, CX_D_WORD(o, CX_ABORTED));
        FAILPOINT("reap.claim");
    }
}

static void recount_group(cx_att *a, uint32_t index)
{
    cx_group *g = &a->groups[index];
    uint32_t members = 0, waiting = 0, red = 0;
    for (uint32_t i = 0; i < a->super.max_ports; i++) {
        const cx_port *p = &a->ports[i];
        if (LD(p->state) != CX_PORT_USED || p->kind != CX_PORT_MEMBER || p->group != index) continue;
        members++;
        waiting += LD(p->waiting);
    }
    cx_finish_bury(a, index);
    cx_advance_done(a, index);
    uint64_t next = LD(g->next), done = LD(g->done);
    for (uint64_t o = done; o < next && next - done <= a->dmask + 1; o++)
        red += CX_W_STATE(LD(*cx_word_at(a, index, o))) == CX_RED;
    if (!members && LD(g->nmembers)) ST(g->unattended_ns, (uint64_t)cx_now_ns());
    ST(g->nmembers, members);
    ST(g->nwait, waiting);
    ST(g->nred, red);
    ST(g->wake_at, waiting && !cx_group_paused(a, index) ? next + 1 : CX_NOWHERE);
}

static void rebuild(cx_att *a)
{
    cx_control *c = a->ctl;
    uint32_t waiting = 0;
    if (a->one_writer) {
        ST(c->head, LD(c->published));
    } else {
        uint64_t published = LD(c->published);
        if (published != a->super.first_offset) {
            const cx_desc *d = cx_desc_at(a, published - 1);
            uint64_t word = LD(d->word);
            if (word >> 3 == published - 1) /* else a later claim has it, made after the word was stored */
                STR(c->aborted_below, published << 32 | (d->cum_aborted + ((word & 7) == CX_ABORTED)));
        }
        cx_advance_published(a);
    }
    ST(c->data_head, cx_data_end(a, LD(c->head)));
    for (uint32_t i = 0; i < a->super.max_ports; i++)
        if (LD(a->ports[i].state) == CX_PORT_USED && a->ports[i].kind == CX_PORT_PRODUCER) waiting += LD(a->ports[i].waiting);
    ST(c->space_nwait, waiting);
    for (uint32_t i = 0; i < a->super.max_groups; i++)
        if (LD(a->groups[i].state) == CX_GROUP_USED) recount_group(a, i);
    cx_update_wake_min(a);
    if (!a->pool) return;
    cx_pool_unpin_dead(a);
    if (!a->one_writer) cx_pool_rebuild(a); /* the one writer takes slots without the lock */
}

void cx_recover(cx_att *a)
{
    for (uint32_t i = 0; i < a->super.max_ports; i++) {
        cx_port *p = &a->ports[i];
        if (LD(p->state) != CX_PORT_USED || !cx_owner_dead(a, p->owner, true)) continue;
        if (p->kind == CX_PORT_PRODUCER) resolve_claims(a, i);
        if (p->kind == CX_PORT_MEMBER && p->group < a->super.max_groups) cx_release_words(a, p->group, i);
        INC(a->ctl->reaped, 1);
        cx_port_fold(a, i);
        FAILPOINT("recover.after_port");
    }
    rebuild(a);
    FAILPOINT("recover.before_wake");
    cx_wakes wakes;
    cx_wakes_init(&wakes);
    cx_signal_all(a, &wakes);
    cx_wakes_run(a, &wakes); /* system calls under the lock: here only */
}

int cx_reap(cx_att *a)
{
    uint32_t known = a->me;
    bool dead = false;
    if (a->forked) return 0;
    for (uint32_t i = 0; i < a->super.max_ports && !dead; i++) {
        const cx_port *p = &a->ports[i];
        uint32_t owner = LD(p->owner);
        if (LDA(p->state) != CX_PORT_USED || owner == known) continue;
        dead = cx_owner_dead(a, owner, true) && LDA(p->state) == CX_PORT_USED && LD(p->owner) == owner;
        known = owner;
    }
    if (!dead && a->pool) dead = cx_pool_dead_pins(a);
    if (!dead || cx_lock(a, CX_GIVE_UP) != CX_OK) return 0;
    uint64_t before = LD(a->ctl->reaped);
    cx_recover(a);
    int n = (int)(LD(a->ctl->reaped) - before);
    cx_unlock(a);
    return n;
}

/* -- check: the invariants that hold whenever the lock is free ------------------------------------------------------------------------ */

typedef struct {
    char *at;
    size_t left;
    int n;
} report;

static void violated(report *r, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(r->at, r->left, format, args);
    va_end(args);
    r->n++;
    if (n < 0 || (size_t)n + 1 >= r->left) return;
    r->at += n;
    *r->at++ = '\n';
    *r->at = 0;
    r->left -= (size_t)n + 1;
}

#define U(x) ((unsigned long long)(x))

static void check_group(cx_att *a, uint32_t index, uint64_t tail, uint64_t published, report *r)
{
    cx_group *g = &a->groups[index];
    uint64_t done = LD(g->done), next = LD(g->next);
    uint32_t red = 0, waiting = 0, members = 0;
    if (!(tail <= done && done <= next && next <= published))
        violated(r, "I1 group '%.47s': tail %llu, done %llu, next %llu, published %llu are out of order", g->name, U(tail), U(done), U(next), U(published));
    for (uint64_t o = done; o < next && next - done <= a->n; o++) {
        uint32_t w = LD(*cx_word_at(a, index, o)), port = CX_W_PORT(w);
        red += CX_W_STATE(w) == CX_RED;
        if (CX_W_STATE(w) > CX_STARTED) continue;
        const cx_port *p = port < a->super.max_ports ? &a->ports[port] : NULL;
        if (!p || LD(p->state) != CX_PORT_USED || p->kind != CX_PORT_MEMBER || p->group != index)
            violated(r, "I4 group '%.47s': offset %llu is held by port %u, which is no member of it", g->name, U(o), port);
    }
    for (uint32_t i = 0; i < a->super.max_ports; i++)
        if (LD(a->ports[i].state) == CX_PORT_USED && a->ports[i].kind == CX_PORT_MEMBER && a->ports[i].group == index) {
            members++;
            waiting += LD(a->ports[i].waiting);
        }
    if (red != LD(g->nred)) violated(r, "I8 group '%.47s': %u records to redeliver, %u counted", g->name, red, LD(g->nred));
    if (waiting != LD(g->nwait)) violated(r, "I9 group '%.47s': %u members wait, %u counted", g->name, waiting, LD(g->nwait));
    if (waiting && LD(g->wake_at) < LD(a->ctl->wake_min))
        violated(r, "I9 group '%.47s': a member is due at %llu, writers look at %llu", g->name, U(LD(g->wake_at)), U(LD(a->ctl->wake_min)));
    if (members != LD(g->nmembers)) violated(r, "I4 group '%.47s': %u members, %u counted", g->name, members, LD(g->nmembers));
}

static void check_descriptors(cx_att *a, uint64_t tail, uint64_t published, uint64_t head, report *r)
{
    uint64_t end = a->fixed ? tail * a->stride : 0;
    for (uint64_t o = tail; o < head && head - tail <= a->n; o++) {
        cx_desc *d = cx_desc_at(a, o);
        uint64_t word = LD(d->word);
        if (word >> 3 != o || (word & 7) < CX_CLAIMED || (word & 7) > CX_ABORTED) {
            violated(r, "I2 descriptor of offset %llu says offset %llu, state %llu", U(o), U(word >> 3), U(word & 7));
            continue;
        }
        if (o < published && (word & 7) == CX_CLAIMED) violated(r, "I2 offset %llu is published and still claimed", U(o));
        if ((word & 7) == CX_CLAIMED && (d->port >= a->super.max_ports || LD(a->ports[d->port].state) != CX_PORT_USED))
            violated(r, "I4 offset %llu is claimed by port %u, which is free", U(o), d->port);
        if (o < published && (word & 7) == CX_COMMITTED && !cx_desc_sane(a, d))
            violated(r, "I7 descriptor of offset %llu points outside of its claim", U(o));
        if (a->pool) continue;
        if (o > tail && d->pos < end) violated(r, "I3 offset %llu overlaps its predecessor", U(o));
        end = a->fixed ? d->pos + a->stride : d->pos + d->claim_len;
    }
    uint64_t slot;
    const char *wrong = a->pool ? cx_pool_check(a, tail, head, &slot) : NULL;
    if (wrong) violated(r, "I3 pool: slot %llu %s", U(slot), wrong);
    if (!a->pool && head > tail && end - cx_desc_at(a, tail)->pos > a->c) violated(r, "I1 %llu bytes retained, %llu fit", U(end - cx_desc_at(a, tail)->pos), U(a->c));
}

int cx_check(cx_att *a, char *out, size_t n)
{
    report r = {out, n, 0};
    *out = 0;
    int rc = cx_lock(a, 0);
    if (rc != CX_OK) return rc;
    uint64_t tail = LD(a->ctl->tail), published = LD(a->ctl->published), head = cx_head(a);
    if (!(tail <= published && published <= head && head - tail <= a->n))
        violated(&r, "I1 tail %llu, published %llu, head %llu with %llu slots are out of order", U(tail), U(published), U(head), U(a->n));
    if ((LD(a->ctl->lock) & 0x7fffffff) != a->me) violated(&r, "I10 the lock names %x, not its owner %x", LD(a->ctl->lock), a->me);
    for (uint32_t i = 0; i < a->super.max_ports; i++) {
        const cx_port *p = &a->ports[i];
        uint32_t slot = (p->owner & 0xff) - 1;
        if (LD(p->state) == CX_PORT_USED && (slot >= a->super.max_procs || LD(a->procs[slot].gen) == 0))
            violated(&r, "I4 port %u is in use and names no owner", i);
    }
    check_descriptors(a, tail, published, head, &r);
    for (uint32_t i = 0; i < a->super.max_groups; i++)
        if (LD(a->groups[i].state) == CX_GROUP_USED) check_group(a, i, tail, published, &r);
    cx_unlock(a);
    return r.n;
}
