"""Addresses: which engine, where, and perhaps which topic.

========================================  =============================================================
``shm://``, ``shm://lab``                 local engine, default directory or its namespace ``lab``
``shm://lab/raw_cam1``, ``shm:///cam1``   the same and a topic
``memory://``, ``memory://x/cam1``        in-process engine, store ``""`` or ``x``, and a topic
``kafka://h:9092,h2:9092/cam1``           Kafka brokers, and a topic
``"h:9092,h2:9092"``, ``["h:9092"]``      Kafka brokers, as the first comux wrote them
========================================  =============================================================

``?name=value&...`` at the end becomes options of the engine. Which schemes have an engine is ``engines``' business;
this module only takes text apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from comux.errors import UnknownAddressError
from comux.redaction import shown

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
_SCHEME = re.compile(r"([a-z][a-z0-9+]*)://(.*)", re.DOTALL)
_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(\d{1,5})")
_FEEDS = frozenset({"rtsp", "rtsps", "http", "https", "v4l2", "file", "synthetic", "hdf5", "tcp"})
_FORMS = "shm://[namespace][/topic], memory://[name][/topic], kafka://host:port[,host:port][/topic] or host:port"


@dataclass(frozen=True, slots=True)
class Address:
    """An address taken apart.

    Attributes:
        scheme: ``shm``, ``memory``, ``kafka``, or one that ``register_engine`` added.
        namespace: The part before the first ``/`` (hosts, as text, for Kafka).
        hosts: ``host:port`` of each Kafka broker; empty for the others.
        topic: The topic it names, or ``None``.
        query: The options after ``?``.
        text: The address as it was given (a list joined by commas), with ``***`` for secrets: fit to be shown.
    """

    scheme: str
    namespace: str
    hosts: tuple[str, ...]
    topic: str | None
    query: Mapping[str, str] = field(default_factory=dict, repr=False)
    text: str = ""


def valid_name(name: object) -> bool:
    """Whether ``name`` may be a topic's, namespace's or group's: 1 to 100 letters, digits, ``.``, ``_``, ``-``,
    not beginning with ``.``."""
    return isinstance(name, str) and NAME.fullmatch(name) is not None


def parse_address(text: str | Sequence[str]) -> Address:
    """Take an address apart.

    Args:
        text: One of the forms above; a sequence of ``host:port`` is Kafka.

    Raises:
        UnknownAddressError: it has none of the forms; the message says which there are.
    """
    if not isinstance(text, str):
        hosts = tuple(text) if isinstance(text, Sequence) else ()
        if not hosts or not all(isinstance(host, str) for host in hosts):
            raise UnknownAddressError(
                f"an address of type {type(text).__name__}: not a string or a list of 'host:port'; use {_FORMS}"
            )
        return _kafka(",".join(hosts), shown(",".join(hosts)))
    stripped = text.strip()
    text = shown(text)
    match = _SCHEME.fullmatch(stripped)
    if match is None:
        if stripped and all(_HOST_PORT.fullmatch(part.strip()) for part in stripped.split(",")):
            return _kafka(stripped, text)
        raise UnknownAddressError(f"address {text!r}: no scheme and not 'host:port'; use {_FORMS}")
    scheme, rest = match.groups()
    if scheme in _FEEDS:
        raise UnknownAddressError(
            f"address {text!r}: {scheme}:// is a feed, not an engine; publish it into a topic first:"
            f" comux publish {text}"
        )
    if scheme == "kafka":
        return _kafka(rest, text)
    body, _, query = rest.partition("?")
    namespace, _, topic = body.partition("/")
    for what, part in (("namespace", namespace), ("topic", topic)):
        if part and not valid_name(part):
            raise UnknownAddressError(
                f"address {text!r}: {what} {part!r} may hold letters, digits, '.', '_' and '-' only, at most 100"
            )
    return Address(scheme, namespace, (), topic or None, _query(query, text), text)


def _kafka(rest: str, text: str) -> Address:
    body, _, query = rest.partition("?")
    if "@" in body:
        raise UnknownAddressError(
            f"address {text!r}: credentials do not stand before a Kafka host; write ?security_protocol=SASL_SSL"
            "&sasl_mechanism=...&sasl_plain_username=...&sasl_plain_password=... after it"
        )
    names, _, topic = body.partition("/")
    hosts = tuple(part.strip() for part in names.split(","))
    for host in hosts:
        match = _HOST_PORT.fullmatch(host)
        if match is None or not 0 < int(match[2]) < 65536:
            raise UnknownAddressError(f"address {text!r}: {host!r} is not 'host:port' with a port from 1 to 65535")
    if topic and not valid_name(topic):
        raise UnknownAddressError(f"address {text!r}: topic {topic!r} may hold letters, digits, '.', '_' and '-' only")
    return Address("kafka", ",".join(hosts), hosts, topic or None, _query(query, text), text)


def _query(query: str, text: str) -> dict[str, str]:
    if not query:
        return {}
    try:
        return dict(parse_qsl(query, keep_blank_values=True, strict_parsing=True))
    except ValueError as error:
        raise UnknownAddressError(
            f"address {text!r}: cannot read the options, write ?name=value&name=value: {type(error).__name__}"
        ) from None
