/* topic.pml - the topic's protocol with SIGKILL between any two stores.
 *
 * One topic of N slots, one group, NPR producers, NMB members, perhaps a lossy reader; up to CRASHES deaths at any instant, the dead
 * come back in the same process slot with the next generation. Every store to shared memory is a step of its own, so a death can fall
 * between any two of them. The lock is taken as given (lock.pml proves it): mutual exclusion, and a dead owner's lock is stolen, the
 * protected words being exactly as they were at the instant of death. Sleeping is abstracted to "something changed" (wait.pml proves
 * that nobody sleeps through a change); a wedge is an invalid end state. Memory is sequentially consistent (litmus.py does the rest).
 *
 * Options: ONE (writers="one", else "many"), DROP (drop_oldest), SUSPEND (group_grace may pass whenever nobody attends), RESUME_END (who
 * comes back to a suspended group starts at the end), ABORT, NACK, DIRECT (batches: takes give STARTED words), STEAL, END (the last
 * producer's clean close ends the epoch, members stop there), ENDANY (producer 0 ends the epoch whatever the other does),
 * LOSSY (a lossy reader), AHEAD (chunk - 1), PFK (records per run).
 *
 *   step of the model           function of comux/ring/_core          store that makes it true
 *   ------------------------    --------------------------------      ------------------------------------------
 *   lock, unlock, LKDEAD        lock.c cx_lock, lock_slow, cx_unlock  ctl.lock (lock.pml)
 *   PDEAD                       lock.c cx_owner_dead                  proc.gen, the kernel's byte lock
 *   attach                      segment.c attach_new                  gen; then cx_recover under the lock
 *   open_port, close_port       groups.c cx_port_open, cx_port_fold   port.state
 *   resume_group                consume.c resume_group                group.next, group.flags
 *   make_room, walk_tail        room.c cx_make_room, walk_tail        ctl.tail
 *   force_done, DROP            room.c drop_one, force_done           word = ACKED, then group.next
 *   SUSPEND, drag               room.c suspend_unattended,            group.flags; words and next, then tail
 *                               drag_suspended
 *   claim (many)                produce.c claim_locked, take_claim    desc.word = CLAIMED, then ctl.head
 *   claim (one)                 produce.c cx_claim, claim_locked      none: private; limit = tail + N
 *   commit (many), abort        produce.c cx_commit, cx_abort         desc.word
 *   advance_published           recover.c cx_advance_published        ctl.published, then ctl.aborted_below
 *   publish (one)               produce.c commit_one_writer           desc.word, then ctl.published (exchange)
 *   end_locked, next epoch      produce.c end_locked,                 ctl.end_offset, then ctl.state
 *                               cx_producer_open
 *   advance_done                groups.c cx_advance_done              group.done
 *   skip_tombstones             groups.c cx_skip_tombstones           word = ACKED, then group.next
 *   take_red, take_new, steal   consume.c of the same names           word; words then group.next; word (CAS)
 *   end_of                      consume.c end_of                      -
 *   start, ack                  consume.c cx_start, cx_ack            word (CAS); a run: plain stores
 *   nack                        consume.c cx_nack                     word = RED (CAS)
 *   release_words               groups.c cx_release_words             word = RED (CAS)
 *   recover                     recover.c cx_recover, rebuild,        port.state = FREE, after all it owned
 *                               recount_group, resolve_claims
 *   Reader                      lossy.c cx_poll, missed,              its own cursor only
 *                               aborted_below, cx_valid
 *
 * Asserted: a slot is never overwritten while a living member has started its record, nor (wait) before the group finished it; what a member
 * or the lossy reader accepts is complete, committed and unchanged until its ack; no record is held by two living members, none is handed out
 * after its ack; tail <= done <= next <= published <= head <= tail + N, and nred counts the RED words, whenever the lock is free; in the end
 * every committed record was acknowledged or counted as dropped; a member is told the end only when all before it is finished; the lossy
 * reader's books are exact. Not in here: wrap of the virtual positions (fixed slots), counters, several groups, keys. */
