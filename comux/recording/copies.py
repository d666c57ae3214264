"""What a copy says about its original, and finding the copies that a topic holds already.

**The header.** Every copy carries ``comux-bridge`` after all headers of the original: JSON ``[topic, epoch, offset,
engine]``. It is a header of its own, not ``comux-source``: that one names the packet a result belongs to, readers take
the first they find, and a result that is bridged (or a packet that becomes a result after it was bridged) must still
tell. A record that crossed several bridges has one ``comux-bridge`` per bridge, the last one is the newest.

**Proof.** After a crash the bridge is handed records again that it may have copied. ``look`` reads the newest records
of the destination backwards. A record counts as there only where a copy names the same engine, topic, epoch and offset
*and* has the same key, headers, value and timestamp (to the destination's resolution): a source that was deleted and
made again counts its offsets from 0 again, and its records must not be taken for the old ones.

**How far back.** A link copies in rising order of offsets, so what lies before a copy with an offset below ``low`` is
older than every copy of ``low`` and above: there the look may stop, and nothing was missed (``complete``). It is also
complete where the whole topic since its first offset was read. Where the destination has thrown away older records, or
the look would be longer than ``LOOK_RECORDS`` or ``LOOK_BYTES``, it is not: the bridge then marks instead of skipping.
"""

from __future__ import annotations

import hashlib
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from comux.errors import WaitTimeoutError
from comux.records import HEADER_BRIDGE, Header, Headers, Record
from comux.transport import Broker, parse_address

LOOK_RECORDS: Final = 16384
LOOK_BYTES: Final = 256 << 20
_FIRST_LOOK: Final = 64
_PLACES: Final = ("directory", "partition", "prefix")  # options of addresses: where on the engine the topics are
_POLL: Final = 256
_SLICE: Final = 0.05  # seconds between two looks whether what is left holds records at all
_PATIENCE: Final = 10.0  # seconds without a record that should be there


@dataclass(frozen=True, slots=True)
class Origin:
    """Which record a copy is of.

    Attributes:
        topic, epoch, offset: Of the original.
        engine: Where the original is, see ``engine_id``.
    """

    topic: str
    epoch: int
    offset: int
    engine: str


def engine_id(address: str) -> str:
    """12 hex digits that name the engine at ``address`` in headers and group names: a digest, so that it tells nothing.

    Of the brokers' names where the address has some, in any order; else of this host's name and the namespace. Of the
    options only those count that say which topics are meant, so that other credentials make no other engine of it.
    """
    parsed = parse_address(address)
    where = [f"{name}={parsed.query[name]}" for name in _PLACES if name in parsed.query]
    if parsed.hosts:
        what = [parsed.scheme, *sorted(parsed.hosts), *where]
    else:
        what = [parsed.scheme, socket.gethostname(), parsed.namespace, *where]
    return hashlib.sha256("\n".join(["comux-engine", *what]).encode()).hexdigest()[:12]


def header_for(record: Record, engine: str) -> Header:
    """The ``comux-bridge`` header of a copy of ``record``, which was read on ``engine``."""
    # Names of topics hold nothing that JSON would have to escape; json.dumps takes ten times as long.
    return HEADER_BRIDGE, f'["{record.topic}",{record.epoch},{record.offset},"{engine}"]'.encode()


def origin_of(record: Record) -> Origin | None:
    """Which record ``record`` is a copy of, by the last bridge it crossed; ``None``: it crossed none."""
    last = _last_bridge(record.headers)
    return None if last is None else _parse(record.headers[last][1])


def _last_bridge(headers: Headers) -> int | None:
    return next((n for n in range(len(headers) - 1, -1, -1) if headers[n][0] == HEADER_BRIDGE), None)


def _parse(value: bytes | None) -> Origin | None:
    """Anybody can write a header: what is no origin is ``None``."""
    try:
        found = json.loads((value or b"").decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, list) or [type(part) for part in found] != [str, int, int, str]:
        return None
    return Origin(*found)


def _size(value: Any) -> int:
    return 0 if value is None else value.nbytes if isinstance(value, np.ndarray) else len(value)


