"""A destination that takes records in the background: originals wait for the futures, little is sent twice."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from comux.errors import DeliveryError, RecordTooLargeError, WaitTimeoutError
from comux.records import HEADER_DUPLICATE
from comux.transport import Broker, Producer, SendFuture, connect, register_engine
from comux.transport.engines import _engines


class Later(SendFuture):
    """A send whose fate the test decides."""

    def __init__(self, send: Callable[[], int | None]) -> None:
        self._send = send
        self._settled = threading.Event()
        self._offset: int | None = None
        self._error: BaseException | None = None

    def arrive(self) -> None:
        """The record is appended and acknowledged."""
        self._offset = self._send()
        self._settled.set()

    def arrive_unheard(self) -> None:
        """The record is appended, and its producer is told that it was not."""
        self._send()
        self.fail(DeliveryError("the answer was lost"))

    def fail(self, error: BaseException) -> None:
        self._error = error
        self._settled.set()

    def done(self) -> bool:
        return self._settled.is_set()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        if not self._settled.wait(timeout):
            raise WaitTimeoutError("not acknowledged yet")
        return self._error

    def result(self, timeout: float | None = None) -> int | None:
        if (error := self.exception(timeout)) is not None:
            raise error
        return self._offset

    def add_done_callback(self, fn: Callable[[SendFuture], None]) -> None:
        raise NotImplementedError


class Engine:
    """``later://``: a place in memory whose producers hand records to ``sent`` instead of appending them."""

    def __init__(self, place: Any, durable: bool) -> None:
        self.place = place
        self.durable = durable
        self.sent: list[Later] = []
        self.by_itself = False  #: records are appended at once

    def open(self, address: Any, **options: Any) -> Broker:
        broker: Any = connect(self.place.address)
        broker.capabilities = dataclasses.replace(broker.capabilities, durable=self.durable)
        make = broker.producer

        def producer(topic: str, *, name: str = "") -> Producer:
            made = make(topic, name=name)

            def append(value: Any, **rest: Any) -> int | None:  # also after the handle, or its process, has gone
                with self.place.broker.producer(topic) as other:
                    return other.send(value, timeout=10, **rest).result()

            def send(value: Any, *, timeout: float | None = None, **rest: Any) -> SendFuture:
                future = Later(lambda: append(value, **rest))
                self.sent.append(future)
                if self.by_itself:
                    future.arrive()
                return future

            made.send = send
            return made

        broker.producer = producer
        return broker


@pytest.fixture
def engine(place: Any, monkeypatch: Any) -> Iterator[Callable[[bool], Engine]]:
    monkeypatch.setattr("comux.transport.engines._engines", dict(_engines))
    monkeypatch.setattr("comux.recording.outlet.PATIENCE", 0.2)
    monkeypatch.setattr("comux.recording.outlet.TICK", 0.05)

    def make(durable: bool) -> Engine:
        made = Engine(place("memory"), durable)
        register_engine("later", made.open)
        return made

    return make


def committed(source: Any) -> int:
    return source.broker.groups("t")[0].committed


def test_an_original_is_kept_until_its_copy_is_there(place: Any, bridge: Any, engine: Any, tools: Any) -> None:
    source, destination = place("memory"), engine(True)
    source.topic("t")
    source.send("t", [b"%d" % n for n in range(3)])
    running = bridge(source, "later://x", topics=["t"])
    tools.until(lambda: len(destination.sent) == 3)
    assert (running.status("t").account.delivered, committed(source)) == (0, 0)
    destination.sent[0].arrive()
    running.until("t", delivered=1)
    assert committed(source) == 1
    destination.sent[2].arrive()  # not before its predecessor
    destination.sent[1].arrive()
    running.until("t", delivered=3)
    assert committed(source) == 3


def test_what_is_under_way_for_long_is_awaited_not_sent_again(place: Any, bridge: Any, engine: Any, tools: Any) -> None:
    source, destination = place("memory"), engine(True)
    source.topic("t")
    source.send("t", [b"%d" % n for n in range(3)])
    running = bridge(source, "later://x", topics=["t"])
    running.until("t", state="waiting", held=3)
    running.until("t", state="copying")
    running.until("t", state="waiting")  # more than one session
    assert len(destination.sent) == 3
    for future in destination.sent:
        future.arrive()
    running.until("t", delivered=3, dropped={})
    assert destination.place.values("t") == [b"0", b"1", b"2"]
    assert not any(copy.header(HEADER_DUPLICATE) for copy in destination.place.records("t"))
    assert len(destination.sent) == 3


