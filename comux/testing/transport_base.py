"""What the contract's tests share: a broker per test, unique topics, threads whose failures are seen."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest

from comux.errors import UnsupportedError
from comux.records import Record
from comux.transport import Broker, Consumer, TopicSpec

WAIT = 20.0  #: seconds after which something that must happen has not
T = TypeVar("T")


class Background(Generic[T]):
    """A call in a thread of its own. ``result`` joins it and raises what it raised."""

    def __init__(self, fn: Callable[[], T]) -> None:
        self._fn = fn
        self._value: list[T] = []
        self._error: BaseException | None = None
        self.cpu_s = 0.0
        self.thread = threading.Thread(target=self._run, name="comux-contract")
        self.thread.start()

    def _run(self) -> None:
        began = time.thread_time()
        try:
            self._value.append(self._fn())
        except BaseException as error:  # noqa: BLE001 - handed to the test by result()
            self._error = error
        self.cpu_s = time.thread_time() - began

    def result(self, timeout: float = WAIT) -> T:
        """What the call returned; raises what it raised, ``AssertionError`` where it is still running."""
        self.thread.join(timeout)
        assert not self.thread.is_alive(), f"still running after {timeout} s"
        if self._error is not None:
            raise self._error
        return self._value[0]


def linger() -> None:
    """Give another thread the time to get into its wait. No outcome depends on whether it did."""
    threading.Event().wait(0.05)


def eventually(condition: Callable[[], bool], timeout: float = WAIT) -> None:
    """Wait until ``condition`` holds; ``AssertionError`` after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    tick = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"did not come true within {timeout} s"
        tick.wait(0.002)


def take(consumer: Consumer, count: int, timeout: float = WAIT) -> list[Record]:
    """Exactly ``count`` records; ``AssertionError`` where they do not come."""
    out: list[Record] = []
    deadline = time.monotonic() + timeout
    while len(out) < count:
        left = deadline - time.monotonic()
        assert left > 0, f"{len(out)} of {count} records within {timeout} s"
        out += consumer.poll(left, count - len(out))
    return out


def values(records: list[Record]) -> list[Any]:
    """The values of ``records``."""
    return [record.value for record in records]


class ContractBase(ABC):
    """Fixtures of the contract."""

    @abstractmethod
    def make_broker(self, place: Path) -> Broker:
        """Connect to the engine under test.

        Args:
            place: A private folder of the test. Two calls with the same ``place`` reach the same topics.
        """

    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        """See ``make_broker``; an engine that keeps its topics elsewhere overrides it."""
        return tmp_path

    @pytest.fixture
    def broker(self, place: Path) -> Iterator[Broker]:
        with self.make_broker(place) as broker:
            yield broker

    def make(self, broker: Broker, name: str = "topic", **settings: Any) -> str:
        """Create a topic and return its name."""
        broker.create_topic(TopicSpec(name, **settings))
        return name

    def absent(self, broker: Broker, capability: str, ask: Callable[[], Any]) -> bool:
        """Whether the engine lacks ``capability``; then ``ask`` must have been refused by name."""
        if getattr(broker.capabilities, capability):
            return False
        with pytest.raises(UnsupportedError, match=capability):
            ask()
        return True

    def fill(self, broker: Broker, topic: str, count: int, first: int = 0) -> list[int]:
        """Send the numbers ``first`` to ``first + count - 1`` as text; returns their offsets."""
        with broker.producer(topic) as producer:
            futures = [producer.send(b"%d" % (first + i)) for i in range(count)]
            offsets = [future.result(WAIT) for future in futures]
        assert all(offset is not None for offset in offsets)
        return [offset for offset in offsets if offset is not None]
