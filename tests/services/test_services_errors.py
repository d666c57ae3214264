"""Each way in which a real cluster says no: its own error class, one line that says what to do, in good time; and a
source that meets one tells it, while the others go on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fake_kafka import free_port
from kafka.errors import ClusterAuthorizationFailedError
from kafka_users import Rules, address_of, credentials
from service_fixtures import KafkaCluster, until

from comux import Comux
from comux.errors import (
    AuthenticationError,
    BrokerTooOldError,
    ComuxError,
    ConfigError,
    ConnectError,
    DeliveryError,
    NotAuthorizedError,
    TlsError,
    UnknownTopicError,
)
from comux.options import SourceOptions
from comux.transport import Broker, TopicSpec, connect
from comux.transport.memory import discard

QUICK = 5.0
RAW = {"codec": "raw", "dtype": "u1", "shape": [4], "start": "beginning", "on_end": "wait"}
WRONG = {"sasl_plain_password": "certainly-not-this"}


def plain(kafka: KafkaCluster, **change: Any) -> tuple[str, dict[str, Any]]:
    return address_of(kafka), {**credentials(kafka, "alice", "PLAIN"), **change}


def scram(kafka: KafkaCluster, **change: Any) -> tuple[str, dict[str, Any]]:
    return address_of(kafka), {**credentials(kafka, "alice", "SCRAM-SHA-256"), **change}


def tls(kafka: KafkaCluster, **change: Any) -> tuple[str, dict[str, Any]]:
    return f"kafka://{kafka.ssl}", {"security_protocol": "SSL", "ssl_cafile": kafka.ca_file, **change}


def both(kafka: KafkaCluster, **change: Any) -> tuple[str, dict[str, Any]]:
    return address_of(kafka, tls=True), {**credentials(kafka, "alice", "PLAIN", tls=True), **change}


def port_of(address: str) -> str:
    return address.rpartition(":")[2]


REFUSALS: dict[str, tuple[Any, type[ComuxError], list[str]]] = {
    "wrong password, PLAIN": (lambda k: plain(k, **WRONG), AuthenticationError, ["'alice'", "PLAIN", "refused"]),
    "wrong password, SCRAM": (lambda k: scram(k, **WRONG), AuthenticationError, ["'alice'", "SCRAM-SHA-256"]),
    "wrong password, TLS": (lambda k: both(k, **WRONG), AuthenticationError, ["'alice'", "refused"]),
    "unknown user": (lambda k: scram(k, sasl_plain_username="carol"), AuthenticationError, ["'carol'"]),
    "mechanism not enabled": (
        lambda k: plain(k, sasl_mechanism="SCRAM-SHA-512"),
        AuthenticationError,
        ["does not offer", "'SCRAM-SHA-512'"],
    ),
    "no credentials": (
        lambda k: (address_of(k), {}),
        AuthenticationError,
        ["wants credentials", "security_protocol='SASL_PLAINTEXT'"],
    ),
    "no credentials, TLS": (
        lambda k: (address_of(k, tls=True), tls(k)[1]),
        AuthenticationError,
        ["wants credentials", "security_protocol='SASL_SSL'"],
    ),
    "credentials nobody asked for": (
        lambda k: (f"kafka://{k.bootstrap}", plain(k)[1]),
        AuthenticationError,
        ["takes no credentials", "SASL_PLAINTEXT"],
    ),
    "unknown authority": (lambda k: tls(k, ssl_cafile=None), TlsError, ["certificate", "set ssl_cafile"]),
    "wrong host name": (
        lambda k: (f"kafka://127.1:{port_of(k.ssl)}", tls(k)[1]),
        TlsError,
        ["'127.1'", "connect by a name"],
    ),
    "plain text where TLS is spoken": (lambda k: (f"kafka://{k.ssl}", {}), TlsError, ["wants TLS", "'SSL'"]),
    "plain credentials where TLS is spoken": (
        lambda k: (address_of(k, tls=True), plain(k)[1]),
        TlsError,
        ["wants TLS", "'SASL_SSL'"],
    ),
    "TLS where plain text is spoken": (
        lambda k: (f"kafka://{k.bootstrap}", tls(k)[1]),
        TlsError,
        ["speaks no TLS", "'PLAINTEXT'"],
    ),
    "nobody listens": (lambda k: (f"kafka://127.0.0.1:{free_port()}", {}), ConnectError, ["nobody listens", "start"]),
    "too old": (
        lambda k: (f"kafka://{k.bootstrap}?api_version=0.10", {}),
        BrokerTooOldError,
        ["Kafka 0.10", "needs 0.11"],
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_are_told_apart(kafka: KafkaCluster, name: str) -> None:
    make, kind, words = REFUSALS[name]
    address, options = make(kafka)
    begun = time.monotonic()
    with pytest.raises(ComuxError) as caught:
        connect(address, **options)
    assert time.monotonic() - begun < QUICK
    text = str(caught.value)
    assert type(caught.value) is kind
    assert caught.value.retriable is (kind is ConnectError)
    assert "\n" not in text and address in text
    assert [word for word in words if word not in text] == []
    assert not any(secret in text for secret in (*kafka.users.values(), WRONG["sasl_plain_password"]))


# -- not authorised ------------------------------------------------------------------------------------------------


@pytest.fixture
def bob(kafka: KafkaCluster, place: Any) -> Iterator[Broker]:
    with connect(address_of(kafka), prefix=place.prefix, **credentials(kafka, "bob")) as broker:
        yield broker


RIGHTS: dict[str, tuple[str, str, str, Any, str]] = {
    "read": ("TOPIC", "t", "READ", lambda b: b.consumer("t"), "READ on topic"),
    "write": ("TOPIC", "t", "WRITE", lambda b: b.producer("t"), "WRITE on topic"),
    "see": ("TOPIC", "t", "DESCRIBE", lambda b: b.topic("t"), "DESCRIBE (or READ, or WRITE) on topic"),
    "delete": ("TOPIC", "t", "DELETE", lambda b: b.delete_topic("t"), "DELETE on topic"),
    "group": ("GROUP", "g", "READ", lambda b: b.consumer("t", group="g"), "READ on group"),
}


@pytest.mark.parametrize("name", RIGHTS)
def test_the_missing_right_is_named(place: Any, bob: Broker, rules: Rules, name: str) -> None:
    kind, thing, operation, act, right = RIGHTS[name]
    place.topic("t")
    rules.forbid(kind, place.full(thing), operation)
    if operation == "DELETE":  # who may delete on the cluster may delete every topic
        rules.forbid("CLUSTER", "kafka-cluster", "DELETE")

    with pytest.raises(NotAuthorizedError) as caught:
        act(bob)
    error = caught.value
    assert not error.retriable and isinstance(error, PermissionError)
    assert "user 'bob'" in str(error) and f"{right} {place.full(thing)!r}" in str(error)


def test_making_a_topic_needs_a_right(place: Any, bob: Broker, rules: Rules) -> None:
    rules.forbid("CLUSTER", "kafka-cluster", "CREATE")
    rules.forbid("TOPIC", place.full("new"), "CREATE")

    begun = time.monotonic()
    with pytest.raises(NotAuthorizedError) as caught:
        bob.create_topic(TopicSpec("new"))
    assert time.monotonic() - begun < QUICK
    assert f"CREATE on topic {place.full('new')!r} or on the cluster" in str(caught.value)


def test_a_right_that_is_taken_while_writing(place: Any, bob: Broker, rules: Rules) -> None:
    place.topic("t")
    with bob.producer("t") as producer:
        assert producer.send(b"before").result(10) == 0
        rules.forbid("TOPIC", place.full("t"), "WRITE")

        error = producer.send(b"after").exception(10)
        assert isinstance(error, DeliveryError) and isinstance(error.__cause__, NotAuthorizedError)
        assert f"WRITE on topic {place.full('t')!r}" in str(error)
        books = producer.account()
        assert books.received == books.delivered + books.dropped["failed"] and not books.held


def test_a_refused_record_costs_no_other(place: Any, bob: Broker, rules: Rules) -> None:
    """All topics of a connection go through one client; what one of them refuses is nothing to the others."""
    for name in ("t", "u"):
        place.topic(name)
    with bob.producer("t") as refused, bob.producer("u") as other:
        assert (refused.send(b"0").result(10), other.send(b"0").result(10)) == (0, 0)
        rules.forbid("TOPIC", place.full("t"), "WRITE")
        assert refused.send(b"x").exception(10)
        late = refused.send(b"x")
        until(late.done, "it is settled")
        assert late.exception(0)  # looked at after the fact: no news for the next send either
        others = []
        for n in range(1, 50):
            others.append(other.send(b"%d" % n))
            assert isinstance(refused.send(b"x").exception(10), DeliveryError)
        assert [future.result(10) for future in others] == list(range(1, 50))
        rules.lift()
        until(lambda: refused.send(b"again").exception(10) is None, "the rule is gone")
        assert place.broker.record_at("t", 1).value == b"again"
        books = refused.account()
        assert books.balanced and books.delivered == 2 and not books.held


def test_a_client_that_has_ended_is_replaced(place: Any) -> None:
    """Old brokers may forbid to number records, which ends kafka-python's client; Kafka 4 needs a push."""
    place.topic("t")
    broker: Any = place.broker
    with broker.producer("t") as producer:
        assert producer.send(b"0").result(10) == 0
        manager = broker._outlet.client._transaction_manager
        manager.transition_to_fatal_error(ClusterAuthorizationFailedError())
        with pytest.raises(ComuxError):
            producer.send(b"lost").result(10)
        assert producer.account().balanced
    with broker.producer("t") as producer:
        assert producer.send(b"1").result(10) == 1


