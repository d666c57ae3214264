"""Full, slow, deleted, unreachable, refused: the records wait at the source, the account says so, others go on."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from comux.errors import ComuxError, ConfigError, ConnectError, UnknownAddressError, UnknownTopicError
from comux.recording import Bridge
from comux.transport import connect, register_engine
from comux.transport.engines import _engines


@pytest.fixture
def impatient(monkeypatch: Any) -> None:
    """The bridge gives its records back after a moment."""
    monkeypatch.setattr("comux.recording.outlet.PATIENCE", 0.2)
    monkeypatch.setattr("comux.recording.outlet.TICK", 0.1)


@pytest.mark.parametrize("pair", [("memory", "memory"), ("shm", "shm")], ids="-".join)
def test_a_full_destination_holds_the_records_and_its_neighbour_goes_on(
    place: Any, bridge: Any, impatient: None, pair: tuple[str, str]
) -> None:
    source, destination = map(place, pair)
    for name in ("full", "free"):
        source.topic(name, records=64)
    destination.topic("full", records=4)
    with destination.broker.consumer("full", group="slow", start="beginning", on_end="wait") as slow:
        running = bridge(source, destination, topics=["full", "free"])
        source.send("full", [b"%d" % n for n in range(50)])
        waiting = running.until("full", state="waiting", delivered=4)
        assert "full" in waiting.reason and "slow" in waiting.reason if pair[0] == "shm" else "full" in waiting.reason
        assert waiting.account.held_total == 46
        source.send("free", [b"1"])
        running.until("free", delivered=1)
        values = []
        while len(values) < 50:
            records = slow.poll(10)
            values += [record.value for record in records]
            slow.commit()
    assert values == [b"%d" % n for n in range(50)]
    account = running.until("full", delivered=50).account
    assert (account.received, account.dropped_total, account.held_total) == (50, 0, 0)


def test_a_camera_that_never_waits_is_not_held_up_by_a_full_destination(
    place: Any, bridge: Any, impatient: None
) -> None:
    source, destination = place("shm"), place("shm")
    source.topic("t", records=32, policy="drop_oldest")
    destination.topic("t", records=4)
    with destination.broker.consumer("t", group="stuck", start="beginning", on_end="wait") as stuck:
        running = bridge(source, destination, topics=["t"])
        running.until("t", state="copying")
        with source.broker.producer("t") as camera:
            for n in range(400):
                camera.send(b"%d" % n, timeout=10)
            running.until("t", state="waiting")
            camera.send(b"400", timeout=10)
            got = []
            while not got or got[-1] != b"400":
                got += [record.value for record in stuck.poll(10, 64)]
                stuck.commit()
    numbers = [int(value) for value in got]
    assert numbers == sorted(numbers)
    account = running.until("t", received=401, held=0).account
    assert account.delivered == len(got) < 401
    assert account.dropped == {"lapped": 401 - len(got)}


def test_lossy_counts_what_it_missed_and_holds_nothing_back(place: Any, bridge: Any, impatient: None) -> None:
    source, destination = place("shm"), place("memory")
    source.topic("t", records=16)
    destination.topic("t", records=4)
    with destination.broker.consumer("t", group="stuck", start="beginning", on_end="wait") as stuck:
        running = bridge(source, destination, topics=["t"], lossy=True, start="end")
        running.until("t", state="copying")
        with source.broker.producer("t") as producer:
            for n in range(500):
                producer.send(b"%d" % n, timeout=0)  # nobody holds it up
        assert source.broker.groups("t") == []
        got: list[bytes] = []
        while not got or got[-1] != b"499":
            got += [record.value for record in stuck.poll(5, 64)]
            stuck.commit()
    account = running.until("t", received=500, held=0).account
    assert [int(value) for value in got] == sorted({int(value) for value in got})
    assert account.delivered == len(got)
    assert account.dropped == {"lapped": 500 - len(got)}


def test_a_destination_that_drops_the_newest_is_counted(place: Any, bridge: Any) -> None:
    source, destination = place("memory"), place("memory")
    source.topic("t")
    destination.topic("t", records=4, policy="drop_newest")
    with destination.broker.consumer("t", group="stuck", start="beginning"):
        source.send("t", [b"%d" % n for n in range(10)])
        running = bridge(source, destination, topics=["t"], once=True)
        running.join()
        account = running.status("t").account
        assert (account.delivered, account.dropped) == (4, {"drop_newest": 6})


@pytest.mark.parametrize("scheme", ["memory", "shm"])
def test_a_destination_deleted_under_the_bridge_is_made_again(place: Any, bridge: Any, scheme: str) -> None:
    source, destination = place(scheme), place(scheme)
    source.topic("t", metadata={"codec": "h264"})
    running = bridge(source, destination, topics=["t"])
    source.send("t", [b"1"])
    running.until("t", delivered=1)
    destination.broker.delete_topic("t", force=True)
    deadline = time.monotonic() + 20
    number = 2
    while "t" not in destination.broker.topics():  # noticed when something is sent
        assert time.monotonic() < deadline
        source.send("t", [b"%d" % number])
        number += 1
        running.until("t", delivered=number - 1)
    source.send("t", [b"last"])
    running.until("t", delivered=number)
    assert destination.values("t")[-1] == b"last"
    assert destination.broker.topic("t").spec.metadata == {"codec": "h264"}


def test_a_record_too_large_waits_for_the_limit_or_is_dropped_on_request(place: Any, bridge: Any) -> None:
    source, destination = place("memory"), place("shm")
    source.topic("t", data_bytes=64 << 20)
    destination.topic("t", records=16, data_bytes=1 << 20)
    source.send("t", [b"1", b"x" * (5 << 20), b"2"])
    running = bridge(source, destination, topics=["t"])
    failed = running.until("t", state="failed", delivered=1)
    assert "record 1 of 't'" in failed.reason and "drop_too_large" in failed.reason
    assert failed.account.held_total == 2
    running.stop()
    running = bridge(source, destination, topics=["t"], drop_too_large=True, once=True)
    running.join()
    assert destination.values("t") == [b"1", b"2"]
    account = running.status("t").account
    assert (account.delivered, account.dropped) == (1, {"too_large": 1})


class Flaky:
    """An engine ``flaky://`` that is a place which can be reached or not."""

    def __init__(self, behind: Any) -> None:
        self.behind = behind
        self.away = True

    def open(self, address: Any, **options: Any) -> Any:
        if self.away:
            raise ConnectError("flaky://: nobody listens")
        return connect(self.behind.address)


