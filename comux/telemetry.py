"""Events and logging: the typed facts comux reports about itself.

Lives here: ``Event``, ``EventLog`` and the loggers' naming. May import: nothing of comux. Must never know: who listens.

Library rule: loggers are called ``comux.<room>``, nothing is printed, and no handler is installed but the one that does
nothing: without it Python itself prints warnings of a program that configured no logging.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

_log = logging.getLogger("comux.events")
logging.getLogger("comux").addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True)
class Event:
    """One fact.

    Attributes:
        kind: Dotted name, for example ``source.state``, ``source.jump``, ``control.command``.
        source: The ``cam_id`` concerned, or ``None``.
        message: One line for people.
        data: JSON-ready details.
        time_ns: Unix time in nanoseconds.
    """

    kind: str
    message: str
    source: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    level: int = logging.INFO
    time_ns: int = field(default_factory=time.time_ns)


class EventLog:
    """Keeps the newest events and hands each to the listeners; a listener that raises is logged, never fatal.

    Args:
        maxlen: How many events are kept.

    Thread-safe. Listeners run in the thread that emits and must not block.
    """

    def __init__(self, maxlen: int = 1000) -> None:
        self._events: deque[Event] = deque(maxlen=maxlen)
        self._listeners: tuple[Callable[[Event], None], ...] = ()
        self._lock = threading.Lock()
        self.emitted = 0

    def emit(
        self, kind: str, message: str, *, source: str | None = None, level: int = logging.INFO, **data: Any
    ) -> Event:
        """Record an event, log it, and hand it to the listeners."""
        event = Event(kind, message, source, data, level)
        with self._lock:
            self._events.append(event)
            self.emitted += 1
            listeners = self._listeners
        _log.log(level, "%s%s: %s", kind, f" [{source}]" if source is not None else "", message)
        for listener in listeners:
            try:
                listener(event)
            except Exception:  # noqa: BLE001 - a listener's failure is its own
                _log.exception("event listener %r failed on %s", listener, kind)
        return event

    def listen(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        """Call ``listener`` for every later event; returns a function that removes it."""
        with self._lock:
            self._listeners = (*self._listeners, listener)

        def remove() -> None:
            with self._lock:
                self._listeners = tuple(x for x in self._listeners if x is not listener)

        return remove

    def recent(self, kind: str | None = None, source: str | None = None) -> list[Event]:
        """The kept events, oldest first, optionally of one kind (a prefix up to a dot counts) or source."""
        with self._lock:
            events = list(self._events)
        return [
            e
            for e in events
            if (kind is None or e.kind == kind or e.kind.startswith(kind + "."))
            and (source is None or e.source == source)
        ]
