"""The consumer of the in-memory engine: lossy or a member of a group, over one or several topics.

A cursor per topic holds the position (lossy) or the records in hand (groups). ``poll`` goes round the topics that have
something, beginning with another one each time, so that a busy topic cannot starve a quiet one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

from comux.account import Account, AccountSnapshot
from comux.dead_letters import CAUSE
from comux.errors import (
    ClosedError,
    ConfigError,
    EndOfStream,
    StaleLeaseError,
    UnknownTopicError,
    UnsupportedError,
)
from comux.records import Record

from .interface import Consumer, OnEnd, Start
from .memory_handles import Forget, to_record
from .memory_log import Group, Log, Store
from .names import no_group
from .values import earliest_ns


def resolve_start(store: Store, log: Log, start: Start) -> int:
    """The offset a consumer without a committed position begins at. Predicates run outside the store's lock."""
    with store.lock:
        if start == "beginning":
            return log.tail
        if start == "end":
            return log.head
        if start == "keyframe":
            return log.keyframes[-1] if log.keyframes else log.head
        if isinstance(start, float):
            found = first_at(log, start)
            return log.head if found is None else found
        if isinstance(start, int):
            return start
        head, records = log.head, [to_record(log.spec.name, stored) for stored in log.retained()]
    assert callable(start)
    return next((record.offset for record in records if start(record)), head)


def first_at(log: Log, timestamp: float) -> int | None:
    """First retained offset at or after ``timestamp`` (Unix seconds)."""
    earliest = earliest_ns(timestamp)
    return next((stored.offset for stored in log.retained() if stored.timestamp_ns >= earliest), None)


class Cursor:
    """Where the consumer stands in one topic."""

    def __init__(self, log: Log, position: int, group: Group | None, on_end: OnEnd) -> None:
        self.log = log
        self.name = log.spec.name
        self.group = group
        self.position = position  # lossy only
        self.skipped = 0  # passed over since the last record handed out
        self.paused = False
        self.epoch = log.epoch  # a consumer that stops does so where the epoch it was opened in ends
        self.stops = on_end == "stop"

    def limit(self) -> int:
        """The offset this cursor does not read on from: the end of its epoch, or of what is there."""
        end = self.log.end_of(self.epoch) if self.stops else None
        return self.log.head if end is None else end

    def ended(self, member: object) -> bool:
        """See ``Consumer.ended``."""
        if self.stops:
            end = self.log.end_of(self.epoch)
        else:
            end = self.log.head if self.log.ended else None
        if end is None:
            return False
        if self.group is None:
            return self.position >= end
        return self.group.finished_for(member, end)


