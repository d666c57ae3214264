"""The video that is measured with: made by comux' own encoder as cameras make it, kept as files, repeated as needed.

A keyframe a second, no B-frames, 30 frames a second, grain, and the bit rate of a camera of that size. Each picture
shows its number in black and white blocks (``comux.feeds.marks``), so that whoever gets it knows which one it is.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

FPS = 30
ENCODED = 300  #: pictures that differ; afterwards they come again
SIZES = {"360p": (640, 360, 800_000), "720p": (1280, 720, 2_000_000), "1080p": (1920, 1080, 4_000_000)}
CODECS = ("h264", "hevc")


@dataclass(frozen=True)
class Packet:
    """One access unit, Annex B, parameter sets in band."""

    data: bytes
    keyframe: bool


def encoded(folder: Path, codec: str, size: str, frames: int = ENCODED) -> list[Packet]:
    """The packets of a clip; made once, then read from ``folder``."""
    path, index = folder / f"{codec}-{size}-{frames}.bin", folder / f"{codec}-{size}-{frames}.json"
    if not index.exists():
        from comux.planning.clips import make_clip

        width, height, bitrate = SIZES[size]
        made = make_clip(codec, width, height, fps=FPS, frames=frames, bitrate=bitrate)
        path.write_bytes(b"".join(packet.data for packet in made))
        index.write_text(json.dumps([[len(packet.data), packet.keyframe] for packet in made]))
    data, at, out = path.read_bytes(), 0, []
    for length, keyframe in json.loads(index.read_text()):
        out.append(Packet(data[at : at + length], keyframe))
        at += length
    return out


def repeated(packets: list[Packet], frames: int) -> list[Packet]:
    """So many packets, from the beginning again where there are fewer."""
    return [packets[i % len(packets)] for i in range(frames)]


def file_of(folder: Path, codec: str, size: str, frames: int, made: int = ENCODED) -> Path:
    """An MP4 file with so many frames, for those that read files."""
    path = folder / f"{codec}-{size}-{made}-{frames}.mp4"
    if not path.exists():
        write(path, codec, *SIZES[size][:2], repeated(encoded(folder, codec, size, made), frames))
    return path


def write(path: Path, codec: str, width: int, height: int, packets: list[Packet]) -> None:
    """A file with these packets, 30 a second."""
    from comux.decoders.containers import write_video
    from comux.decoders.encode import EncodedPacket

    made = (EncodedPacket(packet.data, i, i, packet.keyframe) for i, packet in enumerate(packets))
    write_video(path, codec, width, height, FPS, made)


def chunks(codec: str, size: str, packets: list[Packet]) -> list[bytes]:
    """The same as Matroska, one piece of bytes for each packet; the first has the container's head as well."""
    import av

    width, height, _ = SIZES[size]
    out = io.BytesIO()
    ends: list[int] = []
    with av.open(out, "w", format="matroska", options={"cluster_time_limit": "0", "live": "1"}) as container:
        stream: Any = container.add_mux_stream(codec, rate=Fraction(FPS), width=width, height=height)
        stream.time_base = Fraction(1, FPS)
        for number, made in enumerate(packets):
            packet = av.Packet(made.data)
            packet.pts = packet.dts = number
            packet.time_base, packet.is_keyframe, packet.stream = Fraction(1, FPS), made.keyframe, stream
            container.mux(packet)
            ends.append(out.tell())  # a cluster is written when the next begins
    ends = [*ends[1:], len(out.getvalue())]
    data = out.getvalue()
    return [data[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
