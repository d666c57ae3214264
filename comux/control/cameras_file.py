"""The cameras file: which sources there are, and how the program around them is set up, in YAML (or JSON)::

    address: shm://lab
    control_topic: config
    model: detect:Detector                    # for ``comux run``: module:function, or module:class
    defaults: {rate: 10, W: 1280, H: 720}     # for every camera that says nothing else
    cameras:
      - cam1                                  # an id
      - 7
      - {cam_id: gate, rate: 5, codec: hevc}  # or every setting of a source

All of a file is checked before any of it is used; an error names file, line, key, value and remedy. Variables and
secrets are filled in (``yaml_file``). ``cameras_schema`` has the same as a JSON Schema, for editors.

**Watched.** ``wait_for_change`` looks at the file, and at the files of secrets it names, twice a second; a change
counts when it has lasted for one more look, so that a file that is being written is not read half. Only cameras change
while a program runs: another ``address`` is one error that says so, and nothing of the file is carried out until it is
back, or the program was started again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from comux.control.registry import Registry, source_of
from comux.control.yaml_file import YamlFile
from comux.errors import ComuxError, ConfigError
from comux.options import SourceOptions, check_schema, check_topic_name, suggestion
from comux.options import log_level as check_log_level
from comux.transport import check_engine

_EMPTY: Final = "write 'cameras:' and one '- id' per line"
_POLL_PERIOD: Final = 0.5
_DATABASE: Final = ("db_url", "db_database", "db_collections")

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]


def _address(value: Any) -> Any:
    if isinstance(value, str):
        try:
            check_engine(value)
        except ComuxError as exc:
            raise ValueError(str(exc)) from None
    return value


def _model(value: Any) -> Any:
    module, colon, name = value.partition(":") if isinstance(value, str) else ("", "", "")
    words = [*module.split("."), *name.split(".")]
    if not colon or not all(word.isidentifier() for word in words):
        raise ValueError("write module:function, as in detect:model")
    return value


def _level(value: Any) -> Any:
    check_log_level(value)
    return value


Address = Annotated[str, BeforeValidator(_address)]
Topic = Annotated[str, BeforeValidator(lambda value: check_topic_name(value) if isinstance(value, str) else value)]
Schema = Annotated[str, BeforeValidator(lambda value: check_schema(value) if isinstance(value, str) else value)]
Level = Annotated[str | int, BeforeValidator(_level)]


class BatchSettings(BaseModel):
    """What ``comux run`` asks of each batch: the arguments of ``get_batch``."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    frame: bool = False
    """Packets instead of pictures."""
    timeout: Seconds | None = 1.0
    """Seconds for the whole batch; null waits."""
    window: Seconds | None = None
    """Seconds to wait for slower cameras after the first picture; null: measured."""
    min_items: Count = 1
    """Fewest pictures to wait for, until the timeout."""
    align: Seconds | None = None
    """Capture times differ by this many seconds at most."""
    max_age: Seconds | None = None
    """Older pictures are dropped; seconds."""


class FileSettings(BaseModel):
    """Everything in a cameras file but the cameras: words of ``Comux``, and those of ``comux run``."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True, hide_input_in_errors=True)

    address: Address = "shm://"
    """Engine of the packets: shm://, shm://NAME, kafka://HOST:PORT."""
    produce_address: Address | None = None
    """Engine of the results; null: where the packets are."""
    consume_schema: Schema = "raw_:cam_id"
    """Topic of a camera's packets; :cam_id stands for its id."""
    produce_schema: Schema = "stream_:cam_id"
    """Topic of a camera's results."""
    client_name: Annotated[str, Field(min_length=1)] = "comux"
    """What control commands may be addressed to; category of the model in MongoDB."""
    control_topic: Topic | None = None
    """Topic on which commands come; null: none are obeyed."""
    control_address: Address | None = None
    """Engine of the control topic; null: where the packets are."""
    durable_control: bool = False
    """After a crash go on with the next command, and with the cameras as commands had made them."""
    strict_on_fail: bool = True
    """A missing topic or engine is one error at the start; else cameras wait for it."""
    watch_registry: bool = False
    """Carry out changes of this file, or of the database, while the program runs."""
    share_frames: bool | Schema = False
    """Decoded frames go into topics that others read: true, or a schema of their names."""
    decode_processes: Annotated[int, Field(ge=0)] | Literal["auto"] = 0
    """How many processes decode; 0: the program's own threads do; auto: as the interpreter is busy or not."""
    emit: Literal["results", "all"] = "results"
    """Which packets go out: those with results, or every one."""
    emit_wait: Seconds = 1.0
    """Seconds that emit: all waits for a packet's results."""
    send_timeout: Seconds = 5.0
    """Seconds that a result waits for room."""
    max_in_flight: Count = 1000
    """Results under way at most."""
    max_header_bytes: Count = 4 << 20
    """Bytes of all headers of one result at most."""
    max_message_bytes: Count | None = None
    """Bytes of a result at most, headers included; null: the engine's own limit."""
    store_bytes_total: Count | None = 1 << 30
    """Bytes of decoded pictures waiting to be taken at most, of all cameras together; null: only each one's own."""
    share: Topic | None = None
    """Kafka consumer group that shares the cameras with other processes."""
    topics: str | None = None
    """With share: which topics, as in raw_*."""
    durable: bool = False
    """With share: a camera goes on at the committed offset instead of its newest keyframe."""
    db_url: str | None = None
    """MongoDB with the cameras, in the place of a list here."""
    db_database: str | None = None
    """Its database."""
    db_collections: str | dict[str, str] | None = None
    """One collection of cameras, or the four of a schedule."""
    log_level: Level | None = None
    """ERROR, WARNING, INFO, DEBUG or ANY."""
    model: Annotated[str, BeforeValidator(_model)] | None = None
    """What comux run calls with each batch: module:function."""
    batch: BatchSettings = BatchSettings()
    """How comux run asks for batches."""

    def words(self) -> dict[str, Any]:
        """What is said here, as arguments of ``Comux``."""
        return {name: getattr(self, name) for name in self.model_fields_set if name not in ("model", "batch")}


