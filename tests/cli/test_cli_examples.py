"""The examples run as they are, and end by themselves."""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import comux
from comux.lifecycle import child_environment


def run_example(path: Path, cwd: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(path), *arguments],
        cwd=cwd,
        env={**child_environment(), **variables},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_quickstart(examples: Path, tmp_path: Path) -> None:
    ended = run_example(examples / "quickstart.py", tmp_path)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert lines and all(line.startswith("cam1 ") and "(360, 640, 3) uint8" in line for line in lines)
    assert len(lines) == 60
    assert list(tmp_path.iterdir()) == []


def test_the_first_comuxs_program(examples: Path, tmp_path: Path, start) -> None:
    cameras = {
        f"cam{n}": start("publish", f"synthetic://160x120@15?camera={n}", "-t", f"raw_cam{n}", "-a", "shm://first")
        for n in (1, 2)
    }
    for camera in cameras.values():
        camera.wait_for("publishing", where="err")
    ended = run_example(examples / "first_comux.py", tmp_path, "2.5", COMUX_ADDRESS="shm://first")
    assert ended.returncode == 0, ended.stderr
    sent = int(ended.stdout.split()[0])
    assert ended.stdout == f"{sent} results sent\n"
    assert not (tmp_path / "pid").exists()
    for camera in cameras.values():
        camera.send(signal.SIGINT)
        camera.end()
    with comux.connect("shm://first") as broker:
        assert sent == sum(broker.topic(f"stream_{cam_id}").high_water for cam_id in cameras) > 0
        for topic in broker.topics():
            broker.delete_topic(topic)


def test_quickstart_is_short_enough_to_read(examples: Path) -> None:
    code = (examples / "quickstart.py").read_text().split('"""')[2]
    assert len([line for line in code.splitlines() if line.strip()]) <= 12


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.py")), ids=lambda p: p.name
)
def test_examples_compile_and_say_what_they_are(path: Path) -> None:
    source = path.read_text()
    assert ast.get_docstring(ast.parse(source))
