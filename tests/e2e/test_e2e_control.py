"""Commands on the local engine while the loop runs: sources come, change and go; the others do not notice."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from typing import Any

import pytest

from comux import Comux
from comux.control import send_command
from comux.errors import EndOfStream
from comux.feeds import read_marks

PICTURES = 400
CAMERA = "synthetic://64x48@30?gop=10&bframes=2&camera={camera}"


class _Loop:
    """The user's loop in a thread: keeps the pictures of the first camera and every batch's items."""

    def __init__(self, cameras: Comux) -> None:
        self._cameras = cameras
        self.frames: list[int] = []
        self.batches: list[dict[str, str]] = []
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="comux-test-loop")
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                batch = self._cameras.get_batch(timeout=0.5)
                if "one" in batch.cam_ids and batch.of("one"):
                    marks = read_marks(batch.of("one").array)
                    assert marks is not None
                    self.frames.append(marks[1])
                self.batches.append({str(item.cam_id): str(item.status) for item in batch})
        except EndOfStream:
            return
        except BaseException as exc:  # noqa: BLE001 - handed to the test by end()
            self.error = exc

    def end(self) -> None:
        self._stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error


@pytest.mark.core
def test_sources_come_change_and_go_by_command_and_the_others_do_not_notice(place: Any, until: Any) -> None:
    place.topic("raw_one", records=512, metadata={"codec": "h264", "finite": True})
    place.topic("raw_two", records=512, policy="drop_oldest", metadata={"codec": "h264"})
    place.feed(CAMERA.format(camera=2), "raw_two")
    noted: list[Any] = []
    acts = {"note": lambda cameras, value: noted.append((cameras.cam_ids, value)) or {"noted": value}}

    def command(action: str, value: Any = None) -> dict[str, Any]:
        return send_command(place.broker, "config", action, value, timeout=10)

    with Comux(
        ["one"], address=place.address, mode="every_frame", start="beginning", control_topic="config", acts=acts
    ) as cameras:
        loop = _Loop(cameras)
        try:
            feed = place.feed(f"{CAMERA.format(camera=1)}&frames={PICTURES}", "raw_one", pace=150)
            asked = time.monotonic()
            answer = command("create", {"cam_id": "two", "mode": "freshest", "start": "end"})
            assert answer["ok"], answer
            until(lambda: loop.batches and "two" in loop.batches[-1], 5, "the new source in a batch")
            assert time.monotonic() - asked < 5
            until(lambda: any(batch.get("two") == "fresh" for batch in list(loop.batches)), what="a picture of it")

            answer = command("update", {"cam_id": "two", "rate": 5})
            assert answer["ok"], answer
            assert cameras.status()["sources"]["two"]["state"] != "FAILED"
            until(lambda: cameras.accounts()["two"].dropped.get("rate", 0) > 5, what="pictures dropped for the rate")

            assert command("note", {"x": [1, 2]})["result"] == {"noted": {"x": [1, 2]}}
            assert noted == [(("one", "two"), {"x": [1, 2]})]

            refused = command("levitate", {"cam_id": "two"})
            assert not refused["ok"] and "levitate" in str(refused["error"])
            again = command("create", {"cam_id": "one"})
            assert not again["ok"] and "exists" in str(again["error"])
            wrong = command("update", {"cam_id": "two", "rate": "fast"})
            assert not wrong["ok"] and "rate" in str(wrong["error"])

            status = command("status")
            assert status["ok"] and set(status["result"]["sources"]) == {"one", "two"}

            assert command("delete", {"cam_id": "two"})["ok"]
            until(lambda: "two" not in loop.batches[-1], 5, "a batch without the deleted source")
            assert feed.join().records == PICTURES
            until(lambda: len(loop.frames) == PICTURES, what=f"all pictures of the first camera ({len(loop.frames)})")
            assert command("status")["ok"], "the controller still answers"
        finally:
            loop.end()
        books = cameras.accounts()
    assert loop.frames == list(range(PICTURES)), "the other source's pictures changed"
    assert books["one"].delivered == PICTURES and not books["one"].dropped
    assert books["two"].balanced and books["two"].received > 0, "a deleted source stays in the books"


def _waits_in_a_batch(thread: threading.Thread) -> bool:
    frame = sys._current_frames().get(thread.ident or 0)
    stack = traceback.extract_stack(frame)
    return any(place.filename.endswith("assemble.py") for place in stack) and stack[-1].name == "wait"


def test_a_call_that_waits_returns_when_its_source_is_deleted_by_command(place: Any, until: Any) -> None:
    place.topic("raw_silent", records=64, metadata={"codec": "h264"})
    with Comux(["silent"], address=place.address, control_topic="config") as cameras:
        got: list[Any] = []
        thread = threading.Thread(target=lambda: got.append(cameras.get_batch()), name="comux-test-waiting")
        thread.start()
        try:
            until(lambda: _waits_in_a_batch(thread), what="the call to wait")
            assert not got
            assert send_command(place.broker, "config", "delete", {"cam_id": "silent"}, timeout=10)["ok"]
            until(lambda: got, 5, "the waiting call to return")
            assert [str(item.status) for item in got[0]] == ["removed"]
        finally:
            cameras.close()
            thread.join(10)
