/* wait.pml - sleeping and waking. There is no time-out in these models but the one that the protocol counts on (the producer's 1 ms): an
 * invalid end state is a lost wake-up. Everybody may give up a wait once (time-out, Ctrl-C), asleep or just woken.
 *
 *  MODE 1   members of a group wait for records; ONE: the one writer publishes without the lock and looks at wake_min
 *  MODE 2   lossy readers: one word, seq << 1 | W, no lock at all
 *  MODE 3   producers wait for space: acks take no lock, so a waiting producer names the ack it waits for (hole_space);
 *           STONES: any record may be aborted, and the member may be busy elsewhere for as long as it likes
 *  MODE 4   members wait for the end of the stream: hole_end
 *
 * The topic lock is a mutex here (lock.pml proves it). What only changes under it is changed in one step; the words that are also read or
 * written without it (published and wake_min, words and holes) have a step each. Sequentially consistent: litmus.py has the fences.
 *
 *   step of the model           function of comux/ring/_core
 *   ------------------------    ---------------------------------------------------------------------
 *   take, pass_baton            consume.c take_locked, pass_baton, cx_take_leave
 *   register                    consume.c stand_in_line: nwait, ec, wake_at, wake_min; published again
 *   unregister                  consume.c leave_line
 *   signal_published            wait.c cx_signal_published, cx_update_wake_min
 *   Writer                      produce.c commit_one_writer, signal_slow; or cx_commit
 *   Lossy                       lossy.c nothing_yet
 *   Pub                         wait.c cx_signal_readers
 *   Prod                        produce.c claim_locked, stand_in_line, leave_line (phase 0: generous, 1 ms; then one slot)
 *   place_hole, signal_space    wait.c place_hole, cx_signal_space
 *   skip_tombstones             groups.c cx_skip_tombstones
 *   ack                         consume.c cx_ack (word CAS, then the holes), ack_slow
 *   FUTEX_WAIT                  wait.c cx_futex_wait: sleeps only where the word still has the value
 *
 * Heartbeats, which find the dead, are left out on purpose: without a death nobody may depend on them. */
#ifndef MODE
#define MODE 1
#endif
#ifndef REC
#define REC 3
#endif
#ifndef NM
#define NM 2
#endif
#define NOWHERE 255
#define MIN(a, b) ((a) < (b) -> (a) : (b))
#define MAX(a, b) ((a) > (b) -> (a) : (b))
bool lk;
#define LOCK() atomic { !lk -> lk = true }
#define UNLOCK() lk = false
bool asleep[4];
byte quitters;

