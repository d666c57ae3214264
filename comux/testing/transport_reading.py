"""T5: lossy reading. A gap-free run or the exact number lost; never a torn record; positions, lag, seeking, views."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from comux.errors import ConfigError, EndOfStream
from comux.records import KEYFRAME
from comux.transport import Broker, Producer

from .transport_base import WAIT, Background, ContractBase, take, values


class ReadingContract(ContractBase):
    """Loss, positions, keyframes, several topics, views."""

    def test_t5_a_lapped_reader_is_told_exactly(self, broker: Broker) -> None:
        topic = self.make(broker, records=8)
        with broker.consumer(topic, start="beginning") as consumer:
            offsets = self.fill(broker, topic, 100)
            start = offsets[0]
            log_start = broker.topic(topic).log_start
            records = take(consumer, 100 - (log_start - start))
            assert [record.offset for record in records] == offsets[log_start - start :]
            if broker.capabilities.exact_loss:
                assert records[0].skipped == log_start - start
            assert [record.skipped for record in records[1:]] == [0] * (len(records) - 1)
            account = consumer.account()
            assert account.balanced
            assert account.received == consumer.position() - start
            assert account.dropped.get("lapped", 0) == log_start - start

    def test_t5_no_record_is_torn_and_every_loss_is_counted_under_load(self, broker: Broker) -> None:
        topic = self.make(broker, records=8, data_bytes=1 << 16)
        total = 3000
        rng = np.random.default_rng(3)
        sizes = rng.integers(1, 2000, total)
        with broker.consumer(topic, start="beginning") as consumer, broker.producer(topic) as producer:
            first = consumer.position()

            def write() -> None:
                for i in range(total):
                    producer.send(i.to_bytes(4, "little") * int(sizes[i]), timestamp_ns=i * 10**6)
                producer.end()

            writer = Background(write)
            seen = skipped = 0
            expected = first
            for record in consumer:
                number = record.timestamp_ns // 10**6
                assert record.value == number.to_bytes(4, "little") * int(sizes[number])
                assert record.offset >= expected + record.skipped
                if broker.capabilities.dense_offsets and broker.capabilities.exact_loss:
                    assert record.offset == expected + record.skipped
                expected = record.offset + 1
                seen += 1
                skipped += record.skipped
            writer.result()
            assert seen + skipped == total
            account = consumer.account()
            assert account.balanced
            assert account.delivered == seen
            assert account.dropped_total == skipped

    def test_t5_seeking_counts_what_is_jumped(self, broker: Broker) -> None:
        topic = self.make(broker)
        offsets = self.fill(broker, topic, 30)
        with broker.consumer(topic, start="beginning") as consumer:
            assert values(take(consumer, 2)) == [b"0", b"1"]
            consumer.seek(offsets[10])
            assert consumer.position() == offsets[10]
            record = take(consumer, 1)[0]
            assert (record.value, record.skipped) == (b"10", 8)
            assert consumer.account().dropped["jumped"] == 8
            consumer.seek(offsets[5])
            record = take(consumer, 1)[0]
            assert (record.value, record.skipped) == (b"5", 0)
            consumer.seek_to_end()
            assert consumer.lag() == 0
            assert consumer.poll(0) == []
            self.fill(broker, topic, 1, first=30)
            record = take(consumer, 1)[0]
            assert (record.value, record.skipped) == (b"30", 24)
            consumer.seek_to_beginning()
            assert values(take(consumer, 31)) == [b"%d" % i for i in range(31)]
            assert consumer.account().balanced
            with pytest.raises(ConfigError):
                consumer.seek(-1)

    def test_t5_a_record_is_found_by_its_own_time(self, broker: Broker) -> None:
        topic = self.make(broker)
        unit = broker.capabilities.timestamp_resolution_ns
        step, first = max(unit, 10_000), 1_790_000_000_123_456_789 // unit * unit  # a float holds half a microsecond
        with broker.producer(topic) as producer:
            futures = [producer.send(b"x", timestamp_ns=first + number * step) for number in range(100)]
            offsets = [future.result(WAIT) for future in futures]
        with broker.consumer(topic, start="beginning") as consumer:
            times = [record.timestamp for record in take(consumer, 100)]
            found = [consumer.offset_for_time(at) for at in times[:: 1 if unit == 1 else 9]]
            assert found == offsets[:: 1 if unit == 1 else 9]
        for number in (3, 31, 77):
            with broker.consumer(topic, start=times[number]) as consumer:
                assert take(consumer, 1)[0].offset == offsets[number]

    def test_t5_a_seek_beyond_the_end_waits_there(self, broker: Broker) -> None:
        topic = self.make(broker)
        offsets = self.fill(broker, topic, 2)
        with broker.consumer(topic, start="beginning") as consumer:
            consumer.seek(offsets[-1] + 3)
            assert consumer.lag() == 0
            assert consumer.poll(0) == []
            more = self.fill(broker, topic, 4, first=2)
            record = take(consumer, 1)[0]
            assert record.offset == more[2]
            assert record.skipped == 4

    def test_t5_the_end_may_pass_the_offset_while_it_is_being_sought(self, broker: Broker) -> None:
        topic = self.make(broker)
        newest = self.fill(broker, topic, 2)[-1]
        for _ in range(10):  # the writer is faster than the seek in some of them
            with broker.consumer(topic, start="beginning") as consumer:
                consumer.seek(newest + 3)
                consumer.poll(0)
                offsets = self.fill(broker, topic, 4)
                assert take(consumer, 1)[0].offset == offsets[2]
                newest = offsets[-1]

    def test_t5_positions_and_lag(self, broker: Broker) -> None:
        topic = self.make(broker, records=16)
        with broker.consumer(topic, start="beginning") as consumer:
            assert consumer.lag() == 0
            assert consumer.lag_seconds() == 0.0
            base = consumer.position()
            unit = broker.capabilities.timestamp_resolution_ns
            old = (time.time_ns() - 5 * 10**9) // unit * unit
            with broker.producer(topic) as producer:
                producer.send(b"old", timestamp_ns=old).result(WAIT)
                producer.send(b"new").result(WAIT)
            assert consumer.end_offset() == broker.topic(topic).high_water
            assert consumer.beginning_offset() == base
            assert consumer.lag() == 2
            assert 4.9 < consumer.lag_seconds() < 60
            take(consumer, 1)
            assert consumer.lag() == 1
            assert consumer.lag_seconds() < 4.9
            take(consumer, 1)
            assert consumer.lag() == 0
            assert consumer.lag_seconds() == 0.0
            metrics = consumer.metrics()
            assert metrics["records-lag-max"] == 0
            assert metrics["records-consumed-total"] == 2
            assert metrics["bytes-consumed-total"] >= 6

    def test_t5_offsets_by_time(self, broker: Broker) -> None:
        topic = self.make(broker, records=8)
        with broker.producer(topic) as producer:
            offsets = [producer.send(b"", timestamp_ns=i * 10**9).result(WAIT) for i in range(100, 120)]
        with broker.consumer(topic) as consumer:
            assert consumer.offset_for_time(116.0) == offsets[16]
            assert consumer.offset_for_time(115.5) == offsets[16]
            assert consumer.offset_for_time(1.0) == broker.topic(topic).log_start
            assert consumer.offset_for_time(500.0) is None

    def test_t5_the_newest_keyframe_lies_ahead_or_is_none(self, broker: Broker) -> None:
        topic = self.make(broker, records=16)
        with broker.producer(topic) as producer, broker.consumer(topic, start="beginning") as consumer:
            assert consumer.newest_keyframe() is None
            offsets = [
                producer.send(b"%d" % i, flags=KEYFRAME if i % 5 == 0 else 0).result(WAIT) or 0 for i in range(13)
            ]
            assert consumer.newest_keyframe() == offsets[10]
            consumer.seek(offsets[10])
            assert consumer.newest_keyframe() == offsets[10]
            assert take(consumer, 1)[0].keyframe
            assert consumer.newest_keyframe() is None
            for _ in range(40):
                producer.send(b"delta").result(WAIT)
            consumer.seek_to_beginning()
            found = consumer.newest_keyframe()  # none is retained, or it is still there
            assert found is None or found >= consumer.beginning_offset()

    def test_t5_several_topics_are_read_fairly(self, broker: Broker) -> None:
        topics = [self.make(broker, f"topic{i}", records=256) for i in range(3)]
        for topic in topics:
            self.fill(broker, topic, 100 if topic == "topic0" else 5)
        with broker.consumer(topics, start="beginning") as consumer:
            assert consumer.topics == tuple(topics)
            records = [record for _ in range(11) for record in take(consumer, 10)]
            seen = {topic: [int(r.value) for r in records if r.topic == topic] for topic in topics}
            assert [len(numbers) for numbers in seen.values()] == [100, 5, 5]
            assert all(numbers == sorted(numbers) for numbers in seen.values())
            others = [at for at, record in enumerate(records) if record.topic != "topic0"]
            # The busy one starved nobody, once there was something of another (an engine may fetch one topic first).
            assert others[0] > 70 or others[-1] - others[0] < 30
            assert consumer.lag("topic0") == 0
            with pytest.raises(ConfigError, match="topic1"):
                consumer.position()
            with pytest.raises(ConfigError, match="elsewhere"):
                consumer.seek(0, "elsewhere")

    def test_t5_several_topics_wake_one_waiter(self, broker: Broker) -> None:
        topics = [self.make(broker, f"topic{i}") for i in range(4)]
        with broker.consumer(topics) as consumer:
            for topic in reversed(topics):
                waiting = Background(lambda: consumer.poll(WAIT))
                self.fill(broker, topic, 1)
                assert [record.topic for record in waiting.result()] == [topic]

    @pytest.mark.parametrize("topics", [[], ["topic", "topic"]], ids=str)
    def test_t5_no_topic_or_one_twice_is_refused(self, broker: Broker, topics: list[str]) -> None:
        self.make(broker)
        with pytest.raises(ConfigError):
            broker.consumer(topics)

    def test_t5_polling_for_nothing_is_refused(self, broker: Broker) -> None:
        topic = self.make(broker)
        with broker.consumer(topic) as consumer, pytest.raises(ConfigError, match="max_records"):
            consumer.poll(0, 0)

    def test_t5_views_say_when_they_no_longer_hold(self, broker: Broker) -> None:
        topic = self.make(broker, records=4, data_bytes=1 << 16)
        if self.absent(broker, "views", lambda: broker.consumer(topic, views=True)):
            return
        with broker.consumer(topic, start="beginning", views=True) as consumer:
            self.fill(broker, topic, 1, first=7)
            record = take(consumer, 1)[0]
            assert isinstance(record.value, memoryview)
            assert record.value.readonly
            assert bytes(record.value) == b"7"
            assert record.valid()
            self.fill(broker, topic, 20)
            assert not record.valid()

    def test_t5_views_of_typed_topics_are_arrays_nobody_writes_to(self, broker: Broker) -> None:
        topic = self.make(broker, records=4, dtype="<i4", shape=(3,))
        if self.absent(broker, "views", lambda: broker.consumer(topic, views=True)):
            return
        with broker.producer(topic) as producer, broker.consumer(topic, start="beginning", views=True) as consumer:
            producer.send(np.array([1, 2, 3], "<i4")).result(WAIT)
            record = take(consumer, 1)[0]
            assert record.value.tolist() == [1, 2, 3]
            assert not record.value.flags.writeable
            assert record.valid()
            for _ in range(10):
                producer.send(np.zeros(3, "<i4")).result(WAIT)
            assert not record.valid()

    def test_t5_views_of_a_pool_hold_as_long_as_they_are_held(self, broker: Broker) -> None:
        topic = self.make(broker, records=4, dtype="<i4", shape=(3,), layout="pool")
        assert broker.topic(topic).spec.layout == "pool"
        if self.absent(broker, "views", lambda: broker.consumer(topic, views=True)):
            return
        with broker.producer(topic) as producer, broker.consumer(topic, start="beginning", views=True) as consumer:
            producer.send(np.array([1, 2, 3], "<i4"), headers=[("a", b"b")], key=b"k").result(WAIT)
            record = take(consumer, 1)[0]
            for _ in range(20):
                producer.send(np.zeros(3, "<i4")).result(WAIT)
            assert record.valid()
            assert record.value.tolist() == [1, 2, 3] and not record.value.flags.writeable
            assert (record.key, record.headers) == (b"k", (("a", b"b"),))

    def test_t5_copies_stay_valid(self, broker: Broker) -> None:
        topic = self.make(broker, records=2)
        with broker.consumer(topic, start="beginning") as consumer:
            self.fill(broker, topic, 1, first=42)
            record = take(consumer, 1)[0]
            self.fill(broker, topic, 20)
            assert record.valid()
            assert record.value == b"42"

    # -- T10 -------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("group", [None, "g"])
    def test_t10_accounts_balance_at_every_instant(self, broker: Broker, group: str | None) -> None:
        topic = self.make(broker, records=16)
        with (
            broker.consumer(topic, group=group, start="beginning") as consumer,
            broker.producer(topic) as producer,
        ):
            done = threading.Event()
            checks = Background(lambda: self._watch(producer, consumer.account, done))
            worker = Background(lambda: self._write(producer))
            count = 0
            try:
                while True:
                    records = consumer.poll(WAIT, 5)
                    count += len(records)
                    if group is not None:
                        again = broker.capabilities.record_sharing and records and records[0].offset % 7 == 0
                        if again and not records[0].redelivered:
                            consumer.nack(records[0])
                            count -= 1
                        consumer.commit()
            except EndOfStream:
                pass
            worker.result()
            done.set()
            assert checks.result() > 0
            account = consumer.account()
            assert account.delivered == count
            assert account.delivered + account.dropped.get("lapped", 0) == 2000
            assert producer.account().delivered == 2000

    def _write(self, producer: Producer) -> None:
        for i in range(1000):
            producer.send(b"%d" % i, timeout=WAIT)
        for _ in range(100):
            producer.send_many([b"x"] * 10, timeout=WAIT)
        producer.end()

    def _watch(self, producer: Producer, account: object, done: threading.Event) -> int:
        assert callable(account)
        checked = 0
        while not done.is_set():
            for snapshot in (account(), producer.account()):
                assert snapshot.balanced, snapshot
                assert min(snapshot.received, snapshot.delivered, snapshot.held_total) >= 0
            checked += 1
            done.wait(0.001)
        return checked + 1
