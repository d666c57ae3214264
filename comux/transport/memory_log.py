"""The in-memory engine's log: one topic's records, epochs, groups and room.

Everything here runs under the lock of the store the topic belongs to; nothing here waits. The waiting (and the handles)
are in ``memory``. A record gets its offset when it is committed, so an aborted claim leaves no hole: a claim only
reserves room (a slot and its bytes) meanwhile.

Invariants: ``tail <= head``; ``head - tail + reserved <= records``; for each group ``done <= next``, every offset in
``[done, next)`` is exactly one of acknowledged, held by a member, or waiting to be redelivered.
"""

from __future__ import annotations

import heapq
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from comux.dead_letters import LETTERS_KEPT, dead_headers, dead_letter_topic, described
from comux.errors import ConfigError, RecordTooLargeError, WaitTimeoutError
from comux.records import KEYFRAME, Headers

from .interface import GroupInfo, Holder, TopicInfo, TopicSpec, dtype_of
from .names import unknown_topic
from .values import check_array, check_buffer

Lock = Any  # threading.RLock is a function up to Python 3.12

KEY_MAX = 65536
DATA_BYTES = 64 << 20
LETTER_ROOM = 65536  #: for the headers of a dead letter
_NEVER = 1 << 62


@dataclass(frozen=True, slots=True)
class Stored:
    """A committed record; ``data`` is ``bytes``, an array nobody writes to, or ``None``."""

    offset: int
    timestamp_ns: int
    append_ns: int
    key: bytes | None
    headers: Headers
    flags: int
    epoch: int
    data: Any
    nbytes: int


@dataclass(slots=True, eq=False)
class Group:
    """A gating group: who holds what."""

    name: str
    next: int
    done: int
    durable: bool
    acked: set[int] = field(default_factory=set)
    held: dict[int, object] = field(default_factory=dict)
    since: dict[int, float] = field(default_factory=dict)  # of those held
    counts: dict[int, int] = field(default_factory=dict)
    back: list[int] = field(default_factory=list)
    members: set[object] = field(default_factory=set)
    left_ns: int = field(default_factory=time.monotonic_ns)
    lost: int = 0
    paused: bool = False
    max_deliveries: int = 0
    dead_letters: int = 0

    def spent(self, offset: int) -> bool:
        """Whether ``offset``, just taken, was delivered as often as it may be before: nobody is to work on it."""
        return bool(self.max_deliveries) and self.counts[offset] > self.max_deliveries

    def take(self, member: object, limit: int) -> int | None:
        """Hand the lowest record below ``limit`` to ``member``: one given back first, then the next new one."""
        while self.back:
            if self.back[0] >= limit:
                return None
            offset = heapq.heappop(self.back)
            if offset >= self.done and offset not in self.acked:
                break
        else:
            if self.next >= limit:
                return None
            offset = self.next
            self.next += 1
        self.held[offset] = member
        self.since[offset] = time.monotonic()
        self.counts[offset] = self.counts.get(offset, 0) + 1
        return offset

    def finish(self, offset: int) -> bool:
        """``offset`` needs no delivery any more; returns whether ``done`` moved."""
        self.held.pop(offset, None)
        self.since.pop(offset, None)
        self.counts.pop(offset, None)
        self.acked.add(offset)
        before = self.done
        while self.done in self.acked:
            self.acked.discard(self.done)
            self.done += 1
        self.next = max(self.next, self.done)
        return self.done != before

    def give_back(self, offset: int) -> None:
        """``offset``, held until now, is to be delivered again."""
        del self.held[offset], self.since[offset]
        heapq.heappush(self.back, offset)

    def holders(self) -> tuple[Holder, ...]:
        """Members with records in hand."""
        now, out = time.monotonic(), []
        for member in set(self.held.values()):
            mine = [offset for offset, who in self.held.items() if who is member]
            oldest = min(mine, key=lambda offset: self.since[offset])
            name = getattr(member, "name", "")
            out.append(Holder(name, os.getpid(), "", "", len(mine), oldest, now - self.since[oldest]))
        return tuple(sorted(out, key=lambda holder: -holder.held_s))

    def has_for(self, limit: int) -> bool:
        """Whether ``take`` would find something."""
        return self.next < limit or any(self.done <= o < limit and o not in self.acked for o in self.back)

    def finished_for(self, member: object, limit: int) -> bool:
        """Whether ``member`` is at the end: nothing to take below ``limit``, and nothing can come back to it.

        Members that hold records and wait for the end would wait for each other, so who holds some is not kept waiting.
        """
        held = [who for o, who in self.held.items() if o < limit]
        return not self.has_for(limit) and (not held or any(who is member for who in held))


