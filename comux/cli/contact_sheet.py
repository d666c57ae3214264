"""One picture of a whole batch: every source's item in a grid, with what comux knows about it.

An empty item is a dark panel that says why it is empty; where the source showed a picture before, that picture is
behind it, faint. Pure: tiles in, a PIL image out.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from comux.cli.motion import Box

_Colour = tuple[int, int, int]

BACKGROUND: Final[_Colour] = (15, 18, 24)
PANEL: Final[_Colour] = (28, 33, 42)
BAR: Final[_Colour] = (24, 28, 36)
TEXT: Final[_Colour] = (236, 239, 244)
QUIET: Final[_Colour] = (148, 157, 172)
MOTION: Final[_Colour] = (255, 196, 61)
STATE_COLOURS: Final[dict[str, _Colour]] = {
    "running": (74, 201, 126),
    "starting": (110, 168, 254),
    "stalled": (242, 166, 53),
    "reconnecting": (242, 166, 53),
    "resyncing": (242, 166, 53),
    "failed": (239, 83, 80),
}
TILE_WIDTH: Final = 640  #: pixels, at most; large walls get smaller tiles
SHEET_WIDTH: Final = 2000
MARGIN: Final = 16
BAR_HEIGHT: Final = 44
HEADER_HEIGHT: Final = 72


@dataclass(frozen=True, slots=True)
class Tile:
    """One source's item of the batch.

    Attributes:
        name: The source.
        picture: ``uint8 (H, W, 3)`` BGR, or ``None`` where the item is empty.
        before: The last picture the source showed, for the panel of an empty item.
        state: Of the source, in lower case.
        facts: Short facts, for example ``frame 812``, ``age 21 ms``.
        reason: Why the item is empty.
        box: Of the motion found, in pixels of ``picture``.
        label: Beside the box.
    """

    name: str
    picture: npt.NDArray[np.uint8] | None
    before: npt.NDArray[np.uint8] | None = None
    state: str = ""
    facts: tuple[str, ...] = ()
    reason: str = ""
    box: Box | None = None
    label: str = ""


def draw_sheet(tiles: Sequence[Tile], title: str, subtitle: str) -> Image.Image:
    """Draw the tiles in a grid under a line of title.

    Args:
        tiles: At least one, in the order of the batch.
        title: Left in the header.
        subtitle: Below it, quieter.
    """
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    width = min(TILE_WIDTH, max(200, (SHEET_WIDTH - MARGIN) // columns - MARGIN))
    height = _tile_height(tiles, width)
    sheet = Image.new(
        "RGB",
        (MARGIN + columns * (width + MARGIN), HEADER_HEIGHT + rows * (height + BAR_HEIGHT + MARGIN)),
        BACKGROUND,
    )
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, 12), title, fill=TEXT, font=_font(26))
    draw.text((MARGIN, 44), subtitle, fill=QUIET, font=_font(15))
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        left = MARGIN + column * (width + MARGIN)
        top = HEADER_HEIGHT + row * (height + BAR_HEIGHT + MARGIN)
        sheet.paste(_draw_tile(tile, width, height), (left, top))
    return sheet


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Write a PNG; whoever looks at ``path`` sees the old picture or the whole new one.

    Raises:
        OSError: the folder is missing or not writable.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        sheet.save(part, format="PNG", compress_level=3)  # a third of the time of 6, and a tenth larger
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _tile_height(tiles: Sequence[Tile], width: int) -> int:
    """Height of every tile: that of the first picture there is, else 16:9."""
    for tile in tiles:
        shown = tile.picture if tile.picture is not None else tile.before
        if shown is not None:
            rows, columns = shown.shape[:2]
            return max(1, round(width * int(rows) / int(columns)))
    return width * 9 // 16


def _draw_tile(tile: Tile, width: int, height: int) -> Image.Image:
    image = Image.new("RGB", (width, height + BAR_HEIGHT), PANEL)
    if tile.picture is not None:
        image.paste(_fit(tile.picture, width, height), (0, 0))
        if tile.box is not None:
            _draw_box(image, tile, width / tile.picture.shape[1], height / tile.picture.shape[0], height)
    else:
        _draw_empty(image, tile, width, height)
    _draw_bar(image, tile, width, height)
    return image


def _fit(picture: npt.NDArray[Any], width: int, height: int) -> Image.Image:
    colours = picture[:, :, ::-1] if picture.ndim == 3 else np.repeat(picture[:, :, None], 3, axis=2)
    image = Image.fromarray(np.ascontiguousarray(colours))
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)


def _draw_box(image: Image.Image, tile: Tile, scale_x: float, scale_y: float, height: int) -> None:
    assert tile.box is not None
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = tile.box
    edges = (left * scale_x, top * scale_y, right * scale_x - 1, min(bottom * scale_y, height) - 1)
    draw.rectangle(edges, outline=MOTION, width=3)
    if not tile.label:
        return
    font = _font(15)
    text_width = draw.textlength(tile.label, font=font)
    x = min(max(0.0, edges[0]), image.width - text_width - 12)
    y = edges[1] - 22 if edges[1] >= 22 else min(edges[3] + 1, height - 22)
    draw.rectangle((x, y, x + text_width + 12, y + 22), fill=MOTION)
    draw.text((x + 6, y + 2), tile.label, fill=BACKGROUND, font=font)


def _draw_empty(image: Image.Image, tile: Tile, width: int, height: int) -> None:
    if tile.before is not None:
        faint = _fit(tile.before, width, height)
        image.paste(Image.blend(faint, Image.new("RGB", faint.size, BACKGROUND), 0.78), (0, 0))
    draw = ImageDraw.Draw(image)
    lines = [line for line in ("no picture", tile.reason) if line]
    for number, line in enumerate(lines):
        font = _font(24 if number == 0 else 16)
        x = (width - draw.textlength(line, font=font)) / 2
        draw.text((x, height / 2 - 28 + number * 36), line, fill=TEXT if number == 0 else QUIET, font=font)


def _draw_bar(image: Image.Image, tile: Tile, width: int, height: int) -> None:
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, height, width, height + BAR_HEIGHT), fill=BAR)
    colour = STATE_COLOURS.get(tile.state, QUIET)
    middle = height + BAR_HEIGHT / 2
    draw.ellipse((14, middle - 6, 26, middle + 6), fill=colour)
    draw.text((36, middle), tile.name, fill=TEXT, font=_font(18), anchor="lm")
    after_name = 36 + draw.textlength(tile.name, font=_font(18)) + 12
    draw.text((after_name, middle + 1), tile.state, fill=colour, font=_font(15), anchor="lm")
    room = width - 14 - after_name - draw.textlength(tile.state, font=_font(15)) - 12
    facts = list(tile.facts)
    while facts and draw.textlength("  ·  ".join(facts), font=_font(15)) > room:
        facts.pop()
    draw.text((width - 14, middle + 1), "  ·  ".join(facts), fill=QUIET, font=_font(15), anchor="rm")


@lru_cache
def _font(size: int) -> Any:
    """The font that comes with PIL; making one takes longer than drawing a tile."""
    return ImageFont.load_default(size)
