"""The demo's small computation: where a camera's picture changed since the one before.

Pure: arrays in, numbers out. It stands where a user's model would stand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Box = tuple[int, int, int, int]  #: left, top, right, bottom in pixels of the picture, right and bottom outside

Fraction = tuple[float, float]  #: of width and height

COLUMNS: Final = 40  #: cells across a picture; the rest follows from its shape
THRESHOLD: Final = 4.0  #: mean difference of grey levels at which a cell counts as changed


@dataclass(frozen=True, slots=True)
class Motion:
    """What changed between two pictures.

    Attributes:
        amount: Mean absolute difference of the grey levels, 0 to 255.
        box: Around the largest changed region; ``None`` where nothing moved.
    """

    amount: float
    box: Box | None


class MotionDetector:
    """Compares each picture of one camera with the one before. Not thread-safe; one per camera.

    Args:
        ignore: What is left out at the top left, as parts of width and height: a time stamp, say, or the numbers that
            synthetic cameras draw.
    """

    def __init__(self, ignore: Fraction = (0.0, 0.0)) -> None:
        self._ignore = ignore
        self._before: npt.NDArray[np.float32] | None = None

    def look(self, picture: npt.NDArray[Any]) -> Motion:
        """Compare ``picture`` (``uint8 (H, W, 3)``, any order of colours) with the last one.

        Returns:
            No motion for the first picture and after a change of size.
        """
        step = max(1, picture.shape[1] // COLUMNS)
        cells = grey_cells(picture, step)
        before, self._before = self._before, cells
        if before is None or before.shape != cells.shape:
            return Motion(0.0, None)
        difference = np.abs(cells - before)
        right, bottom = (math.ceil(n * part) for n, part in zip(cells.shape[::-1], self._ignore, strict=True))
        difference[:bottom, :right] = 0
        return Motion(round(float(difference.mean()), 3), largest_region(difference > THRESHOLD, step))


def grey_cells(picture: npt.NDArray[Any], step: int) -> npt.NDArray[np.float32]:
    """Mean green level of each ``step`` x ``step`` cell, sampled every other pixel; incomplete cells are left out.

    Returns:
        ``float32 (H // step, W // step)``, at least one cell.
    """
    green = picture[:, :, 1] if picture.ndim == 3 else picture
    rows, columns = max(1, green.shape[0] // step), max(1, green.shape[1] // step)
    part = green[: rows * step, : columns * step]
    part = part.reshape(rows, part.shape[0] // rows, columns, part.shape[1] // columns)[:, ::2, :, ::2]
    mean: npt.NDArray[np.float32] = part.mean(axis=(1, 3), dtype=np.float32)
    return mean


def largest_region(changed: npt.NDArray[np.bool_], step: int) -> Box | None:
    """Box in pixels around the largest group of touching changed cells; ``None`` where no cell changed."""
    left = {(int(row), int(column)) for row, column in np.argwhere(changed)}
    best: list[tuple[int, int]] = []
    while left:
        group = [left.pop()]
        for row, column in group:  # the list grows while it is walked: a breadth-first search
            for beside in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                if beside in left:
                    left.remove(beside)
                    group.append(beside)
        if len(group) > len(best):
            best = group
    if not best:
        return None
    rows, columns = [row for row, _ in best], [column for _, column in best]
    return min(columns) * step, min(rows) * step, (max(columns) + 1) * step, (max(rows) + 1) * step
