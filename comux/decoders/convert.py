"""Pixels: from the codec's planes to the array a user asked for.

A ``Converter`` is made once per picture layout (format, size, colour tags) and used for every picture of that layout.
It may be shared by threads; one *frame* must not be converted by two threads at once, because libswscale's binding
swaps the frame's colour tags while it works.

Colour: the tags of the stream are honoured (BT.601, BT.709, BT.2020, FCC, SMPTE 240M; limited or full range). A stream
without a matrix tag is taken as BT.601 and one without a range tag as limited, which is what FFmpeg, OpenCV and PyAV
assume. ``bgr24``, ``rgb24`` and ``gray`` arrays are full range (black is 0, white is 255); ``planes`` are the camera's
own values, untouched.

Two ways. 8-bit 4:2:0 and 4:2:2 pictures (planar and NV12) go through the C kernel (``_convert``): one call, the best
vector instructions of the machine, right to less than one unit. Chroma is replicated. Where another size is wanted the
same call resizes: along an axis that shrinks a pixel is the average of the area it covers, along one that grows it is
interpolated, chroma lies in the middle of the pixels it belongs to, and every pixel gets chroma of its own. Every other
format goes through libswscale, with settings that are as exact without resizing; only where an odd size has subsampled
chroma of more than 8 bits (no camera does) is chroma up to one sample off. ``gray`` of any YUV is its luma.
``COMUX_PIXELS`` chooses by hand: one of the kernel's instruction sets (``avx512``, ``avx2``, ``sse4.1``, ``plain``) or
``swscale``.
"""

from __future__ import annotations

import os
from collections import deque
from typing import Any, Final

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from comux.errors import ComuxError, ConfigError

from . import _convert
from .interface import ArrayFormat
from .pool import ArrayPool

__all__ = ["ArrayPool", "Converter", "array_spec", "converter"]

# AVColorSpace (ITU-T H.273 MatrixCoefficients), as ``VideoFrame.colorspace`` gives it, to libswscale's names.
_MATRIX: Final[dict[int, int]] = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
    10: Colorspace.BT2020,
}
# The same to the weights of red and blue in luma.
_WEIGHTS: Final[dict[int, tuple[float, float]]] = {
    Colorspace.ITU709: (0.2126, 0.0722),
    Colorspace.FCC: (0.30, 0.11),
    Colorspace.ITU601: (0.299, 0.114),
    Colorspace.SMPTE240M: (0.212, 0.087),
    Colorspace.BT2020: (0.2627, 0.0593),
}
# What the kernel converts: luma rows per chroma row, and how many planes hold chroma.
_KERNEL_FORMATS: Final[dict[str, tuple[int, int]]] = {
    "yuv420p": (2, 2),
    "yuvj420p": (2, 2),
    "yuv422p": (1, 2),
    "yuvj422p": (1, 2),
    "nv12": (2, 1),
}
# libswscale without resizing: chroma replicated as the kernel does it, colours computed at full width and rounded right
# (its default is wrong by up to 4, and smears 4:2:0 chroma of 10 bits over neighbours).
_EXACT: Final = Interpolation.POINT | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_CHOICE_VARIABLE: Final = "COMUX_PIXELS"
_FULL_RANGE_FORMATS: Final = ("yuvj420p", "yuvj422p", "yuvj444p", "yuvj440p", "yuvj411p")
_SWS_FORMAT: Final[dict[str, str]] = {"bgr24": "bgr24", "rgb24": "rgb24", "gray": "gray", "planes": "yuv420p"}
_UINT8: Final = np.dtype(np.uint8)