#ifndef N
#define N 2
#endif
#ifndef D                /* descriptors: N rounded up to a power of two, at least 2 (geometry.c) */
#if N == 1
#define D 2
#else
#define D N
#endif
#endif
#ifndef NPR
#define NPR 1
#endif
#ifndef NMB
#define NMB 1
#endif
#ifndef K
#define K 2
#endif
#ifndef PFK
#define PFK 2
#endif
#ifndef AHEAD
#define AHEAD 0
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifdef ENDANY
#define END
#endif
#define NPROC (NPR + NMB)
#define CL 1
#define CO 2
#define AB 3
#define PF 0
#define ST 1
#define RED 2
#define ACK 3
#define NOBODY 15
#define HAS(mask, o) (((mask) >> (o)) & 1)
#define ADD(mask, o) mask = mask | (1 << (o))

byte tail, published, next, done;                    /* primary words of control and group */
#ifdef ONE
#define head published
#else
byte head;
byte wport[D];
#endif
byte wst[D], woff[D];                                /* descriptor word: one 64-bit store */
byte dst[D], dport[D];                               /* delivery word: one 32-bit store */
byte data[N];                                        /* payload: 0 torn, offset + 1 complete */
bool port[NPROC]; byte pgen[NPROC];                  /* port.state, port.owner */
byte nred, nmem; bool susp;
byte epoch, end_off, dep[D]; bool ended;             /* ctl.state is one word: epoch and END */
#ifdef LOSSY
byte cum[D], ab_at, ab_cum;                          /* cum_aborted; aborted_below is one word */
byte stones;                                         /* ghost: offsets that became tombstones */
bool finr;
#endif
byte lk = NOBODY, lkg, gen[NPROC]; bool alive[NPROC], kill[NPROC]; byte crashes, nacks;
byte hold[NPROC];                                    /* ghost: what a living member has in its hands */
byte committed, acked, dropped, newer; bool told;    /* ghosts; newer: records not of epoch 0; told: epoch 0's end was told to a member */
byte finp, finm;

#define LKDEAD (lk != NOBODY && (!alive[lk] || gen[lk] != lkg))
#ifdef MUT_GEN                                       /* mutant: generation ignored */
#define PDEAD(q) (port[q] && !alive[q])
#else
#define PDEAD(q) (port[q] && (!alive[q] || gen[q] != pgen[q]))
#endif
#if NPROC == 1
#define SOMEDEAD (PDEAD(0))
#elif NPROC == 2
#define SOMEDEAD (PDEAD(0) || PDEAD(1))
#elif NPROC == 3
#define SOMEDEAD (PDEAD(0) || PDEAD(1) || PDEAD(2))
#else
#define SOMEDEAD (PDEAD(0) || PDEAD(1) || PDEAD(2) || PDEAD(3))
#endif
#define I1 (tail <= done && done <= next && next <= published && published <= head && head <= tail + N)
#if NMB == 0
#define CHECK() assert(tail <= published && published <= head && head <= tail + N)
#else
#define REDS(o) (done <= (o) && (o) < next && dst[(o) % D] == RED)
#define CHECK() assert(I1); assert(nred == REDS(done) + REDS(done + 1))   /* N <= 2 */
#endif

inline lock() {
  if
  :: atomic { lk == NOBODY -> lk = me; lkg = gen[me]; CHECK() }
  :: atomic { LKDEAD -> lk = me; lkg = gen[me] }; recover()
  fi
}
inline unlock() { atomic { CHECK(); lk = NOBODY } }

