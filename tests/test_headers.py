"""Headers give back exactly what was sent, refuse what they cannot, and survive hostile input."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import date
from typing import Any

import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comux.errors import ComuxError, ConfigError, HeaderError
from comux.headers import MAX_DEPTH, apply_schema, check_schema, decode_headers, encode_headers, headers_bytes
from comux.records import HEADER_SEQUENCE, HEADER_TYPES, Record


def same(a: Any, b: Any) -> bool:
    """Equal in value and type, deeply; NaN equals NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, np.generic):
        return bool(a.dtype == b.dtype and a.tobytes() == b.tobytes())
    if isinstance(a, float):
        return a == b and math.copysign(1, a) == math.copysign(1, b) if a == a else b != b
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


EXACT: dict[str, Any] = {
    "int": 5,
    "text of an int": "5",
    "true": True,
    "one": 1,
    "one as float": 1.0,
    "false": False,
    "zero": 0,
    "minus zero": -0.0,
    "none": None,
    "text of none": "None",
    "empty text": "",
    "empty bytes": b"",
    "huge": 10**400,
    "tiny": 5e-324,
    "third": 1 / 3,
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "text": "Straße 🎥 \0 \n",
    "bytes": bytes(range(256)),
    "bytearray": bytearray(b"\x00\xff"),
    "list": [1, "1", 1.5, True, None, [], {}, math.inf],
    "dict": {"a": {"b": [1, {"c": None}]}, "": 0},
    "mask": np.random.default_rng(1).random((270, 480)) > 0.5,
    "big-endian": np.arange(6, dtype=">i2").reshape(2, 3),
    "zero-dimensional": np.array(7.5, dtype=np.float16),
    "empty array": np.zeros((0, 3), np.float32),
    "texts": np.array(["ab", "ü"]),
    "times": np.array(["2026-01-02T03:04"], dtype="datetime64[ns]"),
    "complex": np.array([1 + 2j]),
    "boxes": np.array([(1, 0.5, [1, 2])], dtype=[("id", "<i4"), ("score", "<f8"), ("at", "<u2", (2,))]),
    "aligned": np.zeros(3, np.dtype([("a", "i1"), ("b", "f8")], align=True)),
    "nested structure": np.zeros(2, [("a", [("b", "<i2"), ("c", "<f4")]), ("d", "u1")]),
    "float32": np.float32(0.1),
    "float64": np.float64(0.1),
    "bool_": np.bool_(True),
    "datetime64": np.datetime64("2026-01-01", "D"),
    "numpy text": np.str_("a\0"),
    "empty numpy text": np.str_(""),
    "numpy bytes": np.bytes_(b"a\0"),
    "inside": {"score": np.float32(0.5), "box": [np.arange(4), b"raw", bytearray(b"x"), np.str_("s")], "n": 1},
    "mark": {"$comux": "array", "data": "AAAA"},
    "mark inside": [{"$comux": {"$comux": 1}}, np.int8(3)],
}


@pytest.mark.parametrize("name", EXACT)
def test_each_kind_comes_back_exactly(name: str) -> None:
    back = decode_headers(encode_headers({name: EXACT[name]}))
    assert list(back) == [name]
    assert same(back[name], EXACT[name]), (back[name], EXACT[name])


def test_all_of_them_in_one_record_and_in_order() -> None:
    headers = encode_headers(EXACT)
    assert [name for name, _ in headers] == [*EXACT, HEADER_TYPES]
    assert all(type(value) is bytes for _, value in headers)
    back = decode_headers(headers)
    assert list(back) == list(EXACT)
    assert all(same(back[name], EXACT[name]) for name in EXACT)
    record = Record("t", 0, 0, b"", headers=headers)
    assert list(decode_headers(record)) == list(EXACT)


def test_what_is_documented_to_change() -> None:
    fortran = np.asfortranarray(np.arange(6).reshape(2, 3))
    sent = {"tuple": (1, (2,)), "view": memoryview(b"abc"), "fortran": fortran, "part": np.arange(10)[::3]}
    back = decode_headers(encode_headers(sent))
    assert back["tuple"] == [1, [2]]
    assert back["view"] == b"abc"
    assert back["fortran"].flags.c_contiguous
    assert np.array_equal(back["fortran"], fortran)
    assert np.array_equal(back["part"], [0, 3, 6, 9])


def test_nothing_refers_to_what_was_sent_and_arrays_are_writable() -> None:
    array, buffer = np.arange(3), bytearray(b"abc")
    headers = encode_headers({"array": array, "buffer": buffer})
    array[:] = 9
    buffer[:] = b"zzz"
    back = decode_headers(headers)
    assert back["array"].tolist() == [0, 1, 2]
    assert back["buffer"] == b"abc"
    back["array"][0] = 5


