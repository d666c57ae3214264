"""Deaths on purpose: processes that die at a named place of the ring's code while they work.

Problem. "A process may be killed at any instant" is only a promise when a process was killed at each instant that
matters. The ring's test build knows those instants by name (failpoints); this module starts processes that arm one,
do a piece of work and die there, and keeps outside of the ring a record of what they had done until then.

How. ``VictimServer`` starts one small process that has the ring imported and nothing attached, and forks a victim from
it per case (a fork costs milliseconds, an interpreter start a hundred). A victim runs one scenario of
``comux.testing.ring_scenarios`` and writes every promise it was given (an offset a put returned, a lease, an
acknowledgement that returned) to its journal *after* it was given it, and every attempt *before* it: one ``write`` to
an append-only file each, which a SIGKILL cannot tear. What the journal says was returned must be true of the ring
afterwards; what it only says was attempted may be true or not.

A victim never leaves by accident: a scenario that ends without dying exits 0, one that raised exits 1 with the error in
its journal, and the server kills what it started when it ends itself.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

HEAD = 16


def payload(seq: int, size: int = 64) -> bytes:
    """A value that proves itself: sequence number, checksum, and filler that depends on both.

    Args:
        seq: 0 or more, below 2**64.
        size: bytes in all, at least 16.
    """
    filler = (seq & 0xFFFFFFFF).to_bytes(4, "little") * ((size - HEAD) // 4 + 1)
    body = seq.to_bytes(8, "little") + size.to_bytes(4, "little") + filler[: size - HEAD]
    return body[:12] + zlib.crc32(body).to_bytes(4, "little") + body[12:]


def read_payload(value: bytes | bytearray | memoryview) -> int:
    """The sequence number in a value made by ``payload``.

    Raises:
        ValueError: a single byte differs from what was written: the record is torn or was changed while it was held.
    """
    data = bytes(value)
    body = data[:12] + data[HEAD:]
    if len(data) < HEAD or int.from_bytes(data[8:12], "little") != len(data):
        raise ValueError(f"a value of {len(data)} bytes says it has {int.from_bytes(data[8:12], 'little')}")
    if zlib.crc32(body) != int.from_bytes(data[12:16], "little"):
        raise ValueError(f"checksum of the value with sequence number {int.from_bytes(data[:8], 'little')} is wrong")
    return int.from_bytes(data[:8], "little")


class Journal:
    """What a process was promised, kept where its death cannot reach it: an append-only file, one write per line."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def note(self, what: str, *numbers: int | str) -> None:
        """Append one line; it is there in full once the call has returned, whatever happens next."""
        os.write(self._fd, (" ".join([what, *map(str, numbers)]) + "\n").encode())

    def close(self) -> None:
        """Close the file. Twice is fine."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read_journal(path: Path) -> list[tuple[str, list[str]]]:
    """Lines of a journal as ``(what, words)``; an unfinished last line does not exist by construction."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [(line.split(" ", 1)[0], line.split(" ")[1:]) for line in lines]


@dataclass(frozen=True)
class Job:
    """What a victim is to do.

    Attributes:
        scenario: a name of ``ring_scenarios.SCENARIOS``.
        topic, directory: which ring.
        journal: its journal's path.
        failpoint: where it dies; ``None``: it works to the end (or dies on its own).
        nth: at which pass.
        action: ``kill`` or ``stop``.
        options: whatever the scenario asks for.
    """

    scenario: str
    topic: str
    directory: str
    journal: str
    failpoint: str | None = None
    nth: int = 1
    action: str = "kill"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Death:
    """How a victim ended: ``signal`` 0 and ``code`` 0 is an orderly end."""

    pid: int
    signal: int
    code: int


