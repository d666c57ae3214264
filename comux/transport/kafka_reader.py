"""What the polling thread asks of the client that fetches for it, and kafka-python's way of answering.

``PartitionReader`` is the whole of it: kafka-python's ``KafkaConsumer`` with a few questions more (``Reader``), or, for
assigned partitions, librdkafka (``confluent_reader``). Offsets that are out of range, a log that was cut and rights
that are missing are told by exceptions of kafka-python's from ``poll``, whoever fetches.

**Threads.** The polling thread only, but for ``ask_mark``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from kafka import KafkaConsumer, TopicPartition
from kafka.admin import OffsetSpec

from comux.errors import ConfigError

from .kafka_failures import Notes, unreadable
from .kafka_fetched import Unreadable, quicken
from .kafka_net import build, cluster_of, position_of

_log = logging.getLogger("comux.transport")

_REQUEST_MS: Final = 5000


class PartitionReader(Protocol):
    """Fetches records of assigned partitions. Names and time-outs as in kafka-python."""

    def assign(self, partitions: Sequence[TopicPartition]) -> None:
        """Read these and no others; each begins where ``seek`` says."""

    def assignment(self) -> set[TopicPartition]:
        """What is read now."""

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Go on at ``offset``; nothing that was fetched before is handed out any more."""

    def pause(self, *partitions: TopicPartition) -> None:
        """Fetch nothing of these until ``resume``."""

    def resume(self, *partitions: TopicPartition) -> None:
        """Fetch these again."""

    def paused(self) -> set[TopicPartition]:
        """Which are."""

    def poll(self, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[Any]]:
        """Records as kafka-python's ``ConsumerRecord``; raises what there is to tell of partitions."""

    def unreadable(self) -> list[tuple[TopicPartition, Unreadable]]:
        """What could not be read since this was asked last."""

    def highwater(self, partition: TopicPartition) -> int | None:
        """Offset after the newest record, as the last answer had it; ``None`` before the first."""

    def beginning_offsets(self, partitions: Sequence[TopicPartition], timeout_ms: int) -> Mapping[TopicPartition, int]:
        """Log starts, from the cluster."""

    def end_offsets(self, partitions: Sequence[TopicPartition], timeout_ms: int) -> Mapping[TopicPartition, int]:
        """High-water marks, from the cluster."""

    def close(self, *, autocommit: bool, timeout_ms: int) -> None:
        """End it."""

    def serve(self) -> None:
        """Do what is due beside fetching; called a few times a second."""

    def leader_of(self, partition: TopicPartition) -> int | None:
        """Id of the broker that has it, -1 where none has; ``None`` where the topic is not known."""

    def topic_id_of(self, topic: str) -> str | None:
        """Kafka's id of the topic that has this name now; ``None`` where it is not known."""

    def place_of(self, partition: TopicPartition) -> int | None:
        """Where the client stands, past offsets without records too."""

    def ask_mark(self, partition: TopicPartition, answered: Callable[[int], None]) -> None:
        """Have the high-water mark asked for; returns at once. Any thread."""

    def abandon(self) -> None:
        """In a forked child: see to it that nothing of the client runs there."""


class Reader(KafkaConsumer):  # type: ignore[misc]
    """kafka-python's ``KafkaConsumer`` as a ``PartitionReader``; subscribes for groups too."""

    where = ""
    noted: dict[TopicPartition, Unreadable]

    def serve(self) -> None:
        """Nothing: kafka-python has an I/O thread."""

    def unreadable(self) -> list[tuple[TopicPartition, Unreadable]]:
        found = list(self.noted.items())
        self.noted.clear()
        return found

    def stand(self, partition: TopicPartition, offset: int) -> None:
        """Read this one only, from ``offset``."""
        self.assign([partition])
        self.seek(partition, offset)

    def fetch(self, partition: TopicPartition) -> list[Any]:
        """What comes of one partition, past what is damaged.

        Raises:
            ConfigError, TopicCorruptError: it cannot be read, nor passed over.
        """
        found: list[Any] = self.poll(timeout_ms=200).get(partition, [])
        for _, unread in self.unreadable():
            error = unreadable(unread, f"{self.where}: topic {partition.topic!r}")
            if unread.end is None or isinstance(error, ConfigError):
                raise error
            self.seek(partition, unread.end)
        return found

    def leader_of(self, partition: TopicPartition) -> int | None:
        leader: int | None = cluster_of(self).leader_for_partition(partition)
        return leader

    def topic_id_of(self, topic: str) -> str | None:
        found = cluster_of(self).topic_id(topic)
        return None if found is None else str(found)

    def place_of(self, partition: TopicPartition) -> int | None:
        return position_of(self, partition)

    def ask_mark(self, partition: TopicPartition, answered: Callable[[int], None]) -> None:
        def found(offsets: dict[TopicPartition, Any]) -> None:
            if partition in offsets:
                answered(offsets[partition].offset)

        try:
            wanted = {partition: OffsetSpec.LATEST}
            asked = self._client._manager.call_soon(self._fetcher._fetch_offsets_by_times_async, wanted, _REQUEST_MS)
        except Exception as error:  # noqa: BLE001 - a client that is closing cannot be asked
            _log.debug("%s: topic %r: mark not asked for: %s", self.where, partition.topic, error)
            return
        asked.add_callback(found)

    def abandon(self) -> None:
        """Nothing: its threads are the parent's, and its destructor does nothing."""


def open_reader(arguments: Mapping[str, Any], where: str, notes: Notes) -> Reader:
    """A ``Reader`` with kafka-python's options.

    Raises:
        ComuxError: why there is none.
    """
    reader = build(Reader, arguments, where, notes)
    reader.where = where
    if "retry_backoff_ms" in arguments:  # kafka-python does not hand it down: each new topic took a client 0.1 s
        cluster_of(reader).config["retry_backoff_ms"] = arguments["retry_backoff_ms"]
    reader.noted = quicken(reader)
    return reader
