"""One adapter per Kafka client for Python; each runs the same two loops over the same payloads.

``produce`` sends ``n`` records to a topic and waits until the last is acknowledged; ``consume`` reads a topic's ``n``
records from the beginning, every byte of each, and looks at its place: record *i* has offset *i* and the bytes of
variant ``i % VARIANTS``. Each adapter is used as its own documentation shows it for throughput, with as little around
it as possible: no result of a send is looked at, because the topic is read afterwards.

Two sets of settings: ``equal`` gives all clients the same ones, where they have them (``comux``' own defaults, which
is why comux is given none); ``own`` leaves each client what its authors chose. Both: acks=all, idempotent, no
compression, checksums checked where the client can.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from common import VARIANTS, Check, payloads

WARM = 16  # records sent before the clock starts: connections, metadata, producer id
MOST = 500  # records per poll
PATIENCE = 30.0  # seconds without a record after which a reader gives up
AFTER = 0.2  # seconds a reader goes on looking for records too many
BATCH = 256 << 10
FETCH = 4 << 20
QUEUE = 16 << 20
BUFFER = 64 << 20
IN_FLIGHT = 5
LARGEST = 8 << 20


@dataclass(frozen=True)
class Job:
    """What to do: ``n`` records of ``size`` bytes on ``topic``."""

    servers: str
    topic: str
    size: int
    n: int
    equal: bool


@dataclass
class Timing:
    """Of the ``n`` records between ``begin`` and ``end``; ``cpu`` is that of the whole process, all threads."""

    n: int
    seconds: float = 0.0
    cpu: float = 0.0
    wrong: int = 0

    def begin(self) -> None:
        self.cpu, self.seconds = time.process_time(), time.monotonic()

    def end(self) -> Timing:
        self.seconds, self.cpu = time.monotonic() - self.seconds, time.process_time() - self.cpu
        return self


class Client(ABC):
    name: str

    @abstractmethod
    def produce(self, job: Job) -> Timing:
        """Send ``job.n`` records; the clock starts after the first ``WARM`` were acknowledged."""

    @abstractmethod
    def consume(self, job: Job) -> Timing:
        """Read ``job.n`` records; the clock starts when the first ones are there, before they are looked at."""


def missing(job: Job, got: int) -> SystemExit:
    return SystemExit(f"{job.topic}: {got} records came of {job.n}, then none for {PATIENCE:.0f} s")


class Comux(Client):
    name = "comux"

    def _options(self, job: Job) -> dict[str, Any]:
        return {"acks": "all", "enable_idempotence": True}

    def produce(self, job: Job) -> Timing:
        from comux.transport import connect

        data = payloads(job.size)
        with (
            connect(f"kafka://{job.servers}", **self._options(job)) as broker,
            broker.producer(job.topic) as producer,
        ):
            send = producer.send
            for i in range(WARM):
                send(data[i % VARIANTS])
            producer.flush()
            timing = Timing(job.n - WARM)
            timing.begin()
            for i in range(WARM, job.n):
                send(data[i % VARIANTS])
            producer.flush()
            return timing.end()

    def consume(self, job: Job) -> Timing:
        from comux.transport import connect

        check, timing, i, wrong = Check(job.size), Timing(job.n), 0, 0
        checksum, expected = check.checksum, check.expected
        with (
            connect(f"kafka://{job.servers}", **self._options(job)) as broker,
            broker.consumer(job.topic, start="beginning") as consumer,
        ):
            while i < job.n:
                records = consumer.poll(PATIENCE, MOST)
                if not records:
                    raise missing(job, i)
                if not i:
                    timing.begin()
                for record in records:
                    if record.offset != i or checksum(record.value) != expected[i % VARIANTS]:
                        wrong += 1
                    i += 1
            timing.end()
            timing.wrong = wrong + len(consumer.poll(AFTER, MOST))
        return timing


class ComuxConfluent(Comux):
    name = "comux+librdkafka"

    def _options(self, job: Job) -> dict[str, Any]:
        return {**super()._options(job), "library": "confluent"}


class KafkaPython(Client):
    name = "kafka-python"

    def produce(self, job: Job) -> Timing:
        from kafka import KafkaProducer

        options: dict[str, Any] = {"acks": "all", "enable_idempotence": True}
        if job.equal:
            options |= {
                "batch_size": BATCH,
                "linger_ms": 0,
                "max_in_flight_requests_per_connection": IN_FLIGHT,
                "max_request_size": LARGEST,
                "metrics_enabled": False,
            }
        data = payloads(job.size)
        producer = KafkaProducer(bootstrap_servers=job.servers, **options)
        send, topic = producer.send, job.topic
        for i in range(WARM):
            send(topic, data[i % VARIANTS], partition=0)
        producer.flush()
        timing = Timing(job.n - WARM)
        timing.begin()
        for i in range(WARM, job.n):
            send(topic, data[i % VARIANTS], partition=0)
        producer.flush()
        timing.end()
        producer.close()
        return timing

    def consume(self, job: Job) -> Timing:
        from kafka import KafkaConsumer, TopicPartition

        options: dict[str, Any] = {}
        if job.equal:
            options = {"max_partition_fetch_bytes": FETCH, "fetch_max_wait_ms": 100, "metrics_enabled": False}
        consumer = KafkaConsumer(
            bootstrap_servers=job.servers, enable_auto_commit=False, auto_offset_reset="earliest", **options
        )
        partition = TopicPartition(job.topic, 0)
        consumer.assign([partition])
        consumer.seek_to_beginning(partition)
        check, timing, i, wrong = Check(job.size), Timing(job.n), 0, 0
        checksum, expected = check.checksum, check.expected
        while i < job.n:
            records = _patiently(consumer, partition)
            if not records:
                raise missing(job, i)
            if not i:
                timing.begin()
            for record in records:
                if record.offset != i or checksum(record.value) != expected[i % VARIANTS]:
                    wrong += 1
                i += 1
        timing.end()
        timing.wrong = wrong + len(consumer.poll(int(AFTER * 1000), MOST).get(partition, ()))
        consumer.close()
        return timing


def _patiently(consumer: Any, partition: Any) -> list[Any]:
    """One poll; several only before the first fetch, while there is nothing to wait for yet."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found: list[Any] | None = consumer.poll(1000, MOST).get(partition)
        if found:
            return found
    return []


