"""``raw``: numpy arrays in records. ``frames``: decoded pictures that another process shared.

Each record stands alone, so damage never reaches beyond one: a checksum that does not match is a ``decode_error``, a
packet sent twice a ``duplicate``, and a gap is somebody else's to count.

A shared frame carries the packet it came from, whole: value, key, headers, timestamp, offset, epoch. Its picture's
``record`` is that packet, so a reader in another process can ``send`` it as if it had decoded it.
"""

from __future__ import annotations

import base64
import json
import time
from abc import abstractmethod
from collections import Counter
from typing import Any, Final, get_args

import av
import numpy as np
import numpy.typing as npt

from comux.errors import ClosedError, ConfigError, DecodeError
from comux.records import HEADER_CODEC, HEADER_CRC32C, HEADER_DTYPE, HEADER_SHAPE, KEYFRAME, Headers, Record

from .arrays import array_headers, array_value, as_array, dtype_from_text, dtype_to_text
from .convert import Converter, converter
from .damage import Doubt, Watch
from .interface import ArrayFormat, Decoder, DecoderOptions, Identity, Outcome, Picture
from .packets import packet_bytes
from .picture import value_bytes

__all__ = ["RawDecoder", "SharedFrameDecoder", "array_headers", "array_value", "encode_shared_frame"]

HEADER_FRAME: Final = "comux-frame"  #: JSON: array_format of a shared frame, and its packet but for the value
HEADER_PACKET: Final = "comux-packet"  #: value of the packet that a shared frame came from

_FRAME_FORMATS: Final = {"bgr24": "bgr24", "rgb24": "rgb24", "gray": "gray", "planes": "yuv420p"}


