"""The network side of kafka-python's clients, with an ear on it: what went wrong with which broker, and is it still?

**Problem.** kafka-python retries everything and tells nobody: a wrong password, a certificate that does not fit and a
host where nobody listens all end as "Unable to bootstrap" after the full time-out, and a broker that dies while a
consumer polls is only a line in the log. A client that could not be made leaves its thread and sockets behind.

**What this does.** ``build`` makes every client of a broker handle, with a network of our making: it notes the
newest failure of each node's connection in ``Notes``, takes the note back when a connection comes about, begins with
the address that failed least, and lets a bootstrap end as soon as every address it may try has failed for good, or
three times. What cannot be made is taken apart again, and the reason is told (``kafka_failures``).

**Hanging up.** A listener that is spoken to in the wrong way closes the connection: at the greeting where it wants TLS,
at the first request after it where it wants credentials. Which of the two it was is noted too.

**Threads.** What is noted is noted on the clients' I/O threads.
"""

from __future__ import annotations

import functools
import logging
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from kafka import errors as kafka_errors
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.net.transport import KafkaTCPTransport

from comux.redaction import redacted

from .kafka_failures import HungUp, Notes, Trouble, opening_failure

C = TypeVar("C")

_LEAST_TRY_MS: Final = 1000
_RECEIVE: Final = 64 << 10  # larger ones are mapped anew for each call


