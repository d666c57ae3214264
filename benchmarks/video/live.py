"""What comes while a loop takes pictures of live cameras: which, how old, beside which model, and whether it keeps up.

A loop takes the newest picture of each camera that has one, or every picture. The model is either in the loop
(*compute*: 100 ms of one core, without the interpreter's lock) or in a thread of its own (*python*: pure Python, which
keeps the interpreter busy). Its rate alone is measured first, in the same process.
"""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from video import clips, feeder
from video.adapters import cpu_of_tree, look
from video.rivals import raw_pictures, to_array

MODEL_S = 0.1
ALONE_S = 2.0
FIRST_S = 20.0  #: for the first picture of the last camera
_PROBE = {"analyzeduration": "500000", "probesize": "500000", "fflags": "nobuffer"}


@dataclass(frozen=True)
class LiveJob:
    """What is to be watched.

    Attributes:
        folder: Of pipes and times.
        codec, size, cameras: What there is.
        seconds: Measured, after ``warm`` seconds that are not.
        model: ``""``, ``compute`` or ``python``.
        every: All pictures, instead of the newest.
        rate: Pictures a second that are wanted of each camera; 0: all. comux has a setting for it, the others decode
            everything, and the loop takes what is newest so often.
    """

    folder: Path
    codec: str
    size: str
    cameras: int
    seconds: float
    warm: float
    model: str = ""
    every: bool = False
    rate: float = 0.0

    @property
    def shape(self) -> tuple[int, int, int]:
        width, height, _ = clips.SIZES[self.size]
        return height, width, 3


Pictures = list[tuple[int, Any]]


class Watch(ABC):
    """One way: its threads run between ``start`` and ``stop``."""

    where = "pipes"
    note = ""

    def __init__(self, job: LiveJob) -> None:
        self.job = job

    @abstractmethod
    def start(self) -> None:
        """Open the cameras; returns at once."""

    @abstractmethod
    def take(self) -> Pictures:
        """What there is by camera; waits until there is something, at most a second."""

    @abstractmethod
    def stop(self) -> None:
        """Let go of everything; the cameras' other ends close anyway."""

    def facts(self) -> dict[str, Any]:
        """What else it says of itself."""
        return {}


class Threads(Watch):
    """A thread for each camera that puts what it reads into a slot (``newest``) or a queue (``every``)."""

    def start(self) -> None:
        self._changed = threading.Condition()
        self._slots: list[deque[Any]] = [deque(maxlen=None if self.job.every else 1) for _ in range(self.job.cameras)]
        self._room = 64
        self._stopped = False
        for camera in range(self.job.cameras):
            threading.Thread(target=self._read, args=(camera,), daemon=True).start()

    def _read(self, camera: int) -> None:
        try:
            self.read(camera, lambda picture: self._put(camera, picture))
        except Exception:
            if not self._stopped:  # closing the pipe ends it
                raise

    def _put(self, camera: int, picture: Any) -> None:
        with self._changed:
            while self.job.every and len(self._slots[camera]) >= self._room and not self._stopped:
                self._changed.wait()
            if self._stopped:
                raise EOFError
            self._slots[camera].append(picture)
            self._changed.notify_all()

    def take(self) -> Pictures:
        with self._changed:
            self._changed.wait_for(lambda: any(self._slots), 1.0)
            found = [(camera, slot.popleft()) for camera, slot in enumerate(self._slots) if slot]
            self._changed.notify_all()
        return [(camera, self.finish(picture)) for camera, picture in found]

    def finish(self, picture: Any) -> Any:
        """In the loop."""
        return picture

    def stop(self) -> None:
        self._stopped = True
        with self._changed:
            self._changed.notify_all()

    @abstractmethod
    def read(self, camera: int, put: Callable[[Any], None]) -> None:
        """In the camera's thread."""


class OpenCvThreads(Threads):
    def read(self, camera: int, put: Callable[[Any], None]) -> None:
        import cv2

        one = [cv2.CAP_PROP_N_THREADS, 1]
        capture = cv2.VideoCapture(feeder.pipe(self.job.folder, camera), cv2.CAP_FFMPEG, one)
        while (found := capture.read())[0]:
            put(found[1])

    def start(self) -> None:
        os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = "|".join(f"{name};{value}" for name, value in _PROBE.items())
        super().start()


class PyAvThreads(Threads):
    """Of the newest, only what the loop takes is converted."""

    def read(self, camera: int, put: Callable[[Any], None]) -> None:
        import av

        av.logging.set_level(None)
        with av.open(feeder.pipe(self.job.folder, camera), options=_PROBE) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count, stream.thread_type = 1, "SLICE"
            for frame in container.decode(stream):
                put(to_array(frame, None) if self.job.every else frame)

    def finish(self, picture: Any) -> Any:
        return picture if isinstance(picture, np.ndarray) else to_array(picture, None)


