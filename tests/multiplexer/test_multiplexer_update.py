"""``update`` of one source: what it costs that source, and that the others and the books do not notice. Real H.264."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest

from comux.feeds.synthetic import parse_synthetic, synthetic_packets
from comux.multiplexer import Comux, Item
from comux.records import HEADER_CODEC, HEADER_CRC32C, HEADER_SEQUENCE, KEYFRAME
from comux.transport import Broker, TopicSpec, connect
from comux.transport.memory import discard

FRAMES = 60


@cache
def encoded(gop: int, codec: str = "h264") -> tuple[Any, ...]:
    address = f"synthetic://160x120@30?gop={gop}&bframes=2&codec={codec}&frames={FRAMES}"
    return tuple(synthetic_packets(parse_synthetic(address)))


class Camera:
    """Publishes a synthetic camera packet by packet into ``raw_<cam>``."""

    def __init__(self, broker: Broker, cam: str, gop: int, codec: str = "h264") -> None:
        broker.create_topic(TopicSpec(f"raw_{cam}", records=1024, metadata={"codec": codec}))
        self.producer = broker.producer(f"raw_{cam}")
        self._packets = iter(encoded(gop, codec))
        self._codec = codec.encode()

    def send(self, count: int) -> None:
        for _, packet in zip(range(count), self._packets, strict=False):
            marks = ((HEADER_SEQUENCE, b"%d" % packet.seq), (HEADER_CRC32C, b"%08x" % packet.crc))
            self.producer.send(
                packet.data, headers=(*marks, (HEADER_CODEC, self._codec)), flags=KEYFRAME if packet.keyframe else 0
            )

    def end(self) -> None:
        self.send(FRAMES)
        self.producer.end()


def take(mux: Comux, cam: str, count: int) -> list[Item]:
    items = [mux.read(cam, timeout=15) for _ in range(count)]
    assert all(items), items
    return items


@pytest.fixture
def other() -> Iterator[str]:
    """Another store of the in-memory engine."""
    yield f"memory://other{os.getpid()}"
    discard(f"other{os.getpid()}")


@pytest.fixture
def start(address: str) -> Iterator[Callable[..., Comux]]:
    opened: list[Comux] = []

    def new(cams: list[str], **options: Any) -> Comux:
        opened.append(Comux(cams, address=address, mode="every_frame", start="beginning", **options))
        opened[-1].start()
        return opened[-1]

    yield new
    for mux in opened:
        mux.close()
        for cam_id, account in mux.accounts().items():
            assert account.balanced and account.held_total == 0, (cam_id, account)


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({"W": 80, "H": 60}, (60, 80, 3)),
        ({"array_format": "gray"}, (120, 160)),
        ({"rate": None}, (120, 160, 3)),
        ({"maxlen": 5, "max_age": 100.0}, (120, 160, 3)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_between_two_keyframes_no_picture_is_lost(
    start: Any, broker: Broker, wait_for: Any, changes: dict[str, Any], shape: tuple[int, ...]
) -> None:
    """One keyframe at the beginning, no other: a decoder made anew would never make a picture again."""
    camera = Camera(broker, "a", gop=FRAMES)
    mux = start(["a"])
    camera.send(20)
    indices: list[int] = []

    def all_in() -> bool:
        """What is fed is decoded, but for the pictures that wait for later ones; what is decoded is taken."""
        item = mux.read("a", timeout=0.2)
        if item:
            indices.append(item.index)
        return not item and mux.status()["sources"]["a"]["position"] == 20

    wait_for(all_in, 30)
    before = mux.accounts()["a"]
    assert before.held_total == before.held.get("decoder", 0) > 0, "B-frames: some are still in the decoder"
    mux.update("a", **changes)
    camera.end()
    after = take(mux, "a", FRAMES - len(indices))
    assert sorted(indices + [item.index for item in after]) == list(range(FRAMES))
    assert {item.array.shape for item in after} == {shape}
    books = mux.accounts()["a"]
    assert (books.received, books.delivered, dict(books.dropped)) == (FRAMES, FRAMES, {})


def test_a_file_keeps_its_decoder_although_it_would_get_fewer_threads_now(
    start: Any, broker: Broker, wait_for: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comux.multiplexer.core.os.cpu_count", lambda: 4)
    camera = Camera(broker, "a", gop=FRAMES)
    Camera(broker, "b", gop=FRAMES).end()
    mux = start(["a"], on_end="stop", maxlen=FRAMES)
    camera.send(20)
    taken = [item.index for item in take(mux, "a", 10)]
    wait_for(lambda: mux.status()["sources"]["a"]["position"] == 20 and not mux._core.find("a").store.blocked, 30)
    mux.create("b")
    waiting = mux.accounts()["a"].held.get("pictures", 0)
    mux.update("a", W=80, H=60)
    camera.end()
    while len(taken) + mux.accounts()["a"].dropped_total < FRAMES:
        taken += [item.index for item in take(mux, "a", 1)]
    assert len(set(taken)) == len(taken) and set(mux.accounts()["a"].dropped) <= {"updated"}
    assert mux.accounts()["a"].dropped_total <= waiting + 4 and len(taken) >= 40


def test_an_update_right_after_the_start_waits_for_no_other_keyframe(start: Any, broker: Broker) -> None:
    """Whatever its thread has done by then: nothing, opened its topic, read ahead, fed the decoder."""
    for number in range(12):
        camera = Camera(broker, f"c{number}", gop=FRAMES)
        camera.send(FRAMES // 2)
        mux = start([f"c{number}"], store_bytes=1)  # one picture at a time: the others wait where they are
        mux.update(f"c{number}", W=80, H=60)
        camera.end()
        taken = 0
        while taken + mux.accounts()[f"c{number}"].dropped_total < FRAMES:
            taken += len(take(mux, f"c{number}", 1))
        dropped = dict(mux.accounts()[f"c{number}"].dropped)
        # The picture that waited to be taken was of the old size, and those that came out of the decoder after it.
        assert set(dropped) <= {"updated"} and dropped.get("updated", 0) <= 4, dropped
        mux.close()


@pytest.mark.parametrize(
    "change", ["rate", "size", "pixel format", "array format", "codec and topic", "topic", "address"]
)
def test_each_change_leaves_the_others_alone_and_keeps_the_account(
    start: Any, broker: Broker, wait_for: Any, other: str, change: str
) -> None:
    cameras = {cam: Camera(broker, cam, gop=10) for cam in ("a", "b")}
    Camera(broker, "a2", gop=10).end()
    Camera(broker, "hevc", gop=10, codec="hevc").end()
    changes: dict[str, Any] = {
        "rate": {"rate": 1e9},
        "size": {"W": 64, "H": 48},
        "pixel format": {"pix_fmt": "yuv420p"},
        "array format": {"array_format": "rgb24"},
        "codec and topic": {"consume_topic": "raw_hevc", "codec": "hevc"},
        "topic": {"consume_topic": "raw_a2"},
        "address": {"address": other},
    }
    with connect(other) as elsewhere:
        Camera(elsewhere, "a", gop=10).end()
        mux = start(["a", "b"])
        for camera in cameras.values():
            camera.send(FRAMES // 2)
        mine, others = take(mux, "a", 12), take(mux, "b", 12)
        answer = mux.update("a", **changes[change])
        assert answer["success"] and {k: answer["source"][k] for k in changes[change]} == changes[change]
        for camera in cameras.values():
            camera.end()
        others += take(mux, "b", FRAMES - 12)
        mine += take(mux, "a", 20)
        books = mux.accounts()
    assert sorted(item.index for item in others) == list(range(FRAMES))
    assert dict(books["b"].dropped) == {} and books["b"].delivered == books["b"].received == FRAMES
    assert books["a"].balanced and books["a"].delivered >= 32, "the account goes on"
    assert books["a"].received > FRAMES // 2
    wanted = {"size": (48, 64, 3)}.get(change, (120, 160, 3))
    assert {item.array.shape for item in mine[12:]} == {wanted}
    assert [item.cam_id for item in mux.get_batch(timeout=0)] == ["a", "b"]


def test_a_wrong_codec_is_put_right_while_the_source_runs(start: Any, broker: Broker) -> None:
    """Nothing on the topic says what it holds; the program said the wrong thing, and then the right one."""
    broker.create_topic(TopicSpec("raw_mute", records=1024))
    Camera(broker, "other", gop=10).end()
    mux = start(["mute", "other"], codec="h264")
    with broker.producer("raw_mute") as producer:
        packets = encoded(10, "hevc")
        for packet in packets[:20]:
            producer.send(packet.data)
        assert not mux.read("mute", timeout=1), "HEVC is no H.264"
        assert mux.accounts()["mute"].delivered == 0
        mux.update("mute", codec="hevc")
        for packet in packets[20:]:
            producer.send(packet.data)
    items = take(mux, "mute", 20)
    assert all(item.array.shape == (120, 160, 3) for item in items)
    assert len(take(mux, "other", 10)) == 10
