"""Descriptors and event loops: a member and a reader tell a selector, nothing is lost and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from comux import ring
from comux.errors import ClosedError, EndOfStream
from comux.testing.ring_faults import Job, VictimServer, payload

WAIT = 30.0


def make(place: Path, **settings: Any) -> ring.Ring:
    return ring.create(ring.RingSpec("t", **{"slots": 64, "data_bytes": 65536, **settings}), directory=place)


def is_readable(handle: Any, timeout: float = 0.0) -> bool:
    return bool(select.select([handle], [], [], timeout)[0])


def threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def opened(topic: ring.Ring, kind: str) -> Any:
    return topic.member("g", start="beginning") if kind == "member" else topic.reader(start="beginning")


def step(handle: Any) -> Any:
    """One look that never waits; what a selector's user does."""
    if isinstance(handle, ring.Reader):
        return handle.poll(0)
    lease = handle.take(0)
    if lease is not None:
        lease.ack()
    return lease


@pytest.mark.core
@pytest.mark.parametrize("kind", ["member", "reader"])
@pytest.mark.parametrize("writers", ["one", "many"])
def test_the_descriptor_is_readable_while_there_is_something(kind: str, writers: str, ring_dir: Path) -> None:
    before = threads()
    with make(ring_dir, writers=writers) as topic, topic.producer() as producer:
        handle = opened(topic, kind)
        assert not is_readable(handle)
        for _ in range(20):
            producer.put_many([b"0", b"1"])
            assert is_readable(handle, WAIT)
            assert step(handle).offset is not None
            assert is_readable(handle, WAIT), "one is left"
            assert step(handle) is not None
            assert step(handle) is None
            assert not is_readable(handle)
        producer.put(b"2")
        assert is_readable(handle, WAIT)
        assert step(handle) is not None and step(handle) is None
        assert not is_readable(handle)
        producer.end()
        assert is_readable(handle, WAIT), "the end"
        with pytest.raises(EndOfStream):
            step(handle)
        descriptor = handle.fileno()
        assert handle.fileno() == descriptor
        handle.close()
        with pytest.raises(ClosedError):
            handle.fileno()
        with pytest.raises(OSError):
            os.fstat(descriptor)
        assert threads() <= before  # one of another library may have ended


def test_every_reason_to_look_makes_a_member_readable(ring_dir: Path, victims: VictimServer) -> None:
    with make(ring_dir) as topic, topic.producer() as producer:
        waits, fellow = topic.member("g", start="beginning"), topic.member("g", name="fellow")
        waits.fileno()

        def quiet() -> None:
            while step(waits) is not None:
                pass

        def given() -> ring.Lease:
            producer.put(payload(1, 64))
            lease = fellow.take(WAIT)
            quiet()
            return lease

        lease = given()
        lease.nack()
        assert is_readable(waits, WAIT) and waits.take(0).redelivered
        quiet()
        lease = given()
        topic.claim_stale("g", 0)
        assert is_readable(waits, WAIT)
        quiet()
        del lease
        topic.pause("g")
        producer.put(payload(2, 64))
        assert waits.take(0) is None
        topic.resume("g")
        assert is_readable(waits, WAIT)
        quiet()
        held = given()
        fellow.close()
        assert is_readable(waits, WAIT)
        quiet()
        producer.put(payload(3, 64))
        assert not held.held
        quiet()
        producer.put_many([payload(4, 64)] * 3)
        job = Job("hold", "t", str(ring_dir), str(ring_dir / "journal"), options={"count": 3})
        assert victims.run(job).signal == signal.SIGKILL
        assert is_readable(waits, WAIT), "what the dead held"
        quiet()
        waits.wakeup()
        assert is_readable(waits, WAIT)
        assert waits.take(5) is None
        assert topic.check() == []


