"""The damage table: what can happen to a stream on its way, and that no picture it spoilt is passed off as good.

Each row of ``TABLE`` is a row of ``docs/explanation/damage.md``, and runs for H.264 and HEVC with B-pictures, without
and with frame threads, at every place that the row names: once as our feeds publish the stream, and once as others do,
without headers. Offsets are contiguous throughout: what was lost was lost before the topic. After each run:

* every picture delivered as fresh is, plane by plane, the one that the undamaged stream gives for that packet;
* what came before the damage came out of our streams, and from the next clean keyframe on everything comes out;
* every other record of our streams has one of the row's causes, and the books balance (``kit.run``).

Of damage that is out of reach in streams of others, only the first is not asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

CODECS = ("h264", "hevc")
GOP = 15
OUT_OF_REACH = "out of reach"


@dataclass(frozen=True)
class Sent:
    """One record of a stream: what was published, what arrived, and which picture of it is right (``None``: none)."""

    published: bytes
    arrived: bytes
    number: int
    key: bool
    pixels: bytes | None
    leading: bool = False  # shown before the keyframe that it follows: an open GOP's


Damage = Callable[["Streams", int, np.random.Generator], list[Sent]]


@dataclass(frozen=True)
class Row:
    """One kind of damage.

    ``ours``, ``others``: the decoder's counters that tell of it, none where it is no damage. For ``others`` one of them
    is enough, or a packet that gave no picture; or it is out of reach. ``places``: records where it happens.
    ``keyframe``: from which keyframe at or after the place on pictures are right again, 0 being the first; ``None``:
    only the record in question is lost.
    """

    name: str
    damage: Damage
    ours: frozenset[str]
    others: frozenset[str] | str
    places: tuple[int, ...] = (GOP + 1, GOP + 4, GOP + 9, 2 * GOP)
    keyframe: int | None = 0
    causes: frozenset[str] = frozenset({"resync"})


class Streams:
    """The streams of one codec that a row takes its packets from."""

    def __init__(self, kit: SimpleNamespace, codec: str) -> None:
        self._kit = kit
        self._codec = codec

    def packets(self, kind: str = "") -> list[Sent]:
        """Seven GOPs of 15 packets; ``kind``: ``-open`` GOPs, ``-large`` pictures, other parameter ``-sets``."""
        source = self._kit.stream(f"{self._codec}-short{kind}")
        right = source.decode_all()
        if kind != "-open":  # whose keyframes are sent before the pictures that lead them
            assert [i for i, key in enumerate(source.keys) if key] == list(range(0, 7 * GOP, GOP)), "rows count on it"
        newest, out = 0, []
        for i, data in enumerate(source.packets):
            newest = i if source.keys[i] else newest
            leading = source.numbers[i] < source.numbers[newest]
            out.append(Sent(data, data, i, source.keys[i], right[i], leading))
        return out

    def apart(self, sent: list[Sent]) -> list[Sent]:
        """The same with parameter sets in records of their own."""
        out: list[Sent] = []
        for one in sent:
            sets, rest = self._split(one.published)
            if sets:
                out.append(Sent(sets, sets, 0, False, None))
            out.append(replace(one, published=rest, arrived=rest))
        return numbered(out)

    def _split(self, data: bytes) -> tuple[bytes, bytes]:
        sets, rest = [], []
        for unit in data.replace(b"\x00\x00\x00\x01", b"\x00\x00\x01").split(b"\x00\x00\x01")[1:]:
            is_set = unit[0] & 31 in (7, 8) if self._codec == "h264" else unit[0] >> 1 & 63 in (32, 33, 34)
            (sets if is_set else rest).append(b"\x00\x00\x00\x01" + unit)
        return b"".join(sets), b"".join(rest)


def numbered(sent: list[Sent]) -> list[Sent]:
    """As published in this order."""
    return [replace(one, number=n) for n, one in enumerate(sent)]


def next_key(sent: list[Sent], at: int) -> int:
    return next(n for n, one in enumerate(sent) if one.key and n >= at)


def flipped(data: bytes, rng: np.random.Generator) -> bytes:
    """Some bits are others."""
    out = bytearray(data)
    for at in rng.choice(len(out), min(len(out), 1 + int(rng.integers(8))), replace=False):
        out[at] ^= 1 << int(rng.integers(8))
    return bytes(out)


def bit_flips(streams: Streams, at: int, rng: np.random.Generator) -> list[Sent]:
    sent = streams.packets()
    sent[at] = replace(sent[at], arrived=flipped(sent[at].published, rng), pixels=None)
    return sent


def cut(streams: Streams, at: int, rng: np.random.Generator) -> list[Sent]:
    sent = streams.packets()
    size = int(rng.integers(1, len(sent[at].published)))
    sent[at] = replace(sent[at], arrived=sent[at].published[:size], pixels=None)
    return sent


def lost(streams: Streams, at: int, rng: np.random.Generator) -> list[Sent]:
    sent = streams.packets()
    del sent[at]
    return sent


def lost_run(streams: Streams, at: int, rng: np.random.Generator) -> list[Sent]:
    """From the middle of one GOP into the next, its keyframe included."""
    sent = streams.packets()
    del sent[at : at + GOP]
    return sent


def duplicate(streams: Streams, at: int, rng: np.random.Generator) -> list[Sent]:
    sent = streams.packets()
    sent.insert(at + 1, replace(sent[at], pixels=None))
    return sent


def swap(streams: Streams, at: int, rng: np.random.Generator) -> list[Sent]:
    sent = streams.packets()
    sent[at : at + 2] = sent[at + 1], sent[at]
    return sent


def garbage_instead(streams: Streams, at: int, rng: np.random.Generator) -> list[Sent]:
    sent = streams.packets()
    sent[at] = replace(sent[at], arrived=rng.bytes(len(sent[at].published)), pixels=None)
    return sent


def garbage_between(streams: Streams, at: int, rng: np.random.Generator) -> list[Sent]:
    """Another producer's bytes on the topic, without a number."""
    sent = streams.packets()
    junk = rng.bytes(500)
    sent.insert(at, Sent(junk, junk, -1, False, None))
    return sent


