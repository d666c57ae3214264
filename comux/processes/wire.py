"""What the two sides say to each other: one JSON object per message of a ``SOCK_SEQPACKET`` socket, nothing pickled.

A request of the program is answered by exactly one message of the process, and there is one request under way at most.
Bytes of packets do not travel in messages: they lie in a segment that both have mapped.
"""

from __future__ import annotations

import base64
import json
import socket
import struct
from typing import Any, Final

import numpy as np

from comux.decoders.arrays import array_value, dtype_from_text, dtype_to_text
from comux.decoders.interface import DecoderOptions
from comux.records import Headers, Record

MESSAGE_BYTES: Final = 1 << 17  #: of a message at most; the kernel's default buffer of a socket has 208 kB
DETAIL_CHARACTERS: Final = 300
FDS: Final = 8  #: descriptors that travel with one message at most
_ABSENT: Final = 0xFFFFFFFF
_LENGTH: Final = struct.Struct("<I")


def plain_options(options: DecoderOptions) -> dict[str, Any]:
    """JSON-ready; see ``options_of``."""
    plain = {name: getattr(options, name) for name in DecoderOptions.__dataclass_fields__}
    if options.extradata is not None:
        plain["extradata"] = base64.b64encode(options.extradata).decode()
    if options.dtype is not None:
        plain["dtype"] = dtype_to_text(np.dtype(options.dtype))
    return plain


def options_of(plain: dict[str, Any]) -> DecoderOptions:
    """What ``plain_options`` was made of."""
    values = dict(plain)
    if values["extradata"] is not None:
        values["extradata"] = base64.b64decode(values["extradata"])
    if values["dtype"] is not None:
        values["dtype"] = dtype_from_text(values["dtype"])
    if values["shape"] is not None:
        values["shape"] = tuple(values["shape"])
    return DecoderOptions(**values)


# -- packets -------------------------------------------------------------------------------------------------------


def packed(record: Record) -> tuple[dict[str, Any], list[Any]]:
    """A record as facts for a message, and the buffers that lie in the segment, in this order."""
    value, kind = record.value, "bytes"
    if value is None:
        kind = "none"
    elif isinstance(value, np.ndarray):
        kind = dtype_to_text(value.dtype) if not value.dtype.hasobject else "other"
    elif isinstance(value, (memoryview, bytearray)):
        value = bytes(value)  # a view is checked after it was copied
        kind = "bytes" if record.valid() else "lapped"
    elif not isinstance(value, bytes):
        kind = "other"
    facts: dict[str, Any] = {
        "at": [record.offset, record.epoch, record.timestamp_ns, record.append_ns],
        "flags": record.flags,
        "kind": kind,
    }
    if record.skipped:
        facts["skipped"] = record.skipped
    named = _packed_texts([(record.topic, record.key), *record.headers])
    buffers: list[Any] = [named]
    if isinstance(value, np.ndarray):
        facts["shape"] = list(value.shape)
        if kind != "other":
            buffers.append(array_value(value).data.cast("B") if value.size else b"")
    elif kind == "bytes":
        buffers.append(value)
    facts["bytes"] = [len(buffer) for buffer in buffers]
    return facts, buffers


def _packed_texts(pairs: list[tuple[str, bytes | None]]) -> bytes:
    parts: list[bytes] = []
    for name, value in pairs:
        text = name.encode()
        parts += [_LENGTH.pack(len(text)), text]
        parts += [_LENGTH.pack(_ABSENT)] if value is None else [_LENGTH.pack(len(value)), value]
    return b"".join(parts)


def _texts(data: memoryview) -> list[tuple[str, bytes | None]]:
    pairs: list[tuple[str, bytes | None]] = []
    at = 0
    while at < len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        name = bytes(data[at + 4 : at + 4 + length]).decode()
        at += 4 + length
        (length,) = _LENGTH.unpack_from(data, at)
        at += 4
        if length == _ABSENT:
            pairs.append((name, None))
            continue
        pairs.append((name, bytes(data[at : at + length])))
        at += length
    return pairs


class Packet(Record):
    """A record as the process has it; ``token``: what the program calls it."""

    __slots__ = ("__weakref__", "token")
    token: int


def packet_of(facts: dict[str, Any], memory: memoryview, token: int) -> Packet:
    """The record that ``packed`` was given. Its value is a copy."""
    offset, epoch, timestamp_ns, append_ns = facts["at"]
    cut, *sizes = facts["bytes"]
    (topic, key), *headers = _texts(memory[:cut])
    kind = facts["kind"]
    value: Any = None
    if kind == "bytes":
        value = bytes(memory[cut : cut + sizes[0]])
    elif kind == "lapped":
        value = memoryview(b"")
    elif kind == "other":
        value = object()
    elif kind != "none":
        raw = bytes(memory[cut : cut + sizes[0]])
        value = np.frombuffer(raw, dtype_from_text(kind)).reshape(facts["shape"])
    packet = Packet(
        topic=topic,
        offset=offset,
        timestamp_ns=timestamp_ns,
        value=value,
        key=key,
        headers=_as_headers(headers),
        epoch=epoch,
        flags=facts["flags"],
        skipped=facts.get("skipped", 0),
        append_ns=append_ns,
    )
    if kind == "lapped":
        packet._valid = lambda: False
    packet.token = token
    return packet


def _as_headers(pairs: list[tuple[str, bytes | None]]) -> Headers:
    return tuple(pairs)


# -- messages ------------------------------------------------------------------------------------------------------


def send(channel: socket.socket, message: dict[str, Any], fds: list[int] | None = None) -> None:
    """Send a message, with descriptors of which the caller keeps its own.

    Raises:
        OSError: nobody is at the other end.
    """
    data = json.dumps(message, separators=(",", ":")).encode()
    if fds:
        socket.send_fds(channel, [data], fds, socket.MSG_NOSIGNAL)
    else:
        channel.send(data, socket.MSG_NOSIGNAL)


def receive(channel: socket.socket, buffer: bytearray) -> tuple[Any, list[int]]:
    """The next message and the descriptors that came with it, which are the caller's; ``None``: nobody is there any
    more. Waits.

    Raises:
        OSError: nobody is there any more, or nothing came in the channel's time.
        ValueError: that was no message.
    """
    size, ancillary, _, _ = channel.recvmsg_into([buffer], socket.CMSG_SPACE(FDS * 4), socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds += memoryview(data)[: len(data) // 4 * 4].cast("i").tolist()
    if not size:
        return None, fds
    return json.loads(bytes(memoryview(buffer)[:size])), fds
