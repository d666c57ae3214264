"""Video files: what stream they hold, and its packets as records want them.

H.264 and HEVC come out as Annex B with their parameter sets in band before every keyframe, however the container keeps
them, so that a decoder can join at any keyframe. Nothing is decoded here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, NamedTuple

import av
from av.bitstream import BitStreamFilterContext
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from comux.errors import ConfigError, DecodeError, UnknownCodecError

from .encode import EncodedPacket
from .interface import StreamFacts

_CODECS: Final = {"h264": "h264", "hevc": "hevc", "mjpeg": "mjpeg", "vp9": "vp9", "av1": "av1", "libdav1d": "av1"}
_ANNEX_B: Final = {"h264": "h264_mp4toannexb", "hevc": "hevc_mp4toannexb"}
_PARAMETER_SETS: Final = {"h264": frozenset({7}), "hevc": frozenset({33})}
_DEFAULT_FPS: Final = 25.0


class VideoPacket(NamedTuple):
    """One access unit of a file.

    Attributes:
        data: As a record carries it.
        pts: When its picture is shown, in seconds from the start of the file; goes on rising where the file is looped.
        dts: When it is decoded, in seconds likewise; never falls.
        keyframe: Whether a decoder can start here.
    """

    data: bytes
    pts: float
    dts: float
    keyframe: bool


def open_video(path: str | Path) -> StreamFacts:
    """Look at a video file.

    Returns:
        Facts of its first video stream; ``metadata`` has ``duration`` (seconds, 0 where unknown), ``packets`` (0 where
        unknown), ``bytes`` and ``container``.

    Raises:
        ConfigError: no such file, no video in it, or nothing FFmpeg understands. UnknownCodecError.
    """
    with _open(path) as container:
        stream = _video_stream(container, path)
        codec = _codec(stream, path)
        context: VideoCodecContext = stream.codec_context
        duration = container.duration / av.time_base if container.duration else 0.0
        extradata = context.extradata
        return StreamFacts(
            codec=codec,
            width=context.width,
            height=context.height,
            fps=_fps(stream),
            pix_fmt=context.pix_fmt or "yuv420p",
            extradata=bytes(extradata) if extradata else None,
            metadata={
                "duration": duration,
                "packets": stream.frames,
                "bytes": Path(path).stat().st_size,
                "container": container.format.name,
            },
        )


def packets(path: str | Path, *, loop: bool = False) -> Iterator[VideoPacket]:
    """Read the packets of a file's first video stream, in decoding order.

    Args:
        path: Of the file.
        loop: Begin again at its end, for ever; times go on rising.

    Raises:
        ConfigError, UnknownCodecError: as ``open_video``, at once.
        DecodeError: while reading: the file is cut off or damaged; says how far it got.
    """
    open_video(path)
    return _loop(path, loop)


def _loop(path: str | Path, loop: bool) -> Iterator[VideoPacket]:
    start = 0.0
    while True:
        end = start
        seen = False
        for packet in _one_pass(path):
            seen = True
            yield VideoPacket(packet.data, start + packet.pts, start + packet.dts, packet.keyframe)
            end = max(end, start + packet.pts, start + packet.dts)
        if not loop:
            return
        if not seen:
            raise DecodeError(f"{path}: holds no video packet, there is nothing to loop")
        with _open(path) as container:
            end += 1 / _fps(_video_stream(container, path))
        start = end


def _one_pass(path: str | Path) -> Iterator[VideoPacket]:
    with _open(path) as container:
        stream = _video_stream(container, path)
        codec = _codec(stream, path)
        reader = _Reader(stream, codec)
        try:
            for raw in container.demux(stream):
                if raw.size:
                    yield from reader.take(raw)
            yield from reader.take(None)
        except av.FFmpegError as error:
            raise DecodeError(f"{path}: {_progress(reader, stream)}, then it cannot be read: {error}") from error
        if stream.frames and reader.count < stream.frames:
            raise DecodeError(f"{path}: {_progress(reader, stream)}, then the file ends: it is cut off")


def _progress(reader: _Reader, stream: VideoStream) -> str:
    of = f" of {stream.frames}" if stream.frames else ""
    return f"{reader.count}{of} packets ({reader.last_s:.2f} s) were read"


class _Reader:
    """From a container's packets to ours."""

    def __init__(self, stream: VideoStream, codec: str) -> None:
        self._fps = _fps(stream)
        self._time_base = stream.time_base or Fraction(1, 90_000)
        self._start = stream.start_time or 0
        self._filter = BitStreamFilterContext(_ANNEX_B[codec], stream) if codec in _ANNEX_B else None
        self._codec = codec
        self._sets = b""
        self.count = 0
        self.last_s = 0.0
        self._dts_s = 0.0
        extradata = stream.codec_context.extradata
        if extradata and codec in _ANNEX_B and bytes(extradata[:3]) in (b"\0\0\0", b"\0\0\1"):
            self._sets = bytes(extradata)

    def take(self, raw: av.Packet[Any] | None) -> Iterator[VideoPacket]:
        """Yield what one packet of the container (``None``: its end) becomes."""
        if self._filter is not None:
            for filtered in self._filter.filter(raw):
                yield self._packet(filtered)
        elif raw is not None:
            yield self._packet(raw)

    def _packet(self, packet: av.Packet[Any]) -> VideoPacket:
        data = bytes(packet)
        if packet.is_keyframe and self._sets and not _has_parameter_sets(self._codec, data):
            data = self._sets + data
        # A bare elementary stream knows no times: its packets are spread evenly, in decoding order.
        even = self.count / self._fps
        dts = even if packet.dts is None else float((packet.dts - self._start) * self._time_base)
        pts = dts if packet.pts is None else float((packet.pts - self._start) * self._time_base)
        self._dts_s = max(self._dts_s, dts)
        self.count += 1
        self.last_s = max(self.last_s, pts)
        return VideoPacket(data, pts, self._dts_s, packet.is_keyframe)


