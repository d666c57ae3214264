"""The first comux's words at the door: constructor forms, addresses, and the mappings keyed by ``cam_id``.

Lives here: translation into our words, once, so that nothing behind the door knows two spellings.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from comux.errors import ConfigError
from comux.multiplexer.core import Core
from comux.options import CAM_ID_MARK, CamId, SourceOptions, deprecated, replace_flag
from comux.transport import Consumer

if TYPE_CHECKING:
    from comux.control import MongoRegistry

MONGO_WORDS: Final = ("db_url", "db_database", "db_collections")
_MONGO_SCHEMES: Final = ("mongodb://", "mongodb+srv://")
_SOURCE_WORDS: Final = {"de_codec": "codec"}


def address_of(servers: object, what: str) -> str:
    """One address out of what a user states: an address, ``host:port``, or a list of ``host:port``.

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(servers, str) and servers:
        return servers
    if isinstance(servers, Sequence) and servers and all(isinstance(server, str) and server for server in servers):
        return ",".join(servers)
    given = "is empty" if not servers else f"of type {type(servers).__name__} is no address"
    raise ConfigError(f"{what} {given}: use 'shm://', 'shm://name', 'kafka://host:port', or a list of 'host:port'")


def positional(args: Sequence[Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of ours for the first comux's constructor forms (everything behind ``cam_ids``).

    Raises:
        ConfigError: a form that this version does not have, or too many arguments.
    """
    out = dict(keywords)
    names: tuple[str, ...]
    if args and isinstance(args[0], str) and args[0].startswith(_MONGO_SCHEMES):
        maxlen = ("maxlen",) if _is_count(args[3:4]) else ()
        names = (*MONGO_WORDS, *maxlen, "consume_schema", "produce_schema", "log_level")
    elif args and not _is_address(args[0]):
        names = ("consume_schema", "produce_schema", "log_level")
    else:
        names = ("bootstrap_servers", "control_topic", "control_bootstrap_servers", "acts")
    if len(args) > len(names):
        raise ConfigError(
            f"{len(args) + 1} positional arguments, at most {len(names) + 1}: cam_ids, {', '.join(names)}"
        )
    for name, value in zip(names, args, strict=False):
        if name in out:
            raise ConfigError(f"{name} is given twice")
        out[name] = value
    return _reference_form(out)


def database(cam_ids: Any, words: dict[str, Any]) -> MongoRegistry | None:
    """The registry that ``db_url``, ``db_database`` and ``db_collections`` name; they are taken out of ``words``.

    Args:
        cam_ids: What stands in their place: the client's name, or nothing where ``client_name`` is given by name.
        words: Keywords of ours.

    Returns:
        ``None`` where the words name no database.

    Raises:
        ConfigError: they are not complete, or wrong.
    """
    given = {word: words.pop(word) for word in MONGO_WORDS if word in words}
    if not given:
        return None
    if missing := [word for word in ("db_url", "db_database") if given.get(word) is None]:
        raise ConfigError(f"{missing[0]} is missing: cameras from MongoDB need db_url= and db_database=")
    if cam_ids is not None and not isinstance(cam_ids, str):
        raise ConfigError(
            f"cam_ids of type {type(cam_ids).__name__} and db_url=: give the client's name as text, or no db_url"
        )
    if cam_ids is not None and words.setdefault("client_name", cam_ids) != cam_ids:
        raise ConfigError(f"client_name is given twice: {cam_ids!r} and {words['client_name']!r}")
    from comux.control import MongoRegistry  # most programs have no database

    return MongoRegistry(words.get("client_name"), **given)


def _is_count(values: Sequence[Any]) -> bool:
    return any(isinstance(value, int) and not isinstance(value, bool) for value in values)


def _is_address(value: object) -> bool:
    if isinstance(value, str):
        return CAM_ID_MARK not in value and ("://" in value or ":" in value)
    return isinstance(value, Sequence)


def _reference_form(out: dict[str, Any]) -> dict[str, Any]:
    if "bootstrap_servers" in out:
        out["address"] = address_of(out.pop("bootstrap_servers"), "bootstrap_servers")
    if "control_bootstrap_servers" in out:
        out["control_address"] = address_of(out.pop("control_bootstrap_servers"), "control_bootstrap_servers")
    if "end" in out:
        out.setdefault("start", start_of(out.pop("end")))
    for word in ("over_write", "overwrite", "replace"):
        if word in out:
            deprecated(f"{word}= of the constructor", "nothing: a new Comux replaces no consumer", stacklevel=5)
            del out[word]
    return out


def start_of(end: object) -> str:
    """``end=True``: from the end; ``False``: from the beginning.

    Raises:
        ConfigError: not a bool.
    """
    if not isinstance(end, bool):
        raise ConfigError(f"end={end!r} is {type(end).__name__}, not True (from the end) or False (from the beginning)")
    return "end" if end else "beginning"


def source_words(words: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of sources with the first comux's names translated."""
    return {_SOURCE_WORDS.get(name, name): value for name, value in words.items()}


def split_source_words(words: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """``words`` parted into settings of sources and the rest (options for the engine's client)."""
    ours: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for name, value in source_words(words).items():
        (ours if name in SourceOptions.model_fields and name != "cam_id" else rest)[name] = value
    return ours, rest


class SourceConsumer:
    """The consumer of a source with the first comux's two properties; everything else is the consumer's own."""

    def __init__(self, consumer: Consumer) -> None:
        self.consumer = consumer

    @property
    def offset(self) -> int:
        """Offset of the next packet."""
        return self.consumer.position()

    @property
    def topic_last_offset(self) -> int:
        """High-water mark."""
        return self.consumer.end_offset()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.consumer, name)


class Consumers(MutableMapping[CamId, Any]):
    """``comux.consumers``: reading always; setting a key replaces, deleting a key kills."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def __getitem__(self, cam_id: CamId) -> SourceConsumer:
        self._core.check_open()
        consumer = self._core.connected(cam_id)
        if consumer is None:
            raise KeyError(cam_id)
        return SourceConsumer(consumer)

    def __setitem__(self, cam_id: CamId, consumer: Any) -> None:
        self._core.check_open()
        inner = consumer.consumer if isinstance(consumer, SourceConsumer) else consumer
        if not isinstance(inner, Consumer):
            raise ConfigError(f"consumers[{cam_id!r}]: {type(consumer).__name__} is no consumer")
        if str(cam_id) not in self._core.specs:
            raise self._core.unknown(cam_id)
        if inner is not self._core.connected(cam_id):
            self._core.replace_consumer(cam_id, inner)

    def __delitem__(self, cam_id: CamId) -> None:
        self._core.delete(cam_id)

    def __iter__(self) -> Iterator[CamId]:
        return iter([s.cam_id for s in list(self._core.specs.values()) if self._core.connected(s.cam_id) is not None])

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Threads(MutableMapping[CamId, Any]):
    """``comux.threads``: a source's thread; setting a key replaces it by a fresh one, deleting a key kills."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def __getitem__(self, cam_id: CamId) -> threading.Thread:
        self._core.check_open()
        source = self._core.table.find(cam_id)
        if source is None or source.thread is None:
            raise KeyError(cam_id)
        return source.thread

    def __setitem__(self, cam_id: CamId, thread: Any) -> None:
        """``thread`` is what ``listen`` gave: the thread that reads the source now. Any other value is refused."""
        self._core.check_open()
        source = self._core.find(cam_id)
        if thread is not None and thread is not source.thread:
            raise ConfigError(
                f"threads[{cam_id!r}]: comux starts its own threads; assign what listen() returned, or None to restart"
            )
        if thread is None:
            self._core.restart(cam_id)

    def __delitem__(self, cam_id: CamId) -> None:
        self._core.delete(cam_id)

    def __iter__(self) -> Iterator[CamId]:
        return iter([source.cam_id for source in self._core.table.sources if source.thread is not None])

    def __len__(self) -> int:
        return sum(1 for _ in self)


__all__ = [
    "Consumers",
    "SourceConsumer",
    "Threads",
    "address_of",
    "database",
    "positional",
    "replace_flag",
    "source_words",
    "split_source_words",
    "start_of",
]
