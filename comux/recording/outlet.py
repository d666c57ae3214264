"""The destination's end of a link: what is there already, sending copies, carrying ends over."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from comux.errors import ComuxError, EndOfStream, RecordTooLargeError, WaitTimeoutError
from comux.records import HEADER_BRIDGE, HEADER_DUPLICATE, Headers, Record
from comux.transport import Producer, SendFuture, TopicSpec, for_engine

from .copies import Copies, header_for, look
from .ends import Engine, Target, Trouble, trouble_at
from .intake import TICK, Intake

_log = logging.getLogger("comux.recording")

PATIENCE: Final = 5.0  #: seconds without progress after which the records go back to the source
HOPS_MOST: Final = 16  #: bridges a record may cross; one that crossed more goes round in a circle

Sent = tuple[Record, SendFuture]


class Outlet:
    """Writes one link's copies. For the link's thread.

    Args:
        destination, target: Where to.
        source, topic: Where from.
        drop_too_large: What becomes of a record that is too large: dropped, or trouble.
        intake: Is told what became of each record.
        stop: Ends waits.

    Attributes:
        marked: Copies sent with ``comux-duplicate``.
        ends: Ends carried over.
    """

    def __init__(
        self,
        destination: Engine,
        target: Target,
        source: Engine,
        topic: str,
        drop_too_large: bool,
        intake: Intake,
        stop: threading.Event,
    ) -> None:
        self.marked = 0
        self.ends = 0
        self._destination = destination
        self._target = target
        self._source = source
        self._topic = topic
        self._drop_too_large = drop_too_large
        self._intake = intake
        self._stop = stop
        self._producer: Producer | None = None
        self._copies = Copies()
        self._proves = True  # a record that is not found is not there
        self._doubtful = 0  # records to come that may have been sent before, where no engine says ``redelivered``
        self._end_due = False  # the destination's epoch holds copies, and the end after them is not carried
        self._epoch: int | None = None  # of the source, of the newest copy
        self._last_progress = 0.0

    # -- a session -------------------------------------------------------------------------------------------------

    def open(self, low: int | None) -> None:
        """Make the topic where it is missing, and look at what is there. Blocks while it reads.

        Args:
            low: Lowest offset that may have been sent before; ``None``: none was.

        Raises:
            Trouble.
        """
        name = self._target.name
        with trouble_at("source"):
            spec = self._source.broker().topic(self._topic).spec
        with trouble_at("destination"):
            broker = self._destination.broker()
            info = broker.create_topic(for_engine(broker, spec_for(spec, name)), exist_ok=True)
            self._copies = Copies()
            if low is not None:
                self._copies = look(broker, name, self._source.id, self._topic, low)
                info = broker.topic(name)
        self._proves = self._copies.complete and not broker.capabilities.durable
        self._doubtful = self._intake.repeats_most
        newest = self._copies.newest
        empty = info.high_water == info.spec.first_offset and info.epoch == 0
        self._end_due = not info.ended and (empty if newest is None else newest[0] == info.epoch)
        self._epoch = None if newest is None else newest[1]

    def close(self) -> None:
        """Let go of the destination. With unconfirmed copies under way, their fate stays unknown."""
        producer, self._producer = self._producer, None
        if producer is not None:
            try:
                producer.close()
            except ComuxError as exc:
                _log.warning("the producer of topic %r could not be closed: %s", self._target.name, exc)

    def _open_producer(self) -> Producer:
        if self._producer is None:
            self._producer = self._destination.broker().producer(self._target.name, name="comux-bridge")
        return self._producer

    # -- copying ---------------------------------------------------------------------------------------------------

    def copy(self, records: Sequence[Record]) -> None:
        """Send copies and resolve the originals, each once its copy is there.

        Returns when all have a fate; after a stop when those have that were sent by then. Raises ``Trouble``.
        """
        under_way: deque[Sent] = deque()
        self._last_progress = time.monotonic()
        for record in records:
            if self._stop.is_set():
                break
            future = self._under_way_already(record)
            if future is None:
                again = record.redelivered or record.offset in self._intake.unsure or self._doubtful > 0
                self._doubtful -= self._doubtful > 0
                unwanted = self._unwanted(record, again)
                if unwanted is not None:
                    self._resolve(record, unwanted)
                    continue
                if self._end_due and self._epoch is not None and record.epoch > self._epoch and self._target.alone():
                    self._settle(under_way)
                    self.end()
                future = self._send(record, again)
                if future is None:
                    continue
                self._intake.unsure[record.offset] = future
            under_way.append((record, future))
            self._epoch, self._end_due = record.epoch, True
            while under_way and under_way[0][1].done():
                self._confirm(*under_way.popleft())
        self._settle(under_way)

    def _under_way_already(self, record: Record) -> SendFuture | None:
        """The future of a copy that an earlier session sent, unless that has failed."""
        future = self._intake.unsure.get(record.offset)
        return None if future is None or (future.done() and future.exception(0) is not None) else future

    def _unwanted(self, record: Record, again: bool) -> str | None:
        """Why no copy is to be sent; ``None``: one is. ``again``: the record may have been sent before."""
        if sum(name == HEADER_BRIDGE for name, _ in record.headers) >= HOPS_MOST:
            return "loop"
        return "duplicate" if again and self._copies.has(record) else None

    def _headers(self, record: Record, again: bool) -> Headers:
        headers = (*record.headers, header_for(record, self._source.id))
        if again and not self._proves:
            self.marked += 1
            headers += ((HEADER_DUPLICATE, b"possible"),)
        return headers

    def _send(self, record: Record, again: bool) -> SendFuture | None:
        """Hand one copy to the destination; waits for room. ``None``: it was too large, and is dropped."""
        headers = self._headers(record, again)
        while True:
            try:
                return self._open_producer().send(
                    record.value,
                    key=record.key,
                    headers=headers,
                    timestamp_ns=record.timestamp_ns,
                    flags=record.flags,
                    timeout=TICK,
                )
            except WaitTimeoutError as exc:
                self._be_patient(exc)
            except EndOfStream:  # somebody else ended the epoch; the next one is for this record
                self.close()
            except RecordTooLargeError as exc:
                self._too_large(record, exc)
                return None
            except ComuxError as exc:
                raise Trouble("destination", exc) from exc

    def _be_patient(self, exc: WaitTimeoutError) -> None:
        """A wait brought nothing: raises ``Trouble`` where that lasts too long, or somebody wants to stop."""
        if self._stop.is_set() or time.monotonic() - self._last_progress > PATIENCE:
            raise Trouble("destination", exc) from exc

    def _settle(self, under_way: deque[Sent]) -> None:
        """Wait for the fate of every copy under way, oldest first."""
        while under_way:
            record, future = under_way[0]
            while not future.done():
                try:
                    future.exception(TICK)
                except WaitTimeoutError as exc:
                    if not future.done() and time.monotonic() - self._last_progress > PATIENCE:
                        raise Trouble("destination", exc) from exc
            under_way.popleft()
            self._confirm(record, future)

    def _confirm(self, record: Record, future: SendFuture) -> None:
        """The destination has decided on a copy."""
        error = future.exception(0)
        if error is None:
            self._resolve(record, None if future.result(0) is not None else "drop_newest")
        elif isinstance(error, RecordTooLargeError) or isinstance(error.__cause__, RecordTooLargeError):
            self._too_large(record, error)
        else:
            cause = error if isinstance(error, ComuxError) else ComuxError(f"{type(error).__name__}: {error}")
            raise Trouble("destination", cause) from error

    def _too_large(self, record: Record, error: BaseException) -> None:
        where = f"record {record.offset} of {self._topic!r}: {error}"
        if not self._drop_too_large:
            raise Trouble("destination", RecordTooLargeError(f"{where}; or drop such records (drop_too_large)"))
        _log.warning("%s; it is dropped", where)
        self._resolve(record, "too_large")

    def _resolve(self, record: Record, dropped: str | None) -> None:
        self._last_progress = time.monotonic()
        self._intake.resolve(record, dropped)

    # -- ends ------------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """End the destination's epoch, where an end is due and nobody else has done it. Raises ``Trouble``."""
        if not self._end_due:
            return
        with trouble_at("destination"):
            if not self._destination.broker().topic(self._target.name).ended:
                self._open_producer().end()
                self.ends += 1
        self.close()
        self._end_due = False


def spec_for(source: TopicSpec, name: str) -> TopicSpec:
    """How a destination is made: as its source, but any number of writers may come and go without ending the stream."""
    return replace(
        source,
        name=name,
        data_bytes=source.data_bytes if source.dtype is None else None,
        writers="many",
        end="explicit",
        first_offset=0,
    )
