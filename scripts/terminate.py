#!/usr/bin/env python3
"""End a comux program by its pid file: ask, wait, kill, remove the file.

Works from a checkout and beside an installed comux.
Exit code: 0 it is not running (any more), 1 it still runs, 2 the file or the process is not what it claims to be.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parent.parent
if (_CHECKOUT / "comux" / "lifecycle.py").is_file():
    sys.path.insert(0, str(_CHECKOUT))

from comux.errors import ConfigError  # noqa: E402 - the checkout has to be on the path first
from comux.lifecycle import terminate  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description="End a comux program by its pid file.")
    parser.add_argument("path", nargs="?", default="pid", help="the pid file (default: ./pid)")
    parser.add_argument(
        "--timeout", type=float, default=10.0, metavar="SECONDS", help="how long it may take (default: 10)"
    )
    parser.add_argument("--no-kill", action="store_true", help="ask only; never SIGKILL")
    arguments = parser.parse_args()
    try:
        result = terminate(arguments.path, timeout=arguments.timeout, kill=not arguments.no_kill)
    except ConfigError as exc:
        parser.error(str(exc))
    print(result.message, file=sys.stdout if result.ok else sys.stderr)
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main())
