"""The others: what Python has, what its packages bring, and what one writes by hand in an afternoon."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import shared_memory
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any

import numpy as np
from common import SMALL
from ipc.adapters import FAN_OUT, IN_FLIGHT, ONE, PATIENCE_S, Adapter, Get, Memcpy, Send
from ipc.tally import Ended

QUIET_S = 3.0  #: after which who shares a stream and gets nothing takes it for ended
LOOK_S = 0.1


def to_all(sends: list[Send]) -> Send:
    """One function that sends to each of them."""
    if len(sends) == 1:
        return sends[0]

    def send(payload: Any) -> None:
        for each in sends:
            each(payload)

    return send


class Queue(Adapter):
    name = "multiprocessing.Queue"
    rates = {64: 200_000, 4096: 130_000, 24_000: 60_000, 2**20: 600, 6_220_800: 100}  # noqa: RUF012

    def setup(self, context: SpawnContext) -> None:
        self.queues = [context.Queue(self.job.depth) for _ in range(self.job.queues)]

    @contextmanager
    def sender(self) -> Iterator[Send]:
        yield to_all([queue.put for queue in self.queues])
        for queue in self.queues:
            queue.close()
            queue.join_thread()

    @contextmanager
    def receiver(self, index: int) -> Iterator[Get]:
        yield self.queues[0 if self.job.shared else index].get


class Pipe(Adapter):
    name = "multiprocessing.Pipe"
    topologies = (ONE, FAN_OUT)
    rates = {64: 450_000, 4096: 250_000, 24_000: 120_000, 2**20: 2_000, 6_220_800: 160}  # noqa: RUF012

    def setup(self, context: SpawnContext) -> None:
        self.pipes = [context.Pipe(duplex=False) for _ in range(self.job.consumers)]

    @contextmanager
    def sender(self) -> Iterator[Send]:
        yield to_all([sender.send_bytes for _, sender in self.pipes])

    @contextmanager
    def receiver(self, index: int) -> Iterator[Get]:
        yield self.pipes[index][0].recv_bytes


def _raw(payload: Any) -> Any:
    return payload


class FasterFifo(Adapter):
    name = "faster-fifo"
    package = ("faster_fifo", "faster-fifo")
    rates = {64: 300_000, 4096: 240_000, 24_000: 110_000, 2**20: 7_000, 6_220_800: 900}  # noqa: RUF012

    def setup(self, context: SpawnContext) -> None:
        import faster_fifo

        room = max(IN_FLIGHT, 4 * self.job.size)
        self.queues = [faster_fifo.Queue(max_size_bytes=room, loads=bytes, dumps=_raw) for _ in range(self.job.queues)]

    @contextmanager
    def sender(self) -> Iterator[Send]:
        puts = [queue.put for queue in self.queues]
        yield to_all([lambda payload, put=put: put(payload, True, PATIENCE_S) for put in puts])

    @contextmanager
    def receiver(self, index: int) -> Iterator[Get]:
        import faster_fifo

        take = self.queues[0 if self.job.shared else index].get

        def get() -> Any:
            # It wakes one sleeper where the queue was empty, and two may sleep: the other one looks again by itself.
            for _ in range(int(PATIENCE_S / LOOK_S)):
                try:
                    return take(True, LOOK_S)
                except faster_fifo.Empty:
                    continue
            raise TimeoutError("nothing came")

        yield get


class Zmq(Adapter):
    """pyzmq over ipc://; one PUSH socket per consumer, because PUB drops what a slow consumer does not take."""

    name = "pyzmq ipc"
    package = ("zmq", "pyzmq")
    rates = {64: 1_400_000, 4096: 280_000, 24_000: 70_000, 2**20: 4_000, 6_220_800: 650}  # noqa: RUF012

    def setup(self, context: SpawnContext) -> None:
        self.addresses = [f"ipc://{self.job.folder}/z{i}" for i in range(self.job.consumers)]

    @contextmanager
    def sender(self) -> Iterator[Send]:
        import zmq

        # Without the copy the message shares Python's bytes: the faster choice for large messages.
        copy = self.job.size <= SMALL
        with zmq.Context() as context, ExitStack() as stack:
            groups = [self.addresses] if self.job.shared else [[address] for address in self.addresses]
            sends: list[Send] = []
            for addresses in groups:
                socket = stack.enter_context(context.socket(zmq.PUSH))
                socket.set_hwm(self.job.depth)
                for address in addresses:
                    socket.connect(address)
                send = socket.send
                sends.append(send if copy else lambda payload, send=send: send(payload, copy=False))
            yield to_all(sends)
            for socket in list(context._sockets):
                socket.close(linger=-1)

    @contextmanager
    def receiver(self, index: int) -> Iterator[Get]:
        import zmq

        copy = self.job.size <= SMALL
        with zmq.Context() as context, context.socket(zmq.PULL) as socket:
            socket.set_hwm(self.job.depth)
            socket.bind(self.addresses[index])
            receive = socket.recv
            if not self.job.shared:
                yield receive if copy else lambda: receive(copy=False).buffer
                return
            # Both ends of the stream may have gone to the other consumer: who gets nothing for a while is done.
            socket.setsockopt(zmq.RCVTIMEO, int(QUIET_S * 1000))

            def get() -> Any:
                try:
                    return receive() if copy else receive(copy=False).buffer
                except zmq.Again:
                    raise Ended(QUIET_S) from None

            yield get


