"""One codec context of FFmpeg: bytes with a token in, frames with that token out, errors as values.

The token travels as the packet's ``pts``, which every decoder used here hands to the picture, through reordering and
frame threads. Packets are copied into memory of FFmpeg's own, because its decoders read up to 64 bytes past the end of
a packet, which a Python object does not have. An empty packet is the codec's end-of-stream mark and is never sent as a
packet. FFmpeg's messages stay off (PyAV's default); no log callback is ever set, since one called from a codec's own
thread waits for the GIL.
"""

from __future__ import annotations

from typing import Final, cast

import av
from av.codec.context import Flags, ThreadType
from av.codec.hwaccel import HWAccel
from av.video.codeccontext import VideoCodecContext

from comux.errors import ConfigError, DeviceError, UnknownCodecError

_HARDWARE: Final = {"h264": "h264", "hevc": "hevc", "mjpeg": "mjpeg", "vp9": "vp9", "av1": "av1"}
_DECODERS: Final[dict[str, tuple[str, ...]]] = {
    "h264": ("h264",),
    "hevc": ("hevc",),
    "mjpeg": ("mjpeg",),
    "vp9": ("vp9", "libvpx-vp9"),
    "av1": ("libdav1d", "libaom-av1"),  # FFmpeg's own "av1" only drives hardware
}


def decoder_name(codec: str) -> str:
    """FFmpeg's name of the software decoder for ``codec``.

    Raises:
        UnknownCodecError: the installed PyAV has none.
    """
    for name in _DECODERS.get(codec, ()):
        try:
            found = av.Codec(name, "r")
            if found.is_decoder:
                return found.name
        except ValueError:  # av.codec.UnknownCodecError is one
            continue
    raise UnknownCodecError(
        f"codec {codec!r}: the installed PyAV {av.__version__} has none of {_DECODERS.get(codec, ())}; "
        "install a PyAV built with it"
    )


def check_device(hwaccel: object, codec: str) -> None:
    """Check a device that shall decode, as far as that can be known without opening it.

    Raises:
        ConfigError: it is no device's name, or no hardware decodes this codec.
        DeviceError: the installed PyAV drives no such device for this codec.
    """
    if not isinstance(hwaccel, str) or not hwaccel.partition(":")[0]:
        raise ConfigError(
            f"hwaccel is {hwaccel!r}; must be a kind of device, as in 'cuda' or 'vaapi:/dev/dri/renderD128'"
        )
    if codec not in _HARDWARE:
        raise ConfigError(f"hwaccel {hwaccel!r} with codec {codec!r}; devices decode {', '.join(_HARDWARE)}")
    configs = av.Codec(_HARDWARE[codec], "r").hardware_configs or ()
    known = sorted({config.device_type.name for config in configs if config.is_supported})
    if hwaccel.partition(":")[0] not in known:
        raise DeviceError(
            f"hwaccel {hwaccel!r}: the installed PyAV {av.__version__} decodes {codec} in hardware with "
            f"{', '.join(known) or 'nothing'}; leave hwaccel out to decode in software, or install a PyAV built with it"
        )


def _opened(device: HWAccel, decoder: str) -> HWAccel:
    """The device, after a decoder on it could be made: that is what opens it."""
    av.CodecContext.create(decoder, "r", hwaccel=device)
    return device


class Codec:
    """A decoder of FFmpeg. Not thread-safe.

    Args:
        codec: ``h264``, ``hevc``, ``mjpeg``, ``vp9`` or ``av1``.
        threads: 1: slice threads, one of them: no frames of delay. 0: frame threads as FFmpeg chooses. N: N frame
            threads, N - 1 frames of delay.
        extradata: Given to the codec as it is; ``None``: none.
        max_pixels: Backstop; the codec refuses to allocate pictures beyond about twice this many.
        hwaccel: See ``DecoderOptions``; checked by ``check_device``. Pictures come back into the machine's memory.

    Raises:
        DeviceError: the device cannot be opened.
    """

    def __init__(
        self, codec: str, *, threads: int, extradata: bytes | None, max_pixels: int, hwaccel: str | None = None
    ) -> None:
        self._name = decoder_name(codec) if hwaccel is None else _HARDWARE[codec]
        self._hwaccel = hwaccel
        self._threads = threads if hwaccel is None else 1
        self._extradata = extradata
        # FFmpeg compares the size padded to whole blocks, so its own limit must be looser than ours.
        self._max_pixels = min(2 * max_pixels + (1 << 16), (1 << 31) - 1)
        self._context = self._make()
        self._sent = False

    def _make(self) -> VideoCodecContext:
        context = cast(VideoCodecContext, av.CodecContext.create(self._name, "r", hwaccel=self._device()))
        context.thread_type = ThreadType.SLICE if self._threads == 1 else ThreadType.FRAME
        context.thread_count = self._threads
        # Pictures that the codec knows to be wrong come out flagged instead of vanishing: each packet gets its answer.
        context.flags |= Flags.output_corrupt
        context.options = {"max_pixels": str(self._max_pixels)}
        if self._extradata is not None:
            context.extradata = self._extradata
        return context

    def _device(self) -> HWAccel | None:
        if self._hwaccel is None:
            return None
        kind, _, name = self._hwaccel.partition(":")
        try:
            return _opened(HWAccel(kind, name or None, allow_software_fallback=False), self._name)
        except (av.FFmpegError, ValueError, OSError, RuntimeError) as error:
            raise DeviceError(
                f"hwaccel {self._hwaccel!r}: the device cannot be opened ({error}); is it there, its driver loaded, "
                "and may this user use it? Leave hwaccel out to decode in software"
            ) from error

    def renew(self) -> None:
        """Start with a fresh context, parameter sets forgotten.

        Needed after the codec met an error: FFmpeg's H.264 decoder keeps coefficients of a block given up half way,
        through ``flush`` too, and adds them to the next keyframe (seen: one wrong block to the end of that GOP).
        """
        self._context = self._make()
        self._sent = False

    def submit(self, token: int, data: bytes) -> tuple[list[av.VideoFrame], str]:
        """Decode one packet; releases the GIL.

        Args:
            token: Comes back as the picture's ``pts``.
            data: Never empty.

        Returns:
            Frames that are complete now, in display order, and for people the codec's error (``""``: none).
        """
        packet = av.Packet(len(data))
        packet.update(data)
        packet.pts = packet.dts = token
        self._sent = True
        try:
            return self._context.decode(packet), ""
        except (av.FFmpegError, ValueError, OSError) as error:
            return [], f"{type(error).__name__}: {error}"

    def finish(self) -> tuple[list[av.VideoFrame], str]:
        """The frames the codec still holds; afterwards it is as after ``flush``."""
        if not self._sent:
            return [], ""
        frames: list[av.VideoFrame] = []
        problem = ""
        try:
            frames = self._context.decode(None)
        except (av.FFmpegError, ValueError, OSError) as error:
            problem = f"{type(error).__name__}: {error}"
        self.flush()
        return frames, problem

    def flush(self) -> None:
        """Forget every picture; parameter sets are kept."""
        if self._sent:
            self._context.flush_buffers()
            self._sent = False

    @property
    def delay_bound(self) -> int:
        """A packet whose picture has not come out after this many further packets will never give one."""
        return 2 * 16 + 4 + max(1, self._context.thread_count)
