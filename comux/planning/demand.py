"""What a plan is asked for: the cameras, what is done with them, and the machines there are. Checked as a whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from comux.errors import ConfigError
from comux.options import check_choice

KEYFRAME: Final = 3.6
"""Decoding a keyframe takes as long as so many pictures on average: 1080p H.264 of 4 Mbit/s, GOP of 30
(``benchmarks/video/low_rates.py``; HEVC 2.3)."""
_LEAST_PACKET: Final = 16  # bytes a packet of video has at least, on average


@dataclass(frozen=True, slots=True)
class Demand:
    """Frozen. ``ConfigError`` names the option of ``comux plan`` that is wrong, and what would be right.

    Attributes:
        cameras: How many.
        width, height: Of their pictures, in pixels.
        fps: Frames per second of each.
        bitrate: Bits per second of each.
        codec: Name of the codec.
        rate: Most pictures per second delivered of each (``SourceOptions.rate``); ``None``: all.
        gop: Pictures from one keyframe to the next, if that is always the same number: ``rate`` then saves decoding.
            ``None``: not known, and every packet is decoded.
        mode: ``freshest`` or ``every_frame``.
        engine: ``kafka`` or ``shm``.
        results_bytes: Headers of each result; ``None``: nothing is sent.
        readers: How many times each result is read.
        cores, memory_bytes, network_bits: Of each machine that decodes; the network in bits per second, each way.
        brokers: How many there are; ``None``: as many as needed.
        broker_cores, broker_network_bits: Of each broker.
        replication: Copies of each record.
        retention_s: Seconds that records are kept.
        safety: What is needed is multiplied by this before it is compared with what there is.
    """

    cameras: int
    width: int = 1920
    height: int = 1080
    fps: float = 30.0
    bitrate: float = 4e6
    codec: str = "h264"
    rate: float | None = None
    gop: int | None = None
    mode: str = "freshest"
    engine: str = "kafka"
    results_bytes: int | None = 2000
    readers: int = 1
    cores: int = 16
    memory_bytes: float = 64e9
    network_bits: float = 10e9
    brokers: int | None = None
    broker_cores: int = 8
    broker_network_bits: float = 10e9
    replication: int = 3
    retention_s: float = 3600.0
    safety: float = 1.5

    def __post_init__(self) -> None:
        check_choice(self.mode, "--mode", ("freshest", "every_frame"))
        check_choice(self.engine, "--engine", ("kafka", "shm"))
        _within("--cameras", self.cameras, 1, 1_000_000)
        _within("--size", self.width, 16, 16384, "pixels of width")
        _within("--size", self.height, 16, 16384, "pixels of height")
        _within("--fps", self.fps, 0.01, 1000)
        if self.rate is not None:
            _within("--rate", self.rate, 0.001, 1000)
        if self.gop is not None:
            _within("--gop", self.gop, 1, 10_000)
        if self.results_bytes is not None:
            _within("--results-bytes", self.results_bytes, 0, 10_000_000)
        for name, value, most in (
            ("--readers", self.readers, 1000),
            ("--cores", self.cores, 4096),
            ("--broker-cores", self.broker_cores, 4096),
            ("--replication", self.replication, 9),
        ):
            _within(name, value, 1, most)
        _within("--memory", self.memory_bytes, 1e9, 1e15, "bytes")
        _within("--network", self.network_bits, 1e6, 1e13, "bits per second")
        _within("--broker-network", self.broker_network_bits, 1e6, 1e13, "bits per second")
        _within("--retention", self.retention_s, 1, 10 * 365 * 86400, "seconds")
        _within("--safety", self.safety, 1, 10)
        self._check_bitrate()
        if self.brokers is not None:
            _within("--brokers", self.brokers, 1, 10_000)
            if self.brokers < self.replication:
                raise ConfigError(
                    f"--brokers {self.brokers}: {self.replication} copies need {self.replication} brokers at least; "
                    "add brokers or lower --replication"
                )

    def _check_bitrate(self) -> None:
        packet = self.packet_bytes if math.isfinite(self.bitrate) else math.nan
        if not packet >= _LEAST_PACKET:
            raise ConfigError(
                f"--bitrate {self.bitrate:g}: at {self.fps:g} frames per second that is {packet:.3g} bytes a packet; "
                "give bits per second, as in 4M"
            )
        raw = 3.0 * self.width * self.height
        if packet > raw:
            raise ConfigError(
                f"--bitrate {self.bitrate:g}: {packet:.3g} bytes a packet are more than an uncompressed picture of "
                f"{self.width}x{self.height} ({raw:.3g}); give bits per second, as in 4M"
            )

    @property
    def packet_bytes(self) -> float:
        """Of a packet, on average."""
        return self.bitrate / 8 / self.fps

    @property
    def megapixels(self) -> float:
        """Of a picture."""
        return self.width * self.height / 1e6

    @property
    def delivered(self) -> float:
        """Pictures per second handed to the loop, of each camera."""
        return self.fps if self.rate is None else min(self.rate, self.fps)

    @property
    def decoded(self) -> float:
        """Pictures per second that have to be decoded of each camera, in average ones: a keyframe counts for several.

        Of a GOP everything up to the last picture wanted of it is decoded, and keyframes only where less than one is
        (``decoders/skipping.py``). Pictures that no other refers to are left out too, which is not counted here.
        """
        if self.gop is None or self.delivered >= self.fps:
            return self.fps
        gops, wanted = self.fps / self.gop, self.delivered * self.gop / self.fps  # a second; of each
        key = min(KEYFRAME, self.gop)
        if wanted < 1:
            return self.delivered * key
        even = wanted.is_integer()  # then the first is the keyframe, in every GOP
        rest = self.gop * (1 - (1 if even else 0.5) / wanted)  # of a GOP, after the keyframe
        other = (self.gop - key) / max(1, self.gop - 1)
        return min(self.fps, gops * (key + min(rest, self.gop - 1) * other))

    @property
    def sends(self) -> float:
        """Results per second, of each camera."""
        return 0.0 if self.results_bytes is None else self.delivered


def _within(option: str, value: float, least: float, most: float, unit: str = "") -> None:
    if isinstance(value, bool) or not least <= value <= most:  # also what is no number at all
        raise ConfigError(f"{option} {value:g}{' ' if unit else ''}{unit}: give {least:g} to {most:g}")


# -- text ----------------------------------------------------------------------------------------------------------

_DECIMAL: Final[Mapping[str, float]] = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_SECONDS: Final[Mapping[str, float]] = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def quantity(text: str, option: str) -> float:
    """``4M``, ``64G``, ``1.5k``, ``250000``: a number with a power of 1000.

    Raises:
        ConfigError: none of these.
    """
    return _scaled(text, _DECIMAL, f"{option} {text!r}: give a number with k, M, G or T, as in 4M")


def seconds(text: str, option: str) -> float:
    """``90``, ``30m``, ``1h``, ``7d``: seconds.

    Raises:
        ConfigError: none of these.
    """
    return _scaled(text, _SECONDS, f"{option} {text!r}: give a time with s, m, h, d or w, as in 1h")


def _scaled(text: str, units: Mapping[str, float], wrong: str) -> float:
    word = text.strip().lower()
    number = word.rstrip("abcdefghijklmnopqrstuvwxyz")
    unit = word[len(number) :]
    try:
        if unit not in units or len(word) > 20:
            raise ValueError
        value = float(number) * units[unit]
    except ValueError:
        raise ConfigError(wrong) from None
    if not math.isfinite(value):
        raise ConfigError(wrong)
    return value
