"""Dead letters: a record that kills its consumer each time ends in the dead-letter topic, and the group goes on."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comux import ring
from comux.dead_letters import MAX_DELIVERIES, dead_letter_topic
from comux.errors import ConfigError, NoSpaceError, StaleLeaseError, WaitTimeoutError
from comux.records import KEYFRAME, Record
from comux.testing.ring_faults import Job, VictimServer, payload, read_journal, read_payload

SIZE = 64
LETTERS = "t.dead.g"


def make(place: Path, **settings: Any) -> ring.Ring:
    shape = {} if "dtype" in settings else {"data_bytes": 65536}
    return ring.create(ring.RingSpec("t", slots=8, **{**shape, **settings}), directory=place)


def letters(place: Path, name: str = LETTERS) -> list[Record]:
    if name not in ring.names(place):
        return []
    with ring.attach(name, directory=place) as topic, topic.reader(start="beginning") as reader:
        assert topic.check() == []
        return reader.copy_many(100, 0)


def give_back(member: ring.Member, times: int) -> None:
    """The next record, ``times`` times."""
    for _ in range(times):
        lease = member.take(0)
        assert lease is not None
        lease.nack()


def group(topic: ring.Ring, name: str = "g") -> ring.GroupInfo:
    return next(g for g in topic.groups() if g.name == name)


@pytest.mark.core
def test_a_record_that_kills_its_consumer_each_time_becomes_a_dead_letter(
    ring_dir: Path, victims: VictimServer
) -> None:
    """Real processes, killed over the record; the others are acknowledged once each, none is lost."""
    with make(ring_dir) as topic:
        topic.member("g", start="beginning", durable=True).close()
        with topic.producer() as producer:
            for seq in range(6):
                producer.put(payload(seq, SIZE), key=b"k", headers=[("h", b"1"), ("h", None)], flags=KEYFRAME)
        deaths = 0
        journal = ring_dir / "journal"
        while True:
            death = victims.run(Job("poison", "t", str(ring_dir), str(journal), options={"poison": 3}))
            if death.signal != signal.SIGKILL:
                break
            deaths += 1
        assert (deaths, death.code) == (MAX_DELIVERIES, 0), read_journal(journal)[-3:]
        acked = [int(words[0]) for what, words in read_journal(journal) if what == "acked"]
        assert sorted(acked) == [0, 1, 2, 4, 5]
        info = group(topic)
        assert (info.done, info.dead_letters, info.lost, info.max_deliveries) == (6, 1, 0, 5)
        assert topic.check() == []
        (letter,) = letters(ring_dir)
        original = topic.record_at(3)
        assert original is not None
        assert (letter.value, letter.key, letter.timestamp_ns) == (original.value, b"k", original.timestamp_ns)
        assert letter.headers[:2] == original.headers and letter.keyframe
        assert json.loads(letter.header("comux-dead-source") or b"") == ["t", 0, 3]
        assert letter.header("comux-dead-group") == b"g"
        assert letter.header("comux-dead-deliveries") == b"5"
        assert letter.header("comux-dead-reason") == b"delivered 5 times and never acknowledged"


STEPS = (
    "start.after_word",
    "take.red",
    "take.spent",
    "create.before_link",
    "port.after_state",
    "claim.after_head",
    "put.filling",
    "commit.after_word",
    "commit.after_unlock",
    "port.before_free",
    "bury.copied",
    "lock.held",
    "bury.before_word",
    "bury.after_word",
    "bury.counted",
)


@pytest.mark.parametrize("step", STEPS)
def test_a_death_at_any_step_loses_no_dead_letter(step: str, ring_dir: Path, victims: VictimServer) -> None:
    """Where the letter's copier dies, the next one copies: at least once there, counted once, and the group goes on."""
    most = 2 if step == "start.after_word" else 1  # there it is the last delivery that dies
    with make(ring_dir, max_deliveries=most) as topic:
        with topic.member("g", start="beginning") as member:
            with topic.producer() as producer:
                for seq in range(3):
                    producer.put(payload(seq, SIZE))
            give_back(member, 1)
        job = Job("poison", "t", str(ring_dir), str(ring_dir / "journal"), step, options={"poison": -1})
        assert victims.run(job).signal == signal.SIGKILL
        with topic.member("g") as member:
            rest = []
            while (lease := member.take(0)) is not None:
                rest.append(read_payload(lease.bytes()))
                lease.ack()
            assert member.account().balanced
        assert rest == [1, 2]
        info = group(topic)
        assert (info.done, info.dead_letters, info.lost) == (3, 1, 0)
        found = [read_payload(letter.value) for letter in letters(ring_dir)]
        assert found in ([0], [0, 0])
        assert topic.check() == []


def test_giving_back_counts_and_neighbours_are_not_charged(ring_dir: Path) -> None:
    with make(ring_dir, max_deliveries=3) as topic, topic.member("g", start="beginning") as member:
        with topic.producer() as producer:
            producer.put(b"poison")
            give_back(member, 3)
            producer.put(b"fine")
        lease = member.take(0)
        assert (lease.bytes(), lease.delivery_count) == (b"fine", 1)
        lease.ack()
        assert member.take(0) is None
        account = member.account()
        assert account.balanced and account.dropped == {"returned": 3, "dead_letter": 1}
        assert [letter.value for letter in letters(ring_dir)] == [b"poison"]
        assert (group(topic).done, group(topic).delivered) == (2, 4)