class ArrayPicture(Picture):
    """A picture that is an array already, shown as it is or through a converter."""

    __slots__ = ("_array", "_converter", "_format", "decoded_ns", "degraded", "height", "identity", "record", "width")

    def __init__(
        self,
        array: npt.NDArray[Any],
        record: Record,
        size: tuple[int, int],
        made: Converter | None,
        frame_format: str,
    ) -> None:
        self._array = array
        self._converter = made
        self._format = frame_format
        self.record = record
        self.identity = Identity(record.epoch, record.offset)
        self.width, self.height = size
        self.degraded = False
        self.decoded_ns = time.monotonic_ns()

    def to_array(self, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        if self._converter is not None:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(self._array), format=self._format)
            return self._converter.convert(frame, out)
        if out is None:
            return self._array.copy()
        if out.shape != self._array.shape or out.dtype != self._array.dtype or not out.flags.c_contiguous:
            raise ValueError(
                f"out is {out.dtype} {out.shape}, needs C-contiguous {self._array.dtype} {self._array.shape}"
            )
        np.copyto(out, self._array)
        return out

    def array_spec(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        if self._converter is not None:
            return self._converter.spec
        return self._array.shape, self._array.dtype

    @property
    def nbytes(self) -> int:
        return int(self._array.nbytes) + value_bytes(self.record)


class _ArrayDecoder(Decoder):
    """What both have in common: every record answered at once."""

    def __init__(self, options: DecoderOptions) -> None:
        self.options = options
        self.damage: Counter[str] = Counter()
        self.resyncing = False
        self._watch = Watch(repeats_are_duplicates=False)
        self._converters: dict[tuple[str, int, int], Converter] = {}
        self._converting = True
        self._closed = False

    @abstractmethod
    def _picture(self, record: Record) -> Picture:
        """The picture of a record; raises ``DecodeError`` where it has none."""

    @property
    def in_flight(self) -> int:
        return 0

    def starts_at(self, record: Record) -> bool:
        del record
        return True

    def set_converting(self, converting: bool) -> None:
        self._converting = converting

    def feed(self, record: Record) -> list[Outcome]:
        if self._closed:
            raise ClosedError(f"topic {record.topic!r} offset {record.offset}: the decoder was closed; make a new one")
        if record.value is None:
            return [Outcome(record, None, "absorbed")]
        verdict = self._watch.judge(record, self._checked_bytes(record))
        if verdict.doubt is Doubt.DROP and verdict.reason == "duplicate":
            self.damage[verdict.reason] += 1
            return [Outcome(record, None, "duplicate", verdict.detail)]
        if verdict.doubt not in (Doubt.NONE, Doubt.RESTART):
            self.damage[verdict.reason] += 1
        if verdict.doubt is Doubt.THIS:
            return [Outcome(record, None, "decode_error", verdict.detail)]
        try:
            picture = self._picture(record)
        except DecodeError as error:
            return [Outcome(record, None, "decode_error", str(error))]
        if picture.width * picture.height > self.options.max_pixels:
            detail = f"{picture.width}x{picture.height} is more than max_pixels={self.options.max_pixels}"
            return [Outcome(record, None, "too_large", detail)]
        if not self._converting:
            return [Outcome(record, None, "lag")]
        return [Outcome(record, picture)]

    @staticmethod
    def _checked_bytes(record: Record) -> bytes:
        """What the checksum is taken over, as bytes; shared frames state none."""
        del record
        return b""

    def drain(self) -> list[Outcome]:
        self._watch.forget()
        return []

    def reset(self, cause: str = "resync") -> list[Outcome]:
        del cause
        return self.drain()

    def close(self) -> None:
        """After this ``feed`` raises; pictures given out stay valid."""
        self._closed = True

    def __enter__(self) -> _ArrayDecoder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _made(self, frame_format: str, size: tuple[int, int], array_format: ArrayFormat) -> Converter | None:
        """A converter where size or format must change."""
        options = self.options
        target = (options.width or size[0], options.height or size[1])
        if target == size and _FRAME_FORMATS.get(array_format) == frame_format:
            return None
        key = (frame_format, *size)
        made = self._converters.get(key)
        if made is None:
            made = converter(frame_format, *size, 2, 0, array_format, options.width, options.height)
            self._converters = {key: made}
        return made


class RawDecoder(_ArrayDecoder):
    """Arrays as they were sent. See ``Decoder`` for the contract.

    Notes:
        What an array is comes from the topic's type, from the headers ``comux-dtype`` and ``comux-shape``, or from
        ``options.dtype`` and ``options.shape``, in this order. A value of another size is a ``decode_error``.
        ``array_format`` is not looked at: raw arrays have no colours. ``width`` and ``height`` resize uint8 images,
        ``(H, W)`` and ``(H, W, 3)``; with them, any other array is a ``decode_error``.
        ``width`` and ``height`` of a picture are the array's last two image axes; 1 where it has none.
    """

    def _picture(self, record: Record) -> Picture:
        array = as_array(record, self.options.dtype, self.options.shape)
        size = (array.shape[1], array.shape[0]) if array.ndim >= 2 else (array.size, 1)
        if self.options.width is None and self.options.height is None:
            return ArrayPicture(array, record, size, None, "")
        colour = array.ndim == 3 and array.shape[2] == 3
        if array.dtype != np.uint8 or not (array.ndim == 2 or colour) or array.size == 0:
            raise DecodeError(f"{array.dtype} {array.shape} cannot be resized; only uint8 (H, W) and (H, W, 3) can")
        name: ArrayFormat = "bgr24" if colour else "gray"
        made = self._made(name, size, name) if size[0] * size[1] <= self.options.max_pixels else None
        return ArrayPicture(array, record, size, made, name)

    @staticmethod
    def _checked_bytes(record: Record) -> bytes:
        value = record.value
        if record.header(HEADER_CRC32C) is None:
            return b""
        if isinstance(value, np.ndarray):
            return array_value(value).tobytes() if not value.dtype.hasobject else b""
        return packet_bytes(record) or b""


def encode_shared_frame(
    array: npt.NDArray[Any], record: Record, array_format: ArrayFormat
) -> tuple[memoryview, Headers, int]:
    """What to send so that ``SharedFrameDecoder`` gives this picture back, with its packet.

    Args:
        array: The picture; not copied, so it must stay as it is until it was sent.
        record: The packet it came from.
        array_format: What ``array`` shows.

    Returns:
        ``(value, headers, flags)`` for ``Producer.send``; send key and timestamp of ``record`` along.

    Raises:
        ConfigError: the array holds Python objects.
    """
    value = record.value
    packet: bytes | None = None
    meta: dict[str, Any] = {
        "format": array_format,
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "epoch": record.epoch,
        "flags": record.flags,
        "timestamp_ns": record.timestamp_ns,
        "append_ns": record.append_ns,
        "key": _text(record.key),
        "headers": [[name, _text(content)] for name, content in record.headers],
    }
    if isinstance(value, np.ndarray):
        meta["dtype"], meta["shape"] = dtype_to_text(value.dtype), list(value.shape)
        packet = array_value(value).tobytes()
    elif value is not None:
        packet = bytes(value)
    headers: Headers = (
        (HEADER_CODEC, b"frames"),
        (HEADER_DTYPE, dtype_to_text(array.dtype).encode()),
        (HEADER_SHAPE, json.dumps(list(array.shape)).encode()),
        (HEADER_FRAME, json.dumps(meta, separators=(",", ":")).encode()),
        (HEADER_PACKET, packet),
    )
    return array_value(array).data, headers, KEYFRAME


def _text(content: bytes | None) -> str | None:
    return None if content is None else base64.b64encode(content).decode()


def _bytes(content: str | None) -> bytes | None:
    return None if content is None else base64.b64decode(content, validate=True)


def decode_packet(record: Record) -> tuple[ArrayFormat, Record]:
    """The array format of a shared frame, and the packet it came from.

    Raises:
        DecodeError: the record is no shared frame.
    """
    raw = record.header(HEADER_FRAME)
    if raw is None:
        raise DecodeError(f"no header {HEADER_FRAME!r}: this is no shared frame")
    try:
        meta = json.loads(raw)
        if meta["format"] not in get_args(ArrayFormat):
            raise DecodeError(f"array format {meta['format']!r} is unknown")
        value: Any = record.header(HEADER_PACKET)
        if value is not None and "dtype" in meta:
            value = np.frombuffer(value, dtype_from_text(meta["dtype"])).reshape([int(n) for n in meta["shape"]])
        packet = Record(
            topic=str(meta["topic"]),
            offset=int(meta["offset"]),
            timestamp_ns=int(meta["timestamp_ns"]),
            value=value,
            key=_bytes(meta["key"]),
            headers=tuple((str(name), _bytes(content)) for name, content in meta["headers"]),
            partition=int(meta["partition"]),
            epoch=int(meta["epoch"]),
            flags=int(meta["flags"]),
            append_ns=int(meta["append_ns"]),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DecodeError(f"header {HEADER_FRAME!r} cannot be read: {error}") from error
    return meta["format"], packet


class SharedFrameDecoder(_ArrayDecoder):
    """Pictures that another process decoded and shared. See ``Decoder`` for the contract.

    Notes:
        ``Picture.record`` and ``Picture.identity`` are those of the original packet; ``Outcome.record`` is the record
        that was fed, as the books need it. Frames come as ``array_format`` and ``width`` x ``height`` ask, whatever
        they were shared as; ``native`` gives them as they are, and frames that were raw arrays stay so.
    """

    def _picture(self, record: Record) -> Picture:
        shared_as, packet = decode_packet(record)
        array = as_array(record, None, None)
        options = self.options
        if shared_as == "native" or options.array_format == "native":
            size = (array.shape[1], array.shape[0]) if array.ndim >= 2 else (array.size, 1)
            return ArrayPicture(array, packet, size, None, "")
        colour = shared_as in ("bgr24", "rgb24")
        fits = array.ndim == 3 and array.shape[2] == 3 if colour else array.ndim == 2
        if array.dtype != np.uint8 or not fits or array.size == 0:
            raise DecodeError(f"{array.dtype} {array.shape} is no {shared_as} picture")
        height, width = array.shape[:2]
        if shared_as == "planes":
            height = height * 2 // 3
            if width % 2 or array.shape[0] % 3 or height % 2:
                raise DecodeError(f"{array.shape} are no planes of a picture")
        if width * height > options.max_pixels:
            return ArrayPicture(array, packet, (width, height), None, "")
        name = _FRAME_FORMATS[shared_as]
        try:
            made = self._made(name, (width, height), options.array_format)
        except ConfigError as error:
            raise DecodeError(str(error)) from error
        return ArrayPicture(array, packet, (width, height), made, name)
