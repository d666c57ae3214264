"""Every lock-free access of the ring, checked against every execution that weak memory allows.

The Spin models beside this file let memory be sequentially consistent; processors are not. This is a view-based model
of C11 atomics (relaxed, acquire, release and seq_cst accesses; acquire, release and seq_cst fences; no load
buffering): each location keeps its whole history, and a load may return any message that its thread is not yet
obliged to have overtaken. Stale reads and the store reordering of ARMv8 are in it. Payload bytes are relaxed
accesses. A seq_cst access reads nothing older, at its location, than what an earlier seq_cst access wrote there or an
earlier seq_cst fence knew of.

Each test is the smallest program that holds the pattern. "holds": its assertion is true in every execution. Each is
repeated with one ordering weakened, and the checker must then find a violation, so no ordering is there for nothing.

    program              where it is in comux/ring/_core
    -----------------    -------------------------------------------------------------------------------
    lossy, desc          lossy.c cx_valid, cx_poll; room.c cx_make_room (tail, fence)          SYNC reclaim, descriptor
    eventcount           lossy.c nothing_yet; wait.c cx_signal_readers                         SYNC sleepers
    eventcount_one       the same; produce.c commit_one_writer
    publish              produce.c commit_one_writer; recover.c cx_advance_published           SYNC published
    publish_other        recover.c cx_advance_published: another producer's record
    load_order           lossy.c cx_poll: tail, then published                                 SYNC tail
    lock                 lock.c acquire, cx_unlock
    slot_gen             segment.c take_slot; lock.c read_identity                             SYNC identity
    wake_min             produce.c commit_one_writer; consume.c stand_in_line                  SYNC wake-min
    hole, hole_run       consume.c cx_ack; wait.c place_hole                                   SYNC hole
    handed_over          consume.c cx_take, cx_start: a run taken under the lock, its payload
    aborted              lossy.c aborted_below; recover.c cx_advance_published                 SYNC aborted, count
    pin                  pool.c cx_pin; room.c cx_make_room (tail, fence), pool.c pinned       SYNC pins

Run: python models/litmus.py (no dependencies, some seconds).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

RLX, ACQ, REL, AR, SC = "rlx", "acq", "rel", "acq_rel", "sc"


def merge(a, b):
    d = dict(a)
    for k, v in b.items():
        if d.get(k, 0) < v:
            d[k] = v
    return d


class Thread:
    """Where a thread stands: next operation, registers, what it has seen (``cur``), releases and would acquire."""

    __slots__ = ("acq", "cur", "pc", "regs", "rel")

    def __init__(self, pc=0, regs=(), cur=(), rel=(), acq=()):
        self.pc, self.regs, self.cur, self.rel, self.acq = pc, dict(regs), dict(cur), dict(rel), dict(acq)

    def copy(self):
        return Thread(self.pc, self.regs, self.cur, self.rel, self.acq)

    def key(self):
        return (self.pc, *(tuple(sorted(d.items())) for d in (self.regs, self.cur, self.rel, self.acq)))


class Violation(Exception):
    """Some execution of the program breaks its assertion."""


def explore(init, progs, final=None):
    """init: {loc: value}; progs: one list of operations per thread; final(list of registers) at the end."""
    mem0 = {loc: ((val, ()),) for loc, val in init.items()}
    start = (mem0, {}, [Thread() for _ in progs])
    stack, seen, n = [start], set(), 0

    def key(s):
        mem, g, ths = s
        return (tuple(sorted(mem.items())), tuple(sorted(g.items())), tuple(t.key() for t in ths))

    while stack:
        s = stack.pop()
        k = key(s)
        if k in seen:
            continue
        seen.add(k)
        n += 1
        mem, g, ths = s
        done = all(t.pc >= len(p) for t, p in zip(ths, progs, strict=True))
        if final and done and not final([t.regs for t in ths]):
            raise Violation
        for i, t in enumerate(ths):
            if t.pc >= len(progs[i]):
                continue
            op = progs[i][t.pc]
            for mem2, g2, t2 in step(op, mem, g, t):
                stack.append((mem2, g2, [*ths[:i], t2, *ths[i + 1 :]]))
    return n


def put(mem, t, loc, val, order, base=()):
    idx = len(mem[loc])
    t.cur[loc] = idx
    view = merge(dict(base), t.cur if order in (REL, AR, SC) else t.rel)
    view[loc] = idx
    mem = dict(mem)
    mem[loc] = mem[loc] + ((val, tuple(sorted(view.items()))),)
    return mem


def step(op, mem, g, t):
    kind = op[0]
    t = t.copy()
    t.pc += 1
    if kind == "st":
        _, loc, val, order = op
        v = val(t.regs) if callable(val) else val
        yield put(mem, t, loc, v, order), g, t
    elif kind == "ld":
        _, reg, loc, order = op
        oldest = max(t.cur.get(loc, 0), g.get(loc, 0)) if order == SC else t.cur.get(loc, 0)
        for idx in range(oldest, len(mem[loc])):
            u = t.copy()
            val, view = mem[loc][idx]
            u.regs[reg] = val
            u.cur[loc] = idx
            if order in (ACQ, SC):
                u.cur = merge(u.cur, dict(view))
            else:
                u.acq = merge(u.acq, dict(view))
            yield mem, ({**g, loc: max(idx, g.get(loc, 0))} if order == SC else g), u
    elif kind == "rmw":  # the newest message; fn(old) -> new, or None: a failed CAS
        _, reg, loc, fn, order = op
        val, view = mem[loc][-1]
        t.regs[reg] = val
        t.cur[loc] = len(mem[loc]) - 1
        if order in (ACQ, AR, SC):
            t.cur = merge(t.cur, dict(view))
        else:
            t.acq = merge(t.acq, dict(view))
        new = fn(val, t.regs)
        if new is not None:
            mem = put(mem, t, loc, new, order, view)
        if order == SC:
            g = {**g, loc: len(mem[loc]) - 1}
        yield mem, g, t
    elif kind == "fence":
        if op[1] in (ACQ, AR, SC):
            t.cur = merge(t.cur, t.acq)
        if op[1] == SC:
            t.cur = merge(t.cur, g)
            g = dict(t.cur)
        if op[1] in (REL, AR, SC):
            t.rel = dict(t.cur)
        yield mem, g, t
    elif kind == "if":  # ("if", predicate, number of following operations to skip when false)
        if not op[1](t.regs):
            t.pc += op[2]
        yield mem, g, t
    elif kind == "assert":
        if not op[1](t.regs):
            raise Violation
        yield mem, g, t
    elif kind == "nop":
        yield mem, g, t
    else:
        raise ValueError(kind)


def F(order, on=True):
    return ("fence", order) if on else ("nop",)


# ---------------------------------------------------------------- the patterns
def lossy(wf=True, rf=True, word=ACQ, commit=REL):
    """Lossy read of record 0 while a producer reclaims it: tail moves, FENCE, the bytes are overwritten."""
    w = [
        ("st", "p0", 1, RLX),
        ("st", "p1", 1, RLX),
        ("st", "word", 1, commit),
        ("st", "tail", 1, RLX),
        F(REL, wf),
        ("st", "p0", 2, RLX),
        ("st", "p1", 2, RLX),
    ]
    r = [
        ("ld", "w", "word", word),
        ("if", lambda x: x["w"] == 1, 6),
        ("ld", "a", "p0", RLX),
        ("ld", "b", "p1", RLX),
        F(ACQ, rf),
        ("ld", "t", "tail", RLX),
        ("if", lambda x: x["t"] == 0, 1),
        ("assert", lambda x: x["a"] == 1 and x["b"] == 1),
    ]
    return explore({"p0": 0, "p1": 0, "word": 0, "tail": 0}, [w, r])


def desc(wf=True, rf=True):
    """Same for descriptor fields: `pos`/`len` of record 0 replaced by those of record N in the same slot."""
    w = [("st", "tail", 1, RLX), F(REL, wf), ("st", "pos", 9, RLX), ("st", "len", 9, RLX), ("st", "word", 2, REL)]
    r = [
        ("ld", "w", "word", ACQ),
        ("if", lambda x: x["w"] == 1, 6),
        ("ld", "a", "pos", RLX),
        ("ld", "b", "len", RLX),
        F(ACQ, rf),
        ("ld", "t", "tail", RLX),
        ("if", lambda x: x["t"] == 0, 1),
        ("assert", lambda x: x["a"] == 1 and x["b"] == 1),
    ]
    return explore({"pos": 1, "len": 1, "word": 1, "tail": 0}, [w, r])


def eventcount(pf=True, wf=True):
    """Waiter announces itself in the event-count word, then looks; publisher publishes, then looks at the word."""
    p = [("st", "pub", 1, REL), F(SC, pf), ("ld", "e", "ec", RLX)]
    w = [("rmw", "v", "ec", lambda o, r: o | 1, AR), F(SC, wf), ("ld", "seen", "pub", ACQ)]
    return explore({"pub": 0, "ec": 0}, [p, w], lambda R: R[0]["e"] & 1 or R[1]["seen"])


def eventcount_one(look=SC, fence=True):
    """The same where the one writer publishes: an exchange and a seq_cst load, no fence."""
    p = [("rmw", "o", "pub", lambda o, r: 1, SC), ("ld", "e", "ec", look)]
    w = [("rmw", "v", "ec", lambda o, r: o | 1, AR), F(SC, fence), ("ld", "seen", "pub", ACQ)]
    return explore({"pub": 0, "ec": 0}, [p, w], lambda R: R[0]["e"] & 1 or R[1]["seen"])


def publish(rel=REL, acq=ACQ):
    """published > off  =>  the reader sees the committed word and the payload."""
    w = [("st", "pay", 7, RLX), ("st", "word", 1, RLX), ("st", "pub", 1, rel)]
    r = [
        ("ld", "p", "pub", acq),
        ("if", lambda x: x["p"] == 1, 3),
        ("ld", "w", "word", RLX),
        ("ld", "d", "pay", RLX),
        ("assert", lambda x: x["w"] == 1 and x["d"] == 7),
    ]
    return explore({"pay": 0, "word": 0, "pub": 0}, [w, r])


def publish_other(word_acq=ACQ, unlock=REL):
    """Two producers: B commits 1 and (under the lock) advances `published` over A's already committed record 0."""
    a = [("st", "pay", 7, RLX), ("st", "word", 1, RLX), ("st", "lock", 1, unlock)]  # A: commit + unlock
    b = [
        ("ld", "l", "lock", word_acq),
        ("if", lambda x: x["l"] == 1, 2),  # B: lock acquired after A
        ("ld", "w", "word", RLX),
        ("st", "pub", 1, REL),
    ]
    r = [
        ("ld", "p", "pub", ACQ),
        ("if", lambda x: x["p"] == 1, 2),
        ("ld", "d", "pay", RLX),
        ("assert", lambda x: x["d"] == 7),
    ]
    return explore({"pay": 0, "word": 0, "lock": 0, "pub": 0}, [a, b, r])


