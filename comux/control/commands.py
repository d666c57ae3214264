"""What a command is on the wire, and the checks between the wire and anything that acts.

A command is one record of the config topic:

===========  ====================================================================================================
key          the action's name, UTF-8
value        its argument: JSON; a user's act takes any bytes
request-id   header: free text the answer repeats
reply-to     header: topic of the answer; must be ``<config topic>_replies`` or begin with ``<config topic>_replies_``
target       header: name of the client meant; absent or ``*``: every one
expires      header: Unix time in seconds after which the command must not be carried out any more
===========  ====================================================================================================

Everything here is written for hostile input: parsing costs no more than the record's own size, calls nothing by a name
the record chose, and raises only ``CommandError``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from comux.errors import CommandError, ConfigError
from comux.options import CamId, SourceOptions, check_cam_id, check_topic_name
from comux.records import Header, Headers, Record
from comux.redaction import shown

HEADER_REQUEST_ID: Final = "request-id"
HEADER_REPLY_TO: Final = "reply-to"
HEADER_TARGET: Final = "target"
HEADER_EXPIRES: Final = "expires"
EVERYONE: Final = "*"
_STATE: Final = "_state_"

BUILT_IN: Final = (
    "create",
    "update",
    "delete",
    "pause",
    "resume",
    "seek",
    "set_rate",
    "snapshot",
    "status",
    "stop",
)
LOCAL_ONLY: Final = frozenset({"client_options"})  #: settings that a program may give and a command may not


@dataclass(frozen=True, slots=True)
class CommandLimits:
    """How large a command may be.

    Attributes:
        value_bytes: Of the value.
        name_chars: Of the action's name, request-id and target.
        depth: Of nested lists and objects in the value.
        headers: Number of headers.
        headers_bytes: Names and values of all headers together.
        per_second, bytes_per_second: Commands, and bytes of them, that are read; a second's worth may come at once.
            What comes beyond that is answered so, and not read.
    """

    value_bytes: int = 256 * 1024
    name_chars: int = 128
    depth: int = 32
    headers: int = 32
    headers_bytes: int = 16 * 1024
    per_second: float = 500.0
    bytes_per_second: float = 16.0 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Envelope:
    """The parts of a record that route its answer; what is unusable in them is ``None``."""

    action: str | None
    request_id: str | None
    reply_to: str | None
    target: str | None


@dataclass(frozen=True, slots=True)
class Command:
    """A well-formed command.

    Attributes:
        action: Its name.
        value: The decoded JSON, or the raw bytes where they are none; ``None`` where the record has no value.
        raw: The bytes as they came.
        is_json: Whether ``value`` is decoded.
        request_id, reply_to, target: The headers, ``None`` where absent.
        expires: Unix seconds, ``None``: never.
        offset: Of the record on the config topic.
        timestamp_ns: Of the record.
    """

    action: str
    value: Any
    raw: bytes | None
    is_json: bool
    request_id: str | None = None
    reply_to: str | None = None
    target: str | None = None
    expires: float | None = None
    offset: int = -1
    timestamp_ns: int = 0


def reply_topic_of(topic: str) -> str:
    """Where the answers to a config topic's commands go unless ``reply-to`` says otherwise."""
    return f"{topic}_replies"


def reply_allowed(config_topic: str, reply_to: str) -> bool:
    """Whether a command may have its answer sent to ``reply_to``: never to a topic that means something else."""
    base = reply_topic_of(config_topic)
    return reply_to == base or reply_to.startswith(f"{base}_")


def state_topic_of(topic: str, client: str) -> str:
    """Where durable control of a config topic keeps what it needs to go on after a crash."""
    return f"{topic}{_STATE}{client}"


def of_control(config_topic: str, topic: str) -> bool:
    """Whether ``topic`` is the config topic or one that goes with it: answers, or a client's state."""
    return topic == config_topic or reply_allowed(config_topic, topic) or topic.startswith(config_topic + _STATE)


# -- writing -------------------------------------------------------------------------------------------------------


