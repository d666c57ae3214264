"""The source's end of a link: its consumer, and the books of what came in.

A record is *in hand* (held at ``bridge``) from ``poll`` to ``resolve``. What is in hand when the session ends goes back
to the source (held at ``source``) and comes again, lowest offset first; what does not come again was overwritten.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from comux.account import Account
from comux.errors import ComuxError, StaleLeaseError, UnknownTopicError
from comux.records import Record
from comux.transport import Broker, Consumer, SendFuture, Start

from .ends import Engine, Standby, Trouble, trouble_at

_log = logging.getLogger("comux.recording")

BATCH: Final = 256  #: records in hand at most
TICK: Final = 0.5  #: seconds between two looks whether an idle source has ended
PATIENCE: Final = 5.0  #: seconds without progress after which a session is given up
_COMMIT_AGAIN: Final = 0.1


class Intake:
    """Reads one topic, as a member of a group or (``group=None``) lossy. For the link's thread, ``wakeup`` for any.

    Attributes:
        lag: Records not yet read, when last seen.
        shares: Whether members share record by record: then each is acknowledged, and the engine tells repeats.
        repeats_most: How many of the first records of this session may have been sent before without anybody saying so.
        unsure: What became, or will become, of records that were sent; kept by ``Outlet``, forgotten with the topic.
    """

    def __init__(
        self,
        source: Engine,
        topic: str,
        group: str | None,
        start: Start,
        account: Account,
        stop: threading.Event,
        owns: Callable[[], bool] | None,
    ) -> None:
        self.lag = 0
        self.unsure: dict[int, SendFuture] = {}
        self.shares = False
        self.repeats_most = 0
        self._source = source
        self._topic = topic
        self._group = group
        self._start = start
        self._account = account
        self._stop = stop
        self._owns = owns
        self._consumer: Consumer | None = None
        self._next: int | None = None  # after the newest record received; where it began
        self._goal: int | None = None  # where the source ended when it was first opened
        self._in_hand: set[int] = set()
        self._given_back: set[int] = set()
        self._lost: int | None = None
        self._corrupt = 0  # of what the consumer counted, in the books

    # -- a session -------------------------------------------------------------------------------------------------

    def open(self) -> int | None:
        """Join the group, or read on.

        Returns:
            The lowest offset that may have been sent before; ``None`` where there is none.

        Raises:
            Standby: another bridge is in the group. Trouble.
        """
        try:
            with trouble_at("source"):
                return self._open(self._source.broker())
        except Trouble as exc:
            self._look_after(exc)
            raise

    def _open(self, broker: Broker) -> int | None:
        group = self._group
        if self._owns is not None and not self._owns():  # a consumer of our own would join the group beside us
            raise Standby(f"group {group!r} has given {self._topic!r} to nobody yet, or to another bridge")
        self.shares = broker.capabilities.record_sharing
        known = group is not None and any(found.name == group for found in broker.groups(self._topic))
        start = self._start
        if group is None and self._next is not None:
            start = min(self._given_back | {self._next})
        self._consumer = consumer = broker.consumer(
            self._topic,
            group=group,
            start=start,
            on_end="wait",
            durable=group is not None,
            max_deliveries=None if group is None else 0,  # what is given back is not refused: its destination is away
            name="comux-bridge",
        )
        if group is not None and self.shares:
            self._be_alone(broker, group)
        if self._next is None:
            self._next = consumer.position() if group is None else consumer.committed()
        self.repeats_most = BATCH if known and not self.shares else 0
        if self._goal is None:
            self._goal = consumer.end_offset()
        if self._lost is None or group is None:  # what a group lost between two sessions counts
            self._lost = self._lost_at_source()
        return consumer.committed() if known else min([*self._given_back, *self.unsure], default=None)

    def _be_alone(self, broker: Broker, group: str) -> None:
        members = next(found.members for found in broker.groups(self._topic) if found.name == group)
        if members > 1:
            raise Standby(f"group {group!r} has another member: another bridge copies {self._topic!r}")

    def _look_after(self, trouble: Trouble) -> None:
        """Where the topic was deleted, what was given back does not come again, and a new one begins anew."""
        if not isinstance(trouble.__cause__, UnknownTopicError):
            return
        self.close()
        self._account.drop("source", "removed", len(self._given_back))
        self._given_back.clear()
        self.unsure.clear()
        self._next = self._goal = self._lost = None
        self._start = "beginning"
        self.lag = 0

    def close(self) -> None:
        """Let go of the source; what is in hand goes back to it."""
        consumer, self._consumer = self._consumer, None
        self._corrupt = 0
        if consumer is not None:
            try:
                consumer.close()
            except ComuxError as exc:
                _log.warning("the consumer of topic %r could not be closed: %s", self._topic, exc)
        self._account.move("bridge", "source", len(self._in_hand))
        self._given_back |= self._in_hand
        self._in_hand.clear()

    def wakeup(self) -> None:
        """Make a waiting ``poll`` return."""
        consumer = self._consumer
        if consumer is not None:
            with contextlib.suppress(ComuxError):
                consumer.wakeup()

    # -- reading ---------------------------------------------------------------------------------------------------

    def _open_consumer(self) -> Consumer:
        assert self._consumer is not None, "the link reads without a consumer"
        return self._consumer

    def poll(self) -> list[Record]:
        """The next records, now in hand; empty where none came for ``TICK`` seconds. Raises ``Trouble``."""
        try:
            with trouble_at("source"):
                consumer = self._open_consumer()
                records = consumer.poll(TICK, BATCH)
                self.lag = consumer.lag()
                self._admit(records)
                return records
        except Trouble as exc:
            self._look_after(exc)
            raise

    def ended(self) -> bool:
        """Whether the source is at an end, and everything before it is done with. Raises ``Trouble``."""
        with trouble_at("source"):
            return not self._in_hand and self._open_consumer().ended()

    def past_goal(self, idle: bool) -> bool:
        """Whether everything is done with that was there when the source was first opened.

        Args:
            idle: The last ``poll`` brought nothing. Where members share records there is nothing, then; a member that
                shares topics may not have been given this one yet.
        """
        if self._in_hand or self._goal is None:
            return False
        if idle:
            with trouble_at("source"):
                return self.shares or self._open_consumer().position() >= self._goal
        return self._next is not None and self._next >= self._goal

    def _admit(self, records: Sequence[Record]) -> None:
        """Enter records in the books, and what the source lost before them."""
        for record in records:
            offset = record.offset
            gone = {each for each in self._given_back if each < offset} if self._given_back else set()
            self._account.drop("source", "lapped", len(gone))
            self._given_back -= gone
            if self._next is not None and offset > self._next:
                self._count_missing(record, offset - self._next)
            if offset in self._given_back:
                self._given_back.discard(offset)
                self._account.move("source", "bridge")
            else:
                self._account.receive("bridge")
            self._in_hand.add(offset)
            self._next = offset + 1 if self._next is None else max(self._next, offset + 1)

    def _count_missing(self, record: Record, gap: int) -> None:
        """Offsets passed over: without holes each is lapped or an aborted claim; with holes the engine counts."""
        if not self._source.broker().capabilities.dense_offsets:
            corrupt = self._open_consumer().account().dropped.get("corrupt", 0) if record.skipped else 0
            found = min(record.skipped, corrupt - self._corrupt)
            self._corrupt += found
            self._account.skip("corrupt", found)
            self._account.skip("lapped", record.skipped - found)
            return
        lost = self._lost_at_source()
        lapped = min(gap, lost - (self._lost or 0))
        self._lost = lost
        self._account.skip("lapped", lapped)
        self._account.skip("aborted", gap - lapped)

    def _lost_at_source(self) -> int:
        """Records the source overwrote before they were read, counted since the group (or this consumer) is there."""
        if not self._source.broker().capabilities.dense_offsets:
            return 0
        if self._group is None:
            return self._open_consumer().account().dropped.get("lapped", 0)
        groups = self._source.broker().groups(self._topic)
        return next((found.lost for found in groups if found.name == self._group), 0)

    # -- done with -------------------------------------------------------------------------------------------------

    def resolve(self, record: Record, dropped: str | None = None) -> None:
        """Book a record as delivered, or dropped for a cause, and let the source forget it. Raises ``Trouble``."""
        self._in_hand.discard(record.offset)
        self.unsure.pop(record.offset, None)
        if dropped is None:
            self._account.deliver("bridge")
        else:
            self._account.drop("bridge", dropped)
        if self._group is not None and self.shares:
            try:
                self._open_consumer().ack(record)
            except StaleLeaseError:
                pass  # the group was made to give it up, but its copy is there
            except ComuxError as exc:
                raise Trouble("source", exc) from exc

    def commit(self) -> None:
        """Let the source forget the whole batch, once all of it is done with. Tries for a while: members come and go.

        Raises:
            Standby: the topic went to another bridge meanwhile. Trouble.
        """
        if self._group is None or self.shares or self._in_hand:
            return
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self._open_consumer().commit()
                break
            except StaleLeaseError as exc:
                raise Standby(str(exc)) from exc
            except ComuxError as exc:
                if time.monotonic() > deadline or self._stop.wait(_COMMIT_AGAIN):
                    raise Trouble("source", exc) from exc

    def hand_over(self) -> None:
        """What was given back goes to another bridge. After ``close``."""
        self._account.drop("source", "returned", len(self._given_back))
        self._given_back.clear()
