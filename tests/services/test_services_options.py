"""The user's options reach kafka-python's clients and win over comux' own; what the options of sending mean."""

from __future__ import annotations

from typing import Any

import pytest
from kafka_users import address_of, credentials
from service_fixtures import KafkaCluster

from comux import Comux
from comux.errors import ConfigError, DeliveryError, RecordTooLargeError
from comux.transport import Broker, connect

RAW = {"codec": "raw", "dtype": "u1", "shape": [4], "start": "beginning", "on_end": "wait"}


def clients(broker: Any, topic: str) -> dict[str, dict[str, Any]]:
    """The settings of the clients behind a broker handle, by kind."""
    broker.producer(topic)
    broker.consumer(topic)
    broker.consumer(topic, group="g")
    free, member = broker._pollers
    return {
        "admin": broker._cluster._admin.config,
        "producer": broker._outlet.client.config,
        "consumer": free._consumer.config,
        "member": member._consumer.config,
    }


def test_the_users_options_win_on_the_clients(kafka: KafkaCluster, place: Any) -> None:
    place.topic("t")
    given = {
        "client_id": "mine",
        "acks": 1,
        "compression_type": "gzip",
        "linger_ms": 7,
        "batch_size": 1000,
        "max_block_ms": 8000,
        "retry_backoff_ms": 33,
        "fetch_max_wait_ms": 37,
        "max_partition_fetch_bytes": 70_000,
        "request_timeout_ms": 9000,
        "session_timeout_ms": 8000,
        "heartbeat_interval_ms": 1500,
        "metadata_max_age_ms": 5000,
    }
    with connect(f"kafka://{kafka.bootstrap}", prefix=place.prefix, **given) as broker:
        found = clients(broker, "t")
    for kind, config in found.items():
        assert {name: config[name] for name in given if name in config} == {
            name: value for name, value in given.items() if name in config
        }, kind


def test_options_in_an_address_take_their_type(kafka: KafkaCluster, place: Any) -> None:
    place.topic("t")
    query = "acks=1&compression_type=gzip&fetch_max_wait_ms=37&enable_idempotence=false&check_crcs=no&retries=inf"
    with connect(f"kafka://{kafka.bootstrap}?prefix={place.prefix}&{query}") as broker:
        found = clients(broker, "t")
    assert (found["producer"]["acks"], found["producer"]["compression_type"]) == (1, "gzip")
    assert (found["producer"]["enable_idempotence"], found["producer"]["retries"]) == (False, float("inf"))
    assert (found["consumer"]["fetch_max_wait_ms"], found["consumer"]["check_crcs"]) == (37, False)


def test_a_default_of_ours_gives_way(kafka: KafkaCluster, place: Any) -> None:
    """Options that leave no room for what comux sets beside them."""
    place.topic("t")
    given = {"fetch_max_wait_ms": 15_000, "delivery_timeout_ms": 3000, "session_timeout_ms": 6000, "linger_ms": 10}
    with connect(f"kafka://{kafka.bootstrap}", prefix=place.prefix, **given) as broker:
        found = clients(broker, "t")
    assert found["consumer"]["request_timeout_ms"] > found["consumer"]["fetch_max_wait_ms"] == 15_000
    assert found["producer"]["request_timeout_ms"] <= 3000 - 10
    assert found["member"]["heartbeat_interval_ms"] <= 6000 / 3


def test_options_that_exclude_each_other(kafka: KafkaCluster, place: Any) -> None:
    place.topic("t")
    with (
        connect(f"kafka://{kafka.bootstrap}", prefix=place.prefix, acks=1, enable_idempotence=True) as broker,
        pytest.raises(ConfigError, match="enable_idempotence=True is incompatible with user-provided acks=1"),
    ):
        broker.producer("t")