class FfmpegThreads(Threads):
    def read(self, camera: int, put: Callable[[Any], None]) -> None:
        probe = [word for name, value in _PROBE.items() for word in (f"-{name}", value)]
        source = [*probe, "-threads", "1", "-i", feeder.pipe(self.job.folder, camera)]
        with raw_pictures(source, self.job.shape, scaled=False) as pictures:
            for array in pictures:
                put(array)


class VidGearReaders(Watch):
    """CamGear's own threads. Newest: without its queue, so that ``read`` gives what is newest, again and again."""

    def start(self) -> None:
        import cv2

        os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = "|".join(f"{name};{value}" for name, value in _PROBE.items())
        self._streams: list[Any] = [None] * self.job.cameras
        self._seen: list[Any] = [None] * self.job.cameras
        cv2.setNumThreads(1)
        for camera in range(self.job.cameras):
            threading.Thread(target=self._open, args=(camera,), daemon=True).start()

    def _open(self, camera: int) -> None:
        import cv2
        from vidgear.gears import CamGear

        source = feeder.pipe(self.job.folder, camera)
        options = {"THREADED_QUEUE_MODE": self.job.every}
        self._streams[camera] = CamGear(source=source, backend=cv2.CAP_FFMPEG, logging=False, **options).start()

    def take(self) -> Pictures:
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            found = []
            for camera, stream in enumerate(self._streams):
                array = None if stream is None else stream.read()
                if array is not None and array is not self._seen[camera]:
                    self._seen[camera] = array
                    found.append((camera, array))
            if found:
                return found
            time.sleep(0.001)  # it has nothing to wait on
        return []

    def stop(self) -> None:
        return None


class Comux(Watch):
    """``get_batch``; ``mode`` by the job."""

    where = "topics"
    window: float | None = None
    settings: ClassVar[dict[str, Any]] = {}

    def start(self) -> None:
        from comux import Comux as Multiplexer

        job = self.job
        ids = [f"cam{camera}" for camera in range(job.cameras)]
        wanted: dict[str, Any] = {"rate": job.rate} if job.rate else {}
        mode = "every_frame" if job.every else "freshest"
        self._loop = Multiplexer(ids, address=feeder.ADDRESS, mode=mode, **wanted, **self.settings)
        self._loop.start()

    def take(self) -> Pictures:
        batch = self._loop.get_batch(timeout=1.0, window=self.window)
        return [(camera, item.array) for camera, item in enumerate(batch) if item]

    def stop(self) -> None:
        self._loop.close()

    def facts(self) -> dict[str, Any]:
        status = self._loop.status()
        sources = status["sources"].values()
        return {
            "lag_seconds": max(one["lag_seconds"] for one in sources),
            "dropped": status["total"]["dropped"],
            "jumps": sum(one["jumps"] for one in sources),
        }


class ComuxAtOnce(Comux):
    """The same with ``window=0``: a batch does not wait for the pictures of cameras that are out of step."""

    window = 0.0


class ComuxInProcesses(Comux):
    """The same with decoding in worker processes, where this comux has the setting."""

    settings: ClassVar[dict[str, Any]] = {"decode_processes": 2}


WATCHES: dict[str, type[Watch]] = {
    "comux": Comux,
    "comux, window=0": ComuxAtOnce,
    "comux, decode_processes=2": ComuxInProcesses,
    "PyAV loop per thread": PyAvThreads,
    "OpenCV thread per camera": OpenCvThreads,
    "VidGear CamGear": VidGearReaders,
    "ffmpeg pipes": FfmpegThreads,
}


# -- models --------------------------------------------------------------------------------------------------------


class Compute:
    """100 ms of one core in small matrix products; the interpreter's lock is free meanwhile."""

    def __init__(self) -> None:
        self._a = np.random.default_rng(1).random((192, 192), np.float32)
        self._times = 1
        while self._took(self._times) < 0.05:
            self._times *= 2
        took = min(self._took(self._times) for _ in range(3))
        self._times = max(1, round(self._times * MODEL_S / took))

    def _took(self, times: int) -> float:
        begin = time.monotonic()
        for _ in range(times):
            self._a @ self._a
        return time.monotonic() - begin

    def __call__(self) -> None:
        self._took(self._times)


