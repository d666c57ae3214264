"""One adapter per way of moving records between Python processes; each runs the same loops over the same payloads.

An adapter offers a sender (a function that takes a payload) and receivers (functions that return something whose bytes
can be read until the next call). The loops around them are shared; where a call more would cost as much as the
hand-over itself, an adapter writes its loop out. Every way is used as its own documentation shows it for throughput.

Here: comux's ring, and the limit. ``rivals`` has the others.
"""

from __future__ import annotations

import importlib
import multiprocessing as mp
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any

import numpy as np
from ipc.tally import Check, Ended, Get, Tally, in_turn, payloads, receive_in_order, receive_shared

ONE, FAN_OUT, SHARED = "1 to 1", "1 to 4", "1 to 2, shared"
CONSUMERS = {ONE: 1, FAN_OUT: 4, SHARED: 2}
IN_FLIGHT = 16 * 2**20  #: bytes, about; the same for everyone that has a limit to set
BATCH_BYTES = 256 * 1024
PATIENCE_S = 60.0  #: after which a receiver that has such a thing gives up

Send = Callable[[Any], Any]


@dataclass(frozen=True)
class Job:
    """What is to be moved.

    Attributes:
        size: Bytes of a record.
        topology: ``ONE``; ``FAN_OUT``: each consumer gets all; ``SHARED``: they share them.
        folder: In shared memory, empty, removed afterwards.
    """

    size: int
    topology: str
    folder: Path

    @property
    def consumers(self) -> int:
        return CONSUMERS[self.topology]

    @property
    def shared(self) -> bool:
        return self.topology == SHARED

    @property
    def queues(self) -> int:
        """One that all share, or one for each consumer."""
        return 1 if self.shared else self.consumers

    @property
    def depth(self) -> int:
        """Slots, for everyone who has them to set. Many of small records: a batch must not be half of a ring."""
        return max(8, min(8192 if self.size <= 1024 else 1024, IN_FLIGHT // self.size))


class Adapter(ABC):
    """One way.

    Attributes:
        name: In the tables.
        package: That brings it: (module, distribution); ``None``: Python itself.
        topologies: It can do.
        rates: Records per second and size, about, so that runs last about equally long.
        ours: Whether it is comux.
        rival: Whether ours are compared with it.
    """

    name: str
    package: tuple[str, str] | None = None
    topologies: tuple[str, ...] = (ONE, FAN_OUT, SHARED)
    sizes: tuple[int, ...] | None = None
    rates: dict[int, int] = {}  # noqa: RUF012 - a constant of each class
    ours = False
    rival = True
    throughput = True

    def __init__(self, job: Job, context: SpawnContext) -> None:
        self.job = job
        self.setup(context)

    @classmethod
    def absent(cls) -> str | None:
        """Why it cannot be used here; ``None`` where it can."""
        if cls.package is None:
            return None
        try:
            importlib.import_module(cls.package[0])
        except Exception as error:  # noqa: BLE001 - whatever an import of others' code meets
            return f"{type(error).__name__}: {error}"
        return None

    @abstractmethod
    def setup(self, context: SpawnContext) -> None:
        """In the process that starts the others."""

    @abstractmethod
    def sender(self) -> Any:
        """Context manager of a ``Send``."""

    @abstractmethod
    def receiver(self, index: int) -> Any:
        """Context manager of a ``Get``."""

    def teardown(self) -> None:  # noqa: B027 - most have nothing to do
        """In the process that started the others, which have ended."""

    def produce(self, n: int, ready: Callable[[], Any]) -> None:
        """Send ``n`` records once ``ready`` returned, then the end once for each consumer of a queue."""
        *data, end = payloads(self.job.size)
        with self.sender() as send:
            ready()
            for payload in in_turn(data, n):
                send(payload)
            for _ in range(self.job.consumers if self.job.shared else 1):
                send(end)

    def consume(self, index: int, n: int, ready: Callable[[], Any]) -> Tally:
        """Receive what there is for consumer ``index``; ``ready`` is called when the first record may come."""
        with self.receiver(index) as get:
            if self.job.shared:
                return receive_shared(get, self.job.size, ready)
            return receive_in_order(get, n, self.job.size, ready)


class Ring(Adapter):
    """comux's ring, one record per call."""

    name = "comux ring"
    ours = True
    rates = {64: 6_000_000, 4096: 2_000_000, 24_000: 700_000, 2**20: 12_000, 6_220_800: 2_000}  # noqa: RUF012
    writers = "one"
    layout = "ring"

    def setup(self, context: SpawnContext) -> None:
        from comux import ring

        spec = ring.RingSpec(
            "bench",
            slots=self.job.depth,
            dtype=np.uint8,
            shape=(self.job.size,),
            writers=self.writers,
            layout=self.layout,
        )
        with ring.create(spec, directory=self.job.folder) as topic:
            for i in range(self.job.queues):
                topic.member(f"g{i}", start="beginning", durable=True).close()

    @contextmanager
    def topic(self) -> Iterator[Any]:
        from comux import ring

        with ring.attach("bench", directory=self.job.folder) as topic:
            yield topic

    @contextmanager
    def member(self, index: int) -> Iterator[Any]:
        with self.topic() as topic, topic.member("g0" if self.job.shared else f"g{index}") as member:
            yield member

    @contextmanager
    def sender(self) -> Iterator[Send]:
        with self.topic() as topic, topic.producer() as producer:
            yield producer.put
            producer.end()

    @contextmanager
    def receiver(self, index: int) -> Iterator[Get]:
        from comux.errors import EndOfStream

        held: list[Any] = []
        with self.member(index) as member:

            def get() -> Any:
                if held:
                    held.pop().ack()
                try:
                    held.append(self.take(member))
                except EndOfStream:
                    raise Ended from None
                return held[0]

            yield get
            while held:
                held.pop().ack()

    def take(self, member: Any) -> Any:
        return member.take()

    def consume(self, index: int, n: int, ready: Callable[[], Any]) -> Tally:
        """The shared loops, written out: a call more would cost a fifth of what the ring itself does."""
        if self.job.shared:
            return self._consume_shared(index, ready)
        check, tally = Check(self.job.size), Tally()
        checksum, wanted = check.checksum, in_turn(check.expected, n)
        with self.member(index) as member:
            ready()
            take = member.take
            for part in (islice(wanted, 1), wanted):
                for want in part:
                    lease = take()
                    if checksum(lease) != want:
                        raise AssertionError(f"offset {lease.offset} is not the record that was sent")
                    lease.ack()
                tally.first = tally.first or time.monotonic()
            tally.last = time.monotonic()
        tally.received = n
        return tally

    def _consume_shared(self, index: int, ready: Callable[[], Any]) -> Tally:
        from comux.errors import EndOfStream

        check, tally = Check(self.job.size), Tally()
        checksum, counts = check.checksum, dict.fromkeys([*check.expected, check.end], 0)
        with self.member(index) as member:
            ready()
            take = member.take
            try:
                while True:
                    lease = take()
                    counts[checksum(lease)] += 1  # a KeyError: torn
                    lease.ack()
                    if not tally.first:
                        tally.first = time.monotonic()
            except EndOfStream:
                tally.last = time.monotonic()
        del counts[check.end]
        tally.counts = list(counts.values())
        tally.received = sum(tally.counts)
        return tally


class RingMany(Ring):
    """The same, with a topic that allows several writers."""

    name = "comux ring, several writers allowed"
    rates = {64: 4_000_000, 4096: 1_600_000, 24_000: 500_000, 2**20: 12_000, 6_220_800: 2_000}  # noqa: RUF012
    writers = "many"


class RingPool(Ring):
    """The same with the other layout: memory just read is written next, and what is looked at is left alone."""

    name = "comux ring, pool"
    sizes = (24_000, 2**20, 6_220_800)
    layout = "pool"


class RingSpinning(Ring):
    """A consumer that may spin: for latencies only."""

    name = "comux ring, spinning"
    throughput = False

    def take(self, member: Any) -> Any:
        take = member.take
        while (lease := take(0)) is None:
            pass
        return lease


class RingBatches(Ring):
    """The same in batches: one contiguous array per call."""

    name = "comux ring, batches of 64"
    most = 64
    rates = {64: 16_000_000, 4096: 2_400_000, 24_000: 700_000, 2**20: 12_000, 6_220_800: 2_000}  # noqa: RUF012

    @property
    def k(self) -> int:
        return max(1, min(self.most, BATCH_BYTES // self.job.size, self.job.depth // 4))

    def produce(self, n: int, ready: Callable[[], Any]) -> None:
        *sent, _ = payloads(self.job.size)
        data, count, k = np.frombuffer(b"".join(sent), np.uint8).reshape(len(sent), self.job.size), len(sent), self.k
        block = np.concatenate([data] * max(1, -(-(count + k) // count)))  # any run of k, wherever it begins
        with self.topic() as topic, topic.producer() as producer:
            ready()
            done = 0
            while done < n:
                run, start = min(k, n - done), done % count
                producer.put_many(block[start : start + run])
                done += run
            producer.end()

    def consume(self, index: int, n: int, ready: Callable[[], Any]) -> Tally:
        """One checksum per batch of an in-order run, one per record where several consumers share."""
        from comux.errors import EndOfStream

        check, tally = Check(self.job.size), Tally()
        checksum, expected, count = check.checksum, check.expected, len(check.expected)
        counts = dict.fromkeys(expected, 0)
        *data, _ = payloads(self.job.size)
        known: dict[tuple[int, int], int] = {}
        before = 0
        with self.member(index) as member:
            ready()
            try:
                while self.job.shared or tally.received < n:
                    batch = member.take_many(self.k)
                    array, got = batch.array, tally.received
                    run = len(array)
                    if self.job.shared:
                        for record in array:
                            counts[checksum(record)] += 1
                    else:
                        key = (got % count, run)
                        if key not in known:
                            known[key] = checksum(b"".join(data[(key[0] + j) % count] for j in range(run)))
                        if checksum(array) != known[key]:
                            raise AssertionError(f"records {got} to {got + run} are not those that were sent")
                    batch.ack()
                    tally.received += run
                    if not before:
                        tally.first, before = time.monotonic(), run
            except EndOfStream:
                pass
            tally.last = time.monotonic()
        tally.counts = list(counts.values())
        if not self.job.shared:  # the first batch started the clock: leave its records but one out
            tally.first += (tally.last - tally.first) * (1 - before) / max(1, n - before)
        return tally


class RingLargeBatches(RingBatches):
    """In batches of 512, of small records."""

    name = "comux ring, batches of 512"
    most = 512
    sizes = (64,)
    rates = {64: 40_000_000}  # noqa: RUF012

    @property
    def k(self) -> int:
        return min(self.most, self.job.depth // 2)


class Memcpy(Adapter):
    """The limit: copying blocks through 100 MB in one process, then reading them; no hand-over at all."""

    name = "memcpy + read, one process (limit)"
    topologies = (ONE,)
    rival = False
    rates = {64: 5_000_000, 4096: 1_600_000, 24_000: 450_000, 2**20: 9_500, 6_220_800: 1_100}  # noqa: RUF012

    def setup(self, context: SpawnContext) -> None:
        return None

    def sender(self) -> Any:
        raise NotImplementedError("it sends nothing to anybody")

    receiver = sender  # type: ignore[assignment]

    def produce(self, n: int, ready: Callable[[], Any]) -> None:
        ready()

    def consume(self, index: int, n: int, ready: Callable[[], Any]) -> Tally:
        size, check = self.job.size, Check(self.job.size)
        checksum = check.checksum
        room = memoryview(bytearray(max(size, 100 * 2**20 // size * size)))
        slots = [room[i : i + size] for i in range(0, len(room) - size + 1, size)][: 1 << 16]
        for slot in slots:
            slot[:] = bytes(size)  # touched once before the clock starts
        *data, _ = payloads(size)
        ready()
        torn, first = 0, time.monotonic()
        for slot, payload, want in islice(zip(cycle(slots), cycle(data), cycle(check.expected), strict=False), n):
            slot[:] = payload
            if checksum(slot) != want:
                torn += 1
        return Tally(first, time.monotonic(), n, torn=torn)


OURS: list[type[Adapter]] = [Ring, RingPool, RingMany, RingBatches, RingLargeBatches, RingSpinning]


def context() -> SpawnContext:
    """How processes start, for those too that take it from Python's default."""
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    mp.set_start_method("spawn", force=True)
    return mp.get_context("spawn")
