"""Doubt about a stream, seen before a packet reaches the codec.

Problem. After a lost, cut, duplicated or swapped packet a codec delivers wrong pictures of the rest of the GOP without
a flag and without an exception. So whatever can be checked is checked on every record, in this order:

1. **Epoch**: another life of the stream. Not damage; decoding restarts at a keyframe.
2. **Checksum** (``comux-crc32c``): the bytes are not those that the feed published.
3. **Sequence** (``comux-seq``, rises by one per packet): contiguous numbers prove that nothing was lost, wherever the
   packet was on its way, so they overrule offsets. A number seen before with the same content is a *duplicate*: only it
   is dropped. A lower number never seen is a *late* packet (a swap; the gap it left was damage already): only it is
   dropped. Any other lower number is a feed that started again: damage, and the count goes on from there. So is
   every number under another ``comux-feed``: a file or a seeded camera that is published again has the same packets
   under the same numbers, which by themselves look like packets that came twice. A packet without a number among
   numbered ones is somebody else's: damage.
4. **Offsets**, only where the record carries no sequence number: a jump within an epoch, or ``record.skipped``. On
   Kafka holes are legal; a hole is doubt all the same (it costs pictures, never correctness).
5. **Repeats**, on streams without numbers of codecs whose packets carry numbers of their own: two equal packets in
   a row are one packet sent twice.

After any doubt a keyframe without the parameter sets that it usually comes with is no place to go on at
(``ParameterWatch``).

What is not seen, on streams without our headers: a bit that flips inside a packet that decodes without complaint; an
HEVC or VP9 packet cut short (measured: their decoders flag 1 in 20; H.264's flags 19 in 20); a lost VP9 or AV1 packet
where offsets stay contiguous; a lost run of H.264 packets just so long that ``frame_num`` came round again.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum
from typing import Final

import crc32c

from comux.records import HEADER_CRC32C, HEADER_FEED, HEADER_SEQUENCE, Record

_REMEMBERED: Final = 256
_LATE: Final = 32  #: packets; further back, an unseen number is a feed that started again
_MAX_SEQUENCE_DIGITS: Final = 20


class Doubt(Enum):
    """What to do about a record."""

    NONE = "none"
    RESTART = "restart"  #: a new epoch: finish the old one, start at a keyframe; not damage
    BEFORE = "before"  #: something is missing before this record; the record itself is as published
    THIS = "this"  #: this record is damaged: never feed it, and what follows is in doubt
    DROP = "drop"  #: drop this record, nothing else is in doubt


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement of one record.

    Attributes:
        doubt: What to do.
        reason: Key for the counters: ``sequence``, ``crc``, ``offset_gap``, ``duplicate``, ``late``, ``epoch``.
        detail: For people.
        trusted: Sequence and checksum prove that the packet is as published and nothing is missing before it.
    """

    doubt: Doubt
    reason: str = ""
    detail: str = ""
    trusted: bool = False


_FINE: Final = Verdict(Doubt.NONE)
_TRUSTED: Final = Verdict(Doubt.NONE, trusted=True)


def sequence_number(record: Record) -> int | None:
    """The feed's sequence number; ``None`` where there is none, or what is there is not a decimal number."""
    raw = record.header(HEADER_SEQUENCE)
    if raw is None or len(raw) > _MAX_SEQUENCE_DIGITS or not raw.isdigit():
        return None
    return int(raw)


def checksum_matches(record: Record, data: bytes) -> bool | None:
    """Whether the value has the CRC-32C its header states; ``None`` where it states none (or nothing readable)."""
    raw = record.header(HEADER_CRC32C)
    if raw is None:
        return None
    try:
        stated = int(raw, 16)
    except ValueError:
        return None
    return bool(crc32c.crc32c(data) == stated)


