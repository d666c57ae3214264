"""The demo from end to end, as a person runs it: what it shows, its books, its end, and that nothing is left."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from PIL import Image

from comux.cli.tables import age_in_ms
from comux.decoders.encode import VideoEncoder
from comux.feeds.scene import Scene

SMALL = ("--size", "320x180")
SHOWING = r"[1-9]\d* results read back"
QUICK_END = 30.0  #: seconds, half of what the demo would run; it takes well under one on an idle machine


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def balanced(account: dict) -> bool:
    parts = account["delivered"] + account["absorbed"] + sum(account["dropped"].values()) + account["held"]
    return account["received"] == parts


def test_the_demo_delivers_from_all_cameras_balances_and_leaves_one_picture(start, topics_folder, tmp_path) -> None:
    demo = start("demo", "--seconds", "3", "--format", "json", "--output", "sheet.png")
    ended = demo.end(60)
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)

    assert list(told["sources"]) == ["cam1", "cam2", "cam3", "cam4"]
    for cam_id, account in told["sources"].items():
        assert balanced(account), (cam_id, account)
        assert account["delivered"] > 0, cam_id
    results = told["results"]
    delivered = sum(account["delivered"] for account in told["sources"].values())
    assert results["sent"] + results["refused"] == delivered
    assert 0 < results["verified"] == results["read_back"] <= results["sent"]
    assert all(count > 0 for count in results["by_source"].values())
    assert (results["missed"], results["trouble"], told["misread"]) == (0, "", 0)
    assert told["seconds"] >= 3

    assert told["contact_sheet"] == "sheet.png"
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG"
        assert 1000 < sheet.width < 2000 and 500 < sheet.height < 2000
        assert len(sheet.resize((64, 64)).getcolors(64 * 64)) > 100, "there are pictures on it"
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
    assert list(topics_folder.glob("demo-*")) == []
    assert "running" in ended.err.lower()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_at_once_with_its_summary(start, children, topics_folder, number) -> None:
    demo = start("demo", "--cameras", "2", "--seconds", "60", *SMALL)
    demo.wait_for(SHOWING)
    family = children(demo.pid)
    assert len(family) == 3
    demo.send(number)
    ended = demo.end(QUICK_END)
    assert ended.code == 0, ended.err
    assert ended.out.count("balanced ✓") == 2
    assert "contact sheet" in ended.out
    assert not any(alive(pid) for pid in family)
    assert list(topics_folder.glob("demo-*")) == []


def test_killed_outright_its_children_end_and_the_next_demo_cleans_up(
    start, children, topics_folder, wait_until
) -> None:
    demo = start("demo", "--cameras", "2", "--seconds", "60", *SMALL)
    demo.wait_for(SHOWING)
    family = children(demo.pid)
    demo.send(signal.SIGKILL)
    demo.end()
    wait_until(lambda: not any(alive(pid) for pid in family))
    assert [path.name for path in topics_folder.glob("demo-*")] == [f"demo-{demo.pid}"]

    later = start("demo", "--cameras", "1", "--seconds", "0.5", "--format", "json", *SMALL).end(60)
    assert later.code == 0, later.err
    assert json.loads(later.out)["sources"]["cam1"]["delivered"] > 0
    assert list(topics_folder.glob("demo-*")) == []


def test_a_killed_publisher_stops_nobody_and_comes_back(start, children) -> None:
    demo = start("demo", "--cameras", "2", "--seconds", "60", *SMALL)
    demo.wait_for(SHOWING)
    publishers = {
        word: pid
        for pid in children(demo.pid)
        for word in Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        if word in ("raw_cam1", "raw_cam2")
    }
    os.kill(publishers["raw_cam2"], signal.SIGKILL)
    demo.wait_for("cam2: its publisher runs again")
    demo.wait_for("cam2: STALLED -> RUNNING")
    demo.send(signal.SIGINT)
    ended = demo.end(QUICK_END)
    assert ended.code == 0, ended.err
    assert "SIGKILL" in ended.out
    assert ended.out.count("balanced ✓") == 2


def test_a_video_file_is_played_by_every_camera(start, tmp_path: Path) -> None:
    path = tmp_path / "clip.h264"
    scene = Scene(160, 120, 1, 1)
    with VideoEncoder("h264", 160, 120, 30, gop=15) as encoder:
        packets = [p for frame in range(15) for p in encoder.encode(scene.picture(frame), frame)]
        path.write_bytes(b"".join(p.data for p in (*packets, *encoder.flush())))
    demo = start("demo", "--video", str(path), "--cameras", "2", "--seconds", "60")
    more_than_the_file = r"\d+ fps, (1[6-9]|[2-9]\d|\d{3,}) delivered"
    demo.wait_for(f"cam1 {more_than_the_file}.*cam2 {more_than_the_file}")
    demo.send(signal.SIGINT)
    ended = demo.end(QUICK_END)
    assert ended.code == 0, ended.err
    assert ended.out.count("balanced ✓") == 2


def test_what_a_camera_cannot_do_ends_the_demo_with_its_words(start, tmp_path: Path, topics_folder) -> None:
    path = tmp_path / "noise.mp4"
    path.write_bytes(bytes(range(256)) * 40)
    ended = start("demo", "--video", str(path)).end()
    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.count("\n") == 1 and "noise.mp4" in ended.err
    assert list(topics_folder.glob("demo-*")) == []


def test_topics_that_exist_are_left_alone(start, run) -> None:
    made = run(
        "publish", "synthetic://160x120@30", "-t", "raw_cam1", "-a", "shm://taken", "--pace", "fast", "--frames", "5"
    )
    assert made.code == 0, made.err
    refused = run("demo", "--address", "shm://taken")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "raw_cam1" in refused.err
    assert "raw_cam1" in run("topics", "list", "-a", "shm://taken").out
    assert run("topics", "delete", "raw_cam1", "-a", "shm://taken").code == 0


def test_an_age_says_whether_it_is_an_estimate() -> None:
    assert age_in_ms({"age": 0.0421, "age_estimated": False}) == "42"
    assert age_in_ms({"age": 0.0421, "age_estimated": True}) == "~42"
    assert age_in_ms({"age": None, "age_estimated": False}) == "-"