inline advance_done() {
  x = done;
  do :: x < next && dst[x % D] == ACK -> x++ :: else -> break od;
  if :: x != done -> done = x :: else -> skip fi; x = 0
}
inline skip_tombstones() {
#ifndef ONE
  do
  :: next < published && wst[next % D] == AB -> atomic { dst[next % D] = ACK; dport[next % D] = 0 }; next++
  :: else -> break
  od;
  advance_done()
#else
  skip
#endif
}
inline advance_published() {
#ifndef ONE
  x = published;
#ifdef LOSSY
  c = ab_cum;
#endif
  do
  :: x < head && woff[x % D] == x && wst[x % D] != CL ->
#ifdef LOSSY
     cum[x % D] = c;
     if :: wst[x % D] == AB -> c++ :: else -> skip fi;
#endif
     x++
  :: else -> break
  od;
  if
  :: x != published ->
     published = x;
#ifdef LOSSY
     atomic { ab_at = x; ab_cum = c }
#endif
  :: else -> skip
  fi; x = 0; c = 0
#else
  skip
#endif
}
inline release_words(q) {
  j = done;
  do
  :: j < next -> if :: atomic { dst[j % D] < RED && dport[j % D] == q -> dst[j % D] = RED; dport[j % D] = 0 } -> nred++ :: else -> skip fi; j++
  :: else -> break
  od; j = 0
}
inline resolve_claims(q) {
#ifndef ONE
  j = published;
  do
  :: j < head ->
     if
     :: woff[j % D] == j && wst[j % D] == CL && wport[j % D] == q ->
#ifdef LOSSY
        atomic { wst[j % D] = AB; ADD(stones, j) }
#else
        wst[j % D] = AB
#endif
     :: else -> skip
     fi; j++
  :: else -> break
  od; j = 0
#else
  skip
#endif
}
inline recover() {                                   /* idempotent: may itself be killed at any store */
  i = 0;
  do
  :: i < NPROC && PDEAD(i) ->
#ifdef MUT_PORT                                      /* mutant: port freed before what it owned is resolved */
     port[i] = false;
#endif
     if :: i < NPR -> resolve_claims(i) :: else -> release_words(i) fi;
     port[i] = false;
     i++
  :: i < NPROC && !PDEAD(i) -> i++
  :: else -> break
  od;
#if defined(LOSSY) && !defined(ONE)
#ifndef MUT_CUM                                      /* mutant: aborted_below not rebuilt */
  if
  :: published > 0 && woff[(published - 1) % D] == published - 1 ->
     atomic { ab_at = published; ab_cum = cum[(published - 1) % D] + (wst[(published - 1) % D] == AB) }
  :: else -> skip
  fi;
#endif
#endif
  advance_published();
  advance_done();
#if NMB
  i = NPR; c = 0;
  do :: i < NPROC -> c = c + port[i]; i++ :: else -> break od;
  nmem = c;
  j = done; c = 0;
  do :: j < next -> if :: dst[j % D] == RED -> c++ :: else -> skip fi; j++ :: else -> break od;
  nred = c;
#endif
  i = 0; j = 0; c = 0
}
inline reap() { if :: SOMEDEAD -> lock(); recover(); unlock() :: else -> skip fi }
inline attach() {
  atomic { alive[me] = true; gen[me]++ };
  lock(); recover(); unlock()
}
inline open_port() { pgen[me] = gen[me]; assert(!port[me]); port[me] = true }