def joined(streams: Streams, at: int, rng: np.random.Generator) -> list[Sent]:
    return streams.packets()[at:]


def open_joined(streams: Streams, at: int, rng: np.random.Generator) -> list[Sent]:
    sent = streams.packets("-open")
    return sent[next_key(sent, at) :]


def open_lost(streams: Streams, at: int, rng: np.random.Generator) -> list[Sent]:
    sent = streams.packets("-open")
    del sent[next_key(sent, at)]
    return sent


def another_size(streams: Streams, at: int, rng: np.random.Generator) -> list[Sent]:
    return numbered(streams.packets()[:at] + streams.packets("-large")[: 5 * GOP])


def another_size_lost(streams: Streams, at: int, rng: np.random.Generator) -> list[Sent]:
    sent = another_size(streams, at, rng)
    del sent[at]
    return sent


def sets_changed(streams: Streams, at: int, rng: np.random.Generator) -> list[Sent]:
    return numbered(streams.packets()[:at] + streams.packets("-sets")[: 5 * GOP])


def sets_changed_apart(streams: Streams, at: int, rng: np.random.Generator) -> list[Sent]:
    return streams.apart(sets_changed(streams, 2 * GOP, rng))


def sets_lost(streams: Streams, at: int, rng: np.random.Generator) -> list[Sent]:
    sent = sets_changed_apart(streams, at, rng)
    assert sent[at].pixels is None, "parameter sets stand there"
    del sent[at]
    return sent


def sets_flipped(streams: Streams, at: int, rng: np.random.Generator) -> list[Sent]:
    sent = sets_changed_apart(streams, at, rng)
    sent[at] = replace(sent[at], arrived=flipped(sent[at].published, rng))
    return sent


def sets_late(streams: Streams, at: int, rng: np.random.Generator) -> list[Sent]:
    sent = sets_changed_apart(streams, at, rng)
    sent[at : at + 2] = sent[at + 1], sent[at]
    return sent


def sets_missing(streams: Streams, at: int, rng: np.random.Generator) -> list[Sent]:
    """They come with the third GOP; nothing before can be decoded."""
    sent = streams.apart(streams.packets())
    return numbered([one for n, one in enumerate(sent) if one.pixels is not None or n > 2 * GOP])


