"""The servers that tests run against do what `scripts/services` promises."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer
from kafka.admin import KafkaAdminClient
from service_fixtures import KafkaCluster


def round_trip(client: dict[str, Any]) -> None:
    topic = f"services-{uuid.uuid4().hex}"
    admin = KafkaAdminClient(**client)
    try:
        admin.create_topics({topic: {"num_partitions": 1, "replication_factor": 1}}, wait_for_metadata=True)
        producer = KafkaProducer(**client)
        producer.send(topic, b"there", key=b"k").get(timeout=10)
        producer.close()
        consumer = KafkaConsumer(topic, **client, auto_offset_reset="earliest", consumer_timeout_ms=10_000)
        record = next(consumer)
        consumer.close()
        assert (record.key, record.value) == (b"k", b"there")
    finally:
        admin.delete_topics([topic], raise_errors=False)
        admin.close()


def test_the_plain_listener(kafka: KafkaCluster) -> None:
    round_trip({"bootstrap_servers": kafka.bootstrap})


@pytest.mark.parametrize("user", ["alice", "bob"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])
@pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
def test_sasl_listeners(kafka: KafkaCluster, user: str, mechanism: str, tls: bool) -> None:
    round_trip(
        {
            "bootstrap_servers": kafka.sasl_ssl if tls else kafka.sasl,
            "security_protocol": "SASL_SSL" if tls else "SASL_PLAINTEXT",
            "sasl_mechanism": mechanism,
            "sasl_plain_username": user,
            "sasl_plain_password": kafka.users[user],
            "ssl_cafile": kafka.ca_file,
        }
    )


def test_the_tls_listener(kafka: KafkaCluster) -> None:
    round_trip({"bootstrap_servers": kafka.ssl, "security_protocol": "SSL", "ssl_cafile": kafka.ca_file})
