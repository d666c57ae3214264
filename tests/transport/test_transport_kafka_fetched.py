"""Fetched bytes are taken apart as kafka-python takes them apart: the same records, the same refusals."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka import errors as kafka_errors
from kafka.consumer.fetcher import Fetcher
from kafka.protocol.consumer import IsolationLevel
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder

from comux.transport.kafka_fetched import Fetched, Unreadable

PARTITION = TopicPartition("camera", 3)
V1, V2 = 1, 2
GZIP = 1
Sent = tuple[int, bytes | None, bytes | None, list[tuple[str, bytes | None]]]

contents = st.none() | st.binary(max_size=300)
sent_records = st.tuples(
    st.integers(0, 2**44), contents, contents, st.lists(st.tuples(st.text(max_size=20), contents), max_size=3)
)


def batch_of(records: list[Sent], compression: int = 0, magic: int = V2) -> bytes:
    builder = MemoryRecordsBuilder(magic, compression, 1 << 30)
    for stamp, key, value, headers in records:
        assert builder.append(stamp, key, value, headers) is not None
    builder.close()
    return bytes(builder.buffer())


def at_offset(batch: bytes, offset: int) -> bytes:
    """The base offset is outside what the CRC covers: the broker sets it."""
    return offset.to_bytes(8, "big") + batch[8:]


def fetched(data: bytes, fetch_offset: int = 0, **options: Any) -> tuple[Fetched, dict[TopicPartition, Unreadable]]:
    """What one fetch brought, and where it notes what cannot be read."""
    unreadable: dict[TopicPartition, Unreadable] = {}
    options = {"isolation_level": IsolationLevel.READ_UNCOMMITTED, **options}
    return Fetched(unreadable, fetch_offset, PARTITION, MemoryRecords(data), **options), unreadable


def unpacked(kind: Any, data: bytes, fetch_offset: int = 0, **options: Any) -> tuple[list[Any], int]:
    """Records, and the offset to fetch next; raises what made it give up."""
    options = {"isolation_level": IsolationLevel.READ_UNCOMMITTED, **options}
    if kind is Fetched:
        part, unreadable = fetched(data, fetch_offset, **options)
        records = part.take()
        for what in unreadable.values():
            raise what.error
    else:
        part = kind(fetch_offset, PARTITION, MemoryRecords(data), **options)
        records = part.take()
    return records, part.next_fetch_offset


def both(data: bytes, fetch_offset: int = 0) -> list[Any]:
    ours, theirs = unpacked(Fetched, data, fetch_offset), unpacked(Fetcher.PartitionRecords, data, fetch_offset)
    assert ours == theirs
    assert [type(record) for record in ours[0]] == [type(record) for record in theirs[0]]
    return ours[0]


@given(st.lists(st.lists(sent_records, min_size=1, max_size=5), min_size=1, max_size=3), st.sampled_from([0, GZIP]))
def test_the_same_records_as_kafka_python(batches: list[list[Sent]], compression: int) -> None:
    data, offset = b"", 2**40
    for batch in batches:
        data += at_offset(batch_of(batch, compression), offset)
        offset += len(batch)
    records = both(data, fetch_offset=2**40)
    assert [(r.timestamp, r.key, r.value, r.headers) for r in records] == [r for batch in batches for r in batch]
    assert [r.offset for r in records] == list(range(2**40, offset))


def test_large_values_and_many_records() -> None:
    big: Sent = (5, b"k", bytes(range(256)) * 8192, [("h" * 200, b"v" * 20_000)])
    small: list[Sent] = [(i, None, b"%d" % i, []) for i in range(1000)]
    assert len(both(at_offset(batch_of([big, *small]), 7), fetch_offset=7)) == 1001


def test_what_lies_before_the_fetched_offset_is_left_out() -> None:
    data = batch_of([(i, None, b"x", []) for i in range(10)])
    assert [record.offset for record in both(data, fetch_offset=4)] == [4, 5, 6, 7, 8, 9]


def test_taking_a_few_at_a_time_goes_on_where_it_stopped() -> None:
    data = batch_of([(i, None, b"x", []) for i in range(5)])
    part, _ = fetched(data)
    assert [r.offset for r in part.take(2)] == [0, 1]
    assert part.next_fetch_offset == 2
    assert [r.offset for r in part.take(2)] == [2, 3]
    assert [r.offset for r in part.take(2)] == [4]
    assert part.next_fetch_offset == 5


def test_older_formats_are_read_too() -> None:
    old = batch_of([(11, b"k", b"v", []), (12, None, b"w", [])], magic=V1)
    packed = batch_of([(13, b"k", b"v", []), (14, None, b"w", [])], GZIP, magic=V1)
    assert [(r.key, r.value, r.timestamp) for r in both(old)] == [(b"k", b"v", 11), (None, b"w", 12)]
    both(packed)


def test_control_batches_hold_no_records() -> None:
    data = bytearray(batch_of([(0, b"\0\0\0\1", b"\0\0\0\0\0\0", [])]) + at_offset(batch_of([(1, None, b"x", [])]), 1))
    data[22] |= 0x20  # attributes, low byte: control
    options = {"check_crcs": False}
    assert unpacked(Fetched, bytes(data), **options) == unpacked(Fetcher.PartitionRecords, bytes(data), **options)
    assert [r.offset for r in unpacked(Fetched, bytes(data), **options)[0]] == [1]


@pytest.mark.parametrize("place", [70, 62])
def test_a_flipped_bit_is_refused(place: int) -> None:
    data = bytearray(batch_of([(0, None, b"x" * 50, [])]))
    data[place] ^= 4
    for kind in (Fetched, Fetcher.PartitionRecords):
        with pytest.raises(kafka_errors.CorruptRecordError):
            unpacked(kind, bytes(data))


def test_what_cannot_be_read_ends_the_fetch_and_is_noted() -> None:
    """What came before it is handed out, and the next fetch begins in front of it, never before what was asked for."""
    good = at_offset(batch_of([(n, None, b"x" * 50, []) for n in range(3)]), 10)
    bad = bytearray(at_offset(batch_of([(n, None, b"y" * 50, []) for n in range(4)]), 13))
    bad[90] ^= 4
    for committed in (False, True):
        level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
        part, unreadable = fetched(good + bytes(bad) + at_offset(good, 17), 11, isolation_level=level)
        assert [record.offset for record in part.take()] == [11, 12]
        assert not part and part.next_fetch_offset == 13
        found = unreadable.pop(PARTITION)
        assert (found.offset, found.end) == (13, None if committed else 17)
        assert isinstance(found.error, kafka_errors.CorruptRecordError)
        part, unreadable = fetched(bytes(bad), 15, isolation_level=level)
        assert part.take() == [] and not part
        assert part.next_fetch_offset == unreadable[PARTITION].offset == 15


@pytest.mark.parametrize("place", [61, *range(63, 75)])  # 62: attributes, a byte, which kafka-python reads as a varint
def test_nonsense_without_a_crc_is_refused_or_read_as_kafka_python_reads_it(place: int) -> None:
    data = bytearray(batch_of([(0, b"k", b"x" * 5, [("h", b"v")])]))
    for value in range(256):
        data[place] = value
        outcomes = []
        for kind in (Fetched, Fetcher.PartitionRecords):
            try:
                outcomes.append(unpacked(kind, bytes(data), check_crcs=False))
            except kafka_errors.CorruptRecordError:
                outcomes.append(None)
        assert outcomes[0] is None or outcomes[0] == outcomes[1], f"byte {place} = {value}"


def test_readers_of_committed_records_only_are_kafka_pythons() -> None:
    data = batch_of([(0, None, b"x", [])])
    committed = {"isolation_level": IsolationLevel.READ_COMMITTED}
    assert unpacked(Fetched, data, **committed) == unpacked(Fetcher.PartitionRecords, data, **committed)
