"""One topic of a local consumer: a lossy cursor over a ring reader, or a shared one over a group member.

Cursors never wait and are called under their consumer's lock; the waiting is the consumer's.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from comux import ring
from comux.account import AccountSnapshot
from comux.errors import EndOfStream, NotRetainedError, StaleLeaseError, UnsupportedError
from comux.records import KEYFRAME, Record

from .interface import OnEnd, Start
from .local_handles import Presence
from .values import earliest_ns


@dataclass(frozen=True, slots=True)
class Terms:
    """What was asked of ``Broker.consumer`` for each of its topics."""

    start: Start
    on_end: OnEnd
    views: bool
    durable: bool
    max_deliveries: int | None
    name: str


def open_cursor(log: ring.Ring, group: str | None, terms: Terms) -> Cursor:
    """Open a reader or a member on ``log``, which belongs to the cursor from then on."""
    start, on_end = terms.start, terms.on_end
    if group is not None and any(info.name == group for info in log.groups()):
        start = "beginning"  # it has a committed position; the ring would let a suspended group begin anew at "end"
    at = _resolve(log, start)
    if group is None:
        return LossyCursor(log, log.reader(start=at, on_end=on_end, name=terms.name), on_end, terms.views)
    member = log.member(
        group,
        start=at,
        durable=terms.durable,
        max_deliveries=terms.max_deliveries,
        name=terms.name,
        on_end=on_end,
    )
    return SharedCursor(log, member, group, on_end, terms.views)


def _resolve(log: ring.Ring, start: Start) -> int | Literal["end", "beginning"]:
    if start == "end" or start == "beginning":
        return start
    found: int | None
    if start == "keyframe":
        found = log.last_keyframe
    elif isinstance(start, float):
        found = log.find_time(earliest_ns(start))
    elif isinstance(start, int):
        found = start
    else:
        assert callable(start)
        found = _first_for(log, start)
    return "end" if found is None else found


def _first_for(log: ring.Ring, predicate: Callable[[Record], bool]) -> int | None:
    high = log.high_water
    with log.reader(start="beginning", on_end="wait") as reader:
        while reader.position < high:
            record = reader.copy(0)
            if record is None:
                return None
            if predicate(record):
                return record.offset
    return None


class Cursor(ABC):
    """Where a consumer stands in one topic."""

    handle: ring.Reader | ring.Member

    def __init__(self, log: ring.Ring, on_end: OnEnd, views: bool) -> None:
        self.name = log.name
        self.log = log
        self.views = views
        self.typed = log.spec.dtype is not None
        self.stops = on_end == "stop"
        self.paused = False
        self.at_end = False  # the last read met the end
        self.presence = Presence(log)

    @abstractmethod
    def read(self, most: int) -> list[Record]:
        """Up to ``most`` records that are there; sets ``at_end``."""

    @abstractmethod
    def next_offset(self) -> int:
        """Offset of the next record to be read."""

    @abstractmethod
    def ended(self) -> bool:
        """See ``Consumer.ended``."""

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def account(self) -> AccountSnapshot: ...

    def holds(self) -> bool:
        """Whether records of it wait to be acknowledged."""
        return False

    def lag(self) -> int:
        return max(0, self.log.high_water - self.next_offset())

    def lag_seconds(self) -> float:
        log = self.log
        high, offset = log.high_water, max(self.next_offset(), log.log_start)
        while offset < high:  # aborted records have no timestamp
            stamp = log.timestamp_at(offset)
            if stamp is not None:
                return (time.time_ns() - stamp) / 1e9
            offset = max(offset + 1, log.log_start)
        return 0.0

    def newest_keyframe(self) -> int | None:
        return self.log.find_flag(KEYFRAME, self.next_offset())

    def _read_past(self, offset: int, epoch: int) -> bool:
        """Whether a reader of ``epoch`` finds nothing more at ``offset``, the epoch being over."""
        log = self.log
        end = log.end_offset
        if log.epoch == epoch or not self.stops:
            return end is not None and offset >= end
        if offset >= log.high_water:
            return True
        record = log.record_at(max(offset, log.log_start))
        return record is not None and record.epoch > epoch


class LossyCursor(Cursor):
    """Reads without a group."""

    handle: ring.Reader

    def __init__(self, log: ring.Ring, reader: ring.Reader, on_end: OnEnd, views: bool) -> None:
        super().__init__(log, on_end, views)
        self.handle = reader

    def close(self) -> None:
        self.handle.close()
        self.log.close()

    def read(self, most: int) -> list[Record]:
        poll = self.handle.poll
        out: list[Record] = []
        self.at_end = False
        try:
            while len(out) < most:
                view = poll(0)
                if view is None:
                    break
                try:
                    out.append(self._view(view) if self.views else view.copy())
                except NotRetainedError:  # lapped just now: counted, and told with the next record
                    self.handle._retract(view)
        except EndOfStream:
            self.at_end = True
        return out

    def _view(self, view: ring.View) -> Record:
        record = Record(
            self.name,
            view.offset,
            view.timestamp_ns,
            view.array if self.typed else view.buffer,
            view.key,
            view.headers,
            0,
            view.epoch,
            view.flags,
            view.skipped,
            1,
            False,
            view.append_ns,
            view.valid,
        )
        if not view.valid():  # key and headers were read from memory that may have been overwritten
            raise NotRetainedError(f"topic {self.name!r}: offset {view.offset} was overwritten")
        return record

    def next_offset(self) -> int:
        return self.handle.position

    def seek(self, offset: int) -> None:
        self.handle.seek(offset)

    def ended(self) -> bool:
        return self._read_past(self.handle.position, self.handle.epoch)

    def account(self) -> AccountSnapshot:
        return self.handle.account()


class SharedCursor(Cursor):
    """Reads as a member of a group. ``held`` are the records handed out and not yet acknowledged."""

    handle: ring.Member

    def __init__(self, log: ring.Ring, member: ring.Member, group: str, on_end: OnEnd, views: bool) -> None:
        super().__init__(log, on_end, views)
        self.handle = member
        self.group = group
        self.held: dict[int, ring.Lease] = {}

    def close(self) -> None:
        for lease in self.held.values():
            self._give_back(lease)
        self.held.clear()
        self.handle.close()
        self.log.close()

    def _give_back(self, lease: ring.Lease) -> None:
        try:
            lease.nack()
        except StaleLeaseError:
            pass  # the ring was closed under it, by an inherited handle or at exit: it is given back already

    def read(self, most: int) -> list[Record]:
        take, held = self.handle.take, self.held
        out: list[Record] = []
        self.at_end = False
        try:
            while len(out) < most:
                lease = take(0)
                if lease is None:
                    # Members that hold records and wait for the end would wait for each other: who holds some, and
                    # finds nothing more, is at the end.
                    self.at_end = not out and bool(held) and self.stops and self.ended()
                    break
                offset = lease.offset
                if offset in held:  # claimed from this member, and come back to it
                    self._give_back(held.pop(offset))
                held[offset] = lease
                out.append(self._record(lease, offset))
        except EndOfStream:
            self.at_end = True
        return out

    def _record(self, lease: ring.Lease, offset: int) -> Record:
        value: Any
        if self.typed:
            value = lease.array if self.views else np.array(lease.array)
        else:
            value = lease.buffer if self.views else lease.bytes()
        return Record(
            self.name,
            offset,
            lease.timestamp_ns,
            value,
            lease.key,
            lease.headers,
            0,
            lease.epoch,
            lease.flags,
            0,
            lease.delivery_count,
            lease.redelivered,
            lease.append_ns,
            (lambda: lease.held) if self.views else None,
        )

    def holds(self) -> bool:
        return bool(self.held)

    def info(self) -> ring.GroupInfo:
        """The group as it stands."""
        return next(group for group in self.log.groups() if group.name == self.group)

    def next_offset(self) -> int:
        return self.handle.position

    def position(self) -> int:
        """See ``Consumer.position``; raises ``UnsupportedError`` where the group has other members."""
        members = self.info().members
        if members > 1:
            raise UnsupportedError(
                f"record_sharing: {members} members of group {self.group!r} share topic {self.name!r} record by record,"
                " a member has no position; use committed() or lag()"
            )
        return self.handle.position

    def ended(self) -> bool:
        info = self.info()
        if not self._read_past(self.handle.position, self.handle.epoch):
            return False
        return bool(self.held) or info.done >= info.next

    def finish(self, offset: int, back: bool) -> None:
        """Acknowledge, or give back, one record."""
        lease = self.held.pop(offset, None)
        if lease is None:
            raise StaleLeaseError(
                f"topic {self.name!r} offset {offset} is not held by this member of group {self.group!r}: it was"
                " acknowledged or given back already"
            )
        if back:
            lease.nack()
        else:
            lease.ack()

    def commit(self) -> None:
        """Acknowledge all; those that were claimed meanwhile are told of at the end."""
        refused: list[StaleLeaseError] = []
        for lease in self.held.values():
            try:
                lease.ack()
            except StaleLeaseError as error:
                refused.append(error)
        self.held.clear()
        if refused:
            raise refused[0]

    def account(self) -> AccountSnapshot:
        return self.handle.account()
