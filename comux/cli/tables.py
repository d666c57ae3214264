"""Tables as the commands print them: on a terminal as wide as it is, elsewhere of one width, without colour."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from comux.errors import ConfigError

STATE_STYLES: Final = {
    "RUNNING": "green",
    "STARTING": "blue",
    "STALLED": "yellow",
    "RECONNECTING": "yellow",
    "RESYNCING": "yellow",
    "FAILED": "bold red",
}
PLAIN_WIDTH: Final = 110  #: of tables where no terminal says how wide it is
FORMATS: Final = ("table", "json")


def check_format(format: str) -> bool:
    """Whether JSON is wanted.

    Raises:
        ConfigError: the format is neither ``table`` nor ``json``.
    """
    if format not in FORMATS:
        raise ConfigError(f"format {format!r} is none of {', '.join(FORMATS)}")
    return format == "json"


def console() -> Console:
    """Stdout."""
    return Console(file=sys.stdout) if sys.stdout.isatty() else Console(file=sys.stdout, width=PLAIN_WIDTH)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def plain_table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """A table without lines; the first column is bold, those in ``right`` are numbers."""
    table = Table(box=None, pad_edge=False, header_style="dim", expand=False)
    for number, column in enumerate(columns):
        side: Any = "right" if column in right else "left"
        table.add_column(column, justify=side, style="" if number else "bold", overflow="fold", no_wrap=not number)
    return table


def books_table(books: Mapping[str, Mapping[str, Any]]) -> Table:
    """The balanced account of every source."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("source", style="bold", no_wrap=True)
    for column in ("received", "= delivered", "+ absorbed", "+ held"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("+ dropped, by cause", overflow="fold")
    table.add_column("", no_wrap=True)
    for cam_id, book in books.items():
        balanced = book["balanced"]
        dropped = sum(book["dropped"].values())
        table.add_row(
            cam_id,
            str(book["received"]),
            str(book["delivered"]),
            str(book["absorbed"]),
            str(book["held"]),
            f"{dropped}: {causes(book['dropped'])}" if dropped else "0",
            Text("balanced ✓" if balanced else "NOT BALANCED", style="green" if balanced else "bold red"),
        )
    return table


def state(word: str) -> Text:
    """A source's state in its colour."""
    return Text(word, style=STATE_STYLES.get(word, ""))


def causes(dropped: Mapping[str, int]) -> str:
    """``resync 12, superseded 3``, the most frequent first."""
    return ", ".join(f"{cause} {n}" for cause, n in sorted(dropped.items(), key=lambda pair: -pair[1]) if n)


def age_in_ms(status: Mapping[str, Any]) -> str:
    """A source's age in whole milliseconds, after ``~`` where it is an estimate."""
    return ("~" if status["age_estimated"] else "") + milliseconds(status["age"])


def milliseconds(seconds: float | None) -> str:
    """Whole milliseconds; ``-`` where unknown."""
    return "-" if seconds is None else f"{seconds * 1e3:.0f}"
