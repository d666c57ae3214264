"""Everything a ``Comux`` owns: the table of sources, engines, books of deleted sources; and how they change.

The table is immutable and swapped whole under ``hub.lock``: a running ``get_batch`` keeps its own. Changes (create,
update, delete, start, close) take turns on one lock that no thread of a source ever takes, so joining under it cannot
deadlock; it is never held while user code runs.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from comux.account import AccountSnapshot
from comux.decoders.interface import Decoder, DecoderOptions, Picture
from comux.decoders.pool import ArrayPool
from comux.errors import ClosedError, ComuxError, ConfigError, UnknownSourceError
from comux.multiplexer.assemble import Assembler
from comux.multiplexer.departed import Departed
from comux.multiplexer.emit import Emitter
from comux.multiplexer.engines import Engines
from comux.multiplexer.fleet import Fleet
from comux.multiplexer.memory import Memory
from comux.multiplexer.past import PastBooks
from comux.multiplexer.pictures import Hub, StoreMode
from comux.multiplexer.results import ResultFuture, Results
from comux.multiplexer.settings import Settings
from comux.multiplexer.shared import FrameSharer
from comux.multiplexer.source import Source
from comux.multiplexer.states import (
    Surroundings,
    check_topic,
    decoder_options,
    is_finite,
    open_consumer,
    together,
)
from comux.multiplexer.table import Table
from comux.options import CamId, SourceOptions, topic_pattern
from comux.processes import DecodeProcesses
from comux.records import Record
from comux.redaction import shown
from comux.telemetry import EventLog
from comux.transport import Broker, Consumer, check_engine

_log = logging.getLogger("comux.multiplexer")

_IDLE_BYTES: Final = 256 << 20  # of arrays that wait to be used again
_JOIN: Final = 5.0
_TOGETHER: Final = 2.0  # seconds that all threads have to end before their engines are taken from under them
LIVE_CHANGES: Final = frozenset({"rate"})


class Core:
    """See the module. Thread-safe.

    Args:
        settings: May be changed until the sources start.
        decoder: Makes a decoder.
        emit_wait: Seconds that packets wait for their results where every packet is re-emitted; ``None``: only
            packets that are sent are.
        results: ``Results``' arguments beyond engine and events.
    """

    def __init__(
        self,
        settings: Settings,
        decoder: Callable[[DecoderOptions], Decoder],
        *,
        emit_wait: float | None = None,
        **results: Any,
    ) -> None:
        self.settings = settings
        self.events = EventLog()
        self.hub = Hub(settings.store_bytes_total)
        self.pool = ArrayPool(min(_IDLE_BYTES, settings.store_bytes_total or _IDLE_BYTES))
        self.table = Table()
        self.departed = Departed()
        self.specs: dict[str, SourceOptions] = {}
        self.started = False
        self.closed = False
        self.assembler = Assembler(self.hub, self.pool)
        self.results = Results(self._engine_of_results, self.events, **results)
        self.fleet: Fleet | None = None
        self.emitter: Emitter | None = None
        if emit_wait is not None:
            self.emitter = Emitter(self.results, self._produce_place, self.events, wait=emit_wait)
        self.at_close: list[Callable[[], None]] = []
        self._decoder = decoder
        self._changing = threading.RLock()
        self._engines = Engines()
        self._memory = Memory(self.pool)
        self.processes = DecodeProcesses(settings.decode_processes, self.events)
        self._connected: dict[str, Consumer] = {}
        self._past = PastBooks()
        self._pid = os.getpid()

    # -- engines ---------------------------------------------------------------------------------------------------

    def engine(self, address: str, options: Mapping[str, Any] | None = None) -> Broker:
        """The engine at ``address``, opened once.

        Raises:
            ComuxError: the address is unknown, or the engine cannot be reached. ClosedError.
        """
        return self._engines.open(address, options or {})

    def _engine_of(self, options: SourceOptions) -> Broker:
        return self.engine(options.address or self.settings.address, options.client_options)

    def engine_beside(self, address: str) -> Broker:
        """The engine at ``address`` for commands: with the options of the packets that come from there, if any do.

        Raises:
            ComuxError: as ``engine``.
        """
        return self.engine(address, self.settings.options_of_packets(address, self.specs.values()))

    def _engine_of_results(self, address: str) -> Broker:
        return self.engine(address, self.settings.options_of_results(address, self.specs.values()))

    # -- settings --------------------------------------------------------------------------------------------------

    def resolve(self, spec: SourceOptions) -> SourceOptions:
        """A source's complete settings, see ``Settings.resolve``."""
        return self.settings.resolve(spec)

    def around(self, cam_id: CamId) -> Surroundings:
        """What a source is given."""
        received = None if self.emitter is None else self.emitter.received
        decoder = self.processes.decoder_of(cam_id, self._decoder)
        return Surroundings(
            self.hub,
            self.events,
            self.pool,
            self._engine_of,
            decoder,
            received,
            self._threads,
            self._warm,
            self.processes.mover_of(cam_id),
        )

    def _warm(self, cam_id: CamId, mode: StoreMode, picture: Picture) -> None:
        self._memory.warm(cam_id, mode, picture, len(self.table.sources))

    def _threads(self) -> int:
        """Codec threads of a finite source: the cores that would be idle otherwise."""
        return max(1, (os.cpu_count() or 1) // max(1, len(self.table.sources)))

    def _check(self, options: SourceOptions) -> None:
        """Whatever can be known to be wrong before a thread runs."""
        check_engine(options.address or "", options.client_options)
        results = options.produce_address or ""
        check_engine(results, self.settings.options_of_results(results, self.specs.values()))
        try:
            self._decoder(decoder_options(options)).close()
        except ConfigError as exc:
            raise type(exc)(f"source {options.cam_id!r}: {exc}") from None

    def _source(self, options: SourceOptions, **more: Any) -> Source:
        sharer = None
        if options.share_frames is not None:
            sharer = FrameSharer(
                options.cam_id,
                options.share_frames,
                lambda: self._engine_of(options),
                options.array_format,
                self.events,
            )
        return Source(options, self.around(options.cam_id), sharer=sharer, **more)

    # -- connecting and starting -----------------------------------------------------------------------------------

    def connect(self, cam_id: CamId) -> Consumer:
        """Take the place in the topic from which a source will be read; before it starts.

        Raises:
            ComuxError: the topic or its engine is not there. UnknownSourceError.
        """
        with self._changing:
            spec = self.specs.get(str(cam_id))
            if spec is None:
                raise self.unknown(cam_id)
            options = self.resolve(spec)
            broker = self._engine_of(options)
            info = broker.topic(options.consume_topic or "")
            check_topic(options, info)
            finite = is_finite(options, info)
            consumer = open_consumer(options, broker, options.start, finite=finite)
            self.drop_connected(cam_id)
            self._connected[str(cam_id)] = consumer
            return consumer

    def connected(self, cam_id: CamId) -> Consumer | None:
        """The consumer of a source: of its running thread, or the one it will start with."""
        source = self.table.find(cam_id)
        return self._connected.get(str(cam_id)) if source is None else source.consumer

    def put_connected(self, cam_id: CamId, consumer: Consumer) -> None:
        """Let a source begin with a consumer of the caller's."""
        with self._changing:
            self.drop_connected(cam_id)
            self._connected[str(cam_id)] = consumer

    def drop_connected(self, cam_id: CamId) -> None:
        """Close the consumer that a source would have started with."""
        consumer = self._connected.pop(str(cam_id), None)
        if consumer is not None:
            consumer.close()

    def check_all(self) -> dict[str, SourceOptions]:
        """Every source's complete settings, checked.

        Raises:
            ConfigError: something is wrong.
        """
        resolved = {key: self.resolve(spec) for key, spec in self.specs.items()}
        for options in resolved.values():
            self._check(options)
        return resolved

    def connect_all(self, *, strict: bool) -> None:
        """Connect every source that is neither running nor connected.

        Raises:
            ComuxError: with ``strict``, one error that names every source whose topic or engine is missing; nothing is
                left connected then.
        """
        with self._changing:
            failures: list[tuple[CamId, ComuxError]] = []
            opened: list[CamId] = []
            for key, spec in self.specs.items():
                if key in self._connected or self.table.find(key) is not None:
                    continue
                try:
                    self.connect(spec.cam_id)
                    opened.append(spec.cam_id)
                except ComuxError as exc:
                    if key in self.settings.restored:
                        continue
                    if isinstance(exc, ConfigError):
                        for cam_id in opened:
                            self.drop_connected(cam_id)
                        raise
                    failures.append((spec.cam_id, exc))
            if failures and strict:
                for cam_id in opened:
                    self.drop_connected(cam_id)
                raise together(failures)

    def start(self) -> None:
        """Check everything, connect, then start every source. Idempotent.

        Raises:
            ComuxError: nothing was started and nothing is left behind.
        """
        with self._changing:
            self.check_open()
            if self.started:
                return
            if self.fleet is not None:
                self._start_fleet(self.fleet)
                return
            if not self.specs and not self.settings.restored:
                raise ConfigError("no sources: give cam_ids, or create one")
            resolved = self.check_all()
            strict = self.settings.strict
            self.connect_all(strict=strict)
            if self.settings.check_produce:
                ours = [options for key, options in resolved.items() if key not in self.settings.restored]
                self._check_produce(ours, strict=strict)
            sources = tuple(
                self._source(options, consumer=self._connected.pop(key, None)) for key, options in resolved.items()
            )
            self._swap(sources)
            self.started = True
            for source in sources:
                source.start()

    def share(self, group: str, topics: str | None, *, durable: bool) -> None:
        """Share the cameras with other processes from the start on, see ``fleet``.

        Args:
            group: Of the cluster.
            topics: A pattern; ``None``: the topics of the sources that are defined.
            durable: Go on at the committed offset.

        Raises:
            ConfigError: they cannot be shared.
        """
        if self.started:
            raise ConfigError("share after start: say it before")
        where = (self.settings.address, self.settings.defaults.get("client_options") or {})
        known: dict[str, SourceOptions] = {}
        for spec in self.specs.values():
            options = self.resolve(spec)
            if (options.address, dict(options.client_options)) != (where[0], dict(where[1])):
                raise ConfigError(f"source {spec.cam_id!r}: a fleet's cameras are on one cluster, {shown(where[0])}")
            known[options.consume_topic or ""] = spec
        if topics is None and not known:
            topics = topic_pattern(self.settings.consume_schema)
        self.fleet = Fleet(
            group,
            topics,
            known,
            self.settings.consume_schema,
            durable,
            self.settings.defaults.get("start", "end"),
            lambda: self.engine(*where),
            self,
        )

    def _start_fleet(self, fleet: Fleet) -> None:
        specs, self.specs = self.specs, {}
        self.started = True  # what the group gives us starts at once
        self.at_close.append(fleet.close)
        try:
            check_engine(self.settings.address, self.settings.defaults.get("client_options") or {})
            fleet.start(strict=self.settings.strict)
        except BaseException:
            self.at_close.remove(fleet.close)
            self.specs, self.started = specs, False
            raise

    def _check_produce(self, sources: Iterable[SourceOptions], *, strict: bool) -> None:
        failures: list[tuple[CamId, ComuxError]] = []
        for options in sources:
            try:
                self.results.check(options.produce_address or "", options.produce_topic or "")
            except ComuxError as exc:
                failures.append((options.cam_id, exc))
        wrong = [(cam_id, exc) for cam_id, exc in failures if isinstance(exc, ConfigError)]
        if wrong or (failures and strict):
            for key in list(self._connected):
                self.drop_connected(key)
            raise together(wrong or failures)

    def _swap(self, sources: Sequence[Source]) -> None:
        with self.hub.lock:
            self.table = Table(tuple(sources))
            self.hub.arrived.notify_all()

    # -- changes ---------------------------------------------------------------------------------------------------

    def unknown(self, cam_id: CamId) -> UnknownSourceError:
        """The error for an id nobody has."""
        there = ", ".join(repr(spec.cam_id) for spec in self.specs.values()) or "none"
        return UnknownSourceError(f"no source {cam_id!r}; there are: {there}")

    def find(self, cam_id: CamId) -> Source:
        """A running source; one that is being created just now is waited for.

        Raises:
            UnknownSourceError.
        """
        source = self.table.find(cam_id)
        if source is None and str(cam_id) in self.specs:
            with self._changing:  # it is being created just now
                source = self.table.find(cam_id)
        if source is None:
            raise self.unknown(cam_id)
        return source

    def create(self, spec: SourceOptions, *, strict: bool | None = None) -> SourceOptions:
        """Add a source; it starts where the manager has started.

        Args:
            spec: Its settings.
            strict: Whether a missing topic or engine is an error; ``None``: as the manager is.

        Raises:
            ConfigError: the id exists, or a setting is wrong. ComuxError: topic or engine missing, where strict.
        """
        with self._changing:
            self.check_open()
            key = str(spec.cam_id)
            if key in self.specs:
                raise ConfigError(f"source {spec.cam_id!r} exists; update or delete it first")
            options = self.resolve(spec)
            self._check(options)
            self.specs[key] = spec
            try:
                self.connect(spec.cam_id)
            except ComuxError as exc:
                if isinstance(exc, ConfigError) or (self.settings.strict if strict is None else strict):
                    del self.specs[key]
                    raise
            if self.started:
                source = self._source(options, consumer=self._connected.pop(key, None))
                self._swap((*self.table.sources, source))
                source.start()
        self.events.emit("source.created", f"reads {options.consume_topic!r}", source=key)
        return options

    def update(self, cam_id: CamId, changes: Mapping[str, Any]) -> SourceOptions:
        """Change one source; it goes on where it was, with its books, unless it reads another topic now.

        Raises:
            ConfigError: a setting is wrong; nothing changed. UnknownSourceError.
        """
        with self._changing:
            self.check_open()
            key = str(cam_id)
            wanted = self._changed(cam_id, changes)
            options = self.resolve(wanted)
            self._check(options)
            self.specs[key] = wanted
            source = self.table.find(key)
            if source is None:
                self.drop_connected(cam_id)
            elif set(changes) <= LIVE_CHANGES:
                source.set_rate(options.rate)
            else:
                self._replace(source, options, paused=options.paused if "paused" in changes else None)
        self.events.emit("source.updated", ", ".join(sorted(changes)) or "nothing", source=key)
        return options

    def _replace(
        self,
        old: Source,
        options: SourceOptions,
        consumer: Consumer | None = None,
        *,
        paused: bool | None = None,
        prepare: Callable[[Source], None] | None = None,
    ) -> Source:
        """End one source's thread, and go on with another's. The table has the new one before the old one's end is
        waited for: a loop that met the old one there would not wait, but turn and turn."""
        same = (old.options.consume_topic, old.options.address) == (options.consume_topic, options.address)
        new = self._source(
            options,
            account=old.account,
            consumer=consumer,
            retained=old.retained,
            finite=old.known_finite if same and old.options.on_end == options.on_end else None,
            paused=old.paused if paused is None else paused,
        )
        old.replaced = True
        # (Members of a group are given again what they had not finished.)
        old.keeps = same and consumer is None and {old.options.group, options.group} == {None}
        self._swap([new if source is old else source for source in self.table.sources])
        try:
            old.stop("updated")
            self._join(old)
        finally:
            if same and consumer is None:
                new.take_over(old)
            if prepare is not None:
                prepare(new)
            new.start()
        return new

    def _join(self, source: Source) -> None:
        if not source.join(_JOIN):
            self.events.emit(
                "source.stuck",
                f"its thread did not end within {_JOIN} s",
                source=str(source.cam_id),
                level=logging.ERROR,
            )

    def replace_consumer(self, cam_id: CamId, consumer: Consumer) -> None:
        """Read a source from another consumer from now on."""
        with self._changing:
            source = self.table.find(cam_id)
            if source is None:
                self.put_connected(cam_id, consumer)
            else:
                self._replace(source, source.options, consumer)

    def restart(self, cam_id: CamId, prepare: Callable[[Source], None] | None = None) -> Source:
        """End a source's thread and go on with a new one at the same place, ``prepare``d before it runs."""
        with self._changing:
            source = self.find(cam_id)
            return self._replace(source, source.options, prepare=prepare)

    def remember(self, cam_id: CamId, **changes: Any) -> None:
        """Keep changes of a source's settings that need no other source.

        Raises:
            UnknownSourceError.
        """
        with self._changing:
            self.check_open()
            self.specs[str(cam_id)] = self._changed(cam_id, changes)

    def _changed(self, cam_id: CamId, changes: Mapping[str, Any]) -> SourceOptions:
        """What is said of a source, with changes; what is not said stays so."""
        spec = self.specs.get(str(cam_id))
        if spec is None:
            raise self.unknown(cam_id)
        given = {name: getattr(spec, name) for name in spec.model_fields_set}
        return SourceOptions(**{**given, **changes, "cam_id": spec.cam_id})

    def delete(self, cam_id: CamId) -> None:
        """End a source and free what it holds; its books stay in the totals.

        Raises:
            UnknownSourceError.
        """
        with self._changing:
            self.check_open()
            key = str(cam_id)
            spec, source = self.specs.pop(key, None), self.table.find(key)
            if spec is None:
                raise self.unknown(cam_id)
            self.drop_connected(key)
            if source is not None:
                self.departed.add(spec, source)
                with self.hub.lock:
                    self.table = Table(tuple(other for other in self.table.sources if other is not source))
                    self._past.add(source)
                source.stop("removed")
        if source is not None:
            self._join(source)
            self._memory.forget(cam_id, len(self.table.sources))
            self.processes.forget(str(cam_id))
        self.events.emit("source.deleted", "no longer read", source=key)

    def emit(self, cam_id: CamId, record: Record, headers: Mapping[str, Any] | None) -> ResultFuture:
        """Re-emit a packet with results.

        Raises:
            ComuxError: see ``Results.send``.
        """
        source = self.table.find(cam_id)
        if self.emitter is None:
            future = self.results.send(cam_id, *self._produce_place(cam_id), record, headers)
        else:
            encoded, future = self.results.begin(cam_id, record, headers)
            try:
                self.emitter.offer(cam_id, record, encoded, future)
            except BaseException:
                self.results.cancel(future)
                raise
        if source is not None and (acks := source.acks) is not None:
            acks.sent(record, future)
        return future

    def _produce_place(self, cam_id: CamId) -> tuple[str, str]:
        """Address and topic of a source's results; also of one that was deleted meanwhile."""
        spec = self.specs.get(str(cam_id)) or self.departed.spec(cam_id)
        options = self.resolve(spec if spec is not None else SourceOptions(cam_id=cam_id))
        return options.produce_address or "", options.produce_topic or ""

    # -- books -----------------------------------------------------------------------------------------------------

    def accounts(self) -> dict[CamId, AccountSnapshot]:
        """Every source's balance, deleted ones included."""
        self.check_process()
        with self.hub.lock:
            books, sources = self._past.books(), self.table.sources
            now = [(source.cam_id, source.account.snapshot()) for source in sources]
        return {**books, **{cam_id: books.get(cam_id, AccountSnapshot()) + mine for cam_id, mine in now}}

    # -- the end ---------------------------------------------------------------------------------------------------

    def check_open(self) -> None:
        """Raise ``ClosedError`` after ``close`` and in a forked child."""
        self.check_process()
        if self.closed:
            raise ClosedError("this Comux is closed; make a new one")

    def check_process(self) -> None:
        """Raise ``ClosedError`` in a forked child, whose locks may be held by threads that do not exist there."""
        if self._pid != os.getpid():
            raise ClosedError("this Comux belongs to the parent process; open one in this process")

    def close(self) -> None:
        """Stop everything and let go of it; waits for the threads. Idempotent, and nothing in a forked child."""
        if self._pid != os.getpid():
            return
        # Before the lock is taken: the controller finishes its command, which may want it.
        ends, self.at_close = self.at_close, []
        for end in ends:
            end()
        with self._changing:
            if self.closed:
                return
            self.assembler.close()
            for source in self.table.sources:
                source.stop("closed")
            deadline = time.monotonic() + _TOGETHER
            late = [s for s in self.table.sources if not s.join(max(0.0, deadline - time.monotonic()))]
            for key in list(self._connected):
                self.drop_connected(key)
            if self.emitter is not None:
                self.emitter.close()
            self.results.close()
            self.closed = True
            self._engines.close()
            self.processes.close()
            for source in late:  # what it waited for, an engine's answer, has ended
                self._join(source)
