"""librdkafka on a real broker: what differs from kafka-python underneath, and must not be seen above."""

from __future__ import annotations

import random
import secrets
from typing import Any

import pytest
from kafka_rooms import Room, room
from kafka_users import Rules, address_of, credentials
from service_fixtures import KafkaCluster, OwnKafkaCluster, until

from comux import Comux
from comux.errors import ComuxError, ConfigError, ConnectError, DeliveryError, NotAuthorizedError
from comux.transport import Broker, TopicSpec, connect
from comux.transport.confluent_outlet import ConfluentOutlet
from comux.transport.confluent_reader import ConfluentReader


@pytest.fixture
def there(kafka: KafkaCluster) -> Any:
    with room(kafka.bootstrap, library="confluent") as place:
        yield place


def test_it_is_the_one_that_fetches_and_writes(there: Room) -> None:
    there.topic("t")
    with there.broker.producer("t") as producer, there.broker.consumer("t", start="beginning") as consumer:
        assert producer.send(b"x").result(20) == 0
        assert consumer.poll(20)[0].value == b"x"
        assert isinstance(there.broker._outlet, ConfluentOutlet)  # type: ignore[attr-defined]
        assert isinstance(consumer._poller._consumer, ConfluentReader)  # type: ignore[attr-defined]


def test_seeks_at_random_read_what_stands_there(there: Room) -> None:
    """Also while paused, beyond the end, and right after each other."""
    there.topic("t")
    there.fill("t", 500, 200)
    rng = random.Random(20)
    with there.broker.consumer("t", start="beginning", on_end="wait") as consumer:
        for _ in range(60):
            target = rng.randrange(500)
            for _ in range(rng.randrange(3)):
                consumer.seek(rng.randrange(500))
            if paused := rng.random() < 0.3:
                consumer.pause()
            consumer.seek(target)
            if paused:
                assert consumer.poll(0) == []
                consumer.resume()
            want = target
            for _ in range(rng.randrange(1, 4)):
                for record in consumer.poll(20, rng.randrange(1, 200)):
                    assert (record.offset, record.value[:8]) == (want, b"%08d" % want)
                    want += 1
                if want == 500:
                    break
            assert want > target
        consumer.seek(510)
        assert consumer.poll(0.3) == []
        there.fill("t", 20, 200)
        assert consumer.poll(20)[0].offset == 510
        assert consumer.account().balanced


def test_a_broker_that_dies_is_named_and_everything_goes_on_when_it_is_back(own_kafka: OwnKafkaCluster) -> None:
    with room(own_kafka.bootstrap, library="confluent") as there:
        there.topic("t")
        there.fill("t", 10)
        with there.broker.consumer("t", start="beginning", on_end="wait") as consumer:
            assert len(consumer.poll(20, 1)) == 1
            with there.broker.producer("t") as producer:
                producer.send(b"%08d" % 10).result(20)
                own_kafka.kill()

                def refused() -> str:
                    try:
                        consumer.poll(0.1, 1)
                    except ConnectError as error:
                        return str(error)
                    return ""

                assert own_kafka.bootstrap in until(refused, "the consumer says that the broker is gone")
                late = [producer.send(b"%08d" % number) for number in range(11, 20)]
                own_kafka.start()
                assert [future.result(60) for future in late] == list(range(11, 20))
                assert producer.account().balanced
            seen: list[int] = []

            def all_seen() -> bool:
                try:
                    seen.extend(int(record.value) for record in consumer.poll(1.0, 100))
                except ConnectError:
                    pass
                return bool(seen) and seen[-1] == 19

            until(all_seen, "what was sent is read", 60)
            assert seen == sorted(set(seen)) and consumer.account().balanced


@pytest.mark.torture
def test_what_is_not_delivered_in_time_is_told_once(own_kafka: OwnKafkaCluster) -> None:
    with room(own_kafka.bootstrap, library="confluent") as there:
        there.topic("t")
        with connect(there.address, delivery_timeout_ms=1500) as broker, broker.producer("t") as producer:
            producer.send(b"x").result(20)
            own_kafka.kill()
            for _ in range(5):
                producer.send(b"lost")
            with pytest.raises(DeliveryError, match=r"5 earlier records were not delivered"):
                producer.flush(60)
            account = producer.account()
            assert account.balanced and account.dropped == {"failed": 5}


