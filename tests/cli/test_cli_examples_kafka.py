"""The examples on a real broker: the first comux's program with another address, and a fleet of two."""

from __future__ import annotations

import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from service_fixtures import KafkaCluster

from comux.cli.publishers import child_environment
from comux.transport import connect


@pytest.fixture
def address(kafka: KafkaCluster) -> Iterator[str]:
    """A namespace of this test's own on the cluster; its topics are removed."""
    address = f"kafka://{kafka.bootstrap}?prefix=examples-{uuid.uuid4().hex[:10]}."
    yield address
    with connect(address) as broker:
        for topic in broker.topics():
            broker.delete_topic(topic, force=True)


def publish(start, address: str, *cam_ids: str) -> list:
    cameras = [
        start("publish", f"synthetic://160x120@15?camera={n}", "-t", f"raw_{cam_id}", "-a", address)
        for n, cam_id in enumerate(cam_ids)
    ]
    for camera in cameras:
        camera.wait_for("publishing", where="err")
    return cameras


def run(path: Path, cwd: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(path), *arguments],
        cwd=cwd,
        env={**child_environment(), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_first_comuxs_program_with_nothing_but_the_address_changed(examples, tmp_path, start, address) -> None:
    cameras = publish(start, address, "cam1", "cam2")
    program = run(examples / "first_comux.py", tmp_path, "4", COMUX_ADDRESS=address)
    out, err = program.communicate(timeout=60)
    assert program.returncode == 0, err
    for camera in cameras:
        camera.send(signal.SIGINT)
        camera.end()
    sent = int(out.split()[0])
    assert out == f"{sent} results sent\n"
    with connect(address) as broker:
        assert sent == sum(broker.topic(f"stream_{cam_id}").high_water for cam_id in ("cam1", "cam2")) > 0


@pytest.mark.timeout(180)
def test_two_processes_share_the_cameras_of_the_example(examples, tmp_path, start, address) -> None:
    cameras = publish(start, address, "a", "b", "c", "d")
    first, second = (run(examples / "fleet.py", tmp_path, address, "--seconds", "15") for _ in range(2))
    ended = [process.communicate(timeout=90) for process in (first, second)]
    for camera in cameras:
        camera.send(signal.SIGINT)
        camera.end()
    here = []
    for process, (out, err) in zip((first, second), ended, strict=True):
        assert process.returncode == 0, err
        last = next(line for line in out.splitlines() if " pictures; " in line)
        assert int(last.split()[0]) > 0, out
        here += last.rpartition(": ")[2].split(", ")
        assert "fleet.assigned" in out
    # Who ends first leaves its cameras to the other, so at their ends each may have had more than its half.
    assert set(here) >= {"a", "b", "c", "d"}, ended