def load_order(good=True):
    """A lossy reader must load tail BEFORE published (else it can take an unpublished offset for a retained one)."""
    w = [("st", "pub", 2, REL), ("st", "tail", 2, REL)]
    r = (
        [("ld", "t", "tail", ACQ), ("ld", "p", "pub", ACQ)]
        if good
        else [("ld", "p", "pub", ACQ), ("ld", "t", "tail", ACQ)]
    )
    return explore({"pub": 1, "tail": 0}, [w, [*r, ("assert", lambda x: x["t"] <= x["p"])]])


def lock(acq=ACQ, rel=REL):
    """Lock hand-over: exchange(0, release) by the owner, compare-and-swap (acquire) by the next one."""
    a = [("st", "d", 5, RLX), ("rmw", "o", "l", lambda o, r: 0, rel)]
    b = [
        ("rmw", "o", "l", lambda o, r: 2 if o == 0 else None, acq),
        ("if", lambda x: x["o"] == 0, 2),
        ("ld", "d", "d", RLX),
        ("assert", lambda x: x["d"] == 5),
    ]
    return explore({"d": 0, "l": 1}, [a, b])


def pin(rf=True, wf=True):
    """Hazard pin of a lossy reader: pin, FENCE, re-check tail // move tail, FENCE, look at the pins."""
    w = [
        ("st", "tail", 1, RLX),
        F(SC, wf),
        ("ld", "h", "pin", ACQ),
        ("if", lambda x: x["h"] == 0, 1),
        ("st", "p", 2, RLX),
    ]
    r = [
        ("st", "pin", 1, RLX),
        F(SC, rf),
        ("ld", "t", "tail", RLX),
        ("if", lambda x: x["t"] == 0, 2),
        ("ld", "a", "p", RLX),
        ("assert", lambda x: x["a"] == 1),
    ]
    return explore({"p": 1, "tail": 0, "pin": 0}, [w, r])


