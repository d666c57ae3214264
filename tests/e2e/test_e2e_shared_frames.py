"""Decoded once, read by others: frames shared with another process, which uses and sends them."""

from __future__ import annotations

import json
import zlib
from typing import Any

import pytest

from comux import Comux, decode_headers
from comux.feeds import read_marks
from comux.records import HEADER_SOURCE

PICTURES = 40


@pytest.mark.core
def test_another_process_reads_equal_arrays_without_decoding_and_sends_the_packets(place: Any) -> None:
    cams = ["cam1", "cam2"]
    for cam in cams:
        place.topic(f"raw_{cam}", records=256, metadata={"codec": "h264", "finite": True})
        place.topic(f"frames_{cam}", records=64, data_bytes=16 << 20, metadata={"codec": "frames"})
    reader = place.program(
        "manager",
        cams=cams,
        consume_schema="frames_:cam_id",
        produce_schema="seen_:cam_id",
        codec="frames",
        mode="every_frame",
        start="beginning",
        limit=len(cams) * PICTURES,
    )
    reader.wait_for("started")
    digests: dict[tuple[str, int], int] = {}
    feeds = {
        cam: place.feed(f"synthetic://160x120@30?camera={n}&frames={PICTURES}&gop=12", f"raw_{cam}", pace="fast")
        for n, cam in enumerate(cams, 1)
    }
    with Comux(cams, address=place.address, start="beginning", mode="every_frame", share_frames=True) as cameras:
        for batch in cameras:
            for item in batch.fresh:
                assert read_marks(item.array) is not None
                digests[item.cam_id, item.index] = zlib.crc32(item.array.tobytes())
    assert len(digests) == len(cams) * PICTURES
    assert reader.wait(30) == 0, reader.errors()
    items = reader.lines("item")
    assert {(line["cam"], line["index"]): line["digest"] for line in items} == digests
    assert len(items) == len(digests), "a frame came twice"
    modules = reader.lines("modules")[0]["names"]
    assert "comux.decoders.raw" in modules and "comux.decoders.video" not in modules, (
        "the reader loaded a video decoder"
    )
    for cam in cams:
        assert feeds[cam].join().records == PICTURES
        published = {record.offset: record for record in place.read(f"raw_{cam}")}
        emitted = place.retained(f"seen_{cam}")
        assert len(emitted) == PICTURES
        for record in emitted:
            topic, _, offset = json.loads(record.header(HEADER_SOURCE) or b"")
            original = published.pop(offset)
            assert topic == f"raw_{cam}"
            assert (record.value, record.key, record.timestamp_ns) == (
                original.value,
                original.key,
                original.timestamp_ns,
            )
            assert "frame" in decode_headers(record)