class Watch:
    """Judges the records of one stream, in the order they are fed.

    Args:
        repeats_are_duplicates: See rule 5.
    """

    def __init__(self, *, repeats_are_duplicates: bool) -> None:
        self._repeats = repeats_are_duplicates
        self._epoch: int | None = None
        self.forget()

    def forget(self) -> None:
        """After a jump or an end: the next record follows nothing, so no gap before it is damage."""
        self._offset: int | None = None
        self._sequence: int | None = None
        self._feed: bytes | None = None
        self._seen: OrderedDict[int, bytes | None] = OrderedDict()
        self._last_value: bytes | None = None

    def judge(self, record: Record, data: bytes) -> Verdict:
        """Judge the next record.

        Args:
            record: The record.
            data: Its value as bytes (``b""`` where it has none).
        """
        restarted = self._epoch is not None and record.epoch != self._epoch
        if restarted:
            self.forget()
        self._epoch = record.epoch
        last_offset, self._offset = self._offset, record.offset
        sequence = sequence_number(record)
        another = sequence is not None and self._is_of_another_feed(record)
        matches = checksum_matches(record, data)
        if matches is False:
            # Its number may be damaged as well, but the number is what says whether the next one follows.
            if sequence is not None and (self._sequence is None or sequence > self._sequence):
                self._sequence = sequence
            stated = (record.header(HEADER_CRC32C) or b"")[:16].decode("ascii", "replace")
            return Verdict(Doubt.THIS, "crc", f"CRC-32C of {len(data)} bytes is not {stated}, which the feed stated")
        if sequence is None and self._sequence is not None and data:
            self._sequence = None  # if that other producer stays, its packets are judged by their offsets
            return Verdict(Doubt.THIS, "sequence", "a packet without a number in a stream that is numbered")
        if sequence is not None:
            verdict = self._judge_sequence(record, sequence, data, matches is True)
        else:
            verdict = self._judge_offset(record, last_offset, data)
        if another:
            return Verdict(Doubt.BEFORE, "sequence", f"packet {sequence} of a feed that restarted", matches is True)
        if restarted and verdict.doubt is Doubt.NONE:
            return Verdict(Doubt.RESTART, "epoch", f"epoch {record.epoch} begins", verdict.trusted)
        return verdict

    def _is_of_another_feed(self, record: Record) -> bool:
        """Whether a numbered record follows one of another feed; the numbers seen so far are forgotten then."""
        feed, before = record.header(HEADER_FEED), self._feed
        self._feed = feed
        if self._sequence is None or feed == before:
            return False
        self._sequence = None
        self._seen.clear()
        return True

    def _judge_sequence(self, record: Record, sequence: int, data: bytes, matches: bool) -> Verdict:
        last = self._sequence
        content = record.header(HEADER_CRC32C)
        if last is not None and sequence <= last:
            if sequence in self._seen:
                if self._seen[sequence] == content and content is not None:
                    return Verdict(Doubt.DROP, "duplicate", f"packet {sequence} came twice")
            elif last - sequence <= _LATE and sequence > next(iter(self._seen), sequence):
                self._remember(sequence, content)
                return Verdict(Doubt.DROP, "late", f"packet {sequence} came after {last}")
            if content is None and sequence == last and data == self._last_value:
                return Verdict(Doubt.DROP, "duplicate", f"packet {sequence} came twice")
            self._seen.clear()
            self._take(sequence, content, data)
            return Verdict(Doubt.BEFORE, "sequence", f"packet {sequence} follows {last}: the feed restarted", matches)
        self._take(sequence, content, data)
        if last is not None and sequence != last + 1:
            return Verdict(
                Doubt.BEFORE, "sequence", f"{sequence - last - 1} packets missing before {sequence}", matches
            )
        return _TRUSTED if matches else _FINE

    def _take(self, sequence: int, content: bytes | None, data: bytes) -> None:
        self._sequence = sequence
        self._last_value = data if content is None else None
        self._remember(sequence, content)

    def _remember(self, sequence: int, content: bytes | None) -> None:
        self._seen[sequence] = content
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)

    def _judge_offset(self, record: Record, last: int | None, data: bytes) -> Verdict:
        previous, self._last_value = self._last_value, data
        if last is not None and (record.skipped > 0 or record.offset != last + 1):
            missing = record.skipped or record.offset - last - 1
            return Verdict(Doubt.BEFORE, "offset_gap", f"{missing} records missing before offset {record.offset}")
        if self._repeats and data and previous == data:
            return Verdict(Doubt.DROP, "duplicate", f"offset {record.offset} repeats the packet before it")
        return _FINE


class ParameterWatch:
    """Whether the parameter sets in force can be those that a keyframe was coded with.

    Parameter sets may come in a record of their own, and that record may be what is missing. A codec then decodes the
    keyframe with the sets before them: where only a quantiser changed, wrong pictures without a word. So after a gap a
    keyframe must come with the kinds of sets that every keyframe came with that followed no gap. A stream that states
    its sets once loses one keyframe more after its first gap, and is known from the keyframe after that.
    """

    def __init__(self) -> None:
        self._usual: frozenset[int] | None = None
        self._came: frozenset[int] = frozenset()
        self._gap = False

    def interrupted(self) -> None:
        """Something is missing before what comes next."""
        self._came = frozenset()
        self._gap = True

    def take(self, kinds: frozenset[int]) -> None:
        """Parameter sets of these kinds came, undamaged."""
        self._came |= kinds

    def keyframe(self) -> bool:
        """A keyframe came, its own sets were taken before: whether nothing that it needs can be missing."""
        came, gap = self._came, self._gap
        self._came, self._gap = frozenset(), False
        if self._usual is None:
            self._usual = came or None
            return True
        if gap:
            return came >= self._usual
        self._usual &= came
        return True
