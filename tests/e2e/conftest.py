"""What the acceptance tests share: a private place for topics, feeds in threads, programs in processes, waiting."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from feed_threads import FeedThread

from comux.records import HEADER_SEQUENCE, Record
from comux.transport import Broker, TopicSpec, connect

_PROGRAM = Path(__file__).with_name("programs.py")
_names = itertools.count()


def until(condition: Callable[[], Any], timeout: float = 60.0, what: str = "the condition") -> Any:
    """Wait until ``condition`` gives something true, and give it back."""
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true within {timeout} s"
        pause.wait(0.01)
    return found


def sequence(record: Record) -> int:
    """The number the feed stamped on a packet."""
    value = record.header(HEADER_SEQUENCE)
    assert value is not None
    return int(value)


class Program:
    """A process running one function of ``programs.py``; its lines of JSON are read from a file it appends to."""

    def __init__(self, journal: Path, name: str, options: dict[str, Any], env: dict[str, str]) -> None:
        self.journal = journal
        self.name = name
        self._errors = journal.with_suffix(".err")
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(_PROGRAM), name, str(journal), json.dumps(options)],
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                cwd=journal.parent,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def lines(self, what: str | None = None) -> list[dict[str, Any]]:
        """What it has written so far, all or the lines of one kind."""
        text = self.journal.read_text() if self.journal.exists() else ""
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [line for line in lines if what is None or line["what"] == what]

    def wait_for(self, what: str, count: int = 1, timeout: float = 30.0) -> list[dict[str, Any]]:
        """The lines of one kind, once there are ``count`` of them."""

        def enough() -> list[dict[str, Any]] | None:
            lines = self.lines(what)
            if len(lines) < count and self.process.poll() is not None and len(lines := self.lines(what)) < count:
                pytest.fail(
                    f"{self.name} ended with {self.process.returncode} after {len(lines)} of {count} lines {what!r}: "
                    f"{self.errors()[-2000:]}"
                )
            return lines if len(lines) >= count else None

        found: list[dict[str, Any]] = until(enough, timeout, f"{self.name}: {count} lines {what!r}")
        return found

    def errors(self) -> str:
        """What it wrote to its output and error streams."""
        return self._errors.read_text()

    def kill(self) -> None:
        """SIGKILL, and wait."""
        self.process.kill()
        self.process.wait(20)

    def ask(self, number: signal.Signals = signal.SIGINT) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = 30.0) -> int:
        """Its exit code."""
        return self.process.wait(timeout)


class Place:
    """One test's own topics on the local engine.

    Attributes:
        address: Of the engine.
        directory: Where its topics are files.
        broker: Open on ``address``.
    """

    def __init__(self, tmp_path: Path) -> None:
        name = f"e2e-{os.getpid()}-{next(_names)}"
        self.address = f"shm://{name}"
        self.directory = Path(os.environ["COMUX_DIR"]) / name
        self.tmp_path = tmp_path
        self.broker: Broker = connect(self.address)
        self._feeds: list[FeedThread] = []
        self._programs: list[Program] = []

    def topic(self, name: str, **spec: Any) -> None:
        """Make a topic of variable records."""
        self.broker.create_topic(TopicSpec(name, **{"data_bytes": 8 << 20, **spec}))

    def feed(self, source: str, topic: str, **options: Any) -> FeedThread:
        """Publish in a thread of this process."""
        feed = FeedThread(source, self.address, topic, **options)
        self._feeds.append(feed)
        return feed

    def program(self, name: str, *, env: dict[str, str] | None = None, **options: Any) -> Program:
        """Run a function of ``programs.py`` in a process."""
        journal = self.tmp_path / f"{name}-{len(self._programs)}.jsonl"
        program = Program(journal, name, {"address": self.address, **options}, env or {})
        self._programs.append(program)
        return program

    def read(self, topic: str, timeout: float = 20.0) -> list[Record]:
        """Every record of an ended topic."""
        out: list[Record] = []
        with self.broker.consumer(topic, start="beginning") as consumer:
            deadline = time.monotonic() + timeout
            while not consumer.ended():
                assert time.monotonic() < deadline, f"{topic} has not ended within {timeout} s"
                out += consumer.poll(0.2, 256)
        return out

    def retained(self, topic: str) -> list[Record]:
        """Every record of a topic that is readable now."""
        with self.broker.consumer(topic, start="beginning", on_end="wait") as consumer:
            wanted = self.broker.topic(topic).high_water
            out: list[Record] = []
            while consumer.position() < wanted and (records := consumer.poll(1.0, 256)):
                out += records
        return out

    def close(self) -> None:
        for program in self._programs:
            if program.process.poll() is None:
                program.kill()
        for feed in self._feeds:
            feed.end()
        self.broker.close()
        shutil.rmtree(self.directory, ignore_errors=True)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Topics of this test's own on ``shm://``; feeds and programs started through it end with it."""
    place = Place(tmp_path)
    try:
        yield place
    finally:
        place.close()


@pytest.fixture(name="until")
def _until() -> Callable[..., Any]:
    """Waiting for a condition under a deadline."""
    return until


@pytest.fixture(name="sequence")
def _sequence() -> Callable[[Record], int]:
    """A packet's sequence number."""
    return sequence
