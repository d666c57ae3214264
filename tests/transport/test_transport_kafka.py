"""The Kafka engine keeps the contract on a real broker."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from service_fixtures import KafkaCluster

from comux.testing import TransportContract
from comux.transport import Broker, connect


def prefix_of(place: Path) -> str:
    """A namespace on the cluster that only this test uses."""
    return f"comux-test-{hashlib.sha256(str(place).encode()).hexdigest()[:12]}."


class TestKafka(TransportContract):
    """Every test of the contract, unmodified; what Kafka lacks is declared and refused by name."""

    @pytest.fixture(autouse=True)
    def _cluster(self, kafka: KafkaCluster, tmp_path: Path) -> Iterator[None]:
        self.bootstrap = kafka.bootstrap
        yield
        if "KAFKA_BOOTSTRAP_SERVERS" in os.environ:  # somebody's own cluster is left as it was
            with self.make_broker(tmp_path) as broker:
                for topic in broker.topics():
                    broker.delete_topic(topic, force=True)

    def make_broker(self, place: Path) -> Broker:
        return connect(f"kafka://{self.bootstrap}", prefix=prefix_of(place))


class TestKafkaThroughLibrdkafka(TestKafka):
    """The same contract where librdkafka fetches and writes."""

    def make_broker(self, place: Path) -> Broker:
        return connect(f"kafka://{self.bootstrap}", prefix=prefix_of(place), library="confluent")


def test_the_capabilities_that_kafka_lacks_are_those_of_the_design(kafka: KafkaCluster) -> None:
    with connect(kafka.bootstrap) as broker:
        can = broker.capabilities
    lacking = {name for name in type(can).__dataclass_fields__ if getattr(can, name) is False}
    assert lacking == {
        "record_sharing",
        "views",
        "observer_without_reading",
        "counted_end",
        "exact_loss",
        "gating",  # local groups only: Kafka's never hold the writer back
        "dense_offsets",  # holes are legal on Kafka
        "dead_letters",  # a cluster counts no deliveries of a record
        "pausing",  # nor can a topic be stopped for everybody
    }
