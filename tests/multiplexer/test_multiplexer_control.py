"""Commands and calls that come while something else goes on: a wait, the start, the end, another client's."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from comux import Comux
from comux.control import send_command
from comux.errors import ClosedError, ComuxError, WaitTimeoutError

Start = Callable[..., Comux]


class Thread(threading.Thread):
    """A thread whose result, or error, ``end`` gives."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(name="test-control")
        self._call = call
        self.got: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.got = self._call()
        except ComuxError as exc:
            self.got = exc

    def end(self) -> Any:
        self.join(30)
        assert not self.is_alive()
        return self.got


@pytest.fixture
def make(address: str, fake: Any) -> Iterator[Start]:
    """``make(ids, **options)``: a manager with a control topic that is not started."""
    opened: list[Comux] = []

    def new(ids: list[str], **options: Any) -> Comux:
        opened.append(Comux(ids, address=address, decoder_factory=fake, control_topic="config", **options))
        return opened[-1]

    yield new
    for mux in opened:
        mux.close()
        assert all(account.balanced and account.held_total == 0 for account in mux.accounts().values())


@pytest.fixture
def ask(address: str) -> Callable[..., dict[str, Any]]:
    return lambda action, value=None, timeout=30: send_command(address, "config", action, value, timeout=timeout)


def in_a_batch(thread: threading.Thread) -> bool:
    """Whether its call waits there."""
    stack = traceback.extract_stack(sys._current_frames().get(thread.ident or 0))
    return any(place.filename.endswith("assemble.py") for place in stack) and stack[-1].name == "wait"


@pytest.mark.parametrize("door", ["command", "method"])
def test_a_created_source_is_in_the_next_batch(make: Start, feed: Any, ask: Any, door: str) -> None:
    feed("a", gop=1)
    feed("b", gop=1)
    mux = make(["a"], mode="every_frame")
    mux.start()
    assert mux.get_batch(timeout=0).cam_ids == ("a",)
    if door == "command":
        assert ask("create", "b")["ok"]
    else:
        mux.create("b")
    assert mux.get_batch(timeout=0).cam_ids == ("a", "b")


@pytest.mark.parametrize("door", ["command", "method"])
def test_a_call_that_waits_returns_for_a_source_created_meanwhile(
    make: Start, feed: Any, ask: Any, wait_for: Any, door: str
) -> None:
    """Else a camera that is silent would keep the new one out of every batch."""
    feed("silent", gop=1)
    feed("b", gop=1).send(3)
    mux = make(["silent"], mode="every_frame")
    mux.start()
    waiting = Thread(lambda: mux.get_batch(timeout=None))
    wait_for(lambda: in_a_batch(waiting), 30)
    if door == "command":
        assert ask("create", {"cam_id": "b", "start": "beginning"})["ok"]
    else:
        mux.create("b", start="beginning")
    assert [(item.cam_id, bool(item)) for item in waiting.end()] == [("silent", False)]
    batch = mux.get_batch(timeout=None)
    assert batch.cam_ids == ("silent", "b") and batch.of("b").index == 0


def test_a_call_that_waits_for_one_source_is_not_disturbed_by_another(
    make: Start, feed: Any, ask: Any, wait_for: Any
) -> None:
    f = feed("a", gop=1)
    mux = make(["a"], mode="every_frame")
    mux.start()
    waiting = Thread(lambda: mux.read("a", timeout=30))
    wait_for(lambda: in_a_batch(waiting), 30)
    assert ask("create", {"cam_id": "b", "consume_topic": "raw_a"})["ok"] and ask("delete", "b")["ok"]
    f.send(1)
    assert waiting.end().index == 0


@pytest.mark.parametrize("change", [{"W": 32, "H": 24}, {"rate": 5.0}], ids=["size", "rate"])
def test_a_source_that_a_call_waits_for_is_updated(
    make: Start, feed: Any, ask: Any, wait_for: Any, change: dict[str, Any]
) -> None:
    f = feed("a", gop=1)
    mux = make(["a"], mode="every_frame")
    mux.start()
    waiting = Thread(lambda: mux.get_batch(timeout=None))
    wait_for(lambda: in_a_batch(waiting), 30)
    assert ask("update", {"cam_id": "a", **change})["ok"]
    if "W" in change:
        (item,) = waiting.end()
        assert (str(item.status), item.reason) == ("starting", "its settings were updated")
        waiting = Thread(lambda: mux.get_batch(timeout=None))
    f.send(1)
    assert waiting.end().of("a").array.shape == (change.get("H", 8), change.get("W", 16), 3)


def test_a_source_that_a_call_waits_for_is_paused_and_goes_on(make: Start, feed: Any, ask: Any, wait_for: Any) -> None:
    f = feed("a", gop=1)
    mux = make(["a"], mode="every_frame")
    mux.start()
    waiting = Thread(lambda: mux.get_batch(timeout=None))
    wait_for(lambda: in_a_batch(waiting), 30)
    assert ask("pause", "a")["ok"]
    f.send(1)
    assert ask("resume", "a")["ok"]
    assert waiting.end().of("a").index == 0


