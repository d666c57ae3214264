"""Registries: where the list of sources comes from.

Lives here: what a registry is, and sources stated in the program. A YAML file: ``cameras_file``; a database: ``mongo``.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Final

from comux.errors import ConfigError
from comux.options import CamId, SourceOptions, check_cam_ids

CAMERAS_FILES: Final = (".yaml", ".yml", ".json")


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
        self._sources = tuple(source_of(entry, f"source at position {n}: ") for n, entry in enumerate(sources))
        check_cam_ids([source.cam_id for source in self._sources])

    def fetch(self) -> tuple[SourceOptions, ...]:
        return self._sources


def source_of(entry: Any, where: str = "") -> SourceOptions:
    """What an entry of a list of sources states.

    Args:
        entry: An id, ``SourceOptions``, or a mapping of its settings.
        where: Put before an error.

    Raises:
        ConfigError: it states none, or a wrong setting.
    """
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


def is_cameras_file(source: Any) -> bool:
    """Whether ``source`` names a file: a path, or text that ends in ``.yaml``, ``.yml`` or ``.json``."""
    return isinstance(source, os.PathLike) or (isinstance(source, str) and source.lower().endswith(CAMERAS_FILES))


def open_registry(source: Any) -> Registry:
    """A registry of whatever names one: a registry, the path of a cameras file, or a list.

    Raises:
        ConfigError: it names none.
    """
    if isinstance(source, Registry):
        return source
    if is_cameras_file(source):
        from comux.control.cameras_file import YamlRegistry  # where one is read only: see the package

        return YamlRegistry(source)
    return ListRegistry(source)
