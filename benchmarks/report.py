"""Turns the JSON of `make bench ARGS="--folder DIR"` into the Markdown of docs/explanation/performance.md.

python benchmarks/report.py DIR > tables.md
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent / "kafka"))

import common
from ipc.bench import report as ring_table
from kafka_tables import table as kafka_table
from video.bench import report as video_table

PARTS = {
    "ring": ("The ring", ring_table, ("topology", "bytes")),
    "video": ("Delivered video, 1080p, every frame as BGR", video_table, ("cameras",)),
    "kafka": ("Kafka", kafka_table, ("settings",)),
}


def main() -> None:
    for name, (title, table, apart) in PARTS.items():
        path = Path(sys.argv[1]) / f"{name}.json"
        if not path.exists():
            continue
        found: dict[str, Any] = json.loads(path.read_text())
        print(f"## {title}\n\nMachine: {common.describe(found['machine'])}.\n")
        results = sorted(found["results"], key=lambda row: row.get("settings", ""))
        for values, rows in itertools.groupby(results, key=lambda row: tuple(row[key] for key in apart)):
            if "settings" in apart:
                print(f"{values[0].capitalize()} settings:\n")
            print(table(list(rows)))


if __name__ == "__main__":
    main()
