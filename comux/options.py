"""Checked settings: what a source may be told, how its topics are called, which old spellings mean the same.

Lives here: ``SourceOptions`` and the checks of ids, schemas and legacy words. May import: ``records``, ``errors``,
numpy, pydantic. Must never know: engines, decoders, who applies the settings.

Everything is checked before anything starts. A wrong value raises ``ConfigError`` with the key, the value, and what
would be right; values are taken as they are meant (``"10"`` is no number, ``True`` no count).
"""

from __future__ import annotations

import base64
import binascii
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator
from pydantic.json_schema import SkipJsonSchema

from comux.errors import ConfigError
from comux.redaction import redacted, shown

CamId = str | int
"""A source's public id. ``1`` and ``"1"`` would share a topic, so they exclude each other."""
Mode = Literal["auto", "every_frame", "freshest"]
ArrayFormat = Literal["bgr24", "rgb24", "gray", "planes", "native"]
Framing = Literal["access_unit", "bytestream"]

CAM_ID_MARK: Final = ":cam_id"
MAX_TOPIC_NAME: Final = 100
_TOPIC_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")


# -- names ---------------------------------------------------------------------------------------------------------


def check_topic_name(name: object, what: str = "topic") -> str:
    """Return ``name`` if it names a topic on every engine.

    Raises:
        ConfigError: not text, empty, ``.``, ``..``, longer than 100, or with other characters than letters, digits,
            ``.``, ``_`` and ``-``.
    """
    if not isinstance(name, str):
        raise ConfigError(f"{what} is {type(name).__name__}, not text")
    if not name or name in (".", "..") or not _TOPIC_NAME.fullmatch(name):
        raise ConfigError(f"{what} {name!r} is no topic name: use letters, digits, '.', '_' and '-'")
    if len(name) > MAX_TOPIC_NAME:
        raise ConfigError(f"{what} {name[:40]!r}… has {len(name)} characters, at most {MAX_TOPIC_NAME} are allowed")
    return name


def check_schema(schema: object, what: str = "schema") -> str:
    """Return ``schema`` if it holds ``:cam_id`` exactly once and otherwise only topic characters.

    Raises:
        ConfigError: names ``what`` (for example ``consume_schema``), the value and the remedy.
    """
    if not isinstance(schema, str):
        raise ConfigError(f"{what} is {type(schema).__name__}, not text such as 'raw_:cam_id'")
    count = schema.count(CAM_ID_MARK)
    if count != 1:
        raise ConfigError(
            f"{what} {schema!r} holds {CAM_ID_MARK} {count} times: it must stand there once, as in 'raw_:cam_id'"
        )
    rest = schema.replace(CAM_ID_MARK, "")
    if rest and not _TOPIC_NAME.fullmatch(rest):
        raise ConfigError(
            f"{what} {schema!r} makes no topic name: use letters, digits, '.', '_' and '-' around {CAM_ID_MARK}"
        )
    return schema


def topic_name(schema: str, cam_id: CamId) -> str:
    """The topic of one source: ``topic_name("raw_:cam_id", 7) == "raw_7"``.

    Raises:
        ConfigError: the schema is none, or the result is no topic name.
    """
    name = check_schema(schema).replace(CAM_ID_MARK, str(cam_id))
    return check_topic_name(name, f"the topic of cam_id {cam_id!r} by schema {schema!r},")


def topic_pattern(schema: str) -> str:
    """The pattern that the topics of all sources match: ``topic_pattern("raw_:cam_id") == "raw_*"``."""
    return check_schema(schema).replace(CAM_ID_MARK, "*")


def cam_id_of(schema: str, topic: str) -> str:
    """The id (as text) whose topic by ``schema`` is ``topic``.

    Raises:
        ConfigError: ``topic`` does not follow ``schema``.
    """
    before, after = check_schema(schema).split(CAM_ID_MARK)
    end = len(topic) - len(after)
    if end <= len(before) or not topic.startswith(before) or not topic.endswith(after):
        raise ConfigError(f"topic {topic!r} does not follow the schema {schema!r}")
    return topic[len(before) : end]


