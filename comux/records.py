"""The nouns: what a record is, what its header names mean.

Lives here: ``Record`` and the reserved header names. May import: the standard library and numpy.
Must never know: engines, codecs, sources.
"""

from __future__ import annotations

import functools
import hashlib
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

Header = tuple[str, bytes | None]
Headers = tuple[Header, ...]

# Record flags. Bits 0-7 belong to comux, 8-15 are the user's.
KEYFRAME: Final = 0x01  #: a decoder can start at this record

# Reserved header names. Values are ASCII unless said otherwise.
HEADER_SEQUENCE: Final = "comux-seq"  #: decimal; rises by 1 per packet of one life of a feed, starts at 0
HEADER_FEED: Final = "comux-feed"  #: 8 hex digits, drawn for each life of a feed: whose numbers ``comux-seq`` are
HEADER_CRC32C: Final = "comux-crc32c"  #: 8 hex digits; CRC-32C (Castagnoli, RFC 3720) of the value
HEADER_CLOCK: Final = "comux-clock"  #: 12 hex digits; whose clock the timestamp is by, see ``clock_owner``
HEADER_CODEC: Final = "comux-codec"  #: codec name of the value: h264, hevc, mjpeg, vp9, av1, raw, frames
HEADER_DTYPE: Final = "comux-dtype"  #: numpy dtype string of a raw array (``numpy.dtype.str``, or JSON for structured)
HEADER_SHAPE: Final = "comux-shape"  #: JSON list of the array's shape
HEADER_TYPES: Final = "comux-types"  #: JSON object name -> type tag; which headers are results and how they decode
HEADER_SOURCE: Final = "comux-source"  #: JSON ``[topic, epoch, offset]`` of the record this one re-emits
HEADER_BRIDGE: Final = "comux-bridge"  #: JSON ``[topic, epoch, offset, engine]``: whose copy this is; one per bridge
HEADER_DUPLICATE: Final = "comux-duplicate"  #: ``possible``: a bridge may have written this copy before
HEADER_DEAD_SOURCE: Final = "comux-dead-source"  #: JSON ``[topic, epoch, offset]``: the record this dead letter was
HEADER_DEAD_GROUP: Final = "comux-dead-group"  #: UTF-8; the group that could not finish it
HEADER_DEAD_DELIVERIES: Final = "comux-dead-deliveries"  #: decimal; how often it was handed to a member
HEADER_DEAD_REASON: Final = "comux-dead-reason"  #: words
RESERVED_HEADERS: Final = frozenset(
    {
        HEADER_SEQUENCE,
        HEADER_FEED,
        HEADER_CRC32C,
        HEADER_CLOCK,
        HEADER_CODEC,
        HEADER_DTYPE,
        HEADER_SHAPE,
        HEADER_TYPES,
        HEADER_SOURCE,
        HEADER_BRIDGE,
        HEADER_DUPLICATE,
        HEADER_DEAD_SOURCE,
        HEADER_DEAD_GROUP,
        HEADER_DEAD_DELIVERIES,
        HEADER_DEAD_REASON,
    }
)


@functools.cache
def clock_owner() -> bytes:
    """This host's name for ``HEADER_CLOCK``: 12 hex digits that every process and container of one boot shares.

    A digest of the kernel's boot id, so that it tells nothing else; of the host's name where there is no boot id.
    """
    try:
        name = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    except OSError:
        name = socket.gethostname().encode()
    return hashlib.sha256(b"comux-clock:" + name).hexdigest()[:12].encode()


@dataclass(slots=True)
class Record:
    """One unit of a topic, as ``poll`` hands it out.

    To be treated as frozen; it is not declared so because building a frozen one takes 1.3 us instead of 0.23 us, half
    of the time a small record takes to read.

    Attributes:
        topic: Name of the topic.
        partition: Always 0 on the local engine.
        offset: 64 bits, strictly rising within a partition, never reused.
        timestamp_ns: Unix time in nanoseconds, as the producer gave it.
        key: ``None`` and ``b""`` differ.
        value: ``bytes`` (a validated copy), a ``memoryview`` where views were asked for, or a numpy array on typed
            topics; ``None`` where the producer sent ``None``.
        headers: ``(name, value)`` pairs in the producer's order, duplicates kept.
        epoch: Which life of the stream, see ``Producer.end``.
        flags: Bit 0 ``KEYFRAME``; bits 8-15 the user's.
        skipped: Records this handle lost or jumped immediately before this one (lossy consumers).
        delivery_count: 1 at the first delivery; group members only.
        redelivered: ``True`` where an earlier delivery was not acknowledged.
        append_ns: Unix time in nanoseconds at which the engine took the record; 0 where unknown.
    """

    topic: str
    offset: int
    timestamp_ns: int
    value: Any
    key: bytes | None = None
    headers: Headers = ()
    partition: int = 0
    epoch: int = 0
    flags: int = 0
    skipped: int = 0
    delivery_count: int = 1
    redelivered: bool = False
    append_ns: int = 0
    _valid: Callable[[], bool] | None = None

    @property
    def timestamp(self) -> float:
        """Unix time in seconds."""
        return self.timestamp_ns / 1e9

    @property
    def keyframe(self) -> bool:
        """Whether the producer marked the record as one a decoder can start from."""
        return bool(self.flags & KEYFRAME)

    def header(self, name: str) -> bytes | None:
        """Value of the first header called ``name``; ``None`` where there is none (or its value is ``None``)."""
        for candidate, value in self.headers:
            if candidate == name:
                return value
        return None

    def valid(self) -> bool:
        """Whether a view (``views=True``) still shows this record; always ``True`` for copies."""
        return self._valid is None or self._valid()


def check_headers(headers: Sequence[tuple[Any, Any]] | None) -> Headers:
    """Return ``headers`` as a tuple of pairs.

    Raises:
        TypeError: a name is not ``str`` or a value is neither bytes-like nor ``None``; the message names it.
    """
    if not headers:
        return ()
    out: list[Header] = []
    for name, value in headers:
        if not isinstance(name, str):
            raise TypeError(f"header name {name!r} is {type(name).__name__}, not str")
        if value is not None and not isinstance(value, bytes):
            if not isinstance(value, (bytearray, memoryview)):
                raise TypeError(f"header {name!r} has a value of type {type(value).__name__}, not bytes or None")
            value = bytes(value)
        out.append((name, value))
    return tuple(out)