class Log:
    """One topic. ``changed`` conditions of whoever reads it are notified by ``wake_readers``."""

    def __init__(self, spec: TopicSpec, lock: Lock) -> None:
        self.spec = spec
        self.dtype = dtype_of(spec)
        self.capacity = spec.records
        self.limit_bytes = DATA_BYTES if spec.data_bytes is None else spec.data_bytes
        self.cells: list[Stored | None] = [None] * spec.records
        self.head = self.tail = spec.first_offset
        self.nbytes = 0
        self.reserved = 0
        self.reserved_bytes = 0
        self.keyframes: deque[int] = deque()
        self.epoch = 0
        self.ended = False
        self.paused = False
        self.ends: list[int | None] = [None]  # of each epoch
        self.groups: dict[str, Group] = {}
        self.producers: set[object] = set()
        self.readers: dict[object, threading.Condition] = {}
        self.observers: set[object] = set()
        self.space = threading.Condition(lock)
        self.deleted = False

    # -- reading ---------------------------------------------------------------------------------------------------

    def get(self, offset: int) -> Stored | None:
        """The record at ``offset``; ``None`` where it is not retained."""
        return self.cells[offset % self.capacity] if self.tail <= offset < self.head else None

    def retained(self) -> Iterator[Stored]:
        """All records, oldest first."""
        for offset in range(self.tail, self.head):
            stored = self.cells[offset % self.capacity]
            assert stored is not None
            yield stored

    def end_of(self, epoch: int) -> int | None:
        """Offset at which ``epoch`` ended; ``None`` while it is open."""
        return self.ends[epoch]

    def info(self) -> TopicInfo:
        return TopicInfo(self.spec, self.tail, self.head, self.epoch, self.ended, self.paused)

    def group_infos(self) -> list[GroupInfo]:
        return [
            GroupInfo(
                g.name,
                self.spec.name,
                g.done,
                max(0, self.head - g.done),
                len(g.members),
                g.durable,
                self.suspended(g),
                g.paused,
                g.lost,
                g.dead_letters,
                g.max_deliveries,
                g.holders(),
            )
            for g in self.groups.values()
        ]

    def join(self, name: str, start: int, durable: bool, max_deliveries: int | None) -> None:
        """Make group ``name`` beginning at ``start``, where it is new; ``ConfigError`` for a start in the future."""
        group = self.groups.get(name)
        if group is None:
            if start > self.head:
                raise ConfigError(
                    f"topic {self.spec.name!r}: group {name!r} cannot start at offset {start}, the next record is"
                    f" {self.head}"
                )
            begin = max(start, self.tail)
            self.groups[name] = group = Group(name, begin, begin, durable, lost=begin - start)
            group.max_deliveries = self.spec.max_deliveries
        if max_deliveries is not None:
            group.max_deliveries = max_deliveries
        group.durable = group.durable or durable

    # -- room ------------------------------------------------------------------------------------------------------

    def suspended(self, group: Group) -> bool:
        """Whether ``group`` has been without a member for longer than the topic's grace."""
        return not group.members and not group.durable and self.grace_left_ns(group) <= 0

    def grace_left_ns(self, group: Group) -> int:
        """Until when an abandoned group gates; far away for those that are attended or durable."""
        if group.members or group.durable:
            return _NEVER
        return group.left_ns + int(self.spec.group_grace * 1e9) - time.monotonic_ns()

    def next_change_s(self) -> float | None:
        """Seconds after which waiting for room may succeed without anybody acting (a grace runs out)."""
        left = min((self.grace_left_ns(g) for g in self.groups.values()), default=_NEVER)
        return None if left >= _NEVER >> 1 else max(0.0, left / 1e9) + 1e-3

    def make_room(self, nbytes: int) -> bool:
        """Evict until one more record of ``nbytes`` fits; ``False`` where a group, a claim or a pause is in the way."""
        if self.paused:
            return False
        while self.head - self.tail + self.reserved >= self.capacity or (
            self.dtype is None and self.nbytes + self.reserved_bytes + nbytes > self.limit_bytes
        ):
            if not self._evict():
                return False
        return True

    def _evict(self) -> bool:
        offset = self.tail
        if offset == self.head:
            return False
        behind = [g for g in self.groups.values() if g.done <= offset and offset not in g.acked]
        gating = [g for g in behind if not self.suspended(g)]
        if gating and self.spec.policy != "drop_oldest":
            return False
        if any(offset in g.held for g in gating):
            return False  # a member is working on it; nobody pulls a record away from under a reader
        for group in behind:
            group.lost += 1
            group.finish(offset)
        for group in self.groups.values():
            if group.done <= offset:  # acknowledged out of order
                group.finish(offset)
        stored = self.cells[offset % self.capacity]
        assert stored is not None
        self.cells[offset % self.capacity] = None
        self.nbytes -= stored.nbytes
        if self.keyframes and self.keyframes[0] == offset:
            self.keyframes.popleft()
        self.tail = offset + 1
        return True

    def why_full(self) -> str:
        """For the error of a producer that waited in vain."""
        if self.paused:
            return f"topic {self.spec.name!r} is paused at offset {self.head}; resume it"
        behind = [f"group {g.name!r} {self.head - g.done} behind" for g in self.groups.values() if g.done <= self.tail]
        claims = [f"{self.reserved} claims open"] if self.reserved else []
        return (
            f"topic {self.spec.name!r} is full at offset {self.head} ({self.head - self.tail} of {self.capacity}"
            f" records, {self.nbytes} of {self.limit_bytes} bytes; {', '.join(behind + claims) or 'nobody behind'})"
        )

    # -- writing ---------------------------------------------------------------------------------------------------

    def check_size(self, nbytes: int, key: bytes | None) -> None:
        """Refuse what never fits."""
        name = self.spec.name
        if key is not None and len(key) > KEY_MAX:
            raise RecordTooLargeError(f"topic {name!r}: the key has {len(key)} bytes, the limit is {KEY_MAX}")
        if self.dtype is None and nbytes > self.limit_bytes:
            raise RecordTooLargeError(
                f"topic {name!r}: record of {nbytes} bytes (value, key and headers) is larger than the whole topic's "
                f"data_bytes={self.limit_bytes}; create the topic with more"
            )

    def append(self, data: Any, key: bytes | None, headers: Headers, timestamp_ns: int | None, flags: int) -> int:
        """Publish into reserved or free room; returns the offset."""
        now = time.time_ns()
        stamp = now if timestamp_ns is None else timestamp_ns
        nbytes = size_of(data, key, headers)
        offset = self.head
        self.cells[offset % self.capacity] = Stored(offset, stamp, now, key, headers, flags, self.epoch, data, nbytes)
        self.nbytes += nbytes
        self.head = offset + 1
        if flags & KEYFRAME:
            self.keyframes.append(offset)
        self.wake_readers()
        return offset

    def open_epoch(self) -> None:
        """Begin the next epoch where the last one has ended."""
        if self.ended:
            self.ended = False
            self.epoch += 1
            self.ends.append(None)

    def end_epoch(self) -> None:
        """End the open epoch; nothing happens where none is open."""
        if not self.ended:
            self.ended = True
            self.ends[-1] = self.head
            self.wake_readers()
            self.space.notify_all()

    def wake_readers(self) -> None:
        for condition in self.readers.values():
            condition.notify_all()

    def wake_all(self) -> None:
        self.wake_readers()
        self.space.notify_all()


