"""Keeping servers: the state folder with its lock, processes that outlive the command, ports nobody else takes.

The state folder holds ``state.json`` (addresses, pids, throw-away passwords; mode 0600), ``lock``, and a folder of each
server's own with its configuration, data and logs. Every change of it is made under the lock, by one command at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

# Below where Linux takes ports for outgoing connections: a broker that was killed finds its port free again.
_PORTS = range(20_000, 32_000)
_LOG_TAIL = 30
Entry = dict[str, Any]


class ServiceError(Exception):
    """A server could not be started, stopped or found; the message says what to do."""


class MissingTool(ServiceError):
    """A program that a server needs is not on this machine."""


class NotReady(Exception):
    """A server that does not answer yet as it should; asked again until the time-out."""


class Server(Protocol):
    """A kind of server, as the table in ``scripts/services`` holds it."""

    def fetch(self) -> None:
        """Download what the server needs, if the cache lacks it. Raises `MissingTool`."""
        ...

    def prepare(self, name: str, folder: Path, ports: Ports) -> Entry:
        """Write all files the server needs into ``folder`` (its own, mode 0700).

        Returns the server's entry in the state: ``bootstrap`` (what clients are given), ``addresses`` (by kind), what
        else clients need, and ``processes``: by name, each with ``command``, ``address`` and ``log``.
        """
        ...

    def round_trip(self, entry: Entry, names: list[str]) -> None:
        """One round trip of a real client through the processes named. Raises `NotReady`."""
        ...


def say(text: str) -> None:
    """Progress and problems, for people: to stderr."""
    print(f"services: {text}", file=sys.stderr, flush=True)


class Interrupts:
    """SIGINT, SIGTERM and SIGHUP as `KeyboardInterrupt`; held back where they must not come between two steps."""

    def __init__(self) -> None:
        self._held = False
        self._pending = False

    def install(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._arrived)

    def ignore(self) -> None:
        """From now on nothing interrupts: for clearing up."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """While inside, an interrupt waits; it is raised on the way out."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
            if self._pending:
                self._pending = False
                raise KeyboardInterrupt

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if self._held:
            self._pending = True
        else:
            raise KeyboardInterrupt


interrupts = Interrupts()


def run(command: list[str], timeout: float, env: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run a program to its end (or ``timeout`` seconds, or ours); gives its exit code and all it wrote."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
            env={**os.environ, **(env or {})},
        )
    except subprocess.TimeoutExpired as exc:
        raise ServiceError(f"{command[0]} did not end within {timeout:.0f} s") from exc
    return done.returncode, done.stdout


class State:
    """A state folder."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._file = self.path / "state.json"

    def read(self) -> dict[str, Entry]:
        """The servers recorded, by name; empty where there is no state."""
        try:
            found: dict[str, Entry] = json.loads(self._file.read_text())["servers"]
        except FileNotFoundError:
            return {}
        return found

    def write(self, servers: dict[str, Entry]) -> None:
        part = self.path / f"state.json.{os.getpid()}"
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump({"servers": servers}, file, indent=2)
        part.rename(self._file)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """The folder is there and ours alone; a folder in which nothing runs any more is removed at the end."""
        with contextlib.ExitStack() as stack:
            while True:
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
                path = self.path / "lock"
                try:
                    lock = stack.enter_context(path.open("w"))
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    if os.fstat(lock.fileno()).st_ino == path.stat().st_ino:
                        break
                except FileNotFoundError:  # who had the lock removed the folder: the next round makes it anew
                    continue
            try:
                yield
            finally:
                if not self.read():
                    self._file.unlink(missing_ok=True)
                    path.unlink()
                    with contextlib.suppress(OSError):  # a folder that holds other people's files stays
                        self.path.rmdir()

    def forget(self, name: str) -> None:
        """Remove a server's folder and its entry."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.path / name)
        servers = self.read()
        servers.pop(name, None)
        self.write(servers)


class Ports:
    """Free ports on 127.0.0.1, held until `close` by sockets that are bound but do not listen.

    SO_REUSEADDR, which Java sets too, lets the server bind and listen beside them; whoever looks for a free port
    meanwhile finds them taken.
    """

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def take(self) -> int:
        for port in random.sample(_PORTS, len(_PORTS)):
            held = socket.socket()
            try:
                held.bind(("127.0.0.1", port))
            except OSError:
                held.close()
                continue
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._held.append(held)
            return port
        raise ServiceError(f"no free port on 127.0.0.1 from {_PORTS.start} to {_PORTS.stop - 1}")

    def close(self) -> None:
        for held in self._held:
            held.close()


def start_ticks(pid: int) -> int | None:
    """When a process started, in the kernel's ticks since boot: with the pid, its identity. None where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    # A killed JVM's first thread may be gone while others have still to go, and hold its files and ports until then.
    return None if fields[0] in b"ZX" and int(fields[17]) <= 1 else int(fields[19])


def running(process: Entry) -> bool:
    """Whether a process of an entry runs: the one that was started, not another that got its pid."""
    begun: int | None = process.get("ticks")  # none: it had ended before it could be looked at
    return begun is not None and start_ticks(process["pid"]) == begun


def start(process: Entry) -> None:
    """Start a process of an entry, in a session of its own, and note its pid there; it outlives us."""
    with Path(process["log"]).open("ab") as log:
        child = subprocess.Popen(
            process["command"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=Path(process["log"]).parent,
            start_new_session=True,
        )
    process["pid"], process["ticks"] = child.pid, start_ticks(child.pid)
    child.returncode = 0  # else its destructor warns that it still runs


def stop(processes: list[Entry], patience: float) -> None:
    """End processes: SIGTERM, and SIGKILL after ``patience`` seconds (at once for 0). Returns when they have ended."""
    for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 10.0)):
        if number is signal.SIGTERM and patience <= 0:
            continue
        for process in filter(running, processes):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process["pid"], number)
        deadline = time.monotonic() + seconds
        while any(map(running, processes)) and time.monotonic() < deadline:
            time.sleep(0.02)
    left = [str(process["pid"]) for process in filter(running, processes)]
    if left:
        raise ServiceError(f"processes {', '.join(left)} are still there 10 s after SIGKILL")


def wait_ready(server: Server, entry: Entry, names: list[str], timeout: float) -> None:
    """Wait until a client's round trip succeeds. A process that ends meanwhile is an error that shows its log's end."""
    deadline = time.monotonic() + timeout
    while True:
        for name in names:
            if not running(entry["processes"][name]):
                log = tail(entry["processes"][name])
                raise ServiceError(f"{name} ended while starting; the end of its log:\n{log}")
        try:
            for name in names:
                host, _, port = entry["processes"][name]["address"].rpartition(":")
                socket.create_connection((host, int(port)), timeout=1.0).close()
            server.round_trip(entry, names)
            return
        except (OSError, NotReady) as exc:
            if time.monotonic() > deadline:
                logs = "\n".join(f"{name}:\n{tail(entry['processes'][name])}" for name in names)
                raise ServiceError(
                    f"{', '.join(names)} did not answer within {timeout:.0f} s ({exc}); the end of the log of {logs}"
                ) from exc
        time.sleep(0.1)


def tail(process: Entry) -> str:
    """The last lines of a process's log."""
    try:
        return "\n".join(Path(process["log"]).read_text(errors="replace").splitlines()[-_LOG_TAIL:])
    except OSError as exc:
        return f"(no log: {exc})"
