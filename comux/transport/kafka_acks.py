"""The fate of sent records: settled one batch of the client at a time, not one record at a time.

**Problem.** kafka-python answers each record with a future of its own. A pair of callbacks, three bookings and four
rounds through a lock for each of them cost as much as sending it.

**Algorithm.** Records that went into one batch share their fate. A ``Run`` is what one producer has in one batch; only
its first record has callbacks, and they settle the whole run: one round through the lock, one booking, one wake-up.
Where the cluster found a batch too large, kafka-python splits it and gives its records to new batches: then the run is
split the same way, and each part waits for its own fate.

**Coupling.** Which batch a record went into, and its place there, is in two attributes of kafka-python's
``FutureRecordMetadata``: ``_produce_future`` and ``args[0]``. They are used here only.

**Locking.** Everything is guarded by the lock of the condition ``fates``, which all runs of a connection share.
"""

from __future__ import annotations

import logging
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from comux.errors import WaitTimeoutError

from .interface import SendFuture

_log = logging.getLogger("comux.transport")


class Owner(Protocol):
    """Whose records a run has."""

    fates: threading.Condition
    acknowledged: bool  #: the cluster says which offsets records have
    run: Run | None  #: newest, the one that is being added to

    @property
    def what(self) -> str:
        """Where, for messages."""

    def settled(self, futures: Sequence[Fate], nbytes: int, newest: int | None) -> None:
        """The fate of records that share it is known: their futures have it. On an I/O thread, with the lock held.

        Args:
            futures: Theirs, at least one.
            nbytes: Of the records.
            newest: Offset of the last, where it is known.
        """

    def failure(self, error: BaseException, nbytes: int) -> BaseException:
        """A failure of kafka-python's kind, for a record of so many bytes, as what is told."""


class Fate(SendFuture):
    """What becomes of one ``send``. Settled by an I/O thread, read by any."""

    __slots__ = ("error", "nbytes", "observed", "owner")

    def __init__(self, owner: Owner, nbytes: int) -> None:
        self.owner = owner
        self.nbytes = nbytes
        self.observed = False  #: somebody looks at the outcome
        self.error: BaseException | None = None

    @abstractmethod
    def offset(self) -> int | None:
        """Of the record, once it is settled; ``None`` where the cluster does not say."""

    @abstractmethod
    def call_later(self, fn: Callable[[SendFuture], None]) -> bool:
        """Have ``fn`` called with this when it is settled; ``False`` where it is. With the lock held."""

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self.observed = True
        if not self.done():
            with self.owner.fates:
                self.owner.fates.wait_for(self.done, timeout)
            if not self.done():
                raise WaitTimeoutError(f"{self.owner.what}: not acknowledged within {timeout} s; it may still be")
        return self.error

    def result(self, timeout: float | None = None) -> int | None:
        error = self.exception(timeout)
        if error is not None:
            raise error
        return self.offset()

    def add_done_callback(self, fn: Callable[[SendFuture], None]) -> None:
        self.observed = True
        with self.owner.fates:
            if self.call_later(fn):
                return
        fn(self)


def call_back(what: str, callbacks: Iterable[tuple[SendFuture, Callable[[SendFuture], None]]]) -> None:
    """Make the callbacks of settled records; without the lock."""
    for future, fn in callbacks:
        try:
            fn(future)
        except Exception:  # noqa: BLE001 - the user's callback must not end the I/O thread
            _log.exception("%s: a callback of send failed", what)


class KafkaFuture(Fate):
    """The fate of a record that kafka-python sends: that of its run."""

    __slots__ = ("run", "sent")

    def __init__(self, run: Run, sent: Any, nbytes: int) -> None:
        super().__init__(run.owner, nbytes)
        self.run = run
        self.sent = sent  #: kafka-python's

    def done(self) -> bool:
        return self.run.settled

    def offset(self) -> int | None:
        return None if self.run.base is None else self.run.base + place(self.sent)

    def call_later(self, fn: Callable[[SendFuture], None]) -> bool:
        if self.run.settled:
            return False
        self.run.callbacks.append((self, fn))
        return True


class Run:
    """Records of one producer in one batch of the client.

    Attributes:
        owner: The producer.
        batch: The batch's future.
        futures: Of the records, at least one.
        nbytes: Of the records.
        base: Offset of the batch's first record; ``None`` until settled, after a failure, and with ``acks=0``.
        settled: The fate is known, and in the futures.
        callbacks: What waits for it.
    """

    __slots__ = ("base", "batch", "callbacks", "futures", "nbytes", "owner", "settled")

    def __init__(self, owner: Owner, batch: Any) -> None:
        self.owner = owner
        self.batch = batch
        self.futures: list[KafkaFuture] = []
        self.nbytes = 0
        self.base: int | None = None
        self.settled = False
        self.callbacks: list[tuple[KafkaFuture, Callable[[SendFuture], None]]] = []

    def takes(self, sent: Any) -> bool:
        """Whether a record belongs here. With the lock held."""
        return sent._produce_future is self.batch and not self.settled

    def add(self, sent: Any, nbytes: int) -> KafkaFuture:
        """With the lock held."""
        future = KafkaFuture(self, sent, nbytes)
        self.futures.append(future)
        self.nbytes += nbytes
        return future

    def watch(self) -> None:
        """Settle when the fate is known; at once where it is. Without the lock."""
        first = self.futures[0].sent
        first.add_callback(lambda metadata: self._done(self._base(metadata.offset, place(first))))
        first.add_errback(self._failed)

    def _base(self, offset: int, index: int) -> int | None:
        return offset - index if self.owner.acknowledged and offset >= 0 else None

    def _done(self, base: int | None) -> None:
        self._settle(base, None)

    def _failed(self, error: BaseException) -> None:
        self._settle(None, error)

    def _settle(self, base: int | None, error: BaseException | None) -> None:
        with self.owner.fates:
            others = self._split() if self.futures[0].sent._produce_future is not self.batch else []
            if error is not None:
                for future in self.futures:
                    future.error = self.owner.failure(_error_of(future.sent, error), future.nbytes)
            self.base = base
            self.settled = True
            newest = None if base is None else base + max(place(future.sent) for future in self.futures)
            self.owner.settled(self.futures, self.nbytes, newest)
            callbacks, self.callbacks = self.callbacks, []
        for run in others:
            run.watch()
        call_back(self.owner.what, callbacks)

    def _split(self) -> list[Run]:
        """The client gave the batch's records to other batches: keep those of the first record's, return the rest."""
        futures, callbacks = self.futures, self.callbacks
        self.batch = futures[0].sent._produce_future
        self.futures, self.callbacks, self.nbytes = [], [], 0
        runs = {self.batch: self}
        for future in futures:
            batch = future.sent._produce_future
            future.run = run = runs.get(batch) or runs.setdefault(batch, Run(self.owner, batch))
            run.futures.append(future)
            run.nbytes += future.nbytes
        for future, fn in callbacks:
            future.run.callbacks.append((future, fn))
        return [run for run in runs.values() if run is not self]


def place(sent: Any) -> int:
    """Which record of its batch this is."""
    index: int = sent.args[0]
    return index


def _error_of(sent: Any, error: BaseException) -> BaseException:
    """Why this record of a failed batch failed; ``error`` where the batch does not tell one from another."""
    outcome = sent._produce_future.value
    tell = None if outcome is None else outcome[2]
    found: BaseException = error if tell is None else tell(place(sent))
    return found
