"""librdkafka as the client that writes.

**Algorithm.** ``append`` hands librdkafka a record and a callback; a thread of ours polls the client. The callbacks
of one poll are gathered, and settled together: one round through the lock for each producer among them, as
``kafka_acks`` does it for batches.

**Batches.** librdkafka does not take apart a batch that the cluster refuses as too large, and fails every record of it.
So a topic whose ``max.message.bytes`` is below ``batch_size`` is refused when its producer is opened.

**Idempotence** is on unless ``acks`` says otherwise, as everywhere; librdkafka numbers anew by itself after records
ran out of time.

**Threads.** ``append`` from any; callbacks on the polling thread. A forked child has neither it nor librdkafka's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

from kafka import TopicPartition
from kafka import errors as kafka_errors

from .confluent_options import MOST_MESSAGE, library, make, properties
from .confluent_reader import leak
from .confluent_trouble import Ear, as_kafka_error
from .interface import SendFuture
from .kafka_acks import Fate, Owner, call_back
from .kafka_cluster import Cluster
from .kafka_outlet import BATCH_BYTES, Outlet
from .kafka_poller import Lifeline
from .kafka_wire import TIME, KafkaHeaders

_CLOSE_S: Final = 5.0
_POLL_S: Final = 0.1
_STATISTICS_MS: Final = 1000
_UNLIMITED: Final = 2**31 - 1


class ConfluentFuture(Fate):
    """The fate of one record."""

    __slots__ = ("_callbacks", "_offset", "_settled", "failed", "outlet")

    def __init__(self, owner: Owner, nbytes: int, outlet: ConfluentOutlet) -> None:
        super().__init__(owner, nbytes)
        self.outlet = outlet
        self.failed: Any = None  #: librdkafka's error
        self._offset: int | None = None
        self._settled = False
        self._callbacks: list[Callable[[SendFuture], None]] = []

    def delivered(self, error: Any, message: Any) -> None:
        """librdkafka's callback, on the polling thread."""
        self.failed = error
        if error is None and self.owner.acknowledged and message.offset() >= 0:
            self._offset = message.offset()
        self.outlet.gather(self)

    def done(self) -> bool:
        return self._settled

    def offset(self) -> int | None:
        return self._offset

    def call_later(self, fn: Callable[[SendFuture], None]) -> bool:
        if self._settled:
            return False
        self._callbacks.append(fn)
        return True

    def settle(self) -> list[Callable[[SendFuture], None]]:
        """It is; returns what waits for it. With the lock held."""
        if self.failed is not None:
            self.error = self.owner.failure(as_kafka_error(self.failed), self.nbytes)
        self._settled = True
        callbacks, self._callbacks = self._callbacks, []
        return callbacks


class ConfluentOutlet(Outlet):
    """See ``Outlet`` and the module."""

    def __init__(self, cluster: Cluster, lifeline: Lifeline) -> None:
        super().__init__(cluster, lifeline)
        self._ear = Ear(self.notes)
        options = cluster.options
        ours: dict[str, Any] = {
            "client_id": "comux",
            "acks": "all",
            "linger_ms": 0,
            "batch_size": BATCH_BYTES,
            "max_request_size": MOST_MESSAGE,  # the topic's own limit is checked instead
        }
        arguments = options.for_client("producer", **ours)
        if arguments["acks"] not in ("all", -1):
            arguments["enable_idempotence"] = False
        defaults = {
            "enable.idempotence": True,
            "queue.buffering.max.messages": _UNLIMITED,  # bytes are bounded here
            "queue.buffering.max.kbytes": _UNLIMITED,
            "statistics.interval.ms": _STATISTICS_MS,
            "topic.metadata.propagation.max.ms": 5000,
        }
        told = properties(
            "producer", arguments, options.librdkafka, error_cb=self._ear.error, stats_cb=self._ear.statistics
        )
        configured = {**defaults, **told}
        self.max_request_size = int(configured["message.max.bytes"])
        self.compressed = configured.get("compression.type", "none") != "none"
        self.acknowledged = str(configured["acks"]) != "0"
        self.batch_bytes = int(configured["batch.size"])
        self.client = make(library().Producer, configured, cluster.where)
        self._settling: list[ConfluentFuture] = []
        self._thread = threading.Thread(target=self._run, name="comux-kafka-write", daemon=True)
        self._thread.start()

    @property
    def broken(self) -> bool:
        return self._ear.fatal

    def warm(self, topic: str) -> None:
        """Nothing: librdkafka keeps a record until it knows where it belongs."""

    # -- writing ---------------------------------------------------------------------------------------------------

    def append(
        self,
        owner: Owner,
        partition: TopicPartition,
        value: Any,
        key: bytes | None,
        headers: KafkaHeaders,
        stamp: int,
        nbytes: int,
    ) -> Fate:
        future = ConfluentFuture(owner, nbytes, self)
        if stamp == 0:  # to librdkafka that means now
            stamp, headers = 1, [*headers, (TIME, b"0")]
        self._produce(partition, value, key, headers, stamp, future.delivered)
        return future

    def _produce(
        self,
        partition: TopicPartition,
        value: Any,
        key: bytes | None,
        headers: KafkaHeaders,
        stamp: int,
        delivered: Callable[[Any, Any], None],
    ) -> None:
        if self.closed:
            raise kafka_errors.IllegalStateError("the producer is closed")
        if value is not None and not isinstance(value, bytes):
            value = bytes(value)  # it takes nothing else
        topic, number = partition
        try:
            self.client.produce(
                topic, value, key, number, on_delivery=delivered, timestamp=stamp, headers=headers or None
            )
        except library().KafkaException as error:
            raise as_kafka_error(error.args[0]) from None

    def write(self, partition: TopicPartition, value: bytes, headers: KafkaHeaders, timeout: float) -> int:
        told = threading.Event()
        fate: list[tuple[Any, int]] = []

        def delivered(error: Any, message: Any) -> None:
            fate.append((error, message.offset()))
            told.set()

        self._produce(partition, value, None, headers, 0, delivered)
        if not told.wait(timeout):
            raise kafka_errors.KafkaTimeoutError(f"not acknowledged within {timeout} s")
        error, offset = fate[0]
        if error is not None:
            raise as_kafka_error(error)
        return int(offset)

    # -- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self.closed:
            self.client.poll(_POLL_S)
            self._settle()

    def gather(self, future: ConfluentFuture) -> None:
        """The fate of a record is known. On the thread that polls."""
        self._settling.append(future)

    def _settle(self) -> None:
        """Tell producers what became of their records; those of one that share their fate, in one go."""
        settling, self._settling = self._settling, []
        at = 0
        while at < len(settling):
            owner, failed, first = settling[at].owner, settling[at].failed is not None, at
            while at < len(settling) and settling[at].owner is owner and (settling[at].failed is not None) == failed:
                at += 1
            part = settling[first:at]
            with self.lock:
                callbacks = [(future, fn) for future in part for fn in future.settle()]
                offsets = [offset for future in part if (offset := future.offset()) is not None]
                owner.settled(part, sum(future.nbytes for future in part), max(offsets, default=None))
            call_back(owner.what, callbacks)

    def abandon(self) -> None:
        self.closed = True
        leak(self.client)

    def close(self) -> None:
        if self.closed:
            return
        self.client.flush(_CLOSE_S)  # polls too: so do both threads, each for the callbacks that it meets
        self.closed = True
        self._thread.join(_CLOSE_S)
        self.client.purge()
        self.client.flush(1.0)
        self._settle()
