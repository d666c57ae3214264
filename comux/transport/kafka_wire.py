"""Records as they stand in a Kafka topic, and back.

Value, key, headers and timestamp are Kafka's own, so that any client reads them. What Kafka has no place for travels in
headers of our own, put last, which ``decode`` takes off again:

``comux-flags``   decimal; ``Record.flags`` where they are not 0 (bit 0: keyframe)
``comux-epoch``   decimal; ``Record.epoch`` where it is not 0
``comux-null``    what is ``None`` where kafka-python's producer takes bytes only: ``v`` the value (of a record without
                  key), a number the header at that position; empty bytes stand in its place
``comux-time``    decimal; the timestamp in milliseconds, where it is 0, which librdkafka takes for none
``comux-end``     decimal; this record is no record: the epoch of that number ended here

Records of other producers have none of these and are of epoch 0, or of the epoch after the last end that was seen.
Timestamps are milliseconds (Kafka's; CreateTime topics, else they are the broker's).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from comux.records import Header, Headers, Record

FLAGS: Final = "comux-flags"
EPOCH: Final = "comux-epoch"
NULL: Final = "comux-null"
TIME: Final = "comux-time"
END: Final = "comux-end"
_OURS: Final = frozenset({FLAGS, EPOCH, NULL, TIME, END})
MS: Final = 1_000_000
_RECORD_OVERHEAD: Final = 96  # of a batch of one record and its lengths (KIP-98), generously
_HEADER_OVERHEAD: Final = 6

KafkaHeaders = list[tuple[str, bytes]]


class End:
    """The end of an epoch, in the place of a record."""

    __slots__ = ("epoch", "offset")

    def __init__(self, epoch: int, offset: int) -> None:
        self.epoch = epoch
        self.offset = offset


def encode(
    value: Any, key: bytes | None, headers: Headers, flags: int, epoch: int
) -> tuple[Any, list[tuple[str, bytes]]]:
    """Value and headers as kafka-python's producer takes them; the value is not copied."""
    if not headers and not flags and not epoch and value is not None:
        return value, []
    out: KafkaHeaders = []
    nulls: list[str] = []
    if value is None and key is None:
        value = b""
        nulls.append("v")
    for position, (name, content) in enumerate(headers):
        if content is None:
            nulls.append(str(position))
        out.append((name, b"" if content is None else content))
    if flags:
        out.append((FLAGS, b"%d" % flags))
    if epoch:
        out.append((EPOCH, b"%d" % epoch))
    if nulls:
        out.append((NULL, ",".join(nulls).encode()))
    return value, out


def size_of(value: Any, key: bytes | None, headers: Sequence[tuple[str, bytes]]) -> int:
    """Bytes of the record on the wire, at most: what Kafka's limits are compared with. ``value`` has bytes as items."""
    size = _RECORD_OVERHEAD + (0 if value is None else len(value)) + (0 if key is None else len(key))
    for name, content in headers:
        size += _HEADER_OVERHEAD + len(name.encode()) + len(content)
    return size


def decode(message: Any, topic: str, epoch: int, dtype: np.dtype[Any] | None, shape: tuple[int, ...]) -> Record | End:
    """A record of kafka-python as ours.

    Args:
        message: ``ConsumerRecord``.
        topic: Our name of the topic.
        epoch: Of records that do not say theirs.
        dtype, shape: Of a typed topic, whose values become arrays of the caller's own.
    """
    _, partition, _, offset, stamp, kind, key, value, sent, _, _, _, _ = message
    flags = 0
    headers: Headers = ()
    if sent:
        kept: list[Header] = []
        nulls: bytes | None = None
        for name, content in sent:
            if name not in _OURS:
                kept.append((name, content))
            elif name == FLAGS:
                flags = _number(content)
            elif name == EPOCH:
                epoch = _number(content)
            elif name == NULL:
                nulls = content
            elif name == TIME:
                stamp = _number(content)
            else:
                return End(_number(content), offset)
        if nulls is not None:
            value = _put_nulls(nulls, kept, value)
        headers = tuple(kept)
    if dtype is not None and value is not None and len(value) == dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
        value = np.frombuffer(value, dtype).reshape(shape).copy()
    stamp *= MS
    return Record(
        topic, offset, stamp, value, key, headers, partition, epoch, flags, 0, 1, False, stamp if kind == 1 else 0
    )


def _put_nulls(nulls: bytes, headers: list[Header], value: Any) -> Any:
    for word in nulls.decode("ascii", "replace").split(","):
        if word == "v":
            value = None
        elif word.isdigit() and int(word) < len(headers):
            headers[int(word)] = (headers[int(word)][0], None)
    return value


def _number(content: bytes | None) -> int:
    """A number of a header; 0 where somebody wrote something else there."""
    return int(content) if content is not None and content.isdigit() and len(content) < 20 else 0


def wire_bytes(message: Any) -> int:
    """Bytes that a fetched record counts with: key, value and headers."""
    key, value, headers = message[10:13]  # -1 where there is none
    size: int = (key if key > 0 else 0) + (value if value > 0 else 0) + (headers if headers > 0 else 0)
    return size
