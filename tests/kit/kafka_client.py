"""What a test does with a broker through plain kafka-python, with nothing of comux in between."""

from __future__ import annotations

import uuid
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient


def make_topic(bootstrap: str, **configs: str) -> str:
    name = f"services-{uuid.uuid4().hex}"
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    admin.create_topics({name: {"num_partitions": 1, "configs": configs}}, wait_for_metadata=True)
    admin.close()
    return name


def send(topic: str, values: list[bytes], **client: Any) -> None:
    """Send records and wait until each is acknowledged by all copies that must have it."""
    producer = KafkaProducer(acks="all", **client)
    try:
        for future in [producer.send(topic, value) for value in values]:
            future.get(timeout=20)
    finally:
        producer.close()


def read(topic: str, count: int, **client: Any) -> list[bytes]:
    """The first ``count`` records, or those that came within 10 s."""
    consumer = KafkaConsumer(consumer_timeout_ms=10_000, **client)
    try:
        consumer.assign([TopicPartition(topic, 0)])
        consumer.seek_to_beginning()
        return [record.value for _, record in zip(range(count), consumer, strict=False)]
    finally:
        consumer.close()
