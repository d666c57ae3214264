"""Torture of the ring: many processes work on one topic and die all the time; afterwards every promise is looked up.

Three producers, five members of two groups, a lossy reader, an observer and a visitor run as processes of their own.
Most are started with a failpoint armed, at a random pass; those that are not killed by it are killed from outside at a
random instant. Whoever dies is replaced at once. What each was promised stands in its journal (``ring_roles``), outside
of the ring; meanwhile the invariants of the ring are checked a few times a second. After some seconds everybody is told
to leave, the rest is drained, and ``ring_judge`` reads all journals.

Which failpoint. A named step is passed by some roles on some shapes of ring only. So the torture learns: the share of
lives of a role on such a ring that ended at a failpoint, times how few kills the failpoint has had, is the weight with
which it is drawn. Steps that nobody passes are tried now and then and otherwise left alone; all others are killed at
about equally often, also the rare ones.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from comux import ring
from comux.errors import ComuxError, WaitTimeoutError
from comux.testing.ring_faults import Death, Job, VictimServer, read_journal, read_payload
from comux.testing.ring_judge import Evidence, judge
from comux.testing.ring_report import Report
from comux.testing.ring_roles import forget_guests

GROUPS = ("red", "blue")
CAST = (
    *(("torture_producer", f"p{i}", "") for i in range(3)),
    *(("torture_member", f"r{i}", "red") for i in range(3)),
    *(("torture_member", f"b{i}", "blue") for i in range(2)),
    ("torture_reader", "lossy", ""),
    ("torture_observer", "watch", ""),
    ("torture_visitor", "guest", ""),
)
POLICIES = ("wait", "drop_oldest", "drop_newest")
KINDS = ("variable", "fixed", "pool")
SLOTS = (64, 64, 16, 2)
HEARTBEATS = (0.005, 0.005, 0.02, 0.1)  #: seconds; the last is what users' rings have
CHECK_EVERY = 0.3  #: seconds
PATIENCE = 20.0  #: seconds more for a round in which too little has happened
EARLY = 0.2  #: share of those whose failpoint counts from before they attach


@dataclass(frozen=True)
class _Spec(ring.RingSpec):
    """With a heartbeat of its own: with that of users' rings, who died is noticed so late that little happens."""

    heartbeat: float = 0.1

    def to_core(self) -> dict[str, Any]:
        return {**super().to_core(), "heartbeat_ns": int(self.heartbeat * 1e9)}


@dataclass(frozen=True)
class Shape:
    """A kind of ring: ``cell`` names policy and kind, the two a campaign counts by."""

    policy: str
    kind: str
    writers: Literal["one", "many"]

    @property
    def cell(self) -> str:
        return f"{self.policy}/{self.kind}"

    def spec(self, name: str, slots: int, heartbeat: float) -> _Spec:
        """A ring of this shape; groups are never suspended. ``heartbeat`` in seconds.

        Members are killed as long as it runs, and no record is to blame for that: none becomes a dead letter.
        """
        payload: dict[str, Any] = {"data_bytes": 65536} if self.kind == "variable" else {"dtype": "u1", "shape": (256,)}
        if self.kind == "pool":
            payload |= {"layout": "pool", "pins": 4}
        policy: Any = self.policy
        return _Spec(
            name,
            heartbeat=heartbeat,
            slots=slots,
            policy=policy,
            writers=self.writers,
            group_grace=3600,
            max_deliveries=0,
            max_procs=16,
            max_ports=48,
            **payload,
        )


SHAPES = tuple(Shape(p, k, w) for w in ("many", "one") for k in KINDS for p in POLICIES)


class Aim:
    """Draws failpoints so that each that can be reached is reached about equally often.

    Args:
        names: all failpoints.
        report: has the kills, and what was learnt from earlier lives; both are counted on there.
    """

    def __init__(self, names: Sequence[str], report: Report, draw: random.Random) -> None:
        self.names, self.report, self.random = names, report, draw

    def draw(self, role: str, shape: Shape) -> str:
        """A failpoint for one life of this role on this shape of ring."""
        had = self.report.kills.get(shape.cell, Counter())
        weights = []
        for name in self.names:
            lives, hits = self.report.lives.get(self._key(role, shape, name), (0, 0))
            rate = (hits + 1) / (lives + 2)
            weights.append(rate * rate / (1 + had[name]))
        return self.random.choices(self.names, weights)[0]

    def ended(self, role: str, shape: Shape, name: str, hit: bool) -> None:
        """How a life with this failpoint ended."""
        lives, hits = self.report.lives.get(self._key(role, shape, name), (0, 0))
        self.report.lives[self._key(role, shape, name)] = (lives + 1, hits + hit)

    @staticmethod
    def _key(role: str, shape: Shape, name: str) -> str:
        return f"{shape.cell} {shape.writers} {role} {name}"


