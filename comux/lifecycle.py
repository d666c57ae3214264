"""Ending a program from outside: its pid file, and asking, waiting, killing; and how children of ours are started.

Lives here: ``write_pid_file``, ``terminate``; ``until_stopped``, ``stop_on_signals``, ``StopEvent``,
``end_with_parent``; ``python_command``, ``child_environment``.
May import: ``errors``, ``family`` and the standard library.
Must never know: what the program does.

**Problem.** A pid is a reused number. Whoever kills the number in an old file may kill a stranger.

**The file** is JSON in one line, ``{"pid": 4711, "start": 8812345, "comux": 1}``, mode 0600. ``start`` is field 22 of
``/proc/<pid>/stat`` (clock ticks from boot to the process's start); pid and start together name one process. The first
comux wrote the bare number; then the process must look like a Python program of the same user instead.

**Writing.** The text goes into a temporary file of the same directory, which ``link`` puts in place: the name appears
whole or not at all, and never over another. Where the name is taken: by a living program, an error; by a stale file, it
is renamed away first and the link tried again, so of two programs starting at once one wins. A crash leaves at most a
temporary file with the pid in its name, or a stale pid file, which the next start and ``terminate`` recognise.

**Ending.** The pid is pinned with ``pidfd_open`` *before* the start time is compared: from then on signals reach that
very process or nothing. ``family`` ends it and whom it started; the file is removed if it is still the same.

**Being ended.** By signals, or because the parent ended: a thread waits on the parent's pidfd and sends this process
SIGTERM. (``PR_SET_PDEATHSIG`` tells of the end of the *thread* that started the child, which may be another moment
altogether.)

Invariants: no signal without a proven identity; processes are signalled one by one, never a group, and never pid 0, 1,
a negative number or this process; a file that names another program is never removed; symbolic links are never
followed; a file that another user left lying cannot direct a signal at a third user's program.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import math
import os
import select
import signal
import stat
import sys
import sysconfig
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final, Literal

import comux
from comux.errors import ConfigError
from comux.family import end_family, process_start

__all__ = [
    "StopEvent",
    "TerminateResult",
    "child_environment",
    "end_with_parent",
    "process_start",
    "python_command",
    "stop_on_signals",
    "terminate",
    "until_stopped",
    "write_pid_file",
]

_MAX_FILE: Final = 4096

Outcome = Literal["terminated", "killed", "not_running", "no_file", "refused", "still_running"]


@dataclass(frozen=True, slots=True)
class TerminateResult:
    """What became of a request to end a program.

    Attributes:
        outcome: ``terminated`` (it obeyed), ``killed`` (it did not), ``not_running`` (stale file, removed),
            ``no_file``, ``refused`` (the file or process is not what it claims; nothing was done), ``still_running``
            (it or a child of it: ``kill=False``, or the system would not end it).
        pid: Where one is known.
        seconds: How long it took.
        message: One line for people.
        children: How many processes it had started, as far as they were seen; all have ended where ``ok``.
        segments: Files of local topics that it or they had open.
    """

    outcome: Outcome
    pid: int | None
    seconds: float
    message: str
    children: int = 0
    segments: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the program is not running now: a missing or stale file is an answer, not an error."""
        return self.outcome in ("terminated", "killed", "not_running", "no_file")

    @property
    def exit_code(self) -> int:
        """For command lines: 0 ``ok``, 1 ``still_running``, 2 ``refused``."""
        return 0 if self.ok else 1 if self.outcome == "still_running" else 2


@dataclass(frozen=True, slots=True)
class _PidFile:
    """Content of a pid file; ``start`` is ``None`` in the first comux's; ``inode`` tells whether it is still it."""

    pid: int
    start: int | None
    inode: tuple[int, int]
    owner: int


# -- writing -------------------------------------------------------------------------------------------------------


def write_pid_file(path: str | os.PathLike[str] = "pid") -> Path:
    """State in a file which process this is, so that ``terminate`` finds it; removed at normal exit.

    Args:
        path: In the working directory by default. Its directory must exist.

    Returns:
        The absolute path.

    Raises:
        ConfigError: the file belongs to a program that is alive, is no pid file, or cannot be written.

    Calling it again with the same path is fine. A forked child does not remove its parent's file.
    """
    target = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow a link at the name itself
    pid, start = os.getpid(), process_start(os.getpid())
    text = json.dumps({"pid": pid, "start": start, "comux": 1}) + "\n"
    temporary = target.with_name(f".{target.name}.{pid}.{time.monotonic_ns()}")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.write(handle, text.encode())
            os.fsync(handle)
        finally:
            os.close(handle)
        for _ in range(10):
            if _link(temporary, target):
                break
            if not _make_room(target, pid):
                return target
        else:
            raise ConfigError(f"pid file {str(target)!r}: other programs keep taking the name; give another path")
    except OSError as exc:
        raise ConfigError(f"pid file {str(target)!r} cannot be written: {exc.strerror or exc}") from None
    finally:
        temporary.unlink(missing_ok=True)
    atexit.register(_remove_own, target, pid, start)
    return target