def test_plain_values_are_readable_without_comux() -> None:
    headers = dict(encode_headers({"n": 5, "t": "x", "d": {"a": [1]}, "b": b"\x00"}))
    assert (headers["n"], headers["t"], headers["b"]) == (b"5", b"x", b"\x00")
    assert json.loads(headers["d"] or b"") == {"a": [1]}


_leaves = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=20)
    | st.integers(0, 255).map(np.uint8) | st.floats().map(np.float64) | st.binary(max_size=8).map(bytearray)
)  # fmt: skip
_trees = st.recursive(
    _leaves,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5) | st.just("$comux"), inner, max_size=4)
    ),
    max_leaves=12,
)
_names = st.text(min_size=1, max_size=20).filter(lambda n: not n.lower().startswith("comux-"))


@given(st.dictionaries(_names, _trees, max_size=5))
@settings(max_examples=200, deadline=None)
def test_any_tree_comes_back(sent: dict[str, Any]) -> None:
    assert same(decode_headers(encode_headers(sent)), sent)


def _circle() -> list[Any]:
    out: list[Any] = []
    out.append(out)
    return out


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        ({"x": object()}, "object cannot be sent"),
        ({"x": date(2026, 1, 1)}, "date cannot be sent"),
        ({"x": {1, 2}}, "set cannot be sent"),
        ({"x": 1j}, "complex cannot be sent"),
        ({"x": [1, {"a": object()}]}, "header 'x'"),
        ({"x": {1: 2}}, "dictionary key 1 is int"),
        ({"x": np.array([None])}, "Python objects"),
        ({"x": np.zeros(2, [("a", object)])}, "Python objects"),
        ({"x": np.ma.masked_array([1], [True])}, "masked"),
        ({"x": np.void(b"")}, "exact description"),
        ({"x": "\ud800"}, "surrogate"),
        ({"x": ["\ud800"]}, "surrogate"),
        ({"x": 10**5000}, "4300 digits"),
        ({"x": _circle()}, f"more than {MAX_DEPTH}"),
        ({"": 1}, "empty"),
        ({1: 1}, "int, not str"),
        ({"\ud800": 1}, "surrogate"),
        ({"comux-mine": 1}, "reserved"),
        ({HEADER_SEQUENCE: 1}, "reserved"),
        ({"COMUX-Seq": 1}, "reserved"),
        ([("x", 1)], "not a mapping"),
    ],
)
def test_what_cannot_be_sent_is_named(sent: Any, says: str) -> None:
    with pytest.raises(HeaderError, match=says) as caught:
        encode_headers(sent)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, TypeError)
    assert "\n" not in str(caught.value)


def test_original_headers_are_no_results() -> None:
    original = (("x", b"theirs"), ("twice", b"1"), ("twice", b"2"), (HEADER_SEQUENCE, b"7"), ("empty", None))
    headers = original + encode_headers({"x": 5})
    assert decode_headers(headers) == {"x": 5}
    assert headers[:5] == original
    assert decode_headers(original) == {}
    assert decode_headers(()) == {}
    assert encode_headers({}) == encode_headers(None) == ()


def test_results_of_several_programs_in_a_row() -> None:
    headers = encode_headers({"a": 1, "b": "one"}) + encode_headers({"b": 2.5, "c": [3]})
    assert decode_headers(headers) == {"a": 1, "b": 2.5, "c": [3]}


def test_sizes() -> None:
    assert headers_bytes(()) == 0
    assert headers_bytes((("ä", b"123"), ("n", None))) == 2 + 3 + 1
    mask = np.zeros((1080, 1920), bool)
    assert 0 < headers_bytes(encode_headers({"mask": mask})) - mask.nbytes < 100


_HOSTILE_TAGS = [
    "nope", 5, None, {}, [], ["array"], ["array", "<i4"], ["array", "O", [1]], ["array", "|O", [1]],
    ["array", "i4,i4", [1]],
    ["array", "<i4", [-1]], ["array", "<i4", [True]], ["array", "<i4", [10**30]], ["array", "<i4", [0, 10**18]],
    ["array", "S0", [10**9]], ["array", "|S999999999", [10**9]], ["array", "|V0", [1]], ["array", [], [1]],
    ["scalar", "<i4"],
    ["array", [["a", "O"]], [1]], ["array", [["a", "<i4"], ["a", "<i4"]], [1]], ["array", [[5, "<i4"]], [1]],
    ["scalar", "<U1"],
    ["array", [["a", "<i4", [10**9]]], [1]], ["array", "<i4", [1] * 40], ["array", "<i4", "11"],
    ["array", "<M8[xx]", [1]],
    ["array", [["a", [["a", [["a", [["a", [["a", [["a", [["a", [["a", [["a", [["a", "u1"]]]]]]]]]]]]]]]]]]]], [1]],
]  # fmt: skip


