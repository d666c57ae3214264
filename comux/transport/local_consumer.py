"""The consumer of the local engine: over one or several topics, lossy or as a member of groups.

``poll`` looks at the topics that are not paused in turn, beginning with another one each time; where none has anything
it waits for any of them in the kernel (``ring.wait_any``), outside of the lock.

No wake-up is lost: ``wakeup``, ``resume`` and ``close`` set their flag and wake the ring's handles under the lock, and
``poll`` tests the flags and looks for records under the same lock. So either the flag is seen, or the ring's own
remembered wake-up ends the wait at once. Waits are cut into slices, because nobody wakes the users of a topic that
another process deletes.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

import numpy as np

from comux import ring
from comux.account import AccountSnapshot, total
from comux.errors import ClosedError, ConfigError, EndOfStream, UnsupportedError
from comux.records import Record

from .interface import Consumer, OnEnd
from .local_cursors import Cursor, LossyCursor, SharedCursor
from .local_handles import SLICE_S
from .names import no_group
from .values import earliest_ns

TOPICS_MAX = 128
HOLDING_SLICE_S = 0.1  # who holds records learns of the end by looking, see SharedCursor.read
_live: weakref.WeakSet[LocalConsumer] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for consumer in _live:
        consumer._inherited()


os.register_at_fork(after_in_child=_after_fork_in_child)


class LocalConsumer(Consumer):
    """See ``Consumer``. Thread-safe."""

    def __init__(self, cursors: Sequence[Cursor], group: str | None, on_end: OnEnd) -> None:
        self.topics = tuple(cursor.name for cursor in cursors)
        self.group = group
        self._cursors = {cursor.name: cursor for cursor in cursors}
        self._only = cursors[0] if len(cursors) == 1 else None
        self._stops = on_end == "stop"
        self._new_lock()
        self._woken = False
        self._closed = False
        self._turn = 0
        self._bytes = 0
        _live.add(self)

    def _new_lock(self) -> None:
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)  # for a poll with every topic paused

    def _inherited(self) -> None:
        self._new_lock()  # the parent's may be held by a thread that does not exist here
        self._closed = True

    # -- life ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for cursor in self._cursors.values():
                cursor.close()
            self._changed.notify_all()

    def _check(self) -> None:
        if self._closed:
            raise ClosedError(f"consumer of {', '.join(map(repr, self.topics))} is closed; open a new one")

    def _rouse(self) -> None:
        """End the wait of every thread in this consumer. Lock held."""
        for cursor in self._cursors.values():
            cursor.handle.wakeup()
        self._changed.notify_all()

    def wakeup(self) -> None:
        with self._lock:
            if not self._closed:
                self._woken = True
                self._rouse()

    def deleted(self, topic: str) -> None:
        """The broker deleted ``topic``: polls say so."""
        with self._lock:
            if not self._closed and topic in self._cursors:
                self._cursors[topic].presence.forget()
                self._rouse()

    # -- reading ---------------------------------------------------------------------------------------------------

    def poll(self, timeout: float | None = None, max_records: int = 1) -> list[Record]:
        if max_records < 1:
            raise ConfigError(f"poll(max_records={max_records}): at least 1")
        with self._lock:
            self._check()
            if not self._woken and (records := self._gather(max_records)):
                return records
        return self._wait(timeout, max_records)

    def _wait(self, timeout: float | None, max_records: int) -> list[Record]:
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            with self._lock:
                self._check()
                if self._woken:
                    self._woken = False
                    return []
                records = self._gather(max_records)
                if records:
                    return records
                now = time.monotonic()
                for cursor in self._cursors.values():
                    cursor.presence.look(now)
                if self._stops and all(c.at_end or (c.paused and c.ended()) for c in self._cursors.values()):
                    raise self._end()
                left = SLICE_S if deadline is None else min(SLICE_S, deadline - now)
                if left <= 0:
                    return []
                awake = [c for c in self._cursors.values() if not c.paused and not c.at_end]
                if not awake:
                    self._changed.wait(left)
                    continue
                if self._stops and any(cursor.holds() for cursor in awake):
                    left = min(left, HOLDING_SLICE_S)
            self._sleep(awake, left)

    def _sleep(self, awake: Sequence[Cursor], left: float) -> None:
        try:
            ring.wait_any([cursor.handle for cursor in awake], left)
        except ClosedError:
            with self._lock:
                self._check()  # with our words; else it was not us who closed it
            raise

    def _gather(self, most: int) -> list[Record]:
        cursor = self._only
        if cursor is not None:
            records = [] if cursor.paused else cursor.read(most)
        else:
            records = self._gather_fairly(most)
        for record in records:
            value = record.value
            if value is not None:
                self._bytes += value.nbytes if isinstance(value, np.ndarray) else len(value)
        return records

    def _gather_fairly(self, most: int) -> list[Record]:
        cursors = list(self._cursors.values())
        self._turn = (self._turn + 1) % len(cursors)
        order = [c for c in cursors[self._turn :] + cursors[: self._turn] if not c.paused]
        out: list[Record] = []
        for index, cursor in enumerate(order):
            share = -(-(most - len(out)) // (len(order) - index))
            if share:
                out += cursor.read(share)
        return out

    def _end(self) -> EndOfStream:
        where = ", ".join(f"{c.name!r} at offset {c.next_offset()}" for c in self._cursors.values())
        return EndOfStream(f"the stream ended: {where}; open a new consumer for the next epoch, or use on_end='wait'")

    def __iter__(self) -> Iterator[Record]:
        while True:
            try:
                records = self.poll()
            except EndOfStream:
                return
            yield from records

    # -- acknowledging ---------------------------------------------------------------------------------------------

    def _finish(self, record: Record, back: bool) -> None:
        with self._lock:
            cursor = self._cursor(record.topic)
            if not isinstance(cursor, SharedCursor):
                raise no_group(self.topics)
            cursor.finish(record.offset, back)

    def ack(self, record: Record) -> None:
        self._finish(record, False)

    def nack(self, record: Record) -> None:
        self._finish(record, True)

    def commit(self) -> None:
        with self._lock:
            self._check()
            for cursor in self._cursors.values():
                if not isinstance(cursor, SharedCursor):
                    raise no_group(self.topics)
                cursor.commit()

    def committed(self, topic: str | None = None) -> int | None:
        with self._lock:
            cursor = self._cursor(topic)
            return cursor.info().done if isinstance(cursor, SharedCursor) else None

    # -- positions -------------------------------------------------------------------------------------------------

    def _cursor(self, topic: str | None) -> Cursor:
        self._check()
        if topic is None and self._only is not None:
            return self._only
        cursor = self._cursors.get(cast(str, topic))
        if cursor is None:
            raise ConfigError(f"this consumer reads {', '.join(map(repr, self.topics))}; say which, not {topic!r}")
        return cursor

    def _lossy(self, topic: str | None) -> LossyCursor:
        cursor = self._cursor(topic)
        if not isinstance(cursor, LossyCursor):
            raise UnsupportedError(
                f"record_sharing: the members of group {self.group!r} share one position in topic {cursor.name!r} and"
                " nobody can seek; read without a group, or open another group with start="
            )
        return cursor

    def _seek(self, cursor: LossyCursor, offset: int) -> None:
        cursor.seek(offset)
        cursor.at_end = False
        self._rouse()

    def seek(self, offset: int, topic: str | None = None) -> None:
        if offset < 0:
            raise ConfigError(f"seek({offset}): offsets are not negative")
        with self._lock:
            self._seek(self._lossy(topic), offset)

    def seek_to_beginning(self, topic: str | None = None) -> None:
        with self._lock:
            cursor = self._lossy(topic)
            self._seek(cursor, cursor.log.log_start)

    def seek_to_end(self, topic: str | None = None) -> None:
        with self._lock:
            cursor = self._lossy(topic)
            self._seek(cursor, cursor.log.high_water)

    def position(self, topic: str | None = None) -> int:
        with self._lock:
            cursor = self._cursor(topic)
            return cursor.position() if isinstance(cursor, SharedCursor) else cursor.next_offset()

    def beginning_offset(self, topic: str | None = None) -> int:
        with self._lock:
            return self._cursor(topic).log.log_start

    def end_offset(self, topic: str | None = None) -> int:
        with self._lock:
            return self._cursor(topic).log.high_water

    def offset_for_time(self, timestamp: float, topic: str | None = None) -> int | None:
        with self._lock:
            return self._cursor(topic).log.find_time(earliest_ns(timestamp))

    def newest_keyframe(self, topic: str | None = None, starts: Callable[[Record], bool] | None = None) -> int | None:
        with self._lock:
            return self._cursor(topic).newest_keyframe()

    def lag(self, topic: str | None = None) -> int:
        with self._lock:
            return self._cursor(topic).lag()

    def lag_seconds(self, topic: str | None = None) -> float:
        with self._lock:
            return self._cursor(topic).lag_seconds()

    def ended(self, topic: str | None = None) -> bool:
        with self._lock:
            return self._cursor(topic).ended()

    # -- pausing, numbers ------------------------------------------------------------------------------------------

    def _pause(self, topic: str | None, paused: bool) -> None:
        with self._lock:
            self._check()
            for cursor in self._cursors.values() if topic is None else (self._cursor(topic),):
                cursor.paused = paused
            self._rouse()

    def pause(self, topic: str | None = None) -> None:
        self._pause(topic, True)

    def resume(self, topic: str | None = None) -> None:
        self._pause(topic, False)

    def metrics(self) -> Mapping[str, float]:
        with self._lock:
            self._check()
            account = self.account()
            consumed = account.delivered + account.held_total + account.dropped.get("returned", 0)
            return {
                "records-lag-max": float(max(cursor.lag() for cursor in self._cursors.values())),
                "records-consumed-total": float(consumed),
                "bytes-consumed-total": float(self._bytes),
            }

    def account(self) -> AccountSnapshot:
        with self._lock:
            return total(cursor.account() for cursor in self._cursors.values())
