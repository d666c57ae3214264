"""One way of getting the pictures of N cameras as arrays into Python; each measurement runs alone in a process.

Files are read as fast as they can be: each picture of each camera, once. All decode the same packets and give a camera
as many codec threads: the cores that would be idle otherwise. The loop that takes pictures looks at the same bytes of
each: every sixteenth row, all of it.

Here: the ceiling and comux. ``rivals`` has the others, ``live`` what is live.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import resource
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from video import clips

WARM_UP = clips.FPS  #: pictures of each camera that are not counted: threads, codecs and memory are warm then
ROWS = 16


def look(array: Any) -> int:
    """What the loop does with a picture: a sum over every sixteenth row."""
    rows = array[::ROWS]
    if rows.strides[2] != 1:  # a view with the colours turned around
        rows = rows[..., ::-1]
    return int(np.add.reduce(rows.reshape(len(rows), -1).view(np.uint64), axis=None))


def cpu_of_tree() -> float:
    """Processor seconds of this process and of its children, those that have ended too."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    tick, total = os.sysconf("SC_CLK_TCK"), time.process_time() + ended.ru_utime + ended.ru_stime
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread or a child that has just ended
            for child in (task / "children").read_text().split():
                words = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                total += (int(words[11]) + int(words[12])) / tick
    return total


class Tally:
    """When each picture was there, and what the counted ones cost.

    Args:
        warm: So many are not counted.
    """

    def __init__(self, warm: int) -> None:
        self.times: list[float] = []
        self._warm = warm
        self._cpu: float | None = None

    def add(self) -> None:
        """A picture is there."""
        self.times.append(time.monotonic())
        if self._cpu is None and len(self.times) > self._warm:
            self._cpu = cpu_of_tree()

    def figures(self) -> dict[str, Any]:
        """Pictures a second, and seconds of processor time for each."""
        took, counted = cpu_of_tree() - (self._cpu or 0.0), len(self.times) - self._warm - 1
        if counted < 1:
            raise ValueError(f"only {len(self.times)} pictures came")
        times = sorted(self.times)
        return {"fps": counted / (times[-1] - times[self._warm]), "pictures": len(times), "cpu": took / counted}


@dataclass(frozen=True)
class Job:
    """What is to be read.

    Attributes:
        folder: Of the clips.
        codec, size: Of the cameras.
        cameras: How many.
        frames: Of each camera.
        out: Width and height of the arrays; ``None``: the cameras'.
        made: Different pictures in a clip.
    """

    folder: Path
    codec: str
    size: str
    cameras: int
    frames: int
    out: tuple[int, int] | None = None
    made: int = 90

    @property
    def threads(self) -> int:
        """Codec threads of a camera: the cores that would be idle otherwise."""
        return max(1, (os.cpu_count() or 1) // self.cameras)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the arrays."""
        width, height = self.out or clips.SIZES[self.size][:2]
        return height, width, 3

    @property
    def file(self) -> Path:
        """Made by whoever starts the process."""
        return clips.file_of(self.folder, self.codec, self.size, self.frames, self.made)

    def packets(self) -> list[bytes]:
        made = clips.encoded(self.folder, self.codec, self.size, self.made)
        return [packet.data for packet in clips.repeated(made, self.frames)]


class Way(ABC):
    """One way.

    Attributes:
        name: In the tables.
        does: What it does and what it does not do, in a sentence.
        package: Module that it needs, or ``None``.
        ours: Whether it is comux.
        rival: Whether comux is compared with it.
    """

    name: str
    does: str
    package: str | None = None
    ours = False
    rival = True

    @classmethod
    def absent(cls) -> str | None:
        """Why it cannot be used here; ``None`` where it can."""
        if cls.package is None:
            return None
        try:
            importlib.import_module(cls.package)
        except Exception as error:  # noqa: BLE001 - whatever an import of others' code meets
            return f"{type(error).__name__}: {error}".splitlines()[0]
        return None

    @abstractmethod
    def every(self, job: Job, tally: Tally) -> None:
        """Read every picture of every camera."""


def take(job: Job, tally: Tally, read: Callable[[int, Callable[[Any], None]], None]) -> None:
    """A thread for each camera, one loop that takes what they give.

    Args:
        job: What is read; a picture of another shape is an error.
        tally: Told of each.
        read: Called in the thread of a camera with its number and with what takes a picture.
    """
    pictures: queue.Queue[Any] = queue.Queue(2 * job.cameras)
    wrong: list[BaseException] = []

    def work(camera: int) -> None:
        try:
            read(camera, pictures.put)
        except BaseException as error:  # noqa: BLE001 - told to the loop
            wrong.append(error)
        finally:
            pictures.put(None)

    threads = [threading.Thread(target=work, args=(camera,), daemon=True) for camera in range(job.cameras)]
    for thread in threads:
        thread.start()
    left = job.cameras
    while left:
        array = pictures.get()
        if array is None:
            left -= 1
            continue
        if array.shape != job.shape:
            raise ValueError(f"a picture of {array.shape}, not {job.shape}")
        look(array)
        tally.add()
    for thread in threads:
        thread.join()
    if wrong:
        raise wrong[0]


def decoder(job: Job) -> Any:
    """A codec as comux and PyAV's loop set it."""
    import av

    av.logging.set_level(None)
    context = av.CodecContext.create(job.codec, "r")
    context.thread_count = job.threads
    context.thread_type = "SLICE" if job.threads == 1 else "FRAME"
    return context


class Ceiling(Way):
    """Decoding alone."""

    name = "decode only (ceiling)"
    does = "PyAV: a loop per thread that decodes and keeps nothing. Converts nothing, delivers nothing"
    rival = False

    def every(self, job: Job, tally: Tally) -> None:
        import av

        data = job.packets()

        def work() -> None:
            context = decoder(job)
            for packet in [*data, None]:
                for _ in context.decode(None if packet is None else av.Packet(packet)):
                    tally.add()

        threads = [threading.Thread(target=work) for _ in range(job.cameras)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


class Multiplexer(Way):
    """comux."""

    name = "comux"
    does = (
        "packets on shared-memory topics, one get_batch loop. Colour by the stream's tags, 58 dB and more; packet, "
        "time and books with each picture"
    )
    package = "comux.multiplexer"
    ours = True
    rival = False
    address = "shm://bench-video"

    def every(self, job: Job, tally: Tally) -> None:
        from comux import Comux, TopicSpec, connect

        data = job.packets()
        ids = [f"cam{i}" for i in range(job.cameras)]
        wanted = {} if job.out is None else {"W": job.out[0], "H": job.out[1]}
        with connect(self.address) as broker:
            try:
                for cam_id in ids:
                    size = sum(map(len, data)) + (4 << 20)
                    spec = TopicSpec(
                        f"raw_{cam_id}", records=len(data) + 1, data_bytes=size, metadata={"codec": job.codec}
                    )
                    broker.create_topic(spec)
                    with broker.producer(spec.name) as producer:
                        for packet in data:
                            producer.send(packet)
                        producer.end()
                with Comux(ids, address=self.address, start="beginning", mode="every_frame", **wanted) as loop:
                    for batch in loop:
                        for _, _, array in batch:
                            if array is not None:
                                if array.shape != job.shape:
                                    raise ValueError(f"a picture of {array.shape}, not {job.shape}")
                                look(array)
                                tally.add()
            finally:
                for name in broker.topics():
                    broker.delete_topic(name, force=True)