@pytest.mark.parametrize("tag", _HOSTILE_TAGS, ids=str)
def test_hostile_types(tag: Any) -> None:
    for value in (b"\xff" * 4, b"\xff" * 8, b"", None):
        headers = (("x", value), (HEADER_TYPES, json.dumps({"x": tag}).encode()))
        try:
            back = decode_headers(headers)
        except HeaderError as exc:
            assert "\n" not in str(exc)
            continue
        assert back["x"].size * back["x"].dtype.itemsize == len(value or b"")


@pytest.mark.parametrize(
    "types",
    [b"", b"[]", b"5", b"\xff", b"{", b'{"y":"json"}', b"[" * 100_000, b'{"x":' * 50_000, b"9" * 5000, None],
)
def test_hostile_type_headers(types: bytes | None) -> None:
    with pytest.raises(HeaderError):
        decode_headers((("x", b"1"), (HEADER_TYPES, types)))


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("json", b"[" * 100_000),
        ("json", b"9" * 5000),
        ("json", b"\xff"),
        ("tree", b"[" * 100_000),
        ("tree", b'{"$comux":"bytes"}'),
        ("tree", b'{"$comux":"bytes","data":5}'),
        ("tree", b'{"$comux":"bytes","data":"%%%"}'),
        ("tree", b'{"$comux":"dict","items":5}'),
        ("tree", b'{"$comux":"dict","items":[[1]]}'),
        ("tree", b'{"$comux":["array","<i4",[1000000]],"data":"AAAA"}'),
        ("tree", b'{"$comux":"tree","data":"W10="}'),
        ("str", b"\xff"),
        ("numpy.str", b"\xff"),
    ],
)
def test_hostile_values(tag: str, value: bytes) -> None:
    with pytest.raises(HeaderError):
        decode_headers((("x", value), (HEADER_TYPES, json.dumps({"x": tag}).encode())))


def test_what_is_no_pair_is_refused() -> None:
    for headers in ((5,), (("a",),), (("a", b"", b""),)):
        with pytest.raises(HeaderError, match="pair"):
            decode_headers(headers)  # type: ignore[arg-type]


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["array", "scalar", "json", "tree", "str", "<i4", "|O", "|S3", "<U1", "<f8", "|V5", "<M8[s]"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["x", "$comux", "data", "items"]), inner),
    max_leaves=10,
)  # fmt: skip


@given(st.binary(max_size=40) | _json.map(lambda tree: json.dumps(tree).encode()), _json)
@settings(max_examples=500, deadline=None)
def test_hostile_input_raises_nothing_but_comux_errors(value: bytes, tag: Any) -> None:
    headers = (("x", value), (HEADER_TYPES, json.dumps({"x": tag}).encode()))
    try:
        back = decode_headers(headers)["x"]
    except ComuxError:
        return
    if isinstance(back, np.ndarray):
        assert back.nbytes == len(value)


class Detection(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    label: str
    score: float = pydantic.Field(ge=0, le=1)
    model: str = "yolo"


def test_a_pydantic_schema() -> None:
    assert apply_schema(Detection, {"label": "car", "score": 1}) == {"label": "car", "score": 1.0, "model": "yolo"}
    with pytest.raises(HeaderError, match=r"Detection refused.*score: .*got 2.*extra: ") as caught:
        apply_schema(Detection, {"label": "car", "score": 2, "extra": 1})
    assert "\n" not in str(caught.value)


def test_a_function_as_schema() -> None:
    def shape(headers: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"label": headers["label"].upper()}

    assert apply_schema(shape, {"label": "car", "more": 1}) == {"label": "CAR"}
    with pytest.raises(HeaderError, match="shape refused the headers: KeyError: 'label'"):
        apply_schema(shape, {})
    with pytest.raises(HeaderError, match="returned NoneType"):
        apply_schema(lambda headers: None, {})  # type: ignore[arg-type, return-value]
    assert apply_schema(None, {"a": 1}) == {"a": 1}


def test_what_is_no_schema() -> None:
    for schema in (5, "Detection", dict, Detection(label="a", score=0).label):
        with pytest.raises(ConfigError, match="header_schema"):
            check_schema(schema)
