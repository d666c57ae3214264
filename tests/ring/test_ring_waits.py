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
from comux.testing.ring_faults import Job, VictimServer

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


@pytest.mark.parametrize("call", CALLS)
def test_waiting_costs_nothing_and_ends_in_time(call: str, in_child: Callable[..., str]) -> None:
    code = """
        began, cpu = time.monotonic(), time.process_time()
        assert not call()
        print(time.process_time() - cpu, time.monotonic() - began)
    """
    cpu, took = map(float, in_child(setup(call, 0.7) + textwrap.dedent(code)).split())
    assert cpu < 0.02, f"{cpu:.3f} s of processor time in 0.7 s of waiting"
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
    assert together < 0.02 and threads < 0.2


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
