"""Members of a consumer group: a packet is acknowledged when it left the books, and comes again otherwise."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comux.errors import EndOfStream
from comux.multiplexer import Comux, State
from comux.transport import Broker, TopicSpec, connect


@pytest.fixture
def start(started: Callable[..., Comux], fake: Any) -> Callable[..., Comux]:
    """Starts a manager that reads as one of a group."""
    return lambda ids, **options: started(ids, decoder_factory=fake, **{"group": "viewer", **options})


def committed(broker: Broker, topic: str = "raw_a") -> int:
    return next(group.committed for group in broker.groups(topic) if group.name == "viewer")


def take(mux: Comux, count: int) -> list[int]:
    out = []
    for _ in range(count):
        item = mux.read("a", timeout=10)
        assert item.index is not None, item
        out.append(item.index)
    return out


def test_only_what_was_delivered_is_acknowledged(start: Any, feed: Any, broker: Broker, wait_for: Any) -> None:
    f = feed("a", gop=1)
    mux = start(["a"], mode="every_frame")
    f.send(10)
    wait_for(lambda: mux.accounts()["a"].held.get("pictures") == 10)
    assert committed(broker) == 0, "ten wait, nobody has seen one"
    assert take(mux, 4) == [0, 1, 2, 3]
    assert committed(broker) == 4
    mux.close()
    assert committed(broker) == 4, "a clean end gives back what waited"
    again = start(["a"], mode="every_frame")
    assert take(again, 6) == [4, 5, 6, 7, 8, 9]
    assert committed(broker) == 10


@pytest.mark.parametrize("way", ["get_batch", "freshest", "max_age", "absorbed", "rate", "damage"])
def test_whatever_leaves_the_books_is_acknowledged(
    start: Any, feed: Any, broker: Broker, wait_for: Any, way: str
) -> None:
    f = feed("a", gop=1)
    options: dict[str, Any] = {"freshest": {"mode": "freshest"}, "rate": {"rate": 1, "mode": "freshest"}}.get(way, {})
    mux = start(["a"], **{"mode": "every_frame", **options})
    if way == "absorbed":
        for _ in range(5):
            f.raw(b"S:0")
        wait_for(lambda: committed(broker) == 5)
    elif way == "damage":
        f.raw(b"garbage")
        f.raw(b"P:1")
        wait_for(lambda: committed(broker) == 2)
    elif way == "rate":
        f.send(5, timestamp_ns=1, step_ns=1000)
        wait_for(lambda: mux.accounts()["a"].dropped.get("rate") == 4)
        assert mux.read("a", timeout=5).index == 0
        wait_for(lambda: committed(broker) == 5)
    elif way == "max_age":
        f.send(5, timestamp_ns=1)
        wait_for(lambda: mux.accounts()["a"].held.get("pictures") == 5)
        mux.get_batch(timeout=0, max_age=1)
        assert mux.accounts()["a"].dropped == {"stale": 5}
        assert committed(broker) == 5
    elif way == "freshest":
        f.send(5)
        wait_for(lambda: mux.accounts()["a"].dropped.get("superseded") == 3)
        wait_for(lambda: committed(broker) == 3)
        assert mux.read("a").index == 4
        assert committed(broker) == 5
    else:
        f.send(5)
        for n in range(5):
            assert mux.get_batch(timeout=5)[0].index == n
            assert committed(broker) == n + 1


def test_what_the_decoder_holds_is_not_acknowledged(
    start: Any, feed: Any, broker: Broker, fake: Any, wait_for: Any
) -> None:
    fake.delay = 3
    f = feed("a", gop=1)
    mux = start(["a"], mode="every_frame")
    f.send(10)
    assert take(mux, 7) == list(range(7))
    wait_for(lambda: mux.accounts()["a"].held.get("decoder") == 3)
    assert committed(broker) == 7
    mux.close()
    assert committed(broker) == 7


def test_a_packet_that_kills_the_decoder_is_not_read_for_ever(
    start: Any, feed: Any, broker: Broker, wait_for: Any
) -> None:
    f = feed("a", gop=1)
    mux = start(["a"], mode="every_frame")
    f.send(2)
    assert take(mux, 2) == [0, 1]
    f.raw(b"explode")
    f.send(1)
    assert take(mux, 1) == [3]
    assert mux.accounts()["a"].dropped == {"failed": 1}
    assert committed(broker) == 4


def test_a_finite_source_stays_a_member_until_its_last_picture_was_taken(
    start: Any, feed: Any, broker: Broker, wait_for: Any
) -> None:
    f = feed("a", gop=1)
    mux = start(["a"], mode="every_frame", on_end="stop")
    f.send(5)
    f.end()
    wait_for(lambda: mux.status()["sources"]["a"]["state"] == State.ENDED)
    thread = mux.threads["a"]
    assert thread.is_alive() and committed(broker) == 0
    assert take(mux, 5) == list(range(5))
    thread.join(10)
    assert not thread.is_alive(), "nothing is left to be acknowledged"
    assert committed(broker) == 5
    with pytest.raises(EndOfStream):
        mux.get_batch(timeout=5)


def test_a_finite_source_closed_before_its_last_picture_gives_the_rest_back(
    start: Any, feed: Any, broker: Broker, wait_for: Any
) -> None:
    f = feed("a", gop=1)
    mux = start(["a"], mode="every_frame", on_end="stop")
    f.send(5)
    f.end()
    wait_for(lambda: mux.status()["sources"]["a"]["state"] == State.ENDED)
    assert take(mux, 2) == [0, 1]
    mux.close()
    assert committed(broker) == 2


def test_an_update_reads_again_what_nobody_had_seen(start: Any, feed: Any, broker: Broker, wait_for: Any) -> None:
    f = feed("a", gop=1)
    mux = start(["a"], mode="every_frame")
    f.send(10)
    wait_for(lambda: mux.accounts()["a"].held.get("pictures") == 10)
    assert take(mux, 3) == [0, 1, 2]
    mux.update("a", W=32, H=24)
    assert take(mux, 7) == list(range(3, 10))
    assert committed(broker) == 10


def test_a_ring_that_the_decoder_holds_wholly_does_not_stop_for_ever(
    start: Any, feed: Any, broker: Broker, fake: Any, wait_for: Any
) -> None:
    fake.delay = 6
    f = feed("a", gop=1, records=4, policy="wait")
    mux = start(["a"], mode="every_frame", stall_after=0.2)
    sender = threading.Thread(target=f.send, args=(12,))
    sender.start()
    assert take(mux, 6) == list(range(6))
    sender.join(10)
    assert not sender.is_alive()
    assert any(event.kind == "source.small_topic" for event in mux.events.recent())


@pytest.fixture
def shm() -> Iterator[str]:
    """A private directory of shared memory as an address' option; nothing is left of it."""
    place = Path(tempfile.mkdtemp(prefix="comux-test-", dir="/dev/shm"))
    yield str(place)
    shutil.rmtree(place)