def slot_gen(good=True):
    """Process slot: pid and start time before the generation; a prober that sees the generation sees them."""
    w = [("st", "pid", 7, RLX), ("st", "gen", 1, REL if good else RLX)]
    r = [
        ("ld", "g", "gen", ACQ),
        ("if", lambda x: x["g"] == 1, 2),
        ("ld", "q", "pid", RLX),
        ("assert", lambda x: x["q"] == 7),
    ]
    return explore({"pid": 3, "gen": 0}, [w, r])


def wake_min(fence=True, writer=SC, look=SC):
    """The one writer publishes, then looks whether anybody is due; a member says when it is due, then looks again."""
    w = [("rmw", "o", "pub", lambda o, r: 1, writer), ("ld", "due", "wake_min", look)]
    m = [("st", "wake_min", 1, RLX), F(SC, fence), ("ld", "seen", "pub", SC)]
    return explore({"pub": 0, "wake_min": 99}, [w, m], lambda R: R[0]["due"] == 1 or R[1]["seen"] == 1)


def hole(fence=True, ack=SC, look=SC):
    """An ack is a CAS, then it looks at the hole; who waits for it fills the hole, then looks at the word again."""
    a = [("rmw", "o", "word", lambda o, r: 3, ack), ("ld", "hole", "hole", look)]
    p = [("st", "hole", 1, RLX), F(SC, fence), ("ld", "seen", "word", SC)]
    return explore({"word": 1, "hole": 0}, [a, p], lambda R: R[0]["hole"] == 1 or R[1]["seen"] == 3)


