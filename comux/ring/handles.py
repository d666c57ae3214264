"""The handles on a topic: producer, group member, lossy reader, observer.

The fast calls (``put``, ``take``, ``ack``, ``poll``) are the C types'; what is added here is accounts, batches, copies
as ``Record``, iteration, context managers and pickling. A handle pickles as (path, role, options) and opens afresh,
with an attachment of its own, in the process that unpickles it; leases, claims and batches refuse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from comux.account import AccountSnapshot
from comux.dead_letters import CAUSE
from comux.errors import ClosedError, EndOfStream, NotRetainedError
from comux.records import KEYFRAME, Record

from .asynchronous import readable
from .letters import bury
from .native import core
from .spec import ClaimedRecord, ProducerStats, idle_ms

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .log import Ring

Lease = core.Lease
View = core.View
Claim = core.Claim
Start = Literal["beginning", "end"] | int
OnEnd = Literal["stop", "wait"]


def reopen(path: str, role: str, options: dict[str, Any]) -> Any:
    """What a pickled handle becomes: the same role on the same topic, opened afresh; closes its ring with itself."""
    from .log import attach_path

    ring = attach_path(path)
    try:
        handle = ring.observer() if role == "observer" else getattr(ring, role)(**options)
    except BaseException:
        ring.close()
        raise
    handle._own = ring
    return handle


class _Handle:
    """What the handles share; the C types bring ``close`` and ``closed``."""

    _ring: Ring
    _own: Ring | None
    _options: tuple[str, dict[str, Any]]

    def _bind(self, ring: Ring, role: str, **options: Any) -> Self:
        self._ring = ring
        self._own = None
        self._options = (role, options)
        return self

    def _close_own(self) -> None:
        own, self._own = self._own, None
        if own is not None:
            own.close()

    def __reduce__(self) -> Any:
        return (reopen, (str(self._ring.path), *self._options))

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Producer(core.Producer, _Handle):
    """Writes records; thread-safe. ``put``, ``put_many`` and ``claim`` wait for room up to ``timeout`` seconds.

    ``put(value, *, key, headers, timestamp_ns, flags, tag, timeout)`` returns the offset, or ``None`` where
    ``drop_newest`` dropped the record. Raises ``WaitTimeoutError`` (full), ``RecordTooLargeError``, ``ConfigError``
    (dtype, shape or size do not fit), ``EndOfStream`` (the epoch was ended), ``ClosedError``.
    """

    def close(self) -> None:
        """Clean close: open claims are aborted; with ``end="auto"`` the last living producer's ends the stream."""
        super().close()
        self._close_own()

    @property
    def stats(self) -> ProducerStats:
        """Counters of this handle, one instant."""
        return ProducerStats(*self._counts())

    def account(self) -> AccountSnapshot:
        """offered = published + dropped (``drop_newest``, ``aborted``) + held (``claims``)."""
        offered, published, dropped, aborted, claims, _ = self._counts()
        return AccountSnapshot(
            offered, published, 0, _shown(drop_newest=dropped, aborted=aborted), _shown(claims=claims)
        )


class Batch:
    """Records taken together: of fixed slots one array, of variable records a list of leases.

    Attributes:
        offsets: The records' offsets, consecutive for fixed slots.

    Leaving its block acknowledges all, or gives all back where the block raised. Dropped without either: given back,
    with a ``ResourceWarning``.
    """

    __slots__ = ("_array", "_fixed", "_leases", "_member", "_run")

    def __init__(self, member: Member, run: core.Run | None, leases: list[Lease]) -> None:
        self._member = member
        self._run = run
        self._leases = leases
        self._fixed = member._ring.spec.dtype is not None
        self._array: npt.NDArray[Any] | None = None

    @property
    def array(self) -> npt.NDArray[Any]:
        """Array ``(k, *shape)``, fixed slots only. A ring's: read-only, on shared memory, valid until acknowledged. A
        pool's: a copy, because its slots stand in no order; ``batch[i]`` is in place."""
        if not self._fixed:
            raise TypeError("records of variable size have no common array; use batch[i].array")
        if self._array is None:
            self._array = self._gathered() if self._run is None else self._member._ring._batch_array(self._run)
        return self._array

    def _gathered(self) -> npt.NDArray[Any]:
        import numpy as np

        return np.stack([lease.array for lease in self._leases])

    @property
    def offsets(self) -> range | list[int]:
        if self._run is not None:
            return range(self._run.first, self._run.first + len(self._run))
        return [lease.offset for lease in self._leases]

    @property
    def timestamps_ns(self) -> list[int]:
        """Timestamps of the records, in their order."""
        return self._run.timestamps() if self._run is not None else [lease.timestamp_ns for lease in self._leases]

    def ack(self) -> None:
        """All records are finished. Raises ``StaleLeaseError`` where they are no longer held."""
        if self._run is not None:
            self._run.ack()
        for lease in self._leases:
            lease.ack()

    def nack(self) -> None:
        """Give all records back."""
        if self._run is not None:
            self._run.nack()
        for lease in self._leases:
            lease.nack()

    def __len__(self) -> int:
        return len(self._run) if self._run is not None else len(self._leases)

    def __getitem__(self, index: int) -> Any:
        """The lease (variable records) or the record's array on shared memory (fixed slots)."""
        if self._run is not None:
            return self.array[index]
        return self._leases[index].array if self._fixed else self._leases[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.array) if self._run is not None else (self[i] for i in range(len(self)))

    def __reduce__(self) -> Any:
        raise TypeError("a Batch cannot be pickled: it holds records for this process; send copies")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for part in (self._run, *self._leases):
            if part is not None:
                part.__exit__(kind, error, trace)


