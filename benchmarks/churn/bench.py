"""Sources come and go while eight cameras run: memory, threads, descriptors and segments, cycle by cycle.

    python benchmarks/churn/bench.py [--cycles 1000] [--cameras 8] [--json FILE] [--png FILE]

A cycle is ``create`` a source on one of the cameras' topics, wait for a picture of it, ``update`` it (``CHANGES`` in
turn), ``delete`` it: by commands on the control topic and by methods, turn and turn. The cameras are synthetic H.264,
published by processes of their own; a loop takes their frames meanwhile.

Measured after every tenth cycle (``--every``): memory, threads, file descriptors and files of shared memory of this
process, and the cameras' frames per second. At the end the cameras stop, and the loop takes what is left: ``judge``
says then whether every packet they published reached the loop once, and whether anything grew. Exit code 1 where
something is wrong. ``--plant memory`` adds a leak that ``judge`` must find.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import secrets
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common

from comux import Comux
from comux.control import send_command
from comux.lifecycle import child_environment, python_command
from comux.ring.directory import default_directory
from comux.transport import Broker, connect

FPS, SIZE, GOP = 10, "160x120", 10
EXTRA = "extra"  # the source that comes and goes
CHANGES: tuple[dict[str, Any], ...] = (
    {"rate": 5.0},
    {"W": 80, "H": 60},
    {"array_format": "gray"},
    {"consume_topic": "raw_cam0"},
)
WARM = 20  # cycles before the first sample: allocators, pools and caches grow to their size
PATIENCE = 60.0  # seconds for anything that must happen
PLANTED = 50_000  # bytes a cycle
GROWTH = 4_000  # bytes a cycle from which memory counts as growing
SLACK = 2.0  # MB that memory may differ whatever the number of cycles
COUNTS = ("threads", "descriptors", "segments")
LABELS = {"memory_mb": "memory, MB", "threads": "threads", "descriptors": "descriptors", "segments": "segments"}

Door = Callable[[str, Any], None]


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for something true and return it."""
    deadline = time.monotonic() + PATIENCE
    pause = threading.Event()
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not within {PATIENCE:g} s")
        pause.wait(0.005)
    return found


@contextlib.contextmanager
def publishers(address: str, cams: list[str]) -> Iterator[Callable[[], None]]:
    """A process for each camera; gives the function that ends them, and their streams."""
    started = [
        subprocess.Popen(
            python_command(
                "comux", "publish", f"synthetic://{SIZE}@{FPS}?camera={number}&seed={number}&gop={GOP}",
                "--topic", f"raw_{cam}", "--address", address, "--quiet", "--parent", str(os.getpid()),
            ),
            env=child_environment(), stdout=subprocess.DEVNULL,
        )
        for number, cam in enumerate(cams)
    ]  # fmt: skip

    def end() -> None:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(PATIENCE)

    try:
        yield end
    finally:
        end()


class Loop:
    """The user's loop, in a thread: counts pictures."""

    def __init__(self, cameras: Comux, cams: list[str]) -> None:
        self.frames = dict.fromkeys([*cams, EXTRA], 0)
        self.offsets = dict.fromkeys(cams, (-1, -1))  # lowest and highest, of frames in the order of their display
        self.seen: float | None = None  # monotonic time of the first batch that had the extra source
        self._cameras = cameras
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bench-loop")
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            for item in self._cameras.get_batch(timeout=0.2):
                name = str(item.cam_id)
                if name == EXTRA and self.seen is None:
                    self.seen = time.monotonic()
                if item.array is None:
                    continue
                if name in self.offsets:
                    low, high = self.offsets[name]
                    self.offsets[name] = (item.index if low < 0 else min(low, item.index), max(high, item.index))
                self.frames[name] += 1

    @property
    def total(self) -> int:
        """Pictures of the cameras that stay."""
        return sum(self.frames[name] for name in self.offsets)

    def missing(self, cam: str) -> int:
        """Packets between the first and the last picture of a camera whose picture did not come."""
        low, high = self.offsets[cam]
        return high - low + 1 - self.frames[cam]

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(PATIENCE)


