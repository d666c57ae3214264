"""A program and the processes it started: found, told apart from strangers, and ended.

Lives here: ``end_family``; ``Family``, ``process_start``.
May import: the standard library.
Must never know: pid files; what the program does.

**Problem.** Who ends a program by SIGKILL leaves its children behind, and who ends "its children" by number may end a
stranger: numbers are used again, and a child whose parent has died looks like anybody's.

**Who belongs to it.** A process is taken for a child only on proof. It is pinned (``pidfd_open``) first; then its
parent's number is read; then neither pin may tell of an end. So the number read was that of the pinned process, and
the parent's number was the pinned parent's all the time. Children of children likewise. Whoever left the family before
it was looked at (a daemon, whose parent has ended) is no part of it; nor is who runs as another user, nor this process
and those it descends from. What was found stays pinned, also when its parent dies.

**Ending.** Look; SIGTERM to the program alone, which ends its children in its own order; look again and again while it
does. A program that does not end in time is stopped (SIGSTOP), so that it starts nobody more, looked at for the last
time, and killed. Its children then have ``SETTLE`` seconds to end by themselves, as those do that watch their parent:
a second SIGTERM would cut short what the first began. Who is left is asked by SIGTERM; who does not obey is stopped
with all it has started, and killed.

Invariants: no signal but through a pin; nobody is stopped who is not killed right after.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

__all__ = ["End", "Family", "end_family", "process_start"]

SETTLE: Final = 2.0  #: seconds
_LOOK: Final = 0.25
_KILL_WAIT: Final = 5.0
_SEGMENT: Final = ".ring"

Outcome = Literal["terminated", "killed", "refused", "still_running"]


@dataclass(frozen=True, slots=True)
class End:
    """What became of a program and its family.

    Attributes:
        outcome: Of the program; ``still_running`` also where only a child of it still runs.
        message: One line for people.
        children: How many processes it had started, as far as they were seen.
        segments: Files of local topics that it or they had open.
    """

    outcome: Outcome
    message: str
    children: int = 0
    segments: tuple[str, ...] = ()


def _stat(pid: int) -> list[str]:
    """Fields of ``/proc/<pid>/stat`` from the state on; none where there is no such process, or only its zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return []
    fields = text.rpartition(")")[2].split()  # the name in parentheses may itself hold spaces and parentheses
    return [] if len(fields) < 20 or fields[0] in ("Z", "X") else fields


