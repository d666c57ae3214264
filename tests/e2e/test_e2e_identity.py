"""Identity: the picture a caller gets, the packet ``send`` re-emits and the packet that was published are one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from comux import Comux, decode_headers
from comux.feeds import read_marks
from comux.records import HEADER_SOURCE

CAMERAS = 4
PICTURES = 2500


def _camera(number: int, pictures: int) -> str:
    return f"synthetic://160x120@30?camera={number}&seed={number}&gop=30&bframes=2&frames={pictures}"


def _run(place: Any, sequence: Any, pictures: int) -> None:
    cams = [f"cam{number}" for number in range(1, CAMERAS + 1)]
    for cam in cams:
        metadata = {"codec": "h264", "finite": True}
        place.topic(f"raw_{cam}", records=pictures + 64, data_bytes=32 << 20, metadata=metadata)
        place.topic(f"stream_{cam}", records=pictures + 64, data_bytes=32 << 20)
    seen: dict[str, dict[int, tuple[int, int]]] = {cam: {} for cam in cams}
    orders: dict[str, list[int]] = {cam: [] for cam in cams}
    with Comux(cams, address=place.address, mode="every_frame", start="beginning") as cameras:
        feeds = {
            cam: place.feed(_camera(number, pictures), f"raw_{cam}", pace="fast") for number, cam in enumerate(cams, 1)
        }
        for batch in cameras:
            assert batch.cam_ids == tuple(cams)
            for item in batch.fresh:
                marks = read_marks(item.array)
                assert marks is not None, f"{item!r}: the numbers in the picture cannot be read"
                assert item.index not in seen[item.cam_id], f"{item!r} was delivered twice"
                seen[item.cam_id][item.index] = marks
                orders[item.cam_id].append(marks[1])
                cameras.send(item, {"camera": marks[0], "frame": marks[1]})
        cameras.flush(20)
        accounts = cameras.accounts()
    for number, cam in enumerate(cams, 1):
        assert feeds[cam].join().records == pictures
        _compare(place, sequence, feeds[cam].packets, cam, number, seen[cam])
        assert orders[cam] == list(range(pictures)), "pictures come in the order they were taken"
        books = accounts[cam]
        assert books.balanced
        assert (books.received, books.delivered) == (pictures, pictures)


def _compare(
    place: Any, sequence: Any, packets: dict[int, Any], cam: str, number: int, seen: dict[int, tuple[int, int]]
) -> None:
    """Pixels against packets as the feed made them, as the topic has them, and as they came out again."""
    published = {record.offset: record for record in place.read(f"raw_{cam}")}
    emitted = place.retained(f"stream_{cam}")
    assert len(emitted) == len(published) == len(packets) == len(seen)
    frames = [packets[seq].frame for seq in sorted(packets)]
    assert frames != sorted(frames), "B-frames change the order of packets; without them this test shows little"
    for record in emitted:
        topic, epoch, offset = json.loads(record.header(HEADER_SOURCE) or b"")
        original = published.pop(offset)
        packet = packets[sequence(record)]
        assert (topic, epoch) == (f"raw_{cam}", original.epoch)
        assert seen[offset] == (number, packet.frame), "the pixels and the packet are not of the same picture"
        assert decode_headers(record) == {"camera": number, "frame": packet.frame}
        assert record.value == original.value == packet.data
        assert (record.key, record.timestamp_ns, record.flags) == (original.key, original.timestamp_ns, original.flags)
        assert record.headers[: len(original.headers)] == original.headers
    assert not published, f"{len(published)} packets were never re-emitted"


def test_ten_thousand_pictures_with_b_frames_are_who_they_say(place: Any, sequence: Any) -> None:
    _run(place, sequence, PICTURES)


@pytest.mark.core
def test_a_few_hundred_pictures_with_b_frames_are_who_they_say(place: Any, sequence: Any) -> None:
    _run(place, sequence, 60)
