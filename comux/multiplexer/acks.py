"""Which packets of a consumer group are finished with: those that left the books, and no others.

**Problem.** A member of a group that dies must not take undelivered packets with it. So a packet is acknowledged when
it was delivered, absorbed or dropped, and not while it waits in the decoder or among the pictures. It leaves the books
in any thread, often under the manager's lock, which never calls into an engine.

**Algorithm.** ``left`` only notes (one dictionary entry, one queue entry, no lock). ``flush`` acknowledges what is
noted, outside of every lock: in the caller's thread before ``get_batch`` returns, in the source's after each packet.

**Deferred** (durable groups). Delivery alone is not enough: the loop may die over the picture. So what left the books
during one batch is *fresh* until the next batch is asked for (``superseded``), and is then acknowledged once every
``send`` of it was. A send that failed holds its packet, and with it the group's committed offset, until the packet is
sent again with success.

**Ends.** What is not acknowledged when the consumer closes (a stop, a failure, a kill) goes back to the group and comes
again, to this source's successor or to another member. A crash between delivery and acknowledgement repeats a packet:
at least once.

Packets are known by the object that the consumer handed out: a packet that comes again is another one, and so is one of
a topic that was made anew under the same name.
"""

from __future__ import annotations

import logging
import threading
from collections import deque

from comux.errors import ComuxError
from comux.options import CamId
from comux.records import Record
from comux.telemetry import EventLog
from comux.transport import Consumer, SendFuture, TopicInfo

_log = logging.getLogger("comux.multiplexer")


class Acks:
    """The unfinished packets of one consumer of a group.

    ``took``, ``stored`` and ``give_up`` are the source's thread's; ``left`` and ``flush`` may be called from any.

    Args:
        consumer: Member of a group; its handles are thread-safe.
        deferred: See the module.
    """

    def __init__(self, consumer: Consumer, *, deferred: bool = False) -> None:
        self._consumer = consumer
        self._deferred = deferred
        self._lock = threading.Lock()  # of the next three; never held while an engine is called
        self._fresh: list[Record] = []
        self._behind: list[Record] = []
        self._sends: dict[int, int] = {}  # offset -> sends without success
        self._decoding: dict[int, Record] = {}
        self._waiting: dict[int, Record] = {}
        self._done: deque[Record] = deque()

    def took(self, record: Record) -> None:
        """The decoder is about to get it."""
        self._decoding[id(record)] = record

    def stored(self, record: Record) -> None:
        """Its picture is about to wait for a caller."""
        known = self._decoding.pop(id(record), None)
        if known is not None:
            self._waiting[id(record)] = record

    def left(self, record: Record) -> None:
        """It was delivered, absorbed or dropped. Short, and takes no lock."""
        for place in (self._waiting, self._decoding):
            if place.pop(id(record), None) is not None:
                (self._fresh if self._deferred else self._done).append(record)

    def give_up(self) -> int:
        """Everything in the decoder was dropped; returns how many."""
        count = len(self._decoding)
        (self._fresh if self._deferred else self._done).extend(self._decoding.values())
        self._decoding.clear()
        return count

    def make_room(self, topic: TopicInfo, events: EventLog, cam_id: CamId) -> None:
        """Nothing comes: where the decoder holds all that the topic can, its writer waits for us and we for it.

        Nothing but an early acknowledgement helps then; it is told.
        """
        records = topic.spec.records
        if len(self._decoding) < records:
            return
        count = self.give_up()
        self.flush()
        events.emit(
            "source.small_topic",
            f"the decoder holds all {records} records of topic {topic.spec.name!r}; {count} were acknowledged before "
            "their pictures were delivered. Create the topic with more records",
            source=str(cam_id),
            level=logging.WARNING,
        )

    def superseded(self) -> None:
        """The loop asks for the next batch: what left before is behind it."""
        if self._deferred:
            with self._lock:
                fresh, self._fresh = self._fresh, []
                self._behind += fresh

    def sent(self, record: Record, future: SendFuture) -> None:
        """A packet is being re-emitted: it is not finished with before that is acknowledged."""
        if not self._deferred:
            return
        with self._lock:
            self._sends[record.offset] = self._sends.get(record.offset, 0) + 1
        future.add_done_callback(lambda done: self._settled(record.offset, done.exception(0) is None))

    def _settled(self, offset: int, success: bool) -> None:
        if success:  # also for those of this packet that failed before
            with self._lock:
                self._sends.pop(offset, None)

    def _ready(self) -> None:
        """Move what is behind the loop, and needs no more sends, to what is done."""
        with self._lock:
            waiting = [record for record in self._behind if self._sends.get(record.offset)]
            self._done.extend(record for record in self._behind if not self._sends.get(record.offset))
            self._behind = waiting

    @property
    def unfinished(self) -> int:
        """How many packets wait in the decoder or among the pictures."""
        with self._lock:
            return len(self._decoding) + len(self._waiting) + len(self._fresh) + len(self._behind)

    def flush(self) -> None:
        """Acknowledge what is noted. What cannot be (the consumer was closed meanwhile) comes again."""
        if self._behind:
            self._ready()
        while self._done:
            try:
                record = self._done.popleft()
            except IndexError:  # another thread was faster
                return
            try:
                self._consumer.ack(record)
            except ComuxError as exc:
                _log.debug("topic %s offset %d was not acknowledged: %s", record.topic, record.offset, exc)
