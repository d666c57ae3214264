"""What a packet is, without decoding: sizes, starts, cuts, numbers; and never an exception, whatever the bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comux.decoders.bits import BitReader, BitsExhaustedError, length_prefixed_to_annex_b, unescape
from comux.decoders.encode import VideoEncoder
from comux.decoders.frames import MjpegInspector, Vp9Inspector, vp9_frames
from comux.decoders.nal import H264Inspector, parse_sps, recovery_point
from comux.decoders.packets import VIDEO_CODECS, inspector_for
from comux.decoders.units import Begin, Kind


class Bits:
    """Writes what ``BitReader`` reads."""

    def __init__(self):
        self.text = ""

    def u(self, n, value):
        self.text += format(value, f"0{n}b") if n else ""
        return self

    def ue(self, *values):
        for value in values:
            code = bin(value + 1)[2:]
            self.text += "0" * (len(code) - 1) + code
        return self

    def se(self, *values):
        return self.ue(*(2 * v - 1 if v > 0 else -2 * v for v in values))

    def bytes(self):
        text = self.text + "1"
        text += "0" * (-len(text) % 8)
        raw = int(text, 2).to_bytes(len(text) // 8, "big")
        out = bytearray()
        for byte in raw:
            if len(out) >= 2 and out[-1] == out[-2] == 0 and byte <= 3:
                out.append(3)
            out.append(byte)
        return bytes(out)


def nal(head, bits):
    return b"\x00\x00\x00\x01" + bytes([head]) + bits.bytes()


def sps(profile=77, *, gaps=0, frame_only=1, crop=(0, 0, 0, 0), scaling=False, poc_type=0, number=0):
    b = Bits().u(8, profile).u(8, 0).u(8, 31).ue(number)
    if profile == 100:
        b.ue(1, 0, 0).u(1, 0).u(1, int(scaling))
        if scaling:
            for i in range(8):
                b.u(1, i % 2)
                if i % 2:
                    b.se(*([1] * (16 if i < 6 else 64)))
    b.ue(0, poc_type)
    if poc_type == 0:
        b.ue(2)
    elif poc_type == 1:
        b.u(1, 0).se(0, 0).ue(1).se(2)
    b.ue(2).u(1, gaps).ue(119, 67 if frame_only else 33).u(1, frame_only)
    if not frame_only:
        b.u(1, 0)
    b.u(1, 1)
    b.u(1, int(any(crop)))
    if any(crop):
        b.ue(*crop)
    return b.u(1, 0)


def pps(*, redundant=0, weighted=0, number=0, groups=0):
    b = Bits().ue(number, 0).u(1, 0).u(1, 0).ue(groups).ue(0, 0).u(1, weighted).u(2, 0).se(0, 0, 0).u(2, 0)
    return b.u(1, redundant)


def slice_(number, kind=0, *, field=None, idr=False, mmco=(), first_mb=0, redundant=None, weighted=False, lists=()):
    """A frame_num of 4 bits (MaxFrameNum 16), POC type 0 with 6 bits."""
    b = Bits().ue(first_mb, kind, 0).u(4, number)
    if field is not None:
        b.u(1, 1).u(1, field)
    if idr:
        b.ue(0)
    b.u(6, 5)
    if redundant is not None:
        b.ue(redundant)
    if kind % 5 == 0:
        b.u(1, 0)
        b.u(1, int(bool(lists)))
        if lists:
            b.ue(*lists, 3)
        if weighted:
            b.ue(3, 3).u(1, 1).se(2, -1).u(1, 1).se(1, 2, 3, -4)
    if idr:
        b.u(2, 0)
    else:
        b.u(1, int(bool(mmco)))
        if mmco:
            b.ue(*mmco, 0)
    return b.u(16, 0xABCD)


IDR, REF, NONREF, SPS, PPS = 0x65, 0x41, 0x01, 0x67, 0x68


def gaps(packets, **parameters):
    """Offsets at which continuity raises an alarm."""
    inspector = H264Inspector()
    pps_settings = {k: parameters.pop(k) for k in ("redundant", "weighted") if k in parameters}
    inspector.inspect(nal(SPS, sps(**parameters)) + nal(PPS, pps(**pps_settings)))
    out = []
    for at, packet in enumerate(packets):
        for unit in inspector.inspect(packet):
            if at == 0:
                inspector.begin(unit)
            elif inspector.continuity(unit):
                out.append(at)
    return out


def test_exp_golomb_and_emulation_prevention_round_trip():
    values = [0, 1, 2, 7, 8, 255, 65_535, (1 << 31) - 2]
    signed = [0, 1, -1, 17, -300]
    written = Bits().ue(*values).se(*signed).u(13, 0).u(11, 2047)
    reader = BitReader(unescape(written.bytes()))
    assert [reader.ue() for _ in values] == values and [reader.se() for _ in signed] == signed
    assert reader.u(13) == 0 and reader.u(11) == 2047
    with pytest.raises(BitsExhaustedError):
        BitReader(b"\x00\x00").ue()
    with pytest.raises(BitsExhaustedError):
        BitReader(b"\xff").u(9)
    assert unescape(b"\x00\x00\x03\x01\x00\x00\x03\x00\x00\x03") == b"\x00\x00\x01\x00\x00\x00\x00"


@pytest.mark.parametrize(
    ("settings_", "size"),
    [
        ({}, (1920, 1088)),
        ({"crop": (0, 0, 0, 4)}, (1920, 1080)),
        ({"crop": (1, 2, 0, 4), "profile": 100, "scaling": True}, (1914, 1080)),
        ({"frame_only": 0, "crop": (0, 0, 0, 2)}, (1920, 1080)),
        ({"poc_type": 1}, (1920, 1088)),
        ({"poc_type": 2, "profile": 66}, (1920, 1088)),
    ],
)
def test_h264_sizes(settings_, size):
    number, parsed = parse_sps(sps(number=3, **settings_).bytes())
    assert (number, parsed.width, parsed.height) == (3, *size)


@pytest.mark.parametrize("codec", VIDEO_CODECS)
@pytest.mark.parametrize("size", [(160, 120), (162, 122), (322, 66), (161, 119)])
def test_sizes_are_those_the_codec_decodes(kit, codec, size):
    if codec in ("h264", "hevc") and size[0] % 2:
        size = (size[0] + 1, size[1] + 1)
    with VideoEncoder(codec, *size, gop=5, bframes=0) as encoder:
        image = np.zeros((size[1], size[0], 3), np.uint8)
        packets = [p.data for n in range(3) for p in encoder.encode(image, n)] + [p.data for p in encoder.flush()]
    (unit,) = inspector_for(codec).inspect(packets[0])
    assert unit.size == size and unit.begins is Begin.CLEAN and unit.kind is Kind.PICTURE


def test_numbers_that_rise_raise_no_alarm_and_gaps_do():
    start = nal(IDR, slice_(0, 7, idr=True))
    p = [nal(REF, slice_(n % 16)) for n in range(40)]
    b = [nal(NONREF, slice_(n % 16, 1)) for n in range(40)]
    assert gaps([start, *p[1:]]) == []
    assert gaps([start, p[1], b[2], b[2], p[2], b[3], p[3]]) == []
    assert gaps([start, p[1], p[3], p[4]]) == [2]
    assert gaps([start, p[1], p[2], p[2], p[3]]) == [3], "a reference picture that came twice"
    assert gaps([start, p[1], p[2], b[2], p[3]]) == [3], "a B-picture that came after the picture it precedes"
    assert gaps([start, *p[1:9], *p[1:5]]) == [9]
    assert gaps([start, p[1], p[5], p[6]], gaps=1) == []
    assert gaps([start, p[1], p[2], start, p[1]]) == []


def test_an_encoder_that_counts_otherwise_is_not_alarmed_for_ever():
    start = nal(IDR, slice_(0, 7, idr=True))
    packets = [start]
    for n in range(1, 15):
        packets += [nal(REF, slice_(n)), nal(NONREF, slice_(n, 1))]
    assert len(gaps(packets)) == 8


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("lists", [(), (0, 4, 1, 0, 2, 1)])
def test_operation_5_restarts_the_numbers(weighted, lists):
    more = {"weighted": weighted, "lists": lists}
    start = nal(IDR, slice_(0, 7, idr=True))
    one = nal(REF, slice_(1, **more))
    restart = nal(REF, slice_(2, mmco=(1, 0, 2, 3, 3, 1, 1, 4, 2, 6, 0, 5), **more))
    plain = nal(REF, slice_(2, mmco=(1, 0, 4, 2), **more))
    parameters = {"weighted": int(weighted)}
    assert gaps([start, one, restart, one, nal(REF, slice_(2, **more))], **parameters) == []
    assert gaps([start, one, restart, nal(REF, slice_(4, **more))], **parameters) == [3]
    assert gaps([start, one, plain, one], **parameters) == [3]


def test_two_fields_are_one_picture_in_one_record_or_two():
    top, bottom = (nal(REF, slice_(1, field=f)) for f in (0, 1))
    start = nal(IDR, slice_(0, 7, idr=True, field=0)) + nal(REF, slice_(0, field=1))
    inspector = H264Inspector()
    inspector.inspect(nal(SPS, sps(frame_only=0)) + nal(PPS, pps()))
    assert [u.kind for u in inspector.inspect(start)] == [Kind.PICTURE]
    assert [u.kind for u in inspector.inspect(top + bottom)] == [Kind.PICTURE]
    assert [u.kind for u in inspector.inspect(nal(REF, slice_(2, field=0)))] == [Kind.PICTURE]
    assert [u.kind for u in inspector.inspect(nal(REF, slice_(2, field=1)))] == [Kind.COMPLEMENT]
    assert [u.kind for u in inspector.inspect(nal(REF, slice_(3, field=1)))] == [Kind.PICTURE]
    pairs = [
        start,
        top,
        bottom,
        nal(REF, slice_(2, field=0)),
        nal(REF, slice_(2, field=1)),
        nal(REF, slice_(3, field=0)),
    ]
    assert gaps(pairs, frame_only=0) == []


def test_redundant_slices_are_no_new_picture():
    inspector = H264Inspector()
    inspector.inspect(nal(SPS, sps()) + nal(PPS, pps(redundant=1)))
    twice = nal(REF, slice_(1, redundant=0)) + nal(REF, slice_(1, redundant=1))
    assert [u.kind for u in inspector.inspect(twice)] == [Kind.PICTURE]


def test_units_cover_a_packet_in_order_with_what_belongs_to_each(kit):
    sets = nal(SPS, sps()) + nal(PPS, pps())
    delimiter, message = b"\x00\x00\x01\x09\xf0", b"\x00\x00\x01\x06\x05\x01\x07\x80"
    recovery = b"\x00\x00\x00\x01\x06\x06\x01\xc4\x80"
    first = sets + nal(IDR, slice_(0, 7, idr=True)) + nal(IDR, slice_(0, 7, idr=True, first_mb=99))
    second = delimiter + message + nal(REF, slice_(1))
    third = delimiter + recovery + nal(REF, slice_(2, 7))
    data = first + second + third + sets
    units = H264Inspector().inspect(data)
    assert [(u.begin_byte, u.end_byte) for u in units] == [
        (0, len(first)),
        (len(first), len(first + second)),
        (len(first + second), len(data) - len(sets)),
        (len(data) - len(sets), len(data)),
    ]
    assert [u.kind for u in units] == [Kind.PICTURE] * 3 + [Kind.PARAMETERS]
    assert [u.begins for u in units] == [Begin.CLEAN, Begin.NO, Begin.OPEN, Begin.NO]
    assert [u.size for u in units] == [(1920, 1088), None, None, (1920, 1088)]


def test_recovery_points_are_found_behind_other_messages():
    user_data = b"\x05" + b"\xff\x2d" + bytes([7] * 300)
    assert recovery_point(b"\x06\x01\xc4\x80") == 0
    assert recovery_point(b"\x01\x02\x00\x00\x06\x01" + Bits().ue(5).u(1, 1).bytes() + b"\x80") == 5
    assert recovery_point(b"\x05\x02ab\x80") is None and recovery_point(user_data) is None
    assert recovery_point(b"\xff" * 40) is None and recovery_point(b"") is None


def test_length_prefixes_must_add_up():
    assert length_prefixed_to_annex_b(b"\x00\x02ab\x00\x01c", 2) == b"\x00\x00\x00\x01ab\x00\x00\x00\x01c"
    for bad in (b"\x00\x05ab", b"\x00\x00", b"\x00\x01a\x00"):
        assert length_prefixed_to_annex_b(bad, 2) is None


def test_superframes_and_hidden_frames_of_vp9():
    hidden = Bits().u(2, 2).u(2, 0).u(1, 0).u(1, 1).u(1, 0).u(1, 0).u(24, 5).bytes()
    shown = Bits().u(2, 2).u(2, 0).u(1, 0).u(1, 1).u(1, 1).u(1, 0).u(24, 5).bytes()
    repeat = Bits().u(2, 2).u(2, 0).u(1, 1).u(3, 4).bytes()
    marker = bytes([0xC0 | 1 << 3 | 1])
    lengths = b"".join(len(frame).to_bytes(2, "little") for frame in (hidden, shown))
    packed = hidden + shown + marker + lengths + marker
    assert vp9_frames(packed) == [(0, len(hidden)), (len(hidden), len(hidden + shown))]
    assert vp9_frames(packed[1:]) == [(0, len(packed) - 1)], "an index that does not add up is none"
    kinds = [Vp9Inspector().inspect(data)[0].kind for data in (hidden, shown, repeat, packed, b"\x00\x00")]
    assert kinds == [Kind.HIDDEN, Kind.PICTURE, Kind.PICTURE, Kind.PICTURE, Kind.INVALID]
    assert not any(Vp9Inspector().starts(data) for data in (hidden, shown, repeat, packed))


def test_jpegs_in_one_record_are_told_apart_and_a_cut_one_is_seen(kit):
    one, two, *_ = kit.stream("mjpeg").packets
    units = MjpegInspector().inspect(one + two)
    assert [(u.begin_byte, u.end_byte, u.kind) for u in units] == [
        (0, len(one), Kind.PICTURE),
        (len(one), len(one) + len(two), Kind.PICTURE),
    ]
    assert MjpegInspector().inspect(one[:-50])[0].kind is Kind.INVALID
    assert MjpegInspector().inspect(one[:40])[0].kind is Kind.INVALID


@pytest.mark.parametrize("codec", VIDEO_CODECS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_bytes_raise_and_units_never_overlap(kit, codec, data):
    source = kit.stream(codec)
    kind = data.draw(st.sampled_from(["random", "flip", "cut", "joined"]))
    packet = source.packets[data.draw(st.integers(0, len(source.packets) - 1))]
    if kind == "random":
        packet = data.draw(st.sampled_from([b"", b"\x00\x00\x01", b"\xff\xd8", b"\x12\x00"])) + data.draw(st.binary())
    elif kind == "flip":
        damaged = bytearray(packet)
        for _ in range(data.draw(st.integers(1, 8))):
            damaged[data.draw(st.integers(0, min(len(damaged), 60) - 1))] ^= data.draw(st.integers(1, 255))
        packet = bytes(damaged)
    elif kind == "cut":
        packet = packet[: data.draw(st.integers(1, len(packet)))]
    else:
        packet = packet[data.draw(st.integers(0, len(packet) - 1)) :] + packet
    packet = packet or b"\x00"
    inspector = inspector_for(codec)
    inspector.inspect(source.packets[0])
    units = inspector.inspect(packet)
    assert units
    place = 0
    for unit in units:
        assert place <= unit.begin_byte <= unit.end_byte <= len(packet)
        place = unit.end_byte
        inspector.continuity(unit)
    assert inspector.starts(packet) in (True, False)
    inspector.parameters(packet)
    inspector.normalise(packet)
