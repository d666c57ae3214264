"""The arithmetic: from what is asked for and what things cost to cores, machines, brokers, and what is short first.

Pure. Every figure says what it stands on. What is needed is multiplied by ``Demand.safety`` before it is compared with
what there is; the needs themselves are given without it, so that they can be compared with a measured run
(``needs_of``).

**Paper.** Costs are measured on one machine and taken to be additive: so many cameras on so many such cores. Three
numbers are not ours: what Kafka's authors recommend at most (``PARTITIONS_PER_BROKER``, ``PARTITIONS_PER_CLUSTER``), and
that a copy costs a broker what a record sent and read costs. One broker (of several) and one machine may always be
missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from comux.errors import ConfigError

from .costs import Costs
from .demand import Demand

PARTITIONS_PER_BROKER: Final = 4000  #: Kafka's authors, KIP-578: copies included
PARTITIONS_PER_CLUSTER: Final = 200_000  #: likewise
RING_SECONDS: Final = 10.0  #: a local camera topic holds
RING_LEAST: Final = 4 << 20
RING_MOST: Final = 256 << 20
RESULTS_RING: Final = 64 << 20  #: a local results topic holds
RETAINED: Final = 20  #: ``SourceOptions.maxlen``
RETAINED_BYTES: Final = 64 << 20  #: ``SourceOptions.retain_bytes``
QUEUE_BYTES: Final = 16 << 20  #: ``SourceOptions.queue_bytes``, and the Kafka engine's
STORE_BYTES: Final = 64 << 20  #: ``SourceOptions.store_bytes``
STORE_PICTURES: Final = 64
BATCHES: Final = 20.0  #: a second, of a process whose cameras are not in step: a batch waits 50 ms at most
METADATA_S: Final = 3.0  #: comux' ``metadata_max_age_ms`` of members
METADATA_CORES: Final = 0.1
_RESULT_EXTRA: Final = 120  # bytes of the headers comux-types and comux-source


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
class Needs:
    """What the cameras need altogether, without any safety; comparable with a measured run.

    Attributes:
        cpu: Cores by what they are for.
        python: Cores of these that hold the interpreter's lock.
        processes: That share the cameras.
        camera_bytes: Memory of a camera.
        camera_bytes_most: With every limit of its settings full.
        shared_bytes: Shared memory of a camera's local topics.
        in_bytes, out_bytes: Bytes per second into and out of the machines that decode.
        records_in: Records per second that producers send to the engine.
        read_bytes, records_read: Per second, by all readers.
    """

    cpu: Mapping[str, float]
    python: float
    processes: int
    camera_bytes: float
    camera_bytes_most: float
    shared_bytes: float
    in_bytes: float
    out_bytes: float
    records_in: float
    read_bytes: float
    records_read: float

    @property
    def cores(self) -> float:
        """All of ``cpu``."""
        return sum(self.cpu.values())


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


def needs_of(demand: Demand, costs: Costs, processes: int | None = None) -> Needs:
    """What the cameras need, without safety.

    Args:
        demand, costs: What is asked for, and what things cost.
        processes: That share the cameras; ``None``: as many as one lock each asks for.

    Raises:
        ConfigError: the codec was not measured.
    """
    codec = costs.decode.get(demand.codec)
    if codec is None:
        raise ConfigError(
            f"--codec {demand.codec!r}: no costs are known for it, only for {', '.join(sorted(costs.decode))}; measure "
            f"them with: comux plan --measure --codec {demand.codec} -o FILE"
        )
    n, engine = demand.cameras, costs.engine(demand.engine)
    megabytes = demand.bitrate / 8 / 1e6
    packet = demand.packet_bytes + costs.record_bytes
    result = 0 if demand.results_bytes is None else packet + demand.results_bytes + _RESULT_EXTRA
    cpu = {
        "decoding": n
        * (demand.fps * (codec.packet_s + codec.megapixel_s * demand.megapixels) + megabytes * codec.megabyte_s),
        "conversion": n * demand.delivered * demand.megapixels * costs.convert_megapixel_s,
        "packets": n * (demand.fps * engine.packet_s + megabytes * engine.megabyte_s),
        "items": n * demand.delivered * engine.item_s,
        "results": n * demand.sends * (engine.send_s + result / 1e6 * engine.megabyte_s),
    }
    python = n * demand.fps * codec.packet_s + cpu["packets"] + cpu["items"] + cpu["results"]
    batches = engine.batch_s * min(max(demand.delivered, BATCHES), n * demand.delivered)  # cores of one process
    if processes is None:
        processes = max(1, math.ceil(demand.safety * python / max(0.1, 1 - demand.safety * batches)))
    cpu["batches"] = processes * batches
    python += cpu["batches"]
    sent_bytes = n * demand.sends * result
    return Needs(
        cpu=cpu,
        python=python,
        processes=processes,
        camera_bytes=_camera_bytes(demand, costs),
        camera_bytes_most=_camera_bytes_most(demand, costs),
        shared_bytes=_shared_bytes(demand),
        in_bytes=n * demand.fps * packet,
        out_bytes=sent_bytes,
        records_in=n * (demand.fps + demand.sends),
        read_bytes=n * demand.fps * packet + demand.readers * sent_bytes,
        records_read=n * (demand.fps + demand.readers * demand.sends),
    )


def _camera_bytes(demand: Demand, costs: Costs) -> float:
    pixels = demand.width * demand.height
    retained = min(RETAINED * demand.packet_bytes, RETAINED_BYTES)
    return costs.engine(demand.engine).source_bytes + costs.picture_bytes[demand.mode] * pixels + retained


def _camera_bytes_most(demand: Demand, costs: Costs) -> float:
    queue = QUEUE_BYTES if demand.engine == "kafka" else 0
    array = 3 * demand.width * demand.height
    store = 0 if demand.mode == "freshest" else max(array, min(STORE_BYTES, STORE_PICTURES * array))
    return _camera_bytes(demand, costs) + queue + store


def _shared_bytes(demand: Demand) -> float:
    if demand.engine != "shm":
        return 0.0
    ring = min(RING_MOST, max(RING_LEAST, RING_SECONDS * demand.bitrate / 8))
    return ring + (0 if demand.results_bytes is None else RESULTS_RING)


def plan(demand: Demand, costs: Costs) -> Plan:
    """How many machines and brokers, and why.

    Raises:
        ConfigError: the codec was not measured.
    """
    needs = needs_of(demand, costs)
    safe, n = demand.safety, demand.cameras
    on_kafka = demand.engine == "kafka"
    topics = n * (1 if demand.results_bytes is None else 2)
    processes = needs.processes
    looks_s = metadata_s(topics, costs)
    member = costs.group.member + topics * costs.group.metadata_topic_s / looks_s if on_kafka else 0.0
    engine = costs.engine(demand.engine)
    memory = n * (needs.camera_bytes + needs.shared_bytes) + processes * engine.process_bytes
    load = {
        "cores": safe * (needs.cores + processes * member) / demand.cores,
        "memory": safe * memory / demand.memory_bytes,
    }
    if on_kafka:
        load["network in"] = safe * 8 * needs.in_bytes / demand.network_bits
        load["network out"] = safe * 8 * needs.out_bytes / demand.network_bits
    limit = max(load, key=lambda name: load[name])
    busy = math.ceil(load[limit])
    processes = max(processes, busy)
    machines = busy + 1 if on_kafka and busy > 1 else busy
    broker_load = _broker_load(demand, costs, needs, topics) if on_kafka else {}
    brokers, broker_limit = _brokers(demand, broker_load)
    out = Plan(demand, costs.source, machines, processes, brokers, limit, broker_limit, load, broker_load)
    out.figures.extend(_decoding(demand, costs, needs, out, member))
    out.figures.extend(_memory(demand, needs, out, engine.process_bytes))
    if on_kafka:
        out.figures.extend(_network(demand, costs, needs, machines))
        out.figures.extend(_cluster(demand, costs, needs, out, topics))
        out.figures.extend(_fleet(demand, costs, out, topics))
    out.warnings.extend(_warnings(out, needs, topics))
    return out


def metadata_s(topics: int, costs: Costs) -> float:
    """How often a member of a share group should look what topics there are (``metadata_max_age_ms``), in seconds.

    Comux' own setting, unless that costs a process more than ``METADATA_CORES``: each look is at every topic.
    """
    return max(METADATA_S, topics * costs.group.metadata_topic_s / METADATA_CORES)


def _broker_load(demand: Demand, costs: Costs, needs: Needs, topics: int) -> dict[str, float]:
    """Brokers needed, by resource, safety included, none of them missing."""
    copies, taken = demand.replication, needs.in_bytes + needs.out_bytes
    bits = demand.broker_network_bits
    return {
        "network in": demand.safety * 8 * taken * copies / bits,
        "network out": demand.safety * 8 * (taken * (copies - 1) + needs.read_bytes) / bits,
        "partitions": topics * copies / PARTITIONS_PER_BROKER,
        "cores": demand.safety * broker_cores(demand, costs, needs) / demand.broker_cores,
    }


def broker_cores(demand: Demand, costs: Costs, needs: Needs) -> float:
    """Cores of all brokers together."""
    cost, copies = costs.broker, demand.replication
    taken = needs.in_bytes + needs.out_bytes
    append = needs.records_in * cost.append_s + taken / 1e6 * cost.append_megabyte_s
    copied = needs.records_in * cost.read_s + taken / 1e6 * cost.read_megabyte_s
    read = needs.records_read * cost.read_s + needs.read_bytes / 1e6 * cost.read_megabyte_s
    return append * copies + copied * (copies - 1) + read  # each broker's own idle time comes on top


def _brokers(demand: Demand, load: Mapping[str, float]) -> tuple[int, str]:
    if not load:
        return 0, ""
    limit = max(load, key=lambda name: load[name])
    spare = 1 if demand.replication > 1 else 0
    needed = math.ceil(load[limit]) + spare
    if demand.brokers is not None:
        return demand.brokers, limit
    return (needed, limit) if needed > demand.replication else (demand.replication, "copies")


# -- figures -------------------------------------------------------------------------------------------------------


def _decoding(demand: Demand, costs: Costs, needs: Needs, out: Plan, member: float) -> list[Figure]:
    n, what = demand.cameras, "cores"
    size = f"{demand.width}x{demand.height} {demand.codec}"
    basis = {
        "decoding": f"every packet: {size} at {demand.fps:g} fps, {needs.cpu['decoding'] / n / demand.fps * 1e3:.2f} ms",
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
    spare = ", one of them to take over from another" if out.machines > math.ceil(max(out.machine_load.values())) else ""
    text = f"of {demand.cores} cores, {quantity_text(demand.memory_bytes)}B; {out.machine_limit} decide{spare}"
    figures.append(Figure("decoding", "machines", out.machines, "", text, safe=True))
    busy = max(out.machine_load.values())
    figures.append(Figure("decoding", "cameras per machine", n / busy, "", out.machine_limit, safe=True))
    return figures


def _memory(demand: Demand, needs: Needs, out: Plan, process_bytes: float) -> list[Figure]:
    n = demand.cameras
    kept = f"{RETAINED} packets kept for send"
    figures = [
        Figure(
            "memory", "a camera", needs.camera_bytes, "bytes", f"thread, codec, pictures ({demand.mode}), arrays, {kept}"
        ),
        Figure(
            "memory",
            "a camera at most",
            needs.camera_bytes_most,
            "bytes",
            "a loop that falls behind: " + ("packets waiting " if demand.engine == "kafka" else "")
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


def _network(demand: Demand, costs: Costs, needs: Needs, machines: int) -> list[Figure]:
    busy = max(1, machines - 1)
    extra = f"{costs.record_bytes:.0f} bytes a record for headers and batches"
    return [
        Figure("network", "a camera", 8 * needs.in_bytes / demand.cameras, "bit/s", f"bit rate and {extra}"),
        Figure("network", "into a machine", 8 * needs.in_bytes / busy, "bit/s", "its cameras, one machine missing"),
        Figure("network", "out of a machine", 8 * needs.out_bytes / busy, "bit/s", "results: the packet again, headers"),
    ]


def _cluster(demand: Demand, costs: Costs, needs: Needs, out: Plan, topics: int) -> list[Figure]:
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
            f"a copy taken to cost a send and a read; {missing}",
        ),
        Figure(where, "topics", topics, "", "one partition each: a camera" + (", its results" if topics > demand.cameras else "")),
        Figure(where, "partitions of a broker", partitions, "", f"copies included; at most {PARTITIONS_PER_BROKER}"),
        Figure(
            where, "their memory", partitions * costs.broker.partition_bytes, "bytes", "of a broker, beside its page cache"
        ),
        Figure(where, "disk of a broker", disk, "bytes", f"{copies} copies for {demand.retention_s:g} s"),
        Figure(where, "written to disk", taken * copies / left, "bytes/s", f"of a broker; {missing}"),
        Figure(where, "making the topics", topics * costs.broker.create_s, "s", "once, one after another"),
    ]


def _fleet(demand: Demand, costs: Costs, out: Plan, topics: int) -> list[Figure]:
    group, each = costs.group, demand.cameras / max(1, out.processes)
    opening = each * costs.kafka.open_s
    join = group.join_s + group.join_topic_s * demand.cameras
    dead = group.dead_s + group.dead_topic_s * demand.cameras
    text = f"{each:.0f} cameras opened one after another"
    looks_s = metadata_s(topics, costs)
    how = "comux' own" if looks_s == METADATA_S else f"metadata_max_age_ms={1000 * looks_s:.0f} of each member, or {topics} topics cost it too much"
    return [
        Figure("fleet", "members", out.processes, "", "processes of one share group"),
        Figure("fleet", "a new camera is seen after", looks_s, "s", how),
        Figure("fleet", "a process joins", join + opening, "s", f"until its last camera shows pictures: {text}"),
        Figure("fleet", "a process dies", dead + opening, "s", f"likewise elsewhere: session time-out of 10 s, {text}"),
    ]


def _warnings(out: Plan, needs: Needs, topics: int) -> list[str]:
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
            f"{topics * copies} partitions (copies included) are more than the {PARTITIONS_PER_CLUSTER} a cluster should "
            "have: use several clusters"
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
