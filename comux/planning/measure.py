"""Measuring the costs on this machine: codecs alone, the loop on each engine, a cluster's groups; in rounds.

**The loop.** One process publishes a looped clip as so many cameras, another is the user's loop (``child``). With tiny
pictures everything but the codec is left: pictures all delivered, hardly any delivered, and all delivered and sent give
three sums of what a packet, an item and a result cost. Two sizes of packets read without decoding give the cost of a
megabyte, larger pictures what pictures take of memory, two numbers of cameras what a process takes.

**Rounds** are interleaved, and medians are taken, so that what else the machine does hits everything alike.

**A cluster** is used through topics of a namespace of our own, which are deleted at the end.
"""

from __future__ import annotations

import os
import platform
import secrets
import statistics
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np

from comux.decoders.containers import write_video

from .child import Child, removed_topics
from .clips import make_clip
from .costs import MEASURED, BrokerCosts, CodecCosts, EngineCosts
from .decoding import FPS, POINTS, fit_codec, fit_conversion, fit_error, least_squares, measure_decoding
from .groups import group_costs, measure_group
from .server import Server

Tell = Callable[[str], None]
MANY, FEW = 24, 6  #: cameras of a loop
RESULTS_BYTES: Final = 2000
_TINY: Final = (64, 48, 60_000)
_LARGER: Final = (640, 360, 1_000_000)
_RICH: Final = (640, 360, 12_000_000)


def machine() -> dict[str, Any]:
    """The machine and the versions that decide the figures."""
    model = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    packages = {name: metadata.version(name) for name in ("comux", "numpy", "av", "kafka-python", "crc32c")}
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": packages,
    }


def machine_text(facts: Mapping[str, Any]) -> str:
    """``machine()`` in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    return f"{facts['cpu']}, {facts['cores']} cores, Python {facts['python']}; {versions}"


@dataclass(frozen=True, slots=True)
class Effort:
    """How long is measured.

    Attributes:
        seconds: Of each run of a loop.
        warm_up: Seconds before each.
        rounds: Of everything.
        points: Clips that codecs are measured with.
        cameras: Of a loop, many and few.
    """

    seconds: float = 3.0
    warm_up: float = 1.0
    rounds: int = 3
    points: Sequence[tuple[int, int, int]] = POINTS
    cameras: tuple[int, int] = (MANY, FEW)


def measure(
    effort: Effort, *, codecs: Sequence[str] = ("h264", "hevc"), cluster: str | None = None, tell: Tell
) -> dict[str, Any]:
    """Measure the costs. Blocks for minutes.

    Args:
        effort: How long.
        codecs: Which.
        cluster: Address of a Kafka cluster, else nothing is said of clusters.
        tell: Called with one line at each step.

    Returns:
        ``machine``, ``decoding``, ``loops`` by engine, ``group``, and the ``costs`` that ``costs.load`` reads.

    Raises:
        ComuxError: the cluster, an unknown codec, or a process that failed.
    """
    facts = machine()
    points = [p for codec in codecs for p in measure_decoding(codec, effort.points, effort.rounds, tell)]
    decode = {codec: fit_codec([p for p in points if p.codec == codec]) for codec in codecs}
    costs: dict[str, Any] = {
        "source": f"measured on {machine_text(facts)}",
        "decode": {codec: asdict(each) for codec, each in decode.items()},
        "convert_megapixel_s": fit_conversion(points),
    }
    found: dict[str, Any] = {
        "machine": facts,
        "effort": asdict(effort),
        "decoding": [p.as_dict() for p in points],
        "decoding_fit_error": fit_error(points, decode),
        "loops": {},
        "costs": costs,
    }
    tiny = decode.get("h264") or measure_h264(effort, tell)
    engines = {"shm": engine_address(None)}
    if cluster is not None:
        engines["kafka"] = engine_address(cluster)
    with tempfile.TemporaryDirectory(prefix="comux-plan-") as folder:
        runs = _rounds(engines, Clips(Path(folder)), effort, tell)
    for engine, each in runs.items():
        found["loops"][engine] = each
        costs[engine] = asdict(engine_costs(each, tiny))
    costs["picture_bytes"] = picture_bytes(runs["shm"])
    if cluster is not None:
        found["group"] = measure_group(engines["kafka"], tell)
        costs["group"] = asdict(group_costs(found["group"]))
        read = runs["kafka"]["read"]
        costs["record_bytes"] = (read["wire_bytes"] - read["value_bytes"]) / read["packets"]
        if "served_few" in runs["kafka"]:
            costs["broker"] = asdict(broker_costs(runs["kafka"], found["group"][0]["create_s"]))
    return found


def engine_address(cluster: str | None) -> str:
    """A namespace of our own, in shared memory or on a cluster."""
    name = f"comux-plan-{os.getpid()}-{secrets.token_hex(3)}"
    return f"shm://{name}" if cluster is None else f"{cluster}{'&' if '?' in cluster else '?'}prefix={name}."


def measure_h264(effort: Effort, tell: Tell) -> CodecCosts:
    """What the loops' own clips cost to decode."""
    return fit_codec(measure_decoding("h264", effort.points, effort.rounds, tell))


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


