"""The in-memory engine ``memory://name``: topics that live in this process, for tests and small programs.

Stores are found by name in a registry of the process and live until ``discard``; every promise and every local
capability is kept, but ``cross_process`` and ``durable``. One lock per store, conditions for whoever waits;
nothing polls. A forked child starts with an empty registry, and handles it inherited raise ``ClosedError``.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import Any, TypeVar

from comux.errors import ClosedError, ConfigError, TopicBusyError, TopicExistsError
from comux.records import Record

from .address import Address
from .interface import (
    Broker,
    Capabilities,
    Claimed,
    Consumer,
    GroupInfo,
    Handle,
    Observer,
    OnEnd,
    Producer,
    Start,
    TopicInfo,
    TopicSpec,
    dtype_of,
)
from .memory_consumer import MemoryConsumer, resolve_start
from .memory_handles import MemoryObserver, MemoryProducer, to_record
from .memory_log import Group, Log, Store
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
    cross_process=False,
    timestamp_resolution_ns=1,
)


_stores: dict[str, Store] = {}
_stores_lock = threading.Lock()


def discard(name: str = "") -> None:
    """Forget the store ``name``: its topics are deleted, handles on them raise ``UnknownTopicError``."""
    with _stores_lock:
        store = _stores.pop(name, None)
    if store is not None:
        with store.lock:
            for log in store.logs.values():
                log.deleted = True
                log.wake_all()
            store.logs.clear()


def _after_fork_in_child() -> None:
    global _stores_lock
    _stores_lock = threading.Lock()  # the parent's may be held by a thread that does not exist here
    for store in _stores.values():
        store.dead = True
    _stores.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


def open_broker(address: Address, **options: Any) -> MemoryBroker:
    """The engine's door, see ``engines``. Takes no options."""
    if options:
        raise ConfigError(f"address {address.text!r}: memory:// takes no options, got {', '.join(sorted(options))}")
    with _stores_lock:
        store = _stores.setdefault(address.namespace, Store(address.namespace))
    return MemoryBroker(store, address)


H = TypeVar("H", bound=Handle)


class MemoryBroker(Broker):
    """Handles on one store. Closing it closes them; the topics stay."""

    capabilities = CAPABILITIES

    def __init__(self, store: Store, address: Address) -> None:
        self.address = address.text
        self.default_topic = address.topic
        self._store = store
        self._handles: set[Handle] = set()
        self._closed = False

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._store.dead:
            return
        with self._store.lock:
            handles = list(self._handles)
        for handle in handles:
            handle.close()

    def _log(self, name: str) -> Log:
        self._check()
        return self._store.log(name)

    def _check(self) -> None:
        if self._closed or self._store.dead:
            raise ClosedError(f"broker {self.address!r} is closed; connect again")

    def create_topic(self, spec: TopicSpec, *, exist_ok: bool = False) -> TopicInfo:
        self._check()
        check_spec(spec)
        with self._store.lock:
            old = self._store.logs.get(spec.name)
            if old is None:
                self._store.logs[spec.name] = old = Log(spec, self._store.lock)
            elif not exist_ok:
                raise TopicExistsError(f"topic {spec.name!r} exists at {self.address!r}; delete it, or pass exist_ok")
            elif old.dtype != dtype_of(spec) or old.spec.shape != spec.shape:
                raise TopicExistsError(
                    f"topic {spec.name!r} exists at {self.address!r} with dtype {old.dtype} and shape {old.spec.shape}"
                    f", not {dtype_of(spec)} and {spec.shape}; delete it, or use another name"
                )
            return old.info()

    def topics(self) -> list[str]:
        self._check()
        with self._store.lock:
            return sorted(self._store.logs)

    def topic(self, name: str) -> TopicInfo:
        with self._store.lock:
            return self._log(name).info()

    def delete_topic(self, name: str, *, force: bool = False) -> None:
        with self._store.lock:
            log = self._log(name)
            users = len(log.producers) + len(log.readers) + len(log.observers)
            if users and not force:
                raise TopicBusyError(
                    f"topic {name!r} at {self.address!r} is used by {users} handles; close them or force"
                )
            log.deleted = True
            del self._store.logs[name]
            log.wake_all()

    def producer(self, topic: str, *, name: str = "") -> Producer:
        with self._store.lock:
            log = self._log(topic)
            if log.spec.writers == "one" and log.producers:
                raise TopicBusyError(f"topic {topic!r} has writers='one' and a living producer; close that one first")
            return self._keep(MemoryProducer(self._store, log, name, self._handles.discard))

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
        # Predicates are the user's code: they run before the lock is taken for good.
        with self._store.lock:
            logs = [self._log(topic) for topic in names]
        positions = [resolve_start(self._store, log, start) for log in logs]
        with self._store.lock:
            for log in logs:
                if log.deleted:
                    raise unknown_topic(log.spec.name, sorted(self._store.logs), self.address)
            if group is not None:
                for log, position in zip(logs, positions, strict=True):
                    log.join(group, position, durable, max_deliveries)
            return self._keep(
                MemoryConsumer(self._store, logs, positions, group, on_end, views, name, self._handles.discard)
            )

    def observer(self, topic: str) -> Observer:
        with self._store.lock:
            return self._keep(MemoryObserver(self._store, self._log(topic), self._handles.discard))

    def _keep(self, handle: H) -> H:
        self._handles.add(handle)
        return handle

    def record_at(self, topic: str, offset: int) -> Record | None:
        with self._store.lock:
            stored = self._log(topic).get(offset)
            return None if stored is None else to_record(topic, stored)

    def groups(self, topic: str) -> list[GroupInfo]:
        with self._store.lock:
            return self._log(topic).group_infos()

    def _group(self, log: Log, name: str) -> Group:
        found = log.groups.get(name)
        if found is None:
            raise ConfigError(f"topic {log.spec.name!r} has no group {name!r}; it has {sorted(log.groups)}")
        return found

    def pause(self, topic: str, group: str | None = None) -> None:
        self._set_paused(topic, group, True)

    def resume(self, topic: str, group: str | None = None) -> None:
        self._set_paused(topic, group, False)

    def _set_paused(self, topic: str, group: str | None, paused: bool) -> None:
        with self._store.lock:
            log = self._log(topic)
            if group is None:
                log.paused = paused
            else:
                self._group(log, group).paused = paused
            log.wake_all()

    def claim_stale(self, topic: str, group: str, min_idle: float) -> list[Claimed]:
        if not min_idle >= 0:
            raise ConfigError(f"min_idle={min_idle!r}: seconds, 0 or more")
        with self._store.lock:
            log = self._log(topic)
            found = self._group(log, group)
            now, out = time.monotonic(), []
            for offset, member in sorted(found.held.items()):
                age = now - found.since[offset]
                if age >= min_idle:
                    assert isinstance(member, MemoryConsumer)
                    member.lose(topic, offset)
                    out.append(Claimed(offset, os.getpid(), "", member.name, age))
            log.wake_all()
            return out

    def delete_group(self, topic: str, group: str) -> None:
        with self._store.lock:
            log = self._log(topic)
            found = self._group(log, group)
            if found.members:
                raise TopicBusyError(f"group {group!r} of topic {topic!r} has {len(found.members)} members; close them")
            del log.groups[group]
            log.space.notify_all()
