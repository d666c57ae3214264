"""The arithmetic beside a real run: what the costs say a small configuration needs, and what it took."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from .costs import Costs
from .decoding import FPS
from .demand import Demand
from .measure import Clips, Effort, engine_address, run_loop
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
        run = run_loop(
            engine_address(cluster),
            clip=Clips(Path(folder)).file(demand.width, demand.height, int(demand.bitrate)),
            cameras=demand.cameras,
            seconds=2 * effort.seconds,
            warm_up=effort.warm_up,
            results_bytes=demand.results_bytes,
        )
    return compare(demand, costs, run)


def compare(demand: Demand, costs: Costs, run: dict[str, Any]) -> list[Compared]:
    """What ``needs_of`` says beside a run of ``run_loop``."""
    needs = needs_of(demand, costs, processes=1)
    seconds, overhead = run["seconds"], costs.record_bytes
    planned_bytes = costs.engine(demand.engine).process_bytes + demand.cameras * needs.camera_bytes
    size = run["feed_bytes"] / run["feed_packets"]
    out = [
        Compared("CPU of the loop", needs.cores, run["cpu_s"] / seconds, "cores"),
        Compared("memory of the loop", planned_bytes, run["bytes"], "bytes"),
        Compared("packets in", demand.cameras * demand.fps, run["packets"] / seconds, "1/s"),
        Compared("into the loop", needs.in_bytes, run["packets"] / seconds * (size + overhead), "bytes/s"),
        Compared("results out", demand.cameras * demand.sends, run["items"] / seconds, "1/s"),
    ]
    if "broker_cpu_s" in run:
        unread = replace(needs, read_bytes=needs.in_bytes, records_read=demand.cameras * demand.fps)
        planned = broker_cores(demand, costs, unread)  # nobody reads the results of the run
        out.append(Compared("CPU of the broker", planned + costs.broker.idle, run["broker_cpu_s"] / seconds, "cores"))
    return out
