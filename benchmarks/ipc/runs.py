"""One measurement: processes that start at once, a deadline, and what each of them saw."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any

import numpy as np
from ipc.adapters import ONE, SHARED, Adapter, Job
from ipc.tally import Check, Ended, Tally, payloads, receive_shared, settle_shared

START_S = 60.0  #: for processes to start, connect and stop, beside the time that records take
HZ = 1000  #: records a second whose latency is measured


class Failed(Exception):
    """A measurement that came to no end, or an adapter's error."""


@contextmanager
def job_of(size: int, topology: str) -> Iterator[Job]:
    """A job with its folder."""
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="comux-bench-", dir=shm if shm.is_dir() else None))
    try:
        yield Job(size, topology, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _child(work: Callable[..., Any], out: Connection, *arguments: Any) -> None:
    try:
        out.send(("done", work(*arguments)))
    except BaseException as error:  # noqa: BLE001 - told to who waits for it
        out.send(("failed", f"{type(error).__name__}: {error}"))
    out.close()


@contextmanager
def children(context: SpawnContext, works: list[tuple[Callable[..., Any], tuple[Any, ...]]]) -> Iterator[list[Any]]:
    """A process for each work, as (process, pipe with its answer); killed where they still run at the end."""
    started = []
    try:
        for work, arguments in works:
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(work, sender, *arguments))
            process.start()
            sender.close()
            started.append((process, receiver))
        yield started
    finally:
        for process, receiver in started:
            process.join(0 if sys.exc_info()[0] is not None else 10)
            if process.is_alive():
                process.kill()
                process.join()
            receiver.close()


def answers(started: list[Any], seconds: float) -> list[Any]:
    """What each process returned.

    Raises:
        Failed: one raised, died, or did not end in time.
    """
    deadline = time.monotonic() + seconds
    open_pipes = {receiver: i for i, (_, receiver) in enumerate(started)}
    found: list[Any] = [None] * len(started)
    while open_pipes:
        ready = wait(list(open_pipes), max(0.0, deadline - time.monotonic()))
        if not ready:
            raise Failed(f"no end within {seconds:.0f} s")
        for receiver in ready:
            i = open_pipes.pop(receiver)  # type: ignore[arg-type]
            try:
                what, found[i] = receiver.recv()  # type: ignore[union-attr]
            except EOFError:
                raise Failed("a process died") from None
            if what == "failed":
                raise Failed(found[i])
    return found


# -- how many a second ---------------------------------------------------------------------------------------------


def _produce(adapter: Adapter, n: int, go: Any) -> None:
    adapter.produce(n, lambda: go.wait(START_S))


def _consume(adapter: Adapter, index: int, n: int, go: Any) -> Tally:
    return adapter.consume(index, n, lambda: go.wait(START_S))


def throughput(kind: type[Adapter], size: int, topology: str, n: int, seconds: float, context: SpawnContext) -> Any:
    """Records per second (of the slowest consumer; of all together where they share), and the books.

    Raises:
        Failed: see ``answers``.
    """
    with job_of(size, topology) as job:
        adapter = kind(job, context)
        try:
            go = context.Barrier(job.consumers + 1)
            works: list[Any] = [(_produce, (adapter, n, go))]
            works += [(_consume, (adapter, i, n, go)) for i in range(job.consumers)]
            with children(context, works) as started:
                tallies: list[Tally] = answers(started, START_S + 20 * seconds)[1:]
        finally:
            adapter.teardown()
    torn = sum(tally.torn for tally in tallies)
    if job.shared:
        lost, duplicated = settle_shared(tallies, n, size)
        span = max(tally.last for tally in tallies) - min(tally.first for tally in tallies if tally.first)
        rate = (n - 1) / span
    else:
        lost, duplicated = sum(tally.lost for tally in tallies), sum(tally.duplicated for tally in tallies)
        rate = min((tally.received - 1) / (tally.last - tally.first) for tally in tallies)
    return {"rate": rate, "lost": lost, "duplicated": duplicated, "torn": torn}


# -- a consumer that is killed -------------------------------------------------------------------------------------


def _die(adapter: Adapter, finished: int, go: Any) -> None:
    with adapter.receiver(0) as get:
        go.wait(START_S)
        for _ in range(finished + 1):
            get()
        os.kill(os.getpid(), signal.SIGKILL)


def _survive(adapter: Adapter, go: Any, then: Any) -> Tally:
    with adapter.receiver(1) as get:
        go.wait(START_S)
        return receive_shared(get, adapter.job.size, lambda: then.wait(START_S))


