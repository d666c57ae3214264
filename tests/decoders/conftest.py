"""Real encoded video for the decoder tests, with each picture's number readable from its pixels."""

from __future__ import annotations

import functools
import multiprocessing
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import av
import crc32c
import numpy as np
import pytest

from comux.decoders import DecoderOptions, create_decoder
from comux.decoders.encode import VideoEncoder
from comux.records import HEADER_CODEC, HEADER_CRC32C, HEADER_SEQUENCE, KEYFRAME, Record

WIDTH, HEIGHT = 160, 120
_BLOCK = 16
_FFMPEG = {"av1": "libdav1d"}


def draw(number: int, width: int = WIDTH, height: int = HEIGHT, colourful: bool = False) -> np.ndarray:
    """I420 planes: a moving picture whose top row of blocks is ``number`` in ten bits; gray, or with moving colours."""
    planes = np.full((height * 3 // 2, width), 128, np.uint8)
    y, x = np.mgrid[0:height, 0:width]
    planes[:height] = (x + y // 2 + number * 3) % 180 + 30
    for bit in range(10):
        planes[:_BLOCK, bit * _BLOCK : (bit + 1) * _BLOCK] = 235 if number >> bit & 1 else 16
    left = (number * 5) % (width - 24)
    planes[40:64, left : left + 24] = 220
    if colourful:
        rows, columns = np.mgrid[height : planes.shape[0], 0:width]
        planes[height:] = (columns * 3 + rows * 5 + number * 7) % 160 + 48
    return planes


def read_number(gray: np.ndarray) -> int:
    """The number ``draw`` wrote, from luma or gray of the original size."""
    return sum(
        1 << bit for bit in range(10) if gray[4 : _BLOCK - 4, bit * _BLOCK + 4 : (bit + 1) * _BLOCK - 4].mean() > 126
    )


@dataclass
class Stream:
    """Packets in decoding order: their bytes, the picture number each holds, whether it is a keyframe."""

    name: str
    codec: str
    packets: list[bytes]
    numbers: list[int]
    keys: list[bool]
    extradata: bytes | None = None
    pictures: dict[int, bytes] = field(default_factory=dict)

    def decode_all(self) -> dict[int, bytes]:
        """Pixels of every picture by packet index, decoded by plain PyAV without a fault."""
        if not self.pictures:
            context = av.CodecContext.create(_FFMPEG.get(self.codec, self.codec), "r")
            context.thread_count = 1
            frames = []
            for index, data in enumerate(self.packets):
                packet = av.Packet(data + bytes(0))
                packet.pts = index
                frames += context.decode(packet)
            frames += context.decode(None)
            self.pictures = {frame.pts: pixels(frame) for frame in frames}
        return self.pictures


def pixels(frame: av.VideoFrame) -> bytes:
    """All planes, without what pads their rows."""
    planes = [np.frombuffer(memoryview(p), np.uint8).reshape(p.height, p.line_size)[:, : p.width] for p in frame.planes]
    return b"".join(plane.tobytes() for plane in planes)


_X264 = "scenecut=0:threads=1:repeat-headers=1:annexb=1:rc-lookahead=8:sync-lookahead=0:b-adapt=0"
_X265 = "scenecut=0:pools=none:frame-threads=1:log-level=none:repeat-headers=1:annexb=1:rc-lookahead=10:b-adapt=0"


def _x264(settings: str, preset: str = "veryfast", **more: str) -> dict[str, str]:
    return {"preset": preset, "x264-params": f"{_X264}:{settings}", **more}


def _x265(settings: str) -> dict[str, str]:
    return {"preset": "veryfast", "x265-params": f"{_X265}:{settings}"}


_SHORT: dict[str, Any] = {
    "count": 105,
    "gop": 15,
    "colourful": True,
}  # so that damage has a before and after

RECIPES: dict[str, dict[str, Any]] = {
    "h264": {},
    "h264-plain": {"bframes": 0, "gop": 20},
    "h264-250": {"gop": 250},
    "h264-open": {"options": _x264("keyint=20:min-keyint=20:bframes=3:open-gop=1:ref=2")},
    "h264-pyramid": {"options": _x264("keyint=25:bframes=5:b-pyramid=normal:ref=5:weightp=2", "medium")},
    "h264-strict": {"options": _x264("keyint=25:bframes=4:b-pyramid=strict:ref=3:slices=4:aud=1", "medium")},
    "h264-mbaff": {"options": _x264("keyint=20:bframes=2:tff=1")},
    "h264-refresh": {"bframes": 0, "options": _x264("keyint=20:bframes=0:intra-refresh=1:ref=1")},
    "h264-baseline": {"bframes": 0, "options": _x264("keyint=30:bframes=0:ref=4", profile="baseline")},
    "hevc": {"codec": "hevc"},
    "hevc-open": {"codec": "hevc", "options": _x265("keyint=20:min-keyint=20:bframes=3:open-gop=1")},
    "hevc-pyramid": {"codec": "hevc", "options": _x265("keyint=25:min-keyint=25:bframes=7:open-gop=0:ref=4")},
    "h264-short": {**_SHORT, "options": _x264("keyint=15:min-keyint=15:bframes=2:ref=1", "ultrafast")},
    "h264-short-sets": {
        **_SHORT,
        "options": _x264("keyint=15:min-keyint=15:bframes=2:ref=1:chroma-qp-offset=8", "ultrafast"),
    },
    "h264-short-open": {**_SHORT, "options": _x264("keyint=15:min-keyint=15:bframes=3:open-gop=1:ref=2")},
    "h264-short-large": {**_SHORT, "size": (320, 240)},
    "hevc-short": {**_SHORT, "codec": "hevc", "options": _x265("keyint=15:min-keyint=15:bframes=2:open-gop=0")},
    "hevc-short-sets": {
        **_SHORT,
        "codec": "hevc",
        "options": _x265("keyint=15:min-keyint=15:bframes=2:open-gop=0:cbqpoffs=8:crqpoffs=8"),
    },
    "hevc-short-open": {**_SHORT, "codec": "hevc", "options": _x265("keyint=15:min-keyint=15:bframes=3:open-gop=1")},
    "hevc-short-large": {**_SHORT, "codec": "hevc", "size": (320, 240)},
    "mjpeg": {"codec": "mjpeg", "count": 30},
    "vp9": {"codec": "vp9"},
    "vp9-lag": {"codec": "vp9", "options": {"lag-in-frames": "16", "deadline": "good", "cpu-used": "8"}},
    "av1": {"codec": "av1"},
    "av1-pyramid": {"codec": "av1", "options": {"svtav1-params": "pred-struct=2:lp=1:keyint=30:hierarchical-levels=3"}},
}


@functools.cache
def stream(name: str) -> Stream:
    return apart(name) if RECIPES[name].get("codec") == "av1" else encoded(name)


def apart(name: str) -> Stream:
    """Encoded by a process that can be ended: SVT-AV1 4.1.0 waits for itself for ever now and then, where no signal and
    no time-out of Python's reaches it. (A run of all tests stood still for it.)"""
    context = multiprocessing.get_context("fork")
    for _ in range(3):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=lambda: theirs.send(encoded(name)), daemon=True)  # noqa: B023 - runs at once
        process.start()
        theirs.close()
        try:
            if ours.poll(60):
                made: Stream = ours.recv()
                return made
        finally:
            process.kill()
            process.join()
            ours.close()
    raise AssertionError(f"{name}: the encoder did not come to its end, three times")


def encoded(name: str) -> Stream:
    recipe = dict(RECIPES[name])
    codec = recipe.pop("codec", "h264")
    count = recipe.pop("count", 60)
    size, colourful = recipe.pop("size", (WIDTH, HEIGHT)), recipe.pop("colourful", False)
    with VideoEncoder(codec, *size, **recipe) as encoder:
        packets = [
            packet for number in range(count) for packet in encoder.encode(draw(number, *size, colourful), number)
        ]
        packets += encoder.flush()
        extradata = encoder.extradata
    return Stream(
        name, codec, [p.data for p in packets], [p.pts for p in packets], [p.keyframe for p in packets], extradata
    )


def record(offset: int, data: Any, **settings: Any) -> Record:
    """A record of a stream that is not ours."""
    return Record("raw_cam1", offset, 1_700_000_000_000_000_000 + offset, data, **settings)


def stamped(offset: int, data: bytes, sequence: int, *, key: bool = False, **settings: Any) -> Record:
    """A record as our feeds publish it."""
    headers = (
        (HEADER_SEQUENCE, str(sequence).encode()),
        (HEADER_CRC32C, b"%08x" % crc32c.crc32c(data)),
        (HEADER_CODEC, b"h264"),
    )
    return record(offset, data, headers=headers, flags=KEYFRAME if key else 0, **settings)


def stamp_all(source: Stream, *, first: int = 0) -> list[Record]:
    return [stamped(first + i, data, i, key=source.keys[i]) for i, data in enumerate(source.packets)]


def with_value(old: Record, value: Any) -> Record:
    return replace(old, value=value)


def decoder(source: Stream, **settings: Any) -> Any:
    return create_decoder(DecoderOptions(codec=source.codec, **{"array_format": "gray", **settings}))


def run(made: Any, records: list[Record]) -> list[Any]:
    """Feed everything and drain; checks the books on the way: one first outcome per record."""
    outcomes: list[Any] = []
    for fed, one in enumerate(records, 1):
        outcomes += made.feed(one)
        assert sum(o.first for o in outcomes) + made.in_flight == fed
    outcomes += made.drain()
    assert made.in_flight == 0
    firsts = [id(o.record) for o in outcomes if o.first]
    assert sorted(firsts) == sorted(id(one) for one in records)
    assert all((o.picture is None) != (o.cause is None) for o in outcomes)
    return outcomes


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """Everything above."""
    return SimpleNamespace(
        WIDTH=WIDTH,
        HEIGHT=HEIGHT,
        RECIPES=tuple(RECIPES),
        draw=draw,
        read_number=read_number,
        stream=stream,
        record=record,
        stamped=stamped,
        stamp_all=stamp_all,
        with_value=with_value,
        decoder=decoder,
        run=run,
        pixels=pixels,
    )