def test_what_is_said_during_the_start_is_done_after_it(
    make: Start, feed: Any, fake: Any, ask: Any, wait_for: Any
) -> None:
    """The start is held up where it makes a decoder, to see whether one can be made."""
    gate, there = threading.Event(), threading.Event()

    class Slow(fake):  # type: ignore[misc]
        def __init__(self, options: Any) -> None:
            there.set()
            assert gate.wait(30)
            super().__init__(options)

    for cam in ("a", "b", "c"):
        feed(cam, gop=1)
    mux = make(["a"], mode="every_frame")
    mux._core._decoder = Slow
    starting = Thread(mux.start)
    assert there.wait(30)
    by_method, by_command = Thread(lambda: mux.create("b")), Thread(lambda: ask("create", "c"))
    twice = Thread(mux.start)
    try:
        wait_for(lambda: by_method.is_alive() and by_command.is_alive() and twice.is_alive(), 30)
        assert mux._core.table.sources == ()
    finally:
        gate.set()
    assert starting.end() is None and twice.end() is None
    assert by_method.end()["success"]
    # The place in the control topic is taken when the manager is made; a command from before that is none of its.
    assert by_command.end()["ok"], by_command.got
    assert sorted(mux.get_batch(timeout=0).cam_ids) == ["a", "b", "c"]


def test_what_comes_while_it_closes_is_done_or_refused_and_leaves_no_thread(
    make: Start, feed: Any, ask: Any, wait_for: Any
) -> None:
    feed("a", gop=1)
    for _ in range(10):
        mux = make(["a"], mode="every_frame")
        mux.start()
        go = threading.Barrier(3)

        def create(mux: Comux = mux, go: threading.Barrier = go) -> Any:
            go.wait(30)
            return mux.create("b", consume_topic="raw_a")

        def command(go: threading.Barrier = go) -> Any:
            go.wait(30)
            return ask("create", {"cam_id": "c", "consume_topic": "raw_a"}, timeout=0.3)

        by_method, by_command = Thread(create), Thread(command)
        go.wait(30)
        mux.close()
        done, answer = by_method.end(), by_command.end()
        assert isinstance(done, ClosedError) or done["success"]
        if not isinstance(answer, WaitTimeoutError):  # the controller had gone
            assert answer["ok"] or "closed" in answer["error"]["message"] or "ends" in answer["error"]["message"], (
                answer
            )
        assert not [t.name for t in threading.enumerate() if t.name.startswith("comux-source")]
        with pytest.raises(ClosedError):
            mux.create("d")


def test_of_two_clients_that_create_one_succeeds_and_of_two_that_delete(make: Start, feed: Any, ask: Any) -> None:
    feed("a", gop=1)
    mux = make(["a"], mode="every_frame")
    mux.start()
    for number in range(5):
        go = threading.Barrier(2)

        def both(action: str, value: Any, go: threading.Barrier = go) -> list[dict[str, Any]]:
            def one() -> Any:
                go.wait(30)
                return ask(action, value)

            first, second = Thread(one), Thread(one)
            answers: list[dict[str, Any]] = [first.end(), second.end()]
            return answers if answers[0]["ok"] else answers[::-1]

        cam = f"b{number}"
        made, refused = both("create", {"cam_id": cam, "consume_topic": "raw_a"})
        assert made["ok"] and not refused["ok"] and "exists" in refused["error"]["message"]
        changed = both("update", {"cam_id": cam, "W": 32, "H": 24})
        assert [answer["ok"] for answer in changed] == [True, True]
        gone, unknown = both("delete", cam)
        assert gone["ok"] and not unknown["ok"] and "no source" in unknown["error"]["message"]
        assert mux.get_batch(timeout=0).cam_ids == ("a",)


def test_two_clients_that_update_at_once_are_served_in_the_topics_order(make: Start, feed: Any, ask: Any) -> None:
    feed("a", gop=1)
    mux = make(["a"], mode="every_frame")
    mux.start()
    sizes = [(16 * n, 8 * n) for n in range(1, 9)]
    clients = [Thread(lambda W=W, H=H: ask("update", {"cam_id": "a", "W": W, "H": H})) for W, H in sizes]
    answers = [client.end() for client in clients]
    assert all(answer["ok"] for answer in answers)
    told = [(answer["result"]["source"]["W"], answer["result"]["source"]["H"]) for answer in answers]
    assert told == sizes, "each is told of its own change"
    last = mux.status()["sources"]["a"]
    assert len(mux.events.recent("control.command")) == len(sizes)
    options = mux._core.find("a").options
    assert (options.W, options.H) in sizes and last["state"] != "FAILED"