def kill(kind: type[Adapter], size: int, n: int, seconds: float, context: SpawnContext) -> Any:
    """Of two that share, one finishes ten records and dies with the next one in its hands; the other takes the rest.

    Returns:
        Whether the other came to the end within ``seconds``, and how many records nobody got.

    Raises:
        Failed: see ``answers``.
    """
    finished = 10
    with job_of(size, SHARED) as job:
        adapter = kind(job, context)
        try:
            go, then = context.Barrier(3), context.Event()
            works: list[Any] = [(_die, (adapter, finished, go)), (_survive, (adapter, go, then))]
            works.append((_produce, (adapter, n, go)))
            with children(context, works) as started:
                started[0][0].join(START_S)
                if started[0][0].exitcode != -signal.SIGKILL:
                    raise Failed("the consumer that was to die did not")
                then.set()
                try:
                    (tally,) = answers(started[1:2], seconds)
                except Failed as error:
                    if "no end" not in str(error):
                        raise
                    for process, _ in started[1:]:
                        process.kill()
                    return {"went_on": False, "lost": None}
                for process, _ in started[2:]:
                    process.join(1)
                    process.kill()  # it may wait for the dead to let go of something
        finally:
            adapter.teardown()
    return {"went_on": True, "lost": max(0, n - finished - tally.received)}


# -- ours: how long it takes to make one, and to hand on what a killed holder had ------------------------------------


def _hold(folder: str, ready: Any) -> None:
    from comux import ring

    with ring.attach("bench", directory=folder) as topic, topic.member("g") as member:
        lease = member.take(START_S)
        ready.set()
        time.sleep(START_S)
        lease.ack()


def construct_s() -> float:
    """Seconds to create a ring of 100,000 slots and attach to it."""
    from comux import ring

    with job_of(64, ONE) as job:
        began = time.monotonic()
        ring.create(ring.RingSpec("bench", slots=100_000), directory=job.folder).close()
        return time.monotonic() - began


def redelivery_s(context: SpawnContext) -> float:
    """Seconds from the kill -9 of a record's holder until another member, which waits, has the record."""
    from comux import ring

    with (
        job_of(64, ONE) as job,
        ring.create(ring.RingSpec("bench", slots=64), directory=job.folder) as topic,
        topic.member("g", start="beginning") as member,
        topic.producer() as producer,
    ):
        producer.put(b"record")
        ready = context.Event()
        with children(context, [(_hold, (str(job.folder), ready))]) as started:
            if not ready.wait(START_S):
                raise Failed("the holder did not start")
            stamps: list[float] = []

            def kill_it() -> None:
                stamps.append(time.monotonic())
                started[0][0].kill()

            killer = threading.Timer(0.5, kill_it)  # we wait for the record by then
            killer.start()
            lease = member.take(START_S)
            at = time.monotonic()
            killer.join()
            if lease is None or not lease.redelivered:
                raise Failed("the record did not come again")
            lease.ack()
            return at - stamps[0]


# -- how long one takes, and what waiting costs --------------------------------------------------------------------


def _pace(adapter: Adapter, n: int, ready: Any, go: Any) -> None:
    *data, end = payloads(adapter.job.size)
    bodies = [payload[8:] for payload in data]
    with adapter.sender() as send:
        ready.wait(START_S)
        go.wait(START_S)
        due = time.monotonic_ns() + 10_000_000
        for i in range(n):
            ahead = due - time.monotonic_ns()
            if ahead > 0:
                time.sleep(ahead / 1e9)
            due += 10**9 // HZ
            send(time.monotonic_ns().to_bytes(8, "little") + bodies[i % len(bodies)])
        send(end)


def _clock(adapter: Adapter, n: int, ready: Any) -> tuple[list[int], int]:
    check, sent = Check(adapter.job.size), payloads(adapter.job.size)
    expected = [check.checksum(payload[8:]) for payload in sent[:-1]]
    took, wrong, now = [], 0, time.monotonic_ns
    with adapter.receiver(0) as get:
        ready.wait(START_S)
        try:
            for i in range(n):
                view = memoryview(get())
                at = now()
                took.append(at - int.from_bytes(view[:8], "little"))
                wrong += check.checksum(view[8:]) != expected[i % len(expected)]
                view.release()
            get()
        except Ended:
            wrong += n - len(took)
    return took, wrong


def _processor_ns(pid: int) -> int:
    """Processor time of all threads of a process."""
    tasks = Path(f"/proc/{pid}/task")
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir())


def latency(kind: type[Adapter], size: int, n: int, idle_s: float, context: SpawnContext) -> Any:
    """Microseconds from before the send to after the receive, at 1 kHz; and the share of a core while nothing comes.

    Raises:
        Failed: see ``answers``.
    """
    with job_of(size, ONE) as job:
        adapter = kind(job, context)
        try:
            ready, go = context.Barrier(3), context.Event()
            works: list[Any] = [(_pace, (adapter, n, ready, go)), (_clock, (adapter, n, ready))]
            with children(context, works) as started:
                ready.wait(START_S)
                time.sleep(0.2)  # the consumer goes to sleep, if it does
                waiting = started[1][0].pid
                before, began = _processor_ns(waiting), time.monotonic()
                time.sleep(idle_s)
                idle = (_processor_ns(waiting) - before) / 1e9 / (time.monotonic() - began)
                go.set()
                took, wrong = answers(started, START_S + 5 * n / HZ)[1]
        finally:
            adapter.teardown()
    p50, p99, p999 = np.percentile(took[len(took) // 20 :], [50, 99, 99.9]) / 1e3
    return {"p50": float(p50), "p99": float(p99), "p99.9": float(p999), "idle": 100 * idle, "wrong": wrong}
