"""A test's own room on a cluster: names nobody else uses, feeds that end with it, and a look at what a topic holds.

Unlike ``kafka_client`` this goes through comux; ``admin`` and ``plain`` are there for what comux cannot do (delete
records, transactions) or must not be asked about itself.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from feed_threads import FeedThread
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient
from service_fixtures import KafkaCluster, until

from comux import Comux
from comux.feeds import FeedPacket
from comux.feeds.sources import open_feed
from comux.multiplexer.batch import Item
from comux.records import Record
from comux.transport import Broker, TopicSpec, connect

_numbers = itertools.count()
_LOOK = 0.02  # seconds between two looks at the books


class Room:
    """Topics below a prefix of their own.

    Attributes:
        bootstrap: Of the cluster.
        prefix: Of the names on the cluster.
        address: For comux; carries the prefix, and the library where one was named.
    """

    def __init__(self, bootstrap: str, prefix: str = "", library: str = "") -> None:
        self.bootstrap = bootstrap
        self.prefix = prefix or f"comux-test-{os.getpid()}-{os.urandom(3).hex()}-{next(_numbers)}."
        self.address = f"kafka://{bootstrap}?prefix={self.prefix}"
        if library:
            self.address += f"&library={library}"
        self._broker: Broker | None = None
        self._admin: KafkaAdminClient | None = None
        self._feeds: list[FeedThread] = []
        self._ends = contextlib.ExitStack()

    @property
    def broker(self) -> Broker:
        """A connection of the test's own, opened when first needed."""
        if self._broker is None:
            self._broker = self._ends.enter_context(connect(self.address))
        return self._broker

    def full(self, topic: str) -> str:
        """The name on the cluster."""
        return self.prefix + topic

    def topic(self, name: str, **spec: Any) -> None:
        """Make a topic of variable records."""
        self.broker.create_topic(TopicSpec(name, **spec))

    def feed(self, source: str, topic: str, **options: Any) -> FeedThread:
        """Publish in a thread, by the test's own connection."""
        feed = FeedThread(source, self.broker, topic, **options)
        self._feeds.append(feed)
        return feed

    def fill(self, topic: str, count: int, nbytes: int = 10, **options: Any) -> list[int]:
        """Send records, each with its number in its first bytes; gives their offsets."""
        with self.broker.producer(topic) as producer:
            futures = [producer.send(b"%08d" % number + bytes(nbytes - 8), **options) for number in range(count)]
            return [future.result(30) or 0 for future in futures]

    def foreign(self, topic: str, source: str, **options: Any) -> list[FeedPacket]:
        """Publish a synthetic camera's packets as somebody does who knows nothing of comux: no flags, no stamps."""
        packets = [packet for packet in open_feed(source).packets() if packet.seq >= 0]
        producer = KafkaProducer(bootstrap_servers=self.bootstrap, **options)
        try:
            for future in [producer.send(self.full(topic), packet.data) for packet in packets]:
                future.get(20)
        finally:
            producer.close()
        return packets

    def admin(self) -> KafkaAdminClient:
        """Plain kafka-python, one for the room and closed with it."""
        if self._admin is None:
            self._admin = KafkaAdminClient(bootstrap_servers=self.bootstrap)
            self._ends.callback(self._admin.close)
        return self._admin

    def plain(self, topic: str, timeout: float = 20.0) -> list[Any]:
        """Every record of a topic as plain kafka-python reads it."""
        partition = TopicPartition(self.full(topic), 0)
        consumer = KafkaConsumer(bootstrap_servers=self.bootstrap, enable_auto_commit=False)
        try:
            consumer.assign([partition])
            consumer.seek_to_beginning()
            end = consumer.end_offsets([partition])[partition]
            records: list[Any] = []

            def all_there() -> bool:
                records.extend(consumer.poll(timeout_ms=100).get(partition, ()))
                return bool(consumer.position(partition) >= end)

            until(all_there, f"all records of {topic} up to {end}", timeout)
            return records
        finally:
            consumer.close()

    def delete_up_to(self, topic: str, offset: int) -> None:
        """Do what retention does: the topic begins at ``offset`` now."""
        self.admin().delete_records({TopicPartition(self.full(topic), 0): offset})

    def close(self) -> None:
        for feed in self._feeds:
            feed.stop.set()
        for feed in self._feeds:
            feed.end()
        self._ends.close()


with_both_libraries = pytest.mark.parametrize(
    "there", ["", "confluent"], ids=["kafka-python", "librdkafka"], indirect=True
)


@pytest.fixture
def there(kafka: KafkaCluster, request: pytest.FixtureRequest) -> Iterator[Room]:
    """A room of this test's own on the run's one broker."""
    with room(kafka.bootstrap, library=getattr(request, "param", "")) as place:
        yield place


@contextlib.contextmanager
def room(bootstrap: str, prefix: str = "", library: str = "") -> Iterator[Room]:
    """A room that is left tidy; an earlier one's topics where ``prefix`` is its."""
    place = Room(bootstrap, prefix, library)
    try:
        yield place
    finally:
        place.close()


def picture_sum(item: Item) -> int:
    """What the pixels of an item add up to."""
    assert item.array is not None
    return zlib.crc32(item.array.tobytes())


def packet_of(record: Record) -> tuple[Any, ...]:
    """What two records must agree in to be the same packet on different engines, but for times and feeds."""
    return record.key, record.value, record.flags


def balanced(cameras: Comux) -> bool:
    """Whether the books of every source and of the results balance now."""
    accounts = list(cameras.accounts().values())
    return all(account.balanced for account in accounts) and cameras.status()["results"]["balanced"]


class Watch:
    """Looks at the books of a running ``Comux`` again and again, from a thread, until ``stop`` (which fails where they
    ever did not balance) or until it is closed."""

    def __init__(self, cameras: Comux) -> None:
        self.looks = 0
        self.late = 0.0  #: seconds by which the machine once let this thread wait longer than it asked for
        self.wrong: list[Any] = []
        self._cameras = cameras
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="comux-test-watch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asked = time.monotonic()
        while not self._stop.wait(_LOOK) and not self._cameras.closed:
            self.late = max(self.late, time.monotonic() - asked - _LOOK)
            for cam_id, account in self._cameras.accounts().items():
                if not account.balanced:
                    self.wrong.append((cam_id, account))
            self.looks += 1
            asked = time.monotonic()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(10)
        assert self.looks > 0
        assert not self.wrong, self.wrong[:3]
