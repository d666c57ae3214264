"""What so many cameras need altogether: cores, memory, bytes, records. Pure sums of costs, no machines yet.

Costs are measured on one machine and taken to be additive: so many cameras on so many such cores. Needs are given
without any safety, so that they can be compared with a measured run (``check``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from comux.errors import ConfigError

from .costs import Costs
from .demand import Demand

RING_SECONDS: Final = 10.0  #: a local camera topic holds
RING_LEAST: Final = 4 << 20
RING_MOST: Final = 256 << 20
RESULTS_RING: Final = 64 << 20  #: a local results topic holds
RETAINED: Final = 20  #: ``SourceOptions.maxlen``
RETAINED_BYTES: Final = 64 << 20  #: ``SourceOptions.retain_bytes``
QUEUE_BYTES: Final = 16 << 20  #: ``SourceOptions.queue_bytes``, and the Kafka engine's
STORE_BYTES: Final = 24 << 20  #: ``SourceOptions.store_bytes``
STORE_PICTURES: Final = 64
BATCHES: Final = 20.0  #: a second, of a process whose cameras are not in step: a batch waits 50 ms at most
METADATA_S: Final = 3.0  #: comux' ``metadata_max_age_ms`` of members
METADATA_CORES: Final = 0.1
_RESULT_EXTRA: Final = 120  # bytes of the headers comux-types and comux-source


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
    all_of_it = demand.fps * (codec.packet_s + codec.megapixel_s * demand.megapixels) + megabytes * codec.megabyte_s
    cpu = {
        "decoding": n * demand.decoded / demand.fps * all_of_it,
        "conversion": n * demand.delivered * demand.megapixels * costs.convert_megapixel_s,
        "packets": n * (demand.fps * engine.packet_s + megabytes * engine.megabyte_s),
        "items": n * demand.delivered * engine.item_s,
        "results": n * demand.sends * (engine.send_s + result / 1e6 * engine.megabyte_s),
    }
    python = n * demand.decoded * codec.packet_s + cpu["packets"] + cpu["items"] + cpu["results"]
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


def metadata_s(topics: int, costs: Costs) -> float:
    """How often a member of a share group should look what topics there are (``metadata_max_age_ms``), in seconds.

    Comux' own setting, unless that costs a process more than ``METADATA_CORES``: each look is at every topic.
    """
    return max(METADATA_S, topics * costs.group.metadata_topic_s / METADATA_CORES)


def broker_cores(demand: Demand, costs: Costs, needs: Needs) -> float:
    """Cores of all brokers together."""
    cost, copies = costs.broker, demand.replication
    taken = needs.in_bytes + needs.out_bytes
    append = needs.records_in * cost.append_s + taken / 1e6 * cost.append_megabyte_s
    copied = needs.records_in * cost.copy_s + taken / 1e6 * cost.copy_megabyte_s
    read = needs.records_read * cost.read_s + needs.read_bytes / 1e6 * cost.read_megabyte_s
    return append + copied * (copies - 1) + read  # each broker's own idle time comes on top