def check_cam_id(cam_id: object, where: str = "") -> CamId:
    """Return ``cam_id`` if it is a usable id: a non-negative ``int``, or text of topic characters.

    Raises:
        ConfigError: names the id and ``where`` (for example `` at position 3``).
    """
    if isinstance(cam_id, bool) or not isinstance(cam_id, (str, int)):
        raise ConfigError(f"cam_id {cam_id!r}{where} is {type(cam_id).__name__}, not text or an integer")
    if isinstance(cam_id, int):
        if not 0 <= cam_id < 2**63:
            raise ConfigError(f"cam_id {cam_id!r}{where} is out of range: integers from 0 to 2**63 - 1")
        return int(cam_id)
    if not cam_id:
        raise ConfigError(f"cam_id{where} is empty: give every source a name")
    if not _TOPIC_NAME.fullmatch(cam_id) or len(cam_id) > MAX_TOPIC_NAME:
        raise ConfigError(
            f"cam_id {cam_id[:120]!r}{where} cannot be part of a topic name: use at most {MAX_TOPIC_NAME} letters, "
            "digits, '.', '_' and '-'"
        )
    return str(cam_id)


def check_cam_ids(cam_ids: object, schema: str | None = None) -> tuple[CamId, ...]:
    """Return the ids as a tuple, in their order.

    Args:
        cam_ids: A list or other iterable of ids (not one string: that is most likely a mistake).
        schema: Where given, the topic of every id is checked too.

    Raises:
        ConfigError: none at all, a duplicate (``1`` and ``"1"`` count as one), or an id that is none; the message names
            the id and its position, counted from 0.
    """
    if isinstance(cam_ids, (str, bytes)) or not isinstance(cam_ids, Iterable):
        raise ConfigError(f"cam_ids {cam_ids!r} is {type(cam_ids).__name__}, not a list of ids: write [{cam_ids!r}]")
    out: list[CamId] = []
    seen: dict[str, int] = {}
    for position, candidate in enumerate(cam_ids):
        cam_id = check_cam_id(candidate, f" at position {position}")
        if str(cam_id) in seen:
            raise ConfigError(
                f"cam_id {cam_id!r} at position {position} is a duplicate of position {seen[str(cam_id)]}: ids are "
                "unique, and 1 and '1' are the same"
            )
        seen[str(cam_id)] = position
        if schema is not None:
            topic_name(schema, cam_id)
        out.append(cam_id)
    if not out:
        raise ConfigError("cam_ids is empty: give at least one id")
    return tuple(out)


# -- single values -------------------------------------------------------------------------------------------------


def check_timeout(timeout: object, what: str = "timeout") -> float | None:
    """Return ``timeout`` in seconds: ``None`` waits, ``0`` never waits.

    Raises:
        ConfigError: negative, NaN, or no number.
    """
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or math.isnan(timeout) or timeout < 0:
        raise ConfigError(f"{what} {timeout!r} is no time: give seconds as a number from 0, or None to wait")
    return float(timeout)


def check_positive(value: object, what: str, *, zero: bool = False) -> int:
    """Return ``value`` if it is an integer above 0 (or from 0 with ``zero``).

    Raises:
        ConfigError: it is not.
    """
    least = 0 if zero else 1
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{what} {value!r} is no count: give an integer from {least}")
    return value


