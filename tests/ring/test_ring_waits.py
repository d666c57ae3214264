"""Waiting: nothing burns the processor, nothing is slept through, everything can be interrupted, no deadline moves."""

from __future__ import annotations

import os
import signal
import statistics
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from comux import ring
from comux.errors import ClosedError, WaitTimeoutError
from comux.ring import spec as ring_spec
from comux.testing.ring_faults import Job, VictimServer, payload, read_journal

#: A busy wait takes all of its time on a processor, a sleeping one a few milliseconds: told apart with a wide margin,
#: for the sleeping one on a machine that is slow or crowded (the benchmark says what waiting costs).
BUSY = 0.4

#: Calls that wait, on a topic in which nothing happens: ``empty`` has no records, ``full`` no room.
CALLS = {
    "take": "member.take({t})",
    "take_many": "member.take_many(3, {t})",
    "poll": "reader.poll({t})",
    "copy": "reader.copy({t})",
    "wait_any": "ring.wait_any([reader, member], {t})",
    "put": "producer.put(b'x', timeout={t})",
    "put_many": "producer.put_many([b'x', b'y'], timeout={t})",
    "claim": "producer.claim(5, timeout={t})",
}
SETUP = """
from comux.errors import WaitTimeoutError
empty = ring.create(ring.RingSpec("empty", slots=4, data_bytes=65536), directory=PLACE)
reader, member = empty.reader(), empty.member("g")
full = ring.create(ring.RingSpec("full", slots=4, data_bytes=65536, writers=WRITERS), directory=PLACE)
idle = full.member("g")
producer = full.producer()
for _ in range(4):
    producer.put(b"x")
def call():
    try:
        return {call}
    except WaitTimeoutError:
        return None
"""


def setup(call: str, t: float | None, writers: str = "many") -> str:
    return f"WRITERS = {writers!r}\n" + SETUP.format(call=CALLS[call].format(t=t))


