"""Files: the packets that went in come out, joinable at every keyframe; a wrong or cut file says so."""

from __future__ import annotations

import itertools

import av
import pytest

from comux.decoders.containers import open_video, packets, write_video
from comux.decoders.encode import VideoEncoder
from comux.errors import ConfigError, DecodeError, UnknownCodecError
from comux.feeds.marks import read_marks
from comux.feeds.scene import Scene

CONTAINERS = [
    ("h264", "mp4"), ("h264", "mkv"), ("h264", "ts"), ("h264", "h264"), ("hevc", "mp4"), ("hevc", "mkv"),
    ("mjpeg", "avi"), ("vp9", "webm"), ("av1", "mkv"), ("av1", "mp4"),
]  # fmt: skip
FRAMES = 30


@pytest.fixture(scope="module")
def encoded():
    made = {}
    for codec in {codec for codec, _ in CONTAINERS}:
        scene = Scene(160, 120, 5, 1)
        with VideoEncoder(codec, 160, 120, 30, gop=10) as encoder:
            made[codec] = [p for n in range(FRAMES) for p in encoder.encode(scene.picture(n), n)] + encoder.flush()
    return made


def numbers(codec, units):
    context = av.CodecContext.create("libdav1d" if codec == "av1" else codec, "r")
    frames = [f for u in units for f in context.decode(av.Packet(u.data))] + context.decode(None)
    return [read_marks(f.to_ndarray(format="bgr24")) for f in frames]


@pytest.mark.parametrize(("codec", "ending"), CONTAINERS)
def test_round_trip(tmp_path, encoded, codec, ending):
    path = tmp_path / f"video.{ending}"
    assert write_video(path, codec, 160, 120, 30, encoded[codec]) == FRAMES
    facts = open_video(path)
    assert (facts.codec, facts.width, facts.height) == (codec, 160, 120)
    units = list(packets(path))
    assert len(units) == FRAMES
    assert [u.keyframe for u in units] == [p.keyframe for p in encoded[codec]]
    assert [u.dts for u in units] == sorted(u.dts for u in units)
    for start in (0, 10):
        assert numbers(codec, units[start:]) == [(5, n) for n in range(start, FRAMES)]
    if ending not in ("h264", "avi"):
        assert facts.fps == pytest.approx(30, rel=0.01)
        assert sorted(u.pts for u in units) == pytest.approx([n / 30 for n in range(FRAMES)], abs=0.002)


def test_loop_goes_on_in_time(tmp_path, encoded):
    path = tmp_path / "video.mp4"
    write_video(path, "h264", 160, 120, 30, encoded["h264"])
    units = list(itertools.islice(packets(path, loop=True), 3 * FRAMES))
    assert [u.data for u in units[:FRAMES]] == [u.data for u in units[FRAMES : 2 * FRAMES]]
    assert sorted(u.pts for u in units) == pytest.approx([n / 30 for n in range(3 * FRAMES)], abs=0.01)
    assert [u.dts for u in units] == sorted(u.dts for u in units)
    assert numbers("h264", units) == [(5, n % FRAMES) for n in range(3 * FRAMES)]


def test_a_cut_file_says_how_far_it_got(tmp_path, encoded):
    path = tmp_path / "whole.mp4"
    write_video(path, "h264", 160, 120, 30, encoded["h264"])
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    got = []
    with pytest.raises(DecodeError, match=r"cut\.mp4: \d+ of 30 packets \(\d\.\d+ s\) were read"):
        for unit in packets(cut):
            got.append(unit)
    assert 0 < len(got) < FRAMES


def test_wrong_files(tmp_path):
    garbage = tmp_path / "garbage.mp4"
    garbage.write_bytes(bytes(range(256)) * 20)
    for path, words in (
        (tmp_path / "absent.mp4", "no such file"),
        (tmp_path, "is no file"),
        (garbage, "no video file"),
    ):
        with pytest.raises(ConfigError, match=words):
            packets(path)
    sound = tmp_path / "sound.wav"
    with av.open(str(sound), "w") as container:
        container.add_stream("pcm_s16le", rate=8000).layout = "mono"
        frame = av.AudioFrame("s16", "mono", 800)
        frame.rate = 8000
        for stream in container.streams:
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    with pytest.raises(ConfigError, match="no video stream, only audio"):
        open_video(sound)
    other = tmp_path / "other.avi"
    with av.open(str(other), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height = 64, 48
        container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode(None))
    with pytest.raises(UnknownCodecError, match="mpeg4"):
        open_video(other)


def test_writing_where_it_cannot_be(tmp_path, encoded):
    with pytest.raises(ConfigError, match="cannot write"):
        write_video(tmp_path / "video.xyz", "h264", 160, 120, 30, encoded["h264"])
