"""Over real Kafka: where a source starts, where it goes on, and how one that fell behind comes back to the present."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from kafka.net.manager import KafkaConnectionManager
from kafka_rooms import Room, room
from service_fixtures import KafkaCluster, until

from comux import Comux
from comux.feeds import read_marks

GOP = 30
CAMERA = f"synthetic://160x120@30?camera=1&seed=1&gop={GOP}&bframes=0"


class Requests:
    """Counts what kafka-python's clients ask the cluster for, by kind."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._send = KafkaConnectionManager.send

    def __enter__(self) -> Requests:
        def send(manager: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
            with self._lock:
                self.counts[type(request).__name__.removesuffix("Request")] += 1
            return self._send(manager, request, *args, **kwargs)

        KafkaConnectionManager.send = send
        return self

    def __exit__(self, *_: object) -> None:
        KafkaConnectionManager.send = self._send


def _take(cameras: Comux, timeout: float = 10.0) -> tuple[int, int] | None:
    """Index and frame number of the next picture."""
    item = cameras.read("cam", timeout=timeout)
    if not item:
        return None
    marks = read_marks(item.array)
    assert marks is not None, f"{item!r}: the numbers in the picture cannot be read"
    return item.index, marks[1]


def _source(cameras: Comux) -> dict[str, Any]:
    return dict(cameras.status()["sources"]["cam"])


# -- starts --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(kafka: KafkaCluster) -> Iterator[Room]:
    """Ninety packets with keyframes at 0, 30 and 60, a thirtieth of a second apart, in the past."""
    with room(kafka.bootstrap) as place:
        place.feed(CAMERA, "raw_cam", pace="fast", frames=90, end=False).join()
        yield place


@pytest.mark.parametrize(
    ("start", "first", "before_the_keyframe"),
    [
        ("beginning", 0, 0),
        (0, 0, 0),
        (30, 30, 0),
        (45, 60, 15),
        ("keyframe", 60, 0),
        ("time of 30", 30, 0),
        ("time of 31", 60, 29),
    ],
)
def test_the_first_picture_is_that_of_the_start(
    recorded: Room, start: Any, first: int, before_the_keyframe: int
) -> None:
    if isinstance(start, str) and start.startswith("time"):
        offset = int(start.rpartition(" ")[2])
        record = recorded.broker.record_at("raw_cam", offset)
        assert record is not None
        start = record.timestamp_ns / 1e9
    with Comux(["cam"], address=recorded.address, start=start, mode="every_frame") as cameras:
        assert _take(cameras) == (first, first)
        books = cameras.accounts()["cam"]
        assert books.balanced
        assert books.dropped.get("resync", 0) == before_the_keyframe


def test_a_source_that_starts_at_the_end_sees_what_comes_after(there: Room) -> None:
    there.feed(CAMERA, "raw_cam", pace="fast", frames=45, end=False).join()
    with Comux(["cam"], address=there.address, mode="every_frame") as cameras:
        there.feed(CAMERA, "raw_cam", pace="fast", frames=40, end=False).join()
        assert [_take(cameras) for _ in range(40)] == [(45 + frame, frame) for frame in range(40)]


def test_a_source_that_is_updated_goes_on_at_its_position(there: Room) -> None:
    there.feed(CAMERA, "raw_cam", pace="fast", frames=200, end=False).join()
    with Comux(["cam"], address=there.address, mode="every_frame", start="beginning") as cameras:
        seen: list[int] = []
        for turn in range(3):
            for _ in range(20):
                picture = _take(cameras)
                assert picture is not None
                assert picture[0] == picture[1]
                seen.append(picture[0])
            cameras.update("cam", W=80 + 16 * turn, H=60)
            assert cameras.accounts()["cam"].balanced
        while seen[-1] < 199:
            picture = _take(cameras)
            assert picture is not None, _source(cameras)
            seen.append(picture[0])
        assert seen == sorted(set(seen))
        books = cameras.accounts()["cam"]
        assert (books.received, books.delivered, books.held_total) == (200, len(seen), 0)
        assert books.dropped_total == 200 - len(seen)
        assert books.dropped.keys() <= {"updated", "resync"}


# -- lag -----------------------------------------------------------------------------------------------------------


def _fall_behind(there: Room, cameras: Comux, send: Any) -> tuple[int, int]:
    """Read the first packets, pause, let 300 packets come; gives the position and the high-water mark."""
    send(60)
    until(lambda: (_take(cameras, 0.1) or (0, 0))[0] == 59, "the first pictures")
    cameras.pause("cam")
    until(lambda: _source(cameras)["state"] == "PAUSED", "the source is paused")
    send(300)
    return _source(cameras)["position"], there.broker.topic("raw_cam").high_water


@pytest.mark.parametrize("flagged", [True, False], ids=["flagged", "foreign"])
def test_a_source_that_fell_behind_jumps_to_the_newest_keyframe(there: Room, flagged: bool) -> None:
    def send(packets: int) -> None:
        if flagged:
            there.feed(CAMERA, "raw_cam", pace="fast", frames=packets, end=False).join()
        else:
            there.foreign("raw_cam", f"{CAMERA}&frames={packets}")

    there.topic("raw_cam", metadata={"codec": "h264"})
    options = {"max_offset_diff": 100, "mode": "every_frame", "start": "beginning"}
    with Comux(["cam"], address=there.address, **options) as cameras:
        position, high_water = _fall_behind(there, cameras, send)
        assert (position, high_water) == (60, 360)
        with Requests() as requests:
            cameras.resume("cam")
            pictures: list[int] = []
            while not pictures or pictures[-1] != 359:
                picture = _take(cameras)
                assert picture is not None, (pictures, _source(cameras))
                pictures.append(picture[0])
            books = cameras.accounts()["cam"]
        landed = [index for index in pictures if index >= 330]
        assert landed == list(range(330, 360))
        assert len(pictures) - len(landed) <= 3, "what was known when it was resumed may cost one jump more"
        assert books.balanced
        assert (books.received, books.delivered, books.held_total) == (360, 60 + len(pictures), 0)
        assert books.dropped == {"jumped": 330 - 60 - (len(pictures) - len(landed))}
        print(f"requests: {dict(requests.counts)}")
        asked = sum(count for kind, count in requests.counts.items() if kind not in ("Fetch", "ApiVersions"))
        assert asked <= 20, requests.counts
        assert requests.counts["Fetch"] < 60, requests.counts


def test_keeping_up_asks_the_cluster_for_nothing_but_packets(there: Room) -> None:
    """Lag is looked at before each packet, and costs no round trip."""
    with Comux(["cam"], address=there.address, strict_on_fail=False, max_offset_diff=20, max_age=5.0) as cameras:
        feed = there.feed(CAMERA, "raw_cam", pace=100)
        until(lambda: (_take(cameras, 0.1) or (0, 0))[0] > 20, "pictures")
        with Requests() as requests:
            first = cameras.accounts()["cam"].received
            until(lambda: _take(cameras, 0.1) and cameras.accounts()["cam"].received > first + 200, "200 packets")
            cameras.status()
        feed.end()
    print(f"requests while 200 packets came: {dict(requests.counts)}")
    others = sum(count for kind, count in requests.counts.items() if kind not in ("Fetch", "Produce"))
    assert others <= 5, requests.counts


def test_a_limit_in_seconds_jumps_too(there: Room) -> None:
    options = {"max_age": 1.0, "mode": "every_frame", "strict_on_fail": False}
    with Comux(["cam"], address=there.address, **options) as cameras:
        feed = there.feed(CAMERA, "raw_cam", pace=60)
        until(lambda: _take(cameras, 0.1), "a picture")
        cameras.pause("cam")
        position = there.broker.topic("raw_cam").high_water
        until(lambda: there.broker.topic("raw_cam").high_water > position + 180, "three seconds of packets")
        cameras.resume("cam")
        until(lambda: _take(cameras, 0.1) and _source(cameras)["lag_seconds"] < 1.0, "the present")
        source = _source(cameras)
        feed.end()
    assert source["jumps"] >= 1
    assert source["account"]["dropped"]["jumped"] > 60
    assert source["account"]["balanced"]


def test_a_camera_that_nobody_looks_at_fills_no_memory_and_comes_back_to_the_present(there: Room) -> None:
    """A loop that stands still: the packets that wait are bounded, the mark is asked for seldom, then it jumps."""
    options = {"mode": "every_frame", "max_offset_diff": 20, "store_bytes": 200_000, "strict_on_fail": False}
    client = {"queue_bytes": 20_000}
    with Comux(["cam"], address=there.address, client_options=client, **options) as cameras:
        feed = there.feed(CAMERA, "raw_cam", pace=300)
        until(lambda: _take(cameras, 0.1), "a picture")
        position = there.broker.topic("raw_cam").high_water
        until(lambda: there.broker.topic("raw_cam").high_water > position + 600, "two seconds of packets")
        until(lambda: _source(cameras)["lag"] > 300, "the lag is known, though nothing is fetched")
        feed.end()
        last = there.broker.topic("raw_cam").high_water - 1
        until(lambda: (_take(cameras, 0.1) or (0, 0))[0] == last, "the newest picture")
        books = cameras.accounts()["cam"]
    assert books.balanced
    assert books.received == last + 1
    assert books.dropped["jumped"] > 200
