"""What a torture reports: counts, kills by failpoint, broken promises; as text, as JSON, as a table for the docs.

Reports of several runs add up (``Report.add``), which is how a campaign goes on where an earlier one stopped.
"""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comux import ring
from comux._version import __version__
from comux.testing.ring_judge import Evidence

NUMBERS = ("rounds", "records", "deliveries", "redeliveries", "takeovers", "reaped", "outside_kills")


@dataclass
class Report:
    """What happened; ``violations`` is empty where the ring kept every promise.

    Attributes:
        seed: Of the run; of the first where several were added up.
        kills: Per cell (``policy/kind``), deaths by failpoint.
        outside_kills: At random instants. takeovers: locks taken from the dead. reaped: handles cleaned up after them.
        redeliveries: Deliveries marked as repeated.
        lives: Per kind of ring, role and failpoint: how many lives had it armed, and how many ended there.
    """

    seed: int
    seconds: float = 0.0
    rounds: int = 0
    records: int = 0
    deliveries: int = 0
    redeliveries: int = 0
    takeovers: int = 0
    reaped: int = 0
    outside_kills: int = 0
    kills: dict[str, Counter[str]] = field(default_factory=lambda: _Cells())
    lives: dict[str, tuple[int, int]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    @property
    def by_failpoint(self) -> Counter[str]:
        """Kills of all cells together."""
        out: Counter[str] = Counter()
        for cell in self.kills.values():
            out.update(cell)
        return out

    def count(self, stats: ring.RingStats, evidence: Sequence[Evidence], violations: Iterable[str]) -> None:
        """Add one round."""
        starts = [words for one in evidence for what, words in one.lines if what == "start"]
        self.records += stats.published
        self.takeovers += stats.takeovers
        self.reaped += stats.reaped
        self.deliveries += len(starts)
        self.redeliveries += sum(words[3] == "1" for words in starts)
        self.violations += violations

    def add(self, other: Report) -> None:
        """Take another run's numbers in."""
        self.seconds += other.seconds
        for name in NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for cell, kills in other.kills.items():
            self.kills[cell].update(kills)
        for key, (lives, hits) in other.lives.items():
            had = self.lives.get(key, (0, 0))
            self.lives[key] = (had[0] + lives, had[1] + hits)
        self.violations += other.violations

    def __str__(self) -> str:
        kills = self.by_failpoint
        at = ", ".join(f"{name} {n}" for name, n in kills.most_common())
        return (
            f"seed {self.seed}: {self.seconds:.0f} s, {self.rounds} rounds, {self.records} records, "
            f"{self.deliveries} deliveries, {self.redeliveries} marked again; {kills.total()} kills at {len(kills)} "
            f"failpoints, {self.outside_kills} from outside, {self.takeovers} locks taken over, {self.reaped} handles "
            f"reaped; {len(self.violations)} violations"
            f"\n  {at}" + "".join(f"\n  VIOLATION {v}" for v in self.violations[:20])
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with the machine it ran on."""
        return {
            "seed": self.seed,
            "seconds": self.seconds,
            **{name: getattr(self, name) for name in NUMBERS},
            "kills": {cell: dict(sorted(kills.items())) for cell, kills in sorted(self.kills.items())},
            "lives": dict(sorted(self.lives.items())),
            "violations": self.violations,
            "machine": {
                "cores": os.cpu_count(),
                "processor": platform.machine(),
                "system": f"{platform.system()} {platform.release()}",
                "python": platform.python_version(),
                "comux": __version__,
            },
        }

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Report:
        """The report ``to_dict`` was made from."""
        report = cls(int(facts["seed"]), float(facts["seconds"]))
        for name in NUMBERS:
            setattr(report, name, int(facts[name]))
        for cell, kills in facts["kills"].items():
            report.kills[cell].update({str(name): int(n) for name, n in kills.items()})
        report.lives = {str(key): (int(lives), int(hits)) for key, (lives, hits) in facts["lives"].items()}
        report.violations = [str(v) for v in facts["violations"]]
        return report

    def write(self, path: Path) -> tuple[Path, Path]:
        """Write ``path`` with the suffixes ``.json`` and ``.txt``, whole or not at all; both paths."""
        path.parent.mkdir(parents=True, exist_ok=True)
        files = (path.with_suffix(".json"), path.with_suffix(".txt"))
        for file, text in zip(files, (json.dumps(self.to_dict(), indent=1), str(self)), strict=True):
            partial = file.with_name(file.name + ".partial")
            partial.write_text(text + "\n")
            partial.replace(file)
        return files


class _Cells(dict[str, Counter[str]]):
    def __missing__(self, cell: str) -> Counter[str]:
        return self.setdefault(cell, Counter())