CRC, SEQUENCE, LATE = frozenset({"crc"}), frozenset({"sequence"}), frozenset({"sequence", "late"})
NUMBERS = frozenset({"frame_num", "codec"})
DUPLICATE, FORMAT = frozenset({"duplicate"}), frozenset({"format"})
NOTHING: frozenset[str] = frozenset()
REFERENCES = (GOP + 1, GOP + 4, GOP + 7)
SETS = 2 * GOP + 2  # where the third GOP's parameter sets stand, those before it being in records of their own too
SPLIT = frozenset({"resync", "absorbed"})

TABLE = (
    Row("bit flips", bit_flips, CRC, OUT_OF_REACH),
    Row("packet cut short", cut, CRC, OUT_OF_REACH),
    Row("lost reference picture", lost, SEQUENCE, NUMBERS, REFERENCES),
    Row("lost picture that nothing refers to", lost, SEQUENCE, NOTHING, (GOP + 3, GOP + 6)),
    Row("lost keyframe", lost, SEQUENCE, NUMBERS, (GOP, 2 * GOP)),
    Row("lost run, as long as a GOP", lost_run, SEQUENCE, OUT_OF_REACH, (GOP + 4, GOP + 8)),
    Row("duplicate", duplicate, DUPLICATE, DUPLICATE, keyframe=None, causes=DUPLICATE),
    Row("swap", swap, LATE, NUMBERS, REFERENCES),
    Row("garbage instead of a packet", garbage_instead, CRC, OUT_OF_REACH),
    Row("garbage between packets", garbage_between, SEQUENCE, FORMAT),
    Row("join in mid-GOP", joined, NOTHING, NOTHING, (1, 7, 14)),
    Row("open GOP, joined", open_joined, NOTHING, NOTHING, (1, GOP)),
    Row("open GOP, keyframe lost", open_lost, SEQUENCE, NUMBERS, (GOP, 2 * GOP)),
    Row("change of resolution", another_size, NOTHING, NOTHING, (2 * GOP,)),
    Row("change of resolution, keyframe lost", another_size_lost, SEQUENCE, NUMBERS, (2 * GOP,)),
    Row("changed parameter sets", sets_changed, NOTHING, NOTHING, (2 * GOP,)),
    Row("changed parameter sets, in own record", sets_changed_apart, NOTHING, NOTHING, (SETS,), causes=SPLIT),
    Row("changed parameter sets, lost", sets_lost, SEQUENCE, OUT_OF_REACH, (SETS,), 1, SPLIT),
    Row("changed parameter sets, damaged", sets_flipped, CRC, OUT_OF_REACH, (SETS,), 1, SPLIT),
    Row("changed parameter sets, after their keyframe", sets_late, LATE, OUT_OF_REACH, (SETS,), 1, SPLIT),
    Row("no parameter sets yet", sets_missing, NOTHING, NOTHING, (0,), 2, SPLIT),
)

DRAWN = (bit_flips, cut, garbage_instead, garbage_between, sets_flipped)
JOINS = (joined, open_joined, sets_missing)  # nothing can come before


def judge(kit: Any, sent: list[Sent], outcomes: list[Any], row: Row, ours: bool, at: int) -> None:
    at = 0 if row.damage in JOINS else at
    fresh = {o.picture.identity.offset: o.picture for o in outcomes if o.picture is not None and not o.picture.degraded}
    if ours or row.others != OUT_OF_REACH:
        wrong = [offset for offset, picture in fresh.items() if kit.pixels(picture.frame) != sent[offset].pixels]
        assert wrong == [], "passed off as good"
    keys = [offset for offset, one in enumerate(sent) if one.key and one.pixels is not None and offset >= at]
    right = [one for one in range(len(sent)) if sent[one].pixels is not None]
    if row.keyframe is None:
        assert set(right) <= set(fresh)
        return
    # A codec may keep silent about a packet of others; that it gives no picture is known some forty packets later.
    again = keys[row.keyframe] if ours or row.others == NOTHING else keys[-1]
    after = next((offset for offset in keys if offset > again), len(sent))
    assert {n for n in right if n >= again and not (sent[n].leading and n < after)} <= set(fresh), "comes again"
    if ours:
        assert {n for n in right if n < at} <= set(fresh), "came before it"


