"""Memory for pictures follows the sources: those that come bring their share, those that go take it along."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from comux import Comux

PICTURE = 4096  # bytes: 8 x 16 x 3 in whole pages


@pytest.fixture
def start(address: str, fake: Any) -> Iterator[Callable[..., Comux]]:
    opened: list[Comux] = []

    def new(ids: list[str], **options: Any) -> Comux:
        opened.append(Comux(ids, address=address, decoder_factory=fake, **options))
        opened[-1].start()
        return opened[-1]

    yield new
    for mux in opened:
        mux.close()


def picture(mux: Comux, cam: str) -> None:
    """Take one picture of a source and let go of it."""
    assert mux.read(cam, timeout=10)


@pytest.mark.parametrize("mode", ["every_frame", "freshest"])
def test_sources_that_come_and_go_map_no_more_memory_than_their_own(start: Any, feed: Any, mode: str) -> None:
    feed("a", gop=1).send(1)
    mux = start(["a"], mode=mode, start="beginning")
    picture(mux, "a")
    pool = mux._core.pool
    mapped: list[int] = []
    idle: list[int] = []
    for _ in range(6):
        mux.create("b", consume_topic="raw_a")
        picture(mux, "b")
        mux.update("b", W=64, H=64)
        mux.delete("b")
        mapped.append(pool.mapped)
        idle.append(pool.idle_bytes)
    steps = {b - a for a, b in itertools.pairwise(mapped[1:])}
    assert len(steps) == 1 and steps.pop() <= 3, mapped
    assert len(set(idle[1:])) == 1, idle


@pytest.mark.parametrize("mode", ["every_frame", "freshest"])
def test_a_source_that_is_deleted_or_changed_takes_its_memory_along(start: Any, feed: Any, mode: str) -> None:
    feed("a", gop=1).send(1)
    large = feed("large", gop=1)
    large.send(1)
    mux = start(["a"], mode=mode, start="beginning")
    picture(mux, "a")
    pool = mux._core.pool
    before = pool.idle_bytes
    assert before >= PICTURE
    mux.create("large", W=640, H=640)
    picture(mux, "large")
    assert pool.idle_bytes > before + 640 * 640 * 3
    mux.update("large", W=16, H=8)
    large.send(1)
    picture(mux, "large")
    assert pool.idle_bytes < 640 * 640 * 3, "the large pictures' memory is given back when smaller ones come"
    mux.delete("large")
    assert pool.idle_bytes <= before + 2 * PICTURE
    mux.delete("a")
    assert pool.idle_bytes == 0
