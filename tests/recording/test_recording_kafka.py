"""The bridge from and to a real Kafka broker."""

from __future__ import annotations

import json
import random
import signal
import threading
from typing import Any

import numpy as np
import pytest

from comux.recording import Origin, origin_of
from comux.recording.copies import engine_id
from comux.records import HEADER_DUPLICATE, HEADER_SOURCE, KEYFRAME

pytestmark = pytest.mark.timeout(180)

MS = 1_000_000


def wait_for_state(process: Any, state: str) -> None:
    for line in process.stdout:
        if json.loads(line).get("state") == state:
            return
    raise AssertionError(f"ended without {state}: {process.stderr.read()}")


def kill(process: Any) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)


def as_sent(record: Any) -> tuple[Any, ...]:
    return record.value, record.key, record.headers, record.timestamp_ns, record.flags


def test_there_and_back_is_byte_exact(place: Any, bridge: Any, tools: Any, kafka: Any) -> None:
    first, cluster, last = place("shm"), place(kafka.bootstrap), place("shm")
    first.topic("t", metadata={"codec": "h264"}, policy="drop_oldest", data_bytes=64 << 20)
    headers = (("a", b"1"), ("a", None), ("a", b""), (HEADER_SOURCE, b'["raw",0,5]'), ("größe", "ü".encode()))
    with first.broker.producer("t") as producer:
        count = 0
        for value in (None, b"", b"\0", b"x" * 300_000):
            for key in (None, b"", b"k"):
                for each in ((), headers):
                    producer.send(
                        value, key=key, headers=each, timestamp_ns=10**18 + count * MS, flags=count << 8 | KEYFRAME
                    )
                    count += 1
    assert bridge(first, cluster, topics=["t"], once=True).join()
    assert bridge(cluster, last, topics=["t"], once=True).join()
    sent, middle, copied = first.records("t"), cluster.records("t"), last.records("t")
    assert [as_sent(record) for record in sent] == [tools.original(record) for record in middle]
    assert [as_sent(record) for record in middle] == [tools.original(record) for record in copied]
    assert [origin_of(record) for record in middle] == [
        Origin("t", 0, n, engine_id(first.address)) for n in range(count)
    ]
    assert not any(record.header(HEADER_DUPLICATE) for record in [*middle, *copied])
    assert cluster.broker.topic("t").spec.metadata == {"codec": "h264"}
    assert last.broker.topic("t").spec.metadata == {"codec": "h264"}


def test_typed_topics_epochs_and_ends(place: Any, bridge: Any, kafka: Any) -> None:
    first, cluster, last = place("shm"), place(kafka.bootstrap), place("memory")
    first.topic("t", dtype=np.uint16, shape=(3, 2), records=64)
    for epoch in range(2):
        first.send("t", [np.full((3, 2), 10 * epoch + n, np.uint16) for n in range(3)])
        first.end("t")
    assert bridge(first, cluster, topics=["t"], once=True).join()
    running = bridge(cluster, last, topics=["t"])
    running.until("t", state="ended", delivered=6, ends=2)
    for where in (cluster, last):
        info = where.broker.topic("t")
        assert (np.dtype(info.spec.dtype), tuple(info.spec.shape), info.ended) == (np.uint16, (3, 2), True)
        found = [(int(record.value[0, 0]), record.epoch) for record in where.records("t")]
        assert found == [(0, 0), (1, 0), (2, 0), (10, 1), (11, 1), (12, 1)]
    # Started again with nothing to do: no new epoch anywhere.
    assert bridge(first, cluster, topics=["t"], once=True).join()
    assert (cluster.broker.topic("t").epoch, cluster.broker.topic("t").ended) == (1, True)
    with first.broker.producer("t") as producer:
        producer.send(np.full((3, 2), 20, np.uint16))
        producer.end()
    assert bridge(first, cluster, topics=["t"], once=True).join()
    running.until("t", delivered=7, ends=3)
    assert last.records("t")[-1].epoch == 2


WAYS = [
    ("to", 3),
    ("from", 1),  # a member that is killed is missed after ten seconds
    pytest.param("within", 1, marks=pytest.mark.torture),
    *(pytest.param(way, 5, marks=pytest.mark.torture) for way in ("to", "from", "within")),
]


