"""Arrays in records, and decoded frames shared with another process."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from comux.decoders import DecoderOptions, Identity, create_decoder
from comux.decoders.arrays import dtype_from_text, dtype_to_text
from comux.decoders.raw import array_headers, array_value, encode_shared_frame
from comux.errors import ClosedError, ConfigError, DecodeError
from comux.records import HEADER_CRC32C, HEADER_DTYPE, HEADER_SEQUENCE, HEADER_SHAPE


def raw(**options):
    return create_decoder(DecoderOptions(codec="raw", **options))


def one(made, record):
    (outcome,) = made.feed(record)
    assert outcome.record is record and outcome.first and made.in_flight == 0
    return outcome


STRUCTURED = np.dtype(
    {
        "names": ["time", "wave", "inner"],
        "formats": ["<f8", ("<i2", (4,)), np.dtype([("a", "u1"), ("b", ">u4")], align=True)],
        "offsets": [0, 8, 20],
        "itemsize": 32,
    }
)


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(
        hnp.integer_dtypes(), hnp.floating_dtypes(), hnp.complex_number_dtypes(), hnp.datetime64_dtypes()
    ).flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)))
)
def test_any_array_of_numbers_comes_back_as_it_was(array):
    from comux.records import Record

    record = Record("t", 0, 0, array_value(array).tobytes(), headers=array_headers(array))
    back = one(raw(), record).picture.to_array()
    assert back.dtype == array.dtype and back.shape == array.shape and back.tobytes() == array.tobytes()
    assert back.flags.writeable and back.flags.c_contiguous


def test_structured_arrays_keep_names_offsets_and_size(kit):
    array = np.zeros(3, STRUCTURED)
    array["time"], array["wave"][:, 1], array["inner"]["b"] = [1, 2, 3], 7, 9
    assert dtype_from_text(dtype_to_text(STRUCTURED)) == STRUCTURED
    record = kit.record(0, array_value(array).tobytes(), headers=array_headers(array))
    picture = one(raw(), record).picture
    assert picture.to_array().dtype == STRUCTURED and np.array_equal(picture.to_array(), array)
    assert (picture.width, picture.height) == (3, 1) and picture.array_spec() == ((3,), STRUCTURED)
    assert picture.identity == Identity(0, 0) and picture.record is record


def test_topic_type_headers_or_options_say_what_the_bytes_are(kit):
    array = np.arange(12, dtype="<f4").reshape(3, 4)
    data = array.tobytes()
    assert np.array_equal(one(raw(), kit.record(0, array)).picture.to_array(), array)
    assert np.array_equal(one(raw(dtype="<f4", shape=(3, 4)), kit.record(0, data)).picture.to_array(), array)
    assert one(raw(dtype="<f4"), kit.record(0, data)).picture.to_array().shape == (12,)
    typed = np.frombuffer(data, np.uint8)
    assert np.array_equal(one(raw(), kit.record(0, typed, headers=array_headers(array))).picture.to_array(), array)


@pytest.mark.parametrize(
    ("headers", "options", "says"),
    [
        ((), {}, "comux-dtype"),
        ((), {"dtype": "<f4", "shape": (3, 5)}, "takes 60"),
        ((), {"dtype": "<f8", "shape": (3,)}, "takes 24"),
        (((HEADER_DTYPE, b"<i8"),), {}, "no whole number"),
        (((HEADER_DTYPE, b"O"),), {}, "Python objects"),
        (((HEADER_DTYPE, b"nonsense"),), {}, "cannot be read"),
        (((HEADER_DTYPE, b"\xff\xfe"),), {}, "cannot be read"),
        (((HEADER_DTYPE, b"{" * 1000),), {}, "cannot be read"),
        (((HEADER_DTYPE, b'{"names":["a"],"formats":["O"],"offsets":[0],"itemsize":8}'),), {}, "Python objects"),
        (((HEADER_DTYPE, b"u1"), (HEADER_SHAPE, b"[4.5, 3]")), {}, "whole numbers"),
        (((HEADER_DTYPE, b"u1"), (HEADER_SHAPE, b"[-1]")), {}, "whole numbers"),
        (((HEADER_DTYPE, b"u1"), (HEADER_SHAPE, b"__import__('os')")), {}, "cannot be read"),
        (((HEADER_DTYPE, b"u1"), (HEADER_SHAPE, b"[" * 100_000)), {}, "65536"),
        (((HEADER_DTYPE, b"u1"), (HEADER_SHAPE, b"[" * 60_000)), {}, "cannot be read"),
        (((HEADER_DTYPE, b"u1"), (HEADER_SHAPE, b"[99999999999999, 99999999999]")), {}, "takes"),
    ],
)
def test_what_does_not_fit_is_a_decode_error_that_says_why(kit, headers, options, says):
    outcome = one(raw(**options), kit.record(0, bytes(44), headers=headers))
    assert outcome.cause == "decode_error" and says in outcome.detail


def test_pickles_are_never_opened(kit):
    for value in (pickle.dumps(np.arange(3)), {"a": 1}, "text"):
        assert one(raw(), kit.record(0, value)).cause == "decode_error"
    with pytest.raises(ConfigError, match="never pickles"):
        array_headers(np.array([object()]))


def test_a_wrong_type_on_a_typed_topic_is_told(kit):
    array = np.zeros((2, 2), np.float32)
    assert "float32" in one(raw(dtype="<f8"), kit.record(0, array)).detail
    assert "(2, 2)" in one(raw(shape=(4,)), kit.record(0, array)).detail


def test_uint8_images_are_resized_and_nothing_else(kit):
    image = np.full((40, 60, 3), (10, 20, 200), np.uint8)
    small = one(raw(width=30, height=20), kit.record(0, image)).picture
    assert small.array_spec()[0] == (20, 30, 3) and (small.width, small.height) == (60, 40)
    assert np.abs(small.to_array().astype(int) - (10, 20, 200)).max() <= 2
    gray = one(raw(width=30, height=20), kit.record(0, image[:, :, 0])).picture
    assert gray.to_array().shape == (20, 30)
    for other in (image.astype(np.uint16), np.zeros(5, np.uint8), np.zeros((2, 2, 4), np.uint8)):
        assert "resized" in one(raw(width=30, height=20), kit.record(0, other)).detail


def test_arrays_belong_to_the_caller(kit):
    data = bytearray(np.arange(6, dtype="u1").tobytes())
    record = kit.record(0, memoryview(data), headers=array_headers(np.zeros(6, "u1")))
    picture = one(raw(), record).picture
    data[0] = 99
    first = picture.to_array()
    assert first[0] == 0 and not np.shares_memory(first, picture.to_array())
    out = np.empty(6, "u1")
    assert picture.to_array(out) is out
    with pytest.raises(ValueError, match="needs"):
        picture.to_array(np.empty(7, "u1"))


def test_a_view_that_was_overwritten_is_no_array(kit):
    record = replace(
        kit.record(0, memoryview(bytes(6)), headers=array_headers(np.zeros(6, "u1"))), _valid=lambda: False
    )
    assert "overwritten" in one(raw(), record).detail


def test_damage_stays_in_its_record(kit):
    array = np.arange(6, dtype="u1")
    data = array.tobytes()

    def stamped(sequence, crc):
        more = ((HEADER_SEQUENCE, b"%d" % sequence), (HEADER_CRC32C, b"%08x" % crc))
        return kit.record(sequence, data, headers=array_headers(array) + more)

    good = crc32c.crc32c(data)
    made = raw()
    causes = [
        one(made, stamped(n, crc)).cause for n, crc in ((0, good), (1, good ^ 1), (2, good), (2, good), (5, good))
    ]
    assert causes == [None, "decode_error", None, "duplicate", None]
    assert dict(made.damage) == {"crc": 1, "duplicate": 1, "sequence": 1} and not made.resyncing
    assert one(made, kit.record(9, None)).cause == "absorbed"
    made.set_converting(False)
    assert one(made, stamped(6, good)).cause == "lag"
    assert made.reset() == [] and made.drain() == []
    made.close()
    with pytest.raises(ClosedError):
        made.feed(stamped(7, good))


def test_too_large_arrays_are_refused(kit):
    image = np.zeros((40, 60), np.uint8)
    assert one(raw(max_pixels=2399), kit.record(0, image)).cause == "too_large"
    assert one(raw(max_pixels=2400), kit.record(0, image)).cause is None


# -- shared frames ---------------------------------------------------------------------------------------------------


def share(kit, packet, array, array_format, offset=5):
    value, headers, flags = encode_shared_frame(array, packet, array_format)
    return kit.record(offset, bytes(value), headers=headers, flags=flags, key=packet.key)


@pytest.mark.parametrize(
    "packet_value",
    [b"\x00packet\xff", b"", None, np.arange(4, dtype="<u2").reshape(2, 2)],
    ids=["bytes", "empty", "none", "array"],
)
def test_a_shared_frame_gives_back_picture_and_packet(kit, packet_value):
    packet = kit.record(
        (1 << 40) + 3, packet_value, key=b"\x00k", epoch=4, flags=0x101, append_ns=17,
        headers=(("a", None), ("ü", b"\xff\x00"), ("a", b"")),
    )  # fmt: skip
    array = np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    shared = share(kit, packet, array, "bgr24")
    outcome = one(create_decoder(DecoderOptions(codec="frames")), shared)
    back = outcome.picture.record
    assert np.array_equal(outcome.picture.to_array(), array)
    assert outcome.picture.identity == Identity(4, (1 << 40) + 3)
    if isinstance(packet_value, np.ndarray):
        assert back.value.dtype == packet_value.dtype and np.array_equal(back.value, packet_value)
        back, packet = replace(back, value=None), replace(packet, value=None)
    assert back == packet


@pytest.mark.parametrize("shared_as", ["bgr24", "rgb24", "gray", "planes"])
@pytest.mark.parametrize("wanted", ["bgr24", "rgb24", "gray", "planes", "native"])
def test_a_reader_gets_the_format_and_size_it_asks_for(kit, shared_as, wanted):
    source = kit.stream("h264-plain")
    (decoded,) = kit.decoder(source, array_format=shared_as).feed(kit.record(0, source.packets[0]))
    (direct,) = kit.decoder(source, array_format=wanted if wanted != "native" else shared_as).feed(decoded.record)
    shared = share(kit, decoded.record, decoded.picture.to_array(), shared_as)
    picture = one(create_decoder(DecoderOptions(codec="frames", array_format=wanted)), shared).picture
    expected = direct.picture.to_array()
    assert picture.array_spec() == (expected.shape, expected.dtype)
    got = picture.to_array()
    if wanted in (shared_as, "native"):
        assert np.array_equal(got, expected)
    elif shared_as != "gray" and "gray" not in wanted:
        assert np.abs(got.astype(int) - expected).mean() < 6
    if wanted != "native":
        made = create_decoder(DecoderOptions(codec="frames", array_format=wanted, width=80, height=60))
        assert one(made, shared).picture.to_array().shape[1] == 80


def test_what_is_no_shared_frame_is_a_decode_error(kit):
    packet = kit.record(0, b"p")
    good = share(kit, packet, np.zeros((4, 4, 3), np.uint8), "bgr24")
    made = create_decoder(DecoderOptions(codec="frames"))
    headers = dict(good.headers)
    meta = json.loads(headers["comux-frame"])
    bad_headers = [
        {**headers, "comux-frame": None},
        {**headers, "comux-frame": b"[]"},
        {**headers, "comux-frame": b"{"},
        {**headers, "comux-frame": json.dumps({**meta, "format": "cmyk"}).encode()},
        {**headers, "comux-frame": json.dumps({**meta, "key": "*"}).encode()},
        {**headers, "comux-frame": json.dumps({**meta, "headers": 3}).encode()},
        {**headers, "comux-shape": b"[4,4]"},
        {**headers, "comux-shape": b"[4,12]"},
        {**headers, "comux-dtype": b"<f4", "comux-shape": b"[4,1,3]"},
    ]
    for one_set in bad_headers:
        assert one(made, replace(good, headers=tuple(one_set.items()))).cause == "decode_error", one_set
    assert one(made, replace(good, value=good.value[:-1])).cause == "decode_error"
    assert one(made, good).picture is not None
    assert one(create_decoder(DecoderOptions(codec="frames", max_pixels=15)), good).cause == "too_large"


def test_dtype_texts_that_lie_are_refused():
    for text in ("", "V0", "{}", '{"base": 3}', '{"names":["a"],"formats":["<f8"],"offsets":[4],"itemsize":8}'):
        with pytest.raises(DecodeError):
            dtype_from_text(text)
