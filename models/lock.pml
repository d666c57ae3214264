/* lock.pml - the topic lock: a futex word that names its owner (waiters bit | generation | slot), and who is alive.
 *
 * Checked: mutual exclusion, also across take-overs; no lost wake-up; a dead owner never blocks the others; whoever takes the lock after
 * a death inside of it knows that it must repair. Processes die at any instant and come back in the same slot with generation + 1.
 *   CRASHES=0, no LEAVE   no time-out exists at all: an invalid end state is a lost wake-up
 *   CRASHES>0 or LEAVE    `timeout` (enabled only when nothing else can move) is the slice of 2 ms
 *   LEAVE                 a waiter gives up once, also after it was woken (Ctrl-C, a deadline): the next one's slice makes good for it
 * A word is one variable; each atomic{} is one hardware atomic or one system call. Memory orders: litmus.py.
 *
 *   step of the model                  comux/ring/_core/lock.c
 *   -------------------------------    -------------------------------------------------------------------------
 *   byteheld, gen                      segment.c take_slot: F_OFD_SETLK, then the generation (release)
 *   own == NONE -> own = me|W          cx_lock and lock_slow: acquire(0, me), acquire(0, me | waiters)
 *   CAS v -> v|W                       lock_slow: acquire(v, v | WAITERS)
 *   FUTEX_WAIT                         sleep_slice
 *   DEAD, CAS v -> me|W                lock_slow: cx_owner_dead, acquire(v, me | WAITERS); then cx_recover
 *   leave                              lock_slow: CX_ESIGNAL, CX_ETIMEDOUT
 *   unlock                             cx_unlock: exchange with 0, futex_wake(1) where W was set
 * The 100 spins before the first sleep are retries of the same CAS and need no step of their own.
 * Not in here: a forked child that keeps the descriptor (told apart by /proc, tests/ring), stopped processes.                      */
#ifndef NP
#define NP 3
#endif
#ifndef ROUNDS
#define ROUNDS 2
#endif
#ifndef CRASHES
#define CRASHES 0
#endif
#define NONE 255
byte own = NONE;  byte ogen;  bool wb;      /* the lock word: owner slot, owner generation, waiters bit */
byte gen[NP];                               /* slot generations (shared memory)                       */
bool byteheld[NP];                          /* kernel: byte `slot` of the file is locked               */
bool asleep[NP];                            /* kernel: thread queued on the futex                      */
bool kill[NP]; byte crashes;
byte incs = 0; bool incs_by_live[NP];       /* who is in the critical section                          */
bool recovered_needed = false;              /* previous holder died inside                             */
byte finished, leavers;

#ifdef MUT_GEN                              /* mutant: generations ignored -> must fail */
#define DEAD(s,g) (!byteheld[s])
#else
#define DEAD(s,g) (!byteheld[s] || gen[s] != (g))
#endif
#define IS(s,g,w) (own==(s) && ogen==(g) && wb==(w))

inline wake_one() {                         /* FUTEX_WAKE(1): any one sleeper                          */
  atomic {
    if
    :: asleep[0] -> asleep[0]=false
    :: NP>1 && asleep[1] -> asleep[1]=false
    :: NP>2 && asleep[2] -> asleep[2]=false
    :: else -> skip
    fi
  }
}
proctype P(byte me) {
  byte r, vs, vg; bool vw, usew; byte mygen; bool stolen;
  { atomic { !byteheld[me] -> byteheld[me]=true }      /* F_OFD_SETLK */
    mygen = gen[me]+1;
    gen[me] = mygen;
    r = 0;
    do
    :: r >= ROUNDS -> break
    :: r < ROUNDS ->
       /* ---- lock ---- */
       usew = false; stolen=false;
       do
       :: atomic { own==NONE -> own=me; ogen=mygen; wb=usew }  -> break     /* CAS 0 -> me[|W] */
       :: atomic { own!=NONE -> vs=own; vg=ogen; vw=wb } ->                  /* load            */
          if
          :: vw -> skip
          :: !vw -> atomic { if :: IS(vs,vg,false) -> wb=true; vw=true :: else -> vs=NONE fi }   /* CAS v -> v|W */
          fi;
          if
          :: vs==NONE -> skip                                                /* CAS failed: retry */
          :: else ->
#ifndef MUT_W                                /* mutant: waiters bit not preserved on acquire -> lost wake-up */
             usew = true;
#endif
             atomic { if :: IS(vs,vg,true) -> asleep[me]=true :: else -> skip fi }  /* FUTEX_WAIT */
             if
             :: !asleep[me] -> skip
#ifdef LEAVE
             :: atomic { leavers < NP - 1 -> leavers++; asleep[me] = false }; goto out    /* gives up, asleep or woken: the wake-up may be lost with it */
#endif
#if CRASHES || defined(LEAVE)
             :: timeout -> asleep[me]=false;
                if
                :: DEAD(vs,vg) ->                                            /* F_OFD_GETLK, then a separate CAS */
                   atomic { if :: IS(vs,vg,true) -> own=me; ogen=mygen; wb=true; stolen=true :: else -> skip fi }
                :: !DEAD(vs,vg) -> assert(!IS(vs,vg,true))                    /* nothing else can move, yet the owner looks alive: wedged */
                fi
#endif
             fi;
             if :: stolen -> break :: else -> skip fi
          fi
       od;
       /* ---- critical section ---- */
       atomic { incs++; incs_by_live[me]=true; assert(incs==1); }
       if :: stolen -> recovered_needed=false :: else -> assert(!recovered_needed) fi;
       skip;
       atomic { incs--; incs_by_live[me]=false };
       /* ---- unlock: exchange(word,0), then wake if W was set ---- */
       atomic { assert(own==me && ogen==mygen); vw=wb; own=NONE; wb=false };
       if :: vw -> wake_one() :: else -> skip fi;
       out: r++
    od;
    atomic { byteheld[me]=false; finished++ }
  } unless { atomic { kill[me] ->                       /* SIGKILL: memory first, then the file lock goes */
      kill[me]=false; asleep[me]=false;
      if :: incs_by_live[me] -> incs--; incs_by_live[me]=false; recovered_needed=true :: else -> skip fi;
      byteheld[me]=false; run P(me) } }                 /* restarted in the same slot                     */
}
#if CRASHES
active proctype killer() { do :: crashes<CRASHES -> atomic { if :: kill[0]=true :: kill[1]=true :: NP>2 -> kill[NP-1]=true fi; crashes++ } :: break od }
#endif
init { byte i; atomic { for (i : 0 .. NP-1) { run P(i) } } ;  (finished==NP) ; assert(own==NONE) ; assert(!recovered_needed) }
