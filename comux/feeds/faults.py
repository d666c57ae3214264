"""Faults on request: what goes wrong between a camera and a topic, seeded and counted.

A list of faults is text, as it stands in an address: ``faults=stall@5s+3s,corrupt@p0.01,missing@100+2``. One fault is
``KIND@EVERY`` or ``KIND@EVERY+FOR``:

========== ========================================================= =============== ==========
kind       what happens                                              EVERY           FOR
========== ========================================================= =============== ==========
stall      nothing is published for a while, then it goes on         Ns              Ns
gap        pictures are not captured: frame numbers and times skip   N or Ns or pP   N pictures
missing    a packet is lost after encoding, its sequence number too  N or Ns or pP   N packets
duplicate  a packet is published twice                               N or Ns or pP
swap       a packet and the one after it change places               N or Ns or pP
corrupt    bytes are flipped after the checksum was taken            N or Ns or pP   N bytes
cut        the end is missing; the checksum is of the whole          N or Ns or pP
nokey      the encoder makes no keyframe for a while                 Ns              Ns
========== ========================================================= =============== ==========

``N``: every N packets (``gap``: pictures); ``Ns``: every N seconds of the stream's own time; ``pP``: each packet with
probability P. ``gap`` and ``nokey`` concern the encoder and exist for synthetic cameras only.

``inject`` is a pure iterator over packets: the same packets, faults and seed give the same result.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from comux.errors import ConfigError

KINDS: Final = ("stall", "gap", "missing", "duplicate", "swap", "corrupt", "cut", "nokey")
ENCODER_KINDS: Final = ("gap", "nokey")
_TIMED: Final = ("stall", "nokey")
_DEFAULT_FOR: Final = {"gap": 1, "missing": 1, "corrupt": 8}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault; exactly one of ``every``, ``every_s`` and ``probability`` is set.

    Attributes:
        kind: One of ``KINDS``.
        every: In packets or pictures.
        every_s: In seconds of the stream.
        probability: Per packet or picture.
        amount: Pictures, packets or bytes concerned.
        for_s: Seconds, of ``stall`` and ``nokey``.
    """

    kind: str
    every: int | None = None
    every_s: float | None = None
    probability: float | None = None
    amount: int = 1
    for_s: float = 0.0


@dataclass(frozen=True, slots=True)
class FeedPacket:
    """A packet on its way to the topic.

    Attributes:
        data: What will be the record's value.
        seq: Sequence number, rising by one from 0.
        crc: CRC-32C of what the encoder made.
        frame: Number of the picture; -1 where the feed does not know.
        release_s: Seconds since the start at which the packet leaves the encoder.
        capture_s: Seconds since the start at which its picture was taken.
        keyframe: Whether a decoder can start here.
        faults: What was done to it.
    """

    data: bytes
    seq: int
    crc: int
    frame: int
    release_s: float
    capture_s: float
    keyframe: bool
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class InjectedFault:
    """A fault that happened: to which packet, and which picture (-1: unknown)."""

    seq: int
    frame: int
    kind: str


def parse_faults(text: str) -> tuple[Fault, ...]:
    """Read a list of faults; see the module's table.

    Raises:
        ConfigError: names the part that is wrong and what is possible.
    """
    return tuple(_parse_fault(part) for part in text.split(",") if part)


def _parse_fault(part: str) -> Fault:
    kind, at, timing = part.partition("@")
    if kind not in KINDS:
        raise ConfigError(f"fault {part!r}: kind {kind!r} is none of {', '.join(KINDS)}")
    if not at:
        raise ConfigError(f"fault {part!r}: says not when; write {kind}@5s{'+3s' if kind in _TIMED else ''}")
    every, plus, duration = timing.partition("+")
    try:
        if kind in _TIMED:
            return _timed(kind, every, duration)
        amount = int(duration) if plus else _DEFAULT_FOR.get(kind, 1)
        if plus and kind not in _DEFAULT_FOR:
            raise ValueError("takes nothing after +")
        if amount < 1:
            raise ValueError(f"{amount} after + is less than 1")
        if every.startswith("p"):
            probability = float(every[1:])
            if not 0 < probability <= 1:
                raise ValueError(f"probability {probability} is not in (0, 1]")
            return Fault(kind, probability=probability, amount=amount)
        if every.endswith("s"):
            return Fault(kind, every_s=_seconds(every), amount=amount)
        count = int(every)
        if count < 2:
            raise ValueError("every packet at fault leaves no stream; at least 2")
        return Fault(kind, every=count, amount=amount)
    except ValueError as error:
        raise ConfigError(f"fault {part!r}: {error}; write KIND@EVERY[+FOR], e.g. stall@5s+3s, corrupt@p0.01") from None


