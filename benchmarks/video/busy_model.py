"""Cameras beside a model that keeps the interpreter busy: decoded in threads, in processes, and by ``auto``.

    python benchmarks/video/busy_model.py [--rounds 5] [--cameras 4,16] [--sizes 720p,360p] [--seconds 10]
        [--fps 30] [--ways threads,processes] [--processes 2] [--json FILE]

The model is a loop of pure Python in the main thread that never waits; its rate with no camera is measured in the same
process, before and after. A second thread takes every picture with ``get_batch``. Cameras are another process that
publishes one clip on every topic at 30 a second. Each measurement is a process of its own, and the ways take turns
within a round. Printed are medians of the rounds: the model's rate relative to alone, time between two pictures of a
camera as the loop gets them, their age then (from publishing), pictures per second and camera, and how many packets the
worst camera was behind at the end.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common
from video import clips

WARM_UP = 4.0
ALONE = 1.0


def model_for(seconds: float) -> tuple[int, float]:
    """Steps of a pure Python loop, and the seconds they took."""
    begun = time.perf_counter()
    until, steps, total = begun + seconds, 0, 0
    while time.perf_counter() < until:
        for number in range(2000):
            total += number * number % 7
        steps += 1
    return steps, time.perf_counter() - begun


class Watch(threading.Thread):
    """Takes batches until told to stop; notes when each camera's pictures came and how old they were."""

    def __init__(self, cameras: Any) -> None:
        super().__init__(name="watch", daemon=True)
        self.cameras = cameras
        self.noting = False
        self.over = False
        self.came: dict[str, list[float]] = {}
        self.ages: list[float] = []

    def run(self) -> None:
        while not self.over:
            batch = self.cameras.get_batch(timeout=0.5)
            now = time.perf_counter()
            if not self.noting:
                continue
            for item in batch:
                if item.array is not None:
                    self.came.setdefault(str(item.cam_id), []).append(now)
                    self.ages.append(item.age)


def one(way: str, cameras: int, clip: Path, fps: int, seconds: float, processes: int) -> dict[str, float]:
    """One measurement, in this process."""
    from comux import Comux
    from comux.planning.child import Child, removed_topics

    model_for(ALONE)
    steps, took = model_for(ALONE)
    before = steps / took
    address = "shm://busy-model"
    ids = [f"cam{n}" for n in range(cameras)]
    setting: Any = {"threads": 0, "processes": processes, "auto": "auto"}[way]
    words: dict[str, Any] = {"mode": "every_frame", "decode_processes": setting}
    topics = [f"raw_{cam}" for cam in ids]
    with removed_topics(address), Child("cameras", address=address, topics=topics, clip=str(clip), fps=fps) as child:
        child.hear()
        with Comux(ids, address=address, **words) as mux:
            watch = Watch(mux)
            watch.start()
            model_for(WARM_UP)
            watch.noting = True
            steps, took = model_for(seconds)
            watch.noting = False
            behind = max(source["lag"] for source in mux.status()["sources"].values())
            watch.over = True
            watch.join()
        child.ask()
        child.hear()
    alone, taken = model_for(ALONE)
    rate = 2 * (steps / took) / (before + alone / taken)
    gaps = sorted(b - a for came in watch.came.values() for a, b in itertools.pairwise(came))
    ages = sorted(watch.ages)
    pick = lambda values, share: 1000 * values[min(len(values) - 1, int(share * len(values)))]  # noqa: E731
    slowest = min((len(came) for came in watch.came.values()), default=0) if len(watch.came) == cameras else 0
    return {
        "model": rate,
        "gap_p50": pick(gaps, 0.5),
        "gap_p99": pick(gaps, 0.99),
        "age_p50": pick(ages, 0.5),
        "age_p99": pick(ages, 0.99),
        "fps": len(ages) / took / cameras,
        "slowest_fps": slowest / took,
        "behind": behind,
    }


def measure(way: str, cameras: int, clip: Path, options: argparse.Namespace) -> dict[str, float]:
    call = [sys.executable, __file__, "--one", way, "--cameras", str(cameras), "--clip", str(clip)]
    call += ["--fps", str(options.fps), "--seconds", str(options.seconds), "--processes", str(options.processes)]
    done = subprocess.run(call, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode != 0:
        raise SystemExit(f"{way}, {cameras} cameras: {done.stderr.strip()[-2000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def rows_of(files: dict[int, tuple[str, Path]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every way with so many cameras; rounds are interleaved."""
    found: dict[tuple[int, str], list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for cameras, (_, clip) in files.items():
            for way in options.ways.split(","):
                found.setdefault((cameras, way), []).append(measure(way, cameras, clip, options))
    return [
        {
            "cameras": cameras,
            "size": files[cameras][0],
            "way": way,
            **{name: common.spread([one[name] for one in rounds]) for name in rounds[0]},
        }
        for (cameras, way), rounds in sorted(found.items())
    ]


def report(rows: list[dict[str, Any]]) -> str:
    """As a table; the spread of the two figures that matter."""
    head = [
        "cameras",
        "size",
        "decoded in",
        "model, of its rate alone",
        "between pictures p50",
        "p99",
        "age p50",
        "p99",
    ]
    head += ["pictures/s each", "of the slowest", "packets behind"]
    lines = []
    for row in rows:
        wide = lambda name, form: f"{row[name]['min']:{form}}–{row[name]['max']:{form}}"  # noqa: B023, E731
        lines.append(
            [
                str(row["cameras"]),
                row["size"],
                row["way"],
                f"{row['model']['median']:.2f} ({wide('model', '.2f')})",
                f"{row['gap_p50']['median']:.0f} ms",
                f"{row['gap_p99']['median']:.0f} ms ({wide('gap_p99', '.0f')})",
                f"{row['age_p50']['median']:.0f} ms",
                f"{row['age_p99']['median']:.0f} ms",
                f"{row['fps']['median']:.1f}",
                f"{row['slowest_fps']['median']:.1f}",
                f"{row['behind']['median']:.0f}",
            ]
        )
    return common.table(head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cameras", default="4,16")
    parser.add_argument("--sizes", default="720p,360p", help="of each number of cameras")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--fps", type=int, default=30)
    parser.add_argument("--ways", default="threads,processes")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--clip", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        result = one(options.one, int(options.cameras), options.clip, options.fps, options.seconds, options.processes)
        print(json.dumps(result))
        return
    facts = common.machine()
    print(common.describe(facts), "\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="comux-bench-") as folder:
        files = {}
        for cameras, size in zip(options.cameras.split(","), options.sizes.split(","), strict=True):
            files[int(cameras)] = (size, clips.file_of(Path(folder), "h264", size, 120, 120))
        rows = rows_of(files, options)
    print(report(rows))
    if options.json:
        common.save(options.json, {"machine": facts, "results": rows})


if __name__ == "__main__":
    main()