def test_a_topic_that_is_not_there(kafka: KafkaCluster, place: Any) -> None:
    for name in ("raw_cam1", "raw_cam2", "other"):
        place.topic(name)
    for ask in (place.broker.consumer, place.broker.producer, place.broker.topic):
        with pytest.raises(UnknownTopicError) as caught:
            ask("raw_cam3")
        assert caught.value.retriable and "'raw_cam1'" in str(caught.value) and "'raw_cam2'" in str(caught.value)
        assert "'other'" not in str(caught.value) and kafka.bootstrap in str(caught.value)


# -- sources -------------------------------------------------------------------------------------------------------


def test_a_rule_that_comes_later_reaches_that_source_only(kafka: KafkaCluster, place: Any, rules: Rules) -> None:
    for name in ("raw_a", "raw_b"):
        place.topic(name)
        place.send(name, b"1111")
    cameras = Comux(["a", "b"], **RAW)
    cameras.setup_consumers(kafka.sasl, prefix=place.prefix, **credentials(kafka, "bob"))
    with cameras:
        assert [cameras.read(cam_id, timeout=10).status for cam_id in ("a", "b")] == ["fresh", "fresh"]
        rules.forbid("TOPIC", place.full("raw_a"), "READ")
        state = until(lambda: _failed(cameras, "a"), "the source that may not read says so", 20)
        assert f"READ on topic {place.full('raw_a')!r}" in state["reason"]
        place.send("raw_a", b"2222")
        place.send("raw_b", b"2222")
        assert cameras.read("b", timeout=10).array.tolist() == [50, 50, 50, 50]
        assert cameras.status()["sources"]["b"]["state"] == "RUNNING"
        assert cameras.status()["sources"]["a"]["restarts"] > 0  # it is tried again
        rules.lift()
        item = until(lambda: cameras.read("a", timeout=1) or None, "it comes back by itself", 30)
        assert item.array.tolist() == [50, 50, 50, 50] and item.index == 1
    assert all(books.balanced for books in cameras.accounts().values())


