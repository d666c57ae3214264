"""What may be said in options of a Kafka connection, checked before anything connects; and what is shown of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from comux.errors import ConfigError
from comux.transport import check_engine, parse_address
from comux.transport.kafka_options import KafkaOptions, read_options

ADDRESS = "kafka://h:9092"
LOGIN = {"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN", "sasl_plain_username": "u"}


def read(address: str = ADDRESS, **options: Any) -> KafkaOptions:
    parsed = parse_address(address)
    return read_options(parsed, {**parsed.query, **options})


@pytest.mark.parametrize(
    "options,says",
    [
        ({"fetch_max_wait": 1}, "did you mean 'fetch_max_wait_ms'"),
        ({"quux": 1}, "docs/reference/kafka.md"),
        ({"group_id": "g"}, "say group="),
        ({"value_deserializer": bytes}, "decode what poll returns"),
        ({"enable_auto_commit": True}, "commits what was acknowledged"),
        ({"acks": 2}, "acks=2 is none of 0, 1, -1, all"),
        ({"acks": True}, "acks=True is none of"),
        ({"acks": "some"}, "acks='some' is no number"),
        ({"compression_type": "zip"}, "none of gzip, snappy, lz4, zstd"),
        ({"security_protocol": "TLS"}, "none of PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL"),
        ({"security_protocol": ["SSL"]}, "security_protocol=<list> is none of"),
        ({"sasl_mechanism": "plain"}, "none of AWS_MSK_IAM"),
        ({"auto_offset_reset": "newest"}, "none of earliest, latest, none"),
        ({"linger_ms": [5]}, "linger_ms=<list> has to be a number"),
        ({"linger_ms": True}, "linger_ms=True has to be a number"),
        ({"linger_ms": float("nan")}, "has to be a number"),
        ({"check_crcs": 1}, "check_crcs=1 has to be True or False"),
        ({"check_crcs": "maybe"}, "neither true nor false"),
        ({"client_id": 5}, "client_id=5 has to be text"),
        ({"ssl_context": "context"}, "pass it to the program"),
        ({"api_version": "newest"}, "is no number"),
        ({"api_version": 3}, "has to be a tuple"),
        ({"send_buffer_bytes": "many"}, "is no number"),
        ({"bootstrap_servers": 5}, "bootstrap_servers of type int"),
        ({"queue_bytes": 0}, "whole number of at least 1"),
        ({"queue_bytes": "inf"}, "whole number of at least 1"),
        ({"connect_timeout": "inf"}, "above 0 and finite"),
        ({"replication_factor": 0}, "replication_factor=0"),
        ({"prefix": "a b"}, "letters, digits"),
        ({"topic_config": "retention.ms=1"}, "topic_config of type str is no mapping"),
        ({"security_protocol": "SASL_SSL"}, "needs sasl_mechanism"),
        ({**LOGIN}, "needs sasl_plain_password"),
        ({**LOGIN, "sasl_plain_password": ""}, "missing or empty"),
        ({**LOGIN, "sasl_plain_password": "p", "password_file": "f"}, "give one of them"),
        ({**LOGIN, "password_file": "/no/such/file"}, "'/no/such/file' cannot be read: No such file"),
        ({"security_protocol": "SSL", "ssl_cafile": "/no/such/file"}, "ssl_cafile='/no/such/file' cannot be read"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        check_engine(ADDRESS, options)
    assert "\n" not in str(caught.value)


def test_text_takes_the_type_of_the_option() -> None:
    query = "acks=all&linger_ms=5&retries=inf&check_crcs=false&api_version=2.8&compression_type=none&queue_bytes=1000"
    options = read(f"{ADDRESS}?{query}&send_buffer_bytes=65536&client_id=7")
    assert options.client == {
        "acks": "all",
        "linger_ms": 5,
        "retries": float("inf"),
        "check_crcs": False,
        "api_version": (2, 8),
        "compression_type": None,
        "send_buffer_bytes": 65536,
        "client_id": "7",
    }
    assert options.queue_bytes == 1000


def test_the_users_options_win_and_ours_give_way() -> None:
    options = read(fetch_max_wait_ms=20_000, delivery_timeout_ms=3000, session_timeout_ms=3000)
    ours = {"request_timeout_ms": 10_000, "fetch_max_wait_ms": 100}
    consumer = options.for_client("consumer", heartbeat_interval_ms=2000, **ours)
    assert (consumer["fetch_max_wait_ms"], consumer["session_timeout_ms"]) == (20_000, 3000)
    assert consumer["heartbeat_interval_ms"] == 1000
    assert "delivery_timeout_ms" not in consumer
    assert (
        read(request_timeout_ms=4, fetch_max_wait_ms=20_000).for_client("consumer", **ours)["request_timeout_ms"] == 4
    )


def test_a_password_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("s3cret with spaces \n")
    options = read(**LOGIN, password_file=str(file))
    assert options.client["sasl_plain_password"] == "s3cret with spaces "
    assert "s3cret" not in repr(options) and "'u'" in repr(options)
    file.write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        read(**LOGIN, password_file=str(file))
