"""Packets of sources that were deleted while a loop still works with their pictures.

A source may go between ``get_batch`` and ``send``: by a command, or because a fleet gave its camera to another process.
What the loop holds then is as good as before, so its packets stay sendable as long as those of others do at least: for
the batch that was handed out and the one before it. A packet's results go where the source's went.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, Protocol

from comux.errors import NotRetainedError, UnknownSourceError
from comux.multiplexer.retention import Retention
from comux.options import CamId, SourceOptions
from comux.records import Record

_BATCHES: Final = 3  # the one before, the one in hand, and one that was being made when the source went
_MOST: Final = 64  # sources, where no batch is taken any more


class Retaining(Protocol):
    """A source, as this module sees it."""

    cam_id: CamId
    retained: Retention


class Departed:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._batches = 0
        self._gone: dict[str, tuple[SourceOptions, Retention, int]] = {}

    def add(self, spec: SourceOptions, source: Retaining) -> None:
        """A source has been deleted."""
        with self._lock:
            self._gone.pop(str(spec.cam_id), None)
            self._gone[str(spec.cam_id)] = (spec, source.retained, self._batches)
            while len(self._gone) > _MOST:
                del self._gone[next(iter(self._gone))]

    def batch(self) -> None:
        """A batch was handed out."""
        with self._lock:
            self._batches += 1
            if self._gone:
                least = self._batches - _BATCHES
                self._gone = {key: kept for key, kept in self._gone.items() if kept[2] > least}

    def spec(self, cam_id: CamId) -> SourceOptions | None:
        """What was said of a source that is remembered."""
        with self._lock:
            kept = self._gone.get(str(cam_id))
        return None if kept is None else kept[0]

    def packet(self, cam_id: CamId, index: int, find: Callable[[CamId], Retaining]) -> tuple[CamId, Record]:
        """The id and the packet of a picture, of a source that is there or was a moment ago.

        Args:
            cam_id, index: Of the picture.
            find: Gives a source that is there.

        Raises:
            UnknownSourceError: there is no such source. NotRetainedError: its packet is no longer held.
        """
        try:
            source = find(cam_id)
            return source.cam_id, source.retained.get(index)
        except (UnknownSourceError, NotRetainedError):
            with self._lock:
                kept = self._gone.get(str(cam_id))
            if kept is None:
                raise
        return kept[0].cam_id, kept[1].get(index)
