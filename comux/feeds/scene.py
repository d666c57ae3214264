"""What a synthetic camera sees: a still background, a disc and a box that move, a counter, and the marks.

Pictures are drawn straight into I420 planes (limited range, BT.601): the background once, the rest by a few copies per
picture, so that drawing costs far less than encoding. Each picture is a function of (size, seed, camera, frame number)
alone.
"""

from __future__ import annotations

import colorsys
import random
from typing import Final

import numpy as np
import numpy.typing as npt

from .marks import draw_marks, draw_quiet_zone

Plane = npt.NDArray[np.uint8]

# 3x5 dots per sign, rows top to bottom, three bits each, most significant left.
_FONT: Final = {
    "0": (7, 5, 5, 5, 7),
    "1": (2, 6, 2, 2, 7),
    "2": (7, 1, 7, 4, 7),
    "3": (7, 1, 3, 1, 7),
    "4": (5, 5, 7, 1, 1),
    "5": (7, 4, 7, 1, 7),
    "6": (7, 4, 7, 5, 7),
    "7": (7, 1, 2, 2, 2),
    "8": (7, 5, 7, 5, 7),
    "9": (7, 5, 7, 1, 7),
    "C": (7, 4, 4, 4, 7),
    "A": (2, 5, 7, 5, 5),
    "M": (5, 7, 7, 5, 5),
    " ": (0, 0, 0, 0, 0),
    "-": (0, 0, 7, 0, 0),
}


class Scene:
    """One camera's view.

    Args:
        width, height: In pixels, even, at least 64x48.
        camera: Number in the marks, 0-65535.
        seed: Of colours and paths.

    Not thread-safe: one buffer is drawn again and again.
    """

    def __init__(self, width: int, height: int, camera: int, seed: int) -> None:
        self.width, self.height, self.camera = width, height, camera
        self._random = random.Random(f"{seed}/{camera}")
        self._hue = self._random.random()
        self._background = self._draw_background()
        self._picture = self._background.copy()
        self._disc, self._disc_mask = self._draw_disc()
        self._paths = [self._random.uniform(0.4, 1.0) for _ in range(4)]
        self._phases = [self._random.random() for _ in range(4)]
        self._scale = max(1, height // 90)
        self._glyphs = {sign: self._draw_glyph(rows) for sign, rows in _FONT.items()}

    def picture(self, frame: int) -> Plane:
        """Draw picture number ``frame``.

        Returns:
            uint8 (H*3/2, W): the I420 planes below each other. Drawn over by the next call.
        """
        h = self.height
        np.copyto(self._picture, self._background)
        luma = self._picture[:h]
        self._paste_box(luma, frame)
        self._paste_disc(frame)
        self._paste_text(luma, f"CAM{self.camera} {frame:06d}")
        draw_marks(luma, self.camera, frame)
        return self._picture

    def _planes(self, picture: Plane) -> tuple[Plane, Plane, Plane]:
        h, w = self.height, self.width
        size = h // 2 * (w // 2)
        chroma = picture[h:].reshape(-1)
        shape = (h // 2, w // 2)
        return picture[:h], chroma[:size].reshape(shape), chroma[size:].reshape(shape)

    def _draw_background(self) -> Plane:
        h, w = self.height, self.width
        picture = np.empty((h * 3 // 2, w), np.uint8)
        luma, u, v = self._planes(picture)
        y, x = np.mgrid[0:h, 0:w]
        luma[:] = 70 + 70 * x / w + 30 * y / h
        # A floor of tiles gives the eye, and motion estimation, something to hold on to.
        tile = max(8, h // 10)
        floor = y > h * 6 // 10
        luma[floor & ((x // tile + y // tile) % 2 == 0)] -= 24
        base_u, base_v = _chroma(self._hue)
        cy, cx = np.mgrid[0 : h // 2, 0 : w // 2]
        u[:] = base_u + 20 * (cx / (w / 2) - 0.5)
        v[:] = base_v + 20 * (cy / (h / 2) - 0.5)
        draw_quiet_zone(luma, u, v)
        return picture

    def _draw_disc(self) -> tuple[tuple[Plane, Plane, Plane], tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]]:
        size = max(12, self.height // 5 // 2 * 2)
        y, x = np.mgrid[0:size, 0:size] - (size - 1) / 2
        distance = np.hypot(x, y) / (size / 2)
        light = np.hypot(x + size / 6, y + size / 6) / size
        luma = np.clip(225 - 150 * light, 40, 235).astype(np.uint8)
        u, v = _chroma((self._hue + 0.5) % 1.0, 0.9)
        half = (size // 2, size // 2)
        mask = distance <= 1
        return (luma, np.full(half, u, np.uint8), np.full(half, v, np.uint8)), (mask, mask[::2, ::2])

    def _draw_glyph(self, rows: tuple[int, ...]) -> Plane:
        dots = np.array([[row >> 2 & 1, row >> 1 & 1, row & 1, 0] for row in (*rows, 0)], np.uint8)
        signs = np.where(dots, np.uint8(230), np.uint8(30))
        return signs.repeat(self._scale, 0).repeat(self._scale, 1)

    def _position(self, axis: int, frame: int, span: int) -> int:
        """A triangle wave over ``span`` pixels; one way takes 2-5 seconds at 30 fps."""
        way = (frame * self._paths[axis] / 60 + self._phases[axis]) % 2
        return int(span * (way if way <= 1 else 2 - way)) // 2 * 2

    def _paste_disc(self, frame: int) -> None:
        luma, u, v = self._planes(self._picture)
        size = self._disc[0].shape[0]
        top = self.height // 4
        y = (top + self._position(0, frame, self.height - top - size)) // 2 * 2
        x = self._position(1, frame, self.width - size)
        np.copyto(luma[y : y + size, x : x + size], self._disc[0], where=self._disc_mask[0])
        half = size // 2
        for plane, sprite in ((u, self._disc[1]), (v, self._disc[2])):
            np.copyto(plane[y // 2 : y // 2 + half, x // 2 : x // 2 + half], sprite, where=self._disc_mask[1])

    def _paste_box(self, luma: Plane, frame: int) -> None:
        size = max(8, self.height // 8)
        top = self.height // 3
        y = top + self._position(2, frame, self.height - top - size)
        x = self._position(3, frame, self.width - size)
        luma[y : y + size, x : x + size] = 50
        luma[y + size // 4 : y + size - size // 4, x + size // 4 : x + size - size // 4] = 200

    def _paste_text(self, luma: Plane, text: str) -> None:
        scale = self._scale
        y, x = self.height - 7 * scale - 2, 4 * scale
        for sign in text:
            glyph = self._glyphs.get(sign)
            if glyph is None or x + glyph.shape[1] > self.width:
                return
            luma[y : y + glyph.shape[0], x : x + glyph.shape[1]] = glyph
            x += glyph.shape[1]


def _chroma(hue: float, saturation: float = 0.35) -> tuple[int, int]:
    """U and V (BT.601, limited range) of a colour."""
    r, g, b = colorsys.hsv_to_rgb(hue, saturation, 0.8)
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    return round(128 + 224 * (b - luma) / 1.772), round(128 + 224 * (r - luma) / 1.402)
