"""The way in: packets from a consumer, counted as they come, a few of them read ahead when the lag rule looks for one.

Lives here: ``Intake``, used by one source's thread; the figures may be read from any thread. Books: everything between
the start and the position is received; what the topic overwrote is dropped ``lapped``, what is passed over on purpose
``jumped``, what is read and waits is held at ``queue``.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from comux.account import Account
from comux.dead_letters import CAUSE
from comux.errors import ComuxError, EndOfStream
from comux.multiplexer.clocks import SourceClock
from comux.multiplexer.pacing import PeriodMeter
from comux.multiplexer.pictures import Entry
from comux.multiplexer.retention import record_bytes
from comux.records import Record
from comux.transport import Consumer

_log = logging.getLogger("comux.multiplexer")

PLACE: Final = "queue"
_POLL_LEAST: Final = 0.05
_POLL_MOST: Final = 5.0
_STALL_LEAST: Final = 2.0
_READ_AHEAD: Final = 64
_DOUBTFUL: Final = 1.0  # seconds behind from which the next packet is read before its age is believed


class Intake:
    """One source's consumer and the packets read ahead.

    Args:
        account: The source's books.
        queue_bytes: Bytes read ahead at most.
        received: Called with every packet in offset order.
        position: Offset to go on at; ``None`` where none is known.
        clock: Learns the timestamps of the packets; ``None``: one of its own.

    Attributes:
        clock: Says how old packets are.
        consumer: ``None`` while there is none.
        position: Offset after the newest packet read (or jumped to); ``None`` before there was a consumer, and in a
            group before the first packet.
        arrivals: Measures the packets' rate.
        last_ns: Monotonic nanoseconds of the newest packet, or of when there was a consumer.
    """

    def __init__(
        self,
        account: Account,
        queue_bytes: int,
        received: Callable[[Record], None] | None,
        position: int | None = None,
        clock: SourceClock | None = None,
    ) -> None:
        self.clock = SourceClock() if clock is None else clock
        self.consumer: Consumer | None = None
        self.position = position
        self.arrivals = PeriodMeter()
        self.last_ns = time.monotonic_ns()
        self._account = account
        self._queue_bytes = queue_bytes
        self._received = received
        self._queue: deque[Record] = deque()
        self._expected_skip = 0
        self._booked: dict[str, int] = {}  # what this consumer dropped, by cause, that is in the books
        self._start_ahead: int | None = None
        self._lag_seen = (0, 0.0, time.monotonic_ns())

    @property
    def idle(self) -> float:
        """Seconds in which a packet could have come and none did."""
        return (time.monotonic_ns() - self.last_ns) / 1e9

    def stall_after(self, seconds: float | None) -> float:
        """Seconds without a packet after which the source is stalled; ``seconds``: what its settings say."""
        return max(_STALL_LEAST, 4e-9 * (self.arrivals.period_ns or 0)) if seconds is None else seconds

    def patience(self, seconds: float | None, quiet: bool) -> float:
        """How long ``next`` may wait: as long again as nothing came, so that an idle source costs nothing; but, where
        it is not known to be ``quiet``, no longer than until it counts as stalled."""
        idle = self.idle
        timeout = min(max(idle, _POLL_LEAST), _POLL_MOST)
        return timeout if quiet else max(min(timeout, self.stall_after(seconds) - idle), 0.01)

    def open(self) -> Consumer:
        """The consumer, which must be there."""
        assert self.consumer is not None, "the source reads without a consumer"
        return self.consumer

    def next(self, timeout: float) -> Record | None:
        """The next packet, held at ``queue`` by the books; ``None`` where none came.

        Raises:
            EndOfStream: the stream ended. ComuxError: what the engine says.
        """
        if self._queue:
            return self._queue.popleft()
        records = self.open().poll(timeout)
        if not records:
            return None
        self._admit(records)
        self._queue.extend(records[1:])
        return records[0]

    def _admit(self, records: list[Record]) -> None:
        now, now_unix_ns = time.monotonic_ns(), time.time_ns()
        grouped = self.consumer is not None and self.consumer.group is not None
        if grouped:
            self._book(CAUSE)
        for record in records:
            lapped = record.skipped - self._expected_skip
            self._expected_skip = 0
            if lapped > 0:
                self._account.skip("lapped", lapped - self._book("corrupt", lapped))
            if not grouped and self.position is not None:
                # Offsets that hold no record (on Kafka: ends, transactions, compaction) are no loss, and no picture.
                holes = record.offset - self.position - max(0, lapped)
                if holes > 0:
                    self._account.receive(PLACE, holes)
                    self._account.absorb(PLACE, holes)
            self._account.receive(PLACE)
            self.arrivals.tick(now)
            self.clock.observe(record, now_unix_ns)
            self.position = record.offset + 1
            if self._received is not None:
                self._received(record)
        self.last_ns = now

    def _book(self, cause: str, most: int | None = None) -> int:
        """Enter what the consumer dropped by ``cause`` since the last time, and return it; not more than ``most``."""
        before = self._booked.get(cause, 0)
        dropped = self.open().account().dropped.get(cause, 0) - before
        if most is not None:
            dropped = min(dropped, most)
        self._account.skip(cause, dropped)
        self._booked[cause] = before + dropped
        return dropped

    def lag(self) -> tuple[int, float]:
        """Records and seconds behind, now. For the source's thread.

        A packet that looks old may be the first after its producer's clock was set, which is known only when it was
        read. So it is: else the lag rule would throw away the stream for it.
        """
        consumer = self.open()
        records = consumer.lag() + len(self._queue)
        seconds = self._seconds_behind(consumer, records)
        if seconds > _DOUBTFUL and not self._queue:
            with contextlib.suppress(EndOfStream):  # seen again, and acted upon, by ``next``
                ahead = consumer.poll(0)
                self._admit(ahead)
                self._queue.extend(ahead)
            seconds = self._seconds_behind(consumer, records)
        self._lag_seen = (records, seconds, time.monotonic_ns())
        return records, seconds

    def _seconds_behind(self, consumer: Consumer, records: int) -> float:
        """Age of the next packet by this host's clock, at least 0. From any thread."""
        if not records:
            return 0.0
        try:
            head = self._queue[0]
        except IndexError:  # also where the source's thread takes it just now
            return max(0.0, consumer.lag_seconds() - self.clock.newest_behind_ns / 1e9)
        return max(0.0, (time.time_ns() - head.timestamp_ns - self.clock.behind(head.offset)[0]) / 1e9)

    def lag_figures(self) -> tuple[int, float, float]:
        """Records and seconds behind, and how old that figure is in seconds. From any thread."""
        consumer = self.consumer
        if consumer is not None:
            with contextlib.suppress(ComuxError):
                behind = consumer.lag() + len(self._queue)
                old_ns = int(consumer.metrics().get("high-water-age-max", 0.0) * 1e9)
                self._lag_seen = (behind, self._seconds_behind(consumer, behind), time.monotonic_ns() - old_ns)
        records, seconds, seen_ns = self._lag_seen
        return records, seconds, (time.monotonic_ns() - seen_ns) / 1e9

    def captured_ns(self, entry: Entry) -> int:
        """When a picture was taken, Unix nanoseconds by this host's clock. From any thread."""
        return entry.record.timestamp_ns + self.clock.behind((entry.packet or entry.record).offset)[0]

    def next_offset(self) -> int:
        """Offset of the next packet to be decoded; 0 in a group, whose members cannot seek."""
        consumer = self.open()
        if consumer.group is not None:
            return 0
        return self._queue[0].offset if self._queue else consumer.position()

    def newest_start(self, starts_at: Callable[[Record], bool]) -> int | None:
        """Newest offset ahead that a decoder can start from, or ``None``.

        Streams without keyframe flags are read ahead, within the byte limit, and looked at with ``starts_at``.
        """
        consumer = self.open()
        if consumer.group is not None:
            return None
        flagged = consumer.newest_keyframe(starts=starts_at)
        if flagged is not None or consumer.looks_inside:
            return flagged
        if self._queue and self._queue[0].keyframe:
            return self._queue[0].offset  # keyframes are flagged, and this is the newest
        room = self._queue_bytes - sum(record_bytes(record) for record in self._queue)
        while room > 0:
            try:
                records = consumer.poll(0, _READ_AHEAD)
            except EndOfStream:
                break  # seen again, and acted upon, when the queue is empty
            if not records:
                break
            self._admit(records)
            self._queue.extend(records)
            for record in records:
                room -= record_bytes(record)
                if starts_at(record):
                    self._start_ahead = record.offset
        return self._start_ahead

    def jump(self, target: int) -> None:
        """Go on at ``target``, which lies ahead; what is passed over is counted ``jumped``."""
        while self._queue and self._queue[0].offset < target:
            self._account.drop(PLACE, "jumped")
            self._queue.popleft()
        if not self._queue:
            consumer = self.open()
            ahead = target - consumer.position()
            if ahead > 0:
                consumer.seek(target)
                self._account.skip("jumped", ahead)
                self._expected_skip = ahead
                self.position = target

    def seek(self, target: int) -> None:
        """Go on at ``target``, wherever that lies; what is passed over is counted ``jumped``.

        Packets that come again are received again.
        """
        consumer = self.open()
        self.drop_queue("jumped")
        before = consumer.position() if self.position is None else self.position
        consumer.seek(target)
        self._expected_skip = max(0, target - before)
        self._account.skip("jumped", self._expected_skip)
        self.position, self._start_ahead = target, None
        self.clock.forget()  # packets of another time come next, and nobody's clock was set

    def drop_queue(self, cause: str) -> None:
        """Give up what was read ahead."""
        self._account.drop(PLACE, cause, len(self._queue))
        self._queue.clear()

    def take_over(self, other: Intake) -> None:
        """Go on where another one, which nobody uses any more, was: with its clock and what it had read ahead."""
        self.position, self.clock, self.arrivals = other.position, other.clock, other.arrivals
        self._queue, other._queue = other._queue, deque()

    def forget(self, cause: str) -> None:
        """Another stream begins under the same name: no offset of the old one means anything any more."""
        self.drop_queue(cause)
        self.position = self._start_ahead = None
        self.clock.forget()

    def adopt(self, consumer: Consumer) -> None:
        """Read from ``consumer`` from now on. Its place is ours even before a packet came: whoever opens the next
        consumer must not begin at another "end"."""
        self.consumer = consumer
        self.last_ns = time.monotonic_ns()  # nothing could come before
        self._expected_skip = 0
        self._booked.clear()
        self.take_place(consumer)

    def take_place(self, consumer: Consumer) -> None:
        """See ``adopt``. Nothing where the place is known, or kept by a group."""
        if self.position is None and consumer.group is None:
            with contextlib.suppress(ComuxError):  # several topics, or closed: reading will tell
                self.position = consumer.position()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Meanwhile nothing is fetched, where the engine fetches ahead."""
        consumer = self.open()
        with contextlib.suppress(ComuxError):  # whatever it is, reading will tell
            consumer.pause()
        try:
            yield
        finally:
            with contextlib.suppress(ComuxError):
                consumer.resume()

    def wakeup(self) -> None:
        """Make a waiting ``next`` return. From any thread."""
        consumer = self.consumer
        if consumer is not None:
            with contextlib.suppress(ComuxError):
                consumer.wakeup()

    def close(self) -> None:
        """Let go of the consumer; what was read ahead stays."""
        consumer, self.consumer = self.consumer, None
        if consumer is not None:
            try:
                consumer.close()
            except ComuxError as exc:
                _log.warning("a consumer of %s could not be closed: %s", ", ".join(consumer.topics), exc)
