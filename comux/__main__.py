"""``python -m comux``: the ``comux`` command, and the first comux's (``first_comux``)."""

from __future__ import annotations

import sys

from comux.cli.first_comux import is_first_comux
from comux.cli.main import run

if __name__ == "__main__":
    arguments = sys.argv[1:]
    run(["first-comux", *arguments] if is_first_comux(arguments) else arguments)
