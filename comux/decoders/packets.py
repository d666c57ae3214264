"""From a record to the bytes of a packet, and to the inspector of its codec."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from comux.records import Record

from .frames import Av1Inspector, MjpegInspector, Vp9Inspector
from .hevc import HevcInspector
from .interface import DecoderOptions
from .nal import H264Inspector
from .units import Begin, Inspector, Kind

_INSPECTORS: Final[dict[str, Callable[[], Inspector]]] = {
    "h264": H264Inspector,
    "hevc": HevcInspector,
    "mjpeg": MjpegInspector,
    "vp9": Vp9Inspector,
    "av1": Av1Inspector,
}
VIDEO_CODECS: Final = tuple(_INSPECTORS)


def inspector_for(codec: str) -> Inspector:
    """A fresh inspector for one stream of ``codec`` (one of ``VIDEO_CODECS``)."""
    return _INSPECTORS[codec]()


def packet_bytes(record: Record) -> bytes | None:
    """The value of a record as bytes: ``b""`` where it has none, ``None`` where it is no packet.

    A view is copied, and checked afterwards: a ring that overwrote it while it was copied leaves ``None``.
    """
    value = record.value
    if isinstance(value, bytes):
        return value
    if value is None:
        return b""
    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8:
            return None
        value = value.tobytes()
    elif isinstance(value, (memoryview, bytearray)):
        value = bytes(value)
    else:
        return None
    return value if record.valid() else None


def starts(inspector: Inspector, data: bytes | None) -> bool:
    """Whether a decoder can start at a packet, as far as that is seen in it."""
    packet = inspector.normalise(data) if data else None
    return bool(packet) and inspector.starts(packet or b"")


def begins_anew(options: DecoderOptions, data: bytes | None) -> bool:
    """Whether a packet of a codec of ``VIDEO_CODECS`` refers to nothing before it, parameter sets included, and neither
    does anything after it."""
    inspector = inspector_for(options.codec)
    if options.extradata:
        inspector.parameters(options.extradata)
    packet = inspector.normalise(data) if data else None
    if not packet:
        return False
    pictures = [unit for unit in inspector.inspect(packet) if unit.kind is not Kind.PARAMETERS]
    return bool(pictures) and pictures[0].begins is Begin.CLEAN and inspector.has_parameters()