class Busy:
    """A thread of pure Python that never waits; counts how far it got."""

    def __init__(self) -> None:
        self.steps = 0
        self._stopped = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped:
            total = 0
            for i in range(1000):
                total += i * i
            self.steps += 1

    def rate(self, seconds: float) -> float:
        """Steps a second."""
        before, begin = self.steps, time.monotonic()
        time.sleep(seconds)
        return (self.steps - before) / (time.monotonic() - begin)

    def stop(self) -> None:
        self._stopped = True
        self._thread.join()


# -- measuring -----------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What the loop got in the measured time."""

    ages: list[float] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    numbers: list[list[int]] = field(default_factory=list)
    turns: int = 0
    unread: int = 0  #: pictures that show no number: damaged


def age_of(due: np.ndarray, camera: int, array: Any, now: float) -> tuple[int, float] | None:
    """Number of a picture, and seconds since its packet was due; ``None`` where it shows no number."""
    from comux.feeds.marks import read_marks

    marks = read_marks(array)
    if marks is None:
        return None
    shown = np.arange(marks[1], due.shape[1], clips.ENCODED)
    there = [int(n) for n in shown if 0 < due[camera, n] <= now]
    if not there:
        raise ValueError(f"camera {camera}: picture {marks[1]} was not published yet")
    return there[-1], now - float(due[camera, there[-1]])


def watch(job: LiveJob, way: Watch, model: Callable[[], None] | None) -> tuple[Seen, float]:
    """Take pictures until ``warm`` and ``seconds`` are over; the processor time of the measured part."""
    due = feeder.due_file(job.folder, job.cameras, "r")
    came: set[int] = set()
    seen = Seen(numbers=[[] for _ in range(job.cameras)])
    begin = time.monotonic()
    start, cpu = float("inf"), 0.0
    tick = begin
    while True:
        if job.rate and way.where == "pipes":
            tick = max(tick + 1 / job.rate, time.monotonic())
            time.sleep(max(0.0, tick - time.monotonic()))
        pictures = way.take()
        now = time.monotonic()
        if len(came) < job.cameras:
            came.update(camera for camera, _ in pictures)
            if len(came) == job.cameras or now > begin + FIRST_S:
                came = set(range(job.cameras))
                start = now + job.warm
        if start <= now and not cpu:
            start, cpu = now, cpu_of_tree()
        if now >= start + job.seconds:
            break
        for camera, array in pictures:
            look(array)
            shown = age_of(due, camera, array, now)
            if shown is None:
                seen.unread += bool(cpu)
            elif cpu:
                number, age = shown
                seen.ages.append(age)
                seen.at.append(now - start)
                seen.numbers[camera].append(number)
        if model is not None:
            model()
        seen.turns += bool(cpu)
    return seen, cpu_of_tree() - cpu


def measure(job: LiveJob, name: str, go: Callable[[], None]) -> dict[str, Any]:
    """One measurement, in this process; ``go`` starts the cameras."""
    model: Callable[[], None] | None = None
    busy: Busy | None = None
    alone = 0.0
    if job.model == "compute":
        compute = Compute()
        times, until = 0, time.monotonic() + ALONE_S
        begin = time.monotonic()
        while time.monotonic() < until:
            compute()
            times += 1
        alone, model = times / (time.monotonic() - begin), compute
    elif job.model == "python":
        busy = Busy()
        alone = busy.rate(ALONE_S)
    way = WATCHES[name](job)
    go()
    way.start()
    steps, begun = (busy.steps, time.monotonic()) if busy else (0, 0.0)
    seen, cpu = watch(job, way, model)
    beside = (busy.steps - steps) / (time.monotonic() - begun) if busy else seen.turns / job.seconds
    facts = way.facts()
    if busy:
        busy.stop()
    way.stop()
    return {**summary(job, seen), "cpu": cpu / job.seconds, **facts, "alone": alone, "beside": beside}


def summary(job: LiveJob, seen: Seen) -> dict[str, Any]:
    """Figures of what was seen."""
    counts = [len(numbers) for numbers in seen.numbers]
    ages, at = np.array(seen.ages or [np.nan]), np.array(seen.at or [0.0])
    early, late = ages[at < job.seconds / 2], ages[at >= job.seconds / 2]
    rising = all(a < b for numbers in seen.numbers for a, b in pairwise(numbers))
    return {
        "pictures": sum(counts),
        "fps": sum(counts) / job.seconds,
        "slowest": min(counts) / job.seconds,
        "fairness": min(counts) / max(1.0, float(np.median(counts))),
        "age_p50": float(np.percentile(ages, 50)),
        "age_p99": float(np.percentile(ages, 99)),
        "age_early": float(np.median(early)) if early.size else float("nan"),
        "age_late": float(np.median(late)) if late.size else float("nan"),
        "rising": rising,
        "unread": seen.unread,
    }
