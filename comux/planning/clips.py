"""Video to measure with: a synthetic scene with grain, encoded as cameras encode.

The feeds' own synthetic cameras are made to be cheap: their encoder leaves out what costs a decoder most. Here H.264
has CABAC and the deblocking filter, a keyframe a second and, where none are asked for, no B-frames; grain makes the bit
rate what was asked for.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from comux.decoders.encode import EncodedPacket, VideoEncoder
from comux.feeds.scene import Scene

_GRAIN: Final = 6  # of 255, peak
_RICH: Final = 0.12  # bits per pixel from which a clip is one of many bits
_PRESETS: Final = {"h264": {"preset": "veryfast"}, "hevc": {"preset": "veryfast"}}


def make_clip(
    codec: str, width: int, height: int, *, fps: int, frames: int, bitrate: int, bframes: int = 0
) -> list[EncodedPacket]:
    """Encode ``frames`` pictures, a keyframe every ``fps``.

    Args:
        codec: ``h264``, ``hevc``, ``mjpeg``, ``vp9`` or ``av1``.
        width, height: In pixels, even, at least 64x48.
        fps: Frames per second.
        frames: How many.
        bitrate: Bits per second aimed at; ``mjpeg`` has no rate control, only a good and a poor quality.
        bframes: Consecutive B-frames (``h264``, ``hevc``).

    Raises:
        UnknownCodecError, ConfigError: as ``VideoEncoder``.
    """
    scene = Scene(width, height, 1, 1)
    random = np.random.default_rng(1)
    grain = [random.integers(0, _GRAIN + 1, (height, width), np.uint8) for _ in range(5)]
    packets: list[EncodedPacket] = []
    settings: dict[str, Any] = {"bitrate": bitrate, "options": _PRESETS.get(codec)}
    if codec == "mjpeg":
        settings = {"crf": 3 if bitrate / fps > _RICH * width * height else 12}
    with VideoEncoder(codec, width, height, fps=fps, gop=fps, bframes=bframes, **settings) as encoder:
        for number in range(frames):
            picture = scene.picture(number).copy()
            picture[:height] += grain[number % len(grain)]  # the scene's luma ends at 235
            packets += encoder.encode(picture, number)
        packets += encoder.flush()
    return packets
