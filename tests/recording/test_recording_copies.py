"""A copy is its original, on every pair of engines: value, key, headers, timestamp, flags, epochs and ends."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from comux.recording import Origin, origin_of
from comux.recording.copies import engine_id
from comux.records import HEADER_BRIDGE, HEADER_DUPLICATE, HEADER_SOURCE, KEYFRAME

PAIRS = [("memory", "shm"), ("shm", "memory"), ("shm", "shm"), ("memory", "memory")]
pairs = pytest.mark.parametrize(("a", "b"), PAIRS)

VALUES: tuple[bytes | None, ...] = (b"", None, b"\0", b"x" * 70000, bytes(range(256)))
KEYS: tuple[bytes | None, ...] = (None, b"", b"key \0 \xff")
HEADERS: tuple[tuple[tuple[str, bytes | None], ...], ...] = (
    (),
    (("a", b"1"), ("a", b"2"), ("a", None), ("a", b""), ("b", b"\0\xff"), ("a", b"1")),
    (("comux-seq", b"7"), ("comux-types", b"{}"), (HEADER_SOURCE, b'["raw",0,5]')),
    (("größe", "ü".encode()),),
)


def fill(place: Any, topic: str) -> int:
    """Every combination of values, keys and headers that is difficult."""
    count = 0
    with place.broker.producer(topic) as producer:
        for value in VALUES:
            for key in KEYS:
                for headers in HEADERS:
                    stamp = 1_700_000_000_000_000_000 + count
                    flags = (KEYFRAME if count % 3 == 0 else 0) | (count % 256) << 8
                    producer.send(value, key=key, headers=headers, timestamp_ns=stamp, flags=flags, timeout=10)
                    count += 1
    return count


def as_sent(record: Any) -> tuple[Any, ...]:
    return record.value, record.key, record.headers, record.timestamp_ns, record.flags


@pairs
def test_copies_are_byte_exact_and_name_their_originals(place: Any, bridge: Any, tools: Any, a: str, b: str) -> None:
    source, destination = place(a), place(b)
    source.topic("t", data_bytes=16 << 20, metadata={"codec": "h264", "width": 640})
    count = fill(source, "t")
    running = bridge(source, destination, topics=["t"], once=True)
    assert running.join()
    sent, copied = source.records("t"), destination.records("t")
    assert len(sent) == len(copied) == count
    assert [as_sent(record) for record in sent] == [tools.original(record) for record in copied]
    expected = [Origin("t", 0, n, engine_id(source.address)) for n in range(count)]
    assert [origin_of(record) for record in copied] == expected
    assert not any(record.header(HEADER_DUPLICATE) for record in copied)
    assert destination.broker.topic("t").spec.metadata == {"codec": "h264", "width": 640}
    account = running.status("t").account
    assert (account.received, account.delivered, account.dropped_total, account.held_total) == (count, count, 0, 0)


@pairs
def test_typed_topics_stay_typed(place: Any, bridge: Any, a: str, b: str) -> None:
    source, destination = place(a), place(b)
    dtype = np.dtype([("t", "<f8"), ("n", "<i4", (3,))])
    for name, kind, shape in (("image", np.uint16, (4, 5)), ("scalar", np.float32, ()), ("struct", dtype, (2,))):
        source.topic(name, dtype=kind, shape=shape, records=64)
        values = np.frombuffer(np.random.default_rng(7).bytes(9 * np.dtype(kind).itemsize * int(np.prod(shape))), kind)
        source.send(name, list(values.reshape(9, *shape)))
    assert bridge(source, destination, topics=["*"], once=True).join()
    for name in ("image", "scalar", "struct"):
        spec = destination.broker.topic(name).spec
        assert (np.dtype(spec.dtype), tuple(spec.shape)) == (
            np.dtype(source.broker.topic(name).spec.dtype),
            tuple(source.broker.topic(name).spec.shape),
        )
        sent, copied = source.values(name), destination.values(name)
        assert len(copied) == 9
        assert [value.tobytes() for value in sent] == [value.tobytes() for value in copied]


def test_huge_records(place: Any, bridge: Any) -> None:
    source, destination = place("memory"), place("shm")
    source.topic("t", data_bytes=64 << 20)
    values = [np.random.default_rng(n).bytes(9_000_001 + n) for n in range(3)]
    source.send("t", values)
    assert bridge(source, destination, topics=["t"], once=True).join()
    assert destination.values("t") == values


def test_a_result_keeps_its_source_and_a_second_bridge_adds_its_own_header(place: Any, bridge: Any) -> None:
    first, second, third = place("shm"), place("memory"), place("shm")
    first.topic("t")
    headers = ((HEADER_SOURCE, b'["raw_cam1",3,14]'), ("result", b"5"))
    first.send("t", [b"v"], headers=headers)
    assert bridge(first, second, topics=["t"], prefix="x_", once=True).join()
    assert bridge(second, third, topics=["x_t"], once=True).join()
    record = third.records("x_t")[0]
    assert record.headers[:2] == headers
    bridges = [json.loads(value) for name, value in record.headers if name == HEADER_BRIDGE]
    assert bridges == [["t", 0, 0, engine_id(first.address)], ["x_t", 0, 0, engine_id(second.address)]]
    assert origin_of(record) == Origin("x_t", 0, 0, engine_id(second.address))


@pytest.mark.parametrize(
    "value", [None, b"", b"x", b"[]", b'["t",0,"1","e"]', b'["t",true,1,"e"]', b"[" * 5000, b"\xff"]
)
def test_a_header_that_is_no_origin_is_none_and_does_no_harm(place: Any, bridge: Any, value: bytes | None) -> None:
    source, destination = place("memory"), place("memory")
    source.topic("t")
    source.send("t", [b"v"], headers=((HEADER_BRIDGE, value),))
    assert origin_of(source.records("t")[0]) is None
    assert bridge(source, destination, topics=["t"], once=True).join()
    assert destination.records("t")[0].headers[0] == (HEADER_BRIDGE, value)


@pairs
def test_epochs_and_ends_are_carried_over(place: Any, bridge: Any, a: str, b: str) -> None:
    source, destination = place(a), place(b)
    source.topic("t")
    for epoch in range(3):
        source.send("t", [b"%d.%d" % (epoch, n) for n in range(4)])
        source.end("t")
    running = bridge(source, destination, topics=["t"])
    running.until("t", state="ended", ends=3)
    records = destination.records("t")
    assert [(record.value, record.epoch) for record in records] == [
        (b"%d.%d" % (epoch, n), epoch) for epoch in range(3) for n in range(4)
    ]
    assert [origin_of(record).epoch for record in records] == [epoch for epoch in range(3) for _ in range(4)]
    with destination.broker.consumer("t", start="beginning") as consumer:  # a reader sees the end
        assert [record.value for record in consumer] == [record.value for record in records]
    # The stream goes on in a next epoch, and the same bridge with it; an end that comes alone is carried too.
    source.send("t", [b"3.0"])
    running.until("t", delivered=13, state="copying")
    assert not destination.broker.topic("t").ended
    source.end("t")
    running.until("t", ends=4, state="ended")
    assert destination.broker.topic("t").ended
    assert destination.records("t")[-1].epoch == 3


@pairs
def test_the_end_of_a_stream_without_records_is_carried(place: Any, bridge: Any, a: str, b: str) -> None:
    source, destination = place(a), place(b)
    source.topic("t")
    source.end("t")
    assert bridge(source, destination, topics=["t"], once=True).join()
    assert destination.broker.topic("t").ended


@pairs
def test_a_bridge_started_again_on_an_ended_stream_opens_no_new_epoch(place: Any, bridge: Any, a: str, b: str) -> None:
    source, destination = place(a), place(b)
    source.topic("t")
    source.send("t", [b"1", b"2"])
    source.end("t")
    for _ in range(2):
        assert bridge(source, destination, topics=["t"], once=True).join()
        info = destination.broker.topic("t")
        assert (info.epoch, info.ended, info.high_water) == (0, True, 2)


@pairs
def test_an_end_not_yet_carried_when_the_bridge_stopped_is_carried_by_the_next(
    place: Any, bridge: Any, a: str, b: str
) -> None:
    source, destination = place(a), place(b)
    source.topic("t")
    source.send("t", [b"1", b"2"])
    first = bridge(source, destination, topics=["t"])
    first.until("t", delivered=2)
    first.stop()
    assert not destination.broker.topic("t").ended
    source.end("t")
    assert bridge(source, destination, topics=["t"], once=True).join()
    info = destination.broker.topic("t")
    assert (info.ended, info.epoch, info.high_water) == (True, 0, 2)
    # And where the next epoch has begun meanwhile, the end lies between the two.
    source.send("t", [b"3"])
    second = bridge(source, destination, topics=["t"])
    second.until("t", delivered=1)
    second.stop()
    source.end("t")
    source.send("t", [b"4"])
    assert bridge(source, destination, topics=["t"], once=True).join()
    assert [(record.value, record.epoch) for record in destination.records("t")] == [
        (b"1", 0),
        (b"2", 0),
        (b"3", 1),
        (b"4", 2),
    ]


def test_several_sources_into_one_topic_end_it_when_all_have_ended(place: Any, bridge: Any) -> None:
    source, destination = place("memory"), place("shm")
    for name in ("a", "b"):
        source.topic(name)
        source.send(name, [b"%s%d" % (name.encode(), n) for n in range(5)])
    running = bridge(source, f"{destination.address}/all", topics=["a", "b"])
    source.end("a")
    running.until("a", state="ended", delivered=5)
    running.until("b", delivered=5)
    assert not destination.broker.topic("all").ended
    source.end("b")
    running.until("b", state="ended")
    wait_for_end(destination, "all")
    assert destination.broker.topic("all").epoch == 0
    records = destination.records("all")
    for name in (b"a", b"b"):
        assert [record.value for record in records if record.value.startswith(name)] == [
            name + b"%d" % n for n in range(5)
        ]
    assert sum(status.ends for status in running.bridge.status()) == 1
    source.send("a", [b"a5"])  # both links go on, in the next epoch
    source.send("b", [b"b5"])
    running.until("a", delivered=6)
    running.until("b", delivered=6)
    assert {record.epoch for record in destination.records("all")[10:]} == {1}


def wait_for_end(destination: Any, topic: str) -> None:
    with destination.broker.consumer(topic, start="beginning") as consumer:
        for _ in consumer:
            pass


def test_names_prefixes_and_what_exists_already(place: Any, bridge: Any) -> None:
    source, destination = place("shm"), place("shm")
    source.topic("a", data_bytes=12345, records=77, policy="drop_oldest", writers="one", end="auto")
    source.send("a", [b"1"])
    source.topic("b")
    destination.topic("new_b", records=9)
    destination.send("new_b", [b"was there"])
    source.send("b", [b"2"])
    assert bridge(source, destination, topics=["a", "b"], prefix="new_", once=True).join()
    assert destination.broker.topics() == ["new_a", "new_b"]
    spec = destination.broker.topic("new_a").spec
    wanted = source.broker.topic("a").spec
    assert (spec.records, spec.data_bytes, spec.policy) == (wanted.records, wanted.data_bytes, "drop_oldest")
    assert (spec.writers, spec.end) == ("many", "explicit")
    assert destination.broker.topic("new_b").spec.records == 9
    assert destination.values("new_b") == [b"was there", b"2"]
    assert bridge(f"{source.address}/a", f"{destination.address}/other", once=True).join()
    assert destination.values("other") == [b"1"]


def test_starts(place: Any, bridge: Any, tools: Any) -> None:
    source = place("memory")
    source.topic("t")
    with source.broker.producer("t") as producer:
        for n in range(10):
            producer.send(b"%d" % n, flags=KEYFRAME if n in (3, 7) else 0, timestamp_ns=(100 + n) * 10**9)
    for start, first in (("beginning", 0), ("keyframe", 7), (4, 4), (105.5, 6)):
        destination = place("memory")
        assert bridge(source, destination, topics=["t"], start=start, group=f"g{first}", once=True).join()
        assert tools.offsets(destination.records("t")) == list(range(first, 10))
    destination = place("memory")
    running = bridge(source, destination, topics=["t"], start="end")
    running.until("t", state="copying")
    source.send("t", [b"10"])
    running.until("t", delivered=1)
    assert destination.values("t") == [b"10"]


def test_claims_that_were_given_up_are_no_loss(place: Any, bridge: Any) -> None:
    source, destination = place("shm"), place("memory")
    source.topic("t")
    for lossy in (False, True):
        with source.broker.producer("t") as producer:
            producer.send(b"1")
            producer.claim(10).abort()
            producer.send(b"2")
        running = bridge(source, destination, topics=["t"], lossy=lossy, once=True)
        running.join()
        account = running.status("t").account
        assert account.dropped == {"aborted": 1 + lossy}
        assert account.delivered == 2 + 2 * lossy
        source_values = source.values("t")
    assert source_values == [b"1", b"2", b"1", b"2"]


def test_a_record_that_goes_in_a_circle_is_stopped(place: Any, bridge: Any, tools: Any) -> None:
    a, b = place("memory"), place("memory")
    a.topic("t")
    b.topic("t")
    there, back = bridge(a, b, topics=["t"]), bridge(b, a, topics=["t"])
    a.send("t", [b"round"])
    tools.until(lambda: {**there.bridge.account().dropped, **back.bridge.account().dropped} == {"loop": 1})
    assert len(a.records("t")) + len(b.records("t")) == 17


def test_a_destination_of_another_type_is_refused_and_its_neighbour_goes_on(place: Any, bridge: Any) -> None:
    source, destination = place("shm"), place("memory")
    source.topic("typed", dtype=np.uint8, shape=(4,))
    source.send("typed", [np.zeros(4, np.uint8)])
    source.topic("plain")
    destination.topic("typed", dtype=np.uint8, shape=(5,))
    running = bridge(source, destination, topics=["*"])
    failed = running.until("typed", state="failed")
    assert "(5,)" in failed.reason and "(4,)" in failed.reason
    source.send("plain", [b"1"])
    running.until("plain", delivered=1)
    destination.broker.delete_topic("typed")  # what is changed is noticed
    running.until("typed", state="copying", delivered=1)
