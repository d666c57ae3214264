"""``python -m comux`` is the ``comux`` command."""

from __future__ import annotations

from comux.cli.main import run

if __name__ == "__main__":
    run()
