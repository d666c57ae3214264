"""Synthetic cameras: ``synthetic://640x360@30?gop=30&bframes=2&codec=h264&seed=1&camera=1&faults=stall@5s+3s``.

====================== ================ ================================================================================
option                 default          meaning
====================== ================ ================================================================================
``WxH@FPS``            640x360@30       size in pixels (even, 64x48 to 8192x8192) and frames per second
``codec``              h264             ``h264``, ``hevc``, ``mjpeg``, ``vp9``, ``av1``
``gop``                30               frames from keyframe to keyframe
``bframes``            2                consecutive B-frames (``h264``, ``hevc``)
``open_gop``           0                1: B-frames may refer across a keyframe
``crf``, ``bitrate``   the codec's own  constant quality, or bits per second
``camera``             1                number in the pixels, 0-65535
``seed``               1                of colours, paths and faults
``frames``             no end           pictures until the end of the stream
``first``              0                number of the first picture
``faults``             none             see ``comux.feeds.faults``
====================== ================ ================================================================================
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Final
from urllib.parse import unquote

import crc32c

from comux.decoders.encode import EncodedPacket, VideoEncoder
from comux.errors import ConfigError, UnknownAddressError

from .faults import Fault, FeedPacket, Trigger, inject, parse_faults
from .marks import read_marks as read_marks
from .scene import Scene

SCHEME: Final = "synthetic"


@dataclass(frozen=True, slots=True)
class SyntheticCamera:
    """Settings of a synthetic camera; the names of the address's options, see the module."""

    width: int = 640
    height: int = 360
    fps: float = 30.0
    codec: str = "h264"
    gop: int = 30
    bframes: int = 2
    open_gop: bool = False
    crf: float | None = None
    bitrate: int | None = None
    camera: int = 1
    seed: int = 1
    frames: int | None = None
    first: int = 0
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        size = f"{self.width}x{self.height}"
        if self.width % 2 or self.height % 2 or not 64 <= self.width <= 8192 or not 48 <= self.height <= 8192:
            raise ConfigError(f"synthetic camera of {size}: even sides, 64x48 to 8192x8192")
        if not 0.01 <= self.fps <= 1000:
            raise ConfigError(f"synthetic camera at {self.fps:g} fps: 0.01 to 1000")
        if not 0 <= self.camera <= 65535:
            raise ConfigError(f"camera={self.camera}: 0 to 65535")
        if not 0 <= self.first < 1 << 32:
            raise ConfigError(f"first={self.first}: 0 to {(1 << 32) - 1}")
        if self.frames is not None and self.frames < 0:
            raise ConfigError(f"frames={self.frames}: not negative")

    @property
    def fault_seed(self) -> int:
        """Seed of this camera's faults: cameras with one seed have faults at different moments."""
        return self.seed * 65536 + self.camera


def parse_synthetic(address: str) -> SyntheticCamera:
    """Read an address.

    Raises:
        UnknownAddressError: not ``synthetic://``. ConfigError: names the option, its value and what is possible.
    """
    scheme, found, rest = address.partition("://")
    if not found or scheme != SCHEME:
        raise UnknownAddressError(f"{address!r} is no synthetic camera; write synthetic://640x360@30?gop=30&camera=1")
    picture, _, query = rest.partition("?")
    values: dict[str, object] = {}
    if picture.strip("/"):
        values |= _parse_picture(address, picture.strip("/"))
    for name, text in split_query(query).items():
        values[name] = _parse_option(address, name, text)
    return SyntheticCamera(**values)  # type: ignore[arg-type]  # names and types were checked one by one


def split_query(query: str) -> Mapping[str, str]:
    """``a=1&b=2`` as a mapping. ``+`` stays a plus (faults use it), ``%41`` is decoded."""
    out: dict[str, str] = {}
    for part in query.split("&"):
        if part:
            name, _, value = part.partition("=")
            out[unquote(name)] = unquote(value)
    return out


def _parse_picture(address: str, text: str) -> dict[str, object]:
    size, at, fps = text.partition("@")
    width, _, height = size.partition("x")
    try:
        return {"width": int(width), "height": int(height)} | ({"fps": float(fps)} if at else {})
    except ValueError:
        raise ConfigError(f"{address!r}: {text!r} is no picture size and rate; write 640x360@30") from None


