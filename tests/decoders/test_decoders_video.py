"""Packets in, pictures out: pairing, the last pictures, sizes, framing, garbage."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from comux.decoders import DecoderOptions, Identity, create_decoder, known_codecs
from comux.errors import ClosedError, ConfigError, UnknownCodecError

RECIPES = (
    "h264", "h264-plain", "h264-250", "h264-open", "h264-pyramid", "h264-strict", "h264-mbaff", "h264-refresh",
    "h264-baseline", "hevc", "hevc-open", "hevc-pyramid", "mjpeg", "vp9", "vp9-lag", "av1", "av1-pyramid",
)  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("ours", [True, False])
def test_every_picture_carries_the_offset_of_its_own_packet(kit, name, threads, ours):
    """GOPs, B-frames, pyramids, references, slices, fields, refresh: no false alarm, nothing missing, all paired."""
    source = kit.stream(name)
    base = (1 << 31) + 17
    records = kit.stamp_all(source, first=base) if ours else [
        kit.record(base + i, data) for i, data in enumerate(source.packets)
    ]  # fmt: skip
    made = kit.decoder(source, threads=threads)
    outcomes = kit.run(made, records)
    assert dict(made.damage) == {}
    pictures = [o.picture for o in outcomes if o.picture is not None]
    assert [o.cause for o in outcomes if o.picture is None] == []
    assert len(pictures) == len(source.packets)
    for picture in pictures:
        index = picture.identity.offset - base
        assert picture.identity == Identity(0, base + index, 0)
        assert picture.record is records[index]
        assert kit.read_number(picture.to_array()) == source.numbers[index]
        assert not picture.degraded
    shown = [source.numbers[p.identity.offset - base] for p in pictures]
    assert shown == sorted(shown)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_pixels_are_those_of_a_plain_decode(kit, name, threads):
    source = kit.stream(name)
    reference = source.decode_all()
    outcomes = kit.run(kit.decoder(source, threads=threads), kit.stamp_all(source))
    assert {o.record.offset: kit.pixels(o.picture.frame) for o in outcomes} == reference


def test_without_b_frames_and_with_one_thread_each_packet_answers_at_once(kit):
    source = kit.stream("h264-plain")
    made = kit.decoder(source)
    for one in kit.stamp_all(source):
        (outcome,) = made.feed(one)
        assert outcome.picture.record is one and made.in_flight == 0


def test_arrays_have_the_asked_for_size_and_format_and_belong_to_the_caller(kit):
    source = kit.stream("h264")
    outcomes = kit.run(kit.decoder(source, array_format="bgr24", width=80, height=60), kit.stamp_all(source))
    picture = outcomes[0].picture
    assert picture.array_spec() == ((60, 80, 3), np.dtype(np.uint8))
    first, second = picture.to_array(), picture.to_array()
    assert first.shape == (60, 80, 3) and not np.shares_memory(first, second)
    out = np.empty((60, 80, 3), np.uint8)
    assert picture.to_array(out) is out and np.array_equal(out, first)
    assert picture.nbytes > kit.WIDTH * kit.HEIGHT


def test_parameter_sets_in_a_record_of_their_own_are_absorbed_and_used(kit):
    source = kit.stream("h264")
    sets = source.extradata
    bare = [data.replace(sets[:0], b"") for data in source.packets]
    stripped = []
    for data in bare:
        units = [u for u in data.split(b"\x00\x00\x01") if u and (u[0] & 31) not in (7, 8)]
        stripped.append(b"".join(b"\x00\x00\x01" + u for u in units if u.strip(b"\x00")))
    records = [kit.record(0, sets)] + [kit.record(i + 1, data) for i, data in enumerate(stripped)]
    outcomes = kit.run(kit.decoder(source), records)
    assert [o.record.offset for o in outcomes if o.cause == "absorbed"] == [0]
    assert sum(o.picture is not None for o in outcomes) == len(stripped)


@pytest.mark.parametrize("value", [None, b""])
def test_an_empty_value_is_absorbed_and_never_ends_the_stream(kit, value):
    source = kit.stream("h264")
    records = [kit.record(i, data) for i, data in enumerate(source.packets)]
    records[20:20] = [kit.record(0, value)]
    records = [kit.record(i, one.value) for i, one in enumerate(records)]
    outcomes = kit.run(kit.decoder(source), records)
    assert [o.record.offset for o in outcomes if o.cause] == [20]
    assert sum(o.picture is not None for o in outcomes) == len(source.packets)


@pytest.mark.parametrize("name", ["h264", "h264-strict", "hevc", "mjpeg", "av1"])
def test_several_access_units_in_one_record_rise_in_sub(kit, name):
    source = kit.stream(name)
    groups = [source.packets[i : i + 3] for i in range(0, len(source.packets), 3)]
    outcomes = kit.run(kit.decoder(source), [kit.record(i, b"".join(group)) for i, group in enumerate(groups)])
    got = {(p.identity.offset, p.identity.sub): p for p in (o.picture for o in outcomes)}
    assert len(got) == len(source.packets)
    for (offset, sub), picture in got.items():
        assert kit.read_number(picture.to_array()) == source.numbers[offset * 3 + sub]


@pytest.mark.parametrize("name", ["h264", "h264-strict", "h264-open", "hevc", "mjpeg"])
@pytest.mark.parametrize("size", [97, 700, 5000])
def test_a_bytestream_picture_belongs_to_the_record_it_starts_in(kit, name, size):
    source = kit.stream(name)
    everything = b"".join(source.packets)
    starts = np.cumsum([0] + [len(data) for data in source.packets])[:-1]
    records = [kit.record(i, everything[at : at + size]) for i, at in enumerate(range(0, len(everything), size))]
    outcomes = kit.run(kit.decoder(source, framing="bytestream"), records)
    pictures = [o.picture for o in outcomes if o.picture is not None]
    assert len(pictures) == len(source.packets)
    for picture in pictures:
        index = source.numbers.index(kit.read_number(picture.to_array()))
        record_index = picture.identity.offset
        assert record_index == starts[index] // size
    assert {o.cause for o in outcomes if o.picture is None} <= {"absorbed"}
    holding = {int(s) // size for s in starts}
    assert {o.record.offset for o in outcomes if o.cause == "absorbed"} == set(range(len(records))) - holding


def test_avcc_packets_decode_with_their_extradata(kit):
    source = kit.stream("h264")

    def units(data):
        return [
            u.rstrip(b"\x00") for u in data.replace(b"\x00\x00\x00\x01", b"\x00\x00\x01").split(b"\x00\x00\x01") if u
        ]

    sps, pps = units(source.extradata)
    extradata = bytes([1, *sps[1:4], 0xFF, 0xE1]) + len(sps).to_bytes(2, "big") + sps
    extradata += b"\x01" + len(pps).to_bytes(2, "big") + pps
    records = []
    for i, data in enumerate(source.packets):
        kept = [u for u in units(data) if (u[0] & 31) not in (7, 8)]
        records.append(kit.record(i, b"".join(len(u).to_bytes(4, "big") + u for u in kept)))
    outcomes = kit.run(kit.decoder(source, extradata=extradata), records)
    assert sum(o.picture is not None for o in outcomes) == len(source.packets)
    broken = kit.decoder(source, extradata=extradata).feed(kit.record(0, b"\x00\x00\xff\xffjunk"))
    assert [o.cause for o in broken] == ["decode_error"]


def test_memoryviews_and_uint8_arrays_are_packets_too(kit):
    source = kit.stream("h264-plain")
    made = kit.decoder(source)
    kinds = [bytes, memoryview, bytearray, lambda data: np.frombuffer(data, np.uint8)]
    outcomes = kit.run(made, [kit.record(i, kinds[i % 4](data)) for i, data in enumerate(source.packets)])
    assert sum(o.picture is not None for o in outcomes) == len(source.packets)
    (bad,) = made.feed(kit.record(99, {"not": "a packet"}))
    assert bad.cause == "decode_error" and "dict" in bad.detail


@pytest.mark.parametrize("codec", ["h264", "hevc", "mjpeg", "vp9", "av1"])
def test_a_new_picture_size_in_mid_stream_goes_through(kit, codec):
    from comux.decoders.encode import VideoEncoder

    packets = []
    for width, height in ((160, 120), (320, 240), (160, 120)):
        with VideoEncoder(codec, width, height, gop=10) as encoder:
            for n in range(10):
                packets += encoder.encode(kit.draw(n, width, height), n)
            packets += encoder.flush()
    for settings, expected in (({}, {(120, 160), (240, 320)}), ({"width": 64, "height": 48}, {(48, 64)})):
        made = create_decoder(DecoderOptions(codec=codec, array_format="gray", **settings))
        outcomes = kit.run(made, [kit.record(i, p.data) for i, p in enumerate(packets)])
        pictures = [o.picture for o in outcomes if o.picture]
        assert len(pictures) == 30
        assert {p.to_array().shape for p in pictures} == expected
        assert [p.width for p in pictures][::10] == [160, 320, 160]


@pytest.mark.parametrize("codec", ["h264", "hevc", "mjpeg", "vp9", "av1"])
def test_a_picture_over_max_pixels_is_refused_before_decoding_and_a_smaller_one_taken_again(kit, codec):
    from comux.decoders.encode import VideoEncoder

    packets = []
    for width, height in ((160, 120), (320, 240), (160, 120)):
        with VideoEncoder(codec, width, height, gop=10, bframes=2) as encoder:
            for n in range(10):
                packets += encoder.encode(kit.draw(n, width, height), n)
            packets += encoder.flush()
    made = create_decoder(DecoderOptions(codec=codec, max_pixels=160 * 120))
    causes = {o.record.offset: o.cause for o in kit.run(made, [kit.record(i, p.data) for i, p in enumerate(packets)])}
    assert [causes[i] for i in range(30)] == [None] * 10 + ["too_large"] * 10 + [None] * 10


@pytest.mark.parametrize("codec", ["h264", "hevc", "mjpeg", "vp9", "av1"])
@pytest.mark.parametrize("running", [False, True])
def test_garbage_never_raises_and_never_becomes_a_picture(kit, codec, running):
    rng = np.random.default_rng(7)
    source = kit.stream(codec)
    made = kit.decoder(source)
    fed = source.packets[:5] if running else []
    sizes = [0, 1, 2, 3, 4, 5, 7, 100_000, *rng.integers(0, 3000, 92)]
    heads = (b"", b"\x00\x00\x00\x01\x67", b"\x00\x00\x01\x65", b"\xff\xd8\xff", b"\x12\x00\x0a", b"\x82\x49\x83\x42")
    junk = [heads[i % 6] * bool(n) + rng.bytes(int(n)) for i, n in enumerate(sizes)]
    outcomes = kit.run(made, [kit.record(i, data) for i, data in enumerate([*fed, *junk])])
    assert {o.record.offset for o in outcomes if o.picture} <= set(range(len(fed)))


def test_the_codec_writes_nothing_to_the_terminal():
    code = (
        "import os\n"
        "from comux.decoders import DecoderOptions, create_decoder\n"
        "from comux.records import Record\n"
        "for codec in ('h264', 'hevc', 'mjpeg', 'vp9', 'av1'):\n"
        "    for threads in (1, 2):\n"
        "        d = create_decoder(DecoderOptions(codec=codec, threads=threads, on_damage='deliver'))\n"
        "        for i in range(50): d.feed(Record('t', i, 0, b'\\0\\0\\1\\x65' + os.urandom(500)))\n"
        "        d.drain()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


def test_catching_up_decodes_without_pictures_and_needs_no_keyframe_to_go_on(kit):
    source = kit.stream("h264-250")
    records = kit.stamp_all(source)
    made = kit.decoder(source)
    outcomes = []
    for i, one in enumerate(records):
        made.set_converting(not 10 <= i < 40)
        outcomes += made.feed(one)
    outcomes += made.drain()
    assert sum(o.cause == "lag" for o in outcomes) == 30
    reference = source.decode_all()
    for o in outcomes:
        if o.picture:
            assert kit.pixels(o.picture.frame) == reference[o.record.offset]


def test_reset_answers_what_is_in_flight_and_waits_for_a_keyframe(kit):
    source = kit.stream("h264")
    records = kit.stamp_all(source)
    made = kit.decoder(source)
    outcomes = [o for one in records[:10] for o in made.feed(one)]
    held = made.in_flight
    assert held > 0
    assert [o.cause for o in made.reset("jumped")] == ["jumped"] * held and made.in_flight == 0
    assert made.resyncing
    later = [o for one in records[15:] for o in made.feed(one)] + made.drain()
    keys = [i for i, key in enumerate(source.keys) if key and i >= 15]
    assert min(o.record.offset for o in later if o.picture) == keys[0]
    assert {o.record.offset for o in later if o.cause == "resync"} == set(range(15, keys[0]))
    assert dict(made.damage) == {} and outcomes


def test_a_new_epoch_starts_at_a_keyframe_and_the_old_one_comes_out_whole(kit):
    source = kit.stream("h264")
    n = len(source.packets)
    for drained in (True, False):
        made = kit.decoder(source)
        outcomes = []
        for epoch in (0, 1):
            for i, data in enumerate(source.packets):
                outcomes += made.feed(kit.stamped(epoch * n + i, data, i, epoch=epoch))
            if drained:
                outcomes += made.drain()
        outcomes += made.drain()
        assert sum(o.picture is not None for o in outcomes) == 2 * n and dict(made.damage) == {}
        assert {o.picture.identity.epoch for o in outcomes} == {0, 1}


def test_starts_at_finds_keyframes_with_and_without_the_flag(kit):
    for name in ("h264", "h264-open", "hevc-open", "mjpeg", "vp9", "av1"):
        source = kit.stream(name)
        made = kit.decoder(source)
        found = [made.starts_at(kit.record(i, data)) for i, data in enumerate(source.packets)]
        assert found == source.keys, name
        assert made.starts_at(kit.stamped(0, b"anything", 0, key=True))
        assert not made.starts_at(kit.record(0, None))


def test_after_close_feed_raises_and_pictures_stay(kit):
    source = kit.stream("h264-plain")
    made = kit.decoder(source)
    (outcome,) = made.feed(kit.record(0, source.packets[0]))
    made.close()
    made.close()
    assert kit.read_number(outcome.picture.to_array()) == 0
    with pytest.raises(ClosedError, match="offset 1"):
        made.feed(kit.record(1, source.packets[1]))
    assert made.drain() == []


def test_unknown_codecs_and_wrong_settings_are_refused_by_name():
    assert set(known_codecs()) >= {"h264", "hevc", "mjpeg", "vp9", "av1", "raw", "frames"}
    assert create_decoder(DecoderOptions(codec="H265")).options.codec == "hevc"
    assert create_decoder(DecoderOptions(codec="mjpg")).options.codec == "mjpeg"
    with pytest.raises(UnknownCodecError, match=r"h263.*hevc"):
        create_decoder(DecoderOptions(codec="h263"))
    wrong = {
        "width": ["640", 0, -1, True, 2.5],
        "height": [0],
        "threads": [-1, None],
        "array_format": ["bgr", "native", None],
        "pix_fmt": ["yuv421p", 7],
        "on_damage": ["ignore"],
        "framing": ["stream"],
        "max_pixels": [0],
        "extradata": ["abc"],
        "dtype": ["object", "nonsense"],
        "shape": [[1, 2], (-1,)],
    }
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(ConfigError, match=name):
                create_decoder(DecoderOptions(**{name: value}))
    with pytest.raises(ConfigError, match="bytestream"):
        create_decoder(DecoderOptions(codec="vp9", framing="bytestream"))


def test_a_plug_in_is_one_class_and_one_entry_point(kit, tmp_path, monkeypatch):
    (tmp_path / "my_codec.py").write_text(
        "from comux.decoders.raw import RawDecoder\nclass Mine(RawDecoder):\n    pass\nnot_a_decoder = dict\n"
    )
    info = tmp_path / "my_codec-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-codec\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[comux.codecs]\nmine = my_codec:Mine\nwrong = my_codec:not_a_decoder\ngone = my_codec:Missing\n"
        "h264 = my_codec:Mine\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert {"mine", "wrong"} <= set(known_codecs())
    made = create_decoder(DecoderOptions(codec="mine"))
    assert type(made).__name__ == "Mine"
    assert made.feed(kit.record(0, np.arange(3)))[0].picture.to_array().tolist() == [0, 1, 2]
    with pytest.raises(ConfigError, match="no comux"):
        create_decoder(DecoderOptions(codec="wrong"))
    with pytest.raises(UnknownCodecError, match="does not load"):
        create_decoder(DecoderOptions(codec="gone"))
    assert type(create_decoder(DecoderOptions(codec="h264"))).__name__ == "VideoDecoder", "built-in names are taken"
