"""Pause, resume, seek, snapshot and stop while the loop runs, called directly and as commands."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image

from comux import Comux
from comux.control import send_command
from comux.errors import ClosedError, ConfigError, EndOfStream, UnknownSourceError, UnsupportedError, WaitTimeoutError


@pytest.fixture
def make(address: str, fake: Any) -> Iterator[Callable[..., Comux]]:
    """``make(ids, **options)``: a manager that is not started; its books balance at the end."""
    opened: list[Comux] = []

    def new(ids: list[str], **options: Any) -> Comux:
        opened.append(Comux(ids, address=address, decoder_factory=fake, **options))
        return opened[-1]

    yield new
    for mux in opened:
        mux.close()
        for cam_id, account in mux.accounts().items():
            assert account.balanced and account.held_total == 0, (cam_id, account)


@pytest.fixture
def start(make: Callable[..., Comux]) -> Callable[..., Comux]:
    def started(ids: list[str], **options: Any) -> Comux:
        mux = make(ids, **options)
        mux.start()
        return mux

    return started


def indices(mux: Comux, count: int, cam: str = "a") -> list[int]:
    got = []
    while len(got) < count:
        item = mux.read(cam, timeout=10)
        assert item, item
        got.append(item.index)
    return got


def balanced(mux: Comux, cam: str = "a") -> Any:
    account = mux.accounts()[cam]
    assert account.balanced, account
    return account


# -- pause and resume ----------------------------------------------------------------------------------------------


def test_all_sources_pause_and_go_on_at_once(start: Any, feed: Any) -> None:
    feeds = [feed("a", gop=1), feed("b", gop=1)]
    mux = start(["a", "b"], mode="every_frame")
    assert mux.pause()["sources"] == {"a": "PAUSED", "b": "PAUSED"}
    for each in feeds:
        each.send(3)
    assert {str(item.status) for item in mux.get_batch(timeout=0.2)} == {"paused"}
    assert set(mux.resume()["sources"]) == {"a", "b"}
    assert indices(mux, 3) == indices(mux, 3, "b") == [0, 1, 2]


def test_a_pause_is_kept_by_an_update_and_before_the_start(make: Any, feed: Any) -> None:
    f = feed("a", gop=1)
    mux = make(["a"], mode="every_frame")
    assert mux.pause("a")["sources"] == {"a": "not started"}
    mux.start()
    f.send(2)
    assert str(mux.read("a", timeout=0.1).status) == "paused"
    mux.update("a", W=32, H=24)
    assert str(mux.read("a", timeout=0.1).status) == "paused"
    mux.resume("a")
    assert indices(mux, 2) == [0, 1]


# -- seek ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to,first", [("beginning", 0), (7, 7), (0, 0)], ids=str)
def test_a_seek_goes_on_where_it_was_told_and_the_books_balance(start: Any, feed: Any, to: Any, first: int) -> None:
    f = feed("a", gop=1)
    mux = start(["a"], mode="every_frame")
    f.send(10)
    assert indices(mux, 4) == [0, 1, 2, 3]
    answer = mux.seek("a", to)
    assert answer["position"] == first
    assert indices(mux, 10 - first) == list(range(first, 10))
    account = balanced(mux)
    assert account.held_total == 0
    assert account.received == account.delivered + account.dropped_total


def test_a_seek_to_the_end_drops_what_waits_as_jumped(start: Any, feed: Any) -> None:
    f = feed("a", gop=1)
    mux = start(["a"], mode="every_frame")
    f.send(10)
    assert indices(mux, 2) == [0, 1]
    assert mux.seek("a", "end")["position"] == 10
    f.send(2)
    assert indices(mux, 2) == [10, 11]
    account = balanced(mux)
    assert (account.received, account.delivered, dict(account.dropped)) == (12, 4, {"jumped": 8})


def test_a_seek_by_time(start: Any, feed: Any) -> None:
    f = feed("a", gop=1)
    mux = start(["a"], mode="every_frame")
    f.send(10)
    stamps = []
    for _ in range(10):
        item = mux.read("a", timeout=10)
        stamps.append(item.record.timestamp_ns)
    assert mux.seek("a", stamps[6] / 1e9 - 1e-6)["position"] in (5, 6)  # a float holds microseconds
    assert mux.seek("a", time.time() + 1000.0)["position"] == 10


def test_no_limit_calls_a_seek_back_until_the_source_has_caught_up(start: Any, feed: Any) -> None:
    f = feed("a", gop=1)
    mux = start(["a"], mode="freshest", max_offset_diff=3)
    f.send(50)
    deadline = time.monotonic() + 20
    while (mux.status()["sources"]["a"]["position"] or 0) < 50:
        assert time.monotonic() < deadline
        mux.get_batch(timeout=0.05)
    jumps = mux.status()["sources"]["a"]["jumps"]
    assert mux.seek("a", 5)["position"] == 5
    while (mux.status()["sources"]["a"]["position"] or 0) < 50:
        assert time.monotonic() < deadline
        mux.get_batch(timeout=0.05)
    assert mux.status()["sources"]["a"]["jumps"] == jumps
    balanced(mux)


def test_a_source_that_is_full_seeks_too(start: Any, feed: Any) -> None:
    """Its thread waits for room in the picture store, which nobody empties."""
    f = feed("a", gop=1)
    mux = start(["a"], mode="every_frame")
    f.send(200)
    deadline = time.monotonic() + 60
    while not mux._core.find("a").store.blocked:
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)  # its thread wants the interpreter
    assert mux.seek("a", 150)["position"] == 150
    assert indices(mux, 50) == list(range(150, 200))
    balanced(mux)


def test_a_paused_source_seeks_and_stays_paused(start: Any, feed: Any) -> None:
    f = feed("a", gop=1)
    mux = start(["a"], mode="every_frame")
    f.send(10)
    mux.pause("a")
    assert mux.seek("a", 8)["position"] == 8
    assert str(mux.read("a", timeout=0.1).status) == "paused"
    mux.resume("a")
    assert indices(mux, 2) == [8, 9]


def test_a_source_that_is_not_connected_seeks_when_it_is(start: Any, feed: Any) -> None:
    mux = start(["a"], mode="every_frame", strict_on_fail=False)
    assert mux.seek("a", 3)["position"] is None
    assert "when it is connected" in mux.seek("a", 5)["msg"]
    feed("a", gop=1).send(8)
    assert indices(mux, 3) == [5, 6, 7]
    balanced(mux)


def test_a_source_that_has_ended_is_started_again(start: Any, feed: Any) -> None:
    f = feed("a", gop=1)
    other = feed("b")
    mux = start(["a", "b"], mode="every_frame", on_end="stop", start="beginning")
    f.send(6)
    f.producer.end()
    assert indices(mux, 6) == list(range(6))
    with pytest.raises(EndOfStream):
        mux.read("a", timeout=5)
    assert mux.seek("a", 4)["position"] == 4
    assert indices(mux, 2) == [4, 5]
    other.send(1)
    assert indices(mux, 1, "b") == [0]
    balanced(mux)


@pytest.mark.parametrize("to", [-1, 1.5e400, "start", None, True, float("nan")], ids=str)
def test_what_is_no_place_is_refused(start: Any, feed: Any, to: Any) -> None:
    feed("a", gop=1).send(2)
    mux = start(["a"], mode="every_frame", start="beginning")
    with pytest.raises(ConfigError, match=r"seek to .* give an offset"):
        mux.seek("a", to)
    assert indices(mux, 2) == [0, 1]


def test_a_member_of_a_group_cannot_seek(start: Any, feed: Any) -> None:
    feed("a", gop=1).send(2)
    mux = start(["a"], mode="every_frame", group="g", start="beginning")
    with pytest.raises(UnsupportedError, match="group 'g'"):
        mux.seek("a", 0)
    assert indices(mux, 2) == [0, 1]


def test_a_seek_that_nobody_carries_out_any_more_is_told(start: Any, feed: Any) -> None:
    mux = start(["a"], mode="every_frame", strict_on_fail=False)
    told: list[BaseException] = []

    def ask() -> None:
        try:
            wish = mux._core.find("a").seek(1)
            asked.set()
            wish.wait(20)
        except ClosedError as exc:
            told.append(exc)

    asked = threading.Event()
    thread = threading.Thread(target=ask)
    thread.start()
    assert asked.wait(20)
    mux.delete("a")
    thread.join(20)
    assert len(told) == 1 and "nothing was done" in str(told[0])


# -- snapshot ------------------------------------------------------------------------------------------------------


def test_a_snapshot_of_a_source_whose_loop_takes_nothing_is_the_newest_that_waits(start: Any, feed: Any) -> None:
    f = feed("a", gop=1)
    mux = start(["a"], mode="every_frame")
    f.send(80)  # more than may wait
    deadline = time.monotonic() + 20
    while not mux._core.table.sources[0].store.blocked:
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)
    before = mux.accounts()["a"]
    told = mux.snapshot("a", width=8)["sources"]["a"]
    assert (told["index"], "jpeg" in told) == (63, True)
    assert mux.accounts()["a"] == before
    assert indices(mux, 80) == list(range(80))


def test_a_snapshot_is_the_next_picture_and_the_loop_gets_it_too(start: Any, feed: Any) -> None:
    f = feed("a", gop=1)
    mux = start(["a"], mode="every_frame")
    f.send(1)
    assert indices(mux, 1) == [0]
    out: dict[str, Any] = {}
    thread = threading.Thread(target=lambda: out.update(mux.snapshot("a", width=8)))
    thread.start()
    while not mux._core.find("a").wishes.pictures:
        assert thread.is_alive()
    f.send(1)
    thread.join(20)
    shown = out["sources"]["a"]
    assert shown["index"] == 1 and abs(shown["timestamp"] - time.time()) < 60
    image = Image.open(io.BytesIO(base64.b64decode(shown["jpeg"])))
    assert image.format == "JPEG" and image.width == min(8, shown["shape"][1])
    assert indices(mux, 1) == [1]


def test_a_source_without_pictures_says_why(start: Any, feed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comux.multiplexer.actions.snapshot.__defaults__", (0.1,))
    feed("a", gop=1)
    feed("b")
    mux = start(["a", "b"])
    mux.pause("a")
    with pytest.raises(WaitTimeoutError, match=r"'a' gave no picture within 0.1 s: it is PAUSED \(paused\)"):
        mux.snapshot("a")
    told = mux.snapshot()["sources"]
    assert "PAUSED" in told["a"]["error"] and "STARTING" in told["b"]["error"]
    with pytest.raises(UnknownSourceError):
        mux.snapshot("c")
    with pytest.raises(ConfigError, match="width"):
        mux.snapshot("a", width=0)


# -- stop ----------------------------------------------------------------------------------------------------------


def test_a_stop_ends_the_loop_that_waits_and_what_was_delivered_can_be_sent(start: Any, feed: Any) -> None:
    f = feed("a", gop=1)
    mux = start(["a"], mode="every_frame")
    f.send(1)
    item = mux.read("a", timeout=10)
    ended = threading.Event()

    def loop() -> None:
        for _ in mux:
            pass
        ended.set()

    thread = threading.Thread(target=loop)
    thread.start()
    mux.stop()
    assert ended.wait(20)
    thread.join(20)
    f.send(3)
    with pytest.raises(EndOfStream, match="told to stop"):
        mux.get_batch(timeout=1)
    assert mux.send(item, {"n": 1}).result(20) is not None


# -- as commands ---------------------------------------------------------------------------------------------------


def test_every_action_is_a_command_that_is_answered(make: Any, feed: Any, address: str) -> None:
    f = feed("a", gop=1)
    mux = make(["a"], mode="every_frame", control_topic="config")
    mux.start()
    f.send(10)

    def ask(action: str, value: Any = None) -> Any:
        answer = send_command(address, "config", action, value, timeout=20)
        assert answer["ok"], answer
        return answer["result"]

    assert ask("pause", "a")["sources"] == {"a": "PAUSED"}
    assert ask("seek", {"cam_id": "a", "to": 8})["position"] == 8
    assert "a" in ask("resume")["sources"]
    assert indices(mux, 2) == [8, 9]
    assert ask("set_rate", {"cam_id": "a", "rate": 5})["source"]["rate"] == 5.0
    assert "jpeg" in _snapshot(mux, f, lambda: ask("snapshot", "a"))["sources"]["a"]
    assert ask("create", {"cam_id": "b", "consume_topic": "raw_a"})["success"]
    assert [item.cam_id for item in mux.get_batch(timeout=0.1)] == ["a", "b"]
    assert ask("delete", "b")["success"]
    assert ask("stop")["msg"] == "stopping"
    with pytest.raises(EndOfStream):
        mux.get_batch(timeout=5)
    events = mux.events.recent("control.command")
    assert len(events) == 8


def _snapshot(mux: Comux, f: Any, ask: Any) -> Any:
    out: list[Any] = []
    thread = threading.Thread(target=lambda: out.append(ask()))
    thread.start()
    while not mux._core.find("a").wishes.pictures:
        assert thread.is_alive()
    f.send(1)
    thread.join(20)
    return out[0]
