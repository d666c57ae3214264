"""What the ring is held to, beside the others in the same run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ipc.adapters import FAN_OUT, ONE, SHARED

Row = dict[str, Any]
RING, POOL, MANY = "comux ring", "comux ring, pool", "comux ring, several writers allowed"


def _rate(rows: Sequence[Row], topology: str, size: int, name: str) -> float | None:
    for row in rows:
        if (row["part"], row.get("topology"), row["bytes"], row["name"]) == ("throughput", topology, size, name):
            if row["rate"] is None:
                return None
            return float(row["rate"]["median"])
    return None


def _best(rows: Sequence[Row], topology: str, size: int) -> tuple[float, str] | None:
    found = [
        (row["rate"]["median"], row["name"])
        for row in rows
        if row["part"] == "throughput" and row["topology"] == topology and row["bytes"] == size
        if row["rival"] and row["rate"]
    ]
    return max(found, default=None)


def _latency(rows: Sequence[Row], name: str, figure: str) -> float | None:
    chosen = (row for row in rows if row["part"] == "latency" and row["name"] == name and row[figure])
    return next((row[figure]["median"] for row in chosen), None)


def _ratios() -> list[tuple[str, str, int, str, float]]:
    return [
        ("64 B, one writer", ONE, 64, RING, 3.0),
        ("64 B, several writers allowed", ONE, 64, MANY, 2.0),
        ("4 kB", ONE, 4096, RING, 1.6),
        ("24 kB", ONE, 24_000, RING, 1.5),
        ("1 MB", ONE, 2**20, RING, 1.1),
        ("6.2 MB", ONE, 6_220_800, RING, 1.2),
        ("fan-out to 4, 64 B", FAN_OUT, 64, RING, 2.5),
        ("fan-out to 4, 24 kB", FAN_OUT, 24_000, RING, 1.2),
        ("fan-out to 4, 1 MB", FAN_OUT, 2**20, RING, 1.2),
        ("shared by 2, 64 B", SHARED, 64, RING, 3.5),
        ("shared by 2, 24 kB", SHARED, 24_000, RING, 3.5),
        ("shared by 2, 1 MB", SHARED, 2**20, RING, 3.5),
    ]


def compare(rows: Sequence[Row]) -> list[tuple[str, str, str, str, str]]:
    """Each goal that can be judged from these rows: what, found, beside whom, goal, met or missed."""
    out = []
    for what, topology, size, name, goal in _ratios():
        ours, best = _rate(rows, topology, size, name), _best(rows, topology, size)
        pool = _rate(rows, topology, size, POOL) if name == RING else None
        if pool is not None and ours is not None and pool > ours:  # whoever sends records of this size chooses
            ours, what = pool, f"{what}, pool"
        if ours is not None and best is not None:
            out.append(_line(what, ours / best[0], f"{best[1]}", goal, "×", least=True))
    for what, name, goal in (("64", "comux ring, batches of 64", 10.0), ("512", "comux ring, batches of 512", 40.0)):
        ours = _rate(rows, ONE, 64, name)
        if ours is not None:
            out.append(_line(f"64 B in batches of {what}", ours / 1e6, "", goal, "M/s", least=True))
    ours, theirs = _rate(rows, ONE, 4096, RING), _rate(rows, ONE, 4096, "mimocorb")
    if ours is not None and theirs is not None:
        out.append(_line("4 kB beside mimocorb", ours / theirs, "mimocorb", 40.0, "×", least=True))
    lives = [row for row in rows if row["part"] == "life"]
    life = [_line(row["name"], row["seconds"]["median"], "", row["goal"], "s", least=False) for row in lives]
    return out + _of_latency(rows) + _of_kills(rows) + life


def _of_kills(rows: Sequence[Row]) -> list[tuple[str, str, str, str, str]]:
    return [
        _line(f"{row['name']}: lost with a killed consumer", float(row["lost"] or 0), "", 0.0, "", least=False)
        for row in rows
        if row["part"] == "kill" and not row["rival"] and row["went_on"]
    ]


def _of_latency(rows: Sequence[Row]) -> list[tuple[str, str, str, str, str]]:
    out = []
    spinning = _latency(rows, "comux ring, spinning", "p50")
    if spinning is not None:
        out.append(_line("latency p50, spinning", spinning, "", 3.0, "µs", least=False))
    ours, by_hand = _latency(rows, RING, "p50"), _latency(rows, "shared memory + semaphores", "p50")
    if ours is not None and by_hand is not None:
        out.append(_line("latency p50, asleep", ours, "shared memory + semaphores", by_hand, "µs", least=False))
    p99 = [
        (row["p99"]["median"], row["name"]) for row in rows if row["part"] == "latency" and row["rival"] and row["p99"]
    ]
    mine = [figure for name in (RING, "comux ring, spinning") if (figure := _latency(rows, name, "p99")) is not None]
    if mine and p99:
        best, name = min(p99)
        out.append(_line("latency p99", min(mine), name, best, "µs", least=False))
    idle = _latency(rows, RING, "idle")
    if idle is not None:
        out.append(_line("idle", idle, "", 0.1, "% of a core", least=False))
    return out


def _line(
    what: str, found: float, beside: str, goal: float, unit: str, *, least: bool
) -> tuple[str, str, str, str, str]:
    judge: Callable[[float, float], bool] = (lambda a, b: a >= b) if least else (lambda a, b: a <= b)
    sign = "≥" if least else "≤"
    met = "met" if judge(found, goal) else "missed"
    return what, f"{found:.3g} {unit}", beside, f"{sign} {goal:.3g} {unit}", met
