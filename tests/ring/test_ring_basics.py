"""Every operation of the ring, each policy, both kinds of records and both writer modes; alone and with a child."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comux import ring
from comux.errors import (
    ClosedError,
    ConfigError,
    EndOfStream,
    LayoutMismatchError,
    NoSpaceError,
    RecordTooLargeError,
    StaleLeaseError,
    TopicBusyError,
    TopicCorruptError,
    TopicExistsError,
    UnknownTopicError,
    WaitTimeoutError,
)
from comux.ring import RingSpec

MODES = ("one", "many")


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A private directory in shared memory that is gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="comux-test-", dir="/dev/shm"))
    monkeypatch.setenv("COMUX_DIR", str(path))
    yield path
    shutil.rmtree(path)


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for a condition under a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.002)


def small(writers: str = "many", slots: int = 8, **more: Any) -> RingSpec:
    return RingSpec("t", slots=slots, data_bytes=more.pop("data_bytes", 65536), writers=writers, **more)


def drain(member: ring.Member) -> list[bytes | None]:
    out = []
    while (lease := member.take(0)) is not None:
        with lease:
            out.append(lease.bytes())
    return out


def offsets(records: list[Any]) -> list[int]:
    return [r.offset for r in records]


# -- records ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writers", MODES)
def test_a_record_comes_back_as_it_was_sent(folder: Path, writers: str) -> None:
    headers = (("a", b"1"), ("b", None), ("a", b""), ("ü", b"\x00\xff"))
    with ring.create(small(writers)) as r, r.producer() as p, r.member("g") as m, r.reader() as lossy:
        before = time.time_ns()
        sent: list[tuple[Any, ...]] = [
            (b"value", b"key", headers, 123, 0x0101, -5),
            (None, None, (), None, 0, 0),
            (b"", b"", (), None, 0, 2**62),
            (bytearray(b"x" * 1000), memoryview(b"k"), [("h", b"v")], -1, 0xFFFF, 0),
        ]
        for i, (value, key, hdrs, ts, flags, tag) in enumerate(sent):
            assert p.put(value, key=key, headers=hdrs, timestamp_ns=ts, flags=flags, tag=tag) == i
        for i, (value, key, hdrs, ts, flags, tag) in enumerate(sent):
            with m.take(0) as lease:
                want = None if value is None else bytes(value)
                assert (lease.offset, lease.bytes(), lease.flags, lease.tag) == (i, want, flags, tag)
                assert lease.key == (None if key is None else bytes(key))
                assert lease.headers == tuple(hdrs)
                assert (lease.buffer is None) == (value is None)
                assert lease.delivery_count == 1 and not lease.redelivered and lease.epoch == 0
                if ts is not None:
                    assert lease.timestamp_ns == ts
                else:
                    assert before <= lease.timestamp_ns <= time.time_ns()
                assert before <= lease.append_ns <= time.time_ns()
            record = lossy.copy(0)
            assert (record.value, record.key, record.headers) == (want, lease_key(key), tuple(hdrs))
            assert r.record_at(i).value == want
        assert r.check() == []


def lease_key(key: Any) -> bytes | None:
    return None if key is None else bytes(key)


@pytest.mark.parametrize("writers", MODES)
def test_fixed_slots_carry_arrays_and_structures(folder: Path, writers: str) -> None:
    dtype = np.dtype([("t", "<i8"), ("xy", "<f4", (2,)), ("name", "S5")])
    spec = RingSpec("t", slots=6, dtype=dtype, shape=(3,), writers=writers)  # type: ignore[arg-type]
    with ring.create(spec) as r, r.producer() as p, r.member("g") as m:
        assert ring.attach("t").spec.dtype == dtype
        for i in range(20):
            value = np.zeros(3, dtype)
            value["t"] = i
            value["xy"] = i / 2
            value["name"] = b"n%d" % i
            assert p.put(value, key=b"k", headers=[("h", None)]) == i
            with m.take(0) as lease:
                assert np.array_equal(lease.array, value)
                assert lease.key == b"k" and lease.headers == (("h", None),)
                assert not lease.array.flags.writeable
        for wrong in (np.zeros(3, "f8"), np.zeros((3, 1), dtype), np.zeros(2, dtype), b"short"):
            with pytest.raises(ConfigError):
                p.put(wrong)
        with pytest.raises(RecordTooLargeError, match="192"):
            p.put(np.zeros(3, dtype), headers=[("h", b"x" * 200)])
        with pytest.raises(ConfigError, match="contiguous"):
            p.put(np.zeros((6,), dtype)[::2])
        assert r.high_water == 20 and r.check() == []


def test_scalar_records_and_structured_descriptions_survive(folder: Path) -> None:
    for i, (dtype, shape) in enumerate(
        [("f8", ()), (">u2", (2, 3)), ([("a", "u1"), ("b", [("c", "f4"), ("d", "M8[ns]")])], ()), ("3f4", (2,))]
    ):
        spec = RingSpec(f"s{i}", slots=4, dtype=dtype, shape=shape)
        with ring.create(spec) as r, ring.attach(f"s{i}") as again, r.producer() as p, again.member("g") as m:
            assert again.spec == spec
            value = np.arange(max(1, int(np.prod(spec.shape)))).astype("u1")
            array = np.resize(value, spec.record_bytes).astype("u1").view(spec.dtype)[: int(np.prod(spec.shape))]
            p.put(array.reshape(spec.shape))
            with m.take(0) as lease:
                assert lease.array.shape == spec.shape and lease.array.dtype == spec.dtype
                assert lease.array.tobytes() == array.tobytes()


@pytest.mark.parametrize("writers", MODES)
def test_variable_records_wrap_without_a_seam(folder: Path, writers: str) -> None:
    sizes = [1, 0, 63, 64, 65, 20000, 7, 30000, 4096, 33000]
    with ring.create(small(writers, slots=5)) as r, r.producer() as p, r.member("g") as m:
        for i in range(300):
            value = bytes([i % 256]) * sizes[i % len(sizes)]
            assert p.put(value, headers=[("n", b"%d" % i)], timeout=1) == i
            with m.take(0) as lease:
                assert lease.bytes() == value and lease.headers == (("n", b"%d" % i),)
        assert r.check() == []


@pytest.mark.parametrize("writers", MODES)
def test_batches_of_fixed_slots_are_one_array_also_across_the_wrap(folder: Path, writers: str) -> None:
    spec = RingSpec("t", slots=10, dtype="u4", shape=(4,), writers=writers)  # type: ignore[arg-type]
    with ring.create(spec) as r, r.producer() as p, r.member("g") as m:
        sent = 0
        for k in (7, 7, 10, 1, 9, 3) * 40:  # 1480 records in a data region of 256 slots
            block = np.arange(sent * 4, (sent + k) * 4, dtype="u4").reshape(k, 4)
            assert p.put_many(block, timeout=1) == sent
            got = 0
            while got < k:
                batch = m.take_many(100, timeout=0)
                n = len(batch)
                assert batch.array.shape == (n, 4) and batch.array.flags.c_contiguous
                assert np.array_equal(batch.array, block[got : got + n])
                assert list(batch.offsets) == list(range(sent + got, sent + got + n))
                batch.ack()
                got += n
            sent += k
        with pytest.raises(StaleLeaseError):
            batch.ack()
        with pytest.raises(RecordTooLargeError):
            p.put_many(np.zeros((11, 4), "u4"))
        assert r.check() == []


@pytest.mark.parametrize("writers", MODES)
def test_put_many_of_variable_records_is_one_run(folder: Path, writers: str) -> None:
    with ring.create(small(writers, slots=16)) as r, r.producer() as p, r.member("g") as m:
        assert p.put_many([b"a", None, b"", bytearray(b"ccc")], timestamp_ns=5, flags=1) == 0
        batch = m.take_many(10, timeout=0)
        assert batch.offsets == [0, 1, 2, 3] and [x.bytes() for x in batch] == [b"a", None, b"", b"ccc"]
        assert batch.timestamps_ns == [5] * 4
        batch.nack()
        with m.take_many(10, timeout=0) as again:
            assert [x.redelivered for x in again] == [True] * 4
        assert m.take_many(3, timeout=0) is None
        assert r.last_keyframe == 3
        with pytest.raises(ConfigError):
            p.put_many([])


# -- claims ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writers", MODES)
def test_a_claim_is_written_in_place(folder: Path, writers: str) -> None:
    with ring.create(small(writers, slots=4)) as r, r.producer() as p, r.member("g") as m:
        with p.claim(100) as claim:
            claim.buffer[:3] = b"abc"
            assert r.high_water == 0
            assert claim.commit(used=3, key=b"k", headers=[("h", b"v")], timestamp_ns=7, flags=1, tag=9) == 0
        with m.take(0) as lease:
            assert (lease.bytes(), lease.key, lease.headers) == (b"abc", b"k", (("h", b"v"),))
            assert (lease.timestamp_ns, lease.flags, lease.tag) == (7, 1, 9)
        with pytest.raises(RuntimeError, match="mine"), p.claim(10):
            raise RuntimeError("mine")
        with p.claim(5) as claim:
            claim.array[:] = 65
        with m.take(0) as lease:
            assert lease.bytes() == b"AAAAA" and lease.offset == (1 if writers == "one" else 2)
        with pytest.raises(StaleLeaseError):
            claim.commit()
        with pytest.raises(BufferError):
            memoryview(claim)
        claim.abort()
        assert p.stats.aborted == 1 and p.account().balanced and r.stats().aborted == 1
        with pytest.raises(RecordTooLargeError, match="meta_bytes"), p.claim(10) as claim:
            claim.commit(headers=[("h", b"x" * 3000)])
        assert r.check() == []


@pytest.mark.parametrize("writers", MODES)
def test_an_array_of_a_claim_is_read_only_after_commit(folder: Path, writers: str) -> None:
    spec = RingSpec("t", slots=4, dtype="f4", shape=(2, 2), writers=writers)  # type: ignore[arg-type]
    with ring.create(spec) as r, r.producer() as p:
        with p.claim() as claim:
            array = claim.array
            array[:] = 3
        assert not array.flags.writeable
        assert r.record_at(0).value.tolist() == [[3, 3], [3, 3]]


def test_open_claims_hold_back_later_records_and_are_reported(folder: Path) -> None:
    with ring.create(small()) as r, r.producer("slow") as slow, r.producer() as p, r.member("g") as m:
        claim = slow.claim(10)
        p.put(b"later")
        assert m.take(0) is None and r.high_water == 0
        (open_claim,) = r.stats().open_claims
        assert (open_claim.offset, open_claim.name, open_claim.pid) == (0, "slow", os.getpid())
        assert open_claim.age_s is not None and open_claim.age_s < 60
        claim.abort()
        assert drain(m) == [b"later"]
        dropped = slow.claim(10)
        with pytest.warns(ResourceWarning, match="dropped without commit"):
            del dropped
        p.put(b"again")
        assert drain(m) == [b"again"] and r.stats().open_claims == () and r.check() == []


def test_one_writer_has_one_claim_at_a_time(folder: Path) -> None:
    with ring.create(small("one")) as r, r.producer() as p, r.member("g") as m:
        claim = p.claim(10)
        with pytest.raises(TopicBusyError, match="claim open"):
            p.put(b"x")
        done: list[int | None] = []
        other = threading.Thread(target=lambda: done.append(p.put(b"other")), name="comux-test-put")
        other.start()
        claim.buffer[:] = b"0123456789"
        claim.commit()
        other.join(10)
        assert done == [1] and drain(m) == [b"0123456789", b"other"]
        with pytest.raises(TopicBusyError, match="one writer"):
            r.producer()
    with ring.attach("t") as r, r.producer() as p:
        assert p.put(b"next life of the program") == 2


# -- groups ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writers", MODES)
def test_members_share_and_groups_each_get_everything(folder: Path, writers: str) -> None:
    with ring.create(small(writers, slots=64)) as r, r.producer() as p:
        a1, a2, b = r.member("a"), r.member("a"), r.member("b")
        for i in range(40):
            p.put(b"%d" % i)
        shared: list[int] = []
        for _ in range(20):
            for member in (a1, a2):
                if (lease := member.take(0)) is not None:
                    shared.append(lease.offset)
                    lease.ack()
        shared += [int(v) for v in drain(a1) + drain(a2)]
        assert sorted(shared) == list(range(40))
        assert [int(v) for v in drain(b)] == list(range(40))
        info = {g.name: g for g in r.groups()}
        assert (info["a"].done, info["a"].members, info["a"].acked, info["a"].lag) == (40, 2, 40, 0)
        assert info["b"].delivered == 40 and info["b"].lost == 0
        assert r.check() == []


@pytest.mark.parametrize("writers", MODES)
def test_acks_come_in_any_order_and_nack_redelivers(folder: Path, writers: str) -> None:
    with ring.create(small(writers)) as r, r.producer() as p, r.member("g") as m:
        for i in range(4):
            p.put(b"%d" % i)
        leases = [m.take(0) for _ in range(4)]
        leases[2].ack()
        leases[0].nack()
        leases[3].ack()
        (group,) = r.groups()
        assert group.done == 0 and m.held == 1
        again = m.take(0)
        assert again.offset == 0 and again.redelivered and again.delivery_count == 2
        m.ack(again)
        m.ack(1)
        assert r.groups()[0].done == 4 and m.held == 0
        with pytest.raises(StaleLeaseError):
            m.ack(1)
        with pytest.raises(StaleLeaseError):
            leases[1].ack()
        with pytest.raises(StaleLeaseError):
            again.nack()
        account = m.account()
        assert account.balanced and account.delivered == 4 and account.dropped == {"returned": 1}
        assert r.check() == []


def test_leaving_a_block_acks_or_gives_back_and_dropping_warns(folder: Path) -> None:
    with ring.create(small()) as r, r.producer() as p, r.member("g") as m:
        p.put(b"x")
        with pytest.raises(RuntimeError, match="mine"), m.take(0):
            raise RuntimeError("mine")
        lease = m.take(0)
        assert lease.redelivered
        with pytest.warns(ResourceWarning, match="without ack"):
            del lease
        with m.take(0) as lease:
            assert lease.delivery_count == 3
        assert drain(m) == [] and r.check() == []


def test_a_member_that_leaves_gives_back_what_it_holds(folder: Path) -> None:
    with ring.create(small(slots=32)) as r, r.producer() as p:
        first, second = r.member("g"), r.member("g")
        for i in range(20):
            p.put(b"%d" % i)
        lease = first.take(0)
        first.close()
        with pytest.raises(StaleLeaseError):
            lease.ack()
        got = []
        while (taken := second.take(0)) is not None:
            got.append((taken.offset, taken.redelivered))
            taken.ack()
        assert sorted(o for o, _ in got) == list(range(20))
        assert [o for o, again in got if again] == [0], "what was only prefetched was never delivered"
        assert first.account().balanced and first.account().held_total == 0
        assert r.check() == []


def test_a_member_that_stops_taking_hoards_nothing(folder: Path) -> None:
    with ring.create(small(slots=256)) as r, r.producer() as p:
        lazy = r.member("g")
        for i in range(200):
            p.put(b"%d" % i)
        for _ in range(30):
            lazy.take(0).ack()
        eager = r.member("g")
        assert len(drain(eager)) == 170
        assert lazy.take(0) is None and r.groups()[0].done == 200 and r.check() == []


@pytest.mark.parametrize("start, first", [("beginning", 2), ("end", 6), (4, 4), (0, 2)])
def test_where_a_new_group_starts(folder: Path, start: Any, first: int) -> None:
    with ring.create(small(slots=4)) as r, r.producer() as p:
        for i in range(6):
            p.put(b"%d" % i)
        assert r.log_start == 2
        with r.member("g", start=start) as m:
            assert m.position == first and m.lag == 6 - first
            assert r.groups()[0].lost == (2 if start == 0 else 0)
        with r.member("g", start="beginning") as m:
            assert m.position == first, "start applies to new groups only"
        with pytest.raises(ConfigError):
            r.member("h", start=7)
        with pytest.raises(ConfigError):
            r.member("h", start="middle")  # type: ignore[arg-type]
        r.remove_group("g")
        assert r.groups() == []


def test_groups_and_ports_are_limited_and_removable(folder: Path) -> None:
    with ring.create(small(max_groups=1, max_ports=3)) as r:
        m = r.member("g")
        with pytest.raises(TopicBusyError, match="groups"):
            r.member("h")
        with pytest.raises(TopicBusyError, match="members"):
            r.remove_group("g")
        with pytest.raises(ConfigError, match="no group"):
            r.remove_group("nobody")
        others = [r.reader(), r.producer()]
        with pytest.raises(TopicBusyError, match="ports"):
            r.reader()
        m.close()
        r.remove_group("g")
        others.append(r.member("h"))
        with pytest.raises(ConfigError):
            r.member("x" * 48)
        assert r.check() == []


# -- full rings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writers", MODES)
def test_wait_policy_waits_for_the_slowest_group(folder: Path, writers: str) -> None:
    with ring.create(small(writers, slots=4)) as r, r.producer() as p, r.member("g") as m:
        for i in range(4):
            p.put(b"%d" % i)
        with pytest.raises(WaitTimeoutError, match="full"):
            p.put(b"x", timeout=0)
        started = time.monotonic()
        with pytest.raises(WaitTimeoutError):
            p.put(b"x", timeout=0.2)
        assert 0.19 <= time.monotonic() - started < 5
        assert p.stats.blocked_s >= 0.19
        held = m.take(0)
        done: list[int | None] = []
        thread = threading.Thread(target=lambda: done.append(p.put(b"4", timeout=20)), name="comux-test-put")
        thread.start()
        until(lambda: any(x.waiting for x in r.stats().ports if x.kind == "producer"))
        assert done == []
        held.ack()
        thread.join(10)
        assert done == [4]
        assert drain(m) == [b"1", b"2", b"3", b"4"] and r.check() == []


@pytest.mark.parametrize("writers", MODES)
def test_drop_oldest_keeps_the_newest_and_counts(folder: Path, writers: str) -> None:
    with ring.create(small(writers, slots=8, policy="drop_oldest")) as r, r.producer() as p, r.member("g") as m:
        for i in range(20):
            assert p.put(b"%d" % i, timeout=0) == i
        assert r.log_start == 12 and r.groups()[0].lost == 12 and r.stats().dropped_oldest == 12
        assert [int(v) for v in drain(m)] == list(range(12, 20))
        assert r.groups()[0].done == 20 and r.check() == []


@pytest.mark.parametrize("writers", MODES)
def test_drop_oldest_takes_prefetched_records_but_never_a_held_one(folder: Path, writers: str) -> None:
    with ring.create(small(writers, slots=8, policy="drop_oldest")) as r, r.producer() as p, r.member("g") as m:
        for i in range(8):
            p.put(b"%d" % i)
        m.take(0).ack()
        m.take(0).ack()  # the rest of the run is prefetched
        for i in range(8, 13):
            p.put(b"%d" % i, timeout=0)
        assert r.groups()[0].lost == 3
        held = m.take(0)
        assert held.offset == 5
        with pytest.raises(WaitTimeoutError):
            p.put(b"x", timeout=0.05)
        assert held.bytes() == b"5"
        held.ack()
        assert p.put(b"13", timeout=1) == 13
        assert [int(v) for v in drain(m)] == list(range(6, 14))
        info = r.groups()[0]
        assert info.lost == 3 and info.acked == 11 and r.check() == []


@pytest.mark.parametrize("writers", MODES)
def test_drop_newest_refuses_and_counts(folder: Path, writers: str) -> None:
    with ring.create(small(writers, slots=4, policy="drop_newest")) as r, r.producer() as p, r.member("g") as m:
        assert [p.put(b"%d" % i) for i in range(7)] == [0, 1, 2, 3, None, None, None]
        assert p.claim(3) is None
        assert p.stats.dropped_newest == 4 and r.stats().dropped_newest == 4 and p.account().balanced
        assert len(drain(m)) == 4 and p.put(b"7") == 4 and r.check() == []


@pytest.mark.parametrize("policy", ring.spec.POLICIES)
@pytest.mark.parametrize("writers", MODES)
def test_without_groups_every_policy_overwrites(folder: Path, writers: str, policy: str) -> None:
    with ring.create(small(writers, slots=4, policy=policy)) as r, r.producer() as p, r.reader() as lossy:
        for i in range(10):
            assert p.put(b"%d" % i, timeout=0) == i
        assert r.log_start == 6
        record = lossy.copy(0)
        assert (record.offset, record.skipped, lossy.lost) == (6, 6, 6)
        assert offsets(lossy.copy_many(10, 0)) == [7, 8, 9] and r.check() == []


@pytest.mark.parametrize("writers", MODES)
def test_the_byte_limit_gates_as_the_slots_do(folder: Path, writers: str) -> None:
    with ring.create(small(writers, slots=100, data_bytes=65536)) as r, r.producer() as p, r.member("g") as m:
        for _ in range(3):
            p.put(b"x" * 20000)
        with pytest.raises(WaitTimeoutError):
            p.put(b"x" * 20000, timeout=0)
        p.put(b"x" * 5000, timeout=0)
        m.take(0).ack()
        p.put(b"x" * 20000, timeout=1)
        with pytest.raises(RecordTooLargeError, match="limit"):
            p.put(b"x" * 70000)
        assert r.check() == []


def test_an_unattended_group_is_suspended_and_a_durable_one_is_not(folder: Path) -> None:
    with ring.create(small(slots=4, group_grace=0.1)) as r, r.producer() as p:
        r.member("left").close()
        for i in range(4):
            p.put(b"%d" % i)
        assert p.put(b"4", timeout=10) == 4
        for i in range(5, 10):
            assert p.put(b"%d" % i, timeout=0) == i
        (info,) = r.groups()
        assert info.suspended and info.lost == 6 and r.stats().suspensions == 1
        with r.member("left", start="beginning") as m:
            assert [int(v) for v in drain(m)] == [6, 7, 8, 9]
            assert not r.groups()[0].suspended
        r.member("kept", durable=True).close()
        for _ in range(4):
            p.put(b"x", timeout=10)
        with pytest.raises(WaitTimeoutError):
            p.put(b"x", timeout=0.4)
        assert r.check() == []


# -- ends and epochs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writers", MODES)
def test_an_end_closes_an_epoch_and_the_next_producer_opens_one(folder: Path, writers: str) -> None:
    with ring.create(small(writers, slots=16)) as r:
        stop, goes_on = r.member("a"), r.member("b", on_end="wait")
        lossy, lossy_on = r.reader(), r.reader(on_end="wait")
        p = r.producer()
        p.put(b"0")
        p.put(b"1")
        p.end()
        p.end()
        with pytest.raises(EndOfStream, match="new producer"):
            p.put(b"x")
        p.close()
        assert r.ended and r.end_offset == 2 and r.epoch == 0
        assert drain_to_end(stop) == [b"0", b"1"]
        assert [x.bytes() for x in lossy] == [b"0", b"1"]
        late = r.reader(start="beginning")
        assert offsets(late.copy_many(10, 0)) == [0, 1]
        with pytest.raises(EndOfStream):
            late.copy(0)
        p = r.producer()
        assert r.epoch == 1 and not r.ended and r.end_offset is None
        assert p.put(b"2") == 2
        with pytest.raises(EndOfStream):
            stop.take(0)
        assert drain(goes_on) == [b"0", b"1", b"2"]
        assert [(x.offset, x.epoch) for x in lossy_on.copy_many(9, 0)] == [(0, 0), (1, 0), (2, 1)]
        with pytest.raises(EndOfStream):
            lossy.poll(0)
        assert offsets(r.reader(start="beginning").copy_many(9, 0)) == [0, 1, 2]
        assert r.check() == []


def drain_to_end(member: ring.Member) -> list[bytes | None]:
    out = []
    for lease in member:
        with lease:
            out.append(lease.bytes())
    return out


def test_the_end_is_seen_only_when_the_group_has_finished(folder: Path) -> None:
    with ring.create(small()) as r, r.producer() as p:
        holder, idle = r.member("g"), r.member("g")
        p.put(b"x")
        lease = holder.take(0)
        p.end()
        assert idle.take(0.05) is None, "the other one may still die holding the record"
        seen: list[str] = []

        def wait() -> None:
            with pytest.raises(EndOfStream):
                idle.take(20)
            seen.append("end")

        thread = threading.Thread(target=wait, name="comux-test-take")
        thread.start()
        until(lambda: any(x.waiting for x in r.stats().ports if x.kind == "member"))
        started = time.monotonic()
        lease.ack()
        thread.join(10)
        assert seen == ["end"] and time.monotonic() - started < 5 and r.check() == []


def test_end_auto_ends_with_the_last_clean_close(folder: Path) -> None:
    with ring.create(small(end="auto")) as r, r.member("g") as m:
        first, second = r.producer(), r.producer()
        first.put(b"a")
        first.close()
        assert not r.ended
        second.put(b"b")
        second.close()
        assert r.ended and drain_to_end(m) == [b"a", b"b"]
        dropped = r.producer()
        del dropped
        assert not r.ended, "a handle that was merely dropped has not said that it is finished"


# -- lossy readers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writers", MODES)
def test_a_lossy_reader_is_told_exactly_what_it_missed(folder: Path, writers: str) -> None:
    with ring.create(small(writers, slots=8)) as r, r.producer() as p, r.reader() as lossy:
        got, lost = [], 0
        for i in range(200):
            if i % 7 == 3:
                claim = p.claim(4)
                claim.abort()
            p.put(b"%d" % i)
            if i % 29 == 0:
                for record in lossy.copy_many(3, 0):
                    lost += record.skipped
                    got.append(int(record.value))
        while (record := lossy.copy(0)) is not None:
            lost += record.skipped
            got.append(int(record.value))
        assert len(got) + lost == 200 and lossy.lost == lost
        assert got == sorted(set(got))
        account = lossy.account()
        assert account.balanced and account.delivered == len(got)
        assert account.received == r.high_water, "every offset passed is in the books"
        assert account.dropped["lapped"] == lost


def test_views_say_when_they_no_longer_hold(folder: Path) -> None:
    with ring.create(small("one", slots=4)) as r, r.producer() as p, r.reader() as lossy:
        p.put(b"old", key=b"k")
        view = lossy.poll(0)
        assert view.valid() and view.bytes() == b"old" and view.key == b"k" and bytes(view.buffer) == b"old"
        for _ in range(4):
            p.put(b"new")
        assert not view.valid()
        for broken in (view.bytes, view.copy, lambda: view.key):
            with pytest.raises(Exception, match="overwritten"):
                broken()
        assert view.offset == 0, "what was copied stays true"


def test_seeking_and_looking_up(folder: Path) -> None:
    with ring.create(small(slots=16)) as r, r.producer() as p, r.reader() as lossy:
        for i in range(20):
            p.put(b"%d" % i, timestamp_ns=i * 10, flags=1 if i in (6, 13) else 0x100 if i == 15 else 0)
        assert r.log_start == 4 and r.last_keyframe == 13
        assert r.find_time(95) == 10 and r.find_time(-1) == 4 and r.find_time(10**9) is None
        assert r.find_flag(1) == 13 and r.find_flag(1, 14) is None and r.find_flag(0x100) == 15
        assert (r.flags_at(13), r.timestamp_at(13), r.flags_at(3), r.timestamp_at(20)) == (1, 130, None, None)
        assert r.record_at(3) is None and r.record_at(19).value == b"19" and r.record_at(-1) is None
        assert lossy.copy(0).offset == 4
        assert lossy.seek_keyframe() and lossy.position == 13
        record = lossy.copy(0)
        assert (record.offset, record.skipped, record.keyframe) == (13, 8, True)
        assert not lossy.seek_keyframe() and lossy.position == 14
        lossy.position = 7
        assert lossy.copy(0).offset == 7
        lossy.seek_end()
        assert lossy.copy(0) is None and lossy.lag == 0
        lossy.seek_beginning()
        assert lossy.copy(0).offset == 4 and lossy.account().balanced


def test_an_observer_sees_the_newest(folder: Path) -> None:
    with ring.create(small(slots=4)) as r, r.observer() as o, r.producer() as p:
        assert o.latest() is None and o.latest_offset is None
        for i in range(9):
            p.put(b"%d" % i)
            assert o.latest().value == b"%d" % i and o.latest_offset == i
        p.claim(3).abort()
        assert o.latest().offset == 8
        o.close()
        with pytest.raises(ClosedError):
            o.latest()


@pytest.mark.parametrize("first", [2**31 - 5, 2**32 - 5, 2**40])
@pytest.mark.parametrize("kind", ["fixed", "variable"])
@pytest.mark.parametrize("writers", MODES)
def test_offsets_beyond_31_and_32_bits(folder: Path, first: int, kind: str, writers: str) -> None:
    more: dict[str, Any] = {"dtype": "u8", "shape": (3,)} if kind == "fixed" else {"data_bytes": 65536}
    spec = RingSpec("t", slots=6, first_offset=first, writers=writers, **more)  # type: ignore[arg-type]
    with ring.create(spec) as r, r.producer() as p, r.member("g") as m, r.reader() as lossy, r.observer() as o:
        assert r.high_water == first
        for i in range(20):
            value = np.full(3, first + i, "u8")
            assert p.put(value if kind == "fixed" else value.tobytes()) == first + i
            with m.take(0) as lease:
                assert lease.offset == first + i and np.frombuffer(lease.buffer, "u8").tolist() == [first + i] * 3
            assert o.latest_offset == first + i
        record = lossy.copy(0)
        assert (record.offset, record.skipped) == (first + 14, 14)
        assert r.find_time(0) == first + 14 and r.groups()[0].done == first + 20
        assert r.check() == []


# -- waiting ---------------------------------------------------------------------------------------------------------


def test_waits_keep_their_deadline_and_cost_no_time_on_the_processor(folder: Path) -> None:
    with ring.create(small(slots=1)) as r, r.producer() as p, r.member("g") as m, r.reader() as lossy:
        for wait in (lambda: m.take(0.2), lambda: lossy.poll(0.2), lambda: ring.wait_any([m, lossy], 0.2)):
            started, cpu = time.monotonic(), time.process_time()
            assert not wait()
            assert 0.195 <= time.monotonic() - started < 3 and time.process_time() - cpu < 0.1
        p.put(b"x")
        cpu = time.process_time()
        with pytest.raises(WaitTimeoutError):
            p.put(b"y", timeout=0.2)
        assert time.process_time() - cpu < 0.1


@pytest.mark.parametrize("writers", MODES)
def test_a_record_wakes_who_waits(folder: Path, writers: str) -> None:
    with ring.create(small(writers)) as r, r.producer() as p:
        members, lossy = [r.member("a"), r.member("a"), r.member("b")], r.reader()
        got: list[str] = []

        def wait(name: str, call: Callable[[], Any]) -> None:
            assert call() is not None
            got.append(name)

        def take(m: ring.Member) -> Any:
            lease = m.take(20)
            lease.ack()
            return lease

        threads = [threading.Thread(target=wait, args=("m", lambda m=m: take(m)), name="comux-test") for m in members]
        threads.append(threading.Thread(target=wait, args=("r", lambda: lossy.copy(20)), name="comux-test"))
        for thread in threads:
            thread.start()
        until(lambda: sum(x.waiting for x in r.stats().ports) == 3)
        p.put(b"1")
        p.put(b"2")
        for thread in threads:
            thread.join(10)
        assert sorted(got) == ["m", "m", "m", "r"] and r.check() == []


def test_close_and_wakeup_reach_a_waiting_thread(folder: Path) -> None:
    with ring.create(small(slots=1)) as r:
        p, m, lossy = r.producer(), r.member("g"), r.reader()
        blocked = r.producer()
        results: dict[str, Any] = {}

        def run(name: str, call: Callable[[], Any]) -> threading.Thread:
            def body() -> None:
                try:
                    results[name] = call()
                except ClosedError:
                    results[name] = "closed"

            thread = threading.Thread(target=body, name=f"comux-test-{name}")
            thread.start()
            return thread

        waits = [run("take", lambda: m.take(30)), run("poll", lambda: lossy.poll(30))]
        until(lambda: any(x.waiting for x in r.stats().ports))
        m.wakeup()
        lossy.wakeup()
        for thread in waits:
            thread.join(10)
        assert results == {"take": None, "poll": None}
        m.wakeup()
        assert m.take(30) is None, "a wakeup before the wait is not lost"
        waits = [run("take", lambda: m.take(30)), run("poll", lambda: lossy.poll(30))]
        until(lambda: any(x.waiting for x in r.stats().ports))
        m.close()
        lossy.close()
        for thread in waits:
            thread.join(10)
        p.put(b"x")
        waits = [run("put", lambda: blocked.put(b"y", timeout=30))]
        until(lambda: any(x.waiting for x in r.stats().ports))
        blocked.close()
        waits[0].join(10)
        assert results == {"take": "closed", "poll": "closed", "put": "closed"} and r.check() == []


def test_wait_any_tells_who_is_ready(folder: Path) -> None:
    with ring.create(RingSpec("a", slots=8)) as a, ring.create(RingSpec("b", slots=8)) as b:
        m, lossy, other = a.member("g"), b.reader(), b.member("g")
        pa, pb = a.producer(), b.producer()
        assert ring.wait_any([m, lossy, other], 0) == []
        thread = threading.Timer(0.05, lambda: pb.put(b"x"))
        thread.start()
        assert ring.wait_any([m, lossy], 20) == [lossy]
        thread.join()
        assert ring.wait_any([m, lossy, other], 20) == [lossy, other]
        assert lossy.copy(0).value == b"x" and drain(other) == [b"x"]
        pa.put(b"y")
        assert ring.wait_any([m, lossy], 20) == [m] and drain(m) == [b"y"]
        pb.end()
        assert ring.wait_any([m, lossy], 20) == [lossy]
        lossy.close()
        with pytest.raises(ClosedError):
            ring.wait_any([m, lossy], 0)
        assert a.check() == [] and b.check() == []


# -- processes -------------------------------------------------------------------------------------------------------

CHILD = "import sys, os, signal, time\nfrom comux import ring\nr = ring.attach('t')\n"


_spawned: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _no_child_outlives_its_test() -> Iterator[None]:
    yield
    while _spawned:
        child = _spawned.pop()
        if child.returncode is None:
            child.kill()
            child.communicate()


def spawn(code: str, **more: Any) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD + code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **more
    )
    _spawned.append(child)
    return child


@pytest.mark.parametrize("writers", MODES)
def test_two_processes_pass_records(folder: Path, writers: str) -> None:
    with ring.create(small(writers, slots=32)) as r, r.member("g") as m:
        child = spawn("with r.producer() as p:\n for i in range(5000): p.put(b'%d' % i)\n p.end()\n")
        assert [int(v) for v in drain_to_end(m)] == list(range(5000))
        assert child.wait(20) == 0
        child.communicate()
        assert r.check() == []


def test_what_a_killed_member_held_is_redelivered(folder: Path) -> None:
    with ring.create(small(slots=32)) as r, r.producer() as p, r.member("g") as m:
        child = spawn("m = r.member('g'); x = m.take(20); print(x.offset, flush=True); time.sleep(60)")
        for i in range(10):
            p.put(b"%d" % i)
        held = int(child.stdout.readline())
        child.kill()
        got = {}
        while len(got) < 10:
            lease = m.take(10)
            got[lease.offset] = lease.redelivered
            lease.ack()
        child.communicate()
        assert [o for o, again in got.items() if again] == [held]
        until(lambda: r.groups()[0].members == 1)
        assert r.stats().reaped == 1 and r.check() == []


def test_short_time_outs_find_the_dead_too(folder: Path) -> None:
    """A caller that comes back with time-outs far below the heartbeat never sleeps a whole slice."""
    with ring.create(small(slots=32)) as r, r.producer() as p, r.member("g") as m:
        child = spawn("m = r.member('g'); x = m.take(20); print(x.offset, flush=True); time.sleep(60)")
        p.put(b"only")
        if (mine := m.take(0)) is not None:
            mine.nack()  # the child shall have it
        assert child.stdout.readline() == "0\n"
        child.kill()
        child.communicate()
        deadline, lease = time.monotonic() + 10, None
        while lease is None and time.monotonic() < deadline:
            lease = m.take(0.005)
        assert lease is not None and lease.redelivered
        lease.ack()


def test_a_killed_producers_claim_becomes_a_tombstone(folder: Path) -> None:
    with ring.create(small()) as r, r.producer() as p, r.member("g") as m, r.reader() as lossy:
        child = spawn("p = r.producer(); c = p.claim(10); print('claimed', flush=True); time.sleep(60)")
        assert child.stdout.readline() == "claimed\n"
        p.put(b"behind it")
        child.kill()
        lease = m.take(10)
        assert (lease.offset, lease.bytes()) == (1, b"behind it")
        lease.ack()
        child.communicate()
        record = lossy.copy(10)
        assert (record.offset, record.skipped) == (1, 0) and lossy.account().dropped == {"aborted": 1}
        assert r.stats().aborted == 1 and r.check() == []


@pytest.mark.parametrize("writers", MODES)
def test_the_next_producer_goes_on_where_a_killed_one_stopped(folder: Path, writers: str) -> None:
    with ring.create(small(writers)) as r, r.member("g") as m:
        child = spawn("p = r.producer(); p.put(b'a'); p.put(b'b'); print('x', flush=True); time.sleep(60)")
        assert child.stdout.readline() == "x\n"
        if writers == "one":
            with pytest.raises(TopicBusyError, match=str(child.pid)):
                r.producer()
        child.kill()
        child.communicate()
        with r.producer() as p:
            assert p.put(b"c") == 2 and p.epoch == 0, "a crash is no end"
        assert drain(m) == [b"a", b"b", b"c"] and r.check() == []


def test_records_survive_the_death_of_everybody(folder: Path) -> None:
    with ring.create(small()) as r:
        r.member("g", durable=True).close()
    child = spawn("p = r.producer(); p.put(b'a'); m = r.member('g'); x = m.take(0); os.kill(os.getpid(), 9)")
    assert child.wait(20) == -signal.SIGKILL
    child.communicate()
    with ring.attach("t") as r, r.member("g") as m:
        lease = m.take(0)
        assert lease.bytes() == b"a" and lease.redelivered
        lease.ack()
        assert r.check() == []


def test_handles_pickle_and_open_afresh_in_another_process(folder: Path) -> None:
    """What multiprocessing's spawn does with arguments, without its helper process."""
    child = (
        "import pickle, sys\nh = pickle.load(sys.stdin.buffer)\n"
        "with h['p'] as p: p.put(b'from the child')\n"
        "with h['m'] as m, m.take(10) as lease: got = lease.bytes()\n"
        "print([got, h['r'].copy(10).value, h['o'].latest().value, h['ring'].name])\n"
        "for name in ('r', 'o', 'ring'): h[name].close()\n"
    )
    with ring.create(small()) as r:
        handles = {
            "p": r.producer("x"),
            "m": r.member("g", start="beginning"),
            "r": r.reader(start="beginning"),
            "o": r.observer(),
            "ring": r,
        }
        done = subprocess.run(
            [sys.executable, "-c", child], input=pickle.dumps(handles), stdout=subprocess.PIPE, timeout=30, check=True
        )
        assert done.stdout.decode().strip() == str([b"from the child"] * 3 + ["t"])
        handles["p"].put(b"x")
        lease = handles["m"].take(5)
        claim = handles["p"].claim(4)
        for held in (lease, claim):
            with pytest.raises(TypeError, match="pickle"):
                pickle.dumps(held)
        lease.ack()
        claim.abort()
        assert r.check() == []


