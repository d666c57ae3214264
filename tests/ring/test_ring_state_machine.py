"""Random histories of one topic against a small model of it: same offsets, same deliveries, same losses, every step.

The model (``Model``) says what must happen; the machine does the same to a ring and compares. A model of prefetching
would be the ring again, so the model leaves open *which* undelivered record a member of several is handed: it must be
one that nobody holds and nobody finished, the lowest where the group has one member.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from comux import ring
from comux.errors import EndOfStream, WaitTimeoutError
from comux.testing.ring_faults import payload, read_payload

SLOTS, SIZE = 4, 32
EXAMPLES = int(os.environ.get("COMUX_STATE_EXAMPLES") or 100)


@dataclass
class Group:
    """Per group: what is finished, held (offset -> member), and how often each was handed out."""

    start: int
    members: list[Any] = field(default_factory=list)
    finished: set[int] = field(default_factory=set)
    held: dict[int, Any] = field(default_factory=dict)
    times: dict[int, int] = field(default_factory=dict)
    lost: int = 0

    def done(self, published: int) -> int:
        o = self.start
        while o < published and o in self.finished:
            o += 1
        return o


class Model:
    """A topic as the design describes it."""

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self.log: list[int | None] = []  # sequence number, None: aborted
        self.claimed: dict[int, int] = {}  # claims that are open, their place in the log held
        self.groups: dict[str, Group] = {}
        self.tail_at_most = 0
        self.epoch = 0
        self.ended = False

    @property
    def published(self) -> int:
        return min(self.claimed, default=len(self.log))

    def unfinished(self) -> int:
        return min((g.done(self.published) for g in self.groups.values()), default=self.published)

    def room(self, n: int) -> bool:
        return len(self.log) + n - self.unfinished() <= SLOTS

    def append(self, seqs: list[int]) -> None:
        self.log += seqs

    def finish(self, group: Group, offset: int) -> None:
        group.finished.add(offset)
        group.held.pop(offset, None)

    def drop_for(self, n: int) -> bool:
        """drop_oldest: finish the oldest on behalf of all until ``n`` fit; False where a held one is in the way."""
        while not self.room(n):
            o = self.unfinished()
            if o >= self.published or any(o in g.held for g in self.groups.values()):
                return False
            for g in self.groups.values():
                if o >= g.start and o not in g.finished:
                    g.lost += self.log[o] is not None
                    self.finish(g, o)
        return True

    def deliverable(self, g: Group) -> list[int]:
        return [
            o
            for o in range(g.start, self.published)
            if self.log[o] is not None and o not in g.finished and o not in g.held
        ]


class Machine(RuleBasedStateMachine):
    """What may happen to a topic."""

    policy = "wait"
    shape: dict[str, Any] = {"data_bytes": 65536}  # noqa: RUF012 - replaced whole
    writers = "many"

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(prefix="machine-", dir=ring.default_directory()))
        spec = ring.RingSpec(
            "t", slots=SLOTS, policy=self.policy, writers=self.writers, group_grace=3600, max_deliveries=0, **self.shape
        )
        self.ring = ring.create(spec, directory=self.place)
        self.model = Model(self.policy)
        self.reader = self.ring.reader(start="beginning", on_end="wait")
        self.received = 0
        self.seqs = itertools.count()
        self.producer: Any = self.ring.producer()
        self.claims: list[tuple[Any, int, int]] = []
        self.leases: list[tuple[Any, Any, Group]] = []
        self.views: list[tuple[Any, int]] = []

    def teardown(self) -> None:
        self.views.clear()
        for _, lease, _ in self.leases:
            lease.release()
        for group in self.model.groups.values():
            for member in group.members:
                member.close()
        self.ring.close()
        shutil.rmtree(self.place)

    # -- producing ----------------------------------------------------------------------------------------------------

    def may_write(self) -> bool:
        return not (self.writers == "one" and self.claims)

    def open_producer(self) -> Any:
        if self.model.ended:
            self.producer.close()
            self.producer = self.ring.producer()
            self.model.epoch += 1
            self.model.ended = False
        return self.producer

    def expect_room(self, n: int) -> bool:
        model = self.model
        return model.room(n) or (self.policy == "drop_oldest" and model.drop_for(n))

    @precondition(may_write)
    @rule(key=st.none() | st.binary(max_size=3), flags=st.sampled_from([0, 1, 256]))
    def put(self, key: bytes | None, flags: int) -> None:
        producer, seq = self.open_producer(), next(self.seqs)
        room, offset = self.expect_room(1), len(self.model.log)
        try:
            got = producer.put(payload(seq, SIZE), key=key, flags=flags, timeout=0)
        except WaitTimeoutError:
            assert not room and self.policy != "drop_newest"
            return
        if not room:
            assert got is None and self.policy == "drop_newest"
            return
        assert got == offset
        self.model.append([seq])
        if self.model.published > offset:
            record = self.ring.record_at(offset)
            assert record is not None and (record.key, record.flags, record.epoch) == (key, flags, self.model.epoch)

    @precondition(may_write)
    @rule(n=st.integers(1, SLOTS))
    def put_many(self, n: int) -> None:
        producer, seqs = self.open_producer(), [next(self.seqs) for _ in range(n)]
        room, offset = self.expect_room(n), len(self.model.log)
        try:
            got = producer.put_many([payload(seq, SIZE) for seq in seqs], timeout=0)
        except WaitTimeoutError:
            assert not room and self.policy != "drop_newest"
            return
        assert got == (offset if room else None)
        if room:
            self.model.append(seqs)

    @precondition(lambda self: len(self.claims) < (1 if self.writers == "one" else 3))
    @rule()
    def claim(self) -> None:
        producer, seq = self.open_producer(), next(self.seqs)
        room, offset = self.expect_room(1), len(self.model.log)
        try:
            claim = producer.claim(SIZE if "data_bytes" in self.shape else None, timeout=0)
        except WaitTimeoutError:
            assert not room and self.policy != "drop_newest"
            return
        assert (claim is not None) == room
        if claim is None:
            return
        if self.writers == "one":  # private until it is published
            self.claims.append((claim, seq, -1))
            return
        self.model.append([seq])
        self.model.claimed[offset] = seq
        self.claims.append((claim, seq, offset))

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), commit=st.booleans())
    def finish_claim(self, data: st.DataObject, commit: bool) -> None:
        claim, seq, offset = self.claims.pop(data.draw(st.integers(0, len(self.claims) - 1)))
        if self.model.ended:  # aborted by the end
            with pytest.raises(Exception), claim:  # noqa: B017 - whatever it says, it may not pass for a record
                claim.commit()
            self.model.claimed.pop(offset, None)
            return
        if commit:
            claim.buffer[:] = payload(seq, SIZE)
            claim.commit()
        else:
            claim.abort()
        self.model.claimed.pop(offset, None)
        if offset < 0 and commit:
            offset = len(self.model.log)
            self.model.append([seq])
        elif offset >= 0 and not commit:
            self.model.log[offset] = None
        if commit:
            assert claim.offset == offset

    @precondition(lambda self: not self.claims and not self.model.ended)
    @rule()
    def end(self) -> None:
        self.producer.end()
        self.model.ended = True
        assert self.ring.ended and self.ring.end_offset == self.model.published
        with pytest.raises(EndOfStream):
            self.producer.put(b"x" * SIZE, timeout=0)

    @precondition(lambda self: not self.claims)
    @rule()
    def reopen(self) -> None:
        """The whole ring: closed, attached again; held records come again."""
        for _, lease, group in self.leases:
            group.held.pop(lease.offset, None)
            lease.nack()
        self.leases.clear()
        for group in self.model.groups.values():
            group.members.clear()
        position = self.reader.position
        lost = self.reader.lost
        self.ring.close()
        self.ring = ring.attach("t", directory=self.place)
        self.received_before = position
        self.reader = self.ring.reader(start=position, on_end="wait")
        self.lost_before = getattr(self, "lost_before", 0) + lost
        if self.model.ended:
            self.model.epoch += 1
            self.model.ended = False
        self.producer = self.ring.producer()

    # -- consuming ----------------------------------------------------------------------------------------------------

    @precondition(lambda self: not self.claims)
    @rule(name=st.sampled_from(["g", "h"]), start=st.sampled_from(["beginning", "end"]))
    def join(self, name: str, start: str) -> None:
        member = self.ring.member(name, start=start, on_end="wait")
        if name not in self.model.groups:
            at = self.ring.log_start if start == "beginning" else self.model.published
            self.model.groups[name] = Group(at)
        group = self.model.groups[name]
        group.members.append(member)
        group.finished |= {o for o, seq in enumerate(self.model.log) if seq is None and o < self.model.published}

    @precondition(lambda self: any(g.members for g in self.model.groups.values()))
    @rule(data=st.data(), k=st.integers(1, 3))
    def take(self, data: st.DataObject, k: int) -> None:
        group = data.draw(st.sampled_from([g for g in self.model.groups.values() if g.members]))
        member = data.draw(st.sampled_from(group.members))
        for _ in range(k):
            possible = self.model.deliverable(group)
            lease = member.take(0)
            if lease is None:
                assert not possible, f"{possible} were to be had"
                return
            o = lease.offset
            assert o in possible and read_payload(lease.bytes()) == self.model.log[o]
            assert len(group.members) > 1 or group.times or o == possible[0]
            assert lease.redelivered == (group.times.get(o, 0) > 0)
            group.times[o] = group.times.get(o, 0) + 1
            assert lease.delivery_count == group.times[o]
            group.held[o] = member
            self.leases.append((member, lease, group))

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), how=st.sampled_from(["ack", "ack", "by offset", "nack"]))
    def give(self, data: st.DataObject, how: str) -> None:
        member, lease, group = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        o = lease.offset
        if how == "nack":
            lease.nack()
            group.held.pop(o)
            return
        if how == "ack":
            lease.ack()
        else:
            member.ack(o)
        self.model.finish(group, o)

    @precondition(lambda self: any(g.members for g in self.model.groups.values()))
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        group = data.draw(st.sampled_from([g for g in self.model.groups.values() if g.members]))
        member = group.members.pop(data.draw(st.integers(0, len(group.members) - 1)))
        for entry in [e for e in self.leases if e[0] is member]:
            self.leases.remove(entry)
            group.held.pop(entry[1].offset)
        member.close()

    @precondition(lambda self: any(not g.members for g in self.model.groups.values()))
    @rule(data=st.data())
    def remove_group(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([n for n, g in self.model.groups.items() if not g.members]))
        self.ring.remove_group(name)
        del self.model.groups[name]

    @rule(k=st.integers(1, 4))
    def read(self, k: int) -> None:
        for _ in range(k):
            before = self.reader.position
            record = self.reader.copy(0)
            if record is None:
                assert self.reader.position == self.model.published
                return
            o = record.offset
            assert read_payload(bytes(record.value)) == self.model.log[o]
            assert record.skipped >= sum(s is not None for s in self.model.log[before:o])
            self.received += 1

    @rule()
    def look(self) -> None:
        """A view of a pool is held; of a ring it is only looked at."""
        view = self.reader.poll(0)
        if view is not None:
            self.received += 1
            assert view.kept is (self.shape.get("layout") == "pool")
            self.views += [(view, self.model.log[view.offset])] * view.kept

    @precondition(lambda self: self.views)
    @rule(at=st.integers(0, 7))
    def look_away(self, at: int) -> None:
        self.views.pop(at % len(self.views))

    @rule(where=st.sampled_from(["end", "beginning"]))
    def seek(self, where: str) -> None:
        if where == "end":
            self.reader.seek_end()
            assert self.reader.position == self.model.published
        else:
            self.reader.seek_beginning()
            assert self.reader.position == self.ring.log_start

    # -- always -------------------------------------------------------------------------------------------------------

    def sweep_tombstones(self) -> None:
        """Aborted records count as finished for everybody once they are published."""
        for group in self.model.groups.values():
            for o in range(group.start, self.model.published):
                if self.model.log[o] is None:
                    group.finished.add(o)

    @initialize()
    def begin(self) -> None:
        assert self.ring.log_start == self.ring.high_water == 0

    @invariant()
    def agrees(self) -> None:
        model = self.model
        self.sweep_tombstones()
        assert self.ring.check() == []
        assert self.ring.high_water == model.published
        assert self.ring.ended is model.ended and self.ring.epoch == model.epoch
        assert max(0, len(model.log) - SLOTS) <= self.ring.log_start <= model.published
        account = self.reader.account()
        assert account.balanced
        assert all(read_payload(bytes(view.buffer)) == seq for view, seq in self.views)
        assert {g.name for g in self.ring.groups()} == set(model.groups)
        for info in self.ring.groups():
            group = model.groups[info.name]
            assert info.members == len(group.members) and info.lost == group.lost
            assert info.done <= group.done(model.published)
        newest = self.ring.observer().latest()
        kept = [o for o in range(self.ring.log_start, model.published) if model.log[o] is not None]
        assert (newest.offset if newest else None) == (kept[-1] if kept else None)


VARIABLE, FIXED = {"data_bytes": 65536}, {"dtype": "u1", "shape": (SIZE,)}
POOL = {**FIXED, "layout": "pool", "pins": 3, "look_back": 1}
SHAPES = [
    pytest.param("wait", VARIABLE, "many", id="wait-variable-many", marks=pytest.mark.core),
    pytest.param("wait", FIXED, "one", id="wait-fixed-one", marks=pytest.mark.core),
    pytest.param("drop_oldest", VARIABLE, "one", id="drop_oldest-variable-one"),
    pytest.param("drop_oldest", FIXED, "many", id="drop_oldest-fixed-many"),
    pytest.param("drop_newest", VARIABLE, "many", id="drop_newest-variable-many"),
    pytest.param("wait", POOL, "one", id="wait-pool-one"),
    pytest.param("drop_oldest", POOL, "many", id="drop_oldest-pool-many"),
]


@pytest.mark.parametrize(("policy", "shape", "writers"), SHAPES)
def test_the_ring_does_what_the_model_does(policy: str, shape: dict[str, Any], writers: str) -> None:
    machine = type("Machine", (Machine,), {"policy": policy, "shape": shape, "writers": writers})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=50,
            derandomize="COMUX_TORTURE_SEED" not in os.environ,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
