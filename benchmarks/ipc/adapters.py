"""One adapter per way of moving records between Python processes; each runs the same loops over the same payloads.

An adapter's ``produce`` sends ``n`` records, ``consume`` receives ``n`` and reads every byte of each (``check``), so
that a view nobody reads is no transfer. What arrives is compared with what was sent, in order: ``check`` knows
the checksum of record *i*.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from multiprocessing.context import SpawnContext
from pathlib import Path

import numpy as np
from common import SMALL, VARIANTS, Check, payloads

BATCH_BYTES = 256 * 1024


class Adapter(ABC):
    name: str
    batched = False

    def __init__(self, size: int, consumers: int, folder: Path, context: SpawnContext) -> None:
        self.size, self.consumers, self.folder = size, consumers, folder
        # About 16 MB in flight, the same for everyone that has a limit to set.
        self.depth = max(8, min(1024, 16 * 2**20 // size))
        self.setup(context)

    @abstractmethod
    def setup(self, context: SpawnContext) -> None: ...

    @abstractmethod
    def produce(self, n: int) -> None: ...

    @abstractmethod
    def consume(self, index: int, n: int, ready: Callable[[], None]) -> tuple[float, float, int]:
        """Returns time of the first and last record (monotonic seconds) and the number of wrong ones."""

    def teardown(self) -> None:
        return None


class Ring(Adapter):
    """comux's ring, one record per call."""

    name = "comux ring"
    writers = "one"

    def setup(self, context: SpawnContext) -> None:
        from comux import ring

        spec = ring.RingSpec("bench", slots=self.depth, dtype=np.uint8, shape=(self.size,), writers=self.writers)
        with ring.create(spec, directory=self.folder) as topic:
            for i in range(self.consumers):
                topic.member(f"g{i}", start="beginning", durable=True).close()

    def produce(self, n: int) -> None:
        from comux import ring

        data = payloads(self.size)
        with ring.attach("bench", directory=self.folder) as topic, topic.producer() as producer:
            put = producer.put
            for i in range(n):
                put(data[i % VARIANTS])

    def consume(self, index: int, n: int, ready: Callable[[], None]) -> tuple[float, float, int]:
        from comux import ring

        check = Check(self.size)
        checksum, expected, bad = check.checksum, check.expected, 0
        with ring.attach("bench", directory=self.folder) as topic, topic.member(f"g{index}") as member:
            ready()
            take = member.take
            first = 0.0
            for i in range(n):
                lease = take()
                if checksum(lease.buffer) != expected[i % VARIANTS]:
                    bad += 1
                lease.ack()
                if i == 0:
                    first = time.monotonic()
            last = time.monotonic()
        return first, last, bad


class RingMany(Ring):
    """The same, with a topic that allows several writers."""

    name = "comux ring, several writers allowed"
    writers = "many"


