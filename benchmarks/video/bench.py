"""Every frame of 1, 4 and 8 cameras of 1080p as BGR arrays, beside the decode-only ceiling and other ways.

    python benchmarks/video/bench.py [--rounds 3] [--cameras 1,4,8] [--frames 300] [--size 1920x1080] [--json FILE]

Each measurement runs in a process of its own; rounds are interleaved. The first 30 frames of every camera are warm-up
and not counted, for all alike. Ratios are of medians in this one run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common
from video import adapters

CEILING = "decode only (ceiling)"


def measure(name: str, clip: Path, frames: int, cameras: int) -> float:
    """Frames per second of one adapter, in a fresh process."""
    call = [sys.executable, __file__, "--one", name, "--clip", str(clip), "--cameras", str(cameras)]
    call += ["--frames", str(frames)]
    done = subprocess.run(call, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode != 0:
        raise SystemExit(f"{name}: {done.stderr.strip().splitlines()[-1] if done.stderr else done.returncode}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    if answer["frames"] != answer["expected"]:
        raise SystemExit(f"{name}: {answer['frames']} frames came of {answer['expected']}")
    return float(answer["fps"])


def run(clip: Path, frames: int, cameras: list[int], rounds: int) -> list[dict[str, Any]]:
    results = []
    for n in cameras:
        rates: dict[str, list[float]] = {}
        for _ in range(rounds):
            for name in adapters.ALL:
                rates.setdefault(name, []).append(measure(name, clip, frames, n))
        rows = [{"cameras": n, "name": name, "fps": common.spread(values)} for name, values in rates.items()]
        results += rows
        print(report(rows), flush=True)
    return results


def report(rows: list[dict[str, Any]]) -> str:
    by_name = {r["name"]: r["fps"]["median"] for r in rows}
    lines = [
        [
            str(r["cameras"]),
            r["name"],
            f"{r['fps']['median']:.0f}",
            f"{r['fps']['min']:.0f}–{r['fps']['max']:.0f}",
            f"{r['fps']['median'] / by_name[CEILING]:.3f}",
        ]
        for r in rows
    ]
    return common.table(["cameras", "what", "frames/s", "spread", "of the ceiling"], lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cameras", default="1,4,8")
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--size", default="1920x1080")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--clip", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        cameras = int(options.cameras)
        times = adapters.ALL[options.one](options.clip, cameras)
        expected = options.frames * cameras
        print(json.dumps({"frames": len(times), "expected": expected, "fps": adapters.rate(times, cameras)}))
        return
    facts = common.machine()
    print(common.describe(facts), "\n")
    folder = Path(tempfile.mkdtemp(prefix="comux-bench-"))
    try:
        width, height = map(int, options.size.split("x"))
        clip = folder / "clip.mp4"
        adapters.make_clip(clip, width, height, options.frames)
        rows = run(clip, options.frames, [int(n) for n in options.cameras.split(",")], options.rounds)
    finally:
        shutil.rmtree(folder)
    if options.json:
        common.save(options.json, {"machine": facts, "results": rows})


if __name__ == "__main__":
    main()
