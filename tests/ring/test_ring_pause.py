"""Pause: a topic that takes nothing, a group that is handed nothing, until somebody resumes them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from comux import ring
from comux.errors import EndOfStream, WaitTimeoutError
from comux.testing.ring_faults import Job, VictimServer


def make(place: Path, **settings: Any) -> ring.Ring:
    return ring.create(ring.RingSpec("t", **{"slots": 8, "data_bytes": 65536, **settings}), directory=place)


@pytest.mark.core
@pytest.mark.parametrize("writers", ["one", "many"])
def test_a_producer_waits_while_the_topic_is_paused(
    writers: str, ring_dir: Path, wait_until: Callable[..., None]
) -> None:
    with make(ring_dir, writers=writers) as topic, topic.producer() as producer:
        producer.put(b"0")
        topic.pause()
        assert topic.paused
        for call in (lambda: producer.put(b"x", timeout=0), lambda: producer.put_many([b"x"], timeout=0.01)):
            with pytest.raises(WaitTimeoutError, match="paused"):
                call()
        done: list[int | None] = []
        thread = threading.Thread(target=lambda: done.append(producer.put(b"1")))
        thread.start()
        wait_until(lambda: any(p.waiting for p in topic.stats().ports), "it waits", 30)
        member = topic.member("g", start="beginning")
        member.take(0).ack()  # room is no reason to go on
        assert not done and topic.high_water == 1
        topic.resume()
        thread.join(30)
        assert done == [1]
        assert topic.check() == []


def test_a_full_topic_that_was_paused_meanwhile(ring_dir: Path, wait_until: Callable[..., None]) -> None:
    with make(ring_dir, slots=2) as topic, topic.producer() as producer, topic.member("g") as member:
        producer.put_many([b"0", b"1"])
        done: list[int | None] = []
        thread = threading.Thread(target=lambda: done.append(producer.put(b"2")))
        thread.start()
        wait_until(lambda: any(p.waiting for p in topic.stats().ports), "it waits", 30)
        topic.pause()
        while (lease := member.take(0)) is not None:
            lease.ack()
        topic.resume()
        thread.join(30)
        assert done == [2]


def test_a_claim_that_is_open_may_be_committed(ring_dir: Path) -> None:
    with make(ring_dir) as topic, topic.producer() as producer:
        claim = producer.claim(4)
        topic.pause()
        claim.buffer[:] = b"open"
        claim.commit()
        assert topic.high_water == 1
        producer.end()
        topic.producer().close()
        assert topic.paused and topic.epoch == 1, "an epoch later it still is"


def test_what_a_member_has_fetched_waits_too(ring_dir: Path) -> None:
    with make(ring_dir) as topic:
        with topic.producer() as producer:
            producer.put_many([b"0", b"1", b"2", b"3"])
        member = topic.member("g", start="beginning")
        member.take(0).ack()  # fetches a run
        topic.pause("g")
        assert member.take(0) is None and ring.wait_any([member], 0) == []
        assert topic.groups()[0].paused
        topic.resume("g")
        assert [member.take(0).bytes() for _ in range(3)] == [b"1", b"2", b"3"]


def test_waiting_in_a_paused_group_costs_nothing_though_records_come(in_child: Callable[..., str]) -> None:
    out = in_child(
        """
        topic = ring.create(ring.RingSpec("t", slots=64, data_bytes=1 << 16), directory=PLACE)
        member, producer = topic.member("g", start="beginning", durable=True), topic.producer()
        topic.pause("g")
        cpu = []
        def wait():
            began = time.thread_time()
            lease = member.take(30)
            cpu.append(time.thread_time() - began)
            assert lease is not None
            lease.ack()
        thread = threading.Thread(target=wait)
        thread.start()
        for _ in range(60):
            producer.put(b"x")
            threading.Event().wait(0.005)
        topic.resume("g")
        thread.join(30)
        print(cpu[0], topic.check())
        """
    )
    cpu, check = out.split()
    assert check == "[]" and float(cpu) < 0.15, f"{cpu} s of processor time"


def test_the_end_is_told_in_a_paused_group_only_when_all_is_finished(ring_dir: Path) -> None:
    with make(ring_dir) as topic, topic.member("g", start="beginning") as member:
        with topic.producer() as producer:
            producer.put(b"0")
            producer.end()
        topic.pause("g")
        assert member.take(0) is None
        topic.resume("g")
        member.take(0).ack()
        topic.pause("g")
        with pytest.raises(EndOfStream):
            member.take(0)


def test_an_unattended_paused_group_is_suspended_as_any_other(ring_dir: Path) -> None:
    with make(ring_dir, slots=2, group_grace=0.0) as topic, topic.producer() as producer:
        topic.member("g", start="beginning").close()
        topic.pause("g")
        for i in range(6):
            producer.put(b"%d" % i, timeout=20)
        (group,) = topic.groups()
        assert group.suspended and group.paused and group.lost == 4
        with topic.member("g") as member:
            assert topic.groups()[0].paused and member.take(0) is None


@pytest.mark.parametrize(("step", "group"), [("pause.topic", None), ("pause.group", "g"), ("lock.before_unlock", None)])
def test_a_pause_survives_the_death_of_who_made_it(
    step: str, group: str | None, ring_dir: Path, victims: VictimServer
) -> None:
    with make(ring_dir) as topic, topic.member("g", start="beginning") as member, topic.producer() as producer:
        producer.put(b"0")
        options = {} if group is None else {"group": group}
        death = victims.run(Job("pause", "t", str(ring_dir), str(ring_dir / "journal"), step, options=options))
        assert death.signal == signal.SIGKILL
        began = time.monotonic()
        if group is None:
            with pytest.raises(WaitTimeoutError, match="paused"):
                producer.put(b"1", timeout=0)
            assert member.take(0) is not None
        else:
            assert member.take(0) is None
        assert time.monotonic() - began < 30
        topic.resume(group)
        assert producer.put(b"1", timeout=20) == 1
        assert member.take(20) is not None
        assert topic.check() == [] and os.getpid() != death.pid
