/* room.c - where the next record may go.
 *
 * Making room. The tail moves up to the gate (the least `done` of the gating groups). Readers must see the new tail before anything below
 * it is overwritten: store, full fence, then descriptor and payload. Where the gate is in the way:
 *   wait         register, sleep; a group nobody attends for group_grace is suspended instead
 *   drop_oldest  finish the oldest record on behalf of each group that has not: word ACKED first, then `next`, then `done` (in the other
 *                order a crash leaves a record neither delivered nor counted). A record a living member has STARTED is never taken away:
 *                then wait. PREFETCHED is taken away by CAS; the member's own CAS to STARTED decides who wins
 *   drop_newest  count and refuse
 */
#include "core.h"

#define BYTES_AHEAD_MAX ((uint64_t)1 << 20)
#define BIG_RECORD 65536

static inline bool fits(const cx_att *a, const cx_demand *w, uint64_t t)
{
    return w->head + w->n - t <= a->n && (a->fixed || w->data_head + w->bytes - cx_pos_of(a, w, t) <= a->c);
}

/* The furthest the tail needs to go, and a chunk further to come back less often; at most to the gate. */
static uint64_t walk_tail(const cx_att *a, const cx_demand *w, uint64_t t, uint64_t gate)
{
    uint64_t ahead = a->chunk - 1;
    uint64_t bytes_ahead = !ahead ? 0 : a->c / 16 < BYTES_AHEAD_MAX ? a->c / 16 : BYTES_AHEAD_MAX;
    if (fits(a, w, t)) return t;
    uint64_t need = w->head + w->n + ahead > a->n ? w->head + w->n + ahead - a->n : 0;
    if (need > gate) need = gate;
    if (need > t) t = need;
    if (!a->fixed)
        while (t < gate && w->data_head + w->bytes + bytes_ahead - cx_pos_of(a, w, t) > a->c) t++;
    return t;
}

static bool tombstone(const cx_att *a, uint64_t o) { return LD(cx_desc_at(a, o)->word) == CX_D_WORD(o, CX_ABORTED); }

/* Finishes offset `done` of the group in its stead. False where a living member has started it. */
static bool force_done(cx_att *a, uint32_t index)
{
    cx_group *g = &a->groups[index];
    uint64_t o = LD(g->done);
    uint32_t *at = cx_word_at(a, index, o);
    if (o >= LD(g->next)) {
        if (!tombstone(a, o)) INC(g->lost, 1);
        STR(*at, CX_W_MAKE(CX_ACKED, 0, 0));
        FAILPOINT("drop.after_word");
        STR(g->next, o + 1);
        FAILPOINT("drop.after_next");
    } else {
        for (;;) {
            uint32_t w = LDA(*at);
            if (CX_W_STATE(w) == CX_STARTED) return false;
            if (CX_W_STATE(w) == CX_ACKED) break;
            if (!cx_cas32(at, w, CX_W_MAKE(CX_ACKED, CX_W_COUNT(w), CX_W_PORT(w)))) continue;
            if (CX_W_STATE(w) == CX_RED) ST(g->nred, LD(g->nred) - 1);
            INC(g->lost, 1);
            FAILPOINT("drop.after_word");
            break;
        }
    }
    cx_advance_done(a, index);
    return true;
}

/* drop_oldest: offset t is done with for all gating groups. False where a living member has started it in any of them. */
static bool drop_one(cx_att *a, uint64_t t)
{
    bool dropped = false;
    for (uint32_t i = 0; i < a->super.max_groups; i++) {
        cx_group *g = &a->groups[i];
        if (LD(g->state) != CX_GROUP_USED || !cx_gates(g) || LD(g->done) != t || LD(g->next) <= t) continue;
        if (CX_W_STATE(LDA(*cx_word_at(a, i, t))) == CX_STARTED) return false; /* looked at first: all groups or none, races apart */
    }
    for (uint32_t i = 0; i < a->super.max_groups; i++) {
        cx_group *g = &a->groups[i];
        if (LD(g->state) != CX_GROUP_USED || !cx_gates(g) || LD(g->done) > t) continue;
        uint64_t lost = LD(g->lost);
        if (!force_done(a, i)) return false;
        dropped |= LD(g->lost) != lost;
    }
    if (dropped) INC(a->ctl->dropped_oldest, 1);
    return true;
}

