"""What is sent, and the books of what arrives: every byte is read, and each record is right, lost, double or torn.

Records of one size come in a fixed number of variants, sent in turn: record *i* is variant ``i % len(variants)``, so a
checksum tells which one arrived. The number is a prime, and small enough that the originals stay in the cache. One
variant more means that the stream has ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle, islice
from typing import Any

import numpy as np
from common import SMALL, checksum_of

Get = Callable[[], Any]


class Ended(Exception):
    """Raised by a receiver that is told of the end in another way than by the last variant.

    Attributes:
        waited: Seconds it waited for nothing before it knew.
    """

    def __init__(self, waited: float = 0.0) -> None:
        super().__init__(waited)
        self.waited = waited


def variants(size: int) -> int:
    """How many different payloads of this size there are."""
    return 251 if size <= 4096 else 31 if size <= SMALL else 7


def payloads(size: int) -> list[bytes]:
    """All of them, and the one that means the end."""
    rng = np.random.default_rng(7)
    return [rng.integers(0, 256, size, dtype=np.uint8).tobytes() for _ in range(variants(size) + 1)]


@dataclass
class Tally:
    """What one consumer saw.

    Attributes:
        first, last: Monotonic seconds of its first and last record.
        received: Records, the torn ones included.
        lost, duplicated: Against the order they were sent in; for consumers that share, known only of all together.
        torn: Records that are none that was ever sent.
        counts: How many of each variant; for consumers that share.
    """

    first: float = 0.0
    last: float = 0.0
    received: int = 0
    lost: int = 0
    duplicated: int = 0
    torn: int = 0
    counts: list[int] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Check:
    """Checksums of what was sent."""

    def __init__(self, size: int) -> None:
        self.checksum = checksum_of(size)
        *sent, end = [self.checksum(payload) for payload in payloads(size)]
        self.expected: list[int] = sent
        self.end: int = end
        self.which = {value: i for i, value in enumerate(sent)}


def in_turn(things: Sequence[Any], n: int) -> Iterator[Any]:
    """``n`` of them, again and again from the start: what a loop does besides sending counts against everybody."""
    return islice(cycle(things), n)


def receive_in_order(get: Get, n: int, size: int, ready: Callable[[], Any]) -> Tally:
    """``n`` records as one producer sent them, then the end."""
    check, tally = Check(size), Tally()
    checksum, wanted = check.checksum, in_turn(check.expected, n)
    ready()
    value = checksum(get())
    tally.first = time.monotonic()
    if value == next(wanted):
        for want in wanted:
            value = checksum(get())
            if value != want:
                break
        else:
            tally.last = time.monotonic()
            tally.received = n
            try:
                get()  # the end, or whoever sent it would wait for us
            except Ended:
                pass
            return tally
    _disorder(get, n, check, n - 1 - sum(1 for _ in wanted), value, tally)
    return tally


def _disorder(get: Get, n: int, check: Check, i: int, value: int, tally: Tally) -> None:
    """Goes on from the first record that was not the next one, and says what each is."""
    position, count, tally.received = i, len(check.expected), i
    while value != check.end:
        tally.received += 1
        which = check.which.get(value)
        if which is None:
            tally.torn += 1
            position += 1
        else:
            gap = (which - position) % count
            if gap <= count // 2:
                tally.lost += gap
            else:  # it went back
                tally.duplicated += count - gap
                gap -= count
            position += gap + 1
        tally.last = time.monotonic()
        try:
            value = check.checksum(get())
        except Ended:
            break
    tally.lost += max(0, n - position)


def receive_shared(get: Get, size: int, ready: Callable[[], Any]) -> Tally:
    """Whatever this one of several consumers gets, until the end."""
    check, tally = Check(size), Tally()
    checksum, end = check.checksum, check.end
    counts, waited = dict.fromkeys(check.expected, 0), 0.0
    ready()
    try:
        while True:
            value = checksum(get())
            if value in counts:
                counts[value] += 1
            elif value == end:
                break
            else:
                tally.torn += 1
            if not tally.first:
                tally.first = time.monotonic()
    except Ended as ended:
        waited = ended.waited
    tally.last = time.monotonic() - waited
    tally.counts = list(counts.values())
    tally.received = sum(tally.counts) + tally.torn
    return tally


def settle_shared(tallies: Sequence[Tally], n: int, size: int) -> tuple[int, int]:
    """Records lost and records that came twice, of all consumers together."""
    count = variants(size)
    lost = duplicated = 0
    for which in range(count):
        missing = n // count + (which < n % count) - sum(tally.counts[which] for tally in tallies)
        lost += max(0, missing)
        duplicated += max(0, -missing)
    return max(0, lost - sum(tally.torn for tally in tallies)), duplicated
