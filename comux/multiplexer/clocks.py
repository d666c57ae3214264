"""Whose clock a record's timestamp is by, and how old the record is by ours.

**Problem.** A camera's host may be an hour off, or set its clock while it runs. Taken at its word, every picture of it
would be an hour old: stale for ``max_age``, far behind for the lag rule, without partner for ``align``.

**Owner.** Feeds stamp ``comux-clock``, which names the host by its boot (containers of one host share it). A record
without it is by this host's clock where its engine lives on this machine, and by a foreign one elsewhere.

**Age.** By our own clock: now - timestamp, exact. By a foreign one: the smallest (receive - timestamp) of the last ten
minutes is taken for the distance of the two clocks and subtracted, and the age is marked estimated: it is what the
record took longer than the fastest one, so it is short by the fastest one's journey. *Receive* is when the engine took
the record, where the engine's clock is ours, so that our own backlog is no journey; else when we read it.

**Epochs.** One epoch of a clock lasts until a record says that it was set:

========  ==============================================================================================================
backward  the timestamp lies more than ``BACK_NS``, and more than twice the newest steps between records, before the
          newest one. Packets come in decoding order, so B-frames go back, but never by more than the step forward that
          came before them; that step is remembered, slowly forgotten, for cameras of less than a picture per second.
forward   the record would have arrived more than ``LEAP_NS`` sooner than the fastest one (by our own clock: sooner than
          it was taken), and more than four times the newest step, so that a film of one picture an hour that is
          published as fast as it goes is no broken clock.
owner     another host's clock.
========  ==============================================================================================================

A late record, a pause and a stall are none of these: there the time of receipt moves as well. Each new epoch is
counted, told (``source.clock``) and begins with no minimum. Our own clock's timestamps are believed until an epoch
begins at which they are more than ``LEAP_NS`` off; then they are treated like a foreign clock's. So old timestamps of a
replay stay old, and a clock that was set an hour back costs no picture.

**Limits.** A clock set back by less than the stream paused meanwhile looks like late records, until ten minutes are
over. When *our* clock is set back, what was measured by it is forgotten.

**Threads.** ``observe`` and ``note`` are the source thread's; everything else may be called from any thread: what it
reads is replaced in one step, never changed.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Final

from comux.records import HEADER_CLOCK, Record, clock_owner
from comux.telemetry import EventLog

BACK_NS: Final = 1_000_000_000
LEAP_NS: Final = 10_000_000_000
BUCKET_NS: Final = 10_000_000_000
BUCKETS: Final = 60
_EPOCHS_KEPT: Final = 8  # pictures of earlier ones may wait in the store
_EVENTS: Final = 10  # at most so many in
_EVENTS_NS: Final = 10_000_000_000


class SlidingMinimum:
    """Smallest value of the last ``buckets`` buckets of time and of the current one.

    Constant time per value, amortised: a value that is not smaller than a later one can never be the smallest again and
    is forgotten; what stays rises, at most one per bucket.

    Attributes:
        value: The minimum; ``None`` before the first value.
    """

    def __init__(self, buckets: int = BUCKETS, bucket_ns: int = BUCKET_NS) -> None:
        self._buckets = buckets
        self._bucket_ns = bucket_ns
        self._rising: deque[tuple[int, int]] = deque()  # (bucket, smallest value)
        self.value: int | None = None

    def __len__(self) -> int:
        return len(self._rising)

    def add(self, value: int, now_ns: int) -> None:
        """Take in ``value`` at ``now_ns``; a time before the newest counts as the newest."""
        rising = self._rising
        bucket = now_ns // self._bucket_ns
        if rising:
            bucket = max(bucket, rising[-1][0])
            while rising and rising[-1][1] >= value:
                rising.pop()
        if not rising or rising[-1][0] < bucket:
            rising.append((bucket, value))
        while rising[0][0] < bucket - self._buckets:
            rising.popleft()
        self.value = rising[0][1]

    def clear(self) -> None:
        """Forget everything."""
        self._rising.clear()
        self.value = None


class ClockEpoch:
    """One life of a clock.

    Attributes:
        first: Offset of its first record.
        own: Whether it is this host's clock, and believed.
        least: Smallest receive - timestamp in nanoseconds.
    """

    __slots__ = ("first", "least", "own")

    def __init__(self, first: int, own: bool) -> None:
        self.first = first
        self.own = own
        self.least = SlidingMinimum()

    @property
    def behind_ns(self) -> int:
        """How far the clock is behind ours: 0 for our own; negative: it is ahead."""
        return 0 if self.own else self.least.value or 0


class SourceClock:
    """The clock of one source's records.

    Args:
        name: Of the source, for events.
        events: Where new epochs are told; ``None``: nowhere.

    Attributes:
        local: Whether the engine lives on this machine, see the module; set before the first record.
        epochs: How many epochs were opened after the first.
    """

    def __init__(self, name: str = "", events: EventLog | None = None) -> None:
        self.local = True
        self.epochs = 0
        self._name = name
        self._log = events
        self._told_ns: deque[int] = deque(maxlen=_EVENTS)
        self._mine = clock_owner()
        self._owner: bytes | None = None
        self._lives: tuple[ClockEpoch, ...] = ()
        self._newest_ns = self._last_ns = self._receive_ns = 0
        self._reorder_ns = self._step_ns = 0

    # -- records come ----------------------------------------------------------------------------------------------

    def observe(self, record: Record, now_ns: int) -> None:
        """A packet came; ``now_ns`` is Unix time. Redelivered packets are out of order and say nothing."""
        if record.redelivered and self._lives:
            return
        receive_ns = record.append_ns if self.local and record.append_ns else now_ns
        self.note(record.timestamp_ns, record.header(HEADER_CLOCK), receive_ns, record.offset)

    def note(self, timestamp_ns: int, owner: bytes | None, receive_ns: int, offset: int) -> None:
        """A record with this timestamp and clock, received at that Unix time, in the order of offsets."""
        if owner is None and self.local:
            owner = self._mine
        if not self._lives:
            self._begin(timestamp_ns, owner, offset, own=owner == self._mine)
        elif owner != self._owner:
            self._change(timestamp_ns, owner, receive_ns, offset, own=owner == self._mine)
            self._step_ns = 0
        else:
            if receive_ns < self._receive_ns - BACK_NS:
                self._lives[-1].least.clear()
            if self._was_set(timestamp_ns, receive_ns):
                own = owner == self._mine and abs(receive_ns - timestamp_ns) <= LEAP_NS
                step_ns = abs(timestamp_ns - self._last_ns)
                self._change(timestamp_ns, owner, receive_ns, offset, own=own)
                self._step_ns = step_ns
            else:
                self._step_ns = abs(timestamp_ns - self._last_ns)
                self._reorder_ns = max(self._step_ns, self._reorder_ns - self._reorder_ns // 8)
                self._newest_ns = max(self._newest_ns, timestamp_ns)
        self._last_ns, self._receive_ns = timestamp_ns, receive_ns
        self._lives[-1].least.add(receive_ns - timestamp_ns, receive_ns)

    def _was_set(self, timestamp_ns: int, receive_ns: int) -> bool:
        back_ns = self._newest_ns - timestamp_ns
        if back_ns > 0:
            return back_ns > max(BACK_NS, 2 * self._reorder_ns)
        life = self._lives[-1]
        least = life.least.value
        if life.own:
            least = 0 if least is None else min(0, least)
        if least is None:
            return False
        return receive_ns - timestamp_ns < least - max(LEAP_NS, 4 * self._step_ns)

    def _begin(self, timestamp_ns: int, owner: bytes | None, offset: int, *, own: bool) -> None:
        self._lives = (*self._lives[1 - _EPOCHS_KEPT :], ClockEpoch(offset, own))
        self._owner = owner
        self._newest_ns = timestamp_ns
        self._reorder_ns = 0

    def _change(self, timestamp_ns: int, owner: bytes | None, receive_ns: int, offset: int, *, own: bool) -> None:
        """Open a new epoch."""
        moved_ns = (timestamp_ns - self._last_ns) - (receive_ns - self._receive_ns)
        other = owner != self._owner
        self._begin(timestamp_ns, owner, offset, own=own)
        self.epochs += 1
        now_ns = time.monotonic_ns()
        told = self._told_ns
        if self._log is None or (len(told) == _EVENTS and now_ns - told[0] < _EVENTS_NS):
            return  # one clock per record must not push every other event out of the log
        told.append(now_ns)
        what = "is by another host's clock" if other else "leaps"
        self._log.emit(
            "source.clock",
            f"offset {offset}: the timestamp {what}, {moved_ns / 1e9:+.3f} s against the time that passed; clock epoch "
            f"{self.epochs} begins, ages are {'exact' if own else 'estimated'}",
            source=self._name,
            level=logging.WARNING,
            offset=offset,
            moved=moved_ns / 1e9,
            clock_epochs=self.epochs,
            estimated=not own,
            owner=None if owner is None else owner.decode("ascii", "replace"),
        )

    def forget(self) -> None:
        """Another stream begins under the same name: the next record's clock is the first."""
        self._lives = ()

    # -- ages ------------------------------------------------------------------------------------------------------

    def _life(self, offset: int) -> ClockEpoch | None:
        lives = self._lives
        for life in reversed(lives):
            if life.first <= offset:
                return life
        return lives[0] if lives else None

    def behind(self, offset: int) -> tuple[int, bool]:
        """How far the clock of the record at ``offset`` is behind ours in nanoseconds, and whether that is estimated.

        Add it to a timestamp to have it by our clock.
        """
        life = self._life(offset)
        return (0, not self.local) if life is None else (life.behind_ns, not life.own)

    @property
    def newest_behind_ns(self) -> int:
        """How far the clock of the newest record is behind ours; 0 for our own."""
        lives = self._lives
        return lives[-1].behind_ns if lives else 0

    @property
    def estimated(self) -> bool:
        """Whether the newest record's age is estimated."""
        lives = self._lives
        return not lives[-1].own if lives else not self.local
