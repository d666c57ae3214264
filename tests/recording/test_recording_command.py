"""``comux bridge`` as a person runs it."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from comux.cli import main


def test_once_copies_everything_and_prints_the_account(place: Any, command: Any) -> None:
    source, destination = place("shm"), place("shm")
    for name in ("raw_a", "raw_b", "other"):
        source.topic(name)
        source.send(name, [b"%d" % n for n in range(10)])
    process = command(source.address, destination.address, "-t", "raw_*", "--prefix", "x_", "--once")
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert destination.broker.topics() == ["x_raw_a", "x_raw_b"]
    assert "raw_a -> x_raw_a: copying" in err and "raw_b -> x_raw_b: done" in err
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["topic", "copied", "to", "received", "delivered", "dropped", "held", "marked", "state"]
    assert sorted(rows[1:]) == [[n, f"x_{n}", "10", "10", "0", "0", "0", "done"] for n in ("raw_a", "raw_b")]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_ends_it_cleanly_with_the_account(place: Any, command: Any, number: Any, code: int) -> None:
    source, destination = place("shm"), place("shm")
    source.topic("t")
    source.send("t", [b"1", b"2"])
    process = command(source.at("t"), destination.address, "--format", "json")
    lines = []
    for line in process.stdout:
        lines.append(json.loads(line))
        if lines[-1].get("account", {}).get("delivered") == 2:
            break
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (code, "")
    lines += map(json.loads, out.splitlines())
    assert all(line["account"]["balanced"] for line in lines)
    assert [line["state"] for line in lines if line["kind"] == "bridge.state"] == ["copying", "stopped"]
    final = lines[-1]
    assert final["final"] is True
    assert (final["topic"], final["destination"], final["state"]) == ("t", "t", "stopped")
    assert (final["account"]["received"], final["account"]["delivered"], final["account"]["held"]) == (2, 2, 0)
    assert source.broker.groups("t")[0].members == 0


def test_a_topic_that_cannot_be_copied_is_code_1(place: Any, command: Any) -> None:
    source, destination = place("shm"), place("shm")
    source.topic("t", dtype="<u1", shape=(2,))
    destination.topic("t", dtype="<u1", shape=(3,))
    process = command(source.address, destination.address, "-t", "t", "--once")
    out, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "t: failed: destination: topic 't' exists" in err
    assert "failed" in out


WRONG = [
    (["shm://a"], ["DEST"]),
    (["shm://a", "shm://b"], ["which topics", "raw_*"]),
    (["shm://a/t", "shm://b", "-t", "u"], ["names the topic 't'"]),
    (["shm://a", "shm://a", "-t", "t"], ["same topics"]),
    (["memory://a", "shm://b", "-t", "t"], ["memory://a", "one process"]),
    (["shm://a", "memory://b", "-t", "t"], ["memory://b"]),
    (["shm://a", "rtsp://b", "-t", "t"], ["rtsp://"]),
    (["somewhere", "shm://b", "-t", "t"], ["somewhere"]),
    (["shm://a", "shm://b", "-t", "t", "--from", "middle"], ["middle", "keyframe"]),
    (["shm://a", "shm://b", "-t", "t", "--format", "xml"], ["xml", "json"]),
    (["shm://a", "shm://b", "-t", "t", "--lossy", "--group", "g"], ["lossy"]),
    (["shm://a/nothing", "shm://b", "--once"], ["nothing"]),
    (["shm://a", "shm://b", "-t", "no_*", "--once"], ["no_*"]),
    (["kafka://127.0.0.1:1?buffer_byts=1", "shm://a", "-t", "t"], ["buffer_byts"]),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=lambda value: " ".join(value) if len(value) > 1 else None)
def test_what_is_typed_wrong_is_one_line_and_code_2(capsys: Any, arguments: list[str], words: list[str]) -> None:
    code = main.execute(["bridge", *arguments])
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("comux: ")
    for word in words:
        assert word in err


def test_a_wrong_option_of_the_destination_ends_it_too(place: Any, capsys: Any) -> None:
    source = place("shm")
    source.topic("t")
    code = main.execute(["bridge", source.at("t"), "kafka://127.0.0.1:1?buffer_byts=1"])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert "buffer_byts" in err.splitlines()[-1]