/* ---- producers */
#define FITS(t) (h + 1 - (t) <= N)
#if NMB == 0
#define GATE published
#else
#ifdef MUT_GATE                                      /* mutant: gate on next, what is in flight is not protected */
#define GATE (susp -> published : next)
#else
#define GATE (susp -> published : done)
#endif
#endif
inline walk_tail() {
  if
  :: !FITS(t) ->
     if :: h + 1 + AHEAD > N -> x = h + 1 + AHEAD - N :: else -> x = 0 fi;
     if :: x > GATE -> x = GATE :: else -> skip fi;
     if :: x > t -> t = x :: else -> skip fi;
     x = 0
  :: else -> skip
  fi
}
inline force_done() {                                /* offset `done` in the group's stead; ok = false: a member has started it */
  ok = true;
  if
  :: done >= next ->
     o = next;
#ifdef MUT_DROP                                      /* mutant: cursor first, the delivery word never written */
     atomic { next = o + 1; if :: woff[o % D] == o && wst[o % D] == CO -> ADD(dropped, o) :: else -> skip fi };
#else
     atomic { dst[o % D] = ACK; dport[o % D] = 0 };
     atomic { next = o + 1; if :: woff[o % D] == o && wst[o % D] == CO -> ADD(dropped, o) :: else -> skip fi };
#endif
     o = 0
  :: done < next ->
     do
     :: atomic { dst[done % D] == ST -> ok = false }; break
     :: atomic { dst[done % D] == ACK -> skip }; break
#ifdef MUT_DROPCAS                                   /* mutant: taken away without a CAS, a start in between is overlooked */
     :: dst[done % D] == PF -> atomic { dst[done % D] = ACK; ADD(dropped, done) }; break
#else
     :: atomic { dst[done % D] == PF -> dst[done % D] = ACK; ADD(dropped, done) }; break
#endif
     :: atomic { dst[done % D] == RED -> dst[done % D] = ACK; ADD(dropped, done) }; nred--; break
     od
  fi;
  advance_done()
}
inline make_room() {                                 /* t: the new tail; ok: it fits */
  t = tail;
  if
  :: FITS(t) -> skip
  :: else ->
#if NMB
  advance_done();
#endif
  walk_tail();
#if NMB
  if :: !FITS(t) -> skip_tombstones(); walk_tail() :: else -> skip fi;
#ifdef DROP
  do
  :: !FITS(t) && t < published ->
     if
     :: done > t -> ok = true
     :: done == t && t < next && dst[t % D] == ST -> ok = false
     :: else -> force_done()
     fi;
     if :: ok -> t++ :: else -> break fi
  :: else -> break
  od; ok = false;
#endif
#ifdef SUSPEND
  if
  :: !FITS(t) && !susp && nmem == 0 -> susp = true; walk_tail()
  :: else -> skip
  fi;
#endif
#endif
  if
  :: t != tail ->
#if NMB && defined(SUSPEND)
#ifndef MUT_DRAG                                     /* mutant: a suspended group is not dragged along */
     do :: susp && done < t -> force_done() :: else -> break od; ok = false;
#endif
#endif
#ifdef MUT_TAIL                                      /* mutant: the new tail becomes visible after the slot is overwritten */
     skip
#else
     tail = t
#endif
  :: else -> skip
  fi;
  fi;
  ok = FITS(t)
}
#if NMB == 0
#define MAYGO true
#define SOMEHOLD(s) false
#else
#ifdef DROP
#define CANDROP (done < published && (done >= next || dst[done % D] != ST))
#else
#define CANDROP (false)
#endif
#ifdef SUSPEND
#define CANSUSPEND (susp || nmem == 0)
#else
#define CANSUSPEND (false)
#endif
#ifdef END
#define GIVEUP (finm == NMB)
#else
#define GIVEUP (false)
#endif
#define STONE (next < published && wst[next % D] == AB)
#define MAYGO (head - done < N || (done < next && dst[done % D] == ACK) || STONE || SOMEDEAD || LKDEAD || CANDROP || CANSUSPEND || GIVEUP)
#define SAMESLOT(s) (N == 1 -> 255 : 85 << (s))      /* the offsets below 8 that share a slot */
#define HOLDS(q, s) (alive[q] && (hold[q] & SAMESLOT(s)))
#if NMB == 1
#define SOMEHOLD(s) HOLDS(NPR, s)
#else
#define SOMEHOLD(s) (HOLDS(NPR, s) || HOLDS(NPR + 1, s))
#endif
#endif
#ifdef ONE
#define FREEPLACE (NPR == 1 || !port[1 - me])        /* one writer: EBUSY while another one's port is in use */
#else
#define FREEPLACE true
#endif
#ifdef MUT_WRITER                                    /* mutant: a second writer is let in */
#undef FREEPLACE
#define FREEPLACE true
#endif
inline open_producer() {
  got = false;
  do
  :: got -> break
  :: else ->
     (FREEPLACE || SOMEDEAD || LKDEAD);
     reap();
     lock();
     if
     :: FREEPLACE ->
        open_port();
#ifdef END
        if :: ended -> atomic { ended = false; epoch++ } :: else -> skip fi;
#endif
        ep = epoch;
#ifdef ONE
        h = published; lim = 0;
#endif
        got = true
     :: else -> skip
     fi;
     unlock()
  od; got = false
}
#define OTHERS (NPR > 1 && port[1 - me])
inline end_locked() {
  if
  :: !ended && epoch == ep ->
#ifdef MUT_ENDOFF                                    /* mutant: the flag first: what a death behind it leaves */
     ended = true
#else
     end_off = head;
     ended = true
#endif
  :: else -> skip
  fi
}
#define COMMITTED() ADD(committed, h); assert(ep > 0 || !told); if :: ep > 0 -> ADD(newer, h) :: else -> skip fi
inline fill() {                                      /* outside of the lock */
  atomic { assert(!SOMEHOLD(h % N)); assert(NMB == 0 || h < N || !HAS(committed, h - N) || HAS(acked, h - N) || HAS(dropped, h - N)); data[h % N] = 0 };
  data[h % N] = h + 1
}

