"""A bridge's two ends: an engine that may not be reachable yet, a topic that several links may write to, trouble."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Final, Literal

from comux.errors import ComuxError, ConfigError, DeliveryError
from comux.transport import Broker, check_engine, connect

from .copies import engine_id

_SHARED: Final = 1.0  # seconds for which a failure to connect is everybody's


class Trouble(ComuxError):
    """Why a session is over, in one line that says at which end; ``__cause__`` is what the engine said."""

    def __init__(self, end: Literal["source", "destination"], error: ComuxError) -> None:
        super().__init__(f"{end}: {error}")
        cause = error.__cause__ if isinstance(error, DeliveryError) else error  # what a delivery failed of decides
        self.retriable = cause.retriable if isinstance(cause, ComuxError) else isinstance(error, DeliveryError)


class Standby(ComuxError):
    """Another bridge reads with the same group."""

    retriable = True


@contextlib.contextmanager
def trouble_at(end: Literal["source", "destination"]) -> Iterator[None]:
    """Whatever an engine says inside becomes ``Trouble`` at this end."""
    try:
        yield
    except (Trouble, Standby):
        raise
    except ComuxError as exc:
        raise Trouble(end, exc) from exc


class Engine:
    """An address, connected when it is first needed, and again where that failed. Thread-safe.

    Attributes:
        id: See ``engine_id``.
        wrong: An option of the address is; connecting will never succeed.

    Raises:
        UnknownAddressError: there is no such engine.
    """

    def __init__(self, address: str) -> None:
        check_engine(address)
        self.address = address
        self.id = engine_id(address)
        self.wrong: ConfigError | None = None
        self._lock = threading.Lock()
        self._broker: Broker | None = None
        self._failed: tuple[float, ComuxError] | None = None

    def broker(self) -> Broker:
        """The connection; waits where another thread is just making it, and shares its failure.

        Raises:
            ComuxError: why it cannot be made.
        """
        with self._lock:
            if self._broker is not None:
                return self._broker
            if self._failed is not None and time.monotonic() - self._failed[0] < _SHARED:
                raise self._failed[1]
            try:
                self._broker = connect(self.address)
            except ComuxError as exc:
                self._failed = time.monotonic(), exc
                self.wrong = exc if isinstance(exc, ConfigError) else None
                raise
            return self._broker

    def close(self) -> None:
        """Close the connection, if there is one."""
        with self._lock:
            broker, self._broker = self._broker, None
        if broker is not None:
            broker.close()


class Target:
    """A topic of the destination, and who of its links is at the end of its source. Thread-safe."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._links: set[object] = set()
        self._at_end: set[object] = set()

    def join(self, link: object) -> None:
        """``link`` writes here."""
        with self._lock:
            self._links.add(link)

    def leave(self, link: object) -> None:
        """``link`` will write no more: its source is gone without having ended."""
        with self._lock:
            self._links.discard(link)
            self._at_end.discard(link)

    def alone(self) -> bool:
        """Whether one link writes here."""
        with self._lock:
            return len(self._links) == 1

    def at_end(self, link: object) -> bool:
        """``link`` is at the end of its source; returns whether all are."""
        with self._lock:
            self._at_end.add(link)
            return self._at_end >= self._links

    def not_at_end(self, link: object) -> None:
        """``link`` has something to write."""
        with self._lock:
            self._at_end.discard(link)
