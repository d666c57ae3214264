"""Turns the JSON of `make bench ARGS="--folder DIR"` into the Markdown of docs/explanation/performance.md.

python benchmarks/report.py DIR > tables.md
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent / "kafka"))

import common
from ipc.tables import page as ring_page
from kafka_tables import table as kafka_table
from video.tables import page as video_page

PARTS = {
    "kafka": ("Kafka", kafka_table, ("settings",)),
}


def main() -> None:
    ring = Path(sys.argv[1]) / "ring.json"
    if ring.exists():
        found = json.loads(ring.read_text())
        print(f"## The ring\n\nMachine: {common.describe(found['machine'])}.\n")
        print(ring_page(found["results"], found["absent"]))
    video = Path(sys.argv[1]) / "video.json"
    if video.exists():
        found = json.loads(video.read_text())
        print(f"## Video beside its rivals\n\nMachine: {common.describe(found['machine'])}.\n")
        print(video_page(found))
    for name, (title, table, apart) in PARTS.items():
        path = Path(sys.argv[1]) / f"{name}.json"
        if not path.exists():
            continue
        found = json.loads(path.read_text())
        print(f"## {title}\n\nMachine: {common.describe(found['machine'])}.\n")
        results = sorted(found["results"], key=lambda row: row.get("settings", ""))
        for values, rows in itertools.groupby(results, key=lambda row: tuple(row[key] for key in apart)):
            if "settings" in apart:
                print(f"{values[0].capitalize()} settings:\n")
            print(table(list(rows)))


if __name__ == "__main__":
    main()