#ifdef END
#define GIVEUP0 (finm == NMB)
#else
#define GIVEUP0 (false)
#endif
proctype Producer(byte me; byte left) {
  byte i, j, c, x, o, t, h, lim, ep; bool ok, got;
  do
  :: {
    attach();
    open_producer();
    do
    :: left == 0 -> break
    :: left > 0 && GIVEUP0 -> left = 0
    :: left > 0 && !GIVEUP0 ->
#ifdef ONE
       if
       :: h < lim -> ok = true                       /* cx_claim, the fast path: nothing shared is touched */
       :: else ->
          lock(); make_room();
#ifdef MUT_LIMIT                                     /* mutant: limit from the position instead of from the tail */
          if :: ok -> lim = h + N :: else -> skip fi;
#else
          if :: ok -> lim = t + N :: else -> skip fi;
#endif
          t = 0;
          unlock()
       fi;
       if
       :: ok ->
          ok = false;
#ifdef MUT_PUB                                       /* mutant: published before the payload is there */
          published = h + 1;
#endif
          fill();
          atomic { woff[h % D] = h; wst[h % D] = CO; dep[h % D] = ep };
#ifdef MUT_PUB
          atomic { COMMITTED() };
#else
          atomic { published = h + 1; COMMITTED() };
#endif
          h++; left--
       :: else -> MAYGO; reap()
       fi
#else
       lock();
#ifdef END
       if
       :: ended || epoch != ep ->                    /* check_open: EENDED; open a new producer for the next epoch */
          port[me] = false; unlock(); open_producer()
       :: else ->
#endif
       h = head;
       make_room();
       if
       :: ok ->
#ifdef MUT_HEAD                                      /* mutant: head moved before the descriptor says CLAIMED */
          head = h + 1;
#endif
          atomic { wport[h % D] = me; dep[h % D] = ep };
#ifdef MUT_RESET                                     /* mutant: the count is reset before the word says that the descriptor is another's */
          cum[h % D] = 0;
#endif
          atomic { woff[h % D] = h; wst[h % D] = CL };
          head = h + 1;
#ifdef MUT_TAIL
          data[h % N] = 0; tail = t;
#endif
          t = 0;
          unlock();
          ok = false;
          fill();
          if
          :: lock(); assert(woff[h % D] == h && wst[h % D] == CL && wport[h % D] == me);
             atomic { wst[h % D] = CO; COMMITTED() };
             advance_published(); unlock()
#ifdef ABORT
          :: lock();
#ifdef LOSSY
             atomic { wst[h % D] = AB; ADD(stones, h) };
#else
             wst[h % D] = AB;
#endif
             advance_published(); unlock()
#endif
          fi;
          h = 0; left--
       :: else -> t = 0; h = 0; unlock(); MAYGO; reap()
       fi
#ifdef END
       fi
#endif
#endif
    od;
    reap();                                          /* cx_producer_close */
    lock();
#ifdef ENDANY
    if :: me == 0 || !OTHERS -> end_locked() :: else -> skip fi;
#else
#ifdef END
    if :: !OTHERS -> end_locked() :: else -> skip fi;
#endif
#endif
    port[me] = false; unlock();
    atomic { alive[me] = false; finp++ };
    break
  } unless { atomic { kill[me] -> kill[me] = false; i = 0; j = 0; c = 0; x = 0; o = 0; t = 0; h = 0; lim = 0; ep = 0; ok = false; got = false } }
  od
}

