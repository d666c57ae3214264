"""What codecs and conversion cost: every core decoding at once, CPU time by thread.

All cores are busy, as they are where cameras are dense: shared caches, memory and hyper-threads are in the figures.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from comux.decoders import DecoderOptions, create_decoder
from comux.decoders.encode import EncodedPacket
from comux.decoders.pool import ArrayPool
from comux.records import KEYFRAME, Record

from .clips import make_clip
from .costs import CodecCosts

FPS: Final = 30
FRAMES: Final = 30
#: Width, height and bits per second: small and large pictures, few and many bits.
POINTS: Final = (
    (320, 180, 300_000),
    (640, 360, 600_000),
    (640, 360, 2_500_000),
    (1280, 720, 2_000_000),
    (1920, 1080, 3_000_000),
    (1920, 1080, 10_000_000),
)


@dataclass(frozen=True, slots=True)
class DecodingPoint:
    """One clip, decoded by every core at once; medians of the rounds.

    Attributes:
        codec, width, height: Of the clip.
        bitrate: Bits per second that it has.
        packet_bytes: On average.
        decode_s: CPU seconds of a packet.
        decode_least_s, decode_most_s: Of the rounds.
        convert_s: CPU seconds of a BGR array.
    """

    codec: str
    width: int
    height: int
    bitrate: float
    packet_bytes: float
    decode_s: float
    decode_least_s: float
    decode_most_s: float
    convert_s: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def measure_decoding(
    codec: str, points: Sequence[tuple[int, int, int]], rounds: int, tell: Callable[[str], None]
) -> list[DecodingPoint]:
    """Encode the clips, then decode each in every round; rounds are interleaved."""
    clips = []
    for width, height, bitrate in points:
        tell(f"{codec} {width}x{height}, {bitrate / 1e6:g} Mbit/s: encoding")
        clips.append(make_clip(codec, width, height, fps=FPS, frames=FRAMES, bitrate=bitrate))
    times: list[list[tuple[float, float]]] = [[] for _ in points]
    for number in range(rounds):
        tell(f"{codec}: decoding, round {number + 1} of {rounds}")
        for each, clip in zip(times, clips, strict=True):
            each.append(_on_all_cores(codec, clip))
    out = []
    for (width, height, _), clip, each in zip(points, clips, times, strict=True):
        size = sum(len(packet.data) for packet in clip) / len(clip)
        decode = [pair[0] for pair in each]
        convert = statistics.median(pair[1] for pair in each)
        least, middle, most = min(decode), statistics.median(decode), max(decode)
        out.append(DecodingPoint(codec, width, height, size * 8 * FPS, size, middle, least, most, convert))
    return out


def _on_all_cores(codec: str, clip: Sequence[EncodedPacket]) -> tuple[float, float]:
    """CPU seconds per packet decoded and per array converted, the mean of as many threads as there are cores."""
    cores = len(os.sched_getaffinity(0))
    found: list[tuple[float, float]] = []
    ready = threading.Barrier(cores)

    def work() -> None:
        records = [
            Record("clip", offset, offset, packet.data, flags=KEYFRAME if packet.keyframe else 0)
            for offset, packet in enumerate(clip)
        ]
        pool = ArrayPool()
        decoder = create_decoder(DecoderOptions(codec))
        decode = convert = 0.0
        pictures = 0
        ready.wait()
        for record in records:
            begun = time.thread_time()
            outcomes = decoder.feed(record)
            decode += time.thread_time() - begun
            for outcome in outcomes:
                if outcome.picture is not None:
                    array = pool.take(*outcome.picture.array_spec())
                    begun = time.thread_time()
                    outcome.picture.to_array(out=array)
                    if pictures:  # the first one warms up
                        convert += time.thread_time() - begun
                    pictures += 1
        decoder.close()
        found.append((decode / len(records), convert / max(1, pictures - 1)))

    threads = [threading.Thread(target=work) for _ in range(cores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statistics.mean(pair[0] for pair in found), statistics.mean(pair[1] for pair in found)


def fit_codec(points: Sequence[DecodingPoint]) -> CodecCosts:
    """The three costs that explain the points best, by relative error, none of them negative."""
    rows = np.array([[1.0, p.width * p.height / 1e6, p.packet_bytes / 1e6] for p in points])
    costs = least_squares(rows, np.array([p.decode_s for p in points]))
    return CodecCosts(*costs)


def fit_conversion(points: Sequence[DecodingPoint]) -> float:
    """CPU seconds of a converted megapixel."""
    return statistics.median(p.convert_s / (p.width * p.height / 1e6) for p in points)


def fit_error(points: Sequence[DecodingPoint], costs: Mapping[str, CodecCosts]) -> float:
    """The greatest relative deviation of a measured point from the fitted costs."""
    worst = 0.0
    for p in points:
        cost = costs[p.codec]
        said = cost.packet_s + cost.megapixel_s * p.width * p.height / 1e6 + cost.megabyte_s * p.packet_bytes / 1e6
        worst = max(worst, abs(said / p.decode_s - 1))
    return worst


def least_squares(rows: Any, values: Any) -> list[float]:
    """Solve by relative error; whichever cost comes out negative is taken to be 0."""
    left = list(range(rows.shape[1]))
    weighted, ones = rows / values[:, None], np.ones(len(values))
    while left:
        found = np.linalg.lstsq(weighted[:, left], ones, rcond=None)[0]
        if (found >= 0).all():
            break
        left.remove(left[int(found.argmin())])
    out = [0.0] * rows.shape[1]
    for column, value in zip(left, found, strict=True):
        out[column] = float(value)
    return out
