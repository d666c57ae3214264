"""What an engine is: the handles, their promises, and the capabilities an engine may lack.

Promises (each is one test of ``comux.testing.TransportContract``, which every engine runs):

T1.  Offsets strictly rise within a partition, 64 bits, never reused in a topic's life (epochs included); without holes
     where ``capabilities.dense_offsets``. The order of one producer is kept.
T2.  ``send`` is a snapshot; a claim that raises or whose process dies publishes nothing; later records are not held up
     by a dead claim.
T3.  Key, headers (order, duplicates; values ``bytes`` or ``None``), value and timestamp come back as sent; ``None`` and
     empty differ. Values may be any buffer; typed topics carry dtype and shape and hand out arrays.
T4.  Every group sees every record from its start offset, at least once; ``start`` applies only where the group has no
     committed position. ``commit()`` acknowledges everything this handle was handed, ``ack(record)`` one record.
T5.  A lossy consumer sees a gap-free run, or is told how many it skipped (``Record.skipped``), and never a torn record.
T6.  Every blocking call has a deadline, can be interrupted by Ctrl-C, by ``wakeup()`` and by ``close()`` from another
     thread, and costs no CPU while it waits.
T7.  The end of a stream is explicit (``end()``), closes an epoch and is seen by every consumer after the last record:
     it reads what is retained up to the end of the epoch it was opened in, then stops.
     A new producer opens the next epoch; consumers opened with ``on_end="wait"`` go on. A crash is no end.
T8.  ``pause`` affects the handle it is called on. ``seek``/``position`` of a group shared by several members raise
     ``UnsupportedError``.
T9.  Errors derive from ``ComuxError``, say whether a retry helps, carry the numbers; native exceptions stay inside.
T10. The account of every handle balances.

Time-outs are seconds: ``None`` waits, ``0`` never waits. Handles are thread-safe unless said otherwise, are context
managers, and raise ``ClosedError`` after ``close()``. Local groups gate the writer, see ``TopicSpec.policy``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal

import numpy.typing as npt

from comux.account import AccountSnapshot
from comux.errors import ComuxError, UnsupportedError
from comux.records import Headers, Record

from .asynchronous import AsyncRecords
from .facts import Capabilities as Capabilities
from .facts import Claimed as Claimed
from .facts import GroupInfo as GroupInfo
from .facts import Holder as Holder
from .facts import Policy as Policy
from .facts import TopicInfo as TopicInfo
from .facts import TopicSpec as TopicSpec
from .facts import dtype_of as dtype_of

Start = int | float | Literal["end", "beginning", "keyframe"] | Callable[[Record], bool]
"""Where a consumer without a committed position begins.

``"end"``, ``"beginning"``; an ``int`` offset; a ``float`` Unix time in seconds (the first record at or after it);
``"keyframe"``: the newest record flagged ``KEYFRAME``, else the end; a predicate: the first retained record for which
it is true, else the end.
"""
OnEnd = Literal["stop", "wait"]
OnAssigned = Callable[[frozenset[str]], None]
"""Called with the topics that are this member's from now on."""
OnRevoked = Callable[[frozenset[str], bool], None]
"""Called with the topics that are no longer this member's, and whether others have them already; when it returns,
nothing of them is worked on any more."""


class Handle(ABC):
    """What every handle shares."""

    @abstractmethod
    def close(self) -> None:
        """Release everything; callable from any thread, twice, and while another thread waits in this handle."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class SendFuture(ABC):
    """The fate of one ``send``."""

    @abstractmethod
    def done(self) -> bool: ...

    @abstractmethod
    def result(self, timeout: float | None = None) -> int | None:
        """Offset of the record; ``None`` where the topic's ``drop_newest`` dropped it.

        Raises:
            WaitTimeoutError, DeliveryError (with the cause).
        """

    @abstractmethod
    def exception(self, timeout: float | None = None) -> BaseException | None: ...

    @abstractmethod
    def add_done_callback(self, fn: Callable[[SendFuture], None]) -> None:
        """Call ``fn`` once the fate is known; at once if it is."""


class Claim(ABC):
    """A place in the topic that is written in place: leaving the ``with`` normally publishes, an exception aborts."""

    buffer: memoryview
    offset: int | None

    @property
    @abstractmethod
    def array(self) -> npt.NDArray[Any]:
        """Writable array: of the topic's dtype and shape, or ``uint8 (nbytes,)``. Not to be touched after commit."""

    @abstractmethod
    def commit(
        self,
        used: int | None = None,
        *,
        key: bytes | None = None,
        headers: Headers = (),
        timestamp_ns: int | None = None,
        flags: int = 0,
    ) -> int: ...

    @abstractmethod
    def abort(self) -> None: ...

    @abstractmethod
    def __enter__(self) -> Claim: ...

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None: ...


