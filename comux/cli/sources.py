"""``comux sources``: the sources of a running program, looked at and changed through its control topic."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comux.cli.tables import console, plain_table, print_json, state
from comux.control import Remote
from comux.errors import CommandError, ConfigError


def list_sources(remote: Remote, as_data: bool) -> int:
    """Every source: state, topic, and what is said of it."""
    status = remote.ask("status")
    sources, stated = status.get("sources", {}), status.get("stated", {})
    rows = {key: {**_where(sources.get(key)), "settings": stated.get(key, {})} for key in {**stated, **sources}}
    if as_data:
        print_json(rows)
        return 0
    table = plain_table("source", "state", "reason", "topic", "settings")
    for key, row in rows.items():
        settings = {name: value for name, value in row["settings"].items() if name != "cam_id"}
        words = " ".join(f"{name}={_word(value)}" for name, value in settings.items())
        table.add_row(key, state(row["state"]), row["reason"], row["topic"], words)
    console().print(table)
    return 0


def _where(source: dict[str, Any] | None) -> dict[str, Any]:
    if source is None:
        return {"state": "not started", "reason": "", "topic": ""}
    return {name: source[name] for name in ("state", "reason", "topic")}


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def settings_of(words: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` words as settings; a value is JSON where it is (``5``, ``null``, ``[1, 2]``), else text.

    Raises:
        ConfigError: a word without ``=``, or a key twice.
    """
    out: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"{word!r} is no setting: write KEY=VALUE, as in rate=5")
        if key in out:
            raise ConfigError(f"{key} is given twice")
        out[key] = value_of(text)
    return out


def value_of(text: str) -> Any:
    """JSON where it is, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def change(remote: Remote, action: str, cam_ids: Sequence[str], settings: dict[str, Any], as_data: bool) -> int:
    """Send an action for each source, or (none given) once for all.

    Returns:
        0, or 1 where one was refused.
    """
    answers: list[dict[str, Any]] = []
    for cam_id in cam_ids or (None,):
        value = {**settings, **({} if cam_id is None else {"cam_id": cam_id})}
        answers.append(remote.answer(action, value))
    if as_data:
        print_json(answers)
    else:
        for answer in answers:
            result = answer.get("result") or {}
            text = result.get("msg") or "done" if answer["ok"] else f"refused: {answer['error']['message']}"
            console().print(text, soft_wrap=True, markup=False, highlight=False)
    return 0 if all(answer["ok"] for answer in answers) else 1


def snapshot(remote: Remote, cam_id: str, width: int | None, output: Path) -> int:
    """A source's next picture, as a JPEG file.

    Raises:
        CommandError: there is none.
    """
    value = {"cam_id": cam_id, **({} if width is None else {"width": width})}
    shown = remote.ask("snapshot", value)["sources"][cam_id]
    if "jpeg" not in shown:
        raise CommandError(f"source {cam_id!r} gives arrays of {shown.get('dtype')} {shown.get('shape')}: no picture")
    output.write_bytes(base64.b64decode(shown["jpeg"]))
    print(f"{output}: source {cam_id!r}, index {shown['index']}, {'x'.join(map(str, shown['shape'][1::-1]))}")
    return 0