@pytest.mark.torture
def test_closing_fails_what_cannot_be_delivered(own_kafka: OwnKafkaCluster) -> None:
    with room(own_kafka.bootstrap, library="confluent") as there:
        there.topic("t")
        with connect(there.address) as broker:
            producer = broker.producer("t")
            producer.send(b"x").result(20)
            own_kafka.kill()
            future = producer.send(b"lost")
        assert isinstance(future.exception(20), ComuxError)
        assert producer.account().balanced
        own_kafka.start()  # the room is left tidy


def test_a_topic_of_smaller_batches_is_refused_with_the_value_to_set(kafka: KafkaCluster) -> None:
    with room(kafka.bootstrap, library="confluent") as there:
        with connect(there.address, topic_config={"max.message.bytes": "100000"}) as broker:
            broker.create_topic(TopicSpec("small"))
            with pytest.raises(ConfigError, match=r"262144.*100000.*batch_size to 100000"):
                broker.producer("small")
        with connect(there.address, batch_size=100_000) as broker, broker.producer("small") as producer:
            futures = [producer.send(b"x" * 40_000) for _ in range(50)]
            assert [future.result(30) for future in futures] == list(range(50))


@pytest.mark.parametrize("tls", [False, True], ids=["SASL", "SASL over TLS"])
def test_credentials_and_certificates_are_the_same_options(kafka: KafkaCluster, tls: bool) -> None:
    options = credentials(kafka, "alice", "SCRAM-SHA-256", tls)
    prefix = f"comux-confluent-{secrets.token_hex(4)}."
    with connect(address_of(kafka, tls), library="confluent", prefix=prefix, **options) as broker:
        broker.create_topic(TopicSpec("t"))
        with broker.producer("t") as producer, broker.consumer("t", start="beginning") as consumer:
            producer.send(b"x").result(30)
            assert consumer.poll(30)[0].value == b"x"
        broker.delete_topic("t", force=True)


def test_a_right_that_is_taken_is_named_and_costs_nobody_else(kafka: KafkaCluster, there: Room, rules: Rules) -> None:
    """The library tells of a missing right in two ways; either names the topic."""
    options = credentials(kafka, "bob", "SCRAM-SHA-256", False)
    for name in ("mine", "other"):
        there.topic(name)
        there.fill(name, 1)
    bob: Broker
    with connect(address_of(kafka, False), library="confluent", prefix=there.prefix, **options) as bob:
        mine, other = (bob.consumer(name, start="beginning", on_end="wait") for name in ("mine", "other"))
        with mine, other:
            assert mine.poll(20) and other.poll(20)
            rules.forbid("TOPIC", there.full("mine"), "READ")
            there.fill("mine", 1)

            def refused() -> str:
                try:
                    mine.poll(0.1)
                except NotAuthorizedError as error:
                    return str(error)
                there.fill("mine", 1)
                return ""

            assert there.full("mine") in until(refused, "the missing right is told")
            there.fill("other", 1)
            assert until(lambda: other.poll(1.0), "the other topic goes on")


def test_a_camera_decodes_through_it_and_its_results_come_back(there: Room) -> None:
    there.feed("synthetic://160x120@30?camera=3&seed=3&gop=10&bframes=0", "raw_cam", pace="fast", frames=30).join()
    with Comux(["cam"], address=there.address, mode="every_frame", start="beginning") as cameras:
        indices = []
        while len(indices) < 30:
            item = cameras.read("cam", timeout=20)
            assert item, item
            indices.append(item.index)
            cameras.send(item, {"n": len(indices)}).result(20)
        assert indices == list(range(30))
    with there.broker.consumer("stream_cam", start="beginning", on_end="wait") as results:
        got: list[Any] = []
        until(lambda: len(got) >= 30 or got.extend(results.poll(1.0, 100)), "the results")
        assert [dict(record.headers)["n"] for record in got] == [b"%d" % n for n in range(1, 31)]
