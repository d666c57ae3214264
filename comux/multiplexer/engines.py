"""The engines that one ``Comux`` uses: each opened once, whoever asks, and without holding up those who ask for
another.

**Problem.** Opening a cluster that does not answer takes seconds. Thirty sources of it must not each wait for that in
turn, and sources of another engine not at all.

**Algorithm.** Per address and options there is one *place*, with a lock of its own. Whoever holds it opens; the others
of that place wait for it and find the broker, or the error of that attempt, which is everybody's for a moment
(``_STALE``): an attempt made meanwhile would have ended the same.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from comux.errors import ClosedError, ComuxError
from comux.transport import Broker, connect

_STALE: Final = 0.5


class _Place:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.broker: Broker | None = None
        self.error: ComuxError | None = None
        self.failed_at = 0.0


class Engines:
    """See the module. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._places: dict[str, _Place] = {}
        self._closed = False

    def open(self, address: str, options: Mapping[str, Any]) -> Broker:
        """The engine at ``address``; waits while another thread opens it.

        Raises:
            ComuxError: it cannot be reached. ClosedError: after ``close``.
        """
        key = f"{address}\0{sorted(options.items(), key=lambda item: item[0])!r}"
        with self._lock:
            self._check()
            place = self._places.setdefault(key, _Place())
        with place.lock:
            if place.broker is not None:
                return place.broker
            error = place.error
            if error is not None and time.monotonic() - place.failed_at < _STALE:
                raise type(error)(str(error)) from error
            try:
                broker = connect(address, **options)
            except ComuxError as exc:
                place.error, place.failed_at = exc, time.monotonic()
                raise
            with self._lock:
                if not self._closed:
                    place.broker = broker
                    return broker
        broker.close()
        self._check()
        return broker

    def _check(self) -> None:
        if self._closed:
            raise ClosedError("this Comux is closed")

    def close(self) -> None:
        """Close every engine. Idempotent; does not wait for one that is being opened: that is closed by its opener."""
        with self._lock:
            self._closed = True
            places, self._places = list(self._places.values()), {}
        for place in places:
            if place.broker is not None:
                with contextlib.suppress(ComuxError):
                    place.broker.close()
