"""A lane: one topic of one consumer, between the polling thread that fills it and the threads that read it.

**Problem.** The polling thread runs ahead of the reader, by bytes; the reader seeks, pauses, acknowledges and closes at
any time; partitions of a group are taken away at any time; and every offset has to be accounted for.

**Algorithm.** The queue holds records (and ends of epochs) in the order of their offsets. A *generation* counts what
makes everything fetched so far worthless: a seek, a partition taken away. The polling thread delivers with the
generation it fetched under, and what is older is thrown away; ``position`` is the next offset to be handed out, so
what is thrown away is fetched again. What lies between the position and the next record that comes is jumped
(``seek``), lost (``lapped``: the log no longer had it; ``corrupt``: it cannot be read; a ``Gap`` stands in the queue),
or a hole (``absorbed``: ends of epochs, and what transactions and compaction leave: offsets that hold no record).

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


class Gap:
    """Offsets without records for this lane, in the place of one: up to ``end`` there is nothing, and the last
    ``lost`` of it are dropped, by ``cause``."""

    __slots__ = ("cause", "end", "lost")

    def __init__(self, end: int, lost: int = 0, cause: str = "lapped") -> None:
        self.end = end
        self.lost = lost
        self.cause = cause


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
        topic_id: Kafka's, where it is known: a topic that was deleted and made anew has another.
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
        topic_id: str | None = None,
    ) -> None:
        self.state = state
        self.name = state.name
        self.partition = partition
        self.topic_id = topic_id
        self.dtype = dtype
        self.shape = shape
        self.condition = condition
        self.account = account
        self.position = position
        self.epoch = epoch
        self.stops = stops
        self.grouped = grouped
        self.queue: deque[Record | End | Gap] = deque()
        self.nbytes = 0
        self.generation = 0
        self.sought = True  #: the position was asked for, and may lie beyond the end
        self.owned = owned  #: whether the partition is this process', now
        self.paused = False
        self.over = False  #: the end was reached and nothing came after it
        self.failure: ComuxError | None = None  #: for good
        self.trouble: ComuxError | None = None  #: while there is no connection
        self.mark_asked_ns = 0  #: when the high-water mark was asked for last
        self.skipped = 0  #: records passed over since the last that was handed out
        self.fetched = position  #: offset after the newest record delivered
        self.keyframes: deque[int] = deque()
        self.outstanding: dict[int, None] = {}
        self.commit_wanted: int | None = None
        self.committed: int | None = position if grouped else None
        self.bytes_read = 0
        self._sizes: deque[int] = deque()
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
        """Take in what was fetched; returns the bytes that wait now. Called without the lock.

        Nothing is taken, and -1 returned, where the partition is not known to be ours, yet or any longer.
        """
        items: list[Record | End] = []
        epoch = self._delivered_epoch
        for message in messages:
            item = decode(message, self.name, epoch, self.dtype, self.shape)
            epoch = item.epoch
            if isinstance(item, End):
                epoch += 1
                self.state.saw_end(item)
            items.append(item)
        self._delivered_epoch = epoch
        sizes = [wire_bytes(message) for message in messages]
        if high_water is not None:
            self.state.saw(high_water)
        with self.condition:
            if not self.owned:
                return -1
            if generation != self.generation:
                return self.nbytes
            self.trouble = None
            if items:
                self.keyframes.extend(r.offset for r in items if isinstance(r, Record) and r.flags & 1)
                self.queue.extend(items)
                self._sizes.extend(sizes)
                self.nbytes += sum(sizes)
                self.fetched = items[-1].offset + 1
                self.over = False
                self.sought = False
                self.condition.notify_all()
            return self.nbytes

    def passed(self, generation: int, end: int, lost: int = 0, cause: str = "lapped") -> None:
        """There is nothing up to ``end``; the last ``lost`` offsets of it are dropped, by ``cause``."""
        with self.condition:
            if generation == self.generation and self.owned and end > self.fetched:
                self.queue.append(Gap(end, lost, cause))
                self._sizes.append(0)
                self.fetched = end
                if len(self.queue) == 1:  # nothing waits before it
                    self._meets(self.queue[0])
                self.condition.notify_all()

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

    def take(self, most: int) -> list[Record]:
        """The next records, counted; none where there are none now."""
        queue, sizes, keyframes = self.queue, self._sizes, self.keyframes
        out: list[Record] = []
        while queue and len(out) < most:
            item = queue[0]
            if not isinstance(item, Record):
                if self._meets(item):
                    break
                continue
            queue.popleft()
            size = sizes.popleft()
            self.nbytes -= size
            self.bytes_read += size
            offset = item.offset
            if item.flags & 1 and keyframes and keyframes[0] == offset:
                keyframes.popleft()
            if offset != self.position or self.skipped:
                self._pass_to(item)
            if self.grouped:
                self.outstanding[offset] = None
            self.position = offset + 1
            out.append(item)
        if out:
            place = PLACE if self.grouped else "handing"
            self.account.receive(place, len(out))
            if not self.grouped:
                self.account.deliver(place, len(out))
        return out

    def _pass_to(self, record: Record) -> None:
        """Account for the offsets between the position and ``record``."""
        self._absorb(record.offset - self.position)
        record.skipped, self.skipped = self.skipped, 0

    def _absorb(self, holes: int) -> None:
        if holes > 0:
            self.account.receive("handing", holes)
            self.account.absorb("handing", holes)

    def _meets(self, item: Record | End | Gap) -> bool:
        """Come to what is no record; whether it is the end that is this lane's last."""
        assert not isinstance(item, Record)
        if isinstance(item, End) and self.stops and item.epoch >= self.epoch:
            self.over = True
            return True
        self.queue.popleft()
        self.nbytes -= self._sizes.popleft()
        if isinstance(item, End):
            self._absorb(item.offset + 1 - self.position)
            self.position = item.offset + 1
            if not self.queue:
                self.over = True
        else:
            lost = min(item.lost, item.end - self.position)
            self._absorb(item.end - self.position - lost)
            self.account.skip(item.cause, lost)
            self.skipped += lost
            self.position = item.end
        if self.grouped:
            self._want_commit()
        return False

    def seek(self, offset: int) -> None:
        """Go on at ``offset``; see ``Consumer.seek``."""
        ahead = offset - self.position
        self.account.skip("jumped", ahead)
        self.skipped = max(0, self.skipped + ahead)
        self.position = offset
        self._forget_fetched()
        self.sought = True
        self.over = False

    def _forget_fetched(self) -> None:
        self.generation += 1
        self.queue.clear()
        self._sizes.clear()
        self.keyframes.clear()
        self.nbytes = 0
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
        while self.queue and not isinstance(item := self.queue[0], Record):
            if self._meets(item):
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
