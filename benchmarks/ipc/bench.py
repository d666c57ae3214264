"""Records between processes: one to one, and one to four where each consumer gets all.

    python benchmarks/ipc/bench.py [--rounds 3] [--seconds 1.0] [--sizes 64,4096] [--json FILE]

Every adapter gets the same number of records of one size in one round, then the next adapter runs; rounds are
interleaved, so that a machine that slows down slows all of them. A figure is records per second of the slowest
consumer; the ratio column is against the best rival in the same run.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common
from ipc import adapters

SIZES = (64, 4096, 2**20, 1920 * 1080 * 3)


def _produce(adapter: adapters.Adapter, n: int, go: Any) -> None:
    go.wait()
    adapter.produce(n)


def _consume(adapter: adapters.Adapter, index: int, n: int, go: Any, out: Any) -> None:
    out.send(adapter.consume(index, n, go.wait))
    out.close()


def measure(
    kind: type[adapters.Adapter], size: int, consumers: int, n: int, context: SpawnContext
) -> tuple[float, int]:
    """Records per second of the slowest consumer, and wrong records over all of them."""
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="comux-bench-", dir=shm if shm.is_dir() else None))
    try:
        adapter = kind(size, consumers, folder, context)
        go = context.Barrier(consumers + 1)
        pipes = [context.Pipe(duplex=False) for _ in range(consumers)]
        processes = [context.Process(target=_produce, args=(adapter, n, go))]
        processes += [context.Process(target=_consume, args=(adapter, i, n, go, pipes[i][1])) for i in range(consumers)]
        for process in processes:
            process.start()
        for _, sender in pipes:
            sender.close()
        answers = [receiver.recv() for receiver, _ in pipes]
        for process in processes:
            process.join()
        adapter.teardown()
        slowest = min((n - 1) / (last - first) for first, last, _ in answers)
        return slowest, sum(bad for _, _, bad in answers)
    finally:
        shutil.rmtree(folder)


def count(size: int, seconds: float, consumers: int) -> int:
    """How many records to send so that the quick ones run for about ``seconds``."""
    per_second = 2_500_000 if size <= 64 else min(1_200_000, int(8e9 / size))
    return max(64, int(per_second * seconds / consumers))


SLOWER = {"multiprocessing.Queue": 8, "pyzmq ipc": 2}  # fewer records for those that would take minutes


def run(sizes: Sequence[int], rounds: int, seconds: float) -> list[dict[str, Any]]:
    context = adapters.context()
    results = []
    for consumers in (1, 4):
        for size in sizes:
            rates: dict[str, list[float]] = {}
            wrong: dict[str, int] = {}
            for _ in range(rounds):
                for kind in adapters.ALL:
                    if consumers > 1 and kind is adapters.Memcpy:
                        continue
                    n = max(64, count(size, seconds, consumers) // SLOWER.get(kind.name, 1))
                    rate, bad = measure(kind, size, consumers, n, context)
                    rates.setdefault(kind.name, []).append(rate)
                    wrong[kind.name] = wrong.get(kind.name, 0) + bad
            for name, values in rates.items():
                row = {"topology": f"1 to {consumers}", "bytes": size, "name": name, "wrong": wrong[name]}
                results.append(row | {"rate": common.spread(values)})
            print(report(results[-len(rates) :]), flush=True)
    return results


def report(rows: Sequence[dict[str, Any]]) -> str:
    rivals = [r["rate"]["median"] for r in rows if "comux" not in r["name"] and "limit" not in r["name"]]
    best = max(rivals)
    lines = []
    for r in rows:
        rate = r["rate"]
        lines.append(
            [
                r["topology"],
                f"{r['bytes']:,} B",
                r["name"],
                common.human(rate["median"]) + "/s",
                f"{common.human(rate['min'])}–{common.human(rate['max'])}",
                f"{rate['median'] * r['bytes'] / 1e9:.2f} GB/s",
                f"{rate['median'] / best:.2f} ×",
                str(r["wrong"]),
            ]
        )
    head = ["topology", "record", "what", "records", "spread", "bytes", "of the best rival", "wrong"]
    return common.table(head, lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    facts = common.machine()
    print(common.describe(facts), "\n")
    rows = run([int(s) for s in options.sizes.split(",")], options.rounds, options.seconds)
    if options.json:
        common.save(options.json, {"machine": facts, "results": rows})


if __name__ == "__main__":
    main()