def _parse_option(address: str, name: str, text: str) -> object:
    types = {f.name: f.type for f in fields(SyntheticCamera)}
    if name not in types or name in ("width", "height", "fps"):
        known = ", ".join(n for n in types if n not in ("width", "height", "fps"))
        raise ConfigError(f"{address!r}: unknown option {name!r}; options are {known}")
    kind = str(types[name])
    try:
        if name == "faults":
            return parse_faults(text)
        if kind == "str":
            return text
        if kind == "bool":
            return {"0": False, "1": True}[text]
        return float(text) if kind.startswith("float") else int(text)
    except (ValueError, KeyError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{address!r}: {name}={text!r} is not {kind.replace(' | None', '')}") from None


def synthetic_packets(camera: SyntheticCamera) -> Iterator[FeedPacket]:
    """Draw, encode and damage: the packets a synthetic camera publishes, in order, faults included.

    Yields:
        Packets with their times in seconds since the start; the iterator never waits. Lost packets are yielded with the
        fault ``missing``, pictures that were not captured with the fault ``gap`` and ``seq`` -1; neither is for
        publishing.

    Raises:
        UnknownCodecError, ConfigError: before the first packet, where the encoder refuses the settings.
    """
    nokey = any(fault.kind == "nokey" for fault in camera.faults)
    encoder = VideoEncoder(
        camera.codec,
        camera.width,
        camera.height,
        camera.fps,
        # With `nokey` the keyframes are asked for one by one, so that they can be left out.
        gop=1_000_000 if nokey else camera.gop,
        bframes=camera.bframes,
        bitrate=camera.bitrate,
        crf=camera.crf,
        open_gop=camera.open_gop,
    )
    return _deliver(camera, encoder)


def _deliver(camera: SyntheticCamera, encoder: VideoEncoder) -> Iterator[FeedPacket]:
    with encoder:
        source = _Source(camera, encoder)
        for packet in inject(source.packets(), camera.faults, camera.fault_seed):
            yield from source.take_gaps()
            yield packet
        yield from source.take_gaps()


class _Source:
    """Pictures to packets, with the faults that concern the encoder."""

    def __init__(self, camera: SyntheticCamera, encoder: VideoEncoder) -> None:
        self._camera = camera
        self._encoder = encoder
        self._scene = Scene(camera.width, camera.height, camera.camera, camera.seed)
        self._gaps = [Trigger(f, camera.fault_seed) for f in camera.faults if f.kind == "gap"]
        self._nokey = [Trigger(f, camera.fault_seed) for f in camera.faults if f.kind == "nokey"]
        self._numbers: dict[int, int] = {}
        self._skipped: list[FeedPacket] = []
        self._seq = 0

    def packets(self) -> Iterator[FeedPacket]:
        camera = self._camera
        skip = 0
        no_key_until = -1.0
        since_key = 0
        encoded = 0
        for tick in itertools.count() if camera.frames is None else range(camera.frames):
            stream_s = tick / camera.fps
            number = (camera.first + tick) & 0xFFFFFFFF
            if tick:
                skip = max([skip, *(t.fault.amount for t in self._gaps if t.due(stream_s))])
                for trigger in self._nokey:
                    if trigger.due(stream_s):
                        no_key_until = stream_s + trigger.fault.for_s
                        self._skipped.append(FeedPacket(b"", -1, 0, number, stream_s, stream_s, False, ("nokey",)))
            if skip:
                skip -= 1
                self._skipped.append(FeedPacket(b"", -1, 0, number, stream_s, stream_s, False, ("gap",)))
                continue
            key = bool(self._nokey) and (encoded == 0 or (since_key >= camera.gop and stream_s >= no_key_until))
            since_key = 1 if key else since_key + 1
            self._numbers[encoded] = tick
            made = self._encoder.encode(self._scene.picture(number), encoded, keyframe=key)
            encoded += 1
            yield from self._stamp(made, stream_s)
        last_s = (camera.frames or 0) / camera.fps
        yield from self._stamp(self._encoder.flush(), last_s)

    def take_gaps(self) -> list[FeedPacket]:
        """Notices of pictures not captured and keyframes left out since the last call."""
        taken, self._skipped = self._skipped, []
        return taken

    def _stamp(self, made: list[EncodedPacket], release_s: float) -> Iterator[FeedPacket]:
        for packet in made:
            tick = self._numbers.pop(packet.pts)
            frame = (self._camera.first + tick) & 0xFFFFFFFF
            crc = crc32c.crc32c(packet.data)
            capture_s = tick / self._camera.fps
            yield FeedPacket(packet.data, self._seq, crc, frame, release_s, capture_s, packet.keyframe)
            self._seq += 1
