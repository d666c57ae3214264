"""``comux apply``: bring a running program's cameras to what a file states."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from comux.cli.reach import reach
from comux.cli.signals import ended_by_signals
from comux.cli.tables import check_format, console, plain_table, print_json
from comux.control import Applied, Change, Remote, YamlRegistry, apply, changes_to
from comux.errors import ComuxError
from comux.options import SourceOptions

_STYLES = {"create": "green", "update": "yellow", "delete": "red"}


def run_apply(
    path: Path,
    *,
    address: str | None,
    topic: str | None,
    target: str | None,
    timeout: float,
    dry_run: bool,
    delete: bool,
    watch: bool,
    format: str,
) -> int:
    """Print the difference, and (unless ``dry_run``) have it made.

    Args:
        path: The cameras file.
        address, topic, target, timeout: As ``reach``.
        dry_run: Change nothing.
        delete: Whether cameras that the file does not name are to go.
        watch: Go on whenever the file changes, until a signal comes.
        format: ``table`` or ``json``.

    Returns:
        0, or 1 where a change was refused.

    Raises:
        ComuxError: the file is wrong, or nobody answers.
    """
    as_data = check_format(format)
    registry = YamlRegistry(path)
    desired = registry.fetch()
    with reach(address, topic, path, target=target, timeout=timeout) as remote:
        code = _once(remote, desired, dry_run, delete, as_data)
        if not watch:
            return code
        with ended_by_signals(registry.close):
            while registry.wait_for_change():
                try:
                    _once(remote, registry.fetch(), dry_run, delete, as_data)
                except ComuxError as exc:  # the file is being written, or the program is away: the next change counts
                    print(f"comux: {exc}", file=sys.stderr, flush=True)
    return 0


def _once(remote: Remote, desired: Sequence[SourceOptions], dry_run: bool, delete: bool, as_data: bool) -> int:
    there = remote.sources(desired)
    changes = changes_to(there, desired, delete=delete)
    if not as_data:
        show_changes(changes, there, "nothing to change", planned=dry_run)
    done = [] if dry_run else list(apply(remote, changes))
    refused = [each for each in done if each.error is not None]
    if as_data:
        print_json([_result(change, there, done, number) for number, change in enumerate(changes)])
    elif done:
        for each in refused:
            text = f"refused: {each.change.action} {each.change.cam_id}: {each.error}"
            console().print(text, soft_wrap=True, markup=False, style="bold red", highlight=False)
        print(f"{len(done) - len(refused)} of {len(done)} changes made", flush=True)
    return 1 if refused else 0


def _result(change: Change, there: Iterable[SourceOptions], done: Sequence[Applied], number: int) -> dict[str, Any]:
    out = as_json(change, there)
    if done:
        out.update(ok=done[number].error is None, error=done[number].error)
    return out


def as_json(change: Change, there: Iterable[SourceOptions]) -> dict[str, Any]:
    """A change as plain data: ``settings`` has ``[before, after]`` of each."""
    return {
        "action": change.action,
        "cam_id": change.cam_id,
        "settings": {name: [before, after] for name, before, after in _settings(change, there)},
    }


def show_changes(
    changes: Sequence[Change], there: Iterable[SourceOptions], nothing: str, *, planned: bool = False
) -> None:
    """A line for each setting of each source that changes; ``nothing`` where none does."""
    if not changes:
        print(nothing, flush=True)
        return
    table = plain_table("source", "change", "setting", "from", "to")
    before = tuple(there)
    for change in changes:
        first: list[str | Text] = [str(change.cam_id), Text(change.action, style=_STYLES[change.action])]
        for name, was, becomes in _settings(change, before) or [("", "", "")]:
            table.add_row(*first, name, *(str(value) if name else "" for value in (was, becomes)))
            first = ["", Text("")]
    console().print(table)
    if planned:
        print("nothing was changed: leave out --dry-run to do it", flush=True)


def _settings(change: Change, there: Iterable[SourceOptions]) -> list[tuple[str, Any, Any]]:
    """Name, value before and value after of each setting that a change is about; secrets hidden."""
    had = next((s for s in there if str(s.cam_id) == str(change.cam_id)), None)
    if isinstance(change.value, SourceOptions):
        return [(name, None, value) for name, value in change.value.stated().items() if name != "cam_id"]
    if change.value is None or had is None:
        return []
    after = had.changed(**change.value)
    was, becomes = (each.shown_settings(change.value) for each in (had, after))
    return [(name, was[name], becomes[name]) for name in change.value]
