"""Pixels in C. Sizes are checked against the buffers before anything is touched; the GIL is released meanwhile."""

from typing import Any

import numpy as np
from av.video.plane import VideoPlane
from typing_extensions import Buffer as _Exporter

Buffer = _Exporter | VideoPlane | np.ndarray[Any, Any]

def yuv_to_packed(
    y: Buffer,
    y_stride: int,
    u: Buffer,
    u_stride: int,
    v: Buffer | None,
    v_stride: int,
    width: int,
    height: int,
    chroma_rows: int,
    kr: float,
    kb: float,
    full_range: bool,
    rgb: bool,
    out: Buffer,
    out_stride: int,
    out_width: int,
    out_height: int,
    /,
) -> None:
    """Convert one 8-bit picture with half-width chroma to 3 bytes a pixel.

    Args:
        y, u, v: Planes; ``v`` is ``None`` where ``u`` holds U and V interleaved (NV12).
        y_stride, u_stride, v_stride, out_stride: Bytes from row to row, at least a row's width.
        width, height: Of the planes, in pixels, 1 to 65536, odd ones too.
        chroma_rows: Luma rows per chroma row: 2 (4:2:0) or 1 (4:2:2).
        kr, kb: Luma weights of red and blue, e.g. 0.299 and 0.114 (BT.601).
        full_range: The planes' range; the output's is full.
        rgb: ``False``: B, G, R in memory; ``True``: R, G, B.
        out: Writable.
        out_width, out_height: Of the array, in pixels, 1 to 65536. Another size than the planes': resized as
            ``convert.py`` says, working in less memory than some rows of both take.

    Raises:
        MemoryError: there is none for resizing.
        ValueError: a buffer is too small for its size and stride, or a number is out of range.
    """

def luma_to_gray(
    y: Buffer,
    y_stride: int,
    width: int,
    height: int,
    full_range: bool,
    out: Buffer,
    out_stride: int,
    out_width: int,
    out_height: int,
    /,
) -> None:
    """Copy a luma plane, stretched to full range where it is limited, resized as above; raises as above."""

def instruction_sets() -> tuple[str, ...]:
    """Those this machine can run, best first: ``avx512``, ``avx2``, ``sse4.1``, ``plain``."""

def instruction_set() -> str:
    """The one in use."""

def use_instruction_set(name: str, /) -> None:
    """Choose one, for the whole process; for tests. Raises ``ValueError`` where it is not available."""