@pytest.mark.parametrize("durable", [True, False])
def test_what_failed_is_sent_again_and_marked_where_it_may_still_come(
    place: Any, bridge: Any, engine: Any, tools: Any, durable: bool
) -> None:
    source, destination = place("memory"), engine(durable)
    source.topic("t")
    source.send("t", [b"%d" % n for n in range(3)])
    running = bridge(source, "later://x", topics=["t"])
    tools.until(lambda: len(destination.sent) == 3)
    destination.by_itself = True
    destination.sent[0].arrive()
    destination.sent[2].arrive()
    destination.sent[1].fail(DeliveryError("no answer"))
    assert running.until("t", delivered=3).state != "failed"
    copies = destination.place.records("t")
    assert [copy.value for copy in copies] == [b"0", b"2", b"1"]
    marks = [copy.header(HEADER_DUPLICATE) for copy in copies]
    assert marks == [None, None, b"possible" if durable else None]


def test_what_arrived_unheard_is_found_and_not_sent_again(place: Any, bridge: Any, engine: Any, tools: Any) -> None:
    source, destination = place("memory"), engine(True)
    source.topic("t")
    source.send("t", [b"%d" % n for n in range(3)])
    running = bridge(source, "later://x", topics=["t"])
    tools.until(lambda: len(destination.sent) == 3)
    destination.by_itself = True
    destination.sent[0].arrive()
    for future in destination.sent[1:]:
        future.arrive_unheard()
    account = running.until("t", held=0, received=3).account
    assert (account.delivered, account.dropped) == (1, {"duplicate": 2})
    assert destination.place.values("t") == [b"0", b"1", b"2"]
    assert committed(source) == 3


def test_an_end_waits_for_the_copies_before_it(place: Any, bridge: Any, engine: Any, tools: Any) -> None:
    source, destination = place("memory"), engine(False)
    source.topic("t")
    source.send("t", [b"0"])
    source.end("t")
    source.send("t", [b"1"])
    running = bridge(source, "later://x", topics=["t"])
    tools.until(lambda: len(destination.sent) == 1)
    running.until("t", state="waiting")
    assert len(destination.sent) == 1  # the second is of the next epoch
    destination.by_itself = True
    destination.sent[0].arrive()
    running.until("t", delivered=2, ends=1)
    assert [(copy.value, copy.epoch) for copy in destination.place.records("t")] == [(b"0", 0), (b"1", 1)]


def test_a_record_that_is_refused_for_its_size_afterwards(place: Any, bridge: Any, engine: Any, tools: Any) -> None:
    source, destination = place("memory"), engine(True)
    source.topic("t")
    source.send("t", [b"0", b"1"])
    running = bridge(source, "later://x", topics=["t"], drop_too_large=True)
    tools.until(lambda: len(destination.sent) == 2)
    destination.sent[0].fail(RecordTooLargeError("the limit is message.max.bytes"))
    destination.sent[1].arrive()
    running.until("t", delivered=1, dropped={"too_large": 1})
    assert committed(source) == 2


def test_stopped_while_copies_are_under_way_they_come_again(place: Any, bridge: Any, engine: Any, tools: Any) -> None:
    source, destination = place("memory"), engine(True)
    source.topic("t")
    source.send("t", [b"0", b"1"])
    running = bridge(source, "later://x", topics=["t"])
    tools.until(lambda: len(destination.sent) == 2)
    running.stop()
    account = running.status("t").account
    assert (account.delivered, dict(account.held)) == (0, {"source": 2})
    destination.sent[0].arrive()  # after the process that sent it has gone
    destination.by_itself = True
    again = bridge(source, "later://x", topics=["t"])
    again.until("t", delivered=1, dropped={"duplicate": 1})
    destination.sent[1].arrive()  # and this one after the next has looked
    copies = destination.place.records("t")
    assert [(copy.value, copy.header(HEADER_DUPLICATE)) for copy in copies] == [
        (b"0", None),
        (b"1", b"possible"),
        (b"1", None),
    ]