def _link(temporary: Path, target: Path) -> bool:
    try:
        os.link(temporary, target, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError as exc:
        if exc.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK):
            raise
        # A file system without links: exclusive creation is the next best; a crash in between leaves an empty file.
        try:
            handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            return False
        with os.fdopen(handle, "wb") as file:
            file.write(temporary.read_bytes())
    return True


def _make_room(target: Path, pid: int) -> bool:
    """Take a stale file away; ``False`` where the file is this process's already.

    Raises:
        ConfigError: a living program's, or no pid file.
    """
    try:
        found = _read(target)
    except FileNotFoundError:
        return True
    except ValueError as exc:
        raise ConfigError(f"{str(target)!r} exists and {exc}; remove it, or give another path") from None
    started = process_start(found.pid)
    if found.pid == pid and found.start in (None, started):
        if found.start is not None:
            return False
    elif started is not None and (started == found.start or (found.start is None and _looks_ours(found.pid) is None)):
        raise ConfigError(
            f"pid file {str(target)!r} belongs to pid {found.pid}, which is running: end it with 'comux terminate', or "
            "give another path"
        )
    _take_away(target, found)
    return True


def _take_away(target: Path, found: _PidFile) -> None:
    """Remove the very file that was read: renamed first, looked at again, put back if it was another by then."""
    aside = target.with_name(f".{target.name}.stale.{os.getpid()}.{time.monotonic_ns()}")
    try:
        target.rename(aside)
    except FileNotFoundError:
        return
    status = aside.lstat()
    if (status.st_dev, status.st_ino) != found.inode:
        with contextlib.suppress(FileExistsError):
            os.link(aside, target, follow_symlinks=False)
    aside.unlink(missing_ok=True)


def _remove_own(target: Path, pid: int, start: int | None) -> None:
    """Remove the file if it names this very process; nothing in a forked child."""
    if os.getpid() == pid:
        with contextlib.suppress(OSError, ValueError):
            found = _read(target)
            if (found.pid, found.start) == (pid, start):
                _take_away(target, found)


