"""T4: groups. Everything from their start, at least once; shared among members; held until acknowledged; gating."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from comux.dead_letters import dead_letter_topic
from comux.errors import ConfigError, EndOfStream, StaleLeaseError, TopicBusyError, UnsupportedError, WaitTimeoutError
from comux.records import KEYFRAME, Record
from comux.transport import Broker, Consumer, TopicSpec

from .transport_base import WAIT, Background, ContractBase, eventually, linger, take, values


class SharingContract(ContractBase):
    """Groups, acknowledgement, redelivery, start, back-pressure."""

    # -- where a group begins --------------------------------------------------------------------------------------

    def test_t4_a_group_sees_everything_from_its_start(self, broker: Broker) -> None:
        topic = self.make(broker)
        with broker.consumer(topic, group="g", start="beginning") as consumer:
            offsets = self.fill(broker, topic, 50)
            assert [record.offset for record in take(consumer, 50)] == offsets
            consumer.commit()
            assert consumer.committed() == offsets[-1] + 1
            assert consumer.poll(0) == []

    def test_t4_a_group_goes_on_after_all_its_handles_closed(self, broker: Broker, place: Path) -> None:
        topic = self.make(broker)
        self.fill(broker, topic, 10)
        with self.make_broker(place) as other:
            with other.consumer(topic, group="g", start="beginning") as consumer:
                assert values(take(consumer, 4)) == [b"0", b"1", b"2", b"3"]
                consumer.commit()
                position = consumer.committed()
                assert values(take(consumer, 2)) == [b"4", b"5"]  # handed out, never acknowledged
            listed = {group.name: group for group in other.groups(topic)}
            assert listed["g"].committed == position
        with broker.consumer(topic, group="g", start="end") as consumer:  # start is for new groups only
            assert consumer.committed() == position
            records = take(consumer, 6)
        assert values(records) == [b"4", b"5", b"6", b"7", b"8", b"9"]

    def test_t4_every_group_gets_every_record(self, broker: Broker) -> None:
        topic = self.make(broker)
        with (
            broker.consumer(topic, group="a", start="beginning") as a,
            broker.consumer(topic, group="b", start="beginning") as b,
            broker.consumer(topic, start="beginning") as lossy,
        ):
            self.fill(broker, topic, 20)
            expected = [b"%d" % i for i in range(20)]
            assert values(take(a, 20)) == values(take(b, 20)) == values(take(lossy, 20)) == expected
        assert {group.name for group in broker.groups(topic)} == {"a", "b"}

    @pytest.mark.parametrize("group", [None, "g"])
    @pytest.mark.parametrize(
        "start,expected",
        [
            ("beginning", 0),
            ("end", None),
            ("keyframe", 6),
            (104.5, 5),
            (999.0, None),
            (lambda record: record.value == b"3", 3),
            (lambda record: False, None),
        ],
        ids=["beginning", "end", "keyframe", "time", "future", "predicate", "never"],
    )
    def test_t4_start_forms(self, broker: Broker, group: str | None, start: Any, expected: int | None) -> None:
        topic = self.make(broker)
        with broker.producer(topic) as producer:
            for i in range(10):
                flags = KEYFRAME if i in (2, 6) else 0
                producer.send(b"%d" % i, timestamp_ns=(100 + i) * 10**9, flags=flags).result(WAIT)
            with broker.consumer(topic, group=group, start=start) as consumer:
                producer.send(b"later", timestamp_ns=200 * 10**9).result(WAIT)
                record = take(consumer, 1)[0]
                assert record.value == (b"later" if expected is None else b"%d" % expected)
                assert record.skipped == 0

    def test_t4_start_at_an_offset(self, broker: Broker) -> None:
        topic = self.make(broker)
        offsets = self.fill(broker, topic, 10)
        for group in (None, "g"):
            with broker.consumer(topic, group=group, start=offsets[7]) as consumer:
                assert consumer.position() == offsets[7]
                assert [record.offset for record in take(consumer, 3)] == offsets[7:]

    def test_t4_a_start_that_is_gone_is_counted(self, broker: Broker) -> None:
        topic = self.make(broker, records=8)
        offsets = self.fill(broker, topic, 30)
        gone = broker.topic(topic).log_start - offsets[0]
        with broker.consumer(topic, start=offsets[0]) as consumer:
            assert take(consumer, 1)[0].skipped == gone
        with broker.consumer(topic, group="g", start=offsets[0]) as consumer:
            assert take(consumer, 1)[0].offset == offsets[gone]
        if broker.capabilities.gating:
            assert broker.groups(topic)[0].lost == gone
            with pytest.raises(ConfigError, match="start"):
                broker.consumer(topic, group="future", start=offsets[-1] + 100)

    def test_t4_keyframe_start_without_a_keyframe_is_the_end(self, broker: Broker) -> None:
        topic = self.make(broker)
        self.fill(broker, topic, 3)
        with broker.consumer(topic, start="keyframe") as consumer:
            assert consumer.lag() == 0
            self.fill(broker, topic, 1, first=99)
            assert values(take(consumer, 1)) == [b"99"]

    @pytest.mark.parametrize("start", ["middle", -1, True, None, b"end", float("nan")], ids=str)
    def test_t4_an_unknown_start_is_refused(self, broker: Broker, start: Any) -> None:
        topic = self.make(broker)
        with pytest.raises(ConfigError, match="start"):
            broker.consumer(topic, start=start)

    # -- acknowledging ---------------------------------------------------------------------------------------------

    def test_t4_acknowledging_one_by_one_in_any_order(self, broker: Broker) -> None:
        topic = self.make(broker)
        offsets = self.fill(broker, topic, 4)
        with broker.consumer(topic, group="g", start="beginning") as consumer:
            records = take(consumer, 4)
            assert consumer.account().held_total == 4
            consumer.ack(records[2])
            consumer.ack(records[0])
            assert consumer.account().delivered == 2
            with pytest.raises(StaleLeaseError, match=str(offsets[0])):
                consumer.ack(records[0])
            assert consumer.committed() == offsets[1]
            consumer.ack(records[1])
            assert consumer.committed() == offsets[3]
            consumer.commit()
            assert consumer.committed() == offsets[3] + 1
            consumer.commit()
            assert consumer.account().held_total == 0

    def test_t4_what_was_given_back_comes_again(self, broker: Broker) -> None:
        topic = self.make(broker)
        self.fill(broker, topic, 3)
        with broker.consumer(topic, group="g", start="beginning") as consumer:
            first = take(consumer, 3)
            if self.absent(broker, "record_sharing", lambda: consumer.nack(first[1])):
                return
            assert not any(record.redelivered for record in first)
            assert {record.delivery_count for record in first} == {1}
            consumer.nack(first[1])
            with pytest.raises(StaleLeaseError):
                consumer.ack(first[1])
            again = take(consumer, 1)[0]
            assert (again.value, again.offset) == (b"1", first[1].offset)
            assert again.redelivered
            assert again.delivery_count == 2
            consumer.commit()
            assert consumer.poll(0) == []
            assert consumer.account().balanced

    def test_t4_members_share_record_by_record(self, broker: Broker) -> None:
        topic = self.make(broker, records=512)
        if not broker.capabilities.record_sharing:
            return  # its absence is proved by test_t4_what_was_given_back_comes_again
        with (
            broker.consumer(topic, group="g", start="beginning") as a,
            broker.consumer(topic, group="g", start="beginning") as b,
        ):
            threads = [Background(lambda m=member: self._work(m)) for member in (a, b)]  # type: ignore[misc]
            with broker.producer(topic) as producer:
                for i in range(300):
                    producer.send(b"%d" % i).result(WAIT)
                producer.end()
            shares = [thread.result() for thread in threads]
            assert sorted(shares[0] + shares[1]) == list(range(300))
            assert a.account().balanced
            assert b.account().balanced
            assert a.account().delivered + b.account().delivered == 300

    def _work(self, member: Consumer) -> list[int]:
        out: list[int] = []
        for record in member:
            out.append(int(record.value))
            member.ack(record)
        return out

    def test_t4_a_closing_members_records_go_to_another(self, broker: Broker) -> None:
        topic = self.make(broker)
        if not broker.capabilities.record_sharing:
            return
        self.fill(broker, topic, 6)
        with broker.consumer(topic, group="g", start="beginning") as stays:
            with broker.consumer(topic, group="g", start="beginning") as leaves:
                records = take(leaves, 4)
                leaves.ack(records[0])
                assert leaves.account().balanced
            account = leaves.account()
            assert account.balanced
            assert account.held_total == 0
            got = take(stays, 5)
            assert sorted(int(record.value) for record in got) == [1, 2, 3, 4, 5]
            assert {int(r.value): r.redelivered for r in got} == {1: True, 2: True, 3: True, 4: False, 5: False}

    def test_t4_a_waiting_member_gets_what_a_closing_one_gives_back(self, broker: Broker) -> None:
        topic = self.make(broker)
        if not broker.capabilities.record_sharing:
            return
        self.fill(broker, topic, 1)
        with broker.consumer(topic, group="g", start="beginning") as stays:
            with broker.consumer(topic, group="g", start="beginning") as leaves:
                take(leaves, 1)
                waiting = Background(lambda: stays.poll(WAIT))
                linger()
            records = waiting.result()
            assert values(records) == [b"0"]
            assert records[0].redelivered

    def test_t4_the_end_comes_to_a_member_only_when_nothing_can_come_back(self, broker: Broker) -> None:
        topic = self.make(broker)
        if not broker.capabilities.record_sharing:
            return
        with broker.producer(topic) as producer:
            producer.send(b"only").result(WAIT)
            producer.end()
        with broker.consumer(topic, group="g", start="beginning") as idle:
            with broker.consumer(topic, group="g", start="beginning") as busy:
                take(busy, 1)
                assert idle.poll(0) == []  # the other one may still give it back
                assert not idle.ended()
            assert values(take(idle, 1)) == [b"only"]
            with pytest.raises(EndOfStream):  # held by itself: nothing can come back
                idle.poll(WAIT)
            idle.commit()
            assert idle.ended()

    def test_t4_acknowledging_without_a_group_is_refused(self, broker: Broker) -> None:
        topic = self.make(broker)
        self.fill(broker, topic, 1)
        with broker.consumer(topic, start="beginning") as consumer:
            record = take(consumer, 1)[0]
            assert consumer.committed() is None
            for call in (consumer.commit, lambda: consumer.ack(record)):
                with pytest.raises(ConfigError, match="group"):
                    call()

    def test_t4_groups_can_be_listed_and_deleted(self, broker: Broker) -> None:
        topic = self.make(broker)
        offsets = self.fill(broker, topic, 5)
        with broker.consumer(topic, group="g", start="beginning") as consumer:
            take(consumer, 2)
            consumer.commit()
            group = broker.groups(topic)[0]
            assert (group.name, group.topic, group.members) == ("g", topic, 1)
            assert group.committed == offsets[2]
            assert group.lag == 3
            with pytest.raises(TopicBusyError, match="g"):
                broker.delete_group(topic, "g")
        broker.delete_group(topic, "g")
        assert broker.groups(topic) == []
        with broker.consumer(topic, group="g", start="beginning") as consumer:
            assert values(take(consumer, 1)) == [b"0"]
        with pytest.raises(ConfigError, match="other"):
            broker.delete_group(topic, "other")

    # -- dead letters ----------------------------------------------------------------------------------------------

    def test_t4_a_record_that_is_never_acknowledged_becomes_a_dead_letter(self, broker: Broker) -> None:
        topic = self.make(broker)
        if self.absent(broker, "dead_letters", lambda: broker.consumer(topic, group="g", max_deliveries=2)):
            broker.consumer(topic, group="g", max_deliveries=0).close()  # for ever, which is what it does
            return
        with broker.producer(topic) as producer:
            producer.send(b"poison", key=b"k", headers=[("h", b"1"), ("h", None)], flags=KEYFRAME, timestamp_ns=7)
        with broker.consumer(topic, group="g", start="beginning", max_deliveries=2) as consumer:
            for count in (1, 2):
                record = take(consumer, 1)[0]
                assert record.delivery_count == count
                consumer.nack(record)
            self.fill(broker, topic, 1)
            assert values(take(consumer, 1)) == [b"0"]
            consumer.commit()
            account = consumer.account()
            assert account.balanced
            assert (account.delivered, account.dropped) == (1, {"returned": 2, "dead_letter": 1})
        group = broker.groups(topic)[0]
        assert (group.committed, group.dead_letters, group.max_deliveries) == (record.offset + 2, 1, 2)
        with broker.consumer(dead_letter_topic(topic, "g"), start="beginning") as consumer:
            letter = take(consumer, 1)[0]
            assert consumer.poll(0) == []
        assert (letter.value, letter.key, letter.timestamp_ns, letter.keyframe) == (b"poison", b"k", 7, True)
        assert letter.headers[:2] == (("h", b"1"), ("h", None))
        assert json.loads(letter.header("comux-dead-source") or b"") == [topic, 0, record.offset]
        assert letter.header("comux-dead-group") == b"g"
        assert letter.header("comux-dead-deliveries") == b"2"
        assert b"never acknowledged" in (letter.header("comux-dead-reason") or b"")

    def test_t4_how_often_a_record_comes_is_the_topics_unless_the_group_says(self, broker: Broker) -> None:
        topic = self.make(broker, max_deliveries=1)
        if not broker.capabilities.dead_letters:
            return
        assert broker.topic(topic).spec.max_deliveries == 1
        self.fill(broker, topic, 2)
        with (
            broker.consumer(topic, group="usual", start="beginning") as usual,
            broker.consumer(topic, group="more", start="beginning", max_deliveries=0) as more,
        ):
            for consumer in (usual, more):
                consumer.nack(take(consumer, 1)[0])
            assert values(take(usual, 1)) == [b"1"]
            assert sorted(map(int, values(take(more, 2)))) == [0, 1]
        for wrong in (-1, True, 10**6):
            with pytest.raises(ConfigError, match="max_deliveries"):
                broker.consumer(topic, group="usual", max_deliveries=wrong)
        with pytest.raises(ConfigError, match="max_deliveries"):
            broker.consumer(topic, max_deliveries=3)

    def test_t4_a_dead_letter_without_room_stays_in_its_group(self, broker: Broker) -> None:
        topic = self.make(broker, max_deliveries=1)
        if not broker.capabilities.dead_letters:
            return
        self.make(broker, name=dead_letter_topic(topic, "g"), records=1)
        self.fill(broker, dead_letter_topic(topic, "g"), 1, first=99)
        with (
            broker.consumer(dead_letter_topic(topic, "g"), group="reader", start="beginning") as reader,
            broker.consumer(topic, group="g", start="beginning") as consumer,
        ):
            self.fill(broker, topic, 1)
            consumer.nack(take(consumer, 1)[0])
            with pytest.raises(WaitTimeoutError, match="dead"):
                consumer.poll(0)
            assert values(take(reader, 1)) == [b"99"]
            reader.commit()
            assert consumer.poll(0) == []
            assert values(take(reader, 1)) == [b"0"]
            assert consumer.account().balanced

    # -- members that hang -----------------------------------------------------------------------------------------

    def test_t4_what_a_member_holds_too_long_is_named_and_claimed(self, broker: Broker) -> None:
        topic = self.make(broker)
        if self.absent(broker, "record_sharing", lambda: broker.claim_stale(topic, "g", 1.0)):
            return
        self.fill(broker, topic, 3)
        with (
            broker.consumer(topic, group="g", start="beginning", name="slow", views=True) as slow,
            broker.consumer(topic, group="g") as quick,
        ):
            records = take(slow, 3)
            slow.ack(records[2])
            (holder,) = broker.groups(topic)[0].holders
            assert (holder.name, holder.pid, holder.held, holder.oldest) == ("slow", os.getpid(), 2, records[0].offset)
            assert broker.claim_stale(topic, "g", 3600.0) == []
            eventually(lambda: broker.groups(topic)[0].holders[0].held_s > 0.02)
            claimed = broker.claim_stale(topic, "g", 0.01)
            assert [one.offset for one in claimed] == [record.offset for record in records[:2]]
            assert all((one.name, one.pid) == ("slow", os.getpid()) and one.held_s >= 0.01 for one in claimed)
            assert broker.groups(topic)[0].holders == ()
            again = take(quick, 2)
            assert all(record.redelivered for record in again)
            with pytest.raises(StaleLeaseError):
                slow.ack(records[0])
            self.fill(broker, topic, 1, first=3)
            quick.commit()
            for record in slow.poll(0) or take(quick, 1):
                assert record.value == b"3"
            with pytest.raises(StaleLeaseError):
                slow.commit()  # the other one, after everything else
            slow.commit()
            quick.commit()
            for consumer in (slow, quick):
                assert consumer.account().balanced
                assert consumer.account().held_total == 0
            assert slow.account().dropped == {"claimed": 2}
            assert broker.groups(topic)[0].lag == 0
        with pytest.raises(ConfigError, match="nobody"):
            broker.claim_stale(topic, "nobody", 1.0)
        with pytest.raises(ConfigError, match="min_idle"):
            broker.claim_stale(topic, "g", -1.0)

    # -- paused for everybody ---------------------------------------------------------------------------------------

    def test_t8_a_paused_topic_takes_nothing_until_it_is_resumed(self, broker: Broker) -> None:
        topic = self.make(broker)
        if self.absent(broker, "pausing", lambda: broker.pause(topic)):
            return
        self.fill(broker, topic, 2)
        assert not broker.topic(topic).paused
        with broker.producer(topic) as producer, broker.consumer(topic, start="beginning") as consumer:
            broker.pause(topic)
            broker.pause(topic)
            assert broker.topic(topic).paused
            with pytest.raises(WaitTimeoutError, match="paused"):
                producer.send(b"no", timeout=0)
            with pytest.raises(WaitTimeoutError, match="paused"):
                producer.send(b"no", timeout=0.05)
            assert values(take(consumer, 2)) == [b"0", b"1"]
            waiting = Background(lambda: producer.send(b"2", timeout=WAIT).result(WAIT))
            linger()
            broker.resume(topic)
            assert waiting.result() is not None
            broker.resume(topic)
            assert not broker.topic(topic).paused
            assert values(take(consumer, 1)) == [b"2"]
            assert producer.account().balanced

    @pytest.mark.parametrize("policy", ["drop_newest", "drop_oldest"])
    @pytest.mark.parametrize("writers", ["one", "many"])
    def test_t8_where_a_paused_topic_drops_it_counts(self, broker: Broker, policy: Any, writers: Any) -> None:
        if not broker.capabilities.pausing:
            return
        topic = self.make(broker, policy=policy, writers=writers)
        with broker.producer(topic) as producer:
            assert producer.send(b"0").result(0) is not None
            broker.pause(topic)
            assert [producer.send(b"no").result(0) for _ in range(3)] == [None] * 3
            assert producer.claim(4) is None
            broker.resume(topic)
            assert producer.send(b"1").result(0) is not None
            account = producer.account()
            assert account.balanced
            assert (account.delivered, account.dropped) == (2, {"drop_newest": 4})

    def test_t8_a_paused_group_is_handed_nothing_until_it_is_resumed(self, broker: Broker) -> None:
        topic = self.make(broker)
        if not broker.capabilities.pausing:
            return
        self.fill(broker, topic, 4)
        with (
            broker.consumer(topic, group="g", start="beginning") as a,
            broker.consumer(topic, group="g") as b,
            broker.consumer(topic, group="other", start="beginning") as other,
        ):
            first = take(a, 1)[0]  # and it may have fetched more than it handed out
            broker.pause(topic, "g")
            assert {info.name: info.paused for info in broker.groups(topic)} == {"g": True, "other": False}
            assert a.poll(0, 10) == b.poll(0, 10) == []
            a.ack(first)
            assert values(take(other, 4)) == [b"0", b"1", b"2", b"3"]
            waiting = Background(lambda: b.poll(WAIT))
            linger()
            self.fill(broker, topic, 1, first=4)
            assert a.poll(0.05) == []
            broker.resume(topic, "g")
            got = waiting.result()
            while len(got) < 4:
                got += a.poll(0) or b.poll(0)
            assert sorted(map(int, values(got))) == [1, 2, 3, 4]
        with pytest.raises(ConfigError, match="nobody"):
            broker.pause(topic, "nobody")

    # -- gating ----------------------------------------------------------------------------------------------------

    def test_t4_a_full_topic_makes_the_writer_wait_for_its_groups(self, broker: Broker) -> None:
        if not broker.capabilities.gating:
            return  # its absence is proved by the tests of drop_oldest and drop_newest
        topic = self.make(broker, records=4)
        with broker.consumer(topic, group="g", start="beginning") as consumer, broker.producer(topic) as producer:
            for i in range(4):
                producer.send(b"%d" % i, timeout=WAIT)
            with pytest.raises(WaitTimeoutError, match="topic") as caught:
                producer.send(b"no", timeout=0)
            assert caught.value.retriable
            began = time.monotonic()
            with pytest.raises(WaitTimeoutError):
                producer.send(b"no", timeout=0.1)
            assert time.monotonic() - began >= 0.09
            assert values(take(consumer, 4)) == [b"0", b"1", b"2", b"3"]
            with pytest.raises(WaitTimeoutError):  # handed out is not finished
                producer.send(b"no", timeout=0)
            waiting = Background(lambda: producer.send(b"4", timeout=WAIT).result(WAIT))
            linger()
            consumer.commit()
            assert waiting.result() is not None
            assert values(take(consumer, 1)) == [b"4"]
            account = producer.account()
            assert account.balanced
            assert account.delivered == 5

    def test_t4_drop_newest_is_counted(self, broker: Broker) -> None:
        spec = TopicSpec("topic", records=4, policy="drop_newest")
        if self.absent(broker, "gating", lambda: broker.create_topic(spec)):
            return
        broker.create_topic(spec)
        with (
            broker.consumer("topic", group="g", start="beginning") as consumer,
            broker.producer("topic") as producer,
        ):
            fates = [producer.send(b"%d" % i).result(0) for i in range(10)]
            assert [fate is None for fate in fates] == [False] * 4 + [True] * 6
            assert producer.claim(10) is None
            account = producer.account()
            assert account.balanced
            assert (account.received, account.delivered, account.dropped["drop_newest"]) == (11, 4, 7)
            assert values(take(consumer, 4)) == [b"0", b"1", b"2", b"3"]
            consumer.commit()
            assert producer.send(b"fits").result(0) == (fates[3] or 0) + 1

    def test_t4_drop_oldest_is_counted(self, broker: Broker) -> None:
        spec = TopicSpec("topic", records=4, policy="drop_oldest")
        if self.absent(broker, "gating", lambda: broker.create_topic(spec)):
            return
        broker.create_topic(spec)
        with (
            broker.consumer("topic", group="g", start="beginning") as consumer,
            broker.producer("topic") as producer,
        ):
            fates = [producer.send(b"%d" % i, timeout=WAIT).result(WAIT) for i in range(10)]
            assert None not in fates
            assert broker.groups("topic")[0].lost == 6
            assert values(take(consumer, 4)) == [b"6", b"7", b"8", b"9"]
            consumer.commit()
            assert producer.account().delivered == 10
            assert consumer.account().delivered == 4

    def test_t4_an_abandoned_group_stops_gating_after_its_grace(self, broker: Broker) -> None:
        if not broker.capabilities.gating:
            return
        topic = self.make(broker, records=4, group_grace=0.2)
        broker.consumer(topic, group="gone", start="beginning").close()
        with broker.producer(topic) as producer:
            for i in range(12):
                producer.send(b"%d" % i, timeout=WAIT)
            eventually(lambda: broker.groups(topic)[0].suspended)
        assert broker.groups(topic)[0].lost >= 8 - 1
        with broker.consumer(topic, group="gone") as back:
            assert not broker.groups(topic)[0].suspended
            got = take(back, 4)
            assert values(got)[-1] == b"11"

    def test_t4_a_durable_group_gates_with_nobody_there(self, broker: Broker) -> None:
        if not broker.capabilities.gating:
            return
        topic = self.make(broker, records=4, group_grace=0.05)
        broker.consumer(topic, group="kept", start="beginning", durable=True).close()
        with broker.producer(topic) as producer:
            for i in range(4):
                producer.send(b"%d" % i, timeout=WAIT)
            with pytest.raises(WaitTimeoutError, match="kept"):
                producer.send(b"no", timeout=0.3)
        group = broker.groups(topic)[0]
        assert group.durable
        assert not group.suspended
        with broker.consumer(topic, group="kept") as back:
            assert values(take(back, 4)) == [b"0", b"1", b"2", b"3"]

    def test_t4_one_writer_excludes_a_second(self, broker: Broker) -> None:
        if not broker.capabilities.gating:
            return
        topic = self.make(broker, writers="one", records=8)
        with broker.producer(topic) as first:
            with pytest.raises(TopicBusyError, match=topic) as caught:
                broker.producer(topic)
            assert caught.value.retriable
            first.send(b"1").result(WAIT)
        self.fill(broker, topic, 1, first=2)
        with broker.consumer(topic, start="beginning") as consumer:
            assert values(take(consumer, 2)) == [b"1", b"2"]

    # -- T8 --------------------------------------------------------------------------------------------------------

    def test_t8_members_that_share_have_no_position(self, broker: Broker) -> None:
        topic = self.make(broker)
        if not broker.capabilities.record_sharing:
            return
        offsets = self.fill(broker, topic, 4)
        with broker.consumer(topic, group="g", start="beginning") as a:
            assert a.position() == offsets[0]
            with broker.consumer(topic, group="g") as b:
                for call in (
                    a.position,
                    b.position,
                    lambda: a.seek(0),
                    a.seek_to_end,
                    a.seek_to_beginning,
                ):
                    with pytest.raises(UnsupportedError, match="record_sharing"):
                        call()
                assert a.lag() == 4
                records: list[Record] = take(b, 4)
                assert len(records) == 4
