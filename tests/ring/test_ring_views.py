"""What may be done with memory that belongs to the ring, and for how long: section by section of the design's rules."""

from __future__ import annotations

import gc
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comux import ring
from comux.errors import ComuxError

pytestmark = pytest.mark.core

SHAPES: dict[str, dict[str, Any]] = {
    "variable": {"slots": 8, "data_bytes": 65536},
    "fixed": {"slots": 8, "dtype": "u1", "shape": (16,)},
}
kinds = pytest.mark.parametrize("kind", SHAPES)


def make(place: Path, kind: str = "variable", **fields: Any) -> ring.Ring:
    return ring.create(ring.RingSpec("t", **{**SHAPES[kind], **fields}), directory=place)


def mapped(path: Path) -> int:
    inode = str(path.stat().st_ino)
    return sum(line.split()[4] == inode for line in Path("/proc/self/maps").read_text().splitlines())


@kinds
def test_the_mapping_goes_with_the_last_view_and_not_before(ring_dir: Path, kind: str) -> None:
    r = make(ring_dir, kind)
    path = r.path
    p, m = r.producer(), r.member("g", start="beginning")
    p.put(bytes(range(16)))
    lease = m.take(0)
    array = lease.array
    part = array[3:7]
    lease.ack()
    r.close()
    del r, p, m, lease, array
    gc.collect()
    assert mapped(path) > 0 and part.tolist() == [3, 4, 5, 6]
    del part
    gc.collect()
    assert mapped(path) == 0


@kinds
def test_consumers_cannot_write(ring_dir: Path, kind: str) -> None:
    with make(ring_dir, kind) as r, r.producer() as p, r.member("g", start="beginning") as m:
        reader = r.reader(start="beginning")
        p.put(bytes(16))
        view = reader.poll(0)
        with m.take(0) as lease:
            for shown in (lease, view):
                assert memoryview(shown.buffer).readonly
                assert not shown.array.flags.writeable
                with pytest.raises(ValueError, match=r"(?i)writ|read-only"):
                    shown.array[0] = 1
                with pytest.raises(ValueError, match=r"(?i)writ"):
                    shown.array.setflags(write=True)


def test_not_even_behind_numpys_back(in_child: Callable[..., str]) -> None:
    """The consumer's mapping itself is read-only: a write through a bare pointer is a segmentation fault."""
    in_child(
        """
        import ctypes, faulthandler
        r = ring.create(ring.RingSpec("t", slots=4, dtype="u1", shape=(64,)), directory=PLACE)
        with r.producer() as p, r.member("g", start="beginning") as m:
            p.put(bytes(64))
            array = m.take(0).array
            ctypes.memset(array.ctypes.data, 7, 1)
        """,
        code_wanted=-11,
    )


@kinds
@pytest.mark.parametrize("how", ["ack", "nack"])
def test_after_release_no_new_view_old_ones_stay(ring_dir: Path, kind: str, how: str) -> None:
    with make(ring_dir, kind) as r, r.producer() as p, r.member("g", start="beginning") as m:
        p.put(bytes(range(16)))
        lease = m.take(0)
        array, buffer = lease.array, lease.buffer
        getattr(lease, how)()
        assert array.tolist() == list(range(16)) and bytes(buffer) == bytes(range(16))
        for again in (lambda: memoryview(lease), lambda: np.frombuffer(lease, np.uint8)):
            with pytest.raises((BufferError, ComuxError)):
                again()
        with pytest.raises((BufferError, ComuxError)):
            lease.bytes()
        assert lease.offset == 0 and lease.timestamp_ns > 0  # facts are copies
        buffer.release()


@kinds
def test_what_holds_memory_refuses_to_pickle(ring_dir: Path, kind: str) -> None:
    with make(ring_dir, kind) as r, r.producer() as p, r.member("g", start="beginning") as m:
        reader = r.reader(start="beginning")
        p.put(bytes(16)), p.put(bytes(16))
        claim = p.claim(16 if kind == "variable" else None)
        lease, batch, view = m.take(0), m.take_many(1, 0), reader.poll(0)
        for thing in (claim, lease, batch, view):
            with pytest.raises(TypeError, match="pickle"):
                pickle.dumps(thing)
        claim.abort(), lease.ack(), batch.ack()


