"""``Comux``: the door of the multiplexer. A façade: every method says what it takes, and hands it to ``Core``."""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal

from comux.account import AccountSnapshot
from comux.control import Change, Controller, Registry, Watcher, is_cameras_file, open_registry
from comux.decoders import create_decoder
from comux.decoders.interface import Decoder, DecoderOptions
from comux.errors import ConfigError, EndOfStream
from comux.multiplexer import actions
from comux.multiplexer.assemble import Wanted
from comux.multiplexer.batch import Batch, Item
from comux.multiplexer.core import Core
from comux.multiplexer.legacy import (
    database,
    positional,
    source_words,
)
from comux.multiplexer.results import ResultFuture
from comux.multiplexer.setup import Door, flag, from_file, read_settings
from comux.multiplexer.status import manager_status
from comux.multiplexer.wishes import SeekTo
from comux.options import (
    CamId,
    Mode,
    SourceOptions,
    cam_id_of,
    check_choice,
    check_positive,
    check_timeout,
)
from comux.options import (
    log_level as level_of,
)
from comux.telemetry import EventLog

_MODES = ("auto", "every_frame", "freshest")


class Comux(Door):
    """Many sources, one loop over their newest (or every) picture, results re-emitted with the original packets.

    ::

        with Comux(["cam1", "cam2"], address="shm://") as cameras:
            for batch in cameras:
                for cam_id, index, array in batch:
                    if array is not None:
                        cameras.send(cam_id, index, {"mean": float(array.mean())})

    Args:
        cam_ids: Ids (or complete settings) of the sources, a ``Registry``, or the path of a cameras file, whose other
            settings hold where none are given here.
        legacy: The first comux's positional forms: ``(consume_schema, produce_schema, log_level)`` or
            ``(bootstrap_servers, control_topic, control_bootstrap_servers, acts)``, or with the client's name in the
            place of ``cam_ids`` ``(db_url, db_database, db_collections, consume_schema, produce_schema, log_level)``.
        db_url, db_database, db_collections: Sources from MongoDB, see ``comux.control.MongoRegistry``.
        watch_registry: Carry out what the registry states as it changes, from the start on; it ends with us then.
        address: Engine of the packets.
        produce_address: Engine of the results; ``None``: where the packets are.
        consume_schema, produce_schema: Topics of a source; ``:cam_id`` stands for its id.
        share_frames: ``True`` or a schema: decoded frames go into a topic that others read with ``codec="frames"``.
        strict_on_fail: A missing topic or engine is one error at the start; else sources wait for it.
        header_schema: Pydantic model or function that checks and shapes the results.
        emit: ``"results"``: only packets that were sent; ``"all"``: every packet in offset order.
        emit_wait: Seconds that ``"all"`` waits for a packet's results.
        send_timeout, max_in_flight, max_header_bytes, max_message_bytes: See ``SendLimits``.
        store_bytes_total: Bytes of decoded pictures waiting to be taken at most, of all sources together (each source's
            ``store_bytes`` holds as well); ``None``: no such limit. A source that has none waiting always gets one in.
        log_level: Of the logger ``comux``; ``None`` leaves it alone. No handler is installed.
        share, topics, durable: Share the cameras with other processes, as ``setup_consumers`` says; with ``topics``
        there
            are no ``cam_ids``.
        client_name: What control commands may be addressed to.
        control_topic, control_address, acts: As ``setup_controller``.
        durable_control: After a crash go on with the next command and with the sources as commands had made them.
        decode_processes: How many processes decode, so that a loop that computes in Python holds no camera up; 0: the
            sources' threads do; ``"auto"``: those until one is seen to wait for the interpreter, which is then said in
            an event ``decoding.moved``. Same pictures, same books. See ``docs/how-to/decode-in-processes.md``.
        decoder_factory: Makes decoders; the default is the registry of codecs.
        source: Settings of ``SourceOptions`` for every source that has none of its own (``mode``, ``codec``, ``W``, …).

    Everything is checked here or at the start, before a thread runs. Thread-safe. A context manager that starts on
    entry; a program that forgets ``close()`` still ends. After a fork the child's copy raises ``ClosedError``.

    Raises:
        ConfigError: a setting is wrong. UnknownAddressError: no engine understands an address.
    """

    def __init__(self, cam_ids: Any = None, *legacy: Any, **options: Any) -> None:
        words = positional(legacy, options)
        if is_cameras_file(cam_ids):
            cam_ids = from_file(cam_ids, words)
        watch = flag(words.pop("watch_registry", False), "watch_registry")
        registry = database(cam_ids, words)
        level = level_of(words.pop("log_level", None))
        control = {name: words.pop(name, None) for name in ("control_topic", "control_address", "acts")}
        kept = flag(words.pop("durable_control", False), "durable_control")
        self.client_name: str = words.pop("client_name", "comux")
        decoder: Callable[[DecoderOptions], Decoder] = words.pop("decoder_factory", None) or create_decoder
        shared = {name: words.pop(name, None) for name in ("share", "topics", "durable")}
        if shared["share"] is None and shared["durable"] is not None:
            words["durable"] = shared.pop("durable")
        settings, results = read_settings(words)
        if level is not None:
            logging.getLogger("comux").setLevel(level)
        if settings.decode_processes and decoder is not create_decoder:
            raise ConfigError(
                f"decode_processes={settings.decode_processes} with decoder_factory: another process cannot be given a "
                "function; make the decoder a plug-in (entry point comux.codecs), or leave one of them out"
            )
        self._core = core = Core(settings, decoder, **results)
        self._pid = os.getpid()
        self._controller: Controller | None = None
        self._watcher: Watcher | None = None
        self._ended = False
        if registry is not None:
            self._define_from(registry, watch)
        elif cam_ids is not None or shared["share"] is None:
            self._define(cam_ids, watch)
        if shared["share"] is not None:
            self.setup_consumers(**shared)
        self._end = weakref.finalize(self, core.close)
        if control["control_topic"] is not None:
            address = control["control_address"] or settings.address
            self.setup_controller(control["control_topic"], address, control["acts"], durable=kept)
        elif control["acts"] is not None:
            raise ConfigError("acts without control_topic: name the topic on which commands come")
        elif kept:
            raise ConfigError("durable_control without control_topic: name the topic on which commands come")

    def _define(self, cam_ids: Any, watch: bool) -> None:
        if cam_ids is None:
            raise ConfigError("cam_ids is missing: give a list of ids, a Registry, or the path of a cameras file")
        registry = open_registry(cam_ids)
        if is_cameras_file(cam_ids):
            self._define_from(registry, watch)
        else:
            self._take(registry, watch)

    def _define_from(self, registry: Registry, watch: bool) -> None:
        """Sources of a registry that is ours, and ends with us."""
        self._core.at_close.append(registry.close)
        try:
            self._take(registry, watch)
        except BaseException:
            registry.close()
            raise

    def _take(self, registry: Registry, watch: bool) -> None:
        core = self._core
        if watch and type(registry).wait_for_change is Registry.wait_for_change:
            raise ConfigError(f"watch_registry: a {type(registry).__name__} does not know when it changes")
        core.specs = {str(spec.cam_id): spec for spec in registry.fetch()}
        core.settings.stated = dict(core.specs)
        for spec in core.specs.values():
            core.resolve(spec)
        if watch:
            self._watcher = Watcher(
                registry,
                self._carry_out,
                events=core.events,
                stated=core.specs.values(),
                defaults=lambda: core.settings.defaults,
            )
            core.at_close.append(self._watcher.close)

    def _carry_out(self, change: Change) -> None:
        """What the registry states anew."""
        core, controller = self._core, self._controller
        core.settings.restate(change)
        if controller is None:
            actions.carry_out(core, change)
        else:
            controller.restate(change, lambda change: actions.carry_out(core, change))

    # -- taking ----------------------------------------------------------------------------------------------------

    def get_batch(
        self,
        frame: bool = False,
        *,
        timeout: float | None = None,
        mode: Mode | None = None,
        window: float | None = None,
        min_items: int = 1,
        align: float | None = None,
        max_age: float | None = None,
    ) -> Batch:
        """One item per source, in the order of ``cam_ids``; starts the sources if need be.

        Returns when every RUNNING source has a picture, or ``window`` after the first one was there, or at ``timeout``;
        at once when a source is created, changed or deleted meanwhile. Sources that have nothing get an empty item that
        says why.

        Args:
            frame: Packets (``bytes``) instead of arrays.
            timeout: Seconds for the whole batch; ``None`` waits, ``0`` never waits.
            mode: ``"every_frame"``: each source's oldest undelivered picture; ``"freshest"``: its newest, older ones
                are dropped; ``"auto"``: freshest for live sources, every_frame for finite ones; ``None``: as the
                sources are set. It also says how the sources keep their pictures from now on.
            window: Seconds; ``None``: the fastest running source's own period, measured, at most 50 ms; a source that
                has missed three of its own pictures is then not waited for.
            min_items: Fewest pictures to wait for (until ``timeout``).
            align: Capture times may differ by this many seconds at most; older pictures are dropped, ``align``.
            max_age: Pictures older than this many seconds are dropped, ``stale``.

        Returns:
            A ``Batch``; its arrays belong to the caller.

        Raises:
            EndOfStream: every source has ended and everything was delivered. WaitTimeoutError: another thread's call
                took all of the time (calls take turns). ClosedError. ConfigError.
        """
        core = self._running_core()
        if not isinstance(frame, bool):
            raise ConfigError(f"get_batch({frame!r}): frame is True or False; did you mean timeout={frame!r}?")
        if mode is not None:
            self._set_mode(mode)
        wanted = self._wanted(timeout, frame, window, min_items, align, max_age)
        batch = core.assembler.batch(lambda: core.table.sources, wanted)
        core.departed.batch()
        return batch

    def _wanted(
        self,
        timeout: float | None,
        frame: bool = False,
        window: float | None = None,
        min_items: int = 1,
        align: float | None = None,
        max_age: float | None = None,
    ) -> Wanted:
        seconds = check_timeout(timeout)
        return Wanted(
            deadline=None if seconds is None else time.monotonic() + seconds,
            window=check_timeout(window, "window"),
            min_items=check_positive(min_items, "min_items", zero=True),
            align=check_timeout(align, "align"),
            max_age=check_timeout(max_age, "max_age"),
            packets=frame,
        )

    def _set_mode(self, mode: Mode) -> None:
        check_choice(mode, "mode", _MODES)
        core = self._core
        with core.hub.lock:
            for source in core.table.sources:
                source.keep(mode)

    def get(self, cam_id: CamId, frame: bool = False) -> Item:
        """The source's next item as it is now; never waits.

        Raises:
            UnknownSourceError. EndOfStream: the source has ended and everything was delivered. ClosedError.
        """
        return self.read(cam_id, timeout=0, frame=frame)

    def read(self, cam_id: CamId, timeout: float | None = 10, frame: bool = False) -> Item:
        """The source's next item; waits up to ``timeout`` seconds. An empty item says why.

        Raises:
            UnknownSourceError. EndOfStream: the source has ended and everything was delivered. ClosedError.
        """
        core = self._running_core()
        return core.assembler.single(core.find(cam_id), self._wanted(timeout, frame, window=0))

    def __iter__(self) -> Iterator[Batch]:
        """Batches until every source has ended."""
        while True:
            try:
                batch = self.get_batch()
            except EndOfStream:
                return
            yield batch

    # -- results ---------------------------------------------------------------------------------------------------

    def send(self, cam_id: CamId | Item, index: Any = None, headers: Mapping[str, Any] | None = None) -> ResultFuture:
        """Re-emit the original packet of a picture with results as headers: ``send(cam_id, index, headers)`` or
        ``send(item, headers)``.

        Args:
            cam_id: Of the source, or the item.
            index: Of the picture (the packet's offset).
            headers: Results: ``bytes``, ``str``, numbers, ``bool``, ``None``, lists, dictionaries, numpy arrays.

        Returns:
            A future; its result is the offset on the produce topic.

        Raises:
            NotRetainedError: the packet is no longer held. UnknownSourceError: there is no such source, and was none a
                batch ago. HeaderError, RecordTooLargeError: this record cannot be sent. DeliveryError: earlier sends
                failed; this one was not accepted. WaitTimeoutError: too much is under way.
        """
        core = self._open_core()
        if isinstance(cam_id, Item):
            item = cam_id
            results = index if headers is None and isinstance(index, Mapping) else headers
            if item.record is None:
                raise ConfigError(
                    f"source {item.cam_id!r}: the item is empty ({item.status}), there is no packet to send"
                )
            return core.emit(item.cam_id, item.record, results)
        if isinstance(index, bool) or not isinstance(index, int):
            raise ConfigError(f"index {index!r} is {type(index).__name__}: pass the index of the item, or the item")
        return core.emit(*core.departed.packet(cam_id, index, core.find), headers)

    def send_batch(
        self,
        items: Batch | Iterable[Item],
        headers: Sequence[Mapping[str, Any] | None] | Mapping[CamId, Mapping[str, Any]] | Callable[[Item], Any],
    ) -> list[ResultFuture]:
        """``send`` for every item that holds a picture.

        Args:
            items: A batch, or items of it.
            headers: One mapping per item, in order; or by ``cam_id``; or a function of the item. Items without
                (``None``, or no such key) are not sent.

        Returns:
            The futures, in order.

        Raises:
            ConfigError: the numbers do not agree. And as ``send``.
        """
        listed = list(items)
        if isinstance(headers, Mapping):
            each: list[Any] = [headers.get(item.cam_id) for item in listed]
        elif callable(headers):
            each = [headers(item) if item else None for item in listed]
        else:
            each = list(headers)
        if len(each) != len(listed):
            raise ConfigError(f"send_batch: {len(listed)} items and {len(each)} headers; pass one per item")
        pairs = [(item, results) for item, results in zip(listed, each, strict=True) if item and results is not None]
        return [self.send(item, headers=results) for item, results in pairs]

    def flush(self, timeout: float | None = None) -> None:
        """Wait until every ``send`` has its fate.

        Raises:
            WaitTimeoutError: not in time. DeliveryError: some failed.
        """
        self._open_core().results.flush(check_timeout(timeout))

    # -- changing --------------------------------------------------------------------------------------------------

    def create(self, cam_id: CamId | None = None, **settings: Any) -> dict[str, Any]:
        """Add a source; it is in the next batch.

        Args:
            cam_id: Its id.
            settings: Of ``SourceOptions``, where they differ from the others'.

        Returns:
            ``{"success": True, "msg": …, "source": …}``.

        Raises:
            ConfigError: the id exists, or a setting is wrong. ComuxError: its topic is missing (``strict_on_fail``).
        """
        if cam_id is None:
            raise ConfigError("create: cam_id is missing")
        options = self._open_core().create(SourceOptions(cam_id=cam_id, **source_words(settings)))
        return {"success": True, "msg": f"source {cam_id!r} created", "source": options.shown()}

    def update(self, cam_id: CamId, **changes: Any) -> dict[str, Any]:
        """Change settings of a source; it goes on where it was, with its books: with another ``W``, ``H`` or
        ``array_format`` of a video at the next picture, else at the next keyframe.

        Raises:
            UnknownSourceError. ConfigError: a setting is wrong; nothing changed.
        """
        options = self._open_core().update(cam_id, source_words(changes))
        return {"success": True, "msg": f"source {cam_id!r} updated", "source": options.shown()}

    def delete(self, cam_id: CamId) -> dict[str, Any]:
        """End a source and free what it holds; a waiting ``get_batch`` returns with its item ``removed``.

        Raises:
            UnknownSourceError.
        """
        self._open_core().delete(cam_id)
        return {"success": True, "msg": f"source {cam_id!r} deleted"}

    def kill(self, cam_id: CamId) -> dict[str, Any]:
        """``delete``, by the first comux's name."""
        return self.delete(cam_id)

    def pause(self, cam_id: CamId | None = None) -> dict[str, Any]:
        """Stop fetching from a source, or (``None``) from all; what waits is still delivered.

        Returns:
            ``{"success": True, "msg": …, "sources": states by id}``.

        Raises:
            UnknownSourceError.
        """
        states = actions.pause(self._open_core(), cam_id, paused=True)
        return {"success": True, "msg": f"{_which(cam_id)} paused", "sources": states}

    def resume(self, cam_id: CamId | None = None) -> dict[str, Any]:
        """Go on with a source, or with all; the lag rule decides from where.

        Returns:
            As ``pause``.

        Raises:
            UnknownSourceError.
        """
        states = actions.pause(self._open_core(), cam_id, paused=False)
        return {"success": True, "msg": f"{_which(cam_id)} resumed", "sources": states}

    def seek(self, cam_id: CamId, to: SeekTo) -> dict[str, Any]:
        """Go on somewhere else in a source's topic. What waits is dropped, and what is passed over counted ``jumped``;
        what comes again is received again. The lag rule holds again when the source has caught up.

        Args:
            cam_id: Of the source; one that has ended is started again.
            to: An offset (``int``), a Unix time in seconds (``float``), ``"beginning"``, ``"end"``, or ``"keyframe"``:
                the newest ahead that a decoder can start from.

        Returns:
            ``{"success": True, "msg": …, "position": offset}``; ``None`` where the source is not connected, and will go
            there when it is.

        Raises:
            UnknownSourceError. ConfigError: no place. UnsupportedError: the source reads for a group.
        """
        position = actions.seek(self._open_core(), cam_id, to)
        when = "when it is connected" if position is None else f"at offset {position}"
        return {"success": True, "msg": f"source {cam_id!r} goes on {when}", "position": position}

    def snapshot(self, cam_id: CamId | None = None, width: int | None = None) -> dict[str, Any]:
        """A source's next picture, or (``None``) every source's, as a small JPEG; the loop gets it as well. Where none
        comes, because the loop takes none or the source is paused: the newest that waits.

        Args:
            cam_id: Of the source.
            width: Pixels across at most; ``None``: 640 of one source, 160 of all.

        Returns:
            ``{"success": True, "msg": …, "sources": {id: {"index", "timestamp", "shape", "dtype", "jpeg"}}}``; ``jpeg``
            is base64. Arrays that are no pictures have ``min``, ``max``, ``mean`` instead, and of all sources those
            that give no picture within 2 s an ``error``.

        Raises:
            UnknownSourceError. ConfigError: a wrong width. WaitTimeoutError: the one source gives no picture in time.
        """
        across = (640 if cam_id is not None else 160) if width is None else width
        shown = actions.snapshot(self._open_core(), cam_id, across)
        return {"success": True, "msg": f"{_which(cam_id)} shown", "sources": shown}

    def stop(self) -> dict[str, Any]:
        """End the loop in order: ``get_batch`` and ``read`` raise ``EndOfStream`` from now on, iteration ends. What was
        delivered can still be sent; ``close`` ends the rest."""
        core = self._open_core()
        core.assembler.stop()
        core.events.emit("manager.stop", "told to stop: the loop ends")
        return {"success": True, "msg": "stopping"}

    def set_rate(self, cam_id: CamId, rate: float | None) -> dict[str, Any]:
        """Deliver at most ``rate`` frames per second of a source; ``None``: all.

        Raises:
            UnknownSourceError. ConfigError: no rate.
        """
        return self.update(cam_id, rate=None if rate is None else float(rate))

    # -- looking ---------------------------------------------------------------------------------------------------

    @property
    def events(self) -> EventLog:
        """What happened; ``events.listen(fn)`` for what will."""
        return self._core.events

    def status(self) -> dict[str, Any]:
        """Everything as it stands, JSON-ready: per source state, reason, fps, lag, age, books; totals; results;
        ``decode_processes``: pid, sources and deaths lately of each;
        control: topic, answers and books of commands, ``None`` without a control topic; ``registry``: where it is
        watched, since when it is unreachable and why, see ``Watcher.status``.

        Raises:
            ClosedError.
        """
        found = manager_status(self._open_core(), self.client_name)
        control = None if self._controller is None else self._controller.status()
        return {**found, "control": control, "registry": None if self._watcher is None else self._watcher.status()}

    def accounts(self) -> dict[CamId, AccountSnapshot]:
        """Every source's balance, deleted ones included; also after ``close``."""
        return self._core.accounts()

    def get_topic_from_cam_id(self, cam_id: CamId, kind: Literal["consume", "produce"] = "consume") -> str:
        """The topic of a source.

        Raises:
            UnknownSourceError. ConfigError: ``kind`` is neither.
        """
        check_choice(kind, "kind", ("consume", "produce"))
        spec = self._core.specs.get(str(cam_id))
        if spec is None:
            raise self._core.unknown(cam_id)
        options = self._core.resolve(spec)
        return (options.consume_topic if kind == "consume" else options.produce_topic) or ""

    def get_cam_id_from_topic(self, topic: str) -> CamId:
        """The source that reads or feeds ``topic``.

        Raises:
            UnknownSourceError: none does. ConfigError: it follows no schema.
        """
        for spec in list(self._core.specs.values()):
            options = self._core.resolve(spec)
            if topic in (options.consume_topic, options.produce_topic):
                return spec.cam_id
        raise self._core.unknown(cam_id_of(self._core.settings.consume_schema, topic))

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Check everything, take every source's place in its topic, start the threads. Idempotent.

        Every packet published after this returns is received. Waits for engines, not for pictures.

        Raises:
            ComuxError: one error that names every source that cannot start; nothing was started.
        """
        core = self._open_core()
        if self._watcher is not None and core.fleet is not None:
            raise ConfigError("watch_registry with share: the group says which cameras are ours; leave one of them")
        if self._controller is not None and self._controller.durable and core.fleet is not None:
            raise ConfigError("durable_control with share: the group says which cameras are ours; leave one of them")
        core.start()
        if self._controller is not None:
            self._controller.start()
        if self._watcher is not None:
            self._watcher.start()

    def _running_core(self) -> Core:
        core = self._open_core()
        if not core.started:
            self.start()
        return core

    def close(self) -> None:
        """Stop everything; waits for the threads. Idempotent."""
        self._core.close()

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._core.closed

    def __enter__(self) -> Comux:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        life = "closed" if self._core.closed else "running" if self._core.started else "not started"
        return f"<Comux {len(self._core.specs)} sources, {life}>"


def _which(cam_id: CamId | None) -> str:
    return "every source" if cam_id is None else f"source {cam_id!r}"
