"""What can be left out: disposable pictures, proved by leaving them out, and the rest of GOPs whose length is known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest

from comux.decoders.packets import inspector_for
from comux.decoders.skipping import Skipper
from comux.decoders.units import Begin, Kind, Unit

SECOND = 1_000_000_000
STEP = SECOND // 30


@dataclass
class Every:
    """Takes a picture every ``period_ns``, the next one at ``due_ns``; ``None``: does not know."""

    period_ns: int
    due_ns: int | None
    aligned: list[int] = field(default_factory=list)

    def not_before(self, waiting: Iterable[int]) -> int | None:
        due = self.due_ns
        for capture_ns in sorted(waiting):
            if due is not None and capture_ns >= due:
                due += self.period_ns
        return due

    def align(self, capture_ns: int) -> None:
        self.aligned.append(capture_ns)


def skipper(selection: Every | None, gops: Iterable[int] = (30, 30, 30)) -> tuple[Skipper, int]:
    """One that saw GOPs of so many pictures, thirty a second, and the keyframe of the next; and that one's time."""
    made, now = Skipper(), 0
    made.selection = selection
    for gop in gops:
        for n in range(gop):
            made.see(now, key=n == 0)
            now += STEP
    made.see(now, key=True)
    return made, now


def picture(**settings: object) -> Unit:
    return Unit(0, 1, Kind.PICTURE, **settings)  # type: ignore[arg-type]


# -- disposable pictures -----------------------------------------------------------------------------------------------

HAS_SOME = (
    "h264", "h264-250", "h264-open", "h264-pyramid", "h264-strict", "h264-short", "hevc", "hevc-open", "hevc-pyramid",
    "mjpeg",
)  # fmt: skip
HAS_NONE = ("h264-plain", "h264-baseline", "h264-refresh", "vp9", "vp9-lag", "av1", "av1-pyramid")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", HAS_SOME)
def test_without_its_disposable_pictures_a_stream_decodes_to_the_same_others(kit, name, threads):
    """All of them left out, then each third: nothing is flagged, no other picture changes by one byte."""
    source = kit.stream(name)
    inspector = inspector_for(source.codec)
    disposable = [unit.disposable for data in source.packets for unit in inspector.inspect(data)]
    assert len(disposable) == len(source.packets)
    assert any(disposable)
    reference = source.decode_all()
    for every in (1, 3):
        left_out = [n for n, can in enumerate(disposable) if can][::every]
        if source.codec != "mjpeg":
            assert not any(source.keys[n] for n in left_out)
        records = [kit.record(n, data) for n, data in enumerate(source.packets) if n not in left_out]
        # What stays is numbered anew, as if the others had never been.
        made = kit.decoder(source, threads=threads)
        again = [kit.record(k, one.value) for k, one in enumerate(records)]
        outcomes = kit.run(made, again)
        assert dict(made.damage) == {}
        assert [o.cause for o in outcomes if o.picture is None] == []
        for outcome in outcomes:
            offset = records[outcome.record.offset].offset
            assert kit.pixels(outcome.picture.frame) == reference[offset]


@pytest.mark.parametrize("name", HAS_NONE)
def test_streams_without_disposable_pictures(kit, name):
    source = kit.stream(name)
    inspector = inspector_for(source.codec)
    assert not any(unit.disposable for data in source.packets for unit in inspector.inspect(data))


def test_fields_are_not_left_out_one_by_one(kit):
    """MBAFF pictures are frames, and may be; the parser says so of no lone field."""
    source = kit.stream("h264-mbaff")
    inspector = inspector_for(source.codec)
    units = [unit for data in source.packets for unit in inspector.inspect(data)]
    assert any(unit.disposable for unit in units)
    assert not any(unit.disposable for unit in units if unit.reference or unit.begins is not Begin.NO)


