"""Torture of the ring: many processes work on one topic and die all the time; afterwards every promise is looked up.

Three producers, five members of two groups, a lossy reader and an observer run as processes of their own. Most are
started with a failpoint armed somewhere, at a random pass; those that are not killed by it are killed from outside at a
random instant. Whoever dies is replaced at once. What each was promised stands in its journal (``ring_roles``), outside
of the ring; after some seconds everybody is told to leave, the rest is drained, and ``judge`` reads all journals:

* nothing lost: every put that returned was acknowledged in each group, or came out in the final drain;
* one holder: no record was held by two living members of a group at once;
* final: no record was delivered after an acknowledgement that returned, in its group;
* unchanged: every value proved itself when it was handed out and again before it was acknowledged;
* marked: each delivery but the first says ``redelivered``, and there are no more of them than deaths explain;
* told: between two records of the lossy reader lie exactly as many as it was told it skipped;
* no stall: no group stood still for more than eight seconds.

``judge`` is a pure function of the journals, so that a test can hand it a wrong one.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from comux import ring
from comux.testing.ring_faults import Death, Job, VictimServer, read_journal, read_payload

GROUPS = ("red", "blue")
CAST = (
    *(("torture_producer", f"p{i}", "") for i in range(3)),
    *(("torture_member", f"r{i}", "red") for i in range(3)),
    *(("torture_member", f"b{i}", "blue") for i in range(2)),
    ("torture_reader", "lossy", ""),
    ("torture_observer", "watch", ""),
)
SHAPES: tuple[dict[str, Any], ...] = (
    {"slots": 64, "data_bytes": 65536},
    {"slots": 32, "dtype": "u1", "shape": (256,)},
    {"slots": 64, "data_bytes": 65536, "writers": "one"},
    {"slots": 16, "dtype": "u1", "shape": (256,), "writers": "one"},
    {"slots": 64, "data_bytes": 65536, "policy": "drop_oldest"},
    {"slots": 2, "data_bytes": 65536},
)
HELD = 3  #: records a member holds at most
STALL_NS = 8_000_000_000


@dataclass
class Evidence:
    """What one process wrote down: ``lines`` are (what, words), words[0] the time. ``group`` of members only."""

    name: str
    group: str
    lines: list[tuple[str, list[str]]]


@dataclass
class Report:
    """What happened; ``violations`` is empty where the ring kept every promise."""

    seed: int
    records: int = 0
    deliveries: int = 0
    redeliveries: int = 0
    takeovers: int = 0
    reaped: int = 0
    rounds: int = 0
    outside_kills: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kills = sum(self.kills.values())
        at = ", ".join(f"{name} {n}" for name, n in self.kills.most_common())
        return (
            f"seed {self.seed}: {self.rounds} rounds, {self.records} records, {self.deliveries} deliveries, "
            f"{self.redeliveries} marked again; {kills} kills at failpoints, {self.outside_kills} from outside, "
            f"{self.takeovers} locks taken over, {self.reaped} handles reaped; {len(self.violations)} violations"
            f"\n  {at}" + "".join(f"\n  VIOLATION {v}" for v in self.violations[:20])
        )


# -- judging ----------------------------------------------------------------------------------------------------------


@dataclass
class _Delivery:
    offset: int
    seq: int
    began: int
    until: int  # holding was certain up to here: its acking, or the last line of a process that died
    marked: bool
    fate: str  # acked, doubtful (acking only), nacked, died
    who: str


def _deliveries(evidence: Evidence) -> list[_Delivery]:
    open_: dict[int, _Delivery] = {}
    done: list[_Delivery] = []
    last = 0
    for what, words in evidence.lines:
        if what == "error":
            continue
        last = int(words[0])
        if what == "start":
            offset = int(words[1])
            open_[offset] = _Delivery(offset, int(words[2]), last, last, words[3] == "1", "died", evidence.name)
            done.append(open_[offset])
        elif what in ("acking", "nacking", "acked", "nacked") and int(words[1]) in open_:
            held = open_[int(words[1])]
            if what in ("acking", "nacking"):
                held.until, held.fate = last, "doubtful" if what == "acking" else "died"
            else:
                held.fate = what
                del open_[held.offset]
    for held in open_.values():
        if held.fate == "died":
            held.until = last
    return done


def _judge_record(group: str, offset: int, several: Sequence[_Delivery]) -> Iterable[str]:
    for earlier, later in pairwise(several):
        where = f"group {group}, offset {offset}: {earlier.who} then {later.who}"
        if later.began < earlier.until:
            yield f"{where}: two held it at once"
        if earlier.fate == "acked":
            yield f"{where}: delivered after an acknowledgement that had returned"
        if not later.marked:
            yield f"{where}: delivered again without the mark"
        if later.seq != earlier.seq:
            yield f"{where}: two different values"


def _judge_reader(evidence: Evidence, exists: set[int]) -> Iterable[str]:
    last: int | None = None
    missed = 0
    for what, words in evidence.lines:
        if what == "opened":
            last = int(words[1]) - 1
        if what == "lapped":  # looked at and no longer whole; what was skipped before it is not repeated
            missed += int(words[2]) + 1
        if what != "got" or last is None:
            continue
        offset, skipped = int(words[1]), int(words[3])
        between = sum(o in exists for o in range(last + 1, offset))
        if between != skipped + missed:
            told = skipped + missed
            yield f"{evidence.name}: {between} records lie between {last} and {offset}, it was told of {told}"
        last, missed = offset, 0


def _stalls(group: str, times: Sequence[int]) -> Iterable[str]:
    for a, b in pairwise(times):
        if b - a > STALL_NS:
            yield f"group {group} stood still for {(b - a) / 1e9:.1f} s"


def judge(
    evidence: Sequence[Evidence], drained: Mapping[str, Mapping[int, int]], deaths: int, lost: int = 0
) -> list[str]:
    """Every promise that was broken, in words.

    Args:
        evidence: the journals of all processes.
        drained: per group, what was still to be had at the end: offset -> sequence number.
        deaths: members that were killed.
        lost: what the groups counted as lost, summed (policy ``drop_oldest``).
    """
    out: list[str] = []
    put: dict[int, int] = {}
    for one in evidence:
        for what, words in one.lines:
            if what in ("torn", "error"):
                out.append(f"{one.name}: {what} {' '.join(words)}")
            elif what == "put" and put.setdefault(int(words[2]), int(words[1])) != int(words[1]):
                out.append(f"offset {words[2]} was given to two puts")
    again = nacks = missing = 0
    everything: set[int] = set()
    for group, rest in drained.items():
        deliveries = sorted(
            (d for one in evidence if one.group == group for d in _deliveries(one)), key=lambda d: d.began
        )
        nacks += sum(d.fate == "nacked" for d in deliveries)
        records: dict[int, list[_Delivery]] = {}
        for d in deliveries:
            records.setdefault(d.offset, []).append(d)
        for offset, several in records.items():
            again += len(several) - 1
            out.extend(_judge_record(group, offset, several))
            if offset in rest and several[-1].fate == "acked":
                out.append(f"group {group}, offset {offset}: drained after an acknowledgement that had returned")
            if offset not in rest and several[-1].fate in ("died", "nacked"):
                missing += 1
                if not lost:
                    out.append(
                        f"group {group}, offset {offset}: held by {several[-1].who}, which died, and never again"
                    )
        everything |= set(records) | set(rest)
        unseen = set(put) - set(records) - set(rest)
        missing += len(unseen)
        if unseen and not lost:
            out.append(f"group {group}: {len(unseen)} records whose put had returned are lost, the first {min(unseen)}")
        seen = {**rest, **{o: several[0].seq for o, several in records.items()}}
        out.extend(f"offset {o} holds {s}, put {put[o]}" for o, s in seen.items() if put.get(o, s) != s)
        out.extend(_stalls(group, [d.until for d in deliveries if d.fate == "acked"]))
    if missing > lost + deaths and lost:
        out.append(f"{missing} records are missing, {lost} were counted as lost")
    if again > nacks + deaths * HELD:
        out.append(f"{again} records came again; {nacks} were given back and {deaths} deaths explain {deaths * HELD}")
    if not lost:
        for one in evidence:
            out.extend(_judge_reader(one, everything))
    return out


# -- running ----------------------------------------------------------------------------------------------------------


class Torture:
    """One torture: ``run(seconds)`` plays rounds on changing shapes of ring until the time is over.

    Args:
        server: where victims come from.
        place: folder for topics and journals, private to this torture.
        seed: of everything random here; scheduling of course is not.
    """

    def __init__(self, server: VictimServer, place: Path, seed: int) -> None:
        self.server, self.place = server, place
        self.random = random.Random(seed)
        self.report = Report(seed)
        self.instances = 0
        self.failpoints = [n for n in server.failpoints() if not n.startswith("create.")]

    def run(self, seconds: float, round_seconds: float = 5.0) -> Report:
        """Play for about ``seconds``; every shape at least once where there is time."""
        deadline = time.monotonic() + seconds
        length = min(round_seconds, seconds / len(SHAPES))
        while time.monotonic() < deadline:
            self._round(SHAPES[self.report.rounds % len(SHAPES)], length)
            self.report.rounds += 1
            if self.report.violations:
                break
        return self.report

    def _round(self, shape: Mapping[str, Any], seconds: float) -> None:
        name = f"round{self.report.rounds}"
        here = self.place / name
        here.mkdir()
        spec = ring.RingSpec(name, group_grace=3600, max_procs=16, max_ports=32, **shape)
        with ring.create(spec, directory=here) as topic:
            for group in GROUPS:  # they gate from the first record on
                topic.member(group, start="beginning").close()
            evidence, deaths = self._play(here, name, seconds)
            drained = {group: self._drain(topic, group) for group in GROUPS}
            lost = sum(g.lost for g in topic.groups())
            stats = topic.stats()
            problems = judge(evidence, drained, deaths, lost)
            problems += [f"check: {line}" for line in topic.check()]
            problems += [f"open claim: {claim}" for claim in stats.open_claims]
        self.report.violations += [f"{name} {dict(shape)}: {p}" for p in problems]
        self.report.records += stats.published
        self.report.takeovers += stats.takeovers
        self.report.reaped += stats.reaped
        starts = [words for one in evidence for what, words in one.lines if what == "start"]
        self.report.deliveries += len(starts)
        self.report.redeliveries += sum(words[3] == "1" for words in starts)
        ring.unlink(name, here)
        if not problems:
            for file in here.iterdir():
                file.unlink()
            here.rmdir()

    def _play(self, here: Path, name: str, seconds: float) -> tuple[list[Evidence], int]:
        alive: dict[int, tuple[tuple[str, str, str], Job, float]] = {}
        journals: list[tuple[str, str, Path]] = []
        deaths = 0
        now = time.monotonic()
        deadline = now + seconds
        for part in CAST:
            self._start(here, name, part, alive, journals)
        while (now := time.monotonic()) < deadline:
            death = self.server.wait_any(0.005)
            if death is not None:
                part, job, _ = alive.pop(death.pid)
                deaths += self._count(death, job) and part[2] != ""
                self._start(here, name, part, alive, journals)
            for pid, (part, job, due) in alive.items():
                if now > due:
                    os.kill(pid, signal.SIGKILL)
                    alive[pid] = (part, job, now + 3600)
                    self.report.outside_kills += 1
        (here / "stop").touch()
        while alive:
            death = self.server.wait_any(20.0)
            if death is None:
                self.report.violations.append(f"{name}: {[a[0] for a in alive.values()]} hang and do not leave")
                for pid in alive:
                    os.kill(pid, signal.SIGKILL)
                continue
            part, job, _ = alive.pop(death.pid)
            deaths += self._count(death, job) and part[2] != ""
        return [Evidence(who, group, read_journal(path)) for who, group, path in journals], deaths

    def _count(self, death: Death, job: Job) -> bool:
        if death.signal == signal.SIGKILL and job.failpoint:
            self.report.kills[job.failpoint] += 1
        elif death.signal not in (0, signal.SIGKILL):
            self.report.violations.append(f"{job.scenario} died of signal {death.signal}")
        return death.signal != 0

    def _start(
        self, here: Path, name: str, part: tuple[str, str, str], alive: dict[int, Any], journals: list[Any]
    ) -> None:
        self.instances += 1
        role, who, group = part
        journal = here / f"{who}-{self.instances}.journal"
        options = {"seed": self.random.random(), "instance": self.instances, "name": who, "group": group}
        nth = 1 + int(self.random.expovariate(1 / 40))
        by_itself = self.random.random() < 0.7
        failpoint = self.random.choice(self.failpoints) if by_itself else None
        job = Job(role, name, str(here), str(journal), failpoint, nth, options=options)
        due = time.monotonic() + 0.05 + self.random.expovariate(2.0)
        alive[self.server.start(job)] = (part, job, due)
        journals.append((f"{who}-{self.instances}", group, journal))

    def _drain(self, topic: ring.Ring, group: str) -> dict[int, int]:
        topic.reap()
        out: dict[int, int] = {}
        with topic.member(group, on_end="wait") as member:
            while (lease := member.take(0)) is not None:
                out[lease.offset] = read_payload(lease.bytes() or b"")
                lease.ack()
        return out
