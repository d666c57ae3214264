"""Records that cannot be read: of one topic, of which the others notice nothing, passed over or told, and counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import confluent_kafka
import kafka.codec
import pytest
from kafka_rooms import Room, with_both_libraries
from service_fixtures import KafkaCluster, until

from comux import Comux
from comux.errors import ConfigError
from comux.transport import connect

SIZE = 4000
RAW = {"codec": "raw", "dtype": "u1", "shape": [SIZE], "start": "beginning", "on_end": "wait", "mode": "every_frame"}


def value(number: int) -> bytes:
    """Each is the only one of its kind; with what it repeats it is worth compressing."""
    return (b"record %06d of this topic " % number * SIZE)[:SIZE]


def write(there: Room, topic: str, numbers: range) -> None:
    """A batch each, as every answer is waited for."""
    with there.broker.producer(topic) as producer:
        for number in numbers:
            assert producer.send(value(number)).result(20) == number


def damage(kafka: KafkaCluster, there: Room, topic: str, number: int) -> None:
    """Change a byte of a record where the broker keeps it."""
    path = kafka.data / f"{there.full(topic)}-0" / "00000000000000000000.log"
    at = path.read_bytes().index(value(number))
    with path.open("r+b") as log:
        log.seek(at + 10)
        log.write(b"\xff")


def read_all(there: Room, count: int) -> tuple[dict[str, list[int]], dict[str, Any]]:
    """What two cameras deliver until both have received ``count``: numbers by camera, and the status then."""
    got: dict[str, list[int]] = {"a": [], "b": []}
    with Comux(list(got), address=there.address, **RAW) as cameras:

        def received() -> bool:
            for item in cameras.get_batch(timeout=0.2):
                if item.array is not None:
                    got[item.cam_id].append(int(item.array[7:13].tobytes()))
            accounts = cameras.accounts().values()
            return all(account.received == count and not account.held_total for account in accounts)

        until(received, f"both cameras received {count}", 60)
        return got, cameras.status()["sources"]


@with_both_libraries
def test_damaged_records_are_passed_over_and_counted(kafka: KafkaCluster, there: Room) -> None:
    for topic in ("raw_a", "raw_b"):
        there.topic(topic)
        write(there, topic, range(12))
    for number in (0, 5, 6):
        damage(kafka, there, "raw_a", number)
    got, sources = read_all(there, 12)
    assert got == {"a": [n for n in range(12) if n not in (0, 5, 6)], "b": list(range(12))}
    books = sources["a"]["account"]
    assert books["dropped"] == {"corrupt": 3} and books["balanced"] and books["delivered"] == 9
    assert sources["b"]["account"]["dropped"] == {}
    assert sources["a"]["state"] == "RUNNING"


@with_both_libraries
def test_a_group_goes_on_behind_damaged_records(kafka: KafkaCluster, there: Room) -> None:
    """And does not come back to them: what was passed over is committed with the rest."""
    there.topic("t")
    write(there, "t", range(6))
    for number in (2, 5):
        damage(kafka, there, "t", number)
    seen = []
    with there.broker.consumer("t", group="g", start="beginning") as consumer:
        until(lambda: seen.extend(consumer.poll(0.2)) or consumer.position() == 6, "the group has all", 60)
        assert [(record.offset, record.skipped) for record in seen] == [(0, 0), (1, 0), (3, 1), (4, 0)]
        for record in seen:
            consumer.ack(record)
        books = consumer.account()
        assert dict(books.dropped) == {"corrupt": 2} and books.balanced and books.received == 6
    with there.broker.consumer("t", group="g") as consumer:
        assert consumer.position() == 6


def test_a_topic_whose_newest_record_is_damaged_opens(kafka: KafkaCluster, there: Room) -> None:
    there.topic("t")
    write(there, "t", range(3))
    damage(kafka, there, "t", 2)
    with connect(there.address) as broker:
        for _ in range(2):
            assert broker.topic("t").high_water == 3
        with broker.consumer("t", start="beginning") as consumer, broker.producer("t") as producer:
            assert producer.send(b"new").result(20) == 3
            seen: list[Any] = []
            until(lambda: seen.extend(consumer.poll(0.2)) or len(seen) == 3, "all but the damaged one", 60)
            assert [record.offset for record in seen] == [0, 1, 3]


@pytest.fixture
def without_lz4(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine that has no package for it."""
    for package in ("lz4", "lz4f", "lz4framed"):
        monkeypatch.setattr(kafka.codec, package, None)
    yield


def compressed(there: Room, topic: str, count: int) -> None:
    producer = confluent_kafka.Producer({"bootstrap.servers": there.bootstrap, "compression.type": "lz4"})
    for number in range(count):
        producer.produce(there.full(topic), value(number))
    assert producer.flush(20) == 0


@pytest.mark.usefixtures("without_lz4")
def test_a_camera_compressed_in_an_unknown_way_says_so_and_stops_nobody(there: Room) -> None:
    for topic in ("raw_a", "raw_b"):
        there.topic(topic)
    with Comux(["a", "b"], address=there.address, **RAW) as cameras:
        compressed(there, "raw_a", 3)
        until(lambda: cameras.status()["sources"]["a"]["state"] == "FAILED", "the camera has failed", 60)
        assert "pip install 'comux[compression]'" in cameras.status()["sources"]["a"]["reason"]
        write(there, "raw_b", range(5))
        seen = 0
        for _ in range(100):
            seen += sum(item.array is not None for item in cameras.get_batch(timeout=0.2))
            if seen == 5:
                break
        assert seen == 5


@pytest.mark.usefixtures("without_lz4")
def test_a_topic_compressed_in_an_unknown_way_is_refused_at_the_start(there: Room) -> None:
    there.topic("raw_a")
    compressed(there, "raw_a", 3)
    for _ in range(2):
        with (
            pytest.raises(ConfigError, match=r"raw_a' at offset 2.*lz4.*comux\[compression\]"),
            Comux(["a"], address=there.address, **RAW),
        ):
            pass