def make_command(
    action: str,
    value: Any = None,
    *,
    request_id: str | None = None,
    reply_to: str | None = None,
    target: str | None = None,
    expires: float | None = None,
) -> tuple[bytes, bytes | None, Headers]:
    """Key, value and headers of a command's record.

    Args:
        action: A built-in or a user's act.
        value: Its argument. ``bytes`` go as they are, ``None`` as no value, anything else as JSON.
        request_id: Repeated by the answer.
        reply_to: Topic of the answer.
        target: Client meant; ``None``: every one.
        expires: Unix seconds.

    Raises:
        CommandError: the value has no JSON form, or a name is unusable.
    """
    if not isinstance(action, str) or not _is_name(action, CommandLimits().name_chars):
        raise CommandError(f"action {action!r} is no name: give 1 to {CommandLimits().name_chars} printable characters")
    if value is None or isinstance(value, bytes):
        data = value
    else:
        try:
            data = json.dumps(value, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as exc:
            raise CommandError(f"action {action!r}: its value has no JSON form ({exc}); send bytes instead") from None
    headers: list[Header] = []
    for name, text in ((HEADER_REQUEST_ID, request_id), (HEADER_REPLY_TO, reply_to), (HEADER_TARGET, target)):
        if text is not None:
            headers.append((name, str(text).encode()))
    if expires is not None:
        headers.append((HEADER_EXPIRES, repr(float(expires)).encode()))
    return action.encode(), data, tuple(headers)


# -- reading -------------------------------------------------------------------------------------------------------


def read_envelope(record: Record, limits: CommandLimits) -> Envelope:
    """What can be understood of a record's routing, however damaged the rest is. Never raises."""
    return Envelope(
        _name_or_none(record.key, limits),
        _name_or_none(record.header(HEADER_REQUEST_ID), limits),
        _reply_or_none(record),
        _name_or_none(record.header(HEADER_TARGET), limits),
    )


def parse_command(record: Record, limits: CommandLimits | None = None) -> Command:
    """Check a record of the config topic and take it apart.

    Raises:
        CommandError: it is no command; the message says what is wrong, in one line, without repeating much of it.
    """
    limits = limits or CommandLimits()
    size = sum(len(name) + len(value or b"") for name, value in record.headers)
    if len(record.headers) > limits.headers or size > limits.headers_bytes:
        raise CommandError(
            f"the command at offset {record.offset} has {len(record.headers)} headers of {size} bytes; at most "
            f"{limits.headers} of {limits.headers_bytes} are read"
        )
    action = _name(record.key, "action (the record's key)", limits)
    if action is None:
        raise CommandError(f"the command at offset {record.offset} names no action: the record's key is empty")
    reply_to = _name(record.header(HEADER_REPLY_TO), HEADER_REPLY_TO, limits)
    if reply_to is not None and not reply_allowed(record.topic, reply_to):
        raise CommandError(
            f"{HEADER_REPLY_TO} {reply_to[:80]!r} is not allowed: use {reply_topic_of(record.topic)!r}, or a name that "
            f"begins with {reply_topic_of(record.topic) + '_'!r}"
        )
    if reply_to is not None:
        try:
            check_topic_name(reply_to, HEADER_REPLY_TO)
        except ConfigError as exc:
            raise CommandError(str(exc)) from None
    raw = _raw(record, limits)
    value, is_json = _decode(raw, limits)
    return Command(
        action=action,
        value=value,
        raw=raw,
        is_json=is_json,
        request_id=_name(record.header(HEADER_REQUEST_ID), HEADER_REQUEST_ID, limits),
        reply_to=reply_to,
        target=_name(record.header(HEADER_TARGET), HEADER_TARGET, limits),
        expires=_expires(record.header(HEADER_EXPIRES)),
        offset=record.offset,
        timestamp_ns=record.timestamp_ns,
    )


def _is_name(text: str, most: int) -> bool:
    return 0 < len(text) <= most and text.isprintable()


def _name(data: bytes | None, what: str, limits: CommandLimits) -> str | None:
    if not data:
        return None
    if len(data) > 4 * limits.name_chars:
        raise CommandError(f"{what} has {len(data)} bytes; at most {limits.name_chars} characters are read")
    try:
        text = bytes(data).decode()
    except UnicodeDecodeError:
        raise CommandError(f"{what} {bytes(data[:40])!r} is no UTF-8 text") from None
    if not _is_name(text, limits.name_chars):
        raise CommandError(f"{what} {text[:40]!r} is no name: 1 to {limits.name_chars} printable characters")
    return text


def _name_or_none(data: bytes | None, limits: CommandLimits) -> str | None:
    try:
        return _name(data, "", limits)
    except CommandError:
        return None


def _reply_or_none(record: Record) -> str | None:
    reply_to = _name_or_none(record.header(HEADER_REPLY_TO), CommandLimits())
    if reply_to is None or not reply_allowed(record.topic, reply_to):
        return None
    try:
        return check_topic_name(reply_to)
    except ConfigError:
        return None


def _expires(data: bytes | None) -> float | None:
    if data is None:
        return None
    try:
        value = float(data[:64].decode("ascii"))
    except ValueError:  # UnicodeDecodeError too
        value = math.nan
    if not math.isfinite(value):
        raise CommandError(f"{HEADER_EXPIRES} {data[:40]!r} is no Unix time in seconds")
    return value


def _raw(record: Record, limits: CommandLimits) -> bytes | None:
    if record.value is None:
        return None
    size = memoryview(record.value).nbytes
    if size > limits.value_bytes:
        raise CommandError(f"the command's value has {size} bytes; at most {limits.value_bytes} are read")
    return bytes(record.value)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _decode(raw: bytes | None, limits: CommandLimits) -> tuple[Any, bool]:
    """The JSON of ``raw`` and ``True``; what is no JSON stays bytes."""
    if raw is None:
        return None, False
    try:
        value = json.loads(raw.decode(), parse_constant=_refuse_constant)
    except RecursionError:
        raise CommandError(f"the command's value nests too deep; at most {limits.depth} levels are read") from None
    except ValueError:  # no UTF-8, no JSON, or an integer of thousands of digits
        return raw, False
    if _deeper_than(value, limits.depth):
        raise CommandError(f"the command's value nests too deep; at most {limits.depth} levels are read")
    return value, True


def _deeper_than(value: Any, depth: int) -> bool:
    """Whether lists and objects nest more than ``depth`` levels."""
    level = [value] if isinstance(value, (list, dict)) else []
    for _ in range(depth):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, (list, dict))
        ]
    return bool(level)


