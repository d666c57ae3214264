"""Clips, and what a loop over them gives."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from comux import Comux
from comux.feeds.synthetic import parse_synthetic, synthetic_packets
from comux.records import HEADER_CODEC, HEADER_CRC32C, HEADER_SEQUENCE, KEYFRAME

START_NS = 1_700_000_000_000_000_000


@cache
def clip(codec: str, frames: int = 90, size: str = "160x120", **options: Any) -> tuple[Any, ...]:
    """Packets of a small synthetic camera."""
    words = "&".join(f"{name}={value}" for name, value in {"gop": 15, "bframes": 2, **options}.items())
    address = f"synthetic://{size}@30?{words}&codec={codec}&frames={frames}"
    return tuple(synthetic_packets(parse_synthetic(address)))


def send(producer: Any, packet: Any, *, data: bytes | None = None, foreign: bool = False) -> None:
    """One packet as our feeds send it; ``data``: what became of it on its way."""
    headers = ((HEADER_SEQUENCE, b"%d" % packet.seq), (HEADER_CRC32C, b"%08x" % packet.crc), (HEADER_CODEC, b"h264"))
    producer.send(
        packet.data if data is None else data,
        key=b"key",
        headers=() if foreign else headers,
        flags=KEYFRAME if packet.keyframe and not foreign else 0,
        timestamp_ns=START_NS + round(packet.capture_s * 1e9),
    )


def seen(mux: Comux) -> dict[str, list[Any]]:
    """Everything that a loop to the end gets of each source, and writes into what it got."""
    out: dict[str, list[Any]] = {}
    for batch in mux:
        for item in batch:
            if item.array is None:
                continue
            assert item.array.flags.writeable
            row = (
                item.index,
                tuple(item.identity),
                str(item.status),
                item.timestamps.capture,
                item.array.shape,
                item.array.dtype.str,
                zlib.crc32(np.ascontiguousarray(item.array)),
                zlib.crc32(bytes(item.record.value)),
            )
            out.setdefault(str(item.cam_id), []).append(row)
            item.array[...] = 0
    return out


def wait_for(condition: Callable[[], Any], seconds: float = 30.0, what: str = "") -> Any:
    """Wait until ``condition`` is true; its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what or condition}")
        threading.Event().wait(0.005)
    return value