def test_batches_and_waits_on_many_bury_too(ring_dir: Path) -> None:
    with make(ring_dir, dtype="<i4", shape=(2,), max_deliveries=1) as topic:
        with topic.producer() as producer:
            producer.put_many(np.arange(8, dtype="<i4").reshape(4, 2))
        member = topic.member("g", start="beginning")
        member.take_many(2, 0).nack()
        batch = member.take_many(4, 0)
        assert list(batch.offsets) == [2, 3]
        batch.nack()
        assert ring.wait_any([member], 0) == []
        found = letters(ring_dir)
        assert [json.loads(letter.header("comux-dead-source"))[2] for letter in found] == [0, 1, 2, 3]
        assert found[3].header("comux-dtype") == b"<i4" and found[3].header("comux-shape") == b"[2]"
        assert np.frombuffer(found[3].value, "<i4").tolist() == [6, 7]
        assert group(topic).dead_letters == 4


def test_who_says_how_often(ring_dir: Path) -> None:
    with make(ring_dir) as topic:
        topic.member("usual").close()
        topic.member("never", max_deliveries=0).close()
        topic.member("twice", max_deliveries=2).close()
        topic.member("twice").close()
        assert {g.name: g.max_deliveries for g in topic.groups()} == {"usual": 5, "never": 0, "twice": 2}
        topic.member("usual", max_deliveries=7).close()
        assert group(topic, "usual").max_deliveries == 7
        for wrong in (-1, 5000, True):
            with pytest.raises(ConfigError, match="max_deliveries"):
                topic.member("wrong", max_deliveries=wrong)
        with topic.member("never", start="beginning") as member, topic.producer() as producer:
            producer.put(b"x")
            give_back(member, 20)
            assert member.take(0).delivery_count == 21
    with pytest.raises(ConfigError, match="max_deliveries"):
        ring.RingSpec("x", max_deliveries=-1)


def test_letters_that_have_no_room_are_given_back_and_said(ring_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comux.ring.letters.ROOM_S", 0.01)
    shape = ring.RingSpec(LETTERS, slots=1, data_bytes=65536, max_deliveries=0)
    with make(ring_dir, max_deliveries=1) as topic, ring.create(shape, directory=ring_dir) as kept:
        behind = kept.member("reader", start="beginning")
        with topic.producer() as producer:
            producer.put_many([b"0", b"1"])
        member = topic.member("g", start="beginning")
        give_back(member, 1)
        give_back(member, 1)
        for _ in range(2):
            with pytest.raises(WaitTimeoutError, match=LETTERS):
                member.take(0)
        assert (member.held, group(topic).dead_letters) == (0, 1)
        letter = behind.take(0)
        assert letter.bytes() == b"0"
        letter.ack()
        assert member.take(0) is None
        assert behind.take(0).bytes() == b"1"
        assert group(topic).dead_letters == 2 and member.account().balanced
        assert topic.check() == kept.check() == []


def test_no_memory_for_the_letters_loses_nothing(ring_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise NoSpaceError("topic 't.dead.g' needs 1 MB")

    with make(ring_dir, max_deliveries=1) as topic, topic.member("g", start="beginning") as member:
        with topic.producer() as producer:
            producer.put(b"0")
        give_back(member, 1)
        monkeypatch.setattr("comux.ring.letters._open", full)
        with pytest.raises(NoSpaceError):
            member.take(0)
        monkeypatch.undo()
        assert member.take(0) is None
        assert [letter.value for letter in letters(ring_dir)] == [b"0"]


def test_a_value_that_is_none_and_records_as_large_as_the_topic(ring_dir: Path) -> None:
    with make(ring_dir, max_deliveries=1) as topic, topic.member("g", start="beginning") as member:
        with topic.producer() as producer:
            for value in (None, b"", bytes(65000)):
                producer.put(value)
                give_back(member, 1)
                assert member.take(0) is None
        assert [letter.value for letter in letters(ring_dir)] == [None, b"", bytes(65000)]


def test_names_of_dead_letter_topics() -> None:
    assert dead_letter_topic("cam1", "models") == "cam1.dead.models"
    names = {dead_letter_topic(topic, name) for topic in ("t", "t" * 90) for name in ("a b", "a_b", "é" * 20, "g" * 47)}
    assert len(names) == 8
    for name in names:
        ring.RingSpec(name)


def test_a_dead_letter_cannot_be_acknowledged_by_who_dropped_it(ring_dir: Path) -> None:
    with make(ring_dir, max_deliveries=1) as topic, topic.member("g", start="beginning") as member:
        with topic.producer() as producer:
            producer.put(b"0")
        lease = member.take(0)
        lease.nack()
        with pytest.raises(StaleLeaseError):
            lease.ack()
        assert member.take(0) is None
        with pytest.raises(StaleLeaseError):
            member.ack(0)
