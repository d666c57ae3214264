"""``library="confluent"``: options in librdkafka's words, what is refused, and what its errors and statistics mean."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import confluent_kafka
import pytest
from kafka import errors as kafka_errors

from comux.errors import ConfigError, ConnectError, TlsError
from comux.transport import parse_address
from comux.transport.confluent_options import make, properties
from comux.transport.confluent_trouble import Ear, as_kafka_error
from comux.transport.kafka_failures import Notes, translate
from comux.transport.kafka_options import KafkaOptions, read_options

ADDRESS = "kafka://127.0.0.1:9092"
KINDS = confluent_kafka.KafkaError


def read(**given: Any) -> KafkaOptions:
    return read_options(parse_address(ADDRESS), {"library": "confluent", **given})


def configured(kind: str, **given: Any) -> dict[str, Any]:
    options = read(**given)
    return properties(kind, options.for_client(kind), options.librdkafka)


# -- options -------------------------------------------------------------------------------------------------------


def test_it_is_not_imported_where_nobody_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)  # importing it is an ImportError now
    assert read_options(parse_address(ADDRESS), {}).library == "kafka-python"
    with pytest.raises(ConfigError, match=r"pip install 'comux\[confluent\]'"):
        read()


@pytest.mark.parametrize("name,value,says", [
    ("library", "rdkafka", "none of kafka-python, confluent"),
    ("ssl_context", object(), "no counterpart in librdkafka"),
    ("sasl_oauth_token_provider", object(), "no counterpart"),
    ("socket_options", [], "no counterpart"),
    ("sasl_kerberos_name", "kafka", "no counterpart"),
    ("records_per_second", 10, "throws away"),
    ("bytes_per_second", 10, "throws away"),
    ("librdkafka", "client.rack=a", "no mapping"),
    ("librdkafka", {"enable.auto.commit": True}, "'enable.auto.commit' cannot be set"),
    ("librdkafka", {"plugin.library.paths": "/tmp/evil.so"}, "cannot be set"),
    ("librdkafka", {"error_cb": print}, "of type builtin_function_or_method"),
])  # fmt: skip
def test_what_it_cannot_do_is_refused_before_anything_connects(name: str, value: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read(**{name: value})


def test_its_properties_need_it() -> None:
    with pytest.raises(ConfigError, match="needs library='confluent'"):
        read_options(parse_address(ADDRESS), {"librdkafka": {"client.rack": "a"}})


def test_the_names_of_kafka_python_become_its_own() -> None:
    told = configured(
        "consumer", fetch_max_wait_ms=37, security_protocol="SSL", ssl_check_hostname=False, check_crcs=False
    )
    assert told["fetch.wait.max.ms"] == 37
    assert told["security.protocol"] == "SSL"
    assert told["ssl.endpoint.identification.algorithm"] == "none"
    assert told["check.crcs"] is False
    assert "acks" not in told
    told = configured("producer", acks=1, compression_type="gzip", max_request_size=2**31 - 1, linger_ms=7)
    assert (told["acks"], told["compression.type"], told["linger.ms"]) == (1, "gzip", 7)
    assert told["message.max.bytes"] == 1_000_000_000  # its own bound
    assert "fetch.wait.max.ms" not in told


def test_its_own_properties_win() -> None:
    told = configured("consumer", fetch_max_wait_ms=37, librdkafka={"fetch.wait.max.ms": 41, "client.rack": "a"})
    assert (told["fetch.wait.max.ms"], told["client.rack"]) == (41, "a")


@pytest.mark.parametrize(
    "kind,client", [("consumer", confluent_kafka.Consumer), ("producer", confluent_kafka.Producer)]
)
def test_every_option_that_has_a_counterpart_is_one_that_it_knows(kind: str, client: Any) -> None:
    """With kafka-python's own defaults, librdkafka takes all of them."""
    from comux.transport.confluent_options import _OF
    from comux.transport.kafka_options import _CLIENTS

    values = {name: _CLIENTS[kind][name] for name in _OF[kind] if _CLIENTS[kind].get(name) is not None}
    values["bootstrap_servers"] = ["127.0.0.1:1"]
    told = properties(kind, values, {}, error_cb=lambda error: None)
    if kind == "consumer":
        told["group.id"] = "g"
        told["message.max.bytes"] = 1_000_000
    made = make(client, told, ADDRESS)
    if kind == "consumer":
        made.close()


