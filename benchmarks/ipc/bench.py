"""Records between processes: one to one, to four (each gets all), to two that share; latency, waiting, a death.

    python benchmarks/ipc/bench.py [--rounds 5] [--share 1.0] [--sizes 64,4096] [--only ring,zmq] [--json FILE]

In a round every adapter takes its turn at one size and topology, so that a machine that slows down slows all of them;
each sends as many records as it moves in about a second (times ``--share``) on the machine of the documentation. A
figure is the median of the rounds: of the slowest consumer, and of all together where they share. Every consumer reads
every byte of every record; what is lost, double or torn is counted for all. Goals are printed beside what was found.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common
from ipc import adapters, rivals, runs, tables

SIZES = (64, 4096, 24_000, 2**20, 6_220_800)
LATENCY_BYTES = 24_000
SECONDS = 1.0  #: each run lasts about so long
OVERHEAD_S = 2.0  #: processes start, connect and stop
LATENCY_RECORDS = 3000
IDLE_S = 5.0
KILL_BYTES = 4096
KILL_RECORDS = 3000
KILL_S = 20.0  #: after which the survivor is said to have stopped
PACKAGES = (*common.PACKAGES[:2], "pyzmq", "iceoryx2", "eclipse-zenoh", "faster-fifo", "mimocorb")

Kind = type[adapters.Adapter]
Part = tuple[str, int, list[Kind]]


def kinds(only: Sequence[str]) -> tuple[list[Kind], dict[str, str]]:
    """Adapters that can be used here, and why the others cannot."""
    known = (*adapters.OURS, *rivals.RIVALS)
    exact = {kind.name for kind in known} & set(only)
    chosen = [kind for kind in known if not only or any(word in kind.name for word in only)]
    wanted = [kind for kind in known if kind.name in exact] if exact else chosen
    absent = {kind.name: why for kind in wanted if (why := kind.absent()) is not None}
    return [kind for kind in wanted if kind.name not in absent], absent


def plan(found: Sequence[Kind], sizes: Sequence[int], topologies: Sequence[str]) -> Iterator[Part]:
    """Topology, size, and who takes turns there."""
    for topology in topologies:
        for size in sizes:
            turns = [
                kind
                for kind in found
                if kind.throughput and topology in kind.topologies and (kind.sizes is None or size in kind.sizes)
            ]
            if turns:
                yield topology, size, turns


def records(kind: Kind, size: int, topology: str, share: float) -> int:
    """How many to send."""
    nearest = min(kind.rates, key=lambda known: abs(known - size))
    consumers = 1 if topology == adapters.SHARED else adapters.CONSUMERS[topology]
    return max(32, int(kind.rates[nearest] * SECONDS * share / consumers))


def measure_throughput(
    turns: Sequence[Kind], topology: str, size: int, rounds: int, share: float, context: SpawnContext
) -> list[dict[str, Any]]:
    """A row for each that took turns."""
    rows: dict[str, dict[str, Any]] = {}
    for kind in turns:
        row = {"part": "throughput", "topology": topology, "bytes": size, "name": kind.name}
        row |= {"rival": kind.rival and not kind.ours, "lost": 0, "duplicated": 0, "torn": 0, "errors": []}
        rows[kind.name] = row | {"rates": []}
    for _ in range(rounds):
        for kind in turns:
            row = rows[kind.name]
            try:
                n = records(kind, size, topology, share)
                found = runs.throughput(kind, size, topology, n, SECONDS * share, context)
            except runs.Failed as error:
                row["errors"].append(str(error))
                continue
            row["rates"].append(found["rate"])
            for what in ("lost", "duplicated", "torn"):
                row[what] += found[what]
    for row in rows.values():
        rates = row.pop("rates")
        row["rate"] = common.spread(rates) if rates else None
    return list(rows.values())


def measure_latency(found: Sequence[Kind], rounds: int, share: float, context: SpawnContext) -> list[dict[str, Any]]:
    """A row for each."""
    turns = [kind for kind in found if kind.rates or not kind.throughput]
    turns = [kind for kind in turns if "batches" not in kind.name and (kind.rival or kind.ours)]
    figures = ("p50", "p99", "p99.9", "idle")
    rows: dict[str, dict[str, Any]] = {}
    for _ in range(rounds):
        for kind in turns:
            row = rows.setdefault(kind.name, {"part": "latency", "bytes": LATENCY_BYTES, "name": kind.name})
            row.setdefault("rival", kind.rival and not kind.ours)
            try:
                n = max(100, int(LATENCY_RECORDS * share))
                seen = runs.latency(kind, LATENCY_BYTES, n, max(0.5, IDLE_S * share), context)
            except runs.Failed as error:
                row.setdefault("errors", []).append(str(error))
                continue
            row["wrong"] = row.get("wrong", 0) + seen["wrong"]
            for figure in figures:
                row.setdefault(figure, []).append(seen[figure])
    for row in rows.values():
        for figure in figures:
            row[figure] = common.spread(row[figure]) if figure in row else None
    return [{"errors": [], "wrong": 0, **row} for row in rows.values()]


def measure_kills(found: Sequence[Kind], context: SpawnContext) -> list[dict[str, Any]]:
    """A row for each that lets consumers share."""
    rows = []
    for kind in found:
        if adapters.SHARED not in kind.topologies or not kind.throughput or "batches" in kind.name:
            continue
        row = {"part": "kill", "bytes": KILL_BYTES, "name": kind.name, "rival": kind.rival and not kind.ours}
        row |= {"errors": [], "went_on": None, "lost": None}
        try:
            row |= runs.kill(kind, KILL_BYTES, KILL_RECORDS, KILL_S, context)
        except runs.Failed as error:
            row["errors"] = [str(error)]
        rows.append(row)
    return rows


def measure_life(rounds: int, context: SpawnContext) -> list[dict[str, Any]]:
    """Making a large ring, and handing on what a killed member held."""
    made = common.spread([runs.construct_s() for _ in range(rounds)])
    again = common.spread([runs.redelivery_s(context) for _ in range(rounds)])
    row = {"part": "life", "bytes": 64, "rival": False, "errors": []}
    return [
        row | {"name": "100,000 slots are made in", "seconds": made, "goal": 1.0},
        row | {"name": "kill -9 of a holder: redelivered after", "seconds": again, "goal": 0.2},
    ]


def estimate(parts: Sequence[Part], latencies: int, rounds: int, share: float) -> float:
    """Seconds that all of it takes, about."""
    each = SECONDS * share + OVERHEAD_S
    one = LATENCY_RECORDS * share / runs.HZ + IDLE_S * share + OVERHEAD_S
    return rounds * (sum(len(turns) for _, _, turns in parts) * each + latencies * one)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--share", type=float, default=1.0, help="of the usual length of each run")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--topologies", default=";".join(adapters.CONSUMERS), help="separated by ;")
    parser.add_argument("--only", default="", help="words in the names of adapters, separated by commas")
    parser.add_argument("--no-latency", action="store_true")
    parser.add_argument("--no-kills", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    context = adapters.context()
    found, absent = kinds([word for word in options.only.split(",") if word])
    parts = list(plan(found, [int(size) for size in options.sizes.split(",")], options.topologies.split(";")))
    facts = common.machine(PACKAGES)
    print(common.describe(facts), "\n")
    for name, why in absent.items():
        print(f"absent: {name} ({why})")
    minutes = estimate(parts, 0 if options.no_latency else len(found), options.rounds, options.share) / 60
    print(f"about {minutes:.0f} minutes\n", flush=True)
    rows: list[dict[str, Any]] = []
    for topology, size, turns in parts:
        rows += measure_throughput(turns, topology, size, options.rounds, options.share, context)
        print(tables.throughput_table(rows[-len(turns) :]), flush=True)
    if not options.no_latency:
        latencies = measure_latency(found, options.rounds, options.share, context)
        rows += latencies
        print(tables.latency_table(latencies), flush=True)
    if not options.no_kills:
        rows += measure_kills(found, context)
        if any(kind.ours for kind in found):
            rows += measure_life(options.rounds, context)
        print(*tables.kills(rows), sep="\n", flush=True)
    print(*tables.goals(rows), sep="\n")
    if options.json:
        common.save(options.json, {"machine": facts, "results": rows, "absent": absent})


if __name__ == "__main__":
    main()
