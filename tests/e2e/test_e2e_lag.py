"""The lag rule end to end: after a jump into real H.264 no picture is damaged, nothing goes back, nothing livelocks."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from comux import Comux
from comux.decoders import create_decoder
from comux.decoders.interface import DecoderOptions
from comux.feeds import read_marks

PICTURES = 700


def _camera(gop: int, *, open_gop: int = 0, pictures: int = PICTURES) -> str:
    return f"synthetic://160x120@120?gop={gop}&bframes=2&open_gop={open_gop}&camera=1&frames={pictures}"


def _undamaged(place: Any, topic: str) -> dict[int, npt.NDArray[Any]]:
    """Every picture of the topic by its number, decoded from the first packet on without a jump."""
    decoder = create_decoder(DecoderOptions(codec="h264"))
    try:
        outcomes = [outcome for record in place.retained(topic) for outcome in decoder.feed(record)]
        outcomes += decoder.drain()
    finally:
        decoder.close()
    arrays = [outcome.picture.to_array() for outcome in outcomes if outcome.picture is not None]
    pictures = {marks[1]: array for array in arrays if (marks := read_marks(array)) is not None}
    assert len(pictures) == len(arrays)
    return pictures


def _topic(place: Any) -> None:
    place.topic("raw_cam", records=2048, data_bytes=16 << 20, metadata={"codec": "h264"})


class _Watcher:
    """Takes pictures and keeps what they showed."""

    def __init__(self, cameras: Comux) -> None:
        self._cameras = cameras
        self.seen: list[tuple[int, npt.NDArray[Any]]] = []

    def take(self, timeout: float = 1.0) -> bool:
        """One picture, if one comes in time."""
        item = self._cameras.read("cam", timeout=timeout)
        if item:
            marks = read_marks(item.array)
            assert marks is not None, f"{item!r}: the numbers in the picture cannot be read"
            self.seen.append((marks[1], item.array))
        return bool(item)

    @property
    def frames(self) -> list[int]:
        return [frame for frame, _ in self.seen]


def _check(place: Any, cameras: Comux, watcher: _Watcher, pictures: int) -> dict[str, int]:
    """What holds after every run; gives the drops by cause."""
    reference = _undamaged(place, "raw_cam")
    assert len(reference) == pictures
    for frame, array in watcher.seen:
        assert np.array_equal(array, reference[frame]), f"picture {frame} is damaged"
    assert watcher.frames == sorted(set(watcher.frames)), "a picture went back, or came twice"
    assert watcher.frames[-1] == pictures - 1, "the last picture never came"
    status = cameras.status()["sources"]["cam"]
    books = cameras.accounts()["cam"]
    assert books.balanced and books.held_total == 0
    assert (books.received, books.delivered) == (pictures, len(watcher.seen))
    assert status["jumps"] <= len(watcher.seen), "every jump yields a picture"
    assert status["lag"] == 0
    return dict(books.dropped)


@pytest.mark.parametrize(
    ("gop", "open_gop", "limit", "causes"),
    [
        pytest.param(30, 0, 20, {"jumped"}, marks=pytest.mark.core),
        (30, 1, 20, {"jumped"}),
        (250, 0, 20, {"lag"}),
        (250, 1, 20, {"lag"}),
        pytest.param(30, 0, 5, {"jumped"}, id="limit below the GOP"),
        pytest.param(250, 0, 5, {"lag"}, id="limit far below the GOP"),
    ],
)
def test_a_slow_loop_jumps_over_pictures_and_shows_none_that_is_damaged(
    place: Any, until: Any, gop: int, open_gop: int, limit: int, causes: set[str]
) -> None:
    _topic(place)
    # Three pictures fill the store, so the source waits for the loop, and the topic runs ahead of the source.
    source = {"cam_id": "cam", "mode": "every_frame", "max_offset_diff": limit, "store_bytes": 180_000}
    with Comux([source], address=place.address) as cameras:
        watcher = _Watcher(cameras)
        feed = place.feed(_camera(gop, open_gop=open_gop), "raw_cam", pace=400)
        slow_until = PICTURES // 2
        while watcher.take(5.0) and watcher.frames[-1] < slow_until:
            ahead = min(PICTURES, place.broker.topic("raw_cam").high_water + 15)
            until(lambda ahead=ahead: place.broker.topic("raw_cam").high_water >= ahead, what="15 more packets")
        feed.join()
        while watcher.frames[-1] < PICTURES - 1:
            assert watcher.take(5.0), f"nothing after picture {watcher.frames[-1]}: {cameras.status()['sources']}"
        dropped = _check(place, cameras, watcher, PICTURES)
    assert causes <= dropped.keys(), f"dropped: {dropped}"
    assert dropped.keys() <= {"jumped", "lag", "resync"}, f"dropped: {dropped}"


@pytest.mark.parametrize("gop", [30, 250])
def test_a_camera_that_was_paused_goes_on_at_the_present(place: Any, until: Any, gop: int) -> None:
    _topic(place)
    with Comux(["cam"], address=place.address) as cameras:
        watcher = _Watcher(cameras)
        feed = place.feed(_camera(gop), "raw_cam", pace=200)
        for stop_at in (100, 300, 470):
            until(lambda stop_at=stop_at: watcher.take() and watcher.frames[-1] >= stop_at)
            cameras.pause("cam")
            missed = place.broker.topic("raw_cam").high_water + 70
            until(lambda missed=missed: place.broker.topic("raw_cam").high_water >= missed)
            while watcher.take(0):
                pass
            paused_at = watcher.frames[-1]
            cameras.resume("cam")
            assert watcher.take(5.0)
            assert watcher.frames[-1] > paused_at
        feed.join()
        until(lambda: not watcher.take(1.0) and watcher.frames[-1] == PICTURES - 1, what="the last picture")
        dropped = _check(place, cameras, watcher, PICTURES)
        jumps = cameras.status()["sources"]["cam"]["jumps"]
    # A GOP of 30 has a keyframe within every 70 packets missed: three pauses, three jumps at least.
    assert jumps >= 3 if gop == 30 else dropped.get("lag", 0) > 0, f"{jumps} jumps, dropped: {dropped}"


def test_a_limit_in_seconds_far_below_the_gop_still_shows_pictures(place: Any) -> None:
    """Every record is older than the limit allows: pictures still come, forward, undamaged."""
    _topic(place)
    source = {"cam_id": "cam", "max_age": 0.001}
    with Comux([source], address=place.address) as cameras:
        watcher = _Watcher(cameras)
        feed = place.feed(_camera(30, pictures=240), "raw_cam", pace=120)
        deadline = time.monotonic() + 20
        while len(watcher.seen) < 20:
            assert time.monotonic() < deadline, f"{len(watcher.seen)} pictures in 20 s"
            watcher.take(0.5)
        feed.join()
        reference = _undamaged(place, "raw_cam")
        assert all(np.array_equal(array, reference[frame]) for frame, array in watcher.seen)
        assert watcher.frames == sorted(set(watcher.frames))
        assert cameras.accounts()["cam"].balanced
