"""Turns the JSON of `make bench ARGS="--folder DIR"` into the Markdown of docs/explanation/performance.md.

python benchmarks/report.py DIR > tables.md
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import common
from ipc.bench import report as ring_table
from video.bench import report as video_table


def main() -> None:
    folder = Path(sys.argv[1])
    ring = json.loads((folder / "ring.json").read_text())
    video = json.loads((folder / "video.json").read_text())
    print(f"Machine: {common.describe(ring['machine'])}.\n\n## The ring\n")
    for _, rows in itertools.groupby(ring["results"], key=lambda r: (r["topology"], r["bytes"])):
        print(ring_table(list(rows)))
    print("## Delivered video, 1080p, every frame as BGR\n")
    for _, rows in itertools.groupby(video["results"], key=lambda r: r["cameras"]):
        print(video_table(list(rows)))


if __name__ == "__main__":
    main()