def test_a_property_that_it_does_not_know_is_told_and_no_secret() -> None:
    told = {**configured("producer"), "sasl.pasword": "hunter2"}
    with pytest.raises(ConfigError, match=r"librdkafka: .*sasl.pasword") as refused:
        make(confluent_kafka.Producer, told, ADDRESS)
    assert "hunter2" not in str(refused.value)


# -- errors and statistics -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code,kind", [
    (KINDS._TRANSPORT, kafka_errors.KafkaConnectionError),
    (KINDS._ALL_BROKERS_DOWN, kafka_errors.KafkaConnectionError),
    (KINDS._RESOLVE, kafka_errors.KafkaConnectionError),
    (KINDS._AUTHENTICATION, kafka_errors.SaslAuthenticationFailedError),
    (KINDS._MSG_TIMED_OUT, kafka_errors.KafkaTimeoutError),
    (KINDS._UNKNOWN_TOPIC, kafka_errors.UnknownTopicOrPartitionError),
    (KINDS._PURGE_INFLIGHT, kafka_errors.Cancelled),
    (KINDS._STATE, kafka_errors.KafkaError),
    (KINDS.MSG_SIZE_TOO_LARGE, kafka_errors.MessageSizeTooLargeError),
    (KINDS.TOPIC_AUTHORIZATION_FAILED, kafka_errors.TopicAuthorizationFailedError),
])  # fmt: skip
def test_its_errors_are_those_of_kafka_python(code: int, kind: type[Exception]) -> None:
    made = as_kafka_error(confluent_kafka.KafkaError(code, "why"))
    assert type(made) is kind
    assert "why" in str(made)


def test_a_failed_handshake_is_a_tls_error() -> None:
    notes = Notes({})
    assert isinstance(translate(as_kafka_error(confluent_kafka.KafkaError(KINDS._SSL, "no")), ADDRESS, notes), TlsError)


def statistics(state: str, **topics: Any) -> str:
    brokers = {"h:9092/7": {"nodeid": 7, "state": state}, "h:9092/bootstrap": {"nodeid": -1}}
    return json.dumps({"brokers": brokers, "topics": topics})


def test_a_line_about_a_broker_is_noted_until_it_is_up() -> None:
    notes = Notes({})
    ear = Ear(notes)
    line = "sasl_ssl://h:9092/7: Connect to ipv4#10.0.0.1:9092 failed: Connection refused (after 0ms in state CONNECT)"
    ear.error(confluent_kafka.KafkaError(KINDS._TRANSPORT, line))
    trouble = notes.trouble(7)
    assert trouble is not None and trouble.at == "h:9092"
    error = translate(trouble, ADDRESS, notes)
    assert isinstance(error, ConnectError) and "connection refused" in str(error)
    ear.statistics(statistics("CONNECT"))
    assert notes.trouble(7) is trouble
    ear.statistics(statistics("UP"))
    assert notes.trouble(7) is None


def test_a_connection_that_is_silently_away_is_noted_at_the_second_look() -> None:
    notes = Notes({})
    ear = Ear(notes)
    ear.statistics(statistics("INIT"))
    ear.statistics(statistics("DOWN"))
    assert notes.trouble(7) is None
    ear.statistics(statistics("TRY_CONNECT"))
    assert notes.trouble(7) is not None


def test_a_line_that_is_not_understood_counts_for_nothing() -> None:
    notes = Notes({})
    ear = Ear(notes)
    ear.error(confluent_kafka.KafkaError(KINDS._ALL_BROKERS_DOWN, "3/3 brokers are down"))
    assert notes.troubles == [] and not ear.fatal and not ear.missing
    ear.error(confluent_kafka.KafkaError(KINDS.UNKNOWN_TOPIC_OR_PART, "raw [0]: topic does not exist"))
    assert ear.missing


def test_its_log_reaches_nobody_who_did_not_ask(capfd: pytest.CaptureFixture[str]) -> None:
    told = configured("producer", librdkafka={"bootstrap.servers.is.no.property": "x"})
    with pytest.raises(ConfigError):
        make(confluent_kafka.Producer, told, ADDRESS)
    assert capfd.readouterr().err == ""
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("librdkafka").handlers)
