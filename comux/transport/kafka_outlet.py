"""The one client of a connection that writes, and the bytes under way in it.

Lives here: ``Outlet``, what every such client has in common (room, the lock, whom it wakes), and ``PythonOutlet``,
kafka-python's. librdkafka's is in ``confluent_outlet``.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final

from kafka import KafkaProducer, TopicPartition
from kafka import errors as kafka_errors

from comux.errors import ConfigError, WaitTimeoutError

from .kafka_acks import Fate, Owner, Run
from .kafka_batches import append
from .kafka_cluster import Cluster
from .kafka_failures import Notes, translate
from .kafka_idempotence import ask_for_numbers_again, close_producer, keep_the_delivery_timeout, spare_the_others
from .kafka_net import build
from .kafka_poller import Lifeline
from .kafka_wire import KafkaHeaders

_CLOSE: Final = 5.0
_STEP_MS: Final = 250
BATCH_BYTES: Final = 256 << 10  #: while a request is under way more records gather than fit into kafka-python's 16 kB


class Outlet(ABC):
    """See the module. Thread-safe.

    Args:
        cluster: Of the connection.
        lifeline: Of the connection.

    Attributes:
        lock: Guards everything that is under way, of all producers of the connection.
        fates: Records were settled.
        max_request_size: Bytes of the largest record that the client takes.
        compressed: The size that counts for the cluster is known to it only.
        acknowledged: The cluster says which offsets records have.
        batch_bytes: Of its batches, where it cannot split one that is refused as too large; else 0.
    """

    max_request_size: int
    compressed: bool
    acknowledged: bool
    batch_bytes = 0

    def __init__(self, cluster: Cluster, lifeline: Lifeline) -> None:
        self.notes = Notes(cluster.options.client)
        self.lock = threading.RLock()
        self.fates = threading.Condition(self.lock)
        self._room = threading.Condition(self.lock)
        self.cluster = cluster
        self.lifeline = lifeline
        self.closed = False
        self._nbytes = 0

    # -- room ------------------------------------------------------------------------------------------------------

    def reserve(self, nbytes: int, timeout: float | None, what: str, check: Callable[[], None]) -> None:
        """Wait until ``nbytes`` more may be under way. With the lock held, once.

        Raises:
            WaitTimeoutError: they may not within ``timeout``. What ``check`` raises.
        """
        limit = self.cluster.options.buffer_bytes
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._nbytes and self._nbytes + nbytes > limit:
            check()
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                troubles = self.notes.troubles
                why = f" ({translate(troubles[-1], self.cluster.where, self.notes)})" if troubles else ""
                raise WaitTimeoutError(
                    f"{what}: {self._nbytes} bytes are not acknowledged (buffer_bytes={limit}) and no room came within "
                    f"{timeout} s{why}; send slower, or raise buffer_bytes"
                )
            self._room.wait(left)
        self._nbytes += nbytes

    def fits(self, nbytes: int) -> bool:
        """Reserve without waiting, if that can be. With the lock held."""
        if self._nbytes and self._nbytes + nbytes > self.cluster.options.buffer_bytes:
            return False
        self._nbytes += nbytes
        return True

    def free(self, nbytes: int) -> None:
        """So many bytes are no longer under way. With the lock held.

        Who waits for room goes on when a quarter is free: woken by every batch, senders would take the interpreter
        from the I/O thread each time, which has batches to send.
        """
        self._nbytes -= nbytes
        if self._nbytes <= self.cluster.options.buffer_bytes * 3 // 4:
            self._room.notify_all()

    def wake(self) -> None:
        """Who waits is to look again. With the lock held."""
        self._room.notify_all()
        self.fates.notify_all()

    # -- writing ---------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def broken(self) -> bool:
        """Whether the client takes nothing any more: another has to be made."""

    def check_batches(self, what: str, limit: int, name: str) -> None:
        """Whether the topic takes batches as large as the client makes them; ``limit`` 0: not known.

        Raises:
            ConfigError: it does not; says what to set.
        """
        if 0 < limit < self.batch_bytes:
            raise ConfigError(
                f"{what}: the client makes batches of {self.batch_bytes} bytes (batch_size), the topic takes {limit} "
                f"({name}), and this client takes none apart that was refused: set batch_size to {limit} at most"
            )

    @abstractmethod
    def warm(self, topic: str) -> None:
        """Let the client learn of the topic (its name on the cluster), so that ``append`` does not wait for it.

        Raises:
            KafkaError: it cannot.
        """

    @abstractmethod
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
        """Hand a copy of a record to the client; ``owner`` hears of its fate.

        Args:
            owner: Whose it is.
            partition: Where to.
            value: Bytes, a view of them, or ``None``.
            key, headers: Their types were checked.
            stamp: Milliseconds.
            nbytes: Of the record on the wire, at most.

        Raises:
            KafkaError: the client does not take it.
        """

    @abstractmethod
    def write(self, partition: TopicPartition, value: bytes, headers: KafkaHeaders, timeout: float) -> int:
        """Send a record that is nobody's; wait ``timeout`` seconds for its offset.

        Raises:
            KafkaError: it was not acknowledged.
        """

    @abstractmethod
    def abandon(self) -> None:
        """In a forked child: its destructor and its exit must not touch the connections, which are the parent's."""

    @abstractmethod
    def close(self) -> None:
        """Wait a moment for what is under way, then end; what was not acknowledged by then fails. Idempotent."""


class PythonOutlet(Outlet):
    """A ``KafkaProducer`` of kafka-python's."""

    def __init__(self, cluster: Cluster, lifeline: Lifeline) -> None:
        super().__init__(cluster, lifeline)
        ours: dict[str, Any] = {
            "client_id": "comux",
            "acks": "all",
            "linger_ms": 0,
            "batch_size": BATCH_BYTES,
            "max_request_size": 2**31 - 1,  # the topic's own limit is checked instead
            "max_block_ms": 10_000,
            "allow_auto_create_topics": False,
            "metrics_enabled": False,
        }
        arguments = cluster.options.for_client("producer", **ours)
        self.max_request_size = int(arguments["max_request_size"])
        self.compressed = arguments.get("compression_type") is not None
        self.acknowledged = arguments["acks"] != 0
        self.client = build(KafkaProducer, arguments, cluster.where, self.notes)
        for put_right in (spare_the_others, ask_for_numbers_again, keep_the_delivery_timeout):
            put_right(self.client)

    @property
    def broken(self) -> bool:
        manager = self.client._transaction_manager
        return manager is not None and bool(manager.has_fatal_error())

    def warm(self, topic: str) -> None:
        deadline = time.monotonic() + self.client.config["max_block_ms"] / 1000
        while True:
            try:
                self.client._wait_on_metadata(topic, _STEP_MS)
                return
            except kafka_errors.KafkaTimeoutError:
                if self.closed or time.monotonic() > deadline:
                    raise

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
        sent = append(self.client, partition, value, key, headers, stamp, nbytes)
        with self.lock:
            run, fresh = owner.run, False
            if run is None or not run.takes(sent):
                run, fresh = Run(owner, sent._produce_future), True
                owner.run = run
            future = run.add(sent, nbytes)
        if fresh:
            run.watch()
        return future

    def write(self, partition: TopicPartition, value: bytes, headers: KafkaHeaders, timeout: float) -> int:
        sent = self.client.send(partition.topic, value, None, headers, partition.partition)
        return int(sent.get(timeout).offset)

    def abandon(self) -> None:
        self.client._closed = True

    def close(self) -> None:
        self.closed = True
        close_producer(self.client, _CLOSE, self.cluster.where)