/* ------------------------------------------------------------------ MODE 1 */
#if MODE == 1
byte published, next, consumed, ec, nwait, wake_at = NOWHERE, wake_min = NOWHERE, left_over;
bool waiting[NM];
inline wake(k) {                                     /* FUTEX_WAKE(k), each pick arbitrary */
  do
  :: k > 0 -> atomic { if :: asleep[0] -> asleep[0] = false :: asleep[1] -> asleep[1] = false :: NM > 2 && asleep[2] -> asleep[2] = false :: else -> k = 1 fi; k-- }
  :: else -> break
  od
}
inline unregister() {
  if
  :: waiting[me] -> atomic { waiting[me] = false; nwait--; if :: nwait == 0 -> wake_at = NOWHERE; wake_min = NOWHERE :: else -> skip fi }
  :: else -> skip
  fi
}
inline pass_baton() { atomic { if :: nwait > 0 && next < published -> ec++; w = MAX(w, 1) :: else -> skip fi } }
inline signal_published() {
  atomic {
    p = published; k = 0;
    if
    :: nwait > 0 && wake_min <= p && wake_at <= p ->
       k = (p > next -> p - next : 0); k = MIN(k, nwait);
       wake_at = (k < nwait -> p + 1 : NOWHERE);
       if :: k > 0 -> ec++ :: else -> skip fi;
       wake_min = wake_at
    :: else -> skip
    fi; w = k; k = 0; p = 0
  }
}
proctype Member(byte me) {
  byte v, w, seen; bool got, slept, quit;
  do
  :: LOCK(); unregister(); got = false; quit = false; slept = false;
     do
     :: seen = published;                            /* before the look, or a record in between is overlooked */
        if
        :: next < published -> next++; got = true; pass_baton(); break
        :: next == published && next == REC -> quit = true; break
        :: next == published && next < REC -> skip
        fi;
#ifdef MUT_SEEN                                      /* mutant: looked at when registering */
        seen = published;
#endif
        atomic { waiting[me] = true; nwait++; v = ec; wake_at = MIN(wake_at, MAX(next, seen) + 1) };
        wake_min = wake_at;                          /* full fence, then published again */
#ifndef MUT_RECHECK
        if :: published != seen -> unregister() :: else -> slept = true; break fi
#else
        slept = true; break
#endif
     od;
     if :: got || quit -> consumed = consumed + got; if :: consumed == REC -> atomic { ec++; w = NM } :: else -> skip fi :: else -> skip fi;   /* the end wakes all */
     UNLOCK();
     wake(w);
     if
     :: quit -> break
     :: got -> skip
     :: else ->
        atomic { if :: ec == v -> asleep[me] = true :: else -> skip fi };
        if
        :: !asleep[me] ->
           if
           :: skip
           :: atomic { quitters < NM - 1 -> quitters++ }; goto leave    /* gives up although it was woken */
           fi
        :: atomic { quitters < NM - 1 -> quitters++; asleep[me] = false }; goto leave
        fi
     fi
  od;
  goto out;
leave:
  LOCK(); unregister();
#ifndef MUT_LEAVE                                    /* mutant: leaves without passing the wake-up on */
  pass_baton();
#endif
  UNLOCK(); wake(w);
out: skip
}
proctype Writer(byte n) {
  byte w, k, p;
  do
  :: n > 0 ->
#ifdef ONE
     published++;                                    /* exchange: a full fence */
     if :: published >= wake_min -> LOCK(); signal_published(); UNLOCK(); wake(w) :: else -> skip fi;
#else
     LOCK(); published++; signal_published(); UNLOCK(); wake(w);
#endif
     n--
  :: else -> break
  od
}
init {
  byte i;
  atomic {
    for (i : 0 .. NM - 1) { run Member(i) };
#ifdef ONE
    run Writer(REC)
#else
    run Writer(REC - 1); run Writer(1)
#endif
  };
  (_nr_pr == 1); assert(next == REC && consumed == REC && nwait == 0)
}
#endif

/* ------------------------------------------------------------------ MODE 2 */
#if MODE == 2
byte published, seq, fin; bool wb;
proctype Lossy(byte me) {
  byte cur, vs;
  do
  :: cur == REC -> break
  :: else ->
#ifdef MUT_ORDER                                     /* mutant: looks before it announces itself */
     if :: cur < published -> cur = published; goto again :: else -> skip fi;
     atomic { wb = true; vs = seq };
#else
     atomic { wb = true; vs = seq };                 /* fetch_or(pub_ec, 1) */
     if :: cur < published -> cur = published; goto again :: else -> skip fi;
#endif
     atomic { if :: seq == vs && wb -> asleep[me] = true :: else -> skip fi };
     !asleep[me];
again: skip
  od; fin++
}
proctype Pub(byte n) {
  byte s; bool w;
  do
  :: n > 0 ->
     published++;                                    /* full fence, then pub_ec */
     atomic { s = seq; w = wb };
     do
     :: !w -> break
     :: else ->
        atomic { if :: seq == s && wb -> seq++; wb = false; w = false; s = 1 :: else -> s = seq; w = wb; if :: w -> s = seq :: else -> s = 0 fi fi };
        if :: !w && s == 1 -> atomic { asleep[0] = false; asleep[1] = false } :: else -> skip fi      /* FUTEX_WAKE(all) */
     od; n--
  :: else -> break
  od
}
init { atomic { run Lossy(0); run Lossy(1); run Pub(REC - 1); run Pub(1) }; fin == 2 }
#endif

