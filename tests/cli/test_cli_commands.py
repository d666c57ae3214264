"""Commands: help, versions, one-line errors, exit codes; publish, topics and terminate."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import comux
from comux.cli import main
from comux.cli.publish import parse_pace
from comux.errors import ConfigError
from comux.feeds import read_marks


def execute(capsys, *arguments: str) -> tuple[int, str, str]:
    """In this process: quick, for whatever ends by itself."""
    code = main.execute(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def test_help_names_the_commands_and_the_exit_codes(capsys) -> None:
    code, out, _ = execute(capsys, "--help")
    assert code == 0
    for word in ("demo", "publish", "terminate", "topics", "Exit codes", "130"):
        assert word in out


def test_help_imports_no_heavy_library() -> None:
    probe = "import sys; from comux.cli.main import execute; execute(['--help']); print([m for m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[-1]
    for library in ("'numpy'", "'av'", "'rich'", "'PIL'", "'pydantic'"):
        assert library not in loaded


def test_version(run) -> None:
    ended = run("--version")
    assert (ended.code, ended.out.strip()) == (0, f"comux {comux.__version__}")


def test_no_command_shows_the_help(capsys) -> None:
    code, out, _ = execute(capsys)
    assert code == 2
    assert "Commands:" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", "--secnods", "3"], ["--secnods", "--seconds"]),
        (["demo", "--cameras", "0"], ["--cameras"]),
        (["demo", "--cameras", "many"], ["--cameras", "integer"]),
        (["demo", "--size", "big"], ["big", "640x360"]),
        (["demo", "--size", "641x361"], ["641x361", "even"]),
        (["demo", "--format", "xml"], ["xml", "table", "json"]),
        (["demo", "--mode", "both"], ["both", "freshest"]),
        (["demo", "--video", "no/such.mp4"], ["no/such.mp4"]),
        (["demo", "--output", "no/such/folder/sheet.png"], ["no/such/folder/sheet.png"]),
        (["demo", "--address", "shn://"], ["shn://"]),
        (["demo", "--address", "memory://"], ["memory://", "shm://"]),
        (["demo", "--address", "shm://lab/raw_cam1"], ["shm://lab/raw_cam1"]),
        (["publish", "synthetic://"], ["--topic"]),
        (["publish", "no/such.mp4", "--topic", "t"], ["no/such.mp4"]),
        (["publish", "synthetic://?colour=red", "--topic", "t", "--address", "memory://"], ["colour"]),
        (["publish", "synthetic://", "--topic", "t", "--pace", "slow"], ["slow", "realtime"]),
        (["publish", "synthetic://", "--topic", "a/b", "--address", "memory://"], ["a/b"]),
        (["publish", "synthetic://", "--topic", "t", "--address", "rtsp://camera"], ["rtsp://camera"]),
        (["topics", "list", "--address", "somewhere"], ["somewhere"]),
        (["topics", "delete", "nothing", "--address", "memory://"], ["nothing"]),
        (["frobnicate"], ["frobnicate"]),
    ],
    ids=lambda value: " ".join(value) if len(value) > 1 else None,
)
def test_what_is_typed_wrong_is_one_line_and_code_2(capsys, arguments: list[str], words: list[str]) -> None:
    before = set(threading.enumerate())
    code, out, err = execute(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("comux: ")
    for word in words:
        assert word in err
    assert set(threading.enumerate()) == before


def test_an_unexpected_failure_is_one_line_and_code_1_and_debug_shows_where(capsys, monkeypatch) -> None:
    def fail(*arguments: object) -> None:
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr("comux.cli.topics.connect", fail)
    monkeypatch.delenv("COMUX_DEBUG", raising=False)
    code, _, err = execute(capsys, "topics", "list")
    assert (code, err.count("\n")) == (1, 1)
    assert "a mistake of ours" in err
    monkeypatch.setenv("COMUX_DEBUG", "1")
    code, _, err = execute(capsys, "topics", "list")
    assert code == 1
    assert "Traceback" in err


def test_the_entry_point_exits_with_the_code(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main.run(["--version"])
    assert ended.value.code == 0
    assert comux.__version__ in capsys.readouterr().out


def test_paces() -> None:
    assert [parse_pace(text) for text in ("realtime", "fast", "12.5")] == ["realtime", "fast", 12.5]
    with pytest.raises(ConfigError, match="slow"):
        parse_pace("slow")


# -- publish and topics --------------------------------------------------------------------------------------------


def test_published_pictures_are_in_the_topic_listed_and_deleted(run) -> None:
    source = "synthetic://160x120@30?gop=10&bframes=0&camera=7"
    ended = run("publish", source, "-t", "raw_cam7", "-a", "shm://cli", "--pace", "fast", "--frames", "20")
    assert ended.code == 0, ended.err
    assert "20 packets" in ended.out
    assert "raw_cam7" in ended.err

    with comux.Comux(["cam7"], address="shm://cli", start="beginning", mode="every_frame") as cameras:
        pictures = [item.array for batch in cameras for item in batch.fresh]
    assert [read_marks(array) for array in pictures] == [(7, frame) for frame in range(20)]

    listed = run("topics", "list", "--address", "shm://cli")
    assert listed.code == 0
    assert "raw_cam7" in listed.out
    assert "h264, ended" in listed.out
    assert run("topics", "delete", "raw_cam7", "-a", "shm://cli").out == "raw_cam7 deleted\n"
    assert "no topics" in run("topics", "list", "--address", "shm://cli").out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_ends_the_stream_and_the_command_quietly(start, topics_folder: Path, number, code: int) -> None:
    publishing = start("publish", "synthetic://160x120@30", "-t", "raw_cam1", "-a", "shm://cli-signal")
    publishing.wait_for("publishing", where="err")
    with comux.connect("shm://cli-signal") as broker:
        deadline = threading.Event()
        while "raw_cam1" not in broker.topics():
            assert not deadline.wait(0.05)
        with broker.consumer("raw_cam1", start="beginning") as consumer:
            assert consumer.poll(20)
            publishing.send(number)
            ended = publishing.end()
            with pytest.raises(comux.errors.EndOfStream):
                while consumer.poll(10):
                    pass
        broker.delete_topic("raw_cam1")
    assert ended.code == code
    assert "Traceback" not in ended.err
    assert "stopped" in ended.out


def test_output_nobody_reads_is_no_traceback(start) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "comux", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait(20) in (0, 1)


# -- terminate -----------------------------------------------------------------------------------------------------

OBEDIENT = "import comux, signal; comux.write_pid_file(); print('ready', flush=True); signal.pause()"
STUBBORN = (
    "import comux, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); comux.write_pid_file();"
    "print('ready', flush=True)\nwhile True: signal.pause()"
)


@pytest.mark.parametrize(("program", "word"), [(OBEDIENT, "ended"), (STUBBORN, "killed")])
def test_terminate_ends_a_program(run, tmp_path: Path, program: str, word: str) -> None:
    with subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            assert json.loads((tmp_path / "pid").read_text())["pid"] == process.pid
            waiter = threading.Thread(target=process.wait)  # it must not stay a zombie: terminate waits for its end
            waiter.start()
            ended = run("terminate", "--timeout", "0.5" if word == "killed" else "20")
            waiter.join(20)
        finally:
            process.kill()
    assert (ended.code, word in ended.out) == (0, True), ended
    assert not (tmp_path / "pid").exists()


def test_terminate_without_a_file_or_with_a_stranger_in_it(run, tmp_path: Path) -> None:
    missing = run("terminate", "other.pid")
    assert (missing.code, missing.out.count("\n")) == (0, 1)
    stranger = tmp_path / "stranger.pid"
    stranger.write_text(json.dumps({"pid": os.getppid(), "start": 1, "comux": 1}))
    refused = run("terminate", "stranger.pid")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert stranger.exists()
