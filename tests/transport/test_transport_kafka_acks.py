"""Sent records are settled a batch at a time, and nobody can tell: splits, failures, callbacks, several threads."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from kafka import TopicPartition
from kafka import errors as kafka_errors
from kafka.producer.producer_batch import ProducerBatch
from kafka.record.memory_records import MemoryRecordsBuilder
from service_fixtures import KafkaCluster

from comux.errors import DeliveryError, WaitTimeoutError
from comux.transport import Broker, TopicSpec, connect
from comux.transport.kafka_acks import Fate, KafkaFuture, Run

PARTITION = TopicPartition("camera", 0)


class Keeper:
    """An owner that writes down what was settled."""

    what = "here"
    acknowledged = True
    run: Run | None = None

    def __init__(self) -> None:
        self.fates = threading.Condition(threading.RLock())
        self.runs: list[tuple[int, int]] = []  # records and bytes of each run

    def settled(self, futures: Sequence[Fate], nbytes: int, newest: int | None) -> None:
        self.runs.append((len(futures), nbytes))
        self.fates.notify_all()

    def failure(self, error: BaseException, nbytes: int) -> BaseException:
        return DeliveryError(f"not delivered: {error}")


def new_batch() -> ProducerBatch:
    return ProducerBatch(PARTITION, MemoryRecordsBuilder(2, 0, 1 << 20))


def filled(count: int, owner: Keeper) -> tuple[ProducerBatch, list[KafkaFuture]]:
    """A batch of ``count`` records of one run."""
    batch, run = new_batch(), Run(owner, None)
    run.batch = batch.produce_future
    futures = [run.add(batch.try_append(1, None, b"v", []), 10 * (number + 1)) for number in range(count)]
    run.watch()
    return batch, futures


def test_an_acknowledged_batch_settles_all_of_its_records_at_once() -> None:
    owner = Keeper()
    batch, futures = filled(3, owner)
    assert not any(future.done() for future in futures)
    batch.complete(100, -1)
    assert [future.result(0) for future in futures] == [100, 101, 102]
    assert owner.runs == [(3, 60)]


def test_all_are_done_before_the_first_callback_runs() -> None:
    batch, futures = filled(3, Keeper())
    seen: list[tuple[Any, list[bool]]] = []
    for future in futures:
        future.add_done_callback(lambda done: seen.append((done.result(0), [each.done() for each in futures])))
    batch.complete(5, -1)
    assert seen == [(5, [True] * 3), (6, [True] * 3), (7, [True] * 3)]


def test_a_callback_that_raises_keeps_none_from_its_turn(caplog: pytest.LogCaptureFixture) -> None:
    batch, futures = filled(2, Keeper())
    seen: list[Any] = []
    futures[0].add_done_callback(lambda done: 1 / 0)  # type: ignore[arg-type,return-value]
    futures[1].add_done_callback(lambda done: seen.append(done.result(0)))
    batch.complete(5, -1)
    assert seen == [6]
    assert "here: a callback of send failed" in caplog.text


def test_a_failed_batch_tells_each_record_its_own_reason() -> None:
    batch, futures = filled(2, Keeper())
    reasons = [kafka_errors.KafkaError("first"), kafka_errors.KafkaError("second")]
    batch.complete_exceptionally(kafka_errors.InvalidRecordError(), reasons.__getitem__)
    for future, word in zip(futures, ("first", "second"), strict=True):
        with pytest.raises(DeliveryError, match=word):
            future.result(0)
    with pytest.raises(DeliveryError):
        futures[0].result(0)


def test_an_aborted_batch_fails_all() -> None:
    batch, futures = filled(2, Keeper())
    batch.abort(kafka_errors.IllegalStateError("closed"))
    assert [str(future.exception(0)) for future in futures] == ["not delivered: IllegalStateError: closed"] * 2


def test_a_record_that_comes_after_the_fate_is_a_run_of_its_own_with_the_same_fate() -> None:
    owner = Keeper()
    batch = new_batch()
    first, late = (batch.try_append(1, None, b"v", []) for _ in range(2))
    run = Run(owner, batch.produce_future)
    run.add(first, 10)
    run.watch()
    batch.complete(7, -1)
    assert not run.takes(late)
    other = Run(owner, batch.produce_future)
    future = other.add(late, 20)
    other.watch()
    assert future.result(0) == 8
    assert owner.runs == [(1, 10), (1, 20)]


def test_nothing_is_known_in_time() -> None:
    _, futures = filled(1, Keeper())
    with pytest.raises(WaitTimeoutError, match=r"here: not acknowledged within 0.01 s; it may still be"):
        futures[0].result(0.01)


def test_without_acknowledgements_there_is_no_offset() -> None:
    batch, futures = filled(2, Keeper())
    batch.complete(-1, -1)
    assert [future.result(0) for future in futures] == [None, None]


def test_a_split_batch_leaves_each_part_its_own_fate() -> None:
    owner = Keeper()
    _, futures = filled(3, owner)
    parts = new_batch(), new_batch()
    seen: list[Any] = []
    for future, (part, place) in zip(futures, ((0, 0), (0, 1), (1, 0)), strict=True):  # as kafka-python does it
        future.sent.rebind(parts[part].produce_future, place)
        future.add_done_callback(lambda done: seen.append(done.exception(0) or done.result(0)))
    parts[0].complete(40, -1)
    assert [future.done() for future in futures] == [True, True, False]
    parts[1].complete_exceptionally(kafka_errors.KafkaError("no"), lambda place: kafka_errors.KafkaError("no"))
    assert seen[:2] == [40, 41]
    assert isinstance(seen[2], DeliveryError)
    assert owner.runs == [(2, 30), (1, 30)]


def test_a_part_that_is_split_again_is_settled_too() -> None:
    owner = Keeper()
    _, futures = filled(3, owner)
    half, rest, second, third = (new_batch() for _ in range(4))
    for future, part, place in zip(futures, (half, rest, rest), (0, 0, 1), strict=True):
        future.sent.rebind(part.produce_future, place)
    half.complete(1, -1)
    for future, part in zip(futures[1:], (second, third), strict=True):
        future.sent.rebind(part.produce_future, 0)
    second.complete(2, -1)
    assert [future.done() for future in futures] == [True, True, False]
    third.complete(3, -1)
    assert [future.result(0) for future in futures] == [1, 2, 3]
    assert owner.runs == [(1, 10), (1, 20), (1, 30)]


def opened(kafka: KafkaCluster, **options: Any) -> Broker:
    """A namespace of this test's own; a linger, so that several records share a batch."""
    return connect(kafka.bootstrap, prefix=f"comux-acks-{secrets.token_hex(6)}.", linger_ms=20, **options)


