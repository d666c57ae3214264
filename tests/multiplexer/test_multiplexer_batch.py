"""``get_batch``: modes, window, one deadline, reasons, order, interrupts; with a decoder that a test controls."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from comux.errors import ClosedError, ConfigError, EndOfStream, UnknownSourceError, WaitTimeoutError
from comux.multiplexer import Batch, Comux, Item, Status


@pytest.fixture
def cameras(address: str, fake: Any, feed: Any) -> Iterator[Callable[..., tuple[Comux, list[Any]]]]:
    """Starts a manager over N feeds: ``cameras(2, mode="every_frame")``."""
    opened: list[Comux] = []

    def make(count: int, *, gop: int = 10, **options: Any) -> tuple[Comux, list[Any]]:
        ids = [f"cam{n}" for n in range(count)]
        feeds = [feed(cam, gop=gop) for cam in ids]
        mux = Comux(ids, address=address, decoder_factory=fake, **options)
        opened.append(mux)
        mux.start()
        return mux, feeds

    yield make
    for mux in opened:
        mux.close()
        for cam_id, account in mux.accounts().items():
            assert account.balanced, (cam_id, account)
            assert account.held_total == 0, (cam_id, account)


def settled(mux: Comux, cam_id: str, received: int) -> bool:
    """Whether the source has dealt with so many packets."""
    account = mux.accounts()[cam_id]
    return account.received == received and not account.held.get("queue") and not account.held.get("decoder")


def test_every_frame_gives_all_in_order_once(cameras: Any) -> None:
    mux, feeds = cameras(3, mode="every_frame")
    for f in feeds:
        f.send(60)
    got: dict[str, list[int]] = {f"cam{n}": [] for n in range(3)}
    while any(len(indexes) < 60 for indexes in got.values()):
        batch = mux.get_batch(timeout=10)
        assert batch.cam_ids == ("cam0", "cam1", "cam2")
        assert batch.fresh, "nothing within the timeout"
        for cam_id, index, array in batch:
            if array is not None:
                assert array.shape == (8, 16, 3)
                assert array[0, 0, 0] == index % 251
                got[cam_id].append(index)
    assert all(indexes == list(range(60)) for indexes in got.values())
    assert mux.get_batch(timeout=0.05).fresh == ()


def test_freshest_gives_the_newest_and_counts_the_others(cameras: Any, wait_for: Any) -> None:
    mux, (f,) = cameras(1, max_offset_diff=1000)
    f.send(40)
    wait_for(lambda: settled(mux, "cam0", 40))
    (item,) = mux.get_batch(timeout=5)
    assert item.index == 39
    account = mux.accounts()["cam0"]
    assert account.delivered == 1
    assert account.dropped["superseded"] == 39
    assert mux.get("cam0").array is None


def test_three_silent_sources_of_four_cost_one_timeout(cameras: Any) -> None:
    mux, feeds = cameras(4)
    feeds[2].send(1)
    assert mux.get_batch(timeout=10, window=0.0).fresh[0].cam_id == "cam2"
    feeds[2].send(1)
    begin = time.monotonic()
    batch = mux.get_batch(timeout=1, min_items=4)
    elapsed = time.monotonic() - begin
    assert 0.95 <= elapsed < 2.5, "one deadline for the whole batch"
    assert [item.status for item in batch] == ["starting", "starting", "fresh", "starting"]
    assert all(len(list(item)) == 3 for item in batch), "an empty item still unpacks"


def test_zero_timeout_never_waits(cameras: Any) -> None:
    mux, _ = cameras(2)
    begin = time.monotonic()
    batch = mux.get_batch(timeout=0)
    assert time.monotonic() - begin < 0.5
    assert [bool(item) for item in batch] == [False, False]


def test_a_slow_source_is_waited_for_within_the_window_only(cameras: Any, wait_for: Any) -> None:
    mux, (fast, slow) = cameras(2, mode="every_frame")
    fast.send(1)
    slow.send(1)
    batch = mux.get_batch(timeout=10, min_items=2)
    assert len(batch.fresh) == 2
    fast.send(1)
    begin = time.monotonic()
    batch = mux.get_batch(timeout=20, window=0.3)
    assert 0.2 < time.monotonic() - begin < 5
    assert [item.status for item in batch] == ["fresh", "no_new_frame"]
    fast.send(1)
    begin = time.monotonic()
    mux.get_batch(timeout=20)
    assert time.monotonic() - begin < 3, "the default window is at most 50 ms"


def test_a_full_batch_does_not_wait_for_the_window(cameras: Any) -> None:
    mux, feeds = cameras(2, mode="every_frame")
    for f in feeds:
        f.send(2)
    assert len(mux.get_batch(timeout=10, min_items=2, window=30).fresh) == 2
    begin = time.monotonic()
    assert len(mux.get_batch(timeout=10, window=30).fresh) == 2
    assert time.monotonic() - begin < 5


def test_min_items_waits_and_then_gives_what_there_is(cameras: Any) -> None:
    mux, (one, two) = cameras(2)
    one.send(1)
    sender = threading.Timer(0.2, two.send)
    sender.start()
    batch = mux.get_batch(timeout=10, min_items=2)
    sender.join()
    assert len(batch.fresh) == 2
    with pytest.raises(ConfigError, match="min_items"):
        mux.get_batch(min_items=-1)


def test_aligned_pictures_lie_together_and_the_rest_is_counted(cameras: Any, wait_for: Any) -> None:
    mux, (one, two) = cameras(2, mode="every_frame")
    start = time.time_ns()
    one.send(10, timestamp_ns=start, step_ns=40_000_000)
    two.send(10, timestamp_ns=start + 203_000_000, step_ns=40_000_000)
    wait_for(lambda: all(settled(mux, cam, 10) for cam in ("cam0", "cam1")))
    pairs = []
    while len(pairs) < 5:
        batch = mux.get_batch(timeout=5, align=0.02, min_items=2)
        times = [item.timestamps.capture for item in batch]
        assert abs(times[0] - times[1]) <= 0.02
        pairs.append((batch[0].index, batch[1].index))
    assert pairs == [(5, 0), (6, 1), (7, 2), (8, 3), (9, 4)]
    assert mux.accounts()["cam0"].dropped["align"] == 5


def test_max_age_drops_stale_pictures(cameras: Any, wait_for: Any) -> None:
    mux, (f,) = cameras(1, mode="every_frame")
    f.send(3, timestamp_ns=time.time_ns() - 10_000_000_000)
    f.send(1)
    wait_for(lambda: settled(mux, "cam0", 4))
    (item,) = mux.get_batch(timeout=5, max_age=5)
    assert item.index == 3
    assert mux.accounts()["cam0"].dropped["stale"] == 3


def test_items_carry_times_record_and_identity(cameras: Any) -> None:
    mux, (f,) = cameras(1)
    f.send(1)
    (item,) = mux.get_batch(timeout=5)
    stamps = item.timestamps
    assert stamps.capture <= stamps.append <= stamps.decoded <= stamps.delivered
    assert item.age == stamps.delivered - stamps.capture
    assert item.record.value == item.packet == b"K:0"
    assert item.identity == (0, 0, 0)
    assert (item.status, item.degraded, bool(item)) == (Status.FRESH, False, True)


def test_packets_instead_of_arrays(cameras: Any) -> None:
    mux, (f,) = cameras(1)
    f.send(1)
    ((cam_id, index, packet),) = mux.get_batch(True, timeout=5)
    assert (cam_id, index, packet) == ("cam0", 0, b"K:0")
    with pytest.raises(ConfigError, match="timeout"):
        mux.get_batch(10)


def test_arrays_belong_to_the_caller(cameras: Any) -> None:
    mux, (f,) = cameras(1, mode="every_frame")
    kept = []
    for n in range(30):
        f.send(1)
        (item,) = mux.get_batch(timeout=5)
        item.array[0, 0, 0] = 250 - n  # writable, and nobody else's
        kept.append(item.array)
    assert [array[0, 0, 0] for array in kept] == [250 - n for n in range(30)]
    assert [array[1, 1, 1] for array in kept] == list(range(30))


def test_stack_is_the_batch_itself_where_it_was_converted_in_place(cameras: Any, wait_for: Any) -> None:
    mux, feeds = cameras(3)
    feeds[0].send(1)
    feeds[2].send(2)
    wait_for(lambda: settled(mux, "cam0", 1) and settled(mux, "cam2", 2))
    batch = mux.get_batch(timeout=5, window=0)
    stacked, mask = batch.stack()
    assert mask.tolist() == [True, False, True]
    assert stacked.shape == (3, 8, 16, 3)
    assert stacked.flags.c_contiguous
    assert np.shares_memory(stacked[0], batch[0].array)
    assert np.shares_memory(stacked[2], batch[2].array)
    assert not stacked[1].any()
    assert stacked[2, 0, 0, 0] == 1
    assert np.asarray(batch[2]) is batch[2].array
    assert np.from_dlpack(batch[2])[0, 0, 0] == 1


def test_stack_pads_and_refuses() -> None:
    def item(cam: str, shape: tuple[int, ...] | None) -> Item:
        return Item(cam, Status.FRESH, array=None if shape is None else np.full(shape, 7, np.uint8))

    batch = Batch([item("a", (2, 3, 3)), item("b", None), item("c", (4, 2, 3))])
    with pytest.raises(ConfigError, match="pad"):
        batch.stack()
    stacked, mask = batch.stack(pad=9)
    assert stacked.shape == (3, 4, 3, 3)
    assert mask.tolist() == [True, False, True]
    assert (stacked[0, :2, :3] == 7).all()
    assert (stacked[0, 2:] == 9).all()
    assert (stacked[1] == 9).all()
    assert Batch([item("a", None)]).stack()[0].shape == (1, 0)
    assert batch.of("c").array.shape == (4, 2, 3)
    with pytest.raises(UnknownSourceError):
        batch.of("x")
    with pytest.raises(ValueError, match="no array"):
        np.asarray(batch[1])


def test_stack_into_a_fixed_shape_and_into_memory_of_ones_own() -> None:
    def item(cam: str, shape: tuple[int, ...] | None, dtype: Any = np.uint8) -> Item:
        return Item(cam, Status.FRESH, array=None if shape is None else np.full(shape, 7, dtype))

    batch = Batch([item("a", (2, 3, 3)), item("b", None)])
    stacked, mask = batch.stack(pad=9, shape=(4, 4, 3))
    assert stacked.shape == (2, 4, 4, 3) and mask.tolist() == [True, False]
    assert (stacked[0, :2, :3] == 7).all() and (stacked[0, 2:] == 9).all() and (stacked[0, :, 3:] == 9).all()
    assert (stacked[1] == 9).all()
    own = np.full((2, 4, 4, 3), 1, np.uint8)
    again, _ = batch.stack(pad=9, out=own)
    assert again is own and (own == stacked).all()
    empty, mask = Batch([item("a", None)]).stack(pad=5, shape=(4, 4, 3))
    assert empty.shape == (1, 4, 4, 3) and (empty == 5).all() and not mask.any()
    assert (batch.stack(shape=(2, 3, 3))[0][0] == 7).all(), "what fits exactly needs no padding"
    for wrong, message in [
        ({"shape": (4, 4, 3)}, "pad"),
        ({"pad": 0, "shape": (1, 4, 3)}, "does not fit"),
        ({"pad": 0, "shape": (4, 4)}, "does not fit"),
        ({"pad": 0, "out": np.zeros((3, 4, 4, 3), np.uint8)}, "out has shape"),
        ({"pad": 0, "shape": (4, 4, 3), "out": np.zeros((2, 5, 4, 3), np.uint8)}, "out has shape"),
        ({"pad": 0, "out": np.zeros((2, 4, 4, 3), np.float32)}, "out is float32"),
    ]:
        with pytest.raises(ConfigError, match=message):
            batch.stack(**wrong)


def test_a_batch_converted_in_place_is_copied_into_memory_of_ones_own(cameras: Any, wait_for: Any) -> None:
    mux, feeds = cameras(2)
    for f in feeds:
        f.send(2)
    wait_for(lambda: all(settled(mux, cam, 2) for cam in ("cam0", "cam1")))
    batch = mux.get_batch(timeout=5, min_items=2)
    own = np.zeros((2, 8, 16, 3), np.uint8)
    stacked, _ = batch.stack(out=own)
    assert stacked is own and (own == 1).all()
    assert np.shares_memory(batch.stack(shape=(8, 16, 3))[0], batch[0].array), "the shape it has already costs no copy"
    assert not np.shares_memory(batch.stack(pad=0, shape=(9, 16, 3))[0], batch[0].array)


def test_what_another_library_holds_by_dlpack_is_not_used_again(cameras: Any, wait_for: Any) -> None:
    """As a tensor does: it owns nothing but the capsule's hold on the batch's memory."""
    mux, (f,) = cameras(1, max_offset_diff=1000)
    pool = mux._core.pool

    def next_batch() -> Any:
        f.send(1)
        batch = mux.get_batch(timeout=10)
        assert batch.fresh
        return np.from_dlpack(batch.stack()[0])

    kept = next_batch()
    where = kept.ctypes.data
    for number in range(1, 8):
        assert next_batch().ctypes.data != where
        assert (kept == 0).all(), f"written again by picture {number}"
    mapped = pool.mapped
    del kept
    assert where in {next_batch().ctypes.data for _ in range(3)}, "nobody holds it any more"
    assert pool.mapped == mapped, "and nothing new was needed"


def test_the_end_of_all_streams_ends_the_iteration(cameras: Any) -> None:
    mux, feeds = cameras(2, on_end="stop")
    for f in feeds:
        f.send(25)
        f.end()
    got = [item.index for batch in mux for item in batch if item]
    assert sorted(got) == sorted([*range(25), *range(25)])
    for _ in range(3):
        with pytest.raises(EndOfStream):
            mux.get_batch(timeout=10)
    with pytest.raises(EndOfStream):
        mux.read("cam0", timeout=10)


def test_a_source_deleted_meanwhile_wakes_the_call(cameras: Any) -> None:
    mux, _ = cameras(2)
    deleter = threading.Timer(0.2, mux.delete, ["cam1"])
    deleter.start()
    begin = time.monotonic()
    batch = mux.get_batch(timeout=30)
    deleter.join()
    assert time.monotonic() - begin < 10
    assert [item.status for item in batch] == ["starting", "removed"]
    assert mux.get_batch(timeout=0).cam_ids == ("cam0",)
    with pytest.raises(UnknownSourceError):
        mux.read("cam1")


def test_without_any_source_it_waits_for_one(cameras: Any, feed: Any) -> None:
    mux, _ = cameras(1)
    mux.delete("cam0")
    assert len(mux.get_batch(timeout=0.05)) == 0
    feed("late")

    def later() -> None:
        mux.create("late")

    creator = threading.Timer(0.2, later)
    creator.start()
    batch = mux.get_batch(timeout=1)
    creator.join()
    assert batch.cam_ids == ("late",)


def test_concurrent_calls_take_turns_and_share_no_picture(cameras: Any) -> None:
    mux, (f,) = cameras(1, mode="every_frame")
    got: list[list[int]] = [[], []]

    def take(mine: list[int]) -> None:
        with contextlib.suppress(WaitTimeoutError):  # at the end: the other thread waited all the time in vain
            while (item := mux.get_batch(timeout=1)[0]) and item:
                mine.append(item.index)

    threads = [threading.Thread(target=take, args=(mine,)) for mine in got]
    for thread in threads:
        thread.start()
    f.send(200)
    for thread in threads:
        thread.join(20)
    assert sorted(got[0] + got[1]) == list(range(200))
    assert all(mine == sorted(mine) for mine in got)


def test_a_call_whose_turn_does_not_come_says_so(cameras: Any, wait_for: Any) -> None:
    mux, (f,) = cameras(1)
    other = threading.Thread(target=lambda: mux.get_batch(timeout=20))
    other.start()
    wait_for(lambda: mux._core.assembler._turn is not None)
    with pytest.raises(WaitTimeoutError, match="another thread"):
        mux.get_batch(timeout=0.05)
    f.send(1)
    other.join(10)


def test_close_ends_a_waiting_call(cameras: Any) -> None:
    mux, _ = cameras(1)
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            mux.get_batch()
        except ClosedError as exc:
            raised.append(exc)

    waiter = threading.Thread(target=wait)
    waiter.start()
    threading.Event().wait(0.1)
    mux.close()
    waiter.join(10)
    assert raised
    mux.close()
    for call in (mux.get_batch, mux.start, mux.status, lambda: mux.send("cam0", 0, {})):
        with pytest.raises(ClosedError):
            call()


@contextlib.contextmanager
def interrupted_at(name: str) -> Iterator[None]:
    """``KeyboardInterrupt`` out of one method of the assembler, once."""
    from comux.multiplexer.assemble import Assembler

    original = getattr(Assembler, name)

    def broken(*args: Any) -> Any:
        setattr(Assembler, name, original)
        raise KeyboardInterrupt

    setattr(Assembler, name, broken)
    try:
        yield
    finally:
        setattr(Assembler, name, original)


@pytest.mark.parametrize("place", ["_wait", "_convert", "_commit"])
@pytest.mark.parametrize("mode", ["every_frame", "freshest"])
def test_an_interrupt_loses_and_duplicates_nothing(cameras: Any, wait_for: Any, place: str, mode: str) -> None:
    mux, feeds = cameras(2, mode=mode, max_offset_diff=1000)
    for f in feeds:
        f.send(2)
    wait_for(lambda: all(settled(mux, cam, 2) for cam in ("cam0", "cam1")))
    with interrupted_at(place), pytest.raises(KeyboardInterrupt):
        mux.get_batch(timeout=5)
    assert all(account.balanced for account in mux.accounts().values())
    batch = mux.get_batch(timeout=5)
    assert [item.index for item in batch] == ([0, 0] if mode == "every_frame" else [1, 1])


def test_a_picture_that_cannot_be_converted_costs_only_itself(cameras: Any, wait_for: Any, monkeypatch: Any) -> None:
    mux, feeds = cameras(2)
    broken = feeds[0]

    def explode(entry_picture: Any, out: Any = None) -> Any:
        if entry_picture.record.topic == broken.topic:
            raise RuntimeError("no colour today")
        out[:] = 1
        return out

    maker = mux._core._decoder
    original = maker._give

    def give(self: Any, record: Any) -> Any:
        outcome = original(self, record)
        monkeypatch.setattr(type(outcome.picture), "to_array", explode)
        return outcome

    monkeypatch.setattr(maker, "_give", give)
    for f in feeds:
        f.send(1)
    wait_for(lambda: settled(mux, "cam0", 1) and settled(mux, "cam1", 1))
    batch = mux.get_batch(timeout=5)
    assert [item.status for item in batch] == ["decode_error", "fresh"]
    assert "no colour today" in batch[0].reason
    assert mux.accounts()["cam0"].dropped == {"decode_error": 1}


def test_read_waits_for_one_source_and_get_does_not(cameras: Any) -> None:
    mux, (one, two) = cameras(2)
    two.send(1)
    assert mux.read("cam1", timeout=5).index == 0
    begin = time.monotonic()
    assert mux.get("cam1").array is None
    assert mux.read("cam0", timeout=0.1).status == "starting"
    assert time.monotonic() - begin < 3
    one.send(1)
    assert mux.read("cam0").index == 0


def test_the_mode_of_a_call_says_how_pictures_are_kept(cameras: Any, wait_for: Any) -> None:
    mux, (f,) = cameras(1, max_offset_diff=1000)
    assert mux.get_batch(timeout=0, mode="every_frame")[0].status == "starting"
    f.send(30)
    wait_for(lambda: settled(mux, "cam0", 30))
    assert [mux.get_batch(timeout=5)[0].index for _ in range(30)] == list(range(30))
    f.send(30)
    wait_for(lambda: settled(mux, "cam0", 60))
    assert mux.get_batch(timeout=5, mode="auto")[0].index == 59
    with pytest.raises(ConfigError, match="mode"):
        mux.get_batch(mode="newest")
