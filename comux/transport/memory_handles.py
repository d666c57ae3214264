"""Producer, claim and observer of the in-memory engine.

Every method takes the store's lock; what waits, waits on the topic's ``space`` condition, which releases it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from comux.account import Account, AccountSnapshot
from comux.errors import ClosedError, ConfigError, EndOfStream, RecordTooLargeError, UnknownTopicError, WaitTimeoutError
from comux.records import Headers, Record, check_headers

from .futures import DoneFuture
from .interface import Claim, Handle, Observer, Producer, SendFuture
from .memory_log import Log, Store, Stored, size_of, snapshot
from .names import check_key
from .values import PrivateClaim, claim_size

Forget = Callable[[Handle], None]


def to_record(
    topic: str,
    stored: Stored,
    *,
    skipped: int = 0,
    delivery_count: int = 1,
    view: Log | None = None,
) -> Record:
    """The record a handle hands out: a copy, or (``view``) a window on what ``view`` retains."""
    value = stored.data
    if view is None:
        if isinstance(value, np.ndarray):
            value = value.copy()
    elif isinstance(value, bytes):
        value = memoryview(value)
    return Record(
        topic,
        stored.offset,
        stored.timestamp_ns,
        value,
        stored.key,
        stored.headers,
        0,
        stored.epoch,
        stored.flags,
        skipped,
        delivery_count,
        delivery_count > 1,
        stored.append_ns,
        None if view is None or view.spec.layout == "pool" else lambda: view.tail <= stored.offset,
    )


class MemoryProducer(Producer):
    """See ``Producer``. Thread-safe."""

    def __init__(self, store: Store, log: Log, name: str, forget: Forget) -> None:
        self.topic = log.spec.name
        self.name = name
        self._store = store
        self._log = log
        self._forget = forget
        self._account = Account()
        self._closed = False
        log.open_epoch()
        self._epoch = log.epoch
        log.producers.add(self)

    def close(self) -> None:
        if self._store.dead:
            self._closed = True
            return
        with self._store.lock:
            if self._closed:
                return
            self._closed = True
            log = self._log
            log.producers.discard(self)
            if log.spec.end == "auto" and not log.producers and not log.deleted:
                log.end_epoch()
            log.space.notify_all()
            self._forget(self)

    def _check(self) -> None:
        if self._closed or self._store.dead:
            raise ClosedError(f"producer of topic {self.topic!r} is closed; open a new one")
        if self._log.deleted:
            raise UnknownTopicError(f"topic {self.topic!r} was deleted under its producer; create it again")
        if self._log.ended or self._log.epoch != self._epoch:
            raise EndOfStream(
                f"topic {self.topic!r}: epoch {self._epoch} ended at offset {self._log.end_of(self._epoch)}; a new "
                "producer opens the next one"
            )

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
        log = self._log
        pairs = check_headers(headers)
        data = snapshot(self.topic, value, log.dtype, log.spec.shape)
        key = check_key(key)
        nbytes = size_of(data, key, pairs)
        with self._store.lock:
            self._check()
            log.check_size(nbytes, key)
            self._account.receive("sending")
            if not self._reserve(nbytes, timeout):
                self._account.drop("sending", "drop_newest")
                return DoneFuture(None)
            offset = log.append(data, key, pairs, timestamp_ns, flags)
            self._account.deliver("sending")
            return DoneFuture(offset)

    def send_many(self, values: Any, *, timestamp_ns: int | None = None, timeout: float | None = None) -> int:
        log = self._log
        if log.dtype is not None:
            array = np.asarray(values)
            if array.ndim == 0 or array.dtype != log.dtype or array.shape[1:] != log.spec.shape:
                raise ConfigError(
                    f"topic {self.topic!r}: a run has dtype {log.dtype} and shape (k, *{log.spec.shape}), not "
                    f"{array.dtype} and {array.shape}"
                )
            values = array
        datas = [snapshot(self.topic, value, log.dtype, log.spec.shape) for value in values]
        if len(datas) > log.capacity:
            raise RecordTooLargeError(f"topic {self.topic!r}: {len(datas)} records at once, it holds {log.capacity}")
        deadline = None if timeout is None else time.monotonic() + timeout
        first: int | None = None
        with self._store.lock:
            self._check()
            for data in datas:
                log.check_size(size_of(data, None, ()), None)
            for data in datas:
                self._account.receive("sending")
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if self._reserve(size_of(data, None, ()), left):
                    offset = log.append(data, None, (), timestamp_ns, 0)
                    first = offset if first is None else first
                    self._account.deliver("sending")
                else:
                    self._account.drop("sending", "drop_newest")
            return log.head if first is None else first

    def _reserve(self, nbytes: int, timeout: float | None) -> bool:
        """Wait for room for a record that was received at ``sending``; ``False``: ``drop_newest``."""
        log = self._log
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while not log.make_room(nbytes):
                if log.spec.policy == "drop_newest" or (log.paused and log.spec.policy == "drop_oldest"):
                    return False
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise WaitTimeoutError(
                        f"{log.why_full()}; no room within {timeout} s, commit faster or raise records"
                    )
                changes = [s for s in (left, log.next_change_s()) if s is not None]
                log.space.wait(min(changes) if changes else None)
                self._check()
        except BaseException:  # Ctrl-C included: the record was offered and is not published
            self._account.drop("sending", "failed")
            raise
        return True

    def claim(self, nbytes: int | None = None, *, timeout: float | None = None) -> Claim | None:
        log = self._log
        nbytes = claim_size(self.topic, nbytes, log.dtype, log.spec.shape)
        with self._store.lock:
            self._check()
            log.check_size(nbytes, None)
            self._account.receive("sending")
            if not self._reserve(nbytes, timeout):
                self._account.drop("sending", "drop_newest")
                return None
            self._account.move("sending", "claimed")
            log.reserved += 1
            log.reserved_bytes += nbytes
            return MemoryClaim(self, nbytes)

    def flush(self, timeout: float | None = None) -> None:
        with self._store.lock:
            self._check()

    def end(self) -> None:
        with self._store.lock:
            self._check()
            self._log.end_epoch()

    def account(self) -> AccountSnapshot:
        return self._account.snapshot()


class MemoryClaim(PrivateClaim):
    """A private buffer with reserved room; copied into the topic at commit."""

    def __init__(self, producer: MemoryProducer, nbytes: int) -> None:
        log = producer._log
        super().__init__(producer.topic, log.dtype, log.spec.shape, nbytes)
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
        producer, log = self._producer, self._producer._log
        pairs, key = check_headers(headers), check_key(key)
        used = self._check_used(used)
        data = self._data[:used].tobytes() if log.dtype is None else self.array.copy()
        if isinstance(data, np.ndarray):
            data.flags.writeable = False
        with producer._store.lock:
            self._check_open()
            producer._check()
            extra = size_of(data, key, pairs)
            log.check_size(extra, key)
            self._leave()
            if not log.make_room(extra):  # key and headers came on top of what was claimed
                producer._account.drop("claimed", "failed")
                raise WaitTimeoutError(f"{log.why_full()}; no room for key and headers, claim {extra} bytes or more")
            self.offset = log.append(data, key, pairs, timestamp_ns, flags)
            producer._account.deliver("claimed")
            return self.offset

    def abort(self) -> None:
        with self._producer._store.lock:
            self._check_open()
            self._leave()
            self._producer._account.drop("claimed", "aborted")
            self._producer._log.space.notify_all()

    def _check_open(self) -> None:
        if not self._open or self._producer._store.dead:
            raise ClosedError(f"claim on topic {self._producer.topic!r} was committed or aborted already; claim again")

    def _leave(self) -> None:
        self._open = False
        self._producer._log.reserved -= 1
        self._producer._log.reserved_bytes -= self._nbytes

    def __del__(self) -> None:
        if self._open and not self._producer._store.dead:
            warnings.warn(
                f"claim on topic {self._producer.topic!r} dropped, aborting it", ResourceWarning, stacklevel=2
            )
            self.abort()


class MemoryObserver(Observer):
    """See ``Observer``. Thread-safe."""

    def __init__(self, store: Store, log: Log, forget: Forget) -> None:
        self._store = store
        self._log = log
        self._forget = forget
        self._closed = False
        log.observers.add(self)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if not self._store.dead:
            with self._store.lock:
                self._log.observers.discard(self)
                self._forget(self)

    def latest(self) -> Record | None:
        log = self._log
        if self._closed or self._store.dead:
            raise ClosedError(f"observer of topic {log.spec.name!r} is closed; open a new one")
        with self._store.lock:
            if log.deleted:
                raise UnknownTopicError(f"topic {log.spec.name!r} was deleted under its observer; create it again")
            stored = log.get(log.head - 1)
            return None if stored is None else to_record(log.spec.name, stored)
