"""Torture: everybody dies all the time and no promise is broken; and its judge sees every kind of broken promise."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from comux.testing.ring_faults import VictimServer
from comux.testing.ring_torture import Evidence, Torture, judge

Lines = list[tuple[str, list[str]]]


def seed() -> int:
    return int(os.environ.get("COMUX_TORTURE_SEED") or random.SystemRandom().randrange(2**31))


def test_a_slice_of_torture(ring_dir: Path, victims: VictimServer) -> None:
    report = Torture(victims, ring_dir, seed()).run(9.0)
    print(f"\n{report}")
    assert not report.violations, str(report)
    assert sum(report.kills.values()) > 3 and report.outside_kills > 0, "nobody died: this tested nothing"
    assert report.records > 500 and report.redeliveries > 0


@pytest.mark.torture
def test_torture(ring_dir: Path, victims: VictimServer) -> None:
    report = Torture(victims, ring_dir, seed()).run(float(os.environ.get("COMUX_TORTURE_SECONDS") or 60))
    print(f"\n{report}")
    assert not report.violations, str(report)
    assert report.takeovers > 0


# -- the test of the test ---------------------------------------------------------------------------------------------


def journals() -> dict[str, Lines]:
    """Two records, one member of each group; r0 died holding record 1, r1 got it, marked."""
    return {
        "p": [("try", ["1", "70"]), ("put", ["2", "70", "0"]), ("try", ["3", "71"]), ("put", ["4", "71", "1"])],
        "r0": [
            ("start", ["5", "0", "70", "0"]),
            ("acking", ["6", "0"]),
            ("acked", ["7", "0"]),
            ("start", ["8", "1", "71", "0"]),
        ],
        "r1": [("start", ["20", "1", "71", "1"]), ("acking", ["21", "1"]), ("acked", ["22", "1"])],
        "lossy": [("opened", ["1", "0"]), ("got", ["9", "1", "71", "1"])],
    }


def verdict(lines: dict[str, Lines], drained: dict[int, int] | None = None, deaths: int = 1) -> list[str]:
    evidence = [Evidence(name, "red" if name[0] == "r" else "", what) for name, what in lines.items()]
    return judge(evidence, {"red": drained or {}}, deaths)


def test_the_judge_finds_nothing_in_a_good_journal() -> None:
    assert verdict(journals()) == []


def lost(j: dict[str, Lines]) -> None:
    j["p"].append(("put", ["9", "72", "2"]))


def abandoned(j: dict[str, Lines]) -> None:
    j["r1"].clear()


def two_holders(j: dict[str, Lines]) -> None:
    j["r0"].append(("acking", ["30", "1"]))


def after_ack(j: dict[str, Lines]) -> None:
    j["r1"] += [("start", ["30", "0", "70", "1"]), ("acking", ["31", "0"]), ("acked", ["32", "0"])]


def unmarked(j: dict[str, Lines]) -> None:
    j["r1"][0] = ("start", ["20", "1", "71", "0"])


def torn(j: dict[str, Lines]) -> None:
    j["r1"].append(("torn", ["40", "1", "changed while it was held"]))


def other_value(j: dict[str, Lines]) -> None:
    j["r0"][0] = ("start", ["5", "0", "99", "0"])


def one_offset_twice(j: dict[str, Lines]) -> None:
    j["p"].append(("put", ["9", "72", "1"]))


def untold(j: dict[str, Lines]) -> None:
    j["lossy"][1] = ("got", ["9", "1", "71", "0"])


def stall(j: dict[str, Lines]) -> None:
    j["r1"][1:] = [("acking", ["9000000000", "1"]), ("acked", ["9000000001", "1"])]


BROKEN: list[tuple[Callable[[dict[str, Lines]], None], str]] = [
    (lost, "are lost"),
    (abandoned, "never again"),
    (two_holders, "two held it at once"),
    (after_ack, "after an acknowledgement"),
    (unmarked, "without the mark"),
    (torn, "changed while"),
    (other_value, "holds 99"),
    (one_offset_twice, "two puts"),
    (untold, "it was told of 0"),
    (stall, "stood still"),
]


@pytest.mark.parametrize(("how", "words"), BROKEN, ids=lambda x: getattr(x, "__name__", ""))
def test_the_judge_sees_a_broken_promise(how: Callable[[dict[str, Lines]], None], words: str) -> None:
    lines = journals()
    how(lines)
    assert any(words in line for line in verdict(lines))


def test_the_judge_sees_more_repetitions_than_deaths_explain() -> None:
    assert any("came again" in line for line in verdict(journals(), deaths=0))


def test_the_judge_sees_a_record_drained_after_its_ack() -> None:
    assert any("drained after" in line for line in verdict(journals(), drained={0: 70}))
