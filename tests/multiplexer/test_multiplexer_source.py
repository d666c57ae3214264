"""One source among others: states, isolation, lag, books, pause, reconnecting; with a decoder that a test controls."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from comux.errors import EndOfStream
from comux.multiplexer import Comux, State
from comux.transport import Broker


def state(mux: Comux, cam_id: str) -> str:
    return str(mux.status()["sources"][cam_id]["state"])


def take(mux: Comux, cam_id: str, count: int) -> list[int]:
    """Indexes of the next ``count`` pictures."""
    out = []
    for _ in range(count):
        item = mux.read(cam_id, timeout=10)
        assert item.index is not None, item
        out.append(item.index)
    return out


def test_states_are_events(start: Any, feed: Any, wait_for: Any) -> None:
    f = feed("a")
    mux = start(["a"], mode="every_frame", stall_after=0.2, on_end="wait")
    assert state(mux, "a") == State.STARTING
    f.send(5)
    wait_for(lambda: state(mux, "a") == State.RUNNING)
    wait_for(lambda: state(mux, "a") == State.STALLED)
    f.raw(b"garbage")
    wait_for(lambda: state(mux, "a") == State.RESYNCING)
    f.send(10)
    wait_for(lambda: state(mux, "a") == State.RUNNING)
    mux.pause("a")
    assert state(mux, "a") == State.PAUSED
    mux.resume("a")
    f.end()
    wait_for(lambda: state(mux, "a") == State.ENDED)
    changes = [event.data["new"] for event in mux.events.recent("source.state", "a")]
    assert changes[:5] == ["RUNNING", "STALLED", "RESYNCING", "RUNNING", "PAUSED"]


def test_an_ended_camera_that_restarts_comes_back(
    start: Any, feed: Any, wait_for: Any, broker: Broker, fake: Any
) -> None:
    fake.delay = 3
    f = feed("a")
    mux = start(["a"], mode="every_frame")
    f.send(10)
    assert take(mux, "a", 7) == list(range(7))
    f.end()
    assert take(mux, "a", 3) == [7, 8, 9], "the last pictures come out of the decoder"
    wait_for(lambda: state(mux, "a") == State.ENDED)
    f.producer.close()
    f.producer = broker.producer(f.topic)
    f.sent = 0
    f.send(10)
    assert take(mux, "a", 7) == list(range(10, 17))
    assert mux.get_batch(timeout=0) is not None, "the loop was never ended"


def test_a_finite_topic_ends_the_source(start: Any, feed: Any) -> None:
    f = feed("a", metadata={"finite": True})
    mux = start(["a"])
    f.send(30)
    f.end()
    assert take(mux, "a", 30) == list(range(30)), "finite sources keep every picture"
    with pytest.raises(EndOfStream):
        mux.get_batch(timeout=10)


@pytest.mark.parametrize("fault", ["stall", "garbage", "explode", "delete"])
def test_one_broken_source_changes_nothing_for_the_others(start: Any, feed: Any, wait_for: Any, fault: str) -> None:
    feeds = {cam: feed(cam) for cam in ("a", "b", "bad")}
    mux = start(list(feeds), mode="every_frame", stall_after=0.3)
    for f in feeds.values():
        f.send(20)
    got: dict[str, list[int]] = {"a": [], "b": []}
    sent, deadline, reasons = 20, time.monotonic() + 20, set()
    while min(map(len, got.values())) < 200 and time.monotonic() < deadline:
        if sent < 200:
            for cam in ("a", "b"):
                feeds[cam].send(10)
            sent += 10
            if sent == 40 and fault == "delete":
                wait_for(lambda: mux.accounts()["bad"].received == 20)
                mux.delete("bad")
            elif fault in ("garbage", "explode"):
                feeds["bad"].raw(fault.encode())
        for item in mux.get_batch(timeout=1):
            if item and item.cam_id != "bad":
                got[item.cam_id].append(item.index)
            elif item.cam_id == "bad":
                reasons.add(str(item.status))
    assert got == {"a": list(range(200)), "b": list(range(200))}
    if fault == "stall":
        wait_for(lambda: mux.get("bad").status == "stalled")
    elif fault == "garbage":
        assert "decode_error" in reasons  # by now it may have stalled
        assert mux.accounts()["bad"].dropped["decode_error"] >= 10
    elif fault == "explode":
        wait_for(lambda: mux.status()["sources"]["bad"]["restarts"] >= 1)
        assert "the fake decoder explodes" in mux.events.recent("source.state", "bad")[-1].message
        feeds["bad"].send(11)
        wait_for(lambda: state(mux, "bad") == State.RUNNING, seconds=20)
    else:
        assert mux.cam_ids == ("a", "b")
        assert mux.accounts()["bad"].received == 20, "its books stay"


def test_full_store_blocks_the_source_and_the_ring_counts_what_it_overwrites(
    start: Any, feed: Any, wait_for: Any
) -> None:
    f = feed("a", records=50)
    mux = start(["a"], mode="every_frame")
    for _ in range(2):
        f.send(40)
        wait_for(lambda: mux.accounts()["a"].received >= min(f.sent, 65))
    wait_for(lambda: mux.status()["sources"]["a"]["waiting"] == 64)
    f.send(300)
    got = []
    while (item := mux.read("a", timeout=0.3)) and item:
        got.append(item.index)
    assert got == sorted(set(got))
    account = mux.accounts()["a"]
    assert account.received == 380
    assert account.dropped.get("lapped", 0) > 0
    assert account.delivered == len(got)
    assert mux.status()["sources"]["a"]["jumps"] == 0, "the lag rule is off in every_frame"


@pytest.mark.parametrize("gop", [30, 250])
@pytest.mark.parametrize("flags", [True, False])
@pytest.mark.parametrize("limit", [5, 20, 100])
def test_lag_rule(start: Any, feed: Any, fake: Any, wait_for: Any, gop: int, flags: bool, limit: int) -> None:
    gate = fake.gate = threading.Event()
    f = feed("a", gop=gop, flags=flags)
    mux = start(["a"], mode="every_frame", max_offset_diff=limit)
    f.send(1)
    wait_for(lambda: mux.accounts()["a"].received >= 1)
    f.send(620)
    gate.set()
    wait_for(lambda: mux.accounts()["a"].received == 621 and mux.status()["sources"]["a"]["lag"] == 0)
    for _ in range(3):
        f.send(1)
        wait_for(lambda: mux.accounts()["a"].received == f.sent)
    got = []
    while (item := mux.read("a", timeout=0.3)) and item:
        assert item.array[0, 0, 0] == item.index % 251
        got.append(item.index)
    newest_key = 620 // gop * gop
    assert got == sorted(set(got)), "never backwards"
    assert got[0] == 0
    assert got[1] == newest_key, "it went to the newest keyframe"
    assert got[-1] == 623, "it caught up"
    account = mux.accounts()["a"]
    assert account.dropped["jumped"] == newest_key - 1
    assert account.received == 624 == account.delivered + account.dropped_total
    if 620 - newest_key > limit:
        assert account.dropped["lag"] > 0, "decoded without converting until caught up"
    assert set(account.dropped) <= {"jumped", "lag"}


def test_too_old_waits_for_the_next_keyframe(start: Any, feed: Any, fake: Any, wait_for: Any) -> None:
    f = feed("a", gop=20)
    fake.gate = threading.Event()
    fake.gate.set()
    mux = start(["a"], mode="every_frame", max_age=1.0)
    f.send(5)
    wait_for(lambda: mux.accounts()["a"].held.get("pictures") == 5)
    fake.gate.clear()
    f.send(15)
    wait_for(lambda: mux.status()["sources"]["a"]["lag_seconds"] > 1.1)
    fake.gate.set()
    wait_for(lambda: mux.accounts()["a"].received == 20 and state(mux, "a") == State.RESYNCING)
    f.send(3)
    got = []
    while (item := mux.read("a", timeout=0.3)) and item:
        got.append(item.record.value)
    assert got[:5] == [b"K:0", b"P:1", b"P:2", b"P:3", b"P:4"]
    assert got[-3:] == [b"K:20", b"P:21", b"P:22"]
    assert len(got) <= 9, "the rest of the late GOP is not shown"
    assert mux.accounts()["a"].dropped == {"resync": 23 - len(got)}


def test_rate_is_a_limit_of_capture_time(start: Any, feed: Any, wait_for: Any) -> None:
    f = feed("a", gop=300)
    mux = start(["a"], mode="every_frame", rate=10.0)
    f.send(300, timestamp_ns=time.time_ns(), step_ns=33_333_333)
    got = []
    while (item := mux.read("a", timeout=1)) and item:
        got.append(item.index)
    assert abs(len(got) - 100) <= 2
    account = mux.accounts()["a"]
    assert account.dropped == {"rate": 300 - len(got)}
    mux.set_rate("a", None)
    f.send(5, timestamp_ns=time.time_ns())
    assert take(mux, "a", 5) == [300, 301, 302, 303, 304]


def test_pause_stops_fetching_and_resume_goes_on(start: Any, feed: Any, wait_for: Any) -> None:
    f = feed("a")
    mux = start(["a"], mode="every_frame")
    f.send(3)
    assert take(mux, "a", 3) == [0, 1, 2]
    mux.pause("a")
    wait_for(lambda: mux.read("a", timeout=0).status == "paused")
    threading.Event().wait(0.1)
    f.send(7)
    threading.Event().wait(0.2)
    assert mux.accounts()["a"].received <= 4, "at most the packet that was under way"
    mux.resume("a")
    assert take(mux, "a", 7) == [3, 4, 5, 6, 7, 8, 9]


def test_a_topic_that_appears_later_and_one_that_is_made_anew(
    start: Any, feed: Any, wait_for: Any, broker: Broker
) -> None:
    mux = start(["a"], mode="every_frame", strict_on_fail=False)
    wait_for(lambda: state(mux, "a") == State.RECONNECTING)
    assert mux.get_batch(timeout=0)[0].status == "reconnecting"
    f = feed("a")
    f.send(5)
    assert take(mux, "a", 5) == [0, 1, 2, 3, 4], "read from its beginning"
    broker.delete_topic(f.topic, force=True)
    wait_for(lambda: state(mux, "a") == State.RECONNECTING)
    again = feed("a")
    again.send(3)
    assert take(mux, "a", 3) == [0, 1, 2]
    assert mux.status()["sources"]["a"]["restarts"] >= 2


def test_the_books_balance_at_every_instant(start: Any, feed: Any) -> None:
    feeds = [feed(cam, records=64) for cam in ("a", "b", "c")]
    mux = start(["a", "b", "c"], rate=2000.0, max_offset_diff=15)
    done = threading.Event()
    wrong: list[Any] = []
    read = [0]

    def watch() -> None:
        while not done.is_set():
            for cam_id, account in mux.accounts().items():
                read[0] += 1
                if not account.balanced:
                    wrong.append((cam_id, account))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for n in range(120):
        for f in feeds:
            f.send(5)
        if n % 30 == 7:
            feeds[0].raw(b"garbage")
        if n == 60:
            mux.delete("c")
        mux.get_batch(timeout=0, mode="every_frame" if n % 20 > 10 else "freshest")
    done.set()
    watcher.join(10)
    assert not wrong
    assert read[0] > 50


def test_update_goes_on_where_it_was(start: Any, feed: Any) -> None:
    f = feed("a")
    mux = start(["a"], mode="every_frame")
    f.send(10)
    assert take(mux, "a", 10) == list(range(10))
    assert mux.update("a", W=32, H=24)["success"]
    f.send(10)
    items = [mux.read("a", timeout=10) for _ in range(10)]
    assert [item.index for item in items] == list(range(10, 20))
    assert items[0].array.shape == (24, 32, 3)
    assert mux.accounts()["a"].delivered == 20, "with its books"


def test_a_gating_member_loses_nothing(start: Any, feed: Any, broker: Broker) -> None:
    f = feed("a", records=40, policy="wait")
    mux = start(["a"], group="viewer", mode="every_frame")
    sender = threading.Thread(target=f.send, args=(400,))
    sender.start()
    assert take(mux, "a", 400) == list(range(400))
    sender.join(10)
    assert mux.accounts()["a"].dropped_total == 0


def test_a_packet_that_its_group_gave_up_is_in_the_books(start: Any, feed: Any, broker: Broker) -> None:
    """Delivered five times before us, acknowledged never: set aside, counted, and the camera goes on."""
    f = feed("a", records=40, gop=1)
    f.send(3)
    with broker.consumer(f.topic, group="viewer", start="beginning") as before:
        for _ in range(5):
            before.nack(before.poll(0)[0])
    mux = start(["a"], group="viewer", durable=True, mode="every_frame")
    assert take(mux, "a", 2) == [1, 2]
    account = mux.accounts()["a"]
    assert account.balanced
    assert (account.delivered, account.dropped) == (2, {"dead_letter": 1})
    assert broker.topics().count(f"{f.topic}.dead.viewer") == 1


def test_what_a_source_holds_is_let_go_when_it_is_deleted(start: Any, feed: Any, wait_for: Any, broker: Broker) -> None:
    f = feed("a")
    mux = start(["a", "b"], strict_on_fail=False, mode="every_frame")
    f.send(20)
    wait_for(lambda: mux.accounts()["a"].held.get("pictures") == 20)
    threads = threading.active_count()
    mux.delete("a")
    assert threading.active_count() == threads - 1
    account = mux.accounts()["a"]
    assert (account.held_total, account.dropped) == (0, {"removed": 20})
    f.producer.close()
    broker.delete_topic(f.topic)  # refused as long as anybody reads it
