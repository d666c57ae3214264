"""The Kafka benchmark's figures as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import common

BASE = "kafka-python"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """One direction, size and set of settings: a row per client. The ratio is the median of the rounds' own ratios."""
    base = next((row for row in rows if row["name"] == BASE), None)
    lines = []
    for row in rows:
        rate = common.spread(row["rates"])
        cpu = statistics.median(row["cpu_us"])
        lines.append(
            [
                row["direction"],
                f"{row['bytes']:,} B",
                row["name"],
                common.human(rate["median"]) + "/s",
                f"{common.human(rate['min'])}–{common.human(rate['max'])}",
                f"{rate['median'] * row['bytes'] / 1e6:.1f} MB/s",
                "–" if base is None else ratio(row["rates"], base["rates"]),
                f"{cpu:.1f} µs" if cpu < 1000 else f"{cpu / 1000:.2f} ms",
                "–" if base is None else ratio(row["cpu_us"], base["cpu_us"]),
                str(row["wrong"]),
            ]
        )
    head = [
        "what",
        "record",
        "client",
        "records",
        "spread",
        "bytes",
        "of kafka-python",
        "CPU per record",
        "of its CPU",
        "wrong",
    ]
    return common.table(head, lines) + "\n"


def ratio(values: Sequence[float], base: Sequence[float]) -> str:
    return f"{statistics.median(a / b for a, b in zip(values, base, strict=True)):.2f} ×"
