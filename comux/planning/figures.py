"""The figures of a plan, each with what it stands on, and what should be known beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from .costs import Costs
from .demand import Demand
from .needs import BATCHES, METADATA_S, RETAINED, RING_SECONDS, Needs, broker_cores, metadata_s

PARTITIONS_PER_BROKER: Final = 4000  #: at most, copies included: Kafka's authors, KIP-578
PARTITIONS_PER_CLUSTER: Final = 200_000  #: likewise


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a plan.

    Attributes:
        section: What it belongs to.
        name: What it is.
        value: In ``unit``.
        unit: ``cores``, ``bytes``, ``bit/s``, ``s``, or empty for counts.
        basis: What it stands on.
        safe: Whether ``Demand.safety`` is in it.
    """

    section: str
    name: str
    value: float
    unit: str
    basis: str
    safe: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer.

    Attributes:
        demand: What was asked for.
        source: Where the costs come from.
        machines: That decode, one to take over from another included.
        processes: Of all machines.
        brokers: 0 without a cluster.
        machine_limit, broker_limit: What is short first.
        machine_load, broker_load: By resource, safety included; 1 is one machine or broker.
        figures: Everything, in order.
        warnings: What does not fit, or should be known.
    """

    demand: Demand
    source: str
    machines: int
    processes: int
    brokers: int
    machine_limit: str
    broker_limit: str
    machine_load: Mapping[str, float]
    broker_load: Mapping[str, float]
    figures: list[Figure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def value(self, name: str) -> float:
        """Of the figure of that name."""
        return next(figure.value for figure in self.figures if figure.name == name)


def decoding_figures(demand: Demand, costs: Costs, needs: Needs, out: Plan, member: float) -> list[Figure]:
    n, what = demand.cameras, "cores"
    size = f"{demand.width}x{demand.height} {demand.codec}"
    packet_ms = needs.cpu["decoding"] / n / demand.decoded * 1e3
    share = demand.decoded / demand.fps
    which = "every packet" if share == 1 else f"{share:.0%} of decoding every packet"
    basis = {
        "decoding": f"{which}: {size} at {demand.fps:g} fps, {packet_ms:.2f} ms",
        "conversion": f"{demand.delivered:g} arrays a second of each camera",
        "packets": f"every packet from {demand.engine} to the decoder and into the store",
        "items": f"{demand.delivered:g} a second of each camera; your own work with them is not in it",
        "batches": f"{max(demand.delivered, BATCHES):g} a second of each process",
        "results": "nothing is sent" if demand.results_bytes is None else f"{demand.sends:g} a second of each camera",
    }
    figures = [Figure("decoding", name, value, what, basis[name]) for name, value in needs.cpu.items()]
    if member:
        text = f"{out.processes} members of the share group; each looks at the cluster's list of topics"
        figures.append(Figure("decoding", "membership", out.processes * member, what, text))
    total = sum(figure.value for figure in figures)
    each = total / n * demand.safety
    figures += [
        Figure("decoding", "all of it", total, what, "the sum; cores like the measured one, all busy"),
        Figure("decoding", "cores to have", total * demand.safety, what, f"x {demand.safety:g}", safe=True),
        Figure("decoding", "cameras per core", 1 / each, "", f"x {demand.safety:g}", safe=True),
        Figure(
            "decoding",
            "processes",
            out.processes,
            "",
            f"Python holds its lock for {needs.python:.3g} cores of it; one core a process",
            safe=True,
        ),
    ]
    spare = out.machines > math.ceil(max(out.machine_load.values()))
    takes_over = ", one of them to take over from another" if spare else ""
    text = f"of {demand.cores} cores, {quantity_text(demand.memory_bytes)}B; {out.machine_limit} decide{takes_over}"
    figures.append(Figure("decoding", "machines", out.machines, "", text, safe=True))
    busy = max(out.machine_load.values())
    figures.append(Figure("decoding", "cameras per machine", n / busy, "", out.machine_limit, safe=True))
    return figures


def memory_figures(demand: Demand, needs: Needs, out: Plan, process_bytes: float) -> list[Figure]:
    n = demand.cameras
    kept = f"{RETAINED} packets kept for send"
    figures = [
        Figure(
            "memory",
            "a camera",
            needs.camera_bytes,
            "bytes",
            f"codec, pictures ({demand.mode}), arrays, {kept}",
        ),
        Figure(
            "memory",
            "a camera at most",
            needs.camera_bytes_most,
            "bytes",
            "a loop that falls behind: "
            + ("packets waiting " if demand.engine == "kafka" else "")
            + ("pictures waiting, " if demand.mode == "every_frame" else "")
            + "at their limits",
        ),
        Figure("memory", "a process", process_bytes, "bytes", "Python and libraries"),
    ]
    if needs.shared_bytes:
        text = f"{RING_SECONDS:g} s of packets" + ("" if demand.results_bytes is None else "; results topic of 64 MiB")
        figures.append(Figure("memory", "shared memory of a camera", needs.shared_bytes, "bytes", text))
    total = n * (needs.camera_bytes + needs.shared_bytes) + out.processes * process_bytes
    figures.append(Figure("memory", "all of it", total, "bytes", "a loop that keeps up"))
    return figures


def network_figures(demand: Demand, costs: Costs, needs: Needs, machines: int) -> list[Figure]:
    busy = max(1, machines - 1)
    extra = f"{costs.record_bytes:.0f} bytes a record for headers and batches"
    return [
        Figure("network", "a camera", 8 * needs.in_bytes / demand.cameras, "bit/s", f"bit rate and {extra}"),
        Figure("network", "into a machine", 8 * needs.in_bytes / busy, "bit/s", "its cameras, one machine missing"),
        Figure("network", "out of a machine", 8 * needs.out_bytes / busy, "bit/s", "the packet again, with results"),
    ]


def cluster_figures(demand: Demand, costs: Costs, needs: Needs, out: Plan, topics: int) -> list[Figure]:
    copies, brokers = demand.replication, out.brokers
    left = max(1, brokers - 1) if copies > 1 else brokers
    taken = needs.in_bytes + needs.out_bytes
    partitions = topics * copies / left
    missing = "one broker missing" if copies > 1 and brokers > 1 else "this one broker"
    where, disk = "cluster", taken * copies * demand.retention_s / brokers
    return [
        Figure(where, "brokers", brokers, "", f"{out.broker_limit} decide", safe=True),
        Figure(where, "into a broker", 8 * taken * copies / left, "bit/s", f"{copies} copies; {missing}"),
        Figure(
            where,
            "out of a broker",
            8 * (taken * (copies - 1) + needs.read_bytes) / left,
            "bit/s",
            f"{copies - 1} copies, each camera read once, results {demand.readers} times; {missing}",
        ),
        Figure(where, "records a second", needs.records_in, "", "each packet and each result a record"),
        Figure(
            where,
            "cores of a broker",
            broker_cores(demand, costs, needs) / left + costs.broker.idle,
            "cores",
            f"records taken in, copied and read, one a request; {missing}",
        ),
        Figure(
            where,
            "topics",
            topics,
            "",
            "one partition each" + (": a camera, its results" if topics > demand.cameras else ""),
        ),
        Figure(where, "partitions of a broker", partitions, "", f"copies included; at most {PARTITIONS_PER_BROKER}"),
        Figure(
            where,
            "their memory",
            partitions * costs.broker.partition_bytes,
            "bytes",
            "of a broker, page cache left out",
        ),
        Figure(where, "disk of a broker", disk, "bytes", f"{copies} copies for {demand.retention_s:g} s"),
        Figure(where, "written to disk", taken * copies / left, "bytes/s", f"of a broker; {missing}"),
        Figure(where, "making the topics", topics * costs.broker.create_s, "s", "once, one after another"),
    ]


def fleet_figures(demand: Demand, costs: Costs, out: Plan, topics: int) -> list[Figure]:
    group, each = costs.group, math.ceil(demand.cameras / out.processes)
    taken = math.ceil(each / max(1, out.processes - 1))
    join = group.join_s + group.join_topic_s * demand.cameras + each * costs.kafka.open_s
    dead = group.dead_s + group.dead_topic_s * demand.cameras + taken * costs.kafka.open_s
    looks_s = metadata_s(topics, costs)
    how = "comux' own setting"
    if looks_s > METADATA_S:
        how = f"metadata_max_age_ms={1000 * looks_s:.0f} of each member, or {topics} topics cost it too much"
    shows = "until its last camera shows pictures"
    return [
        Figure("fleet", "members", out.processes, "", "processes of one share group"),
        Figure("fleet", "a new camera is seen after", looks_s, "s", how),
        Figure("fleet", "a process joins", join, "s", f"{shows}: {each}, opened one after another"),
        Figure(
            "fleet", "a process dies", dead, "s", f"{shows} elsewhere: session time-out, then {taken} in each other"
        ),
    ]


def warnings_of(out: Plan, needs: Needs, topics: int) -> list[str]:
    demand, warnings = out.demand, []
    copies = demand.replication
    if out.broker_load and demand.brokers is not None:
        left = max(1, demand.brokers - 1) if copies > 1 else demand.brokers
        for name, load in out.broker_load.items():
            if load > left:
                warnings.append(
                    f"{demand.brokers} brokers are too few: {name} need {load:.1f}"
                    + (" and one may be missing" if copies > 1 else "")
                )
    if demand.engine == "kafka" and topics * copies > PARTITIONS_PER_CLUSTER:
        warnings.append(
            f"{topics * copies} partitions (copies included) are more than the {PARTITIONS_PER_CLUSTER} a "
            "cluster should have: use several clusters"
        )
    most = demand.cameras * (needs.camera_bytes_most + needs.shared_bytes)
    if most > out.machines * demand.memory_bytes:
        warnings.append(
            f"with every queue full the cameras take {quantity_text(most)}B, more than the machines have: lower "
            "queue_bytes and store_bytes"
        )
    if demand.engine == "shm" and out.machines > 1:
        warnings.append("shm:// is one machine: each machine has its own cameras, and none takes over from another")
    if demand.engine == "kafka" and copies == 1:
        warnings.append("one copy: a broker that dies takes its cameras with it until it is back")
    return warnings


def quantity_text(value: float) -> str:
    """``1.5e9`` as ``1.5 G``."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.3g} "
