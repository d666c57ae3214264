"""The producer of the Kafka engine: asynchronous, bounded in bytes.

**Problem.** A client's producer buffers without a limit, and what it cannot deliver it tells only its future.

**Algorithm.** All producers of a connection share one client (``kafka_outlet``). ``send`` waits until the record fits
among the bytes that were handed over and are not acknowledged (``buffer_bytes``), and hands it over; the client copies
it there and then, which makes ``send`` a snapshot. Acknowledgements settle the futures on an I/O thread, many at a time
(``kafka_acks``).
A failure that nobody looked at (no ``result``, ``exception`` or callback) is raised by the handle's next ``send`` or
``flush``, before that accepts its own record.

**Limits.** A record goes through four: the client's ``max_request_size``, the topic's ``max.message.bytes`` (or the
broker's ``message.max.bytes``, where the topic has none of its own), and what consumers take in one answer. They are
looked up when the producer is opened, and every record, headers counted, is held against the smallest.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from kafka import errors as kafka_errors

from comux.account import Account, AccountSnapshot
from comux.errors import (
    ClosedError,
    ComuxError,
    ConfigError,
    DeliveryError,
    EndOfStream,
    RecordTooLargeError,
    UnknownTopicError,
    WaitTimeoutError,
)
from comux.records import Headers, check_headers

from .interface import Claim, Producer, SendFuture, TopicSpec, dtype_of
from .kafka_acks import Fate, Run
from .kafka_cluster import TopicState
from .kafka_failures import translate
from .kafka_outlet import Outlet
from .kafka_wire import END, MS, End, encode, size_of
from .names import check_key
from .values import PrivateClaim, check_array, check_buffer, claim_size

_log = logging.getLogger("comux.transport")

_KEPT_FAILURES: Final = 1000
_ANSWER: Final = 30.0  # seconds ``end`` and a claim's commit wait for the cluster's answer


class KafkaProducer(Producer):
    """See ``Producer``. Thread-safe.

    Args:
        outlet: Of the connection.
        state: What is known of the topic.
        spec: Of the topic.
        epoch: In which its records are.
        forget: Called once at the end.
    """

    def __init__(
        self,
        outlet: Outlet,
        state: TopicState,
        spec: TopicSpec,
        epoch: int,
        forget: Callable[[KafkaProducer], None],
    ) -> None:
        self.topic = spec.name
        self._outlet = outlet
        self._state = state
        self._partition = outlet.cluster.partition(spec.name)
        self._spec = spec
        self._dtype = dtype_of(spec)
        self._epoch = epoch
        self._forget = forget
        self._account = Account()
        self._under_way = 0
        self._failures: list[Fate] = []
        self._closed = self._over = False
        self._topic_limit = outlet.cluster.limit(spec.name)
        self.run: Run | None = None  #: the outlet's
        self._unbooked = 0  # records under way that the account has not heard of
        self.fates = outlet.fates
        self.acknowledged = outlet.acknowledged
        self.what = f"{outlet.cluster.where}: topic {self.topic!r}"
        self._limit, self._limit_name = self._find_limit()
        outlet.check_batches(self.what, *self._topic_limit)
        try:
            outlet.warm(self._partition.topic)
        except Exception as error:  # a client that is closed meanwhile raises whatever it comes upon
            if outlet.closed:
                raise ClosedError(f"producer of topic {self.topic!r}: its connection was closed") from error
            raise self._translate(error) from error
        state.users += 1

    def _find_limit(self) -> tuple[int, str]:
        """Bytes of the largest record, and the setting that says so."""
        nbytes, name = self._topic_limit
        own = self._outlet.max_request_size
        if nbytes and not self._outlet.compressed and nbytes <= own:
            return nbytes, name
        return own, "the client option max_request_size"  # how small it is when compressed, the cluster will say

    # -- life ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the handle; what was sent is still delivered by the connection, until that closes."""
        if self._outlet.lifeline.dead:
            self._closed = True
            return
        with self._outlet.lock:
            if self._closed:
                return
            self._closed = True
            self._outlet.wake()
        self._state.users -= 1
        self._forget(self)

    def _check(self) -> None:
        if self._closed or self._outlet.lifeline.dead:
            raise ClosedError(f"producer of topic {self.topic!r} is closed; open a new one")
        if self._state.deleted:
            raise UnknownTopicError(f"topic {self.topic!r} was deleted under its producer; create it again")
        end = self._state.end
        if self._over or (end is not None and end.epoch >= self._epoch):
            at = "?" if end is None else end.offset
            raise EndOfStream(
                f"topic {self.topic!r}: epoch {self._epoch} ended at offset {at}; a new producer opens the next one"
            )

    # -- sending ---------------------------------------------------------------------------------------------------

    def send(
        self,
        value: Any,
        *,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes | None]] = (),
        timestamp_ns: int | None = None,
        flags: int = 0,
        timeout: float | None = None,
    ) -> SendFuture:
        pairs = check_headers(headers)
        key = check_key(key)
        data = self._buffer(value)
        self._check()
        if self._failures:
            self._raise_failures()
        return self._send(data, key, pairs, timestamp_ns, flags, timeout)

    def _send(
        self, data: Any, key: bytes | None, pairs: Headers, timestamp_ns: int | None, flags: int, timeout: float | None
    ) -> Fate:
        value, headers = encode(data, key, pairs, flags, self._epoch)
        nbytes = size_of(value, key, headers)
        self._check_size(nbytes)
        outlet = self._outlet
        with outlet.lock:
            if outlet.fits(nbytes):
                self._unbooked += 1
            else:
                self._account.receive("sending")
                self._reserve(nbytes, timeout, "sending")
            self._under_way += 1
        return self._hand_over(value, key, headers, timestamp_ns, nbytes)

    def _send_claimed(
        self, value: Any, key: bytes | None, headers: list[tuple[str, bytes]], timestamp_ns: int | None, nbytes: int
    ) -> Fate:
        with self._outlet.lock:
            self._reserve(nbytes, _ANSWER, "claimed")
            self._under_way += 1
        return self._hand_over(value, key, headers, timestamp_ns, nbytes)

    def _reserve(self, nbytes: int, timeout: float | None, booked: str) -> None:
        """Wait for room for a record that is booked at a place. With the lock held."""
        try:
            self._outlet.reserve(nbytes, timeout, self.what, self._check)
        except BaseException:  # Ctrl-C included: the record was offered and is not published
            self._account.drop(booked, "failed")
            raise
        self._account.move(booked, "in_flight")

    def _hand_over(
        self,
        value: Any,
        key: bytes | None,
        headers: list[tuple[str, bytes]],
        timestamp_ns: int | None,
        nbytes: int,
    ) -> Fate:
        """Give one record that is under way to the client; its fate moves it on in the books."""
        outlet = self._outlet
        stamp = time.time_ns() // MS if timestamp_ns is None else timestamp_ns // MS
        try:
            return outlet.append(self, self._partition, value, key, headers, stamp, nbytes)
        except BaseException as error:
            self._leave(nbytes, 1, failed=True)
            if isinstance(error, kafka_errors.KafkaError):
                raise self._translate(error) from error
            raise

    def settled(self, futures: Sequence[Fate], nbytes: int, newest: int | None) -> None:
        """See ``kafka_acks.Owner``."""
        failed = futures[0].error is not None
        if newest is not None:  # acks=0 knows of no offset
            self._state.saw(newest + 1)
        if failed:
            unseen = [future for future in futures if not future.observed]
            self._failures += unseen[: _KEPT_FAILURES - len(self._failures)]
        self._leave(nbytes, len(futures), failed)

    def _leave(self, nbytes: int, n: int, failed: bool) -> None:
        """``n`` records are no longer under way."""
        outlet = self._outlet
        with outlet.lock:
            self._book()
            if failed:
                self._account.drop("in_flight", "failed", n)
            else:
                self._account.deliver("in_flight", n)
            self._under_way -= n
            outlet.free(nbytes)
            outlet.fates.notify_all()

    def _book(self) -> None:
        """With the lock held."""
        if self._unbooked:
            self._account.receive("in_flight", self._unbooked)
            self._unbooked = 0

    def _translate(self, error: BaseException) -> ComuxError:
        right = f"WRITE on topic {self._partition.topic!r}"
        if isinstance(error, kafka_errors.ClusterAuthorizationFailedError):
            right = "IDEMPOTENT_WRITE on the cluster, or set enable_idempotence=False"
        return translate(error, self.what, self._outlet.notes, right=right)

    def failure(self, error: BaseException, nbytes: int) -> ComuxError:
        """See ``kafka_acks.Owner``."""
        ours = self._translate(error)
        if isinstance(ours, RecordTooLargeError):
            limit, name = self._topic_limit
            return self._too_large(nbytes, limit, name or "the topic's max.message.bytes", "; the cluster refused it")
        failure = DeliveryError(f"a record was not delivered: {ours}", ((self.topic, ours),))
        failure.__cause__ = ours
        return failure

    def _check_size(self, nbytes: int) -> None:
        if nbytes > self._limit:
            raise self._too_large(nbytes, self._limit, self._limit_name)

    def _too_large(self, nbytes: int, limit: int, name: str, more: str = "") -> RecordTooLargeError:
        before = " before compression" if self._outlet.compressed else ""
        known = f"is {limit}" if limit else "is smaller"
        return RecordTooLargeError(
            f"{self._outlet.cluster.where}: topic {self.topic!r}: the record has {nbytes} bytes with key and headers"
            f"{before}, {name} {known}{more}; set it to at least {nbytes}, or send less"
        )

    def _raise_failures(self) -> None:
        if self._failures:
            with self._outlet.lock:
                settled, self._failures = self._failures, []
            # Somebody may have looked only after it was settled: that is no news any more.
            failures = [(self.topic, f.error) for f in settled if not f.observed and f.error is not None]
            if failures:
                raise DeliveryError(
                    f"topic {self.topic!r}: {len(failures)} earlier records were not delivered, the first: "
                    f"{failures[0][1]}. This call accepted nothing; call again",
                    tuple(failures),
                )

    def _buffer(self, value: Any) -> Any:
        """What the client copies from; nothing is copied here."""
        if self._dtype is not None:
            array = np.ascontiguousarray(check_array(self.topic, value, self._dtype, self._spec.shape))
            return memoryview(array.reshape(-1).view(np.uint8).data)
        if value is None or isinstance(value, bytes):
            return value
        view = check_buffer(self.topic, value)
        return view.cast("B") if view.nbytes else b""

    def send_many(self, values: Any, *, timestamp_ns: int | None = None, timeout: float | None = None) -> int:
        """See ``Producer.send_many``; waits for the cluster's answer, as the offset is its to give."""
        if self._dtype is not None:
            array = np.asarray(values)
            if array.ndim == 0 or array.dtype != self._dtype or array.shape[1:] != self._spec.shape:
                raise ConfigError(
                    f"topic {self.topic!r}: a run has dtype {self._dtype} and shape (k, *{self._spec.shape}), not "
                    f"{array.dtype} and {array.shape}"
                )
            values = array
        datas = [self._buffer(value) for value in values]
        self._check()
        self._raise_failures()
        for data in datas:
            self._check_size(size_of(data, None, ()))
        deadline = None if timeout is None else time.monotonic() + timeout
        futures = []
        for data in datas:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            futures.append(self._send(data, None, (), timestamp_ns, 0, left))
        if not futures:
            return self._outlet.cluster.end_offset(self.topic)
        offsets = [
            future.result(_ANSWER if deadline is None else max(0.0, deadline - time.monotonic())) for future in futures
        ]
        return offsets[0] if offsets[0] is not None else self._state.high_water

    def claim(self, nbytes: int | None = None, *, timeout: float | None = None) -> Claim | None:
        nbytes = claim_size(self.topic, nbytes, self._dtype, self._spec.shape)
        self._check()
        self._raise_failures()
        self._check_size(nbytes)
        self._account.receive("claimed")
        return KafkaClaim(self, nbytes)

    def flush(self, timeout: float | None = None) -> None:
        self._check_open()
        with self.fates:
            if not self.fates.wait_for(lambda: self._under_way == 0 or self._closed, timeout):
                raise WaitTimeoutError(
                    f"topic {self.topic!r}: {self._under_way} records were not acknowledged within {timeout} s"
                )
        self._raise_failures()

    def _check_open(self) -> None:
        if self._closed or self._outlet.lifeline.dead:
            raise ClosedError(f"producer of topic {self.topic!r} is closed; open a new one")

    def end(self) -> None:
        """See ``Producer.end``; waits for the cluster's answer, at most 30 s."""
        self._check()
        outlet = self._outlet
        what = f"{outlet.cluster.where}: ending topic {self.topic!r}"
        try:
            offset = outlet.write(self._partition, b"", [(END, b"%d" % self._epoch)], _ANSWER)
        except Exception as error:
            raise translate(error, what, outlet.notes) from error
        self._over = True
        self._state.saw_end(End(self._epoch, offset))

    def account(self) -> AccountSnapshot:
        with self._outlet.lock:
            self._book()
            return self._account.snapshot()


