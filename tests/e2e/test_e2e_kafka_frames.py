"""Cameras through real Kafka give what they give through local memory: pictures, indices, re-emitted packets."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from kafka_rooms import Room, packet_of, picture_sum

from comux import Comux, decode_headers
from comux.feeds import read_marks
from comux.records import HEADER_SOURCE, Record
from comux.transport import Broker

CAMERAS = 8
PICTURES = 60


def _camera(number: int) -> str:
    return f"synthetic://320x240@30?camera={number}&seed={number}&gop=20&bframes=2&frames={PICTURES}"


CAMS = {f"cam{number}": _camera(number) for number in range(1, CAMERAS + 1)}


@dataclass
class Seen:
    """What a run delivered: per camera (index, sum over the pixels, frame number in the picture), in order."""

    pictures: dict[str, list[tuple[int, int, int]]] = field(default_factory=lambda: {cam: [] for cam in CAMS})
    books: dict[str, Any] = field(default_factory=dict)


def _run(address: str, *, send: bool) -> Seen:
    seen = Seen()
    with Comux(list(CAMS), address=address, mode="every_frame", start="beginning", on_end="stop") as cameras:
        for batch in cameras:
            assert batch.cam_ids == tuple(CAMS)
            for item in batch.fresh:
                marks = read_marks(item.array)
                assert marks is not None, f"{item!r}: the numbers in the picture cannot be read"
                seen.pictures[str(item.cam_id)].append((item.index, picture_sum(item), marks[1]))
                if send:
                    cameras.send(item, {"frame": marks[1], "box": [1, 2.5], "note": "é"})
        cameras.flush(30)
        seen.books = dict(cameras.accounts())
        assert [source["restarts"] for source in cameras.status()["sources"].values()] == [0] * CAMERAS
    return seen


def _records(broker: Broker, topic: str) -> list[Record]:
    with broker.consumer(topic, start="beginning") as consumer:
        return list(consumer)


def test_eight_cameras_give_the_same_pictures_through_kafka_as_through_local_memory(place: Any, there: Room) -> None:
    for cam, source in CAMS.items():
        place.topic(f"raw_{cam}", records=256, metadata={"codec": "h264", "finite": True})
        for feed in (place.feed(source, f"raw_{cam}", pace="fast"), there.feed(source, f"raw_{cam}", pace="fast")):
            assert feed.join().records == PICTURES
    local, kafka = _run(place.address, send=False), _run(there.address, send=True)
    assert kafka.pictures == local.pictures
    for cam in CAMS:
        here = [packet_of(record) for record in _records(place.broker, f"raw_{cam}")]
        assert [packet_of(record) for record in _records(there.broker, f"raw_{cam}")] == here
        indices = [index for index, _, _ in kafka.pictures[cam]]
        assert sorted(indices) == list(range(PICTURES))
        assert indices != sorted(indices), "without B-frames the indices show little"
        assert [frame for _, _, frame in kafka.pictures[cam]] == list(range(PICTURES))
        for books in (local.books[cam], kafka.books[cam]):
            assert books.balanced
            assert (books.received, books.delivered, books.held_total) == (PICTURES, PICTURES, 0)
        _check_results(there, cam, kafka.pictures[cam])


def _check_results(there: Room, cam: str, pictures: list[tuple[int, int, int]]) -> None:
    """What stands in the produce topic, as plain kafka-python reads it, against what stands in the camera's."""
    originals = {record.offset: record for record in there.plain(f"raw_{cam}")}
    results = there.plain(f"stream_{cam}")
    assert len(results) == PICTURES
    for record, (index, _, _) in zip(results, pictures, strict=True):
        original = originals[index]
        assert (record.value, record.key, record.timestamp) == (original.value, original.key, original.timestamp)
        assert ("comux-flags" in dict(record.headers)) == ("comux-flags" in dict(original.headers))
        kept = [header for header in original.headers if header[0] != "comux-flags"]  # the engine's own, put last
        count = len(kept)
        assert count >= 5
        assert record.headers[:count] == kept
        assert json.loads(dict(record.headers)[HEADER_SOURCE]) == [f"raw_{cam}", 0, index]
        assert dict(record.headers[count:])["box"] == b"[1,2.5]"
    (first, *_), (_, _, frame) = _records_of_results(there, cam), pictures[0]
    assert decode_headers(first) == {"frame": frame, "box": [1, 2.5], "note": "é"}


def _records_of_results(there: Room, cam: str) -> list[Record]:
    with there.broker.consumer(f"stream_{cam}", start="beginning") as consumer:
        return consumer.poll(10.0, 1)
