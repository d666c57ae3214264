"""Sources come and go while eight cameras run: memory, threads, descriptors and segments, cycle by cycle.

    python benchmarks/churn/bench.py [--cycles 1000] [--cameras 8] [--json FILE] [--png FILE]

A cycle is three commands on the control topic, each answered: ``create`` a source on one of the cameras' topics,
``update`` it (another size, another rate in turn), ``delete`` it. The cameras are synthetic H.264, published by
processes of their own; a loop takes their frames meanwhile. Measured every tenth cycle: resident memory, threads, file
descriptors, and files of shared memory of this manager; and per camera what was received, delivered and dropped. The
frame rates before, during and after the cycles are those that the loop took.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common

from comux import Comux
from comux.control import send_command
from comux.lifecycle import child_environment, python_command
from comux.transport import connect

FPS, SIZE = 10, "160x120"
EVERY = 10
QUIET = 5.0  # seconds of frames taken before the first cycle and after the last
KINDS = ("rss_mb", "threads", "descriptors", "segments")


@contextlib.contextmanager
def publishers(address: str, cams: list[str]) -> Iterator[None]:
    """A process for each camera."""
    started = [
        subprocess.Popen(
            python_command(
                "-m", "comux", "publish", f"synthetic://{SIZE}@{FPS}?camera={number}&seed={number}&gop=10",
                "--topic", f"raw_{cam}", "--address", address,
            ),
            env=child_environment(), stdout=subprocess.DEVNULL,
        )
        for number, cam in enumerate(cams)
    ]  # fmt: skip
    try:
        yield
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(30)


class Loop:
    """Takes frames; counts them."""

    def __init__(self, cameras: Comux, cams: list[str]) -> None:
        self.frames = dict.fromkeys(cams, 0)
        self._cameras = cameras
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bench-loop")
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            for cam_id, _, array in self._cameras.get_batch(timeout=0.2):
                if array is not None and cam_id in self.frames:
                    self.frames[str(cam_id)] += 1

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)


def resources(folder: Path) -> dict[str, float]:
    """This process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "rss_mb": round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 2),
        "threads": threading.active_count(),
        "descriptors": len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - names only, without a look at each
        "segments": sum(1 for path in folder.rglob("*") if path.is_file()),
    }


def ask(address: str, action: str, value: Any) -> None:
    answer = send_command(address, "config", action, value, timeout=60)
    if not answer["ok"]:
        raise SystemExit(f"{action} {value!r}: {answer['error']['message']}")


def rates(loop: Loop, before: dict[str, int], seconds: float) -> list[float]:
    return [round((loop.frames[cam] - before[cam]) / seconds, 2) for cam in loop.frames]


def run(cycles: int, count: int) -> dict[str, Any]:
    """All cycles; returns what was measured."""
    address = f"shm://churn-{secrets.token_hex(4)}"
    cams = [f"cam{number}" for number in range(count)]
    with connect(address) as broker:
        from comux.ring.directory import folder_of  # where the files of a namespace are

        folder = Path(folder_of(address.removeprefix("shm://")))
        with publishers(address, cams):
            deadline = time.monotonic() + 60
            while not {f"raw_{cam}" for cam in cams} <= set(broker.topics()):
                if time.monotonic() > deadline:
                    raise SystemExit("the cameras have not begun within 60 s")
                time.sleep(0.05)
            result = _run(address, broker, cams, folder, cycles)
        for name in broker.topics():
            broker.delete_topic(name, force=True)
    return result


def _run(address: str, broker: Any, cams: list[str], folder: Path, cycles: int) -> dict[str, Any]:
    samples: list[dict[str, float]] = []
    with Comux(cams, address=address, control_topic="config", mode="every_frame") as cameras:
        loop = Loop(cameras, cams)
        try:
            measured = [_quiet(loop)]
            before, began = dict(loop.frames), time.monotonic()
            for cycle in range(cycles + 1):
                if cycle % EVERY == 0 or cycle == cycles:
                    samples.append({"cycle": cycle, "seconds": round(time.monotonic() - began, 3), **resources(folder)})
                if cycle < cycles:
                    topic = f"raw_{cams[cycle % len(cams)]}"
                    ask(address, "create", {"cam_id": "extra", "consume_topic": topic})
                    changes = {"W": 80, "H": 60} if cycle % 2 else {"rate": 5}
                    ask(address, "update", {"cam_id": "extra", **changes})
                    ask(address, "delete", "extra")
            measured.append(rates(loop, before, time.monotonic() - began))
            measured.append(_quiet(loop))
        finally:
            loop.stop()
        books = {str(cam_id): account.as_dict() for cam_id, account in cameras.accounts().items()}
    return {"cameras": len(cams), "cycles": cycles, "samples": samples, "fps": measured, "accounts": books}


def _quiet(loop: Loop) -> list[float]:
    before, began = dict(loop.frames), time.monotonic()
    threading.Event().wait(QUIET)
    return rates(loop, before, time.monotonic() - began)


def picture(result: dict[str, Any], path: Path) -> None:
    """Every measured quantity over the cycles, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(KINDS), 1, sharex=True, figsize=(8, 8), layout="constrained")
    for axis, kind in zip(axes, KINDS, strict=True):
        axis.plot([s["cycle"] for s in result["samples"]], [s[kind] for s in result["samples"]], linewidth=1)
        axis.set_ylabel(kind.replace("rss_mb", "memory, MB"))
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("cycles of create, update, delete")
    figure.suptitle(f"{result['cycles']} cycles beside {result['cameras']} cameras")
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--cameras", type=int, default=8)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path)
    arguments = parser.parse_args()
    result = {"machine": common.machine(), **run(arguments.cycles, arguments.cameras)}
    print(common.describe(result["machine"]))
    first, last = result["samples"][0], result["samples"][-1]
    for kind in KINDS:
        print(f"{kind}: {first[kind]} before, {last[kind]} after {result['cycles']} cycles")
    for name, row in zip(("before", "during", "after"), result["fps"], strict=True):
        print(f"frames per second {name}: {row}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.png:
        picture(result, arguments.png)


if __name__ == "__main__":
    main()
