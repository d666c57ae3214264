"""The cameras file as a JSON Schema (draft 2020-12), for editors and other programs.

Made from the very models that check a file, so that neither says what the other does not; what an editor cannot know
(whether a topic exists, a name is free) is left to ``comux config check``. Wherever a value is a number, a truth or one
of a few words, ``${…}`` may stand as well.
"""

from __future__ import annotations

import re
from typing import Any, Final

from comux.options import SourceOptions

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_FILLED_IN: Final = {"type": "string", "pattern": r"\$\{.+\}"}
_FREE: Final[dict[str, Any]] = {
    "dtype": {"description": "A numpy dtype as text, or a list of fields."},
    "extradata": {"type": ["string", "null"], "description": "Out-of-band parameter sets, base64."},
}


def cameras_schema() -> dict[str, Any]:
    """The schema, as plain data; the same each time."""
    from comux.control.cameras_file import FileSettings  # on first use: see the package

    file = FileSettings.model_json_schema()
    source = _source()
    definitions = {**file.pop("$defs", {}), "Source": source}
    properties = file["properties"]
    properties["defaults"] = {
        "type": "object",
        "description": "Settings of every camera that says nothing else.",
        "properties": {name: each for name, each in source["properties"].items() if name != "cam_id"},
        "additionalProperties": False,
    }
    properties["cameras"] = {
        "type": "array",
        "description": "The cameras: an id, or an object with cam_id and settings.",
        "minItems": 1,
        "items": {"anyOf": [{"type": "string"}, {"type": "integer"}, {"$ref": "#/$defs/Source"}]},
    }
    return {
        "$schema": _DIALECT,
        "title": "comux cameras file",
        "type": "object",
        "properties": {name: _open(each) for name, each in properties.items()},
        "additionalProperties": False,
        "anyOf": [{"required": [name]} for name in ("cameras", "db_url", "topics")],
        "$defs": {name: _open(each) for name, each in definitions.items()},
    }


def _source() -> dict[str, Any]:
    schema = SourceOptions.model_json_schema()
    schema["description"] = "One camera."
    says = _described(SourceOptions.__doc__ or "")
    for name, each in schema["properties"].items():
        if name in _FREE:
            each.clear()
            each.update(_FREE[name])
        each.setdefault("description", says.get(name, ""))
    return schema


def _described(text: str) -> dict[str, str]:
    """The sentences below ``Attributes:``, by name."""
    found: dict[str, str] = {}
    body = text.partition("Attributes:\n")[2]
    for entry in re.split(r"\n(?= {8}\w)", body):
        names, colon, sentence = entry.partition(": ")
        if colon:
            words = " ".join(sentence.split()).replace("``", "")
            found.update(dict.fromkeys((name.strip() for name in names.split(",")), words))
    return found


def _open(schema: Any) -> Any:
    """``schema`` without the models' titles, and with ``${…}`` allowed for what is no text."""
    if isinstance(schema, list):
        return [_open(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: each for key, each in schema.items() if key != "title" or not isinstance(each, str)}
    for key in ("properties", "$defs"):
        if key in out:
            out[key] = {name: _open(each) for name, each in out[key].items()}
    for key in ("items", "additionalProperties"):
        if key in out:
            out[key] = _open(out[key])
    choices = out.get("anyOf")
    if choices is not None:
        if not any(each.get("type") == "string" and len(each) == 1 for each in choices):
            out["anyOf"] = [*map(_open_choice, choices), _FILLED_IN]
        return out
    if out.get("type") in ("integer", "number", "boolean") or "enum" in out:
        kept = {key: out.pop(key) for key in ("description", "default") if key in out}
        return {**kept, "anyOf": [out, _FILLED_IN]}
    return out


def _open_choice(schema: Any) -> Any:
    return _open(schema) if "properties" in schema or "items" in schema else schema