class Producer(Handle):
    """Writes records to one topic."""

    topic: str

    @abstractmethod
    def send(
        self,
        value: Any,
        *,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes | None]] = (),
        timestamp_ns: int | None = None,
        flags: int = 0,
        timeout: float | None = None,
    ) -> SendFuture:
        """Publish a snapshot of ``value`` (any C-contiguous buffer, an array on typed topics, or ``None``).

        Waits at most ``timeout`` seconds for room.

        Raises:
            WaitTimeoutError: no room in time. RecordTooLargeError: names the limit. ClosedError. UnknownTopicError: the
                topic was deleted. EndOfStream: the epoch was ended; a new producer opens the next one.
        """

    @abstractmethod
    def send_many(self, values: Any, *, timestamp_ns: int | None = None, timeout: float | None = None) -> int:
        """Publish a run: an array ``(k, *shape)`` on typed topics, else a sequence of buffers.

        At most as many as the topic holds.

        Returns:
            The first offset. Records that ``drop_newest`` dropped are counted; where it dropped all, the
            high-water mark.
        """

    @abstractmethod
    def claim(self, nbytes: int | None = None, *, timeout: float | None = None) -> Claim | None:
        """Reserve room (one typed record, or ``nbytes``) to write in place; ``None``: ``drop_newest`` dropped it."""

    @abstractmethod
    def flush(self, timeout: float | None = None) -> None:
        """Wait until every earlier ``send`` has a fate; raises ``DeliveryError`` for those that failed."""

    @abstractmethod
    def end(self) -> None:
        """End the stream: closes the epoch, consumers see the end after the last record."""

    @abstractmethod
    def account(self) -> AccountSnapshot:
        """received = records offered; delivered = published; dropped: ``drop_newest``, ``aborted``, ``failed``."""


