"""The processes that decode: started when the first decoder needs them, shared by the sources, started again when they
die, ended with the program.

A source belongs to one of them for good: what kills a decoder must not go from process to process. One that dies is
started again at once the first time; where it lives for less than ``_LIVED`` seconds again and again, after a growing
pause. Processes are started by ``exec``, never forked: a fork would copy locks that other threads hold.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal

from comux.decoders.interface import Decoder, DecoderOptions
from comux.errors import ClosedError, DecoderLostError
from comux.lifecycle import child_environment, python_command
from comux.options import CamId
from comux.processes.moving import Mover
from comux.processes.remote import RemoteDecoder
from comux.processes.wire import send
from comux.telemetry import EventLog

_PATIENCE: Final = 20  # seconds in which a process answers; one that is started is among them
_LIVED: Final = 30.0
_PAUSE_FIRST: Final = 0.25
_PAUSE_MOST: Final = 10.0
_END: Final = 2.0
_CLOSING: Final = 0.5  # a socket closes a moment before its process can be waited for
_AUTO_MOST: Final = 4
_BETWEEN_MOVES: Final = 1.0
_NOT_APART: Final = ("raw", "frames")


def decodes_apart(codec: str) -> bool:
    """Whether there is work for another process: arrays and shared frames would only be copied once more."""
    return codec.lower() not in _NOT_APART


class _Process:
    """One process that runs, or has ended."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._popen = subprocess.Popen(
                [*python_command("comux.processes.child"), str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=child_environment(),
                pass_fds=[theirs.fileno()],
                process_group=0,  # Ctrl-C reaches the program alone, which ends its processes
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._control = ours
        self._ready = False
        self.told = False  # its end is known to everybody

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def ready(self) -> bool:
        """Whether it has said so: what it needs is loaded. Does not wait."""
        if not self._ready:
            with contextlib.suppress(OSError):  # nothing came yet
                self._ready = bool(self._control.recv(64, socket.MSG_DONTWAIT))
        return self._ready

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def ended(self, timeout: float) -> bool:
        """Whether it has; waits."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(timeout)
        return not self.alive

    def open(self, name: str) -> socket.socket:
        """The end of a new channel to it; raises ``OSError``."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            # By the kernel's clock: a time-out of Python's makes two system calls of each.
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", _PATIENCE, 0))
            send(self._control, {"name": name}, [theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return ours

    def ask_to_end(self) -> None:
        """Close its control socket, which ends it; does not wait."""
        self._control.close()

    def end(self, timeout: float) -> None:
        """Wait for it to end, and kill it where it does not."""
        self.ask_to_end()
        if not self.ended(timeout):
            self._popen.kill()
            self._popen.wait()

    def how(self) -> str:
        """How it ended, for people."""
        code = self._popen.poll()
        if code is None:
            return "still runs"
        if code < 0:
            try:
                return f"was ended by {signal.Signals(-code).name}"
            except ValueError:
                return f"was ended by signal {-code}"
        return f"ended with code {code}"


class _Place:
    """Where a process is, or will be: what is remembered of those that died there."""

    def __init__(self) -> None:
        self.process: _Process | None = None
        self.failures = 0
        self.not_before = 0.0
        self.sources: set[str] = set()


class _Link:
    """See ``remote.Link``."""

    def __init__(self, owner: DecodeProcesses, process: _Process, channel: socket.socket) -> None:
        self.channel = channel
        self._owner = owner
        self._process = process

    def lost(self, why: str, *, hung: bool) -> str:
        return self._owner.lost(self._process, why, hung=hung)

    def close(self) -> None:
        self.channel.close()


class DecodeProcesses:
    """Starts and ends them; thread-safe.

    Args:
        count: How many; ``"auto"``: half as many as there are cores, and a source's decoder moves there when the
            interpreter is seen to hold it up (``moving``).
        events: Where starts and ends are told: ``decoding.process``.
    """

    def __init__(self, count: int | Literal["auto"], events: EventLog) -> None:
        self.auto = count == "auto"
        self.count = max(1, min(_AUTO_MOST, (os.cpu_count() or 1) // 2)) if count == "auto" else count
        self._events = events
        self._lock = threading.Lock()
        self._news: deque[dict[str, Any]] = deque()  # told when the lock is free: listeners may ask us
        self._places = [_Place() for _ in range(self.count)]
        self._closed = False
        self._moved: set[str] = set()
        self._next_move = 0.0
        self.moves = 0  #: how many sources have moved by themselves

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock; tell afterwards what happened meanwhile."""
        try:
            with self._lock:
                yield
        finally:
            while self._news:
                with contextlib.suppress(IndexError):  # another thread tells it
                    self._events.emit("decoding.process", **self._news.popleft())

    def decoder_of(
        self, source: CamId, here: Callable[[DecoderOptions], Decoder]
    ) -> Callable[[DecoderOptions], Decoder]:
        """What makes a source's decoders.

        Args:
            source: Its id.
            here: Makes one in this process: where there are no others, and for what they have no work with.
        """
        if not self.count:
            return here

        def make(options: DecoderOptions) -> Decoder:
            there = decodes_apart(options.codec) and (not self.auto or str(source) in self._moved)
            return self.apart(str(source), options) if there else here(options)

        return make

    def mover_of(self, source: CamId) -> Mover | None:
        """What sees whether a source's decoder should move; ``None``: it does not move by itself, or has moved."""
        if not self.auto or not self.count or str(source) in self._moved:
            return None
        return Mover(str(source), self, self._events)

    def apart(self, source: str, options: DecoderOptions) -> RemoteDecoder:
        """Make a source's decoder in its process.

        Raises:
            ComuxError: as ``RemoteDecoder``.
        """
        return RemoteDecoder(options, functools.partial(self.connect, source))

    def prepared(self, source: str) -> bool:
        """See ``moving.Processes``."""
        with self._locked():
            if self._closed:
                return False
            try:
                return self._running(self._place_of(source)).ready
            except (DecoderLostError, OSError):
                return False

    def take_turn(self) -> bool:
        """See ``moving.Processes``."""
        with self._locked():
            now = time.monotonic()
            if now < self._next_move:
                return False
            self._next_move = now + _BETWEEN_MOVES
            return True

    def moved(self, source: str) -> None:
        """A source has its decoder in a process now, and from now on."""
        with self._locked():
            self._moved.add(source)
            self.moves += 1

    def connect(self, source: str) -> _Link:
        """A thread of a process that decodes for a source.

        Raises:
            DecoderLostError: its process has died too often, and is started again later. ClosedError.
        """
        with self._locked():
            if self._closed:
                raise ClosedError("the processes that decode were ended; make a new Comux")
            place = self._place_of(source)
            for _ in range(2):
                process = self._running(place)
                try:
                    return _Link(self, process, process.open(source))
                except OSError as error:
                    if not process.ended(_CLOSING):
                        raise DecoderLostError(f"decode process {process.pid} cannot be reached: {error}") from error
                    self._bury(place, process)
            raise DecoderLostError(f"its decode process {process.pid} {process.how()} as soon as it was started")

    def forget(self, source: str) -> None:
        """A source has gone for good: its process has room for another."""
        with self._locked():
            self._moved.discard(source)
            for place in self._places:
                place.sources.discard(source)

    def pids(self) -> list[int]:
        """Of those that run."""
        with self._locked():
            processes = [place.process for place in self._places]
        return [process.pid for process in processes if process is not None and process.alive]

    def status(self) -> list[dict[str, Any]]:
        """Per process: pid (``None``: none runs), its sources, how often it died lately; JSON-ready."""
        with self._locked():
            return [
                {
                    "pid": place.process.pid if place.process is not None and place.process.alive else None,
                    "sources": sorted(place.sources),
                    "failures": place.failures,
                }
                for place in self._places
            ]

    def close(self) -> None:
        """End them; waits, and kills those that do not. Idempotent."""
        with self._locked():
            self._closed = True
            processes = [place.process for place in self._places if place.process is not None]
            for place in self._places:
                place.process = None
        deadline = time.monotonic() + _END
        for process in processes:
            process.ask_to_end()
        for process in processes:
            process.end(max(0.0, deadline - time.monotonic()))

    # -- under the lock --------------------------------------------------------------------------------------------

    def _place_of(self, source: str) -> _Place:
        for place in self._places:
            if source in place.sources:
                return place
        place = min(self._places, key=lambda place: len(place.sources))
        place.sources.add(source)
        return place

    def _running(self, place: _Place) -> _Process:
        process = place.process
        if process is not None and not process.alive:
            self._bury(place, process)
            process = None
        if process is None:
            left = place.not_before - time.monotonic()
            if left > 0:
                raise DecoderLostError(f"its decode process died {place.failures} times and is started in {left:.1f} s")
            try:
                process = place.process = _Process()
            except OSError as error:
                raise DecoderLostError(f"no decode process can be started: {error}") from error
            self._news.append({"message": f"process {process.pid} decodes", "pid": process.pid, "state": "started"})
        return process

    def _bury(self, place: _Place, process: _Process, *, hung: bool = False) -> None:
        """It has ended, or must: say so once, and when the next may start."""
        if process.told:
            return
        process.told = True
        process.end(0.0)
        if place.process is process:
            place.process = None
        if self._closed:
            return
        now = time.monotonic()
        place.failures = 1 if now - process.started >= _LIVED else place.failures + 1
        pause = 0.0 if place.failures == 1 else min(_PAUSE_FIRST * 2 ** (place.failures - 2), _PAUSE_MOST)
        place.not_before = now + pause
        how = f"did not answer within {_PATIENCE} s and was killed" if hung else process.how()
        self._news.append(
            {
                "message": f"process {process.pid}, which decoded for {', '.join(sorted(place.sources))}, {how}",
                "level": logging.WARNING,
                "pid": process.pid,
                "state": "ended",
                "sources": sorted(place.sources),
                "failures": place.failures,
                "pause": pause,
            }
        )

    def lost(self, process: _Process, why: str, *, hung: bool) -> str:
        """A decoder hears nothing of a process any more: what became of it, for people. One that hung is killed."""
        ended = process.ended(0.0 if hung else _CLOSING)
        with self._locked():
            for place in self._places:
                if place.process is process and (hung or ended):
                    self._bury(place, process, hung=hung)
        if process.alive:
            return f"its decoder failed in process {process.pid}: {why}"
        return f"its decode process {process.pid} {process.how()}"