def test_the_first_comux_words(kafka: KafkaCluster, place: Any) -> None:
    """Its own example: over_write=False meant that its options beat the user's; the user's always win now."""
    place.topic("raw_a")
    cameras = Comux(["a"], **RAW)
    with pytest.warns(DeprecationWarning, match="over"):
        cameras.setup_consumers(
            kafka.bootstrap.split(","),
            overwrite=True,
            end=True,
            max_offset_diff=20,
            strict_on_fail=True,
            over_write=False,
            prefix=place.prefix,
            fetch_max_wait_ms=37,
        )
    with pytest.warns(DeprecationWarning, match="over"):
        cameras.setup_producer(kafka.bootstrap, strict_on_fail=True, over_write=False, prefix=place.prefix, acks=1)
    with cameras:
        assert cameras.consumers["a"].consumer._poller._consumer.config["fetch_max_wait_ms"] == 37
        with pytest.raises(NameError, match="consumers exist"):
            cameras.setup_consumers(kafka.bootstrap, replace=False)
        broker: Any = cameras._core._engine_of_results(kafka.bootstrap)
        assert broker._outlet.client.config["acks"] == 1


def test_results_may_go_to_another_cluster(kafka: KafkaCluster, place: Any) -> None:
    """Another address, other credentials, another namespace, other options."""
    other = f"o{place.prefix}"
    place.topic("raw_a")
    place.send("raw_a", b"1234")
    cameras = Comux(["a"], **RAW)
    cameras.setup_consumers(address_of(kafka), prefix=place.prefix, **credentials(kafka, "bob"))
    cameras.setup_producer(f"kafka://{kafka.ssl}", prefix=other, security_protocol="SSL", ssl_cafile=kafka.ca_file)
    with connect(f"kafka://{kafka.bootstrap}", prefix=other) as there:
        try:
            with cameras:
                item = cameras.read("a", timeout=10)
                cameras.send(item, {"x": 1}).result(10)
            assert (place.broker.topics(), there.topics()) == (["raw_a"], ["stream_a"])
            with there.consumer("stream_a", start="beginning") as consumer:
                (record,) = consumer.poll(10)
            assert record.value == b"1234" and dict(record.headers)["x"] == b"1"
        finally:
            for topic in there.topics():
                there.delete_topic(topic, force=True)


# -- sending -------------------------------------------------------------------------------------------------------


def values(broker: Broker, topic: str) -> list[Any]:
    end = broker.topic(topic).high_water
    with broker.consumer(topic, start="beginning") as consumer:
        found: list[Any] = []
        while len(found) < end:
            found += [record.value for record in consumer.poll(10, 100)]
        return found


@pytest.mark.parametrize("acks", [0, 1, "all"])
def test_acks(kafka: KafkaCluster, place: Any, acks: Any) -> None:
    """Without acknowledgements a record's offset is not known, and it counts as delivered when it is written out."""
    place.topic("t")
    with connect(f"kafka://{kafka.bootstrap}", prefix=place.prefix, acks=acks) as broker, broker.producer("t") as out:
        offsets = [out.send(b"%d" % n).result(10) for n in range(3)]
        out.flush(10)
        assert offsets == ([None] * 3 if acks == 0 else [0, 1, 2])
        assert (out.account().delivered, out.account().balanced) == (3, True)
    assert values(place.broker, "t") == [b"0", b"1", b"2"]


@pytest.mark.parametrize("compression", [None, "gzip", "snappy", "lz4", "zstd"])
@pytest.mark.parametrize("idempotence", [True, False])
def test_compression_and_idempotence(
    kafka: KafkaCluster, place: Any, compression: str | None, idempotence: bool
) -> None:
    place.topic("t")
    options = {"compression_type": compression, "enable_idempotence": idempotence}
    with connect(f"kafka://{kafka.bootstrap}", prefix=place.prefix, **options) as broker, broker.producer("t") as out:
        for n in range(20):
            out.send(bytes([n]) * 10_000, headers=[("n", b"%d" % n)])
        out.flush(10)
    assert values(place.broker, "t") == [bytes([n]) * 10_000 for n in range(20)]


