"""Registries: where the list of sources comes from.

A list in the program, or a YAML file::

    cameras:
      - cam1                                  # an id
      - 7
      - {cam_id: gate, rate: 10, W: 1280, H: 720, codec: hevc}   # or every setting of a source

Errors of a file are ``ConfigError``s that name file, line, key, value and remedy; all of a file is checked before any
of it is used. Only plain YAML is read (``safe_load``'s types; no tags that construct objects), at most
``MAX_FILE_BYTES``; anchors work, but a mapping merges one other at most, so that small files stay small.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from comux.errors import ConfigError
from comux.options import CamId, SourceOptions, check_cam_ids, suggestion

MAX_FILE_BYTES: Final = 4 << 20
_MAX_DEPTH: Final = 16
_KEYS: Final = ("cameras",)


class Registry(ABC):
    """Knows which sources there shall be."""

    _closing: threading.Event

    def __new__(cls, *_args: Any, **_options: Any) -> Registry:
        registry = super().__new__(cls)
        registry._closing = threading.Event()  # here, for a user's registry need not call our __init__
        return registry

    @abstractmethod
    def fetch(self) -> tuple[SourceOptions, ...]:
        """The sources as they are stated now, in order, checked.

        Raises:
            ConfigError: something stated is wrong.
        """

    def ret_cam_ids(self) -> tuple[CamId, ...]:
        """Their ids."""
        return tuple(source.cam_id for source in self.fetch())

    def wait_for_change(self, timeout: float | None = None) -> bool:
        """Wait until something may have changed since the last ``fetch``; a registry that cannot know only waits.

        Args:
            timeout: Seconds; ``None`` waits until ``close``.

        Returns:
            ``True``: fetch again. ``False``: timed out, or closed meanwhile.

        Raises:
            ComuxError: it cannot be reached.
        """
        self._closing.wait(timeout)
        return False

    def close(self) -> None:
        """End waiting calls, also another thread's, and what the registry holds. Idempotent."""
        self._closing.set()


class ListRegistry(Registry):
    """Sources stated in the program.

    Args:
        sources: Ids, ``SourceOptions``, or mappings of their settings, mixed as wanted.
    """

    def __init__(self, sources: Iterable[CamId | SourceOptions | Mapping[str, Any]]) -> None:
        if isinstance(sources, (str, bytes, Mapping)) or not isinstance(sources, Iterable):
            raise ConfigError(f"sources {sources!r} is {type(sources).__name__}, not a list: write [{sources!r}]")
        self._sources = tuple(_source(entry, f"source at position {n}: ") for n, entry in enumerate(sources))
        check_cam_ids([source.cam_id for source in self._sources])

    def fetch(self) -> tuple[SourceOptions, ...]:
        return self._sources


