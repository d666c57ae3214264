"""The examples run as they are, and end by themselves."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

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


def test_batches_become_tensors_or_it_says_what_is_missing(examples: Path, tmp_path: Path) -> None:
    """torch is no dependency: where it is installed the example runs (and asserts that nothing was copied)."""
    ended = run_example(examples / "torch_batches.py", tmp_path, "--frames", "12")
    if importlib.util.find_spec("torch") is None:
        assert (ended.returncode, ended.stdout) == (1, "")
        assert ended.stderr == "this example needs torch: pip install torch (or its CPU build)\n"
        return
    assert ended.returncode == 0, ended.stderr
    where, *lines = ended.stdout.splitlines()
    assert where in ("no GPU that torch can use: on the processor", "through pinned memory onto the GPU")
    levels = [float(word.partition(":")[2]) for line in lines for word in line.split()]
    assert levels and all(0.1 < level < 0.9 for level in levels)


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
    "path", sorted((Path(__file__).resolve().parents[2] / "examples").rglob("*.py")), ids=lambda p: p.name
)
def test_examples_compile_and_say_what_they_are(path: Path) -> None:
    source = path.read_text()
    assert ast.get_docstring(ast.parse(source))


def test_the_file_of_cameras_runs_and_is_edited_while_it_does(
    examples: Path, tmp_path: Path, start, wait_until
) -> None:
    for name in ("cameras.yaml", "brightness.py"):
        shutil.copy(examples / "watch" / name, tmp_path)
    text = (tmp_path / "cameras.yaml").read_text()
    address = "shm://watch"
    (tmp_path / "cameras.yaml").write_text(text.replace("${COMUX_ADDRESS:-shm://}", address))
    cameras = [
        start("publish", f"synthetic://160x120@15?camera={n}", "-t", f"raw_cam{n}", "-a", address) for n in (1, 2, 3)
    ]
    for camera in cameras:
        camera.wait_for("publishing", where="err")
    running = start("run", "cameras.yaml", "--format", "json")
    running.wait_for("running brightness:Brightness on 2 cameras", where="err")
    edited = (tmp_path / "cameras.yaml").read_text() + "  - cam3\n"
    (tmp_path / "cameras.yaml").write_text(edited)
    with comux.connect(address) as broker:
        wait_until(lambda: "stream_cam3" in broker.topics(), 60)
        with broker.consumer("stream_cam3", start="beginning", on_end="wait") as results:
            assert results.poll(60)[0].header("change") is not None
    running.send(signal.SIGTERM)
    ended = running.end(90)
    assert ended.code == 0, ended.err
    assert set(json.loads(ended.out)["sources"]) == {"cam1", "cam2", "cam3"}
    for camera in cameras:
        camera.send(signal.SIGINT)
        camera.end()
    with comux.connect(address) as broker:
        for topic in broker.topics():
            broker.delete_topic(topic)


def test_two_pid_namespaces_share_topics_over_one_mount(examples: Path, tmp_path: Path) -> None:
    """The recipe of docs/how-to/shared-memory-in-containers.md: one is killed, what it held goes to another."""
    done = subprocess.run(
        [str(examples / "containers/two-namespaces.sh")],
        cwd=tmp_path,
        env={**child_environment(), "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    # What the dead one had fetched comes when its death is noticed, which may be after some that it had not.
    assert re.sub(r"records, \d+ to", "records, 4 to", done.stdout).splitlines() == [
        "producer: process 1 of its namespace; the topic is there",
        "consumer: process 1 of its namespace; holds record 4",
        "killed",
        "consumer: process 1 of its namespace; record 4 comes again: whoever held it is dead",
        "consumer: 1996 records, 4 to 1999",
        '  "next": 2000,',
    ]
    assert done.stderr == ""


def test_the_containers_of_the_compose_file_are_the_examples_own(examples: Path) -> None:
    services = yaml.safe_load((examples / "containers/compose.yaml").read_text())["services"]
    for name, service in services.items():
        assert (examples / "containers" / service["command"].split()[1]).is_file(), name
        assert service["volumes"] == ["topics:/topics"] and service["environment"]["COMUX_DIR"].startswith("/topics/")
        assert service["user"] == "1000:1000"
