"""The benchmark beside its rivals: its books find what is wrong, goals are judged right, a short run loses nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from comux.lifecycle import child_environment

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SIZE = 64


@pytest.fixture
def ipc(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The package benchmarks/ipc, as long as a test wants it."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import ipc.goals
    import ipc.tables
    import ipc.tally

    yield ipc
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("ipc", "common"):
            del sys.modules[name]


def bench(tmp_path: Path, *arguments: str, seconds: float = 110) -> dict[str, Any]:
    """A run of the benchmark; what it wrote."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "ipc/bench.py"), *arguments, "--json", str(tmp_path / "ring.json")],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "ring.json").read_text())


def books_in_order(ipc: Any, records: list[bytes], n: int) -> Any:
    *_, end = ipc.tally.payloads(SIZE)
    return ipc.tally.receive_in_order(iter([*records, end]).__next__, n, SIZE, lambda: None)


# -- its own books -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "lost", "duplicated", "torn"),
    [
        (lambda sent: sent, 0, 0, 0),
        (lambda sent: sent[:100] + sent[103:], 3, 0, 0),
        (lambda sent: sent[:100] + sent[99:], 0, 1, 0),
        (lambda sent: [*sent[:100], bytes(SIZE), *sent[101:]], 0, 0, 1),
        (lambda sent: sent[:490], 10, 0, 0),
        (lambda sent: [*sent[:50], *sent[52:200], bytes(SIZE), *sent[201:300], *sent[298:]], 2, 2, 1),
    ],
    ids=["right", "lost", "double", "torn", "cut", "all"],
)
def test_what_is_lost_double_or_torn_is_counted(ipc: Any, change: Any, lost: int, duplicated: int, torn: int) -> None:
    *data, _ = ipc.tally.payloads(SIZE)
    sent = [data[i % len(data)] for i in range(500)]
    tally = books_in_order(ipc, change(sent), 500)
    assert (tally.lost, tally.duplicated, tally.torn) == (lost, duplicated, torn)


def test_the_books_of_those_who_share(ipc: Any) -> None:
    *data, end = ipc.tally.payloads(SIZE)
    sent = [data[i % len(data)] for i in range(600)]
    parts = [sent[::2], sent[1::2]]
    del parts[0][7]
    parts[1] += [sent[3]]
    parts[1][5] = bytes(SIZE)
    tallies = [ipc.tally.receive_shared(iter([*part, end]).__next__, SIZE, lambda: None) for part in parts]
    assert sum(tally.torn for tally in tallies) == 1
    assert ipc.tally.settle_shared(tallies, 600, SIZE) == (1, 1)


def test_goals_are_judged_from_the_rows(ipc: Any) -> None:
    def row(name: str, rate: float | None, rival: bool = True, size: int = 64) -> dict[str, Any]:
        spread = None if rate is None else {"median": rate, "min": rate, "max": rate}
        words = {"part": "throughput", "topology": "1 to 1", "bytes": size, "name": name, "rival": rival}
        return words | {"rate": spread, "lost": 0, "duplicated": 0, "torn": 0, "errors": [] if rate else ["why"]}

    rows = [row("comux ring", 4e6, rival=False), row("pyzmq ipc", 1e6), row("by hand", 1.25e6), row("broken", None)]
    rows += [row("comux ring", 1e6, rival=False, size=4096), row("pyzmq ipc", 1e6, size=4096)]
    assert ipc.goals.compare(rows) == [
        ("64 B, one writer", "3.2 ×", "by hand", "≥ 3 ×", "met"),
        ("4 kB", "1 ×", "pyzmq ipc", "≥ 1.6 ×", "missed"),
    ]
    page = ipc.tables.page(rows, {"zenoh": "ModuleNotFoundError: no"})
    assert "| 3.20 × |" in page and "failed: why" in page and "Absent: zenoh (ModuleNotFoundError: no)." in page


# -- short runs ----------------------------------------------------------------------------------------------------


def test_ours_moves_everything_whoever_dies(tmp_path: Path) -> None:
    short = ("--rounds", "1", "--share", "0.002", "--sizes", "64", "--topologies", "1 to 2, shared", "--no-latency")
    throughput, kill, made, again = bench(tmp_path, *short, "--only", "comux ring")["results"]
    assert (throughput["lost"], throughput["duplicated"], throughput["torn"]) == (0, 0, 0)
    assert throughput["errors"] == kill["errors"] == [] and throughput["rate"]["median"] > 0
    assert (kill["went_on"], kill["lost"]) == (True, 0)
    assert made["seconds"]["median"] > 0 and again["seconds"]["median"] > 0
    report = [sys.executable, str(BENCHMARKS / "report.py"), str(tmp_path)]
    page = subprocess.run(report, capture_output=True, text=True, check=True).stdout
    assert page.startswith("## The ring") and "| comux ring | went on | 0 |" in page


@pytest.mark.torture
def test_all_of_ours_move_everything(tmp_path: Path) -> None:
    found = bench(tmp_path, "--rounds", "1", "--share", "0.02", "--only", "ring", seconds=900)
    assert {row["topology"] for row in found["results"] if row["part"] == "throughput"} == {
        "1 to 1",
        "1 to 4",
        "1 to 2, shared",
    }
    for row in found["results"]:
        assert row["errors"] == [] and not row.get("lost") and not row.get("duplicated") and not row.get("torn")
        assert row.get("wrong", 0) == 0


@pytest.mark.torture
@pytest.mark.parametrize(
    "name",
    ["zmq", "semaphores", "polling", "events", "zenoh", "Pipe", "Queue", "faster-fifo", "mimocorb", "memcpy"],
)
def test_rivals_run_or_say_why_they_do_not(tmp_path: Path, name: str) -> None:
    """A rival whose adapter is wrong would be no rival: nothing is lost, double or torn where nobody is killed."""
    arguments = ("--rounds", "1", "--share", "0.02", "--sizes", "64,24000", "--only", name)
    found = bench(tmp_path, *arguments, seconds=600)
    if found["absent"]:
        pytest.skip(f"make bench installs it: {found['absent']}")
    assert found["results"]
    for row in found["results"]:
        assert row["errors"] == []
        if row["part"] == "throughput":
            assert (row["lost"], row["duplicated"], row["torn"]) == (0, 0, 0)
        if row["part"] == "latency":
            assert row["wrong"] == 0
