"""A budget of records and bytes per second."""

from __future__ import annotations

_BURST = 1.0  # seconds that may be saved up


class Budget:
    """Says when more may be spent. Used by one thread.

    Args:
        records, nbytes: Per second; ``None``: no limit of that kind.
    """

    def __init__(self, records: float | None, nbytes: float | None) -> None:
        self._rates = (records, nbytes)
        self._free_at = [0.0, 0.0]  # monotonic seconds at which all that was spent is earned

    def spend(self, records: int, nbytes: int, now: float) -> None:
        """So much was spent at ``now`` (monotonic seconds)."""
        for index, (rate, amount) in enumerate(zip(self._rates, (records, nbytes), strict=True)):
            if rate is not None:
                self._free_at[index] = max(self._free_at[index], now - _BURST) + amount / rate

    def due(self, now: float) -> float:
        """Seconds from ``now`` until more may be spent; 0 where it may be now."""
        return max(0.0, max(self._free_at) - now)