@pytest.mark.parametrize("kind", ["member", "reader"])
def test_async_for_hands_out_everything_and_stops_at_the_end(kind: str, ring_dir: Path) -> None:
    async def collect(handle: Any) -> list[int]:
        out = []
        async for shown in handle:
            out.append(int(shown.bytes()))
            if kind == "member":
                shown.ack()
        return out

    with make(ring_dir) as topic:
        handle = opened(topic, kind)

        def produce() -> None:
            with topic.producer() as producer:
                for i in range(300):
                    producer.put(b"%d" % i)
                    if kind == "reader":
                        while handle.lag > 32:
                            threading.Event().wait(0.001)
                producer.end()

        thread = threading.Thread(target=produce)
        thread.start()
        assert asyncio.run(asyncio.wait_for(collect(handle), WAIT)) == list(range(300))
        thread.join()


def test_tasks_share_a_member_and_a_cancelled_one_takes_nothing_along(ring_dir: Path) -> None:
    async def collect(member: ring.Member, into: list[int]) -> None:
        async for lease in member:
            into.append(int(lease.bytes()))
            lease.ack()

    async def main() -> list[int]:
        got: list[list[int]] = [[], [], []]
        with topic.member("g", start="beginning") as a, topic.member("g") as b, topic.producer() as producer:
            tasks = [asyncio.ensure_future(collect(m, g)) for m, g in zip((a, a, b), got, strict=True)]
            for i in range(50):
                producer.put(b"%d" % i)
                if i % 10 == 5:
                    tasks[0].cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await tasks[0]
                    tasks[0] = asyncio.ensure_future(collect(a, got[0]))
                await asyncio.sleep(0)
            producer.end()
            await asyncio.wait_for(asyncio.gather(*tasks), WAIT)
            assert a.account().balanced and a.account().dropped_total == 0
        return sorted(got[0] + got[1] + got[2])

    with make(ring_dir) as topic:
        assert asyncio.run(main()) == list(range(50))
        assert topic.check() == []


@pytest.mark.parametrize("kind", ["member", "reader"])
def test_closing_ends_the_wait_of_a_task(kind: str, ring_dir: Path) -> None:
    async def main() -> None:
        with make(ring_dir) as topic:
            handle = opened(topic, kind)
            task = asyncio.ensure_future(anext(handle))
            await asyncio.sleep(0.05)
            assert not task.done()
            handle.close()
            with pytest.raises(ClosedError):
                await asyncio.wait_for(task, WAIT)

    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    asyncio.run(main())
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_descriptors_cost_nothing_while_nothing_happens(in_child: Callable[..., str]) -> None:
    out = in_child(
        """
        import selectors
        topics = [ring.create(ring.RingSpec(f"t{i}", slots=4, data_bytes=65536), directory=PLACE) for i in range(16)]
        handles = [t.reader() for t in topics] + [t.member("g") for t in topics]
        selector = selectors.DefaultSelector()
        for handle in handles:
            selector.register(handle, selectors.EVENT_READ)
        cpu = time.process_time()
        assert selector.select(1.5) == []
        print(time.process_time() - cpu)
        """
    )
    assert float(out) < 0.1


def test_a_forked_child_has_no_bell(in_child: Callable[..., str]) -> None:
    """It closes what it inherited without waiting for a thread that does not exist there; the parent goes on."""
    out = in_child(
        """
        import select
        from comux.errors import ClosedError, EndOfStream
        topic = ring.create(ring.RingSpec("t", slots=4, data_bytes=65536), directory=PLACE)
        member, reader, producer = topic.member("g"), topic.reader(), topic.producer()
        member.fileno(), reader.fileno()
        pid = os.fork()
        if pid == 0:
            codes = 0
            for handle in (member, reader):
                try:
                    handle.fileno()
                except ClosedError:
                    codes += 1
            member.close()
            del reader, handle
            os._exit(codes)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status))
        producer.put(b"x")
        print(len(select.select([member, reader], [], [], 20)[0]) >= 1, topic.check())
        """
    )
    assert out.split("\n")[:2] == ["2", "True []"]