def test_a_forked_child_inherits_no_live_handle(folder: Path) -> None:
    with ring.create(small()) as r, r.producer() as p, r.member("g") as m, r.reader() as lossy, r.observer() as o:
        p.put(b"x")
        lease = m.take(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            code = 1
            try:
                calls: list[Callable[[], Any]] = [
                    lambda: p.put(b"y"),
                    lambda: m.take(0),
                    lambda: lossy.poll(0),
                    lambda: o.latest(),
                    lease.ack,
                    lambda: r.groups(),
                ]
                for call in calls:
                    try:
                        call()
                        os._exit(2)
                    except ClosedError:
                        pass
                for handle in (p, m, lossy, o, r):
                    handle.close()
                with ring.attach("t") as mine, mine.producer() as again:
                    again.put(b"of the child")
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert lease.bytes() == b"x"
        lease.ack()
        assert drain(m) == [b"of the child"] and p.put(b"z") == 2 and r.check() == []


@pytest.mark.parametrize("call", ["m.take()", "l.poll()", "p.put(b'y')", "ring.wait_any([m, l])"])
def test_ctrl_c_interrupts_a_wait(folder: Path, call: str) -> None:
    with ring.create(small(slots=1)) as r:
        r.member("slow", durable=True).close()
        child = spawn(
            f"p = r.producer(); m = r.member('g'); l = r.reader()\n{'p.put(bytes(1))' if 'put' in call else ''}\n"
            f"try:\n print('ready', flush=True)\n {call}\n"
            "except KeyboardInterrupt:\n print('interrupted', flush=True)\n"
        )
        assert child.stdout.readline() == "ready\n"
        if "poll" not in call:
            until(lambda: any(x.waiting for x in r.stats().ports))
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == "interrupted\n"
        child.communicate(timeout=10)
        assert child.returncode == 0 and r.check() == []


# -- segments --------------------------------------------------------------------------------------------------------


def test_names_creation_and_removal(folder: Path) -> None:
    for bad in ("", ".x", "a/b", "a b", "x" * 101, "ä"):
        with pytest.raises(ConfigError):
            RingSpec(bad)
    with pytest.raises(UnknownTopicError):
        ring.attach("t")
    with ring.create(small()) as r:
        assert ring.names() == ["t"] and r.path == folder / "t.ring"
        assert (r.path.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)
        assert r.path.stat().st_size == r.spec.required_bytes
        with pytest.raises(TopicExistsError):
            ring.create(small())
        with ring.create(small(), exist_ok=True) as same, same.producer() as p:
            p.put(b"x")
            assert r.high_water == 1
        with pytest.raises(TopicExistsError, match="slots=8 "):
            ring.create(small(slots=9), exist_ok=True)
        with pytest.raises(TopicBusyError):
            ring.unlink("t")
    ring.unlink("t")
    assert ring.names() == [] and list(folder.iterdir()) == []
    with pytest.raises(UnknownTopicError):
        ring.unlink("t")


def test_a_session_topic_goes_with_its_last_user_and_force_removes(folder: Path) -> None:
    r = ring.create(small(lifetime="session"))
    other = ring.attach("t")
    r.close()
    assert ring.names() == ["t"]
    other.close()
    assert ring.names() == []
    with ring.create(small()) as r, r.producer() as p:
        ring.unlink("t", force=True)
        assert p.put(b"x") == 0, "who is attached goes on"
        with ring.create(small()) as fresh:
            assert fresh.high_water == 0 and r.high_water == 1
    child = spawn("", env={**os.environ})
    child.communicate()
    ring.unlink("t")
    with ring.create(small(lifetime="session")):
        killed = spawn("print('x', flush=True); time.sleep(60)")
        assert killed.stdout.readline() == "x\n"
    killed.kill()
    killed.communicate()
    assert ring.names() == ["t"] and ring.gc() == ["t"] and ring.names() == []


@pytest.mark.parametrize(
    "facts",
    [
        {"slots": 0},
        {"slots": 2**24 + 1},
        {"data_bytes": 0},
        {"policy": "maybe"},
        {"writers": "two"},
        {"end": "never"},
        {"lifetime": "x"},
        {"dtype": object},
        {"dtype": "nonsense"},
        {"shape": (2,)},
        {"dtype": "f4", "shape": (0,)},
        {"dtype": "f4", "data_bytes": 5},
        {"max_procs": 256},
        {"max_ports": 0},
        {"max_groups": 65},
        {"group_grace": -1},
        {"metadata": {"x": {1}}},
        {"metadata": {"x": "y" * 4000}},
        {"first_offset": -1},
        {"max_record": 0},
    ],
)
def test_a_spec_that_cannot_be_is_refused_before_anything_is_created(folder: Path, facts: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        RingSpec("t", **facts)
    assert list(folder.iterdir()) == []


def test_a_spec_comes_back_from_the_file(folder: Path) -> None:
    spec = RingSpec(
        "t.x-1_",
        slots=5,
        data_bytes=100_000,
        policy="drop_oldest",
        writers="one",
        end="auto",
        max_record=5000,
        group_grace=float("inf"),
        metadata={"codec": "h264", "size": [640, 360]},
        first_offset=7,
    )
    with ring.create(spec), ring.attach("t.x-1_") as again:
        assert again.spec == spec and again.spec.metadata["size"] == [640, 360]
        with again.producer() as p, pytest.raises(RecordTooLargeError, match="5000"):
            p.put(b"x" * 5001)


def test_what_is_no_topic_of_this_version_is_refused(folder: Path) -> None:
    ring.create(small()).close()
    path = folder / "t.ring"
    whole = path.read_bytes()

    def damaged(at: int, data: bytes) -> None:
        path.write_bytes(whole[:at] + data + whole[at + len(data) :])

    damaged(0, b"NOTCOMUX")
    with pytest.raises(LayoutMismatchError, match="magic"):
        ring.attach("t")
    damaged(8, b"\x63\x00")
    with pytest.raises(LayoutMismatchError, match=r"layout 99\.\d"):
        ring.attach("t")
    damaged(75, b"\x01")
    with pytest.raises(TopicCorruptError, match="checksum"):
        ring.attach("t")
    path.write_bytes(whole[:-4096])
    with pytest.raises(TopicCorruptError, match="size"):
        ring.attach("t")
    path.write_bytes(b"")
    with pytest.raises(LayoutMismatchError):
        ring.attach("t")
    path.unlink()
    (folder / "real").write_bytes(whole)
    path.symlink_to(folder / "real")
    with pytest.raises(LayoutMismatchError, match="link"):
        ring.attach("t")


def test_an_unsafe_directory_is_refused(folder: Path) -> None:
    inner = folder / "d"
    inner.mkdir()
    inner.chmod(0o777)
    with pytest.raises(ConfigError, match="chmod"):
        ring.create(small(), directory=inner)
    inner.chmod(0o700)
    (folder / "link").symlink_to(inner)
    with pytest.raises(ConfigError, match="link"):
        ring.create(small(), directory=folder / "link")
    with ring.create(small(), directory=folder / "new" / "deep") as r:
        assert r.path.parent.stat().st_mode & 0o777 == 0o700
    assert ring.names(folder / "nowhere") == []
    with pytest.raises(UnknownTopicError):
        ring.attach("t", directory=folder / "nowhere")


def test_too_little_shared_memory_is_one_clear_error_and_leaves_nothing(folder: Path) -> None:
    """A file size limit stands for a small file system: posix_fallocate refuses in the same way."""
    code = (
        "import resource, sys\nfrom comux import ring\nfrom comux.errors import NoSpaceError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "try:\n ring.create(ring.RingSpec('big', data_bytes=64 << 20))\n"
        "except NoSpaceError as error:\n print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert "needs 67." in done.stdout and "--shm-size=" in done.stdout and "COMUX_DIR" in done.stdout
    assert list(folder.iterdir()) == []
    assert issubclass(NoSpaceError, OSError)


# -- views -----------------------------------------------------------------------------------------------------------


def test_an_array_outlives_everything_it_came_from(folder: Path) -> None:
    spec = RingSpec("t", slots=4, dtype="u4", shape=(1000,))
    r = ring.create(spec)
    p, m = r.producer(), r.member("g")
    p.put(np.arange(1000, dtype="u4"))
    lease = m.take(0)
    array, part, buffer = lease.array, lease.array[500:510], lease.buffer
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    assert buffer.readonly
    lease.ack()
    with pytest.raises(BufferError):
        memoryview(lease)
    with pytest.raises(StaleLeaseError):
        _ = lease.array
    r.close()
    ring.unlink("t")
    del r, p, m, lease, array, buffer
    assert part.tolist() == list(range(500, 510))


def test_use_after_close_is_a_clean_error_and_close_is_idempotent(folder: Path) -> None:
    with ring.create(small()) as r:
        p, m, lossy = r.producer(), r.member("g"), r.reader()
        p.put(b"x")
        for handle in (p, m, lossy):
            handle.close()
            handle.close()
            assert handle.closed
        for call in (
            lambda: p.put(b"x"),
            lambda: p.end(),
            lambda: p.claim(1),
            lambda: m.take(0),
            lambda: lossy.poll(0),
        ):
            with pytest.raises(ClosedError):
                call()
    r.close()
    for call in (lambda: r.high_water, r.groups, r.producer, r.observer):
        with pytest.raises(ClosedError):
            call()
    assert "closed" in repr(r)


def test_importing_the_package_does_not_load_the_c_module() -> None:
    code = "import sys, comux, comux.ring; print([m for m in sys.modules if '_ring' in m or m == 'numpy'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "[]"
