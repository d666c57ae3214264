"""Limits over a real broker: sizes (each named with the value to set), bytes that wait, rates, a slow member."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from kafka.admin import ConfigResource, ConfigResourceType
from kafka_rooms import Room, with_both_libraries
from service_fixtures import until

from comux import Comux
from comux.errors import ConfigError, RecordTooLargeError
from comux.transport import TopicSpec, connect

TWO_MB = bytes(range(256)) * 8192


def _named_value(error: BaseException) -> int:
    """The value that a refusal says to set."""
    found = re.search(r"at least (\d+)", str(error))
    assert found is not None, error
    return int(found[1])


def _topic(there: Room, **config: str) -> None:
    with connect(there.address, topic_config=config) as broker:
        broker.create_topic(TopicSpec("raw_big"))


def _set_topic(there: Room, name: str, value: str) -> None:
    there.admin().alter_configs([ConfigResource(ConfigResourceType.TOPIC, there.full("raw_big"), {name: value})])


def _send_two_mb(there: Room, **options: Any) -> None:
    """Send a packet of 2 MB with headers and read it back."""
    with connect(there.address, **options) as broker, broker.producer("raw_big") as producer:
        offset = producer.send(TWO_MB, headers=[("note", b"x" * 5000)]).result(20)
        with broker.consumer("raw_big", start=offset) as consumer:
            (record,) = consumer.poll(20)
    assert (record.value, record.headers) == (TWO_MB, (("note", b"x" * 5000),))


@with_both_libraries
def test_two_megabytes_pass_where_the_limits_allow(there: Room) -> None:
    _topic(there, **{"max.message.bytes": "3000000"})
    _send_two_mb(there)
    _send_two_mb(there, max_request_size=3_000_000, queue_bytes=100_000)  # a record larger than the queue still passes


def test_the_topics_limit_is_named_with_the_value_to_set(there: Room) -> None:
    _topic(there, **{"max.message.bytes": "1000000"})
    with pytest.raises(RecordTooLargeError, match=r"max\.message\.bytes of topic") as refused:
        _send_two_mb(there)
    _set_topic(there, "max.message.bytes", str(_named_value(refused.value)))
    _send_two_mb(there)


def test_the_clients_limit_is_named_with_the_value_to_set(there: Room) -> None:
    _topic(there, **{"max.message.bytes": "3000000"})
    with pytest.raises(RecordTooLargeError, match="max_request_size") as refused:
        _send_two_mb(there, max_request_size=1_000_000)
    _send_two_mb(there, max_request_size=_named_value(refused.value))


def test_the_brokers_limit_is_named_with_the_value_to_set(there: Room) -> None:
    there.topic("raw_big")
    with there.broker.producer("raw_big") as producer:
        limit = there.broker._cluster.limit("raw_big")[0]  # type: ignore[attr-defined]
        with pytest.raises(RecordTooLargeError, match=r"broker's message\.max\.bytes") as refused:
            producer.send(bytes(limit))
    assert _named_value(refused.value) > limit


def test_headers_count_and_the_largest_record_that_is_allowed_passes(there: Room) -> None:
    _topic(there, **{"max.message.bytes": "100000"})
    with there.broker.producer("raw_big") as producer:
        assert producer.send(bytes(100_000 - 96)).result(20) == 0  # 96: what a batch of one record adds at most
        with pytest.raises(RecordTooLargeError) as refused:
            producer.send(bytes(90_000), headers=[("box", bytes(10_000))])
        assert _named_value(refused.value) == 90_000 + 96 + 6 + 3 + 10_000
        assert producer.send(bytes(90_000), headers=[("box", bytes(9_000))]).result(20) == 1


def test_a_compressed_record_is_refused_by_its_future(there: Room) -> None:
    _topic(there, **{"max.message.bytes": "100000"})
    noise = b"".join(i.to_bytes(4, "little") for i in ((i * 2654435761) % 2**32 for i in range(100_000)))
    with connect(there.address, compression_type="gzip") as broker, broker.producer("raw_big") as producer:
        assert producer.send(bytes(2_000_000)).result(20) == 0  # compressed it is small
        with pytest.raises(RecordTooLargeError, match=r"max\.message\.bytes"):
            producer.send(noise).result(20)


@with_both_libraries
@pytest.mark.parametrize("through", ["consumer", "source"])
def test_an_answer_that_cannot_be_received_is_named_at_connect(there: Room, through: str) -> None:
    _topic(there, **{"max.message.bytes": "3000000"})
    small = {"receive_message_max_bytes": 1_500_000, "fetch_max_bytes": 900_000, "max_partition_fetch_bytes": 500_000}
    with pytest.raises(ConfigError, match=r"3000000.*receive_message_max_bytes.*at least \d+") as refused:
        if through == "consumer":
            with connect(there.address, **small) as broker:
                broker.consumer("raw_big")
        else:
            with Comux(["big"], address=there.address, client_options=small):
                pass
    _send_two_mb(there, **{**small, "receive_message_max_bytes": _named_value(refused.value)})


# -- a slow reader -------------------------------------------------------------------------------------------------


@with_both_libraries
def test_what_a_slow_reader_leaves_is_bounded_and_slows_nobody(there: Room) -> None:
    queue, size, count = 200_000, 20_000, 500
    for topic in ("slow", "fast"):
        there.topic(topic)
        there.fill(topic, count, size)
    with (
        connect(there.address, queue_bytes=queue) as broker,
        broker.consumer("slow", start="beginning") as slow,
        broker.consumer("fast", start="beginning") as fast,
    ):
        (lane,) = slow._order  # type: ignore[attr-defined]
        until(lambda: lane.nbytes > queue, "the slow reader's queue is full")
        numbers: list[int] = []
        while len(numbers) < count:
            numbers += [int(record.value[:8]) for record in fast.poll(10, 50)]
            assert lane.nbytes <= 2 * queue + size, "more waits than the limit and one fetch"
        assert numbers == list(range(count))
        assert lane.nbytes > queue
        assert slow.lag() == count
        numbers = []
        while len(numbers) < count:
            numbers += [int(record.value[:8]) for record in slow.poll(10, 7)]
        assert numbers == list(range(count))


def test_a_slow_member_keeps_its_membership_longer_than_the_session_time_out(there: Room) -> None:
    there.topic("shared")
    there.fill("shared", 20)
    options = {"session_timeout_ms": 6000, "heartbeat_interval_ms": 1000, "max_poll_interval_ms": 6000}
    with (
        connect(there.address, **options) as broker,
        broker.consumer("shared", group="g", start="beginning") as consumer,
    ):
        (record,) = consumer.poll(20)
        decoding = time.monotonic() + 7.5
        until(lambda: there.broker.groups("shared")[0].members != 1 or time.monotonic() > decoding, "the decoder", 20)
        assert there.broker.groups("shared")[0].members == 1
        consumer.ack(record)
        assert [r.offset for r in consumer.poll(5, 100)] == list(range(1, 20))
        consumer.commit()
        assert there.broker.groups("shared")[0].committed == 20


def test_a_join_that_outlasts_a_poll_is_seen_to_the_end(there: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comux.transport.kafka_poller._POLL_MS", 1)
    for number in range(3):
        there.topic(f"t{number}")
        there.fill(f"t{number}", 1)
        with there.broker.consumer(f"t{number}", group="g", start="beginning") as consumer:
            assert len(consumer.poll(20)) == 1


# -- rates ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [{"records_per_second": 100.0}, {"bytes_per_second": 100_000.0}])
def test_a_rate_is_kept(there: Room, limit: dict[str, float]) -> None:
    """1,000 bytes a record, so both limits are 100 records a second, of which one second may have been saved up."""
    there.topic("raw")
    there.fill("raw", 400, 1000)
    with connect(there.address, **limit) as broker, broker.consumer("raw", start="beginning") as consumer:
        begin = time.monotonic()
        at: list[float] = []
        while len(at) < 300:
            at += [time.monotonic() - begin for _ in consumer.poll(10, 400)]
        assert at[299] >= 1.0, f"300 records at 100 a second in {at[299]:.2f} s"
        assert at[299] <= 20, f"300 records at 100 a second in {at[299]:.2f} s"
        assert consumer.lag() <= 100
