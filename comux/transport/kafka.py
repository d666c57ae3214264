"""The Kafka engine ``kafka://host:port,host:port``: topics of a real Apache Kafka cluster, through kafka-python.

One topic is one partition. What stands in it is readable by any Kafka client, and what any client writes is read here
(``kafka_wire``). Lives in this module: the broker handle, which hands out everything else. The door to kafka-python is
this module and its ``kafka_*`` siblings: ``kafka_options`` (options), ``kafka_net`` (connections and their failures),
``kafka_cluster`` (topics, groups, single records), ``kafka_poller``, ``kafka_fetched``, ``kafka_lane`` and
``kafka_consumer`` (reading), ``kafka_producer``, ``kafka_outlet``, ``kafka_batches`` and ``kafka_acks`` (writing).
Where ``library`` says so, librdkafka fetches and writes (``confluent_*``, the only door to confluent-kafka).

Not here, and refused by name: ``record_sharing`` (Kafka shares partitions), ``views``, ``observer_without_reading``,
``counted_end``, ``gating`` (Kafka drops by age and size, never waits). ``TopicSpec.records``, ``writers`` and
``group_grace`` are kept with the topic and mean nothing to Kafka; ``data_bytes`` becomes ``retention.bytes``,
``compacted`` ``cleanup.policy=compact``.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

from comux.account import Account
from comux.errors import ClosedError, ComuxError, TopicBusyError, TopicExistsError, UnsupportedError
from comux.records import KEYFRAME, Record

from .address import Address
from .confluent_outlet import ConfluentOutlet
from .interface import (
    Broker,
    Capabilities,
    Consumer,
    GroupInfo,
    Handle,
    Membership,
    Observer,
    OnAssigned,
    OnEnd,
    OnRevoked,
    Producer,
    Start,
    TopicInfo,
    TopicSpec,
    dtype_of,
)
from .kafka_cluster import Cluster, Facts, TopicState
from .kafka_consumer import KafkaConsumer
from .kafka_lane import Lane
from .kafka_membership import KafkaMembership
from .kafka_options import read_options
from .kafka_outlet import Outlet, PythonOutlet
from .kafka_poller import Lifeline, Poller
from .kafka_producer import KafkaProducer
from .names import check_consumer, check_name, check_spec

CAPABILITIES = Capabilities(
    record_sharing=False,
    topic_sharing=True,
    views=False,
    observer_without_reading=False,
    counted_end=False,
    gating=False,
    dead_letters=False,
    pausing=False,
    exact_loss=False,
    dense_offsets=False,
    durable=True,
    cross_process=True,
    timestamp_resolution_ns=1_000_000,
)

_CHUNK = 32 << 20
_WINDOW = 64
H = TypeVar("H", bound=Handle)
P = TypeVar("P", Poller, Outlet)
P_in = ParamSpec("P_in")
R = TypeVar("R")
_open: weakref.WeakSet[KafkaBroker] = weakref.WeakSet()


def _while_open(
    method: Callable[Concatenate[KafkaBroker, P_in], R],
) -> Callable[Concatenate[KafkaBroker, P_in], R]:
    """Asked of a closed broker, and what failed because it was closed meanwhile, is told as that."""

    @functools.wraps(method)
    def asked(self: KafkaBroker, /, *args: P_in.args, **kwargs: P_in.kwargs) -> R:
        self._check()
        try:
            return method(self, *args, **kwargs)
        except ComuxError:
            self._check()
            raise

    return asked


def _after_fork_in_child() -> None:
    """Threads and connections stay with the parent: here every handle is closed."""
    for broker in list(_open):
        broker.lifeline.dead = True
        if broker._outlet is not None:
            broker._outlet.abandon()
        for poller in broker._pollers:
            poller.abandon()


os.register_at_fork(after_in_child=_after_fork_in_child)


def open_broker(address: Address, **options: Any) -> KafkaBroker:
    """The engine's door, see ``engines``. ``options``: see ``kafka_options``.

    Raises:
        ConfigError: an option. ConnectError, TlsError, AuthenticationError, BrokerTooOldError: the cluster.
    """
    return KafkaBroker(address, options)


def check_options(address: Address, options: Mapping[str, Any]) -> None:
    """Whether ``open_broker`` would take these options; asks no cluster.

    Raises:
        ConfigError: it would not.
    """
    read_options(address, options)


class KafkaBroker(Broker):
    """See ``Broker``. Thread-safe; the clients behind it are made when first needed, but for the one that asks."""

    capabilities = CAPABILITIES

    def __init__(self, address: Address, options: Mapping[str, Any]) -> None:
        self.address = address.text
        self.default_topic = address.topic
        self.lifeline = Lifeline()
        self._cluster = Cluster(read_options(address, options), address.text)
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._states: dict[str, TopicState] = {}
        self._pollers: list[Poller] = []
        self._outlet: Outlet | None = None
        self._handles: set[Handle] = set()
        self._closed = False
        _open.add(self)

    def close(self) -> None:
        if self.lifeline.dead:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
            handles = list(self._handles)
            pollers, outlet = list(self._pollers), self._outlet
        for handle in handles:
            handle.close()
        self._cluster.close()
        for poller in pollers:
            poller.close()
        if outlet is not None:
            outlet.close()

    def _check(self) -> None:
        if self._closed or self.lifeline.dead:
            raise ClosedError(f"broker {self.address!r} is closed; connect again")

    def _state(self, name: str) -> TopicState:
        with self._lock:
            state = self._states.get(name)
            if state is None or state.deleted:
                state = self._states[name] = TopicState(name)
            return state

    def _keep(self, handle: H) -> H:
        with self._lock:
            if not self._closed:
                self._handles.add(handle)
                return handle
        handle.close()
        raise ClosedError(f"broker {self.address!r} is closed; connect again")

    # -- topics ----------------------------------------------------------------------------------------------------

    @_while_open
    def create_topic(self, spec: TopicSpec, *, exist_ok: bool = False) -> TopicInfo:
        check_spec(spec)
        if spec.policy != "wait":
            raise UnsupportedError(
                f"gating: topic {spec.name!r}: policy={spec.policy!r} is for engines whose groups hold the writer "
                "back; Kafka "
                "drops by age and size (topic_config), leave it out"
            )
        if spec.end != "explicit":
            raise UnsupportedError(
                f"counted_end: topic {spec.name!r}: end={spec.end!r} needs an engine that counts living producers; "
                "call end()"
            )
        try:
            self._cluster.create(spec)
        except TopicExistsError:
            if not exist_ok:
                raise
            return self._check_same(spec)
        return TopicInfo(spec, 0, 0, 0, False)

    def _check_same(self, spec: TopicSpec) -> TopicInfo:
        info = self.topic(spec.name)
        if dtype_of(info.spec) != dtype_of(spec) or tuple(info.spec.shape) != tuple(spec.shape):
            raise TopicExistsError(
                f"topic {spec.name!r} exists at {self.address!r} with dtype {info.spec.dtype} and shape "
                f"{info.spec.shape}"
                f", not {dtype_of(spec)} and {spec.shape}; delete it, or use another name"
            )
        return info

    @_while_open
    def topics(self) -> list[str]:
        return self._cluster.topics()

    @_while_open
    def topic(self, name: str) -> TopicInfo:
        return self._facts(name).info()

    def _facts(self, name: str) -> Facts:
        facts = self._cluster.facts(name)
        state = self._state(name)
        state.saw(facts.high_water)
        return facts

    @_while_open
    def delete_topic(self, name: str, *, force: bool = False) -> None:
        state = self._state(name)
        if not force:
            members = sum(group.members for group in self._cluster.groups(name))
            if state.users or members:
                raise TopicBusyError(
                    f"topic {name!r} at {self.address!r} is used by {state.users} handles here and {members} members "
                    "of "
                    "groups; close them or force"
                )
        self._cluster.delete(name)
        state.deleted = True
        for poller in list(self._pollers):
            poller.deleted(self._cluster.partition(name))

    # -- handles ---------------------------------------------------------------------------------------------------

    @_while_open
    def producer(self, topic: str, *, name: str = "") -> Producer:
        check_name("topic", topic)
        self._cluster.require(topic, "WRITE")
        facts = self._facts(topic)
        with self._opening:
            self._check()
            if self._outlet is not None and self._outlet.broken:
                self._outlet.close()
                self._outlet = None
            kind = ConfluentOutlet if self._cluster.options.library == "confluent" else PythonOutlet
            outlet = self._outlet or self._keep_client(kind(self._cluster, self.lifeline))
        handle = KafkaProducer(outlet, self._state(topic), facts.spec, facts.next_epoch, self._drop)
        return self._keep(handle)

    def _drop(self, handle: Handle) -> None:
        with self._lock:
            self._handles.discard(handle)

    @_while_open
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
        """See ``Broker.consumer``. Groups are always ``durable``: their offsets are kept by the cluster."""
        names = check_consumer(topics, group, start, on_end, max_deliveries)
        if max_deliveries:
            raise UnsupportedError(
                f"dead_letters: max_deliveries={max_deliveries}: a cluster counts no deliveries of a record; leave it"
                " out and send what cannot be worked on to a topic of your own, or use a local topic"
            )
        if views:
            raise UnsupportedError("views: what comes over a network has no memory to look into; read copies")
        facts = {}
        for topic in names:
            self._cluster.require(topic, "READ")
            self._cluster.check_answers(topic)
            facts[topic] = self._facts(topic)
        positions = {topic: self._resolve(facts[topic], start) for topic in names}
        if group is not None:
            positions = self._group_positions(group, positions, facts)
        member = None if group is None else self._membership_of(group, names)
        condition, account = threading.Condition(), Account()
        lanes = [
            Lane(
                self._state(topic),
                self._cluster.partition(topic),
                dtype_of(facts[topic].spec),
                tuple(facts[topic].spec.shape),
                condition,
                account,
                positions[topic],
                facts[topic].epoch,
                stops=on_end == "stop",
                grouped=group is not None,
                owned=group is None or member is not None,
                topic_id=facts[topic].topic_id,
            )
            for topic in names
        ]
        for lane in lanes:
            lane.begins(facts[lane.name].newest)
        poller = self._poller_for(lanes, None if group is None or member is not None else self._cluster.full(group))
        if member is not None:
            member.attach(lanes)
        specs = {topic: facts[topic].spec for topic in names}
        handle = KafkaConsumer(
            self._cluster,
            poller,
            member or poller,
            lanes,
            specs,
            condition,
            account,
            group,
            on_end == "stop",
            self.lifeline,
            self._drop,
        )
        return self._keep(handle)

    def _poller_for(self, lanes: Sequence[Lane], group: str | None) -> Poller:
        """A polling thread of this way of reading that reads none of these topics yet."""
        with self._opening:
            self._check()
            for poller in self._pollers:
                if poller.group == group and poller.add(lanes):
                    return poller
            poller = self._keep_client(Poller(self._cluster, group, self.lifeline))
            poller.add(lanes)
            return poller

    def _keep_client(self, client: P) -> P:
        """A polling thread or outlet that was made just now; where the broker was closed meanwhile it is, too."""
        with self._lock:
            if not self._closed:
                if isinstance(client, Poller):
                    self._pollers = [*(poller for poller in self._pollers if not poller.ended), client]
                else:
                    self._outlet = client
                return client
        client.close()
        raise ClosedError(f"broker {self.address!r} is closed; connect again")

    def _membership_of(self, group: str, names: Sequence[str]) -> KafkaMembership | None:
        """Our membership of a group that has these topics now, if there is one: then they are read without joining."""
        with self._lock:
            members = [handle for handle in self._handles if isinstance(handle, KafkaMembership)]
        return next((m for m in members if m.group == group and m.assigned().issuperset(names)), None)

    @_while_open
    def membership(
        self, group: str, topics: str | Sequence[str], *, on_assigned: OnAssigned, on_revoked: OnRevoked
    ) -> Membership:
        check_name("group", group)
        named = topics if isinstance(topics, str) else check_consumer(topics, group, "end", "wait")
        return self._keep(
            KafkaMembership(self._cluster, group, named, on_assigned, on_revoked, self.lifeline, self._drop)
        )

    def _resolve(self, facts: Facts, start: Start) -> int:
        """The offset a consumer without a committed position begins at."""
        name = facts.spec.name
        if start == "beginning":
            return facts.log_start
        if start == "end":
            return facts.high_water
        if start == "keyframe":
            return self._newest_keyframe(facts)
        if isinstance(start, float):
            found = self._cluster.offset_for_time(name, start)
            return facts.high_water if found is None else found
        if isinstance(start, int):
            return start
        assert callable(start)
        return self._first_that(facts, start)

    def _newest_keyframe(self, facts: Facts) -> int:
        upper, window, budget = facts.high_water, _WINDOW, 2 * _CHUNK
        while upper > facts.log_start and budget > 0:
            lower = max(facts.log_start, upper - window)
            records = self._cluster.read(facts.spec.name, lower, upper, facts.spec)
            found = [r for r in records if isinstance(r, Record) and r.flags & KEYFRAME]
            if found:
                return found[-1].offset
            budget -= sum(len(r.value) for r in records if isinstance(r, Record) and isinstance(r.value, bytes))
            upper, window = lower, 2 * window
        return facts.high_water

    def _first_that(self, facts: Facts, holds: Callable[[Record], bool]) -> int:
        at = facts.log_start
        while at < facts.high_water:
            records = self._cluster.read(facts.spec.name, at, facts.high_water, facts.spec, max_bytes=_CHUNK)
            for record in records:
                if isinstance(record, Record) and holds(record):
                    return record.offset
            at = records[-1].offset + 1 if records else facts.high_water
        return facts.high_water

    def _group_positions(self, group: str, positions: Mapping[str, int], facts: Mapping[str, Facts]) -> dict[str, int]:
        """Where the group stands; where it does not yet, it begins at ``positions``, from this instant on."""
        committed = self._cluster.committed(group, positions)
        fresh = {name: position for name, position in positions.items() if committed[name] is None}
        fresh = {
            name: min(max(position, facts[name].log_start), facts[name].high_water) for name, position in fresh.items()
        }
        if fresh:
            self._cluster.begin_group(group, fresh)
        return {name: fresh[name] if name in fresh else committed[name] or 0 for name in positions}

    def observer(self, topic: str) -> Observer:
        raise UnsupportedError(
            "observer_without_reading: Kafka has no look at the newest record but reading it; use a consumer with "
            "start='end'"
        )

    # -- looking things up -----------------------------------------------------------------------------------------

    @_while_open
    def record_at(self, topic: str, offset: int) -> Record | None:
        facts = self._cluster.facts(topic)
        if not facts.log_start <= offset < facts.high_water:
            return None
        found = self._cluster.read(topic, offset, offset + 1, facts.spec)
        return next((record for record in found if isinstance(record, Record) and record.offset == offset), None)

    @_while_open
    def groups(self, topic: str) -> list[GroupInfo]:
        return self._cluster.groups(topic)

    @_while_open
    def delete_group(self, topic: str, group: str) -> None:
        self._cluster.delete_group(topic, group)