/* ---- members */
#define MINE (DIRECTLY -> ST : PF)
#ifdef DIRECT
#define DIRECTLY true
#else
#define DIRECTLY false
#endif
#define OTHERHOLDS(o) ((NMB > 1) && ((me == NPR && alive[NPROC - 1] && HAS(hold[NPROC - 1], o)) || (me != NPR && alive[NPR] && HAS(hold[NPR], o))))
inline handed_out(a) { assert(!OTHERHOLDS(a)); assert(!HAS(acked, a)); assert(data[(a) % N] == (a) + 1 && HAS(committed, a)); ADD(hold[me], a) }
#ifdef STEAL
#define STEALABLE(o) (done <= (o) && (o) < next && dst[(o) % D] == PF && dport[(o) % D] != me)
#define SOMESTEAL (STEALABLE(done) || STEALABLE(done + 1))
#else
#define SOMESTEAL false
#endif
#ifdef END
#define BEYOND(o) (dep[(o) % D] > ep)
#define PASTEND (ended || epoch > ep)
#define ATEND (PASTEND && (next < published -> BEYOND(next) : published >= end_off))
#ifdef MUT_END                                       /* mutant: the end is told while another member still holds records */
#define ENDED ATEND
#else
#define ENDED (ATEND && (done >= next || BEYOND(done)))
#endif
#else
#define BEYOND(o) false
#define ENDED (finp == NPR && done == published && published == head && !SOMEDEAD)
#endif
#define TAKABLE (nred > 0 || (next < published && !BEYOND(next)) || SOMESTEAL || SOMEDEAD || LKDEAD || (done < next && dst[done % D] == ACK) || ENDED)