class RingBatches(Ring):
    """The same in batches: one contiguous array per call."""

    name = "comux ring, batches"
    batched = True

    @property
    def k(self) -> int:
        return max(1, min(64, BATCH_BYTES // self.size, self.depth // 4))

    def produce(self, n: int) -> None:
        from comux import ring

        # A run starts with variant 0 each time: k is a multiple of VARIANTS, or runs are cut to whole variants.
        data = np.frombuffer(b"".join(payloads(self.size)), np.uint8).reshape(VARIANTS, self.size)
        k = self.k
        block = np.concatenate([data] * max(1, k // VARIANTS + 2))
        with ring.attach("bench", directory=self.folder) as topic, topic.producer() as producer:
            sent = 0
            while sent < n:
                run = min(k, n - sent)
                start = sent % VARIANTS
                producer.put_many(block[start : start + run])
                sent += run

    def consume(self, index: int, n: int, ready: Callable[[], None]) -> tuple[float, float, int]:
        from comux import ring

        check = Check(self.size)
        checksum, expected, bad = check.checksum, check.expected, 0
        # One checksum per batch where batches are whole turns of the variants, else one per record.
        with ring.attach("bench", directory=self.folder) as topic, topic.member(f"g{index}") as member:
            ready()
            got, first = 0, 0.0
            known: dict[tuple[int, int], int] = {}
            data = payloads(self.size)
            while got < n:
                batch = member.take_many(self.k)
                array = batch.array
                run = len(array)
                key = (got % VARIANTS, run)
                if key not in known:
                    whole = b"".join(data[(key[0] + j) % VARIANTS] for j in range(run))
                    known[key] = checksum(whole)
                if checksum(array) != known[key]:
                    bad += sum(checksum(array[j]) != expected[(got + j) % VARIANTS] for j in range(run))
                batch.ack()
                got += run
                if first == 0.0:
                    first, before = time.monotonic(), run
            last = time.monotonic()
        # The first batch started the clock: leave its records but one out by moving the start back accordingly.
        return first + (last - first) * (1 - before) / max(1, n - before), last, bad


class Queue(Adapter):
    name = "multiprocessing.Queue"

    def setup(self, context: SpawnContext) -> None:
        self.queues = [context.Queue(self.depth) for _ in range(self.consumers)]

    def produce(self, n: int) -> None:
        data = payloads(self.size)
        for i in range(n):
            for queue in self.queues:
                queue.put(data[i % VARIANTS])
        for queue in self.queues:
            queue.close()
            queue.join_thread()

    def consume(self, index: int, n: int, ready: Callable[[], None]) -> tuple[float, float, int]:
        check = Check(self.size)
        checksum, expected, bad, first = check.checksum, check.expected, 0, 0.0
        get = self.queues[index].get
        ready()
        for i in range(n):
            if checksum(get()) != expected[i % VARIANTS]:
                bad += 1
            if i == 0:
                first = time.monotonic()
        return first, time.monotonic(), bad


class Zmq(Adapter):
    """pyzmq over ipc://; one PUSH socket per consumer, because PUB drops what a slow consumer does not take."""

    name = "pyzmq ipc"

    def setup(self, context: SpawnContext) -> None:
        self.addresses = [f"ipc://{self.folder}/z{i}" for i in range(self.consumers)]

    def produce(self, n: int) -> None:
        import zmq

        data = payloads(self.size)
        with zmq.Context() as context:
            sockets = [context.socket(zmq.PUSH) for _ in self.addresses]
            for socket, address in zip(sockets, self.addresses, strict=True):
                socket.set_hwm(self.depth)
                socket.connect(address)
            sends = [socket.send for socket in sockets]
            # Without the copy the message shares Python's bytes: the faster choice for large messages.
            copy = self.size <= SMALL
            for i in range(n):
                for send in sends:
                    send(data[i % VARIANTS], copy=copy)
            for socket in sockets:
                socket.close(linger=-1)

    def consume(self, index: int, n: int, ready: Callable[[], None]) -> tuple[float, float, int]:
        import zmq

        check = Check(self.size)
        checksum, expected, bad, first = check.checksum, check.expected, 0, 0.0
        with zmq.Context() as context, context.socket(zmq.PULL) as socket:
            socket.set_hwm(self.depth)
            socket.bind(self.addresses[index])
            ready()
            copy = self.size <= SMALL
            receive = socket.recv
            for i in range(n):
                message = receive(copy=copy)
                if checksum(message if copy else message.buffer) != expected[i % VARIANTS]:
                    bad += 1
                if i == 0:
                    first = time.monotonic()
            last = time.monotonic()
        return first, last, bad


class Memcpy(Adapter):
    """The limit: copying blocks through 100 MB in one process, then reading them; no hand-over at all."""

    name = "memcpy + read, one process (limit)"

    def setup(self, context: SpawnContext) -> None:
        return None

    def produce(self, n: int) -> None:
        return None

    def consume(self, index: int, n: int, ready: Callable[[], None]) -> tuple[float, float, int]:
        check = Check(self.size)
        checksum, expected = check.checksum, check.expected
        room = memoryview(bytearray(max(self.size, 100 * 2**20 // self.size * self.size)))
        slots = [room[i : i + self.size] for i in range(0, len(room) - self.size + 1, self.size)][: 1 << 16]
        for slot in slots:
            slot[:] = bytes(self.size)  # touched once before the clock starts
        data = payloads(self.size)
        ready()
        bad, first = 0, time.monotonic()
        for i in range(n):
            slot = slots[i % len(slots)]
            slot[:] = data[i % VARIANTS]
            if checksum(slot) != expected[i % VARIANTS]:
                bad += 1
        return first, time.monotonic(), bad


ALL: list[type[Adapter]] = [Ring, RingBatches, RingMany, Zmq, Queue, Memcpy]


def context() -> SpawnContext:
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    return mp.get_context("spawn")