class YamlRegistry(Registry):
    """Sources stated in a YAML file, read again at each ``fetch``.

    Args:
        path: The file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def fetch(self) -> tuple[SourceOptions, ...]:
        root = self._compose(self._read())
        cameras = self._cameras(root)
        if not isinstance(cameras, yaml.SequenceNode):
            raise self._error(cameras, "cameras is no list: write one '- id' per line below it")
        sources: list[SourceOptions] = []
        lines: dict[str, int] = {}
        for node in cameras.value:
            value = self._construct(node)
            try:
                source = _source(value, "")
            except ConfigError as exc:
                raise self._error(_blamed(node, str(exc)), str(exc)) from None
            line = node.start_mark.line + 1
            first = lines.get(str(source.cam_id))
            if first is not None:
                text = f"cam_id {source.cam_id!r} is a duplicate of line {first}: ids are unique, 1 and '1' the same"
                raise self._error(node, text)
            lines[str(source.cam_id)] = line
            sources.append(source)
        if not sources:
            raise self._error(cameras, "cameras is empty: give at least one id")
        return tuple(sources)

    def _read(self) -> str:
        try:
            with self.path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as exc:
            raise ConfigError(f"cameras file {str(self.path)!r} cannot be read: {exc.strerror or exc}") from None
        if len(data) > MAX_FILE_BYTES:
            raise ConfigError(
                f"cameras file {str(self.path)!r} is larger than {MAX_FILE_BYTES} bytes; is it the right one?"
            )
        try:
            return data.decode()
        except UnicodeDecodeError as exc:
            raise ConfigError(
                f"cameras file {str(self.path)!r} is no UTF-8 text: byte {exc.start} is {exc.reason}"
            ) from None

    def _compose(self, text: str) -> yaml.Node:
        """The tree of the file with its line numbers; refuses double keys, which YAML would resolve in silence."""
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except (yaml.YAMLError, RecursionError) as exc:
            mark = getattr(exc, "problem_mark", None)
            where = f", line {mark.line + 1}" if mark is not None else ""
            problem = getattr(exc, "problem", None) or type(exc).__name__
            raise ConfigError(f"cameras file {str(self.path)!r}{where}: no YAML: {problem}") from None
        if root is None:
            raise ConfigError(f"cameras file {str(self.path)!r} is empty: write 'cameras:' and one '- id' per line")
        self._check_tree(root, 0, set())
        return root

    def _check_tree(self, node: yaml.Node, depth: int, checked: set[int]) -> None:
        if depth > _MAX_DEPTH:
            raise self._error(node, f"nests more than {_MAX_DEPTH} levels deep (or holds itself)")
        if id(node) in checked:  # an alias
            return
        if isinstance(node, yaml.SequenceNode):
            for child in node.value:
                self._check_tree(child, depth + 1, checked)
        elif isinstance(node, yaml.MappingNode):
            seen: dict[str, int] = {}
            for key, child in node.value:
                line = key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode):
                    raise self._error(key, "a key is a list or a mapping: use plain text")
                if key.value in seen:
                    raise self._error(key, f"key {key.value!r} stands here again, first on line {seen[key.value]}")
                if key.value == "<<" and not isinstance(child, yaml.MappingNode):
                    raise self._error(key, "'<<' merges one mapping: write '<<: *name'")
                seen[key.value] = line
                self._check_tree(child, depth + 1, checked)
        checked.add(id(node))

    def _cameras(self, root: yaml.Node) -> yaml.Node:
        if not isinstance(root, yaml.MappingNode):
            raise self._error(root, "the file holds no mapping: begin with 'cameras:'")
        found: yaml.Node | None = None
        for key, value in root.value:
            if key.value not in _KEYS:
                raise self._error(key, f"there is no key {key.value!r}{suggestion(key.value, _KEYS)}")
            found = value
        if found is None:
            raise self._error(root, "cameras is missing: write 'cameras:' and one '- id' per line")
        return found

    def _construct(self, node: yaml.Node) -> Any:
        loader = yaml.SafeLoader("")
        try:
            return loader.construct_document(node)
        except (yaml.YAMLError, ValueError, RecursionError) as exc:  # a tag, or a date that is none
            raise self._error(node, f"{getattr(exc, 'problem', None) or exc}: use plain text, numbers, lists") from None
        finally:
            loader.dispose()

    def _error(self, node: yaml.Node, text: str) -> ConfigError:
        return ConfigError(f"cameras file {str(self.path)!r}, line {node.start_mark.line + 1}: {text}")


def _blamed(node: yaml.Node, message: str) -> yaml.Node:
    """The key of a source's mapping that an error message is about, for its line; else the source."""
    if isinstance(node, yaml.MappingNode):
        for key, _ in node.value:
            if f" {key.value}=" in message or f"setting {key.value!r}" in message:
                return key  # type: ignore[no-any-return]
    return node


def _source(entry: Any, where: str) -> SourceOptions:
    if isinstance(entry, SourceOptions):
        return entry
    if isinstance(entry, Mapping):
        for key in entry:
            if not isinstance(key, str):
                raise ConfigError(f"{where}the key {key!r} is {type(key).__name__}, not text")
        try:
            return SourceOptions(**entry)
        except ConfigError as exc:
            raise ConfigError(f"{where}{exc}") from None
    if isinstance(entry, (str, int)) and not isinstance(entry, bool):
        try:
            return SourceOptions(cam_id=entry)
        except ConfigError as exc:
            raise ConfigError(f"{where}{exc}") from None
    raise ConfigError(f"{where}{entry!r} is {type(entry).__name__}; write an id, or a mapping with cam_id and settings")


def open_registry(source: Any) -> Registry:
    """A registry of whatever names one: a registry, a path (or text ending in ``.yaml``/``.yml``), or a list.

    Raises:
        ConfigError: it names none.
    """
    if isinstance(source, Registry):
        return source
    if isinstance(source, os.PathLike) or (isinstance(source, str) and source.endswith((".yaml", ".yml"))):
        return YamlRegistry(source)
    return ListRegistry(source)