class Semaphores(Adapter):
    """Shared memory and semaphores by hand. Whoever dies in between takes a slot, or the lock, along."""

    name = "shared memory + semaphores"
    rates = {64: 1_200_000, 4096: 1_200_000, 24_000: 500_000, 2**20: 17_000, 6_220_800: 1_900}  # noqa: RUF012

    def setup(self, context: SpawnContext) -> None:
        self.memory = shared_memory.SharedMemory(create=True, size=self.job.size * self.job.depth)
        self.filled = [context.Semaphore(0) for _ in range(self.job.queues)]
        self.free = [context.Semaphore(self.job.depth) for _ in range(self.job.queues)]
        self.lock = context.Lock()
        self.next = context.RawValue(ctypes.c_uint64, 0)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"memory": self.memory.name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def teardown(self) -> None:
        self.memory.close()
        self.memory.unlink()

    @contextmanager
    def slots(self) -> Iterator[list[memoryview]]:
        memory = attach_memory(str(self.memory))
        size = self.job.size
        slots = [memory.buf[i * size : (i + 1) * size] for i in range(self.job.depth)]
        try:
            yield slots
        finally:
            for slot in slots:
                slot.release()
            memory.close()

    @contextmanager
    def sender(self) -> Iterator[Send]:
        depth, at = self.job.depth, 0
        acquires, releases = [each.acquire for each in self.free], [each.release for each in self.filled]
        with self.slots() as slots:

            def send_one(payload: Any, acquire: Any = acquires[0], release: Any = releases[0]) -> None:
                nonlocal at
                acquire()
                slots[at][:] = payload
                release()
                at = at + 1 if at + 1 < depth else 0

            def send_all(payload: Any) -> None:
                nonlocal at
                for acquire in acquires:
                    acquire()
                slots[at][:] = payload
                for release in releases:
                    release()
                at = at + 1 if at + 1 < depth else 0

            yield send_one if len(acquires) == 1 else send_all

    @contextmanager
    def receiver(self, index: int) -> Iterator[Get]:
        depth, at, held = self.job.depth, 0, False
        queue = 0 if self.job.shared else index
        acquire, release = self.filled[queue].acquire, self.free[queue].release
        with self.slots() as slots:

            def get_own() -> Any:
                nonlocal at, held
                if held:
                    release()
                acquire()
                held = True
                slot = slots[at]
                at = at + 1 if at + 1 < depth else 0
                return slot

            def get_shared() -> Any:
                # Copied under the lock: slots are given back in the order they were filled, or one is overwritten.
                acquire()
                with self.lock:
                    copy = bytes(slots[self.next.value % depth])
                    self.next.value += 1
                release()
                return copy

            yield get_shared if self.job.shared else get_own


def attach_memory(name: str) -> shared_memory.SharedMemory:
    """Without a resource tracker that would remove it at this process' end."""
    from multiprocessing import resource_tracker

    register, resource_tracker.register = resource_tracker.register, lambda *words: None
    try:
        return shared_memory.SharedMemory(name=name)
    finally:
        resource_tracker.register = register


