"""Commands on the wire: what is made is what is parsed, limits hold, arguments fit their schemas."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comux.control.commands import (
    BUILT_IN,
    Command,
    CommandLimits,
    arguments_of,
    make_command,
    parse_command,
    read_envelope,
    reply_allowed,
)
from comux.errors import CommandError
from comux.records import Record

SCHEMES = frozenset({"shm"})


def record(
    key: bytes | None = b"status", value: bytes | None = b"null", headers: tuple[tuple[str, bytes | None], ...] = ()
) -> Record:
    return Record("config", 7, 123, value, key=key, headers=headers)


def command(action: str, value: Any) -> Command:
    return Command(action, value, None, True)


def test_what_is_made_is_what_is_parsed() -> None:
    key, value, headers = make_command(
        "hello", {"a": [1, None]}, request_id="r1", reply_to="config_replies_x", target="gate", expires=12.5
    )
    parsed = parse_command(Record("config", 7, 123, value, key=key, headers=headers))
    assert parsed == Command(
        "hello", {"a": [1, None]}, value, True, "r1", "config_replies_x", "gate", 12.5, offset=7, timestamp_ns=123
    )


@pytest.mark.parametrize(
    ("raw", "value", "is_json"),
    [
        (None, None, False),
        (b"", b"", False),
        (b"cam1", b"cam1", False),
        (b"\xff\x00", b"\xff\x00", False),
        (b'"cam1"', "cam1", True),
        (b"5", 5, True),
        (b"null", None, True),
        (b"NaN", b"NaN", False),
        (b"9" * 5000, b"9" * 5000, False),
    ],
)
def test_a_value_is_json_or_stays_bytes(raw: bytes | None, value: Any, is_json: bool) -> None:
    parsed = parse_command(record(value=raw))
    assert (parsed.value, parsed.is_json, parsed.raw) == (value, is_json, raw)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (record(key=None), "names no action"),
        (record(key=b""), "names no action"),
        (record(key=b"\xff"), "UTF-8"),
        (record(key=b"a\nb"), "printable"),
        (record(key=b"a" * 129), "1 to 128"),
        (record(key=b"a" * 100_000), "100000 bytes"),
        (record(value=b"1" * (256 * 1024 + 1)), "at most 262144"),
        (record(value=b"[" * 100_000), "too deep"),
        (record(value=b"[" * 40 + b"]" * 40), "too deep"),
        (record(headers=(("a", b""),) * 33), "33 headers"),
        (record(headers=(("a", b"x" * 20_000),)), "at most"),
        (record(headers=(("request-id", b"\x00"),)), "request-id"),
        (record(headers=(("target", b"\xff"),)), "target"),
        (record(headers=(("expires", b"soon"),)), "Unix time"),
        (record(headers=(("expires", b"nan"),)), "Unix time"),
        (record(headers=(("expires", "٣".encode()),)), "Unix time"),
        (record(headers=(("reply-to", b"config"),)), "not allowed"),
        (record(headers=(("reply-to", b"raw_cam1"),)), "not allowed"),
        (record(headers=(("reply-to", b"config_replies/../x"),)), "not allowed"),
        (record(headers=(("reply-to", b"config_replies_/x"),)), "topic name"),
    ],
)
def test_malformed_commands_are_refused_in_one_short_line(bad: Record, says: str) -> None:
    with pytest.raises(CommandError, match=says) as caught:
        parse_command(bad)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_depth_is_counted_exactly() -> None:
    limits = CommandLimits(depth=3)
    assert parse_command(record(value=b'[[{"a":1}]]'), limits).value == [[{"a": 1}]]
    with pytest.raises(CommandError, match="at most 3 levels"):
        parse_command(record(value=b'[[{"a":[]}]]'), limits)


def test_replies_go_to_reply_topics_only() -> None:
    assert reply_allowed("config", "config_replies")
    assert reply_allowed("config", "config_replies_7f")
    assert not reply_allowed("config", "config")
    assert not reply_allowed("config", "config_repliesx")
    assert not reply_allowed("config", "raw_cam1")


@given(
    key=st.none() | st.binary(max_size=200),
    value=st.none() | st.binary(max_size=200),
    headers=st.lists(
        st.tuples(
            st.sampled_from(["request-id", "reply-to", "target", "expires", "x"]), st.none() | st.binary(max_size=200)
        ),
        max_size=6,
    ),
)
@settings(max_examples=300, deadline=None)
def test_any_record_is_a_command_or_a_command_error(
    key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes | None]]
) -> None:
    any_record = record(key, value, tuple(headers))
    envelope = read_envelope(any_record, CommandLimits())
    assert envelope.reply_to is None or reply_allowed("config", envelope.reply_to)
    try:
        parsed = parse_command(any_record)
    except CommandError as exc:
        assert "\n" not in str(exc)
        return
    assert parsed.action.encode() == key
    assert parsed.raw == value


@pytest.mark.parametrize(
    ("action", "value", "arguments"),
    [
        ("status", None, {}),
        ("status", {}, {}),
        ("status", b"", {}),
        ("stop", None, {}),
        ("create", "cam2", {"cam_id": "cam2"}),
        ("create", b"cam2", {"cam_id": "cam2"}),
        ("create", 7, {"cam_id": 7}),
        ("create", {"cam_id": "a", "rate": 5, "shape": [1, 2]}, {"cam_id": "a", "rate": 5.0, "shape": (1, 2)}),
        ("create", {"cam_id": "a", "address": "shm://lab"}, {"cam_id": "a", "address": "shm://lab"}),
        ("update", {"cam_id": "a", "W": 640, "rate": None}, {"cam_id": "a", "W": 640, "rate": None}),
        ("delete", {"cam_id": 5}, {"cam_id": 5}),
        ("pause", None, {}),
        ("pause", "a", {"cam_id": "a"}),
        ("seek", {"cam_id": "a", "to": "beginning"}, {"cam_id": "a", "to": "beginning"}),
        ("seek", {"cam_id": "a", "to": 12}, {"cam_id": "a", "to": 12}),
        ("set_rate", {"cam_id": "a", "rate": 2.5}, {"cam_id": "a", "rate": 2.5}),
    ],
)
def test_arguments(action: str, value: Any, arguments: dict[str, Any]) -> None:
    assert arguments_of(command(action, value), SCHEMES, "config") == arguments


@pytest.mark.parametrize(
    ("action", "value", "says"),
    [
        ("create", None, "cam_id is missing"),
        ("create", "", "empty"),
        ("create", "a/b", "topic name"),
        ("create", b"\xff", "neither JSON"),
        ("create", [1], "JSON list"),
        ("create", True, "JSON bool"),
        ("create", 1.5, "JSON float"),
        ("create", {"cam_id": "a", "rat": 1}, "did you mean 'rate'"),
        ("create", {"cam_id": "a", "rate": "1"}, "rate='1'"),
        ("create", {"cam_id": "a", "start": {"evil": 1}}, "start="),
        ("create", {"cam_id": "a", "client_options": {}}, "by the program only"),
        ("create", {"cam_id": "a", "address": "tcp://evil"}, "address 'tcp://evil' is not allowed"),
        ("create", {"cam_id": "a", "address": 5}, "not allowed"),
        (
            "create",
            {"cam_id": "a", "address": "shm://x?password_file=/etc/passwd"},
            r"password_file=\*\*\*' has options",
        ),
        ("update", {"cam_id": "a", "produce_address": "file:///etc/passwd"}, "not allowed"),
        ("create", {"cam_id": "a", "produce_topic": "config"}, "control plane"),
        ("create", {"cam_id": "a", "share_frames": "config_replies"}, "control plane"),
        ("create", {"cam_id": "a", "dtype": "O"}, "dtype"),
        ("create", {"cam_id": "a", "dtype": {"names": 5}}, "dtype"),
        ("create", {"cam_id": "a", "self": 1}, "no setting 'self'"),
        ("create", {"cam_id": "a", "__class__": 1}, "no setting '__class__'"),
        ("update", {"rate": 1}, "cam_id is missing"),
        ("delete", None, "cam_id"),
        ("delete", {"cam_id": "a", "x\ny": 1}, r"x\\ny"),
        ("delete", {"cam_id": True}, "cam_id"),
        ("delete", {"cam_id": "../../x"}, "topic name"),
        ("status", {"x": 1}, "'x'"),
        ("seek", {"cam_id": "a"}, "to"),
        ("seek", {"cam_id": "a", "to": "somewhere"}, "to"),
        ("set_rate", {"cam_id": "a", "rate": -1}, "rate"),
    ],
)
def test_wrong_arguments_name_what_is_wrong(action: str, value: Any, says: str) -> None:
    with pytest.raises(CommandError, match=says) as caught:
        arguments_of(command(action, value), SCHEMES, "config")
    assert "\n" not in str(caught.value)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["cam_id", "rate", "start", "dtype", "shape", "to", "address"]) | st.text(max_size=3), inner
    ),
    max_leaves=8,
)  # fmt: skip


@given(st.sampled_from(BUILT_IN), _json)
@settings(max_examples=400, deadline=None)
def test_any_json_is_arguments_or_a_command_error(action: str, value: Any) -> None:
    try:
        arguments = arguments_of(command(action, json.loads(json.dumps(value))), SCHEMES, "config")
    except CommandError:
        return
    assert all(isinstance(name, str) for name in arguments)


def test_what_has_no_json_form_cannot_be_sent() -> None:
    for value in (object(), {1, 2}, float("nan"), {"a": b""}):
        with pytest.raises(CommandError, match="no JSON form"):
            make_command("hello", value)
    for action in ("", "a\nb", "x" * 200, 5):
        with pytest.raises(CommandError, match="no name"):
            make_command(action)  # type: ignore[arg-type]
