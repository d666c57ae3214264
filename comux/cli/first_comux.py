"""Tells the first comux's command line (``python -m comux [env file] --timeout= --num= --cam_id= --batch``) from ours.

Imports nothing heavy: it runs before every command.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

FLAGS: Final = ("--timeout", "--num", "--cam_id", "--batch")


def is_first_comux(arguments: list[str]) -> bool:
    """Whether these are the first comux's arguments: an ``.env`` file or one of its options comes first; or there are
    none, and an ``.env`` with its keys lies here."""
    if not arguments:
        return _has_its_keys(Path(".env"))
    first = arguments[0]
    return first.partition("=")[0] in FLAGS or (not first.startswith("-") and Path(first).name.endswith(".env"))


def _has_its_keys(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            lines = file.read(1 << 16).splitlines()
    except OSError:
        return False
    keys = {line.removeprefix("export ").partition("=")[0].strip() for line in lines}
    return {"client_name", "db_url"} <= keys