@dataclass(frozen=True, slots=True)
class CamerasFile:
    """What a file states.

    Attributes:
        settings: Of the program.
        defaults: Settings of cameras that say nothing else.
        sources: The cameras, ``defaults`` included; ``None`` where they come from a database or a group.
        lines: Of each setting of the program and each camera, by its name or id.
        secret_paths: Files that were filled in.
    """

    settings: FileSettings
    defaults: Mapping[str, Any]
    sources: tuple[SourceOptions, ...] | None
    lines: Mapping[str, int]
    secret_paths: tuple[Path, ...]

    def words(self) -> dict[str, Any]:
        """Arguments of ``Comux`` beside the cameras."""
        return {**(self.defaults if self.sources is None else {}), **self.settings.words()}


def read_cameras_file(path: str | os.PathLike[str]) -> CamerasFile:
    """Read and check a file.

    Raises:
        ConfigError: it cannot be read, or something in it is wrong.
    """
    file = YamlFile(Path(path), "cameras file", _EMPTY)
    entries = file.mapping(file.root, "the file holds no mapping: begin with 'cameras:'")
    known = [*FileSettings.model_fields, "defaults", "cameras"]
    for name, (key, _) in entries.items():
        if name not in known:
            raise file.error(key, f"there is no key {name!r}{suggestion(name, known)}")
    values = {name: file.construct(node) for name, (_, node) in entries.items() if name not in ("defaults", "cameras")}
    settings = _settings(file, entries, values)
    defaults = _defaults(file, *entries["defaults"]) if "defaults" in entries else {}
    lines = {name: key.start_mark.line + 1 for name, (key, _) in entries.items()}
    sources: tuple[SourceOptions, ...] | None = None
    elsewhere = next((name for name in ("db_url", "topics") if getattr(settings, name) is not None), None)
    if "cameras" in entries:
        if elsewhere is not None:
            text = f"{elsewhere} and cameras both say which cameras there are; leave one"
            raise file.error(entries[elsewhere][0], text)
        sources = _sources(file, entries["cameras"][1], defaults, lines)
    elif elsewhere is None:
        raise file.error(file.root, "cameras is missing: write 'cameras:' and one '- id' per line")
    return CamerasFile(settings, defaults, sources, lines, tuple(file.secret_paths))


def _settings(
    file: YamlFile, entries: Mapping[str, tuple[yaml.Node, yaml.Node]], values: Mapping[str, Any]
) -> FileSettings:
    try:
        return FileSettings(**values)
    except ValidationError as exc:
        fault = exc.errors()[0]
        key, *inner = fault["loc"]
        node = entries[str(key)][0]
        if inner and isinstance(entries[str(key)][1], yaml.MappingNode):
            within = {k.value: k for k, _ in entries[str(key)][1].value}
            node = within.get(str(inner[0]), node)
        name = ".".join(map(str, (key, *inner))) if key == "batch" else str(key)
        if fault["type"] == "extra_forbidden":
            raise file.error(node, f"there is no key {name!r}{suggestion(name, BatchSettings.model_fields)}") from None
        message = fault["msg"].removeprefix("Value error, ")
        value = "" if key in ("address", "produce_address", "control_address", "db_url") else f"={fault['input']!r}"
        raise file.error(node, f"{name}{value}: {message[:1].lower()}{message[1:]}") from None


