"""Killed at any instant and started again: nothing is lost, and what may be a repeat is skipped by proof or marked."""

from __future__ import annotations

import json
import random
import signal
import threading
from typing import Any

import pytest

from comux.recording.copies import LOOK_RECORDS, engine_id, header_for, look
from comux.records import HEADER_DUPLICATE

pytestmark = pytest.mark.timeout(120)


def wait_for_state(process: Any, state: str) -> None:
    """Read its lines of JSON until it says so."""
    for line in process.stdout:
        if json.loads(line).get("state") == state:
            return
    raise AssertionError(f"ended without {state}: {process.stderr.read()}")


def kill(process: Any) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)


class Publisher(threading.Thread):
    """Publishes numbered records, held back by the ring, until it is told that this is enough."""

    def __init__(self, place: Any, topic: str) -> None:
        super().__init__(name="comux-test-publisher")
        self._place, self._topic = place, topic
        self.count = 0
        self.enough = threading.Event()

    def run(self) -> None:
        with self._place.broker.producer(self._topic) as producer:
            while not self.enough.is_set():
                size = (self.count * 7919) % 3000
                producer.send(b"%d " % self.count + b"x" * size, headers=(("n", b"%d" % self.count),), timeout=60)
                self.count += 1
                self.enough.wait(0.0005)  # the destination keeps them all, however long the machine takes


def test_killed_several_times_at_random_instants(place: Any, command: Any, tools: Any) -> None:
    source, destination = place("shm"), place("shm")
    source.topic("t", records=600, data_bytes=8 << 20)
    destination.topic("t", records=1 << 17, data_bytes=1 << 28)
    rng = random.Random(4)
    arguments = (source.address, destination.address, "-t", "t", "--format", "json")
    first = command(*arguments)
    wait_for_state(first, "copying")  # the group is there: from now on the ring keeps everything for it
    publisher = Publisher(source, "t")
    publisher.start()
    process = first
    for _ in range(5):
        copied = destination.count("t")
        tools.until(lambda so_far=copied: destination.count("t") > so_far, what="a copy by this process")
        threading.Event().wait(rng.uniform(0, 0.1))  # the instant is the test's variable, nothing waits for it
        kill(process)
        process = command(*arguments)
        wait_for_state(process, "copying")
    publisher.enough.set()
    publisher.join()
    tools.until(lambda: source.broker.groups("t")[0].lag == 0)
    kill(process)
    copies = destination.records("t")
    assert [tools.original(copy)[:3] for copy in copies] == [
        (b"%d " % n + b"x" * ((n * 7919) % 3000), None, (("n", b"%d" % n),)) for n in range(publisher.count)
    ]
    assert not any(copy.header(HEADER_DUPLICATE) for copy in copies)  # all of them were proven
    assert publisher.count > 50


DEATHS = (
    "take.next:1",
    "start.after_word:20",
    "claim.after_head:20",
    "put.filling:20",
    "commit.before_word:20",
    "commit.after_word:20",
    "ack.before_word:20",
    "ack.after_word:20",
    "lock.held:40",
)


@pytest.mark.parametrize("death", DEATHS)
def test_killed_at_each_step_of_a_record(place: Any, command: Any, bridge: Any, tools: Any, death: str) -> None:
    """The steps are those of both rings; every death is at the same record in every run."""
    source, destination = place("shm"), place("shm")
    source.topic("t")
    source.send("t", [b"%d" % n for n in range(100)])
    victim = command(
        source.address, destination.address, "-t", "t", "--group", "g",
        env={"COMUX_RING_FAILPOINTS": "1", "COMUX_FAILPOINT": death},
    )  # fmt: skip
    _, errors = victim.communicate(timeout=30)
    assert victim.returncode == -signal.SIGKILL, errors
    before = destination.count("t")
    running = bridge(source, destination, topics=["t"], group="g", once=True)
    assert running.join()
    copies = destination.records("t")
    assert [copy.value for copy in copies] == [b"%d" % n for n in range(100)]
    assert not any(copy.header(HEADER_DUPLICATE) for copy in copies)
    assert before < 100
    account = running.status("t").account
    assert account.dropped.get("duplicate", 0) <= 1
    assert account.delivered == 100 - len([copy for copy in copies if copy.offset < before])


