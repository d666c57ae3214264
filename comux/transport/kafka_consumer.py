"""The consumer of the Kafka engine: lossy (partitions assigned) or a member of a group (partitions subscribed).

A handle has one lane per topic (``kafka_lane``), filled by a polling thread that it may share (``kafka_poller``).
``poll`` goes round the lanes that have something, beginning with another one each time.

**High-water marks** come with fetched records, and from acknowledgements of this connection's own producers: ``lag``
and ``end_offset`` ask nobody, as long as records are being fetched. A topic that is paused (by its reader, or because
enough of it waits) is fetched no more: then the mark is asked for, at most twice a second, and nobody waits for it.

**Newest keyframe.** Among what was fetched where that reaches up to the high-water mark; else the newest records are
read for it by another client, at most twice a second, and none twice. Records without flags are looked into.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, cast

from comux.account import Account, AccountSnapshot
from comux.errors import ClosedError, ComuxError, ConfigError, EndOfStream, StaleLeaseError, UnsupportedError
from comux.records import KEYFRAME, Record

from .interface import Consumer, TopicSpec
from .kafka_cluster import Cluster
from .kafka_lane import Lane
from .kafka_membership import KafkaMembership
from .kafka_poller import Lifeline, Poller
from .names import no_group

_log = logging.getLogger("comux.transport")

_FRESH_NS: Final = 500_000_000
_ARRIVES: Final = 1.0  # seconds in which what is known to be there comes, where there is a connection
_COMMIT_TIMEOUT: Final = 10.0
_HOPELESS: Final = 0.5  # seconds for a last commit where the broker is not there
_SCAN_FIRST: Final = 64
_SCAN_BYTES: Final = 64 << 20


class _Starts:
    """Where a decoder can start in one topic, as far as its records were looked at for that.

    Attributes:
        newest: Newest such offset; -1: none.
        upto: Records before this offset need not be looked at again.
        scanned_ns: Monotonic time at which unread records were read for this.
    """

    __slots__ = ("newest", "scanned_ns", "upto")

    def __init__(self) -> None:
        self.newest = -1
        self.upto = 0
        self.scanned_ns = 0

    def look(self, record: Record, starts: Callable[[Record], bool] | None) -> None:
        if record.flags & KEYFRAME or (starts is not None and starts(record)):
            self.newest = max(self.newest, record.offset)


class KafkaConsumer(Consumer):
    """See ``Consumer``. Thread-safe.

    Args:
        cluster: Of the connection.
        poller: Fills the lanes; they were given to it already.
        member: Commits for a group.
        lanes: One per topic.
        specs: Of the topics.
        condition: The lanes' lock.
        account: The lanes'.
        group: Our name of it.
        stops: ``on_end="stop"``.
        forget: Called once at the end.
    """

    looks_inside = True

    def __init__(
        self,
        cluster: Cluster,
        poller: Poller,
        member: Poller | KafkaMembership,
        lanes: Sequence[Lane],
        specs: Mapping[str, TopicSpec],
        condition: threading.Condition,
        account: Account,
        group: str | None,
        stops: bool,
        lifeline: Lifeline,
        forget: Callable[[KafkaConsumer], None],
    ) -> None:
        self.topics = tuple(lane.name for lane in lanes)
        self.group = group
        self._cluster = cluster
        self._poller = poller
        self._member = member
        self._lanes = {lane.name: lane for lane in lanes}
        self._order = list(lanes)
        self._specs = specs
        self._ready = condition
        self._account = account
        self._stops = stops
        self._lifeline = lifeline
        self._forget = forget
        self._woken = False
        self._closed = False
        self._turn = 0
        self._starts: dict[str, _Starts] = {}
        for lane in lanes:
            lane.state.users += 1

    # -- life ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        if self._lifeline.dead:
            self._closed = True
            return
        with self._ready:
            if self._closed:
                return
            self._closed = True
            self._ready.notify_all()
        if self.group is not None:
            try:
                lost = any(lane.trouble is not None for lane in self._order)
                self._member.commit(self._order, _HOPELESS if lost else _COMMIT_TIMEOUT)
            except ComuxError as error:
                _log.warning("what was acknowledged last comes again: %s", error)
        if isinstance(self._member, KafkaMembership):
            self._member.detach(self._order)
        self._poller.remove(self._order)
        with self._ready:
            for lane in self._order:
                lane.close()
                lane.state.users -= 1
        self._forget(self)

    def _check(self) -> None:
        if self._closed or self._lifeline.dead:
            raise ClosedError(f"consumer of {', '.join(map(repr, self.topics))} is closed; open a new one")
        for lane in self._order:
            if lane.failure is not None:
                raise lane.failure

    def _check_alive(self) -> None:
        if self._lifeline.dead:  # before a lock that a thread of the parent may have held
            self._check()

    def wakeup(self) -> None:
        self._check_alive()
        with self._ready:
            self._woken = True
            self._ready.notify_all()

    # -- reading ---------------------------------------------------------------------------------------------------

    def poll(self, timeout: float | None = None, max_records: int = 1) -> list[Record]:
        if max_records < 1:
            raise ConfigError(f"poll(max_records={max_records}): at least 1")
        self._check_alive()
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._ready:
            while True:
                self._check()
                if self._woken:
                    self._woken = False
                    return []
                out = self._gather(max_records)
                if out:
                    return out
                if self._stops and all(lane.over for lane in self._order):
                    raise self._end()
                self._raise_trouble()
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return []
                self._ready.wait(None if left is None else min(left, threading.TIMEOUT_MAX))

    def _gather(self, max_records: int) -> list[Record]:
        lanes = self._order
        self._turn = (self._turn + 1) % len(lanes)
        order = [lane for lane in lanes[self._turn :] + lanes[: self._turn] if not lane.paused]
        half = self._cluster.options.queue_bytes // 2
        out: list[Record] = []
        for index, lane in enumerate(order):
            share = -(-(max_records - len(out)) // (len(order) - index))
            before = lane.nbytes
            out += lane.take(share)
            if before > half >= lane.nbytes:
                self._poller.kick(lane)  # it may be fetched again
        return out

    def _end(self) -> EndOfStream:
        where = ", ".join(f"{lane.name!r} at offset {lane.position}" for lane in self._order)
        return EndOfStream(f"the stream ended: {where}; open a new consumer for the next epoch, or use on_end='wait'")

    def _raise_trouble(self) -> None:
        """Where no topic can be reached that is wanted, say why: the caller would wait for nothing."""
        waiting = [lane for lane in self._order if not lane.paused]
        if waiting and all(lane.trouble is not None for lane in waiting):
            error = waiting[0].trouble
            assert error is not None
            raise type(error)(str(error))

    def __iter__(self) -> Iterator[Record]:
        while True:
            try:
                records = self.poll()
            except EndOfStream:
                return
            yield from records

    # -- acknowledging ---------------------------------------------------------------------------------------------

    def ack(self, record: Record) -> None:
        self._check_alive()
        with self._ready:
            self._check()
            if self.group is None:
                raise no_group(self.topics)
            lane = self._lane(record.topic)
            if not lane.ack(record.offset):
                raise StaleLeaseError(
                    f"topic {record.topic!r} offset {record.offset} is not held by this member of group {self.group!r}:"
                    " it was acknowledged already, or its partition went to another member"
                )

    def nack(self, record: Record) -> None:
        raise UnsupportedError(
            "record_sharing: Kafka keeps one committed offset per partition and takes no single record back; close the "
            "consumer without acknowledging it, or seek"
        )

    def commit(self) -> None:
        """See ``Consumer.commit``; waits until the cluster has it, at most 10 s."""
        self._check_alive()
        with self._ready:
            self._check()
            if self.group is None:
                raise no_group(self.topics)
            for lane in self._order:
                lane.ack_all()
        self._member.commit(self._order, _COMMIT_TIMEOUT)

    def committed(self, topic: str | None = None) -> int | None:
        self._check_alive()
        with self._ready:
            lane = self._checked_lane(topic)
            return None if self.group is None else lane.committed

    # -- positions -------------------------------------------------------------------------------------------------

    def _lane(self, topic: str | None) -> Lane:
        if topic is None and len(self._order) == 1:
            return self._order[0]
        lane = self._lanes.get(cast(str, topic))
        if lane is None:
            raise ConfigError(f"this consumer reads {', '.join(map(repr, self.topics))}; say which, not {topic!r}")
        return lane

    def _checked_lane(self, topic: str | None) -> Lane:
        self._check()
        return self._lane(topic)

    def seek(self, offset: int, topic: str | None = None) -> None:
        if offset < 0:
            raise ConfigError(f"seek({offset}): offsets are not negative")
        self._check_alive()
        with self._ready:
            lane = self._checked_lane(topic)
            lane.seek(offset)
            self._poller.kick(lane)
            self._ready.notify_all()

    def seek_to_beginning(self, topic: str | None = None) -> None:
        self.seek(self.beginning_offset(topic), topic)

    def seek_to_end(self, topic: str | None = None) -> None:
        self._check_alive()
        lane = self._checked_lane(topic)
        lane.state.saw(self._cluster.end_offset(lane.name))
        self.seek(max(lane.state.high_water, 0), topic)

    def position(self, topic: str | None = None) -> int:
        self._check_alive()
        with self._ready:
            return self._checked_lane(topic).position

    def beginning_offset(self, topic: str | None = None) -> int:
        """Log start; one round trip."""
        self._check_alive()
        return self._cluster.offsets(self._checked_lane(topic).name)[0]

    def end_offset(self, topic: str | None = None) -> int:
        self._check_alive()
        lane = self._checked_lane(topic)
        self._refresh(lane)
        end = lane.state.ended_at()
        return lane.state.high_water if end is None else end

    def offset_for_time(self, timestamp: float, topic: str | None = None) -> int | None:
        self._check_alive()
        return self._cluster.offset_for_time(self._checked_lane(topic).name, timestamp)

    def _refresh(self, lane: Lane) -> None:
        """Have the high-water mark asked for of a topic that is not being fetched, where the known one is old."""
        idle = lane.paused or lane.nbytes > self._cluster.options.queue_bytes // 2
        now = time.monotonic_ns()
        if idle and now - max(lane.state.seen_ns, lane.mark_asked_ns) > _FRESH_NS and lane.trouble is None:
            lane.mark_asked_ns = now
            self._poller.ask_mark(lane)

    def newest_keyframe(self, topic: str | None = None, starts: Callable[[Record], bool] | None = None) -> int | None:
        self._check_alive()
        lane = self._checked_lane(topic)
        self._refresh(lane)
        known = self._starts.setdefault(lane.name, _Starts())
        with self._ready:
            self._check()
            flagged = lane.keyframes[-1] if lane.keyframes else None
            fetched, high_water = max(lane.fetched, lane.position), lane.state.high_water
            queued = (
                [] if starts is None else [r for r in lane.queue if isinstance(r, Record) and r.offset >= known.upto]
            )
        if starts is not None:
            for record in queued:
                known.look(record, starts)
            known.upto = max(known.upto, fetched)
        known.newest = max(known.newest, -1 if flagged is None else flagged)  # a seek throws away what was fetched
        now = time.monotonic_ns()
        if fetched < high_water and now - known.scanned_ns > _FRESH_NS:
            known.scanned_ns = now
            self._scan(lane, known, max(fetched, known.upto), high_water, starts)
        return known.newest if known.newest >= lane.position else None

    def _scan(self, lane: Lane, known: _Starts, first: int, end: int, starts: Callable[[Record], bool] | None) -> None:
        """Look for the newest keyframe in ``[first, end)``, from the end; no record is read for that twice."""
        spec, window, budget, upper = self._specs[lane.name], _SCAN_FIRST, _SCAN_BYTES, end
        try:
            while upper > first and budget > 0 and known.newest < upper:
                lower = max(first, upper - window)
                for record in self._cluster.read(lane.name, lower, upper, spec):
                    if isinstance(record, Record):
                        known.look(record, starts)
                        budget -= len(record.value) if isinstance(record.value, bytes) else 0
                upper, window = lower, window * 2
            known.upto = max(known.upto, end)
        except ComuxError as error:  # poll says so, if it lasts
            _log.debug("topic %r: no keyframe was looked for: %s", lane.name, error)

    def lag(self, topic: str | None = None) -> int:
        self._check_alive()
        lane = self._checked_lane(topic)
        self._refresh(lane)
        with self._ready:
            self._check()
            return lane.lag()

    def lag_seconds(self, topic: str | None = None) -> float:
        self._check_alive()
        with self._ready:
            lane = self._checked_lane(topic)
            if lane.lag() and not lane.queue:
                self._await(lambda: bool(lane.queue) or not self._coming(lane))
            head = next((item for item in lane.queue if isinstance(item, Record)), None)
            return 0.0 if head is None else (time.time_ns() - head.timestamp_ns) / 1e9

    def ended(self, topic: str | None = None) -> bool:
        self._check_alive()
        with self._ready:
            lane = self._checked_lane(topic)
            known = lane.ended()
            if known is None:  # the record that will tell was written and is on its way
                self._await(lambda: bool(lane.queue) or lane.over or not self._coming(lane))
                known = lane.ended()
            return bool(known)

    def _coming(self, lane: Lane) -> bool:
        """Whether something is known to be there, and nothing in the way."""
        free = lane.owned and not lane.paused and lane.trouble is None and lane.failure is None
        return free and not self._closed and lane.state.high_water > lane.position

    def _await(self, condition: Callable[[], bool]) -> None:
        self._ready.wait_for(condition, _ARRIVES)
        self._check()

    # -- pausing, numbers ------------------------------------------------------------------------------------------

    def _pause(self, topic: str | None, paused: bool) -> None:
        self._check_alive()
        with self._ready:
            self._check()
            for lane in self._order if topic is None else (self._lane(topic),):
                lane.paused = paused
                self._poller.kick(lane)
            self._ready.notify_all()

    def pause(self, topic: str | None = None) -> None:
        self._pause(topic, True)

    def resume(self, topic: str | None = None) -> None:
        self._pause(topic, False)

    def metrics(self) -> Mapping[str, float]:
        self._check_alive()
        with self._ready:
            self._check()
            account = self._account.snapshot()
            consumed = account.delivered + account.held_total + account.dropped.get("returned", 0)
            return {
                "records-lag-max": float(max((lane.lag() for lane in self._order), default=0)),
                "records-consumed-total": float(consumed),
                "bytes-consumed-total": float(sum(lane.bytes_read for lane in self._order)),
                "high-water-age-max": max((time.monotonic_ns() - lane.state.seen_ns) / 1e9 for lane in self._order),
            }

    def account(self) -> AccountSnapshot:
        return self._account.snapshot()
