"""Memory for pictures follows the sources and keeps to its limits: those that come bring their share, those that go
take it along, and all of them together never hold more than was said."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from comux import Comux
from comux.errors import ConfigError
from comux.multiplexer.pictures import PictureStore

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


# -- the limit of all sources together ------------------------------------------------------------------------------

ENTRY = 8 * 16 * 3 + 300  # bytes of a waiting picture with its packet: 384 and what the packet takes, about


@pytest.fixture
def most_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What all stores held after each picture that came in."""
    seen: list[int] = []
    put = PictureStore.put

    def watched(store: PictureStore, entry: Any, place: str) -> bool:
        came = put(store, entry, place)
        with store._hub.lock:
            seen.append(store._hub.nbytes)
        return came

    monkeypatch.setattr(PictureStore, "put", watched)
    return seen


def taken(mux: Comux, count: int) -> dict[str, list[int]]:
    got: dict[str, list[int]] = {cam: [] for cam in mux.cam_ids}
    while any(len(indexes) < count for indexes in got.values()):
        batch = mux.get_batch(timeout=10)
        assert batch.fresh, "nothing within the timeout"
        for item in batch.fresh:
            got[item.cam_id].append(item.index)
    return got


def test_all_sources_together_keep_to_their_limit(start: Any, feed: Any, wait_for: Any, most_bytes: list[int]) -> None:
    ids = ["a", "b", "c"]
    feeds = [feed(cam) for cam in ids]
    for f in feeds:
        f.send(1)
    limit = 5 * ENTRY
    mux = start(ids, mode="every_frame", start="beginning", store_bytes_total=limit)
    sources = mux._core.table.sources
    assert taken(mux, 1) == {cam: [0] for cam in ids}, "now it is known how large their pictures are"
    for f in feeds:
        f.send(40)
    wait_for(lambda: all(source.store.blocked for source in sources))
    memory = mux.status()["memory"]
    assert 3 * 384 <= memory["waiting_bytes"] <= memory["waiting_bytes_max"] == limit
    waiting = [mux.status()["sources"][cam] for cam in ids]
    assert sum(one["waiting_bytes"] for one in waiting) == memory["waiting_bytes"]
    assert all(one["waiting"] >= 1 for one in waiting), "every source has one in, whoever came first"
    assert taken(mux, 40) == {cam: list(range(1, 41)) for cam in ids}
    assert max(most_bytes) <= limit
    assert mux.status()["memory"]["waiting_bytes"] == 0
    for cam in ids:
        mux.delete(cam)
    assert (mux._core.hub.nbytes, mux._core.hub.reserved) == (0, 0)


def test_a_limit_smaller_than_a_picture_stops_nobody(start: Any, feed: Any, most_bytes: list[int]) -> None:
    ids = ["a", "b", "c"]
    for cam in ids:
        feed(cam).send(30)
    mux = start(ids, mode="every_frame", start="beginning", store_bytes_total=1)
    assert taken(mux, 30) == {cam: list(range(30)) for cam in ids}
    assert max(most_bytes) <= len(ids) * ENTRY


def test_what_one_source_gives_up_another_one_may_use(start: Any, feed: Any, wait_for: Any) -> None:
    one, other = feed("a"), feed("b")
    one.send(40)
    mux = start(["a", "b"], mode="every_frame", start="beginning", store_bytes_total=4 * ENTRY)
    a, b = mux._core.table.sources
    wait_for(lambda: a.store.blocked)
    before = len(a.store)
    assert before > 1
    other.send(40)
    wait_for(lambda: b.store.blocked)
    assert len(b.store) == 1, "the first one is let in, the second has no room"
    mux.pause("a")
    one_left = before
    while one_left > 1:
        assert mux.read("a", timeout=10)
        one_left -= 1
    wait_for(lambda: len(b.store) > 1)
    mux.delete("a")  # and what is closed gives back what it held
    wait_for(lambda: len(b.store) > 2)


def test_the_freshest_give_their_older_picture_up_first(start: Any, feed: Any, wait_for: Any) -> None:
    feed("a").send(40)
    mux = start(["a"], mode="freshest", start="beginning", max_offset_diff=1000, store_bytes_total=1)
    wait_for(lambda: mux.accounts()["a"].received == 40 and mux.accounts()["a"].held.get("pictures") == 1)
    wait_for(lambda: not mux.accounts()["a"].held.get("queue") and not mux.accounts()["a"].held.get("decoder"))
    assert mux.read("a", timeout=10).index == 39
    assert mux.accounts()["a"].dropped["superseded"] == 39


def test_a_picture_that_is_given_back_counts_once(start: Any, feed: Any, wait_for: Any) -> None:
    feed("a").send(1)
    mux = start(["a"], mode="every_frame", start="beginning")
    (source,) = mux._core.table.sources
    wait_for(lambda: len(source.store) == 1)
    hub, claimed = mux._core.hub, []
    with hub.lock:
        whole = hub.nbytes
        source.store.claim(claimed)
        assert hub.nbytes == whole, "it is somebody's, and not delivered yet"
        source.store.give_back(claimed[0])
        assert (hub.nbytes, len(source.store)) == (whole, 1)
    picture(mux, "a")
    assert hub.nbytes == 0


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "1G"])
def test_a_wrong_limit_is_refused_by_name(address: str, wrong: Any) -> None:
    with pytest.raises(ConfigError, match="store_bytes_total"):
        Comux(["a"], address=address, store_bytes_total=wrong)


def test_without_a_limit_only_each_ones_own_holds(start: Any, feed: Any, wait_for: Any) -> None:
    feed("a").send(100)
    mux = start(["a"], mode="every_frame", start="beginning", store_bytes_total=None)
    assert mux.status()["memory"]["waiting_bytes_max"] is None
    (source,) = mux._core.table.sources
    wait_for(lambda: len(source.store) == 64)  # as many pictures as a store holds at most
