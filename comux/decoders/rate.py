"""Which pictures of a stream pass where at most so many per second are wanted: pure, no clocks.

Lives here: ``RateLimiter``. It belongs to one thread; what others may call is said.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Final

_REORDER_NS: Final = 1_000_000_000
_RECENT: Final = 32  # packets that the period is measured over: many enough that the order of B-frames is no matter


class _Grid:
    """Due times of one rate. ``due_ns`` belongs to the source's thread."""

    __slots__ = ("due_ns", "period_ns")

    def __init__(self, rate: float) -> None:
        self.period_ns = round(1e9 / rate)
        self.due_ns: int | None = None

    def after(self, due_ns: int, capture_ns: int) -> int:
        """When the next picture is due after the one captured at ``capture_ns`` passed."""
        due_ns += self.period_ns
        if due_ns <= capture_ns - self.period_ns // 4:  # the stream paused or is slower than the rate
            due_ns = capture_ns + self.period_ns
        return due_ns


class RateLimiter:
    """Lets at most ``rate`` pictures per second of *capture time* pass, and says before they are decoded which cannot.

    Due times lie on a grid of ``1 / rate`` seconds. The first picture at or after a due time passes, a little early
    being allowed (a quarter of the stream's own period) so that jitter of the time stamps does not turn 30 fps into 15
    where 30 are allowed. The grid does not follow the pictures that pass, so ``rate=20`` of 30 fps gives 20 on average
    (alternately every and every second picture) and not 15. A pause of the stream earns no burst, and time stamps that
    leap back (another clock) start a new grid.

    ``observe`` is shown every packet, in decoding order, and ``take`` the pictures, in the order they are shown: of a
    stream that is decoded in part the pictures alone would tell neither its period nor its leaps.

    Args:
        rate: Pictures per second; ``None``: every one passes.

    Threads: ``set_rate`` may be called from any thread, everything else from the source's.
    """

    def __init__(self, rate: float | None) -> None:
        self._grid = None if rate is None else _Grid(rate)
        self._recent: deque[int] = deque(maxlen=_RECENT)
        self._stream_ns = 0
        self._newest_ns: int | None = None
        self._before_leap_ns: int | None = None
        self.changes = 0  #: how often another rate was set

    def set_rate(self, rate: float | None) -> None:
        """From now on ``rate`` pictures per second; the next picture is due at once."""
        self._grid = None if rate is None else _Grid(rate)
        self.changes += 1

    def state(self) -> dict[str, Any]:
        """What it knows, JSON-ready: for ``restore`` of another one that goes on in its place."""
        grid = self._grid
        return {
            "period_ns": 0 if grid is None else grid.period_ns,
            "due_ns": None if grid is None else grid.due_ns,
            "recent": list(self._recent),
            "stream_ns": self._stream_ns,
            "newest_ns": self._newest_ns,
            "before_leap_ns": self._before_leap_ns,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where another one's ``state`` was."""
        self._grid = None
        if state["period_ns"]:
            self._grid = _Grid(1e9 / state["period_ns"])
            self._grid.period_ns, self._grid.due_ns = state["period_ns"], state["due_ns"]
        self._recent = deque(state["recent"], maxlen=_RECENT)
        self._stream_ns = state["stream_ns"]
        self._newest_ns, self._before_leap_ns = state["newest_ns"], state["before_leap_ns"]

    @property
    def due_ns(self) -> int | None:
        """When the next picture is due, Unix nanoseconds; ``None``: at once, or there is no rate."""
        grid = self._grid
        return None if grid is None else grid.due_ns

    @due_ns.setter
    def due_ns(self, due_ns: int | None) -> None:
        grid = self._grid
        if grid is not None:
            grid.due_ns = due_ns

    @property
    def period_ns(self) -> int:
        """Nanoseconds between the pictures that pass; 0 where all do."""
        grid = self._grid
        return 0 if grid is None else grid.period_ns

    def observe(self, capture_ns: int) -> None:
        """A packet came, captured at ``capture_ns`` (Unix nanoseconds)."""
        newest = capture_ns if self._newest_ns is None else self._newest_ns
        if capture_ns < newest - _REORDER_NS:
            if self._before_leap_ns is None:
                self._before_leap_ns = newest
            newest = capture_ns
            self._recent.clear()
        elif capture_ns > newest + _REORDER_NS:
            self._recent.clear()  # a pause says nothing about the period
        if self._before_leap_ns is not None and capture_ns > self._before_leap_ns:
            self._before_leap_ns = None  # time has caught up, with no picture on the way
        self._newest_ns = max(newest, capture_ns)
        recent = self._recent
        recent.append(capture_ns)
        if len(recent) > 1:
            self._stream_ns = (max(recent) - min(recent)) // (len(recent) - 1)

    def take(self, capture_ns: int) -> bool:
        """Whether the picture captured at ``capture_ns`` passes."""
        grid = self._grid
        if grid is None:
            return True
        due = grid.due_ns
        leap = self._before_leap_ns
        if leap is not None and capture_ns < leap - _REORDER_NS:
            self._before_leap_ns = due = None
        if due is None:
            due = capture_ns
        passes = capture_ns >= due - self._stream_ns // 4
        grid.due_ns = grid.after(due, capture_ns) if passes else due
        return passes

    def align(self, capture_ns: int) -> None:
        """See ``Selection``: the next due time moves, later by less than a period, so that one falls on ``capture_ns``
        where none does, give or take an eighth of a period (jitter must not move it)."""
        grid = self._grid
        if grid is None or grid.due_ns is None or grid.due_ns <= capture_ns or self._before_leap_ns is not None:
            return
        phase = (grid.due_ns - capture_ns) % grid.period_ns
        if grid.period_ns // 8 < phase < grid.period_ns - grid.period_ns // 8:
            grid.due_ns += grid.period_ns - phase

    def not_before(self, waiting: Iterable[int]) -> int | None:
        """See ``Selection``. Earlier than ``take`` would have it by a quarter of the stream's period, which it goes on
        measuring until the picture is taken."""
        grid = self._grid
        if grid is None or grid.due_ns is None or self._before_leap_ns is not None:
            return None
        due = grid.due_ns
        for capture_ns in sorted(waiting):
            if capture_ns >= due - self._stream_ns // 4:
                due = grid.after(due, capture_ns)
        return due - self._stream_ns // 2
