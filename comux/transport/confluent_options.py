"""librdkafka as the client that fetches and produces: where it comes from, and our options in its words.

``library="confluent"`` asks for it; the package confluent-kafka is imported when the first such option is read, and
never else. Options keep their kafka-python names (``docs/reference/kafka.md`` has the table); what librdkafka has no
counterpart of is refused before anything connects, and its own properties are given in ``librdkafka={…}``, which wins.

**Refused in ``librdkafka``.** What would take away a promise (``enable.auto.commit`` …), and what loads code
(``plugin.library.paths``). Callables are no values.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from comux.errors import ConfigError
from comux.redaction import is_secret

_PLAIN: Final[Mapping[str, str]] = {
    name: name.replace("_", ".")
    for name in (
        "client_id",
        "client_rack",
        "client_dns_lookup",
        "reconnect_backoff_ms",
        "retry_backoff_ms",
        "connections_max_idle_ms",
        "security_protocol",
        "sasl_mechanism",
    )
}
_RENAMED: Final[Mapping[str, str]] = {
    "reconnect_backoff_max_ms": "reconnect.backoff.max.ms",
    "request_timeout_ms": "socket.timeout.ms",
    "receive_buffer_bytes": "socket.receive.buffer.bytes",
    "send_buffer_bytes": "socket.send.buffer.bytes",
    "metadata_max_age_ms": "topic.metadata.refresh.interval.ms",
    "sasl_plain_username": "sasl.username",
    "sasl_plain_password": "sasl.password",
    "ssl_cafile": "ssl.ca.location",
    "ssl_certfile": "ssl.certificate.location",
    "ssl_keyfile": "ssl.key.location",
    "ssl_password": "ssl.key.password",
    "ssl_crlfile": "ssl.crl.location",
    "ssl_ciphers": "ssl.cipher.suites",
}
_BOTH: Final = {**_PLAIN, **_RENAMED}
_OF: Final[Mapping[str, Mapping[str, str]]] = {
    "consumer": {
        **_BOTH,
        "check_crcs": "check.crcs",
        "fetch_max_bytes": "fetch.max.bytes",
        "fetch_max_wait_ms": "fetch.wait.max.ms",
        "fetch_min_bytes": "fetch.min.bytes",
        "isolation_level": "isolation.level",
        "max_partition_fetch_bytes": "max.partition.fetch.bytes",
        "receive_message_max_bytes": "receive.message.max.bytes",
    },
    "producer": {
        **_BOTH,
        "acks": "acks",
        "batch_size": "batch.size",
        "compression_type": "compression.type",
        "delivery_timeout_ms": "delivery.timeout.ms",
        "enable_idempotence": "enable.idempotence",
        "linger_ms": "linger.ms",
        "max_in_flight_requests_per_connection": "max.in.flight",
        "max_request_size": "message.max.bytes",
        "retries": "retries",
    },
}
#: Options that say nothing to it: how kafka-python does things, and what its clients for groups and questions do.
_NOT_ITS: Final = frozenset(
    {
        "allow_auto_create_topics",
        "api_version",
        "auto_commit_interval_ms",
        "auto_offset_reset",  # comux' own business
        "bootstrap_servers",
        "bootstrap_timeout_ms",
        "enable_auto_commit",
        "enable_incremental_fetch_sessions",
        "exclude_internal_topics",
        "heartbeat_interval_ms",
        "max_block_ms",
        "max_poll_interval_ms",
        "max_poll_records",
        "metric_group_prefix",
        "metrics_enabled",
        "metrics_num_samples",
        "metrics_sample_window_ms",
        "partition_assignment_strategy",
        "session_timeout_ms",
        "transaction_timeout_ms",
    }
)
_SPECIAL: Final = frozenset({"ssl_check_hostname"})
_OURS: Final = frozenset(
    {
        "auto.offset.reset",
        "bootstrap.servers",
        "enable.auto.commit",
        "enable.auto.offset.store",
        "enable.partition.eof",
        "group.id",
        "metadata.broker.list",
        "plugin.library.paths",
        "transactional.id",
    }
)
MOST_MESSAGE: Final = 1_000_000_000  #: librdkafka's own bound of ``message.max.bytes``
_log = logging.getLogger("librdkafka")
_log.addHandler(logging.NullHandler())  # what it warns of, comux reports; who listens still can


def library() -> Any:
    """The package.

    Raises:
        ConfigError: it is not installed; says how to.
    """
    try:
        import confluent_kafka
    except ImportError as error:
        raise ConfigError(
            f"Kafka option library='confluent' needs the package confluent-kafka ({error}): "
            "pip install 'comux[confluent]', or leave the option out"
        ) from None
    return confluent_kafka


def check(client: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Whether ``library="confluent"`` can do what these options say.

    Args:
        client: kafka-python's options, as given.
        own: comux' own.

    Returns:
        The properties of ``librdkafka``, checked.

    Raises:
        ConfigError: it is not installed, has no counterpart of an option, or a property is refused.
    """
    library()
    known = _NOT_ITS | _SPECIAL | _OF["consumer"].keys() | _OF["producer"].keys()
    for name, value in client.items():
        if name not in known and value is not None:
            raise ConfigError(
                f"Kafka option {name} has no counterpart in librdkafka: leave it out, or leave out library='confluent'"
            )
    if client.get("sasl_mechanism") not in (None, "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
        raise ConfigError(
            f"Kafka option sasl_mechanism={client['sasl_mechanism']!r} cannot be used with library='confluent'; leave "
            "that out"
        )
    for name in ("records_per_second", "bytes_per_second"):
        if own.get(name) is not None:
            raise ConfigError(
                f"Kafka option {name} cannot be used with library='confluent': librdkafka throws away what it fetched "
                "when it is told to wait; limit the rate of the source (rate=), or leave that out"
            )
    properties = own.get("librdkafka") or {}
    if not isinstance(properties, Mapping):
        raise ConfigError(
            f"Kafka option librdkafka of type {type(properties).__name__} is no mapping of librdkafka's properties"
        )
    return {str(name): _property(str(name), value) for name, value in properties.items()}


def _property(name: str, value: Any) -> Any:
    if name in _OURS:
        raise ConfigError(f"librdkafka property {name!r} cannot be set: comux sets it, or does without")
    if not isinstance(value, (str, int, float)):
        raise ConfigError(
            f"librdkafka property {name!r} is of type {type(value).__name__}: give text, a number or a flag"
        )
    return value


def properties(kind: str, arguments: Mapping[str, Any], given: Mapping[str, Any], **callbacks: Any) -> dict[str, Any]:
    """What a client of confluent-kafka's is made with.

    Args:
        kind: ``consumer`` or ``producer``.
        arguments: kafka-python's names and values, with our defaults (``KafkaOptions.for_client``).
        given: The user's own properties; they win.
        callbacks: ``error_cb``, ``stats_cb``.
    """
    out: dict[str, Any] = {"bootstrap.servers": ",".join(arguments["bootstrap_servers"])}
    for name, theirs in _OF[kind].items():
        value = arguments.get(name)
        if value is not None and value != math.inf:  # retries: as often as there is time
            out[theirs] = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not arguments.get("ssl_check_hostname", True):
        out["ssl.endpoint.identification.algorithm"] = "none"
    if "message.max.bytes" in out:
        out["message.max.bytes"] = min(out["message.max.bytes"], MOST_MESSAGE)
    out["socket.keepalive.enable"] = True
    return {**out, **given, **callbacks, "logger": _log}


def make(client: Callable[..., Any], configuration: Mapping[str, Any], where: str) -> Any:
    """A client.

    Raises:
        ConfigError: a property is unknown, or its value is refused.
    """
    error_type = library().KafkaException
    try:
        return client(dict(configuration))
    except error_type as error:
        text = error.args[0].str() if hasattr(error.args[0], "str") else str(error)
        secrets = [str(value) for name, value in configuration.items() if is_secret(name) and value]
        for secret in secrets:
            text = text.replace(secret, "***")
        raise ConfigError(f"{where}: librdkafka: {text}") from None
