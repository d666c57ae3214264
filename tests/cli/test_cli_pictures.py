"""The demo's pure parts: motion, contact sheet, what is shown, namespaces left over."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from comux.account import Account
from comux.cli import demo_topics
from comux.cli.contact_sheet import BAR_HEIGHT, HEADER_HEIGHT, MARGIN, MOTION, Tile, draw_sheet, save_sheet
from comux.cli.demo import DemoOptions, parse_size
from comux.cli.demo_view import Counts, LineView, Moment, live_table, print_summary, status_line
from comux.cli.motion import MotionDetector, grey_cells
from comux.cli.tables import causes
from comux.errors import ConfigError
from comux.feeds import parse_synthetic

# -- motion --------------------------------------------------------------------------------------------------------


def picture(height: int = 360, width: int = 640, level: int = 90) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def test_nothing_moves_in_equal_pictures_and_in_the_first() -> None:
    detector = MotionDetector()
    assert detector.look(picture()) == detector.look(picture())
    assert detector.look(picture()).box is None


def test_the_box_is_around_what_changed() -> None:
    detector = MotionDetector()
    detector.look(picture())
    changed = picture()
    changed[100:160, 200:280] = 255
    found = detector.look(changed)
    assert found.box is not None
    left, top, right, bottom = found.box
    assert 200 - 16 <= left <= 200 and 280 <= right <= 280 + 16
    assert 100 - 16 <= top <= 100 and 160 <= bottom <= 160 + 16
    assert found.amount == pytest.approx((255 - 90) * 60 * 80 / (352 * 640), rel=0.1)


def test_of_two_regions_the_larger_is_boxed() -> None:
    detector = MotionDetector()
    detector.look(picture())
    changed = picture()
    changed[0:32, 0:32] = 255
    changed[200:300, 400:500] = 255
    left, top, _, _ = detector.look(changed).box
    assert left >= 384 and top >= 184


def test_an_ignored_corner_never_moves() -> None:
    detector = MotionDetector(ignore=(0.5, 0.25))
    detector.look(picture())
    changed = picture()
    changed[:90, :320] = 255
    assert detector.look(changed).box is None


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 3), (33, 41), (48, 64), (1080, 1920)])
def test_any_size_and_a_change_of_size(height: int, width: int) -> None:
    detector = MotionDetector()
    detector.look(picture(50, 70))
    assert detector.look(picture(height, width)).box is None
    left, top, right, bottom = detector.look(picture(height, width, 200)).box
    assert 0 <= left < right <= width and 0 <= top < bottom <= height


def test_cells_are_the_means_of_what_is_in_them() -> None:
    pixels = picture(4, 8, 10)
    pixels[:, 4:] = 50
    assert grey_cells(pixels, 4).tolist() == [[10.0, 50.0]]


# -- the contact sheet ---------------------------------------------------------------------------------------------


def pixel(sheet: Image.Image, column: int, row: int, x: int, y: int, width: int = 640, height: int = 360) -> tuple:
    """A pixel of one tile of the sheet."""
    left = MARGIN + column * (width + MARGIN)
    top = HEADER_HEIGHT + row * (height + BAR_HEIGHT + MARGIN)
    return sheet.getpixel((left + x, top + y))


def test_a_sheet_shows_pictures_in_their_colours_boxes_and_dark_panels() -> None:
    blue = picture()
    blue[:] = (250, 10, 20)  # BGR
    tiles = [
        Tile("cam1", blue, state="running", facts=("offset 7",), box=(100, 80, 200, 180), label="motion 3.1"),
        Tile("cam2", None, state="starting", reason="no packet yet"),
        Tile("cam3", None, before=blue, state="stalled", reason="no packet for 3 s"),
    ]
    sheet = draw_sheet(tiles, "title", "subtitle")
    assert pixel(sheet, 0, 0, 300, 300) == (20, 10, 250)
    assert pixel(sheet, 0, 0, 100, 150) == MOTION
    assert max(pixel(sheet, 1, 0, 5, 5)) < 60
    assert max(pixel(sheet, 0, 1, 5, 5)) < 90
    panel = sheet.crop((MARGIN + 656, HEADER_HEIGHT, MARGIN + 656 + 640, HEADER_HEIGHT + 360))
    assert len(panel.getcolors(100_000) or []) > 2, "the reason is written on the panel"


@pytest.mark.parametrize("count", [1, 2, 5, 16, 64])
def test_any_number_of_tiles_fits_on_a_sheet_of_reasonable_size(count: int) -> None:
    tiles = [Tile(f"cam{n}", picture(120, 160), state="running", facts=("a fact " * 20,)) for n in range(count)]
    sheet = draw_sheet(tiles, "many", "tiles")
    assert sheet.width <= 2600 and sheet.height <= 2600


def test_a_sheet_is_saved_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "sheet.png"
    sheet = draw_sheet([Tile("cam1", picture())], "one", "tile")
    save_sheet(sheet, target)
    with Image.open(target) as read:
        assert (read.format, read.size) == ("PNG", sheet.size)
    with pytest.raises(OSError):
        save_sheet(sheet, tmp_path / "nowhere" / "sheet.png")
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


# -- what is shown -------------------------------------------------------------------------------------------------


def moment(cameras: int = 2) -> Moment:
    books = Account()
    books.receive("pictures", 30)
    books.deliver("pictures", 25)
    books.drop("pictures", "resync", 3)
    books.drop("pictures", "superseded", 1)
    status = {
        "state": "RUNNING",
        "fps": 29.97,
        "lag": 2,
        "lag_seconds": 0.07,
        "age": 0.021,
        "age_estimated": True,
        "account": books.snapshot().as_dict(),
    }
    sources = {f"cam{n}": dict(status) for n in range(1, cameras + 1)}
    sources["cam2"]["state"] = "STALLED"
    sources["cam2"]["age"] = None
    return Moment(3.2, sources, Counts(batches=25, sent=50, results={"read_back": 48, "verified": 48}))


def test_the_line_says_who_stands_and_what_came() -> None:
    line = status_line(moment())
    assert "cam1 30 fps, 25 delivered, 4 dropped" in line
    assert "cam2 STALLED" in line
    assert "48 results read back" in line
    assert "3 more" in status_line(moment(9))


def test_the_live_table_has_every_figure() -> None:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=120)
    console.print(live_table(moment()))
    text = console.file.getvalue()
    for word in ("cam1", "RUNNING", "STALLED", "30.0", "0.07", "~21", "25", "resync 3, superseded 1"):
        assert word in text


def test_the_summary_balances_in_sight(capsys) -> None:
    now = moment()
    print_summary(now, {cam_id: status["account"] for cam_id, status in now.sources.items()}, "sheet.png")
    out = capsys.readouterr().out
    assert out.count("balanced ✓") == 2
    assert "sheet.png" in out
    broken = {"cam1": {**now.sources["cam1"]["account"], "balanced": False}}
    print_summary(now, broken, None)
    assert "NOT BALANCED" in capsys.readouterr().out


def test_lines_go_where_they_are_told() -> None:
    stream = io.StringIO()
    view = LineView(stream, "demo")
    assert view.due()
    view.show(moment())
    assert not view.due()
    view.say("cam3: stalled")
    view.close()
    assert stream.getvalue().count("\n") == 3


def test_causes_are_sorted_and_empty_ones_left_out() -> None:
    assert causes({"a": 1, "b": 3, "c": 0}) == "b 3, a 1"


# -- options -------------------------------------------------------------------------------------------------------


def test_sizes() -> None:
    assert parse_size("1280X720") == (1280, 720)
    for wrong in ("", "640", "640x", "x360", "-2x4", "640x360x3", "6e2x3e2"):
        with pytest.raises(ConfigError, match="640x360"):
            parse_size(wrong)


def test_the_third_camera_stalls_and_the_fourth_is_damaged() -> None:
    cameras = [parse_synthetic(DemoOptions().source(number)) for number in (1, 2, 3, 4)]
    assert [camera.camera for camera in cameras] == [1, 2, 3, 4]
    assert [[fault.kind for fault in camera.faults] for camera in cameras] == [[], [], ["stall"], ["corrupt"]]


# -- what a killed demo left ---------------------------------------------------------------------------------------


def test_only_namespaces_of_dead_demos_are_removed(topics_folder: Path, monkeypatch) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    mine, dead, strange = (topics_folder / name for name in (f"demo-{os.getpid()}", f"demo-{gone.pid}", "demo-x"))
    for folder in (mine, dead, strange):
        folder.mkdir()
        (folder / "raw_cam1.ring").write_bytes(b"")
    assert demo_topics.remove_left_over() == [dead]
    assert mine.is_dir() and strange.is_dir() and not dead.exists()
    # A pid that was given to another process since: that one is younger than the namespace.
    long_ago = 1_000_000_000
    os.utime(mine, (long_ago, long_ago))
    assert demo_topics.remove_left_over() == [mine]
    demo_topics.remove_namespace(strange)
    demo_topics.remove_namespace(strange)
