"""Torture: everybody dies all the time and no promise is broken; its judge sees every kind of broken promise; what was
counted is reported, and a campaign goes on until every step has had its deaths."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from comux import ring
from comux.testing.ring_campaign import CELLS, Campaign, absent, table
from comux.testing.ring_faults import Job, VictimServer
from comux.testing.ring_judge import Evidence, judge
from comux.testing.ring_report import Report
from comux.testing.ring_torture import KINDS, POLICIES, SHAPES, Aim, Torture

Lines = list[tuple[str, list[str]]]
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "torture.py"
SLICE = 5.0  #: seconds for each policy and kind: half a minute in all


def seed() -> int:
    return int(os.environ.get("COMUX_TORTURE_SEED") or random.SystemRandom().randrange(2**31))


IN_SHORT = {("wait", "pool"), ("drop_oldest", "variable"), ("drop_newest", "fixed")}


def slices() -> list[Any]:
    """Each policy and each kind of record once in ``make test``, every pair of them under ``make torture``."""
    return [
        pytest.param(policy, kind, marks=[] if (policy, kind) in IN_SHORT else [pytest.mark.torture])
        for policy in POLICIES
        for kind in KINDS
    ]


@pytest.mark.timeout(400)  # some seconds; rounds in which nobody died yet go on
@pytest.mark.parametrize(("policy", "kind"), slices())
def test_a_slice_of_torture(policy: str, kind: str, ring_dir: Path, victims: VictimServer, tmp_path: Path) -> None:
    """Half a minute in all, with one and with many writers."""
    shapes = [shape for shape in SHAPES if shape.cell == f"{policy}/{kind}"]
    assert {shape.writers for shape in shapes} == {"one", "many"}
    report = Torture(victims, ring_dir, seed()).run(SLICE, shapes)
    print(f"\n{report}")
    assert not report.violations, str(report)
    assert report.rounds == len(shapes)
    assert report.by_failpoint.total() > 0 and report.outside_kills > 0, "nobody died: this tested nothing"
    assert report.records > 100
    again, text = report.write(tmp_path / "report")
    assert Report.from_dict(json.loads(again.read_text())) == report
    assert f"seed {report.seed}" in text.read_text()


def test_what_a_test_that_was_cut_off_left_at_work_is_killed(ring_dir: Path, victims: VictimServer) -> None:
    """A time-out takes a test away in the middle of a question; its victims spun on beside all later tests."""
    spec = ring.RingSpec("t", slots=8, data_bytes=65536, writers="many")
    with ring.create(spec, directory=ring_dir) as topic:
        job = Job("produce", "t", str(ring_dir), str(ring_dir / "j"), "lock.held", action="stop")
        pid = victims.start(job)

        def cut_off(signum: int, frame: object) -> None:
            raise InterruptedError("cut off")

        before = signal.signal(signal.SIGUSR1, cut_off)
        try:
            with pytest.raises(InterruptedError):
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
                victims.wait(pid, 600)
        finally:
            signal.signal(signal.SIGUSR1, before)
        victims.clear()
        assert not Path(f"/proc/{pid}").exists()
        job = Job("produce", "t", str(ring_dir), str(ring_dir / "j"))
        assert victims.run(job).code == 0
        assert topic.check() == []


# -- aiming and campaigns ---------------------------------------------------------------------------------------------


def test_what_was_never_hit_is_drawn_most_and_what_cannot_be_hit_is_left_alone() -> None:
    shape, report = SHAPES[0], Report(1)
    report.kills[shape.cell].update(often=100)
    aim = Aim(["often", "seldom", "unreachable"], report, random.Random(1))
    for _ in range(50):
        aim.ended("role", shape, "often", True)
        aim.ended("role", shape, "seldom", True)
        aim.ended("role", shape, "unreachable", False)
    drawn = Counter(aim.draw("role", shape) for _ in range(1000))
    assert drawn["seldom"] > 900 and drawn["seldom"] > drawn["often"] > 0


@pytest.mark.torture
def test_a_campaign_goes_on_where_it_stopped(ring_dir: Path, tmp_path: Path) -> None:
    """The command, twice for a few seconds: the second one's report holds the first one's kills."""
    command = [sys.executable, str(SCRIPT), "--campaign", "--seconds", "2", "--report", str(tmp_path / "c")]
    reports = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "seed" in done.stdout and "deaths still wanting for 100 everywhere: {" in done.stdout
        reports.append(Report.from_dict(json.loads((tmp_path / "c.json").read_text())))
    first, second = reports
    assert second.seed == first.seed
    assert second.by_failpoint.total() > first.by_failpoint.total() > 0
    assert all(second.by_failpoint[name] >= n for name, n in first.by_failpoint.items())
    page = (tmp_path / "c.md").read_text()
    assert "| `claim.after_tail` |" in page and "| **promises broken** | **0** |" in page


def test_a_campaign_that_has_reached_its_goal_plays_no_more(ring_dir: Path, tmp_path: Path) -> None:
    going = Campaign(tmp_path / "c", ring_dir, 1, 2, lambda line: pytest.fail(f"played: {line}"))
    for cell in CELLS:
        going.report.kills[cell].update({name: 2 for name in going.failpoints if absent(cell, name) is None})
    assert not any(going.lacking().values())
    going.run(60.0)


def test_the_table_shows_every_step_and_says_why_one_is_missing() -> None:
    report = Report(1)
    report.kills["wait/fixed"]["claim.after_tail"] = 101
    shown = table(report, ["claim.after_tail", "commit.trim"])
    row = ["101" if cell == "wait/fixed" else "0" for cell in CELLS]
    trimmed = ["0" if cell.endswith("variable") else "–" for cell in CELLS]
    assert f"| `claim.after_tail` | {' | '.join(row)} |" in shown
    assert f"| `commit.trim` | {' | '.join(trimmed)} |" in shown and "never trimmed" in shown


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


def verdict(
    lines: dict[str, Lines], drained: dict[int, int] | None = None, deaths: int = 1, lost: int | None = None
) -> list[str]:
    evidence = [Evidence(name, "red" if name[0] == "r" else "", what) for name, what in lines.items()]
    return judge(evidence, {"red": drained or {}}, deaths, None if lost is None else {"red": lost})


def test_the_judge_finds_nothing_in_a_good_journal() -> None:
    assert verdict(journals()) == []


def lost(j: dict[str, Lines]) -> None:
    j["p"].append(("put", ["9", "72", "2"]))


def refused(j: dict[str, Lines]) -> None:
    j["p"].append(("refuse", ["9", "71"]))


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
    j["r1"][1:] = [("acking", ["31000000000", "1"]), ("acked", ["31000000001", "1"])]


BROKEN: list[tuple[Callable[[dict[str, Lines]], None], str]] = [
    (lost, "are lost"),
    (refused, "was refused"),
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


def test_the_judge_lets_a_ring_lose_what_it_counted_and_no_more() -> None:
    lines = journals()
    lost(lines)
    assert verdict(lines, lost=1) == []
    assert any("are missing, 0 were counted" in line for line in verdict(lines, lost=0))


def test_the_judge_takes_no_word_for_what_was_skipped_where_records_may_be_lost() -> None:
    lines = journals()
    lines["lossy"][1] = ("got", ["9", "1", "71", "0"])
    assert any("it was told of 0" in line for line in verdict(lines, lost=0))
    lines["lossy"][1] = ("got", ["9", "1", "71", "2"])
    assert any("it was told of 2" in line for line in verdict(lines, lost=0))
