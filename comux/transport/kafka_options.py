"""What a Kafka address and its options say: comux' own settings, and those handed on to kafka-python's clients.

**Who wins.** Whatever the user gives wins over our defaults. Options with a name of ``KafkaConsumer``,
``KafkaProducer`` or ``KafkaAdminClient`` go to those of the three that know the name; ``OWN`` are comux'; any other
name is an error with the nearest known one. Where the user's value does not go together with a default of ours
(``fetch_max_wait_ms`` above our ``request_timeout_ms``), ours gives way. A handful of client options would take away
what comux promises (it commits what was acknowledged, records are bytes): they are refused, with the setting that does
what they are for.

**Checks.** kafka-python checks hardly any value; a wrong one shows up as a time-out, or never. So the type of each is
held against the client's default value, words against those there are, and credentials and certificates are tried
(``kafka_security``), before anything connects.

**Text.** Options in an address are text and take the type of the client's default value.

**Secrets** are never shown: ``repr`` of these options, and of every address, has ``***`` in their place.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

from kafka import KafkaConsumer, KafkaProducer, codec
from kafka.admin import KafkaAdminClient
from kafka.net.sasl import SASL_MECHANISMS

from comux.errors import ConfigError
from comux.redaction import is_secret, redacted, shown

from . import confluent_options
from .address import Address, valid_name
from .kafka_security import PROTOCOLS, check_security, read_password

_CLIENTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "consumer": KafkaConsumer.DEFAULT_CONFIG,
    "producer": KafkaProducer.DEFAULT_CONFIG,
    "admin": KafkaAdminClient.DEFAULT_CONFIG,
}
_REFUSED: Final = {
    "group_id": "say group= of the source or consumer",
    "group_instance_id": "members of comux groups are dynamic",
    "key_deserializer": "keys are bytes; decode what poll returns",
    "value_deserializer": "values are bytes; decode what poll returns",
    "key_serializer": "keys are bytes; encode before send",
    "value_serializer": "values are bytes; encode before send",
    "partitioner": "a comux topic is one partition",
    "transactional_id": "comux sends no transactions; idempotence is on",
    "kafka_client": "comux brings its own, to tell failures apart",
    "consumer_timeout_ms": "poll takes a timeout",
    "default_offset_commit_callback": "comux reports commits itself",
}
_LIBRARIES: Final = ("kafka-python", "confluent")
_RECEIVE: Final = "receive_message_max_bytes"
_FETCH: Final = ("fetch_max_bytes", "max_partition_fetch_bytes")
#: Options whose default says nothing about their type.
_AS_INT: Final = frozenset({"receive_buffer_bytes", "send_buffer_bytes"})
_AS_OBJECT: Final = frozenset(
    {
        "metric_reporters",
        "partition_assignment_strategy",
        "sasl_oauth_token_provider",
        "selector",
        "socket_options",
        "ssl_context",
    }
)
_CHOICES: Final[Mapping[str, tuple[Any, ...]]] = {
    "security_protocol": PROTOCOLS,
    "acks": (0, 1, -1, "all"),
    "compression_type": (None, "gzip", "snappy", "lz4", "zstd"),
    "auto_offset_reset": ("earliest", "latest", "none"),
    "isolation_level": ("read_uncommitted", "read_committed"),
    "client_dns_lookup": ("use_all_dns_ips", "resolve_canonical_bootstrap_servers_only"),
}
_COMPRESSORS: Final[Mapping[str, tuple[Callable[[], bool], str]]] = {
    "snappy": (codec.has_snappy, "python-snappy"),
    "lz4": (codec.has_lz4, "lz4"),
    "zstd": (codec.has_zstd, "zstandard"),
}


@dataclass(frozen=True, slots=True)
class KafkaOptions:
    """Checked options of one connection.

    Attributes:
        servers: ``host:port`` to begin with.
        prefix: Put before every topic's and group's name on the cluster, and taken off again: a namespace.
        partition: Which partition is read and written of topics that have several; ``None``: such topics are refused.
        connect_timeout: Seconds ``connect`` may take.
        queue_bytes: Bytes fetched ahead per topic of a consumer; a topic that has more waiting is paused.
        buffer_bytes: Bytes handed to ``send`` and not acknowledged yet, of all producers of the connection.
        records_per_second, bytes_per_second: Most that is fetched per topic; ``None``: all.
        replication_factor: Of topics made here; -1: the cluster's default.
        password_file: File whose content is the ``sasl_plain_password``, for addresses on command lines.
        topic_config: Kafka's settings of topics made here (``{"retention.ms": "60000"}``); they win over what is
            derived from a ``TopicSpec``.
        library: Which client fetches assigned partitions and writes: ``"kafka-python"``, or ``"confluent"``
            (librdkafka); everything else is kafka-python's.
        librdkafka: Its own properties, for ``library="confluent"``; they win.
        client: kafka-python's options as given.
    """

    servers: tuple[str, ...]
    prefix: str = ""
    partition: int | None = None
    connect_timeout: float = 10.0
    queue_bytes: int = 16 << 20
    buffer_bytes: int = 64 << 20
    records_per_second: float | None = None
    bytes_per_second: float | None = None
    replication_factor: int = -1
    topic_config: Mapping[str, str] = field(default_factory=dict)
    library: str = "kafka-python"
    librdkafka: Mapping[str, Any] = field(default_factory=dict)
    client: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"KafkaOptions({','.join(self.servers)!r}, prefix={self.prefix!r}, {redacted(self.client)})"

    def for_client(self, kind: str, **ours: Any) -> dict[str, Any]:
        """Arguments of kafka-python's ``kind`` of client (``consumer``, ``producer``, ``admin``).

        Args:
            kind: Which client.
            ours: Our defaults; the user's options win, with their own.
        """
        known = _CLIENTS[kind]
        timeout_ms = int(self.connect_timeout * 1000)
        common = {
            "bootstrap_servers": list(self.servers),
            "bootstrap_timeout_ms": timeout_ms,
            "request_timeout_ms": 10_000,
            "reconnect_backoff_max_ms": 1000,  # a broker that is back is found within a second
        }
        ours = {**common, **ours}
        theirs = {name: value for name, value in self.client.items() if name in known}
        return {**ours, **_giving_way(ours, theirs), **theirs}

    def largest_answer(self) -> tuple[int, str]:
        """Bytes of the largest answer a consumer receives, and the option that says so; kafka-python raises the one to
        what the other two make possible."""
        known = _CLIENTS["consumer"]
        sizes = {name: int(self.client.get(name, known[name])) for name in (_RECEIVE, *_FETCH)}
        return max(sizes[_RECEIVE], sum(sizes[name] for name in _FETCH)), _RECEIVE

    def get(self, name: str, default: Any = None) -> Any:
        """The user's value of a client option, or ``default``."""
        return self.client.get(name, default)