/* ------------------------------------------------------- MODES 3 and 4: holes */
#if MODE >= 3
#ifndef N
#define N 4
#endif
byte published, next, done, hole = NOWHERE;
bool finished[16];                                   /* word ACKED, by offset */
bool stone[16];                                      /* aborted, by offset */
inline advance_done() { do :: done < next && finished[done] -> done++ :: else -> break od }
inline skip_tombstones() { do :: next < published && stone[next] -> finished[next] = true; next++ :: else -> break od; advance_done() }
inline place_hole(limit) {                           /* leaves hole == NOWHERE where everything below limit is finished */
  o = limit;
  do
  :: o > done ->
     o--;
     if
     :: o < next && finished[o] -> skip
#ifndef MUT_STONE                                    /* mutant: waits for the ack of an aborted record, which nobody will hold */
     :: o >= next && o < published && stone[o] -> skip
#endif
     :: else ->
        hole = o;                                    /* full fence, then the word again */
#ifdef MUT_HOLE                                      /* mutant: not looked at again */
        break
#else
        if :: o >= next || !finished[o] -> break :: else -> hole = NOWHERE fi
#endif
     fi
  :: else -> hole = NOWHERE; break
  od; o = 0
}
#endif

/* ------------------------------------------------------------------ MODE 3 */
#if MODE == 3
byte sec, nwait, want = NOWHERE, fin;
bool waiting[2];
inline signal_space() {
  if
  :: nwait > 0 ->
     advance_done();
     enough = (published >= want);
     if
     :: done < want -> place_hole(want); if :: hole != NOWHERE -> enough = false :: else -> advance_done() fi
     :: else -> skip
     fi;
     if :: enough -> atomic { want = NOWHERE; sec++; w = true } :: else -> skip fi;
     enough = false
  :: else -> skip
  fi
}
inline wake_space() {
  if
  :: w ->
#ifdef MUT_ONE                                       /* mutant: one producer is woken only */
     atomic { if :: asleep[0] -> asleep[0] = false :: asleep[1] -> asleep[1] = false :: else -> skip fi };
#else
     atomic { asleep[0] = false; asleep[1] = false };
#endif
     w = false
  :: else -> skip
  fi
}
proctype Prod(byte me; byte n; byte z) {                /* z records at once */
  byte v, o; bool w, enough, phase, ok;
  do
  :: n > 0 ->
     LOCK();
     if :: waiting[me] -> atomic { waiting[me] = false; nwait--; if :: nwait == 0 -> want = NOWHERE :: else -> skip fi } :: else -> skip fi;
     advance_done();
     if :: published + z - done > N -> skip_tombstones() :: else -> skip fi;
     if
     :: published + z - done <= N ->
#ifdef STONES
        if :: stone[published] = true :: stone[published + 1] = true :: skip fi;
#endif
        published = published + z; ok = true; signal_space()          /* claim and commit; commit looks for waiters too */
     :: else ->
        atomic { waiting[me] = true; nwait++; v = sec;
                 want = MIN(want, MIN(published, published + z + (phase -> 0 : N / 4) - N)) };
        signal_space()
     fi;
     UNLOCK(); wake_space();
     if
     :: ok -> ok = false; phase = false; n = n - z
     :: else ->
        atomic { if :: sec == v -> asleep[me] = true :: else -> skip fi };
        if
        :: !asleep[me] -> skip
        :: atomic { !phase && asleep[me] -> asleep[me] = false; phase = true }                       /* the 1 ms */
        :: atomic { quitters == 0 && asleep[me] -> quitters++; asleep[me] = false };                 /* gives up, comes back as a new call */
           LOCK(); atomic { waiting[me] = false; nwait--; if :: nwait == 0 -> want = NOWHERE :: else -> skip fi }; UNLOCK(); phase = false
        fi
     fi
  :: else -> break
  od; fin++
}
proctype Cons() {                                    /* a member: takes runs under the lock, acks in any order without it */
  byte o, a, r0, r1; bool w, enough;
  do
  :: atomic { r0 == r1 && next == REC -> break }
  :: r0 == r1 && next < REC -> next < published;
     LOCK(); o = done; advance_done(); skip_tombstones(); r0 = next;
     do :: next < published && !stone[next] -> next++ :: else -> break od; r1 = next;
     if :: o != done -> o = 0; signal_space() :: else -> o = 0 fi;                                 /* take_locked: done may have moved */
     UNLOCK(); wake_space()
  :: r0 < r1 ->
     if                                              /* the newest of the run first, or the oldest */
     :: a = r0; r0++
     :: a = r1 - 1; r1--
     fi;
     finished[a] = true;                             /* CAS, seq_cst; then the hole */
     if
     :: hole == a -> LOCK(); advance_done(); signal_space(); UNLOCK(); wake_space()
     :: else -> skip
     fi; a = 0
#ifdef STONES
  :: r0 == r1 && next < REC ->
     timeout;                                        /* busy elsewhere: until then nobody may sleep for whom there is room */
     atomic {
       o = done; do :: (o < next && finished[o]) || (o >= next && o < published && stone[o]) -> o++ :: else -> break od;
       assert(!(asleep[0] && published + 2 - o <= N)); o = 0 };
     next < published
#endif
  od
}
init {
  atomic {
#ifdef STONES
    run Prod(0, REC, 2); fin++;
#else
    run Prod(0, REC - 2, 1); run Prod(1, 2, 1);
#endif
    run Cons()
  };
  (_nr_pr == 1); assert(fin == 2 && published == REC && next == REC)
}
#endif