/* A suspended group does not hold the tail; what the tail passes is its loss. */
static void drag_suspended(cx_att *a, uint64_t tail)
{
    for (uint32_t i = 0; i < a->super.max_groups; i++) {
        cx_group *g = &a->groups[i];
        if (LD(g->state) != CX_GROUP_USED || cx_gates(g)) continue;
        while (LD(g->done) < tail)
            if (!force_done(a, i)) return; /* cannot be: suspended groups have no members */
    }
}

static bool suspend_unattended(cx_att *a, const cx_demand *w)
{
    bool any = false;
    uint64_t now = (uint64_t)cx_now_ns();
    for (uint32_t i = 0; i < a->super.max_groups; i++) {
        cx_group *g = &a->groups[i];
        if (LD(g->state) != CX_GROUP_USED || LD(g->flags) & (CX_GROUP_DURABLE | CX_GROUP_SUSPENDED) || LD(g->nmembers) || fits(a, w, LD(g->done))) continue;
        if (now - LD(g->unattended_ns) < a->super.group_grace_ns) continue;
        ST(g->flags, LD(g->flags) | CX_GROUP_SUSPENDED);
        ST(g->hole_space, CX_NOWHERE);
        INC(a->ctl->suspensions, 1);
        any = true;
    }
    return any;
}

/* Lock held. Moves the tail as far as needed and allowed; true where the demand fits now. */
bool cx_make_room(cx_att *a, const cx_demand *w)
{
    uint64_t t = LD(a->ctl->tail), was = t;
    if (!a->pool && fits(a, w, t)) return true; /* a pool's tail follows the groups without need, see pool.c */
    for (uint32_t i = 0; i < a->super.max_groups; i++)
        if (LD(a->groups[i].state) == CX_GROUP_USED) cx_advance_done(a, i);
    t = walk_tail(a, w, t, cx_gate(a));
    if (a->pool) t = cx_pool_tail(a, t, cx_gate(a), w->head);
    if (!fits(a, w, t)) { /* an idle member may stand before aborted records: nobody needs to come for those */
        for (uint32_t i = 0; i < a->super.max_groups; i++)
            if (LD(a->groups[i].state) == CX_GROUP_USED) cx_skip_tombstones(a, i);
        t = walk_tail(a, w, t, cx_gate(a));
    }
    if (!fits(a, w, t)) {
        if (a->super.policy == CX_POLICY_DROP_OLDEST) {
            uint64_t published = LDA(a->ctl->published);
            while (!fits(a, w, t) && t < published && drop_one(a, t)) t++;
        } else if (suspend_unattended(a, w)) {
            t = walk_tail(a, w, t, cx_gate(a));
        }
    }
    if (t != was) {
        drag_suspended(a, t);
        ST(a->ctl->tail, t);
        FENCE(); /* SYNC reclaim (release), SYNC tail (release): before anything below the new tail is overwritten: pairs with the acquire fence of valid() */
        FAILPOINT("claim.after_tail");
        if (a->pool) cx_pool_reclaim(a, was, t);
    }
    return fits(a, w, t);
}

/* The offset that all gating groups must have finished for the demand to fit, with a quarter of the ring in reserve where `generous`. */
uint64_t cx_wanted(const cx_att *a, const cx_demand *w, bool generous)
{
    uint64_t quarter = generous && w->bytes / w->n < BIG_RECORD ? 4 : 0, tail = LD(a->ctl->tail);
    uint64_t slots = w->head + w->n + (quarter ? a->n / quarter : 0), want = slots > a->n ? slots - a->n : 0;
    if (!a->fixed) {
        uint64_t bytes = w->data_head + w->bytes + (quarter ? a->c / quarter : 0), low = tail, high = w->head;
        uint64_t least = bytes > a->c ? bytes - a->c : 0;
        while (low < high) {
            uint64_t middle = low + (high - low) / 2;
            if (cx_pos_of(a, w, middle) >= least)
                high = middle;
            else
                low = middle + 1;
        }
        if (low > want) want = low;
    }
    return want < w->head ? want : w->head;
}
