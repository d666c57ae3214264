"""Encoding: arrays to packets, for synthetic cameras, tests and re-encoding feeds.

One encoder, one thread of its own choosing, deterministic: the same pictures and settings give the same bytes on one
machine with one version of the codec's library. Every keyframe carries its parameter sets in band (Annex B), so that a
stream can be joined at any keyframe.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, NamedTuple, cast

import av
import numpy as np
import numpy.typing as npt
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from comux.errors import ClosedError, ComuxError, ConfigError, UnknownCodecError

_ALIASES: Final = MappingProxyType({"h265": "hevc", "mjpg": "mjpeg"})
# First choice first: libsvtav1 writes to the terminal on its own (see _open), libaom does not.
_LIBRARIES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "h264": ("libx264",),
        "hevc": ("libx265",),
        "mjpeg": ("mjpeg",),
        "vp9": ("libvpx-vp9",),
        "av1": ("libaom-av1", "libsvtav1"),
    }
)
_DEFAULT_CRF: Final[Mapping[str, int]] = MappingProxyType({"h264": 23, "hevc": 28, "vp9": 32, "av1": 35, "mjpeg": 4})


class EncodedPacket(NamedTuple):
    """One access unit.

    Attributes:
        data: Annex B for H.264 and HEVC, low-overhead OBUs for AV1, else the codec's own framing.
        pts: As given to ``encode``: when the picture is shown, in frames.
        dts: When it is decoded, in frames; rises by one per packet, may be negative at the start with B-frames.
        keyframe: Whether a decoder can start here.
    """

    data: bytes
    pts: int
    dts: int
    keyframe: bool


def encodable_codecs() -> tuple[str, ...]:
    """Names of the codecs that this installation can encode."""
    return tuple(name for name in _LIBRARIES if _library(name) is not None)


class VideoEncoder:
    """Encodes pictures of one size.

    Args:
        codec: ``h264``, ``hevc``, ``mjpeg``, ``vp9`` or ``av1``.
        width, height: In pixels; even for ``h264`` and ``hevc``.
        fps: Frames per second the stream announces, and what ``bitrate`` counts on.
        gop: Frames from keyframe to keyframe.
        bframes: Consecutive B-frames (``h264`` and ``hevc``; the others have none and ignore it).
        bitrate: Bits per second; ``None``: constant quality.
        crf: Constant quality, lower is better, in the codec's own scale (``mjpeg``: qscale 1-31); ``None``: its usual.
        options: Further options for the codec's library, over ours.
        open_gop: B-frames may refer across a keyframe (``h264`` and ``hevc``).
        full_range: Tag and encode the pictures as full range (``mjpeg`` always is).
        bt709: Tag and encode with the BT.709 matrix; else untagged, BT.601.

    Raises:
        UnknownCodecError: no such codec, or this PyAV cannot encode it.
        ConfigError: size, rate or options that the codec refuses.

    Not thread-safe. A context manager.
    """

    def __init__(
        self,
        codec: str,
        width: int,
        height: int,
        fps: float | Fraction = 30,
        gop: int = 30,
        bframes: int = 2,
        bitrate: int | None = None,
        crf: float | None = None,
        options: Mapping[str, str] | None = None,
        open_gop: bool = False,
        full_range: bool = False,
        bt709: bool = False,
    ) -> None:
        self.codec = _ALIASES.get(codec, codec)
        self.width, self.height = width, height
        self.fps = Fraction(fps).limit_denominator(100_000)
        self.full_range = full_range or self.codec == "mjpeg"
        self.bt709 = bt709
        self._extradata: bytes | None = None
        self._reformatter = VideoReformatter()
        self._check(gop, bframes)
        self._context: VideoCodecContext | None = self._open(gop, bframes, bitrate, crf, options or {}, open_gop)

    def _check(self, gop: int, bframes: int) -> None:
        if self.codec not in _LIBRARIES or _library(self.codec) is None:
            raise UnknownCodecError(f"cannot encode {self.codec!r}; known here: {', '.join(encodable_codecs())}")
        if self.width < 1 or self.height < 1 or self.width > 16384 or self.height > 16384:
            raise ConfigError(f"picture size {self.width}x{self.height}: each side is 1 to 16384 pixels")
        if self.codec in ("h264", "hevc") and (self.width % 2 or self.height % 2):
            raise ConfigError(f"{self.codec} pictures have even sides, not {self.width}x{self.height}")
        if self.fps <= 0 or gop < 1 or bframes < 0:
            raise ConfigError(f"fps {float(self.fps):g}, gop {gop}, bframes {bframes}: fps > 0, gop >= 1, bframes >= 0")

    def _open(
        self,
        gop: int,
        bframes: int,
        bitrate: int | None,
        crf: float | None,
        options: Mapping[str, str],
        open_gop: bool,
    ) -> VideoCodecContext:
        if self.codec == "av1":
            # SVT-AV1 greets on stderr unless this variable says otherwise; it is read when an encoder opens.
            os.environ.setdefault("SVT_LOG", "1")
        context = cast(VideoCodecContext, av.CodecContext.create(_library(self.codec) or "", "w"))
        context.width, context.height = self.width, self.height
        context.pix_fmt = "yuvj420p" if self.codec == "mjpeg" else "yuv420p"
        context.framerate = self.fps
        context.time_base = 1 / self.fps
        context.thread_count = 1
        context.gop_size = gop
        context.color_range = ColorRange.JPEG if self.full_range else ColorRange.MPEG
        if self.bt709:
            context.colorspace = 1
        quality = _DEFAULT_CRF[self.codec] if crf is None else crf
        if bitrate is not None:
            context.bit_rate = bitrate
        context.options = _options(self.codec, gop, bframes, None if bitrate is not None else quality, open_gop) | dict(
            options
        )
        try:
            with _usual_scheduling():
                context.open()
        except (av.FFmpegError, ValueError) as error:
            raise ConfigError(
                f"{self.codec} encoder refuses {self.width}x{self.height} at {float(self.fps):g} fps with "
                f"{dict(context.options)}: {error}"
            ) from error
        return context

    @property
    def extradata(self) -> bytes | None:
        """Parameter sets (H.264, HEVC: Annex B), known after the first packet; ``None`` where the codec has none."""
        return self._extradata

    def encode(self, array: npt.NDArray[np.uint8], pts: int, *, keyframe: bool = False) -> list[EncodedPacket]:
        """Encode one picture.

        Args:
            array: ``uint8`` BGR of shape (H, W, 3), or I420 planes below each other of shape (H*3/2, W).
            pts: In frames, rising.
            keyframe: Make this picture a keyframe, whatever its place in the GOP.

        Returns:
            The packets that are ready, in decoding order; with B-frames they come a few pictures later.

        Raises:
            ConfigError: an array of another shape or dtype. ClosedError. ComuxError: the codec failed.
        """
        frame = self._frame(array)
        frame.pts = pts
        if keyframe:
            frame.pict_type = PictureType.I
        return self._run(frame)

    def flush(self) -> list[EncodedPacket]:
        """End the stream: the remaining packets. The encoder is closed afterwards."""
        packets = self._run(None)
        self.close()
        return packets

    def close(self) -> None:
        """Forget the codec and what it holds."""
        self._context = None

    def __enter__(self) -> VideoEncoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _frame(self, array: npt.NDArray[np.uint8]) -> av.VideoFrame:
        h, w = self.height, self.width
        matrix = Colorspace.ITU709 if self.bt709 else Colorspace.ITU601
        source_range = ColorRange.MPEG
        if array.dtype == np.uint8 and array.shape == (h, w, 3):
            frame = av.VideoFrame.from_ndarray(array, "bgr24")
            source_range = ColorRange.JPEG
        elif array.dtype == np.uint8 and h % 2 == 0 and w % 2 == 0 and array.shape == (h * 3 // 2, w):
            frame = av.VideoFrame.from_ndarray(array, "yuv420p")
            if self.codec != "mjpeg":
                frame.color_range = ColorRange.JPEG if self.full_range else ColorRange.MPEG
                return frame
        else:
            raise ConfigError(
                f"array is {array.dtype} {array.shape}; the encoder takes uint8 ({h}, {w}, 3) BGR or "
                f"({h * 3 // 2}, {w}) I420"
            )
        return self._reformatter.reformat(
            frame,
            format="yuvj420p" if self.codec == "mjpeg" else "yuv420p",
            src_colorspace=matrix,
            dst_colorspace=matrix,
            src_color_range=source_range,
            dst_color_range=ColorRange.JPEG if self.full_range else ColorRange.MPEG,
            threads=1,
        )

    def _run(self, frame: av.VideoFrame | None) -> list[EncodedPacket]:
        if self._context is None:
            raise ClosedError(f"{self.codec} encoder was closed or flushed; make a new one")
        try:
            packets = self._context.encode(frame)
        except av.FFmpegError as error:
            raise ComuxError(f"{self.codec} encoder failed at {self.width}x{self.height}: {error}") from error
        out = []
        for packet in packets:
            data = bytes(packet)
            if packet.is_keyframe and self._extradata is None:
                self._extradata = _parameter_sets(self.codec, data)
            pts = 0 if packet.pts is None else packet.pts
            out.append(EncodedPacket(data, pts, pts if packet.dts is None else packet.dts, packet.is_keyframe))
        return out


@contextmanager
def _usual_scheduling() -> Iterator[None]:
    """Threads are scheduled afterwards as this one was before.

    SVT-AV1 that root opens makes the thread that called it real-time, above everything, and never takes it back: all
    threads and processes that this one starts inherit it, and one that computes then starves the whole machine.
    """
    policy, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    before = _threads()
    try:
        yield
    finally:
        if os.sched_getscheduler(0) != policy:
            for thread in {threading.get_native_id()} | _threads() - before:
                with suppress(ProcessLookupError):  # it ended meanwhile
                    os.sched_setscheduler(thread, policy, parameter)


def _threads() -> set[int]:
    return {int(task.name) for task in Path("/proc/self/task").iterdir()}


def _library(codec: str) -> str | None:
    for name in _LIBRARIES[codec]:
        try:
            if av.Codec(name, "w").is_encoder:
                return name
        except ValueError:
            continue  # this PyAV was built without it
    return None


def _options(codec: str, gop: int, bframes: int, quality: float | None, open_gop: bool) -> dict[str, str]:
    """Settings of the codec's library: fixed GOPs, no scene cuts, no look-ahead delay, one thread."""
    options: dict[str, str] = {}
    if quality is not None and codec != "mjpeg":
        options["crf"] = f"{quality:g}"
    if codec == "h264":
        options |= {"preset": "ultrafast", "forced-idr": "1"}
        options["x264-params"] = (
            f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes={bframes}:b-adapt=0:b-pyramid=none:ref=1:threads=1"
            f":rc-lookahead=0:sync-lookahead=0:repeat-headers=1:annexb=1:open-gop={int(open_gop)}:8x8dct=0"
        )
    elif codec == "hevc":
        options |= {"preset": "ultrafast", "forced-idr": "1"}
        options["x265-params"] = (
            f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes={bframes}:b-adapt=0:repeat-headers=1:annexb=1"
            f":open-gop={int(open_gop)}:log-level=none:pools=none:frame-threads=1:rc-lookahead={bframes + 1}"
        )
    elif codec == "vp9":
        options |= {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0", "keyint_min": str(gop)}
    elif codec == "av1" and _library("av1") == "libaom-av1":
        options |= {"usage": "realtime", "cpu-used": "9", "lag-in-frames": "0", "keyint_min": str(gop)}
    elif codec == "av1":
        options |= {"preset": "11", "svtav1-params": "pred-struct=1:lp=1:lookahead=0"}
    elif quality is not None:
        options |= {"qmin": f"{quality:g}", "qmax": f"{quality:g}"}
    return options


def _parameter_sets(codec: str, data: bytes) -> bytes | None:
    """The parameter sets at the head of a keyframe, Annex B; ``None`` where there are none."""
    if codec not in ("h264", "hevc"):
        return None
    wanted = (7, 8) if codec == "h264" else (32, 33, 34)
    out = bytearray()
    for unit in data.split(b"\x00\x00\x01")[1:]:
        kind = unit[0] & 0x1F if codec == "h264" else unit[0] >> 1 & 0x3F
        if kind in wanted:
            out += b"\x00\x00\x00\x01" + unit.rstrip(b"\x00")
    return bytes(out) or None
