/* pool.c - topics with layout="pool": any slot for any offset, so that a slot somebody looks at can be left out.
 *
 * The problem. In a ring offset o lives in slot o % N. A lossy reader that looks at o in place is told afterwards that it was overwritten
 * (valid()), too late for whoever passed the view on; or the writer would have to wait for it, which lossy readers must never cause. And a
 * ring comes back to a slot after N records, when no cache remembers it.
 *
 * The pool has S = N + K slots. Each record takes any free one and its descriptor says which. A view pins its slot: the writer passes the
 * record by, and leaves its slot alone until the pin is gone. K pins in all, so that N slots are left for the writer whatever is pinned: it
 * never waits for a pin. Where all K are taken a reader gets a copy.
 *
 *   reader                                             writer (room.c), lock held
 *     validated copy of the descriptor                   tail = t
 *     pins[i]: CAS 0 -> (me, slot)   PRIMARY             full fence
 *     full fence                                         for each slot below t: pinned? -> limbo, else -> free
 *     tail <= offset? else unpin: overwritten
 *
 * Either the reader sees the new tail and gives up, or the writer sees the pin (Dekker; both fences are needed). A pin that gives up may send
 * a slot to limbo for nothing: every reclaim looks through limbo again.
 *
 * Why the free list is never empty: a demand of n records fits only where head + n - tail <= N, so at most N - n slots hold records; limbo
 * held at most one slot for each of the K pins when it was last looked through, and only shrinks in between; so N + K - (N - n) - K = n are free.
 *
 * A slot freed last is taken first: what was just read is in the cache when it is written again. For this the tail follows the groups
 * eagerly (cx_pool_tail) instead of on demand; `look_back` records stay for those who come late.
 *
 * Death. Pins name the process: they end with it (recover), not with the handle; a view may outlive its reader, and keeps the process
 * attached until it is released. Free list and limbo are derived: slots that hold no record of [tail, head), less the pinned ones. With
 * several writers they change under the lock only and are computed anew by whoever takes the lock over; the one writer changes them without
 * it, and the next one to open computes them anew. A crash
 *   after the pin             the slot is kept for a dead process       until the next reap
 *   after tail                slots neither free nor in limbo           computed anew
 *   between take and head     a slot taken for nothing                  computed anew
 */
#include "core.h"
#include <stdlib.h>
#include <string.h>



static inline uint32_t *free_slots(const cx_att *a) { return (uint32_t *)(a->pool + 1); }
static inline uint32_t *limbo(const cx_att *a) { return free_slots(a) + a->super.n_slots; }

static uint32_t slot_of(const cx_att *a, uint64_t offset) { return (uint32_t)(cx_desc_at(a, offset)->pos / a->stride); }

/* The slots pinned now; their number. */
static uint32_t pinned(const cx_att *a, uint32_t *out)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < a->super.n_pins; i++) {
        uint32_t slot = (uint32_t)LDS(a->pool->pins[i]);
        if (slot && slot <= a->super.n_slots) out[n++] = slot - 1;
    }
    return n;
}

static bool among(const uint32_t *slots, uint32_t n, uint32_t slot)
{
    while (n--)
        if (slots[n] == slot) return true;
    return false;
}

static void add(const cx_att *a, uint32_t slot, bool kept)
{
    uint32_t *n = kept ? &a->pool->n_limbo : &a->pool->n_free;
    if (slot < a->super.n_slots && *n < a->super.n_slots) (kept ? limbo(a) : free_slots(a))[(*n)++] = slot;
}

void cx_pool_reclaim(cx_att *a, uint64_t from, uint64_t to)
{
    uint32_t pins[CX_PINS_MAX], n = pinned(a, pins), waiting = a->pool->n_limbo;
    if (waiting > a->super.n_slots) waiting = 0;
    a->pool->n_limbo = 0;
    for (uint32_t i = 0; i < waiting; i++) add(a, limbo(a)[i], among(pins, n, limbo(a)[i])); /* in place: what is kept is never ahead of i */
    for (; from < to; from++) add(a, slot_of(a, from), among(pins, n, slot_of(a, from)));
    FAILPOINT("pool.reclaimed");
}

void cx_pool_rebuild(cx_att *a)
{
    cx_pool *p = a->pool;
    uint32_t pins[CX_PINS_MAX], n_slots = (uint32_t)a->super.n_slots, *used = limbo(a), kept = 0;
    uint64_t head = cx_head(a);
    memset(used, 0, n_slots * sizeof *used); /* limbo's room serves as the list of what is used */
    for (uint64_t o = LD(a->ctl->tail); o < head; o++)
        if (slot_of(a, o) < n_slots) used[slot_of(a, o)] = 1;
    uint32_t n = pinned(a, pins);
    for (uint32_t i = 0; i < n; i++) {
        if (used[pins[i]]) continue; /* a record's, or seen already: a slot can have several pins */
        used[pins[i]] = 1;
        pins[kept++] = pins[i];
    }
    p->n_free = 0;
    for (uint32_t slot = n_slots; slot-- > 0;)
        if (!used[slot]) free_slots(a)[p->n_free++] = slot;
    FAILPOINT("pool.rebuilding");
    memcpy(used, pins, kept * sizeof *pins);
    p->n_limbo = kept;
}

