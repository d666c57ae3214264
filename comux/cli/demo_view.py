"""What the demo shows while it runs and at its end: tables where a terminal is, lines where none is.

Everything is drawn from ``Comux.status()`` and the demo's own counts; nothing here changes anything.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from comux.cli.tables import age_in_ms, books_table, causes, console, state

EVENTS_SHOWN: Final = 5
LIVE_EVERY: Final = 0.25  #: seconds
LINE_EVERY: Final = 1.0
CAMERAS_IN_A_LINE: Final = 6


@dataclass
class Counts:
    """What the demo itself counts.

    Attributes:
        batches: Taken.
        sent: Results handed to ``send``.
        refused: Results ``send`` did not take.
        misread: Pictures whose numbers in the pixels were not those of their camera.
        motion: Newest amount, by camera.
        results: The reader's newest report.
    """

    batches: int = 0
    sent: int = 0
    refused: int = 0
    misread: int = 0
    motion: dict[str, float] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Moment:
    """One instant of the demo.

    Attributes:
        seconds: Since pictures were to be seen.
        sources: ``Comux.status()["sources"]``.
        counts: The demo's own.
    """

    seconds: float
    sources: Mapping[str, Mapping[str, Any]]
    counts: Counts


class View(Protocol):
    """How the demo shows itself."""

    def say(self, line: str) -> None:
        """Something happened."""

    def show(self, moment: Moment) -> None:
        """How it stands."""

    def due(self) -> bool:
        """Whether ``show`` is wanted now."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class LiveView:
    """A table that stays in its place, with the newest events below. Main thread only, ``say`` from any."""

    def __init__(self, console: Console, title: str) -> None:
        self._title = title
        self._lines: deque[str] = deque(maxlen=EVENTS_SHOWN)
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._next = 0.0
        self._live.start()
        self._live.update(Text(f"{title}: starting the cameras …", style="bold"), refresh=True)

    def say(self, line: str) -> None:
        self._lines.append(f"{time.strftime('%H:%M:%S')}  {line}")

    def due(self) -> bool:
        return time.monotonic() >= self._next

    def show(self, moment: Moment) -> None:
        self._next = time.monotonic() + LIVE_EVERY
        lines = [Text(line, style="dim", no_wrap=True, overflow="ellipsis") for line in list(self._lines)]
        head = Text.assemble((self._title, "bold"), f"  {moment.seconds:5.1f} s  ", ("Ctrl-C ends it", "dim"))
        self._live.update(Group(head, live_table(moment), Text(totals_line(moment.counts)), *lines), refresh=True)

    def close(self) -> None:
        self._live.stop()


class LineView:
    """One line per second, and one per event."""

    def __init__(self, stream: TextIO, title: str) -> None:
        self._stream = stream
        self._next = 0.0
        self._print(f"{title}: starting the cameras")

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)

    def say(self, line: str) -> None:
        self._print(f"         {line}")

    def due(self) -> bool:
        return time.monotonic() >= self._next

    def show(self, moment: Moment) -> None:
        self._next = time.monotonic() + LINE_EVERY
        self._print(f"{moment.seconds:6.1f} s {status_line(moment)}")

    def close(self) -> None:
        self._stream.flush()


def open_view(*, json: bool, title: str) -> View:
    """The live table where stdout is a terminal, else lines; with ``json`` everything goes to stderr."""
    stream = sys.stderr if json else sys.stdout
    if stream.isatty():
        return LiveView(Console(file=stream), title)
    return LineView(stream, title)


def live_table(moment: Moment) -> Table:
    """One row per source."""
    table = Table(box=None, pad_edge=False, header_style="dim", expand=False)
    table.add_column("source", style="bold")
    table.add_column("state")
    for column in ("fps", "lag", "lag s", "age ms", "delivered", "motion"):
        table.add_column(column, justify="right")
    table.add_column("dropped", overflow="ellipsis", no_wrap=True)
    for cam_id, status in moment.sources.items():
        account = status["account"]
        table.add_row(
            cam_id,
            state(status["state"]),
            f"{status['fps']:.1f}",
            str(status["lag"]),
            f"{status['lag_seconds']:.2f}",
            age_in_ms(status),
            str(account["delivered"]),
            f"{moment.counts.motion.get(cam_id, 0.0):.2f}",
            causes(account["dropped"]),
        )
    return table


def status_line(moment: Moment) -> str:
    """Everything in one line, for logs."""
    shown = []
    for cam_id, status in list(moment.sources.items())[:CAMERAS_IN_A_LINE]:
        account = status["account"]
        parts = [f"{status['fps']:.0f} fps"] if status["state"] == "RUNNING" else [status["state"]]
        parts.append(f"{account['delivered']} delivered")
        dropped = sum(account["dropped"].values())
        shown.append(f"{cam_id} {', '.join([*parts, *([f'{dropped} dropped'] if dropped else [])])}")
    hidden = len(moment.sources) - len(shown)
    if hidden > 0:
        shown.append(f"{hidden} more")
    return "  ".join([" | ".join(shown), f"| {moment.counts.results.get('read_back', 0)} results read back"])


def totals_line(counts: Counts) -> str:
    """Batches and results in words."""
    results = counts.results
    line = (
        f"{counts.batches} batches, {counts.sent} results sent, {results.get('read_back', 0)} read back by another "
        f"process, {results.get('verified', 0)} verified"
    )
    for what, number in (
        ("missed", results.get("missed", 0)),
        ("refused", counts.refused),
        ("misread", counts.misread),
    ):
        if number:
            line += f", {number} {what}"
    return line


def print_summary(moment: Moment, books: Mapping[str, Mapping[str, Any]], sheet: str | None) -> None:
    """The balanced account of every source, on stdout."""
    stdout = console()
    stdout.print(f"after {moment.seconds:.1f} s", style="bold", highlight=False)
    stdout.print(books_table(books))
    stdout.print(totals_line(moment.counts), highlight=False)
    if moment.counts.results.get("trouble"):
        stdout.print(f"not verified: {moment.counts.results['trouble']}", style="yellow", highlight=False)
    if sheet is not None:
        stdout.print(f"contact sheet of the last batch: {sheet}", highlight=False, soft_wrap=True)