class Consumer(Handle):
    """Reads one or several topics; lossy without a group, gating member of a group with one.

    Methods that concern one topic take ``topic``, which may be left out where the consumer reads only one.
    """

    topics: tuple[str, ...]
    group: str | None
    _records: AsyncRecords | None = None
    looks_inside: bool = False  #: ``newest_keyframe`` finds keyframes that are not flagged

    @abstractmethod
    def poll(self, timeout: float | None = None, max_records: int = 1) -> list[Record]:
        """Return up to ``max_records`` records, oldest first per topic; waits for the first.

        Returns:
            A list, empty when ``timeout`` passed, on ``wakeup()``, or while everything is paused.

        Raises:
            EndOfStream: every topic ended (``on_end="stop"``). ClosedError. UnknownTopicError: the topic was deleted.
        """

    @abstractmethod
    def wakeup(self) -> None:
        """Make a ``poll`` that waits now, or the next one, return an empty list at once. From any thread."""

    @abstractmethod
    def seek(self, offset: int, topic: str | None = None) -> None:
        """Continue at ``offset``, forwards or backwards; what is jumped over appears in the next record's ``skipped``.

        An offset beyond the end waits there; one before the log start counts what is gone as lapped. Groups whose
        members share records (``record_sharing``) have one position for all: ``UnsupportedError``.
        """

    @abstractmethod
    def seek_to_beginning(self, topic: str | None = None) -> None: ...

    @abstractmethod
    def seek_to_end(self, topic: str | None = None) -> None: ...

    @abstractmethod
    def position(self, topic: str | None = None) -> int:
        """Offset of the next record to be read."""

    @abstractmethod
    def beginning_offset(self, topic: str | None = None) -> int:
        """Oldest readable offset (log start)."""

    @abstractmethod
    def end_offset(self, topic: str | None = None) -> int:
        """High-water mark. Cheap: no round trip."""

    @abstractmethod
    def offset_for_time(self, timestamp: float, topic: str | None = None) -> int | None:
        """First retained offset whose timestamp is at or after ``timestamp`` (Unix seconds)."""

    @abstractmethod
    def newest_keyframe(self, topic: str | None = None, starts: Callable[[Record], bool] | None = None) -> int | None:
        """Newest retained offset at or after the position flagged ``KEYFRAME``; ``None``: none is known.

        Args:
            topic: Which.
            starts: Tells a keyframe that is not flagged. Only consumers that have to fetch what they look at
                (``looks_inside``) use it; of others what is unread can be polled and looked at.
        """

    @abstractmethod
    def lag(self, topic: str | None = None) -> int:
        """High-water mark - position, in records."""

    @abstractmethod
    def lag_seconds(self, topic: str | None = None) -> float:
        """Age of the next unread record by this host's clock; 0.0 where there is none.

        Negative where the clock of whoever stamped it is ahead.
        """

    @abstractmethod
    def commit(self) -> None:
        """Groups: acknowledge everything this handle was handed."""

    @abstractmethod
    def ack(self, record: Record) -> None: ...

    @abstractmethod
    def nack(self, record: Record) -> None:
        """Give one record back for redelivery (capability ``record_sharing``)."""

    @abstractmethod
    def committed(self, topic: str | None = None) -> int | None:
        """Where the group would resume; ``None`` without a group."""

    @abstractmethod
    def pause(self, topic: str | None = None) -> None:
        """Stop handing out records of ``topic`` (``None``: all) on this handle. A paused poll waits without CPU."""

    @abstractmethod
    def resume(self, topic: str | None = None) -> None: ...

    @abstractmethod
    def ended(self, topic: str | None = None) -> bool:
        """Whether the epoch being read has ended and everything of it was read.

        Groups that share records: and nothing can come back to this member. Other members' unfinished records can,
        unless it holds some itself; then it is not kept waiting, or such members would wait for each other.
        """

    @abstractmethod
    def metrics(self) -> Mapping[str, float]:
        """kafka-python's names: ``records-lag-max``, ``records-consumed-total``, ``bytes-consumed-total``."""

    @abstractmethod
    def account(self) -> AccountSnapshot:
        """received = offsets passed since the start; delivered = handed out (groups: acknowledged, the rest ``held``);
        dropped: ``lapped``, ``jumped``, ``aborted``; groups: ``returned``, ``dead_letter``,
        ``claimed``."""

    @abstractmethod
    def __iter__(self) -> Iterator[Record]:
        """Records until the end; waits."""

    def __aiter__(self) -> AsyncIterator[Record]:
        """Records until the end, in an event loop, one task at a time; see ``asynchronous``.

        A task that is cancelled while it waits loses nothing: what came in that moment is handed out when the consumer
        is iterated asynchronously again.
        """
        if self._records is None:
            self._records = AsyncRecords(self)
        return self._records


class Observer(Handle):
    """Looks at the newest record without reading; slows nobody."""

    @abstractmethod
    def latest(self) -> Record | None:
        """The newest record, a validated copy; ``None`` where there is none yet. Never waits."""


class Membership(Handle):
    """This process' part of a group that shares topics (capability ``topic_sharing``): each topic has one member.

    The callbacks are called in order, on a thread of the membership's own, and may open and close consumers. Consumers
    of the same broker with ``group=`` of this group read topics that are assigned without joining it again, and commit
    through it. ``close`` revokes everything first, then leaves the group, so that others take over at once.
    """

    group: str

    @abstractmethod
    def assigned(self) -> frozenset[str]:
        """The topics that are this member's now."""

    @abstractmethod
    def failure(self) -> ComuxError | None:
        """What went wrong in the newest exchange with the group; ``None`` where all is well."""