def play(kit: Any, codec: str, row: Row, threads: int, ours: bool) -> None:
    for at in row.places:
        for seed in range(2 if row.damage in DRAWN else 1):
            sent = row.damage(Streams(kit, codec), at, np.random.default_rng([at, seed]))
            records = [
                kit.with_value(kit.stamped(n, one.published, one.number, key=one.key), one.arrived)
                if ours and one.number >= 0
                else kit.record(n, one.arrived)
                for n, one in enumerate(sent)
            ]
            made = kit.decoder(kit.stream(f"{codec}-short"), threads=threads)
            outcomes = kit.run(made, records)
            judge(kit, sent, outcomes, row, ours, at)
            if ours:
                assert set(made.damage) == row.ours
                assert {o.cause for o in outcomes if o.cause} <= row.causes
            elif row.others != OUT_OF_REACH:
                assert set(made.damage) <= set(row.others)
                assert bool(row.others) == bool(made.damage or any(o.cause == "no_picture" for o in outcomes))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_no_picture_of_our_streams_is_passed_off_as_good(kit: Any, row: Row, codec: str, threads: int) -> None:
    play(kit, codec, row, threads, ours=True)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_nor_one_of_others_streams_where_it_is_promised(kit: Any, row: Row, codec: str, threads: int) -> None:
    play(kit, codec, row, threads, ours=False)


PAGE = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "damage.md"


def test_the_documented_table_is_this_one() -> None:
    """Each row of ``docs/explanation/damage.md`` is a row here or a test where it says, and the other way."""
    section = PAGE.read_text().split("## The damage table")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "|" in line][2:]
    assert rows and all(len(row) == 4 and all(row) for row in rows)

    def told(counters: frozenset[str] | str) -> str:
        names = counters if isinstance(counters, str) else ", ".join(f"`{name}`" for name in sorted(counters))
        return names or "no damage"

    here = [(name, ours, others) for name, ours, others, test in rows if "::" not in test]
    assert here == [(row.name, told(row.ours), told(row.others)) for row in TABLE]
    for name, _, _, test in rows:
        if "::" in test:
            file, function = test.strip("`").split("::")
            found = (Path(__file__).parents[1] / file).read_text()
            assert f"\ndef {function}(" in found, f"{name}: there is no {test}"


def test_a_stream_that_states_its_parameter_sets_once_loses_one_keyframe_more_and_only_once(kit: Any) -> None:
    for codec in CODECS:
        streams = Streams(kit, codec)
        once = [one for n, one in enumerate(streams.apart(streams.packets())) if one.pixels is not None or n == 0]
        sent = [one for n, one in enumerate(numbered(once)) if n not in (GOP - 3, 4 * GOP - 3)]
        keys = [n for n, one in enumerate(sent) if one.key]
        records = [kit.stamped(n, one.published, one.number, key=one.key) for n, one in enumerate(sent)]
        outcomes = kit.run(kit.decoder(kit.stream(f"{codec}-short")), records)
        fresh = {o.record.offset for o in outcomes if o.picture is not None}
        assert [n in fresh for n in keys] == [True, False, True, True, True, True, True]


@pytest.mark.parametrize("codec", CODECS)
def test_where_doubtful_pictures_are_wanted_those_after_lost_parameter_sets_are_marked(kit: Any, codec: str) -> None:
    sent = sets_lost(Streams(kit, codec), SETS, np.random.default_rng(0))
    records = [kit.stamped(n, one.published, one.number, key=one.key) for n, one in enumerate(sent)]
    outcomes = kit.run(kit.decoder(kit.stream(f"{codec}-short"), on_damage="deliver"), records)
    pictures = {o.record.offset: o.picture for o in outcomes if o.picture is not None}
    keys = [n for n, one in enumerate(sent) if one.key]
    assert [pictures[n].degraded for n in keys] == [False, False, True, False, False, False, False]
    for n, picture in pictures.items():
        assert picture.degraded or kit.pixels(picture.frame) == sent[n].pixels
