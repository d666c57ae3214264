"""Checked settings: ids, schemas, single values, the first comux's spellings, one source."""

from __future__ import annotations

import json
import logging
import typing
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comux import options
from comux.decoders import interface as decoders
from comux.errors import ConfigError
from comux.options import (
    SourceOptions,
    cam_id_of,
    check_cam_ids,
    check_positive,
    check_schema,
    check_timeout,
    log_level,
    replace_flag,
    topic_name,
)


@given(
    st.from_regex(r"[A-Za-z0-9._-]{0,10}:cam_id[A-Za-z0-9._-]{0,10}", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9_-]{1,10}", fullmatch=True) | st.integers(0, 2**40),
)
def test_topics_and_ids_are_inverse(schema: str, cam_id: str | int) -> None:
    assert cam_id_of(schema, topic_name(schema, cam_id)) == str(cam_id)


@pytest.mark.parametrize(
    ("schema", "says"),
    [("raw_", "0 times"), (":cam_id:cam_id", "2 times"), ("", "0 times"), ("a/:cam_id", "topic name"), (5, "not text")],
)
def test_wrong_schemas(schema: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_schema(schema, "consume_schema")


def test_topics_that_do_not_follow() -> None:
    for topic in ("raw_", "stream_1", "raw", "xraw_1"):
        with pytest.raises(ConfigError, match="does not follow"):
            cam_id_of("raw_:cam_id", topic)
    with pytest.raises(ConfigError, match="at most 100"):
        topic_name("raw_:cam_id", "x" * 99)


@pytest.mark.parametrize(
    ("cam_ids", "says"),
    [
        ([], "empty"),
        ("cam1", "not a list"),
        (None, "not a list"),
        (["a", "b", "a"], "'a' at position 2 is a duplicate of position 0"),
        ([1, "1"], "'1' at position 1 is a duplicate"),
        (["a", ""], "position 1 is empty"),
        (["a", None], "None at position 1"),
        ([True], "bool"),
        ([-1], "range"),
        (["a b"], "'a b' at position 0"),
        (["ä"], "topic name"),
        (["x" * 101], "at most 100"),
    ],
)
def test_wrong_ids_are_named_with_their_position(cam_ids: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_cam_ids(cam_ids, "raw_:cam_id")


def test_ids_keep_their_kind_and_order() -> None:
    assert check_cam_ids(iter(["b", 7, "a"])) == ("b", 7, "a")


def test_single_values() -> None:
    assert (check_timeout(None), check_timeout(0), check_timeout(2)) == (None, 0.0, 2.0)
    for wrong in (-1, float("nan"), "5", True):
        with pytest.raises(ConfigError, match="no time"):
            check_timeout(wrong)
    assert check_positive(3, "maxlen") == 3
    assert check_positive(0, "maxlen", zero=True) == 0
    for wrong in (0, -1, 1.0, True, None):
        with pytest.raises(ConfigError, match="maxlen"):
            check_positive(wrong, "maxlen")


def test_log_levels_in_three_languages() -> None:
    assert [log_level(x) for x in ("ERROR", 0, "error", logging.ERROR)] == [logging.ERROR] * 4
    assert [log_level(x) for x in ("DEBUG", 1)] == [logging.DEBUG] * 2
    assert [log_level(x) for x in ("ANY", 2)] == [1, 1]
    assert log_level(None) is None
    for wrong in ("LOUD", -1, 5, True, 1.5):
        with pytest.raises(ConfigError, match="log_level"):
            log_level(wrong)  # type: ignore[arg-type]


def test_three_spellings_of_replace() -> None:
    def legacy(**given: Any) -> bool:
        return replace_flag(**given)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert legacy() is True
        assert legacy(default=False) is False
        assert legacy(replace=False) is False
    with pytest.warns(DeprecationWarning, match="over_?write=") as caught:
        assert legacy(overwrite=True, over_write=False) is True  # as the first comux's own example has it
    assert {w.filename for w in caught} == {__file__}
    with pytest.warns(DeprecationWarning):
        assert legacy(over_write=False) is False
    with pytest.raises(ConfigError, match="not True or False"):
        legacy(replace="yes")


def test_a_source_survives_json() -> None:
    source = SourceOptions(
        cam_id="a",
        start=5,
        rate=10,
        shape=(2, 3),
        dtype=np.dtype([("x", "<f4"), ("y", "<i2", (2,))]),
        extradata=b"\0\1",
    )
    assert SourceOptions(**json.loads(json.dumps(source.spec()))) == source
    assert source.numpy_dtype == np.dtype([("x", "<f4"), ("y", "<i2", (2,))])
    assert SourceOptions(cam_id=7).spec() == {"cam_id": 7}
    json.dumps(SourceOptions.model_json_schema())


def test_a_start_keeps_its_kind() -> None:
    for start in (5, 5.0, "end", "keyframe"):
        kept = SourceOptions(cam_id="a", start=start).start  # type: ignore[arg-type]
        assert (kept, type(kept)) == (start, type(start))

    def predicate(record: Any) -> bool:
        return True

    assert SourceOptions(cam_id="a", start=predicate).start is predicate


def test_a_source_is_changed_as_a_whole() -> None:
    source = SourceOptions(cam_id="a", rate=5)
    assert source.changed(W=640) == SourceOptions(cam_id="a", rate=5, W=640)
    assert source.changed(cam_id="a", rate=None) == SourceOptions(cam_id="a")
    for changes, says in [({"cam_id": "b"}, "cannot be changed"), ({"W": 0}, "W=0"), ({"x": 1}, "no setting 'x'")]:
        with pytest.raises(ConfigError, match=says):
            source.changed(**changes)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "cam_id is missing"),
        ({"cam_id": ""}, "empty"),
        ({"cam_id": "a", "W": "3"}, "W='3'"),
        ({"cam_id": "a", "W": -1, "H": 0}, "W=-1.*H=0"),
        ({"cam_id": "a", "rate": True}, "rate=True"),
        ({"cam_id": "a", "rate": float("inf")}, "rate=inf"),
        ({"cam_id": "a", "rat": 3}, "did you mean 'rate'"),
        ({"cam_id": "a", "start": "now"}, "start='now'"),
        ({"cam_id": "a", "codec": ""}, "codec=''"),
        ({"cam_id": "a", "dtype": object}, "never pickled"),
        ({"cam_id": "a", "dtype": "zz"}, "no numpy dtype"),
        ({"cam_id": "a", "shape": [0]}, "shape"),
        ({"cam_id": "a", "consume_topic": "a b"}, "topic name"),
        ({"cam_id": "a", "extradata": "é"}, "base64"),
        ({"cam_id": "a", "mode": "fast"}, "mode='fast'"),
        ({"cam_id": "a", "array_format": "bgr"}, "array_format='bgr'"),
    ],
)
def test_wrong_settings_name_source_key_and_value(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        SourceOptions(**values)
    assert "\n" not in str(caught.value)


def test_words_agree_with_the_decoders() -> None:
    assert set(typing.get_args(options.ArrayFormat)) == set(typing.get_args(decoders.ArrayFormat))
