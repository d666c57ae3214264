"""The users' acts run here: one thread of their own behind a bounded queue, so that a slow act blocks nobody.

Acts run one after the other in the order the commands came. A full queue is an answer ("busy"), not a wait. A thread
that is inside a user's function cannot be ended from outside; it is a daemon, so it cannot keep a program alive either.
"""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from comux.control.commands import Command
from comux.control.interface import Act
from comux.errors import ConfigError

current: contextvars.ContextVar[Command | None] = contextvars.ContextVar("comux_command", default=None)


def current_command() -> Command | None:
    """Inside a user's act: the command being carried out (raw bytes, request-id, …); elsewhere ``None``."""
    return current.get()


def check_acts(acts: Mapping[str, Act] | None) -> dict[str, Act]:
    """A copy of the acts.

    Raises:
        ConfigError: a name is no text, or an act cannot be called.
    """
    if acts is not None and not isinstance(acts, Mapping):
        raise ConfigError(f"acts {acts!r} is {type(acts).__name__}, not a mapping of names to functions")
    out = dict(acts or {})
    for name, act in out.items():
        if not isinstance(name, str) or not name:
            raise ConfigError(f"acts: the name {name!r} is no text")
        if not callable(act):
            raise ConfigError(f"acts: {name!r} is {type(act).__name__}, not a function of (comux, value)")
    return out


class ActWorker:
    """Runs jobs in one thread.

    Args:
        name: Of the thread.
        pending: Jobs that may wait at most.
    """

    def __init__(self, name: str, pending: int) -> None:
        self._jobs: queue.Queue[tuple[Callable[[], None], Callable[[], None]] | None] = queue.Queue(pending + 1)
        self._pending = pending
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._started = False

    def submit(self, job: Callable[[], None], abandon: Callable[[], None]) -> bool:
        """Queue a job; never waits.

        Args:
            job: Must not raise.
            abandon: Called instead where the worker is closed before the job's turn. Must not raise.

        Returns:
            ``False`` where the queue is full or the worker closed: nothing will be called.
        """
        with self._lock:
            if self._closed or self._jobs.qsize() >= self._pending:
                return False
            if not self._started:  # most programs have no acts: no thread for those
                self._started = True
                self._thread.start()
            self._jobs.put_nowait((job, abandon))
            return True

    def _run(self) -> None:
        while True:
            item = self._jobs.get()
            if item is None:
                return
            job, abandon = item
            if self._closed:
                abandon()
            else:
                job()

    def close(self) -> None:
        """Let the running act finish, abandon the waiting ones. Does not wait; see ``join``."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._started:
                self._jobs.put_nowait(None)  # there is one place more than jobs

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the thread's end; at once where it is the caller. Returns whether it has ended."""
        if self._started and self._thread is not threading.current_thread():
            self._thread.join(timeout)
            return not self._thread.is_alive()
        return True


def call(act: Callable[[Any, Any], Any], subject: Any, command: Command) -> Any:
    """Call a user's act with ``current_command`` set; ``SystemExit`` becomes ``RuntimeError``: acts end no program."""
    token = current.set(command)
    try:
        return act(subject, command.value)
    except SystemExit as exc:
        raise RuntimeError(f"the act called sys.exit({exc.code!r}); an act cannot end the program") from exc
    finally:
        current.reset(token)
