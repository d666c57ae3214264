"""``rate`` leaves out of decoding what nobody takes: the same pictures come out, far fewer go in. Counts, no speed."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest

from comux.decoders import DecoderOptions, create_decoder
from comux.decoders.codec import Codec
from comux.decoders.rate import RateLimiter
from comux.errors import EndOfStream
from comux.feeds.marks import read_marks
from comux.feeds.synthetic import parse_synthetic, synthetic_packets
from comux.multiplexer import Comux, State
from comux.records import HEADER_CRC32C, HEADER_SEQUENCE, KEYFRAME, Record
from comux.transport import Broker, TopicSpec

FPS = 30
GOP = 30
FRAMES = 330
LEARN = 3 * GOP  # pictures until it is known how long a GOP is
START_NS = 1_700_000_000_000_000_000
KINDS = ("h264", "h264-b", "h264-open", "hevc", "hevc-b", "hevc-open")


@cache
def encoded(kind: str, frames: int = FRAMES, gop: int = GOP) -> tuple[Any, ...]:
    """Packets of a small synthetic camera; ``kind`` as in ``hevc-open``."""
    codec, _, order = kind.partition("-")
    settings = f"bframes={2 if order else 0}&open_gop={int(order == 'open')}&gop={gop}&frames={frames}"
    return tuple(synthetic_packets(parse_synthetic(f"synthetic://160x120@{FPS}?codec={codec}&{settings}")))


def records(kind: str, *, ours: bool = True, **of_stream: int) -> list[Record]:
    """The camera's records, as our feeds stamp them or without headers and flags."""
    return [record(packet, packet.seq, ours=ours) for packet in encoded(kind, **of_stream)]


def record(packet: Any, offset: int, *, ours: bool = True) -> Record:
    headers = ((HEADER_SEQUENCE, b"%d" % packet.seq), (HEADER_CRC32C, b"%08x" % packet.crc)) if ours else ()
    flags = KEYFRAME if packet.keyframe and ours else 0
    stamp = START_NS + round(packet.capture_s * 1e9)
    return Record("raw_a", offset, stamp, packet.data, headers=headers, flags=flags)


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each packet that a codec gets."""
    seen: list[int] = []
    submit = Codec.submit

    def count(codec: Codec, token: int, data: bytes) -> Any:
        seen.append(token)
        return submit(codec, token, data)

    monkeypatch.setattr(Codec, "submit", count)
    return seen


@dataclass
class Played:
    """What became of a stream."""

    taken: dict[int, tuple[int, int] | None] = field(default_factory=dict)  # offset: what its pixels say
    pixels: dict[int, bytes] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    causes: dict[int, str] = field(default_factory=dict)  # of every other record
    damage: dict[str, int] = field(default_factory=dict)

    @property
    def dropped(self) -> Counter[str]:
        return Counter(self.causes.values())


def play(
    kind: str,
    fed: Iterable[Record],
    rate: float | None,
    *,
    skip: bool = True,
    before: Callable[[int, RateLimiter, Any], None] = lambda n, limiter, decoder: None,
    **options: Any,
) -> Played:
    """As a source does it: every record is observed and fed, every picture offered. The books are checked."""
    limiter = RateLimiter(rate)
    made = create_decoder(DecoderOptions(codec=kind.partition("-")[0], **options))
    if skip:
        assert made.select(limiter)
    out, count = Played(), 0

    def settle(outcomes: Sequence[Any]) -> None:
        for outcome in outcomes:
            offset = outcome.record.offset
            assert outcome.first and offset not in out.taken and offset not in out.causes, "answered once"
            if outcome.picture is None:
                out.causes[offset] = outcome.cause
            elif limiter.take(outcome.record.timestamp_ns):
                array = outcome.picture.to_array()
                out.taken[offset], out.pixels[offset] = read_marks(array), array.tobytes()
                out.order.append(offset)
            else:
                out.causes[offset] = "rate"

    for n, one in enumerate(fed):
        before(n, limiter, made)
        limiter.observe(one.timestamp_ns)
        count += 1
        settle(made.feed(one))
        assert len(out.taken) + len(out.causes) + made.in_flight == count
    settle(made.drain())
    assert len(out.taken) + len(out.causes) == count and made.in_flight == 0
    out.damage = dict(made.damage)
    return out


@pytest.mark.parametrize("rate", [15, 10, 2, 1, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_pictures_come_out_and_fewer_go_in(kind: str, rate: float, submitted: list[int]) -> None:
    """Byte for byte, at the same offsets, and every other packet is counted ``rate``."""
    all_of_them = play(kind, records(kind), rate, skip=False)
    assert len(submitted) == FRAMES
    assert set(all_of_them.dropped) == {"rate"}
    submitted.clear()
    some = play(kind, records(kind), rate)
    assert some.order == all_of_them.order
    assert some.pixels == all_of_them.pixels
    assert some.causes == all_of_them.causes
    assert some.damage == {}
    assert None not in some.taken.values()
    assert abs(len(some.taken) - FRAMES * rate / FPS) <= 1.5
    disposable = 1.0 if kind in ("h264", "hevc") else 0.6
    bound = {15: 1.0, 10: 0.95, 2: 0.6, 1: 0.12, 0.5: 0.06}[rate]
    rest = FRAMES - LEARN
    assert len(submitted) <= LEARN + rest * min(bound, disposable if rate <= 2 else 1.0) + 4


@pytest.mark.parametrize("rate", [20, 7, 4.3, 2.9, 1.1, 0.7])
@pytest.mark.parametrize("kind", KINDS)
def test_rates_that_do_not_go_into_the_stream_s_come_as_often(kind: str, rate: float) -> None:
    """In place of a GOP's last picture the keyframe after it; below one a GOP the first keyframe after the due time."""
    plain, some = (play(kind, records(kind), rate, skip=skip) for skip in (False, True))
    numbers = {packet.seq: packet.frame for packet in encoded(kind)}
    due, got = (sorted(numbers[n] for n in played.order) for played in (plain, some))
    assert abs(len(due) - len(got)) <= (1 if rate > 1 else 2)
    if rate > 1:
        for wanted, taken in zip(due, got, strict=False):
            assert abs(taken - wanted) <= 1, (wanted, taken)
            assert taken <= wanted or taken % GOP == 0, (wanted, taken)
    else:
        assert all(n % GOP == 0 for n in got if n > LEARN)
        assert all(later - sooner <= GOP * (1 + 1 / rate) for sooner, later in itertools.pairwise(got))
    assert set(some.dropped) == {"rate"} and some.damage == {}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_out_without_a_rate_or_by_one_that_takes_all(kind: str, submitted: list[int]) -> None:
    for rate in (None, 60, FPS):
        submitted.clear()
        played = play(kind, records(kind, frames=120), rate)
        assert len(submitted) == len(played.taken) == 120
        assert played.causes == {} == played.damage


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_streams_of_others_and_frame_threads(kind: str, ours: bool, threads: int) -> None:
    plain = play(kind, records(kind, ours=ours), 2, skip=False, threads=threads)
    some = play(kind, records(kind, ours=ours), 2, threads=threads)
    assert (some.order, some.pixels, some.damage) == (plain.order, plain.pixels, {})
    assert set(some.dropped) == {"rate"}