def fingerprint(record: Record, headers: Headers) -> bytes:
    """Digest of key, ``headers`` and value; ``None`` and empty differ, and no part can pass for another."""
    digest = hashlib.blake2b(digest_size=16)
    value = record.value
    if isinstance(value, np.ndarray):
        value = np.ascontiguousarray(value).tobytes()
    parts: list[Any] = [record.key, value]
    for name, content in headers:
        parts += [name.encode("utf-8", "surrogatepass"), content]
    for part in parts:
        digest.update(b"-" if part is None else b"%d:" % len(part))
        digest.update(b"" if part is None else part)
    return digest.digest()


@dataclass(slots=True)
class Copies:
    """What ``look`` found of one link in its destination.

    Attributes:
        complete: Every copy of ``low`` and above that was ever written is among those found.
        reach: Highest offset of the source that has a copy; -1: none was found.
        newest: Epochs of the newest copy: (the destination's, the source's); ``None``: none was found.
    """

    complete: bool = True
    reach: int = -1
    newest: tuple[int, int] | None = None
    _found: dict[int, tuple[int, int, bytes]] = field(default_factory=dict)
    _resolution_ns: int = 1

    def has(self, record: Record) -> bool:
        """Whether the destination is proven to hold a copy of ``record``."""
        epoch, stamp, content = self._found.get(record.offset, (-1, 0, b""))
        return (
            epoch == record.epoch
            and abs(stamp - record.timestamp_ns) < self._resolution_ns
            and content == fingerprint(record, record.headers)
        )


def look(broker: Broker, topic: str, source_engine: str, source_topic: str, low: int) -> Copies:
    """Find the copies of ``low`` and above of one source among the newest records of a destination.

    Blocks while it reads.

    Args:
        broker, topic: The destination, which exists.
        source_engine: See ``engine_id``.
        source_topic: Name of the source.
        low: Lowest offset of the source that may be handed out again.

    Raises:
        WaitTimeoutError: records that should be there could not be read for 10 s. ComuxError: what the engine says.
    """
    info = broker.topic(topic)
    copies = Copies(_resolution_ns=broker.capabilities.timestamp_resolution_ns)
    upper, span, room = info.high_water, _FIRST_LOOK, LOOK_BYTES
    while upper > info.log_start:
        lower = max(info.log_start, upper - span)
        decided = False
        part: dict[int, tuple[int, int, bytes]] = {}
        newest = None
        for record in _between(broker, topic, lower, upper):
            room -= _size(record.value)
            last = _last_bridge(record.headers)
            origin = None if last is None else _parse(record.headers[last][1])
            if origin is None or (origin.topic, origin.engine) != (source_topic, source_engine):
                continue
            newest = record.epoch, origin.epoch
            copies.reach = max(copies.reach, origin.offset)
            decided = decided or origin.offset < low
            if origin.offset >= low:
                part[origin.offset] = origin.epoch, record.timestamp_ns, fingerprint(record, record.headers[:last])
        copies._found = part | copies._found  # a newer copy under the same offset is the one that counts
        copies.newest = copies.newest or newest
        if decided:
            return copies
        upper, span = lower, span * 2
        if info.high_water - upper >= LOOK_RECORDS or room <= 0:
            copies.complete = False
            return copies
    copies.complete = info.log_start <= info.spec.first_offset
    return copies


def _between(broker: Broker, topic: str, lower: int, upper: int) -> Iterator[Record]:
    """Records of ``[lower, upper)`` that are still there. Offsets without a record are passed without waiting long."""
    with broker.consumer(topic, start=lower, on_end="wait", name="comux-bridge-look") as consumer:
        deadline = time.monotonic() + _PATIENCE
        while consumer.position() < upper:
            records = consumer.poll(_SLICE, min(_POLL, upper - lower))
            if records:
                deadline = time.monotonic() + _PATIENCE
            elif time.monotonic() > deadline:
                raise WaitTimeoutError(
                    f"topic {topic!r}: nothing from offset {consumer.position()} to {upper} could be read within"
                    f" {_PATIENCE:g} s"
                )
            for record in records:
                if record.offset >= upper:
                    return
                yield record
