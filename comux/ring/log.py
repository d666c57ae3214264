"""A topic as a process has it open: create, attach, look things up, open handles."""

from __future__ import annotations

import atexit
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from comux.dead_letters import MAX_DELIVERIES_LIMIT
from comux.errors import (
    ConfigError,
    NotRetainedError,
    TopicBusyError,
    TopicCorruptError,
    TopicError,
    TopicExistsError,
    UnknownTopicError,
)
from comux.records import KEYFRAME, Record

from .directory import check_directory, check_name, default_directory, make_directory, path_of
from .handles import Member, Observer, OnEnd, Producer, Reader, Start, array_factory, claim_all, record_factory
from .native import core
from .space import check_limit
from .spec import ClaimedRecord, GroupInfo, OpenClaim, PortInfo, RingSpec, RingStats, idle_ms, spec_from

if TYPE_CHECKING:
    import numpy.typing as npt

OnStale = Literal["resume", "reset"]
_open_rings: weakref.WeakSet[Ring] = weakref.WeakSet()
_TRIES: Final = 100


def create(
    spec: RingSpec, directory: str | Path | None = None, exist_ok: bool = False, on_stale: OnStale = "resume"
) -> Ring:
    """Create a topic and attach to it. Its name appears complete or not at all.

    Args:
        directory: Default ``default_directory()``; created with mode 0700 where missing.
        exist_ok: Attach instead where it exists with the same configuration.
        on_stale: How it is attached to then, see ``attach``.

    Raises:
        TopicExistsError: it exists (with another configuration, where ``exist_ok``).
        NoSpaceError: shared memory, or the memory limit of this container, is too small; the message has the numbers
            and the remedy. Nothing was created.
        ConfigError: the directory is not safe to use.
        TopicBusyError: somebody who is stopped is in the middle of removing it; or see ``attach``.
    """
    base = Path(directory) if directory is not None else default_directory()
    make_directory(base)
    path = path_of(spec.name, base)
    if not path.exists():
        check_limit(spec, base)
    for _ in range(_TRIES):
        try:
            return Ring(core.create(path=str(path), **spec.to_core()))
        except TopicExistsError:
            if not exist_ok:
                raise
        except TopicError:
            if base.exists():
                raise
            make_directory(base)  # it was empty, and somebody cleared it up
            continue
        try:
            return _of_this_spec(attach(spec.name, base, on_stale), spec)
        except UnknownTopicError:  # the last one to use a session topic left in between and took it along
            continue
    raise TopicBusyError(f"topic {spec.name!r} in {base}: others created and removed it {_TRIES} times; retry")


def _of_this_spec(ring: Ring, spec: RingSpec) -> Ring:
    differing = [f for f in spec.__dataclass_fields__ if f != "mode" and getattr(ring.spec, f) != getattr(spec, f)]
    if differing:
        was = ", ".join(f"{f}={getattr(ring.spec, f)!r} (asked: {getattr(spec, f)!r})" for f in differing)
        ring.close()
        raise TopicExistsError(
            f"topic {spec.name!r} exists in {ring.path.parent} with {was}; use its settings, remove it, or choose "
            f"another name"
        )
    return ring


def attach(name: str, directory: str | Path | None = None, on_stale: OnStale = "resume") -> Ring:
    """Attach to an existing topic.

    Args:
        name: Which.
        directory: Default ``default_directory()``.
        on_stale: What becomes of a topic that nobody alive is attached to. ``"resume"``: it goes on, what the dead held
            is deliverable again. ``"reset"``: records, groups and counters are forgotten, offsets begin where the topic
            once began, in the next epoch. One that somebody uses is never reset.

    Raises:
        UnknownTopicError: no topic of this name.
        LayoutMismatchError: another layout version, byte order, boot, or owner.
        TopicCorruptError: its metadata contradicts itself.
        TopicBusyError: ``max_procs`` processes are attached already.
    """
    base = Path(directory) if directory is not None else default_directory()
    path = path_of(name, base)
    check_directory(base)
    if on_stale not in ("resume", "reset"):
        raise ConfigError(f"on_stale={on_stale!r}: 'resume' or 'reset'")
    return Ring(core.attach(str(path), on_stale == "reset"))