@pytest.fixture
def flaky(place: Any, monkeypatch: Any) -> Flaky:
    monkeypatch.setattr("comux.transport.engines._engines", dict(_engines))
    engine = Flaky(place("memory"))
    register_engine("flaky", engine.open)
    return engine


def test_a_destination_that_cannot_be_reached_is_waited_for(place: Any, bridge: Any, flaky: Flaky) -> None:
    source = place("shm")
    source.topic("t")
    source.send("t", [b"%d" % n for n in range(5)])
    running = bridge(source, "flaky://x", topics=["t"])
    waiting = running.until("t", state="waiting")
    assert waiting.reason == "destination: flaky://: nobody listens"
    assert source.broker.groups("t")[0].committed == 0  # the group is there, and keeps the records
    flaky.away = False
    running.until("t", delivered=5, state="copying")
    assert flaky.behind.values("t") == [b"%d" % n for n in range(5)]


def test_a_source_that_cannot_be_reached_is_waited_for(place: Any, bridge: Any, flaky: Flaky, tools: Any) -> None:
    destination = place("memory")
    flaky.behind.topic("t")
    flaky.behind.send("t", [b"1"])
    running = bridge("flaky://x/t", destination)
    tools.until(lambda: running.bridge.events.recent("bridge.source"))
    assert "nobody listens" in running.bridge.events.recent("bridge.source")[0].message
    flaky.away = False
    running.until("t", delivered=1)


def test_a_mistake_in_one_link_does_not_end_the_others(place: Any, bridge: Any, monkeypatch: Any) -> None:
    from comux.recording import outlet

    header_for = outlet.header_for

    def broken(record: Any, engine: str) -> Any:
        if record.topic == "bad" and not healed.is_set():
            raise ZeroDivisionError("a mistake of ours")
        return header_for(record, engine)

    healed = threading.Event()
    monkeypatch.setattr(outlet, "header_for", broken)
    source, destination = place("memory"), place("memory")
    for name in ("bad", "good"):
        source.topic(name)
        source.send(name, [b"1"])
    running = bridge(source, destination, topics=["*"])
    running.until("good", delivered=1)
    failed = running.until("bad", state="failed", held=1)
    assert "a mistake of ours" in failed.reason
    healed.set()
    running.until("bad", delivered=1)


# -- topics that come and go ------------------------------------------------------------------------------------------


