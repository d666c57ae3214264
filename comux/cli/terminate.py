"""``comux terminate``: says what ``comux.lifecycle.terminate`` found and did."""

from __future__ import annotations

import sys
from pathlib import Path

from comux.lifecycle import terminate


def run_terminate(pid_file: Path, *, timeout: float, kill: bool) -> int:
    """End the program named in ``pid_file``.

    Returns:
        0 it is not running now (whatever the reason), 1 it still runs, 2 refused.
    """
    result = terminate(pid_file, timeout=timeout, kill=kill)
    print(f"comux: {result.message}", file=sys.stdout if result.ok else sys.stderr)
    return result.exit_code
