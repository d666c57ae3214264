"""What happens to topics under a running source: made late, made anew, cut short by retention, full of holes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kafka import KafkaProducer
from kafka_rooms import Room, with_both_libraries
from service_fixtures import until

from comux import Comux
from comux.account import AccountSnapshot
from comux.feeds import read_marks


def _camera(camera: int = 1, *, fps: int = 30) -> str:
    return f"synthetic://160x120@{fps}?camera={camera}&seed={camera}&gop=10&bframes=0"


class Watcher:
    """Takes every picture of one source and keeps which it was: (camera, frame)."""

    def __init__(self, cameras: Comux) -> None:
        self.cameras = cameras
        self.seen: list[tuple[int, int]] = []
        self.indices: list[int] = []

    def take(self, timeout: float = 0.1) -> bool:
        item = self.cameras.read("cam", timeout=timeout)
        if item:
            marks = read_marks(item.array)
            assert marks is not None, f"{item!r}: the numbers in the picture cannot be read"
            self.seen.append(marks)
            self.indices.append(item.index)
        return bool(item)

    def until_frame(self, camera: int, frame: int) -> None:
        def there() -> bool:
            self.take()
            return bool(self.seen) and self.seen[-1] >= (camera, frame)

        until(there, f"picture {frame} of camera {camera}")

    @property
    def status(self) -> dict[str, Any]:
        return dict(self.cameras.status()["sources"]["cam"])

    @property
    def books(self) -> AccountSnapshot:
        (books,) = self.cameras.accounts().values()
        assert books.balanced
        return books


@pytest.fixture
def watcher(there: Room) -> Iterator[Watcher]:
    with Comux(
        ["cam"], address=there.address, mode="every_frame", start="beginning", strict_on_fail=False, stall_after=60.0
    ) as cameras:
        yield Watcher(cameras)


def test_a_topic_that_comes_late_is_read_from_its_beginning(there: Room) -> None:
    """Also by a source that starts at the end: what was not there when it started is new."""
    with Comux(["cam"], address=there.address, mode="every_frame", strict_on_fail=False) as cameras:
        watcher = Watcher(cameras)
        until(lambda: watcher.status["state"] == "RECONNECTING", "the source misses its topic")
        assert "raw_cam" in watcher.status["reason"]
        there.feed(_camera(), "raw_cam", pace="fast", frames=30).join()
        watcher.until_frame(1, 29)
        assert watcher.seen == [(1, frame) for frame in range(30)]
        assert (watcher.books.received, watcher.books.delivered) == (30, 30)


@with_both_libraries
@pytest.mark.parametrize("second", [10, 60], ids=["shorter", "longer"])
def test_a_topic_deleted_and_made_anew_is_read_from_its_beginning(there: Room, watcher: Watcher, second: int) -> None:
    """Also where the new topic has records at the offset that the old one was read up to."""
    there.feed(_camera(), "raw_cam", pace="fast", frames=30, end=False).join()
    watcher.until_frame(1, 29)
    admin = there.admin()
    admin.delete_topics([there.full("raw_cam")])
    until(lambda: "raw_cam" not in there.broker.topics(), "the topic is gone")
    there.feed(_camera(2), "raw_cam", pace="fast", frames=second, end=False).join()
    watcher.until_frame(2, second - 1)
    assert watcher.seen == [(1, frame) for frame in range(30)] + [(2, frame) for frame in range(second)]
    assert watcher.books.delivered == 30 + second
    assert watcher.books.held_total == 0


@with_both_libraries
def test_what_retention_deletes_under_a_paused_source_is_lapped(there: Room, watcher: Watcher) -> None:
    feed = there.feed(_camera(fps=60), "raw_cam")
    watcher.until_frame(1, 20)
    watcher.cameras.pause("cam")
    until(lambda: not watcher.take(0) and watcher.books.held_total == 0, "nothing waits in the source")
    position = watcher.status["position"]
    until(lambda: there.broker.topic("raw_cam").high_water > position + 200, "200 more packets")
    log_start = position + 105
    there.delete_up_to("raw_cam", log_start)
    assert there.broker.topic("raw_cam").log_start == log_start
    with there.broker.consumer("raw_cam", start=log_start) as consumer:
        (first,) = consumer.poll(10)
    first_frame = int(dict(first.headers)["comux-seq"] or 0)
    watcher.cameras.resume("cam")
    watcher.until_frame(1, first_frame)
    assert 0 < watcher.books.dropped["lapped"] <= 105, "what was fetched before the pause is read all the same"
    assert next(frame for _, frame in watcher.seen if frame >= first_frame) == -(-first_frame // 10) * 10
    feed.end()
    until(lambda: not watcher.take() and watcher.status["state"] == "ENDED", "the end")
    books, end = watcher.books, there.broker.topic("raw_cam").high_water
    assert (books.received, books.held_total) == (end, 0)
    assert books.delivered + books.dropped["lapped"] + books.dropped.get("resync", 0) == end
    assert books.dropped.keys() <= {"lapped", "resync"}
    assert books.dropped.get("resync", 0) < 20
    assert [frame for _, frame in watcher.seen] == sorted({frame for _, frame in watcher.seen})


# -- holes ---------------------------------------------------------------------------------------------------------


def _stamped(there: Room, pictures: int) -> list[Any]:
    """A feed's packets as they stand in a topic."""
    there.feed(_camera(), "made", pace="fast", frames=pictures, end=False).join()
    return there.plain("made")