# -- what decides between skipping, copying plainly and marking -------------------------------------------------------


def hand_out(place: Any, topic: str, count: int) -> list[Any]:
    """What a bridge that is killed leaves: records handed out to group ``g`` and not acknowledged."""
    with place.broker.consumer(topic, group="g", start="beginning", durable=True, on_end="wait") as consumer:
        records: list[Any] = []
        while len(records) < count:
            records += consumer.poll(5, count - len(records))
    return records


def put_copies(source: Any, destination: Any, records: list[Any]) -> None:
    """Copies as the bridge writes them."""
    with destination.broker.producer(destination.broker.topics()[0]) as producer:
        for record in records:
            header = header_for(record, engine_id(source.address))
            producer.send(
                record.value, key=record.key, headers=(*record.headers, header), timestamp_ns=record.timestamp_ns
            )


@pytest.mark.parametrize("scheme", ["memory", "shm"])
def test_what_is_proven_to_be_there_is_skipped(place: Any, bridge: Any, tools: Any, scheme: str) -> None:
    source, destination = place(scheme), place(scheme)
    source.topic("t")
    destination.topic("t")
    source.send("t", [b"%d" % n for n in range(10)], key=b"k", headers=(("a", None),))
    put_copies(source, destination, hand_out(source, "t", 6)[:4])
    running = bridge(source, destination, topics=["t"], group="g", once=True)
    assert running.join()
    copies = destination.records("t")
    assert tools.offsets(copies) == list(range(10))
    assert not any(copy.header(HEADER_DUPLICATE) for copy in copies)
    account = running.status("t").account
    assert (account.delivered, account.dropped) == (6, {"duplicate": 4})


@pytest.mark.parametrize("changed", ["value", "key", "headers", "timestamp", "epoch", "topic", "engine"])
def test_a_copy_of_another_record_is_no_proof(place: Any, bridge: Any, changed: str) -> None:
    """As after a source was deleted and made again: the same offsets, other records."""
    source, destination = place("memory"), place("memory")
    source.topic("t")
    destination.topic("t")
    source.send("t", [b"new"], key=b"k", headers=(("a", b"1"),), timestamp_ns=10**18)
    (record,) = hand_out(source, "t", 1)
    origin = ["t", 0, 0, engine_id(source.address)]
    place_of = {"topic": 0, "epoch": 1, "engine": 3}
    if changed in place_of:
        origin[place_of[changed]] = "other" if isinstance(origin[place_of[changed]], str) else 5
    with destination.broker.producer("t") as producer:
        producer.send(
            b"old" if changed == "value" else b"new",
            key=b"other" if changed == "key" else b"k",
            headers=(("a", b"2" if changed == "headers" else b"1"), ("comux-bridge", json.dumps(origin).encode())),
            timestamp_ns=10**18 + (changed == "timestamp"),
        )
    assert bridge(source, destination, topics=["t"], group="g", once=True).join()
    assert [copy.value for copy in destination.records("t")][1:] == [record.value]


def test_where_the_destination_has_forgotten_repeats_are_marked(place: Any, bridge: Any, tools: Any) -> None:
    source, destination = place("memory"), place("memory")
    source.topic("t")
    destination.topic("t", records=8)
    source.send("t", [b"%d" % n for n in range(10)])
    put_copies(source, destination, hand_out(source, "t", 5))
    destination.send("t", [b"of somebody else"] * 8)
    with destination.broker.consumer("t", group="reader", on_end="wait") as reader:  # it keeps what comes now
        running = bridge(source, destination, topics=["t"], group="g")
        copies: list[Any] = []
        while len(copies) < 10:
            copies += reader.poll(10, 100)
            reader.commit()
    assert tools.offsets(copies) == list(range(10))
    assert [copy.header(HEADER_DUPLICATE) for copy in copies] == [b"possible"] * 5 + [None] * 5
    assert running.until("t", delivered=10).marked == 5