class Broker(Handle):
    """One engine at one address; the factory of every handle. Closing it closes them."""

    address: str
    capabilities: Capabilities
    default_topic: str | None = None  #: the topic the address named, if it named one

    @abstractmethod
    def create_topic(self, spec: TopicSpec, *, exist_ok: bool = False) -> TopicInfo:
        """Make a topic.

        Raises:
            TopicExistsError (unless ``exist_ok``, and then where dtype or shape differ), NoSpaceError, ConfigError.
        """

    @abstractmethod
    def topics(self) -> list[str]: ...

    @abstractmethod
    def topic(self, name: str) -> TopicInfo:
        """Facts of a topic; raises ``UnknownTopicError``."""

    @abstractmethod
    def delete_topic(self, name: str, *, force: bool = False) -> None:
        """Remove a topic; refused with ``TopicBusyError`` while somebody alive uses it, unless ``force``."""

    @abstractmethod
    def producer(self, topic: str, *, name: str = "") -> Producer: ...

    @abstractmethod
    def consumer(
        self,
        topics: str | Sequence[str],
        *,
        group: str | None = None,
        start: Start = "end",
        on_end: OnEnd = "stop",
        views: bool = False,
        durable: bool = False,
        max_deliveries: int | None = None,
        name: str = "",
    ) -> Consumer:
        """Open a consumer.

        Args:
            topics: One name or several.
            group: Its group; ``None``: lossy.
            start: Where it begins without a committed position, see ``Start``.
            on_end: ``"stop"``: ``poll`` raises ``EndOfStream`` at the end of the epoch; ``"wait"`` for the next.
            views: Zero-copy values (capability ``views``).
            durable: The group keeps holding the writer back with nobody in it.
            max_deliveries: Of the group, from now on: how often a record is delivered before it goes to its dead-letter
                topic (capability ``dead_letters``); 0: for ever; ``None``: what it has, or the topic's where it is new.
                Whoever comes to such a record copies it within ``poll``, which may raise that there is no room.
            name: Shown to others.
        """

    def membership(
        self, group: str, topics: str | Sequence[str], *, on_assigned: OnAssigned, on_revoked: OnRevoked
    ) -> Membership:
        """Join a group that shares topics.

        Args:
            group: Its name.
            topics: Which; a text is a pattern (``raw_*``), and new topics that match come by themselves.
            on_assigned, on_revoked: See ``OnAssigned``, ``OnRevoked``.

        Raises:
            UnsupportedError: the engine lacks ``topic_sharing``. ComuxError: as ``consumer``.
        """
        raise UnsupportedError(
            f"topic_sharing: {self.address!r} does not share topics out among processes; use a Kafka cluster, or "
            "give each "
            "process its own list of cameras"
        )

    @abstractmethod
    def observer(self, topic: str) -> Observer: ...

    @abstractmethod
    def record_at(self, topic: str, offset: int) -> Record | None:
        """A validated copy of one retained record; ``None`` where it is not readable."""

    @abstractmethod
    def groups(self, topic: str) -> list[GroupInfo]: ...

    @abstractmethod
    def delete_group(self, topic: str, group: str) -> None: ...

    def pause(self, topic: str, group: str | None = None) -> None:
        """Stop a topic, or one group of it, for everybody until ``resume``; it stays so whoever dies.

        A paused topic takes no records: with ``wait`` producers wait, with both drop policies records are dropped and
        counted (``drop_newest``). What is there can be read. A paused group is handed nothing: ``poll`` waits.
        Acknowledging goes on, and it holds the writer back as before.

        Args:
            topic: Which.
            group: ``None``: the topic itself.

        Raises:
            UnsupportedError: the engine lacks ``pausing``. ConfigError: there is no such group.
        """
        raise UnsupportedError(
            f"pausing: {self.address!r} cannot stop a topic for everybody; pause the consumers (Consumer.pause) or stop"
            " what publishes"
        )

    def resume(self, topic: str, group: str | None = None) -> None:
        """Undo ``pause``: whoever waits goes on at once. Nothing happens where it is not paused."""
        raise UnsupportedError(f"pausing: {self.address!r} cannot stop a topic for everybody, there is none to resume")

    def claim_stale(self, topic: str, group: str, min_idle: float) -> list[Claimed]:
        """Take from living members what they have held for ``min_idle`` seconds; others get it, ``redelivered``.

        For members that hang: nothing else takes a record from a living one. What the slow member then acknowledges is
        refused with ``StaleLeaseError`` (by ``commit`` too, after everything else was acknowledged).

        Args:
            topic, group: Which.
            min_idle: Seconds since the record was handed out; longer than any honest work takes.

        Raises:
            UnsupportedError: the engine lacks ``record_sharing``. ConfigError: there is no such group.
        """
        raise UnsupportedError(
            f"record_sharing: {self.address!r} shares no topic record by record, its members hold none; Kafka itself"
            " takes the topics of a member that does not poll (max_poll_interval_ms)"
        )


def for_engine(broker: Broker, spec: TopicSpec) -> TopicSpec:
    """``spec``, made for an engine whose groups hold the writer back, as ``broker`` takes it.

    Where groups do not gate there is no full topic either: the policy means nothing, and ``data_bytes``, which bounds a
    memory, would only make the engine forget early.
    """
    return spec if broker.capabilities.gating else replace(spec, policy="wait", data_bytes=None)
