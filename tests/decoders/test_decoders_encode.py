"""Encoding: joinable at every keyframe, every picture comes out, wrong settings are one clear error."""

from __future__ import annotations

import os
import subprocess
import sys

import av
import numpy as np
import pytest

from comux.decoders.encode import VideoEncoder, encodable_codecs
from comux.errors import ClosedError, ConfigError, UnknownCodecError
from comux.feeds.marks import read_marks
from comux.feeds.scene import Scene

DECODERS = {"av1": "libdav1d"}


def encode(codec, count=30, width=160, height=120, **settings):
    scene = Scene(width, height, 9, 1)
    with VideoEncoder(codec, width, height, **settings) as encoder:
        packets = [p for n in range(count) for p in encoder.encode(scene.picture(n), n)]
        return packets + encoder.flush(), encoder.extradata


def decode(codec, packets):
    context = av.CodecContext.create(DECODERS.get(codec, codec), "r")
    frames = []
    for packet in packets:
        raw = av.Packet(packet.data)
        raw.pts = packet.pts
        frames += context.decode(raw)
    return frames + context.decode(None)


@pytest.mark.parametrize("codec", encodable_codecs())
def test_every_picture_comes_out_and_any_keyframe_starts(codec):
    packets, extradata = encode(codec, gop=10)
    assert sorted(p.pts for p in packets) == list(range(30))
    assert [p.dts for p in packets] == sorted(p.dts for p in packets)
    keys = [n for n, p in enumerate(packets) if p.keyframe]
    assert keys == ([0, 10, 20] if codec != "mjpeg" else list(range(30)))
    for start in (0, 10, 20):
        numbers = [
            (frame.pts, read_marks(frame.to_ndarray(format="bgr24"))) for frame in decode(codec, packets[start:])
        ]
        assert numbers == [(n, (9, n)) for n in range(start, 30)]
    assert (extradata is not None) == (codec in ("h264", "hevc"))
    if extradata is not None:
        assert extradata.startswith(b"\0\0\0\1") and packets[10].data.find(extradata[4:20]) >= 0


def test_encodable_codecs_are_the_five():
    assert set(encodable_codecs()) == {"h264", "hevc", "mjpeg", "vp9", "av1"}


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_b_frames_reorder_and_none_do_not(codec):
    with_b, _ = encode(codec, bframes=2)
    without, _ = encode(codec, bframes=0)
    assert [p.pts for p in with_b] != sorted(p.pts for p in with_b)
    assert [p.pts for p in without] == list(range(30))


def test_the_same_pictures_give_the_same_bytes():
    assert encode("h264")[0] == encode("h264")[0]


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_keyframe_on_request(codec):
    scene = Scene(64, 48, 1, 1)
    with VideoEncoder(codec, 64, 48, gop=10_000) as encoder:
        packets = [p for n in range(30) for p in encoder.encode(scene.picture(n), n, keyframe=n in (0, 13))]
        packets += encoder.flush()
    assert [p.pts for p in packets if p.keyframe] == [0, 13]


def test_colours_come_back():
    """BGR in, BGR out, through both matrices and ranges; what the tags say is what was encoded."""
    from comux.decoders.convert import converter

    picture = np.empty((48, 64, 3), np.uint8)
    picture[:] = (40, 90, 180)
    for bt709 in (False, True):
        for full in (False, True):
            with VideoEncoder("h264", 64, 48, bframes=0, crf=10, bt709=bt709, full_range=full) as encoder:
                packets = encoder.encode(picture, 0) + encoder.flush()
            frame = decode("h264", packets)[0]
            assert (frame.colorspace == 1) == bt709 and (frame.color_range == 2) == full
            made = converter(frame.format.name, 64, 48, frame.colorspace, frame.color_range)
            assert np.abs(made.convert(frame).astype(int) - picture).max() <= 4


@pytest.mark.parametrize(
    ("error", "settings"),
    [
        (UnknownCodecError, {"codec": "theora"}),
        (ConfigError, {"width": 65}),
        (ConfigError, {"height": 0}),
        (ConfigError, {"fps": 0}),
        (ConfigError, {"gop": 0}),
        (ConfigError, {"bframes": -1}),
    ],
)
def test_wrong_settings(error, settings):
    with pytest.raises(error):
        VideoEncoder(**({"codec": "h264", "width": 64, "height": 48} | settings))


def test_wrong_arrays_and_a_closed_encoder():
    encoder = VideoEncoder("h264", 64, 48)
    for wrong in (np.zeros((48, 64), np.uint8), np.zeros((48, 64, 3), np.uint16), np.zeros((64, 48, 3), np.uint8)):
        with pytest.raises(ConfigError, match="encoder takes"):
            encoder.encode(wrong, 0)
    encoder.close()
    encoder.close()
    with pytest.raises(ClosedError):
        encoder.encode(np.zeros((48, 64, 3), np.uint8), 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's threads are made real-time by an encoder")
@pytest.mark.parametrize("codec", encodable_codecs())
def test_an_encoder_leaves_the_scheduling_of_the_program_alone(codec):
    """In a process of its own: where it fails, this one is real-time for the rest of its life."""
    program = (
        "import os, numpy\n"
        "from comux.decoders.encode import VideoEncoder\n"
        f"with VideoEncoder({codec!r}, 64, 64) as encoder:\n"
        "    encoder.encode(numpy.zeros((64, 64, 3), numpy.uint8), 0)\n"
        "    print({os.sched_getscheduler(int(thread)) for thread in os.listdir('/proc/self/task')})\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.split() == [f"{{{os.SCHED_OTHER}}}"]