OWN: Final = (frozenset(KafkaOptions.__dataclass_fields__) | {"password_file"}) - {"servers", "client"}


def _giving_way(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of ours that the user's options leave no room for, as they have to be then."""
    out: dict[str, Any] = {}
    if "heartbeat_interval_ms" in ours and "session_timeout_ms" in theirs:
        out["heartbeat_interval_ms"] = min(ours["heartbeat_interval_ms"], theirs["session_timeout_ms"] // 3)
    timeout = ours["request_timeout_ms"]
    if "fetch_max_wait_ms" in theirs:
        timeout = max(timeout, theirs["fetch_max_wait_ms"] + 5000)
    if "delivery_timeout_ms" in theirs:
        timeout = min(timeout, theirs["delivery_timeout_ms"] - theirs.get("linger_ms", ours.get("linger_ms", 0)))
    if "connections_max_idle_ms" in theirs:
        timeout = min(timeout, theirs["connections_max_idle_ms"] - 1)
    return {**out, "request_timeout_ms": timeout}


def read_options(address: Address, given: Mapping[str, Any]) -> KafkaOptions:
    """Options of an address and of ``connect``'s keywords.

    Args:
        address: Its hosts are where to begin; its query was merged into ``given`` already.
        given: By name; text where it stood in an address.

    Raises:
        ConfigError: a name is unknown or refused, a value is wrong; names the option.
    """
    own: dict[str, Any] = {}
    client: dict[str, Any] = {}
    for name, value in given.items():
        if name in OWN:
            own[name] = value
        else:
            client[name] = _client_option(name, value)
    password_file = own.pop("password_file", None)
    if password_file is not None:
        if client.get("sasl_plain_password") is not None:
            raise ConfigError("Kafka options password_file and sasl_plain_password: give one of them")
        client["sasl_plain_password"] = read_password(password_file)
    check_security(client)
    servers = client.pop("bootstrap_servers", None)
    return _checked(_servers(servers) if servers is not None else address.hosts, own, client)


def _servers(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or not parts or not all(isinstance(part, str) for part in parts):
        raise ConfigError(
            f"bootstrap_servers of type {type(value).__name__} is neither 'host:port,host:port' nor a list of "
            "'host:port'"
        )
    return tuple(part.strip() for part in parts)


def _client_option(name: str, value: Any) -> Any:
    if name in _REFUSED:
        raise ConfigError(f"Kafka option {name!r} cannot be used with comux: {_REFUSED[name]}")
    if name == "enable_auto_commit" and value not in (False, "false", "False", "0"):
        raise ConfigError(
            "Kafka option 'enable_auto_commit' would commit records that were fetched and not handled yet; comux "
            "commits what was acknowledged; leave it out"
        )
    defaults = [known[name] for known in _CLIENTS.values() if name in known]
    if not defaults:
        names = sorted({*OWN, *(n for known in _CLIENTS.values() for n in known)} - _REFUSED.keys())
        near = difflib.get_close_matches(name, names, 1)
        hint = (
            f"did you mean {near[0]!r}" if near else "see docs/reference/kafka.md for comux', kafka-python for its own"
        )
        raise ConfigError(f"there is no Kafka option {name!r}; {hint}")
    return _right(name, _typed(name, value, defaults[0]) if isinstance(value, str) else value, defaults[0])


def _typed(name: str, text: str, default: Any) -> Any:
    """``text`` as what the client wants there."""
    if name == "api_version":
        return tuple(int(_number(name, part)) for part in text.split("."))
    if name == "compression_type" and text == "none":
        return None
    if isinstance(default, bool):
        return _flag(name, text)
    if isinstance(default, (int, float)) or name in _AS_INT:
        if name == "acks" and text == "all":
            return text
        number = _number(name, text)
        return int(number) if number == number // 1 else number
    return text


def _right(name: str, value: Any, default: Any) -> Any:
    """``value`` if it is one for this option.

    Raises:
        ConfigError: it is not; says what would be.
    """
    choices = (None, *SASL_MECHANISMS) if name == "sasl_mechanism" else _CHOICES.get(name)
    if choices is not None:
        if isinstance(value, bool) or not isinstance(value, (str, int, type(None))) or value not in choices:
            words = ", ".join(str(choice) for choice in choices if choice is not None)
            raise ConfigError(f"Kafka option {name}={_presentable(name, value)} is none of {words}")
        installed, package = _COMPRESSORS.get(str(value), (bool, ""))
        if package and not installed():
            raise ConfigError(
                f"Kafka option {name}={value!r} needs the Python package {package}: pip install 'comux[compression]'"
            )
        return value
    if name in _AS_OBJECT:
        fits, wanted = not isinstance(value, (str, int, float)), "an object: pass it to the program, not as text"
    elif isinstance(default, bool):
        fits, wanted = isinstance(value, bool), "True or False"
    elif isinstance(default, (int, float)) or name in _AS_INT:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
        fits, wanted = fits or (value is None and default is None), "a number"
    elif name == "api_version":
        fits = value is None or (isinstance(value, tuple) and all(type(part) is int for part in value))
        wanted = "a tuple of whole numbers such as (2, 8)"
    elif name == "bootstrap_servers":
        return value
    elif name.startswith("ssl_") and isinstance(value, (os.PathLike, bytes)):
        return os.fspath(value)
    else:
        fits, wanted = value is None or isinstance(value, str), "text"
    if not fits:
        raise ConfigError(f"Kafka option {name}={_presentable(name, value)} has to be {wanted}")
    return value


def _presentable(name: str, value: Any) -> str:
    """A wrong value in an error: text and numbers of what is no secret; else its type."""
    if is_secret(name) or not isinstance(value, (str, int, float, type(None))):
        return f"<{type(value).__name__}>"
    return repr(shown(value) if isinstance(value, str) else value)


def _flag(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "1", "yes", "on", "false", "0", "no", "off"):
        return value.lower() in ("true", "1", "yes", "on")
    raise ConfigError(f"Kafka option {name}={_presentable(name, value)} is neither true nor false")


def _number(name: str, value: Any) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"Kafka option {name}={_presentable(name, value)} is no number") from None


def _checked(servers: tuple[str, ...], own: dict[str, Any], client: dict[str, Any]) -> KafkaOptions:
    for name in ("queue_bytes", "buffer_bytes", "replication_factor", "partition"):
        if own.get(name) is not None:
            number = _number(name, own[name])
            least = {"replication_factor": -1, "partition": 0}.get(name, 1)
            whole = math.isfinite(number) and number == int(number)
            if not whole or number < least or (name == "replication_factor" and number == 0):
                raise ConfigError(f"Kafka option {name}={own[name]!r} is no whole number of at least {least}")
            own[name] = int(number)
    for name in ("connect_timeout", "records_per_second", "bytes_per_second"):
        if own.get(name) is not None:
            own[name] = _number(name, own[name])
            if not 0 < own[name] < math.inf:
                raise ConfigError(f"Kafka option {name}={own[name]!r} is not above 0 and finite")
    prefix = own.get("prefix", "")
    if prefix != "" and not valid_name(prefix):
        raise ConfigError(f"Kafka option prefix={prefix!r} may hold letters, digits, '.', '_' and '-' only")
    config = own.get("topic_config", {})
    if not isinstance(config, Mapping):
        raise ConfigError(
            f"Kafka option topic_config of type {type(config).__name__} is no mapping of Kafka's topic settings"
        )
    own["topic_config"] = {str(key): str(value) for key, value in config.items()}
    if own.setdefault("library", _LIBRARIES[0]) not in _LIBRARIES:
        raise ConfigError(f"Kafka option library={own['library']!r} is none of {', '.join(_LIBRARIES)}")
    if own["library"] != _LIBRARIES[0]:
        own["librdkafka"] = confluent_options.check(client, own)
    elif own.get("librdkafka"):
        raise ConfigError("Kafka option librdkafka holds properties of librdkafka: it needs library='confluent'")
    return KafkaOptions(servers=servers, client=cast(Mapping[str, Any], client), **own)
