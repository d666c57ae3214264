"""The results as tables of Markdown."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from typing import Any

import common
from video.goals import CEILING, MEGABYTE, compare, median, ratios, row_of, values

FILES = ("every", "resized")
TITLES = {
    "every": "Every picture as BGR",
    "resized": "Every picture, made 640×360",
    "newest": "The newest picture of live cameras",
    "compute": "The newest, beside a model of 100 ms in the loop",
    "busy": "Every picture of live cameras, beside a thread of pure Python",
    "low": "Many cameras at low rates",
}


def page(found: dict[str, Any]) -> str:
    """All of it: goals, then parts."""
    lines = list(goals(found))
    for part, group in itertools.groupby(ordered(found), key=lambda one: one["part"]):
        listed = list(group)
        lines += [f"### {TITLES[part]}\n", _merged(listed)]
    lines += [f"Absent: {name} ({why})." for name, why in found["absent"].items()]
    return "\n".join(lines)


def ordered(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The groups by part, codec, size and number of cameras."""
    parts, sizes = list(TITLES), ["360p", "720p", "1080p"]
    place = lambda one: (parts.index(one["part"]), one["codec"], sizes.index(one["size"]), one["cameras"])  # noqa: E731
    return sorted(found["groups"].values(), key=place)


def goals(found: dict[str, Any]) -> Iterator[str]:
    lines = compare(found)
    if lines:
        yield common.table(["goal", "found", "beside", "wanted", ""], lines) + "\n"


def group_table(group: dict[str, Any]) -> str:
    """One group."""
    return _merged([group])


def _merged(listed: list[dict[str, Any]]) -> str:
    files = listed[0]["part"] in FILES
    lines = [line for group in listed for line in (_file_lines(group) if files else _live_lines(group))]
    head = ["cameras", "what"]
    if files:
        head += ["pictures/s", "spread", "of the ceiling", "CPU each", "memory of a camera", "pictures"]
    else:
        head += ["pictures/s", "slowest", "age p50", "age p99", "at the end", "cores", "model", "memory of a camera"]
    return common.table(head, lines) + "\n"


def _cameras(group: dict[str, Any]) -> str:
    return f"{group['cameras']} × {group['size']} {group['codec']}"


def _mark(row: dict[str, Any]) -> str:
    """How many of the rounds were disturbed, or failed."""
    disturbed = sum(1 for one in row["rounds"] if one and one["disturbed"])
    return (f" ({disturbed} disturbed)" if disturbed else "") + (
        f"; failed: {row['errors'][0]}" if row["errors"] else ""
    )


def _file_lines(group: dict[str, Any]) -> Iterator[list[str]]:
    ceiling = row_of(group, CEILING)
    for row in group["rows"]:
        rates = values(row, "fps")
        if not rates:
            yield [_cameras(group), row["name"] + _mark(row), "", "", "", "", "", ""]
            continue
        share = ratios(row, ceiling)
        got, wanted = values(row, "pictures"), values(row, "expected")
        yield [
            _cameras(group),
            row["name"] + _mark(row),
            f"{statistics.median(rates):.0f}",
            f"{min(rates):.0f}–{max(rates):.0f}",
            f"{statistics.median(share):.3f}" if share else "",
            f"{1e3 * cpu:.2f} ms" if (cpu := median(row, "cpu")) is not None else "",
            f"{max(values(row, 'memory')) / MEGABYTE / group['cameras']:.0f} MB",
            "all" if got == wanted else f"{int(min(got))} of {int(wanted[0])}",
        ]


def _live_lines(group: dict[str, Any]) -> Iterator[list[str]]:
    for row in group["rows"]:
        if not values(row, "fps"):
            yield [_cameras(group), row["name"] + _mark(row), *[""] * 8]
            continue
        ages = [f"{1e3 * (median(row, figure) or 0):.0f} ms" for figure in ("age_p50", "age_p99", "age_late")]
        kept = [a / b for a, b in zip(values(row, "beside"), values(row, "alone"), strict=True) if b]
        yield [
            _cameras(group),
            row["name"] + _mark(row),
            f"{median(row, 'fps'):.1f}",
            f"{median(row, 'slowest'):.1f}",
            *ages,
            f"{median(row, 'cpu'):.2f}",
            f"{statistics.median(kept):.2f}" if kept else "",
            f"{max(values(row, 'memory')) / MEGABYTE / group['cameras']:.0f} MB",
        ]