/* ------------------------------------------------------------------ MODE 4 */
#if MODE == 4
byte ec, nwait, told;
bool waiting[2];
inline signal_space() {                              /* the part for hole_end */
  if
  :: hole != NOWHERE -> advance_done(); place_hole(next); if :: hole == NOWHERE && nwait > 0 -> atomic { ec++; w = true } :: else -> skip fi
  :: else -> skip
  fi
}
inline wake_all() { if :: w -> atomic { asleep[0] = false; asleep[1] = false }; w = false :: else -> skip fi }
proctype Member(byte me) {
  byte v, o, r0, r1; bool w, slept, quit;
  do
  :: r0 < r1 ->
     finished[r0] = true;
     if
     :: hole == r0 -> LOCK(); advance_done(); signal_space(); UNLOCK(); wake_all()
     :: else -> skip
     fi; r0++;
     if
     :: skip
     :: atomic { quitters == 0 && r0 == r1 -> quitters++ }; break       /* busy elsewhere: does not come back to take, nobody may need it to */
     fi
  :: else ->
     LOCK();
     if :: waiting[me] -> atomic { waiting[me] = false; nwait--; if :: nwait == 0 -> hole = NOWHERE :: else -> skip fi } :: else -> skip fi;
     advance_done();
     if
     :: next < REC -> atomic { r0 = next; next = MIN(next + 2, REC); r1 = next }
     :: next == REC && done == next -> quit = true; if :: nwait > 0 -> atomic { ec++; w = true } :: else -> skip fi
     :: else ->
        atomic { waiting[me] = true; nwait++; v = ec }; hole = next; signal_space(); slept = true
     fi;
     UNLOCK(); wake_all();
     if
     :: quit -> break
     :: slept -> slept = false;
        atomic { if :: ec == v -> asleep[me] = true :: else -> skip fi };
        !asleep[me]
     :: else -> skip
     fi
  od; told++
}
init { atomic { published = REC; run Member(0); run Member(1) }; told == 2; assert(done == REC) }
#endif
