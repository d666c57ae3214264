"""``comux bridge``: topics copied from one engine to another in the foreground, with a line for each change of state.

Table: changes on stderr, the account of every topic on stdout at the end. JSON: one object a line on stdout, a topic's
status when its state changes and at most once a second while its figures do, at the end each topic's once more with
``"final": true``.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Final, cast

from comux.errors import ConfigError
from comux.lifecycle import StopEvent, stop_on_signals
from comux.recording import Bridge, LinkStatus
from comux.telemetry import Event
from comux.transport import Start, parse_address

FORMATS: Final = ("table", "json")
STARTS: Final = ("beginning", "end", "keyframe")
_EVERY: Final = 1.0


def run_bridge(
    source: str,
    destination: str,
    *,
    topics: Sequence[str],
    prefix: str,
    start: str,
    group: str | None,
    lossy: bool,
    once: bool,
    drop_too_large: bool,
    format: str,
) -> int:
    """Copy until a signal asks to stop; with ``once`` until everything is copied.

    Args:
        source, destination, topics, prefix, group, lossy, once, drop_too_large: As ``comux.recording.Bridge``.
        start: ``beginning``, ``end`` or ``keyframe``.
        format: ``table`` or ``json``.

    Returns:
        0; 1 where a topic failed for good (``once``); 130 after Ctrl-C.

    Raises:
        ConfigError: an argument is wrong.
    """
    for what, value, words in (("--format", format, FORMATS), ("--from", start, STARTS)):
        if value not in words:
            raise ConfigError(f"{what} {value!r} is none of {', '.join(words)}")
    for address in (source, destination):
        if parse_address(address).scheme == "memory":
            raise ConfigError(f"{address!r} lives inside one process, and this one is new: use shm:// or kafka://")
    bridge = Bridge(
        source,
        destination,
        topics=topics,
        prefix=prefix,
        start=cast(Start, start),
        group=group,
        lossy=lossy,
        once=once,
        drop_too_large=drop_too_large,
    )
    with stop_on_signals() as stop:
        printer = _Json(bridge) if format == "json" else _Lines(bridge)
        whole = _run(bridge, printer, stop)
    printer.close()
    return 130 if stop.signal == signal.SIGINT else 0 if whole else 1


def _run(bridge: Bridge, printer: _Lines, stop: StopEvent) -> bool:
    """Print the figures beside the bridge, in a thread that ends with it."""
    over = threading.Event()

    def follow() -> None:
        while not over.wait(_EVERY):
            printer.figures()

    follower = threading.Thread(target=follow, name="comux-bridge-figures")
    follower.start()
    try:
        return bridge.run(stop)
    finally:
        over.set()
        follower.join()


class _Lines:
    """Changes as lines on stderr, the account as a table on stdout."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._lock = threading.Lock()  # links tell of their changes in their own threads
        bridge.events.listen(self.changed)

    def changed(self, event: Event) -> None:
        """A topic, or the bridge itself, has something to say."""
        where = event.source or "bridge"
        if event.source is not None and event.data["destination"] != event.source:
            where += f" -> {event.data['destination']}"
        with self._lock:
            print(f"{where}: {event.message}", file=sys.stderr, flush=True)

    def figures(self) -> None:
        """Once a second."""

    def close(self) -> None:
        """The accounts, at the end."""
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("topic", overflow="fold")
        table.add_column("copied to", overflow="fold")
        for column in ("received", "delivered", "dropped", "held", "marked"):
            table.add_column(column, justify="right")
        table.add_column("state", overflow="fold")
        statuses = self._bridge.status()
        for status in statuses:
            books = status.account
            dropped = ", ".join(f"{count} {cause}" for cause, count in books.dropped.items())
            figures = (books.received, books.delivered, dropped or 0, books.held_total, status.marked)
            state = f"{status.state}: {status.reason}" if status.reason else status.state
            table.add_row(status.topic, status.destination, *map(str, figures), state)
        if statuses:
            Console().print(table)


class _Json(_Lines):
    """Everything as objects on stdout."""

    def __init__(self, bridge: Bridge) -> None:
        self._last: dict[str, LinkStatus] = {}
        super().__init__(bridge)

    def changed(self, event: Event) -> None:
        if event.source is None:
            self._print({"kind": event.kind, "message": event.message})
        else:
            self._print({"kind": event.kind, **event.data})

    def figures(self) -> None:
        for status in self._bridge.status():
            if self._last.get(status.topic) != status:
                self._last[status.topic] = status
                self._print({"kind": "bridge.figures", **status.as_dict()})

    def close(self) -> None:
        for status in self._bridge.status():
            self._print({"kind": "bridge.figures", **status.as_dict(), "final": True})

    def _print(self, fields: dict[str, Any]) -> None:
        with self._lock:
            print(json.dumps({"time": round(time.time(), 3), **fields}), flush=True)
