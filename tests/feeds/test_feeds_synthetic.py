"""Synthetic cameras: numbers readable from the pixels through coding and resizing, addresses checked, all seeded."""

from __future__ import annotations

import itertools

import av
import crc32c
import numpy as np
import pytest

from comux.decoders.convert import converter
from comux.errors import ConfigError, UnknownAddressError, UnknownCodecError
from comux.feeds import SyntheticCamera, open_feed, parse_synthetic, read_marks, synthetic_packets
from comux.feeds.marks import draw_marks
from comux.feeds.scene import Scene


def decoded(camera):
    context = av.CodecContext.create({"av1": "libdav1d"}.get(camera.codec, camera.codec), "r")
    frames = []
    for packet in synthetic_packets(camera):
        raw = av.Packet(packet.data)
        raw.pts = packet.frame
        frames += context.decode(raw)
    return frames + context.decode(None)


@pytest.mark.parametrize("codec", ["h264", "hevc", "mjpeg", "vp9", "av1"])
@pytest.mark.parametrize("size", [(160, 120), (640, 360)])
def test_numbers_survive_coding_and_resizing(codec, size):
    crf = {"h264": 32, "hevc": 34, "mjpeg": 12, "vp9": 45, "av1": 45}[codec]
    camera = SyntheticCamera(*size, codec=codec, crf=crf, frames=20, camera=300, first=4_000_000_000)
    frames = decoded(camera)
    assert len(frames) == 20
    for n, frame in enumerate(frames):
        wanted = (300, 4_000_000_000 + n)
        for target in ((None, None), (160, 120), (97, 71), (800, 450)):
            made = converter(
                frame.format.name, frame.width, frame.height, frame.colorspace, frame.color_range, "bgr24", *target
            )
            assert read_marks(made.convert(frame)) == wanted
        gray = converter(
            frame.format.name, frame.width, frame.height, frame.colorspace, frame.color_range, "gray"
        ).convert(frame)
        assert read_marks(gray) == wanted


def test_numbers_in_4k():
    luma = Scene(3840, 2160, 65535, 1).picture(0xFFFFFFFF)[:2160]
    assert read_marks(luma) == (65535, 0xFFFFFFFF)


def test_damaged_or_foreign_pictures_show_nothing():
    rng = np.random.default_rng(1)
    assert read_marks(np.zeros((120, 160, 3), np.uint8)) is None
    garbage = [read_marks(rng.integers(0, 256, (120, 160), dtype=np.uint8)) for _ in range(200)]
    assert garbage.count(None) >= 199
    luma = np.full((360, 640), 126, np.uint8)
    draw_marks(luma, 7, 1234)
    assert read_marks(luma) == (7, 1234)
    for row in range(4):
        for column in range(16):
            damaged = luma.copy()
            block = damaged[15 * (row + 1) : 15 * (row + 2), 20 * (column + 1) : 20 * (column + 2)]
            block[:] = 251 - block
            assert read_marks(damaged) is None


def test_pictures_move_and_are_a_function_of_the_number():
    scene = Scene(320, 240, 1, 1)
    first, later = scene.picture(10).copy(), scene.picture(25).copy()
    below = slice(60, 240)
    assert (first[below] != later[below]).sum() > 1000
    assert np.array_equal(Scene(320, 240, 1, 1).picture(10), first)
    assert not np.array_equal(Scene(320, 240, 1, 2).picture(10), first)


def test_packets_are_stamped_and_seeded():
    camera = SyntheticCamera(160, 120, frames=40, gop=10)
    packets = list(synthetic_packets(camera))
    assert packets == list(synthetic_packets(camera))
    assert [p.seq for p in packets] == list(range(40))
    assert sorted(p.frame for p in packets) == list(range(40))
    assert [p.frame for p in packets] != list(range(40))  # B-frames
    assert [p.seq for p in packets if p.keyframe] == [0, 10, 20, 30]
    for p in packets:
        assert crc32c.crc32c(p.data) == p.crc and p.capture_s == pytest.approx(p.frame / 30)
        assert p.release_s >= p.capture_s