def test_where_the_look_would_be_too_long_repeats_are_marked(place: Any, bridge: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("comux.recording.copies.LOOK_RECORDS", 100)
    source, destination = place("memory"), place("memory")
    source.topic("t")
    destination.topic("t", records=1000)
    source.send("t", [b"0"])
    put_copies(source, destination, hand_out(source, "t", 1))
    destination.send("t", [b"of somebody else"] * 500)
    assert bridge(source, destination, topics=["t"], group="g", once=True).join()
    assert destination.records("t")[-1].header(HEADER_DUPLICATE) == b"possible"


def test_the_look_stops_where_it_knows_enough_and_reads_far_where_it_must(place: Any) -> None:
    source, destination = place("memory"), place("memory")
    source.topic("t")
    destination.topic("t", records=20000)
    source.send("t", [b"%d" % n for n in range(300)])
    records = source.records("t")
    put_copies(source, destination, records)
    name = engine_id(source.address)
    near = look(destination.broker, "t", name, "t", 299)
    assert (near.complete, near.reach, near.newest) == (True, 299, (0, 0))
    assert near.has(records[299]) and not near.has(records[298])  # it did not have to keep what is below
    destination.send("t", [b"of somebody else"] * 9000)
    far = look(destination.broker, "t", name, "t", 100)
    assert far.complete
    assert [far.has(record) for record in records] == [n >= 100 for n in range(300)]
    nothing = look(destination.broker, "t", name, "other", 0)
    assert (nothing.complete, nothing.reach, nothing.newest) == (True, -1, None)
    assert LOOK_RECORDS > 9300


def test_the_newer_of_two_copies_under_one_offset_counts(place: Any) -> None:
    """A source that was made anew: the old life's copies are behind the new one's."""
    source, destination = place("memory"), place("memory")
    destination.topic("t")
    for life in (b"old", b"new"):
        source.topic("t")
        source.send("t", [life + b"%d" % n for n in range(5)])
        records = source.records("t")
        put_copies(source, destination, records)
        source.broker.delete_topic("t", force=True)
    copies = look(destination.broker, "t", engine_id(source.address), "t", 0)
    assert all(copies.has(record) for record in records)


def test_a_source_made_anew_is_copied_from_its_beginning(place: Any, bridge: Any, tools: Any) -> None:
    source, destination = place("shm"), place("memory")
    source.topic("t")
    source.send("t", [b"old %d" % n for n in range(7)])
    running = bridge(source, destination, topics=["t"], start="end")
    running.until("t", state="copying")
    source.send("t", [b"old 7"])
    running.until("t", delivered=1)
    source.broker.delete_topic("t", force=True)
    running.until("t", state="waiting")
    source.topic("t")
    source.send("t", [b"new %d" % n for n in range(7)])
    running.until("t", delivered=8)
    assert destination.values("t") == [b"old 7", *(b"new %d" % n for n in range(7))]


def test_two_bridges_of_one_group_one_stands_by_and_takes_over(place: Any, bridge: Any, command: Any) -> None:
    source, destination = place("shm"), place("shm")
    source.topic("t", records=5000)
    working = command(source.address, destination.address, "-t", "t", "--group", "g", "--format", "json")
    wait_for_state(working, "copying")
    standing_by = bridge(source, destination, topics=["t"], group="g")
    standing_by.until("t", state="standby")
    source.send("t", [b"%d" % n for n in range(500)])
    standing_by.until("t", state="standby", received=0)
    kill(working)
    source.send("t", [b"%d" % n for n in range(500, 1000)])
    standing_by.until("t", state="copying")
    while source.broker.groups("t")[0].lag:
        threading.Event().wait(0.01)
    assert destination.values("t") == [b"%d" % n for n in range(1000)]
    assert not any(copy.header(HEADER_DUPLICATE) for copy in destination.records("t"))