class KafkaClaim(PrivateClaim):
    """A private buffer, sent at commit. Kafka has no place to write in: it saves no copy, and keeps the promises."""

    def __init__(self, producer: KafkaProducer, nbytes: int) -> None:
        super().__init__(producer.topic, producer._dtype, producer._spec.shape, nbytes)
        self._producer = producer

    def commit(
        self,
        used: int | None = None,
        *,
        key: bytes | None = None,
        headers: Headers = (),
        timestamp_ns: int | None = None,
        flags: int = 0,
    ) -> int:
        """See ``Claim.commit``; waits for the cluster's answer, at most 30 s."""
        producer = self._producer
        pairs, key = check_headers(headers), check_key(key)
        used = self._check_used(used)
        self._check_open()
        producer._check()
        value, encoded = encode(self.buffer[:used], key, pairs, flags, producer._epoch)
        nbytes = size_of(value, key, encoded)
        producer._check_size(nbytes)
        self._open = False
        future = producer._send_claimed(value, key, encoded, timestamp_ns, nbytes)
        offset = future.result(_ANSWER)
        self.offset = -1 if offset is None else offset
        return self.offset

    def abort(self) -> None:
        self._check_open()
        self._open = False
        self._producer._account.drop("claimed", "aborted")

    def _check_open(self) -> None:
        if not self._open or self._producer._outlet.lifeline.dead:
            raise ClosedError(f"claim on topic {self._producer.topic!r} was committed or aborted already; claim again")
