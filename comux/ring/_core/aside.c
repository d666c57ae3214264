/* aside.c - records that are taken out of their member's hands: those that nobody can finish, and those of a member that hangs.
 */
#include "core.h"
#include <limits.h>
#include <string.h>

/* -- dead letters ----------------------------------------------------------------------------------------------------------------- */

/* A record that kills whoever works on it would do so for ever. Its count rises with each delivery and survives the deaths; a member that
 * takes it with as many deliveries as the group allows does not work on it but copies it to the group's dead-letter topic (the binding
 * does: another topic has another lock, and none is taken while one is held) and then comes here. Copy first, word second: who dies in
 * between has the record copied again by the next, so it can be there twice and is never lost.
 *
 * The number of dead letters is exact all the same: what it will be stands in bury_count, and whose it is in bury_at, before the word is
 * stored; after a death the word says whether it is to be taken over.
 *
 *   SIGKILL right after       leaves                                    recovery
 *   STARTED, and the copying  a record of a dead port, count as it was  RED; the next one copies it (again)
 *   bury_at                   the same, lock held                       take-over: the word is not ACKED, bury_at = 0
 *   ACKED                     final, not counted                        take-over: dead_letters = bury_count
 *   dead_letters              final                                     take-over: the same number once more
 */
int cx_bury(cx_member *m, uint64_t offset)
{
    cx_att *a = m->a;
    cx_group *g = &a->groups[m->group];
    cx_wakes wakes;
    cx_wakes_init(&wakes);
    if (m->closed || a->forked) return cx_stale(m, offset);
    FAILPOINT("bury.copied");
    int rc = cx_lock(a, CX_GIVE_UP);
    if (rc != CX_OK) return rc;
    uint32_t *at = cx_word_at(a, m->group, offset), w = LDA(*at);
    bool held = cx_holds(m, offset);
    if (held) {
        STR(g->bury_count, LD(g->dead_letters) + 1);
        STR(g->bury_at, offset + 1);
        FAILPOINT("bury.before_word");
        held = cx_cas32(at, w, w | CX_ACKED);
        FAILPOINT("bury.after_word");
        if (held) STR(g->dead_letters, LD(g->bury_count));
        FAILPOINT("bury.counted");
        STR(g->bury_at, 0);
        cx_advance_done(a, m->group);
        cx_signal_space(a, &wakes);
        m->buried += held;
    }
    cx_unlock(a);
    cx_wakes_run(a, &wakes);
    return held ? CX_OK : cx_stale(m, offset);
}

void cx_finish_bury(cx_att *a, uint32_t group)
{
    cx_group *g = &a->groups[group];
    uint64_t at = LD(g->bury_at);
    if (!at) return;
    if (at - 1 < LD(g->done) || (at - 1 < LD(g->next) && CX_W_STATE(LDA(*cx_word_at(a, group, at - 1))) == CX_ACKED))
        STR(g->dead_letters, LD(g->bury_count));
    STR(g->bury_at, 0);
}

/* -- claims ------------------------------------------------------------------------------------------------------------------------ */

/* A member that lives and does not come back keeps what it holds: nobody is declared dead by a time-out. But somebody who knows how long a
 * record may take can claim it: STARTED | port -> RED, the count as it is, and the next take of any member has it, marked redelivered. The
 * slow member's acknowledgement finds that the word is no longer its own and is refused. All of its changes of a STARTED word are
 * exchanges, or happen under the lock as here, so either its acknowledgement counts or the claim.
 *
 *   SIGKILL right after   leaves                       recovery
 *   RED                   nred one too low, lock held  take-over recounts
 *   unlock                sleepers                     their heartbeat
 *
 * What the slow member has in its hands stays in place until the group has finished the record; after that it may be overwritten under its
 * eyes, like a view that was released. Its lease says so. */
int cx_claim_stale(cx_att *a, uint32_t group, uint32_t spare, uint32_t min_idle_ms, cx_claimed *out, size_t room, size_t *n)
{
    cx_group *g = &a->groups[group];
    cx_wakes wakes;
    cx_wakes_init(&wakes);
    *n = 0;
    cx_reap(a); /* what the dead held comes back by itself */
    int rc = cx_lock(a, 0);
    if (rc != CX_OK) return rc;
    uint64_t next = LD(g->next), o = LD(g->done);
    uint32_t now = cx_ticks();
    if (LD(g->state) != CX_GROUP_USED || next - o > a->dmask + 1) next = o;
    for (; o < next && *n < room; o++) {
        uint32_t *at = cx_word_at(a, group, o), w = LDA(*at), port = CX_W_PORT(w), age = now - LD(*cx_time_at(a, group, o));
        if (CX_W_STATE(w) != CX_STARTED || port == spare || port >= a->super.max_ports || (int32_t)age < 0 || age < min_idle_ms) continue;
        if (!cx_cas32(at, w, CX_W_MAKE(CX_RED, CX_W_COUNT(w), 0))) continue; /* acknowledged just now */
        FAILPOINT("claim_stale.after_word");
        ST(g->nred, LD(g->nred) + 1);
        cx_claimed *c = &out[(*n)++];
        c->offset = o;
        c->port = port;
        c->owner = LD(a->ports[port].owner);
        c->age_ms = age;
        memcpy(c->name, a->ports[port].name, sizeof c->name);
        c->name[sizeof c->name - 1] = 0;
    }
    wakes.readers = *n; /* bells, see bell.c */
    if (*n) cx_wake_group(a, &wakes, group, *n < INT_MAX ? (int)*n : INT_MAX);
    cx_unlock(a);
    FAILPOINT("claim_stale.before_wake");
    cx_wakes_run(a, &wakes);
    return CX_OK;
}
