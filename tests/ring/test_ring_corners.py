"""Places where two rules of the ring meet: each test was written against a way the core could go wrong there."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from comux import ring
from comux.errors import ComuxError, StaleLeaseError, TopicBusyError
from comux.testing.ring_faults import Job, VictimServer

pytestmark = pytest.mark.core


def make(place: Path, **fields: Any) -> ring.Ring:
    return ring.create(ring.RingSpec("t", **{"slots": 4, "data_bytes": 65536, **fields}), directory=place)


@pytest.mark.parametrize("how", ["ack", "nack", "drop"])
def test_a_lease_outlived_by_its_slot_cannot_touch_the_next_record_there(ring_dir: Path, how: str) -> None:
    """A record acknowledged by its offset leaves a lease behind; descriptors are reused, the lease must not be."""
    with make(ring_dir) as r, r.producer() as p, r.member("g", start="beginning") as m:
        p.put(b"first")
        stale = m.take(0)
        m.ack(stale.offset)
        for i in range(1, 5):
            p.put(str(i).encode())
            held = m.take(0)
            if i < 4:
                held.ack()
        assert (stale.offset, held.offset) == (0, 4)  # of one descriptor
        if how == "drop":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                del stale
                gc.collect()
        else:
            with pytest.raises(StaleLeaseError):
                getattr(stale, how)()
        assert m.take(0) is None, "the held record was given back"
        held.ack()  # still ours
        assert r.groups()[0].done == 5 and r.check() == []


def test_an_offset_one_lap_away_is_not_the_record_that_is_held(ring_dir: Path) -> None:
    with make(ring_dir) as r, r.producer() as p, r.member("g", start="beginning") as m:
        p.put(b"x")
        lease = m.take(0)
        for wrong in (lease.offset + 4, lease.offset + 1):
            with pytest.raises(StaleLeaseError):
                m.ack(wrong)
            with pytest.raises(StaleLeaseError):
                m.nack(wrong)
        lease.ack()


def test_a_lapped_reader_waits_while_every_slot_is_being_written(in_child: Callable[..., str]) -> None:
    """All descriptors belong to open claims, also the one that knew how many records were aborted before."""
    out = in_child(
        """
        r = ring.create(ring.RingSpec("t", slots=2, data_bytes=65536), directory=PLACE)
        reader = r.reader(start="beginning")
        p = r.producer()
        p.put(b"a"), p.put(b"b")
        claims = [p.claim(8), p.claim(8)]
        began = time.process_time()
        assert reader.copy(0.3) is None
        print(time.process_time() - began < 0.1)
        for c in claims:
            c.commit(0)
        print([reader.copy(1).offset for _ in range(2)], reader.lost)
        """
    )
    assert out.split("\n")[:2] == ["True", "[2, 3] 2"]


def test_aborted_records_are_counted_right_after_a_death_with_every_slot_claimed(
    ring_dir: Path, victims: VictimServer
) -> None:
    """Recovery rebuilds the count of aborted records from the newest published descriptor, which may be reused."""
    with make(ring_dir, slots=2) as r:
        reader = r.reader(start="beginning", on_end="wait")
        with r.producer() as p:
            for _ in range(3):
                with pytest.raises(KeyError), p.claim(8):
                    raise KeyError
        job = Job("fill", "t", str(ring_dir), str(ring_dir / "j"), options={"claims": 2})
        assert victims.run(job).signal == 9  # offset 3 put; 4 and 5 claimed
        r.reap()
        with r.producer() as p:
            p.put(b"x"), p.put(b"y")
        assert [reader.copy(1).offset, reader.copy(1).offset] == [6, 7]
        assert reader.lost == 1
        assert dict(reader.account().dropped) == {"lapped": 1, "aborted": 5}
        assert r.check() == []


def test_a_member_refused_for_want_of_ports_leaves_no_gating_group(ring_dir: Path) -> None:
    with make(ring_dir, max_ports=1) as r, r.producer() as p:
        with pytest.raises(TopicBusyError):
            r.member("g")
        assert r.groups() == []
        for _ in range(9):
            assert p.put(b"x", timeout=0) is not None


def test_a_process_whose_main_thread_left_is_alive(ring_dir: Path, in_child: Callable[..., str]) -> None:
    """The leader of such a process is a zombie in /proc while its other threads go on writing."""
    with make(ring_dir):
        out = in_child(
            """
            import ctypes, subprocess
            def work():
                try:
                    held()
                except BaseException as error:
                    print(repr(error), flush=True)
                os._exit(0)
            def held():
                r = ring.attach("t", directory=PLACE)
                p = r.producer()
                claim = p.claim(3)
                ready.set()
                stat = Path(f"/proc/{os.getpid()}/stat")
                while stat.read_text().rpartition(")")[2].split()[0] != "Z":
                    time.sleep(0.001)
                other = "import sys; from comux import ring; print(ring.attach('t', directory=sys.argv[1]).reap())"
                said = subprocess.run([sys.executable, "-c", other, str(PLACE)], capture_output=True, text=True)
                claim.buffer[:] = b"abc"
                claim.commit()
                print(said.stdout.strip(), claim.offset, r.record_at(0).value, said.stderr, flush=True)
            ready = threading.Event()
            threading.Thread(target=work).start()
            ready.wait()
            ctypes.CDLL(None).syscall(60, 0)  # exit of this thread only
            """
        )
    assert out.strip() == "0 0 b'abc'"


def test_two_open_claims_of_the_one_writer_are_refused(ring_dir: Path) -> None:
    """Its claims are private until they are published, so a second one would be the same record."""
    with make(ring_dir, writers="one") as r, r.producer() as p:
        claim = p.claim(4)
        with pytest.raises(ComuxError):
            p.claim(4, timeout=0.05)
        claim.buffer[:] = b"good"
        claim.commit()
        assert r.record_at(0).value == b"good" and p.put(b"next") == 1


def test_names_that_are_cut_in_the_middle_of_a_letter_are_shown(ring_dir: Path) -> None:
    """A name has 47 bytes in the segment; a letter of two may lie across the end."""
    with make(ring_dir) as r, r.producer("x" + "ä" * 40) as p, r.member("ä" * 23) as m:
        names = {port.name for port in r.stats().ports}
        assert any(name.startswith("x" + "ä" * 22) for name in names)
        assert r.groups()[0].name == "ä" * 23 and p is not m
