"""What is asked of a Kafka cluster beside producing and polling: topics, offsets, groups, single records.

Lives here: ``Cluster``, one admin client and (made when first needed) one reading client of a connection, and
``TopicState``, what this process knows of a topic without asking.

**Settings of topics.** Kafka keeps no dtype, shape or metadata with a topic. They are kept in one compacted topic of
the cluster, ``comux-topics``: key = the topic's full name, value = JSON with the topic's id (so that an entry of a
topic that was deleted and made anew counts for nothing). It is made when the first topic with such settings is; a topic
without an entry has none.

**Ends.** Whether a topic has ended, and in which epoch it is, stands in its newest record (``kafka_wire``).

**Threads.** Everything may be called from any thread: kafka-python's admin client runs its requests on its own I/O
thread; the reading client is used under a lock.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
from kafka import TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, KafkaAdminClient, OffsetSpec
from kafka.structs import OffsetAndMetadata

from comux.errors import (
    BrokerTooOldError,
    ClosedError,
    ComuxError,
    ConfigError,
    TopicBusyError,
    TopicExistsError,
    WaitTimeoutError,
)
from comux.records import Record

from .interface import GroupInfo, TopicInfo, TopicSpec, dtype_of
from .kafka_failures import Notes, translate
from .kafka_net import build
from .kafka_options import KafkaOptions
from .kafka_reader import Reader, open_reader
from .kafka_settings import parse_settings, settings_of, spec_from
from .kafka_wire import End, decode
from .names import unknown_topic
from .values import earliest_ns

_log = logging.getLogger("comux.transport")
T = TypeVar("T")

SETTINGS: Final = "comux-topics"
OLDEST_BROKER: Final = (0, 11)
_BUSY: Final = 2.0  # seconds in which a client that has too much under way may have it answered
_SETTLE: Final = 10.0  # seconds after which a topic that was made or deleted is seen to be
_READ_TIMEOUT: Final = 10.0
_ANSWER_OVERHEAD: Final = 4096  # of an answer that holds one batch
_MIN_SEGMENT: Final = 1 << 20  # Kafka's own minimum
_NO_OFFSET: Final = -1


class TopicState:
    """What this process knows of one topic: the newest of what fetches brought and its own producers' acknowledgements.

    Read and written by any thread; each field is written whole.

    Attributes:
        high_water: Offset after the newest record known.
        seen_ns: Monotonic time at which ``high_water`` was known to be the newest.
        end: Offset and epoch of the newest end known.
        deleted: The topic was deleted through this connection.
        users: Open handles, by this connection.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.high_water = 0
        self.seen_ns = 0
        self.end: End | None = None
        self.deleted = False
        self.users = 0
        self._lock = threading.Lock()

    def saw(self, high_water: int) -> None:
        """The log reaches up to ``high_water`` now."""
        with self._lock:
            self.high_water = max(self.high_water, high_water)
            self.seen_ns = time.monotonic_ns()

    def saw_end(self, end: End) -> None:
        """An epoch ended."""
        with self._lock:
            if self.end is None or end.offset > self.end.offset:
                self.end = end
            self.high_water = max(self.high_water, end.offset + 1)

    def ended_at(self) -> int | None:
        """Offset of the end that is the newest record; ``None`` where the newest is another, or not known."""
        end = self.end
        return end.offset if end is not None and self.high_water <= end.offset + 1 else None


@dataclass(frozen=True, slots=True)
class Facts:
    """A topic as the cluster has it now; ``next_epoch`` is that of a producer opened now, ``topic_id`` is Kafka's."""

    spec: TopicSpec
    log_start: int
    high_water: int
    newest: Record | End | None
    topic_id: str | None

    @property
    def epoch(self) -> int:
        return 0 if self.newest is None else self.newest.epoch

    @property
    def ended(self) -> bool:
        return isinstance(self.newest, End)

    @property
    def next_epoch(self) -> int:
        return self.epoch + 1 if self.ended else self.epoch

    def info(self) -> TopicInfo:
        """For users, who do not see the record that is an end."""
        return TopicInfo(self.spec, self.log_start, self.high_water - self.ended, self.epoch, self.ended)