# -- what happens in the part that is passed over ----------------------------------------------------------------------

PASSED = 7 * GOP + 22  # at two of thirty a second, a packet of the part that nobody decodes
KEY = 8 * GOP


def key_offset(kind: str, number: int) -> int:
    """Where the keyframe with this picture is: in an open GOP before pictures that are shown before it."""
    (offset,) = (packet.seq for packet in encoded(kind) if packet.keyframe and packet.frame == number)
    return int(offset)


def without(fed: Sequence[Record], offset: int) -> list[Record]:
    """A record lost before the topic: offsets stay contiguous where no number says otherwise."""
    ours = bool(fed[0].headers)
    left = [one for one in fed if one.offset != offset]
    return left if ours else [moved(one, offset=n) for n, one in enumerate(left)]


def moved(one: Record, **changes: Any) -> Record:
    fields = {"offset": one.offset, "timestamp_ns": one.timestamp_ns, "value": one.value, **changes}
    return Record("raw_a", headers=one.headers, flags=one.flags, **fields)


def flipped(fed: Sequence[Record], offset: int) -> list[Record]:
    def flip(value: bytes) -> bytes:
        return value[:-20] + bytes([value[-20] ^ 16]) + value[-19:]

    return [moved(one, value=flip(one.value)) if one.offset == offset else one for one in fed]


