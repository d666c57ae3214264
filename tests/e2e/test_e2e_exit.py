"""Programs end: on Ctrl-C, without close(), when they are asked to; quickly, and with nothing left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from comux import terminate
from comux.lifecycle import process_start

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "terminate.py"
CAMERA = "synthetic://64x48@30?gop=10"


def _nobody_attached(place: Any, *topics: str) -> None:
    """A topic can be deleted without force only when nobody alive has it open."""
    assert set(topics) <= set(place.broker.topics())
    for topic in place.broker.topics():
        place.broker.delete_topic(topic)
    assert list(place.directory.iterdir()) == []


@pytest.mark.parametrize(
    ("catches", "closes"),
    [pytest.param(True, True, marks=pytest.mark.core), (False, True), (True, False)],
    ids=["caught", "not caught", "never closed"],
)
def test_ctrl_c_ends_a_program_that_waits_for_pictures(place: Any, until: Any, catches: bool, closes: bool) -> None:
    place.topic("raw_cam", records=64, metadata={"codec": "h264"})
    program = place.program("waits", cams=["cam"], catches=catches, closes=closes)
    program.wait_for("waiting")
    # In get_batch for good: the main thread sleeps in a futex ("0": this system does not tell).
    until(lambda: Path(f"/proc/{program.pid}/wchan").read_text().startswith(("futex", "0")), what="the call to wait")
    began = time.monotonic()
    program.ask()
    interrupted = program.wait_for("interrupted", timeout=10)
    code = program.wait(10)
    assert interrupted[0]["at"] - began < 5, "KeyboardInterrupt came late"
    assert code == (0 if catches else -2), program.errors()
    assert program.lines("batch") == []
    assert "Exception ignored" not in program.errors() and ("Traceback" in program.errors()) is not catches
    _nobody_attached(place, "raw_cam", "config")


@pytest.mark.parametrize(("how", "code"), [("returns", 0), ("exits", 3), ("raises", 1)])
def test_a_program_that_never_closes_ends_and_leaves_nothing_open(place: Any, how: str, code: int) -> None:
    place.topic("raw_cam", records=128, metadata={"codec": "h264"})
    place.feed(CAMERA, "raw_cam", frames=30, pace="fast", end=False).join()
    program = place.program("forgets", cams=["cam"], how=how)
    assert program.wait(30) == code, program.errors()
    assert program.lines("leaving")[0]["pictures"] == 1
    assert ("Traceback" in program.errors()) is (how == "raises"), program.errors()
    assert len(place.retained("stream_cam")) == 1, "what was sent before the end is there"
    _nobody_attached(place, "raw_cam", "stream_cam", "frames_cam", "config")


@pytest.mark.parametrize("orderly", [pytest.param(True, marks=pytest.mark.core), False])
@pytest.mark.parametrize("by", ["call", "script"])
def test_terminate_ends_a_running_program_by_its_pid_file(place: Any, tmp_path: Path, orderly: bool, by: str) -> None:
    place.topic("raw_cam", records=64, policy="drop_oldest", metadata={"codec": "h264"})
    program = place.program("serves", cams=["cam"], orderly=orderly)
    program.wait_for("running")
    pid_file = tmp_path / "pid"
    assert pid_file.stat().st_mode & 0o777 == 0o600
    if by == "call":
        result = terminate(pid_file, timeout=10)
        assert (result.outcome, result.pid) == ("terminated", program.pid), result
    else:
        done = subprocess.run(
            [sys.executable, str(SCRIPT)], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert str(program.pid) in done.stdout + done.stderr
    assert program.wait(10) == (0 if orderly else -15), program.errors()
    assert bool(program.lines("stopped")) is orderly
    assert not pid_file.exists()
    assert terminate(pid_file).outcome == "no_file"
    _nobody_attached(place, "raw_cam")


def _running(pids: list[int]) -> list[int]:
    return [pid for pid in pids if process_start(pid) is not None]


def _members(place: Any) -> int:
    (group,) = place.broker.groups("raw_cam")
    return int(group.members)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_what_was_delivered_is_sent_and_groups_are_left(
    place: Any, until: Any, tmp_path: Path, number: signal.Signals
) -> None:
    place.topic("raw_cam", records=256, metadata={"codec": "h264"})
    place.feed(CAMERA, "raw_cam")
    program = place.program("managed", cams=["cam"], group="watchers", control_topic="config")
    held = program.wait_for("holds")[0]["index"]
    assert (tmp_path / "pid").exists() and _members(place) == 1
    program.ask(number)
    assert program.wait(30) == 0, program.errors()
    assert program.lines("stopped") == [{"what": "stopped", "balanced": True}]
    sent = place.retained("stream_cam")
    assert [json.loads(record.header("comux-source"))[-1] for record in sent] == [held]
    assert not (tmp_path / "pid").exists() and _members(place) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once_what_does_not_end(place: Any, tmp_path: Path, number: signal.Signals) -> None:
    place.topic("raw_cam", records=64, metadata={"codec": "h264"})
    program = place.program("managed", cams=["cam"], drain="hangs")
    program.wait_for("running")
    program.ask(signal.SIGTERM)
    program.wait_for("told")
    assert program.process.poll() is None
    program.ask(number)
    assert program.wait(30) == -number, program.errors()
    assert program.lines("stopped") == []
    terminate(tmp_path / "pid")
    assert not (tmp_path / "pid").exists()
    _nobody_attached(place, "raw_cam")


@pytest.mark.parametrize("drain", ["sends", "hangs"])
def test_a_manager_whose_parent_dies_ends(place: Any, until: Any, tmp_path: Path, drain: str) -> None:
    place.topic("raw_cam", records=256, policy="drop_oldest", metadata={"codec": "h264"})
    place.feed(CAMERA, "raw_cam")
    parent = place.program("parent", cams=["cam"], drain=drain)
    pid = parent.wait_for("running")[0]["pid"]
    parent.wait_for("holds")
    parent.kill()
    until(lambda: not _running([pid]), 60, "the manager's end")
    assert len(parent.lines("stopped")) == (drain == "sends")
    assert len(place.retained("stream_cam") if drain == "sends" else []) == (drain == "sends")
    assert (tmp_path / "pid").exists() is (drain == "hangs"), "who had to be killed could not remove it"


@pytest.mark.parametrize("drain", ["sends", "hangs"])
@pytest.mark.parametrize("by", ["command", "script"])
def test_terminate_ends_a_manager_with_its_publishers(
    place: Any, until: Any, tmp_path: Path, drain: str, by: str
) -> None:
    for cam in ("one", "two"):
        place.topic(f"raw_{cam}", records=256, policy="drop_oldest", metadata={"codec": "h264"})
    more = {"drain": drain, "publishes": CAMERA, "control_topic": "config", "folder": str(place.directory)}
    program = place.program("managed", cams=["one", "two"], **more)
    program.wait_for("holds")
    publishers = [line["pid"] for line in program.lines("child")]
    assert len(publishers) == 2 and _running(publishers) == publishers
    assert "own" in place.broker.topics()
    call = [sys.executable, str(SCRIPT)] if by == "script" else [sys.executable, "-m", "comux", "terminate"]
    patience = "3" if drain == "hangs" else "50"  # what is killed is to be killed for hanging, not for a busy machine
    done = subprocess.run(
        [*call, "--timeout", patience], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "it had started 2 processes" in done.stdout and ("killed" in done.stdout) is (drain == "hangs")
    assert program.wait(10) == (0 if drain == "sends" else -9), program.errors()
    assert _running(publishers) == [] and not (tmp_path / "pid").exists()
    assert "own" not in place.broker.topics() and ("removed own" in done.stdout) is (drain == "hangs")
    _nobody_attached(place, "raw_one", "raw_two", "config")
