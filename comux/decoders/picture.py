"""A decoded picture that keeps its codec frame until somebody wants pixels."""

from __future__ import annotations

import time
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from comux.records import Record

from .convert import Converter
from .interface import Identity, Picture


def value_bytes(record: Record) -> int:
    """Size of a record's value in bytes."""
    value = record.value
    if value is None:
        return 0
    return int(value.nbytes) if isinstance(value, (memoryview, np.ndarray)) else len(value)


class VideoPicture(Picture):
    """A picture from a codec. May be handed to another thread; only one thread at a time may use it.

    Attributes:
        frame: The codec's frame. Read-only: the codec may still refer to its pixels.
    """

    __slots__ = ("_converter", "decoded_ns", "degraded", "frame", "height", "identity", "record", "width")

    def __init__(
        self, frame: av.VideoFrame, converter: Converter, record: Record, identity: Identity, degraded: bool
    ) -> None:
        self.frame = frame
        self.record = record
        self.identity = identity
        self.degraded = degraded
        self.width = frame.width
        self.height = frame.height
        self.decoded_ns = time.monotonic_ns()
        self._converter = converter

    def to_array(self, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        return self._converter.convert(self.frame, out)

    def array_spec(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        return self._converter.spec

    @property
    def nbytes(self) -> int:
        return sum(plane.buffer_size for plane in self.frame.planes) + value_bytes(self.record)

    def __repr__(self) -> str:
        return f"<VideoPicture {self.identity} {self.width}x{self.height}{' degraded' if self.degraded else ''}>"
