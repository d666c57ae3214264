"""Real H.264 with B-frames from synthetic cameras through everything: identity, damage, lag, formats, shared frames."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from comux.errors import EndOfStream
from comux.feeds.marks import read_marks
from comux.feeds.synthetic import parse_synthetic, synthetic_packets
from comux.headers import decode_headers
from comux.multiplexer import Comux
from comux.records import HEADER_CLOCK, HEADER_CODEC, HEADER_CRC32C, HEADER_SEQUENCE, HEADER_SOURCE, KEYFRAME
from comux.transport import Broker, TopicSpec


@cache
def encoded(frames: int, gop: int = 30, camera: int = 1, codec: str = "h264") -> tuple[Any, ...]:
    """Packets of a small synthetic camera."""
    address = f"synthetic://160x120@30?gop={gop}&bframes=2&codec={codec}&camera={camera}&frames={frames}"
    return tuple(synthetic_packets(parse_synthetic(address)))


Publish = Callable[..., Any]


def send(producer: Any, packet: Any, cam: str = "a", *, foreign: bool = False) -> None:
    """One packet as our feeds send it, or as a foreign one does."""
    headers = ((HEADER_SEQUENCE, b"%d" % packet.seq), (HEADER_CRC32C, b"%08x" % packet.crc), (HEADER_CODEC, b"h264"))
    producer.send(
        packet.data,
        key=cam.encode(),
        headers=() if foreign else headers,
        flags=KEYFRAME if packet.keyframe and not foreign else 0,
    )


@pytest.fixture
def publish(broker: Broker) -> Publish:
    """Publishes packets of a synthetic camera into ``raw_<cam>``; with ``foreign``, without our headers and flags."""

    def make(cam: str, packets: Any, *, end: bool = True, foreign: bool = False, lose: tuple[int, ...] = ()) -> Any:
        topic = f"raw_{cam}"
        broker.create_topic(TopicSpec(topic, records=8192, metadata={"finite": end}), exist_ok=True)
        producer = broker.producer(topic)
        for n, packet in enumerate(packets):
            if n in lose:
                continue
            send(producer, packet, cam, foreign=foreign)
        if end:
            producer.end()
        return producer

    return make


def test_identity_of_every_picture_through_b_frames_and_send(address: str, publish: Publish, broker: Broker) -> None:
    """The number in the pixels is the number of the packet that was re-emitted, byte for byte; none is missing.

    Ten thousand of them: ``test_e2e_identity``.
    """
    count = 200
    cams = {f"cam{n}": encoded(count, camera=n) for n in (1, 2, 3, 4)}
    for cam, packets in cams.items():
        publish(cam, packets)
    shown: dict[str, dict[int, int]] = {cam: {} for cam in cams}
    with Comux(list(cams), address=address, start="beginning", produce_schema="out_:cam_id") as mux:
        for batch in mux:
            for cam_id, index, array in batch:
                if array is None:
                    continue
                marks = read_marks(array)
                assert marks is not None, (cam_id, index)
                assert f"cam{marks[0]}" == cam_id
                assert index not in shown[cam_id]
                shown[cam_id][index] = marks[1]
                mux.send(cam_id, index, {"frame": marks[1]})
        mux.flush(10)
        accounts = mux.accounts()
    for cam, packets in cams.items():
        assert accounts[cam].delivered == accounts[cam].received == count
        assert sorted(shown[cam].values()) == list(range(count)), "every picture once"
        with broker.consumer(f"out_{cam}", start="beginning") as results:
            records = results.poll(5, count + 1)
        assert len(records) == count
        for record in records:
            _, _, offset = json.loads(record.header(HEADER_SOURCE))
            original = broker.record_at(f"raw_{cam}", offset)
            assert original is not None
            assert record.value == original.value == packets[offset].data
            assert decode_headers(record)["frame"] == shown[cam][offset]
            assert (record.key, record.timestamp_ns) == (original.key, original.timestamp_ns)


@pytest.mark.parametrize("gop", [30, 250])
@pytest.mark.parametrize("foreign", [False, True])
def test_a_jump_into_a_stream_delivers_no_damaged_picture(
    address: str, publish: Publish, gop: int, foreign: bool, wait_for: Any
) -> None:
    packets = encoded(520, gop=gop)
    producer = publish("a", packets[:1], end=False, foreign=foreign)
    with Comux(["a"], address=address, start="beginning", mode="every_frame", max_offset_diff=20) as mux:
        wait_for(lambda: mux.accounts()["a"].received == 1)
        mux.pause("a")
        wait_for(lambda: mux.get("a").status == "paused")
        for packet in packets[1:]:
            send(producer, packet, foreign=foreign)
        mux.resume("a")
        seen = []
        while (item := mux.read("a", timeout=1.5)) and item:
            marks = read_marks(item.array)
            assert marks is not None, f"a damaged picture at {item.index}"
            seen.append(marks[1])
        account = mux.accounts()["a"]
    newest_key = 519 // gop * gop
    landed = [n for n in seen if n >= newest_key]
    assert seen == sorted(seen)
    assert landed, "it went to the newest keyframe"
    assert all(n < 20 or n >= newest_key for n in seen)
    assert account.dropped["jumped"] >= newest_key - 20
    assert account.balanced
    assert account.received == 520


def test_a_lost_packet_costs_its_group_and_nobody_sees_a_wrong_picture(address: str, publish: Publish) -> None:
    packets = encoded(120)
    publish("a", packets, lose=(40,))
    publish("b", packets)
    got: dict[str, list[int]] = {"a": [], "b": []}
    with Comux(["a", "b"], address=address, start="beginning") as mux:
        for batch in mux:
            for item in batch:
                if item:
                    marks = read_marks(item.array)
                    assert marks is not None, (item.cam_id, item.index)
                    got[item.cam_id].append(marks[1])
        accounts = mux.accounts()
    assert got["b"] == list(range(120))
    assert set(got["a"]) >= set(range(30)) | set(range(60, 120))
    assert accounts["a"].received == 119 == accounts["a"].delivered + accounts["a"].dropped_total
    assert accounts["a"].dropped_total > 0


@pytest.mark.parametrize("kind", ["rgb24", "gray", "planes"])
def test_formats_and_sizes(address: str, publish: Publish, kind: str) -> None:
    publish("a", encoded(60))
    shapes = {"rgb24": (90, 128, 3), "gray": (90, 128), "planes": (135, 128)}
    with Comux(["a"], address=address, start="beginning", array_format=kind, W=128, H=90) as mux:
        items = [item for batch in mux for item in batch if item]
    assert len(items) == 60
    assert {item.array.shape for item in items} == {shapes[kind]}
    assert {item.array.dtype for item in items} == {np.dtype(np.uint8)}


def test_a_topic_says_its_codec(address: str, broker: Broker) -> None:
    broker.create_topic(TopicSpec("raw_a", records=100, metadata={"codec": "mjpeg", "finite": True}))
    producer = broker.producer("raw_a")
    for packet in encoded(20, codec="mjpeg"):
        producer.send(packet.data, flags=KEYFRAME)
    producer.end()
    with Comux(["a"], address=address, start="beginning") as mux:
        items = [item for batch in mux for item in batch if item]
    assert [read_marks(item.array) for item in items] == [(1, n) for n in range(20)]


def test_freshest_keeps_codec_frames_and_stacks_without_a_copy(address: str, publish: Publish, wait_for: Any) -> None:
    cams = ["cam1", "cam2", "cam3"]
    for n, cam in enumerate(cams, 1):
        publish(cam, encoded(60, camera=n), end=False)
    with Comux(cams, address=address, start="beginning", max_offset_diff=1000) as mux:
        wait_for(
            lambda: (
                all(a.received == 60 and not a.held.get("queue") for a in mux.accounts().values())
                and all(s["waiting"] == 2 for s in mux.status()["sources"].values())
            )
        )
        batch = mux.get_batch(timeout=10, min_items=3)
        stacked, mask = batch.stack()
    assert mask.all()
    assert stacked.shape == (3, 120, 160, 3)
    for n, item in enumerate(batch):
        assert np.shares_memory(stacked[n], item.array)
        marks = read_marks(stacked[n])
        assert marks is not None
        assert marks[0] == n + 1
        assert marks[1] >= 56, "the newest that the decoder could give"


def test_arrays_survive_while_the_source_goes_on(address: str, publish: Publish) -> None:
    publish("cam1", encoded(300))
    kept = []
    with Comux(["cam1"], address=address, start="beginning") as mux:
        for (item,) in mux:
            kept.append((item.array, item.array.copy()))
    assert len(kept) == 300
    assert all((array == copy).all() for array, copy in kept)


def test_one_camera_stalls_and_comes_back_while_the_others_go_on(address: str, publish: Publish, wait_for: Any) -> None:
    packets = encoded(120)
    publish("good", packets)
    producer = publish("bad", packets[:40], end=False)
    later = threading.Event()
    with Comux(
        ["good", "bad"], address=address, start="beginning", mode="every_frame", stall_after=0.2, on_end="stop"
    ) as mux:
        got: dict[str, list[int]] = {"good": [], "bad": []}
        while True:
            try:
                batch = mux.get_batch(timeout=0.5)
            except EndOfStream:
                break
            for item in batch:
                if item:
                    marks = read_marks(item.array)
                    assert marks is not None
                    got[item.cam_id].append(marks[1])
                elif item.status == "stalled" and not later.is_set():
                    later.set()
                    for packet in packets[40:]:
                        send(producer, packet)
                    producer.end()
    assert later.is_set()
    assert got == {"good": list(range(120)), "bad": list(range(120))}


RATE = 90_000  # of the clocks in RTP and MPEG, whose 33 bits are all used up every 26.5 hours
ROUND = 1 << 33


@pytest.mark.parametrize("codec", ["h264", "hevc"])
@pytest.mark.parametrize("how", ["set back", "wraps"])
def test_timestamps_that_leap_in_mid_gop_cost_no_picture(address: str, broker: Broker, codec: str, how: str) -> None:
    packets = encoded(60, codec=codec)
    broker.create_topic(TopicSpec("raw_a", records=100, metadata={"codec": codec, "finite": True}))
    producer = broker.producer("raw_a")
    stamps = []
    for n in range(len(packets)):
        ticks = ROUND + (n - 47) * RATE // 30
        if how == "wraps":
            stamps.append(ticks % ROUND * 10**9 // RATE)
        else:
            stamps.append(ticks * 10**9 // RATE - 3600 * 10**9 * (n >= 47))
    for packet, stamp in zip(packets, stamps, strict=True):
        headers = ((HEADER_CLOCK, b"0123456789ab"),)  # the camera's own, so that an age is no fact
        producer.send(packet.data, flags=KEYFRAME if packet.keyframe else 0, headers=headers, timestamp_ns=stamp)
    producer.end()
    with Comux(["a"], address=address, start="beginning", max_age=20.0) as mux:
        items = [item for batch in mux for item in batch if item]
        account, clock_epochs = mux.accounts()["a"], mux.status()["sources"]["a"]["clock_epochs"]
    assert [read_marks(item.array) for item in items] == [(1, n) for n in range(60)]
    assert [item.record.timestamp_ns for item in items] == [stamps[item.index] for item in items]
    assert clock_epochs == 1
    assert account.received == account.delivered == 60 and account.balanced
