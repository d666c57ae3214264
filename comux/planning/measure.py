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
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np

from comux.decoders.encode import encodable_codecs
from comux.errors import UnknownCodecError

from .costs import MEASURED, BrokerCosts, CodecCosts, EngineCosts
from .decoding import FPS, POINTS, fit_codec, fit_conversion, fit_error, least_squares, measure_decoding
from .groups import group_costs, measure_group
from .loops import Cameras, Clips, engine_address, medians
from .needs import RETAINED
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
        modes: Whose pictures' memory is measured.
        quick: Leave out what tells a packet from an item and a megabyte from a packet: enough to plan for a loop like
            the measured one, which is given every picture.
    """

    seconds: float = 3.0
    warm_up: float = 1.0
    rounds: int = 3
    points: Sequence[tuple[int, int, int]] = POINTS
    cameras: tuple[int, int] = (MANY, FEW)
    modes: tuple[str, ...] = ("freshest", "every_frame")
    quick: bool = False


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
    if unknown := [codec for codec in codecs if codec not in encodable_codecs()]:
        raise UnknownCodecError(f"codec {unknown[0]!r} cannot be measured; known are {', '.join(encodable_codecs())}")
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
    costs["picture_bytes"] = {mode: picture_bytes(runs["shm"], mode) for mode in effort.modes}
    if cluster is not None:
        found["group"] = measure_group(engines["kafka"], tell)
        costs["group"] = asdict(group_costs(found["group"]))
        read = runs["kafka"]["read"]
        costs["record_bytes"] = (read["wire_bytes"] - read["value_bytes"]) / read["packets"]
        if "served_few" in runs["kafka"]:
            costs["broker"] = asdict(broker_costs(runs["kafka"], found["group"][0]["create_s"]))
    return found


def measure_h264(effort: Effort, tell: Tell) -> CodecCosts:
    """What the loops' own clips cost to decode."""
    return fit_codec(measure_decoding("h264", effort.points, effort.rounds, tell))


def _rounds(engines: Mapping[str, str], clips: Clips, effort: Effort, tell: Tell) -> dict[str, dict[str, Any]]:
    many, few = effort.cameras
    tiny, larger = clips.file(*_TINY), clips.file(*_LARGER)
    loops: dict[str, dict[str, Any]] = {
        "delivered": {},
        "undelivered": {"settings": {"rate": 1.0}},
        "sent": {"results_bytes": RESULTS_BYTES},
        "few": {"cameras": few},
        "read": {"role": "reader", "cameras": few},
    }
    if effort.quick:
        loops = {kind: loops[kind] for kind in ("delivered", "sent", "few")}
    pictures: dict[str, dict[str, Any]] = {mode: {"settings": {"mode": mode}} for mode in effort.modes}
    served: dict[str, dict[str, Any]] = {"": {"role": None}, "_read": {"role": "reader"}}
    runs: dict[str, dict[str, list[Any]]] = {engine: {} for engine in engines}
    for number in range(effort.rounds):
        for engine, address in engines.items():
            tell(f"{engine}: loops, round {number + 1} of {effort.rounds}")
            feeds: list[tuple[str, int, bool, dict[str, dict[str, Any]]]] = [(tiny, many, False, loops)]
            if not effort.quick:
                feeds.append((clips.file(*_RICH), few, False, {"read_rich": {"role": "reader"}}))
            if engine == "shm":
                feeds.append((larger, few, False, pictures))
            elif not effort.quick and Server.at(address) is not None:
                for kind, clip, cameras in (
                    ("few", tiny, few),
                    ("many", tiny, many),
                    ("rich", clips.file(*_RICH), few),
                ):
                    feeds.append((clip, cameras, True, {f"served_{kind}{name}": what for name, what in served.items()}))
            for clip, cameras, apart, kinds in feeds:
                with Cameras(address, clip, cameras, apart=apart) as feed:
                    for kind, what in kinds.items():
                        run = feed.run(seconds=effort.seconds, warm_up=effort.warm_up, **what)
                        runs[engine].setdefault(kind, []).append(run)
    return {engine: {kind: medians(each) for kind, each in kinds.items()} for engine, kinds in runs.items()}


def engine_costs(runs: Mapping[str, Mapping[str, float]], codec: CodecCosts) -> EngineCosts:
    """What the sums of the runs say of one packet, item, batch and result."""
    megabyte_s = 0.0
    if "read_rich" in runs:
        size = {kind: runs[kind]["value_bytes"] / runs[kind]["packets"] / 1e6 for kind in ("read", "read_rich")}
        each = {kind: runs[kind]["cpu_s"] / runs[kind]["packets"] for kind in ("read", "read_rich")}
        megabyte_s = max(0.0, (each["read_rich"] - each["read"]) / (size["read_rich"] - size["read"]))
    megabytes = runs["few"]["feed_bytes"] / runs["few"]["feed_packets"] / 1e6
    decode_s = codec.packet_s + codec.megapixel_s * _TINY[0] * _TINY[1] / 1e6 + codec.megabyte_s * megabytes
    rows, rests = [], []
    for kind, run in runs.items():
        if kind not in ("delivered", "undelivered", "few", "sent"):
            continue
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


def picture_bytes(runs: Mapping[str, Mapping[str, float]], mode: str) -> float:
    """Memory of a camera's pictures per pixel."""
    run, tiny = runs[mode], runs["few"]
    grown = run["bytes"] - run["empty_bytes"] - tiny["bytes"] + tiny["empty_bytes"]
    kept = RETAINED * _LARGER[2] / 8 / FPS
    return max(0.0, grown / run["cameras"] - kept) / (_LARGER[0] * _LARGER[1])


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
