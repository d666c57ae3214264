"""How often pictures come, and how often they may: pure, no clocks.

Lives here: ``RateLimiter`` (``rate``) and ``PeriodMeter``. Both are used by one thread.
"""

from __future__ import annotations

from collections import deque
from typing import Final

_REORDER_NS: Final = 1_000_000_000
_OVERDUE_LEAST_NS: Final = 100_000_000


class RateLimiter:
    """Lets at most ``rate`` pictures per second of *capture time* pass.

    Due times lie on a grid of ``1 / rate`` seconds. The first picture at or after a due time passes, a little early
    being allowed (a quarter of the stream's own period) so that jitter of the time stamps does not turn 30 fps into 15
    where 30 are allowed. The grid does not follow the pictures that pass, so ``rate=20`` of 30 fps gives 20 on average
    (alternately every and every second picture) and not 15. A pause of the stream earns no burst, and time stamps that
    leap (another clock) start a new grid.

    Args:
        rate: Pictures per second.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._period_ns = round(1e9 / rate)
        self._due_ns: int | None = None
        self._last_ns = 0
        self._stream_ns = 0

    def take(self, capture_ns: int) -> bool:
        """Whether the picture captured at ``capture_ns`` (Unix nanoseconds) passes."""
        if self._due_ns is None or capture_ns < self._last_ns - _REORDER_NS:
            self._due_ns = capture_ns
            self._stream_ns = 0
        else:
            gap = capture_ns - self._last_ns
            if 0 < gap < _REORDER_NS:
                self._stream_ns = gap if not self._stream_ns else (7 * self._stream_ns + gap) // 8
        self._last_ns = capture_ns
        if capture_ns < self._due_ns - self._stream_ns // 4:
            return False
        self._due_ns += self._period_ns
        if self._due_ns <= capture_ns - self._period_ns // 4:  # the stream paused or is slower than the rate
            self._due_ns = capture_ns + self._period_ns
        return True


class PeriodMeter:
    """Mean time between the last few events.

    Args:
        window: How many events count.
    """

    def __init__(self, window: int = 16) -> None:
        self._times: deque[int] = deque(maxlen=window)

    def tick(self, now_ns: int) -> None:
        """An event at ``now_ns`` (monotonic nanoseconds). A gap of a second and of four periods begins anew."""
        period = self.period_ns
        if period is not None and now_ns - self._times[-1] > max(1_000_000_000, 4 * period):
            self._times.clear()
        self._times.append(now_ns)

    @property
    def period_ns(self) -> int | None:
        """Mean distance; ``None`` before the second event."""
        times = self._times
        try:
            first, last, count = times[0], times[-1], len(times)
        except IndexError:  # cleared by the thread that ticks
            return None
        return (last - first) // (count - 1) if count > 1 else None

    def overdue(self, now_ns: int) -> bool:
        """Whether three events in a row (100 ms at least) have not come; ``False`` while the period is not known."""
        period = self.period_ns
        try:
            last = self._times[-1]
        except IndexError:
            return False
        return period is not None and now_ns - last > max(_OVERDUE_LEAST_NS, 3 * period)

    def rate(self, now_ns: int) -> float:
        """Events per second; falls while none come."""
        times = self._times
        try:
            first, last, count = times[0], times[-1], len(times)
        except IndexError:
            return 0.0
        span = max(last, now_ns - (self.period_ns or 0)) - first
        return (count - 1) * 1e9 / span if count > 1 and span > 0 else 0.0