def _timed(kind: str, every: str, duration: str) -> Fault:
    if not every.endswith("s") or not duration.endswith("s"):
        raise ValueError(f"needs seconds, e.g. {kind}@5s+3s")
    return Fault(kind, every_s=_seconds(every), for_s=_seconds(duration))


def _seconds(text: str) -> float:
    value = float(text[:-1])
    if not 0 < value < 1e6:
        raise ValueError(f"{value} seconds are not in (0, 1e6)")
    return value


class Trigger:
    """Says for a stream of events when one fault is due. Deterministic by seed; not thread-safe."""

    def __init__(self, fault: Fault, seed: int) -> None:
        self.fault = fault
        self._random = random.Random(f"{seed}/{fault.kind}")
        self._count = 0
        self._next_s = fault.every_s

    def due(self, stream_s: float) -> bool:
        """Whether the fault happens to the event at ``stream_s`` seconds; call once per event, in order."""
        if self.fault.probability is not None:
            return self._random.random() < self.fault.probability
        if self.fault.every is not None:
            self._count += 1
            return self._count % self.fault.every == 0
        if self._next_s is None or stream_s < self._next_s:
            return False
        while self._next_s <= stream_s:
            self._next_s += self.fault.every_s or 1.0
        return True


def inject(packets: Iterable[FeedPacket], faults: Sequence[Fault], seed: int = 0) -> Iterator[FeedPacket]:
    """Let faults happen to packets.

    Args:
        packets: In publishing order, undamaged.
        faults: Those of the encoder (``ENCODER_KINDS``) are ignored here.
        seed: Of positions, probabilities and flipped bits.

    Yields:
        The packets to publish; ``faults`` says what happened to each. A packet that is lost is yielded with the fault
        ``missing`` so that it can be counted: it is not to be published. The first packet is left alone, so that a
        stream begins with a keyframe.
    """
    triggers = [Trigger(fault, seed) for fault in faults if fault.kind not in ENCODER_KINDS]
    chance = random.Random(f"{seed}/bytes")
    losing = 0
    stalls: list[tuple[float, float]] = []  # newest capture time before it, length
    newest_s = float("-inf")
    swapped: FeedPacket | None = None
    for number, original in enumerate(packets):
        packet = original
        kinds: list[Fault] = []
        if number:
            kinds = [t.fault for t in triggers if t.due(original.release_s)]
        stalls += [(newest_s, f.for_s) for f in kinds if f.kind == "stall"]
        newest_s = max(newest_s, original.capture_s)
        if stalls:
            # A B-picture published after the stall may have been taken before it, and keeps its time then.
            late_s = sum(for_s for before_s, for_s in stalls if original.capture_s > before_s)
            release_s = original.release_s + sum(for_s for _, for_s in stalls)
            packet = replace(packet, release_s=release_s, capture_s=original.capture_s + late_s)
        losing = max([losing, *(f.amount for f in kinds if f.kind == "missing")])
        packet, twice, swap = _apply(packet, kinds, chance)
        if losing:
            losing -= 1
            stalled = tuple(kind for kind in packet.faults if kind == "stall")
            yield replace(packet, data=original.data, faults=(*stalled, "missing"))
            continue
        if swap and swapped is None:
            swapped = replace(packet, faults=(*packet.faults, "swap"))
            continue
        yield packet
        if twice:
            yield replace(packet, faults=("duplicate",))
        if swapped is not None:
            yield swapped
            swapped = None
    if swapped is not None:
        yield replace(swapped, faults=tuple(kind for kind in swapped.faults if kind != "swap"))


def _apply(packet: FeedPacket, kinds: Sequence[Fault], chance: random.Random) -> tuple[FeedPacket, bool, bool]:
    """What the faults make of one packet: the packet, whether it is published twice, whether it swaps places."""
    data = packet.data
    done: list[str] = []
    names = {fault.kind for fault in kinds}
    for fault in kinds:
        if fault.kind == "corrupt" and data:
            flipped = bytearray(data)
            for position in chance.sample(range(len(data)), min(fault.amount, len(data))):
                flipped[position] ^= chance.randrange(1, 256)
            data = bytes(flipped)
        elif fault.kind == "cut" and len(data) > 1:
            data = data[: max(1, int(len(data) * chance.uniform(0.1, 0.9)))]
        elif fault.kind != "stall":
            continue
        done.append(fault.kind)
    swap = "swap" in names
    return replace(packet, data=data, faults=tuple(done)), "duplicate" in names and not swap, swap