class Member(core.Member, _Handle):
    """One member of a group; thread-safe. Each record of the group goes to one member and is held until ``ack``.

    ``take(timeout)`` returns a ``Lease`` or ``None`` where the time passed (or after ``wakeup()``); raises
    ``EndOfStream`` (``on_end="stop"``: the epoch it was opened in has ended and the whole group has finished it) and
    ``ClosedError``, also while it waits. Iteration yields leases until the end.

    A record that was delivered ``max_deliveries`` times and never acknowledged is not handed out again: the member that
    comes to it copies it to the group's dead-letter topic within its ``take``, which raises what kept it from doing so
    (``NoSpaceError``; ``WaitTimeoutError`` after a second where a group that reads the letters is behind).
    """

    def take_many(self, k: int, timeout: float | None = None) -> Batch | None:
        """Up to ``k`` records, at least one; waits for the first only.

        Returns:
            ``None`` where the time passed. Fixed slots of a ring: one run of consecutive records.
        """
        if self._ring.spec.dtype is not None and self._ring.spec.layout == "ring":
            run = self._take_run(k, timeout)
            return None if run is None else Batch(self, run, [])
        lease = self.take(timeout)
        if lease is None:
            return None
        leases = [lease]
        try:
            while len(leases) < k:
                lease = self.take(0)
                if lease is None:
                    break
                leases.append(lease)
        except EndOfStream:
            pass
        return Batch(self, None, leases)

    def __aiter__(self) -> Self:
        """Leases until the end, for one task or several; each is acknowledged as usual. Cancelling loses nothing."""
        return self

    async def __anext__(self) -> Lease:
        while True:
            try:
                lease = self.take(0)
            except EndOfStream:
                raise StopAsyncIteration from None
            if lease is not None:
                return lease
            await readable(self)

    def close(self) -> None:
        """Leave the group, which stays; what this member holds goes to others."""
        super().close()
        self._close_own()

    def claim_stale(self, min_idle: float) -> list[ClaimedRecord]:
        """Take from the group's other members what they have held for ``min_idle`` seconds, see ``Ring.claim_stale``.

        The records come with the next ``take`` of any member, marked ``redelivered``.
        """
        return claim_all(lambda: self._claim_stale(idle_ms(min_idle)))

    def _bury(self, lease: Lease) -> None:
        """Called by ``take`` for a record that was delivered as often as the group allows."""
        bury(self._ring, self._options[1]["group"], lease)

    def account(self) -> AccountSnapshot:
        """received = delivered (acknowledged) + dropped + held (``leases``).

        Dropped: ``returned`` (given back), ``dead_letter``, ``claimed`` (taken away by a claim, as far as this member
        has found out by trying to acknowledge).
        """
        started, acked, nacked, buried, claimed = self._counts()
        dropped = _shown(**{"returned": nacked, CAUSE: buried, "claimed": claimed})
        return AccountSnapshot(started, acked, 0, dropped, _shown(leases=started - acked - nacked - buried - claimed))


