"""Checks and messages that every engine shares: names, topic settings, arguments of a consumer."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from comux.dead_letters import MAX_DELIVERIES_LIMIT
from comux.errors import ConfigError, UnknownTopicError

from .address import valid_name
from .interface import TopicSpec

_POLICIES = ("wait", "drop_oldest", "drop_newest")


def check_spec(spec: TopicSpec) -> None:
    """Refuse a topic that cannot be made.

    Raises:
        ConfigError: names the attribute, its value, and what it may be.
    """
    check_name("topic", spec.name)
    if spec.policy not in _POLICIES:
        raise ConfigError(f"topic {spec.name!r}: policy {spec.policy!r} is none of {', '.join(_POLICIES)}")
    for what, value, words in (
        ("layout", spec.layout, ("ring", "pool")),
        ("writers", spec.writers, ("one", "many")),
        ("end", spec.end, ("explicit", "auto")),
    ):
        if value not in words:
            raise ConfigError(f"topic {spec.name!r}: {what} {value!r} is neither {words[0]!r} nor {words[1]!r}")
    for what, number, least in (("records", spec.records, 1), ("first_offset", spec.first_offset, 0)):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ConfigError(f"topic {spec.name!r}: {what}={number!r} is not an integer of at least {least}")
    if spec.data_bytes is not None and (not isinstance(spec.data_bytes, int) or spec.data_bytes < 1):
        raise ConfigError(f"topic {spec.name!r}: data_bytes={spec.data_bytes!r} is not a positive integer")
    if not spec.group_grace >= 0:
        raise ConfigError(f"topic {spec.name!r}: group_grace={spec.group_grace!r} is not a number of seconds >= 0")
    _check_deliveries(f"topic {spec.name!r}", spec.max_deliveries)
    _check_dtype(spec)
    try:
        json.dumps(dict(spec.metadata))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"topic {spec.name!r}: metadata is not JSON-ready: {error}") from error


def _check_deliveries(what: str, number: object) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= MAX_DELIVERIES_LIMIT:
        raise ConfigError(f"{what}: max_deliveries={number!r}: 1 to {MAX_DELIVERIES_LIMIT}, or 0 for ever")


def _check_dtype(spec: TopicSpec) -> None:
    if spec.dtype is None:
        if spec.shape:
            raise ConfigError(f"topic {spec.name!r}: shape={spec.shape} without a dtype; give both or neither")
        if spec.layout == "pool":
            raise ConfigError(f"topic {spec.name!r}: layout='pool' is for typed topics; give a dtype and a shape")
        return
    if spec.data_bytes is not None:
        raise ConfigError(f"topic {spec.name!r}: data_bytes is for variable records; a typed topic takes what it needs")
    try:
        dtype = np.dtype(spec.dtype)
    except TypeError as error:
        raise ConfigError(f"topic {spec.name!r}: {spec.dtype!r} is not a numpy dtype: {error}") from error
    if dtype.hasobject or dtype.itemsize == 0:
        raise ConfigError(f"topic {spec.name!r}: dtype {dtype} holds Python objects or nothing; use numbers or bytes")
    if any(isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1 for n in spec.shape):
        raise ConfigError(f"topic {spec.name!r}: shape={spec.shape} is not a tuple of positive integers")


def check_name(what: str, name: object) -> None:
    """Raise ``ConfigError`` where ``name`` may not be the name of a ``what``."""
    if not valid_name(name):
        raise ConfigError(f"{what} name {name!r} may hold letters, digits, '.', '_' and '-' only, 1 to 100 of them")


def check_consumer(
    topics: str | Sequence[str], group: str | None, start: object, on_end: str, max_deliveries: int | None = None
) -> tuple[str, ...]:
    """Check the arguments of ``Broker.consumer``; returns the topics as a tuple.

    Raises:
        ConfigError: no or repeated topics, a bad group name, an unknown start or on_end, ``max_deliveries`` out of
            range or without a group.
    """
    names = (topics,) if isinstance(topics, str) else tuple(topics)
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"a consumer reads one or several different topics, not {names}")
    if group is not None:
        check_name("group", group)
    if max_deliveries is not None:
        _check_deliveries(f"consumer of {names}", max_deliveries)
        if group is None:
            raise ConfigError(f"consumer of {names}: max_deliveries is for groups; name one, or leave it out")
    if on_end not in ("stop", "wait"):
        raise ConfigError(f"consumer of {names}: on_end={on_end!r} is neither 'stop' nor 'wait'")
    known = start in ("end", "beginning", "keyframe") if isinstance(start, str) else callable(start)
    if not known and (isinstance(start, (bool, str)) or not isinstance(start, (int, float)) or not start >= 0):
        raise ConfigError(
            f"consumer of {names}: start={start!r} is none of 'end', 'beginning', 'keyframe', an int offset >= 0, a"
            " float Unix time in seconds, a predicate of a record"
        )
    return names


def unknown_topic(name: str, existing: Sequence[str], where: str) -> UnknownTopicError:
    """The error for a topic that is not there; names those with similar names."""
    similar = difflib.get_close_matches(name, existing, 3, 0.5)
    if similar:
        hint = f"did you mean {', '.join(map(repr, similar))}"
    elif existing:
        hint = f"there are {len(existing)}: {', '.join(map(repr, existing[:5]))}{', ...' if len(existing) > 5 else ''}"
    else:
        hint = "there is no topic at all"
    return UnknownTopicError(f"no topic {name!r} at {where}: {hint}; create it, or start what publishes it")


def no_group(topics: Sequence[str]) -> ConfigError:
    """The error for ``commit``, ``ack`` and ``nack`` on a lossy consumer."""
    return ConfigError(f"consumer of {', '.join(map(repr, topics))} has no group, there is nothing to acknowledge")


def check_key(key: Any) -> bytes | None:
    """``key`` as bytes; raises ``ConfigError`` for anything that is neither bytes-like nor ``None``."""
    if key is None or isinstance(key, bytes):
        return key
    if isinstance(key, (bytearray, memoryview)):
        return bytes(key)
    raise ConfigError(f"a key is bytes or None, not {type(key).__name__}; encode it")
