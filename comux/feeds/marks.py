"""Numbers in the pixels: camera and frame number as black and white blocks that survive lossy coding and resizing.

64 bits in 4 rows of 16 blocks, most significant first: camera (16), frame (32), checksum (16). The place is a fraction
of the picture (rows 1-4 of 24, columns 1-16 of 32), so that resizing to any width and height keeps it readable; at
160x120 a block is 5x5 pixels. The checksum makes damaged or foreign pictures come out as ``None``.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Any, Final

import crc32c
import numpy as np
import numpy.typing as npt

ROWS: Final = 4
COLUMNS: Final = 16
_GRID_ROWS: Final = 24
_GRID_COLUMNS: Final = 32
_BLACK: Final = 16
_WHITE: Final = 235
_GREY: Final = 126
_LEAST_CONTRAST: Final = 60
_SAMPLES: Final = (0.34, 0.5, 0.66)


def _bits(camera: int, frame: int) -> npt.NDArray[np.uint8]:
    body = struct.pack(">HI", camera & 0xFFFF, frame & 0xFFFFFFFF)
    whole = body + struct.pack(">H", crc32c.crc32c(body) & 0xFFFF)
    return np.unpackbits(np.frombuffer(whole, np.uint8)).reshape(ROWS, COLUMNS)


@lru_cache(maxsize=64)
def _edges(height: int, width: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    ys = np.rint(np.arange(1, ROWS + 2) * height / _GRID_ROWS).astype(np.intp)
    xs = np.rint(np.arange(1, COLUMNS + 2) * width / _GRID_COLUMNS).astype(np.intp)
    return ys, xs


@lru_cache(maxsize=64)
def _sample_points(height: int, width: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    offsets = np.array(_SAMPLES)
    ys = ((np.arange(1, ROWS + 1)[:, None] + offsets) * height / _GRID_ROWS).astype(np.intp).reshape(-1, 1)
    xs = ((np.arange(1, COLUMNS + 1)[:, None] + offsets) * width / _GRID_COLUMNS).astype(np.intp).reshape(1, -1)
    return ys, xs


def draw_quiet_zone(luma: npt.NDArray[np.uint8], u: npt.NDArray[np.uint8], v: npt.NDArray[np.uint8]) -> None:
    """Make the marks' surroundings grey and colourless; once per background.

    Args:
        luma: uint8 (H, W), limited range.
        u, v: uint8 (H/2, W/2).
    """
    height, width = luma.shape
    bottom, right = round(height * (ROWS + 1.5) / _GRID_ROWS), round(width * (COLUMNS + 1.5) / _GRID_COLUMNS)
    luma[:bottom, :right] = _GREY
    u[: -(-bottom // 2), : -(-right // 2)] = 128
    v[: -(-bottom // 2), : -(-right // 2)] = 128


def draw_marks(luma: npt.NDArray[np.uint8], camera: int, frame: int) -> None:
    """Write the numbers into a luma plane, uint8 (H, W), limited range; camera 0-65535, frame modulo 2^32."""
    ys, xs = _edges(*luma.shape)
    blocks = np.where(_bits(camera, frame), np.uint8(_WHITE), np.uint8(_BLACK))
    luma[ys[0] : ys[-1], xs[0] : xs[-1]] = np.repeat(np.repeat(blocks, np.diff(ys), 0), np.diff(xs), 1)


def read_marks(array: npt.NDArray[Any]) -> tuple[int, int] | None:
    """Read the numbers from a picture.

    Args:
        array: uint8 (H, W, 3) BGR or RGB, or (H, W) grey, of any size down to about 64x48.

    Returns:
        ``(camera, frame)``, or ``None`` where the picture shows no marks or damaged ones.
    """
    plane = array[..., 1] if array.ndim == 3 else array
    height, width = plane.shape
    ys, xs = _sample_points(height, width)
    means = plane[ys, xs].reshape(ROWS, len(_SAMPLES), COLUMNS, len(_SAMPLES)).mean(axis=(1, 3))
    low, high = means.min(), means.max()
    if high - low < _LEAST_CONTRAST:
        return None
    camera, frame, checksum = struct.unpack(">HIH", np.packbits(means > (low + high) / 2).tobytes())
    if checksum != crc32c.crc32c(struct.pack(">HI", camera, frame)) & 0xFFFF:
        return None
    return camera, frame
