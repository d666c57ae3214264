"""How often pictures come: pure, no clocks. Lives here: ``PeriodMeter``."""

from __future__ import annotations

from collections import deque
from typing import Final

_OVERDUE_LEAST_NS: Final = 100_000_000


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
