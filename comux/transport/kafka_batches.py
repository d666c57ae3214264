"""The way of a record into the producer's batch.

**Problem.** ``KafkaProducer.send`` checks again what comux has checked, wakes its I/O thread for every record while
batches wait, and finds out by writing it that a record has no room in a batch, twice, before it begins another: a
record of 1 MB is written three times.

**What this does.** ``append`` compares sizes first, writes once, and wakes the I/O thread once a batch. A topic that
the client has no metadata of (any more) goes the long way, which waits for them.

**Coupling.** It does to kafka-python's ``RecordAccumulator`` what that one's own ``append`` does: the partition's lock,
its queue of batches, the set of incomplete ones, and the count of appends that a forced close waits for.
"""

from __future__ import annotations

from typing import Any

from kafka import KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.producer.producer_batch import ProducerBatch
from kafka.record.memory_records import MemoryRecordsBuilder


def append(
    client: KafkaProducer,
    partition: TopicPartition,
    value: Any,
    key: bytes | None,
    headers: list[tuple[str, bytes]],
    stamp: int,
    nbytes: int,
) -> Any:
    """Copy a record into a batch.

    Args:
        client: Of the connection.
        partition: Where to.
        value, key, headers: As ``KafkaProducer.send`` takes them; their types were checked.
        stamp: Milliseconds.
        nbytes: Of the record on the wire, at most.

    Returns:
        ``FutureRecordMetadata``.

    Raises:
        KafkaError: the client was closed, or learned nothing of the topic within ``max_block_ms``.
    """
    if client._closed or client._metadata.partitions_for_topic(partition.topic) is None:
        return client.send(partition.topic, value, key, headers, partition.partition, timestamp_ms=stamp)
    accumulator = client._accumulator
    accumulator._appends_in_progress.increment()
    try:
        with accumulator._tp_lock(partition):
            if accumulator._closed:
                raise kafka_errors.IllegalStateError("the producer is closed")
            waiting, size = accumulator._batches[partition], accumulator.config["batch_size"]
            if waiting and waiting[-1].records.size_in_bytes() + nbytes <= size:
                sent = waiting[-1].try_append(stamp, key, value, headers)
                if sent is not None:
                    return sent
            config = accumulator.config
            records = MemoryRecordsBuilder(config["message_version"], config["compression_attrs"], size)
            batch = ProducerBatch(partition, records)
            sent = batch.try_append(stamp, key, value, headers)
            waiting.append(batch)
            accumulator._incomplete.add(batch)
    finally:
        accumulator._appends_in_progress.decrement()
    client._sender.wakeup()
    return sent
