"""Results: the packet again with headers; futures, failures, limits, retention, ``emit="all"``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

from comux.errors import (
    ConfigError,
    ConnectError,
    DeliveryError,
    NotRetainedError,
    RecordTooLargeError,
    UnknownSourceError,
    WaitTimeoutError,
)
from comux.headers import decode_headers
from comux.multiplexer import Comux
from comux.multiplexer.retention import Retention
from comux.records import HEADER_SOURCE, Record
from comux.transport import Broker, TopicSpec


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
        assert mux._core.results.account().balanced


def read_all(broker: Broker, topic: str, count: int) -> list[Record]:
    out: list[Record] = []
    with broker.consumer(topic, start="beginning") as consumer:
        while len(out) < count and (records := consumer.poll(10, 100)):
            out += records
    return out


def test_the_packet_again_byte_for_byte_with_results_that_decode_exactly(start: Any, feed: Any, broker: Broker) -> None:
    f = feed("a")
    mux = start(["a"])
    f.send(3)
    results = {"n": 5, "s": "5", "f": 1.5, "t": True, "z": None, "l": [1, "x"], "b": b"\0", "m": np.eye(3)}
    items = [mux.read("a") for _ in range(3)]
    assert mux.send("a", items[0].index, results).result(5) == 0
    assert mux.send(items[1], results).result(5) == 1
    assert mux.send(items[2], headers=results).result(5) == 2
    for n, record in enumerate(read_all(broker, "stream_a", 3)):
        original = broker.record_at("raw_a", n)
        assert original is not None
        assert (record.value, record.key, record.timestamp_ns) == (original.value, b"key", original.timestamp_ns)
        assert record.flags == original.flags
        assert record.headers[0] == ("h", b"1"), "original headers first"
        assert record.header(HEADER_SOURCE) == b'["raw_a",0,%d]' % n
        decoded = decode_headers(record)
        assert (decoded.pop("m") == np.eye(3)).all()
        assert decoded == {k: v for k, v in results.items() if k != "m"}
        assert type(decoded["t"]) is bool


def test_send_batch_by_order_by_id_and_by_function(start: Any, feed: Any, broker: Broker) -> None:
    feeds = [feed(cam) for cam in ("a", "b")]
    mux = start(["a", "b"])
    for f in feeds:
        f.send(3)
    batches = [mux.get_batch(timeout=5, min_items=2) for _ in range(3)]
    assert len(mux.send_batch(batches[0], [{"n": 1}, {"n": 2}])) == 2
    assert len(mux.send_batch(batches[1], {"b": {"n": 3}})) == 1
    assert len(mux.send_batch(batches[2], lambda item: {"n": item.index})) == 2
    mux.flush(5)
    assert [decode_headers(r)["n"] for r in read_all(broker, "stream_a", 2)] == [1, 2]
    assert [decode_headers(r)["n"] for r in read_all(broker, "stream_b", 3)] == [2, 3, 2]
    with pytest.raises(ConfigError, match="2 items and 1 headers"):
        mux.send_batch(batches[0], [{}])


def test_what_the_loop_holds_of_a_source_that_was_deleted_is_sent_where_its_results_went(
    start: Any, feed: Any, broker: Broker
) -> None:
    first, other = feed("a"), feed("b")
    mux = start(["b"])
    mux.create("a", produce_topic="results_of_a")
    other.send(1)
    first.send(1)
    batch = mux.get_batch(timeout=20, min_items=2)
    assert [item.index for item in batch] == [0, 0]
    mux.delete("a")  # by a command, or because a fleet gave the camera to another process
    assert mux.send("a", 0, {"x": 1}).result(20) == 0
    assert broker.topic("results_of_a").high_water == 1
    mux.create("a", produce_topic="results_of_a", start="end")
    assert mux.send("a", 0, {"x": 2}).result(20) == 1  # another source, which has delivered nothing yet
    mux.delete("a")
    with pytest.raises(NotRetainedError, match="'a'"):
        mux.send("a", 7, {})
    for _ in range(4):
        other.send(1)
        mux.get_batch(timeout=20, min_items=1)
    with pytest.raises(UnknownSourceError):  # several batches later
        mux.send("a", 0, {})


def test_what_cannot_be_sent_is_said_at_once_and_counts_nothing(start: Any, feed: Any) -> None:
    f = feed("a")
    mux = start(["a"], max_header_bytes=500, max_message_bytes=300)
    f.send(1)
    item = mux.read("a")
    with pytest.raises(RecordTooLargeError, match="max_header_bytes"):
        mux.send(item, {"big": b"x" * 600})
    with pytest.raises(RecordTooLargeError, match="max_message_bytes"):
        mux.send(item, {"big": b"x" * 250})
    with pytest.raises(ValueError, match="object"):
        mux.send(item, {"o": object()})
    with pytest.raises(ConfigError, match="index"):
        mux.send("a", None, {})
    with pytest.raises(UnknownSourceError):
        mux.send("nobody", 0, {})
    with pytest.raises(ConfigError, match="empty"):
        mux.send(mux.get("a"), {})
    assert mux.send(item, {"small": 1}).result(5) == 0


def test_header_schema_checks_and_shapes(start: Any, feed: Any, broker: Broker) -> None:
    class Result(BaseModel):
        count: int
        label: str = "none"

    f = feed("a")
    mux = start(["a"], header_schema=Result)
    f.send(1)
    item = mux.read("a")
    with pytest.raises(ValueError, match="count"):
        mux.send(item, {"count": "many"})
    mux.send(item, {"count": 3}).result(5)
    assert decode_headers(read_all(broker, "stream_a", 1)[0]) == {"count": 3, "label": "none"}


def test_retention_reaches_back_and_says_how_far(start: Any, feed: Any) -> None:
    f = feed("a")
    mux = start(["a"], maxlen=5)
    f.send(12)
    items = [mux.read("a") for _ in range(12)]
    for index in range(7, 12):
        mux.send("a", index, {"n": index}).result(5)
    with pytest.raises(NotRetainedError, match="from 7 to 11"):
        mux.send("a", 6, {})
    mux.send(items[0], {"an item owns": "its packet"}).result(5)


def test_retention_keeps_the_last_two_whatever_the_limits() -> None:
    kept = Retention("a", maxlen=1, max_bytes=10)
    for n in range(5):
        kept.add(Record("t", n, 0, b"x" * 1000, epoch=n // 4))
    assert len(kept) == 2
    assert kept.get(4).epoch == kept.get(4, epoch=1).epoch == 1
    with pytest.raises(NotRetainedError):
        kept.get(4, epoch=0)
    with pytest.raises(NotRetainedError, match="from 3 to 4; 3 older"):
        kept.get(2)


class BrokenOutlet:
    """A producer whose sends fail, or never end."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def send(self, *_: Any, **__: Any) -> Any:
        raise self.error

    def close(self) -> None:
        pass


