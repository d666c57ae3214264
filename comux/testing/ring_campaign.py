"""A campaign: torture until every named step has had its share of deaths, on every kind of ring.

"At least 100 kills for every failpoint, policy and kind" is many times what one torture reaches, so a campaign plays
short tortures (tasks), as many at a time as the machine has cores for, always of the cell (policy and kind) that is
furthest from its goal, and adds their reports up. The sum is written after each task: a campaign that is stopped, or
whose seconds are over, goes on from its report when it is started again. It ends at the first violation.

Steps that a kind of ring does not have are listed in ``absent``, with the reason; everything else must reach the goal.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from comux.testing.ring_faults import VictimServer
from comux.testing.ring_report import Report
from comux.testing.ring_torture import KINDS, POLICIES, SHAPES, Torture

CELLS = tuple(f"{policy}/{kind}" for policy in POLICIES for kind in KINDS)
TASK_SECONDS = 12.0
ELSEWHERE = ("bury.", "take.spent", "claim_stale.", "pause.", "stale.", "reset.")
COMPANIONS = {"reap.claim": "put.filling"}  #: passed only where somebody else died at the other step just before
PASSES = (0.0, 0.0, 3.0)  #: see Torture: it is the number of deaths that counts here


def absent(cell: str, failpoint: str) -> str | None:
    """Why rings of this cell never pass this step; ``None`` where they do."""
    policy, kind = cell.split("/")
    if failpoint.startswith(ELSEWHERE):
        return "no role of the torture does this; the crash table kills here"
    if failpoint.startswith(("pool.", "pin.")) and kind != "pool":
        return "only pools have it"
    if failpoint == "ack.run_words" and kind != "fixed":
        return "only there a batch is acknowledged as one run"
    if failpoint.startswith("drop.") and policy != "drop_oldest":
        return "only this policy drops what groups have not finished"
    if failpoint == "commit.trim" and kind != "variable":
        return "fixed slots are never trimmed"
    if failpoint == "wait.space_registered" and policy == "drop_newest":
        return "a full ring refuses, nobody waits for room"
    return None


def lacking(kills: Mapping[str, Counter[str]], failpoints: Sequence[str], goal: int) -> dict[str, int]:
    """Kills still wanting, per cell."""
    return {
        cell: sum(max(0, goal - kills.get(cell, Counter())[f]) for f in failpoints if absent(cell, f) is None)
        for cell in CELLS
    }


def play(task: Mapping[str, Any]) -> Report:
    """One task, in a process of its own (this module run with the task as its input)."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "comux.testing.ring_campaign"],
        input=json.dumps(task).encode(),
        stdout=subprocess.PIPE,
        check=True,
    )
    return Report.from_dict(json.loads(done.stdout))


def _play_here(task: Mapping[str, Any]) -> Report:
    """A torture of one cell that aims at what has had the fewest kills."""
    cell, seed, had = task["cell"], task["seed"], task["known"]["kills"][task["cell"]]
    folder = Path(tempfile.mkdtemp(prefix=f"task-{seed}-", dir=task["place"]))
    shapes = [shape for shape in SHAPES if shape.cell == cell]
    with VictimServer() as server:
        torture = Torture(server, folder, seed, list(had), PASSES)
        torture.report.add(Report.from_dict(task["known"]))
        report = torture.run(task["seconds"], shapes, round_seconds=task["seconds"] / len(shapes))
    report.kills[cell].subtract(had)
    report.kills[cell] = +report.kills[cell]
    for key, (lives, hits) in task["known"]["lives"].items():
        report.lives[key] = (report.lives[key][0] - lives, report.lives[key][1] - hits)
    if not report.violations:
        shutil.rmtree(folder)
    return report


