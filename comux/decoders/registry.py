"""Which decoders there are: the built-in ones and those of installed plug-ins (entry-point group ``comux.codecs``).

A plug-in is a class with the ``Decoder`` contract whose only argument is ``DecoderOptions``, and one line in the
``comux.codecs`` table of its own package. It may not take a built-in name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final, get_args

import av
import numpy as np

from comux.errors import ConfigError, UnknownCodecError

from .codec import check_device
from .framing import PARSED
from .interface import ArrayFormat, Decoder, DecoderOptions

GROUP: Final = "comux.codecs"
ALIASES: Final = {"h265": "hevc", "mjpg": "mjpeg", "avc": "h264"}
_BUILT_IN: Final = {
    "h264": "comux.decoders.video:VideoDecoder",
    "hevc": "comux.decoders.video:VideoDecoder",
    "mjpeg": "comux.decoders.video:VideoDecoder",
    "vp9": "comux.decoders.video:VideoDecoder",
    "av1": "comux.decoders.video:VideoDecoder",
    "raw": "comux.decoders.raw:RawDecoder",
    "frames": "comux.decoders.raw:SharedFrameDecoder",
}
_MAX_SIDE: Final = 1 << 16


def _plug_ins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in _BUILT_IN}


def canonical_codec(codec: str) -> str | None:
    """The built-in name that ``codec`` (in any case, or an alias) stands for; ``None`` where it is no built-in."""
    name = ALIASES.get(codec.lower(), codec.lower())
    return name if name in _BUILT_IN else None


def known_codecs() -> tuple[str, ...]:
    """Names that ``DecoderOptions.codec`` may have, sorted; aliases left out."""
    return tuple(sorted({*_BUILT_IN, *_plug_ins()}))


def _load(codec: str) -> Callable[[DecoderOptions], Decoder]:
    if codec in _BUILT_IN:
        module, _, name = _BUILT_IN[codec].partition(":")
        found: Any = getattr(import_module(module), name)
    else:
        point = _plug_ins().get(codec)
        if point is None:
            raise UnknownCodecError(f"codec {codec!r} is unknown; known are {', '.join(known_codecs())}")
        try:
            found = point.load()
        except (ImportError, AttributeError) as error:
            raise UnknownCodecError(f"codec {codec!r}: its plug-in {point.value} does not load: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Decoder)):
        raise ConfigError(f"codec {codec!r}: {found!r} is no comux.decoders.Decoder class")
    return found


def create_decoder(options: DecoderOptions) -> Decoder:
    """Make the decoder that ``options`` describe.

    Args:
        options: Checked here, completely; ``codec`` may be an alias (h265, mjpg, avc).

    Raises:
        UnknownCodecError: nobody registered the codec, or the installed PyAV lacks it.
        ConfigError: another setting is wrong; the message names it.
    """
    if not isinstance(options.codec, str):
        raise ConfigError(f"codec is {options.codec!r}; must be a name, one of {', '.join(known_codecs())}")
    codec = options.codec.lower()
    options = replace(options, codec=ALIASES.get(codec, codec))
    cls = _load(options.codec)
    check_options(options)
    return cls(options)


def _check_number(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise ConfigError(f"{name} is {value!r}; must be a whole number from {low} to {high}")


def check_options(options: DecoderOptions) -> None:
    """Check every setting but the codec's name.

    Raises:
        ConfigError: names the setting, its value and what it may be.
    """
    for name, side in (("width", options.width), ("height", options.height)):
        if side is not None:
            _check_number(name, side, 1, _MAX_SIDE)
    _check_number("max_pixels", options.max_pixels, 1, 1 << 40)
    _check_number("threads", options.threads, 0, 256)
    if options.hwaccel is not None and options.codec in _BUILT_IN:
        check_device(options.hwaccel, options.codec)
    choices: dict[str, tuple[str, tuple[str, ...]]] = {
        "array_format": (options.array_format, get_args(ArrayFormat)),
        "on_damage": (options.on_damage, ("drop", "deliver")),
        "framing": (options.framing, ("record", "bytestream")),
    }
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise ConfigError(f"{name} is {value!r}; must be one of {', '.join(allowed)}")
    if options.extradata is not None and not isinstance(options.extradata, bytes):
        raise ConfigError(f"extradata is {type(options.extradata).__name__}; must be bytes or None")
    if options.framing == "bytestream" and options.codec not in PARSED:
        raise ConfigError(f"framing 'bytestream' with codec {options.codec!r}; only {', '.join(PARSED)} can be cut")
    video = options.codec in _BUILT_IN and options.codec not in ("raw", "frames")
    if video and options.array_format == "native":
        raise ConfigError(f"array_format 'native' with codec {options.codec!r}; it is for raw arrays and frames")
    if options.width and options.height and options.width * options.height > options.max_pixels:
        raise ConfigError(f"width x height {options.width}x{options.height} is over max_pixels={options.max_pixels}")
    _check_pix_fmt(options.pix_fmt)
    _check_array(options)


def _check_pix_fmt(pix_fmt: str | None) -> None:
    if pix_fmt is None:
        return
    try:
        av.VideoFormat(pix_fmt)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"pix_fmt is {pix_fmt!r}, which FFmpeg does not know; yuv420p is usual") from error


def _check_array(options: DecoderOptions) -> None:
    if options.dtype is not None:
        try:
            dtype = np.dtype(options.dtype)
        except TypeError as error:
            raise ConfigError(f"dtype is {options.dtype!r}, which numpy does not know: {error}") from error
        if dtype.hasobject or dtype.itemsize == 0:
            raise ConfigError(f"dtype is {dtype}; arrays of Python objects or of no size cannot be carried")
    if options.shape is not None:
        if not isinstance(options.shape, tuple):
            raise ConfigError(f"shape is {options.shape!r}; must be a tuple of whole numbers")
        for side in options.shape:
            _check_number("shape", side, 0, 1 << 40)
