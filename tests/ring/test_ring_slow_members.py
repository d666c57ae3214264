"""Members that live and do not come back: they are named, and what they hold can be claimed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from comux import ring
from comux.errors import ConfigError, StaleLeaseError
from comux.testing.ring_faults import Job, VictimServer, payload, read_payload

SIZE = 64


def make(place: Path, **settings: object) -> ring.Ring:
    shape: dict[str, object] = {} if "dtype" in settings else {"data_bytes": 65536}
    return ring.create(ring.RingSpec("t", slots=8, **{**shape, **settings}), directory=place)  # type: ignore[arg-type]


def fill(topic: ring.Ring, count: int) -> None:
    with topic.producer() as producer:
        for seq in range(count):
            producer.put(payload(seq, SIZE))


def age(topic: ring.Ring, wait_until: Callable[..., None], seconds: float = 0.02) -> None:
    """Until everything held has been for ``seconds``."""
    wait_until(lambda: all(p.held_s >= seconds for p in topic.stats().ports if p.held), "records get old", 30)


def drain(member: ring.Member) -> list[tuple[int, bool]]:
    out = []
    while (lease := member.take(0)) is not None:
        out.append((read_payload(lease.bytes()), lease.redelivered))
        lease.ack()
    return out


@pytest.mark.core
def test_a_claim_takes_only_what_was_held_long_enough(ring_dir: Path, wait_until: Callable[..., None]) -> None:
    with make(ring_dir) as topic:
        fill(topic, 4)
        slow, quick = topic.member("g", start="beginning", name="slow"), topic.member("g")
        held = [slow.take(0), slow.take(0)]
        (port,) = [p for p in topic.stats().ports if p.held]
        assert (port.name, port.pid, port.held, port.oldest_held) == ("slow", os.getpid(), 2, 0)
        assert port.state and port.command
        assert topic.claim_stale("g", 3600) == quick.claim_stale(3600) == []
        age(topic, wait_until)
        held.append(slow.take(0))
        assert slow.claim_stale(0) == [], "never its own"
        claimed = quick.claim_stale(0.02)
        assert [one.offset for one in claimed if one.offset < 2] == [0, 1]
        assert all(one.name == "slow" and one.pid == os.getpid() and one.held_s >= 0.02 for one in claimed)
        assert topic.check() == []
        assert not held[0].held
        got = drain(quick)
        assert {(0, True), (1, True)} <= set(got)
        for lease in held[:2]:
            with pytest.raises(StaleLeaseError, match="no longer held"):
                lease.ack()
        account = slow.account()
        assert account.balanced and account.dropped["claimed"] == 2
        slow.close()
        quick.close()
        assert topic.check() == [] and slow.account().balanced
        with pytest.raises(ConfigError, match="nobody"):
            topic.claim_stale("nobody", 1)
        for wrong in (-1, 10**9):
            with pytest.raises(ConfigError, match="min_idle"):
                topic.claim_stale("g", wrong)


def test_a_batch_that_was_claimed_in_part(ring_dir: Path) -> None:
    """The rest of it is acknowledged; of the claimed part nothing is, and nothing that belongs to others is touched."""
    with make(ring_dir, dtype="<i4", shape=(2,)) as topic:
        with topic.producer() as producer:
            producer.put_many(np.arange(8, dtype="<i4").reshape(4, 2))
        slow, quick = topic.member("g", start="beginning"), topic.member("g")
        batch = slow.take_many(4, 0)
        assert len(quick.claim_stale(0)) == 4
        one, two = quick.take(0), quick.take(0)
        one.ack()
        with pytest.raises(StaleLeaseError):
            batch.ack()
        assert topic.check() == []
        assert two.held
        two.ack()
        assert drain_offsets(quick) == [2, 3]
        assert slow.account().balanced and slow.account().dropped == {"claimed": 4}
        info = topic.groups()[0]
        assert (info.done, info.acked, info.redelivered) == (4, 4, 4)


def drain_offsets(member: ring.Member) -> list[int]:
    out = []
    while (lease := member.take(0)) is not None:
        out.append(lease.offset)
        lease.ack()
    return out


def test_what_a_slow_member_looks_at_says_when_it_is_gone(ring_dir: Path) -> None:
    with make(ring_dir) as topic:
        fill(topic, 1)
        slow, quick = topic.member("g", start="beginning"), topic.member("g")
        lease = slow.take(0)
        assert read_payload(lease.bytes()) == 0
        quick.claim_stale(0)
        assert read_payload(lease.bytes()) == 0, "in place until the group has finished it"
        drain(quick)
        with topic.producer() as producer:
            for _ in range(10):
                producer.put(b"x" * 60000)
                drain_offsets(quick)
        with pytest.raises(StaleLeaseError, match="claimed"):
            lease.bytes()
        with pytest.raises(BufferError):
            memoryview(lease)


def test_a_stopped_member_is_named_and_its_records_are_claimed(
    ring_dir: Path, victims: VictimServer, wait_until: Callable[..., None]
) -> None:
    """A real process under SIGSTOP; when it continues its acknowledgement is refused."""
    with make(ring_dir) as topic:
        member = topic.member("g", start="beginning", on_end="wait")
        fill(topic, 3)
        journal = ring_dir / "journal"
        pid = victims.start(Job("consume", "t", str(ring_dir), str(journal), "ack.before_word", action="stop"))
        try:
            wait_until(lambda: any(p.state == "T" for p in topic.stats().ports), "the victim stands still", 30)
            age(topic, wait_until)
            (port,) = [p for p in topic.stats().ports if p.held]
            assert (port.pid, port.state, port.name, port.held) == (pid, "T", "victim", 1)
            got = drain(member)  # what it had fetched and not started is stolen
            (claimed,) = member.claim_stale(0.02)
            assert (claimed.pid, claimed.offset) == (pid, 0)
            got += drain(member)
            assert sorted(got) == [(0, True), (1, False), (2, False)]
        finally:
            os.kill(pid, signal.SIGCONT)
        death = victims.wait(pid)
        assert death.code == 1 and "StaleLeaseError" in journal.read_text()
        topic.reap()
        assert topic.check() == []
        assert topic.groups()[0].done == 3


@pytest.mark.parametrize(
    "step", ["claim_stale.after_word", "lock.held", "lock.before_unlock", "claim_stale.before_wake"]
)
def test_a_death_in_the_middle_of_a_claim(step: str, ring_dir: Path, victims: VictimServer) -> None:
    with make(ring_dir) as topic:
        fill(topic, 3)
        slow = topic.member("g", start="beginning")
        held = [slow.take(0) for _ in range(3)]
        job = Job("claim_stale", "t", str(ring_dir), str(ring_dir / "journal"), step)
        assert victims.run(job).signal == signal.SIGKILL
        with topic.member("g") as other:
            assert other.claim_stale(0) is not None
            assert sorted(drain(other)) == [(0, True), (1, True), (2, True)]
        assert topic.check() == []
        for lease in held:
            with pytest.raises(StaleLeaseError):
                lease.ack()
        assert topic.groups()[0].done == 3


def test_a_waiting_member_gets_what_is_claimed(ring_dir: Path, wait_until: Callable[..., None]) -> None:
    with make(ring_dir) as topic:
        fill(topic, 1)
        slow, waits = topic.member("g", start="beginning"), topic.member("g")
        held = slow.take(0)
        got: list[ring.Lease | None] = []
        thread = threading.Thread(target=lambda: got.append(waits.take(30)))
        thread.start()
        wait_until(lambda: any(p.waiting for p in topic.stats().ports), "it waits", 30)
        assert len(topic.claim_stale("g", 0)) == 1
        thread.join(30)
        assert got and got[0] is not None and got[0].redelivered
        with pytest.raises(StaleLeaseError):
            held.ack()
        got[0].ack()


def test_either_the_acknowledgement_counts_or_the_claim(ring_dir: Path) -> None:
    """Two threads race over each record, singly and in batches: never both, never neither."""
    with make(ring_dir, dtype="u1", shape=(8,)) as topic:
        slow, thief = topic.member("g", start="beginning"), topic.member("g")
        producer = topic.producer()
        finished = {"slow": 0, "thief": 0}
        for turn in range(300):
            producer.put_many(np.zeros((4, 8), "u1"))
            whole = slow.take_many(4, 0) if turn % 2 else None
            parts = [] if whole is not None else [slow.take(0) for _ in range(4)]
            taken: list[int] = []
            thread = threading.Thread(target=lambda: taken.append(len(thief.claim_stale(0))))  # noqa: B023
            thread.start()
            for part in [whole] if whole is not None else parts:
                try:
                    part.ack()
                    finished["slow"] += len(whole) if whole is not None else 1
                except StaleLeaseError:
                    finished["slow"] += 0
            thread.join()
            finished["thief"] += len(drain_offsets(thief))
            assert topic.check() == []
        account = slow.account()
        assert account.balanced and account.held_total == 0
        assert account.delivered + finished["thief"] == 1200 == topic.groups()[0].done
        assert account.dropped.get("claimed", 0) == finished["thief"]


def test_a_death_in_the_middle_of_a_batchs_acknowledgement(ring_dir: Path, victims: VictimServer) -> None:
    """Its words are final; whoever has the lock next moves on over them."""
    with make(ring_dir, dtype="u1", shape=(SIZE,)) as topic:
        member = topic.member("g", start="beginning")
        fill(topic, 5)
        job = Job("ack_batch", "t", str(ring_dir), str(ring_dir / "journal"), "ack.run_words", options={"count": 3})
        assert victims.run(job).signal == signal.SIGKILL
        assert [seq for seq, _ in drain(member)] == [3, 4]
        assert topic.groups()[0].done == 5 and topic.check() == []


def test_a_claimed_record_that_comes_to_the_same_member_again_is_another_delivery(ring_dir: Path) -> None:
    """The old lease can neither acknowledge nor give back the new one's record, not even by being dropped."""
    with make(ring_dir) as topic:
        fill(topic, 1)
        member = topic.member("g", start="beginning")
        old = member.take(0)
        topic.claim_stale("g", 0)
        new = member.take(0)
        assert (old.held, new.held, new.delivery_count) == (False, True, 2)
        for call in (old.ack, old.nack):
            with pytest.raises(StaleLeaseError):
                call()
        dropped = new
        topic.claim_stale("g", 0)
        new = member.take(0)
        with pytest.warns(ResourceWarning):
            del dropped
        assert new.held and new.delivery_count == 3
        new.ack()
        assert member.account().dropped == {"claimed": 2} and member.account().balanced
        assert topic.groups()[0].done == 1 and topic.check() == []