def resources(folder: Path) -> dict[str, float]:
    """This process now: what it holds, not what the interpreter and the C library keep for later.

    Memory is what is its own. The pages of the topics' files that it has read count in ``VmRSS``, too, and grow until
    the rings have gone round once.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "memory_mb": round(int(status["RssAnon"].split()[0]) / 1024, 2),
        "threads": len(os.listdir("/proc/self/task")),  # noqa: PTH208 - names only, without a look at each
        "descriptors": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        "segments": sum(1 for path in folder.rglob("*") if path.is_file()),
    }


def doors(cameras: Comux, address: str) -> tuple[Door, Door]:
    """The two ways to change sources: commands, and methods."""

    def by_command(action: str, value: dict[str, Any]) -> None:
        answer = send_command(address, "config", action, value, timeout=PATIENCE)
        if not answer["ok"]:
            raise SystemExit(f"{action} {value!r}: {answer['error']['message']}")

    def by_method(action: str, value: dict[str, Any]) -> None:
        getattr(cameras, action)(**value)

    return by_command, by_method


def cycle(number: int, door: Door, loop: Loop, cams: list[str]) -> float:
    """One source comes, shows a picture, is changed and goes; returns the seconds until it was in a batch."""
    loop.seen, pictures = None, loop.frames[EXTRA]
    topic = f"raw_{cams[number % len(cams)]}"
    began = time.monotonic()
    door("create", {"cam_id": EXTRA, "consume_topic": topic, "start": "keyframe"})
    until(lambda: loop.frames[EXTRA] > pictures, f"cycle {number}: a picture of the new source")
    door("update", {"cam_id": EXTRA, **CHANGES[number // 2 % len(CHANGES)]})
    door("delete", {"cam_id": EXTRA})
    return (loop.seen or began) - began


def run(cycles: int, count: int, *, every: int = 10, quiet: float = 5.0, plant: str = "") -> dict[str, Any]:
    """All cycles; returns what was measured.

    Args:
        cycles: After ``WARM`` that are not counted.
        count: Cameras that run all the time.
        every: Cycles between two samples.
        quiet: Seconds of frames taken before the first cycle and after the last.
        plant: ``"memory"``: leak that, to see that it is found.
    """
    address = f"shm://churn-{secrets.token_hex(4)}"
    folder = default_directory() / address.removeprefix("shm://")
    cams = [f"cam{number}" for number in range(count)]
    with connect(address) as broker:
        try:
            with publishers(address, cams) as end:
                until(lambda: {f"raw_{cam}" for cam in cams} <= set(broker.topics()), "the cameras' topics")
                with Comux(cams, address=address, control_topic="config", mode="every_frame") as cameras:
                    loop = Loop(cameras, cams)
                    try:
                        until(lambda: all(loop.frames[cam] for cam in cams), "a picture of every camera")
                        ways = doors(cameras, address)
                        result = _cycles(loop, ways, cams, folder, cycles=cycles, every=every, quiet=quiet, plant=plant)
                        end()
                        result["cameras"] = _drained(cameras, loop, broker, cams)
                    finally:
                        loop.stop()
                    result["left"] = sorted(set(map(str, cameras.accounts())) - {*cams, EXTRA})
        finally:
            for name in broker.topics():
                broker.delete_topic(name, force=True)
            with contextlib.suppress(OSError):
                folder.rmdir()
    return result


def _cycles(
    loop: Loop,
    ways: tuple[Door, Door],
    cams: list[str],
    folder: Path,
    *,
    cycles: int,
    every: int,
    quiet: float,
    plant: str,
) -> dict[str, Any]:
    samples: list[dict[str, float]] = []
    waits: list[float] = []
    planted: list[bytes] = []
    for number in range(WARM):
        cycle(number, ways[number % 2], loop, cams)
    before = _rate(loop, quiet)
    began, at, frames = time.monotonic(), time.monotonic(), loop.total
    start = frames
    for number in range(cycles + 1):
        if number % every == 0 or number == cycles:
            now, total = time.monotonic(), loop.total
            fps = (total - frames) / len(cams) / (now - at) if number else before
            samples.append(
                {"cycle": number, "seconds": round(now - began, 3), "fps": round(fps, 2), **resources(folder)}
            )
            at, frames = now, total
        if number < cycles:
            waits.append(cycle(number, ways[number % 2], loop, cams))
            if plant == "memory":
                planted.append(os.urandom(PLANTED))
    during = (loop.total - start) / len(cams) / (time.monotonic() - began)
    fps = {"before": before, "during": round(during, 2), "after": _rate(loop, quiet)}
    wait = {"median": round(statistics.median(waits), 4), "max": round(max(waits), 4)}
    return {"cycles": cycles, "fps": fps, "seconds_to_be_in_a_batch": wait, "samples": samples}


def _rate(loop: Loop, seconds: float) -> float:
    """Frames per second and camera while nothing else happens."""
    before, began = loop.total, time.monotonic()
    threading.Event().wait(seconds)
    return round((loop.total - before) / len(loop.offsets) / (time.monotonic() - began), 2)


def _drained(cameras: Comux, loop: Loop, broker: Broker, cams: list[str]) -> dict[str, dict[str, Any]]:
    """The cameras have stopped: what became of everything they published."""
    ends = {cam: broker.topic(f"raw_{cam}").high_water for cam in cams}

    def drained() -> bool:
        books = cameras.accounts()
        places = cameras.status()["sources"]
        return all(places[cam]["position"] == ends[cam] and books[cam].held_total == 0 for cam in cams)

    until(drained, "the last pictures in the loop")
    return {
        cam: {
            "received": book.received,
            "delivered": book.delivered,
            "dropped": dict(book.dropped),
            "absorbed": book.absorbed,
            "missing": loop.missing(cam),
        }
        for cam, book in ((cam, cameras.accounts()[cam]) for cam in cams)
    }


def judge(result: dict[str, Any]) -> list[str]:
    """What is wrong; nothing, where all is well."""
    wrong = []
    first, last = result["samples"][0], result["samples"][-1]
    wrong += [f"{kind}: {first[kind]} before, {last[kind]} after" for kind in COUNTS if first[kind] != last[kind]]
    growth, allowed = grown(result), GROWTH * result["cycles"] / 2**20 + SLACK
    if growth > allowed:
        wrong.append(f"memory: {growth:.2f} MB more at the end, {allowed:.2f} MB are allowed")
    for cam, book in result["cameras"].items():
        dropped = sum(book["dropped"].values())
        if set(book["dropped"]) - {"resync"} or dropped >= GOP:  # before the first keyframe
            wrong.append(f"{cam}: dropped {book['dropped']}")
        if book["received"] != book["delivered"] + dropped + book["absorbed"]:
            wrong.append(f"{cam}: the books do not balance: {book}")
        if book["missing"]:
            wrong.append(f"{cam}: the pictures of {book['missing']} packets never came")
    if result["left"]:
        wrong.append(f"books of sources that never were: {result['left']}")
    return wrong


def grown(result: dict[str, Any]) -> float:
    """MB that the last quarter of the samples has more than the first, extended to the whole run."""
    memory = [sample["memory_mb"] for sample in result["samples"]]
    part = max(1, len(memory) // 4)
    between = statistics.median(memory[-part:]) - statistics.median(memory[:part])
    return between * len(memory) / max(1, len(memory) - part)


def picture(result: dict[str, Any], path: Path) -> None:
    """Every measured quantity over the cycles, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = {**LABELS, "fps": "frames/s, camera"}
    figure, axes = pyplot.subplots(len(labels), 1, sharex=True, figsize=(8, 9), layout="constrained")
    for axis, (kind, label) in zip(axes, labels.items(), strict=True):
        axis.plot([s["cycle"] for s in result["samples"]], [s[kind] for s in result["samples"]], linewidth=1)
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0, top=1.25 * max(s[kind] for s in result["samples"]))
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("cycles of create, update, delete")
    figure.suptitle(f"{result['cycles']} cycles beside {len(result['cameras'])} cameras")
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--cameras", type=int, default=8)
    parser.add_argument("--every", type=int, default=10, help="cycles between two samples")
    parser.add_argument("--quiet", type=float, default=5.0, help="seconds measured before and after the cycles")
    parser.add_argument("--plant", choices=["memory"], default="")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path)
    given = parser.parse_args()
    facts = common.machine(("comux", "numpy", "av"))
    measured = run(given.cycles, given.cameras, every=given.every, quiet=given.quiet, plant=given.plant)
    result = {"machine": facts, **measured}
    wrong = judge(result)
    print(common.describe(facts))
    first, last = result["samples"][0], result["samples"][-1]
    for kind, label in LABELS.items():
        print(f"{label}: {first[kind]} before, {last[kind]} after {result['cycles']} cycles")
    print(f"frames per second and camera: {result['fps']}")
    print(f"seconds from create to a batch that has the source: {result['seconds_to_be_in_a_batch']}")
    for line in wrong:
        print(f"WRONG: {line}")
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")
    if given.png:
        picture(result, given.png)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