def _failed(cameras: Comux, cam_id: str) -> dict[str, Any] | None:
    state: dict[str, Any] = cameras.status()["sources"][cam_id]
    return state if state["state"] == "FAILED" else None


@contextlib.contextmanager
def closing_comux(cam_ids: list[Any]) -> Iterator[Comux]:
    """Not started; closed at the end."""
    cameras = Comux(cam_ids, **RAW)
    try:
        yield cameras
    finally:
        cameras.close()


def _setup(cameras: Comux, case: tuple[str, dict[str, Any]], strict: bool) -> None:
    address, options = case
    cameras.setup_consumers(address, strict_on_fail=strict, connect_timeout=2, **options)


SOURCES: dict[str, tuple[Any, type[ComuxError], str]] = {
    "nobody listens": (REFUSALS["nobody listens"][0], ConnectError, "RECONNECTING"),
    "wrong password": (REFUSALS["wrong password, PLAIN"][0], AuthenticationError, "FAILED"),
    "unknown authority": (REFUSALS["unknown authority"][0], TlsError, "FAILED"),
    "unknown topic": (lambda k: plain(k), UnknownTopicError, "RECONNECTING"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_strict_begins_with_one_error_that_names_every_source(kafka: KafkaCluster, name: str) -> None:
    make, kind, _ = SOURCES[name]
    with closing_comux(["a", "b"]) as cameras:
        begun = time.monotonic()
        with pytest.raises(kind) as caught:
            _setup(cameras, make(kafka), strict=True)
        assert time.monotonic() - begun < 2 * QUICK
        text = str(caught.value)
        assert "2 sources cannot start" in text and "'a'" in text and "'b'" in text and "\n" not in text


@pytest.mark.parametrize("name", SOURCES)
def test_without_strict_the_source_tells_and_the_others_go_on(kafka: KafkaCluster, name: str) -> None:
    make, _, state = SOURCES[name]
    with connect("memory://errors") as local:
        local.create_topic(TopicSpec("raw_here"), exist_ok=True)
        with closing_comux([SourceOptions(cam_id="here", address="memory://errors"), "there"]) as cameras:
            _setup(cameras, make(kafka), strict=False)
            cameras.start()
            with local.producer("raw_here") as producer:
                producer.send(b"1111")
                assert cameras.read("here", timeout=10).array.tolist() == [49, 49, 49, 49]

                def told() -> dict[str, Any] | None:
                    found: dict[str, Any] = cameras.status()["sources"]["there"]
                    return found if found["state"] == state else None

                found = until(told, f"there is {state}", 15)
                item = cameras.read("there", timeout=0)
                assert item.status == state.lower() and item.reason == found["reason"]
                producer.send(b"2222")
                assert cameras.read("here", timeout=10).array.tolist() == [50, 50, 50, 50]
            assert "\n" not in found["reason"] and not any(word in found["reason"] for word in kafka.users.values())
        discard("errors")


def test_it_begins_when_the_cause_is_gone(kafka: KafkaCluster, place: Any) -> None:
    """A topic that comes later is read from its beginning."""
    with closing_comux(["late"]) as cameras:
        cameras.setup_consumers(kafka.bootstrap, strict_on_fail=False, prefix=place.prefix)
        cameras.start()
        until(lambda: cameras.status()["sources"]["late"]["state"] == "RECONNECTING", "it waits for its topic")
        place.topic("raw_late")
        place.send("raw_late", b"1111")
        item = until(lambda: cameras.read("late", timeout=1) or None, "it begins", 20)
        assert item.index == 0


@pytest.mark.parametrize("strict", [True, False])
def test_wrong_options_are_errors_before_anything_starts(kafka: KafkaCluster, strict: bool) -> None:
    with closing_comux(["a"]) as cameras:
        with pytest.raises(ConfigError, match="fetch_max_wait_ms=<list> has to be a number"):
            cameras.setup_consumers(kafka.bootstrap, strict_on_fail=strict, fetch_max_wait_ms=[100])
        with pytest.raises(ConfigError, match="did you mean 'fetch_max_wait_ms'"):
            cameras.setup_consumers(kafka.bootstrap, strict_on_fail=strict, fetch_max_wait=100)
        cameras.setup_consumers(kafka.bootstrap, strict_on_fail=False)
        with pytest.raises(ConfigError, match="acks=7 is none of 0, 1, -1, all"):
            cameras.setup_producer(kafka.bootstrap, strict_on_fail=strict, acks=7)