class Iceoryx(Adapter):
    """iceoryx2, a consumer that waits for an event after each look that found nothing."""

    name = "iceoryx2, events"
    package = ("iceoryx2", "iceoryx2")
    topologies = (ONE, FAN_OUT)
    events = True
    rates = {64: 250_000, 4096: 250_000, 24_000: 200_000, 2**20: 15_000, 6_220_800: 1_900}  # noqa: RUF012

    def setup(self, context: SpawnContext) -> None:
        self.service = self.job.folder.name

    def teardown(self) -> None:
        for path in Path("/dev/shm").glob(f"{self.service}_*"):
            path.unlink()

    def _ports(self) -> tuple[Any, Any, Any]:
        import iceoryx2 as iox2

        iox2.set_log_level(iox2.LogLevel.Error)
        config = iox2.config.default()  # its files where ours are, and named so that none stays
        config.global_cfg.root_path = iox2.Path.new(f"{self.job.folder}/")
        config.global_cfg.prefix = iox2.FileName.new(f"{self.service}_")
        node = iox2.NodeBuilder.new().config(config).create(iox2.ServiceType.Ipc)
        data = (
            node.service_builder(iox2.ServiceName.new(self.service))
            .publish_subscribe(iox2.Slice[ctypes.c_uint8])
            .enable_safe_overflow(False)
            .history_size(0)
            .max_publishers(1)
            .max_subscribers(self.job.consumers)
            .subscriber_max_buffer_size(self.job.depth)
            .open_or_create()
        )
        event = node.service_builder(iox2.ServiceName.new(f"{self.service}-event")).event().open_or_create()
        return node, data, event

    @contextmanager
    def sender(self) -> Iterator[Send]:
        import iceoryx2 as iox2

        node, data, event = self._ports()
        size, copy = self.job.size, ctypes.memmove
        publisher = (
            data.publisher_builder()
            .initial_max_slice_len(size)
            .max_loaned_samples(2)
            .backpressure_strategy(iox2.BackpressureStrategy.RetryUntilDelivered)
            .create()
        )
        notify = event.notifier_builder().create().notify if self.events else None
        loan = publisher.loan_slice_uninit

        def send(payload: Any) -> None:
            sample = loan(size)
            copy(sample.payload_ptr, payload, size)
            sample.assume_init().send()
            if notify is not None:
                notify()

        yield send
        self._until_read(node, publisher)

    def _until_read(self, node: Any, publisher: Any) -> None:
        """A publisher that goes takes its memory along: it stays until the consumers have left their files."""
        deadline = time.monotonic() + PATIENCE_S
        done = [self.job.folder / f"read-{i}" for i in range(self.job.consumers)]
        while not all(path.exists() for path in done) and time.monotonic() < deadline:
            time.sleep(0.01)

    @contextmanager
    def receiver(self, index: int) -> Iterator[Get]:
        _node, data, event = self._ports()
        subscriber = data.subscriber_builder().buffer_size(self.job.depth).create()
        listener = event.listener_builder().create() if self.events else None
        receive = subscriber.receive
        held: list[Any] = [None]

        def get() -> Any:
            held[0] = None
            while (sample := receive()) is None:
                if listener is not None:
                    self.wait(listener)
            held[0] = sample
            return sample.payload().as_memory_view()

        yield get
        held[0] = None
        (self.job.folder / f"read-{index}").touch()

    def wait(self, listener: Any) -> None:
        import iceoryx2 as iox2

        listener.timed_wait(iox2.Duration.from_millis(100))


class IceoryxPolling(Iceoryx):
    """iceoryx2, a consumer that looks all the time: a core for each."""

    name = "iceoryx2, polling"
    events = False
    rates = {64: 400_000, 4096: 350_000, 24_000: 280_000, 2**20: 16_000, 6_220_800: 1_900}  # noqa: RUF012