# -- arguments of the built-in actions -----------------------------------------------------------------------------


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Nothing(_Arguments):
    pass


class _OneSource(_Arguments):
    cam_id: CamId


class _Sources(_Arguments):
    cam_id: CamId | None = None


class _Snapshot(_Sources):
    width: int | None = Field(default=None, ge=1, le=4096)


class _Seek(_OneSource):
    to: Literal["end", "beginning", "keyframe"] | Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0)]


class _Rate(_OneSource):
    rate: float | None = Field(gt=0, allow_inf_nan=False)


_SCHEMAS: Final[Mapping[str, type[_Arguments]]] = {
    "delete": _OneSource,
    "status": _Nothing,
    "pause": _Sources,
    "resume": _Sources,
    "seek": _Seek,
    "set_rate": _Rate,
    "snapshot": _Snapshot,
    "stop": _Nothing,
}


def arguments_of(command: Command, schemes: frozenset[str], config_topic: str) -> dict[str, Any]:
    """Keyword arguments for the target's method of a built-in action.

    ``create``, ``update`` and the actions on one source take an object, or just the id (JSON, or the bare text that the
    first comux sent).

    Args:
        command: Of an action in ``BUILT_IN``.
        schemes: Address schemes that ``create`` and ``update`` may name.
        config_topic: Neither it nor what goes with it can be a source's topic: results must not become commands.

    Raises:
        CommandError: the value does not fit the action.
    """
    value = object_of(command)
    if command.action in ("create", "update"):
        return _source_settings(command.action, value, schemes, config_topic)
    try:
        checked = _SCHEMAS[command.action].model_validate(value)
    except ValidationError as exc:
        faults = "; ".join(f"{'.'.join(map(repr, f['loc'])) or 'value'}: {f['msg']}" for f in exc.errors()[:5])
        raise CommandError(f"action {command.action!r}: {faults}") from None
    arguments = checked.model_dump(exclude_unset=True)
    if arguments.get("cam_id") is not None:
        arguments["cam_id"] = _cam_id(command.action, arguments["cam_id"])
    return arguments


def object_of(command: Command) -> dict[str, Any]:
    """The argument of a built-in action as an object, whichever way it was written; not checked further.

    Raises:
        CommandError: it is neither an object nor an id.
    """
    value = command.value
    if value is None or value == b"":
        return {}
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise CommandError(f"action {command.action!r}: the value is neither JSON nor a cam_id") from None
    if isinstance(value, (str, int)) and not isinstance(value, bool):
        return {"cam_id": _cam_id(command.action, value)}
    if isinstance(value, dict):
        return value
    raise CommandError(
        f"action {command.action!r}: the value is a JSON {type(value).__name__}; send an object or a cam_id"
    )


def _cam_id(action: str, value: Any) -> CamId:
    try:
        return check_cam_id(value)
    except ConfigError as exc:
        raise CommandError(f"action {action!r}: {exc}") from None


def _source_settings(
    action: str, value: Mapping[str, Any], schemes: frozenset[str], config_topic: str
) -> dict[str, Any]:
    for key in LOCAL_ONLY.intersection(value):
        raise CommandError(f"action {action!r}: {key} can be set by the program only, not by a command")
    for key in ("address", "produce_address"):
        scheme = str(value.get(key) or "").partition("://")[0]
        if value.get(key) is not None and scheme not in schemes:
            raise CommandError(
                f"action {action!r}: {key} {shown(str(value[key]))[:80]!r} is not allowed; allowed are "
                f"{', '.join(sorted(s + '://' for s in schemes)) or 'none'}"
            )
        if "?" in str(value.get(key)):  # they are client options, in another place
            raise CommandError(
                f"action {action!r}: {key} {shown(str(value[key]))[:80]!r} has options, which the program may set and "
                "a command may not; leave out what begins with '?'"
            )
    for key in ("consume_topic", "produce_topic", "share_frames"):
        topic = value.get(key)
        if isinstance(topic, str) and of_control(config_topic, topic):
            raise CommandError(f"action {action!r}: {key} {topic!r} is a topic of the control plane; name another")
    try:
        options = SourceOptions(**value)
    except (ConfigError, TypeError) as exc:
        raise CommandError(f"action {action!r}: {exc}") from None
    return {key: getattr(options, key) for key in value}