def hole_run(fence=True):
    """The same for a run: plain stores, one fence, then the hole."""
    a = [("st", "w0", 3, REL), ("st", "w1", 3, REL), F(SC, fence), ("ld", "hole", "hole", SC)]
    p = [("st", "hole", 1, RLX), F(SC), ("ld", "seen", "w1", SC)]
    return explore({"w0": 1, "w1": 1, "hole": 0}, [a, p], lambda R: R[0]["hole"] == 1 or R[1]["seen"] == 3)


def handed_over(word=REL, cas=ACQ):
    """A thief that wins a word of a run by CAS, without having seen `published` itself, sees the record's bytes."""
    w = [("st", "pay", 7, RLX), ("st", "pub", 1, REL)]
    taker = [("ld", "p", "pub", ACQ), ("if", lambda x: x["p"] == 1, 1), ("st", "word", 1, word)]
    thief = [
        ("rmw", "o", "word", lambda o, r: 2 if o == 1 else None, cas),
        ("if", lambda x: x["o"] == 1, 2),
        ("ld", "d", "pay", RLX),
        ("assert", lambda x: x["d"] == 7),
    ]
    return explore({"pay": 0, "pub": 0, "word": 0}, [w, taker, thief])


def aborted(reset=False, cum=REL):
    """aborted_below() reads what may be reused: word, count, fence, word. Old: word 1, count 5; new: 2 and 9."""
    w = [*([("st", "cum", 0, RLX)] if reset else []), ("st", "word", 2, REL), ("st", "cum", 9, cum)]
    r = [
        ("ld", "v", "word", ACQ),
        ("ld", "c", "cum", RLX),
        F(ACQ),
        ("ld", "w", "word", RLX),
        ("if", lambda x: x["v"] == 1 and x["w"] == 1, 1),
        ("assert", lambda x: x["c"] == 5),
    ]
    return explore({"word": 1, "cum": 5}, [w, r])


