"""What goes wrong with a source's packets: told once for each kind of trouble, remembered until a picture comes."""

from __future__ import annotations

import logging

from comux.decoders.interface import Outcome
from comux.options import CamId
from comux.telemetry import EventLog


class Trouble:
    """Of one source; used by its thread, read from any.

    Args:
        cam_id: Of the source.
        events: Where it is told: ``source.damage``.

    Attributes:
        cause: Newest drop cause since the last picture; ``None``: there was none.
        detail: What the decoder said of it.
    """

    def __init__(self, cam_id: CamId, events: EventLog) -> None:
        self.cause: str | None = None
        self.detail = ""
        self._source = str(cam_id)
        self._events = events

    def see(self, outcome: Outcome) -> None:
        """A packet was dropped; a cause that is not the one before is an event."""
        cause = outcome.cause or "no_picture"
        if cause != self.cause and cause not in ("lag", "jumped"):
            self._events.emit(
                "source.damage",
                f"offset {outcome.record.offset}: {cause}{': ' if outcome.detail else ''}{outcome.detail}",
                source=self._source,
                level=logging.DEBUG if cause == "resync" else logging.WARNING,
                offset=outcome.record.offset,
                cause=cause,
            )
        self.cause, self.detail = cause, outcome.detail