def array_spec(array_format: ArrayFormat, width: int, height: int) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of an array of ``array_format`` showing ``width`` x ``height`` pixels.

    Odd sizes have no ``planes`` (chroma is half the size): the last column or row is left out.

    Raises:
        ConfigError: ``array_format`` is not one that video becomes.
    """
    if array_format in ("bgr24", "rgb24"):
        return (height, width, 3), _UINT8
    if array_format == "gray":
        return (height, width), _UINT8
    if array_format == "planes":
        return (height // 2 * 3, width // 2 * 2), _UINT8
    raise ConfigError(f"array_format {array_format!r}: video becomes bgr24, rgb24, gray or planes")


class Converter:
    """Converts frames of one layout into arrays of one layout.

    Attributes:
        spec: Shape and dtype of what ``convert`` returns.
        path: ``kernel``, ``swscale``, or ``swscale+kernel``: luma of a rare format, made 8 bits by libswscale.
    """

    def __init__(
        self,
        frame_format: str,
        src_w: int,
        src_h: int,
        colorspace: int,
        color_range: int,
        array_format: ArrayFormat,
        width: int | None,
        height: int | None,
    ) -> None:
        self.frame_format = frame_format
        self.source_size = (src_w, src_h)
        self.array_format = array_format
        target_w, target_h = width or src_w, height or src_h
        if array_format == "planes":
            if (width or 0) % 2 or (height or 0) % 2:
                raise ConfigError(f"planes of {target_w}x{target_h}: chroma has half the size, choose even W and H")
            target_w, target_h = max(2, target_w // 2 * 2), max(2, target_h // 2 * 2)
        self.spec = array_spec(array_format, target_w, target_h)
        self.full_range = color_range == ColorRange.JPEG or frame_format in _FULL_RANGE_FORMATS
        self._matrix = _MATRIX.get(colorspace, Colorspace.ITU601)
        self._size = (target_w, target_h)
        if self._size == (src_w, src_h) and array_format != "planes":
            self._interpolation = _EXACT
        else:
            smaller = target_w < src_w or target_h < src_h
            self._interpolation = Interpolation.AREA if smaller else Interpolation.BILINEAR
        luma_only = array_format == "gray" and _has_luma(frame_format)
        if _swscale_only() or array_format == "planes" or not (frame_format in _KERNEL_FORMATS or luma_only):
            self.path = "swscale"
        elif frame_format not in _KERNEL_FORMATS:
            self.path = "swscale+kernel"  # libswscale's own gray goes through clipped RGB
        else:
            self.path = "kernel"
        # libswscale contexts are not thread-safe; each conversion borrows one.
        self._reformatters: deque[VideoReformatter] = deque()

    def convert(self, frame: av.VideoFrame, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Convert one frame; releases the GIL during the work.

        Args:
            frame: Of the layout the converter was made for.
            out: Written in place where given; exactly ``spec``'s shape and dtype, C-contiguous.

        Returns:
            ``out``, or a fresh array that shares nothing with the frame.

        Raises:
            ValueError: the frame has another format or size, or ``out`` another shape, dtype or memory order.
        """
        if (frame.width, frame.height) != self.source_size or frame.format.name != self.frame_format:
            raise ValueError(
                f"frame is {frame.format.name} {frame.width}x{frame.height}, converter was made for "
                f"{self.frame_format} {self.source_size[0]}x{self.source_size[1]}"
            )
        shape, dtype = self.spec
        if out is None:
            out = np.empty(shape, dtype)
        elif out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous:
            raise ValueError(f"out is {out.dtype} {out.shape}, needs C-contiguous {dtype} {shape}")
        if self.path == "swscale+kernel":
            # Luma of more than 8 bits becomes full range while it has all of them. Between equal kinds of chroma
            # libswscale would only cut bits off.
            scaled = self._scaled(frame, "yuv411p", full_range=True)
            if not self._kernel(scaled, out, full_range=True):
                raise ComuxError(f"libswscale gave {scaled.format.name} planes stored bottom up")
        elif self.path != "kernel" or not self._kernel(frame, out, self.full_range):
            self._swscale(frame, out)
        return out

    def _kernel(self, frame: av.VideoFrame, out: npt.NDArray[Any], full_range: bool) -> bool:
        planes = frame.planes
        strides = [plane.line_size for plane in planes]
        if min(strides) <= 0:
            return False  # stored bottom up: rare, and libswscale knows how
        width, height = self._size
        if self.array_format == "gray":
            _convert.luma_to_gray(
                planes[0], strides[0], frame.width, frame.height, full_range, out, width, width, height
            )
            return True
        chroma_rows, chroma_planes = _KERNEL_FORMATS[frame.format.name]
        kr, kb = _WEIGHTS[self._matrix]
        _convert.yuv_to_packed(
            planes[0],
            strides[0],
            planes[1],
            strides[1],
            planes[2] if chroma_planes == 2 else None,
            strides[-1],
            frame.width,
            frame.height,
            chroma_rows,
            kr,
            kb,
            full_range,
            self.array_format == "rgb24",
            out,
            width * 3,
            width,
            height,
        )
        return True

    def _scaled(self, frame: av.VideoFrame, pixel_format: str, full_range: bool) -> av.VideoFrame:
        try:
            reformatter = self._reformatters.pop()
        except IndexError:
            reformatter = VideoReformatter()
        done = reformatter.reformat(
            frame,
            width=self._size[0],
            height=self._size[1],
            format=pixel_format,
            src_colorspace=self._matrix,
            dst_colorspace=self._matrix,
            interpolation=self._interpolation,
            src_color_range=ColorRange.JPEG if self.full_range else ColorRange.MPEG,
            dst_color_range=ColorRange.JPEG if full_range else ColorRange.MPEG,
            threads=1,
        )
        self._reformatters.append(reformatter)
        return done

    def _swscale(self, frame: av.VideoFrame, out: npt.NDArray[Any]) -> None:
        full_range = self.full_range if self.array_format == "planes" else True
        done = self._scaled(frame, _SWS_FORMAT[self.array_format], full_range)
        rows = 0
        flat = out.reshape(-1)
        for plane in done.planes:
            line = plane.width * (3 if self.array_format in ("bgr24", "rgb24") else 1)
            n = line * plane.height
            picture = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)[:, :line]
            flat[rows : rows + n].reshape(plane.height, line)[:] = picture
            rows += n