def test_topics_that_match_appear_and_go_by_themselves(place: Any, bridge: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("comux.recording.bridge.DISCOVER", 0.05)
    source, destination = place("shm"), place("memory")
    for name in ("raw_a", "other"):
        source.topic(name)
        source.send(name, [b"old"])
    running = bridge(source, destination, topics=["raw_*"], start="end")
    running.until("raw_a", state="copying")
    source.topic("raw_b")
    source.send("raw_b", [b"1", b"2"])
    running.until("raw_b", delivered=2)  # from its beginning, though the others begin at the end
    assert destination.broker.topics() == ["raw_a", "raw_b"]
    source.broker.delete_topic("raw_b", force=True)
    running.until("raw_b", state="gone")
    source.topic("raw_b")
    source.send("raw_b", [b"3"])
    running.until("raw_b", delivered=1, state="copying")
    assert destination.values("raw_b") == [b"1", b"2", b"3"]
    assert running.bridge.account().delivered == 3
    assert destination.values("raw_a") == []


def test_a_name_is_waited_for(place: Any, bridge: Any) -> None:
    source, destination = place("shm"), place("memory")
    source.topic("raw_cam1")
    running = bridge(f"{source.address}/raw_cam2", destination, start="end")
    assert "raw_cam1" in running.until("raw_cam2", state="waiting").reason
    source.topic("raw_cam2")
    source.send("raw_cam2", [b"1"])
    running.until("raw_cam2", delivered=1)


def test_copies_on_the_same_engine_are_not_copied_again(place: Any, bridge: Any, monkeypatch: Any, tools: Any) -> None:
    monkeypatch.setattr("comux.recording.bridge.DISCOVER", 0.05)
    where = place("shm")
    where.topic("a")
    where.send("a", [b"1"])
    running = bridge(where, where, topics=["*"], prefix="copy_")
    running.until("a", delivered=1)
    where.topic("b")
    running.until("b", state="copying")
    assert [status.topic for status in running.bridge.status()] == ["a", "b"]
    running.stop()
    assert bridge(where, f"{where.address}/all", topics=["*"], once=True).join()
    assert sorted(where.values("all")) == [b"1", b"1"]  # a and copy_a; not all


# -- what is refused --------------------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"source": "somewhere"}, "somewhere"),
    ({"source": "rtsp://camera"}, "rtsp://"),
    ({"destination": "nothing://x"}, "nothing"),
    ({"topics": []}, "which topics"),
    ({"source": "memory://a/t", "topics": ["u"]}, "leave one of them out"),
    ({"topics": ["a/b"]}, "a/b"),
    ({"topics": [".a"]}, "'.a'"),
    ({"prefix": "a/"}, "a/"),
    ({"prefix": "a_", "destination": "memory://b/t"}, "leave one out"),
    ({"destination": "memory://a"}, "same topics"),
    ({"destination": "memory://a/t"}, "same topics"),
    ({"group": "g", "lossy": True}, "lossy"),
    ({"group": "a b"}, "a b"),
    ({"start": "middle"}, "middle"),
    ({"start": -1}, "-1"),
]


@pytest.mark.parametrize(("given", "words"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_wrong_arguments_are_one_clear_error_before_anything_is_opened(given: dict[str, Any], words: str) -> None:
    arguments: dict[str, Any] = {"source": "memory://a", "destination": "memory://b", "topics": ["t"], **given}
    if "topics" not in given and "/t" in arguments["source"]:
        arguments["topics"] = []
    before = set(threading.enumerate())
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")) as refused:
        Bridge(**arguments)
    assert "\n" not in str(refused.value)
    assert set(threading.enumerate()) == before
    assert issubclass(UnknownAddressError, ConfigError)


def test_once_on_topics_that_are_not_there_is_an_error(place: Any, bridge: Any) -> None:
    source, destination = place("memory"), place("memory")
    source.topic("raw_cam1")
    for topics, word in ((["raw_cam2"], "'raw_cam2'"), (["x_*"], "x_"), (["raw_cam1", "raw_cam3"], "'raw_cam3'")):
        with pytest.raises(UnknownTopicError, match=word) as refused:
            bridge(source, destination, topics=topics, once=True).join()
        assert "raw_cam1" in str(refused.value)
    assert destination.broker.topics() == []


def test_once_ends_with_false_where_a_topic_cannot_be_copied(place: Any, bridge: Any) -> None:
    source, destination = place("memory"), place("memory")
    for name in ("bad", "good"):
        source.topic(name, dtype=np.uint8, shape=(2,))
        source.send(name, [np.zeros(2, np.uint8)])
    destination.topic("bad", dtype=np.uint8, shape=(3,))
    running = bridge(source, destination, topics=["*"], once=True)
    assert running.join() is False
    assert running.status("good").state == "done"
    assert running.status("bad").state == "failed"
    with pytest.raises(ComuxError):
        running.bridge._source.broker().topic("missing")