inline take_red() {
  j = done;
  do :: j < next && (dst[j % D] != RED || BEYOND(j)) -> j++ :: else -> break od;
  if
  :: j < next ->
     atomic { dst[j % D] = MINE; dport[j % D] = me; if :: DIRECTLY -> handed_out(j) :: else -> skip fi };
     nred--;
     r0 = j; r1 = j + 1
  :: else -> skip
  fi; j = 0
}
inline take_new() {
  j = next; c = 0;
#ifdef MUT_NEXT                                      /* mutant: cursor moved before the delivery words are written */
  do :: c < PFK && j < published && wst[j % D] == CO && !BEYOND(j) -> j++; c++ :: else -> break od;
  r0 = next; r1 = j;
  if :: j > next -> next = j :: else -> skip fi;
  j = r0;
  do :: j < r1 -> atomic { dst[j % D] = MINE; dport[j % D] = me }; j++ :: else -> break od;
#else
  do :: c < PFK && j < published && wst[j % D] == CO && !BEYOND(j) -> atomic { dst[j % D] = MINE; dport[j % D] = me }; j++; c++ :: else -> break od;
  r0 = next; r1 = j;
  if
  :: j > next -> atomic { next = j; j = r0; do :: DIRECTLY && j < r1 -> handed_out(j); j++ :: else -> break od }
  :: else -> skip
  fi;
#endif
  j = 0; c = 0
}
inline steal() {                                     /* the upper half of the newest run a fellow has not started */
#ifdef STEAL
  j = next;
  do :: j > done && !(dst[(j - 1) % D] == PF && dport[(j - 1) % D] != me && !BEYOND(j - 1)) -> j-- :: else -> break od;
  if
  :: j > done ->
     c = dport[(j - 1) % D]; x = j;
     do :: x > done && dst[(x - 1) % D] == PF && dport[(x - 1) % D] == c -> x-- :: else -> break od;
     x = x + (j - x) / 2; r1 = j;
     do
     :: j > x ->
#ifdef MUT_STEAL                                     /* mutant: stolen by a plain store */
        if
        :: dst[(j - 1) % D] == PF && dport[(j - 1) % D] == c -> atomic { dst[(j - 1) % D] = MINE; dport[(j - 1) % D] = me }; j--
        :: else -> break
        fi
#else
        if
        :: atomic { dst[(j - 1) % D] == PF && dport[(j - 1) % D] == c -> dst[(j - 1) % D] = MINE; dport[(j - 1) % D] = me;
                    if :: DIRECTLY -> handed_out(j - 1) :: else -> skip fi }; j--
        :: else -> break
        fi
#endif
     :: else -> break
     od;
     r0 = j
  :: else -> skip
  fi; j = 0; c = 0; x = 0
#else
  skip
#endif
}
inline resume_group() {
#ifdef SUSPEND
  if
  :: susp ->
#ifdef RESUME_END
     j = next;
     do :: j < published -> atomic { dst[j % D] = ACK; dport[j % D] = 0 }; j++ :: else -> break od;
     atomic { j = next; do :: j < published -> if :: wst[j % D] == CO -> ADD(dropped, j) :: else -> skip fi; j++ :: else -> break od; next = published }; j = 0;
     advance_done();
#endif
     susp = false
  :: else -> skip
  fi
#else
  skip
#endif
}

proctype Member(byte me) {
  byte i, j, c, x, o, r0, r1, ep; bool ok;
  do
  :: {
    attach();
    lock(); open_port(); nmem++; resume_group(); ep = epoch; unlock();
    do
    :: r0 < r1 ->
       o = r0; r0++;
#ifdef DIRECT
       ok = true;
#else
#ifdef MUT_START                                     /* mutant: plain test, then plain store */
       ok = (dst[o % D] == PF && dport[o % D] == me);
       if :: ok -> atomic { dst[o % D] = ST; dport[o % D] = me; handed_out(o) } :: else -> skip fi;
#else
       atomic { ok = (dst[o % D] == PF && dport[o % D] == me); if :: ok -> dst[o % D] = ST; handed_out(o) :: else -> skip fi };
#endif
#endif
       if
       :: ok ->
          assert(data[o % N] == o + 1);              /* looks at it, a while later */
          if
          :: atomic {                                /* cx_ack: one CAS, or plain stores of a run */
               assert(data[o % N] == o + 1); assert(dst[o % D] == ST && dport[o % D] == me);
               dst[o % D] = ACK; ADD(acked, o); hold[me] = hold[me] & ~(1 << o) }
#ifdef NACK
          :: nacks == 0 -> nacks = 1; lock();
             atomic { assert(dst[o % D] == ST && dport[o % D] == me); dst[o % D] = RED; dport[o % D] = 0; hold[me] = hold[me] & ~(1 << o) };
             nred++; unlock()
#endif
          fi
       :: else -> skip
       fi; ok = false; o = 0
    :: r0 == r1 ->
       r0 = 0; r1 = 0;
       TAKABLE;
       reap();
       lock(); advance_done();
       if :: nred > 0 -> take_red() :: else -> skip fi;
       if :: r0 == r1 -> skip_tombstones(); take_new() :: else -> skip fi;
       if :: r0 == r1 -> steal() :: else -> skip fi;
       if
       :: r0 == r1 && ENDED -> unlock(); break
       :: else -> unlock()
       fi
    od;
#ifdef END
    atomic { if :: ep == 0 -> told = true; assert((committed & ~newer & ~(acked | dropped)) == 0) :: else -> skip fi };
#endif
    lock(); release_words(me); nmem--; port[me] = false; unlock();   /* cx_member_close */
    atomic { alive[me] = false; finm++ };
    break
  } unless { atomic { kill[me] -> kill[me] = false; i = 0; j = 0; c = 0; x = 0; o = 0; r0 = 0; r1 = 0; ep = 0; ok = false } }
  od
}

