"""``comux config``: what a cameras file says, whether it is right, and how two of them differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from comux.cli.apply import as_json, show_changes
from comux.cli.tables import check_format, console, print_json
from comux.control import CamerasFile, Remote, cameras_schema, changes_to, difference, read_cameras_file
from comux.errors import ConfigError


def check(paths: list[Path], format: str) -> int:
    """Read files and say what is in them, or what is wrong.

    Returns:
        0, or 2 where one is wrong.
    """
    as_data = check_format(format)
    out: list[dict[str, Any]] = []
    for path in paths:
        try:
            out.append({"file": str(path), "ok": True, **_summary(read_cameras_file(path))})
        except ConfigError as exc:
            out.append({"file": str(path), "ok": False, "error": str(exc)})
    if as_data:
        print_json(out)
    else:
        for each in out:
            text = f"{each['file']}: {_in_words(each)}" if each["ok"] else f"wrong: {each['error']}"
            console().print(text, soft_wrap=True, highlight=False, markup=False)
    return 0 if all(each["ok"] for each in out) else 2


def _summary(file: CamerasFile) -> dict[str, Any]:
    return {
        "cameras": None if file.sources is None else [str(source.cam_id) for source in file.sources],
        "control_topic": file.settings.control_topic,
        "model": file.settings.model,
    }


def _in_words(summary: dict[str, Any]) -> str:
    cameras = summary["cameras"]
    many = "cameras from elsewhere" if cameras is None else f"{len(cameras)} camera{'s' * (len(cameras) != 1)}"
    control = "no control topic" if summary["control_topic"] is None else f"control on {summary['control_topic']!r}"
    model = "no model" if summary["model"] is None else f"model {summary['model']}"
    return f"right: {many}, {control}, {model}"


def diff(before: Path, after: Path, format: str) -> int:
    """What becomes of the cameras of one file in another.

    Returns:
        0 where nothing differs, else 1.

    Raises:
        ConfigError: a file is wrong, or does not state its cameras.
    """
    as_data = check_format(format)
    changes = difference(_cameras(after), there := _cameras(before))
    if as_data:
        print_json([as_json(change, there) for change in changes])
    else:
        show_changes(changes, there, "they state the same cameras")
    return 1 if changes else 0


def diff_running(remote: Remote, path: Path, as_data: bool) -> int:
    """What would become of a running program's cameras by ``comux apply``.

    Returns:
        0 where nothing would, else 1.

    Raises:
        ComuxError: the file is wrong, or nobody answers.
    """
    desired = _cameras(path)
    there = remote.sources(desired)
    changes = changes_to(there, desired)
    if as_data:
        print_json([as_json(change, there) for change in changes])
    else:
        show_changes(changes, there, "the program's cameras are those of the file")
    return 1 if changes else 0


def _cameras(path: Path) -> tuple[Any, ...]:
    sources = read_cameras_file(path).sources
    if sources is None:
        raise ConfigError(f"cameras file {str(path)!r} states no cameras; they come from elsewhere")
    return sources


def schema(output: Path | None) -> int:
    """The JSON Schema of cameras files, on stdout or into a file."""
    text = json.dumps(cameras_schema(), indent=2) + "\n"
    if output is None:
        print(text, end="")
    else:
        output.write_text(text)
    return 0
