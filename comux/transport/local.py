"""The local engine ``shm://``, ``shm://namespace``: topics are crash-safe rings in shared memory (``comux.ring``).

No daemon and no broker process: a topic is a file in a directory, ``shm://lab`` is the sub-directory ``lab`` of the
default one (``$COMUX_DIR``, else ``/dev/shm/comux-<uid>``). A handle is an attachment of its own, so that a topic is in
use exactly while somebody has a handle on it; looking something up attaches for the moment of the look.

Options of ``connect``: ``directory`` (a path, instead of the default one).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from comux import ring
from comux.errors import ClosedError, ConfigError, TopicExistsError, UnknownTopicError
from comux.records import Record

from .address import Address
from .interface import (
    Broker,
    Capabilities,
    Claimed,
    Consumer,
    GroupInfo,
    Handle,
    Holder,
    Observer,
    OnEnd,
    Producer,
    Start,
    TopicInfo,
    TopicSpec,
    dtype_of,
)
from .local_consumer import TOPICS_MAX, LocalConsumer
from .local_cursors import Cursor, Terms, open_cursor
from .local_handles import LocalObserver, LocalProducer
from .names import check_consumer, check_spec, unknown_topic

CAPABILITIES = Capabilities(
    record_sharing=True,
    topic_sharing=False,
    views=True,
    observer_without_reading=True,
    counted_end=True,
    gating=True,
    dead_letters=True,
    pausing=True,
    exact_loss=True,
    dense_offsets=True,
    durable=False,
    cross_process=True,
    timestamp_resolution_ns=1,
)
H = TypeVar("H", bound=Handle)


def open_broker(address: Address, directory: str | Path | None = None, **options: Any) -> LocalBroker:
    """The engine's door, see ``engines``.

    Args:
        directory: Where the topics (and the namespaces' sub-directories) live; made with mode 0700 where missing.
    """
    if options:
        raise ConfigError(f"address {address.text!r}: shm:// knows directory=, not {', '.join(sorted(options))}")
    base = Path(directory) if directory is not None else ring.default_directory()
    return LocalBroker(address, base / address.namespace if address.namespace else base)


class LocalBroker(Broker):
    """One directory of topics."""

    capabilities = CAPABILITIES

    def __init__(self, address: Address, directory: Path) -> None:
        self.address = address.text
        self.default_topic = address.topic
        self.directory = directory
        self._handles: weakref.WeakSet[Handle] = weakref.WeakSet()
        self._closed = False

    def close(self) -> None:
        self._closed = True
        for handle in list(self._handles):
            handle.close()

    def _check(self) -> None:
        if self._closed:
            raise ClosedError(f"broker {self.address!r} is closed; connect again")

    def _attach(self, name: str) -> ring.Ring:
        """An attachment of the caller's own; raises ``UnknownTopicError`` with the names that are like it."""
        self._check()
        try:
            return ring.attach(name, self.directory)
        except (UnknownTopicError, ConfigError):
            raise unknown_topic(name, ring.names(self.directory), str(self.directory)) from None

    @contextmanager
    def _look(self, name: str) -> Iterator[ring.Ring]:
        log = self._attach(name)
        try:
            yield log
        finally:
            log.close()

    # -- topics ----------------------------------------------------------------------------------------------------

    def create_topic(self, spec: TopicSpec, *, exist_ok: bool = False) -> TopicInfo:
        self._check()
        check_spec(spec)
        try:
            log = ring.create(ring_spec(spec), self.directory)
        except TopicExistsError:
            if not exist_ok:
                raise
            log = self._attach(spec.name)
        with log:
            made = info_of(log)
        if dtype_of(made.spec) != dtype_of(spec) or tuple(made.spec.shape) != tuple(spec.shape):
            raise TopicExistsError(
                f"topic {spec.name!r} exists in {self.directory} with dtype {dtype_of(made.spec)} and shape "
                f"{made.spec.shape}, not {dtype_of(spec)} and {spec.shape}; delete it, or use another name"
            )
        return made

    def topics(self) -> list[str]:
        self._check()
        return sorted(ring.names(self.directory))

    def topic(self, name: str) -> TopicInfo:
        with self._look(name) as log:
            return info_of(log)

    def delete_topic(self, name: str, *, force: bool = False) -> None:
        self._check()
        try:
            ring.unlink(name, self.directory, force=force)
        except (UnknownTopicError, ConfigError):
            raise unknown_topic(name, ring.names(self.directory), str(self.directory)) from None
        for handle in list(self._handles):  # those of others find out by looking
            if isinstance(handle, LocalConsumer):
                handle.deleted(name)
            elif isinstance(handle, (LocalProducer, LocalObserver)) and handle.topic == name:
                handle.deleted()

    def record_at(self, topic: str, offset: int) -> Record | None:
        with self._look(topic) as log:
            return log.record_at(offset)

    # -- groups ----------------------------------------------------------------------------------------------------

    def groups(self, topic: str) -> list[GroupInfo]:
        with self._look(topic) as log:
            high, ports = log.high_water, log.stats().ports
            return [
                GroupInfo(
                    group.name,
                    topic,
                    group.done,
                    max(0, high - group.done),
                    group.members,
                    group.durable,
                    group.suspended,
                    group.paused,
                    group.lost,
                    group.dead_letters,
                    group.max_deliveries,
                    _holders(ports, group.name),
                )
                for group in log.groups()
            ]

    def delete_group(self, topic: str, group: str) -> None:
        with self._look(topic) as log:
            log.remove_group(group)

    def pause(self, topic: str, group: str | None = None) -> None:
        with self._look(topic) as log:
            log.pause(group)

    def resume(self, topic: str, group: str | None = None) -> None:
        with self._look(topic) as log:
            log.resume(group)

    def claim_stale(self, topic: str, group: str, min_idle: float) -> list[Claimed]:
        with self._look(topic) as log:
            found = log.claim_stale(group, min_idle)
        return [Claimed(one.offset, one.pid, one.command, one.name, one.held_s) for one in found]

    # -- handles ---------------------------------------------------------------------------------------------------

    def producer(self, topic: str, *, name: str = "") -> Producer:
        log = self._attach(topic)
        try:
            return self._keep(LocalProducer(log, name))
        except BaseException:
            log.close()
            raise

    def consumer(
        self,
        topics: str | Sequence[str],
        *,
        group: str | None = None,
        start: Start = "end",
        on_end: OnEnd = "stop",
        views: bool = False,
        durable: bool = False,
        max_deliveries: int | None = None,
        name: str = "",
    ) -> Consumer:
        names = check_consumer(topics, group, start, on_end, max_deliveries)
        terms = Terms(start, on_end, views, durable, max_deliveries, name)
        if len(names) > TOPICS_MAX:
            raise ConfigError(f"a consumer reads at most {TOPICS_MAX} topics, not {len(names)}; use several consumers")
        cursors: list[Cursor] = []
        try:
            for topic in names:
                log = self._attach(topic)
                try:
                    cursors.append(open_cursor(log, group, terms))
                except BaseException:
                    log.close()
                    raise
        except BaseException:
            for cursor in cursors:
                cursor.close()
            raise
        return self._keep(LocalConsumer(cursors, group, on_end))

    def observer(self, topic: str) -> Observer:
        log = self._attach(topic)
        try:
            return self._keep(LocalObserver(log))
        except BaseException:
            log.close()
            raise

    def _keep(self, handle: H) -> H:
        self._handles.add(handle)
        return handle


def ring_spec(spec: TopicSpec) -> ring.RingSpec:
    """The ring that a topic becomes: what it needs of memory is ``ring_spec(spec).required_bytes``.

    Raises:
        ConfigError: the ring cannot be made like that.
    """
    return ring.RingSpec(
        spec.name,
        slots=spec.records,
        data_bytes=spec.data_bytes,
        dtype=dtype_of(spec),
        shape=spec.shape,
        layout=spec.layout,
        policy=spec.policy,
        writers=spec.writers,
        end=spec.end,
        group_grace=spec.group_grace,
        max_deliveries=spec.max_deliveries,
        metadata=dict(spec.metadata),
        first_offset=spec.first_offset,
    )


def _holders(ports: Iterable[ring.PortInfo], group: str) -> tuple[Holder, ...]:
    those = [p for p in ports if p.kind == "member" and p.group == group and p.held and p.alive]
    those.sort(key=lambda p: -p.held_s)
    return tuple(Holder(p.name, p.pid, p.command, p.state, p.held, p.oldest_held, p.held_s) for p in those)


def info_of(log: ring.Ring) -> TopicInfo:
    """A ring's facts in the interface's words."""
    spec = log.spec
    return TopicInfo(
        TopicSpec(
            spec.name,
            records=spec.slots,
            data_bytes=spec.data_bytes,
            dtype=spec.dtype,
            shape=tuple(spec.shape),
            layout=spec.layout,
            policy=spec.policy,
            writers=spec.writers,
            end=spec.end,
            group_grace=spec.group_grace,
            max_deliveries=spec.max_deliveries,
            metadata=dict(spec.metadata),
            first_offset=spec.first_offset,
        ),
        log.log_start,
        log.high_water,
        log.epoch,
        log.ended,
        log.paused,
    )