@pytest.mark.parametrize("spoil", [without, flipped])
@pytest.mark.parametrize("kind", KINDS)
def test_damage_in_what_is_passed_over_costs_nothing_and_is_counted(kind: str, spoil: Any) -> None:
    right = play(kind, records(kind), 2)
    watched = []
    spoilt = play(
        kind, spoil(records(kind), PASSED), 2, before=lambda n, limiter, decoder: watched.append(decoder.resyncing)
    )
    assert spoilt.pixels == right.pixels
    assert set(spoilt.dropped) == {"rate"}
    assert sum(spoilt.damage.values()) == 1
    assert not any(watched[1:]), "nothing is wrong with what is delivered"


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("rate", [2, 1, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_a_keyframe_that_is_lost_is_told_and_nothing_wrong_comes_out(kind: str, rate: float, ours: bool) -> None:
    """The one after it is the next that can be right; streams of others may not show that it is missing."""
    key, following = key_offset(kind, KEY), key_offset(kind, KEY + GOP)
    right, every = play(kind, records(kind), rate), play(kind, records(kind), None)
    lost = play(kind, without(records(kind, ours=ours), key), rate)
    place = (lambda n: n) if ours else (lambda n: n + (n >= key))
    assert [n for n in lost.order if n < key] == [n for n in right.order if n < key]
    assert [n for n in lost.order if place(n) >= following], "it goes on"
    assert not [n for n in lost.order if key <= place(n) < following]
    assert all(lost.pixels[n] == every.pixels[place(n)] for n in lost.order)
    if ours:
        assert lost.damage["sequence"] == 1
        assert lost.dropped["resync"] > 0, "pictures were due, and none was right"
        assert set(lost.dropped) == {"rate", "resync"}
        resync = [n for n, cause in lost.causes.items() if cause == "resync"]
        assert key < min(resync) and max(resync) < following + 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_keyframe_that_is_not_due_may_be_lost(kind: str) -> None:
    """At one picture in two seconds every other keyframe is for nobody."""
    right = play(kind, records(kind), 0.5)
    key = key_offset(kind, KEY + GOP)
    assert key not in right.taken
    lost = play(kind, without(records(kind), key), 0.5)
    assert lost.pixels == right.pixels
    assert set(lost.dropped) == {"rate"} and lost.damage == {"sequence": 1}


@pytest.mark.parametrize("on_damage", ["drop", "deliver"])
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_lost_no_wrong_picture_is_taken_and_the_books_balance(kind: str, on_damage: str) -> None:
    chance = random.Random(7)
    right = play(kind, records(kind), None).pixels
    for rate in (10, 2, 1):
        fed = [one for one in records(kind) if chance.random() > 0.03]
        some = play(kind, fed, rate, on_damage=on_damage)
        assert set(some.dropped) <= {"rate", "resync", "no_picture", "decode_error"}
        if on_damage == "drop":
            assert all(some.pixels[n] == right[n] for n in some.order)
        assert len(some.order) <= FRAMES * rate / FPS + 3


@pytest.mark.parametrize("rate", [15, None])
@pytest.mark.parametrize("kind", KINDS)
def test_a_raised_rate_goes_on_at_the_next_keyframe(kind: str, rate: float | None) -> None:
    def change(n: int, limiter: RateLimiter, decoder: Any) -> None:
        if n == PASSED:
            limiter.set_rate(rate)

    played = play(kind, records(kind), 2, before=change)
    shown = sorted(mark[1] for mark in played.taken.values() if mark is not None)
    assert set(played.dropped) == {"rate"}
    after = [n for n in shown if n > PASSED]
    assert after == list(range(KEY, FRAMES, 1 if rate is None else 2))
    assert len(shown) - len(after) == 2 * (KEY // GOP)


@pytest.mark.parametrize("kind", KINDS)
def test_a_lowered_rate_stops_at_once(kind: str, submitted: list[int]) -> None:
    def change(n: int, limiter: RateLimiter, decoder: Any) -> None:
        if n == KEY:
            limiter.set_rate(1)
            submitted.clear()

    played = play(kind, records(kind), 30, before=change)
    assert set(played.dropped) == {"rate"}
    assert len(submitted) <= 3 + 4, "three keyframes, and what it takes to see that they are enough"


@pytest.mark.parametrize("kind", KINDS)
def test_a_rate_set_late_in_a_gop_is_counted_from_the_next_keyframe(kind: str, submitted: list[int]) -> None:
    """Else each GOP were decoded as far as the place where the command happened to come."""

    def change(n: int, limiter: RateLimiter, decoder: Any) -> None:
        if n == 5 * GOP + 12:
            limiter.set_rate(2)
        if n == 7 * GOP:
            submitted.clear()

    played = play(kind, records(kind), 30, before=change)
    shown = sorted(mark[1] for mark in played.taken.values() if mark is not None)
    assert [n for n in shown if n >= 7 * GOP] == list(range(7 * GOP, FRAMES, GOP // 2))
    late = [n for n in shown if 5 * GOP + 10 <= n < 7 * GOP]
    assert all(GOP // 2 <= later - sooner < GOP for sooner, later in itertools.pairwise(late) if sooner > 5 * GOP + 14)
    assert len(submitted) <= (FRAMES - 7 * GOP) * 0.6


def joined(*parts: Sequence[Any], ours: bool = True) -> list[Record]:
    """Streams one after the other, as one feed's."""
    out: list[Record] = []
    begin = 0.0
    for part in parts:
        for packet in part:
            stamp = START_NS + round((begin + packet.capture_s) * 1e9)
            headers = ((HEADER_SEQUENCE, b"%d" % len(out)), (HEADER_CRC32C, b"%08x" % packet.crc)) if ours else ()
            flags = KEYFRAME if packet.keyframe and ours else 0
            out.append(Record("raw_a", len(out), stamp, packet.data, headers=headers, flags=flags))
        begin += len(part) / FPS
    return out


@pytest.mark.parametrize("kind", ["h264", "hevc-b"])
def test_a_gop_longer_than_those_before_costs_its_rest_once(kind: str, submitted: list[int]) -> None:
    """Only pictures of the first long one are missing, and it is told when it gets too long; then all come again."""
    short, long = encoded(kind, frames=150), encoded(kind, frames=270, gop=90)
    fed = joined(short, long)
    plain = play(kind, fed, 2, skip=False)
    submitted.clear()
    some = play(kind, fed, 2)
    assert set(some.dropped) == {"rate", "resync"} and some.damage == {}
    resync = [n for n, cause in some.causes.items() if cause == "resync"]
    assert min(resync) > 150 + 2 * GOP and max(resync) < 150 + 90
    missing = set(plain.order) - set(some.order)
    assert missing and all(150 + 15 < n < 150 + 90 for n in missing)
    assert set(some.order) - set(plain.order) == set()
    assert len([n for n in some.order if n >= 240]) == len([n for n in plain.order if n >= 240])


def test_a_stream_that_turns_to_gradual_refresh_comes_back(submitted: list[int]) -> None:
    """No keyframe comes any more while one is waited for: where the stream refreshes itself will do."""
    refreshed = tuple(recoded("h264", "keyint=20:intra-refresh=1:ref=1", frames=200))
    fed = joined(encoded("h264", frames=5 * GOP), refreshed[1:], ours=False)
    some = play("h264", fed, 2)
    after = [n for n in some.order if n >= 5 * GOP]
    assert after and after[0] < 5 * GOP + 3 * GOP
    assert len(after) > 7
    assert {some.causes[n] for n in some.causes if n > after[0]} == {"rate"}
    assert all(some.taken[n] == (1, n - 5 * GOP + 1) for n in after)


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_another_size_that_begins_while_passing_over(codec: str) -> None:
    small, large = encoded(codec, frames=5 * GOP), tuple(recoded(codec, "", size=(320, 240)))
    fed = joined(small, large, ours=False)
    plain, some = play(codec, fed, 0.5, skip=False), play(codec, fed, 0.5)
    assert some.pixels == plain.pixels
    assert [len(one) for one in some.pixels.values()] == [160 * 120 * 3] * 3 + [320 * 240 * 3] * 2


@pytest.mark.parametrize("kind", ["h264", "h264-b"])
def test_gops_of_any_length_are_decoded_whole(kind: str) -> None:
    """Nothing says when such a GOP ends, so every picture that is due comes."""
    chance = random.Random(3)
    parts = [encoded(kind, frames=gop, gop=gop) for gop in chance.sample(range(8, 60, 5), 11)]
    fed = joined(*parts)
    for rate in (10, 2, 1):
        assert play(kind, fed, rate).pixels == play(kind, fed, rate, skip=False).pixels


@pytest.mark.parametrize("kind", ["h264-b", "hevc-b"])
def test_shorter_gops_in_between_cost_no_picture(kind: str, submitted: list[int]) -> None:
    """As cameras do when somebody asks them for a keyframe: the count goes on from there."""
    gops = [30, 30, 30, 30, 11, 30, 30, 30, 17, 30, 30, 30]
    fed = joined(*(encoded(kind, frames=gop, gop=gop) for gop in gops))
    right = play(kind, fed, None)
    submitted.clear()
    some = play(kind, fed, 2)
    assert all(some.pixels[n] == right.pixels[n] for n in some.order)
    assert set(some.dropped) == {"rate"}
    times = sorted(fed[n].timestamp_ns for n in some.order)
    gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
    assert min(gaps) > 0.49e9 and max(gaps) < 1e9
    assert sum(gap > 0.51e9 for gap in gaps) <= 2, "once at each of the two"
    assert len(submitted) < 0.75 * len(fed)


# -- other streams and other turns -------------------------------------------------------------------------------------


def sets_apart(data: bytes, codec: str) -> tuple[bytes, bytes]:
    """The parameter sets of a packet, and the rest of it."""
    sets, rest = [], []
    for unit in data.replace(b"\x00\x00\x00\x01", b"\x00\x00\x01").split(b"\x00\x00\x01")[1:]:
        kind = unit[0] & 31 if codec == "h264" else unit[0] >> 1 & 63
        where = sets if kind in ((7, 8) if codec == "h264" else (32, 33, 34)) else rest
        where.append(b"\x00\x00\x00\x01" + unit)
    return b"".join(sets), b"".join(rest)


@pytest.mark.parametrize("codec", ["h264", "hevc"])
@pytest.mark.parametrize("own_record", [True, False])
def test_parameter_sets_that_only_a_passed_over_keyframe_has_are_not_lost(codec: str, own_record: bool) -> None:
    """The stream changes its sets once, in a keyframe (or before it) that nobody decodes: the next one needs them."""
    offsets = "chroma-qp-offset=8" if codec == "h264" else "cbqpoffs=8:crqpoffs=8"
    changed = tuple(recoded(codec, offsets))
    first = encoded(codec, frames=5 * GOP)
    fed = joined(first, changed, ours=False)
    assert fed[5 * GOP].timestamp_ns == START_NS + 5 * 10**9, "which is not due at one picture in two seconds"
    bare: list[Record] = []
    for one in fed:
        sets, rest = sets_apart(one.value, codec)
        n = one.offset
        if n == 5 * GOP and own_record:
            bare += [moved(one, value=sets), moved(one, value=rest)]
        elif n == 0 or n == 5 * GOP or not sets:
            bare.append(one)
        else:
            bare.append(moved(one, value=rest))
    bare = [moved(one, offset=n) for n, one in enumerate(bare)]
    plain, some = play(codec, bare, 0.5, skip=False), play(codec, bare, 0.5)
    assert some.order == plain.order and len(some.order) == 5
    assert some.pixels == plain.pixels
    assert some.damage == {}


def recoded(codec: str, settings: str, frames: int = 4 * GOP, size: tuple[int, int] = (160, 120)) -> Iterator[Any]:
    """A camera whose encoder was given other settings that the parameter sets carry."""
    from comux.decoders.encode import VideoEncoder
    from comux.feeds.faults import FeedPacket
    from comux.feeds.scene import Scene

    scene = Scene(*size, 1, 5)
    name = "x264-params" if codec == "h264" else "x265-params"
    common = "scenecut=0:repeat-headers=1:annexb=1" + (":pools=none:log-level=none" if codec == "hevc" else "")
    with VideoEncoder(codec, *size, FPS, GOP, 0, options={name: f"{common}:{settings}".rstrip(":")}) as encoder:
        made = [packet for n in range(frames) for packet in encoder.encode(scene.picture(n), n)] + encoder.flush()
    for n, packet in enumerate(made):
        yield FeedPacket(packet.data, n, 0, n, n / FPS, packet.pts / FPS, packet.keyframe)


def test_mjpeg_decodes_what_is_taken(submitted: list[int]) -> None:
    plain = play("mjpeg", records("mjpeg", frames=90), 2, skip=False)
    submitted.clear()
    some = play("mjpeg", records("mjpeg", frames=90), 2)
    assert some.pixels == plain.pixels
    assert some.causes == plain.causes
    assert len(submitted) <= len(some.order) + 2, "and one or two that might have been due"


@pytest.mark.parametrize("codec", ["vp9", "av1"])
def test_codecs_without_disposable_pictures_leave_out_the_rest_of_gops(codec: str, submitted: list[int]) -> None:
    plain = play(codec, records(codec, frames=240), 2, skip=False)
    submitted.clear()
    some = play(codec, records(codec, frames=240), 2)
    assert some.pixels == plain.pixels
    assert some.causes == plain.causes
    assert len(submitted) <= LEARN + 5 * 17


@pytest.mark.parametrize("kind", KINDS)
def test_another_life_of_the_stream_begins_anew_at_its_keyframe(kind: str) -> None:
    """It comes while the end of the old one is passed over; in doubt is nothing."""

    def again(one: Record) -> Record:
        stamp = one.timestamp_ns + 11 * 10**9 - 3 * 10**9
        return Record("raw_a", FRAMES - 8 + one.offset, stamp, one.value, headers=one.headers, flags=one.flags, epoch=1)

    fed = records(kind, ours=False)
    fed = fed[: FRAMES - 8] + [again(one) for one in fed]
    plain, some = play(kind, fed, 2, skip=False), play(kind, fed, 2)
    assert set(some.dropped) == set(plain.dropped)
    second = [n for n in some.order if n >= FRAMES - 8]
    assert second[0] - (FRAMES - 8) <= GOP and len(second) >= 2 * (FRAMES // GOP) - 3
    assert some.damage == plain.damage


@pytest.mark.parametrize("kind", KINDS)
def test_a_jump_from_what_is_passed_over_waits_for_a_keyframe(kind: str) -> None:
    said: list[Any] = []
    limiter = RateLimiter(2)
    made = create_decoder(DecoderOptions(codec=kind.partition("-")[0]))
    assert made.select(limiter)
    for one in records(kind)[:PASSED]:
        limiter.observe(one.timestamp_ns)
        for outcome in made.feed(one):
            if outcome.picture is not None:
                limiter.take(outcome.record.timestamp_ns)
    assert not made.resyncing and made.in_flight == 0, "it passes over"
    assert made.reset("jumped") == []
    assert made.resyncing
    for one in records(kind)[PASSED + 3 :]:
        limiter.observe(one.timestamp_ns)
        said += [outcome.cause for outcome in made.feed(one)]
    assert said[0] == "resync"
    assert None in said
    made.close()


@pytest.mark.parametrize("by_s", [-3600.0, -2.5, 3600.0, 5.0])
@pytest.mark.parametrize("kind", KINDS)
def test_a_clock_that_leaps_while_passing_over_is_met_at_the_next_keyframe(kind: str, by_s: float) -> None:
    """Ahead, back, by more and by less than pictures are apart: from there on two a second come as before."""
    fed = [
        moved(one, timestamp_ns=one.timestamp_ns + (round(by_s * 1e9) if one.offset >= PASSED else 0))
        for one in records(kind)
    ]
    some = play(kind, fed, 2)
    after = [n for n in some.order if n >= PASSED]
    assert after[0] <= KEY + 1, "no later than the next keyframe"
    assert abs(len(after) - 2 * (FRAMES - KEY) // FPS) <= 2
    assert set(some.dropped) == {"rate"} and some.damage == {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_that_pauses_while_passing_over_goes_on_at_the_next_keyframe(kind: str) -> None:
    fed = [moved(one, timestamp_ns=one.timestamp_ns + 10**10 * (one.offset >= PASSED)) for one in records(kind)]
    some = play(kind, fed, 2)
    after = [n for n in some.order if n >= PASSED]
    assert after[0] <= KEY + 1
    assert abs(len(after) - 2 * (FRAMES - KEY) // FPS) <= 2


@pytest.mark.parametrize("kind", ["h264", "h264-b", "hevc-b"])
@pytest.mark.parametrize("jitter_ms", [5, 12, 30])
def test_timestamps_that_jitter_take_as_many(kind: str, jitter_ms: int, submitted: list[int]) -> None:
    chance = random.Random(11)
    fed = [
        moved(one, timestamp_ns=one.timestamp_ns + chance.randint(-jitter_ms, jitter_ms) * 10**6)
        for one in records(kind)
    ]
    for rate in (2, 1):
        plain = play(kind, fed, rate, skip=False)
        submitted.clear()
        some = play(kind, fed, rate)
        # A first keyframe a little before its due time waits for the next; from then on all are in time.
        assert abs(len(some.order) - len(plain.order)) <= (2 if rate == 1 else 1)
        assert len(submitted) <= LEARN + (FRAMES - LEARN) * 0.65
        assert set(some.dropped) == {"rate"}


@pytest.mark.parametrize("kind", ["h264-b", "hevc-open"])
def test_timestamps_in_decoding_order_take_as_many(kind: str) -> None:
    """As feeds stamp packets that do not know better; which picture of a few is taken may differ."""
    fed = [moved(one, timestamp_ns=START_NS + one.offset * 10**9 // FPS) for one in records(kind)]
    for rate in (10, 2, 1):
        some = play(kind, fed, rate)
        assert set(some.dropped) == {"rate"} and some.damage == {}
        assert abs(len(some.order) - FRAMES * rate / FPS) <= 0.1 * FRAMES * rate / FPS + 1.5


@pytest.mark.parametrize("kind", ["h264", "h264-b", "hevc-open"])
@pytest.mark.parametrize("framing", ["record", "bytestream"])
def test_records_of_several_pictures_balance(kind: str, framing: str) -> None:
    """``play`` wants one answer a record, so the further pictures of one are left out of account here."""
    whole = records(kind, ours=False)
    if framing == "record":
        fed = [
            moved(whole[n], offset=n // 2, value=b"".join(one.value for one in whole[n : n + 2]))
            for n in range(0, FRAMES, 2)
        ]
    else:
        everything = b"".join(one.value for one in whole)
        each = len(everything) // FRAMES + 1
        fed = [
            Record("raw_a", n, START_NS + n * 10**9 // FPS, everything[n * each : (n + 1) * each])
            for n in range(-(-len(everything) // each))
        ]
    limiter = RateLimiter(2)
    made = create_decoder(DecoderOptions(codec=kind.partition("-")[0], framing=framing))  # type: ignore[arg-type]
    assert made.select(limiter)
    answers: Counter[int] = Counter()
    shown = 0
    for count, one in enumerate(fed, 1):
        limiter.observe(one.timestamp_ns)
        outcomes = made.feed(one)
        for outcome in outcomes:
            answers[outcome.record.offset] += outcome.first
            if outcome.picture is not None and limiter.take(outcome.record.timestamp_ns):
                assert read_marks(outcome.picture.to_array()) is not None
                shown += 1
            assert outcome.picture is not None or outcome.cause in ("rate", "absorbed")
        assert sum(answers.values()) + made.in_flight == count
    for outcome in made.drain():
        answers[outcome.record.offset] += outcome.first
    assert set(answers.values()) == {1} and len(answers) == len(fed)
    assert abs(shown - 22) <= 2
    assert dict(made.damage) == {}


@pytest.mark.parametrize("kind", ["h264-b", "hevc-open"])
def test_catching_up_leaves_out_pictures_that_nothing_refers_to(kind: str, submitted: list[int]) -> None:
    """Decoded only to keep up the references, and counted ``lag`` as those that are decoded and not converted."""
    made = create_decoder(DecoderOptions(codec=kind.partition("-")[0]))
    outcomes: list[Any] = []
    for n, one in enumerate(records(kind)):
        made.set_converting(not 100 <= n < 200)
        assert made.hurry(100 <= n < 200)
        outcomes += made.feed(one)
    outcomes += made.drain()
    assert len(outcomes) == FRAMES
    assert len(submitted) <= FRAMES - 30
    assert Counter(o.cause for o in outcomes)["lag"] >= 98
    assert {o.cause for o in outcomes} == {None, "lag"} and dict(made.damage) == {}
    right = play(kind, records(kind), None).pixels
    for outcome in outcomes:
        if outcome.picture is not None:
            assert outcome.picture.to_array().tobytes() == right[outcome.record.offset]


# -- through a Comux ---------------------------------------------------------------------------------------------------


@dataclass
class Camera:
    """Publishes an encoded stream into ``raw_<cam>``."""

    broker: Broker
    cam: str
    fed: Sequence[Record]
    codec: str = "h264"
    sent: int = 0

    def __post_init__(self) -> None:
        spec = TopicSpec(f"raw_{self.cam}", records=4096, policy="drop_oldest", metadata={"codec": self.codec})
        self.broker.create_topic(spec, exist_ok=True)
        self.producer = self.broker.producer(spec.name)

    def send(self, count: int | None = None, *, lose: tuple[int, ...] = ()) -> None:
        """The next ``count`` records; ``None``: all that are left."""
        end = len(self.fed) if count is None else self.sent + count
        for one in self.fed[self.sent : end]:
            if one.offset not in lose:
                self.producer.send(
                    one.value, key=b"k", headers=one.headers, flags=one.flags, timestamp_ns=one.timestamp_ns
                )
        self.sent = end


@pytest.fixture
def start(started: Callable[..., Comux]) -> Callable[..., Comux]:
    """Starts a manager that delivers every picture, with the real decoder."""
    return lambda ids, **options: started(ids, **{"mode": "every_frame", "start": "beginning", **options})


def settled(mux: Comux, received: int, cam: str = "a") -> Callable[[], bool]:
    """Whether so many packets came and none is on its way to being a picture."""

    def look() -> bool:
        account = mux.accounts()[cam]
        return account.received == received and not set(account.held) - {"pictures"}

    return look


def taken(mux: Comux, cam: str = "a") -> list[int]:
    """Indexes of all pictures that wait; what their pixels say must be right."""
    out = []
    while item := mux.read(cam, timeout=0):
        marks = read_marks(item.array)
        assert marks is not None
        out.append(item.index)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_runs_through_what_it_passes_over(
    kind: str, start: Any, broker: Broker, wait_for: Any, submitted: list[int]
) -> None:
    """It stays RUNNING, tells of no damage, counts every packet, and re-emits the packets of what it delivered."""
    camera = Camera(broker, "a", records(kind), kind.partition("-")[0])
    mux = start(["a"], rate=1, on_end="stop", produce_schema="out_:cam_id")
    camera.send()
    camera.producer.end()
    got = []
    with pytest.raises(EndOfStream):
        while True:
            for item in mux.get_batch(timeout=20):
                if item:
                    got.append(item.index)
                    mux.send(item, {"n": len(got)})
    mux.flush(10)
    assert got == play(kind, records(kind), 1, skip=False).order
    account = mux.accounts()["a"]
    assert account.dropped == {"rate": FRAMES - len(got)}
    assert account.received == FRAMES == account.delivered + account.dropped_total
    changes = [event.data["new"] for event in mux.events.recent("source.state", "a")]
    assert changes == ["RUNNING", "ENDED"]
    assert mux.events.recent("source.damage", "a") == []
    with broker.consumer("out_a", start="beginning") as results:
        assert [one.value for one in results.poll(5, 100)] == [camera.fed[n].value for n in got]


def test_damage_passed_over_is_no_state_and_a_lost_keyframe_is(start: Any, broker: Broker, wait_for: Any) -> None:
    camera = Camera(broker, "a", records("h264-b"))
    mux = start(["a"], rate=1)

    def state() -> str:
        return str(mux.status()["sources"]["a"]["state"])

    camera.send(PASSED + 5, lose=(PASSED,))
    wait_for(settled(mux, PASSED + 4))
    assert state() == State.RUNNING
    assert mux.status()["sources"]["a"]["damage"] == {"sequence": 1}
    assert set(mux.accounts()["a"].dropped) == {"rate"}
    camera.send(KEY + 1 - camera.sent, lose=(KEY,))
    wait_for(settled(mux, KEY - 1))
    assert state() == State.RUNNING, "nobody knows of it yet"
    camera.send(10)
    wait_for(settled(mux, KEY + 9))
    assert state() == State.RESYNCING, "the keyframe that was waited for has not come"
    (told,) = mux.events.recent("source.damage", "a")
    assert "sequence" in str(told)
    camera.send()
    wait_for(settled(mux, FRAMES - 2))
    assert state() == State.RUNNING
    assert set(mux.accounts()["a"].dropped) == {"rate", "resync"}
    offsets = [n * GOP for n in range(8)] + [n * GOP - 2 for n in (9, 10)]  # the topic lacks the two that were lost
    assert taken(mux) == offsets


def test_set_rate_while_passing_over(start: Any, broker: Broker, wait_for: Any) -> None:
    camera = Camera(broker, "a", records("hevc-b"), "hevc")
    mux = start(["a"], rate=1)
    camera.send(PASSED)
    wait_for(settled(mux, PASSED))
    slow = taken(mux)
    mux.set_rate("a", None)
    camera.send(KEY + GOP - PASSED)
    wait_for(lambda: mux.accounts()["a"].received == KEY + GOP)
    camera.producer.end()
    wait_for(lambda: mux.status()["sources"]["a"]["state"] == State.ENDED)
    assert len(slow) == 8
    assert sorted(taken(mux)) == list(range(KEY, KEY + GOP)), "every picture from the next keyframe on"
    assert set(mux.accounts()["a"].dropped) == {"rate"}


def test_pause_resume_and_seek_while_passing_over(start: Any, broker: Broker, wait_for: Any) -> None:
    camera = Camera(broker, "a", records("h264-b"))
    mux = start(["a"], rate=1)
    camera.send(PASSED)
    wait_for(settled(mux, PASSED))
    assert len(taken(mux)) == 8
    mux.pause("a")
    wait_for(lambda: mux.read("a", timeout=0).status == "paused")
    camera.send(KEY + 5 - PASSED)
    mux.resume("a")
    wait_for(settled(mux, KEY + 5))
    assert taken(mux) == [KEY]
    mux.seek("a", 10)
    wait_for(settled(mux, KEY + 5 + KEY + 5 - 10))
    again = taken(mux)
    assert again[0] == GOP, "the first keyframe from there on"
    assert again == [n * GOP for n in range(1, KEY // GOP + 1)]
    account = mux.accounts()["a"]
    assert account.dropped["resync"] == GOP - 10
    assert set(account.dropped) == {"rate", "resync"}


def test_another_size_while_passing_over(start: Any, broker: Broker, wait_for: Any) -> None:
    """The decoder goes on under the source that takes over, with that one's rate."""
    camera = Camera(broker, "a", records("h264"))
    mux = start(["a"], rate=1)
    camera.send(PASSED)
    wait_for(settled(mux, PASSED))
    assert len(taken(mux)) == 8
    mux.update("a", W=80, H=60, rate=2)
    camera.send()
    wait_for(settled(mux, FRAMES))
    got = []
    while item := mux.read("a", timeout=0):
        assert item.array.shape == (60, 80, 3)
        got.append(item.index)
    assert got == [KEY, KEY + 15, KEY + 30, KEY + 45, KEY + 60, KEY + 75]
    assert set(mux.accounts()["a"].dropped) == {"rate"}


def test_everything_that_came_is_re_emitted_with_emit_all(start: Any, broker: Broker, wait_for: Any) -> None:
    camera = Camera(broker, "a", records("h264"))
    mux = start(["a"], rate=1, emit="all", emit_wait=0.1, produce_schema="out_:cam_id")
    camera.send()
    wait_for(lambda: mux.status()["results"]["delivered"] == FRAMES, 30)
    with broker.consumer("out_a", start="beginning") as results:
        assert [one.value for one in results.poll(5, FRAMES)] == [one.value for one in camera.fed]
    assert len(taken(mux)) == 11


@pytest.mark.parametrize("mode", ["freshest", "every_frame"])
def test_freshest_hurries_from_half_of_the_limit_on(
    mode: str, start: Any, broker: Broker, wait_for: Any, submitted: list[int]
) -> None:
    """A hundred behind of at most 150: as far as 75 what no other picture refers to is left out, counted ``lag``."""
    camera = Camera(broker, "a", records("h264-b", frames=120))
    camera.send(100)
    mux = start(["a"], mode=mode, max_offset_diff=150, store_bytes=1 << 30)
    if mode == "every_frame":
        wait_for(lambda: mux.accounts()["a"].held.get("pictures", 0) >= 64)
        seen = [item.index for _ in range(90) if (item := mux.read("a", timeout=5))]
        assert len(seen) == len(set(seen)) == 90
        assert mux.accounts()["a"].dropped == {}
        return
    wait_for(lambda: mux.accounts()["a"].received == 100 and not mux.accounts()["a"].held.get("queue"))
    wait_for(lambda: len(submitted) + mux.accounts()["a"].dropped.get("lag", 0) == 100)
    left_out = mux.accounts()["a"].dropped["lag"]
    assert 8 <= left_out <= 25 * 2 // 3 + 1
    assert set(mux.accounts()["a"].dropped) == {"lag", "superseded"}
    assert mux.status()["sources"]["a"]["state"] == State.RUNNING
    camera.send(20)
    wait_for(lambda: len(submitted) == 120 - left_out)
    assert mux.accounts()["a"].dropped["lag"] == left_out, "nothing more: it has caught up"


def test_sixty_four_slow_cameras_are_all_served(start: Any, broker: Broker, wait_for: Any) -> None:
    """One picture a second of each, published at once: every one gets as many, and the codecs are left most of it."""
    cams = [f"cam{n}" for n in range(64)]
    for cam in cams:
        Camera(broker, cam, records("h264", frames=180)).send()
    mux = start(cams, rate=1, max_offset_diff=100_000)
    wait_for(lambda: all(settled(mux, 180, cam)() for cam in cams), 60)
    counts = sorted(len(taken(mux, cam)) for cam in cams)
    assert counts[0] >= 0.8 * counts[32]
    assert counts[32] == 6
    for account in mux.accounts().values():
        assert account.dropped == {"rate": 174}