class Confluent(Client):
    name = "confluent-kafka"

    def produce(self, job: Job) -> Timing:
        from confluent_kafka import Producer

        # Its own limit is 1,000,000 bytes with everything around the value: too little for the largest records here.
        options: dict[str, Any] = {"acks": "all", "enable.idempotence": True, "message.max.bytes": LARGEST}
        if job.equal:
            options |= {
                "batch.size": BATCH,
                "linger.ms": 0,
                "max.in.flight": IN_FLIGHT,
                "queue.buffering.max.kbytes": BUFFER >> 10,
                "queue.buffering.max.messages": 0,
            }
        data = payloads(job.size)
        producer = Producer({"bootstrap.servers": job.servers, **options})

        def send(i: int) -> None:
            while True:
                try:
                    return producer.produce(job.topic, data[i % VARIANTS], partition=0)
                except BufferError:  # full: its documentation says to serve callbacks until there is room
                    producer.poll(0.01)

        for i in range(WARM):
            send(i)
        producer.flush()
        timing = Timing(job.n - WARM)
        timing.begin()
        for i in range(WARM, job.n):
            send(i)
        producer.flush()
        return timing.end()

    def consume(self, job: Job) -> Timing:
        from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

        options: dict[str, Any] = {"check.crcs": True}
        if job.equal:
            options |= {
                "max.partition.fetch.bytes": FETCH,
                "fetch.wait.max.ms": 100,
                "queued.max.messages.kbytes": QUEUE >> 10,
                "fetch.queue.backoff.ms": 10,  # else it looks once a second whether its queue has room again
            }
        consumer = Consumer(
            {"bootstrap.servers": job.servers, "group.id": job.topic, "enable.auto.commit": False, **options}
        )
        consumer.assign([TopicPartition(job.topic, 0, OFFSET_BEGINNING)])
        check, timing, i, wrong = Check(job.size), Timing(job.n), 0, 0
        checksum, expected = check.checksum, check.expected
        # consume() waits until it has as many as were asked for, or the time is over: ask for no more than there are.
        records = consumer.consume(1, PATIENCE)
        timing.begin()
        while records:
            for record in records:
                if record.error() is not None:
                    raise SystemExit(f"{job.topic}: {record.error()}")
                if record.offset() != i or checksum(record.value()) != expected[i % VARIANTS]:
                    wrong += 1
                i += 1
            if i >= job.n:
                break
            records = consumer.consume(min(MOST, job.n - i), PATIENCE)
        if i < job.n:
            raise missing(job, i)
        timing.end()
        timing.wrong = wrong + len(consumer.consume(1, AFTER))
        consumer.close()
        return timing


class AioKafka(Client):
    name = "aiokafka"

    def produce(self, job: Job) -> Timing:
        return asyncio.run(self._produce(job))

    def consume(self, job: Job) -> Timing:
        return asyncio.run(self._consume(job))

    async def _produce(self, job: Job) -> Timing:
        from aiokafka import AIOKafkaProducer

        options: dict[str, Any] = {"acks": "all", "enable_idempotence": True}
        if job.equal:
            options |= {"max_batch_size": BATCH, "linger_ms": 0, "max_request_size": LARGEST}
        data = payloads(job.size)
        async with AIOKafkaProducer(bootstrap_servers=job.servers, **options) as producer:
            send, topic = producer.send, job.topic
            for i in range(WARM):
                await send(topic, data[i % VARIANTS], partition=0)
            await producer.flush()
            timing = Timing(job.n - WARM)
            timing.begin()
            for i in range(WARM, job.n):
                await send(topic, data[i % VARIANTS], partition=0)
            await producer.flush()
            return timing.end()

    async def _consume(self, job: Job) -> Timing:
        from aiokafka import AIOKafkaConsumer, TopicPartition

        options: dict[str, Any] = {}
        if job.equal:
            options = {"max_partition_fetch_bytes": FETCH, "fetch_max_wait_ms": 100}
        check, timing, i, wrong = Check(job.size), Timing(job.n), 0, 0
        checksum, expected = check.checksum, check.expected
        partition = TopicPartition(job.topic, 0)
        async with AIOKafkaConsumer(bootstrap_servers=job.servers, enable_auto_commit=False, **options) as consumer:
            consumer.assign([partition])
            consumer.seek(partition, 0)
            while i < job.n:
                found = await consumer.getmany(timeout_ms=int(PATIENCE * 1000), max_records=MOST)
                records = found.get(partition, ())
                if not records:
                    raise missing(job, i)
                if not i:
                    timing.begin()
                for record in records:
                    if record.offset != i or checksum(record.value) != expected[i % VARIANTS]:
                        wrong += 1
                    i += 1
            timing.end()
            more = await consumer.getmany(timeout_ms=int(AFTER * 1000), max_records=MOST)
            timing.wrong = wrong + len(more.get(partition, ()))
        return timing


ALL: dict[str, type[Client]] = {kind.name: kind for kind in (Comux, ComuxConfluent, KafkaPython, Confluent, AioKafka)}
