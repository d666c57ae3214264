"""The Kafka benchmark's figures as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import common

BASE = "kafka-python"
HEAD = ["what", "record", "client", "records", "spread", "bytes", "of kafka-python", "CPU each", "of its CPU", "wrong"]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A row per client, direction and size. Ratios are medians of the rounds' own; CPU is the client process'."""
    bases = {_measured(row): row for row in rows if row["name"] == BASE}
    lines = []
    for row in rows:
        base = bases.get(_measured(row), row)
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
                _ratio(row["rates"], base["rates"]),
                f"{cpu:.1f} µs" if cpu < 1000 else f"{cpu / 1000:.2f} ms",
                _ratio(row["cpu_us"], base["cpu_us"]),
                str(row["wrong"]),
            ]
        )
    return common.table(HEAD, lines) + "\n"


def _measured(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["settings"], row["direction"], row["bytes"]


def _ratio(values: Sequence[float], base: Sequence[float]) -> str:
    return f"{statistics.median(a / b for a, b in zip(values, base, strict=True)):.2f} ×"