def _read(path: Path) -> _PidFile:
    """Raises ``FileNotFoundError``, or ``ValueError`` saying what the file is instead."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as exc:
        what = "is a symbolic link" if exc.errno == errno.ELOOP else f"cannot be read ({exc.strerror})"
        raise ValueError(what) from None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("is no regular file")
        data = os.read(handle, _MAX_FILE + 1)
    finally:
        os.close(handle)
    inode = (status.st_dev, status.st_ino)
    try:
        content = json.loads(data.decode("ascii")) if len(data) <= _MAX_FILE else None
    except (ValueError, RecursionError):
        content = None
    if type(content) is int:  # the first comux: a number and nothing else
        return _PidFile(content, None, inode, status.st_uid)
    if isinstance(content, dict) and type(content.get("pid")) is int and type(content.get("start")) is int:
        return _PidFile(content["pid"], content["start"], inode, status.st_uid)
    raise ValueError("is no pid file of comux")


# -- ending --------------------------------------------------------------------------------------------------------


def terminate(path: str | os.PathLike[str] = "pid", timeout: float = 10.0, kill: bool = True) -> TerminateResult:
    """End the program that wrote a pid file, and the processes it started: ask (SIGTERM), wait, kill, remove the file.

    Blocks for at most ``timeout`` + 5 s, and where it leaves children behind, for ``timeout`` + 7 s more.

    Args:
        path: The pid file, ours or the first comux's bare number.
        timeout: Seconds the program has to end by itself.
        kill: Send SIGKILL after that.

    Returns:
        What happened; nothing is raised for what the file or the system holds.

    Raises:
        ConfigError: ``timeout`` is no time.
    """
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 <= timeout <= 1e6:
        raise ConfigError(f"timeout {timeout!r} is no time: give seconds from 0 to 1000000")
    began = time.monotonic()
    target = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow a link at the name itself

    def result(outcome: Outcome, pid: int | None, message: str) -> TerminateResult:
        return TerminateResult(outcome, pid, time.monotonic() - began, message)

    try:
        found = _read(target)
    except FileNotFoundError:
        return result("no_file", None, f"no pid file {str(target)!r}: no program is running from there")
    except ValueError as exc:
        return result("refused", None, f"{str(target)!r} {exc}; nothing was done")
    pid = found.pid
    if pid <= 1 or pid == os.getpid() or pid > 2**31 - 1:
        return result(
            "refused", pid, f"{str(target)!r} names pid {pid}, which is never ended from here; nothing was done"
        )
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        pidfd = -1
    except OSError as exc:
        return result("refused", pid, f"pid {pid} cannot be held on to ({exc.strerror}); nothing was done")
    try:
        started = process_start(pid)
        if pidfd < 0 or started is None:
            _forget(target, found)
            return result(
                "not_running", pid, f"pid {pid} is not running any more; removed the stale file {str(target)!r}"
            )
        stranger = _stranger(found, started)
        if stranger is not None:
            return result("refused", pid, f"{stranger}; nothing was done, remove {str(target)!r} if it is stale")
        end = end_family(pid, pidfd, timeout, kill)
    finally:
        if pidfd >= 0:
            os.close(pidfd)
    if process_start(pid) != started:
        _forget(target, found)
    return TerminateResult(end.outcome, pid, time.monotonic() - began, end.message, end.children, end.segments)


def _stranger(found: _PidFile, started: int) -> str | None:
    """Why a living process is not the one that wrote the file; ``None`` where it is."""
    if found.start is None:
        return _looks_ours(found.pid)
    if found.start != started:
        return f"pid {found.pid} is another process now (it started at tick {started}, the file says {found.start})"
    owner = _owner(found.pid)
    if found.owner not in (os.geteuid(), owner):
        return f"the pid file belongs to user {found.owner}, pid {found.pid} to user {owner}"
    return None


def _owner(pid: int) -> int | None:
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return None


def _looks_ours(pid: int) -> str | None:
    """For files without a start time: why the process is no Python program of this user; ``None`` where it is one."""
    owner = _owner(pid)
    try:
        # A kernel thread, and a program in the instant of its exec, have a name but no command line yet.
        line = Path(f"/proc/{pid}/cmdline").read_bytes() or Path(f"/proc/{pid}/comm").read_bytes().rstrip(b"\n")
        words = line.split(b"\0")
    except OSError:
        return f"pid {pid} cannot be examined, and the file does not tell when its process started"
    if owner != os.geteuid():
        return f"pid {pid} belongs to user {owner}, not to {os.geteuid()}"
    program = os.path.basename(words[0]).decode("utf-8", "replace")  # noqa: PTH119 - bytes
    scripts = [word for word in words[1:3] if word.endswith(b".py")]
    if not program.startswith(("python", "pypy", "comux")) and not scripts:
        return f"pid {pid} runs {program!r}, which is no Python program, and the file does not tell when it started"
    return None


def _forget(target: Path, found: _PidFile) -> None:
    with contextlib.suppress(OSError):
        _take_away(target, found)


# -- being ended ---------------------------------------------------------------------------------------------------


class StopEvent(threading.Event):
    """An event that a signal handler may set, whatever the thread it interrupts is doing.

    ``threading.Event`` is none: ``wait`` and ``set`` hold a lock that is not re-entrant for a moment, and a handler
    that runs in that moment and calls ``set`` waits for its own thread for ever (seen: a publisher whose parent died
    was sent SIGTERM twice, once for each thread of the parent). Here is no lock: a flag says whether it is set, and an
    eventfd, which is readable from ``set`` to ``clear``, wakes who waits. (``queue.SimpleQueue``, whose ``put`` is
    documented as re-entrant, is no way out: an interrupted ``get`` with a short time-out may wait for ever in 3.11.)

    Holds one descriptor, in a forked child another one than in the parent.

    Attributes:
        signal: The number of the first signal that set it; ``None``: none did.
    """

    def __init__(self) -> None:
        super().__init__()
        self.signal: int | None = None
        self._on = False
        self._owner = 0
        self._wakes()

    def _wakes(self) -> int:
        """This process's eventfd. A handler that comes in between makes its own, which the caller gets, too."""
        if self._owner != os.getpid():
            self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            weakref.finalize(self, os.close, self._fd)
            self._owner = os.getpid()
        return self._fd

    def is_set(self) -> bool:
        return self._on

    def set(self) -> None:
        self._on = True
        with contextlib.suppress(BlockingIOError):  # 2**64 - 2 times is enough
            os.eventfd_write(self._wakes(), 1)

    def clear(self) -> None:
        self._on = False
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wakes())
        if self.is_set():  # set in between, and the wake-up may be what was read
            self.set()

    def wait(self, timeout: float | None = None) -> bool:
        poller = select.poll()
        poller.register(self._wakes(), select.POLLIN)
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.is_set():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            poller.poll(None if left is None else math.ceil(left * 1000))
        return True