class MemoryConsumer(Consumer):
    """See ``Consumer``. Thread-safe."""

    def __init__(
        self,
        store: Store,
        logs: Sequence[Log],
        positions: Sequence[int],
        group: str | None,
        on_end: OnEnd,
        views: bool,
        name: str,
        forget: Forget,
    ) -> None:
        self.name = name
        self.topics = tuple(log.spec.name for log in logs)
        self.group = group
        self._store = store
        self._stops = on_end == "stop"
        self._views = views
        self._forget = forget
        self._ready = threading.Condition(store.lock)
        self._account = Account()
        self._bytes = 0
        self._lost: set[tuple[str, int]] = set()  # claimed by others, not told yet
        self._woken = False
        self._closed = False
        self._turn = 0
        self._cursors: dict[str, Cursor] = {}
        for log, position in zip(logs, positions, strict=True):
            shared = None if group is None else log.groups[group]
            self._cursors[log.spec.name] = Cursor(log, position, shared, on_end)
            log.readers[self] = self._ready
            if shared is not None:
                shared.members.add(self)

    # -- life ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        if self._store.dead:
            self._closed = True
            return
        with self._store.lock:
            if self._closed:
                return
            self._closed = True
            for cursor in self._cursors.values():
                log, group = cursor.log, cursor.group
                log.readers.pop(self, None)
                if group is not None:
                    self._give_back(group, [o for o, who in group.held.items() if who is self])
                    group.members.discard(self)
                    group.left_ns = time.monotonic_ns()
                log.wake_all()
            self._ready.notify_all()
            self._forget(self)

    def _check(self) -> None:
        if self._closed or self._store.dead:
            raise ClosedError(f"consumer of {', '.join(map(repr, self.topics))} is closed; open a new one")
        for cursor in self._cursors.values():
            if cursor.log.deleted:
                raise UnknownTopicError(f"topic {cursor.name!r} was deleted under its consumer; create it again")

    def wakeup(self) -> None:
        with self._store.lock:
            self._woken = True
            self._ready.notify_all()

    # -- reading ---------------------------------------------------------------------------------------------------

    def poll(self, timeout: float | None = None, max_records: int = 1) -> list[Record]:
        if max_records < 1:
            raise ConfigError(f"poll(max_records={max_records}): at least 1")
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._store.lock:
            while True:
                self._check()
                if self._woken:
                    self._woken = False
                    return []
                out = self._gather(max_records)
                if out:
                    return out
                if self._stops and all(cursor.ended(self) for cursor in self._cursors.values()):
                    raise self._end()
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return []
                self._ready.wait(None if left is None else min(left, threading.TIMEOUT_MAX))

    def _end(self) -> EndOfStream:
        where = ", ".join(f"{c.name!r} epoch {c.epoch} at offset {c.limit()}" for c in self._cursors.values())
        return EndOfStream(f"the stream ended: {where}; open a new consumer for the next epoch, or use on_end='wait'")

    def _gather(self, max_records: int) -> list[Record]:
        cursors = list(self._cursors.values())
        self._turn = (self._turn + 1) % len(cursors)
        order = [c for c in cursors[self._turn :] + cursors[: self._turn] if not c.paused]
        out: list[Record] = []
        for index, cursor in enumerate(order):
            share = -(-(max_records - len(out)) // (len(order) - index))
            read = self._read if cursor.group is None else self._take
            for _ in range(share):
                record = read(cursor)
                if record is None:
                    break
                out.append(record)
        return out

    def _read(self, cursor: Cursor) -> Record | None:
        log = cursor.log
        if cursor.position < log.tail:
            lost = min(log.tail, cursor.limit()) - cursor.position
            if lost > 0:
                cursor.position += lost
                cursor.skipped += lost
                self._account.skip("lapped", lost)
        if cursor.position >= cursor.limit():
            return None
        stored = log.get(cursor.position)
        assert stored is not None
        record = to_record(cursor.name, stored, skipped=cursor.skipped, view=log if self._views else None)
        cursor.position += 1
        cursor.skipped = 0
        self._account.receive("handing")
        self._account.deliver("handing")
        self._bytes += stored.nbytes
        return record

    def _take(self, cursor: Cursor) -> Record | None:
        group = cursor.group
        assert group is not None
        while not group.paused:
            offset = group.take(self, cursor.limit())
            if offset is None:
                return None
            stored = cursor.log.get(offset)
            assert stored is not None  # a held record is never evicted
            if group.spent(offset):
                self._store.bury(cursor.log, group, stored)
                self._account.skip(CAUSE, 1)
                continue
            self._lost.discard((cursor.name, offset))
            self._account.receive("uncommitted")
            self._bytes += stored.nbytes
            view = cursor.log if self._views else None
            return to_record(cursor.name, stored, delivery_count=group.counts[offset], view=view)
        return None

    def __iter__(self) -> Iterator[Record]:
        while True:
            try:
                records = self.poll()
            except EndOfStream:
                return
            yield from records

    # -- acknowledging ---------------------------------------------------------------------------------------------

    def _held(self, record: Record) -> Cursor:
        self._check()
        if self.group is None:
            raise no_group(self.topics)
        cursor = self._cursor(record.topic)
        assert cursor.group is not None
        if cursor.group.held.get(record.offset) is not self:
            self._lost.discard((record.topic, record.offset))
            raise StaleLeaseError(
                f"topic {record.topic!r} offset {record.offset} is not held by this member of group {self.group!r}: it"
                " was acknowledged or given back already, or claimed by another member"
            )
        return cursor

    def lose(self, topic: str, offset: int) -> None:
        """A record this member holds was claimed. The store's lock is held."""
        group = self._cursors[topic].group
        assert group is not None
        group.give_back(offset)
        self._account.drop("uncommitted", "claimed")
        self._lost.add((topic, offset))

    def ack(self, record: Record) -> None:
        with self._store.lock:
            cursor = self._held(record)
            self._finish(cursor, record.offset)

    def _finish(self, cursor: Cursor, offset: int) -> None:
        assert cursor.group is not None
        moved = cursor.group.finish(offset)
        self._account.deliver("uncommitted")
        if moved:
            cursor.log.space.notify_all()
            if cursor.log.ended:
                cursor.log.wake_readers()  # a member that waits for the others' last records

    def nack(self, record: Record) -> None:
        with self._store.lock:
            cursor = self._held(record)
            assert cursor.group is not None
            self._give_back(cursor.group, [record.offset])
            cursor.log.wake_all()

    def _give_back(self, group: Group, offsets: Sequence[int]) -> None:
        for offset in offsets:
            group.give_back(offset)
            self._account.drop("uncommitted", "returned")

    def commit(self) -> None:
        with self._store.lock:
            self._check()
            if self.group is None:
                raise no_group(self.topics)
            for cursor in self._cursors.values():
                assert cursor.group is not None
                for offset in sorted(o for o, who in cursor.group.held.items() if who is self):
                    self._finish(cursor, offset)
            lost, self._lost = self._lost, set()
            if lost:
                topic, offset = min(lost)
                raise StaleLeaseError(
                    f"topic {topic!r} offset {offset} was claimed from this member of group {self.group!r} ({len(lost)}"
                    " records in all): it held them too long; everything else was acknowledged"
                )

    def committed(self, topic: str | None = None) -> int | None:
        with self._store.lock:
            group = self._cursor(topic).group
            return None if group is None else group.done

    # -- positions -------------------------------------------------------------------------------------------------

    def _cursor(self, topic: str | None) -> Cursor:
        self._check()
        if topic is None and len(self._cursors) == 1:
            return next(iter(self._cursors.values()))
        cursor = self._cursors.get(cast(str, topic))
        if cursor is None:
            raise ConfigError(f"this consumer reads {', '.join(map(repr, self.topics))}; say which, not {topic!r}")
        return cursor

    def seek(self, offset: int, topic: str | None = None) -> None:
        if offset < 0:
            raise ConfigError(f"seek({offset}): offsets are not negative")
        with self._store.lock:
            self._jump(self._cursor(topic), offset)

    def _jump(self, cursor: Cursor, offset: int) -> None:
        if cursor.group is not None:
            raise UnsupportedError(
                f"record_sharing: the members of group {self.group!r} share one position in topic {cursor.name!r}"
                " and nobody can seek; read without a group, or open another group with start="
            )
        ahead = offset - cursor.position
        cursor.position = offset
        cursor.skipped = max(0, cursor.skipped + ahead)
        self._account.skip("jumped", ahead)
        self._ready.notify_all()

    def seek_to_beginning(self, topic: str | None = None) -> None:
        with self._store.lock:
            cursor = self._cursor(topic)
            self._jump(cursor, cursor.log.tail)

    def seek_to_end(self, topic: str | None = None) -> None:
        with self._store.lock:
            cursor = self._cursor(topic)
            self._jump(cursor, cursor.log.head)

    def position(self, topic: str | None = None) -> int:
        with self._store.lock:
            cursor = self._cursor(topic)
            if cursor.group is None:
                return cursor.position
            if len(cursor.group.members) > 1:
                raise UnsupportedError(
                    f"record_sharing: {len(cursor.group.members)} members of group {self.group!r} share topic "
                    f"{cursor.name!r} record by record, a member has no position; use committed() or lag()"
                )
            return cursor.group.next

    def beginning_offset(self, topic: str | None = None) -> int:
        with self._store.lock:
            return self._cursor(topic).log.tail

    def end_offset(self, topic: str | None = None) -> int:
        with self._store.lock:
            return self._cursor(topic).log.head

    def offset_for_time(self, timestamp: float, topic: str | None = None) -> int | None:
        with self._store.lock:
            return first_at(self._cursor(topic).log, timestamp)

    def newest_keyframe(self, topic: str | None = None, starts: Callable[[Record], bool] | None = None) -> int | None:
        with self._store.lock:
            cursor = self._cursor(topic)
            frames = cursor.log.keyframes
            return frames[-1] if frames and frames[-1] >= self._next(cursor) else None

    def _next(self, cursor: Cursor) -> int:
        return cursor.position if cursor.group is None else cursor.group.next

    def lag(self, topic: str | None = None) -> int:
        with self._store.lock:
            cursor = self._cursor(topic)
            return max(0, cursor.log.head - self._next(cursor))

    def lag_seconds(self, topic: str | None = None) -> float:
        with self._store.lock:
            cursor = self._cursor(topic)
            stored = cursor.log.get(max(self._next(cursor), cursor.log.tail))
            return 0.0 if stored is None else (time.time_ns() - stored.timestamp_ns) / 1e9

    def ended(self, topic: str | None = None) -> bool:
        with self._store.lock:
            return self._cursor(topic).ended(self)

    # -- pausing, numbers ------------------------------------------------------------------------------------------

    def _pause(self, topic: str | None, paused: bool) -> None:
        with self._store.lock:
            self._check()
            for cursor in self._cursors.values() if topic is None else (self._cursor(topic),):
                cursor.paused = paused
            self._ready.notify_all()

    def pause(self, topic: str | None = None) -> None:
        self._pause(topic, True)

    def resume(self, topic: str | None = None) -> None:
        self._pause(topic, False)

    def metrics(self) -> Mapping[str, float]:
        with self._store.lock:
            self._check()
            lags = [max(0, c.log.head - self._next(c)) for c in self._cursors.values()]
            account = self._account.snapshot()
            consumed = account.delivered + account.held_total + account.dropped.get("returned", 0)
            return {
                "records-lag-max": float(max(lags, default=0)),
                "records-consumed-total": float(consumed),
                "bytes-consumed-total": float(self._bytes),
            }

    def account(self) -> AccountSnapshot:
        return self._account.snapshot()
