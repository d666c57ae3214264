"""A lane: one topic of one consumer, between the polling thread that fills it and the threads that read it.

**Problem.** The polling thread runs ahead of the reader, by bytes; the reader seeks, pauses, acknowledges and closes at
any time; partitions of a group are taken away at any time; and every offset has to be accounted for.

**Algorithm.** The queue holds records (and ends of epochs) in the order of their offsets. A *generation* counts what
makes everything fetched so far worthless: a seek, a partition taken away. The polling thread delivers with the
generation it fetched under, and what is older is thrown away; ``position`` is the next offset to be handed out, so
what is thrown away is fetched again. What lies between the position and the next record that comes is, in this order:
jumped (``seek``), lapped (the log no longer had it), or a hole (``absorbed``: ends of epochs, and what transactions
and compaction leave: offsets that hold no record).

**Groups.** ``outstanding`` holds what was handed out and not acknowledged. The committed offset is that of the oldest
of these, so a crash repeats records, and loses none.

**Locking.** Everything here is guarded by the condition of the consumer, which all of its lanes share; methods say who
calls them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from kafka import TopicPartition

from comux.account import Account
from comux.errors import ComuxError
from comux.records import Record

from .kafka_cluster import TopicState
from .kafka_wire import End, decode, wire_bytes

PLACE: Final = "uncommitted"


class Lane:
    """See the module.

    Args:
        state: What is known of the topic.
        partition: Kafka's name of it.
        dtype, shape: Of a typed topic.
        condition: The consumer's.
        account: The consumer's.
        position: Where reading begins.
        epoch: Newest epoch at the time of opening: where it ends, a lane that ``stops`` is at its end.
        grouped: Belongs to a member of a group: what it hands out is acknowledged.
        owned: Whether its partition is this process' already; else the group will tell.
    """

    def __init__(
        self,
        state: TopicState,
        partition: TopicPartition,
        dtype: np.dtype[Any] | None,
        shape: tuple[int, ...],
        condition: threading.Condition,
        account: Account,
        position: int,
        epoch: int,
        *,
        stops: bool,
        grouped: bool,
        owned: bool,
    ) -> None:
        self.state = state
        self.name = state.name
        self.partition = partition
        self.dtype = dtype
        self.shape = shape
        self.condition = condition
        self.account = account
        self.position = position
        self.epoch = epoch
        self.stops = stops
        self.grouped = grouped
        self.queue: deque[Record | End] = deque()
        self.nbytes = 0
        self.generation = 0
        self.sought = True  #: the position was asked for, and may lie beyond the end
        self.owned = owned  #: whether the partition is this process', now
        self.paused = False
        self.over = False  #: the end was reached and nothing came after it
        self.failure: ComuxError | None = None  #: for good
        self.trouble: ComuxError | None = None  #: while there is no connection
        self.jumped = 0
        self.fetched = position  #: offset after the newest record delivered
        self.keyframes: deque[int] = deque()
        self.outstanding: dict[int, None] = {}
        self.commit_wanted: int | None = None
        self.committed: int | None = position if grouped else None
        self.bytes_read = 0
        self._sizes: deque[int] = deque()
        self._lapped = 0
        self._delivered_epoch = 0

    def begins(self, newest: Record | End | None) -> None:
        """What the newest record was when the lane was opened: the epoch of what comes, and whether it is an end."""
        if newest is None:
            return
        if isinstance(newest, End):
            self.state.saw_end(newest)
        if self.position > newest.offset:
            self._delivered_epoch = newest.epoch + isinstance(newest, End)
            self.over = isinstance(newest, End)

    # -- the polling thread ----------------------------------------------------------------------------------------

    def deliver(self, generation: int, messages: list[Any], high_water: int | None) -> int:
        """Take in what was fetched; returns the bytes that wait now. Called without the lock."""
        items: list[Record | End] = []
        sizes: list[int] = []
        for message in messages:
            item = decode(message, self.name, self._delivered_epoch, self.dtype, self.shape)
            if isinstance(item, End):
                self._delivered_epoch = item.epoch + 1
                self.state.saw_end(item)
            else:
                self._delivered_epoch = item.epoch
            items.append(item)
            sizes.append(wire_bytes(message))
        if high_water is not None:
            self.state.saw(high_water)
        with self.condition:
            if generation != self.generation or not self.owned:
                return self.nbytes
            self.trouble = None
            if items:
                if self._lapped and isinstance(items[0], Record):
                    items[0].skipped, self._lapped = self._lapped, 0
                self.keyframes.extend(r.offset for r in items if isinstance(r, Record) and r.flags & 1)
                self.queue.extend(items)
                self._sizes.extend(sizes)
                self.nbytes += sum(sizes)
                self.fetched = items[-1].offset + 1
                self.over = False
                self.sought = False
                self.condition.notify_all()
            return self.nbytes

    def lapped(self, generation: int, count: int, target: int) -> None:
        """The log no longer reaches back to where this lane was: it goes on at ``target``."""
        with self.condition:
            if generation == self.generation:
                self._lapped += count
                self.fetched = target

    def fail(self, error: ComuxError) -> None:
        """Nothing more will come."""
        with self.condition:
            self.failure = error
            self.condition.notify_all()

    def set_trouble(self, error: ComuxError | None) -> None:
        """There is no connection to whoever has the partition, or there is again."""
        with self.condition:
            if (error is None) != (self.trouble is None):
                self.trouble = error
                self.condition.notify_all()

    def assigned(self, position: int | None) -> None:
        """A group's partition is ours from now on, beginning at ``position`` where that is known."""
        with self.condition:
            self.owned = True
            if position is not None and position > self.position:
                self.position = self.fetched = position
            self.condition.notify_all()

    def revoked(self) -> None:
        """A group's partition is another's from now on; what was not acknowledged comes again, there."""
        with self.condition:
            self.owned = False
            self._forget_fetched()
            self._give_back()
            self.commit_wanted = None
            self.condition.notify_all()

    # -- the reader, with the lock held ----------------------------------------------------------------------------

    def take(self) -> Record | None:
        """The next record, counted; ``None`` where there is none now."""
        while self.queue:
            item = self.queue[0]
            if isinstance(item, End):
                if self._meets(item):
                    return None
                continue
            self.queue.popleft()
            size = self._sizes.popleft()
            self.nbytes -= size
            self.bytes_read += size
            if item.flags & 1 and self.keyframes and self.keyframes[0] == item.offset:
                self.keyframes.popleft()
            self._pass_to(item)
            self.position = item.offset + 1
            return item
        return None

    def _pass_to(self, record: Record) -> None:
        """Account for the offsets between the position and ``record``, and for the record."""
        lapped = record.skipped
        holes = record.offset - self.position - lapped
        account = self.account
        if lapped:
            account.skip("lapped", lapped)
        if holes > 0:
            account.receive("handing", holes)
            account.absorb("handing", holes)
        if self.jumped:
            record.skipped += self.jumped
            self.jumped = 0
        if self.grouped:
            account.receive(PLACE)
            self.outstanding[record.offset] = None
        else:
            account.receive("handing")
            account.deliver("handing")

    def _meets(self, end: End) -> bool:
        """Come to an end in the log; whether it is this lane's last."""
        if self.stops and end.epoch >= self.epoch:
            self.over = True
            return True
        self.queue.popleft()
        self.nbytes -= self._sizes.popleft()
        holes = end.offset + 1 - self.position
        self.account.receive("handing", holes)
        self.account.absorb("handing", holes)
        self.position = end.offset + 1
        if not self.queue:
            self.over = True
        if self.grouped:
            self._want_commit()
        return False

    def seek(self, offset: int) -> None:
        """Go on at ``offset``; see ``Consumer.seek``."""
        ahead = offset - self.position
        self.account.skip("jumped", ahead)
        self.jumped = max(0, self.jumped + ahead)
        self.position = offset
        self._forget_fetched()
        self.sought = True
        self.over = False

    def _forget_fetched(self) -> None:
        self.generation += 1
        self.queue.clear()
        self._sizes.clear()
        self.keyframes.clear()
        self.nbytes = self._lapped = 0
        self.fetched = self.position

    def ack(self, offset: int) -> bool:
        """A record that was handed out is finished with; ``False`` where this lane does not hold it."""
        if offset not in self.outstanding:
            return False
        del self.outstanding[offset]
        self.account.deliver(PLACE)
        self._want_commit()
        return True

    def ack_all(self) -> None:
        """Everything that was handed out is finished with."""
        self.account.deliver(PLACE, len(self.outstanding))
        self.outstanding.clear()
        self._want_commit()

    def _want_commit(self) -> None:
        done = next(iter(self.outstanding), self.position)
        if self.committed is None or done > self.committed:
            self.committed = self.commit_wanted = done

    def want_commit_again(self, offsets: Mapping[TopicPartition, int]) -> None:
        """A commit failed. Called without the lock."""
        offset = offsets.get(self.partition)
        with self.condition:
            if offset is not None and self.owned and (self.commit_wanted is None or self.commit_wanted < offset):
                self.commit_wanted = offset

    def _give_back(self) -> None:
        if self.outstanding:
            first = next(iter(self.outstanding))
            self.account.drop(PLACE, "returned", len(self.outstanding))
            self.outstanding.clear()
            self.position = self.fetched = min(first, self.position)

    def close(self) -> None:
        """The consumer closes: what was not acknowledged is no longer this one's."""
        self._forget_fetched()
        self._give_back()

    # -- figures, with the lock held -------------------------------------------------------------------------------

    def ended(self) -> bool | None:
        """Whether the end was reached; ``None`` where something is on its way that will tell."""
        while self.queue and isinstance(self.queue[0], End):
            if self._meets(self.queue[0]):
                return True
        if self.queue:
            return False
        if self.over:
            return True
        end = self.state.ended_at()
        if end is not None and self.position > end and not self.stops:
            return True
        if self.state.high_water > self.position and self.owned and not self.paused and self.trouble is None:
            return None
        return False

    def lag(self) -> int:
        """Records up to the newest that is known; an end that is the newest does not count."""
        end = self.state.ended_at()
        high_water = self.state.high_water if end is None else end
        return max(0, high_water - self.position)
