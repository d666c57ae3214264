"""Cutting a bytestream into access units, each with the record in which it *starts*.

A feed that is no packet feed puts bytes into records as they come: several pictures in one, or a part of one. FFmpeg's
parser finds the seams. It gives an access unit out only when it has seen the next one begin, so the record that was fed
last is the wrong one (the first comux took it: every frame carried its neighbour's index). Here both sides are counted
in bytes: the parser gives out exactly what went in, in order, so the start of an access unit is the number of bytes it
gave out before, and that position lies in one record.

A record is *passed* once the parser has given out all of its bytes: if no picture started in it, none ever will.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import av

PARSED: Final = ("h264", "hevc", "mjpeg")  #: codecs whose streams can be cut without further help

T = TypeVar("T")


@dataclass(slots=True)
class _Span(Generic[T]):
    end: int
    owner: T


class Framer(Generic[T]):
    """Cuts one stream. ``T`` is what stands for a record."""

    def __init__(self, codec: str) -> None:
        self._codec = codec
        self._spans: deque[_Span[T]] = deque()
        self.reset()

    def reset(self) -> list[T]:
        """Forget the bytes of an unfinished access unit; returns the records that were not passed."""
        self._parser = av.CodecContext.create(self._codec, "r")
        left = [span.owner for span in self._spans]
        self._spans.clear()
        self._fed = self._given = 0
        return left

    def feed(self, data: bytes, owner: T) -> tuple[list[tuple[bytes, T]], list[T]]:
        """Take the next record's bytes (not empty).

        Returns:
            The access units that are complete now with the record each starts in, and the records now passed.
        """
        self._fed += len(data)
        self._spans.append(_Span(self._fed, owner))
        return self._locate(self._parser.parse(data))

    def finish(self) -> tuple[list[tuple[bytes, T]], list[T]]:
        """The stream ended: the last access unit comes out and every record is passed."""
        units, passed = self._locate(self._parser.parse(None))
        return units, passed + self.reset()

    def _locate(self, packets: list[av.Packet[av.VideoStream]]) -> tuple[list[tuple[bytes, T]], list[T]]:
        units: list[tuple[bytes, T]] = []
        passed: list[T] = []
        for packet in packets:
            while self._spans and self._spans[0].end <= self._given:
                passed.append(self._spans.popleft().owner)
            if not packet.size or not self._spans:
                continue
            units.append((bytes(packet), self._spans[0].owner))
            self._given += packet.size
        while self._spans and self._spans[0].end <= self._given:
            passed.append(self._spans.popleft().owner)
        return units, passed
