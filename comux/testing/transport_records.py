"""T1 to T3: offsets and order, snapshots and claims, what comes back is what was sent."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from comux.errors import ComuxError, ConfigError, RecordTooLargeError, TopicExistsError, UnknownTopicError
from comux.records import KEYFRAME, Record
from comux.transport import Broker, Producer, TopicSpec

from .transport_base import WAIT, Background, ContractBase, take, values

POINT = np.dtype([("t", "<i8"), ("x", "<f4", (3,)), ("flag", "u1")])


class RecordsContract(ContractBase):
    """Offsets, snapshots, claims, contents, typed topics."""

    # -- T1 --------------------------------------------------------------------------------------------------------

    def test_t1_offsets_rise_and_keep_the_producers_order(self, broker: Broker) -> None:
        topic = self.make(broker)
        offsets = self.fill(broker, topic, 200)
        assert all(a < b for a, b in pairwise(offsets))
        if broker.capabilities.dense_offsets:
            assert offsets == list(range(offsets[0], offsets[0] + 200))
        with broker.consumer(topic, start="beginning") as consumer:
            records = take(consumer, 200)
        assert values(records) == [b"%d" % i for i in range(200)]
        assert [record.offset for record in records] == offsets
        assert all(record.topic == topic and record.partition == 0 for record in records)

    @pytest.mark.parametrize("first", [2**31 - 3, 2**32 - 3, 2**53 - 3])
    def test_t1_offsets_are_64_bits(self, broker: Broker, first: int) -> None:
        topic = self.make(broker, first_offset=first, records=16)
        offsets = self.fill(broker, topic, 40)
        assert offsets == sorted(set(offsets))
        info = broker.topic(topic)
        if info.log_start >= first:  # the engine can choose where offsets begin
            assert offsets == list(range(first, first + 40))
            assert info.high_water == first + 40
        with broker.consumer(topic, start=offsets[-3]) as consumer:
            assert [record.offset for record in take(consumer, 3)] == offsets[-3:]
            assert consumer.position() == offsets[-1] + 1

    def test_t1_each_of_several_producers_keeps_its_order(self, broker: Broker) -> None:
        topic = self.make(broker, records=1024)

        def work(tag: int) -> list[int | None]:
            with broker.producer(topic) as producer:
                return [f.result(WAIT) for f in [producer.send(b"%d:%d" % (tag, i)) for i in range(100)]]

        threads = [Background(lambda tag=tag: work(tag)) for tag in range(3)]  # type: ignore[misc]
        offsets = [thread.result() for thread in threads]
        assert len({offset for run in offsets for offset in run}) == 300
        with broker.consumer(topic, start="beginning") as consumer:
            records = take(consumer, 300)
        for tag in range(3):
            mine = [r.value for r in records if r.value.startswith(b"%d:" % tag)]
            assert mine == [b"%d:%d" % (tag, i) for i in range(100)]

    def test_t1_offsets_go_on_through_epochs(self, broker: Broker) -> None:
        topic = self.make(broker)
        seen: list[int] = []
        for _ in range(3):
            with broker.producer(topic) as producer:
                offset = producer.send(b"x").result(WAIT)
                assert offset is not None
                seen.append(offset)
                producer.end()
        assert seen == sorted(set(seen))
        with broker.consumer(topic, start="beginning", on_end="wait") as consumer:
            records = take(consumer, 3)
        assert [record.offset for record in records] == seen
        epochs = [record.epoch for record in records]
        assert epochs == [epochs[0], epochs[0] + 1, epochs[0] + 2]

    # -- T2 --------------------------------------------------------------------------------------------------------

    def test_t2_send_is_a_snapshot(self, broker: Broker) -> None:
        topic = self.make(broker)
        scratch = bytearray(b"before")
        with broker.producer(topic) as producer, broker.consumer(topic, start="beginning") as consumer:
            future = producer.send(scratch)
            scratch[:] = b"after!"
            future.result(WAIT)
            assert values(take(consumer, 1)) == [b"before"]

    def test_t2_a_claim_is_written_in_place_and_published_once(self, broker: Broker) -> None:
        topic = self.make(broker)
        with broker.producer(topic) as producer, broker.consumer(topic, start="beginning") as consumer:
            claim = producer.claim(8)
            assert claim is not None
            with claim:
                claim.buffer[:5] = b"hello"
                assert consumer.poll(0) == []
                offset = claim.commit(5, key=b"k", headers=(("h", b"v"),), timestamp_ns=7_000_000, flags=KEYFRAME)
            assert claim.offset == offset
            with pytest.raises(ComuxError):
                claim.commit()
            second = producer.claim(3)
            assert second is not None
            with second:
                second.array[:] = (1, 2, 3)
            records = take(consumer, 2)
            assert values(records) == [b"hello", b"\x01\x02\x03"]
            assert (records[0].key, records[0].headers, records[0].timestamp_ns) == (b"k", (("h", b"v"),), 7_000_000)
            assert records[0].keyframe and not records[1].keyframe
            assert records[0].offset == offset
            assert consumer.poll(0) == []

    def test_t2_a_claim_that_raises_publishes_nothing_and_holds_nobody_up(self, broker: Broker) -> None:
        topic = self.make(broker, records=8)
        with broker.producer(topic) as producer, broker.consumer(topic, start="beginning") as consumer:
            for i in range(20):  # more often than there is room: an abort gives its room back
                with pytest.raises(KeyError, match="mine"):
                    claim = producer.claim(100)
                    assert claim is not None
                    with claim:
                        claim.buffer[:4] = b"torn"
                        raise KeyError("mine")
                producer.send(b"%d" % i).result(WAIT)
                record = take(consumer, 1)[0]
                assert record.value == b"%d" % i
                assert record.skipped == 0
            account = producer.account()
            assert account.dropped["aborted"] == 20
            assert account.delivered == 20

    def test_t2_records_behind_an_open_claim_come_when_it_is_aborted(self, broker: Broker) -> None:
        topic = self.make(broker)
        with (
            broker.producer(topic) as slow,
            broker.producer(topic) as quick,
            broker.consumer(topic, start="beginning") as consumer,
        ):
            claim = slow.claim(10)
            assert claim is not None
            quick.send(b"behind").result(WAIT)
            claim.abort()
            assert values(take(consumer, 1)) == [b"behind"]

    def test_t2_a_claim_that_is_too_large_names_the_limit(self, broker: Broker) -> None:
        topic = self.make(broker, data_bytes=1 << 16)
        with broker.producer(topic) as producer, pytest.raises(RecordTooLargeError, match=r"\d{4,}"):
            producer.claim(1 << 24)

    # -- T3 --------------------------------------------------------------------------------------------------------

    def test_t3_none_and_empty_differ_everywhere(self, broker: Broker) -> None:
        topic = self.make(broker)
        sent: list[tuple[Any, bytes | None, tuple[tuple[str, bytes | None], ...]]] = [
            (None, None, ()),
            (b"", b"", (("", b""),)),
            (b"v", b"k", (("a", None), ("a", b""), ("b", b"1"), ("a", b"2"))),
            (b"\x00\xff" * 10, b"\x00", (("größe", b"\x00"),)),
        ]
        with broker.producer(topic) as producer:
            for value, key, headers in sent:
                producer.send(value, key=key, headers=headers).result(WAIT)
        with broker.consumer(topic, start="beginning") as consumer:
            records = take(consumer, len(sent))
        assert [(r.value, r.key, r.headers) for r in records] == sent
        assert records[2].header("a") is None
        assert records[2].header("b") == b"1"

    def test_t3_timestamp_and_flags_come_back(self, broker: Broker) -> None:
        topic = self.make(broker)
        unit = broker.capabilities.timestamp_resolution_ns
        stamp = 1_700_000_000_123_456_789 // unit * unit
        before = time.time_ns() // unit * unit
        with broker.producer(topic) as producer:
            producer.send(b"a", timestamp_ns=stamp, flags=KEYFRAME | 0x8100).result(WAIT)
            producer.send(b"b", timestamp_ns=0).result(WAIT)
            producer.send(b"c").result(WAIT)
        with broker.consumer(topic, start="beginning") as consumer:
            a, b, c = take(consumer, 3)
        assert (a.timestamp_ns, a.flags, a.keyframe) == (stamp, KEYFRAME | 0x8100, True)
        assert a.timestamp == pytest.approx(stamp / 1e9)
        assert (b.timestamp_ns, b.flags) == (0, 0)
        assert before <= c.timestamp_ns <= time.time_ns()

    @pytest.mark.parametrize(
        "value",
        [
            bytearray(b"abc"),
            memoryview(b"abc"),
            np.frombuffer(b"abc", np.uint8),
            np.arange(6, dtype="<i4").reshape(2, 3),
        ],
        ids=["bytearray", "memoryview", "uint8", "int32"],
    )
    def test_t3_any_buffer_may_be_sent(self, broker: Broker, value: Any) -> None:
        topic = self.make(broker)
        with broker.producer(topic) as producer:
            producer.send(value).result(WAIT)
        with broker.consumer(topic, start="beginning") as consumer:
            assert values(take(consumer, 1)) == [memoryview(value).tobytes()]

    @pytest.mark.parametrize("value", ["text", 5, np.zeros((4, 4))[:, ::2]], ids=["str", "int", "strided"])
    def test_t3_what_is_no_contiguous_buffer_is_refused(self, broker: Broker, value: Any) -> None:
        topic = self.make(broker)
        with broker.producer(topic) as producer:
            with pytest.raises((ConfigError, TypeError)):
                producer.send(value)
            producer.send(b"fine").result(WAIT)
        with broker.consumer(topic, start="beginning") as consumer:
            assert values(take(consumer, 1)) == [b"fine"]

    def test_t3_header_names_are_str_and_values_bytes(self, broker: Broker) -> None:
        topic = self.make(broker)
        bad: list[Any] = [[("x", 5)], [(b"x", b"y")]]
        with broker.producer(topic) as producer:
            for headers in bad:
                with pytest.raises(TypeError):
                    producer.send(b"", headers=headers)
        assert broker.topic(topic).high_water == broker.topic(topic).log_start

    def test_t3_a_huge_header_travels(self, broker: Broker) -> None:
        topic = self.make(broker)
        mask = bytes(range(256)) * 1200
        with broker.producer(topic) as producer:
            producer.send(b"v", headers=[("mask", mask), ("n", b"1")]).result(WAIT)
        with broker.consumer(topic, start="beginning") as consumer:
            assert take(consumer, 1)[0].headers == (("mask", mask), ("n", b"1"))

    def test_t3_a_record_larger_than_the_limit_is_refused_with_the_limit(self, broker: Broker) -> None:
        topic = self.make(broker, data_bytes=1 << 16)
        with broker.producer(topic) as producer:
            for value, headers in ((bytes(1 << 24), []), (b"", [("h", bytes(1 << 24))])):
                with pytest.raises(RecordTooLargeError, match=r"\d{4,}") as caught:
                    producer.send(value, headers=headers)
                assert not caught.value.retriable
            producer.send(b"small").result(WAIT)
            assert producer.account().balanced
        with broker.consumer(topic, start="beginning") as consumer:
            assert values(take(consumer, 1)) == [b"small"]

    @pytest.mark.parametrize("dtype,shape", [("<f4", ()), ("u1", (4, 6, 3)), (POINT, ()), (POINT, (5,))])
    def test_t3_typed_topics_hand_out_arrays(self, broker: Broker, dtype: Any, shape: tuple[int, ...]) -> None:
        topic = self.make(broker, dtype=dtype, shape=shape, records=16)
        rng = np.random.default_rng(7)
        kind = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        raw = [rng.integers(0, 100, count, np.uint8).tobytes() for _ in range(3)]
        arrays = [np.frombuffer(b, kind).reshape(shape) for b in raw]
        with broker.producer(topic) as producer, broker.consumer(topic, start="beginning") as consumer:
            producer.send(arrays[0]).result(WAIT)
            claim = producer.claim()
            assert claim is not None
            with claim:
                assert claim.array.dtype == kind
                assert claim.array.shape == shape
                claim.array[...] = arrays[1]
            producer.send_many(np.stack([arrays[2], arrays[0]]))
            records = take(consumer, 4)
        for record, expected in zip(records, [raw[0], raw[1], raw[2], raw[0]], strict=True):
            assert record.value.dtype == kind
            assert record.value.shape == shape
            assert record.value.tobytes() == expected
        info = broker.topic(topic)
        assert np.dtype(info.spec.dtype) == kind
        assert tuple(info.spec.shape) == shape

    def test_t3_arrays_handed_out_belong_to_the_caller(self, broker: Broker) -> None:
        topic = self.make(broker, dtype="<i4", shape=(4,), records=2)
        with broker.producer(topic) as producer, broker.consumer(topic, start="beginning") as consumer:
            producer.send(np.arange(4, dtype="<i4")).result(WAIT)
            array = take(consumer, 1)[0].value
            array += 1
            for _ in range(6):
                producer.send(np.zeros(4, "<i4")).result(WAIT)
            assert array.tolist() == [1, 2, 3, 4]

    @pytest.mark.parametrize(
        "value",
        [np.zeros(4, "<f8"), np.zeros((2, 2), "<f4"), np.zeros(3, "<f4"), b"\0" * 15, None],
        ids=["dtype", "dims", "length", "bytes", "none"],
    )
    def test_t3_another_dtype_or_shape_is_refused_with_both(self, broker: Broker, value: Any) -> None:
        topic = self.make(broker, dtype="<f4", shape=(4,))
        with broker.producer(topic) as producer:
            with pytest.raises(ConfigError, match=topic):
                producer.send(value)
            assert producer.account().balanced
        assert broker.topic(topic).high_water == broker.topic(topic).log_start

    def test_t3_bytes_of_the_right_length_are_an_array(self, broker: Broker) -> None:
        topic = self.make(broker, dtype="<i4", shape=(2,))
        with broker.producer(topic) as producer, broker.consumer(topic, start="beginning") as consumer:
            producer.send(np.array([5, 6], "<i4").tobytes()).result(WAIT)
            assert take(consumer, 1)[0].value.tolist() == [5, 6]

    def test_t3_send_many_of_variable_records(self, broker: Broker) -> None:
        topic = self.make(broker)
        unit = broker.capabilities.timestamp_resolution_ns
        with broker.producer(topic) as producer:
            first = producer.send_many([b"a", b"", bytearray(b"c")], timestamp_ns=5 * unit)
            assert producer.account().delivered == 3
        with broker.consumer(topic, start="beginning") as consumer:
            records = take(consumer, 3)
        assert values(records) == [b"a", b"", b"c"]
        assert records[0].offset == first
        assert all(record.timestamp_ns == 5 * unit for record in records)

    def test_t3_a_run_that_never_fits_is_refused(self, broker: Broker) -> None:
        topic = self.make(broker, records=8)
        if not broker.capabilities.gating:
            return
        with broker.producer(topic) as producer:
            with pytest.raises(RecordTooLargeError, match="8"):
                producer.send_many([b"x"] * 9)
            assert producer.send_many([]) == broker.topic(topic).high_water
            producer.send_many([b"x"] * 8)

    def test_t3_a_topic_keeps_its_settings(self, broker: Broker) -> None:
        metadata = {"codec": "h264", "width": 640, "nested": {"a": [1, 2]}}
        spec = TopicSpec("kept", records=64, metadata=metadata, policy="wait", writers="one")
        made = broker.create_topic(spec)
        assert made.log_start == made.high_water
        info = broker.topic("kept")
        assert dict(info.spec.metadata) == metadata
        assert info.spec.name == "kept"
        assert not info.ended
        assert broker.topics() == ["kept"]
        with pytest.raises(TopicExistsError, match="kept"):
            broker.create_topic(spec)
        assert broker.create_topic(spec, exist_ok=True).high_water == info.high_water
        with pytest.raises(TopicExistsError, match="float32"):
            broker.create_topic(TopicSpec("kept", dtype="f4"), exist_ok=True)

    @pytest.mark.parametrize(
        "settings",
        [
            {"name": ""},
            {"name": "a/b"},
            {"name": ".."},
            {"name": "x" * 101},
            {"records": 0},
            {"records": -5},
            {"data_bytes": 0},
            {"policy": "hope"},
            {"writers": "two"},
            {"end": "never"},
            {"dtype": "f4", "data_bytes": 1 << 20},
            {"name": ".hidden"},
            {"dtype": "O"},
            {"dtype": "no such type"},
            {"shape": (3,)},
            {"dtype": "f4", "shape": (0,)},
            {"dtype": "f4", "shape": (-1, 2)},
            {"first_offset": -1},
            {"group_grace": -1.0},
            {"metadata": {"x": {1}}},
        ],
        ids=str,
    )
    def test_t3_a_topic_that_cannot_be_is_refused_before_anything_is_made(
        self, broker: Broker, settings: dict[str, Any]
    ) -> None:
        with pytest.raises(ConfigError):
            broker.create_topic(TopicSpec(**{"name": "bad", **settings}))
        assert broker.topics() == []

    def test_t3_a_record_can_be_looked_up(self, broker: Broker) -> None:
        topic = self.make(broker, records=8)
        offsets = self.fill(broker, topic, 20)
        found = broker.record_at(topic, offsets[-1])
        assert isinstance(found, Record)
        assert (found.value, found.offset) == (b"19", offsets[-1])
        assert broker.record_at(topic, offsets[-1] + 1) is None
        if broker.topic(topic).log_start > offsets[0]:
            assert broker.record_at(topic, offsets[0]) is None
        with pytest.raises(UnknownTopicError):
            broker.record_at("nowhere", 0)

    def test_t3_an_observer_sees_the_newest(self, broker: Broker) -> None:
        topic = self.make(broker)
        if self.absent(broker, "observer_without_reading", lambda: broker.observer(topic)):
            return
        with broker.observer(topic) as observer:
            assert observer.latest() is None
            self.fill(broker, topic, 5)
            newest = observer.latest()
            assert newest is not None
            assert newest.value == b"4"
            again = observer.latest()
            assert again is not None
            assert again.offset == newest.offset

    def test_t3_send_futures_have_a_fate(self, broker: Broker) -> None:
        topic = self.make(broker)
        told: list[Any] = []
        with broker.producer(topic) as producer:
            assert isinstance(producer, Producer)
            future = producer.send(b"x")
            producer.flush(WAIT)
            assert future.done()
            assert future.exception(0) is None
            future.add_done_callback(lambda done: told.append(done.result(0)))
            assert told == [future.result(0)]