def test_an_engine_that_fails_is_told_by_the_next_send_and_the_loop_goes_on(
    start: Any, feed: Any, monkeypatch: Any
) -> None:
    f = feed("a")
    mux = start(["a"])
    f.send(5)
    items = [mux.read("a") for _ in range(3)]
    results = mux._core.results
    with monkeypatch.context() as patch:
        patch.setattr(results, "_outlet", lambda *_: BrokenOutlet(ConnectError("the broker is gone")))
        future = mux.send(items[0], {"n": 1})
        assert isinstance(future.exception(1), DeliveryError)
    assert mux.read("a").index == 3, "the loop goes on"
    with pytest.raises(DeliveryError, match="broker is gone") as raised:
        mux.send(items[1], {"n": 2})
    assert raised.value.failures[0][0] == ("a", 0)
    assert mux.send(items[1], {"n": 2}).result(5) == 0, "told once; the next is accepted"
    assert results.account().dropped == {"failed": 1}


def test_in_flight_is_bounded_and_flush_has_a_deadline(start: Any, feed: Any, monkeypatch: Any) -> None:
    class Slow:
        callbacks: list[Any] = []  # noqa: RUF012

        def send(self, *_: Any, **__: Any) -> Any:
            return self

        def add_done_callback(self, fn: Any) -> None:
            self.callbacks.append(fn)

        def exception(self, _: float) -> None:
            return None

        def result(self, _: float) -> int:
            return 7

        def close(self) -> None:
            pass

    f = feed("a")
    mux = start(["a"], max_in_flight=2, send_timeout=0.1)
    f.send(3)
    items = [mux.read("a") for _ in range(3)]
    slow = Slow()
    monkeypatch.setattr(mux._core.results, "_outlet", lambda *_: slow)
    futures = [mux.send(item, {}) for item in items[:2]]
    with pytest.raises(WaitTimeoutError, match="max_in_flight"):
        mux.send(items[2], {})
    with pytest.raises(WaitTimeoutError):
        mux.flush(0.05)
    with pytest.raises(WaitTimeoutError):
        futures[0].result(0.01)
    done: list[Any] = []
    futures[0].add_done_callback(done.append)
    for callback in slow.callbacks:
        callback(slow)
    assert [future.result(1) for future in futures] == [7, 7]
    assert done == [futures[0]]
    mux.flush(1)


