"""Mixed: some cameras on Kafka, some in local memory, in one loop; results on either, whatever the camera is on."""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from service_fixtures import KafkaCluster

from comux import Comux
from comux.errors import EndOfStream
from comux.feeds import publish
from comux.options import SourceOptions
from comux.records import HEADER_SOURCE, Record
from comux.transport import Broker, connect

FRAMES = 40


@pytest.fixture
def cluster(kafka: KafkaCluster) -> Iterator[Broker]:
    with connect(f"kafka://{kafka.bootstrap}", prefix=f"mixed-{uuid.uuid4().hex[:10]}.") as broker:
        yield broker
        for topic in broker.topics():
            broker.delete_topic(topic, force=True)


def read(broker: Broker, topic: str) -> list[Record]:
    """Every record that is there."""
    with broker.consumer(topic, start="beginning", on_end="wait") as consumer:
        wanted, out = broker.topic(topic).high_water, []
        while consumer.position() < wanted:
            out += consumer.poll(10.0, 500)
    return out


def test_cameras_of_both_engines_in_one_loop_and_results_on_either(
    kafka: KafkaCluster, cluster: Broker, place: Any
) -> None:
    prefix = cluster._cluster.options.prefix  # the namespace of this test
    there = f"kafka://{kafka.bootstrap}?prefix={prefix}"
    here = place.address
    brokers = {there: cluster, here: place.broker}
    cameras = [  # camera, where its packets are, where its results go
        ("a", here, here),
        ("b", here, there),
        ("c", there, here),
        ("d", there, there),
    ]
    for number, (cam_id, address, _) in enumerate(cameras):
        publish(
            f"synthetic://160x120@30?camera={number}", brokers[address], f"raw_{cam_id}", pace="fast", frames=FRAMES
        )
    sources = [
        SourceOptions(
            cam_id=cam_id,
            address=address,
            produce_address=produce,
            start="beginning",
            on_end="stop",
            mode="every_frame",
        )
        for cam_id, address, produce in cameras
    ]
    seen: dict[str, list[int]] = defaultdict(list)
    with Comux(sources) as mux:
        try:
            while True:
                for item in mux.get_batch(timeout=20).fresh:
                    seen[str(item.cam_id)].append(item.index)
                    mux.send(item, {"index": item.index})
        except EndOfStream:
            pass
        mux.flush(20)
        accounts = mux.accounts()
    assert {cam_id: len(indices) for cam_id, indices in seen.items()} == dict.fromkeys("abcd", FRAMES)
    assert all(account.balanced and account.delivered == FRAMES for account in accounts.values())
    for cam_id, address, produce in cameras:
        originals = {record.offset: record for record in read(brokers[address], f"raw_{cam_id}")}
        results = read(brokers[produce], f"stream_{cam_id}")
        assert sorted(json.loads(r.header("index") or b"") for r in results) == sorted(seen[cam_id])
        for result in results:
            topic, _, offset = json.loads(result.header(HEADER_SOURCE) or b"")
            original = originals[offset]
            assert (topic, result.value, result.key) == (f"raw_{cam_id}", original.value, original.key)
            unit = cluster.capabilities.timestamp_resolution_ns
            assert result.timestamp_ns // unit == original.timestamp_ns // unit
