"""The command as a person runs it: a process of its own, its output, its exit code."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from comux.cli import main
from comux.lifecycle import child_environment


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str
    seconds: float


class Running:
    """A command that runs; its output is read by threads, so that it never waits for us."""

    def __init__(self, arguments: Sequence[str], cwd: Path) -> None:
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "comux", *arguments],
            cwd=cwd,
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._text = {"out": "", "err": ""}
        self._open = {"out", "err"}
        self._changed = threading.Condition()
        pipes = {"out": self.process.stdout, "err": self.process.stderr}
        self._threads = [threading.Thread(target=self._read, args=pair) for pair in pipes.items()]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def _read(self, name: str, pipe) -> None:
        with pipe:
            for line in pipe:
                with self._changed:
                    self._text[name] += line
                    self._changed.notify_all()
        with self._changed:
            self._open.discard(name)
            self._changed.notify_all()

    def wait_for(self, pattern: str, *, where: str = "out", timeout: float = 60) -> str:
        """Until something like ``pattern`` was printed; fails at once where the command ended without it."""
        with self._changed:
            self._changed.wait_for(lambda: re.search(pattern, self._text[where]) or where not in self._open, timeout)
            assert re.search(pattern, self._text[where]), self._text
            return self._text[where]

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, timeout: float = 30) -> Ran:
        code = self.process.wait(timeout)
        for thread in self._threads:
            thread.join(10)
        return Ran(code, self._text["out"], self._text["err"], time.monotonic() - self.began)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.end()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Start ``comux ARGUMENTS`` in an empty folder; what still runs at the end of the test is killed."""
    running: list[Running] = []

    def begin(*arguments: str) -> Running:
        running.append(Running(arguments, tmp_path))
        return running[-1]

    yield begin
    for each in running:
        each.close()


@pytest.fixture
def run(start: Callable[..., Running]) -> Callable[..., Ran]:
    """Run ``comux ARGUMENTS`` to its end."""
    return lambda *arguments, timeout=30: start(*arguments).end(timeout)


@pytest.fixture
def execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """``run`` in this process: quick, for whatever ends by itself. Modules of the folder are imported anew."""
    root, ours = logging.getLogger(), logging.getLogger("comux")
    monkeypatch.setattr(root, "handlers", list(root.handlers))  # a command that logs to stderr does so to the test's
    monkeypatch.setattr(ours, "level", ours.level)

    def begin(*arguments: str) -> Ran:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        for path in tmp_path.glob("*.py"):
            monkeypatch.delitem(sys.modules, path.stem, raising=False)
        capsys.readouterr()
        began = time.monotonic()
        code = main.execute(list(arguments))
        out, err = capsys.readouterr()
        return Ran(code, out, err, time.monotonic() - began)

    return begin


@pytest.fixture
def topics_folder() -> Path:
    """Where this run's topics live; the session's private folder."""
    return Path(os.environ["COMUX_DIR"])


@pytest.fixture
def children() -> Callable[[int], set[int]]:
    """Living children of a process."""

    def find(pid: int) -> set[int]:
        tasks = Path(f"/proc/{pid}/task")
        return {int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()}

    return find


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """Until a condition holds, under a deadline."""

    def wait(condition: Callable[[], bool], timeout: float = 10) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true in time"
            threading.Event().wait(0.02)

    return wait


@pytest.fixture
def examples() -> Path:
    """The examples of the checkout these tests are in."""
    return Path(__file__).resolve().parents[2] / "examples"
