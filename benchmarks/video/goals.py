"""What the multiplexer is held to, beside the others in the same run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

CEILING, OURS = "decode only (ceiling)", "comux"
Line = tuple[str, str, str, str, str]
MEGABYTE = 1e6
PERIOD_S = 1 / 30


def values(row: dict[str, Any] | None, figure: str) -> list[float]:
    """One figure of every round that came to an end; of the undisturbed ones, where there are any."""
    ended = [] if row is None else [one for one in row["rounds"] if one is not None and figure in one]
    return [one[figure] for one in [one for one in ended if not one["disturbed"]] or ended]


def median(row: dict[str, Any] | None, figure: str) -> float | None:
    found = values(row, figure)
    return statistics.median(found) if found else None


def row_of(group: dict[str, Any] | None, name: str) -> dict[str, Any] | None:
    return next((row for row in (group or {}).get("rows", []) if row["name"] == name), None)


def ratios(over: dict[str, Any] | None, under: dict[str, Any] | None, figure: str = "fps") -> list[float]:
    """Of each round that both came to the end of; of those in which neither was disturbed, where there are any."""
    if over is None or under is None:
        return []
    both = zip(over["rounds"], under["rounds"], strict=True)
    pairs = [(a, b) for a, b in both if a is not None and b is not None and b[figure]]
    quiet = [(a, b) for a, b in pairs if not a["disturbed"] and not b["disturbed"]]
    return [a[figure] / b[figure] for a, b in quiet or pairs]


def best_rival(group: dict[str, Any], figure: str = "fps", *, least: bool = False) -> dict[str, Any] | None:
    """That with the best median which gave every picture it should."""
    rows = [row for row in group["rows"] if row["rival"] and values(row, figure)]
    rows = [row for row in rows if not any(one and one["pictures"] < one.get("expected", 0) for one in row["rounds"])]
    key = lambda row: median(row, figure)  # noqa: E731
    return (min if least else max)(rows, key=key, default=None)


def compare(found: dict[str, Any]) -> list[Line]:
    """Each goal that can be judged: what, found, beside whom, goal, met or missed."""
    groups = found["groups"]
    lines: list[Line] = []
    for what, key, of_ceiling, of_rival in (
        ("every picture, 8 × 1080p", "every h264 1080p 8", 0.88, 1.12),
        ("made 640×360, 8 × 1080p", "resized h264 1080p 8", 0.93, 1.3),
        ("one file, 1080p", "every h264 1080p 1", None, 1.1),
    ):
        group = groups.get(key)
        if group is None:
            continue
        ours = row_of(group, OURS)
        if of_ceiling is not None:
            lines += _faster(what, ours, row_of(group, CEILING), "the ceiling", of_ceiling)
        best = best_rival(group)
        if best is not None:
            lines += _faster(what, ours, best, best["name"], of_rival)
    return [*lines, *_compute(groups), *_busy(groups), *_low(groups), *_memory(groups)]


def _faster(
    what: str, ours: dict[str, Any] | None, other: dict[str, Any] | None, beside: str, goal: float
) -> list[Line]:
    """Pictures a second; beside it what the same ratio is of processor time, which a busy machine changes less."""
    cpu = ratios(other, ours, "cpu")
    lines = _ratio(what, ratios(ours, other), beside, goal)
    return [(line[0], f"{line[1]}; by CPU {statistics.median(cpu):.2f}", *line[2:]) for line in lines]


def _ratio(what: str, found: Sequence[float], beside: str, goal: float) -> list[Line]:
    if not found:
        return []
    middle = statistics.median(found)
    spread = f"{middle:.3f} ({min(found):.2f}–{max(found):.2f})"
    return [(what, spread, beside, f"≥ {goal:g}", "met" if middle >= goal else "missed")]


def _line(what: str, found: float | None, beside: str, goal: float, unit: str, *, least: bool) -> list[Line]:
    if found is None:
        return []
    met = found >= goal if least else found <= goal
    sign = "≥" if least else "≤"
    return [(what, f"{found:.3g}{unit}", beside, f"{sign} {goal:.3g}{unit}", "met" if met else "missed")]


def _compute(groups: dict[str, Any]) -> list[Line]:
    group = groups.get("compute h264 1080p 4")
    ours = row_of(group, OURS)
    if ours is None:
        return []
    kept = [a / b for a, b in zip(values(ours, "beside"), values(ours, "alone"), strict=True)]
    ages = values(ours, "age_p99")
    decode = median(row_of(groups.get("every h264 1080p 4"), CEILING), "cpu")
    what = "newest of 4 × 1080p30, model of 100 ms in the loop"
    lines = _ratio(f"{what}: its rate", kept, "alone", 0.93)
    if decode is not None and ages:
        most = 1e3 * (PERIOD_S + decode)
        age = 1e3 * statistics.median(ages)
        lines += _line(f"{what}: age of the pictures, p99", age, "one period and a decode", most, " ms", least=False)
    return lines


def _busy(groups: dict[str, Any]) -> list[Line]:
    ours = row_of(groups.get("busy h264 1080p 4"), OURS)
    slowest, late = median(ours, "slowest"), median(ours, "age_late")
    what = "every picture of 4 × 1080p30 beside pure Python"
    lines = _line(f"{what}: the slowest camera", slowest, "", 0.98 * 30, " a second", least=True)
    return lines + _line(f"{what}: age at the end, median", _ms(late), "", 1000.0, " ms", least=False)


def _low(groups: dict[str, Any]) -> list[Line]:
    lines: list[Line] = []
    for cameras, rate in ((16, 2.0), (64, 1.0)):
        ours = row_of(groups.get(f"low h264 1080p {cameras}"), OURS)
        if ours is None:
            continue
        what = f"{cameras} × 1080p30 watched at {rate:g} a second"
        grown = [one["age_late"] - one["age_early"] for one in ours["rounds"] if one]
        lines += _line(f"{what}: cores", median(ours, "cpu"), "", 2.0, "", least=False)
        lines += _line(f"{what}: lag that grows", _ms(max(grown, default=None)), "", 100.0, " ms", least=False)
        lines += _line(f"{what}: the slowest", median(ours, "fairness"), "the median one", 0.8, "", least=True)
        rival = _least_work(groups[f"low h264 1080p {cameras}"])
        if rival is not None:
            share = statistics.median(ratios(ours, rival, "cpu"))
            lines += _line(f"{what}: CPU", share, rival["name"], 0.55 if rate == 2.0 else 0.2, " ×", least=False)
    return lines


def _least_work(group: dict[str, Any]) -> dict[str, Any] | None:
    """The rival that needs least, of those that keep up: one that is ever further behind leaves work undone."""
    rows = [row for row in group["rows"] if row["rival"] and (median(row, "age_late") or 9.0) < 1.0]
    return min(rows, key=lambda row: median(row, "cpu") or 0.0, default=None)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


def _memory(groups: dict[str, Any]) -> list[Line]:
    """Of what one source takes, the most of all groups with several."""
    found = []
    for group in groups.values():
        ours = row_of(group, OURS)
        most = max(values(ours, "memory"), default=None)
        if most is not None and group["cameras"] >= 4:
            found.append((most / group["cameras"] / MEGABYTE, f"{group['part']} {group['codec']} {group['size']}"))
    if not found:
        return []
    most, where = max(found)
    return _line("memory of a source, all of it, at most", most, where, 64.0, " MB", least=False)
