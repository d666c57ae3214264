"""``comux terminate``: says what ``comux.lifecycle.terminate`` found and did, and clears up after who was killed.

Local topics outlive the programs that use them, except those of ``lifetime="session"``: the last process to close one
removes it. Where that was killed it could not; nobody has it open any more, and it is removed here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from comux.errors import UnsupportedError
from comux.lifecycle import terminate


def run_terminate(pid_file: Path, *, timeout: float, kill: bool) -> int:
    """End the program named in ``pid_file`` and the processes it started.

    Returns:
        0 it is not running now (whatever the reason), 1 it still runs, 2 refused.
    """
    result = terminate(pid_file, timeout=timeout, kill=kill)
    print(f"comux: {result.message}", file=sys.stdout if result.ok else sys.stderr)
    removed = clear_up(result.segments) if result.ok else []
    if removed:
        print(f"comux: removed {', '.join(removed)}, which it left behind")
    return result.exit_code


def clear_up(segments: Iterable[str]) -> list[str]:
    """Remove the session topics in these files' folders whose processes have all died; returns their names."""
    folders = sorted({str(Path(path).parent) for path in segments})
    if not folders:
        return []
    try:
        from comux.ring import gc
    except UnsupportedError:  # a checkout that was not built
        return []
    return [name for folder in folders for name in gc(folder)]