@contextlib.contextmanager
def stop_on_signals(*signals: signal.Signals, on_stop: Callable[[], None] | None = None) -> Iterator[StopEvent]:
    """For a program's main loop: SIGINT and SIGTERM set an event instead of breaking in; a second one acts as usual.

    Args:
        signals: ``SIGINT`` and ``SIGTERM`` where none are given.
        on_stop: Called once at the first signal, in the main thread between two bytecodes (for example a ``close`` that
            wakes what the loop waits in). It must be short and must not take locks that the loop holds.

    Yields:
        The event, whose ``signal`` says which one came. The former handlers are back when the ``with`` ends.

    Raises:
        ConfigError: not in the main thread, where Python allows no handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        raise ConfigError("stop_on_signals works in the main thread only: Python delivers signals nowhere else")
    wanted = signals or (signal.SIGINT, signal.SIGTERM)
    stop = StopEvent()
    former = {number: signal.getsignal(number) for number in wanted}

    def handle(number: int, frame: FrameType | None) -> None:
        for each in wanted:
            signal.signal(each, former[each] if former[each] is not None else signal.SIG_DFL)
        if stop.signal is None:
            stop.signal = number
        stop.set()
        if on_stop is not None:
            on_stop()

    for number in wanted:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number in wanted:
            signal.signal(number, former[number] if former[number] is not None else signal.SIG_DFL)


def end_with_parent(parent: int, patience: float | None = 10.0) -> bool:
    """In a child: end when the parent does, however that ends.

    A thread waits for it and sends this process SIGTERM, and SIGKILL where that has not ended it ``patience`` seconds
    later. Any thread may have started this process; one that this process forks is not watched over.

    Args:
        parent: Its pid, as it told us: on the command line, say.
        patience: Seconds; ``None``: for ever.

    Returns:
        ``False`` where it has ended already, and this process has another parent now; the caller ends then.
    """
    try:
        pin = os.pidfd_open(parent)
    except ProcessLookupError:
        return False
    if os.getppid() != parent:  # pinned before: whoever has that number now is not our parent
        os.close(pin)
        return False

    def watch() -> None:
        poller = select.poll()
        poller.register(pin, select.POLLIN)
        poller.poll()
        os.close(pin)
        os.kill(os.getpid(), signal.SIGTERM)
        if patience is not None:
            threading.Event().wait(patience)
            os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="comux-parent", daemon=True).start()
    return True


@contextlib.contextmanager
def until_stopped(
    pid_file: str | os.PathLike[str] | None = None,
    *,
    parent: int | None = None,
    on_stop: Callable[[], object] | None = None,
) -> Iterator[StopEvent]:
    """The life of a program that runs until it is told to end: what ``stop_on_signals``, ``write_pid_file`` and
    ``end_with_parent`` do, for its main thread.

    ::

        with Comux(["cam1"]) as cameras, until_stopped("pid", on_stop=cameras.stop):
            for batch in cameras:
                ...

    Args:
        pid_file: Where to state which process this is; removed at the end. ``None``: nowhere.
        parent: Process with which to end; ``None``: none.
        on_stop: Called once when the event is set, in a thread of its own: it may wait and take locks.

    Yields:
        The event. A first SIGINT or SIGTERM, or the end of the parent, sets it; a second signal acts as usual: it ends
        the program at once.

    Raises:
        ConfigError: not in the main thread; the pid file belongs to a program that is alive, or cannot be written.
    """
    with stop_on_signals() as stop, contextlib.ExitStack() as stack:
        if pid_file is not None:
            target = write_pid_file(pid_file)
            stack.callback(_remove_own, target, os.getpid(), process_start(os.getpid()))
        if on_stop is not None:
            stack.callback(_call_when_set(stop, on_stop))
        if parent is not None and not end_with_parent(parent):
            stop.set()
        yield stop


def _call_when_set(stop: StopEvent, on_stop: Callable[[], object]) -> Callable[[], None]:
    """Call ``on_stop`` when the event is set; returns what ends the waiting."""
    over = threading.Event()

    def wait() -> None:
        stop.wait()
        if not over.is_set():
            on_stop()

    def end() -> None:
        over.set()
        stop.set()
        thread.join()

    thread = threading.Thread(target=wait, name="comux-stop", daemon=True)
    thread.start()
    return end


def python_command(*arguments: str) -> list[str]:
    """A command line that runs a module of this very comux, whatever lies in the working directory."""
    return [sys.executable, "-P", "-m", *arguments]


def child_environment() -> dict[str, str]:
    """The environment of a child: it finds comux where this process found it."""
    environment = dict(os.environ)
    root = str(Path(comux.__file__).resolve().parents[1])
    if root not in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
    return environment