class Store:
    """The topics of one name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = threading.RLock()
        self.logs: dict[str, Log] = {}
        self.dead = False  # inherited through a fork

    def log(self, name: str) -> Log:
        """The topic called ``name``; raises ``UnknownTopicError``."""
        log = self.logs.get(name)
        if log is None:
            raise unknown_topic(name, sorted(self.logs), f"memory://{self.name}")
        return log

    def bury(self, log: Log, group: Group, stored: Stored) -> None:
        """Copy ``stored``, just taken by a member of ``group``, to the group's dead-letter topic and finish it.

        Raises:
            WaitTimeoutError: a group that reads the letters is behind; ``stored`` was given back.
        """
        spec, deliveries = log.spec, group.counts[stored.offset] - 1
        name = dead_letter_topic(spec.name, group.name)
        letters = self.logs.get(name)
        if letters is None:
            kept = TopicSpec(
                name,
                records=min(spec.records, LETTERS_KEPT),
                data_bytes=log.limit_bytes + LETTER_ROOM,
                max_deliveries=0,
                metadata={"dead_letters_of": spec.name},
            )
            letters = self.logs[name] = Log(kept, self.lock)
        headers = (
            *stored.headers,
            *described(log.dtype, tuple(spec.shape)),
            *dead_headers(spec.name, stored.epoch, stored.offset, group.name, deliveries),
        )
        data = stored.data.tobytes() if log.dtype is not None else stored.data
        if not letters.make_room(size_of(data, stored.key, headers)):
            group.counts[stored.offset] = deliveries
            group.give_back(stored.offset)
            raise WaitTimeoutError(f"{letters.why_full()}; the dead letter at offset {stored.offset} has no room")
        letters.append(data, stored.key, headers, stored.timestamp_ns, stored.flags)
        group.dead_letters += 1
        group.finish(stored.offset)
        log.wake_all()


def size_of(data: Any, key: bytes | None, headers: Headers) -> int:
    """Bytes a record counts with."""
    size = 0 if data is None else data.nbytes if isinstance(data, np.ndarray) else len(data)
    size += len(key) if key is not None else 0
    for name, value in headers:
        size += len(name) + (len(value) if value is not None else 0)
    return size


def snapshot(name: str, value: Any, dtype: np.dtype[Any] | None, shape: tuple[int, ...]) -> Any:
    """A private copy of ``value`` as the topic stores it.

    Raises:
        ConfigError: not a C-contiguous buffer, or (typed topics) another dtype or shape than the topic's.
    """
    if dtype is not None:
        array = check_array(name, value, dtype, shape).copy(order="C")
        array.flags.writeable = False
        return array
    if value is None or isinstance(value, bytes):
        return value
    return check_buffer(name, value).tobytes()
