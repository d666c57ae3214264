"""One run: cameras in one process, the user's loop in another, both on an engine in a namespace of their own."""

from __future__ import annotations

import os
import secrets
import statistics
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from comux.decoders.containers import write_video

from .child import Child, removed_topics
from .clips import make_clip
from .decoding import FPS
from .server import Server


def engine_address(cluster: str | None) -> str:
    """A namespace of our own, in shared memory or on a cluster."""
    name = f"comux-plan-{os.getpid()}-{secrets.token_hex(3)}"
    return f"shm://{name}" if cluster is None else f"{cluster}{'&' if '?' in cluster else '?'}prefix={name}."


class Clips:
    """Files that cameras publish, each made once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def file(self, width: int, height: int, bitrate: int) -> str:
        """Two seconds of H.264."""
        path = self._folder / f"{width}x{height}-{bitrate}.mp4"
        if not path.exists():
            packets = make_clip("h264", width, height, fps=FPS, frames=2 * FPS, bitrate=bitrate)
            write_video(path, "h264", width, height, FPS, packets)
        return str(path)


class Cameras:
    """So many cameras that publish one clip, and loops that are run over them. A context manager.

    Its end deletes the topics and gives each run what the cameras published, as ``feed_packets``, ``feed_bytes``,
    ``feed_cpu_s`` and ``feed_seconds``, over all of its life.

    Args:
        address: Of a namespace of our own.
        clip: File that each publishes.
        cameras: How many.
        fps: Of each.
        apart: Each with a connection of its own.

    Raises:
        ComuxError: the engine, or a process that failed.
    """

    def __init__(self, address: str, clip: str, cameras: int, *, fps: float = FPS, apart: bool = False) -> None:
        self._address = address
        self._ids = [f"cam{number}" for number in range(cameras)]
        self._what = {"clip": clip, "fps": fps, "apart": apart}
        self._stack = ExitStack()
        self._runs: list[dict[str, float]] = []

    def __enter__(self) -> Cameras:
        with ExitStack() as stack:
            stack.enter_context(removed_topics(self._address))
            topics = [f"raw_{cam_id}" for cam_id in self._ids]
            self._feed = stack.enter_context(Child("cameras", address=self._address, topics=topics, **self._what))
            self._feed.hear()
            self._server = Server.at(self._address)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        with self._stack:
            if exc is None:
                self._feed.ask()
                told = self._feed.hear()
                for run in self._runs:
                    run.update({f"feed_{name}": value for name, value in told.items()})

    def run(
        self,
        *,
        seconds: float,
        warm_up: float,
        cameras: int | None = None,
        role: str | None = "loop",
        settings: Mapping[str, Any] | None = None,
        results_bytes: int | None = None,
    ) -> dict[str, float]:
        """Run a loop.

        Args:
            seconds: That are measured.
            warm_up: Before.
            cameras: Of the loop; ``None``: all there are.
            role: ``loop``, ``reader``, or ``None``: nobody reads.
            settings: Of the loop's sources.
            results_bytes: Of each result sent; ``None``: none are.

        Returns:
            What the process says (see ``child``), with ``broker_cpu_s`` where the broker runs on this machine.
        """
        ids = self._ids[:cameras]
        what: dict[str, Any] = {"address": self._address, "seconds": seconds, "warm_up": warm_up}
        if role == "loop":
            what |= {"cam_ids": ids, "settings": settings or {}, "results_bytes": results_bytes}
        else:
            what["topics"] = [f"raw_{cam_id}" for cam_id in ids]
        said: dict[str, float]
        if role is None:
            begun = self._broker_cpu()
            threading.Event().wait(seconds)  # it is the broker that is measured
            said = {"seconds": seconds}
        else:
            with Child(role, **what) as loop:
                loop.hear()
                begun = self._broker_cpu()
                said = loop.hear()
        if self._server is not None:
            said["broker_cpu_s"] = self._broker_cpu() - begun
        self._runs.append(said)
        return said

    def _broker_cpu(self) -> float:
        return 0.0 if self._server is None else self._server.cpu_s()


def medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each figure of several runs; ``..._least_s`` and ``..._most_s`` say how far CPU times lie apart."""
    out = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    for name in ("cpu_s", "broker_cpu_s"):
        if name in out:
            out[name.removesuffix("_s") + "_least_s"] = min(run[name] for run in runs)
            out[name.removesuffix("_s") + "_most_s"] = max(run[name] for run in runs)
    return out