def attach_path(path: str) -> Ring:
    """``attach`` by the file's path, as a pickled handle does."""
    return Ring(core.attach(path))


def unlink(name: str, directory: str | Path | None = None, force: bool = False) -> None:
    """Remove a topic.

    Args:
        force: Also while somebody is attached: they go on with the memory they have, newcomers find nothing.

    Raises:
        UnknownTopicError: no topic of this name.
        TopicBusyError: somebody alive is attached.
    """
    base = Path(directory) if directory is not None else default_directory()
    path = path_of(name, base)
    check_directory(base)
    core.unlink(str(path), force)


class Ring:
    """A topic as this process has it open; context manager, thread-safe.

    ``create`` and ``attach`` of the same file share one attachment per process. Closing a ring closes the handles
    opened through it; views taken before stay readable until the last of them is gone.

    Attributes:
        spec: What it is made of.
        name, path: Of the topic and of its file.
    """

    def __init__(self, attachment: core.Attachment) -> None:
        self._attachment = attachment
        self._handles: weakref.WeakSet[Any] = weakref.WeakSet()
        self._closed = False
        try:
            self.spec = spec_from(check_name(attachment.name), attachment.config)
        except (ValueError, KeyError, TypeError) as error:
            attachment.close()
            raise TopicCorruptError(
                f"{attachment.path}: its description cannot be read ({error}); remove the topic"
            ) from error
        self.name = self.spec.name
        self.path = Path(attachment.path)
        dtype, shape = self.spec.dtype, self.spec.shape
        self._ndarray: Any = type(None)
        generic: type = type(None)
        if dtype is not None:
            import numpy as np

            self._ndarray, generic = np.ndarray, np.generic
            self._batch_strides = (attachment.config["stride"], *np.empty(shape, dtype).strides)
        attachment.types(
            dtype, shape, self._ndarray, generic, array_factory(dtype, shape), record_factory(self.name, dtype, shape)
        )
        _open_rings.add(self)

    # -- handles ---------------------------------------------------------------------------------------------------

    def producer(self, name: str = "") -> Producer:
        """Open a producer; opens the next epoch where the last one ended.

        Raises:
            TopicBusyError: ``writers="one"`` and one lives; or all ports are in use.
        """
        handle = Producer(self._attachment, name)
        self._handles.add(handle)
        return handle._bind(self, "producer", name=name)

    def member(
        self,
        group: str,
        *,
        start: Start = "end",
        durable: bool = False,
        max_deliveries: int | None = None,
        name: str = "",
        on_end: OnEnd = "stop",
    ) -> Member:
        """Join a group, declaring it where it is new: from then on producers wait for it.

        Args:
            group: 1 to 47 bytes.
            start: Where a new group begins: ``"beginning"`` (oldest retained), ``"end"``, or an offset. A group that
                was suspended goes on where it stands, or with ``"end"`` at the end, the rest counted as lost.
            durable: Never suspend the group.
            max_deliveries: How often a record is delivered to the group before it goes to its dead-letter topic
                (``<topic>.dead.<group>``); 0: for ever; ``None``: what the group has, or the topic's where it is new.
            on_end: ``"stop"``: ``take`` raises ``EndOfStream`` at the end of the epoch it was opened in.

        Raises:
            TopicBusyError: all groups or ports are in use. ConfigError: a bad name or offset.
        """
        if not group or len(group.encode()) > 47:
            raise ConfigError(f"topic {self.name!r}: group name {group!r}: 1 to 47 bytes")
        stop, most = _stops(on_end), -1 if max_deliveries is None else max_deliveries
        if max_deliveries is not None and (isinstance(most, bool) or not 0 <= most <= MAX_DELIVERIES_LIMIT):
            raise ConfigError(
                f"topic {self.name!r}: max_deliveries={max_deliveries!r}: 1 to {MAX_DELIVERIES_LIMIT}, or 0 for ever"
            )
        handle = Member(self._attachment, group, start, durable, stop, name, most, self.spec.max_deliveries)
        self._handles.add(handle)
        return handle._bind(
            self,
            "member",
            group=group,
            start=start,
            durable=durable,
            max_deliveries=max_deliveries,
            name=name,
            on_end=on_end,
        )

    def reader(self, *, start: Start = "end", on_end: OnEnd = "stop", name: str = "") -> Reader:
        """Open a lossy reader.

        Args:
            start: ``"beginning"`` (oldest retained), ``"end"``, or an offset.
            on_end: ``"stop"``: ``poll`` raises ``EndOfStream`` at the end of the epoch it was opened in.
        """
        handle = Reader(self._attachment, start, _stops(on_end), name)
        self._handles.add(handle)
        return handle._bind(self, "reader", start=start, on_end=on_end, name=name)

    def observer(self) -> Observer:
        """Open an observer: the newest record on request."""
        _ = self._attachment.high_water  # raises ClosedError where the ring is closed
        handle = Observer(self)
        self._handles.add(handle)
        return handle

    # -- the log ---------------------------------------------------------------------------------------------------

    @property
    def log_start(self) -> int:
        """Offset of the oldest retained record."""
        return self._attachment.log_start

    @property
    def high_water(self) -> int:
        """Offset of the next record to become readable."""
        return self._attachment.high_water

    @property
    def epoch(self) -> int:
        """Number of the current (or last ended) life of the stream, from 0."""
        return self._attachment.epoch

    @property
    def ended(self) -> bool:
        """Whether the current epoch was ended and no producer opened the next one."""
        return self._attachment.ended

    @property
    def end_offset(self) -> int | None:
        """Where the ended epoch ends; ``None`` while one is open."""
        return self._attachment.end_offset

    @property
    def last_keyframe(self) -> int | None:
        """Offset of the newest retained record with the keyframe flag."""
        return self._attachment.find_flag(KEYFRAME, 0)

    def record_at(self, offset: int) -> Record | None:
        """A validated copy of one record; ``None`` where it is not retained, not published, or was aborted."""
        if offset < 0:
            return None
        view = self._attachment.peek(offset)
        if view is None:
            return None
        try:
            record: Record = view.copy()
        except NotRetainedError:
            return None
        return record

    def flags_at(self, offset: int) -> int | None:
        """Flags of one record, without touching its value; ``None`` as in ``record_at``."""
        view = self._attachment.peek(offset) if offset >= 0 else None
        return None if view is None else view.flags

    def timestamp_at(self, offset: int) -> int | None:
        """Timestamp of one record in nanoseconds, without touching its value; ``None`` as in ``record_at``."""
        view = self._attachment.peek(offset) if offset >= 0 else None
        return None if view is None else view.timestamp_ns

    def find_time(self, timestamp_ns: int) -> int | None:
        """Offset of the oldest retained record with this timestamp or a later one."""
        return self._attachment.find_time(timestamp_ns)

    def find_flag(self, flag: int, after: int = 0) -> int | None:
        """Offset of the newest retained record at or after ``after`` that has any bit of ``flag``."""
        return self._attachment.find_flag(flag, max(0, after))

    # -- groups and health -----------------------------------------------------------------------------------------

    def groups(self) -> list[GroupInfo]:
        """All groups, read without the lock: of nearly one instant."""
        return [GroupInfo(**group) for group in self._attachment.groups()]

    def remove_group(self, name: str) -> None:
        """Forget a group and its position.

        Raises:
            ConfigError: there is none of this name. TopicBusyError: it has living members.
        """
        self._attachment.remove_group(name)

    @property
    def paused(self) -> bool:
        """Whether the topic is paused, see ``pause``."""
        return self._attachment.paused

    def pause(self, group: str | None = None) -> None:
        """Stop the topic, or one group of it, for everybody until ``resume``; survives whoever paused it.

        A paused topic takes no records: ``wait`` makes producers wait, both drop policies drop and count
        (``dropped_newest``). What is there can be read. A record that the only writer (``writers="one"``) is just
        publishing may still come. A paused group hands out no records: ``take`` waits, acknowledging goes on, and it
        holds the writer back as before.

        Args:
            group: ``None``: the topic.

        Raises:
            ConfigError: there is no such group. WaitTimeoutError: the topic's lock is held by a stopped process.
        """
        self._attachment.pause(True, *(() if group is None else (group,)))

    def resume(self, group: str | None = None) -> None:
        """Undo ``pause``; whoever waits goes on at once. Nothing happens where it is not paused."""
        self._attachment.pause(False, *(() if group is None else (group,)))

    def claim_stale(self, group: str, min_idle: float) -> list[ClaimedRecord]:
        """Take from living members of ``group`` what they have held for ``min_idle`` seconds: it is delivered again.

        For members that hang: nothing else takes a record from a living one. A slow member's later acknowledgement
        raises ``StaleLeaseError``; what it still looks at may be overwritten once the group has finished it. What dead
        members held needs no claim.

        Args:
            group: Which.
            min_idle: Seconds since the record was handed out; longer than any honest work takes.

        Returns:
            What was claimed, and from whom.

        Raises:
            ConfigError: there is no such group. WaitTimeoutError: the topic's lock is held by a stopped process.
        """
        return claim_all(lambda: self._attachment.claim_stale(group, idle_ms(min_idle)))

    def stats(self) -> RingStats:
        """Counters and open handles."""
        raw = self._attachment.stats()
        claims = tuple(_open_claim(offset, info) for offset, info in raw.pop("open_claims"))
        ports = tuple(PortInfo(**info) for info in raw.pop("ports"))
        return RingStats(**raw, open_claims=claims, ports=ports)

    def check(self) -> list[str]:
        """Violated invariants in words; empty where all is well. Meant for tests: the topic should be quiet."""
        return self._attachment.check()

    def reap(self) -> int:
        """Clean up after dead processes now (waiting calls do it by themselves); how many handles were freed."""
        return self._attachment.reap()

    # -- life ------------------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether it was closed, or inherited through a fork."""
        return self._closed or self._attachment.closed

    def close(self) -> None:
        """Close the handles opened through it, then detach; twice is fine."""
        if self._closed:
            return
        self._closed = True
        for handle in list(self._handles):
            handle.close()
        self._attachment.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> Any:
        return (attach_path, (str(self.path),))

    def __repr__(self) -> str:
        return f"<Ring {self.name!r} at {self.path}{' closed' if self.closed else ''}>"

    def _batch_array(self, run: core.Run) -> npt.NDArray[Any]:
        """A run as one array ``(k, *shape)``; contiguous where slots stand back to back."""
        array: npt.NDArray[Any] = self._ndarray(
            (len(run), *self.spec.shape), self.spec.dtype, run, 0, self._batch_strides
        )
        return array


def _stops(on_end: str) -> bool:
    if on_end not in ("stop", "wait"):
        raise ConfigError(f"on_end={on_end!r}: 'stop' or 'wait'")
    return on_end == "stop"


def _open_claim(offset: int, info: Mapping[str, Any]) -> OpenClaim:
    since = info["claimed_ns"]
    age = max(0.0, (time.time_ns() - since) / 1e9) if since else None
    return OpenClaim(offset, info["pid"], info["name"], info["command"], info["alive"], age)


def _close_all() -> None:
    for ring in list(_open_rings):
        ring.close()


atexit.register(_close_all)
