"""A namespace on the shared broker for one test, and rules for its users."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from kafka_users import Rules
from service_fixtures import KafkaCluster

from comux.transport import Broker, TopicSpec, connect


class Place:
    """Topics below a prefix of this test's own, made and looked at by somebody who may do everything."""

    def __init__(self, kafka: KafkaCluster) -> None:
        self.kafka = kafka
        self.prefix = f"t{uuid.uuid4().hex[:10]}."
        self.broker: Broker = connect(f"kafka://{kafka.bootstrap}", prefix=self.prefix)

    def full(self, name: str) -> str:
        return self.prefix + name

    def topic(self, name: str, **config: Any) -> str:
        """Make a topic, with Kafka's settings ``config``."""
        if config:
            address = f"kafka://{self.kafka.bootstrap}"
            settings = {key.replace("_", "."): str(value) for key, value in config.items()}
            with connect(address, prefix=self.prefix, topic_config=settings) as broker:
                broker.create_topic(TopicSpec(name))
        else:
            self.broker.create_topic(TopicSpec(name))
        return name

    def send(self, topic: str, *values: bytes) -> None:
        with self.broker.producer(topic) as producer:
            for value in values:
                producer.send(value)
            producer.flush(20)

    def close(self) -> None:
        for topic in self.broker.topics():
            self.broker.delete_topic(topic, force=True)
        self.broker.close()


@pytest.fixture
def place(kafka: KafkaCluster) -> Iterator[Place]:
    place = Place(kafka)
    yield place
    place.close()


@pytest.fixture
def rules(kafka: KafkaCluster) -> Iterator[Rules]:
    rules = Rules(kafka)
    yield rules
    rules.close()