class Cluster:
    """See the module.

    Args:
        options: Of the connection.
        where: The address, for messages.

    Raises:
        ComuxError: why the cluster cannot be used.
    """

    def __init__(self, options: KafkaOptions, where: str) -> None:
        self.options = options
        self.where = where
        self.notes = Notes(options.client)
        self._reader: Reader | None = None
        self._reader_lock = threading.Lock()
        self._settings: dict[str, dict[str, Any]] = {}
        self._settings_next = 0
        self._settings_lock = threading.Lock()
        self._closed = False
        ours: dict[str, Any] = {
            "client_id": "comux",
            "max_in_flight_requests_per_connection": 100,  # any thread may ask; with more under way it refuses
        }
        self._admin = build(KafkaAdminClient, options.for_client("admin", **ours), where, self.notes)
        version = self._admin._manager.broker_version
        if version < OLDEST_BROKER:
            self._admin.close()
            shown = ".".join(map(str, version))
            raise BrokerTooOldError(f"{where}: the broker is Kafka {shown}, comux needs 0.11 (headers) or newer")

    def close(self) -> None:
        """Close the clients; whoever waits for an answer is told. Idempotent."""
        self._closed = True
        self._admin.close()
        with self._reader_lock:  # whoever reads sees the flag soon
            reader, self._reader = self._reader, None
            if reader is not None:
                reader.close(autocommit=False)

    # -- names -----------------------------------------------------------------------------------------------------

    def full(self, name: str) -> str:
        """The name on the cluster of our ``name`` of a topic or group."""
        return self.options.prefix + name

    def partition(self, name: str) -> TopicPartition:
        """The partition of our topic ``name`` that is read and written."""
        return TopicPartition(self.full(name), self.options.partition or 0)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"{self.where}: the connection is closed; connect again")

    def _ask(self, what: str, call: Callable[..., T], *args: Any, right: str = "", **kwargs: Any) -> T:
        """A request; kafka-python's exceptions become ours. A client that is only busy is asked again.

        ``right`` is what one must be allowed for it.
        """
        deadline = time.monotonic() + _BUSY
        while True:
            try:
                return call(*args, **kwargs)
            except kafka_errors.NodeNotReadyError as error:
                if self.notes.troubles or time.monotonic() > deadline:
                    raise translate(error, f"{self.where}: {what}", self.notes) from error
                threading.Event().wait(0.02)
            except Exception as error:
                self._check_open()  # it failed because of that
                raise translate(error, f"{self.where}: {what}", self.notes, right=right) from error

    # -- topics ----------------------------------------------------------------------------------------------------

    def topics(self) -> list[str]:
        """Our names of the topics below the prefix, sorted; internal ones are left out."""
        prefix = self.options.prefix
        names = self._ask("list of topics", self._admin.list_topics)
        mine = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
        return sorted(name for name in mine if name and not name.startswith("__") and prefix + name != SETTINGS)

    def describe(self, name: str) -> dict[str, Any]:
        """Kafka's description of a topic; also looks whether the topic of settings is there.

        Raises:
            UnknownTopicError, NotAuthorizedError, ConfigError (several partitions).
        """
        found = self._ask(f"topic {name!r}", self._admin.describe_topics, [self.full(name), SETTINGS])
        by_name = {topic["name"]: topic for topic in found}
        topic: dict[str, Any] = by_name[self.full(name)]
        topic["settings_kept"] = by_name.get(SETTINGS, {}).get("error_code") == 0
        error = kafka_errors.for_code(topic["error_code"])
        if error is kafka_errors.UnknownTopicOrPartitionError:
            raise unknown_topic(name, self.topics(), self.where)
        if error is not kafka_errors.NoError and error is not kafka_errors.LeaderNotAvailableError:
            right = f"DESCRIBE (or READ, or WRITE) on topic {self.full(name)!r}"
            raise translate(error(), f"{self.where}: topic {name!r}", self.notes, right=right)
        count, wanted = len(topic["partitions"]), self.options.partition
        if wanted is None and count > 1:
            raise ConfigError(
                f"{self.where}: topic {name!r} has {count} partitions; a comux topic is one ordered log: pass the "
                "option "
                "partition= for one of them, or use a topic with one partition"
            )
        if wanted is not None and wanted >= count:
            raise ConfigError(f"{self.where}: topic {name!r} has {count} partitions, there is no partition {wanted}")
        return topic

    def require(self, name: str, right: str) -> None:
        """Make sure of a right (``READ``, ``WRITE``) on a topic, where the cluster says what is allowed."""
        allowed = self.describe(name).get("authorized_operations")
        if allowed and right not in allowed:
            missing = kafka_errors.TopicAuthorizationFailedError()
            where = f"{self.where}: topic {name!r}"
            raise translate(missing, where, self.notes, right=f"{right} on topic {self.full(name)!r}")

    def facts(self, name: str) -> Facts:
        """A topic as it is now; three round trips, and a fetch where it holds records."""
        described = self.describe(name)
        start, end = self.offsets(name)
        spec = self._spec(name, described)
        newest: Record | End | None = None
        for reach in (1, 64, 1024):  # the newest offsets may hold no record: transaction markers, compaction
            if start < end and newest is None:
                found = self.read(name, max(start, end - reach), end, spec)
                newest = found[-1] if found else None
        topic_id = described.get("topic_id")
        return Facts(spec, start, end, newest, None if topic_id is None else str(topic_id))

    def offsets(self, name: str) -> tuple[int, int]:
        """Log start and high-water mark, from the cluster."""
        partition = self.partition(name)
        ask = self._admin.list_partition_offsets
        start = self._ask(f"topic {name!r}", ask, {partition: OffsetSpec.EARLIEST})[partition].offset
        return start, self.end_offset(name)

    def end_offset(self, name: str) -> int:
        """High-water mark, from the cluster: one round trip."""
        partition = self.partition(name)
        found = self._ask(f"topic {name!r}", self._admin.list_partition_offsets, {partition: OffsetSpec.LATEST})
        return int(found[partition].offset)

    def offset_for_time(self, name: str, timestamp: float) -> int | None:
        """First offset whose timestamp is at or after ``timestamp`` (Unix seconds)."""
        partition, stamp = self.partition(name), -(-earliest_ns(timestamp) // 10**6)  # Kafka's are milliseconds
        found = self._ask(f"topic {name!r}", self._admin.list_partition_offsets, {partition: stamp})[partition]
        return None if found is None or found.offset == _NO_OFFSET else int(found.offset)

    def create(self, spec: TopicSpec) -> None:
        """Make a topic of one partition, keep its settings, and wait until the cluster knows it.

        Raises:
            TopicExistsError, ConfigError, NotAuthorizedError, ...: as the cluster says.
        """
        full = self.full(spec.name)
        if len(full) > 249:
            raise ConfigError(f"topic {full!r}: {len(full)} characters with the prefix, Kafka allows 249")
        if full == SETTINGS:
            raise ConfigError(f"topic {full!r} is where comux keeps the settings of topics; use another name")
        self._make(full, self._config(spec))
        if settings_of(spec):
            self._keep_settings(spec)

    def _config(self, spec: TopicSpec) -> dict[str, str]:
        config: dict[str, str] = {}
        dtype = dtype_of(spec)
        if dtype is None:
            if spec.data_bytes is not None:
                config["retention.bytes"] = str(spec.data_bytes)
                config["segment.bytes"] = str(max(_MIN_SEGMENT, spec.data_bytes // 8))
        else:
            size = dtype.itemsize * int(np.prod(spec.shape, dtype=np.int64))
            if size > 900_000:
                config["max.message.bytes"] = str(size + (1 << 20))
        return {**config, **self.options.topic_config, **({"cleanup.policy": "compact"} if spec.compacted else {})}

    def _make(self, full: str, config: Mapping[str, str]) -> None:
        new = {"num_partitions": 1, "replication_factor": self.options.replication_factor, "configs": dict(config)}
        name = full.removeprefix(self.options.prefix)
        what = f"making topic {name!r}"
        right = f"CREATE on topic {full!r} or on the cluster"
        self._ask(what, self._admin.create_topics, {full: new}, right=right)
        deadline = time.monotonic() + _SETTLE
        while True:
            found = self._ask(what, self._admin.describe_topics, [full])[0]
            error = kafka_errors.for_code(found["error_code"])
            if error is kafka_errors.NoError and all(part["error_code"] == 0 for part in found["partitions"]):
                return
            if time.monotonic() > deadline:
                raise WaitTimeoutError(f"{self.where}: {what}: it is not ready {_SETTLE:g} s after it was made")
            if error is kafka_errors.TopicAuthorizationFailedError:
                right = f"DESCRIBE (or READ, or WRITE) on topic {full!r}"
                raise translate(error(), f"{self.where}: {what}: it was made", self.notes, right=right)
            threading.Event().wait(0.02)

    def delete(self, name: str) -> None:
        """Delete a topic and wait until it is gone."""
        described = self.describe(name)
        full = self.full(name)
        self._ask(f"deleting topic {name!r}", self._admin.delete_topics, [full], right=f"DELETE on topic {full!r}")
        if described["settings_kept"] and self.full(name) in self._settings:
            self._write_settings(self.full(name), None)
        deadline = time.monotonic() + _SETTLE
        tick = threading.Event()
        while self.exists(name):
            if time.monotonic() > deadline:
                raise WaitTimeoutError(f"{self.where}: topic {name!r} is still there {_SETTLE} s after its deletion")
            tick.wait(0.02)

    def exists(self, name: str) -> bool:
        """Whether the cluster has the topic."""
        found = self._ask(f"topic {name!r}", self._admin.describe_topics, [self.full(name)])
        return kafka_errors.for_code(found[0]["error_code"]) is not kafka_errors.UnknownTopicOrPartitionError

    def topic_ids(self, full: Iterable[str]) -> dict[str, str | None]:
        """Kafka's ids of those topics that there are, by their names on the cluster; ``None`` where it has no ids."""
        names = sorted(full)
        found = self._ask("topics", self._admin.describe_topics, names) if names else []
        return {
            topic["name"]: str(topic["topic_id"]) for topic in found if not topic["error_code"] and topic["topic_id"]
        }

    def limit(self, name: str) -> tuple[int, str]:
        """Bytes of the largest batch the topic takes, and the name of the setting that says so."""
        resource = ConfigResource("TOPIC", self.full(name), {"max.message.bytes": None})
        try:
            found = self._admin.describe_configs([resource], config_filter="all")
            entry = found["topic"][self.full(name)]["max.message.bytes"]
        except (kafka_errors.KafkaError, KeyError) as error:  # the right to see settings is one of its own
            _log.debug("%s: the size limit of topic %r is not known: %s", self.where, name, error)
            return 0, ""
        except Exception:
            self._check_open()  # it failed because of that
            raise
        own = entry["config_source"] == "DYNAMIC_TOPIC_CONFIG"
        return int(entry["value"]), f"max.message.bytes of topic {self.full(name)!r}" if own else (
            "the broker's message.max.bytes"
        )

    def check_answers(self, name: str) -> None:
        """Make sure that the largest record a topic takes can be received.

        Raises:
            ConfigError: names both limits, and the value to set.
        """
        largest, whose = self.limit(name)
        size, option = self.options.largest_answer()
        needed = largest + _ANSWER_OVERHEAD
        if needed > size:
            raise ConfigError(
                f"{self.where}: topic {name!r} takes records of {largest} bytes ({whose}), and this client no answer "
                f"of more than {size} ({option}): set {option} to at least {needed}, or make the topic's limit smaller"
            )

    # -- single records --------------------------------------------------------------------------------------------

    def read(
        self,
        name: str,
        first: int,
        end: int,
        spec: TopicSpec,
        *,
        until: Callable[[Record], bool] | None = None,
        max_bytes: int | None = None,
    ) -> list[Record | End]:
        """Records from ``first`` up to (without) ``end``, ends among them.

        Args:
            until: Stop after the first record for which it is true.
            max_bytes: Stop after that many bytes of values.
        """
        partition = self.partition(name)
        dtype, size = dtype_of(spec), 0
        out: list[Record | End] = []
        with self._reader_lock:
            deadline = time.monotonic() + _READ_TIMEOUT
            try:
                reader = self._open_reader()
                reader.stand(partition, first)
                while (reader.place_of(partition) or 0) < end:
                    self._check_open()
                    if time.monotonic() > deadline:
                        raise kafka_errors.KafkaTimeoutError(f"{len(out)} records of [{first}, {end}) came in time")
                    for message in reader.fetch(partition):
                        if message.offset >= end:
                            return out
                        record = decode(message, name, 0, dtype, spec.shape)
                        out.append(record)
                        size += len(message.value or b"")
                        over = max_bytes is not None and size >= max_bytes
                        if over or (until is not None and isinstance(record, Record) and until(record)):
                            return out
            except kafka_errors.OffsetOutOfRangeError:
                return out
            except ComuxError:
                raise
            except kafka_errors.KafkaError as error:
                raise translate(error, f"{self.where}: reading topic {name!r} at {first}", self.notes) from error
            except Exception:
                self._check_open()
                raise
        return out

    def _open_reader(self) -> Reader:
        if self._reader is None:
            ours: dict[str, Any] = {
                "client_id": "comux-reader",
                "retry_backoff_ms": 5,  # so long poll sleeps where it does not know the topic yet
                "enable_incremental_fetch_sessions": False,  # another partition each time
                "auto_offset_reset": "none",
                "enable_auto_commit": False,
                "metrics_enabled": False,
            }
            arguments = self.options.for_client("consumer", **ours)
            # What is read is there: waiting for more of it, as the user's consumers may, would only be slow.
            arguments.update(auto_offset_reset="none", fetch_min_bytes=1, fetch_max_wait_ms=10)
            self._reader = open_reader(arguments, self.where, self.notes)
        return self._reader

    # -- settings of topics ----------------------------------------------------------------------------------------

    def _spec(self, name: str, described: Mapping[str, Any]) -> TopicSpec:
        """What ``create`` was told, as far as it is kept."""
        if not described["settings_kept"]:
            return TopicSpec(name)
        entry = self._read_settings().get(self.full(name))
        if entry is None or entry.get("id") != described["topic_id"]:
            return TopicSpec(name)
        return spec_from(name, entry)

    def _read_settings(self) -> dict[str, dict[str, Any]]:
        """All entries, read on from where they were read up to."""
        partition = TopicPartition(SETTINGS, 0)
        with self._settings_lock:
            try:
                end = self._admin.list_partition_offsets({partition: OffsetSpec.LATEST})[partition].offset
                if end > self._settings_next:
                    self._apply_settings(partition, end)
            except kafka_errors.AuthorizationError:
                _log.warning(
                    "%s: topic %s cannot be read: dtypes and metadata of topics are unknown", self.where, SETTINGS
                )
            except kafka_errors.KafkaError as error:
                raise translate(error, f"{self.where}: topic {SETTINGS!r}", self.notes) from error
            except Exception:
                self._check_open()
                raise
            return self._settings

    def _apply_settings(self, partition: TopicPartition, end: int) -> None:
        with self._reader_lock:
            deadline = time.monotonic() + _READ_TIMEOUT
            reader = self._open_reader()
            start = self._admin.list_partition_offsets({partition: OffsetSpec.EARLIEST})[partition].offset
            reader.stand(partition, max(start, self._settings_next))
            while (reader.place_of(partition) or 0) < end:
                self._check_open()
                if time.monotonic() > deadline:
                    raise kafka_errors.KafkaTimeoutError(f"topic {SETTINGS} could not be read up to {end}")
                for message in reader.fetch(partition):
                    key = (message.key or b"").decode("utf-8", "replace")
                    entry = parse_settings(message.value)
                    if entry is None:
                        self._settings.pop(key, None)
                    else:
                        self._settings[key] = entry
            self._settings_next = end

    def _keep_settings(self, spec: TopicSpec) -> None:
        described = self.describe(spec.name)
        if not described["settings_kept"]:
            try:
                self._make(SETTINGS, {"cleanup.policy": "compact"})
            except TopicExistsError:
                pass  # somebody else was faster
        self._write_settings(self.full(spec.name), {"id": described["topic_id"], **settings_of(spec)})

    def _write_settings(self, key: str, entry: Mapping[str, Any] | None) -> None:
        from kafka import KafkaProducer  # rarely needed: a producer of its own, for one record

        arguments = self.options.for_client("producer", client_id="comux-settings", acks="all")
        producer = build(KafkaProducer, arguments, self.where, self.notes)
        try:
            try:
                value = None if entry is None else json.dumps(entry).encode()
                producer.send(SETTINGS, value, key=key.encode(), partition=0).get(_SETTLE)
            finally:
                producer.close(timeout=_SETTLE)
        except Exception as error:
            raise translate(error, f"{self.where}: keeping the settings of topic {key!r}", self.notes) from error

    # -- groups ----------------------------------------------------------------------------------------------------

    def committed(self, group: str, names: Iterable[str]) -> dict[str, int | None]:
        """Committed offset of a group in each topic; ``None`` where it has none."""
        full, partitions = self.full(group), {name: self.partition(name) for name in names}
        right = f"READ on group {full!r}"
        wanted = {full: list(partitions.values())}
        offsets = self._ask(f"group {group!r}", self._admin.list_group_offsets, wanted, right=right).get(full, {})
        out: dict[str, int | None] = {}
        for name, partition in partitions.items():
            entry = offsets.get(partition)
            out[name] = None if entry is None or entry.offset < 0 else int(entry.offset)
        return out

    def begin_group(self, group: str, offsets: Mapping[str, int]) -> None:
        """Commit where a new group begins. Where others are members already, the cluster refuses; they know better."""
        values = {self.partition(name): OffsetAndMetadata(offset, "", -1) for name, offset in offsets.items()}
        full = self.full(group)
        right, what = f"READ on group {full!r}", f"group {group!r}"
        for error in self._ask(what, self._admin.alter_group_offsets, full, values, right=right).values():
            if issubclass(error, kafka_errors.AuthorizationError):
                raise translate(error(), f"{self.where}: {what}", self.notes, right=right)

    def groups(self, name: str) -> list[GroupInfo]:
        """The groups below the prefix that read or read this topic."""
        self.describe(name)
        partition, prefix = self.partition(name), self.options.prefix
        listed = self._ask("list of groups", self._admin.list_groups)
        ids = [group["group_id"] for group in listed if group["group_id"].startswith(prefix)]
        if not ids:
            return []
        offsets = self._ask("groups", self._admin.list_group_offsets, {group: [partition] for group in ids})
        described = self._ask("groups", self._admin.describe_groups, ids)
        end = self.end_offset(name)
        out: list[GroupInfo] = []
        for group in sorted(ids):
            entry = offsets.get(group, {}).get(partition)
            members = sum(_reads(member, partition.topic) for member in described[group]["members"])
            committed = -1 if entry is None else int(entry.offset)
            if committed >= 0 or members:
                lag = max(0, end - max(0, committed))
                out.append(GroupInfo(group.removeprefix(prefix), name, max(0, committed), lag, members, durable=True))
        return out

    def delete_group(self, name: str, group: str) -> None:
        """Forget a group's place in a topic, and the group where it has no other.

        Raises:
            ConfigError: there is no such group. TopicBusyError: it has members.
        """
        found = {info.name: info for info in self.groups(name)}
        if group not in found:
            raise ConfigError(f"{self.where}: topic {name!r} has no group {group!r}; it has {sorted(found)}")
        if found[group].members:
            raise TopicBusyError(
                f"{self.where}: group {group!r} of topic {name!r} has {found[group].members} members; close them"
            )
        full, partition = self.full(group), self.partition(name)
        everywhere = self._ask(f"group {group!r}", self._admin.list_group_offsets, full).get(full, {})
        if set(everywhere) <= {partition}:
            right = f"DELETE on group {full!r}"
            result = self._ask(f"group {group!r}", self._admin.delete_groups, [full], right=right)
            if result.get(full) != "OK":
                raise TopicBusyError(f"{self.where}: group {group!r} was not deleted: {result.get(full)}")
        else:
            self._ask(f"group {group!r}", self._admin.delete_group_offsets, full, [partition])


def _reads(member: Mapping[str, Any], topic: str) -> bool:
    """Whether a described member of a group has this topic assigned."""
    assignment = member.get("member_assignment") or {}
    parts: Sequence[Any] = assignment.get("assigned_partitions", ()) if isinstance(assignment, Mapping) else ()
    return any(part.get("topic") == topic for part in parts)
