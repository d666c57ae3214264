"""The results as tables of Markdown."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import common
from ipc.goals import compare

Row = dict[str, Any]


def page(rows: Sequence[Row], absent: dict[str, str]) -> str:
    """All of it: goals, then throughput by topology and size, latency, deaths."""
    return "\n".join([*goals(rows), *_throughput(rows), *_latency(rows), *kills(rows), *_absent(absent)])


def goals(rows: Sequence[Row]) -> Iterator[str]:
    lines = compare(rows)
    if lines:
        yield common.table(["goal", "found", "beside", "wanted", ""], lines) + "\n"


def _throughput(rows: Sequence[Row]) -> Iterator[str]:
    chosen = [row for row in rows if row["part"] == "throughput"]
    for _, group in itertools.groupby(chosen, key=lambda row: (row["topology"], row["bytes"])):
        yield throughput_table(list(group))


def throughput_table(rows: Sequence[Row]) -> str:
    """One topology and size."""
    rivals = [row["rate"]["median"] for row in rows if row["rival"] and row["rate"]]
    best = max(rivals, default=None)
    lines = []
    for row in rows:
        start = [row["topology"], f"{row['bytes']:,} B", row["name"]]
        rate = row["rate"]
        if not rate:
            lines.append([*start, f"failed: {row['errors'][0]}", "", "", "", ""])
            continue
        wrong = "/".join(str(row[what]) for what in ("lost", "duplicated", "torn"))
        lines.append(
            [
                *start,
                common.human(rate["median"]) + "/s",
                f"{common.human(rate['min'])}–{common.human(rate['max'])}",
                f"{rate['median'] * row['bytes'] / 1e9:.2f} GB/s",
                "" if best is None else f"{rate['median'] / best:.2f} ×",
                wrong + (f"; {len(row['errors'])} failed: {row['errors'][0]}" if row["errors"] else ""),
            ]
        )
    head = ["topology", "record", "what", "records", "spread", "bytes", "of the best rival", "lost/double/torn"]
    return common.table(head, lines) + "\n"


def _latency(rows: Sequence[Row]) -> Iterator[str]:
    chosen = [row for row in rows if row["part"] == "latency"]
    if chosen:
        yield latency_table(chosen)


def latency_table(rows: Sequence[Row]) -> str:
    """One way, at 1 kHz."""
    lines = []
    for row in rows:
        if not row["p50"]:
            lines.append([f"{row['bytes']:,} B", row["name"], f"failed: {row['errors'][0]}", "", "", "", ""])
            continue
        figures = [f"{row[figure]['median']:.1f}" for figure in ("p50", "p99", "p99.9")]
        lines.append(
            [f"{row['bytes']:,} B", row["name"], *figures, f"{row['idle']['median']:.2f} %", str(row["wrong"])]
        )
    head = ["record", "what", "p50 µs", "p99 µs", "p99.9 µs", "a core, waiting", "wrong"]
    return common.table(head, lines) + "\n"


def kills(rows: Sequence[Row]) -> Iterator[str]:
    """What became of the records when one of two that share was killed with one in its hands."""
    lines = []
    for row in (row for row in rows if row["part"] == "kill"):
        if row["errors"]:
            lines.append([row["name"], f"failed: {row['errors'][0]}", ""])
        elif not row["went_on"]:
            lines.append([row["name"], "stopped for ever", ""])
        else:
            lines.append([row["name"], "went on", str(row["lost"])])
    if lines:
        yield common.table(["what", "one of two consumers killed: the other", "records lost"], lines) + "\n"


def _absent(absent: dict[str, str]) -> Iterator[str]:
    for name, why in absent.items():
        yield f"Absent: {name} ({why})."
