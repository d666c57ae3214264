"""Results: the original packet again, byte for byte, with the user's results as headers.

**What is sent.** Value, key, timestamp and flags of the packet; its headers in their order, then the results, then
``comux-types`` (how to decode them) and ``comux-source`` (topic, epoch and offset of the packet).

**When it fails.** ``send`` never waits for a broker's answer: it returns a future. At most ``max_in_flight`` sends are
under way; when that many are, ``send`` waits ``send_timeout`` for one to be done. A delivery that failed is raised by
the next ``send`` or ``flush``, before that accepts its own record, with the (cam_id, index) of each. What concerns the
record itself (size, a header that cannot be sent) is raised at once. A produce topic that is missing is made; an engine
that cannot be reached makes the delivery fail, and is tried again by a later send, so seldom that a loop is hardly held
up by it.

**Books.** received = every accepted send; delivered = published; dropped: ``failed``, ``full`` (the topic's
``drop_newest``), ``refused`` (raised by ``send``); held: ``in_flight``.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from comux.account import Account, AccountSnapshot
from comux.errors import (
    ClosedError,
    ComuxError,
    ConnectError,
    DeliveryError,
    RecordTooLargeError,
    UnknownTopicError,
    WaitTimeoutError,
)
from comux.headers import HeaderSchema, apply_schema, encode_headers, headers_bytes
from comux.options import CamId
from comux.records import HEADER_SOURCE, Headers, Record
from comux.telemetry import EventLog
from comux.transport import Broker, Producer, SendFuture, TopicSpec

_FAILURES_KEPT: Final = 1000
_AGAIN_LEAST: Final = 0.5  # seconds until an engine that was not there is tried again: ten times what a try took
_AGAIN_MOST: Final = 30.0
PRODUCE_RECORDS: Final = 4096  #: of a produce topic made here; make it yourself to keep more


@dataclass(frozen=True, slots=True)
class SendLimits:
    """Limits of ``send``.

    Attributes:
        send_timeout: Seconds to wait for room, in flight or in the topic.
        max_in_flight: Sends under way at most.
        max_header_bytes: Bytes of all headers of one record at most.
        max_message_bytes: Bytes of value and headers at most; ``None``: the engine's own limit.
    """

    send_timeout: float = 5.0
    max_in_flight: int = 1000
    max_header_bytes: int = 4 << 20
    max_message_bytes: int | None = None


class ResultFuture(SendFuture):
    """The fate of one ``send``.

    Attributes:
        cam_id, index: Which picture's.
    """

    def __init__(self, cam_id: CamId, index: int) -> None:
        self.cam_id = cam_id
        self.index = index
        self.handed_over = False  #: to a producer; guarded likewise
        self.left = False  #: its place in flight was given back; guarded by ``Results``' lock
        self._inner: concurrent.futures.Future[int | None] = concurrent.futures.Future()

    def done(self) -> bool:
        """Whether the fate is known."""
        return self._inner.done()

    def result(self, timeout: float | None = None) -> int | None:
        """Offset on the produce topic; ``None`` where its ``drop_newest`` dropped the record.

        Raises:
            WaitTimeoutError: not known in time. DeliveryError: it failed, with the cause.
        """
        error = self.exception(timeout)
        if error is not None:
            raise error
        return self._inner.result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The ``DeliveryError``, or ``None``; waits like ``result``."""
        try:
            return self._inner.exception(timeout)
        except concurrent.futures.TimeoutError:
            raise WaitTimeoutError(
                f"the result of ({self.cam_id!r}, {self.index}) was not delivered within {timeout} s; it may still be"
            ) from None

    def add_done_callback(self, fn: Callable[[SendFuture], None]) -> None:
        """Call ``fn`` once the fate is known; at once if it is."""
        self._inner.add_done_callback(lambda _: fn(self))

    def settle(self, offset: int | None, error: BaseException | None = None) -> None:
        """Give the future its fate."""
        if error is None:
            self._inner.set_result(offset)
        else:
            self._inner.set_exception(error)


