"""The demo's child processes: started, watched, restarted, and gone when the demo is gone.

**Problem.** A camera of the demo is a process of its own. It may be killed, and the demo goes on; the demo may be
killed, and no camera may outlive it.

**How.** A child watches the parent that is named on its command line (``lifecycle.end_with_parent``). Children have a
process group of their own, so that Ctrl-C reaches the demo alone, which ends them in order.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from comux.errors import ComuxError
from comux.lifecycle import child_environment, python_command

RESTART_AFTER: Final = 2.0  #: seconds
RESTARTS_MOST: Final = 5


def start_child(arguments: Sequence[str], *, stdout: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    """Start ``python -m ARGUMENTS``. Its stderr is a pipe, for its last words."""
    return subprocess.Popen(
        python_command(*arguments),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=child_environment(),
        process_group=0,
    )


def last_words(process: subprocess.Popen[bytes]) -> str:
    """The last line on stderr of a child that has ended."""
    text = process.stderr.read().decode("utf-8", "replace") if process.stderr is not None else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("comux: ") if lines else ""


def close_pipes(process: subprocess.Popen[bytes]) -> None:
    """Close what is left of a child's pipes."""
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


@dataclass
class Publisher:
    """One camera's process.

    Attributes:
        cam_id: Of the camera.
        arguments: Of ``python -m``.
        process: That runs now, or ran last.
        restarts: How often it was started again.
        restart_at: Monotonic time of the next start; ``None``: it runs, or will not be started again.
        over: It will not be started again.
    """

    cam_id: str
    arguments: Sequence[str]
    process: subprocess.Popen[bytes] = field(init=False)
    restarts: int = 0
    restart_at: float | None = None
    over: bool = False

    def __post_init__(self) -> None:
        self.process = start_child(self.arguments)


class Publishers:
    """All cameras' processes. Main thread only.

    Args:
        tell: Called with (cam_id, line) when a process ends or is started again.
    """

    def __init__(self, tell: Callable[[str, str], None]) -> None:
        self._tell = tell
        self._all: list[Publisher] = []

    def start(self, cam_id: str, arguments: Sequence[str]) -> None:
        """Start one camera as ``python -m ARGUMENTS``."""
        self._all.append(Publisher(cam_id, arguments))

    @property
    def pids(self) -> dict[str, int]:
        """By ``cam_id``."""
        return {each.cam_id: each.process.pid for each in self._all}

    def watch(self, working: Callable[[str], bool]) -> None:
        """Notice who ended, start again who was killed.

        Args:
            working: Whether a camera has shown a picture already; one that never did and fails is an error.

        Raises:
            ComuxError: a publisher cannot start, in its own words.
        """
        now = time.monotonic()
        for each in self._all:
            if each.restart_at is not None:
                if now >= each.restart_at:
                    each.restart_at = None
                    each.restarts += 1
                    each.process = start_child(each.arguments)
                    self._tell(each.cam_id, f"its publisher runs again, pid {each.process.pid}")
            elif not each.over and each.process.poll() is not None:
                self._ended(each, now, working(each.cam_id))

    def _ended(self, each: Publisher, now: float, worked: bool) -> None:
        code = each.process.returncode
        words = last_words(each.process)
        close_pipes(each.process)
        if code > 0 and not worked:
            each.over = True
            raise ComuxError(f"the publisher of {each.cam_id} ended with code {code}: {words or 'it said nothing'}")
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        again = code != 0 and each.restarts < RESTARTS_MOST
        each.over = not again
        each.restart_at = now + RESTART_AFTER if again else None
        then = f"starts again in {RESTART_AFTER:g} s" if again else "the others go on"
        self._tell(
            each.cam_id, f"its publisher, pid {each.process.pid}, {how}; {then}" + (f" ({words})" if words else "")
        )

    def ask_to_end(self) -> None:
        """Send every process SIGTERM; does not wait."""
        for each in self._all:
            each.over = True
            each.restart_at = None
            end_child(each.process)

    def join(self, deadline: float) -> None:
        """Wait until monotonic time ``deadline`` for the processes to end, kill the others, close their pipes."""
        for each in self._all:
            join_child(each.process, deadline)


def end_child(process: subprocess.Popen[bytes]) -> None:
    """Ask a child to end; one that has ended is left alone."""
    if process.poll() is None:
        process.terminate()


def join_child(process: subprocess.Popen[bytes], deadline: float) -> None:
    """Wait for a child until monotonic time ``deadline``, then kill it; closes its pipes."""
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    close_pipes(process)