class Reader(core.Reader, _Handle):
    """Reads without a group: never slows a producer, may be lapped, is told exactly how much it lost.

    ``poll(timeout)`` returns a ``View`` in place: believe what was read only after ``view.valid()``; a view of a topic
    with ``layout="pool"`` is ``kept`` instead: it and arrays made from it never change, and the producer does not wait
    for them. Release it soon: it keeps a slot, and this process attached. ``copy`` and
    ``copy_many`` return validated copies. Raises ``EndOfStream`` (``on_end="stop"``) and ``ClosedError``.
    """

    @property
    def position(self) -> int:
        """Offset of the next record; assignable, see ``seek``."""
        return self._position

    @position.setter
    def position(self, offset: int) -> None:
        self.seek(offset)

    def poll_many(self, k: int, timeout: float | None = None) -> list[View]:
        """Up to ``k`` views; waits for the first only. Empty where the time passed."""
        views: list[View] = []
        try:
            while len(views) < k:
                view = self.poll(0 if views else timeout)
                if view is None:
                    break
                views.append(view)
        except EndOfStream:
            if not views:
                raise
        return views

    def copy(self, timeout: float | None = None) -> Record | None:
        """The next record as a validated copy; ``None`` where the time passed. What is lapped while it is copied
        counts as lost, and the next record's ``skipped`` says so."""
        while True:
            view = self.poll(timeout)
            if view is None:
                return None
            try:
                record: Record = view.copy()
            except NotRetainedError:
                self._retract(view)
            else:
                return record

    def copy_many(self, k: int, timeout: float | None = None) -> list[Record]:
        """Up to ``k`` validated copies; waits for the first only."""
        records: list[Record] = []
        try:
            while len(records) < k:
                record = self.copy(0 if records else timeout)
                if record is None:
                    break
                records.append(record)
        except EndOfStream:
            if not records:
                raise
        return records

    def seek_end(self) -> None:
        """Skip everything published so far; counted as jumped."""
        self.seek(self._ring.high_water)

    def seek_beginning(self) -> None:
        """Go to the oldest retained record."""
        self.seek(self._ring.log_start)

    def seek_keyframe(self) -> bool:
        """Go to the newest keyframe at or ahead of the position; ``False`` where there is none."""
        offset = self._ring.find_flag(KEYFRAME, self._position)
        if offset is None:
            return False
        self.seek(offset)
        return True

    def __iter__(self) -> Iterator[View]:
        """Views until the end of the stream."""
        while True:
            try:
                view = self.poll(None)
            except EndOfStream:
                return
            if view is not None:
                yield view

    def __aiter__(self) -> Self:
        """Views until the end of the stream; believe one only after ``valid()``, also after an ``await``."""
        return self

    async def __anext__(self) -> View:
        while True:
            try:
                view = self.poll(0)
            except EndOfStream:
                raise StopAsyncIteration from None
            if view is not None:
                return view
            await readable(self)

    def close(self) -> None:
        """Close; a ``poll`` that waits in another thread raises ``ClosedError``."""
        super().close()
        self._close_own()

    def account(self) -> AccountSnapshot:
        """received (offsets passed) = delivered + dropped (``lapped``, ``jumped``, ``aborted``)."""
        delivered, lost, jumped, aborted = self._counts()
        passed = delivered + lost + jumped + aborted
        return AccountSnapshot(passed, delivered, 0, _shown(lapped=lost, jumped=jumped, aborted=aborted), _shown())


class Observer(_Handle):
    """Reads the newest record on request; never waits, never slows anyone. Thread-safe."""

    def __init__(self, ring: Ring) -> None:
        self._bind(ring, "observer")
        self._closed = False

    def _check(self) -> None:
        if self._closed:
            raise ClosedError(f"topic {self._ring.name!r}: this observer was closed")

    def latest(self) -> Record | None:
        """The newest record as a validated copy; ``None`` where none is retained."""
        self._check()
        while True:
            view = self._ring._attachment.latest()
            if view is None:
                return None
            try:
                record: Record = view.copy()
            except NotRetainedError:
                continue  # overwritten while it was copied: there is a newer one
            return record

    @property
    def latest_offset(self) -> int | None:
        """Offset of the newest record; ``None`` where none is retained."""
        self._check()
        view = self._ring._attachment.latest()
        return None if view is None else view.offset

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Close; twice is fine."""
        self._closed = True
        self._close_own()


def claim_all(claim: Callable[[], list[tuple[int, int, str, str, float]]]) -> list[ClaimedRecord]:
    """What ``claim`` finds until it finds nothing more: it has a limit, so that nobody waits long for the lock."""
    out: list[ClaimedRecord] = []
    while found := claim():
        out += [ClaimedRecord(*one) for one in found]
    return out


def _shown(**counts: int) -> MappingProxyType[str, int]:
    return MappingProxyType({name: n for name, n in counts.items() if n})


def array_factory(dtype: np.dtype[Any] | None, shape: tuple[int, ...]) -> Any:
    """Buffer (a lease, view or claim) -> array on the same memory."""
    if dtype is None:

        def flat(shown: Any) -> npt.NDArray[Any]:
            import numpy as np

            return np.frombuffer(shown, np.uint8) if shown.nbytes else np.empty(0, np.uint8)

        return flat
    import numpy as np

    frombuffer = np.frombuffer
    if len(shape) == 1:
        return lambda shown: frombuffer(shown, dtype)
    return lambda shown: frombuffer(shown, dtype).reshape(shape)


def record_factory(topic: str, dtype: np.dtype[Any] | None, shape: tuple[int, ...]) -> Any:
    """View -> ``Record``, a validated copy. The factory's function raises ``NotRetainedError`` where it was lapped."""

    def value_of(view: View) -> Any:
        if dtype is None:
            return view.bytes()
        import numpy as np

        array = np.empty(shape, dtype)
        view.copy_into(array)
        return array

    def record(view: View) -> Record:
        return Record(
            topic,
            view.offset,
            view.timestamp_ns,
            value_of(view),
            view.key,
            view.headers,
            0,
            view.epoch,
            view.flags,
            view.skipped,
            1,
            False,
            view.append_ns,
        )

    return record


__all__: Sequence[str] = ["Batch", "Claim", "Lease", "Member", "Observer", "Producer", "Reader", "View"]