def process_start(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot; ``None`` where there is none, or only its zombie."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def _parent(pid: int) -> int:
    """Its parent's pid; 0: there is no such process."""
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def _numbers() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208 - names only


def _gone(pins: list[int], timeout: float) -> bool:
    """Wait until every pinned process has ended, at most ``timeout`` seconds. A pin becomes readable then."""
    deadline = time.monotonic() + timeout
    waiting = list(pins)
    while waiting:
        poller = select.poll()
        for pin in waiting:
            poller.register(pin, select.POLLIN)
        left = deadline - time.monotonic()
        ended = {pin for pin, _ in poller.poll(max(0.0, left) * 1000)}
        waiting = [pin for pin in waiting if pin not in ended]
        if left <= 0:
            break
    return not waiting


class Family:
    """A program's descendants, pinned. A context manager; holds a descriptor for each.

    Args:
        pid: Of the program.
        pin: Its pidfd, which stays the caller's; the pid must have been proven to be the program's since it was opened.
    """

    def __init__(self, pid: int, pin: int) -> None:
        self._root = pid
        self._pins = {pid: pin}
        self._owner = _owner(pid)
        self.segments: set[str] = set()
        self._not_ours = {os.getpid()}
        above = os.getppid()
        while above > 1 and above != pid:
            self._not_ours.add(above)
            above = _parent(above)

    def __enter__(self) -> Family:
        return self

    def __exit__(self, *exc: object) -> None:
        for pid, pin in self._pins.items():
            if pid != self._root:
                os.close(pin)

    @property
    def children(self) -> dict[int, int]:
        """Pins by pid, of all that were ever found."""
        return {pid: pin for pid, pin in self._pins.items() if pid != self._root}

    @property
    def alive(self) -> dict[int, int]:
        """Those of ``children`` that still run."""
        return {pid: pin for pid, pin in self.children.items() if not _gone([pin], 0)}

    def look(self) -> bool:
        """Find who was started since; whether there was anybody."""
        found = False
        growing = True
        while growing:
            growing = False
            for pid in _numbers():
                if pid not in self._pins and pid not in self._not_ours and self._adopt(pid):
                    found = growing = True
        for pid, pin in self._pins.items():
            segments = _segments(pid)
            if not _gone([pin], 0):  # else the number may be another's already
                self.segments |= segments
        return found

    def _adopt(self, pid: int) -> bool:
        """Pin a process if it is a child of one that is pinned."""
        if _parent(pid) not in self._pins:  # most are not: no need to pin them
            return False
        try:
            pin = os.pidfd_open(pid)
        except OSError:
            return False
        parent = self._pins.get(_parent(pid))
        if parent is None or _owner(pid) != self._owner or _gone([parent], 0) or _gone([pin], 0):
            os.close(pin)
            return False
        self._pins[pid] = pin
        return True

    def signal(self, number: signal.Signals) -> int:
        """Send a signal to every child that runs; how many that were."""
        alive = self.alive
        for pin in alive.values():
            with contextlib.suppress(OSError):  # it has just ended
                signal.pidfd_send_signal(pin, number)
        return len(alive)

    def kill(self) -> int:
        """Stop them, and whoever they may have started meanwhile, then SIGKILL; how many that were."""
        self.signal(signal.SIGSTOP)
        while self.look():
            self.signal(signal.SIGSTOP)
        return self.signal(signal.SIGKILL)


def _owner(pid: int) -> int | None:
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return None


def _segments(pid: int) -> set[str]:
    """Local topics' files that a process has mapped."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
    except OSError:
        return set()
    paths = (line.split(maxsplit=5)[5] for line in lines if line.endswith(_SEGMENT))
    return {path for path in paths if path.startswith("/")}


# -- ending --------------------------------------------------------------------------------------------------------


def end_family(pid: int, pin: int, timeout: float, kill: bool) -> End:
    """End a program and whom it started: ask, wait, kill.

    Blocks for ``timeout`` + 5 s at most for the program, and then, where it leaves children behind, for ``SETTLE`` and
    the rest of ``timeout`` (at least ``SETTLE``) + 5 s for them.

    Args:
        pid: Of the program.
        pin: Its pidfd; the pid must have been proven to be the program's since it was opened.
        timeout: Seconds to end in.
        kill: SIGKILL what does not.

    Returns:
        What happened.
    """
    deadline = time.monotonic() + timeout
    with Family(pid, pin) as family:
        family.look()
        outcome, message = _end_one(family, pid, pin, timeout, kill)
        if outcome in ("terminated", "killed"):
            ended, more = _end_children(family, deadline, kill)
            outcome, message = (outcome if ended else "still_running"), message + more
        return End(outcome, message, len(family.children), tuple(sorted(family.segments)))


def _end_one(family: Family, pid: int, pin: int, timeout: float, kill: bool) -> tuple[Outcome, str]:
    began = time.monotonic()
    try:
        signal.pidfd_send_signal(pin, signal.SIGTERM)
        while not _gone([pin], min(_LOOK, max(0.0, began + timeout - time.monotonic()))):
            family.look()
            if time.monotonic() >= began + timeout:
                break
        else:
            return "terminated", f"pid {pid} ended {time.monotonic() - began:.1f} s after it was asked to"
        if not kill:
            return "still_running", f"pid {pid} was asked to end and still runs after {timeout} s"
        signal.pidfd_send_signal(pin, signal.SIGSTOP)
        family.look()
        signal.pidfd_send_signal(pin, signal.SIGKILL)
        if _gone([pin], _KILL_WAIT):
            return "killed", f"pid {pid} did not end within {timeout} s and was killed"
        return "still_running", f"pid {pid} was killed and still runs: it waits inside the system (a stuck device?)"
    except ProcessLookupError:
        return "terminated", f"pid {pid} had just ended"
    except PermissionError:
        return "refused", f"pid {pid} may not be ended by user {os.geteuid()}; nothing was done"


def _end_children(family: Family, deadline: float, kill: bool) -> tuple[bool, str]:
    """Whether all have ended, and what to add to the message."""
    count = len(family.children)
    if not count:
        return True, ""
    told = f"; it had started {count} process{'' if count == 1 else 'es'}"
    if _gone(list(family.alive.values()), SETTLE):
        return True, f"{told}, which ended with it"
    family.look()
    asked = family.signal(signal.SIGTERM)
    told += f", {asked} of which had to be asked to end"
    if _gone(list(family.alive.values()), max(SETTLE, deadline - time.monotonic())):
        return True, told
    if kill:
        told += f" and {family.kill()} killed"
        if _gone(list(family.alive.values()), _KILL_WAIT):
            return True, told
    return False, f"{told}; still running: pid {', '.join(map(str, sorted(family.alive)))}"
