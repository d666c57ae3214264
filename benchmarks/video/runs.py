"""One measurement: a process of its own, watched from outside, between two looks at whether the machine is quiet."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from video import adapters, clips, feeder, live, rivals

WAYS: list[type[adapters.Way]] = [adapters.Ceiling, adapters.Multiplexer, *rivals.RIVALS]
PATIENCE_S = 300.0
TOLERANCE = 1.25  #: a look that took so many times the quickest says that somebody else computes
LOOKS = 20  #: before the machine is taken as it is
AGAIN = 1  #: measurements that were disturbed are repeated so often


class Failed(Exception):
    """A measurement that came to no end, or an error of a way."""


# -- inside --------------------------------------------------------------------------------------------------------


def inside(kind: str, name: str, words: dict[str, Any]) -> None:
    """The measured process: says ``ready`` when all is imported, then what it found, as JSON."""
    words["folder"] = Path(words["folder"])
    if kind == "live":
        job = live.LiveJob(**words)
        print(json.dumps(live.measure(job, name, lambda: print("ready", flush=True))), flush=True)
        os._exit(0)  # a rival's thread may wait for its pipe for ever
    if words["out"] is not None:
        words["out"] = tuple(words["out"])
    task = adapters.Job(**words)
    way = next(way for way in WAYS if way.name == name)()
    print("ready", flush=True)
    tally = adapters.Tally(adapters.WARM_UP * task.cameras)
    way.every(task, tally)
    print(json.dumps({**tally.figures(), "expected": task.frames * task.cameras}), flush=True)


# -- outside -------------------------------------------------------------------------------------------------------


class Memory:
    """The most memory of its own (and of shared memory that it touched) that a process and its children had."""

    def __init__(self, pid: int) -> None:
        self.pid, self.base, self.peak = pid, 0, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def ready(self) -> None:
        """What there is now is Python, and what was imported."""
        self.base = self.now()
        self._thread.start()

    def now(self) -> int:
        return sum(_resident(pid) for pid in _family(self.pid))

    def _run(self) -> None:
        while not self._stop.wait(0.03):
            self.peak = max(self.peak, self.now())

    def stop(self) -> None:
        self._stop.set()
        if self._thread.ident:
            self._thread.join()


def _family(pid: int) -> list[int]:
    found = [pid]
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += _family(int(child))
    return found


def _resident(pid: int) -> int:
    kinds = ("RssAnon:", "RssShmem:")
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(kinds))
    return 0


def run(kind: str, name: str, words: dict[str, Any], go: Callable[[], None]) -> dict[str, Any]:
    """Start the process, let it go when it is ready, and wait for what it found.

    Raises:
        Failed: it ended without, or did not end.
    """
    bench = Path(__file__).resolve().with_name("bench.py")
    call = [sys.executable, str(bench), "--inside", json.dumps([kind, name, {**words, "folder": str(words["folder"])}])]
    quiet = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENCV_LOG_LEVEL": "ERROR"}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ | quiet)
        timer = threading.Timer(PATIENCE_S, process.kill)
        timer.start()
        memory = Memory(process.pid)
        try:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                if line.strip() == "ready":
                    memory.ready()
                    go()
                else:
                    lines.append(line)
            process.wait()
        finally:
            timer.cancel()
            memory.stop()
            process.kill()
            process.wait()
        if process.returncode != 0 or not lines:
            errors.seek(0)
            said = errors.read().strip().splitlines()
            raise Failed(said[-1][:200] if said else f"exit code {process.returncode}")
    found: dict[str, Any] = json.loads(lines[-1])
    return {**found, "memory": max(0, memory.peak - memory.base)}


def every(name: str, job: adapters.Job) -> dict[str, Any]:
    """Files, as fast as it can."""
    return run("every", name, asdict(job), lambda: None)


@contextlib.contextmanager
def _cameras(job: live.LiveJob, clip_folder: Path, where: str) -> Iterator[Callable[[], None]]:
    due = feeder.due_file(job.folder, job.cameras, "w+")
    del due
    call = [sys.executable, str(Path(feeder.__file__)), str(job.folder), str(clip_folder), job.codec, job.size]
    call += [str(job.cameras), where]
    process = subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    try:
        if process.stdout.readline().strip() != "ready":
            raise Failed("the cameras did not start")
        source = process.stdin

        def go() -> None:
            source.write("go\n")
            source.flush()

        yield go
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def watched(name: str, job: live.LiveJob, clip_folder: Path) -> dict[str, Any]:
    """Live cameras."""
    folder = Path(tempfile.mkdtemp(prefix="comux-bench-"))
    words = {**asdict(job), "folder": folder}
    try:
        placed = live.LiveJob(**words)
        with _cameras(placed, clip_folder, live.WATCHES[name].where) as go:
            return run("live", name, words, go)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# -- whether the machine is quiet ----------------------------------------------------------------------------------


class Gate:
    """Looks at the machine: decodes the same pictures on every core at once, and knows how quick that was at best.

    Attributes:
        disturbed: Measurements that were kept although a look beside them took too long.
    """

    def __init__(self, folder: Path) -> None:
        self._packets = [packet.data for packet in clips.encoded(folder, "h264", "360p", 90)]
        self.best = min(self.look() for _ in range(8))
        self.disturbed = 0

    def look(self) -> float:
        """Seconds."""
        import av

        def work() -> None:
            context = av.CodecContext.create("h264", "r")
            context.thread_count = 1
            for packet in self._packets:
                context.decode(av.Packet(packet))

        threads = [threading.Thread(target=work) for _ in range(os.cpu_count() or 1)]
        begin = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.monotonic() - begin

    def quiet(self, looks: int) -> bool:
        """Whether one of so many looks was quick."""
        for turn in range(looks):
            took = self.look()
            self.best = min(self.best, took)
            if took <= TOLERANCE * self.best:
                return True
            if turn + 1 < looks:
                time.sleep(0.4)
        return False

    def measure(self, once: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A measurement with quiet before and after it; repeated where that was not so, then kept and marked."""
        for turn in range(AGAIN + 1):
            before = self.quiet(LOOKS)
            found = once()
            if before and self.quiet(2):
                return {**found, "disturbed": False}
            if turn == AGAIN:
                self.disturbed += 1
        return {**found, "disturbed": True}