def test_gap_skips_numbers_but_no_sequence():
    camera = parse_synthetic("synthetic://160x120@30?frames=60&faults=gap@20+5")
    packets = list(synthetic_packets(camera))
    gone = [p.frame for p in packets if p.faults == ("gap",)]
    assert gone == [20, 21, 22, 23, 24, 40, 41, 42, 43, 44]
    made = [p for p in packets if p.seq >= 0]
    assert [p.seq for p in made] == list(range(len(made)))
    assert sorted([p.frame for p in made] + gone) == list(range(60))


def test_nokey_leaves_keyframes_out():
    camera = parse_synthetic("synthetic://160x120@30?frames=240&gop=15&faults=nokey@2s+3s")
    packets = [p for p in synthetic_packets(camera) if p.seq >= 0]
    keys = [p.frame for p in packets if p.keyframe]
    assert keys[:4] == [0, 15, 30, 45]
    assert not [k for k in keys if 60 < k < 150]
    assert any(p.faults == ("nokey",) for p in synthetic_packets(camera))


def test_address_options():
    camera = parse_synthetic(
        "synthetic://320x240@12.5?gop=7&bframes=0&codec=vp9&seed=5&camera=9&frames=3&crf=20&open_gop=1&first=8&faults=stall@5s+3s"
    )
    assert (camera.width, camera.height, camera.fps, camera.gop, camera.bframes) == (320, 240, 12.5, 7, 0)
    assert (camera.codec, camera.seed, camera.camera, camera.frames, camera.crf) == ("vp9", 5, 9, 3, 20.0)
    assert camera.open_gop and camera.first == 8 and camera.faults[0].kind == "stall"
    assert parse_synthetic("synthetic://") == SyntheticCamera()
    assert parse_synthetic("synthetic://320x240").fps == 30


@pytest.mark.parametrize(
    ("address", "error", "words"),
    [
        ("rtsp://camera", UnknownAddressError, "feeds are"),
        ("synthetic://640@30", ConfigError, "640x360@30"),
        ("synthetic://641x360", ConfigError, "even sides"),
        ("synthetic://16x16", ConfigError, "64x48"),
        ("synthetic://640x360@0", ConfigError, "fps"),
        ("synthetic://?colour=red", ConfigError, "unknown option 'colour'"),
        ("synthetic://?width=5", ConfigError, "unknown option"),
        ("synthetic://?gop=x", ConfigError, "gop='x' is not int"),
        ("synthetic://?gop=0", ConfigError, "gop"),
        ("synthetic://?bframes=-1", ConfigError, "bframes"),
        ("synthetic://?camera=70000", ConfigError, "camera=70000"),
        ("synthetic://?open_gop=yes", ConfigError, "open_gop"),
        ("synthetic://?codec=theora", UnknownCodecError, "theora"),
        ("synthetic://?faults=stall", ConfigError, "fault 'stall'"),
        ("synthetic://?frames=-1", ConfigError, "frames"),
        ("file:///nowhere/at/all.mp4", ConfigError, "no such file"),
        ("file:///dev/null?speed=2", ConfigError, "options of a file"),
        ("/nowhere/at/all.mp4", ConfigError, "no such file"),
    ],
)
def test_wrong_addresses_are_one_clear_error(address, error, words):
    with pytest.raises(error, match=words) as raised:
        open_feed(address)
    assert "\n" not in str(raised.value)


def test_times_rise_across_a_stall_in_the_order_pictures_are_shown():
    """With B-frames the packet before a stall is shown after some that are published after it."""
    address = "synthetic://64x48@30?gop=30&bframes=2&frames=120&faults=stall@1s+2s"
    shown = sorted(synthetic_packets(parse_synthetic(address)), key=lambda p: p.frame)
    times = [p.capture_s for p in shown]
    assert any("stall" in p.faults for p in shown)
    assert all(b > a for a, b in itertools.pairwise(times))
    assert times[-1] - times[0] > 119 / 30 + 3
