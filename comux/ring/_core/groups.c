/* groups.c - ports (handles as the segment sees them) and consumer groups.
 *
 * A port exists from the store to its `state` on and is freed by the store of FREE, after everything it owned was resolved: who dies in
 * between leaves either nothing or a port of a dead owner, which anybody reaps. The same holds for groups.
 *
 * A group gates from the moment it is declared, also with no member. Where none has attended it for group_grace and a producer stands
 * waiting because of it, it is suspended (unless durable): it gates no longer, and what the tail then passes is counted as its loss.
 */
#include "core.h"
#include <limits.h>
#include <stdio.h>
#include <string.h>

int cx_port_open(cx_att *a, uint32_t kind, uint32_t group, const char *name, uint32_t *out)
{
    uint32_t i = 0;
    while (i < a->super.max_ports && LD(a->ports[i].state) != CX_PORT_FREE) i++;
    if (i == a->super.max_ports)
        return cx_fail(CX_EBUSY, "topic '%s': all %u ports (open handles) are in use; close some or raise max_ports", a->super.name, i);
    cx_port *p = &a->ports[i];
    /* Atomic stores: who looks for the dead, or at statistics, reads ports without the lock. `state` was FREE, which is 0. */
    for (uint64_t *word = (uint64_t *)p; word < (uint64_t *)(p + 1); word++) ST(*word, 0);
    ST(p->kind, kind);
    ST(p->owner, a->me);
    ST(p->group, group);
    ST(p->id, ++a->ctl->port_seq);
    ST(p->last_ns, (uint64_t)cx_wall_ns());
    snprintf(p->name, sizeof p->name, "%s", name ? name : "");
    FAILPOINT("port.before_state");
    STR(p->state, CX_PORT_USED);
    FAILPOINT("port.after_state");
    *out = i;
    return CX_OK;
}

/* Everything the port owned is resolved: its counters go into the totals, then it is free. */
void cx_port_fold(cx_att *a, uint32_t port)
{
    cx_port *p = &a->ports[port];
    cx_control *c = a->ctl;
    if (p->kind == CX_PORT_MEMBER && p->group < a->super.max_groups) {
        cx_group *g = &a->groups[p->group];
        INC(g->delivered, LD(p->n));
        INC(g->acked, LD(p->acked));
        INC(g->redelivered, LD(p->redelivered));
    } else if (p->kind == CX_PORT_PRODUCER) {
        INC(c->committed, LD(p->n));
        INC(c->bytes, LD(p->bytes));
        INC(c->dropped_newest, LD(p->dropped));
        INC(c->aborted, LD(p->aborted));
        INC(c->blocked_ns, LD(p->blocked_ns));
        if (LD(c->writer) == port + 1) ST(c->writer, 0);
    }
    FAILPOINT("port.before_free");
    STR(p->state, CX_PORT_FREE);
    FAILPOINT("port.after_free");
}

bool cx_gates(const cx_group *g) { return !(LD(g->flags) & CX_GROUP_SUSPENDED); }

int cx_group_find(const cx_att *a, const char *name)
{
    for (uint32_t i = 0; i < a->super.max_groups; i++)
        if (LDA(a->groups[i].state) == CX_GROUP_USED && strncmp(a->groups[i].name, name, sizeof a->groups[i].name) == 0) return (int)i;
    return -1;
}

int cx_group_add(cx_att *a, const char *name, uint64_t start, bool durable, uint32_t max_deliveries, uint32_t *out)
{
    uint32_t i = 0;
    while (i < a->super.max_groups && LD(a->groups[i].state) != CX_GROUP_FREE) i++;
    if (i == a->super.max_groups)
        return cx_fail(CX_EBUSY, "topic '%s': all %u groups are in use; remove one or raise max_groups", a->super.name, i);
    cx_group *g = &a->groups[i];
    memset(g, 0, sizeof *g);
    g->flags = durable ? CX_GROUP_DURABLE : 0;
    g->next = g->done = g->start = start;
    g->wake_at = g->hole_space = g->hole_end = CX_NOWHERE;
    g->unattended_ns = (uint64_t)cx_now_ns();
    g->max_deliveries = max_deliveries;
    snprintf(g->name, sizeof g->name, "%s", name);
    FAILPOINT("group.before_state");
    STR(g->state, CX_GROUP_USED);
    FAILPOINT("group.after_state");
    *out = i;
    return CX_OK;
}

int cx_group_remove(cx_att *a, const char *name)
{
    cx_reap(a);
    int rc = cx_lock(a, 0);
    if (rc != CX_OK) return rc;
    cx_wakes wakes;
    cx_wakes_init(&wakes);
    int i = cx_group_find(a, name);
    if (i < 0)
        rc = cx_fail(CX_ECONFIG, "topic '%s' has no group '%s'", a->super.name, name);
    else if (LD(a->groups[i].nmembers))
        rc = cx_fail(CX_EBUSY, "topic '%s': group '%s' has %u living members; close them first", a->super.name, name, LD(a->groups[i].nmembers));
    else {
        STR(a->groups[i].state, CX_GROUP_FREE);
        cx_update_wake_min(a);
        cx_signal_space(a, &wakes);
    }
    cx_unlock(a);
    cx_wakes_run(a, &wakes);
    return rc;
}

