#!/usr/bin/env python3
"""End a comux program and the processes it started by its pid file: ask, wait, kill, remove the file.

Works beside an installed comux, and from a checkout that was never built (then topics of a program's own that it could
not remove, as it was killed, stay until somebody opens them).
Exit code: 0 it is not running (any more), 1 it still runs, 2 the file or the process is not what it claims to be.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parent.parent
_found = find_spec("comux")
_installed = _found is not None and _found.origin is not None and Path(_found.origin).with_name("family.py").is_file()
if not _installed and (_CHECKOUT / "comux" / "family.py").is_file():  # another comux may be installed: the first one
    sys.path.insert(0, str(_CHECKOUT))

from comux.cli.terminate import run_terminate  # noqa: E402 - found above
from comux.errors import ConfigError  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description="End a comux program by its pid file.")
    parser.add_argument("path", nargs="?", default="pid", help="the pid file (default: ./pid)")
    parser.add_argument(
        "--timeout", type=float, default=10.0, metavar="SECONDS", help="how long it may take (default: 10)"
    )
    parser.add_argument("--no-kill", action="store_true", help="ask only; never SIGKILL")
    arguments = parser.parse_args()
    try:
        return run_terminate(Path(arguments.path), timeout=arguments.timeout, kill=not arguments.no_kill)
    except ConfigError as exc:
        parser.error(str(exc))


if __name__ == "__main__":
    sys.exit(main())
