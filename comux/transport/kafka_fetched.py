"""Fetched bytes as records, in one pass over each batch.

**Problem.** kafka-python takes a record apart field by field, makes one object of it, another of that, and copies the
value twice: more time for a record of 1 kB than everything that comux does with it.

**What this does.** ``quicken`` puts ``Fetched`` in the place where a consumer makes its iterator over what a fetch
brought. It gives out the same ``ConsumerRecord`` of the same batches, checked and decompressed by kafka-python; only
the loop over the records of a batch is this module's. What is rare stays with kafka-python: consumers that read
committed transactions only, and options that want its metrics.

**What cannot be read** (a batch whose checksum is wrong, that is malformed, or compressed in a way that no package here
undoes) would, as an exception out of ``poll``, stop every topic of the consumer: kafka-python asks the iterator that
raised for more, for ever. So it ends what was fetched of its partition, and is noted in ``unreadable``; the position
stays in front of it, and the polling thread decides.

**Coupling.** The place is ``Fetcher.PartitionRecords``, and of a batch ``_buffer`` and ``_pos`` are read.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.consumer.fetcher import ConsumerRecord, Fetcher
from kafka.protocol.consumer import IsolationLevel
from kafka.record.util import decode_varint

_V2: Final = 2


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Records that could not be read.

    Attributes:
        offset: Of the first of them.
        end: Offset after their batch; ``None`` where the batch does not say.
        error: Why.
    """

    offset: int
    end: int | None
    error: Exception


def quicken(consumer: KafkaConsumer) -> dict[TopicPartition, Unreadable]:
    """Let a consumer that was just made take its records apart here; returns where it notes what cannot be read."""
    unreadable: dict[TopicPartition, Unreadable] = {}
    consumer._fetcher.PartitionRecords = functools.partial(Fetched, unreadable)
    return unreadable


class Fetched(Fetcher.PartitionRecords):  # type: ignore[misc]
    """What one fetch brought of one partition."""

    def __init__(self, unreadable: dict[TopicPartition, Unreadable], *args: Any, **kwargs: Any) -> None:
        self._unreadable = unreadable
        super().__init__(*args, **kwargs)

    def _unpack_records(self, tp: TopicPartition, records: Any, *deserializers: Any) -> Iterator[ConsumerRecord]:
        plain = self.isolation_level == IsolationLevel.READ_UNCOMMITTED and self.metric_aggregator is None
        unpack = super()._unpack_records
        return self._unpack(tp, records) if plain else self._guarded(tp, unpack(tp, records, *deserializers))

    def _guarded(self, tp: TopicPartition, records: Iterator[ConsumerRecord]) -> Iterator[ConsumerRecord]:
        try:
            yield from records
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this partition's alone
            self._give_up(tp, None, error)

    def _unpack(self, tp: TopicPartition, records: Any) -> Iterator[ConsumerRecord]:
        batch, end = None, None
        try:
            while (following := records.next_batch()) is not None:
                batch = following
                end = batch.next_offset if batch.magic >= _V2 else None
                if self.check_crcs and not batch.validate_crc():
                    raise kafka_errors.CorruptRecordError(f"the checksum of the batch at {batch.base_offset} is wrong")
                if batch.magic < _V2:
                    messages = _older(tp, batch)
                elif batch.is_control_batch:
                    continue
                else:
                    self.leader_epoch = batch.leader_epoch
                    messages = _messages(tp, batch)
                self.bytes_read += batch.size_in_bytes
                for message in messages:
                    self.next_fetch_offset = message[3] + 1
                    yield message
                end = None
        except Exception as error:  # noqa: BLE001 - as above
            self._give_up(tp, end, error)
            return
        if batch is not None and batch.magic >= _V2:
            self.next_fetch_offset = batch.next_offset  # also past what compaction took from its end
        self.drain()

    def _give_up(self, tp: TopicPartition, end: int | None, error: Exception) -> None:
        self.next_fetch_offset = max(self.next_fetch_offset, self.fetch_offset)  # it may lie before what was asked for
        self._unreadable[tp] = Unreadable(self.next_fetch_offset, end, error)
        self.drain()