LARGE = bytes(range(256)) * 40  # 10 kB
SEED = b"".join((n * 2654435761 % 2**32).to_bytes(4, "big") for n in range(2500))  # 10 kB that do not compress


def too_large(broker: Broker, value: bytes) -> str:
    """What is said of a record, at once or when the cluster refused it; the books balance either way."""
    with broker.producer("t") as out:
        with pytest.raises(RecordTooLargeError) as caught:
            out.send(value, key=b"key", headers=[("name", b"value")]).result(10)
        books = out.account()
        assert books.balanced and not books.held and not books.delivered
        assert out.send(b"small").result(10) is not None
    text = str(caught.value)
    assert "\n" not in text and not caught.value.retriable
    assert f"set it to at least {_bytes(text)}" in text
    return text


def _bytes(text: str) -> int:
    """The size of the record, which the message says: key, headers and what Kafka adds counted."""
    size = int(text.partition(" bytes with key and headers")[0].rpartition(" ")[2])
    assert size > 10_000 + len(b"key" + b"name" + b"value")
    return size


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_the_limit_that_is_too_small_is_named(kafka: KafkaCluster, place: Any, compression: str | None) -> None:
    place.topic("t", max_message_bytes=5000)
    address = f"kafka://{kafka.bootstrap}"
    common = {"prefix": place.prefix, "compression_type": compression}
    with connect(address, **common, max_request_size=3000) as broker:
        assert "the client option max_request_size is 3000" in too_large(broker, SEED)
    with connect(address, **common) as broker:
        text = too_large(broker, SEED)
        assert f"max.message.bytes of topic {place.full('t')!r} is 5000" in text
        assert ("before compression" in text) is (compression is not None)
        if compression:  # what counts is what it is when compressed
            with broker.producer("t") as out:
                assert out.send(LARGE).result(10) is not None


def test_the_brokers_limit_is_named(kafka: KafkaCluster, place: Any) -> None:
    place.topic("t")
    assert "the broker's message.max.bytes is 10485760" in too_large(place.broker, bytes(11_000_000))


def test_many_small_records_in_a_topic_of_small_batches(kafka: KafkaCluster, place: Any) -> None:
    """A batch that is larger than the topic takes is no record that is."""
    place.topic("t", max_message_bytes=5000)
    with place.broker.producer("t") as out:
        for n in range(300):
            out.send(b"%03d" % n * 100)
        out.flush(20)
    assert values(place.broker, "t") == [b"%03d" % n * 100 for n in range(300)]


def test_a_result_that_is_too_large_is_told_with_its_picture(kafka: KafkaCluster, place: Any) -> None:
    """At once where the limit is known; by the next send where only the cluster can tell."""
    place.topic("raw_a")
    place.topic("stream_a", max_message_bytes=5000)
    place.send("raw_a", b"1234")
    for compression in (None, "gzip"):
        cameras = Comux(["a"], **RAW)
        cameras.setup_consumers(kafka.bootstrap, prefix=place.prefix)
        cameras.setup_producer(kafka.bootstrap, prefix=place.prefix, compression_type=compression)
        with cameras:
            item = cameras.read("a", timeout=10)
            if compression is None:
                with pytest.raises(RecordTooLargeError, match=r"max\.message\.bytes of topic"):
                    cameras.send(item, {"x": SEED})
            else:
                cameras.send(item, {"x": SEED})
                with pytest.raises(DeliveryError, match=r"max\.message\.bytes of topic") as caught:
                    cameras.flush(10)
                ((where, error),) = caught.value.failures
                assert where == ("a", 0) and isinstance(error, RecordTooLargeError)
            cameras.send(item, {"x": 1})
            cameras.flush(10)
            books = cameras.status()["results"]
            assert (books["delivered"], books["balanced"]) == (1, True)
            assert sum(books["dropped"].values()) == 1