class Results:
    """Re-emits packets. Thread-safe.

    Args:
        broker: Gives the engine at an address; may raise ``ComuxError``.
        events: Where failures are told.
        schema: The user's check and shape of headers.
        limits: See ``SendLimits``.
    """

    def __init__(
        self,
        broker: Callable[[str], Broker],
        events: EventLog,
        *,
        schema: HeaderSchema | None = None,
        limits: SendLimits | None = None,
    ) -> None:
        self._broker = broker
        self._events = events
        self._schema = schema
        self.limits = limits or SendLimits()
        self._lock = threading.Lock()
        self._done = threading.Condition(self._lock)
        self._outlets: dict[tuple[str, str], Producer] = {}
        self._open_lock = threading.Lock()
        self._missed: dict[str, tuple[ComuxError, float]] = {}  # why an engine was not there, and when to try again
        self._in_flight = 0
        self._unpublished = 0  # of those, not handed to a producer yet
        self._failures: list[tuple[tuple[CamId, int], BaseException]] = []
        self._account = Account()
        self._closed = False

    def headers(self, cam_id: CamId, record: Record, results: Mapping[str, Any] | None) -> Headers:
        """The complete headers of a re-emitted packet.

        Raises:
            HeaderError: a result cannot be sent. RecordTooLargeError: names the limit to raise.
        """
        encoded = encode_headers(apply_schema(self._schema, results) if results is not None else None)
        source = json.dumps([record.topic, record.epoch, record.offset], separators=(",", ":")).encode()
        headers = (*record.headers, *encoded, (HEADER_SOURCE, source))
        size = headers_bytes(headers)
        if size > self.limits.max_header_bytes:
            raise RecordTooLargeError(
                f"source {cam_id!r} index {record.offset}: the headers have {size} bytes, max_header_bytes is "
                f"{self.limits.max_header_bytes}; send less, or raise it"
            )
        whole = size + (0 if record.value is None else memoryview(record.value).nbytes)
        if self.limits.max_message_bytes is not None and whole > self.limits.max_message_bytes:
            raise RecordTooLargeError(
                f"source {cam_id!r} index {record.offset}: packet and headers have {whole} bytes, max_message_bytes is "
                f"{self.limits.max_message_bytes}; send less, or raise it"
            )
        return headers

    def begin(self, cam_id: CamId, record: Record, results: Mapping[str, Any] | None) -> tuple[Headers, ResultFuture]:
        """Accept one record: earlier failures are raised, headers made and checked, a place in flight taken.

        Raises:
            As ``send``.
        """
        self.raise_failures()
        headers = self.headers(cam_id, record, results)
        self._enter()
        return headers, ResultFuture(cam_id, record.offset)

    def cancel(self, future: ResultFuture) -> None:
        """Give back the place that ``begin`` took, unless its fate is known: an interrupt may come after that."""
        self._leave(future, "refused")

    def send(
        self, cam_id: CamId, address: str, topic: str, record: Record, results: Mapping[str, Any] | None
    ) -> ResultFuture:
        """Re-emit ``record`` with ``results``.

        Raises:
            DeliveryError: earlier sends failed; this one was not accepted.
            WaitTimeoutError: too much is under way, or the topic is full. HeaderError, RecordTooLargeError,
                ClosedError.
        """
        headers, future = self.begin(cam_id, record, results)
        try:
            self.publish(address, topic, record, headers, future)
        except BaseException:
            self.cancel(future)
            raise
        return future

    def pass_on(self, cam_id: CamId, address: str, topic: str, record: Record) -> None:
        """Re-emit ``record`` without results (``emit="all"``). Waits for a place in flight, but not for those of
        results that are not published yet: they may stand in line behind this very record.

        Raises:
            ComuxError: it cannot be published; it is counted ``refused``.
        """
        headers = self.headers(cam_id, record, None)
        self._enter(behind=True)
        future = ResultFuture(cam_id, record.offset)
        try:
            self.publish(address, topic, record, headers, future)
        except BaseException:
            self.cancel(future)
            raise

    def publish(self, address: str, topic: str, record: Record, headers: Headers, future: ResultFuture) -> None:
        """Hand one entered record to its producer; an engine that fails settles the future, a bad record raises."""
        with self._lock:
            self._hand_over(future)
        try:
            producer = self._outlet(address, topic)
            inner = producer.send(
                record.value,
                key=record.key,
                headers=headers,
                timestamp_ns=record.timestamp_ns,
                flags=record.flags,
                timeout=self.limits.send_timeout,
            )
        except (RecordTooLargeError, WaitTimeoutError):
            raise
        except ComuxError as exc:
            self._forget(address, topic)
            self.settle(future, None, exc)
            return
        inner.add_done_callback(lambda done: self._settle_inner(future, done))

    # -- flight ----------------------------------------------------------------------------------------------------

    def _enter(self, *, behind: bool = False) -> None:
        deadline = time.monotonic() + self.limits.send_timeout
        with self._lock:
            while not self._closed:
                if self._in_flight - (self._unpublished if behind else 0) < self.limits.max_in_flight:
                    break
                left = deadline - time.monotonic()
                if left <= 0 or not self._done.wait(left):
                    raise WaitTimeoutError(
                        f"{self._in_flight} results are under way (max_in_flight) and none was delivered within "
                        f"send_timeout={self.limits.send_timeout} s; send slower, or raise one of them"
                    )
            if self._closed:
                raise ClosedError("this Comux is closed; results can no longer be sent")
            self._in_flight += 1
            self._unpublished += 1
            self._account.receive("in_flight")

    def _hand_over(self, future: ResultFuture) -> None:
        if not future.handed_over:
            future.handed_over = True
            self._unpublished -= 1

    def _leave(self, future: ResultFuture, cause: str) -> None:
        """Delivered, or dropped with ``cause``; only the first time."""
        with self._lock:
            if future.left:
                return
            future.left = True
            self._hand_over(future)
            self._in_flight -= 1
            if cause:
                self._account.drop("in_flight", cause)
            else:
                self._account.deliver("in_flight")
            self._done.notify_all()

    def _settle_inner(self, future: ResultFuture, done: SendFuture) -> None:
        error = done.exception(0)
        self.settle(future, None if error is not None else done.result(0), error)

    def settle(self, future: ResultFuture, offset: int | None, error: BaseException | None) -> None:
        """The fate of an accepted record is known."""
        if error is not None:
            where = (future.cam_id, future.index)
            failure = DeliveryError(f"the result of {where} was not delivered: {error}", ((where, error),))
            failure.__cause__ = error
            with self._lock:
                if len(self._failures) < _FAILURES_KEPT:
                    self._failures.append((where, error))
            self._leave(future, "failed")
            future.settle(None, failure)
            self._events.emit(
                "results.failed", str(failure), source=str(future.cam_id), level=logging.WARNING, index=future.index
            )
            return
        self._leave(future, "" if offset is not None else "full")
        future.settle(offset)

    def raise_failures(self) -> None:
        """Raise ``DeliveryError`` for sends that failed since the last time, if any."""
        with self._lock:
            failures, self._failures = self._failures, []
        if failures:
            where, error = failures[0]
            raise DeliveryError(
                f"{len(failures)} earlier results were not delivered, the first is {where}: {error}. This send was not "
                "accepted; send again",
                tuple(failures),
            )

    def flush(self, timeout: float | None = None) -> None:
        """Wait until every send has its fate.

        Raises:
            WaitTimeoutError: not within ``timeout`` seconds. DeliveryError: some failed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            while self._in_flight:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise WaitTimeoutError(f"{self._in_flight} results were still under way after {timeout} s")
                self._done.wait(left)
        self.raise_failures()

    # -- outlets ---------------------------------------------------------------------------------------------------

    def check(self, address: str, topic: str) -> None:
        """Make sure of a produce topic before anything starts.

        Raises:
            ComuxError: its engine cannot be reached or refuses the topic.
        """
        self._outlet(address, topic)

    def _outlet(self, address: str, topic: str) -> Producer:
        with self._open_lock:
            producer = self._outlets.get((address, topic))
            if producer is None:
                if self._closed:
                    raise ClosedError("this Comux is closed; results can no longer be sent")
                producer = self._outlets[address, topic] = self._open(address, topic)
            return producer

    def _open(self, address: str, topic: str) -> Producer:
        """A producer; an engine that was not there just now is not tried again at once, or a loop would stand still."""
        begin = time.monotonic()
        error, again = self._missed.get(address, (None, 0.0))
        if error is not None and begin < again:
            raise type(error)(str(error)) from error
        try:
            broker = self._broker(address)
            try:
                broker.topic(topic)
            except UnknownTopicError:
                spec = TopicSpec(topic, records=PRODUCE_RECORDS, metadata={"content": "comux results"})
                broker.create_topic(spec, exist_ok=True)
            producer = broker.producer(topic, name="comux-results")
        except (ConnectError, WaitTimeoutError) as exc:
            now = time.monotonic()
            self._missed[address] = (exc, now + min(_AGAIN_MOST, max(_AGAIN_LEAST, 10 * (now - begin))))
            raise
        self._missed.pop(address, None)
        return producer

    def _forget(self, address: str, topic: str) -> None:
        with self._open_lock:
            producer = self._outlets.pop((address, topic), None)
        if producer is not None:
            with contextlib.suppress(ComuxError):
                producer.close()

    def account(self) -> AccountSnapshot:
        """One instant of the books."""
        return self._account.snapshot()

    def close(self) -> None:
        """Close every producer; what is under way is left to them."""
        with self._lock:
            self._closed = True
            self._done.notify_all()
        with self._open_lock:
            outlets = list(self._outlets)
        for address, topic in outlets:
            self._forget(address, topic)
