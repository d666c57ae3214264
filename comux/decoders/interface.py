"""What a decoder is: packets in, outcomes out, every packet resolved exactly once.

A source feeds packets in order and moves each along its books by the outcomes it gets back. A packet that went in comes
out as exactly one *first* outcome: a picture, ``absorbed`` (parameter sets), or dropped with a cause. Until then it is
*held* by the decoder (``in_flight``). ``feed`` never raises for what a packet holds: a codec's errors become outcomes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from comux.records import Record

ArrayFormat = Literal["bgr24", "rgb24", "gray", "planes", "native"]
"""What an array looks like: ``bgr24``/``rgb24`` uint8 (H, W, 3); ``gray`` uint8 (H, W); ``planes`` uint8 (H*3/2, W),
the I420 planes below each other; ``native``: as a raw-array codec carried it."""

ABSORBED = "absorbed"


class Identity(NamedTuple):
    """Full key of a packet: which life of the stream, which offset, which picture of the record (bytestreams)."""

    epoch: int
    offset: int
    sub: int = 0


@dataclass(frozen=True, slots=True)
class DecoderOptions:
    """Settings of one decoder, checked by ``create_decoder``.

    Attributes:
        codec: Registered name (entry-point group ``comux.codecs``).
        pix_fmt: Pixel format of the stream as the user states it; ``None``: whatever comes.
        width, height: Wanted size of the arrays in pixels; ``None``: the stream's.
        array_format: See ``ArrayFormat``.
        max_pixels: Larger pictures are refused before decoding.
        threads: Codec threads; 1 is live (no frames of delay), 0 lets the codec choose (files).
        hwaccel: Decode on this device, ``"cuda"`` or with its name ``"vaapi:/dev/dri/renderD128"``; ``None``: software.
            There is no way back to software by itself: a stream that the device cannot decode is refused, packet by
            packet (``decode_error``). Hardware does not tell which blocks it guessed: damage that the packets do
            not show (their sequence, checksum, structure) is not seen.
        on_damage: ``"drop"`` up to the next clean keyframe, or ``"deliver"`` with ``degraded=True``.
        extradata: Out-of-band parameter sets, for example from a container.
        framing: ``"record"``: a record holds whole access units (one, usually). ``"bytestream"``: records are pieces of
            a stream of bytes; a parser finds the access units, and a picture belongs to the record it starts in.
        dtype, shape: Of raw arrays, where the records do not carry them.
    """

    codec: str = "h264"
    pix_fmt: str | None = None
    width: int | None = None
    height: int | None = None
    array_format: ArrayFormat = "bgr24"
    max_pixels: int = 8192 * 8192
    threads: int = 1
    hwaccel: str | None = None
    on_damage: Literal["drop", "deliver"] = "drop"
    extradata: bytes | None = None
    framing: Literal["record", "bytestream"] = "record"
    dtype: npt.DTypeLike | None = None
    shape: tuple[int, ...] | None = None


class Picture(ABC):
    """A decoded picture that owns (a reference to) its packet; pixels are converted when asked for.

    Attributes:
        identity: Of the packet whose picture this is: exact through decoder delay and B-frames.
        record: That packet, as it was received.
        width, height: Of the decoded picture, in pixels.
        degraded: Decoded across damage (``on_damage="deliver"``).
        decoded_ns: Monotonic nanoseconds at which the decoder gave it out.
        ready: Its array, where that is made already; it belongs to whoever takes the picture, as if from ``to_array``.
        passed: Where the decoder itself has asked which pictures are taken (``select``): whether this one is.
    """

    ready: npt.NDArray[Any] | None = None
    passed: bool | None = None
    identity: Identity
    record: Record
    width: int
    height: int
    degraded: bool
    decoded_ns: int

    @abstractmethod
    def to_array(self, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Convert to the decoder's ``array_format`` and size.

        Args:
            out: Written in place where given; must have exactly ``array_spec()``'s shape and dtype, C-contiguous.

        Returns:
            A fresh array, or ``out``. Belongs to the caller: never a window on codec or ring memory. Releases the GIL.
        """

    @abstractmethod
    def array_spec(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and dtype of what ``to_array`` returns."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes this picture keeps alive, its packet included (for byte limits)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a packet.

    Attributes:
        record: The packet.
        picture: Where it became one.
        cause: Where it did not: ``"absorbed"``, or a drop cause: ``resync`` (damage or a jump, up to the next clean
            keyframe), ``decode_error`` (no packet of this codec, or the codec refused it), ``duplicate`` (the packet
            came twice), ``too_large``, ``no_picture`` (the stream ended, or the codec gave nothing), ``lag`` (see
            ``set_converting``, ``hurry``), ``rate`` (see ``select``: not decoded).
        detail: For people: which damage was seen.
        first: ``False`` for the further pictures of one bytestream record: the record is resolved already.
    """

    record: Record
    picture: Picture | None = None
    cause: str | None = None
    detail: str = ""
    first: bool = True


class Selection(Protocol):
    """Which pictures of a stream will be taken, as far as that is known before they are decoded.

    What may be left out is dropped with cause ``rate``. Called in the decoder's thread.
    """

    @property
    def period_ns(self) -> int:
        """Nanoseconds between two pictures that are taken; 0 where all are."""

    def not_before(self, waiting: Iterable[int]) -> int | None:
        """No picture that was captured earlier than the answer will be taken.

        Args:
            waiting: Capture times of pictures that were decoded, or are being, and not offered yet: those of them that
                will be taken count as taken.

        Returns:
            Unix nanoseconds; ``None`` where it is not known, and nothing must be left out.
        """

    def align(self, capture_ns: int) -> None:
        """GOPs are as long as some whole number of pictures that are taken, and one begins at ``capture_ns``, earlier
        than the next of them: a good place to count from."""


class Decoder(ABC):
    """Decodes one stream in one thread. Not thread-safe.

    Attributes:
        resyncing: Waiting for a clean keyframe; packets come out as ``resync``.
        damage: How often doubt was seen, by reason (``sequence``, ``crc``, ``offset_gap``, ``frame_num``, ``codec``…).
    """

    options: DecoderOptions
    resyncing: bool
    damage: Mapping[str, int]

    @abstractmethod
    def feed(self, record: Record) -> list[Outcome]:
        """Take the next packet; returns the outcomes that are known now (possibly of earlier packets)."""

    @abstractmethod
    def drain(self) -> list[Outcome]:
        """The stream (epoch) ended: the last pictures come out, the rest are ``no_picture``. The decoder can go on with
        a new epoch afterwards."""

    @abstractmethod
    def reset(self, cause: str = "resync") -> list[Outcome]:
        """After a jump: forget everything, resolve what is in flight with ``cause``, wait for a keyframe."""

    @abstractmethod
    def starts_at(self, record: Record) -> bool:
        """Whether a decoder can start at this packet (keyframe flag, else found in the packet). Cheap; no decoding."""

    def begins_anew(self, record: Record) -> bool:
        """Whether a fresh decoder that begins at this packet gives all the pictures from here on that this one would.

        That is, nothing from here on, in decoding order, refers to anything before, parameter sets included. Cheap; no
        decoding. ``False`` where it is not known.
        """
        return False

    @property
    @abstractmethod
    def in_flight(self) -> int:
        """Packets fed and not resolved."""

    @abstractmethod
    def set_converting(self, converting: bool) -> None:
        """``False``: go on decoding but give pictures out as cause ``lag`` (catching up); needs no keyframe to undo."""

    def hurry(self, hurried: bool) -> bool:
        """``True``: leave out, cause ``lag``, pictures that no other one refers to; needs no keyframe to undo.

        Returns:
            ``False`` where this decoder decodes everything all the same.
        """
        return False

    def reshape(self, width: int | None, height: int | None, array_format: ArrayFormat) -> bool:
        """Give pictures out in another size or format from now on, without a new keyframe.

        Args:
            width, height, array_format: See ``DecoderOptions``.

        Returns:
            ``False`` where this decoder cannot; nothing has changed, and the caller makes another one.
        """
        return False

    def select(self, selection: Selection | None) -> bool:
        """Leave out, from now on, what ``selection`` says nobody will take and no other picture needs.

        A packet left out is still judged: damage, parameter sets and the end are seen in it.

        Args:
            selection: Asked before each picture; ``None``: decode everything.

        Returns:
            ``False`` where this decoder decodes everything all the same.
        """
        return False

    @abstractmethod
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """What a feed or container knows about a stream."""

    codec: str
    width: int
    height: int
    fps: float
    pix_fmt: str = "yuv420p"
    extradata: bytes | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
