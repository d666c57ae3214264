/* pins.pml - the pool: a view that was given out is never torn, the writer never waits for it, whoever is killed between any two stores.
 *
 * One writer, NR lossy readers, N slots of records and K pins, S = N + K slots. A slot is written in two steps, so that a half-written one can
 * be seen. Up to CRASHES deaths at any instant; a dead writer is followed by another that computes the lists anew, the pins of a dead reader
 * are taken back at any later instant. No group gates: the tail moves on demand. Memory is sequentially consistent; that the two fences are
 * needed and enough is in the litmus programs.
 *
 *   step of the model     function of comux/ring/_core        store that makes it true
 *   -------------------   ---------------------------------   ---------------------------------
 *   move_tail             room.c cx_make_room                 ctl.tail, then a full fence
 *   look_at_pins          pool.c pinned                       -
 *   reclaim               pool.c cx_pool_reclaim              none: derived
 *   rebuild               pool.c cx_pool_rebuild              none: derived
 *   take, fill, publish   pool.c cx_pool_take, produce.c      ctl.published (exchange)
 *                         take_claim, commit_one_writer
 *   Reader: choose        lossy.c cx_poll                     -
 *   Reader: pin           pool.c cx_pin                       pool.pins[i] (CAS), then a full fence
 *   Reader: unpin         pool.c cx_unpin                     pool.pins[i] = 0
 *   reap                  pool.c cx_pool_unpin_dead           pool.pins[i] = 0
 *
 * Asserted: a held view shows its record and nothing else until it is released; there is a free slot whenever the writer wants one; a slot
 * is in one list at most.
 * Mutants, each must fail: MUT_VALID_FIRST (the reader validates, then pins), MUT_LOOK_FIRST (the writer looks at the pins, then moves the
 * tail), MUT_LIMBO (what waits in limbo is given back without a second look at the pins), MUT_FEW (a slot too few), MUT_REBUILD (a new writer
 * forgets the pins), MUT_ONE_LOOK (limbo is never looked at again: the writer runs out of slots). */
#ifndef N
#define N 1
#endif
#ifndef K
#define K 2
#endif
#ifndef NR
#define NR 2
#endif
#ifndef R
#define R 4              /* records written in all */
#endif
#ifndef LOOKS
#define LOOKS 2          /* views a reader takes */
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifdef MUT_FEW
#define S (N + K - 1)
#else
#define S (N + K)
#endif
#define D 2              /* descriptors: N rounded up, two at least */
#define TORN 0

byte tail, published;
byte d_off[D], d_slot[D];    /* offset + 1 */
byte shows[S];               /* offset + 1, or TORN */
byte pins[K];                /* slot + 1 */
bool pin_of_dead[K];
bool is_free[S], in_limbo[S];
byte crashes;

inline look_at_pins() {
    i = 0;
    do
    :: i < K -> d_step { seen[i] = pins[i]; i++ }
    :: else -> break
    od
}

inline pinned_slot(s, out) {
    out = false;
    i = 0;
    do
    :: i < K -> if :: seen[i] == s + 1 -> out = true :: else fi; i++
    :: else -> break
    od
}

inline give(s) {
    pinned_slot(s, kept);
    assert(!is_free[s]);
    if
    :: kept -> in_limbo[s] = true
    :: else -> in_limbo[s] = false; is_free[s] = true
    fi
}

/* lists are the writer's own: between its stores to shared words nobody else looks at them */
inline reclaim(old) {
    d_step {
        j = 0;
        do
        :: j < S ->
#ifndef MUT_ONE_LOOK
            if
            :: in_limbo[j] ->
#ifdef MUT_LIMBO
                in_limbo[j] = false; is_free[j] = true
#else
                give(j)
#endif
            :: else
            fi;
#endif
            j++
        :: else -> break
        od;
        give(old);
        j = 0
    }
}

inline rebuild() {
    d_step {
        j = 0;
        do
        :: j < S ->
            used = false; o = tail;
            do
            :: o < published -> if :: d_slot[o % D] == j -> used = true :: else fi; o++
            :: else -> break
            od;
            is_free[j] = false; in_limbo[j] = false;
            if
            :: used
            :: else ->
#ifdef MUT_REBUILD
                is_free[j] = true
#else
                give(j)
#endif
            fi;
            j++
        :: else -> break
        od;
        j = 0; o = 0; used = false
    }
}

inline die_here() { if :: crashes < CRASHES -> crashes++; goto again :: true -> skip fi }

active proctype Writer() {
    byte seen[K], i, j, o, slot, old;
    bool kept, used;
again:
    look_at_pins();
    rebuild();
    do
    :: published == R -> break
    :: published < R ->
        if
        :: published - tail == N ->
            old = d_slot[tail % D];
#ifdef MUT_LOOK_FIRST
            look_at_pins();
            die_here();
            tail++;
#else
            tail++;
            die_here();
            look_at_pins();
            die_here();
#endif
            reclaim(old)
        :: else
        fi;
        die_here();
        d_step {
            slot = 0;
            do
            :: slot < S && !is_free[slot] -> slot++
            :: else -> break
            od
        }
        assert(slot < S);                    /* the writer never waits */
        is_free[slot] = false;
        shows[slot] = TORN;
        die_here();
        shows[slot] = published + 1;
        d_step { d_off[published % D] = published + 1; d_slot[published % D] = slot }
        die_here();
        published++
    od
}

proctype Reader() {
    byte o, slot, pin, looks;
    do
    :: looks == LOOKS -> break
    :: looks < LOOKS ->
        looks++;
        o = tail;
        if
        :: o < published ->
            d_step { slot = d_slot[o % D]; if :: d_off[o % D] != o + 1 -> slot = S :: else fi }
            if
            :: slot == S || tail > o -> skip   /* overwritten meanwhile: counted */
            :: else ->
                /* any free pin, or none: a copy */
                if
                :: d_step { pins[0] == 0 -> pins[0] = slot + 1; pin = 0 }
#if K > 1
                :: d_step { pins[1] == 0 -> pins[1] = slot + 1; pin = 1 }
#endif
                :: true -> pin = K
                fi;
                if
                :: pin == K
#ifdef MUT_VALID_FIRST
                :: pin < K ->
#else
                :: pin < K && tail > o -> pins[pin] = 0
                :: pin < K && tail <= o ->
#endif
                    assert(shows[slot] == o + 1);
                    if
                    :: crashes < CRASHES -> d_step { crashes++; pin_of_dead[pin] = true; pin = 0; o = 0; slot = 0 } goto dead
                    :: true
                    fi;
                    assert(shows[slot] == o + 1);
                    pins[pin] = 0
                fi
            fi
        :: else
        fi;
        o = 0; slot = 0; pin = 0
    od;
dead:
    skip
}

/* The pins of the dead are taken back at some later instant, or never. */
active proctype Reaper() {
    byte i;
end:
    do
    :: i < K && pin_of_dead[i] -> d_step { pins[i] = 0; pin_of_dead[i] = false }
    :: i < K - 1 -> i++
    :: i > 0 -> i--
    od
}

init {
    byte n;
    do
    :: n < NR -> run Reader(); n++
    :: else -> break
    od
}