class Campaign:
    """Tasks in parallel until the goal or the time is reached.

    Args:
        path: of the report (see ``Report.write``); read first where it exists.
        place: folder for topics and journals, in shared memory.
        seed: of the first task; the others count on from it.
        goal: kills wanted for every failpoint of every cell that has it.
        tell: called with one line after each task.
        jobs: tasks at a time; of a task's dozen processes most sleep or are being started. Default: one per core.
    """

    def __init__(
        self, path: Path, place: Path, seed: int, goal: int, tell: Callable[[str], None], jobs: int | None = None
    ) -> None:
        self.path, self.place, self.goal, self.tell = path, place, goal, tell
        state = path.with_suffix(".json")
        self.report = Report.from_dict(json.loads(state.read_text())) if state.exists() else Report(seed)
        self.seed = self.report.seed + self.report.rounds
        self.jobs = jobs or os.cpu_count() or 1
        with VictimServer() as server:
            self.failpoints = server.failpoints()

    def run(self, seconds: float) -> Report:
        """Play for at most about ``seconds``; returns what was reached, earlier runs included."""
        deadline = time.monotonic() + seconds
        running: dict[Future[Report], str] = {}
        with ThreadPoolExecutor(self.jobs, "comux-campaign") as pool:
            while not self.report.violations:
                left = deadline - time.monotonic()
                while len(running) < self.jobs and left > 1 and (cell := self._next_cell(list(running.values()))):
                    running[pool.submit(play, self._task(cell, min(TASK_SECONDS, left)))] = cell
                if not running:
                    break
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    del running[future]
                    self._take_in(future.result())
        for future in running:  # of a campaign that ends with a violation
            self._take_in(future.result())
        return self.report

    def lacking(self) -> dict[str, int]:
        """Kills still wanting, per cell."""
        return lacking(self.report.kills, self.failpoints, self.goal)

    def _next_cell(self, playing: Sequence[str]) -> str | None:
        wanting = {cell: n for cell, n in self.lacking().items() if n}
        fresh = {cell: n for cell, n in wanting.items() if cell not in playing} or wanting
        return max(fresh, key=fresh.__getitem__, default=None)

    def _task(self, cell: str, seconds: float) -> dict[str, Any]:
        self.seed += 1
        kills = self.report.kills[cell]
        names = [f for f in self.failpoints if absent(cell, f) is None and kills[f] < self.goal]
        names += {COMPANIONS[f] for f in names if f in COMPANIONS} - set(names)
        random.Random(self.seed).shuffle(names)
        known = Report(self.seed)
        known.kills[cell].update({name: kills[name] for name in names})
        known.lives = {key: counts for key, counts in self.report.lives.items() if key.startswith(f"{cell} ")}
        facts = known.to_dict()
        facts["kills"] = {cell: {name: kills[name] for name in names}}  # in this order, with the zeros
        return {"cell": cell, "seed": self.seed, "seconds": seconds, "known": facts, "place": str(self.place)}

    def _take_in(self, report: Report) -> None:
        self.report.add(report)
        self.report.write(self.path)
        left = self.lacking()
        kills = self.report.by_failpoint.total()
        self.tell(f"{self.report.seconds:.0f} s: {kills} kills, {sum(left.values())} wanting, violations: "
                  f"{len(self.report.violations)}")  # fmt: skip


def table(report: Report, failpoints: Sequence[str]) -> str:
    """The kills as a Markdown table: a row for each failpoint, a column for each cell."""
    columns = [cell.replace("/", ", ") for cell in CELLS]
    lines = ["| step | " + " | ".join(columns) + " |", "|---|" + "---|" * len(CELLS)]
    reasons: dict[str, str] = {}
    for name in sorted(failpoints):
        cells = []
        for cell in CELLS:
            reason = absent(cell, name)
            if reason:
                reasons[name] = reason
            cells.append("–" if reason else str(report.kills.get(cell, Counter())[name]))
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    notes = [f"`{name}` –: {reason}." for name, reason in reasons.items()]
    return "\n".join([*lines, "", *notes])


def page(report: Report, failpoints: Sequence[str], goal: int) -> str:
    """The table with what it was made by, on what machine, and what it adds up to: a page of the docs."""
    machine = report.to_dict()["machine"]
    counts = [report.kills[cell][f] for cell in CELLS for f in failpoints if absent(cell, f) is None]
    enough = sum(n >= goal for n in counts)
    return f"""# Deaths at every step

Kills by SIGKILL at each named step of the ring's C code, on each overflow policy and kind of record, with one and with
many writers by turns, while three producers, five members of two groups, a lossy reader, an observer and a visitor work
on the ring ([how to prove the ring](../how-to/prove-the-ring.md)). Made by

```
make torture CAMPAIGN=1 SECONDS=3600 PAGE=docs/explanation/ring-campaign.md
```

with seed {report.seed} and those after it, in {report.seconds / 60:.0f} minutes of torture on {machine["cores"]} cores
({machine["processor"]}, {machine["system"]}), Python {machine["python"]}, comux {machine["comux"]}. Of the
{len(counts)} steps and kinds below, {enough} have had {goal} deaths or more.

| | |
|---|---|
| kills at the steps below | {report.by_failpoint.total()} |
| kills from outside, at random instants | {report.outside_kills} |
| locks taken over from the dead | {report.takeovers} |
| handles of the dead cleaned up | {report.reaped} |
| records published | {report.records} |
| deliveries, of these marked as repeated | {report.deliveries}, {report.redeliveries} |
| **promises broken** | **{len(report.violations)}** |

{table(report, failpoints)}
"""


if __name__ == "__main__":
    json.dump(_play_here(json.load(sys.stdin)).to_dict(), sys.stdout)