int cx_pool_take(cx_att *a, uint64_t *pos)
{
    cx_pool *p = a->pool;
    if (p->n_free && p->n_free <= a->super.n_slots && free_slots(a)[p->n_free - 1] < a->super.n_slots) {
        *pos = free_slots(a)[--p->n_free] * a->stride;
        return CX_OK;
    }
    return cx_fail(CX_ECORRUPT, "topic '%s': its list of free slots contradicts itself (%u of %llu); run check(), recreate the topic", a->super.name, p->n_free,
                   (unsigned long long)a->super.n_slots);
}

void cx_pool_put_back(cx_att *a, uint64_t pos) { add(a, (uint32_t)(pos / a->stride), false); }

uint64_t cx_pool_tail(const cx_att *a, uint64_t t, uint64_t gate, uint64_t head)
{
    bool gated = false;
    for (uint32_t i = 0; i < a->super.max_groups && !gated; i++) gated = LD(a->groups[i].state) == CX_GROUP_USED && cx_gates(&a->groups[i]);
    if (!gated || head <= a->super.look_back) return t; /* nobody says what is finished: everything the ring holds may still be read */
    uint64_t eager = head - a->super.look_back;
    if (eager > gate) eager = gate;
    return eager > t ? eager : t;
}

/* -- pins -------------------------------------------------------------------------------------------------------------------------- */

int cx_pin(cx_att *a, const cx_view *v, uint32_t *pin)
{
    uint64_t mine = (uint64_t)a->me << 32 | ((uint32_t)(v->d.pos / a->stride) + 1);
    for (uint32_t i = 0; i < a->super.n_pins; i++) {
        uint64_t nobody = 0;
        if (LD(a->pool->pins[i]) || !__atomic_compare_exchange_n(&a->pool->pins[i], &nobody, mine, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) continue;
        FAILPOINT("pin.taken");
        FENCE(); /* SYNC pins (seq_cst): pairs with the fence between `tail` and the look at the pins */
        if (cx_valid(a, v->offset)) {
            *pin = i;
            return CX_OK;
        }
        STR(a->pool->pins[i], 0);
        return CX_NONE;
    }
    return CX_DROPPED;
}

void cx_unpin(cx_att *a, uint32_t pin)
{
    if (!a->forked) STR(a->pool->pins[pin], 0); /* release: what was read through the view was read before */
}

static bool dead_pin(const cx_att *a, uint32_t i)
{
    uint32_t owner = (uint32_t)(LDA(a->pool->pins[i]) >> 32);
    return owner && owner != a->me && cx_owner_dead(a, owner, true);
}

bool cx_pool_dead_pins(const cx_att *a)
{
    for (uint32_t i = 0; i < a->super.n_pins; i++)
        if (dead_pin(a, i)) return true;
    return false;
}

void cx_pool_unpin_dead(cx_att *a)
{
    for (uint32_t i = 0; i < a->super.n_pins; i++)
        if (dead_pin(a, i)) ST(a->pool->pins[i], 0);
}

/* -- check --------------------------------------------------------------------------------------------------------------------------- */

static const char *count_slot(const cx_att *a, uint8_t *seen, uint64_t slot)
{
    if (slot >= a->super.n_slots) return "is outside of the pool";
    return seen[slot]++ ? "is in two places at once" : NULL;
}

const char *cx_pool_check(const cx_att *a, uint64_t tail, uint64_t head, uint64_t *slot)
{
    const cx_pool *p = a->pool;
    const char *what = NULL;
    *slot = p->n_free;
    if (p->n_free > a->super.n_slots || p->n_limbo > a->super.n_slots) return "are said to be free";
    uint8_t *seen = calloc(a->super.n_slots, 1);
    if (!seen) return NULL;
    for (uint64_t o = tail; o < head && !what; o++) what = count_slot(a, seen, *slot = slot_of(a, o));
    for (uint32_t i = 0; i < p->n_free && !what; i++) what = count_slot(a, seen, *slot = free_slots(a)[i]);
    for (uint32_t i = 0; i < p->n_limbo && !what; i++) what = count_slot(a, seen, *slot = limbo(a)[i]);
    for (uint64_t s = 0; s < a->super.n_slots && !what && !a->one_writer; s++) /* the one writer's open claim is in none of the three */
        if (!seen[*slot = s]) what = "is neither used, nor free, nor kept";
    free(seen);
    return what;
}
