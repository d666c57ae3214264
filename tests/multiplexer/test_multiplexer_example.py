"""The first comux's documented program, unchanged but for its addresses, on the local engine with real pictures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import uuid
from pathlib import Path

from comux.feeds import publish
from comux.headers import decode_headers
from comux.transport import connect

EXAMPLE = Path(__file__).parents[2] / "examples" / "first_comux.py"


def test_the_example_sends_results_and_ends_on_an_interrupt(tmp_path: Path) -> None:
    address = f"shm://example{uuid.uuid4().hex[:8]}"
    stop, published = threading.Event(), threading.Event()
    feeds = [
        threading.Thread(
            target=publish,
            args=(f"synthetic://160x120@30?camera={n}", address, f"raw_cam{n}"),
            kwargs={"stop": stop, "on_packet": lambda _: published.set()},
        )
        for n in (1, 2)
    ]
    for feed in feeds:
        feed.start()
    try:
        with connect(address) as broker:
            while not {"raw_cam1", "raw_cam2"} <= set(broker.topics()):
                assert published.wait(20)
            environment = {
                **os.environ,
                "COMUX_ADDRESS": address,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            }
            program = subprocess.Popen(
                [sys.executable, str(EXAMPLE), "60"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
            )
            wait = threading.Event()
            for _ in range(3000):  # until there are results of both cameras
                topics = set(broker.topics())
                if {"stream_cam1", "stream_cam2"} <= topics and all(
                    broker.topic(f"stream_cam{n}").high_water >= 3 for n in (1, 2)
                ):
                    break
                assert program.poll() is None, "the program ended early"
                wait.wait(0.02)
            program.send_signal(signal.SIGINT)
            output, _ = program.communicate(timeout=30)
            stop.set()
            for feed in feeds:
                feed.join(20)  # before their topics are taken from under them
            results = [broker.record_at(f"stream_cam{n}", 0) for n in (1, 2)]
            for topic in broker.topics():
                broker.delete_topic(topic, force=True)
    finally:
        stop.set()
        for feed in feeds:
            feed.join(20)
    assert program.returncode == 0
    assert output.endswith("results sent\n")
    assert int(output.split()[0]) >= 6
    for record in results:
        assert record is not None
        assert set(decode_headers(record)) == {"brightness", "brightest"}
    assert not (tmp_path / "pid").exists()