def check_choice(value: object, what: str, choices: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``choices``.

    Raises:
        ConfigError: it is not; the message lists them.
    """
    known = tuple(choices)
    if not isinstance(value, str) or value not in known:
        raise ConfigError(f"{what} {value!r} is none of {', '.join(known)}")
    return value


def log_level(level: str | int | None) -> int | None:
    """Level for ``logging`` from ours, the standard's or the first comux's words.

    Args:
        level: ``"ERROR"``, ``"DEBUG"``, ``"ANY"`` (or 0, 1, 2, as the first comux counted them), any name or number
            (from 10) of the ``logging`` module, or ``None``: leave it alone.

    Raises:
        ConfigError: not a level.
    """
    if level is None:
        return None
    if isinstance(level, int) and not isinstance(level, bool):
        old = {0: logging.ERROR, 1: logging.DEBUG, 2: logging.NOTSET + 1}
        if level in old:
            return old[level]
        if 10 <= level <= 100:
            return level
    if isinstance(level, str):
        if level.upper() == "ANY":
            return logging.NOTSET + 1
        number = logging.getLevelNamesMapping().get(level.upper())
        if number is not None:
            return number
    raise ConfigError(f"log_level {level!r} is none of ERROR, WARNING, INFO, DEBUG, ANY")


# -- the first comux's spellings -----------------------------------------------------------------------------------


def deprecated(old: str, new: str, *, stacklevel: int = 3) -> None:
    """Warn that ``old`` still works and ``new`` is the word now; points at the caller's caller by default."""
    warnings.warn(f"{old} still works; the word is {new} now", DeprecationWarning, stacklevel=stacklevel)


def replace_flag(
    *,
    replace: bool | None = None,
    overwrite: bool | None = None,
    over_write: bool | None = None,
    default: bool = True,
    stacklevel: int = 3,
) -> bool:
    """One answer out of three spellings of *replace a consumer that exists*.

    Any ``True`` wins: the first comux's own example passes ``overwrite=True, over_write=False``, where the second was
    about client options (the user's always win now).

    Args:
        replace: Ours.
        overwrite: The README's.
        over_write: The code's.
        default: The answer where none is given.
        stacklevel: Whom the deprecation note points at: 3 is the caller of the function that calls this one.
    """
    given = {"overwrite": overwrite, "over_write": over_write}
    for name, value in given.items():
        if value is not None:
            deprecated(f"{name}=", "replace=", stacklevel=stacklevel + 1)
    values = [value for value in (replace, overwrite, over_write) if value is not None]
    for value in values:
        if not isinstance(value, bool):
            raise ConfigError(f"replace {value!r} is {type(value).__name__}, not True or False")
    return any(values) if values else default


# -- one source ----------------------------------------------------------------------------------------------------


def _canonical_dtype(value: Any) -> Any:
    """A dtype as JSON-ready text or field list, whatever way it was given."""
    if value is None:
        return None
    if isinstance(value, list):
        value = [tuple(tuple(part) if isinstance(part, list) else part for part in field) for field in value]
    try:
        dtype = np.dtype(value)
    except Exception as exc:  # noqa: BLE001 - numpy raises half a dozen kinds for what is no dtype
        raise ValueError(f"is no numpy dtype: {exc}") from None
    if dtype.hasobject:
        raise ValueError("holds Python objects; raw arrays are never pickled")
    return dtype.str if dtype.names is None else dtype.descr


def _bytes_or_base64(value: Any) -> Any:
    """Bytes; from a file or a command, which have none, base64 text."""
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("is neither bytes nor base64 text") from None


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


_MAY_HOLD_SECRETS: Final = frozenset({"client_options", "address", "produce_address"})

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class SourceOptions(BaseModel):
    """Everything one source can be told; frozen. Wrong values raise ``ConfigError`` naming the source, key and value.

    Attributes:
        cam_id: The public id.
        consume_topic: Its packets; ``None``: by the manager's ``consume_schema``.
        produce_topic: Where ``send`` re-emits; ``None``: by the manager's ``produce_schema``.
        address: Engine of ``consume_topic``; ``None``: the manager's.
        produce_address: Engine of ``produce_topic``; ``None``: the manager's.
        client_options: Passed to the engine's consumer (Kafka's client options); the user's always win.
        group: Gating consumer group; ``None``: lossy.
        durable: The group keeps its place without a living member, and a packet is acknowledged only when the loop has
            asked for the batch after its own and every ``send`` of it was acknowledged: what the loop was busy with
            when it died comes again.
        start: Where reading begins without a committed position, see ``transport.Start`` (an ``int`` is an offset, a
            ``float`` a Unix time).
        on_end: ``"wait"`` for the next life of the stream (cameras), or ``"stop"`` (files).
        framing: ``"access_unit"``: one record is one packet; ``"bytestream"``: any bytes, through a parser.
        codec: Registered decoder name.
        pix_fmt: Pixel format of the stream as stated; ``None``: whatever comes.
        W, H: Wanted size of the arrays in pixels; ``None``: the stream's.
        rate: Most frames per second delivered, of capture time; ``None``: all. What they do not need is not decoded.
        array_format: ``bgr24, rgb24, gray, planes, native``.
        dtype, shape: Of raw arrays where the records do not carry them.
        extradata: Out-of-band parameter sets (base64 in files and commands).
        max_pixels: Larger pictures are refused before decoding.
        decode_threads: Codec threads; ``None``: chosen by mode.
        hwaccel: Device that decodes, as in ``"cuda"`` or ``"vaapi:/dev/dri/renderD128"``; ``None``: software. A device
            that is not there is an error, never a way back to software.
        on_damage: ``"drop"`` to the next clean keyframe, or ``"deliver"`` marked degraded.
        mode: ``auto, every_frame, freshest``.
        max_offset_diff: Lag limit in records; ``None``: 20 where the lag rule is on by default.
        max_age: Lag limit in seconds; ``None``: none.
        stall_after: Seconds without a record until the state is STALLED; ``None``: measured from its rate.
        maxlen: Packets kept for ``send`` at most.
        retain_bytes: Bytes of packets kept for ``send`` at most.
        queue_bytes: Bytes of packets waiting for the decoder at most.
        store_bytes: Bytes of decoded pictures waiting to be taken at most (``every_frame``).
        share_frames: Topic that decoded frames are put into; ``None``: none.
        paused: Begin paused.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True, hide_input_in_errors=True
    )

    cam_id: CamId
    consume_topic: str | None = None
    produce_topic: str | None = None
    address: str | None = None
    produce_address: str | None = None
    client_options: Mapping[str, Any] = Field(default_factory=dict)
    group: str | None = None
    durable: bool = False
    start: (
        Literal["end", "beginning", "keyframe"]
        | Annotated[int, Field(ge=0)]
        | Annotated[float, Field(ge=0, allow_inf_nan=False)]
        | SkipJsonSchema[Callable[[Any], bool]]
    ) = "end"
    on_end: Literal["wait", "stop"] = "wait"
    framing: Framing = "access_unit"
    codec: Annotated[str, Field(min_length=1)] = "h264"
    pix_fmt: str | None = None
    W: Annotated[int, Field(gt=0, le=65536)] | None = None
    H: Annotated[int, Field(gt=0, le=65536)] | None = None
    rate: PositiveFloat | None = None
    array_format: ArrayFormat = "bgr24"
    dtype: Annotated[Any, BeforeValidator(_canonical_dtype)] = None
    shape: Annotated[tuple[PositiveInt, ...] | None, BeforeValidator(_tuple)] = None
    extradata: Annotated[bytes | None, BeforeValidator(_bytes_or_base64)] = None
    max_pixels: PositiveInt = 8192 * 8192
    decode_threads: Annotated[int, Field(ge=0, le=64)] | None = None
    hwaccel: Annotated[str, Field(min_length=1)] | None = None
    on_damage: Literal["drop", "deliver"] = "drop"
    mode: Mode = "auto"
    max_offset_diff: PositiveInt | None = None
    max_age: PositiveFloat | None = None
    stall_after: PositiveFloat | None = None
    maxlen: PositiveInt = 20
    retain_bytes: PositiveInt = 64 << 20
    queue_bytes: PositiveInt = 16 << 20
    store_bytes: PositiveInt = 24 << 20
    share_frames: str | None = None
    paused: bool = False

    if not TYPE_CHECKING:  # type checkers see the fields as keywords

        def __init__(self, /, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as exc:
                raise ConfigError(_explain(exc, values)) from None

    @field_validator("cam_id")
    @classmethod
    def _check_cam_id(cls, value: Any) -> Any:
        return check_cam_id(value)

    @field_validator("consume_topic", "produce_topic", "share_frames")
    @classmethod
    def _check_topic(cls, value: str | None) -> str | None:
        return None if value is None else check_topic_name(value)

    @field_validator("group")
    @classmethod
    def _check_group(cls, value: str | None) -> str | None:
        return None if value is None else check_topic_name(value, "group")

    @property
    def numpy_dtype(self) -> np.dtype[Any] | None:
        """``dtype`` as numpy's object."""
        return None if self.dtype is None else np.dtype(self.dtype)

    def changed(self, **changes: Any) -> SourceOptions:
        """A copy with ``changes``, checked as a whole.

        Raises:
            ConfigError: a wrong key or value, or another ``cam_id``: that would be another source.
        """
        if "cam_id" in changes and str(changes["cam_id"]) != str(self.cam_id):
            raise ConfigError(
                f"source {self.cam_id!r}: cam_id cannot be changed to {changes['cam_id']!r}; delete and create"
            )
        kept = {name: getattr(self, name) for name in type(self).model_fields}
        return SourceOptions(**{**kept, **changes, "cam_id": self.cam_id})

    def spec(self) -> dict[str, Any]:
        """JSON-ready dictionary of what differs from the defaults; ``SourceOptions(**spec)`` gives an equal object.

        A ``start`` that is a function has no form in JSON and is left out.
        """
        fields = type(self).model_fields.items()
        names = [n for n, info in fields if getattr(self, n) != info.get_default(call_default_factory=True)]
        return self.plain(names)

    def stated(self) -> dict[str, Any]:
        """As ``spec``, of what was said, also where that is the default; ``***`` for secrets."""
        return self.shown_settings(self.model_fields_set)

    def shown_settings(self, names: Iterable[str]) -> dict[str, Any]:
        """``plain(names)``, fit to be shown."""
        return {name: _presentable(name, value) for name, value in self.plain(names).items()}

    def plain(self, names: Iterable[str]) -> dict[str, Any]:
        """JSON-ready dictionary of these settings and the ``cam_id``."""
        out: dict[str, Any] = {"cam_id": self.cam_id}
        for name in sorted(names, key=list(type(self).model_fields).index):
            value = getattr(self, name)
            if callable(value):
                continue
            if isinstance(value, bytes):
                value = base64.b64encode(value).decode()
            elif isinstance(value, tuple):
                value = list(value)
            elif isinstance(value, Mapping):
                value = dict(value)
            out[name] = value
        return out

    def shown(self) -> dict[str, Any]:
        """``spec()`` fit to be shown: ``***`` for secrets in addresses and client options."""
        return {name: _presentable(name, value) for name, value in self.spec().items()}

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, _presentable(name, value)


def _presentable(name: str | None, value: Any) -> Any:
    if name not in _MAY_HOLD_SECRETS:
        return value
    return redacted(value) if isinstance(value, Mapping) else shown(value) if isinstance(value, str) else value


def _explain(exc: ValidationError, values: Mapping[str, Any]) -> str:
    """One line out of pydantic's report: source, key, value, remedy."""
    known = list(SourceOptions.model_fields)
    parts: dict[str, str] = {}
    for fault in exc.errors():
        key = str(fault["loc"][0]) if fault["loc"] else "source"
        if fault["type"] == "missing":
            text = f"{key} is missing"
        elif fault["type"] == "extra_forbidden":
            text = f"there is no setting {key!r}{suggestion(key, known)}"
        else:
            message = fault["msg"].removeprefix("Value error, ")
            text = f"{key}={_short(key, values.get(key))}: {message[:1].lower()}{message[1:]}"
        parts[key] = f"{parts[key]}, or {text.split(': ', 1)[-1]}" if key in parts else text
    return f"source {values.get('cam_id', '?')!r}: {'; '.join(parts.values())}"


def suggestion(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` where a known word is near, else the list of all: the tail of an error message."""
    import difflib

    words = sorted(known)
    near = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(words)}"


def _short(key: str, value: Any) -> str:
    """A wrong value in an error; of what may hold secrets, its type."""
    text = f"<{type(value).__name__}>" if key in _MAY_HOLD_SECRETS else repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