@dataclass
class _Life:
    part: tuple[str, str, str]
    job: Job
    due: float
    outside: bool = False


class Torture:
    """One torture: ``run(seconds)`` plays rounds on changing shapes of ring until the time is over.

    Args:
        server: where victims come from.
        place: folder for topics and journals, private to this torture; what a violation is seen in stays there.
        seed: of everything random here; scheduling of course is not.
        failpoints: only these are armed; default: all.
        passes: how often a failpoint is passed before it kills, on average; one of these is drawn for each life.
    """

    def __init__(
        self,
        server: VictimServer,
        place: Path,
        seed: int,
        failpoints: Sequence[str] = (),
        passes: Sequence[float] = (0.0, 2.0, 30.0),
    ) -> None:
        self.server, self.place = server, place
        self.random = random.Random(seed)
        self.passes = passes
        self.report = Report(seed)
        self.instances = self.deaths = self.kills = 0
        self.aim = Aim(failpoints or server.failpoints(), self.report, self.random)

    def run(self, seconds: float, shapes: Sequence[Shape] = SHAPES, round_seconds: float = 5.0) -> Report:
        """Play for about ``seconds``, each shape at least once; ends at the first violation."""
        began = time.monotonic()
        length = min(round_seconds, seconds / len(shapes))
        while self.report.rounds < len(shapes) or time.monotonic() - began < seconds - length / 2:
            self._round(shapes[self.report.rounds % len(shapes)], length)
            self.report.rounds += 1
            if self.report.violations:
                break
        self.report.seconds += time.monotonic() - began
        return self.report

    def _round(self, shape: Shape, seconds: float) -> None:
        name = f"round{self.report.rounds}"
        here = self.place / name
        here.mkdir()
        spec = shape.spec(name, self.random.choice(SLOTS), self.random.choice(HEARTBEATS))
        self.deaths = self.kills = 0
        with ring.create(spec, directory=here) as topic:
            for group in GROUPS:  # they gate from the first record on
                topic.member(group, start="beginning").close()
            problems: list[str] = []
            evidence = self._play(topic, shape, seconds, problems)
            topic.reap()
            forget_guests(topic)
            drained = {group: _drain(topic, group, problems) for group in GROUPS}
            lost = {g.name: g.lost for g in topic.groups()} if shape.policy == "drop_oldest" else None
            stats = topic.stats()
            problems += judge(evidence, drained, self.deaths, lost, self.kills)
            problems += [f"check: {line}" for line in topic.check()]
            problems += [f"open claim: {claim}" for claim in stats.open_claims]
            problems += [f"group {g.name}: {g.lost} lost" for g in topic.groups() if g.lost and lost is None]
        where = (
            f"{name} ({shape.cell}, {shape.writers} writers, {spec.slots} slots, heartbeat {spec.heartbeat} s; {here})"
        )
        self.report.count(stats, evidence, [f"{where}: {p}" for p in problems])
        ring.unlink(name, here)
        ring.gc(here)
        if ring.names(here):
            self.report.violations.append(f"{where}: {ring.names(here)} outlived all who used it")
        if not problems:
            for file in here.iterdir():
                file.unlink()
            here.rmdir()

    # -- the play ------------------------------------------------------------------------------------------------------

    def _play(self, topic: ring.Ring, shape: Shape, seconds: float, problems: list[str]) -> list[Evidence]:
        here = topic.path.parent
        alive: dict[int, _Life] = {}
        journals: list[tuple[str, str, Path]] = []

        def start(part: tuple[str, str, str]) -> None:
            job, due = self._job(topic, part, shape)
            alive[self.server.start(job)] = _Life(part, job, due)
            journals.append((Path(job.journal).stem, part[2], Path(job.journal)))

        now = time.monotonic()
        deadline, check_at = now + seconds, now + CHECK_EVERY
        for part in CAST:
            start(part)
        goal: int | None = None  # the round ends when each group has gone beyond what there was when its time was over
        while not problems:
            now = time.monotonic()
            if now > deadline:
                goal = topic.high_water if goal is None else goal
                moves = all(g.done > goal for g in topic.groups() if g.name in GROUPS)
                if moves and (self._enough(topic) or now > deadline + PATIENCE):
                    break
                if now > deadline + 2 * PATIENCE:
                    problems.append(f"nothing goes through: {topic.groups()} stand before {goal} for {2 * PATIENCE} s")
            death = self.server.wait_any(0.005)
            if death is not None:
                life = alive.pop(death.pid)
                hit = self._count(death, life, shape)
                if hit and self.random.random() < 0.5:  # before the others can have covered it up; else they come first
                    check_at = now
                start(life.part)
            self._kill_due(alive, now)
            if now >= check_at:
                problems += _check(topic)
                check_at = now + CHECK_EVERY
        (here / "stop").touch()
        self._see_them_leave(alive, shape, problems)
        return [Evidence(who, group, read_journal(path)) for who, group, path in journals]

    def _enough(self, topic: ring.Ring) -> bool:
        """Whether something happened in this round: on a machine that has no time for us, nothing might."""
        return self.kills >= len(CAST) and topic.high_water >= 2 * topic.spec.slots

    def _kill_due(self, alive: Mapping[int, _Life], now: float) -> None:
        for pid, life in alive.items():
            if now > life.due and not life.outside:
                os.kill(pid, signal.SIGKILL)
                life.outside = True

    def _see_them_leave(self, alive: dict[int, _Life], shape: Shape, problems: list[str]) -> None:
        while alive:
            death = self.server.wait_any(20.0)
            if death is None:
                problems.append(f"{[life.part[1] for life in alive.values()]} hang and do not leave")
                for pid in alive:
                    os.kill(pid, signal.SIGKILL)
                continue
            self._count(death, alive.pop(death.pid), shape)

    def _count(self, death: Death, life: _Life, shape: Shape) -> bool:
        """Book a death; whether it was at a failpoint."""
        job, hit = life.job, False
        if job.failpoint is not None:
            hit = death.signal == signal.SIGKILL and not life.outside
            self.aim.ended(job.scenario, shape, job.failpoint, hit)
            if hit:
                self.report.kills[shape.cell][job.failpoint] += 1
        if death.signal == signal.SIGKILL:
            self.kills += 1
            self.deaths += life.part[2] != ""
            self.report.outside_kills += life.outside
        elif death.signal:
            self.report.violations.append(f"{job.scenario} died of signal {death.signal}")
        return hit

    def _job(self, topic: ring.Ring, part: tuple[str, str, str], shape: Shape) -> tuple[Job, float]:
        self.instances += 1
        role, who, group = part
        journal = topic.path.parent / f"{who}-{self.instances}.journal"
        armed = self.random.random() < 0.85
        options = {
            "seed": self.random.random(),
            "instance": self.instances,
            "name": who,
            "group": group,
            "early": armed and self.random.random() < EARLY,
        }
        mean = self.random.choice(self.passes)
        nth = 1 + int(self.random.expovariate(1 / mean)) if mean else 1
        failpoint = self.aim.draw(role, shape) if armed else None
        job = Job(role, topic.name, str(topic.path.parent), str(journal), failpoint, nth, options=options)
        longest = self.random.expovariate(1 / (1.5 if armed else 0.4))
        return job, time.monotonic() + 0.05 + longest


def _check(topic: ring.Ring) -> list[str]:
    """Violated invariants, looked at in the middle of everything; none where the lock was not to be had in a second."""
    try:
        return [f"check while they work: {line}" for line in topic.check()]
    except WaitTimeoutError:
        return []


def _drain(topic: ring.Ring, group: str, problems: list[str]) -> dict[int, int]:
    out: dict[int, int] = {}
    with topic.member(group, on_end="wait") as member:
        try:
            while (lease := member.take(0)) is not None:
                out[lease.offset] = read_payload(lease.bytes() or b"")
                lease.ack()
        except (ComuxError, ValueError) as error:
            problems.append(f"draining group {group}: {error}")
    return out
