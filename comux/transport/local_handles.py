"""Producer and observer of the local engine: thin over ``comux.ring``.

``send`` is the hot path: one call into the ring, one future. What the ring does not find out by itself is looked up
twice a second at most (``Presence``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any, cast

from comux import ring
from comux.account import AccountSnapshot
from comux.errors import ClosedError, ConfigError, UnknownTopicError, WaitTimeoutError
from comux.records import Record, check_headers

from .futures import DoneFuture
from .interface import Claim, Observer, Producer, SendFuture
from .names import check_key

LOOK_EVERY_S = 0.5
SLICE_S = 1.0  # the longest wait between two looks whether the topic is still there
_monotonic = time.monotonic


class Presence:
    """Whether a topic's file is still the one that was attached; and, as often, whether another user of it died.

    The ring looks for the dead only in waits that last a heartbeat; those of a loop with a short time-out never do.
    """

    def __init__(self, log: ring.Ring) -> None:
        self._log = log
        self._path = log.path
        self._name = log.name
        self._inode = self._inode_now()
        self._next = 0.0
        self._gone = self._inode is None

    def _inode_now(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path, follow_symlinks=False)  # noqa: PTH116 - half the time of Path.stat
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def look(self, now: float) -> float:
        """Look where it is time to; returns when to look next. Raises ``UnknownTopicError``: it was deleted."""
        if now >= self._next:
            self._next = now + LOOK_EVERY_S
            self._log.reap()
            self._gone = self._gone or self._inode_now() != self._inode
        if self._gone:
            raise UnknownTopicError(
                f"topic {self._name!r} was deleted under this handle ({self._path}); create it again"
            )
        return self._next

    def forget(self) -> None:
        """The topic is known to be deleted."""
        self._gone = True


class LocalProducer(Producer):
    """See ``Producer``. Thread-safe. Sends are complete when they return."""

    def __init__(self, log: ring.Ring, name: str) -> None:
        self.topic = log.name
        self._log = log
        self._producer = log.producer(name)
        self._put = self._producer.put
        self._presence = Presence(log)
        self._look_at = 0.0

    def close(self) -> None:
        self._producer.close()
        self._log.close()

    def deleted(self) -> None:
        """The broker deleted the topic: the next call says so."""
        self._presence.forget()
        self._look_at = 0.0

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
        if _monotonic() >= self._look_at:
            self._look()
        try:
            return DoneFuture(
                self._put(value, key=key, headers=headers, timestamp_ns=timestamp_ns, flags=flags, timeout=0)
            )
        except WaitTimeoutError:
            pass
        except (TypeError, BufferError) as error:
            check_headers(headers)  # raises TypeError itself
            check_key(key)
            raise self._unfit(value, error) from error
        wait: dict[str, Any] = {"key": key, "headers": headers, "timestamp_ns": timestamp_ns, "flags": flags}
        return DoneFuture(self._patiently(timeout, lambda s: self._put(value, timeout=s, **wait)))

    def _unfit(self, value: Any, error: Exception) -> ConfigError:
        return ConfigError(
            f"topic {self.topic!r}: a value of type {type(value).__name__} cannot be sent ({error}); send a"
            " C-contiguous buffer: bytes, or np.ascontiguousarray(value)"
        )

    def _look(self) -> None:
        if self._producer.closed:
            raise self._closed()
        self._look_at = self._presence.look(_monotonic())

    def _closed(self) -> ClosedError:
        return ClosedError(f"producer of topic {self.topic!r} is closed; open a new one")

    def _patiently(self, timeout: float | None, attempt: Any) -> Any:
        """Call ``attempt(seconds)`` until it finds room, looking between the waits whether the topic is still there."""
        deadline = None if timeout is None else _monotonic() + timeout
        while True:
            left = SLICE_S if deadline is None else min(SLICE_S, deadline - _monotonic())
            try:
                return attempt(max(0.0, left))
            except WaitTimeoutError:
                if deadline is not None and _monotonic() >= deadline:
                    raise WaitTimeoutError(f"{self._why_full()}; no room within {timeout} s, commit faster") from None
            self._look()

    def _why_full(self) -> str:
        log = self._log
        start, high = log.log_start, log.high_water
        if log.paused:
            return f"topic {self.topic!r} is paused at offset {high} (comux topics resume {self.topic})"
        behind = [
            f"group {g.name!r} {high - g.done} behind" for g in log.groups() if g.done <= start and not g.suspended
        ]
        claims = len(log.stats().open_claims)
        if claims:
            behind.append(f"{claims} claims open")
        return (
            f"topic {self.topic!r} is full at offset {high} ({high - start} of {log.spec.slots} records;"
            f" {', '.join(behind) or 'nobody behind'})"
        )

    def send_many(self, values: Any, *, timestamp_ns: int | None = None, timeout: float | None = None) -> int:
        self._look()
        if len(values) == 0:
            return self._log.high_water
        put_many = self._producer.put_many
        first: int | None = self._patiently(timeout, lambda s: put_many(values, timestamp_ns=timestamp_ns, timeout=s))
        return self._log.high_water if first is None else first

    def claim(self, nbytes: int | None = None, *, timeout: float | None = None) -> Claim | None:
        self._look()
        claim = self._patiently(timeout, lambda s: self._producer.claim(nbytes, timeout=s))
        return cast(Claim | None, claim)

    def flush(self, timeout: float | None = None) -> None:
        if self._producer.closed:
            raise self._closed()

    def end(self) -> None:
        self._producer.end()

    def account(self) -> AccountSnapshot:
        return self._producer.account()


class LocalObserver(Observer):
    """See ``Observer``. Thread-safe."""

    def __init__(self, log: ring.Ring) -> None:
        self.topic = log.name
        self._log = log
        self._observer = log.observer()
        self._presence = Presence(log)

    def close(self) -> None:
        self._observer.close()
        self._log.close()

    def deleted(self) -> None:
        """The broker deleted the topic: the next call says so."""
        self._presence.forget()

    def latest(self) -> Record | None:
        if self._observer.closed:
            raise ClosedError(f"observer of topic {self._log.name!r} is closed; open a new one")
        self._presence.look(_monotonic())
        return self._observer.latest()
