"""Where topics live: one file per topic in a private directory.

Names are checked before anything is touched. The directory must belong to this user, must not be writable by others
and must not be a symbolic link: whoever can write there can replace a topic.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Final

from comux.errors import ConfigError

SUFFIX: Final = ".ring"
_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")


def default_directory() -> Path:
    """``$COMUX_DIR``, else ``/dev/shm/comux-<uid>``. Not created here."""
    chosen = os.environ.get("COMUX_DIR")
    return Path(chosen) if chosen else Path(f"/dev/shm/comux-{os.geteuid()}")


def check_name(name: str) -> str:
    """Return ``name``.

    Raises:
        ConfigError: it is empty, longer than 100, or has other characters than letters, digits, ``.``, ``_``, ``-``.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"topic name {name!r}: 1 to 100 letters, digits, '.', '_' or '-', not beginning with '.'")
    return name


def path_of(name: str, directory: str | Path | None = None) -> Path:
    """Absolute path of a topic's file, so that it can be removed after a ``chdir``; nothing is created."""
    base = Path(directory) if directory is not None else default_directory()
    return base.absolute() / (check_name(name) + SUFFIX)


def names(directory: str | Path | None = None) -> list[str]:
    """Names of the topics in a directory, sorted; none where it does not exist."""
    base = Path(directory) if directory is not None else default_directory()
    try:
        entries = [entry.name for entry in base.iterdir()]
    except FileNotFoundError:
        return []
    cut = -len(SUFFIX)
    return sorted(e[:cut] for e in entries if e.endswith(SUFFIX) and _NAME.fullmatch(e[:cut]))


def check_directory(base: Path) -> None:
    """Refuse a directory in which somebody else could replace a topic. A missing one passes.

    Raises:
        ConfigError: it is a symbolic link or no directory, belongs to another user, or others may write to it.
    """
    try:
        st = base.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISLNK(st.st_mode):
        raise ConfigError(f"directory {base} is a symbolic link and is not followed; name the directory itself")
    if not stat.S_ISDIR(st.st_mode):
        raise ConfigError(f"{base} is not a directory; set COMUX_DIR to one")
    if st.st_uid != os.geteuid():
        raise ConfigError(
            f"directory {base} belongs to user {st.st_uid}, this process runs as {os.geteuid()}; "
            f"set COMUX_DIR to one of your own"
        )
    if st.st_mode & 0o022:
        raise ConfigError(
            f"directory {base} may be written by others (mode {stat.S_IMODE(st.st_mode):04o}); run: chmod go-w {base}"
        )


def make_directory(base: Path) -> None:
    """Create the directory and its parents with mode 0700 where missing, and check it.

    Raises:
        ConfigError: see ``check_directory``, or it cannot be created.
    """
    try:
        missing = [p for p in (base, *base.parents) if not p.exists() and not p.is_symlink()]
        for path in reversed(missing):
            path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"directory {base} cannot be created ({error.strerror}); set COMUX_DIR to another") from error
    check_directory(base)
