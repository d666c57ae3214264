"""Clocks of sources: whose they are, how far off they are, and when they were set; alone, and through ``Comux``."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comux.feeds import publish, publish_arrays
from comux.feeds.synthetic import parse_synthetic, synthetic_packets
from comux.multiplexer import Comux
from comux.multiplexer.clocks import BUCKET_NS, BUCKETS, LEAP_NS, SlidingMinimum, SourceClock
from comux.records import HEADER_CLOCK, KEYFRAME, RESERVED_HEADERS, Record, clock_owner
from comux.telemetry import EventLog
from comux.transport import Broker, TopicSpec, connect
from comux.transport.memory import discard

S = 10**9
HOUR = 3600 * S
NOW = 1_700_000_000 * S  # of streams that need no real clock
FRAME = S // 30
OTHER = b"0123456789ab"


# -- the sliding minimum -----------------------------------------------------------------------------------------------


@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.integers(-3, 30), st.integers(-50, 50)), min_size=1, max_size=80),
)
def test_sliding_minimum_is_that_of_a_plain_list(buckets: int, steps: list[tuple[int, int]]) -> None:
    width = 10
    low = SlidingMinimum(buckets, width)
    assert low.value is None
    now = newest = 1000
    seen: list[tuple[int, int]] = []
    for step, value in steps:
        now += step
        newest = max(newest, now // width * width)  # a time before the newest counts as the newest
        seen.append((newest // width, value))
        low.add(value, now)
        current = seen[-1][0]
        assert low.value == min(v for bucket, v in seen if bucket >= current - buckets)
        assert len(low) <= buckets + 1
    low.clear()
    assert low.value is None and len(low) == 0


def test_the_minimum_is_of_ten_minutes_and_small() -> None:
    low = SlidingMinimum()
    assert BUCKET_NS * BUCKETS == 600 * S
    low.add(-5, 0)
    for second in range(600):
        low.add(second, second * S)
        assert low.value == -5
    low.add(700, 611 * S)
    assert low.value == 10, "what is older is forgotten"
    for n in range(100_000):
        low.add(n, 700 * S + n * S)
    assert len(low) <= BUCKETS + 1


# -- one clock ---------------------------------------------------------------------------------------------------------


def stream(clock: SourceClock, stamps: list[int], *, owner: bytes | None = None, first: int = 0) -> None:
    """Records with these timestamps, received one frame after the other from ``NOW`` on."""
    for n, stamp in enumerate(stamps, first):
        clock.note(stamp, owner, NOW + n * FRAME, n)


def even(count: int, *, skew: int = 0, first: int = 0) -> list[int]:
    return [NOW + skew + n * FRAME for n in range(first, first + count)]


def test_own_clock_is_believed_however_old_the_records_are() -> None:
    for skew in (0, -HOUR, -10_000 * HOUR):
        for owner in (None, clock_owner()):
            clock = SourceClock()
            stream(clock, even(100, skew=skew), owner=owner)
            assert (clock.epochs, clock.estimated, clock.behind(50)) == (0, False, (0, False))


@pytest.mark.parametrize("skew", [HOUR, -HOUR, 30 * 365 * 24 * HOUR])
def test_foreign_clock_is_measured_by_the_record_that_travelled_fastest(skew: int) -> None:
    clock = SourceClock()
    for n in range(200):
        journey = (5 + n * 7 % 40) * 10**6
        clock.note(NOW + n * FRAME + skew, OTHER, NOW + n * FRAME + journey, n)
    assert clock.epochs == 0 and clock.estimated
    assert clock.behind(199) == (5 * 10**6 - skew, True)
    assert clock.newest_behind_ns == 5 * 10**6 - skew


def test_without_owner_the_clock_is_ours_only_where_the_engine_is() -> None:
    clock = SourceClock()
    clock.local = False
    assert clock.behind(0) == (0, True)
    stream(clock, even(10, skew=-HOUR))
    assert clock.estimated and clock.behind(9) == (HOUR, True)
    ours = SourceClock()
    ours.local = False
    stream(ours, even(10), owner=clock_owner())
    assert not ours.estimated, "a stamp of our feeds is good on every engine"


def test_receipt_is_when_the_local_engine_took_it_so_a_backlog_is_no_journey() -> None:
    def record(**more: Any) -> Record:
        return Record("t", 0, NOW - HOUR, b"", headers=((HEADER_CLOCK, OTHER),), append_ns=NOW, **more)

    clock = SourceClock()
    clock.observe(record(), NOW + 60 * S)
    assert clock.newest_behind_ns == HOUR
    elsewhere = SourceClock()
    elsewhere.local = False
    elsewhere.observe(record(), NOW + 60 * S)
    assert elsewhere.newest_behind_ns == HOUR + 60 * S, "another machine's append time is by a third clock"


@pytest.mark.parametrize("owner", [None, OTHER])
@pytest.mark.parametrize("leap", [-HOUR, HOUR, -3 * S, 11 * S])
def test_a_leap_opens_an_epoch_and_forgets_the_minimum(leap: int, owner: bytes | None) -> None:
    events = EventLog()
    clock = SourceClock("cam", events)
    stream(clock, even(50), owner=owner)
    stream(clock, even(50, skew=leap, first=50), owner=owner, first=50)
    assert clock.epochs == 1
    (event,) = events.recent("source.clock", "cam")
    assert event.data["offset"] == 50 and event.data["clock_epochs"] == 1
    assert event.data["moved"] == pytest.approx(leap / S)
    believed = owner is None and abs(leap) <= LEAP_NS
    assert event.data["estimated"] is clock.estimated is (not believed)
    assert clock.behind(99) == ((0, False) if believed else (-leap, True))
    assert clock.behind(49) == (0, owner is not None), "pictures of the old epoch keep its measure"


def test_an_outlier_costs_two_epochs_and_our_clock_is_believed_again() -> None:
    for owner in (None, OTHER):
        clock = SourceClock()
        stream(clock, even(30), owner=owner)
        stream(clock, [NOW + 40 * HOUR], owner=owner, first=30)
        stream(clock, even(30, first=31), owner=owner, first=31)
        assert clock.epochs == 2
        assert clock.behind(60) == (0, owner is not None)


def test_another_owner_is_another_clock() -> None:
    events = EventLog()
    clock = SourceClock("cam", events)
    stream(clock, even(10, skew=-HOUR), owner=OTHER)
    stream(clock, even(10, first=10), owner=clock_owner(), first=10)
    assert clock.epochs == 1 and not clock.estimated
    assert "another host" in events.recent("source.clock")[0].message
    assert clock.behind(9) == (HOUR, True) and clock.behind(10) == (0, False)


def test_a_clock_per_record_is_counted_but_does_not_flood_the_events() -> None:
    events = EventLog()
    clock = SourceClock("cam", events)
    for n in range(1000):
        clock.note(NOW + n * FRAME, OTHER if n % 2 else None, NOW + n * FRAME, n)
    assert clock.epochs == 999
    assert 1 <= len(events.recent("source.clock")) <= 20


def test_late_records_pauses_and_stalls_are_no_leaps() -> None:
    for owner in (None, OTHER):
        clock = SourceClock()
        stream(clock, even(30), owner=owner)
        n, last = 30, NOW + 30 * FRAME
        for pause in (5 * S, 60 * S, HOUR):  # nothing is sent for a while
            last += pause
            clock.note(last, owner, last, n)
            n += 1
        for k in range(100):  # the way was blocked for a minute, then everything arrives at once
            clock.note(last + k * FRAME, owner, last + 60 * S + k, n)
            n += 1
        clock.note(last + 61 * S, owner, last + 61 * S, n)
        assert clock.epochs == 0
        assert clock.behind(n) == (0, owner is not None)


def test_a_film_of_slow_pictures_published_fast_is_no_row_of_leaps() -> None:
    clock = SourceClock()
    for n in range(100):
        clock.note(NOW + n * 600 * S, None, NOW + n, n)
    assert clock.epochs <= 1


def test_when_our_clock_is_set_back_the_measure_begins_anew() -> None:
    clock = SourceClock()
    stream(clock, even(30, skew=-HOUR), owner=OTHER)
    for n in range(30, 60):  # their clock goes on, ours lost ten minutes
        clock.note(NOW + n * FRAME - HOUR, OTHER, NOW + n * FRAME - 600 * S, n)
    assert clock.epochs == 0
    assert clock.behind(59) == (HOUR - 600 * S, True)


def test_redelivered_packets_and_another_stream_are_no_leaps() -> None:
    clock = SourceClock()
    for n in range(10):
        clock.observe(Record("t", n, NOW + n * 60 * S, b"", append_ns=NOW + n * 60 * S), NOW)
    clock.observe(Record("t", 2, NOW + 120 * S, b"", append_ns=NOW + 120 * S, redelivered=True), NOW)
    assert clock.epochs == 0
    clock.forget()
    clock.observe(Record("t", 0, NOW - HOUR, b"", append_ns=NOW), NOW)
    assert clock.epochs == 0 and not clock.estimated


@given(
    st.sampled_from([1.0, 5.0, 30.0, 120.0]),
    st.lists(st.integers(0, 8), min_size=1, max_size=20),
    st.booleans(),
    st.sampled_from([None, OTHER]),
)
def test_the_order_of_b_frames_is_no_leap(fps: float, gaps: list[int], pyramid: bool, owner: bytes | None) -> None:
    """Reference first, then the pictures before it; with ``pyramid``, the middle ones first."""

    def inner(low: int, high: int) -> list[int]:
        if not pyramid:
            return list(range(low, high))
        middle = (low + high) // 2
        return [] if low >= high else [middle, *inner(low, middle), *inner(middle + 1, high)]

    order, shown = [0], 1
    for b_frames in gaps:
        order += [shown + b_frames, *inner(shown, shown + b_frames)]
        shown += b_frames + 1
    assert sorted(order) == list(range(shown))
    period = round(S / fps)
    clock = SourceClock()
    for n, picture in enumerate(order):
        clock.note(NOW + picture * period, owner, NOW + (n + 20) * period, n)
    assert clock.epochs == 0


def test_synthetic_cameras_with_b_frames_and_faults_keep_one_epoch() -> None:
    address = "synthetic://64x48@30?gop=12&bframes=3&frames=200&faults=stall@2s+3s,duplicate@31,swap@17,missing@23"
    clock = SourceClock()
    for n, packet in enumerate(synthetic_packets(parse_synthetic(address))):
        clock.note(NOW + round(packet.capture_s * S), OTHER, NOW + round(packet.release_s * S), n)
    assert clock.epochs == 0


# -- stamps ------------------------------------------------------------------------------------------------------------


def test_feeds_stamp_whose_clock_it_is(broker: Broker) -> None:
    publish("synthetic://64x48@30?frames=3", broker, "raw_a", pace="fast")
    publish_arrays([np.zeros(3, np.uint8)] * 2, broker, "raw_b")
    for topic, count in (("raw_a", 3), ("raw_b", 2)):
        with broker.consumer(topic, start="beginning") as consumer:
            records = consumer.poll(5, 10)
        assert [record.header(HEADER_CLOCK) for record in records] == [clock_owner()] * count
    assert len(clock_owner()) == 12 and int(clock_owner(), 16) >= 0
    assert HEADER_CLOCK in RESERVED_HEADERS


# -- through Comux -----------------------------------------------------------------------------------------------------


class Camera:
    """Publishes fake packets by a clock that is ``skew_ns`` ahead of ours and whose host is ``owner``."""

    def __init__(self, broker: Broker, cam: str, owner: bytes | None, skew_ns: int = 0) -> None:
        broker.create_topic(TopicSpec(f"raw_{cam}", records=4096, policy="drop_oldest"))
        self.producer = broker.producer(f"raw_{cam}")
        self.owner = owner
        self.skew_ns = skew_ns
        self.sent = 0

    def send(self, count: int = 1, *, late_ns: int = 0) -> None:
        for _ in range(count):
            key = self.sent % 5 == 0
            self.producer.send(
                (b"K:%d" if key else b"P:%d") % self.sent,
                headers=() if self.owner is None else ((HEADER_CLOCK, self.owner),),
                flags=KEYFRAME if key else 0,
                timestamp_ns=time.time_ns() + self.skew_ns - late_ns,
            ).result(5)
            self.sent += 1


@pytest.fixture(params=["memory", "shm"])
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"clocks{uuid.uuid4().hex[:8]}"
    yield f"{request.param}://{name}"
    if request.param == "memory":
        discard(name)
        return
    with connect(f"shm://{name}") as opened:
        for topic in opened.topics():
            opened.delete_topic(topic)


@pytest.fixture
def start(address: str, fake: Any) -> Iterator[Callable[..., Comux]]:
    opened: list[Comux] = []

    def make(ids: list[str], **options: Any) -> Comux:
        mux = Comux(ids, address=address, decoder_factory=fake, **{"mode": "every_frame", **options})
        opened.append(mux)
        mux.start()
        return mux

    yield make
    for mux in opened:
        mux.close()
        for account in mux.accounts().values():
            assert account.balanced and account.held_total == 0, account


def status(mux: Comux, cam_id: str = "a") -> dict[str, Any]:
    found: dict[str, Any] = mux.status()["sources"][cam_id]
    return found


def test_own_clock_is_not_estimated(start: Any, broker: Broker) -> None:
    for n, owner in enumerate((None, clock_owner())):
        camera = Camera(broker, f"own{n}", owner)
        mux = start([f"own{n}"])
        camera.send(1, late_ns=2 * S)
        item = mux.read(f"own{n}", timeout=10)
        assert not item.age_estimated
        assert item.age == item.timestamps.delivered - item.timestamps.capture > 2
        shown = status(mux, f"own{n}")
        assert (shown["age_estimated"], shown["clock_behind"], shown["clock_epochs"]) == (False, 0, 0)
        assert shown["age"] == item.age


@pytest.mark.parametrize("skew", [HOUR, -HOUR])
def test_a_foreign_clock_an_hour_off_costs_nothing(start: Any, broker: Broker, wait_for: Any, skew: int) -> None:
    camera = Camera(broker, "a", OTHER, skew)
    mux = start(["a"], max_age=20.0)
    camera.send(10, late_ns=8 * S)
    camera.send(10)
    wait_for(lambda: mux.accounts()["a"].held.get("pictures") == 20)
    items = [mux.get_batch(timeout=10, max_age=30)[0] for _ in range(20)]
    assert [item.index for item in items] == list(range(20))
    assert all(item.age_estimated for item in items)
    assert all(8 <= item.age < 14 for item in items[:10]), [item.age for item in items]
    assert all(0 <= item.age < 6 for item in items[10:]), "the fastest record is the measure"
    assert items[0].timestamps.capture == items[0].record.timestamp, "as the producer gave it"
    shown = status(mux)
    assert shown["age_estimated"] and shown["clock_epochs"] == 0
    assert shown["clock_behind"] == pytest.approx(-skew / S, abs=5)
    assert mux.accounts()["a"].dropped == {}


@pytest.mark.parametrize("skew", [HOUR, -HOUR])
def test_what_a_foreign_host_sent_late_is_stale(start: Any, broker: Broker, wait_for: Any, skew: int) -> None:
    camera = Camera(broker, "a", OTHER, skew)
    mux = start(["a"])
    camera.send(5, late_ns=9 * S)
    camera.send(1)
    wait_for(lambda: mux.accounts()["a"].held.get("pictures") == 6)
    assert mux.get_batch(timeout=10, max_age=8)[0].index == 5
    assert mux.accounts()["a"].dropped == {"stale": 5}


@pytest.mark.parametrize("skew", [HOUR, -HOUR])
def test_lag_in_seconds_is_by_our_clock(start: Any, broker: Broker, fake: Any, wait_for: Any, skew: int) -> None:
    camera = Camera(broker, "a", OTHER, skew)
    mux = start(["a"], maxlen=10, store_bytes=1)  # one picture fills the store, so packets wait in the topic
    camera.send(10)
    wait_for(lambda: status(mux)["lag"] >= 7 and len(mux._core.find("a").store) == 1)
    time_behind = wait_for(lambda: (seen := status(mux)["lag_seconds"]) > 0.2 and seen)
    assert time_behind < 60
    assert [mux.read("a", timeout=10).index for _ in range(10)] == list(range(10))


@pytest.mark.parametrize("owner", [None, OTHER, clock_owner()])
@pytest.mark.parametrize("leap", [-HOUR, HOUR])
def test_a_clock_set_in_the_middle_is_told_and_pictures_go_on(
    start: Any, broker: Broker, owner: bytes | None, leap: int
) -> None:
    camera = Camera(broker, "a", owner)
    mux = start(["a"], max_age=20.0)
    camera.send(12)
    camera.skew_ns = leap
    camera.send(12)
    items = [mux.get_batch(timeout=10, max_age=30)[0] for _ in range(24)]
    assert [item.index for item in items] == list(range(24))
    assert all(0 <= item.age < 10 for item in items), [item.age for item in items]
    assert [item.age_estimated for item in items] == [owner == OTHER] * 12 + [True] * 12
    (event,) = mux.events.recent("source.clock", "a")
    assert event.data["offset"] == 12 and event.data["moved"] == pytest.approx(leap / S, abs=5)
    assert status(mux)["clock_epochs"] == 1
    assert mux.accounts()["a"].dropped == {}


def test_a_leap_is_not_taken_for_lag_when_the_source_is_behind(start: Any, broker: Broker, wait_for: Any) -> None:
    """The lag rule looks at packets that were not read yet; one that is an hour old is read before it is believed."""
    camera = Camera(broker, "a", None)
    mux = start(["a"], max_age=20.0, paused=True)
    wait_for(lambda: mux._core.find("a").intake.position is not None)
    camera.send(7)
    camera.skew_ns = -HOUR
    camera.send(7)
    mux.resume("a")
    assert [mux.read("a", timeout=10).index for _ in range(14)] == list(range(14))
    assert status(mux)["clock_epochs"] == 1 and mux.accounts()["a"].dropped == {}


def test_align_brings_together_what_was_taken_together(start: Any, broker: Broker) -> None:
    cameras = [Camera(broker, "a", OTHER, HOUR), Camera(broker, "b", b"ba9876543210", -HOUR), Camera(broker, "c", None)]
    mux = start(["a", "b", "c"])
    for _ in range(5):
        for camera in cameras:
            camera.send()
    for n in range(5):
        batch = mux.get_batch(timeout=10, align=5, min_items=3)
        assert [item.index for item in batch] == [n] * 3
    assert all(account.dropped == {} for account in mux.accounts().values())


def test_an_update_keeps_what_is_known_of_the_clock(start: Any, broker: Broker) -> None:
    camera = Camera(broker, "a", OTHER, -HOUR)
    mux = start(["a"])
    camera.send(3)
    assert [mux.read("a", timeout=10).index for _ in range(3)] == [0, 1, 2]
    known = status(mux)["clock_behind"]
    assert known == pytest.approx(3600, abs=5)
    mux.update("a", store_bytes=1 << 20)
    assert (status(mux)["clock_behind"], status(mux)["age_estimated"]) == (known, True)


def test_shared_frames_keep_the_owner(address: str, broker: Broker, fake: Any) -> None:
    camera = Camera(broker, "a", OTHER, -HOUR)
    with Comux(["a"], address=address, decoder_factory=fake, share_frames=True, mode="every_frame") as mux:
        mux.start()
        camera.send(2)
        assert [mux.read("a", timeout=10).index for _ in range(2)] == [0, 1]
        assert "frames_a" in broker.topics()
        with Comux(
            ["a"], address=address, consume_schema="frames_:cam_id", start="beginning", codec="frames"
        ) as reader:
            item = reader.read("a", timeout=10)
            assert item.age_estimated and 0 <= item.age < 10
            assert item.record.header(HEADER_CLOCK) == OTHER