def _has_luma(frame_format: str) -> bool:
    kind = av.VideoFormat(frame_format)
    return not kind.is_rgb and len(kind.components) >= 3


def _swscale_only() -> bool:
    return os.environ.get(_CHOICE_VARIABLE, "") == "swscale"


def conversion_path() -> str:
    """What converts the common formats here: an instruction set (``avx512``, …, ``plain``), or ``swscale``."""
    return "swscale" if _swscale_only() else _convert.instruction_set()


def _choose_instruction_set() -> None:
    """Honour ``COMUX_PIXELS`` once, at import; what is not available is an error rather than a silent other choice."""
    name = os.environ.get(_CHOICE_VARIABLE, "")
    if name and name != "swscale":
        if name not in _convert.instruction_sets():
            possible = ", ".join((*_convert.instruction_sets(), "swscale"))
            raise ConfigError(f"{_CHOICE_VARIABLE}={name!r}: possible here are {possible}")
        _convert.use_instruction_set(name)


def converter(
    frame_format: str,
    src_w: int,
    src_h: int,
    colorspace: int,
    color_range: int,
    array_format: ArrayFormat = "bgr24",
    width: int | None = None,
    height: int | None = None,
) -> Converter:
    """Make the converter for frames of one layout.

    Args:
        frame_format: ``frame.format.name``.
        src_w, src_h: ``frame.width``, ``frame.height`` in pixels.
        colorspace: ``frame.colorspace`` (H.273 matrix coefficients; 2 is "unspecified").
        color_range: ``frame.color_range`` (0 unspecified, 1 limited, 2 full).
        array_format: ``bgr24``, ``rgb24``, ``gray`` or ``planes``.
        width, height: Size of the arrays in pixels; ``None``: the source's.

    Raises:
        ConfigError: video does not become this ``array_format``, or an odd size was asked for with ``planes``.
    """
    return Converter(frame_format, src_w, src_h, colorspace, color_range, array_format, width, height)


_choose_instruction_set()
