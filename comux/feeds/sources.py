"""What can be published: an address becomes a feed that knows its stream and makes its packets.

Addresses: a path or ``file:///path?loop=1`` (a video file), ``synthetic://…`` (see ``comux.feeds.synthetic``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import crc32c

from comux.decoders.containers import open_video
from comux.decoders.containers import packets as file_packets
from comux.decoders.encode import VideoEncoder
from comux.decoders.interface import StreamFacts
from comux.errors import ConfigError, UnknownAddressError

from .faults import ENCODER_KINDS, Fault, FeedPacket, inject, parse_faults
from .synthetic import SCHEME, SyntheticCamera, parse_synthetic, split_query, synthetic_packets

_BYTES_PER_PIXEL: Final = {"h264": 0.05, "hevc": 0.05, "vp9": 0.05, "av1": 0.05, "mjpeg": 0.4}


class Feed(ABC):
    """One thing that can be published.

    Attributes:
        name: For people: the address.
        facts: Of its stream.
        finite: Whether it ends by itself.
        duration_s: Seconds until it ends; ``None``: unknown, or never.
        bytes_per_second: Estimate, for the size of a topic.
    """

    name: str
    facts: StreamFacts
    finite: bool
    duration_s: float | None
    bytes_per_second: float

    @abstractmethod
    def packets(self) -> Iterator[FeedPacket]:
        """The packets in publishing order, faults included; never waits. See ``comux.feeds.faults.inject``."""


class SyntheticFeed(Feed):
    """A synthetic camera."""

    def __init__(self, name: str, camera: SyntheticCamera) -> None:
        self.name = name
        self.camera = camera
        # Opened once now, so that settings the encoder refuses are an error before anything starts.
        VideoEncoder(
            camera.codec,
            camera.width,
            camera.height,
            camera.fps,
            gop=camera.gop,
            bframes=camera.bframes,
            bitrate=camera.bitrate,
            crf=camera.crf,
        ).close()
        pix_fmt = "yuvj420p" if camera.codec == "mjpeg" else "yuv420p"
        self.facts = StreamFacts(camera.codec, camera.width, camera.height, camera.fps, pix_fmt)
        self.finite = camera.frames is not None
        self.duration_s = None if camera.frames is None else camera.frames / camera.fps
        pixels = camera.width * camera.height * camera.fps
        self.bytes_per_second = camera.bitrate / 8 if camera.bitrate else pixels * _BYTES_PER_PIXEL[camera.codec]

    def packets(self) -> Iterator[FeedPacket]:
        return synthetic_packets(self.camera)


class FileFeed(Feed):
    """A video file; its pictures' numbers are unknown."""

    def __init__(self, name: str, path: Path, *, loop: bool, faults: tuple[Fault, ...], seed: int = 1) -> None:
        for fault in faults:
            if fault.kind in ENCODER_KINDS:
                raise ConfigError(f"fault {fault.kind!r} concerns the encoder; a file is encoded already ({name})")
        self.name = name
        self.path = path
        self.loop = loop
        self.facts = open_video(path)
        self.finite = not loop
        duration = float(self.facts.metadata["duration"])
        self.duration_s = None if loop or not duration else duration
        size = int(self.facts.metadata["bytes"])
        pixels = self.facts.width * self.facts.height * self.facts.fps
        # Half as much again as the file's average: a busy stretch is not to shorten what the topic retains.
        self.bytes_per_second = 1.5 * size / duration if duration else pixels * _BYTES_PER_PIXEL[self.facts.codec]
        self._faults = faults
        self._seed = seed

    def packets(self) -> Iterator[FeedPacket]:
        return inject(self._clean(), self._faults, self._seed)

    def _clean(self) -> Iterator[FeedPacket]:
        for seq, p in enumerate(file_packets(self.path, loop=self.loop)):
            yield FeedPacket(p.data, seq, crc32c.crc32c(p.data), -1, p.dts, p.pts, p.keyframe)


def open_feed(source: str, *, loop: bool | None = None, faults: str = "") -> Feed:
    """Make the feed an address names.

    Args:
        source: See the module.
        loop: Of files; ``None``: as the address says, else once.
        faults: Added to those of the address.

    Raises:
        UnknownAddressError: nothing understands the address; lists what is understood.
        ConfigError, UnknownCodecError: an option or the file is wrong.
    """
    more = parse_faults(faults)
    scheme, found, rest = source.partition("://")
    if not found:
        return FileFeed(source, Path(source), loop=bool(loop), faults=more)
    if scheme == SCHEME:
        camera = parse_synthetic(source)
        if loop:
            raise ConfigError(f"{source!r} has no end to loop at; only files loop")
        return SyntheticFeed(source, replace(camera, faults=camera.faults + more))
    if scheme == "file":
        return _file_feed(source, rest, loop, more)
    raise UnknownAddressError(f"{source!r}: feeds are a path, file:///path?loop=1 and synthetic://640x360@30")


def _file_feed(source: str, rest: str, loop: bool | None, faults: tuple[Fault, ...]) -> FileFeed:
    path, _, query = rest.partition("?")
    seed = 1
    for name, value in split_query(query).items():
        if name == "loop" and value in ("0", "1"):
            loop = value == "1" if loop is None else loop
        elif name == "seed" and value.isdigit():
            seed = int(value)
        elif name == "faults":
            faults = parse_faults(value) + faults
        else:
            raise ConfigError(f"{source!r}: {name}={value!r}; options of a file are loop=0|1, seed=N, faults=…")
    return FileFeed(source, Path(unquote(path)), loop=bool(loop), faults=faults, seed=seed)