class VictimServer:
    """Starts victims and tells how they ended. Context manager; use from one thread.

    Args:
        environment: added to this process's environment for the server and its victims.

    Raises:
        RuntimeError: the server process itself died; the message holds the last it wrote to stderr.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        env = {**os.environ, "COMUX_RING_FAILPOINTS": "1", **(environment or {})}
        env.pop("COMUX_FAILPOINT", None)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "comux.testing.ring_faults"],  # -P: not what lies in the working folder
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
        )
        self._alive: set[int] = set()
        self._asking = False

    def start(self, job: Job) -> int:
        """Fork a victim for ``job``; its pid."""
        answer = self._ask({"do": "start", "job": {**job.__dict__, "options": dict(job.options)}})
        self._alive.add(answer["pid"])
        return int(answer["pid"])

    def wait(self, pid: int, timeout: float = 20.0) -> Death:
        """Wait for a victim's death.

        Raises:
            TimeoutError: it lives longer than ``timeout`` seconds; it is killed.
        """
        answer = self._ask({"do": "wait", "pid": pid, "timeout": timeout})
        self._alive.discard(pid)
        if answer["late"]:
            raise TimeoutError(f"victim {pid} was still alive after {timeout} s")
        return Death(pid, answer["signal"], answer["code"])

    def wait_any(self, timeout: float) -> Death | None:
        """The next victim that ends within ``timeout`` seconds; ``None`` where none does."""
        answer = self._ask({"do": "wait any", "timeout": timeout})
        if answer["pid"] == 0:
            return None
        self._alive.discard(answer["pid"])
        return Death(answer["pid"], answer["signal"], answer["code"])

    def run(self, job: Job, timeout: float = 20.0) -> Death:
        """``start`` and ``wait``."""
        return self.wait(self.start(job), timeout)

    def failpoints(self) -> list[str]:
        """Every name the test build knows, each once."""
        return sorted(set(self._ask({"do": "failpoints"})["names"]))

    def module(self) -> str:
        """Path of the C module the victims run."""
        return str(self._ask({"do": "module"})["path"])

    def clear(self) -> None:
        """After a test that was cut off: kill its victims and pass over the answer nobody waited for."""
        for pid in self._alive:  # here, not by the server: it may be waiting for one of them
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._asking:
            self._answer()
        self._ask({"do": "clear"})
        self._alive.clear()

    def close(self) -> None:
        """Kill what still lives and end the server. Twice is fine."""
        if self._process.poll() is None and self._process.stdin:
            self._process.stdin.close()
        self._process.wait(20)
        if self._process.stdout:
            self._process.stdout.close()

    def __enter__(self) -> VictimServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        self._asking = True
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        self._asking = False
        if not line:
            raise RuntimeError(f"the victim server died with code {self._process.wait(10)}")
        answer: dict[str, Any] = json.loads(line)
        return answer


# -- inside of the server ---------------------------------------------------------------------------------------------


def _victim(job: dict[str, Any]) -> None:
    """In the forked child: run the scenario and leave without cleaning up anything by accident."""
    from comux.testing import ring_scenarios

    signal.signal(signal.SIGINT, signal.default_int_handler)
    journal = Journal(Path(job["journal"]))
    code = 0
    try:
        ring_scenarios.run(job, journal)
    except BaseException as error:  # noqa: BLE001 - reported through the journal; this process ends here
        journal.note("error", type(error).__name__, str(error))
        code = 1
    os._exit(code)


def _fate(status: int) -> dict[str, int]:
    killed = os.WIFSIGNALED(status)
    return {"signal": os.WTERMSIG(status) if killed else 0, "code": 0 if killed else os.WEXITSTATUS(status)}


def _wait_any(timeout: float, children: set[int]) -> dict[str, Any]:
    """SIGCHLD is blocked in the server, so one that comes between the look and the wait is not missed."""
    deadline = time.monotonic() + timeout
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            children.discard(pid)
            return {"pid": pid, **_fate(status)}
        if signal.sigtimedwait({signal.SIGCHLD}, max(0.0, deadline - time.monotonic())) is None:
            break
    return {"pid": 0}


def _wait(pid: int, timeout: float) -> dict[str, Any]:
    late = False
    fd = os.pidfd_open(pid)
    try:
        if not select.select([fd], [], [], timeout)[0]:
            late = True
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(fd)
    _, status = os.waitpid(pid, 0)
    return {"late": late, **_fate(status)}


def _start(job: dict[str, Any], children: set[int]) -> dict[str, Any]:
    pid = os.fork()
    if pid == 0:
        os.close(0)
        os.dup2(2, 1)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        _victim(job)
    children.add(pid)
    return {"pid": pid}


def _clear(children: set[int]) -> dict[str, Any]:
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    children.clear()
    return {}


def _serve() -> None:
    import hashlib
    import socket

    import numpy

    from comux import ring
    from comux.ring import handles, log, native
    from comux.testing import ring_roles, ring_scenarios

    # Everything a victim needs is imported here, once: numpy alone took each of them a tenth of a second.
    assert all((hashlib, socket, numpy, handles, log, native, ring_scenarios.SCENARIOS, ring_roles.ROLES))
    gc.freeze()  # else the first collection in a victim writes to, and so copies, every page that it shares with us
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    children: set[int] = set()
    answers: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "start": lambda q: _start(q["job"], children),
        "wait": lambda q: _wait(q["pid"], q["timeout"]),
        "wait any": lambda q: _wait_any(q["timeout"], children),
        "clear": lambda q: _clear(children),
        "failpoints": lambda q: {"names": list(ring.failpoints())},
        "module": lambda q: {"path": native.core.__file__},
    }
    for line in sys.stdin:
        question = json.loads(line)
        answer = answers[question["do"]](question)
        if question["do"] == "wait":
            children.discard(question["pid"])
        os.write(1, json.dumps(answer).encode() + b"\n")
    _clear(children)


if __name__ == "__main__":
    _serve()
