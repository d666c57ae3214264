"""Indices are exact where offsets pass 2**31: in memory, in shared memory, and on a real broker."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
from feed_threads import FeedThread
from kafka_rooms import room
from service_fixtures import OwnKafkaCluster

from comux import Comux
from comux.feeds import read_marks
from comux.records import HEADER_SOURCE
from comux.transport import Broker, TopicSpec, connect

FAR = 2**31 - 20
PICTURES = 40
CAMERA = f"synthetic://160x120@30?camera=1&gop=10&bframes=2&frames={PICTURES}"


def _run(broker: Broker, address: str, first: int) -> None:
    """A camera whose packets lie at ``first`` and behind, read, sent on and read again."""
    seen: dict[int, int] = {}
    with Comux(["cam"], address=address, mode="every_frame", start="beginning", on_end="stop") as cameras:
        for batch in cameras:
            for item in batch.fresh:
                marks = read_marks(item.array)
                assert marks is not None
                seen[item.index] = marks[1]
                cameras.send("cam", item.index, {"frame": marks[1]})
        cameras.flush(20)
        books = cameras.accounts()["cam"]
    assert (books.received, books.delivered) == (PICTURES, PICTURES)
    assert sorted(seen) == list(range(first, first + PICTURES))
    assert first < 2**31 < max(seen)
    assert list(seen.values()) == list(range(PICTURES))
    with broker.consumer("stream_cam", start="beginning", on_end="wait") as consumer:
        results = [consumer.poll(20)[0] for _ in range(PICTURES)]
    for record in results:
        topic, _, offset = json.loads(record.header(HEADER_SOURCE) or b"")
        assert topic == "raw_cam"
        original = broker.record_at("raw_cam", offset)
        assert original is not None
        assert original.value == record.value
        assert seen[offset] == int(record.header("frame") or b"")
    with Comux(["cam"], address=address, mode="every_frame", start=first + 30) as cameras:
        assert cameras.read("cam").index == first + 30
    with broker.consumer("raw_cam", group="g", start=first) as consumer:
        assert consumer.poll(20)[0].offset == first
        consumer.commit()
        assert consumer.committed() == first + 1
        assert broker.groups("raw_cam")[0].committed == first + 1


@pytest.mark.parametrize("engine", ["memory", "shm"])
def test_indices_past_two_to_the_31_in_memory(engine: str) -> None:
    address = f"{engine}://far-{os.getpid()}"
    with connect(address) as broker:
        metadata = {"codec": "h264", "finite": True}
        for topic, first in (("raw_cam", FAR), ("stream_cam", 0)):
            broker.create_topic(TopicSpec(topic, records=256, first_offset=first, metadata=metadata))
        FeedThread(CAMERA, broker, "raw_cam", pace="fast").join()
        _run(broker, address, FAR)
        for topic in ("raw_cam", "stream_cam"):
            broker.delete_topic(topic, force=True)


def _move(log: Path, by: int) -> None:
    """Let a partition's only segment begin at a later offset. What is derived from it the broker makes anew."""
    data = bytearray((log / f"{0:020d}.log").read_bytes())
    at = 0
    while at < len(data):  # a batch's first offset stands before what its checksum covers
        offset, length = struct.unpack_from(">qi", data, at)
        struct.pack_into(">q", data, at, offset + by)
        at += 12 + length
    for file in log.glob(f"{0:020d}.*"):
        file.unlink()
    (log / f"{by:020d}.log").write_bytes(data)


@pytest.mark.torture  # it edits the log of a broker of its own while that is down; the engines above are in every run
def test_indices_past_two_to_the_31_on_a_real_broker(own_kafka: OwnKafkaCluster) -> None:
    with room(own_kafka.bootstrap) as there:
        there.feed(CAMERA, "raw_cam", pace="fast").join()
    (broker,) = own_kafka.brokers
    own_kafka.kill()
    _move(own_kafka.data(broker) / f"{there.full('raw_cam')}-0", FAR)
    own_kafka.start()
    with room(own_kafka.bootstrap, there.prefix) as again:
        assert again.broker.topic("raw_cam").log_start == FAR
        _run(again.broker, again.address, FAR)