class _NoSecrets(logging.Filter):
    """kafka-python's debug log has the options of an admin client, requests and raw bytes: passwords among them."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, Mapping):
            record.args = redacted(record.args)
        elif isinstance(record.args, tuple):
            record.args = tuple(map(_harmless, record.args))
        return True


def _harmless(argument: Any) -> Any:
    if isinstance(argument, Mapping):
        return redacted(argument)
    if isinstance(argument, (bytes, bytearray, memoryview)):
        return f"<{len(argument)} bytes>"
    if type(argument).__name__.startswith("Sasl") and not isinstance(argument, Exception):
        return f"<{type(argument).__name__}>"
    return argument


logging.getLogger("kafka").addHandler(logging.NullHandler())  # what it warns of, comux reports; who listens still can
for _name in ("kafka.admin.client", "kafka.net.connection", "kafka.protocol.parser"):
    logging.getLogger(_name).addFilter(_NoSecrets())


class _Place:
    """One connection, and what becomes of it."""

    def __init__(self, notes: Notes, node: Any, at: str, *, bootstrap: bool) -> None:
        self._notes = notes
        self._node = node
        self._at = at
        self._bootstrap = bootstrap
        self._greeted = self._lost = False

    def watch(self, connection: Any) -> None:
        """Note the fate of ``connection``, which has not begun yet."""
        connection.init_future.add_callback(self._connected)
        connection.init_future.add_errback(self._failed)
        connection.close_future.add_errback(self._failed)

    def _connected(self, _: Any) -> None:
        self._greeted = True
        self._notes.connected(self._node, for_good=not self._bootstrap)

    def _failed(self, error: BaseException) -> None:
        if self._lost:  # what ends a connection that has not come about yet is told twice
            return
        self._lost = True
        hung_up = isinstance(error, kafka_errors.KafkaConnectionError) and "disconnected" in str(error)
        self._notes.count(self._node)
        self._note(HungUp(self._greeted) if self._bootstrap and hung_up else error)

    def _note(self, error: BaseException) -> None:
        self._notes.failed(self._node, Trouble(error, self._at, advertised=not self._bootstrap))


class _Client(KafkaNetClient):  # type: ignore[misc]
    """With a place for what is to be done before each search for a broker."""

    before_looking: Callable[[], None] | None = None

    def least_loaded_node(self, *args: Any, **kwargs: Any) -> Any:
        if self.before_looking is not None:
            self.before_looking()
        return super().least_loaded_node(*args, **kwargs)


class _Manager(KafkaConnectionManager):  # type: ignore[misc]
    def __init__(self, net: Any, notes: Notes, **configs: Any) -> None:
        self._notes = notes
        super().__init__(net, **configs)
        everywhere = self.cluster.bootstrap_brokers

        def least_failed() -> list[Any]:
            """kafka-python draws one: only where it has not failed more often than another."""
            nodes = everywhere()
            fewest = min(notes.failures(node.node_id) for node in nodes)
            return [node for node in nodes if notes.failures(node.node_id) == fewest]

        self._everywhere = everywhere
        self.cluster.bootstrap_brokers = least_failed

    async def _build_transport(self, *args: Any, **kwargs: Any) -> Any:
        transport = await super()._build_transport(*args, **kwargs)
        receive = transport._sock_recv
        if type(transport) is KafkaTCPTransport:
            receive = functools.partial(_receive, transport._sock)

        def receive_before_the_end() -> tuple[bytes, BaseException | None]:
            """kafka-python throws away what came together with the end of a connection: refusals, above all. The end
            is still there when it looks again."""
            data, error = receive()
            return data, None if data else error

        transport._sock_recv = receive_before_the_end
        return transport

    def get_connection(self, node_id: Any, timeout_ms: float | None = None, *args: Any, **kwargs: Any) -> Any:
        bootstrap = self.cluster.is_bootstrap(node_id)
        nodes = self._everywhere()
        if bootstrap:
            failures = [self._notes.hopeless(node.node_id) for node in nodes]
            if all(failures):
                raise next(f for f in failures if f is not None)
            if timeout_ms is not None:  # none of several may take all of the time
                timeout_ms = min(timeout_ms, max(_LEAST_TRY_MS, timeout_ms / len(nodes)))
        else:
            for node in nodes:
                self._notes.forget(node.node_id)
        known = self._conns.get(node_id)
        connection = super().get_connection(node_id, timeout_ms, *args, **kwargs)
        if connection is not known:
            found = self.cluster.broker_metadata(node_id)
            _Place(self._notes, node_id, f"{found.host}:{found.port}", bootstrap=bootstrap).watch(connection)
        return connection


def _receive(sock: socket.socket) -> tuple[bytes, BaseException | None]:
    """What has arrived, and whether the connection ended: in place of a transport's ``_sock_recv``.

    That takes 4 kB at a time and gives up the interpreter for each of them, and waits for it again.
    """
    parts: list[bytes] = []
    error: BaseException | None = None
    try:
        while not parts or len(parts[-1]) == _RECEIVE:
            parts.append(sock.recv(_RECEIVE))
        if not parts[-1]:
            error = kafka_errors.KafkaConnectionError("socket disconnected")
    except (BlockingIOError, InterruptedError):
        pass
    except OSError as failure:
        error = kafka_errors.KafkaConnectionError(failure)
    return b"".join(parts), error


def build(make: Callable[..., C], arguments: Mapping[str, Any], what: str, notes: Notes) -> C:
    """A client of kafka-python's.

    Args:
        make: Its class.
        arguments: Its options.
        what: For messages: which cluster.
        notes: Kept by its network.

    Raises:
        ComuxError: why there is none; nothing of it is left behind.
    """
    networks: list[KafkaNetClient] = []

    def network(**configs: Any) -> KafkaNetClient:
        net = NetworkSelector(**configs)
        networks.append(_Client(net=net, manager=_Manager(net, notes, **configs)))
        return networks[-1]

    try:
        return make(**arguments, kafka_client=network)
    except BaseException as error:
        for client in networks:
            client.close()
            client._net.stop()
        if not isinstance(error, Exception):
            raise
        raise opening_failure(error, what, notes, arguments["bootstrap_timeout_ms"] / 1000) from error


def cluster_of(client: Any) -> Any:
    """What a consumer, producer or admin client knows of the cluster: topics, leaders."""
    return (client._client if hasattr(client, "_client") else client._sender._client)._manager.cluster


def keep_joining(consumer: Any) -> None:
    """Call before ``poll`` of a member of a group: its join, if one is under way, will be seen to the end.

    A member that rejoins because topics changed, and whose ``poll`` times out meanwhile, would forget the join
    (kafka-python 3.0.12): it would have no partitions, send no heartbeats, and be thrown out without noticing.
    """
    coordinator = consumer._coordinator
    if coordinator.rejoining:
        coordinator.request_rejoin()


def position_of(consumer: Any, partition: Any) -> int | None:
    """Where a ``KafkaConsumer`` stands, without asking anybody."""
    state = consumer._subscription.assignment.get(partition)
    return None if state is None or state.position is None else int(state.position.offset)
