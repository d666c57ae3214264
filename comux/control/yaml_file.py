"""A YAML file of ours as a tree: every error names file and line, and variables and secrets are filled in.

Only plain YAML (``SafeLoader``'s types, no tags that construct objects; JSON is YAML), at most ``MAX_FILE_BYTES``. A
key stands once in a mapping. Anchors work, but a mapping merges one other at most, so that small files stay small.

**What is filled in**, in values, never in keys:

- ``${NAME}``: the environment variable; unset is an error.
- ``${NAME:-text}``: the variable, or ``text`` where it is unset or empty.
- ``${file:path}``: the first line of that file, for secrets; a relative path is relative to the YAML file.
- ``$${`` is ``${``.

A value that stands without quotes is read as if what was filled in had been written there (``rate: ${RATE:-5}`` is a
number); it is one value whatever it holds, never a list or a mapping. What comes from a file is always text, and errors
show ``***`` in its place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from comux.errors import ConfigError

MAX_FILE_BYTES: Final = 4 << 20
_MAX_DEPTH: Final = 16
_MAX_SECRET_BYTES: Final = 64 << 10
_TEXT: Final = "tag:yaml.org,2002:str"
_REFERENCE: Final = re.compile(r"\$(?:(?P<literal>\$)(?=\{)|\{(?P<inside>[^}]*)\}|(?P<open>\{))")
_INSIDE: Final = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<or>:-(?P<default>.*))?|file:(?P<path>.+)", re.DOTALL)


class YamlFile:
    """The tree of one file, read when this is made.

    Args:
        path: The file.
        what: What it is, for errors: ``"cameras file"``.
        empty: What to write in it, for the error about an empty one.

    Attributes:
        root: Its top node.
        secret_paths: Files that were filled in, in the order of their first mention.

    Raises:
        ConfigError: it cannot be read, or is no YAML of the kind above.
    """

    def __init__(self, path: Path, what: str, empty: str) -> None:
        self.path = path
        self.secret_paths: list[Path] = []
        self._what = what
        self._secrets: list[str] = []
        text = self._read()
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except (yaml.YAMLError, RecursionError) as exc:
            mark = getattr(exc, "problem_mark", None)
            where = f", line {mark.line + 1}" if mark is not None else ""
            problem = getattr(exc, "problem", None) or type(exc).__name__
            line = "" if mark is None else (text.splitlines() or [""])[min(mark.line, len(text.splitlines()) - 1)]
            remedy = "; within {} or [], write ${…} in quotes" if "${" in line else ""
            raise ConfigError(f"{self._name()}{where}: no YAML: {problem}{remedy}") from None
        if root is None:
            raise ConfigError(f"{self._name()} is empty: {empty}")
        self.root: yaml.Node = root
        self._check_tree(root, 0, set())

    def _name(self) -> str:
        return f"{self._what} {str(self.path)!r}"

    def error(self, node: yaml.Node, text: str) -> ConfigError:
        """A ``ConfigError`` about ``node``: file, line, and ``text`` without secrets."""
        for secret in self._secrets:
            text = text.replace(repr(secret)[1:-1], "***").replace(secret, "***")
        return ConfigError(f"{self._name()}, line {node.start_mark.line + 1}: {text}")

    def mapping(self, node: yaml.Node, text: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Keys of a mapping, each with its node and its value's, merged ones left out.

        Raises:
            ConfigError: ``text``, where the node is no mapping.
        """
        if not isinstance(node, yaml.MappingNode):
            raise self.error(node, text)
        return {key.value: (key, value) for key, value in node.value}

    def construct(self, node: yaml.Node) -> Any:
        """The plain Python value of a node.

        Raises:
            ConfigError: a tag, or a value, that is none.
        """
        loader = yaml.SafeLoader("")
        try:
            return loader.construct_document(node)
        except (yaml.YAMLError, ValueError, RecursionError) as exc:  # a tag, or a date that is none
            raise self.error(node, f"{getattr(exc, 'problem', None) or exc}: use plain text, numbers, lists") from None
        finally:
            loader.dispose()

    def _read(self) -> str:
        try:
            with self.path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as exc:
            raise ConfigError(f"{self._name()} cannot be read: {exc.strerror or exc}") from None
        if len(data) > MAX_FILE_BYTES:
            raise ConfigError(f"{self._name()} is larger than {MAX_FILE_BYTES} bytes; is it the right one?")
        try:
            return data.decode()
        except UnicodeDecodeError as exc:
            raise ConfigError(f"{self._name()} is no UTF-8 text: byte {exc.start} is {exc.reason}") from None

    def _check_tree(self, node: yaml.Node, depth: int, checked: set[int]) -> None:
        """Refuse double keys, which YAML would resolve in silence, and fill in the values."""
        if depth > _MAX_DEPTH:
            raise self.error(node, f"nests more than {_MAX_DEPTH} levels deep (or holds itself)")
        if id(node) in checked:  # an alias
            return
        if isinstance(node, yaml.SequenceNode):
            for child in node.value:
                self._check_tree(child, depth + 1, checked)
        elif isinstance(node, yaml.MappingNode):
            self._check_keys(node)
            for _, child in node.value:
                self._check_tree(child, depth + 1, checked)
        elif isinstance(node, yaml.ScalarNode) and "${" in node.value:
            self._fill(node)
        checked.add(id(node))

    def _check_keys(self, node: yaml.MappingNode) -> None:
        seen: dict[str, int] = {}
        for key, child in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.error(key, "a key is a list or a mapping: use plain text")
            if key.value in seen:
                raise self.error(key, f"key {key.value!r} stands here again, first on line {seen[key.value]}")
            if key.value == "<<" and not isinstance(child, yaml.MappingNode):
                raise self.error(key, "'<<' merges one mapping: write '<<: *name'")
            seen[key.value] = key.start_mark.line + 1

    # -- filling in ------------------------------------------------------------------------------------------------

    def _fill(self, node: yaml.ScalarNode) -> None:
        secret = any((found["inside"] or "").startswith("file:") for found in _REFERENCE.finditer(node.value))
        node.value = "".join(self._parts(node))
        if secret:
            node.tag = _TEXT
        elif node.style is None:
            loader: Any = yaml.SafeLoader("")
            node.tag = loader.resolve(yaml.ScalarNode, node.value, (True, False))
            loader.dispose()

    def _parts(self, node: yaml.ScalarNode) -> Iterator[str]:
        text, end = node.value, 0
        for found in _REFERENCE.finditer(text):
            yield text[end : found.start()]
            end = found.end()
            yield "$" if found["literal"] else self._value(node, found)
        yield text[end:]

    def _value(self, node: yaml.ScalarNode, found: re.Match[str]) -> str:
        inside = _INSIDE.fullmatch(found["inside"] or "")
        if inside is None:
            shown = found[0] if found["open"] is None else "${ without a }"
            raise self.error(
                node, f"{shown} is none of ${{NAME}}, ${{NAME:-text}}, ${{file:path}}; '$${{' means the text '${{'"
            )
        if inside["path"] is not None:
            return self._secret(node, inside["path"])
        name = inside["name"]
        value = os.environ.get(name)
        if inside["or"] is not None and not value:
            return inside["default"] or ""
        if value is None:
            raise self.error(
                node, f"the environment variable {name} is not set: set it, or write ${{{name}:-text}} for a default"
            )
        return value

    def _secret(self, node: yaml.ScalarNode, name: str) -> str:
        path = self.path.parent / name
        try:
            with path.open("rb") as file:
                data = file.read(_MAX_SECRET_BYTES + 1)
            text = data.decode().split("\n", 1)[0].rstrip("\r")
        except OSError as exc:
            raise self.error(node, f"${{file:{name}}} cannot be read: {exc.strerror or exc}") from None
        except UnicodeDecodeError:
            raise self.error(node, f"${{file:{name}}} is no UTF-8 text") from None
        if len(data) > _MAX_SECRET_BYTES or not text:
            what = "is empty" if not text else f"is larger than {_MAX_SECRET_BYTES} bytes; is it the right one?"
            raise self.error(node, f"the first line of ${{file:{name}}} {what}")
        if path not in self.secret_paths:
            self.secret_paths.append(path)
        if text not in self._secrets:
            self._secrets.append(text)
        return text