@pytest.mark.core
def test_a_record_published_between_look_and_registration_is_not_slept_through(
    ring_dir: Path, victims: VictimServer, wait_until: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one writer takes no lock: it may publish while a member that found nothing is about to register.

    The member stands still just there; no heartbeat can help it, there is none for ten minutes.
    """
    monkeypatch.setattr(ring_spec, "HEARTBEAT_NS", 600 * 10**9)
    spec = ring.RingSpec("t", slots=8, data_bytes=65536, writers="one")
    with ring.create(spec, directory=ring_dir) as r, r.member("g") as idle, r.producer() as p:
        p.put(payload(0))  # from here on the producer has room and needs no lock
        lease = idle.take(0)
        assert lease is not None
        lease.ack()
        journal = ring_dir / "journal"
        options = {"timeout": 600}
        job = Job("wait_member", "t", str(ring_dir), str(journal), "take.nothing", action="stop", options=options)
        pid = victims.start(job)
        stat = Path(f"/proc/{pid}/stat")
        wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "the member stands still", 30)
        p.put(payload(1))
        os.kill(pid, signal.SIGCONT)
        assert victims.wait(pid, 60).signal == 0
        assert ("start", ["1", "1", "0"]) in read_journal(journal)


@pytest.mark.core
def test_a_producer_does_not_wait_for_the_ack_of_an_aborted_record(
    ring_dir: Path, wait_until: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two slots, a record and an aborted one: who wants both waits for the ack of the record alone."""
    monkeypatch.setattr(ring_spec, "HEARTBEAT_NS", 600 * 10**9)
    with ring.create(ring.RingSpec("t", slots=2, data_bytes=65536), directory=ring_dir) as r, r.producer() as p:
        member = r.member("g")
        p.put(b"record")
        with pytest.raises(KeyError), p.claim(4):
            raise KeyError
        put: list[int | None] = []
        thread = threading.Thread(target=lambda: put.append(p.put_many([b"a", b"b"], timeout=600)))
        thread.start()
        wait_until(lambda: r.stats().blocked_s > 0.2, "the producer waits", 30)
        lease = member.take(0)
        assert lease is not None and lease.offset == 0
        lease.ack()  # and does not come back to take
        thread.join(30)
        stuck = thread.is_alive()
        member.close()
        p.close()
        thread.join(30)
        assert not stuck and put == [2]


@pytest.mark.parametrize("call", CALLS)
def test_waiting_costs_nothing_and_ends_in_time(call: str, in_child: Callable[..., str]) -> None:
    code = """
        began, cpu = time.monotonic(), time.process_time()
        assert not call()
        print(time.process_time() - cpu, time.monotonic() - began)
    """
    cpu, took = map(float, in_child(setup(call, 0.7) + textwrap.dedent(code)).split())
    assert cpu < 0.7 * BUSY, f"{cpu:.3f} s of processor time in 0.7 s of waiting"
    assert 0.69 <= took < 3


def test_many_idle_topics_cost_nothing(in_child: Callable[..., str]) -> None:
    out = in_child(
        """
        rings = [ring.create(ring.RingSpec(f"t{i}", slots=4, data_bytes=65536), directory=PLACE) for i in range(64)]
        readers = [r.reader() for r in rings]
        threads = [threading.Thread(target=r.poll, args=(1.5,)) for r in readers]
        cpu = time.process_time()
        for t in threads: t.start()
        started = time.process_time() - cpu
        for t in threads: t.join()
        print(time.process_time() - cpu - started)
        cpu = time.process_time()
        assert ring.wait_any(readers, 1.0) == []
        print(time.process_time() - cpu)
        """
    )
    threads, together = map(float, out.split())
    assert together < 1.0 * BUSY and threads < 1.5 * BUSY


@pytest.mark.parametrize("call", CALLS)
def test_ctrl_c_ends_a_wait(call: str, in_child: Callable[..., str]) -> None:
    code = """
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
began = time.monotonic()
try:
    call()
    print("returned")
except KeyboardInterrupt:
    print("interrupted", time.monotonic() - began < 2.2)
print(empty.check(), full.check())
"""
    assert in_child(setup(call, None) + code).split("\n")[:2] == ["interrupted True", "[] []"]


@pytest.mark.parametrize("call", CALLS)
def test_ctrl_c_that_interrupts_no_system_call_ends_a_wait(call: str, in_child: Callable[..., str]) -> None:
    """Another thread receives the signal; it is the same for one that comes just before the wait falls asleep."""
    code = """
masked, over = threading.Event(), threading.Event()
def interrupt():
    masked.wait()
    os.kill(os.getpid(), signal.SIGINT)
    over.wait()
thread = threading.Thread(target=interrupt)
thread.start()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
masked.set()
began = time.monotonic()
try:
    call()
    print("returned")
except KeyboardInterrupt:
    print("interrupted", time.monotonic() - began < 10)
over.set()
print(empty.check(), full.check())
"""
    assert in_child(setup(call, None) + code).split("\n")[:2] == ["interrupted True", "[] []"]


@pytest.mark.parametrize(("call", "writers"), [(call, "many") for call in CALLS] + [("put", "one"), ("claim", "one")])
def test_a_handler_that_returns_keeps_the_deadline(call: str, writers: str, in_child: Callable[..., str]) -> None:
    code = """
hits = []
signal.signal(signal.SIGALRM, lambda *a: hits.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.03, 0.03)
began = time.monotonic()
call()
took = time.monotonic() - began
signal.setitimer(signal.ITIMER_REAL, 0)
print(0.29 <= took < 2, len(hits) > 2, empty.check(), full.check())
"""
    assert in_child(setup(call, 0.3, writers) + code).strip() == "True True [] []"


@pytest.mark.parametrize("writers", ["one", "many"])
def test_no_wake_up_is_slept_through(ring_dir: Path, writers: str, in_child: Callable[..., str]) -> None:
    """Ping-pong with a process: were wake-ups lost, each round would take heartbeats."""
    with (
        ring.create(ring.RingSpec("ping", slots=4, data_bytes=65536, writers=writers), directory=ring_dir) as ping,
        ring.create(ring.RingSpec("pong", slots=4, data_bytes=65536, writers=writers), directory=ring_dir) as pong,
    ):
        reader, p = pong.reader(), ping.producer()
        took = []

        def serve() -> None:
            assert reader.copy(10) is not None, "the child is not there"
            for i in range(200):
                began = time.monotonic()
                p.put(str(i).encode())
                record = reader.copy(5)
                assert record is not None and record.value == str(i).encode()
                took.append(time.monotonic() - began)

        thread = threading.Thread(target=serve, name="comux-test-ping")
        thread.start()
        in_child(
            """
            ping, pong = ring.attach("ping", directory=PLACE), ring.attach("pong", directory=PLACE)
            member, p = ping.member("g"), pong.producer()
            p.put(b"ready")
            for _ in range(200):
                with member.take(10) as lease:
                    p.put(lease.bytes())
            """
        )
        thread.join(10)
    assert len(took) == 200
    assert statistics.median(took) < 0.05


def in_thread(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Run ``call`` in a thread; the list gets its result or its error."""
    out: list[Any] = []

    def work() -> None:
        try:
            out.append(call())
        except Exception as error:  # noqa: BLE001 - compared by the test
            out.append(error)

    thread = threading.Thread(target=work, name="comux-test-waiter")
    thread.start()
    return thread, out


@pytest.mark.parametrize("writers", ["one", "many"])
def test_close_reaches_a_producer_that_waits(ring_dir: Path, writers: str, wait_until: Any) -> None:
    with ring.create(ring.RingSpec("t", slots=2, data_bytes=65536, writers=writers), directory=ring_dir) as r:
        r.member("g", start="beginning")
        p = r.producer()
        p.put(b"a"), p.put(b"b")
        thread, out = in_thread(lambda: p.put(b"c", timeout=30))
        wait_until(lambda: any(port.waiting for port in r.stats().ports), "it waits")
        p.close()
        thread.join(5)
        assert isinstance(out[0], ClosedError)
        assert r.check() == [] and r.high_water == 2


def test_wait_any_wakes_for_each_kind_of_news(ring_dir: Path) -> None:
    with ring.create(ring.RingSpec("t", slots=4, data_bytes=65536), directory=ring_dir) as r, r.producer() as p:
        reader, member = r.reader(), r.member("g")
        thread, out = in_thread(lambda: ring.wait_any([reader, member], 30))
        threading.Timer(0.1, p.put, (b"x",)).start()
        thread.join(10)
        assert out and set(out[0]) <= {reader, member} and out[0]
        assert set(ring.wait_any([reader, member], 0)) == {reader, member}
        member.take(0).ack()
        reader.copy(0)
        assert ring.wait_any([reader, member], 0) == []
        thread, out = in_thread(lambda: ring.wait_any([reader, member], 30))
        threading.Timer(0.1, p.end).start()
        thread.join(10)
        assert out and out[0], "the end is news"


def test_a_stopped_holder_of_the_lock_is_named_and_nothing_breaks(
    ring_dir: Path, victims: VictimServer, wait_until: Any
) -> None:
    """SIGSTOP inside of the lock: not dead, so nobody takes the lock; every call says who it is after a second."""
    with ring.create(ring.RingSpec("t", slots=8, data_bytes=65536), directory=ring_dir) as r:
        p, m = r.producer(), r.member("g")
        pid = victims.start(Job("produce", "t", str(ring_dir), str(ring_dir / "j"), "lock.held", action="stop"))
        stat = Path(f"/proc/{pid}/stat")
        wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "it stands still")
        for call in (lambda: p.put(b"x", timeout=0.1), lambda: m.take(0.1)):
            with pytest.raises(WaitTimeoutError, match=rf"{pid}.*stopped"):
                call()
        os.kill(pid, signal.SIGCONT)
        assert victims.wait(pid).code == 0
        assert p.put(b"x", timeout=5) == 6 and m.take(5) is not None
        assert r.stats().takeovers == 0 and r.check() == []


WITHOUT_WAITV = """
rings = [ring.create(ring.RingSpec(f"t{i}", slots=4, data_bytes=65536), directory=PLACE) for i in range(5)]
handles = [r.reader() for r in rings[:3]] + [r.member("g") for r in rings[3:]]
producers = [r.producer() for r in rings]
cpu, began = time.process_time(), time.monotonic()
assert ring.wait_any(handles, 0.7) == []
print(time.process_time() - cpu, time.monotonic() - began)
for handle, producer in zip(handles, producers):
    threading.Timer(0.05, producer.put, (b"x",)).start()
    assert ring.wait_any(handles, 20) == [handle]
    if isinstance(handle, ring.Reader):
        handle.poll(0)
    else:
        handle.take(0).ack()
threading.Timer(0.05, handles[4].wakeup).start()
assert ring.wait_any(handles, 20) == [handles[4]]
assert handles[4].take(20) is None
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    ring.wait_any(handles, 20)
except KeyboardInterrupt:
    print("interrupted", [r.check() for r in rings])
"""


@pytest.mark.parametrize("waitv", [True, False], ids=["futex_waitv", "fallback"])
def test_wait_any_with_and_without_futex_waitv(
    waitv: bool, in_child: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels before 5.16, and filters that refuse the call: short sleeps on one word, the same answers."""
    monkeypatch.setenv("COMUX_RING_FAILPOINTS", "1")
    if not waitv:
        monkeypatch.setenv("COMUX_NO_WAITV", "1")
    times, said = in_child(WITHOUT_WAITV, timeout=60).splitlines()
    cpu, took = map(float, times.split())
    assert 0.69 <= took < 10 and cpu < 0.7 * BUSY
    assert said == "interrupted [[], [], [], [], []]"