def _defaults(file: YamlFile, key: yaml.Node, node: yaml.Node) -> Mapping[str, Any]:
    file.mapping(node, "defaults is no mapping: write settings of cameras, as in {rate: 5}")
    value = file.construct(node)
    if "cam_id" in value:
        raise file.error(_blamed(node, "setting 'cam_id'"), "defaults hold no cam_id: it belongs to one camera")
    try:
        source_of({**value, "cam_id": "defaults"})
    except ConfigError as exc:
        raise file.error(_blamed(node, str(exc), key), str(exc).replace("source 'defaults'", "defaults")) from None
    return dict(value)


def _sources(
    file: YamlFile, cameras: yaml.Node, defaults: Mapping[str, Any], lines: dict[str, int]
) -> tuple[SourceOptions, ...]:
    if not isinstance(cameras, yaml.SequenceNode):
        raise file.error(cameras, "cameras is no list: write one '- id' per line below it")
    sources: dict[str, SourceOptions] = {}
    for node in cameras.value:
        value = file.construct(node)
        try:
            source = source_of(value)
            if defaults:
                own = value if isinstance(value, Mapping) else {"cam_id": value}
                source = source_of({**defaults, **own})
        except ConfigError as exc:
            raise file.error(_blamed(node, str(exc)), str(exc)) from None
        key = str(source.cam_id)
        if key in sources:
            text = f"cam_id {source.cam_id!r} is a duplicate of line {lines[key]}: ids are unique, 1 and '1' the same"
            raise file.error(node, text)
        lines[key] = node.start_mark.line + 1
        sources[key] = source
    if not sources:
        raise file.error(cameras, "cameras is empty: give at least one id")
    return tuple(sources.values())


def _blamed(node: yaml.Node, message: str, otherwise: yaml.Node | None = None) -> yaml.Node:
    """The key of a source's mapping that an error message is about, for its line; else the source."""
    if isinstance(node, yaml.MappingNode):
        for key, _ in node.value:
            if f" {key.value}=" in message or f"setting {key.value!r}" in message:
                return key  # type: ignore[no-any-return]
    return node if otherwise is None else otherwise


class YamlRegistry(Registry):
    """Sources stated in a cameras file, read again at each ``fetch``.

    Args:
        path: The file.
        poll_period: Seconds between two looks at the file where it is watched.

    Thread-safe where one thread at a time fetches and waits.
    """

    def __init__(self, path: str | os.PathLike[str], *, poll_period: float = _POLL_PERIOD) -> None:
        self.path = Path(path)
        self._period = poll_period
        self._watched: tuple[Path, ...] = (self.path,)
        self._seen: tuple[Any, ...] | None = None
        self._first: CamerasFile | None = None

    def read(self) -> CamerasFile:
        """All that the file states.

        Raises:
            ConfigError: something in it is wrong, or a setting of the program differs from when it was read first.
        """
        self._seen = self._look()
        file = read_cameras_file(self.path)
        if self._watched[1:] != file.secret_paths:
            self._watched = (self.path, *file.secret_paths)
            self._seen = self._look()
        if self._first is None:
            self._first = file
        before, now = self._first.settings.words(), file.settings.words()
        for name in [*now, *before]:
            if now.get(name) != before.get(name):
                line = f", line {file.lines[name]}" if name in file.lines else ""
                text = "only cameras change while a program runs: put it back, or start the program again"
                raise ConfigError(f"cameras file {str(self.path)!r}{line}: {name} was changed; {text}")
        return file

    def fetch(self) -> tuple[SourceOptions, ...]:
        file = self.read()
        if file.sources is None:
            raise ConfigError(f"cameras file {str(self.path)!r} names no cameras; they come from elsewhere")
        return file.sources

    def wait_for_change(self, timeout: float | None = None) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout
        before: tuple[Any, ...] | None = None
        while not self._closing.is_set():
            now = self._look()
            if now != self._seen and now == before:
                return True
            before = now
            left = self._period if deadline is None else min(self._period, deadline - time.monotonic())
            if left <= 0 or self._closing.wait(left):
                return False
        return False

    def _look(self) -> tuple[Any, ...]:
        found: list[Any] = []
        for path in self._watched:
            try:
                status = path.stat()
            except OSError as exc:
                found.append(exc.errno)
            else:
                found.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
        return tuple(found)