_MANAGER = """
import sys, time
from comux import Comux
mux = Comux(["a"], address="shm://", group="viewer", durable=True, mode="every_frame", codec="raw",
            start="beginning", client_options={"directory": sys.argv[1]})
mux.start()
for _ in range(3):
    print(mux.read("a", timeout=20).index, flush=True)
until = time.monotonic() + 20
while mux.accounts()["a"].held.get("pictures") != 7 and time.monotonic() < until:
    time.sleep(0.01)
print("held", mux.accounts()["a"].held.get("pictures"), flush=True)
time.sleep(60)
"""


def test_what_a_killed_manager_had_not_delivered_comes_again(shm: str) -> None:
    with connect("shm://", directory=shm) as broker:
        broker.create_topic(TopicSpec("raw_a", records=64, dtype=np.uint8, shape=(4, 4, 3)))
        with broker.producer("raw_a") as producer:
            for n in range(10):
                producer.send(np.full((4, 4, 3), n, np.uint8))
        child = subprocess.Popen(
            [sys.executable, "-c", _MANAGER, shm], stdout=subprocess.PIPE, text=True, env={**os.environ}
        )
        try:
            assert child.stdout is not None
            lines = [child.stdout.readline().strip() for _ in range(4)]
            assert lines == ["0", "1", "2", "held 7"]
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait(10)
            if child.stdout is not None:
                child.stdout.close()
        with Comux(
            ["a"],
            address="shm://",
            group="viewer",
            durable=True,
            mode="every_frame",
            codec="raw",
            client_options={"directory": shm},
        ) as mux:
            # Durable: the picture it was busy with when it died comes again too, nobody had asked for the next one.
            items = [mux.read("a", timeout=20) for _ in range(8)]
            assert [item.index for item in items] == list(range(2, 10))
            assert [int(item.array[0, 0, 0]) for item in items] == list(range(2, 10))
            assert committed(broker) == 9
            mux.read("a", timeout=0)  # which says that the loop is done with the last one
            assert committed(broker) == 10
        broker.delete_topic("raw_a", force=True)
