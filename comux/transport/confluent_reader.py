"""librdkafka as the client that fetches assigned partitions, in the words of ``kafka_reader.PartitionReader``.

**Problem.** librdkafka fetches in C, and its ways are others. Its ``seek`` works only where a partition is being
fetched; an offset that is out of range stops a partition for good; a topic that was deleted and made anew is read on as
if nothing had happened, where the old one ended; positions do not move over offsets that hold no record; and nothing
says who leads a partition.

**Algorithm.**

- *Seek*: the partition is unassigned, and assigned again at the offset by the next ``poll``. librdkafka numbers
  assignments, so that nothing fetched before comes out afterwards. Before the first ``seek`` a partition is remembered.
- *Out of range* (``auto.offset.reset=error``) is told as kafka-python's ``OffsetOutOfRangeError`` with the position;
  the partition is *stuck* until the next ``seek``, or until ``resume`` assigns it again where it stood.
- *Made anew*: after an error said that a topic is missing, or a fetch was answered without a high-water mark (that is
  how statistics show an answer with an error), its id is asked for before anything of it is handed out. librdkafka
  waits longer after such an answer than statistics take to come. Also, ids are asked for every ``_IDS_S`` seconds.
- *Positions* follow the records, and the ends of partitions that librdkafka tells (``enable.partition.eof``).
- *What cannot be read* is fetched again and again, together with what lay before it, and librdkafka does not say where
  it ends. kafka-python looks: rare enough for a client of its own. What came before is not handed out twice.
- *Leaders* and connections are in its statistics, four times a second (``confluent_trouble``).

**Waiting.** ``consume(n, timeout)`` waits until there are n records or the time is over. So one is waited for, and the
rest is what lies there already.

**Threads.** The polling thread, but for ``ask_mark``; librdkafka's own are in C.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from kafka import TopicPartition
from kafka import errors as kafka_errors
from kafka.consumer.fetcher import ConsumerRecord

from comux.errors import ComuxError

from .confluent_options import library, make, properties
from .confluent_trouble import Ear, as_kafka_error
from .kafka_cluster import Cluster
from .kafka_failures import Notes
from .kafka_fetched import Unreadable
from .kafka_reader import open_reader

_log = logging.getLogger("comux.transport")

_IDS_S: Final = 30.0
_LOOK_S: Final = 5.0  # seconds that a look at what cannot be read may take, in the polling thread
_MARK_S: Final = 1.0  # seconds a high-water mark is waited for, in the polling thread
_STATISTICS_MS: Final = 250
_GROUP: Final = "comux"  # librdkafka wants one; nothing is committed, and no group joined


class ConfluentReader:
    """See the module and ``PartitionReader``.

    Args:
        cluster: Of the connection; asked for ids of topics.
        arguments: As for kafka-python's consumer.
        notes: Where troubles of connections are noted.

    Raises:
        ConfigError: an option is refused by librdkafka.
    """

    def __init__(self, cluster: Cluster, arguments: Mapping[str, Any], notes: Notes) -> None:
        self._kinds = library().KafkaError
        self._place = library().TopicPartition
        self._cluster = cluster
        self._ear = Ear(notes, self._see_topics)
        ours = {
            "group.id": cluster.full(_GROUP),
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "statistics.interval.ms": _STATISTICS_MS,
            "error_cb": self._ear.error,
            "stats_cb": self._ear.statistics,
        }
        defaults = {
            "topic.metadata.propagation.max.ms": 1000,  # how long a topic that is missing may still be on its way
            "fetch.queue.backoff.ms": 10,  # how often it looks whether its queue has room again
            "queued.max.messages.kbytes": max(1, cluster.options.queue_bytes >> 10),
            "message.max.bytes": max(1000, min(arguments.get("fetch_max_bytes", 1_000_000), 1_000_000)),
            "check.crcs": True,
            "isolation.level": "read_uncommitted",
        }
        configured = {**defaults, **properties("consumer", arguments, cluster.options.librdkafka), **ours}
        self._client = make(library().Consumer, configured, cluster.where)
        self._positions: dict[TopicPartition, int] = {}
        self._wanted: set[TopicPartition] = set()
        self._assigned: set[TopicPartition] = set()
        self._beginning: dict[TopicPartition, int] = {}  # where to, at the next poll
        self._paused: set[TopicPartition] = set()
        self._stuck: set[TopicPartition] = set()
        self._gone: set[TopicPartition] = set()  # told to be out of range
        self._raising: deque[Exception] = deque()
        self._early: list[Any] = []  # came while nothing was to be fetched
        self._arguments = arguments
        self._notes = notes
        self._unread: dict[TopicPartition, Exception] = {}
        self._marks: deque[tuple[TopicPartition, Callable[[int], None]]] = deque()
        self._leaders: dict[TopicPartition, int] | None = None  # none before the first statistics
        self._marked: set[TopicPartition] = set()  # had a high-water mark in the newest statistics
        self._ids: dict[str, str | None] = {}
        self._ids_due = 0.0

    # -- what is read ----------------------------------------------------------------------------------------------

    def _there(self, partition: TopicPartition, offset: int | None = None) -> Any:
        topic, number = partition
        return self._place(topic, number) if offset is None else self._place(topic, number, offset)

    def assign(self, partitions: Sequence[TopicPartition]) -> None:
        wanted = set(partitions)
        for partition in self._wanted - wanted:
            self.resume(partition)  # it would still be paused when it is read again
            self._take_away(partition)
            self._positions.pop(partition, None)
        if wanted - self._wanted:
            self._ids_due = 0.0
        self._wanted = wanted

    def assignment(self) -> set[TopicPartition]:
        return self._wanted

    def _take_away(self, partition: TopicPartition) -> None:
        self._beginning.pop(partition, None)
        self._stuck.discard(partition)
        self._early = [m for m in self._early if (m.topic(), m.partition()) != partition]
        if partition in self._assigned:
            self._assigned.discard(partition)
            self._client.incremental_unassign([self._there(partition)])

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._take_away(partition)
        self._positions[partition] = offset
        self._beginning[partition] = offset

    def _begin(self) -> None:
        """Assign what is to begin, all in one go: one fetch brings something of each."""
        beginning, self._beginning = self._beginning, {}
        if not beginning:
            return
        self._client.incremental_assign([self._there(partition, offset) for partition, offset in beginning.items()])
        self._assigned.update(beginning)
        paused = [self._there(partition) for partition in beginning if partition in self._paused]
        if paused:
            self._client.pause(paused)

    def pause(self, *partitions: TopicPartition) -> None:
        self._paused.update(partitions)
        there = [self._there(partition) for partition in partitions if partition in self._assigned]
        if there:
            self._client.pause(there)

    def resume(self, *partitions: TopicPartition) -> None:
        for partition in self._paused.intersection(partitions):
            self._paused.discard(partition)
            if partition in self._assigned:
                self._client.resume([self._there(partition)])
            if partition in self._stuck:
                self.seek(partition, self._positions[partition])

    def paused(self) -> set[TopicPartition]:
        return self._paused

    # -- records ---------------------------------------------------------------------------------------------------

    def poll(self, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[Any]]:
        if self._raising:
            raise self._raising.popleft()
        if self._gone:  # records that came behind it count: told where the partition stands by now
            gone, self._gone = self._gone & self._wanted, set()
            raise kafka_errors.OffsetOutOfRangeError({there: self._positions.get(there, 0) for there in gone})
        self._begin()
        messages, self._early = self._early, []
        first = self._client.poll(0 if messages else timeout_ms / 1000)
        if first is not None:
            messages.append(first)
            if max_records > 1:
                messages += self._client.consume(max_records - 1, 0)
        self._early = messages if self._ear.refused is not None else []
        self._raise_refusal()
        out: dict[TopicPartition, list[Any]] = {}
        begins: dict[TopicPartition, int] = {}
        partition, records = None, []
        for message in messages:
            error = message.error()
            topic, number = message.topic(), message.partition()
            if error is not None:
                there = TopicPartition(topic, number)
                if out.get(there):  # the error lies behind these
                    self._positions[there] = max(self._positions.get(there, 0), out[there][-1][3] + 1)
                self._tell(error, message)
                continue
            if partition is None or number != partition.partition or topic != partition.topic:
                partition = TopicPartition(topic, number)
                records = out.setdefault(partition, [])
                begins.setdefault(partition, self._positions.get(partition, 0))
            records.append(_as_record(message, topic, number))
        for partition, records in out.items():
            position = begins[partition]
            if records[0][3] < position or partition in self._unread:
                records[:] = _ascending(records, position)
            if records:
                self._positions[partition] = max(self._positions.get(partition, 0), records[-1][3] + 1)
        return {partition: records for partition, records in out.items() if records}

    def _raise_refusal(self) -> None:
        refused, self._ear.refused = self._ear.refused, None
        if refused is not None:
            named = {p.topic for p in self._wanted if p.topic in str(refused)}
            raise kafka_errors.TopicAuthorizationFailedError(named or {p.topic for p in self._wanted})

    def _tell(self, error: Any, message: Any) -> None:
        """What came in the place of a record."""
        kinds, code = self._kinds, error.code()
        if message.topic() is None:
            self._ear.error(error)
            return
        partition = TopicPartition(message.topic(), message.partition())
        if code == kinds._PARTITION_EOF:
            if partition in self._positions:
                self._positions[partition] = max(self._positions[partition], message.offset())
            return
        if code in (kinds._AUTO_OFFSET_RESET, kinds.OFFSET_OUT_OF_RANGE):
            self._stuck.add(partition)
            self._gone.add(partition)
        elif code == kinds._LOG_TRUNCATION:
            self._stuck.add(partition)
            self._raising.append(kafka_errors.LogTruncationError({partition: None}))
        elif code in (kinds._BAD_MSG, kinds._BAD_COMPRESSION, kinds._NOT_IMPLEMENTED):
            self._unread[partition] = as_kafka_error(error)
        elif code == kinds.TOPIC_AUTHORIZATION_FAILED:
            self._raising.append(kafka_errors.TopicAuthorizationFailedError({partition.topic}))
        elif isinstance(ours := as_kafka_error(error), kafka_errors.UnknownTopicOrPartitionError):
            self._ear.missing = True
        else:
            self._raising.append(ours)

    def unreadable(self) -> list[tuple[TopicPartition, Unreadable]]:
        unread, self._unread = self._unread, {}
        there = {partition: self._positions[partition] for partition in unread if partition in self._assigned}
        return [(p, self._look(p, offset) or Unreadable(offset, None, unread[p])) for p, offset in there.items()]

    def _look(self, partition: TopicPartition, offset: int) -> Unreadable | None:
        """What kafka-python says of records that librdkafka cannot read."""
        try:
            with contextlib.closing(open_reader(self._arguments, self._cluster.where, self._notes)) as reader:
                reader.stand(partition, offset)
                deadline = time.monotonic() + _LOOK_S
                while time.monotonic() < deadline and not reader.poll(timeout_ms=50):
                    for _, found in reader.unreadable():
                        return found
        except (ComuxError, kafka_errors.KafkaError) as error:
            _log.debug("%s: topic %r: not looked into: %s", self._cluster.where, partition.topic, error)
        return None

    # -- offsets ---------------------------------------------------------------------------------------------------

    def highwater(self, partition: TopicPartition) -> int | None:
        if partition not in self._assigned:
            return None
        marks = self._client.get_watermark_offsets(self._there(partition), cached=True)
        return None if marks is None or marks[1] < 0 else int(marks[1])

    def _ask(self, partition: TopicPartition, seconds: float) -> tuple[int, int]:
        error_type = library().KafkaException
        try:
            marks = self._client.get_watermark_offsets(self._there(partition), timeout=seconds)
        except error_type as error:
            raise as_kafka_error(error.args[0]) from None
        if marks is None:
            raise kafka_errors.KafkaTimeoutError(f"{partition}: no answer within {seconds} s")
        return int(marks[0]), int(marks[1])

    def beginning_offsets(self, partitions: Sequence[TopicPartition], timeout_ms: int) -> Mapping[TopicPartition, int]:
        return {partition: self._ask(partition, timeout_ms / 1000)[0] for partition in partitions}

    def end_offsets(self, partitions: Sequence[TopicPartition], timeout_ms: int) -> Mapping[TopicPartition, int]:
        return {partition: self._ask(partition, timeout_ms / 1000)[1] for partition in partitions}

    def place_of(self, partition: TopicPartition) -> int | None:
        return self._positions.get(partition)

    def ask_mark(self, partition: TopicPartition, answered: Callable[[int], None]) -> None:
        self._marks.append((partition, answered))

    # -- the cluster -----------------------------------------------------------------------------------------------

    def serve(self) -> None:
        if self._assigned <= self._paused:  # else ``poll`` is called, which makes the callbacks too
            message = self._client.poll(0)
            if message is not None:
                self._early.append(message)
        while self._marks:
            partition, answered = self._marks.popleft()
            try:
                answered(self._ask(partition, _MARK_S)[1])
            except kafka_errors.KafkaError as error:
                _log.debug("%s: topic %r: mark not known: %s", self._cluster.where, partition.topic, error)

    def _see_topics(self, topics: Mapping[str, Any]) -> None:
        """From the statistics: who leads what, and which fetches were answered with an error."""
        leaders: dict[TopicPartition, int] = {}
        marked: set[TopicPartition] = set()
        for topic, seen in topics.items():
            for number, partition in seen.get("partitions", {}).items():
                there = TopicPartition(topic, int(number))
                if there.partition >= 0 and not partition.get("unknown"):
                    leaders[there] = int(partition.get("leader", -1))
                if partition.get("hi_offset", -1) >= 0:
                    marked.add(there)
        if self._marked & self._wanted - marked:
            self._ear.missing = True
        self._leaders, self._marked = leaders, marked

    def leader_of(self, partition: TopicPartition) -> int | None:
        return None if self._leaders is None else self._leaders.get(partition)

    def topic_id_of(self, topic: str) -> str | None:
        now = time.monotonic()
        if self._ear.missing or now >= self._ids_due:
            try:
                topics = {partition.topic for partition in self._wanted}
                self._ids = self._cluster.topic_ids(topics)
                self._ear.missing = not topics <= self._ids.keys()
            except ComuxError as error:
                _log.debug("%s: ids of topics are not known: %s", self._cluster.where, error)
            self._ids_due = now + _IDS_S
        return self._ids.get(topic)

    # -- the end ---------------------------------------------------------------------------------------------------

    def close(self, *, autocommit: bool, timeout_ms: int) -> None:
        self._client.close()

    def abandon(self) -> None:
        leak(self._client)


def _ascending(records: list[Any], position: int) -> list[Any]:
    """Those from ``position`` on, each once: what lay before something that could not be read came again with it."""
    out = []
    for record in records:
        if record[3] >= position:
            out.append(record)
            position = record[3] + 1
    return out


def leak(client: Any) -> None:
    """Never destroy ``client``: in a forked child its threads do not exist, and its destructor would wait for them."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(client))


def _as_record(message: Any, topic: str, partition: int) -> ConsumerRecord:
    """A message of confluent-kafka's as kafka-python's ``ConsumerRecord``, with the sizes that it counts."""
    kind, stamp = message.timestamp()
    key, value, headers = message.key(), message.value(), message.headers()
    header_size = -1
    if headers:
        header_size = sum(len(name) + len(content or b"") for name, content in headers)
    sizes = (-1 if key is None else len(key), -1 if value is None else len(value), header_size)
    kind = 1 if kind == 2 else 0  # librdkafka: 1 CreateTime, 2 LogAppendTime
    fields = (topic, partition, -1, message.offset(), stamp, kind, key, value, headers or [], None, *sizes)
    return tuple.__new__(ConsumerRecord, fields)