/* -- pause ----------------------------------------------------------------------------------------------------------------------- */

/* One store each, so that a crash leaves it paused or not; whoever waited looks again at his next wake-up, at the latest at his heartbeat.
 * The one writer reads the flag before each record without the lock: the record it is just publishing may still come. */
int cx_pause_topic(cx_att *a, bool paused)
{
    int rc = cx_lock(a, 0);
    if (rc != CX_OK) return rc;
    uint64_t state = LD(a->ctl->state);
    STR(a->ctl->state, paused ? state | CX_STATE_PAUSED : state & ~(uint64_t)CX_STATE_PAUSED);
    FAILPOINT("pause.topic");
    cx_wakes wakes;
    cx_wakes_init(&wakes);
    ST(a->ctl->space_ec, LD(a->ctl->space_ec) + 1);
    wakes.space = true;
    cx_unlock(a);
    cx_wakes_run(a, &wakes);
    return CX_OK;
}

int cx_pause_group(cx_att *a, const char *name, bool paused)
{
    int rc = cx_lock(a, 0);
    if (rc != CX_OK) return rc;
    cx_wakes wakes;
    cx_wakes_init(&wakes);
    int i = cx_group_find(a, name);
    if (i < 0) {
        rc = cx_fail(CX_ECONFIG, "topic '%s' has no group '%s'", a->super.name, name);
    } else {
        cx_group *g = &a->groups[i];
        uint32_t flags = LD(g->flags);
        STR(g->flags, paused ? flags | CX_GROUP_PAUSED : flags & ~(uint32_t)CX_GROUP_PAUSED);
        FAILPOINT("pause.group");
        cx_wake_group(a, &wakes, (uint32_t)i, INT_MAX); /* who sleeps must wait for something else now */
        wakes.readers = true; /* bells, see bell.c */
    }
    cx_unlock(a);
    cx_wakes_run(a, &wakes);
    return rc;
}

/* -- positions of groups --------------------------------------------------------------------------------------------------------- */

void cx_advance_done(cx_att *a, uint32_t group)
{
    cx_group *g = &a->groups[group];
    uint64_t done = LD(g->done), next = LD(g->next), was = done;
    while (done < next && done - was <= a->dmask && CX_W_STATE(LDA(*cx_word_at(a, group, done))) == CX_ACKED) done++;
    if (done != was) STR(g->done, done);
}

/* Aborted records that the group would come to next are finished without being handed to anybody. */
void cx_skip_tombstones(cx_att *a, uint32_t group)
{
    cx_group *g = &a->groups[group];
    uint64_t next = LD(g->next), published = LDA(a->ctl->published);
    if (a->one_writer) return;
    while (next < published && LD(cx_desc_at(a, next)->word) == CX_D_WORD(next, CX_ABORTED)) {
        STR(*cx_word_at(a, group, next), CX_W_MAKE(CX_ACKED, 0, 0));
        next++;
        FAILPOINT("take.tombstone");
        STR(g->next, next);
    }
    cx_advance_done(a, group);
}

uint64_t cx_gate(const cx_att *a)
{
    uint64_t gate = LDA(a->ctl->published);
    for (uint32_t i = 0; i < a->super.max_groups; i++) {
        const cx_group *g = &a->groups[i];
        if (LD(g->state) == CX_GROUP_USED && cx_gates(g) && LD(g->done) < gate) gate = LD(g->done);
    }
    return gate;
}

uint32_t cx_desc_epoch(const cx_att *a, const cx_desc *d)
{
    uint32_t now = cx_epoch(LDA(a->ctl->state));
    return now - (uint16_t)((uint16_t)now - d->epoch); /* the newest epoch with these low bits that is not in the future */
}

/* Whether any offset in [from, to), both at most published, was aborted. */
bool cx_tombstones_between(const cx_att *a, uint64_t from, uint64_t to)
{
    if (a->one_writer || from >= to) return false;
    uint32_t at_to = to < LD(a->ctl->published) ? cx_desc_at(a, to)->cum_aborted : (uint32_t)LD(a->ctl->aborted_below);
    return at_to != cx_desc_at(a, from)->cum_aborted;
}

void cx_release_words(cx_att *a, uint32_t group, uint32_t port)
{
    cx_group *g = &a->groups[group];
    uint64_t next = LD(g->next), o = LD(g->done);
    if (next - o > a->dmask + 1) return; /* damaged; check() reports it */
    for (; o < next; o++) {
        uint32_t *at = cx_word_at(a, group, o), w = LDA(*at);
        if (CX_W_PORT(w) != port || CX_W_STATE(w) > CX_STARTED) continue;
        if (!cx_cas32(at, w, CX_W_MAKE(CX_RED, CX_W_COUNT(w), 0))) continue;
        ST(g->nred, LD(g->nred) + 1);
        FAILPOINT("reap.word");
    }
}
