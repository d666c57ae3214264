"""The brokers that tests run against: every listener, users and ACLs, limits, three copies."""

from __future__ import annotations

import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka.admin import ACL, ACLOperation, ACLPermissionType, KafkaAdminClient, ResourcePattern, ResourceType
from kafka.errors import KafkaError, TopicAuthorizationFailedError, UnknownTopicOrPartitionError
from kafka_client import make_topic, read, send
from service_fixtures import KafkaCluster, OwnKafkaCluster, until

MECHANISMS = ("PLAIN", "SCRAM-SHA-256")


@pytest.fixture
def topic(kafka: KafkaCluster) -> Iterator[str]:
    name = make_topic(kafka.bootstrap)
    yield name
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    admin.delete_topics([name])
    admin.close()


def in_sync(admin: KafkaAdminClient, topic: str) -> set[int]:
    """The nodes that have all acknowledged records of a topic."""
    (described,) = admin.describe_topics([topic])
    return set(described["partitions"][0]["isr_nodes"])


def as_user(kafka: KafkaCluster, user: str, mechanism: str = "PLAIN", tls: bool = False) -> dict[str, Any]:
    return {
        "bootstrap_servers": kafka.sasl_ssl if tls else kafka.sasl,
        "security_protocol": "SASL_SSL" if tls else "SASL_PLAINTEXT",
        "sasl_mechanism": mechanism,
        "sasl_plain_username": user,
        "sasl_plain_password": kafka.users[user],
        "ssl_cafile": kafka.ca_file if tls else None,
    }


def test_the_plain_listener(kafka: KafkaCluster, topic: str) -> None:
    client = {"bootstrap_servers": kafka.bootstrap}
    send(topic, [b"a", b"b"], **client)
    assert read(topic, 2, **client) == [b"a", b"b"]


def test_the_tls_listener(kafka: KafkaCluster, topic: str) -> None:
    client = {"bootstrap_servers": kafka.ssl, "security_protocol": "SSL", "ssl_cafile": kafka.ca_file}
    send(topic, [b"a", b"b"], **client)
    assert read(topic, 2, **client) == [b"a", b"b"]


@pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_the_sasl_listeners(kafka: KafkaCluster, topic: str, mechanism: str, tls: bool) -> None:
    alice, bob = (as_user(kafka, user, mechanism, tls) for user in ("alice", "bob"))
    send(topic, [b"a", b"b"], **alice)
    assert read(topic, 2, **bob) == [b"a", b"b"]


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_wrong_password_is_refused(kafka: KafkaCluster, mechanism: str) -> None:
    client = as_user(kafka, "bob", mechanism) | {"sasl_plain_password": "not this one"}
    with pytest.raises(KafkaError):
        KafkaAdminClient(**client, bootstrap_timeout_ms=1000).list_topics()


def test_a_certificate_nobody_vouches_for_is_refused(kafka: KafkaCluster) -> None:
    with pytest.raises(KafkaError):
        KafkaAdminClient(bootstrap_servers=kafka.ssl, security_protocol="SSL", bootstrap_timeout_ms=1000).list_topics()


def test_bob_can_be_denied_a_topic_and_alice_cannot(kafka: KafkaCluster, topic: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    rule = ACL("User:bob", "*", ACLOperation.ALL, ACLPermissionType.DENY, ResourcePattern(ResourceType.TOPIC, topic))
    try:
        admin.create_acls([rule])
        with pytest.raises(TopicAuthorizationFailedError):
            send(topic, [b"from bob"], **as_user(kafka, "bob"), max_block_ms=10_000)
        send(topic, [b"from alice"], **as_user(kafka, "alice"))
        assert read(topic, 1, bootstrap_servers=kafka.bootstrap) == [b"from alice"]
    finally:
        admin.delete_acls([rule])
        admin.close()


def test_no_topic_appears_by_itself(kafka: KafkaCluster) -> None:
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    name = f"services-{uuid.uuid4().hex}"
    try:
        with pytest.raises(KafkaError):
            send(name, [b"x"], bootstrap_servers=kafka.bootstrap, max_block_ms=1000)
        assert name not in admin.list_topics()
        with pytest.raises(UnknownTopicOrPartitionError):
            admin.delete_topics([name])
    finally:
        admin.close()


def test_two_megabytes_pass(kafka: KafkaCluster, topic: str) -> None:
    value = bytes(2_000_000)
    send(topic, [value], bootstrap_servers=kafka.bootstrap, max_request_size=3_000_000)
    assert read(topic, 1, bootstrap_servers=kafka.bootstrap, max_partition_fetch_bytes=3_000_000) == [value]


@pytest.mark.torture
def test_three_brokers_go_on_without_one_and_take_it_back(kafka3: OwnKafkaCluster) -> None:
    client = {"bootstrap_servers": kafka3.bootstrap}
    topic = make_topic(kafka3.bootstrap)
    assert kafka3.brokers == ["kafka3-1", "kafka3-2", "kafka3-3"]
    send(topic, [b"by three"], **client)
    kafka3.kill("kafka3-2")
    send(topic, [b"by two"], **client)
    with pytest.raises(KafkaError):
        KafkaAdminClient(bootstrap_servers=kafka3.bootstrap.split(",")[1], bootstrap_timeout_ms=300)
    kafka3.start("kafka3-2")
    admin = KafkaAdminClient(**client)
    try:
        until(lambda: in_sync(admin, topic) == {1, 2, 3}, "all three have every record again")
    finally:
        admin.close()
    assert read(topic, 2, **client) == [b"by three", b"by two"]


def test_the_example_of_the_how_to_page(kafka: KafkaCluster, topic: str, tmp_path: Path) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "run-kafka.md"
    (code,) = re.findall(r"```python\n(.+?)```", page.read_text(), re.DOTALL)
    state = Path(kafka.ca_file).parents[1]
    (tmp_path / ".services").symlink_to(state)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert topic in done.stdout
