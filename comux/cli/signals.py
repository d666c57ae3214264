"""Ctrl-C and SIGTERM end what a command waits in."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from comux.lifecycle import StopEvent, stop_on_signals


@contextlib.contextmanager
def ended_by_signals(end: Callable[[], Any]) -> Iterator[StopEvent]:
    """``stop_on_signals``, for what waits in a call: ``end`` is called at the first signal, in a thread of its own,
    because a signal handler may interrupt the holder of a lock that ``end`` takes.

    Yields:
        The event that a signal sets.
    """
    with stop_on_signals() as stop:

        def wait() -> None:
            stop.wait()
            if stop.signal is not None:
                end()

        thread = threading.Thread(target=wait, name="comux-signals", daemon=True)
        thread.start()
        try:
            yield stop
        finally:
            stop.set()
            thread.join()