#: What it is called, whether the checker must find a violation, the program.
TESTS: tuple[tuple[str, bool, Callable[[], int]], ...] = (
    ("lossy payload: fence after the tail store, acquire fence before re-reading it", False, lossy),
    ("  - without the writer's fence", True, lambda: lossy(wf=False)),
    ("  - without the reader's fence", True, lambda: lossy(rf=False)),
    ("  - relaxed load of the descriptor word", True, lambda: lossy(word=RLX)),
    ("  - relaxed store of the descriptor word", True, lambda: lossy(commit=RLX)),
    ("lossy descriptor fields", False, desc),
    ("  - without the writer's fence", True, lambda: desc(wf=False)),
    ("  - without the reader's fence", True, lambda: desc(rf=False)),
    ("event count: seq_cst fence on both sides", False, eventcount),
    ("  - without the publisher's fence", True, lambda: eventcount(pf=False)),
    ("  - without the waiter's fence", True, lambda: eventcount(wf=False)),
    ("event count: exchange and seq_cst load of the one writer", False, eventcount_one),
    ("  - load acquire", True, lambda: eventcount_one(look=ACQ)),
    ("  - without the waiter's fence", True, lambda: eventcount_one(fence=False)),
    ("published: release store, acquire load", False, publish),
    ("  - relaxed store", True, lambda: publish(rel=RLX)),
    ("  - relaxed load", True, lambda: publish(acq=RLX)),
    ("published advanced by another producer", False, publish_other),
    ("  - relaxed unlock", True, lambda: publish_other(unlock=RLX)),
    ("load tail, then published", False, load_order),
    ("  - published, then tail", True, lambda: load_order(False)),
    ("lock hand-over", False, lock),
    ("  - relaxed CAS", True, lambda: lock(acq=RLX)),
    ("  - relaxed exchange", True, lambda: lock(rel=RLX)),
    ("process slot: identity before generation", False, slot_gen),
    ("  - relaxed generation", True, lambda: slot_gen(False)),
    ("wake_min: seq_cst exchange and load // store, fence, load", False, wake_min),
    ("  - without the waiter's fence", True, lambda: wake_min(fence=False)),
    ("  - exchange acq_rel", True, lambda: wake_min(writer=AR)),
    ("  - load of wake_min acquire", True, lambda: wake_min(look=ACQ)),
    ("hole: seq_cst CAS and load // store, fence, load", False, hole),
    ("  - without the waiter's fence", True, lambda: hole(fence=False)),
    ("  - CAS acq_rel", True, lambda: hole(ack=AR)),
    ("  - load of the hole acquire", True, lambda: hole(look=ACQ)),
    ("hole of a run: plain stores, fence, load", False, hole_run),
    ("  - without the fence", True, lambda: hole_run(fence=False)),
    ("a stolen record's bytes", False, handed_over),
    ("  - relaxed store of the delivery word", True, lambda: handed_over(word=RLX)),
    ("  - relaxed CAS", True, lambda: handed_over(cas=RLX)),
    ("aborted records below: word, count, fence, word", False, aborted),
    ("  - the count stored relaxed", True, lambda: aborted(cum=RLX)),
    ("  - the count reset before the word says whose it is", True, lambda: aborted(reset=True)),
    ("hazard pin: seq_cst fence on both sides", False, pin),
    ("  - without the reader's fence", True, lambda: pin(rf=False)),
    ("  - without the writer's fence", True, lambda: pin(wf=False)),
)


def run() -> Iterator[tuple[str, int | None, bool]]:
    """Check every program. Yields its name, the states looked at (None: violated), whether that is as it must be."""
    for name, must_fail, program in TESTS:
        try:
            states: int | None = program()
        except Violation:
            states = None
        yield name, states, (states is None) == must_fail


def main() -> int:
    """Print one line per program; the number of deviations."""
    bad = 0
    for name, states, fine in run():
        bad += not fine
        print(f"{'ok ' if fine else 'BAD'} {name:<84} {'violated' if states is None else f'holds ({states} states)'}")
    return bad


if __name__ == "__main__":
    raise SystemExit(min(main(), 1))