class Zenoh(Adapter):
    """zenoh with shared memory, no router: consumers connect to the producer."""

    name = "zenoh, shared memory"
    package = ("zenoh", "eclipse-zenoh")
    topologies = (ONE, FAN_OUT)
    rates = {64: 300_000, 4096: 240_000, 24_000: 110_000, 2**20: 6_500, 6_220_800: 850}  # noqa: RUF012

    def setup(self, context: SpawnContext) -> None:
        self.endpoint = f"unixsock-stream/{self.job.folder}/zenoh"

    def _session(self, listen: bool) -> Any:
        import json

        import zenoh

        config = zenoh.Config()
        config.insert_json5("mode", '"peer"')
        config.insert_json5("scouting/multicast/enabled", "false")
        config.insert_json5("transport/shared_memory/enabled", "true")
        config.insert_json5("listen/endpoints" if listen else "connect/endpoints", json.dumps([self.endpoint]))
        if not listen:
            config.insert_json5("listen/endpoints", "[]")
        return zenoh.open(config)

    @contextmanager
    def sender(self) -> Iterator[Send]:
        import zenoh

        with self._session(listen=True) as session:
            room = max(2 * IN_FLIGHT, 16 * self.job.size)
            provider = zenoh.shm.ShmProvider.default_backend(room)
            policy = zenoh.shm.BlockOn(zenoh.shm.GarbageCollect())
            publisher = session.declare_publisher(
                "bench/data",
                congestion_control=zenoh.CongestionControl.BLOCK,
                reliability=zenoh.Reliability.RELIABLE,
            )
            deadline = time.monotonic() + PATIENCE_S
            while len(list(session.liveliness().get("bench/ready/*"))) < self.job.consumers:
                if time.monotonic() > deadline:
                    raise TimeoutError("zenoh's subscribers did not connect")
                time.sleep(0.02)
            size, put, alloc = self.job.size, publisher.put, provider.alloc

            def send(payload: Any) -> None:
                buffer = alloc(size, policy)
                buffer[:] = payload
                put(buffer)

            yield send
            while list(session.liveliness().get("bench/ready/*")) and time.monotonic() < deadline + PATIENCE_S:
                time.sleep(0.02)

    @contextmanager
    def receiver(self, index: int) -> Iterator[Get]:
        import zenoh

        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                session = self._session(listen=False)
                break
            except zenoh.ZError:  # the producer does not listen yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        with session:
            subscriber = session.declare_subscriber("bench/data", zenoh.handlers.FifoChannel(self.job.depth))
            token = session.liveliness().declare_token(f"bench/ready/{index}")
            receive = subscriber.recv
            yield lambda: bytes(receive().payload)
            token.undeclare()


class Mimocorb(Adapter):
    """mimoCoRB's buffer, whose slots are dealt out by threads of the process that made it."""

    name = "mimocorb"
    package = ("mimocorb.mimo_buffer", "mimocorb")
    rates = {64: 45_000, 4096: 45_000, 24_000: 40_000, 2**20: 12_000, 6_220_800: 1_900}  # noqa: RUF012

    def setup(self, context: SpawnContext) -> None:
        from mimocorb.mimo_buffer import NewBuffer

        self.buffer = NewBuffer(min(1024, self.job.depth), self.job.size, np.uint8)  # with more it hangs
        self.writer = self.buffer.new_writer()
        self.readers = [self.buffer.new_reader_group() for _ in range(self.job.queues)]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "buffer"}

    def teardown(self) -> None:
        self.buffer.writers_active.clear()
        self.buffer.readers_active.clear()
        self.buffer.writer_filled_queue.put(None)
        for queue in self.buffer.reader_done_queue_list:
            queue.put(None)
        self.buffer._writer_queue_thread.join(PATIENCE_S)
        for memory in (self.buffer.m_share, self.buffer.m_metadata_share):
            memory.unlink()

    @contextmanager
    def sender(self) -> Iterator[Send]:
        from mimocorb.mimo_buffer import Writer

        writer = Writer(self.writer)
        make, process, as_array = writer.get_new_buffer, writer.process_buffer, np.frombuffer

        def send(payload: Any) -> None:
            make()[:] = as_array(payload, np.uint8)
            process()

        yield send

    @contextmanager
    def receiver(self, index: int) -> Iterator[Get]:
        from mimocorb.mimo_buffer import Reader

        reader = Reader(self.readers[0 if self.job.shared else index])
        yield reader.get


RIVALS: list[type[Adapter]] = [
    Zmq,
    Semaphores,
    IceoryxPolling,
    Iceoryx,
    Zenoh,
    Pipe,
    Queue,
    FasterFifo,
    Mimocorb,
    Memcpy,
]