@kinds
def test_what_is_dropped_is_given_back_with_a_warning(ring_dir: Path, kind: str) -> None:
    with make(ring_dir, kind) as r, r.producer() as p, r.member("g", start="beginning") as m:
        p.put(bytes(16)), p.put(bytes(16))
        for drop in (lambda: m.take(0), lambda: m.take_many(1, 0), lambda: p.claim(16 if kind == "variable" else None)):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                drop()
                gc.collect()
            assert any(issubclass(w.category, ResourceWarning) for w in caught)
        assert not r.stats().open_claims
        again = [m.take(0), m.take(0)]
        assert all(lease.redelivered for lease in again)
        for lease in again:
            lease.ack()
        assert r.check() == []


def test_a_lapped_view_never_faults_and_never_lies(ring_dir: Path) -> None:
    with make(ring_dir, "fixed") as r, r.producer() as p:
        reader = r.reader(start="beginning")
        p.put(bytes([1] * 16))
        view = reader.poll(0)
        array = view.array
        assert view.valid() and array[0] == 1
        for i in range(2, 40):
            p.put(bytes([i] * 16))
        assert not view.valid()
        with pytest.raises(ComuxError):
            view.bytes()
        with pytest.raises(ComuxError):
            view.copy()
        assert array.shape == (16,) and int(array[0]) in range(1, 40)  # readable, not believable


@pytest.mark.core
@pytest.mark.parametrize("first", [2**31 - 5, 2**32 - 5, 2**53 - 5, 2**60 - 5])
@kinds
@pytest.mark.parametrize("writers", ["one", "many"])
def test_offsets_of_any_size_through_every_handle(ring_dir: Path, first: int, kind: str, writers: str) -> None:
    with make(ring_dir, kind, first_offset=first, writers=writers) as r:
        assert r.log_start == r.high_water == first
        p = r.producer()
        reader, late = r.reader(start="beginning"), r.reader(start=first)
        m, other = r.member("g", start="beginning"), r.member("h", start=first, on_end="wait")
        value = [bytes([i] * 16) for i in range(12)]
        for i in range(6):
            assert p.put(value[i], timestamp_ns=1000 + i, flags=i == 4) == first + i
        with p.claim(16 if kind == "variable" else None) as claim:
            claim.buffer[:] = value[6]
        assert claim.offset == first + 6
        if kind == "fixed":
            assert p.put_many(np.frombuffer(value[7], np.uint8).reshape(1, 16)) == first + 7
        else:
            assert p.put_many([value[7]]) == first + 7
        m.take(0).nack()
        with m.take_many(3, 0) as batch:
            seen = list(batch.offsets)
        again = None
        while (lease := m.take(0)) is not None:
            seen.append(lease.offset)
            again = lease.offset if lease.redelivered else again
            m.ack(lease.offset)
        assert sorted(seen) == list(range(first, first + 8))
        assert again == first or first in batch.offsets
        while (x := other.take(0)) is not None:
            assert x.bytes() == value[x.offset - first]
            x.ack()
        assert [reader.copy(0).offset for _ in range(8)] == list(range(first, first + 8))
        assert r.find_flag(1) == r.last_keyframe == first + 4 and r.find_time(1003) == first + 3
        assert late.seek_keyframe() and late.position == first + 4
        record = late.copy(0)
        assert (record.offset, record.skipped) == (first + 4, 4)
        assert bytes(r.record_at(first + 5).value) == value[5] and r.record_at(first - 1) is None
        for i in range(8, 12):
            p.put(value[i])
        assert r.observer().latest().offset == first + 11
        late.seek_end()
        assert late.position == r.high_water == first + 12
        assert r.log_start >= first + 4
        assert {g.name: g.lag for g in r.groups()} == {"g": 4, "h": 4}
        p.end()
        assert r.end_offset == first + 12
        assert r.check() == []
