"""The arithmetic beside a real run: what the costs say a small configuration needs, and what it took."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from .costs import Costs
from .decoding import FPS
from .demand import Demand
from .loops import Cameras, Clips, engine_address
from .measure import Effort
from .needs import broker_cores, needs_of

#: What is run: eight cameras whose arrays are all delivered and sent on with 2 kB of results.
CAMERAS: Final = Demand(8, 640, 360, float(FPS), 1e6, results_bytes=2000, cores=1, brokers=1, replication=1)


@dataclass(frozen=True, slots=True)
class Compared:
    """One resource of the run.

    Attributes:
        name: Which.
        planned: What the arithmetic says, without safety.
        measured: What the run took.
        unit: Of both.
    """

    name: str
    planned: float
    measured: float
    unit: str

    @property
    def deviation(self) -> float:
        """Of the plan from the run: 0.1 is 10 % too much."""
        return self.planned / self.measured - 1 if self.measured else 0.0


def check_costs(
    costs: Costs, effort: Effort, *, cluster: str | None = None, tell: Callable[[str], None]
) -> list[Compared]:
    """Run ``CAMERAS`` and compare with what ``costs``, measured a moment ago, say of them. Blocks.

    Args:
        costs: By which is planned.
        effort: How long is measured: twice its seconds.
        cluster: Address of a Kafka cluster to run on; ``None``: ``shm://``.
        tell: Called with one line.

    Raises:
        ComuxError: as ``measure``.
    """
    demand = replace(CAMERAS, engine="shm" if cluster is None else "kafka")
    tell(f"{demand.engine}: {demand.cameras} cameras of {demand.width}x{demand.height} at {demand.fps:g} fps")
    with tempfile.TemporaryDirectory(prefix="comux-plan-") as folder:
        clip = Clips(Path(folder)).file(demand.width, demand.height, int(demand.bitrate))
        with Cameras(engine_address(cluster), clip, demand.cameras, fps=demand.fps) as feed:
            run = feed.run(seconds=2 * effort.seconds, warm_up=effort.warm_up, results_bytes=demand.results_bytes)
    return compare(demand, costs, run)


def compare(demand: Demand, costs: Costs, run: Mapping[str, float]) -> list[Compared]:
    """What ``needs_of`` says beside a run of ``loops.Cameras``.

    Rates and bytes are compared with what was asked for. CPU is compared for what was done: on a machine that is busy
    with other things fewer pictures are taken than were asked for, and those that were not cost nothing.
    """
    n, seconds = demand.cameras, run["seconds"]
    packets, items = run["packets"] / seconds, run["items"] / seconds
    size = run["feed_bytes"] / run["feed_packets"]
    done = replace(demand, fps=packets / n, rate=items / n, bitrate=8 * size * packets / n)
    asked, needs = needs_of(demand, costs, processes=1), needs_of(done, costs, processes=1)
    process_bytes = costs.engine(demand.engine).process_bytes
    out = [
        Compared("CPU of the loop", needs.cores, run["cpu_s"] / seconds, "cores"),
        Compared("memory of the loop", process_bytes + n * asked.camera_bytes, run["bytes"], "bytes"),
        Compared("packets in", n * demand.fps, packets, "1/s"),
        Compared("bytes in", asked.in_bytes, packets * (size + costs.record_bytes), "bytes/s"),
        Compared("results out", n * demand.sends, items, "1/s"),
    ]
    if "broker_cpu_s" in run:
        unread = replace(needs, read_bytes=needs.in_bytes, records_read=packets)  # nobody reads the run's results
        planned = broker_cores(done, costs, unread) + costs.broker.idle
        out.append(Compared("CPU of the broker", planned, run["broker_cpu_s"] / seconds, "cores"))
    return out
