"""Setting up: what ``Comux`` is told before it runs, in our words and the first comux's.

Lives here: ``Door``, the half of the façade that is about settings, engines and control; and ``read_settings``.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping
from typing import Any, Final, Literal

from comux.control import Act, Controller, Registry, state_topic_of
from comux.errors import ConfigError
from comux.headers import HeaderSchema
from comux.headers import check_schema as check_header_schema
from comux.multiplexer import actions
from comux.multiplexer.core import Core
from comux.multiplexer.legacy import (
    Consumers,
    SourceConsumer,
    Threads,
    address_of,
    source_words,
    split_source_words,
    start_of,
)
from comux.multiplexer.results import SendLimits
from comux.multiplexer.settings import Settings
from comux.options import (
    CamId,
    check_choice,
    check_positive,
    check_schema,
    check_timeout,
    check_topic_name,
    replace_flag,
)
from comux.transport import Consumer

SHARE_SCHEMA: Final = "frames_:cam_id"


class Door:
    """The part of ``Comux`` that sets up. Not for use on its own."""

    client_name: str
    _core: Core
    _controller: Controller | None

    def start(self) -> None:
        """See ``Comux.start``."""
        raise NotImplementedError

    def _open_core(self) -> Core:
        self._core.check_open()
        return self._core

    @property
    def cam_ids(self) -> tuple[CamId, ...]:
        """The sources, in order."""
        return tuple(spec.cam_id for spec in list(self._core.specs.values()))

    @property
    def consumers(self) -> Consumers:
        """Consumers by ``cam_id``; setting a key replaces, deleting a key kills."""
        return Consumers(self._core)

    @property
    def threads(self) -> Threads:
        """Threads by ``cam_id``; setting a key replaces, deleting a key kills."""
        return Threads(self._core)

    @property
    def controller(self) -> Controller | None:
        """What obeys commands, where ``setup_controller`` was called."""
        return self._controller

    # -- setting up ------------------------------------------------------------------------------------------------

    def setup_consumers(
        self,
        bootstrap_servers: Any = None,
        replace: bool | None = None,
        max_offset_diff: int | None = None,
        strict_on_fail: bool | None = None,
        over_write: bool | None = None,
        *,
        overwrite: bool | None = None,
        end: bool | None = None,
        share: str | None = None,
        topics: str | None = None,
        durable: bool | None = None,
        **client_options: Any,
    ) -> None:
        """Say where the packets are, and connect every source.

        Args:
            bootstrap_servers: An address, or a list of ``host:port``.
            replace: (also ``overwrite``, ``over_write``) Replace consumers that exist.
            max_offset_diff: Lag limit in records.
            strict_on_fail: Raise where a topic or engine is missing; else the source waits for it.
            end: Begin at the end of the topics; ``False``: at their beginning.
            share: Name of a consumer group: every process that names it takes its part of the cameras, which come and
                go while the loop runs, see ``comux.multiplexer.fleet``.
            topics: With ``share``: a pattern (``"raw_*"``) instead of the ids given to the constructor.
            durable: With ``share``: a camera goes on at the committed offset instead of its newest keyframe.
                Without: of sources in a group.
            client_options: Settings of sources, or options of the engine's client; they win over comux' own.

        Raises:
            NameError: consumers exist and are not to be replaced. ComuxError: a topic or engine is missing.
        """
        core = self._open_core()
        if share is None and topics is not None:
            raise ConfigError(f"topics={topics!r} without share=: name the group whose processes share them")
        if durable is not None and share is None:
            client_options["durable"] = durable
        if not replace_flag(replace=replace, overwrite=overwrite, over_write=over_write) and len(self.consumers):
            raise NameError(f"consumers exist for {', '.join(map(str, self.consumers))}; pass replace=True")
        ours, client = split_source_words(client_options)
        changes: dict[str, Any] = {**ours}
        if max_offset_diff is not None:
            changes["max_offset_diff"] = check_positive(max_offset_diff, "max_offset_diff")
        if end is not None:
            changes["start"] = start_of(end)
        if client:
            changes["client_options"] = {**changes.get("client_options", {}), **client}
        if bootstrap_servers is not None:
            core.settings.address = address_of(bootstrap_servers, "bootstrap_servers")
        if strict_on_fail is not None:
            core.settings.strict = flag(strict_on_fail, "strict_on_fail")
        self._set_defaults(changes)
        if share is not None:
            if topics is not None:
                core.specs = {}
            kept = durable is not None and flag(durable, "durable")
            core.share(check_topic_name(share, "share"), topics, durable=kept)
        elif not core.started:
            for cam_id in self.cam_ids:
                core.drop_connected(cam_id)
            core.connect_all(strict=core.settings.strict)

    def setup_decoders(
        self,
        rate: float | None = 10,
        W: int | None = 1920,
        H: int | None = 1080,
        de_codec: str = "h264",
        pix_fmt: str | None = "yuv420p",
        **settings: Any,
    ) -> None:
        """Say how packets become arrays; the defaults are the first comux's.

        Args:
            rate: Most frames per second delivered; ``None``: all.
            W, H: Size of the arrays; ``None``: the stream's.
            de_codec: Codec.
            pix_fmt: Of the stream; arrays are BGR unless ``array_format`` says otherwise.
            settings: Further settings of ``SourceOptions``.

        Raises:
            ConfigError: a setting is wrong; nothing changed.
        """
        self._open_core()
        changes = {"rate": rate_of(rate), "W": W, "H": H, "codec": de_codec, "pix_fmt": pix_fmt}
        self._set_defaults({**changes, **source_words(settings)})

    def _set_defaults(self, changes: Mapping[str, Any]) -> None:
        """Change the settings of all sources; those that run are updated."""
        core = self._core
        before = dict(core.settings.defaults)
        core.settings.defaults = {**before, **changes}
        try:
            core.check_all()
        except ConfigError:
            core.settings.defaults = before
            raise
        if core.started:
            for cam_id in self.cam_ids:
                core.update(cam_id, changes)

    def setup_controller(
        self,
        topic: str,
        bootstrap_servers: Any = None,
        acts: Mapping[str, Act] | None = None,
        **options: Any,
    ) -> Controller:
        """Obey commands on a topic: ``create, update, delete, status`` and the user's acts.

        Args:
            topic: The config topic; made when it is missing.
            bootstrap_servers: Its address; ``None``: where the packets are.
            acts: ``acts[name](comux, value)``.
            options: Of ``comux.control.Controller``; ``durable=True``: after a crash go on with the next command, and
                with the sources as commands had made them, which are there when this returns.

        Returns:
            The controller; it runs from ``start`` on, and commands sent after this call are seen.

        Raises:
            ComuxError: a wrong setting, or an engine that cannot be reached.
        """
        core = self._open_core()
        unknown = sorted(options.keys() - inspect.signature(Controller).parameters.keys())
        if unknown:
            raise ConfigError(f"setup_controller: there is no option {unknown[0]!r}; see comux.control.Controller")
        if self._controller is not None:
            raise ConfigError(f"a controller obeys topic {self._controller.topic!r} already")
        address = (
            core.settings.address if bootstrap_servers is None else address_of(bootstrap_servers, "bootstrap_servers")
        )
        options = {"name": self.client_name, "sources": actions.StatedSources(core), **options}
        if flag(options.get("durable", False), "durable"):
            core.settings.reserved = state_topic_of(topic, "")
            for spec in core.specs.values():
                core.resolve(spec)
        controller = Controller(core.engine_beside(address), topic, self, acts=acts, events=core.events, **options)
        try:
            controller.connect()
        except BaseException:
            controller.close()
            raise
        self._controller = controller
        core.at_close.append(controller.close)
        if core.started:
            controller.start()
        return controller

    def setup_producer(
        self,
        bootstrap_servers: Any = None,
        strict_on_fail: bool | None = None,
        over_write: bool | None = None,
        **client_options: Any,
    ) -> None:
        """Say where the results go; their topics are made at the start where they are missing.

        Args:
            bootstrap_servers: An address, or a list of ``host:port``.
            strict_on_fail: Raise at the start where the engine cannot be reached.
            over_write: Accepted; the user's options always win.
            client_options: Options of the engine's client.

        Raises:
            ConfigError: a setting is wrong, or the sources run already.
        """
        core = self._open_core()
        if core.started:
            raise ConfigError("setup_producer after start: say where the results go before")
        if over_write is not None:
            replace_flag(over_write=over_write)
        if bootstrap_servers is not None:
            core.settings.produce_address = address_of(bootstrap_servers, "bootstrap_servers")
        if strict_on_fail is not None:
            core.settings.strict = flag(strict_on_fail, "strict_on_fail") and core.settings.strict
        core.settings.produce_options.update(client_options)
        core.settings.check_produce = True
        core.check_all()

    def connect(self, cam_id: CamId, overwrite: bool = True) -> SourceConsumer:
        """Take a source's place in its topic now rather than at the start.

        Raises:
            NameError: it is connected and ``overwrite`` is false. ComuxError: the topic or engine is missing.
        """
        core = self._open_core()
        there = core.connected(cam_id)
        if there is not None and not overwrite:
            raise NameError(f"source {cam_id!r} has a consumer; pass overwrite=True to replace it")
        if core.table.find(cam_id) is not None:
            core.restart(cam_id)
            return self.consumers[cam_id]
        return SourceConsumer(core.connect(cam_id))

    def connect_all(self) -> None:
        """``connect`` every source that is not connected yet.

        Raises:
            ComuxError: one error that names every source that cannot be connected, unless ``strict_on_fail=False``.
        """
        core = self._open_core()
        core.connect_all(strict=core.settings.strict)

    def listen(self, consumer: Consumer | SourceConsumer) -> threading.Thread:
        """Read from ``consumer`` in the thread of the source whose topic it reads; starts everything if need be.

        Returns:
            The source's thread.

        Raises:
            UnknownSourceError: no source reads its topic.
        """
        inner = consumer.consumer if isinstance(consumer, SourceConsumer) else consumer
        core = self._open_core()
        for spec in list(core.specs.values()):
            if core.resolve(spec).consume_topic in inner.topics:
                self.consumers[spec.cam_id] = inner
                self.start()
                return core.find(spec.cam_id).thread or threading.current_thread()
        raise core.unknown(inner.topics[0])


def from_file(path: Any, words: dict[str, Any]) -> Registry | None:
    """The registry of a cameras file; its settings of the program go into ``words``, where there are none.

    Returns:
        ``None`` where the file's cameras come from elsewhere.

    Raises:
        ConfigError: something in it is wrong.
    """
    from comux.control.cameras_file import YamlRegistry  # a tenth of a second, for programs that have such a file

    registry = YamlRegistry(path)
    file = registry.read()
    for name, value in file.words().items():
        words.setdefault(name, value)
    return registry if file.sources is not None else None


def rate_of(rate: Any) -> Any:
    """Whole numbers are frames per second too; what is no number is left to the check of settings."""
    return float(rate) if isinstance(rate, int) and not isinstance(rate, bool) else rate


def flag(value: object, what: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{what} {value!r} is {type(value).__name__}, not True or False")
    return value


def processes_of(value: Any) -> int | Literal["auto"]:
    """``decode_processes``, checked."""
    if value == "auto":
        return "auto"
    try:
        return check_positive(value, "decode_processes", zero=True)
    except ConfigError as exc:
        raise ConfigError(f"{exc}, or 'auto'") from None


def read_settings(words: dict[str, Any]) -> tuple[Settings, dict[str, Any]]:
    """Part the constructor's words into settings of the manager and arguments of its results.

    Raises:
        ConfigError: an unknown word or a wrong value.
    """
    limits = SendLimits()
    send: dict[str, Any] = {name: words.pop(name, getattr(limits, name)) for name in SendLimits.__dataclass_fields__}
    check_timeout(send["send_timeout"], "send_timeout")
    for name in ("max_in_flight", "max_header_bytes"):
        check_positive(send[name], name)
    schema: HeaderSchema | None = words.pop("header_schema", None)
    check_header_schema(schema)
    share = words.pop("share_frames", None)
    words_emit, words_wait = words.pop("emit", "results"), words.pop("emit_wait", 1.0)
    most = words.pop("store_bytes_total", Settings.store_bytes_total)
    settings = Settings(
        store_bytes_total=None if most is None else check_positive(most, "store_bytes_total"),
        address=address_of(words.pop("address", "shm://"), "address"),
        consume_schema=check_schema(words.pop("consume_schema", "raw_:cam_id"), "consume_schema"),
        produce_schema=check_schema(words.pop("produce_schema", "stream_:cam_id"), "produce_schema"),
        strict=flag(words.pop("strict_on_fail", True), "strict_on_fail"),
        decode_processes=processes_of(words.pop("decode_processes", 0)),
    )
    produce = words.pop("produce_address", None)
    if produce is not None:
        settings.produce_address = address_of(produce, "produce_address")
    if share is not None and share is not False:
        settings.share_schema = SHARE_SCHEMA if share is True else check_schema(share, "share_frames")
    ours, client = split_source_words(words)
    settings.defaults = ours
    if client:
        settings.defaults["client_options"] = {**ours.get("client_options", {}), **client}
    emit = check_choice(words_emit, "emit", ("results", "all"))
    wait = check_timeout(words_wait, "emit_wait")
    if wait is None:
        raise ConfigError("emit_wait=None: a packet cannot wait for ever for its results; give seconds")
    return settings, {
        "schema": schema,
        "limits": SendLimits(**send),
        "emit_wait": wait if emit == "all" else None,
    }