def _has_parameter_sets(codec: str, data: bytes) -> bool:
    at = data.find(b"\0\0\1")
    while 0 <= at < len(data) - 3:
        head = data[at + 3]
        kind = head & 0x1F if codec == "h264" else head >> 1 & 0x3F
        if kind in _PARAMETER_SETS[codec]:
            return True
        if kind in (1, 5) if codec == "h264" else kind < 32:
            return False  # the picture itself: parameter sets come before it or not at all
        at = data.find(b"\0\0\1", at + 3)
    return False


def _open(path: str | Path) -> InputContainer:
    if not Path(path).is_file():
        raise ConfigError(f"{path}: {'is no file' if Path(path).exists() else 'no such file'}")
    try:
        return av.open(str(path), "r")
    except (av.FFmpegError, ValueError) as error:
        size = Path(path).stat().st_size
        raise ConfigError(f"{path}: {size} bytes that are no video file, or one that is cut off: {error}") from error


def _video_stream(container: InputContainer, path: str | Path) -> VideoStream:
    if not container.streams.video:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise ConfigError(f"{path}: holds no video stream, only {kinds}")
    return container.streams.video[0]


def _codec(stream: VideoStream, path: str | Path) -> str:
    context = stream.codec_context
    name = "unknown" if context is None else context.codec.name
    if name not in _CODECS:
        known = ", ".join(sorted(set(_CODECS.values())))
        raise UnknownCodecError(f"{path}: video codec {name!r} cannot be published; known are {known}")
    return _CODECS[name]


def _fps(stream: VideoStream) -> float:
    for rate in (stream.average_rate, stream.base_rate, stream.guessed_rate):
        if rate and 0 < rate <= 1000:
            return float(rate)
    return _DEFAULT_FPS


def write_video(
    path: str | Path, codec: str, width: int, height: int, fps: float, made: Iterable[EncodedPacket]
) -> int:
    """Write encoded packets into a file; its ending names the container (``.mp4``, ``.mkv``, ``.ts``, ``.h264``).

    Args:
        path: Of the file; overwritten.
        codec: ``h264``, ``hevc``, ``mjpeg``, ``vp9`` or ``av1``.
        width, height: In pixels.
        fps: Unit of the packets' times.
        made: As ``VideoEncoder`` gives them.

    Returns:
        How many packets were written.

    Raises:
        ConfigError: no such container, it does not hold this codec, or the file cannot be written.
    """
    rate = Fraction(fps).limit_denominator(100_000)
    count = 0
    try:
        # The index comes first, so that a file that is cut off later still opens.
        options = {"movflags": "faststart"} if Path(path).suffix in (".mp4", ".mov") else {}
        with av.open(str(path), "w", options=options) as container:
            stream: Any = container.add_mux_stream(codec, rate=rate, width=width, height=height)
            stream.time_base = 1 / rate
            for encoded in made:
                packet = av.Packet(encoded.data)
                packet.pts, packet.dts = encoded.pts, encoded.dts
                packet.time_base = 1 / rate
                packet.is_keyframe = encoded.keyframe
                packet.stream = stream
                container.mux(packet)
                count += 1
    except (av.FFmpegError, ValueError) as error:
        raise ConfigError(f"{path}: cannot write {codec} {width}x{height}: {error}") from error
    return count
