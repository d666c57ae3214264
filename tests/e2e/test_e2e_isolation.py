"""Isolation: what happens to one source changes nothing for the others, and costs no time-out of its own."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from comux import Comux
from comux.feeds import read_marks
from comux.records import KEYFRAME

GOOD = ("good1", "good2", "good3")
PICTURES = 120
CAMERA = "synthetic://160x120@30?gop=15&bframes=2&camera={camera}"


def _good_topics(place: Any) -> None:
    for cam in GOOD:
        place.topic(f"raw_{cam}", records=512, metadata={"codec": "h264", "finite": True})


def _good_feeds(place: Any) -> list[Any]:
    """Three cameras of 120 pictures each, over about two seconds."""
    return [
        place.feed(f"{CAMERA.format(camera=number)}&frames={PICTURES}", f"raw_{cam}", pace=60)
        for number, cam in enumerate(GOOD, 1)
    ]


def _killed(place: Any) -> Iterator[None]:
    program = place.program("publish", topic="raw_bad", source=CAMERA.format(camera=9))
    yield
    program.kill()
    yield


def _stalled(place: Any) -> Iterator[None]:
    feed = place.feed(CAMERA.format(camera=9) + "&faults=stall@0.5s+60s", "raw_bad")
    yield
    yield
    feed.end()


def _garbage(place: Any) -> Iterator[None]:
    place.feed(CAMERA.format(camera=9), "raw_bad", frames=40, end=False, pace=60)
    yield
    chance = random.Random(4)
    stop = threading.Event()

    def pour() -> None:
        with place.broker.producer("raw_bad") as producer:
            while not stop.wait(0.01):
                producer.send(chance.randbytes(chance.randrange(1, 4000)), flags=KEYFRAME, timeout=1)

    thread = threading.Thread(target=pour, name="comux-test-garbage")
    thread.start()
    yield
    stop.set()
    thread.join()


def _made_anew(place: Any) -> Iterator[None]:
    feed = place.feed(CAMERA.format(camera=9), "raw_bad")
    yield
    feed.end()
    place.broker.delete_topic("raw_bad", force=True)
    yield


TROUBLES: dict[str, tuple[Callable[[Any], Iterator[None]], set[str]]] = {
    "killed": (_killed, {"stalled"}),
    "stalled": (_stalled, {"stalled"}),
    "garbage": (_garbage, {"decode_error"}),
    "topic deleted": (_made_anew, {"reconnecting"}),
}


@contextmanager
def _trouble(kind: str, place: Any) -> Iterator[Callable[[], None]]:
    """The bad camera: it runs on entry, and what is given makes the trouble begin."""
    steps = TROUBLES[kind][0](place)
    next(steps)
    try:
        yield lambda: next(steps)
    finally:
        for _ in steps:
            pass


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.core] * (k == "killed")) for k in TROUBLES])
def test_one_source_in_trouble_leaves_the_pictures_of_the_others_alone(place: Any, kind: str, until: Any) -> None:
    _good_topics(place)
    place.topic("raw_bad", records=512, policy="drop_oldest", metadata={"codec": "h264"})
    frames: dict[str, list[int]] = {cam: [] for cam in GOOD}
    said: dict[str, str] = {}
    sources = [*GOOD, {"cam_id": "bad", "stall_after": 0.3, "start": "end"}]
    with Comux(sources, address=place.address, start="beginning") as cameras, _trouble(kind, place) as begin:
        until(lambda: cameras.read("bad", timeout=5), what="a first picture of the bad camera")
        feeds = _good_feeds(place)
        begin()
        deadline = time.monotonic() + 30
        while min(map(len, frames.values())) < PICTURES or not said.keys() & TROUBLES[kind][1]:
            assert time.monotonic() < deadline, f"{ {c: len(f) for c, f in frames.items()} }, the bad one says {said}"
            batch = cameras.get_batch(timeout=1)
            for item in batch.fresh:
                marks = read_marks(item.array)
                if item.cam_id != "bad":
                    assert marks is not None
                    frames[item.cam_id].append(marks[1])
            if not batch.of("bad"):
                said.setdefault(str(batch.of("bad").status), batch.of("bad").reason)
        for feed in feeds:
            assert feed.join().records == PICTURES
        assert frames == {cam: list(range(PICTURES)) for cam in GOOD}
        assert all(said[status] for status in said.keys() & TROUBLES[kind][1]), f"no reason is given: {said}"
        assert all(books.balanced for books in cameras.accounts().values())


def test_a_topic_made_anew_is_read_from_its_first_picture(place: Any, until: Any) -> None:
    place.topic("raw_cam", records=512, policy="drop_oldest", metadata={"codec": "h264"})
    with Comux(["cam"], address=place.address, mode="every_frame") as cameras:
        feed = place.feed(CAMERA.format(camera=1), "raw_cam")
        until(lambda: cameras.read("cam", timeout=5))
        feed.end()
        until(lambda: not cameras.read("cam", timeout=0.2), what="the last picture of the first topic")
        place.broker.delete_topic("raw_cam", force=True)
        until(lambda: cameras.read("cam", timeout=0.1).status == "reconnecting", what="status reconnecting")
        place.feed(CAMERA.format(camera=2), "raw_cam", frames=20, pace="fast")
        first = until(lambda: cameras.read("cam", timeout=1), what="a picture of the second topic")
        assert read_marks(first.array) == (2, 0)


@pytest.mark.core
def test_three_silent_sources_cost_one_time_out_and_not_three(place: Any, until: Any) -> None:
    cams = ["cam1", "cam2", "cam3", "cam4"]
    for cam in cams:
        place.topic(f"raw_{cam}", records=512, policy="drop_oldest", metadata={"codec": "h264"})
    with Comux(cams, address=place.address) as cameras:
        feeds = [place.feed(CAMERA.format(camera=n), f"raw_{cam}") for n, cam in enumerate(cams, 1)]
        until(lambda: len(cameras.get_batch(timeout=2, min_items=4).fresh) == 4, what="a picture of each camera")
        for feed in feeds[1:]:
            feed.end()
        for cam in cams[1:]:
            until(lambda cam=cam: cameras.get(cam).status == "ended", what=f"the last picture of {cam}")
        began = time.monotonic()
        batch = cameras.get_batch(timeout=1, min_items=4)
        took = time.monotonic() - began
        assert 0.5 < took < 2.0, f"three silent sources took {took:.2f} s with timeout=1"
        assert [bool(item) for item in batch] == [True, False, False, False]
        assert all(item.reason for item in batch[1:])
        assert {str(item.status) for item in batch[1:]} <= {"ended", "stalled", "no_new_frame"}
        began = time.monotonic()
        until(lambda: cameras.get_batch(timeout=1).of("cam1"), what="a picture of the one that runs")
        assert time.monotonic() - began < 2.0