def test_a_full_produce_topic_times_out_and_is_not_counted_as_sent(start: Any, feed: Any, broker: Broker) -> None:
    broker.create_topic(TopicSpec("stream_a", records=2, policy="wait"))
    reader = broker.consumer("stream_a", group="slow", start="beginning")
    f = feed("a")
    mux = start(["a"], send_timeout=0.1)
    f.send(4)
    items = [mux.read("a") for _ in range(4)]
    with pytest.raises(WaitTimeoutError):
        for item in items:
            mux.send(item, {})
    assert mux._core.results.account().delivered == 2
    assert mux.read("a", timeout=0).array is None, "the loop is untouched"
    reader.close()


def test_emit_all_gives_every_packet_in_order_with_results_where_there_are(
    start: Any, feed: Any, broker: Broker, wait_for: Any
) -> None:
    f = feed("a")
    mux = start(["a"], emit="all", emit_wait=0.3)
    f.send(2)
    f.raw(b"S:0")
    f.send(7)
    items = [mux.read("a", timeout=10) for _ in range(9)]
    mux.send(items[4], {"n": 4})
    mux.send(items[1], {"n": 1})
    wait_for(lambda: mux._core.results.account().delivered == 10)
    records = read_all(broker, "stream_a", 10)
    assert [record.header(HEADER_SOURCE) for record in records] == [b'["raw_a",0,%d]' % n for n in range(10)]
    found = {n: decode_headers(record) for n, record in enumerate(records) if decode_headers(record)}
    assert found == {1: {"n": 1}, items[4].index: {"n": 4}}
    with pytest.raises(NotRetainedError, match="emit_wait"):
        mux.send(items[0], {"too": "late"})
    f.send(1)
    last = mux.read("a", timeout=10)
    future = mux.send(last, {"n": "last"})
    mux.close()
    assert future.result(0) == 10, "what is in line is published by close"


def test_the_loop_does_not_wait_for_what_is_sent_elsewhere(start: Any, feed: Any) -> None:
    f = feed("a")
    mux = start(["a"])
    f.send(200)
    got: list[int] = []

    def loop() -> None:
        for _ in range(200):
            item = mux.read("a", timeout=10)
            got.append(mux.send(item, {"i": item.index}).result(5) or 0)

    runner = threading.Thread(target=loop)
    runner.start()
    runner.join(30)
    assert got == list(range(200))


def test_an_array_of_a_typed_topic_is_sent_on(address: str, broker: Broker) -> None:
    broker.create_topic(TopicSpec("raw_arrays", dtype=np.uint8, shape=(4, 4, 3), records=8))
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    with Comux(["arrays"], address=address, codec="raw", mode="every_frame") as mux:
        with broker.producer("raw_arrays") as producer:
            producer.send(picture)
        assert mux.send(mux.read("arrays"), {"n": 1}).result(5) == 0
    (result,) = read_all(broker, "stream_arrays", 1)
    assert bytes(result.value) == picture.tobytes()
    assert decode_headers(result) == {"n": 1}
