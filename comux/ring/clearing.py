"""Clearing up: topics whose processes are all dead, files half-made by the dead, and folders with nothing in them.

Nothing that somebody alive uses is ever removed, and what is removed is decided under the lock that a newcomer needs
(``_core/survey.c``). Topics of ``lifetime="persistent"`` are meant to outlive their processes: they go only where that
is asked for. A file that is damaged, or that another version made, is nobody's to judge here, and stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from comux.errors import ComuxError, ConfigError, UnknownTopicError

from .directory import check_directory, default_directory, names, path_of
from .native import core

_HALF_MADE: Final = re.compile(r"\.(?P<topic>[A-Za-z0-9_-][A-Za-z0-9._-]{0,99})\.\d+\.tmp")
_SESSION, _PERSISTENT, _TEMPORARY = 1, 2, 4  # CX_REMOVE_*


@dataclass(frozen=True, slots=True)
class Found:
    """One thing that was looked at.

    Attributes:
        what: ``topic``, ``half-made``, or ``folder``.
        name: Of the topic or the folder.
        path: Of it.
        bytes: Of the file; 0 for a folder.
        removed: Whether it is gone; in a dry run, whether it would be.
        reason: Why, in words.
    """

    what: str
    name: str
    path: Path
    bytes: int
    removed: bool
    reason: str


def collect(
    directory: str | Path | None = None, *, persistent: bool = False, dry_run: bool = False, nested: bool = False
) -> list[Found]:
    """Remove what nobody alive owns.

    Args:
        directory: Default ``default_directory()``.
        persistent: Also persistent topics that nobody uses, with what is unread in them.
        dry_run: Remove nothing, and take no lock: say what would be.
        nested: Also in the directories below it (namespaces), and those that are empty then.

    Returns:
        What was looked at: topics, then what was half made, then folders.

    Raises:
        ConfigError: the directory is not safe to use.
    """
    base = Path(directory) if directory is not None else default_directory()
    check_directory(base)
    found = [*_topics(base.absolute(), persistent, dry_run), *_half_made(base.absolute(), dry_run)]
    if nested:
        for folder in _folders(base.absolute()):
            try:
                inside = collect(folder, persistent=persistent, dry_run=dry_run)
            except ConfigError:  # somebody else's, or open to others: nothing of ours is in it
                continue
            found += inside
            found += _empty_folder(folder, inside, dry_run)
    return found


def gc(directory: str | Path | None = None) -> list[str]:
    """Remove session topics whose processes all died; returns their names."""
    return [found.name for found in collect(directory) if found.removed and found.what == "topic"]


def _topics(base: Path, persistent: bool, dry_run: bool) -> Iterator[Found]:
    kinds = _SESSION | _PERSISTENT * persistent
    for name in names(base):
        path = path_of(name, base)
        try:
            facts = core.survey(str(path), 0 if dry_run else kinds)
        except UnknownTopicError:  # gone by now
            continue
        except (ComuxError, OSError) as error:
            yield Found("topic", name, path, 0, False, _without(path, str(error)))
            continue
        removed = bool(facts["removed"])
        if dry_run:
            kind = 0 if facts["problem"] else _SESSION if facts["session"] else _PERSISTENT
            removed = bool(kinds & kind) and not facts["users"] and not facts["passing"]
        yield Found("topic", name, path, facts["bytes"], removed, _reason(path, facts, removed))


def _reason(path: Path, facts: dict[str, Any], removed: bool) -> str:
    if facts["users"]:
        others = facts["users"] - 1
        more = f" and {others} other{'s' if others > 1 else ''}" if others else ""
        return f"used by process {facts['pid']} ({facts['command']}){more}"
    if facts["passing"]:
        return "somebody is attaching or removing it just now"
    if facts["problem"]:
        return _without(path, facts["problem"])
    why = "made before the last boot, " if facts["earlier_boot"] else ""
    if facts["session"]:
        return f"{why}a session topic, all its processes are dead"
    unread = f"{facts['unread']} of {facts['records']} records not finished by a group"
    if not facts["groups"]:
        unread = f"{facts['records']} records, read by no group"
    return f"{why}persistent, nobody uses it: {unread}{'' if removed else '; --persistent removes it'}"


def _without(path: Path, text: str) -> str:
    return text.removeprefix(str(path)).lstrip(": ")


def _half_made(base: Path, dry_run: bool) -> Iterator[Found]:
    for path in sorted(base.iterdir()) if base.is_dir() else ():
        match = _HALF_MADE.fullmatch(path.name)
        if match is None:
            continue
        try:
            facts = core.survey(str(path), 0 if dry_run else _TEMPORARY)
        except UnknownTopicError:
            continue
        except (ComuxError, OSError) as error:
            yield Found("half-made", match["topic"], path, 0, False, _without(path, str(error)))
            continue
        used = facts["users"] or facts["passing"]
        removed = bool(facts["removed"]) or (dry_run and not used)
        reason = "somebody is making it just now" if used else "half-made by a process that is dead"
        yield Found("half-made", match["topic"], path, facts["bytes"], removed, reason)


def _folders(base: Path) -> list[Path]:
    if not base.is_dir():
        return []
    return sorted(path for path in base.iterdir() if path.is_dir() and not path.is_symlink())


def _empty_folder(folder: Path, inside: list[Found], dry_run: bool) -> Iterator[Found]:
    gone = {found.path for found in inside if found.removed}
    try:
        if set(folder.iterdir()) - (gone if dry_run else set()):
            return
        if not dry_run:
            folder.rmdir()  # refuses where somebody was faster
    except OSError:
        return
    yield Found("folder", folder.name, folder, 0, True, "an empty folder")