@pytest.mark.parametrize(("way", "kills"), WAYS)
def test_killed_at_random_instants(place: Any, command: Any, tools: Any, kafka: Any, way: str, kills: int) -> None:
    """Killed while it copies; what is there afterwards is everything, and what is there twice is marked."""
    source = place(kafka.bootstrap if way != "to" else "shm")
    destination = place(kafka.bootstrap if way != "from" else "shm")
    source.topic("t", records=4096, data_bytes=64 << 20)
    destination.topic("t", records=1 << 16, data_bytes=1 << 28)
    arguments = (source.address, destination.address, "-t", "t", "--format", "json")
    process = command(*arguments)
    wait_for_state(process, "copying")
    sent = 0
    rng = random.Random(f"{way} {kills}")
    for turn in range(kills + 1):
        copied = destination.count("t")
        source.send("t", [b"%d" % n for n in range(sent, sent + 1500)])
        sent += 1500
        if turn == kills:
            break
        tools.until(lambda so_far=copied: destination.count("t") > so_far, timeout=60, what="a copy by this process")
        threading.Event().wait(rng.uniform(0, 0.05))  # the instant is the test's variable, nothing waits for it
        kill(process)
        process = command(*arguments)
    tools.until(
        lambda: [g.lag for g in source.broker.groups("t")] == [0] and source.broker.groups("t")[0].committed == sent,
        timeout=90,
        what="everything acknowledged",
    )
    kill(process)
    copies = destination.records("t")
    tools.check_nothing_lost(copies, sent)
    for copy in copies:
        assert copy.value == b"%d" % origin_of(copy).offset


@pytest.mark.torture
def test_the_broker_is_killed_and_comes_back(own_kafka: Any, place: Any, bridge: Any, tools: Any) -> None:
    source, cluster = place("shm"), place(own_kafka.bootstrap)
    source.topic("t", records=1 << 15, data_bytes=1 << 26)
    running = bridge(source, cluster, topics=["t"])
    source.send("t", [b"%d" % n for n in range(1000)])
    running.until("t", delivered=1000)
    feeding = threading.Event()

    def feed() -> None:
        number = 1000
        with source.broker.producer("t") as producer:
            while not feeding.wait(0.002):
                producer.send(b"%d" % number, timeout=30)
                number += 1

    feeder = threading.Thread(target=feed, name="comux-test-feeder")
    feeder.start()
    try:
        running.until("t", delivered=running.status("t").account.delivered, state="copying")
        own_kafka.kill()
        waiting = running.until("t", timeout=60, state="waiting")
        assert waiting.account.held_total > 0
        assert "destination" in waiting.reason
        own_kafka.start()
        running.until("t", timeout=60, state="copying")
    finally:
        feeding.set()
        feeder.join()
    total = source.count("t")
    running.until("t", timeout=60, received=total, held=0)
    copies = cluster.records("t")
    tools.check_nothing_lost(copies, total)
    account = running.status("t").account
    assert account.delivered + account.dropped.get("duplicate", 0) == total


def test_bridges_of_one_group_share_the_topics_and_take_over(
    place: Any, bridge: Any, command: Any, tools: Any, kafka: Any
) -> None:
    cluster, destination = place(kafka.bootstrap), place("shm")
    names = [f"raw_{n}" for n in range(6)]
    for name in names:
        cluster.topic(name)
    first = bridge(cluster, destination, topics=["raw_*"], group="g")
    for name in names:
        first.until(name, state="copying")
    other = command(cluster.address, destination.address, "-t", "raw_*", "--group", "g", "--format", "json")
    tools.until(
        lambda: sum(status.state == "standby" for status in first.bridge.status()) == 3,
        timeout=60,
        what="half of the topics handed over",
    )
    for name in names:
        cluster.send(name, [b"%d" % n for n in range(100)])
    tools.until(lambda: all(destination.count(name) == 100 for name in names), timeout=60)
    kill(other)
    for name in names:
        cluster.send(name, [b"%d" % n for n in range(100, 200)])
    tools.until(lambda: all(destination.count(name) >= 200 for name in names), timeout=90, what="the take-over")
    for name in names:
        first.until(name, state="copying", lag=0, held=0)
        tools.check_nothing_lost(destination.records(name), 200)
        assert [record.value for record in destination.records(name)] == [b"%d" % n for n in range(200)]


def test_new_topics_appear_starts_are_kept_and_limits_are_named(
    place: Any, bridge: Any, tools: Any, kafka: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("comux.recording.bridge.DISCOVER", 0.2)
    source, cluster = place("shm"), place(kafka.bootstrap)
    source.topic("raw_a", data_bytes=64 << 20)
    source.send("raw_a", [b"old"])
    running = bridge(source, cluster, topics=["raw_*"], start="end")
    running.until("raw_a", state="copying")
    source.send("raw_a", [b"new"])
    running.until("raw_a", delivered=1)
    source.topic("raw_b")
    source.send("raw_b", [b"1"])
    running.until("raw_b", delivered=1)
    assert cluster.values("raw_a") == [b"new"]
    source.send("raw_a", [b"x" * (12 << 20)])
    failed = running.until("raw_a", state="failed")
    assert "message" in failed.reason and "bytes" in failed.reason
    source.send("raw_b", [b"2"])
    running.until("raw_b", delivered=2)


def test_nobody_listens(place: Any, bridge: Any) -> None:
    source = place("shm")
    source.topic("t")
    source.send("t", [b"1"])
    running = bridge(source, "kafka://127.0.0.1:1?connect_timeout=1", topics=["t"])
    assert "127.0.0.1:1" in running.until("t", state="waiting").reason
    assert source.broker.groups("t")[0].committed == 0
