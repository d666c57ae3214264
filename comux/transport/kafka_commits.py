"""Commits of a group's positions, for the polling thread and for a membership."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.structs import OffsetAndMetadata

from .kafka_lane import Lane

#: A commit was refused because the partitions went to another member.
LOST: Final = (kafka_errors.CommitFailedError, kafka_errors.IllegalGenerationError, kafka_errors.UnknownMemberIdError)


def wanted_of(lanes: Iterable[Lane]) -> dict[TopicPartition, int]:
    """What the lanes want committed; they want it no longer."""
    out: dict[TopicPartition, int] = {}
    for lane in lanes:
        with lane.condition:
            wanted, lane.commit_wanted = lane.commit_wanted, None
        if wanted is not None and lane.owned:
            out[lane.partition] = wanted
    return out


def commit_now(consumer: KafkaConsumer, offsets: dict[TopicPartition, int], timeout: float) -> None:
    """``KafkaConsumer.commit`` for any thread: on the client's I/O thread, and nothing that is ``poll``'s own."""
    manager, coordinator = consumer._client._manager, consumer._coordinator
    manager.run(coordinator._commit_offsets_sync_async, as_offsets(offsets), timeout * 1000)


def as_offsets(offsets: dict[TopicPartition, int]) -> dict[TopicPartition, OffsetAndMetadata]:
    return {partition: OffsetAndMetadata(offset, "", -1) for partition, offset in offsets.items()}