/* ---- a lossy reader: no lock, owns nothing */
#ifdef LOSSY
#define POP(m) (HAS(m,0) + HAS(m,1) + HAS(m,2) + HAS(m,3) + HAS(m,4) + HAS(m,5) + HAS(m,6) + HAS(m,7))
proctype Reader() {
  byte cur, rcum, lost, aborted, delivered, t, p, w, wo, d, c; bool ok;
  do
  :: atomic { finp == NPR && cur == published -> break }
  :: (cur < published || cur < tail) ->
     t = tail; p = published;
     if
     :: cur < t ->                                   /* lapped: aborted_below(t) */
#ifdef ONE
        c = 0; ok = true;
#else
        if
        :: t < published -> c = cum[t % D]; ok = (tail <= t)
        :: else ->
           atomic { ok = (ab_at == t); c = ab_cum };
           if
           :: ok -> skip
           :: else ->
              atomic { wo = woff[(t - 1) % D]; w = wst[(t - 1) % D] };
              c = cum[(t - 1) % D] + (w == AB);
              ok = (wo == t - 1 && woff[(t - 1) % D] == wo && wst[(t - 1) % D] == w); wo = 0; w = 0
           fi
        fi;
#endif
        if
        :: ok ->                                      /* missed: unsigned, so less than none is more than all */
           d = (c >= rcum && c - rcum <= t - cur -> c - rcum : 0);
           aborted = aborted + d; lost = lost + (t - cur) - d; cur = t; rcum = c
        :: else -> skip
        fi
     :: cur >= t && cur < p ->
        atomic { wo = woff[cur % D]; w = wst[cur % D] };
#ifndef ONE
        c = cum[cur % D];
#endif
        d = data[cur % N];
#ifdef MUT_VALID                                     /* mutant: not looked at the tail again */
        ok = true;
#else
        ok = (tail <= cur);
#endif
        if
        :: !ok -> skip
        :: else ->
           assert(wo == cur && w != CL);
           if
           :: w == AB -> aborted++; rcum = c + 1
           :: else -> assert(d == cur + 1); delivered++; rcum = c
           fi; cur++
        fi
     :: else -> skip
     fi; t = 0; p = 0; w = 0; wo = 0; d = 0; c = 0; ok = false
  od;
  assert(lost + aborted + delivered == cur);
  assert(aborted == POP(stones & ((1 << cur) - 1)));
  finr = true
}
#endif

inline die(v) { crashes++; alive[v] = false; kill[v] = true; hold[v] = 0 }
proctype Killer() {
endk: do
  :: atomic { crashes < CRASHES && alive[0] -> die(0) }
#if NPROC > 1
  :: atomic { crashes < CRASHES && alive[1] -> die(1) }
#endif
#if NPROC > 2
  :: atomic { crashes < CRASHES && alive[2] -> die(2) }
#endif
#if NPROC > 3
  :: atomic { crashes < CRASHES && alive[3] -> die(3) }
#endif
  :: crashes >= CRASHES -> break
  od
}
init {
  byte q;
  atomic {
    for (q : 0 .. NPR - 1) { run Producer(q, K) };
#if NMB
    for (q : NPR .. NPROC - 1) { run Member(q) };
#endif
#ifdef LOSSY
    run Reader();
#endif
#if CRASHES
    run Killer();
#endif
    q = 0
  };
  (finp == NPR && finm == NMB);
#ifdef LOSSY
  (finr);
#endif
  atomic {
#ifndef END
    assert((NMB == 0) || ((committed & ~(acked | dropped)) == 0 && done == published && published == head))
#endif
    skip
  }
}
