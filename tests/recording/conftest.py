"""What the bridge's tests share: places on either engine, a bridge in a thread, a bridge as a process, waiting."""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from comux.cli.publishers import child_environment
from comux.recording import Bridge, LinkStatus, Origin, origin_of
from comux.records import HEADER_BRIDGE, HEADER_DUPLICATE, Headers, Record
from comux.transport import Broker, TopicSpec, connect, for_engine, memory

_numbers = itertools.count()


def until(condition: Callable[[], Any], timeout: float = 20.0, what: str = "the condition") -> Any:
    """Wait until ``condition`` gives something true, and give it back."""
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true within {timeout} s"
        pause.wait(0.01)
    return found


class Place:
    """One engine of a test's own.

    Attributes:
        address: Of the engine.
        broker: Open on it.
    """

    def __init__(self, scheme: str) -> None:
        self.name = f"bridge-{os.getpid()}-{next(_numbers)}"
        self.scheme = scheme
        if ":" in scheme:  # the address of a Kafka broker
            self.address = f"kafka://{scheme}?prefix={self.name}-{secrets.token_hex(3)}."
        else:
            self.address = f"{scheme}://{self.name}"
        self.broker: Broker = connect(self.address)

    def at(self, topic: str) -> str:
        """Address of one topic."""
        engine, mark, query = self.address.partition("?")
        return f"{engine}/{topic}{mark}{query}"

    def topic(self, name: str, **spec: Any) -> None:
        spec = ({} if "dtype" in spec else {"data_bytes": 1 << 20}) | spec
        self.broker.create_topic(for_engine(self.broker, TopicSpec(name, **spec)))

    def send(self, topic: str, values: Sequence[Any], **options: Any) -> None:
        """Publish ``values`` by a producer that leaves without ending the stream."""
        with self.broker.producer(topic) as producer:
            for value in values:
                producer.send(value, timeout=10, **options)
            producer.flush(10)

    def end(self, topic: str) -> None:
        """End the topic's stream."""
        with self.broker.producer(topic) as producer:
            producer.end()

    def records(self, topic: str) -> list[Record]:
        """Every record that is readable now."""
        out: list[Record] = []
        wanted = self.broker.topic(topic).high_water
        with self.broker.consumer(topic, start="beginning", on_end="wait") as consumer:
            while consumer.position() < wanted:
                out += consumer.poll(0.05, 256)
        return out

    def values(self, topic: str) -> list[Any]:
        return [record.value for record in self.records(topic)]

    def count(self, topic: str) -> int:
        """High-water mark; 0 where there is no topic."""
        return self.broker.topic(topic).high_water if topic in self.broker.topics() else 0

    def close(self) -> None:
        if ":" in self.scheme and "KAFKA_BOOTSTRAP_SERVERS" in os.environ:  # somebody's own cluster
            for topic in self.broker.topics():
                self.broker.delete_topic(topic, force=True)
        self.broker.close()
        if self.scheme == "memory":
            memory.discard(self.name)
        elif self.scheme == "shm":
            shutil.rmtree(Path(os.environ["COMUX_DIR"]) / self.name, ignore_errors=True)


@pytest.fixture
def place() -> Iterator[Callable[[str], Place]]:
    """A new engine: ``place("shm")``, ``place("memory")`` or ``place("host:port")`` of a Kafka broker."""
    places: list[Place] = []

    def make(scheme: str) -> Place:
        places.append(Place(scheme))
        return places[-1]

    yield make
    for each in places:
        each.close()


class Bridging:
    """A bridge that runs in a thread; on every look its accounts must balance."""

    def __init__(self, source: str, destination: str, **options: Any) -> None:
        self.bridge = Bridge(source, destination, **options)
        self.result: bool | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="comux-test-bridge", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self.bridge.run()
        except BaseException as exc:  # noqa: BLE001 - handed to the test by join()
            self.error = exc

    def status(self, topic: str) -> LinkStatus | None:
        found = [status for status in self.bridge.status() if status.topic == topic]
        for status in found:
            assert status.account.balanced, status
        return found[0] if found else None

    def until(self, topic: str, timeout: float = 20.0, **expected: Any) -> LinkStatus:
        """Until the status (or ``account``'s figures) of ``topic`` are as expected."""

        def as_expected() -> LinkStatus | None:
            status = self.status(topic)
            if status is None:
                return None
            figures = {**status.account.as_dict(), **status.as_dict()}
            return status if all(figures[name] == value for name, value in expected.items()) else None

        try:
            return until(as_expected, timeout)
        except AssertionError:
            raise AssertionError(f"{topic} is not {expected} within {timeout} s: {self.status(topic)}") from None

    def join(self, timeout: float = 20.0) -> bool:
        """What ``run`` returned (or raised), once it has."""
        self._thread.join(timeout)
        assert not self._thread.is_alive(), f"the bridge has not ended within {timeout} s: {self.bridge.status()}"
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result

    def stop(self) -> None:
        self.bridge.close()
        self._thread.join(20)
        assert not self._thread.is_alive()
        for status in self.bridge.status():
            assert status.account.balanced, status


@pytest.fixture
def bridge() -> Iterator[Callable[..., Bridging]]:
    """Run a bridge in a thread; it is stopped at the end of the test."""
    running: list[Bridging] = []

    def begin(source: Place | str, destination: Place | str, **options: Any) -> Bridging:
        addresses = [end if isinstance(end, str) else end.address for end in (source, destination)]
        running.append(Bridging(addresses[0], addresses[1], **options))
        return running[-1]

    yield begin
    for each in running:
        each.stop()


@pytest.fixture
def command() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start ``comux bridge ARGUMENTS`` as a process; what still runs at the end of the test is killed."""
    running: list[subprocess.Popen[str]] = []

    def begin(*arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        running.append(
            subprocess.Popen(
                [sys.executable, "-P", "-m", "comux", "bridge", *arguments],
                env={**child_environment(), **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return running[-1]

    yield begin
    for each in running:
        if each.poll() is None:
            each.send_signal(signal.SIGKILL)
        each.communicate(timeout=20)


def original(record: Record) -> tuple[Any, bytes | None, Headers, int, int]:
    """What a copy must have of its original: value, key, headers without the bridge's, timestamp, flags."""
    headers = list(record.headers)
    if headers and headers[-1][0] == HEADER_DUPLICATE:
        headers.pop()
    assert headers and headers[-1][0] == HEADER_BRIDGE
    return record.value, record.key, tuple(headers[:-1]), record.timestamp_ns, record.flags


def offsets(records: Sequence[Record]) -> list[int]:
    """Offsets of the originals."""
    found: list[Origin | None] = [origin_of(record) for record in records]
    return [each.offset for each in found if each is not None]


def check_nothing_lost(records: Sequence[Record], count: int) -> None:
    """Every original is there, in order apart from those marked as possible repeats, and every repeat is marked."""
    marked = [record for record in records if record.header(HEADER_DUPLICATE) is not None]
    assert all(record.header(HEADER_DUPLICATE) == b"possible" for record in marked)
    seen: set[int] = set()
    last = -1
    for record, offset in zip(records, offsets(records), strict=True):
        if offset in seen or offset < last:
            assert record.header(HEADER_DUPLICATE) == b"possible", f"the repeat of {offset} is not marked"
        last = max(last, offset)
        seen.add(offset)
    assert seen == set(range(count)), f"missing: {sorted(set(range(count)) - seen)[:10]}"


@pytest.fixture
def tools() -> SimpleNamespace:
    """The functions above, for tests."""
    return SimpleNamespace(until=until, original=original, offsets=offsets, check_nothing_lost=check_nothing_lost)