def values_of(broker: Broker, topic: str, count: int) -> list[bytes]:
    with broker.consumer(topic, start="beginning") as consumer:
        out: list[bytes] = []
        while len(out) < count:
            records = consumer.poll(20.0, count)
            assert records, f"{len(out)} of {count} records came"
            out += [record.value for record in records]
        return out


def test_a_batch_that_the_cluster_refuses_as_too_large_is_delivered_in_parts(kafka: KafkaCluster) -> None:
    with opened(kafka, topic_config={"max.message.bytes": "2000"}) as broker:
        broker.create_topic(TopicSpec("split"))
        sent = [b"%03d" % number + b"x" * 400 for number in range(40)]
        seen: list[tuple[int, int | None]] = []
        with broker.producer("split") as producer:
            futures = [producer.send(value) for value in sent]
            for number, future in enumerate(futures):
                future.add_done_callback(lambda done, number=number: seen.append((number, done.result(0))))
            producer.flush(30.0)
            assert [future.result(0) for future in futures] == list(range(40))
            account = producer.account()
        assert account.balanced
        assert (account.received, account.delivered) == (40, 40)
        assert sorted(seen) == [(number, number) for number in range(40)]
        assert values_of(broker, "split", 40) == sent
        broker.delete_topic("split", force=True)


def test_threads_that_share_a_producer_get_the_offsets_of_their_own_records(kafka: KafkaCluster) -> None:
    with opened(kafka, batch_size=4000, buffer_bytes=50_000) as broker:
        broker.create_topic(TopicSpec("shared"))
        offsets: dict[bytes, int | None] = {}
        with broker.producer("shared") as producer:

            def send(who: int) -> None:
                values = [b"%d-%03d" % (who, number) + b"." * 200 for number in range(200)]
                futures = [producer.send(value) for value in values]
                offsets.update({value: future.result(30.0) for value, future in zip(values, futures, strict=True)})

            threads = [threading.Thread(target=send, args=(who,)) for who in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert producer.account().delivered == 800
        assert [offsets[value] for value in values_of(broker, "shared", 800)] == list(range(800))
        broker.delete_topic("shared", force=True)
