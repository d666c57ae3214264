"""T6 to T9: waiting and being interrupted, ends and epochs, pausing, errors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from comux.errors import (
    ClosedError,
    ComuxError,
    ConfigError,
    EndOfStream,
    TopicBusyError,
    UnknownTopicError,
    WaitTimeoutError,
)
from comux.records import Record
from comux.transport import Broker, Consumer, Producer, TopicSpec

from .transport_base import WAIT, Background, ContractBase, linger, take, values


class LifeContract(ContractBase):
    """Deadlines, wake-ups, closing, ends, pausing, deleting."""

    # -- T6 --------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("group", [None, "g"])
    def test_t6_a_deadline_is_kept_and_waiting_costs_nothing(self, broker: Broker, group: str | None) -> None:
        topic = self.make(broker)
        with broker.consumer(topic, group=group) as consumer:
            began = time.monotonic()
            assert consumer.poll(0) == []
            waiting = Background(lambda: consumer.poll(0.5))
            assert waiting.result() == []
            assert time.monotonic() - began >= 0.49
            assert waiting.cpu_s < 0.25  # a loop that spins takes all of the half second

    def test_t6_several_waiting_topics_cost_nothing(self, broker: Broker) -> None:
        topics = [self.make(broker, f"topic{i}", records=16) for i in range(8)]
        with broker.consumer(topics) as consumer:
            waiting = Background(lambda: consumer.poll(0.5))
            assert waiting.result() == []
            assert waiting.cpu_s < 0.25

    def test_t6_a_record_ends_the_wait(self, broker: Broker) -> None:
        topic = self.make(broker)
        for group in (None, "g"):
            with broker.consumer(topic, group=group) as consumer:
                waiting = Background(lambda c=consumer: c.poll())  # type: ignore[misc]
                linger()
                self.fill(broker, topic, 1, first=8)
                assert values(waiting.result()) == [b"8"]

    @pytest.mark.parametrize("group", [None, "g"])
    def test_t6_wakeup_ends_the_wait_or_the_next_one(self, broker: Broker, group: str | None) -> None:
        topic = self.make(broker)
        with broker.consumer(topic, group=group) as consumer:
            waiting = Background(lambda: consumer.poll())
            linger()
            consumer.wakeup()
            assert waiting.result() == []
            consumer.wakeup()
            assert consumer.poll() == []
            self.fill(broker, topic, 1)
            assert values(take(consumer, 1)) == [b"0"]

    @pytest.mark.parametrize("group", [None, "g"])
    @pytest.mark.parametrize("count", [1, 3])
    def test_t6_close_ends_the_wait_of_another_thread(self, broker: Broker, group: str | None, count: int) -> None:
        topics = [self.make(broker, f"topic{i}") for i in range(count)]
        consumer = broker.consumer(topics, group=group)
        waiting = Background(lambda: consumer.poll())
        linger()
        consumer.close()
        with pytest.raises(ClosedError):
            waiting.result()
        consumer.close()

    @pytest.mark.parametrize("group", [None, "g"])
    def test_t6_an_event_loop_gets_every_record_until_the_end(self, broker: Broker, group: str | None) -> None:
        topic = self.make(broker)

        def produce() -> None:
            with broker.producer(topic) as producer:
                for i in range(40):
                    producer.send(b"%d" % i).result(WAIT)
                producer.end()

        async def collect(consumer: Consumer) -> list[int]:
            return [int(record.value) async for record in consumer]

        with broker.consumer(topic, group=group, start="beginning") as consumer:
            thread = Background(produce)
            got = asyncio.run(asyncio.wait_for(collect(consumer), WAIT))
            thread.result()
            assert got == list(range(40))
            if group is not None:
                consumer.commit()
            assert consumer.account().balanced

    @pytest.mark.parametrize("group", [None, "g"])
    def test_t6_a_cancelled_task_loses_nothing(self, broker: Broker, group: str | None) -> None:
        """Cancelled while it waits, again and again, with records coming all the time."""
        topic = self.make(broker)

        def publish(producer: Producer, number: int) -> None:
            producer.send(b"%d" % number).result(WAIT)

        async def main(consumer: Consumer, producer: Producer) -> list[int]:
            got: list[int] = []
            for i in range(30):
                task = asyncio.ensure_future(anext(aiter(consumer)))
                await asyncio.sleep(0)
                if i % 3:
                    await asyncio.to_thread(publish, producer, i)
                task.cancel()
                try:
                    got.append(int((await task).value))
                except asyncio.CancelledError:
                    pass
            while len(got) < 20:
                got.append(int((await asyncio.wait_for(anext(aiter(consumer)), WAIT)).value))
            return got

        with broker.producer(topic) as producer, broker.consumer(topic, group=group, start="beginning") as consumer:
            sent = [i for i in range(30) if i % 3]
            assert asyncio.run(main(consumer, producer)) == sent
            if group is not None:
                consumer.commit()
                assert consumer.account().held_total == 0
            assert consumer.account().balanced

    def test_t6_close_ends_the_wait_of_a_task(self, broker: Broker) -> None:
        topic = self.make(broker)

        async def main(consumer: Consumer) -> None:
            task = asyncio.ensure_future(anext(aiter(consumer)))
            await asyncio.sleep(0.05)
            consumer.close()
            with pytest.raises(ClosedError):
                await asyncio.wait_for(task, WAIT)

        asyncio.run(main(broker.consumer(topic)))

    def test_t6_closing_the_broker_ends_every_wait(self, broker: Broker, place: Path) -> None:
        topic = self.make(broker)
        other = self.make_broker(place)
        consumer = other.consumer(topic)
        waiting = Background(lambda: consumer.poll())
        linger()
        other.close()
        other.close()
        with pytest.raises(ClosedError):
            waiting.result()
        for call in (other.topics, lambda: other.producer(topic), lambda: other.topic(topic)):
            with pytest.raises(ClosedError):
                call()
        assert broker.topics() == [topic]

    def test_t6_close_ends_the_wait_of_a_producer(self, broker: Broker) -> None:
        if not broker.capabilities.gating:
            return
        topic = self.make(broker, records=2)
        with broker.consumer(topic, group="g", start="beginning"):
            producer = broker.producer(topic)
            producer.send(b"1")
            producer.send(b"2")
            waiting = Background(lambda: producer.send(b"3"))
            linger()
            producer.close()
            with pytest.raises(ClosedError):
                waiting.result()
            assert producer.account().balanced

    # -- T7 --------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("group", [None, "g"])
    def test_t7_the_end_comes_after_the_last_record(self, broker: Broker, group: str | None) -> None:
        topic = self.make(broker)
        with broker.consumer(topic, group=group, start="beginning") as consumer, broker.producer(topic) as producer:
            for i in range(5):
                producer.send(b"%d" % i).result(WAIT)
            assert not consumer.ended()
            producer.end()
            got: list[Record] = []
            for record in consumer:
                got.append(record)
                if group is not None:
                    consumer.ack(record)
            assert values(got) == [b"0", b"1", b"2", b"3", b"4"]
            assert consumer.ended()
            with pytest.raises(EndOfStream, match=topic):
                consumer.poll()
            with pytest.raises(EndOfStream, match=topic):
                producer.send(b"after the end", timeout=1)
        assert broker.topic(topic).ended

    @pytest.mark.parametrize("group", [None, "g"])
    def test_t7_the_end_wakes_who_waits(self, broker: Broker, group: str | None) -> None:
        topic = self.make(broker)
        with broker.consumer(topic, group=group, start="beginning") as consumer, broker.producer(topic) as producer:
            waiting = Background(lambda: consumer.poll())
            linger()
            producer.end()
            with pytest.raises(EndOfStream):
                waiting.result()

    @pytest.mark.parametrize("group", [None, "g"])
    def test_t7_waiting_consumers_go_on_in_the_next_epoch(self, broker: Broker, group: str | None) -> None:
        topic = self.make(broker)
        with broker.consumer(topic, group=group, start="beginning", on_end="wait") as consumer:
            for epoch in range(3):
                with broker.producer(topic) as producer:
                    producer.send(b"%d" % epoch).result(WAIT)
                    producer.end()
                record = take(consumer, 1)[0]
                assert record.value == b"%d" % epoch
                if group is not None:
                    consumer.ack(record)
                assert consumer.ended()
                assert consumer.poll(0) == []
            waiting = Background(lambda: consumer.poll(WAIT))
            linger()
            self.fill(broker, topic, 1, first=99)
            assert values(waiting.result()) == [b"99"]
            assert not consumer.ended()

    def test_t7_a_late_consumer_reads_what_is_retained_then_ends(self, broker: Broker) -> None:
        topic = self.make(broker)
        for epoch in range(2):
            with broker.producer(topic) as producer:
                for i in range(3):
                    producer.send(b"%d.%d" % (epoch, i)).result(WAIT)
                producer.end()
        with broker.consumer(topic, start="beginning") as consumer:
            assert values(list(consumer)) == [b"0.0", b"0.1", b"0.2", b"1.0", b"1.1", b"1.2"]
        info = broker.topic(topic)
        with broker.consumer(topic, start=info.high_water - 3) as consumer:
            assert values(list(consumer)) == [b"1.0", b"1.1", b"1.2"]

    def test_t7_a_new_epoch_does_not_hide_the_end_of_the_old(self, broker: Broker) -> None:
        topic = self.make(broker)
        with broker.consumer(topic, start="beginning") as consumer:
            with broker.producer(topic) as producer:
                producer.send(b"old").result(WAIT)
                producer.end()
            self.fill(broker, topic, 1, first=1)
            assert values(list(consumer)) == [b"old"]
        assert not broker.topic(topic).ended

    def test_t7_a_group_reads_the_next_epoch_with_a_new_handle(self, broker: Broker) -> None:
        topic = self.make(broker)
        for epoch in range(2):
            with broker.producer(topic) as producer:
                producer.send(b"%d" % epoch).result(WAIT)
                with broker.consumer(topic, group="g", start="beginning") as consumer:
                    assert values(take(consumer, 1)) == [b"%d" % epoch]
                    consumer.commit()
                    assert consumer.poll(0) == []
                    producer.end()
                    assert list(consumer) == []
            with broker.consumer(topic, group="g") as late:  # all was read, and no new epoch began: still the end
                assert list(late) == []

    def test_t7_all_topics_must_end(self, broker: Broker) -> None:
        topics = [self.make(broker, f"topic{i}") for i in range(2)]
        with broker.consumer(topics, start="beginning") as consumer:
            for index, topic in enumerate(topics):
                with broker.producer(topic) as producer:
                    producer.send(b"x").result(WAIT)
                    producer.end()
                if index == 0:
                    take(consumer, 1)
                    assert consumer.poll(0) == []
                    assert consumer.ended(topic)
                    assert not consumer.ended(topics[1])
            assert len(list(consumer)) == 1

    def test_t7_closing_a_producer_is_no_end(self, broker: Broker) -> None:
        topic = self.make(broker)
        self.fill(broker, topic, 1)
        with broker.consumer(topic, start="beginning") as consumer:
            take(consumer, 1)
            assert consumer.poll(0) == []
            assert not consumer.ended()

    def test_t7_the_last_of_several_clean_closes_ends_the_stream(self, broker: Broker) -> None:
        spec = TopicSpec("topic", end="auto")
        if self.absent(broker, "counted_end", lambda: broker.create_topic(spec)):
            return
        broker.create_topic(spec)
        with broker.consumer("topic", start="beginning") as consumer:
            a, b = broker.producer("topic"), broker.producer("topic")
            a.send(b"a").result(WAIT)
            a.close()
            a.close()
            assert not broker.topic("topic").ended
            b.send(b"b").result(WAIT)
            b.close()
            assert broker.topic("topic").ended
            assert values(list(consumer)) == [b"a", b"b"]

    # -- T8 --------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("group", [None, "g"])
    def test_t8_pause_is_the_handles_own(self, broker: Broker, group: str | None) -> None:
        topic = self.make(broker)
        with (
            broker.consumer(topic, group=group, start="beginning") as paused,
            broker.consumer(topic, start="beginning") as other,
        ):
            paused.pause()
            self.fill(broker, topic, 3)
            assert paused.poll(0.05) == []
            assert len(take(other, 3)) == 3
            waiting = Background(lambda: paused.poll(WAIT, 3))
            linger()
            paused.resume()
            first = waiting.result()  # it waits for the first only
            assert values([*first, *take(paused, 3 - len(first))]) == [b"0", b"1", b"2"]
            assert paused.account().balanced

    def test_t8_one_of_several_topics_can_be_paused(self, broker: Broker) -> None:
        topics = [self.make(broker, f"topic{i}") for i in range(2)]
        with broker.consumer(topics, start="beginning") as consumer:
            consumer.pause("topic0")
            for topic in topics:
                self.fill(broker, topic, 2)
            assert {record.topic for record in take(consumer, 2)} == {"topic1"}
            assert consumer.poll(0) == []
            consumer.resume("topic0")
            assert {record.topic for record in take(consumer, 2)} == {"topic0"}

    def test_t8_a_paused_consumer_can_be_closed(self, broker: Broker) -> None:
        topic = self.make(broker)
        consumer = broker.consumer(topic)
        consumer.pause()
        waiting = Background(lambda: consumer.poll())
        linger()
        consumer.close()
        with pytest.raises(ClosedError):
            waiting.result()

    # -- T9 --------------------------------------------------------------------------------------------------------

    def test_t9_an_unknown_topic_is_named_with_its_likes(self, broker: Broker) -> None:
        self.make(broker, "raw_cam1")
        for ask in (
            lambda: broker.consumer("raw_cam2"),
            lambda: broker.producer("raw_cam2"),
            lambda: broker.topic("raw_cam2"),
            lambda: broker.groups("raw_cam2"),
            lambda: broker.delete_topic("raw_cam2"),
            lambda: broker.consumer(["raw_cam1", "raw_cam2"]),
        ):
            with pytest.raises(UnknownTopicError, match=r"raw_cam2.*raw_cam1") as caught:
                ask()
            assert caught.value.retriable

    def test_t9_a_closed_handle_says_so(self, broker: Broker) -> None:
        topic = self.make(broker)
        self.fill(broker, topic, 1)
        consumer: Consumer = broker.consumer(topic, group="g", start="beginning")
        record = take(consumer, 1)[0]
        consumer.close()
        producer: Producer = broker.producer(topic)
        producer.close()
        calls: list[Callable[[], Any]] = [
            lambda: consumer.poll(0),
            consumer.commit,
            lambda: consumer.ack(record),
            consumer.lag,
            consumer.position,
            consumer.pause,
            consumer.metrics,
            consumer.ended,
            lambda: next(iter(consumer)),
            lambda: producer.send(b"x"),
            lambda: producer.send_many([b"x"]),
            lambda: producer.claim(1),
            producer.flush,
            producer.end,
        ]
        for call in calls:
            with pytest.raises(ClosedError):
                call()
        assert consumer.account().balanced
        assert producer.account().balanced

    def test_t9_a_topic_in_use_is_not_deleted(self, broker: Broker) -> None:
        topic = self.make(broker)
        with broker.consumer(topic):
            with pytest.raises(TopicBusyError, match=topic):
                broker.delete_topic(topic)
            assert broker.topics() == [topic]
        broker.delete_topic(topic)
        assert broker.topics() == []

    @pytest.mark.parametrize("group", [None, "g"])
    def test_t9_a_topic_deleted_under_its_users_is_unknown_to_them(self, broker: Broker, group: str | None) -> None:
        topic = self.make(broker)
        with broker.consumer(topic, group=group) as consumer, broker.producer(topic) as producer:
            waiting = Background(lambda: consumer.poll())
            linger()
            broker.delete_topic(topic, force=True)
            with pytest.raises(UnknownTopicError, match=topic):
                waiting.result()
            with pytest.raises(UnknownTopicError, match=topic):
                consumer.poll(0)
            with pytest.raises(UnknownTopicError, match=topic):
                producer.send(b"x", timeout=1)
            self.make(broker, topic)  # a new topic of that name is another topic
            self.fill(broker, topic, 1)
            with pytest.raises(UnknownTopicError, match=topic):
                consumer.poll(0)

    def test_t9_errors_share_one_base_and_say_whether_to_retry(self, broker: Broker) -> None:
        assert issubclass(WaitTimeoutError, ComuxError)
        assert issubclass(WaitTimeoutError, TimeoutError)
        topic = self.make(broker)
        with pytest.raises(ConfigError) as caught:
            broker.consumer(topic, on_end="explode")  # type: ignore[arg-type]
        assert not caught.value.retriable
        with pytest.raises(ConfigError):
            broker.consumer(topic, group="no/slashes")
