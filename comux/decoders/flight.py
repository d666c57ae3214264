"""What is on its way through a codec: records that were fed, and the access units in them. See ``video``."""

from __future__ import annotations

import av

from comux.records import Record


class Fed:
    """A record between ``feed`` and its outcome."""

    __slots__ = ("pictures", "record", "resolved", "subs")

    def __init__(self, record: Record) -> None:
        self.record = record
        self.resolved = False
        self.pictures = False  # holds at least one picture, so that its parameter sets alone resolve nothing
        self.subs = 0


class Piece:
    """An access unit inside the codec."""

    __slots__ = ("degraded", "fed", "frame", "sub", "token")

    def __init__(self, token: int, fed: Fed, sub: int, degraded: bool) -> None:
        self.token = token
        self.fed = fed
        self.sub = sub
        self.degraded = degraded
        self.frame: av.VideoFrame | None = None