def hevc_sps(sub_layers: int, number: int = 0) -> bytes:
    """A sequence parameter set of 64x64 that announces so many temporal sub-layers, without start code escapes."""
    bits = f"{0:04b}{sub_layers - 1:03b}1" + "01" * 44 + f"{93:08b}"
    bits += "00" * (sub_layers - 1) + ("00" * (8 - sub_layers + 1) if sub_layers > 1 else "")

    def ue(value: int) -> str:
        code = f"{value + 1:b}"
        return "0" * (len(code) - 1) + code

    bits += ue(number) + ue(1) + ue(64) + ue(64) + "0" + ue(0) + ue(0) + ue(4) + "1"
    bits += "0" * (-len(bits) % 8)
    return b"\x00\x00\x00\x01\x42\x01" + int(bits, 2).to_bytes(len(bits) // 8, "big")


def hevc_slice(kind: int, temporal_id: int) -> bytes:
    return b"\x00\x00\x00\x01" + bytes([kind << 1, temporal_id + 1]) + b"\x80\x11\x22\x33"


@pytest.mark.parametrize("sub_layers", [1, 2, 3])
@pytest.mark.parametrize("kind", range(16))
@pytest.mark.parametrize("temporal_id", [0, 1, 2])
def test_hevc_only_non_reference_pictures_of_the_highest_sub_layer(sub_layers, kind, temporal_id):
    inspector = inspector_for("hevc")
    (parameters,) = inspector.inspect(hevc_sps(sub_layers))
    assert parameters.size == (64, 64)
    (unit,) = inspector.inspect(hevc_slice(kind, temporal_id))
    assert unit.disposable is (kind % 2 == 0 and temporal_id >= sub_layers - 1)


def test_hevc_sets_that_differ_or_cannot_be_read_leave_less_out():
    inspector = inspector_for("hevc")
    assert not inspector.inspect(hevc_slice(0, 0))[0].disposable, "no set came yet"
    inspector.inspect(hevc_sps(1))
    assert inspector.inspect(hevc_slice(0, 0))[0].disposable
    inspector.inspect(hevc_sps(3, number=1))
    assert not inspector.inspect(hevc_slice(0, 0))[0].disposable, "it may be the other one's"
    assert inspector.inspect(hevc_slice(0, 2))[0].disposable
    inspector.inspect(hevc_sps(1, number=1))
    assert inspector.inspect(hevc_slice(0, 0))[0].disposable, "that one was replaced"
    inspector.inspect(b"\x00\x00\x00\x01\x42\x01\xff")
    assert not inspector.inspect(hevc_slice(0, 0))[0].disposable


def test_h264_a_second_field_in_the_same_packet_or_unknown_sets_leave_nothing_out(kit):
    source = kit.stream("h264")
    bare = inspector_for("h264")
    assert not any(
        unit.disposable for data in source.packets for unit in bare.inspect(data[data.rfind(b"\x00\x00\x01") :])
    ), "without parameter sets nobody knows whether it is a field"


# -- when --------------------------------------------------------------------------------------------------------------


def test_only_a_disposable_picture_before_the_due_time_is_not_due():
    made, now = skipper(Every(SECOND, 5 * SECOND))
    assert made.leaves_out(picture(disposable=True), now) == "rate"
    assert made.leaves_out(picture(disposable=True), 5 * SECOND) == ""
    assert made.leaves_out(picture(), now) == ""
    assert made.leaves_out(picture(disposable=True, sets=frozenset({7})), now) == "", "the codec must see the sets"
    for unknown in (Every(SECOND, None), None):
        made.selection = unknown
        assert made.leaves_out(picture(disposable=True), now) == ""


def test_in_a_hurry_a_disposable_picture_is_left_out_even_if_due():
    made, now = skipper(Every(SECOND, 5 * SECOND))
    made.hurried = True
    assert made.leaves_out(picture(disposable=True), now) == "rate"
    assert made.leaves_out(picture(disposable=True), 5 * SECOND) == "lag"
    assert made.leaves_out(picture(), 5 * SECOND) == ""
    made.selection = None
    assert made.leaves_out(picture(disposable=True), now) == "lag"
    assert made.leaves_out(picture(disposable=True, sets=frozenset({7})), now) == ""


def test_the_rest_of_a_gop_goes_where_nothing_is_due_before_the_next_keyframe():
    made, key = skipper(Every(SECOND // 2, 0))
    made.selection = Every(SECOND // 2, key + SECOND // 2)
    assert not made.passes_over(key + STEP, []), "one is due half way"
    assert not made.passes_over(key + SECOND // 2, [])
    assert made.passes_over(key + 16 * STEP, [key + 15 * STEP + 10]), "it is in the decoder"
    made.selection = Every(SECOND // 2, key + SECOND)
    assert made.passes_over(key + 16 * STEP, [])
    made.selection = Every(SECOND // 2, key + 29 * STEP)
    assert made.passes_over(key + 16 * STEP, []), "the keyframe after it comes in place of the last picture"
    made.selection = Every(SECOND // 2, key + 28 * STEP)
    assert not made.passes_over(key + 16 * STEP, [])


def test_below_one_picture_a_gop_only_keyframes_are_taken():
    made, key = skipper(None)
    made.selection = Every(2 * SECOND, key + SECOND // 2)
    assert made.passes_over(key, []), "the first keyframe after the due time is the next"
    assert made.passes_over(key + 3 * STEP, [])
    made.selection = Every(2 * SECOND, key - SECOND // 2)
    assert not made.passes_over(key, [])
    assert made.passes_over(key + STEP, [key])


@pytest.mark.parametrize(
    ("gops", "known"),
    [
        ((), False),
        ((30, 30), False),
        ((30, 30, 30), True),
        ((30, 31, 30, 30), True),
        ((30, 30, 30, 90), False),
        ((30, 30, 90, 90, 90), True),
        ((30, 11, 30, 4, 30), True),
        ((12, 55, 31, 7, 40, 22, 18, 9), False),
        ((1, 1, 1), True),
    ],
)
def test_a_gop_has_a_known_end_where_the_longest_came_three_times(gops, known):
    made, key = skipper(None, gops)
    made.selection = Every(100 * SECOND, key + 90 * SECOND)
    assert made.passes_over(key, []) is known


def test_a_gop_longer_than_any_before_is_decoded_to_its_end():
    made, key = skipper(None)
    made.selection = Every(100 * SECOND, key + 90 * SECOND)
    assert made.passes_over(key + 29 * STEP, [])
    assert not made.passes_over(key + 32 * STEP, [])


def test_a_gop_with_something_missing_has_no_length():
    made, key = skipper(None, (30, 30))
    made.selection = Every(100 * SECOND, key + 90 * SECOND)
    made.interrupted()
    for n in range(1, 31):
        made.see(key + n * STEP, key=n == 30)
    assert not made.passes_over(key + 30 * STEP, [])
    for n in range(31, 61):
        made.see(key + n * STEP, key=n == 60)
    assert made.passes_over(key + 60 * STEP, [])
    made.forget_place()
    assert not made.passes_over(key + 61 * STEP, []), "where it is in a GOP is not known"


def after_jumps(count: int, *, period_ns: int, apart_ns: int = SECOND) -> Skipper:
    """One that was made to jump again and again, each time in the middle of a GOP."""
    made, _ = skipper(Every(period_ns, 100 * SECOND), ())
    for jump in range(1, count + 1):
        for n in range(1, 20):
            made.see((jump - 1) * apart_ns + n * STEP, key=False)
        made.forget_place(jumped=True)
        made.see(jump * apart_ns, key=True)
    return made


def test_who_never_has_time_to_learn_gops_goes_by_keyframes_until_they_are_known():
    """Many cameras that start together: each jumped before it had seen a GOP to its end, for ever."""
    assert not after_jumps(1, period_ns=SECOND).passes_over(SECOND + STEP, [])
    made = after_jumps(2, period_ns=SECOND)
    assert made.passes_over(2 * SECOND + STEP, [])
    assert not made.passes_over(2 * SECOND, []), "a keyframe is taken"
    now = 2 * SECOND
    for _ in range(3):  # what is passed over is seen all the same
        for n in range(1, 30):
            made.see(now + n * STEP, key=False)
        now += SECOND
        made.see(now, key=True)
    made.selection = Every(SECOND // 2, now + SECOND // 2)
    assert not made.passes_over(now + STEP, []), "now it is known that half a second later one is due in this GOP"
    assert made._jumps == 0, "and that will be so where lengths are forgotten later"


def test_nobody_goes_by_keyframes_that_are_far_apart():
    assert not after_jumps(5, period_ns=SECOND, apart_ns=5 * SECOND).passes_over(25 * SECOND + STEP, [])
    assert after_jumps(5, period_ns=SECOND, apart_ns=4 * SECOND).passes_over(20 * SECOND + STEP, [])
    assert not after_jumps(5, period_ns=SECOND // 10).passes_over(5 * SECOND + STEP, [])


def test_without_a_rate_nothing_is_passed_over_after_jumps():
    made = after_jumps(5, period_ns=SECOND)
    made.selection = Every(SECOND, None)
    assert not made.passes_over(5 * SECOND + STEP, [])


def test_a_keyframe_is_missing_when_a_picture_is_due_and_the_gop_too_long():
    made, key = skipper(Every(SECOND, 0))
    made.selection = Every(SECOND, key + SECOND)
    assert not made.keyframe_is_missing(key + 20 * STEP, doubtful=True)
    assert not made.keyframe_is_missing(key + SECOND, doubtful=True), "it may be a little late"
    assert made.keyframe_is_missing(key + 34 * STEP, doubtful=True)
    for n in range(1, 62):
        made.see(key + n * STEP, key=False)
    assert not made.keyframe_is_missing(key + 3600 * SECOND, doubtful=False), "the clock may have leapt"
    made.see(key + 62 * STEP, key=False)
    assert made.keyframe_is_missing(key + 62 * STEP, doubtful=False)
    made.selection = Every(SECOND, key + 3 * SECOND)
    assert not made.keyframe_is_missing(key + 34 * STEP, doubtful=True), "nothing is due"


@pytest.mark.parametrize(
    ("per_second", "aligns"), [(2, True), (10, True), (3, True), (1, False), (0.5, False), (1.7, False)]
)
def test_due_times_are_counted_from_a_keyframe_where_gops_are_whole_numbers_of_them(per_second, aligns):
    selection = Every(round(SECOND / per_second), 0)
    _, key = skipper(selection)
    assert selection.aligned == ([key] if aligns else [])
    other = Every(round(SECOND / per_second), 0)
    skipper(other, (30, 30))
    assert other.aligned == [], "two GOPs say nothing"


def test_times_that_do_not_rise_are_no_lengths():
    made = Skipper()
    made.selection = Every(100 * SECOND, 90 * SECOND)
    for n in range(10):
        made.see(5 * SECOND, key=n % 2 == 0)
    assert not made.passes_over(5 * SECOND, [])
    for n in range(10):
        made.see((20 - n) * SECOND, key=True)
    assert not made.passes_over(11 * SECOND, [])
    made = Skipper()
    made.selection = Every(100 * SECOND, 90 * SECOND)
    for n in range(100):
        made.see(30 * SECOND + n // 20, key=n % 20 == 0)  # a nanosecond a GOP
    assert made.keyframe_is_missing(91 * SECOND, doubtful=False)


@pytest.mark.parametrize("codec", ["raw", "frames"])
def test_decoders_that_leave_nothing_out_say_so(kit, codec):
    from comux.decoders import DecoderOptions, create_decoder

    made = create_decoder(DecoderOptions(codec=codec, dtype="uint8", shape=(4, 4)))
    assert made.select(Every(SECOND, 0)) is False
    made.close()