# -- loops ---------------------------------------------------------------------------------------------------------


def _rounds(engines: Mapping[str, str], clips: Clips, effort: Effort, tell: Tell) -> dict[str, dict[str, Any]]:
    many, few = effort.cameras
    kinds: dict[str, dict[str, Any]] = {
        "delivered": {"clip": clips.file(*_TINY), "cameras": many},
        "undelivered": {"clip": clips.file(*_TINY), "cameras": many, "settings": {"rate": 1.0}},
        "sent": {"clip": clips.file(*_TINY), "cameras": many, "results_bytes": RESULTS_BYTES},
        "few": {"clip": clips.file(*_TINY), "cameras": few},
        "read": {"clip": clips.file(*_TINY), "cameras": few, "role": "reader"},
        "read_rich": {"clip": clips.file(*_RICH), "cameras": few, "role": "reader"},
    }
    served: dict[str, dict[str, Any]] = {
        f"served_{kind}{reads}": {"clip": clip, "cameras": cameras, "role": role, "apart": True}
        for reads, role in (("", None), ("_read", "reader"))
        for kind, clip, cameras in (
            ("few", clips.file(*_TINY), few),
            ("many", clips.file(*_TINY), many),
            ("rich", clips.file(*_RICH), few),
        )
    }
    pictures: dict[str, dict[str, Any]] = {
        mode: {"clip": clips.file(*_LARGER), "cameras": few, "settings": {"mode": mode}}
        for mode in ("freshest", "every_frame")
    }
    runs: dict[str, dict[str, list[Any]]] = {engine: {} for engine in engines}
    for number in range(effort.rounds):
        for engine, address in engines.items():
            tell(f"{engine}: loops, round {number + 1} of {effort.rounds}")
            more = pictures if engine == "shm" else {} if Server.at(address) is None else served
            for kind, what in {**kinds, **more}.items():
                runs[engine].setdefault(kind, []).append(
                    run_loop(address, seconds=effort.seconds, warm_up=effort.warm_up, **what)
                )
    return {engine: {kind: medians(each) for kind, each in kinds.items()} for engine, kinds in runs.items()}


def medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each figure of several runs; ``..._least_s`` and ``..._most_s`` say how far CPU times lie apart."""
    out = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    for name in ("cpu_s", "broker_cpu_s"):
        if name in out:
            out[name.removesuffix("_s") + "_least_s"] = min(run[name] for run in runs)
            out[name.removesuffix("_s") + "_most_s"] = max(run[name] for run in runs)
    return out


def run_loop(
    address: str,
    *,
    clip: str,
    cameras: int,
    seconds: float,
    warm_up: float = 1.0,
    fps: float = FPS,
    settings: Mapping[str, Any] | None = None,
    results_bytes: int | None = None,
    role: str | None = "loop",
    apart: bool = False,
) -> dict[str, float]:
    """One run: cameras in one process, the loop (or a ``reader``, or nobody) in another; the topics deleted afterwards.

    Returns:
        What the loop says (``child.loop``), with the cameras' own figures as ``feed_...``, and with ``broker_cpu_s``
        where the broker runs on this machine.
    """
    ids = [f"cam{number}" for number in range(cameras)]
    topics = [f"raw_{cam_id}" for cam_id in ids]
    what: dict[str, Any] = {"address": address, "seconds": seconds, "warm_up": warm_up}
    if role == "loop":
        what |= {"cam_ids": ids, "settings": settings or {}, "results_bytes": results_bytes}
    else:
        what["topics"] = topics
    server = Server.at(address)
    feeding = {"address": address, "topics": topics, "clip": clip, "fps": fps, "apart": apart}
    with removed_topics(address), Child("cameras", **feeding) as feed:
        feed.hear()
        with Child(role, **what) if role is not None else nullcontext() as reading:
            if reading is not None:
                reading.hear()
            before = 0.0 if server is None else server.cpu_s()
            said: dict[str, float] = {"seconds": seconds} if reading is None else reading.hear()
            if reading is None:
                threading.Event().wait(seconds)  # it is the broker that is measured
            if server is not None:
                said["broker_cpu_s"] = server.cpu_s() - before
        feed.ask()
        told = feed.hear()
    return said | {f"feed_{name}": value for name, value in told.items()}


def engine_costs(runs: Mapping[str, Mapping[str, float]], codec: CodecCosts) -> EngineCosts:
    """What the sums of the runs say of one packet, item, batch and result."""
    size = {kind: runs[kind]["value_bytes"] / runs[kind]["packets"] / 1e6 for kind in ("read", "read_rich")}
    each = {kind: runs[kind]["cpu_s"] / runs[kind]["packets"] for kind in ("read", "read_rich")}
    megabyte_s = max(0.0, (each["read_rich"] - each["read"]) / (size["read_rich"] - size["read"]))
    decode_s = codec.packet_s + codec.megapixel_s * _TINY[0] * _TINY[1] / 1e6 + codec.megabyte_s * size["read"]
    rows, rests = [], []
    for kind in ("delivered", "undelivered", "few", "sent"):
        run = runs[kind]
        rows.append([run["packets"], run["items"], run["batches"], run["items"] if kind == "sent" else 0.0])
        rests.append(run["cpu_s"] - run["packets"] * decode_s)
    packet_s, item_s, batch_s, send_s = least_squares(np.array(rows), np.array(rests))
    many, few = runs["delivered"], runs["few"]
    grown = {kind: runs[kind]["bytes"] - runs[kind]["empty_bytes"] for kind in ("delivered", "few")}
    source_bytes = (grown["delivered"] - grown["few"]) / (many["cameras"] - few["cameras"])
    return EngineCosts(
        packet_s=packet_s,
        megabyte_s=megabyte_s,
        item_s=item_s,
        batch_s=batch_s,
        send_s=send_s,
        process_bytes=max(0.0, few["empty_bytes"] + grown["few"] - few["cameras"] * source_bytes),
        source_bytes=max(0.0, source_bytes),
        open_s=many["open_s"] / many["cameras"],
    )


def broker_costs(runs: Mapping[str, Mapping[str, float]], create_s: float) -> BrokerCosts:
    """What the broker's CPU time in runs with and without readers says; of a broker on this machine."""
    rows, values = [], []
    for run in (run for kind, run in runs.items() if kind.startswith("served_")):
        records, size = (run[f"feed_{name}"] / run["feed_seconds"] * run["seconds"] for name in ("packets", "bytes"))
        read = (run["packets"], run["wire_bytes"] / 1e6) if "packets" in run else (0.0, 0.0)
        rows.append([run["seconds"], records, size / 1e6, *read])
        values.append(run["broker_cpu_s"])
    idle, append_s, append_megabyte_s, read_s, read_megabyte_s = least_squares(np.array(rows), np.array(values))
    return replace(
        MEASURED.broker,  # copies and partitions: benchmarks/scaling/measure.py
        idle=idle,
        append_s=append_s,
        append_megabyte_s=append_megabyte_s,
        read_s=read_s,
        read_megabyte_s=read_megabyte_s,
        create_s=create_s,
    )


def picture_bytes(runs: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Memory of a camera's pictures per pixel, by mode."""
    out = {}
    for mode in ("freshest", "every_frame"):
        run = runs[mode]
        grown = (run["bytes"] - run["empty_bytes"] - runs["few"]["bytes"] + runs["few"]["empty_bytes"]) / run["cameras"]
        kept = 20 * _LARGER[2] / 8 / FPS
        out[mode] = max(0.0, grown - kept) / (_LARGER[0] * _LARGER[1])
    return out
