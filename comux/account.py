"""The books: received = delivered + absorbed + dropped (by cause) + held (by place), at any instant.

Lives here: ``Account`` (written by one component) and its frozen snapshot. May import: nothing of comux.
Must never know: what is being counted.

Every record enters once (``receive`` or ``skip``) and leaves its place exactly once. Each call is one step under one
lock, so a snapshot taken by any thread at any time balances. A move out of a place that does not hold that many is our
own mistake and raises ``AssertionError``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, slots=True)
class AccountSnapshot:
    """One instant of an account, counted in offsets (records).

    Attributes:
        received: Every offset between start and position, jumped ones included.
        delivered: Handed to the user.
        absorbed: Records that hold no picture (parameter sets).
        dropped: By cause.
        held: By place (``queue``, ``decoder``, ``pictures``).
    """

    received: int = 0
    delivered: int = 0
    absorbed: int = 0
    dropped: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    held: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def dropped_total(self) -> int:
        return sum(self.dropped.values())

    @property
    def held_total(self) -> int:
        return sum(self.held.values())

    @property
    def balanced(self) -> bool:
        return self.received == self.delivered + self.absorbed + self.dropped_total + self.held_total

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON-ready dictionary; ``held`` is the total, ``held_by_place`` its parts."""
        return {
            "received": self.received,
            "delivered": self.delivered,
            "absorbed": self.absorbed,
            "dropped": dict(self.dropped),
            "held": self.held_total,
            "held_by_place": dict(self.held),
            "balanced": self.balanced,
        }

    def __add__(self, other: AccountSnapshot) -> AccountSnapshot:
        return AccountSnapshot(
            self.received + other.received,
            self.delivered + other.delivered,
            self.absorbed + other.absorbed,
            _add(self.dropped, other.dropped),
            _add(self.held, other.held),
        )


def _add(a: Mapping[str, int], b: Mapping[str, int]) -> Mapping[str, int]:
    return MappingProxyType({k: a.get(k, 0) + b.get(k, 0) for k in (*a, *(k for k in b if k not in a))})


def total(snapshots: Iterable[AccountSnapshot]) -> AccountSnapshot:
    """Sum of several accounts."""
    out = AccountSnapshot()
    for snapshot in snapshots:
        out = out + snapshot
    return out


class Account:
    """A thread-safe balance. Places and causes are free words; the component that owns the account documents them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._received = 0
        self._delivered = 0
        self._absorbed = 0
        self._dropped: dict[str, int] = {}
        self._held: dict[str, int] = {}

    def receive(self, place: str, n: int = 1) -> None:
        """``n`` records came in and are now held at ``place``."""
        with self._lock:
            self._received += n
            self._held[place] = self._held.get(place, 0) + n

    def skip(self, cause: str, n: int) -> None:
        """``n`` records were passed over unread (lapped, jumped): received and dropped in one step."""
        if n <= 0:
            return
        with self._lock:
            self._received += n
            self._dropped[cause] = self._dropped.get(cause, 0) + n

    def move(self, place: str, to: str, n: int = 1) -> None:
        """``n`` records went from one place to another."""
        with self._lock:
            self._leave(place, n)
            self._held[to] = self._held.get(to, 0) + n

    def deliver(self, place: str, n: int = 1) -> None:
        """``n`` records held at ``place`` were handed to the user."""
        with self._lock:
            self._leave(place, n)
            self._delivered += n

    def absorb(self, place: str, n: int = 1) -> None:
        """``n`` records held at ``place`` turned out to hold no picture."""
        with self._lock:
            self._leave(place, n)
            self._absorbed += n

    def drop(self, place: str, cause: str, n: int = 1) -> None:
        """``n`` records held at ``place`` were given up."""
        if n <= 0:
            return
        with self._lock:
            self._leave(place, n)
            self._dropped[cause] = self._dropped.get(cause, 0) + n

    def _leave(self, place: str, n: int) -> None:
        left = self._held.get(place, 0) - n
        assert left >= 0, f"account: {n} records leave {place!r}, which holds {left + n}"
        self._held[place] = left

    def snapshot(self) -> AccountSnapshot:
        """One consistent instant."""
        with self._lock:
            return AccountSnapshot(
                self._received,
                self._delivered,
                self._absorbed,
                MappingProxyType(dict(self._dropped)),
                MappingProxyType({k: v for k, v in self._held.items() if v}),
            )