def _messages(tp: TopicPartition, batch: Any) -> Iterator[ConsumerRecord]:
    """Records of a batch: https://kafka.apache.org/documentation/#record.

    Numbers are zigzag varints: 7 bits a byte, lowest first, the top bit says that more follow, bit 0 is the sign. Those
    of one byte are read in place here; most are.
    """
    iter(batch)  # decompresses
    buffer, at = batch._buffer, batch._pos
    view = memoryview(buffer)
    topic, partition = tp
    epoch, base, kind = batch.leader_epoch, batch.base_offset, batch.timestamp_type
    appended, began = batch.max_timestamp, batch.first_timestamp
    new = tuple.__new__
    try:
        for _ in range(batch.records_count):
            length, at = decode_varint(buffer, at)
            end = at + length
            at += 1  # attributes, of which there are none
            number = buffer[at]
            if number & 0x81:
                number, at = decode_varint(buffer, at)
            else:
                number >>= 1
                at += 1
            stamp = appended if kind else began + number
            number = buffer[at]
            if number & 0x81:
                number, at = decode_varint(buffer, at)
            else:
                number >>= 1
                at += 1
            offset = base + number
            key = value = None
            key_size = value_size = header_size = -1
            if buffer[at] == 1:  # -1: none
                at += 1
            else:
                key_size, at = decode_varint(buffer, at)
                if key_size < 0:
                    raise ValueError(f"a key of {key_size} bytes")
                key = view[at : at + key_size].tobytes()
                at += key_size
            if buffer[at] == 1:
                at += 1
            else:
                value_size, at = decode_varint(buffer, at)
                if value_size < 0:
                    raise ValueError(f"a value of {value_size} bytes")
                value = view[at : at + value_size].tobytes()
                at += value_size
            headers: list[tuple[str, bytes | None]] = []
            if buffer[at]:
                headers, header_size, at = _headers(buffer, at)
            else:
                at += 1
            if at != end:
                raise ValueError(f"it has {length} bytes, its fields {at - end + length}")
            fields = (topic, partition, epoch, offset, stamp, kind, key, value, headers, None)
            yield new(ConsumerRecord, (*fields, key_size, value_size, header_size))
        if at != len(buffer):
            raise ValueError(f"{len(buffer) - at} bytes follow the last record")
    except (ValueError, IndexError) as error:
        raise kafka_errors.CorruptRecordError(f"the batch at {base} cannot be taken apart: {error}") from error


def _headers(buffer: bytearray, at: int) -> tuple[list[tuple[str, bytes | None]], int, int]:
    """Headers of a record, their bytes, and where they end."""
    headers: list[tuple[str, bytes | None]] = []
    size = 0
    count, at = decode_varint(buffer, at)
    if count < 0:
        raise ValueError(f"{count} headers")
    for _ in range(count):
        length, at = decode_varint(buffer, at)
        if length < 0:
            raise ValueError(f"a header's name of {length} bytes")
        name = buffer[at : at + length].decode()
        at += length
        size += length
        content, (length, at) = None, decode_varint(buffer, at)
        if length >= 0:
            content = bytes(buffer[at : at + length])
            at += length
            size += length
        headers.append((name, content))
    return headers, size, at


def _older(tp: TopicPartition, batch: Any) -> Iterator[ConsumerRecord]:
    """Records in a format from before Kafka 0.11; kafka-python reads them."""
    for record in batch:
        key, value = record.key, record.value
        sizes = [-1 if field is None else len(field) for field in (key, value)]
        stamp, kind = record.timestamp, record.timestamp_type
        yield ConsumerRecord(*tp, -1, record.offset, stamp, kind, key, value, [], record.checksum, *sizes, -1)