def _send_in_transactions(there: Room, records: list[Any], *, aborted: int) -> int:
    """Six packets a transaction, ``aborted`` transactions of rubbish between them; gives the markers written."""
    producer = KafkaProducer(bootstrap_servers=there.bootstrap, transactional_id=there.full("t"))
    topic, markers = there.full("raw_cam"), 0
    try:
        producer.init_transactions()
        for first in range(0, len(records), 6):
            producer.begin_transaction()
            for record in records[first : first + 6]:
                producer.send(topic, record.value, record.key, record.headers, 0, record.timestamp)
            producer.commit_transaction()
            markers += 1
            if aborted:
                aborted -= 1
                producer.begin_transaction()
                producer.send(topic, b"rubbish", partition=0).get(20)
                producer.abort_transaction()
                markers += 1
    finally:
        producer.close()
    return markers


@with_both_libraries
@pytest.mark.parametrize("aborted", [0, 3])
def test_holes_are_absorbed_and_cost_no_pictures(there: Room, aborted: int) -> None:
    """Transactions end with markers that have offsets and are no records; aborted records are not read at all."""
    records = _stamped(there, 60)
    there.topic("raw_cam", metadata={"codec": "h264"})
    markers = _send_in_transactions(there, records, aborted=aborted)
    high_water = there.broker.topic("raw_cam").high_water
    assert high_water == 60 + markers + aborted
    options = {"isolation_level": "read_committed"} if aborted else {}
    with Comux(
        ["cam"], address=there.address, mode="every_frame", start="beginning", max_offset_diff=500, **options
    ) as cameras:
        watcher = Watcher(cameras)
        watcher.until_frame(1, 59)
        assert watcher.seen == [(1, frame) for frame in range(60)]
        until(lambda: watcher.status["lag"] == 0, "the marker at the end is known to be no record")
        books = watcher.books
        assert (books.delivered, dict(books.dropped)) == (60, {})
        assert books.received - books.absorbed == 60
        assert watcher.indices == sorted(watcher.indices)
        there.feed(_camera(), "raw_cam", pace="fast", frames=70).join()  # markers lie before its first packet
        until(lambda: not watcher.take() and watcher.status["state"] == "ENDED", "the end")
        books = watcher.books
        assert books.received == there.broker.topic("raw_cam").high_water
        assert (books.absorbed, books.held_total) == (markers + aborted, 0)
        assert books.delivered == 60 + 70


@with_both_libraries
def test_a_consumer_counts_holes_and_losses_apart(there: Room) -> None:
    """Markers before and after what retention took: neither is counted as the other."""
    records = _stamped(there, 12)
    there.topic("raw_cam")
    for _ in range(2):
        _send_in_transactions(there, records, aborted=0)  # 6 records, marker, 6 records, marker: 14 offsets each
    with there.broker.consumer("raw_cam", start="beginning") as consumer:
        assert len(consumer.poll(10, 12)) == 12
        there.delete_up_to("raw_cam", 16)
        consumer.seek(consumer.position())  # what was fetched is thrown away
        rest: list[Any] = []
        while len(rest) < 10:
            rest += consumer.poll(10, 100)
        assert [record.offset for record in rest] == [*range(16, 20), *range(21, 27)]
        account = consumer.account()
        assert account.balanced
        assert account.received == 27
        assert account.delivered == 12 + 10
        assert account.absorbed + account.dropped["lapped"] == 5
        assert rest[0].skipped == account.dropped["lapped"]
        until(lambda: consumer.lag() == 0, "the last marker is known to be no record")


def test_the_end_of_a_stream_right_behind_a_loss(there: Room) -> None:
    """Retention took everything but the end."""
    there.topic("raw_cam")
    offsets = there.fill("raw_cam", 10)
    with there.broker.consumer("raw_cam", start="beginning") as consumer:
        (first,) = consumer.poll(10)
        with there.broker.producer("raw_cam") as producer:
            producer.end()
        there.delete_up_to("raw_cam", offsets[-1] + 1)
        consumer.seek(first.offset + 1)
        assert list(consumer) == []
        account = consumer.account()
        assert account.balanced
        assert (account.delivered, account.dropped["lapped"]) == (1, 9)
