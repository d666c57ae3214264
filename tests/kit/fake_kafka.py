"""Listeners that a real broker cannot be made to be: very old, silent, out of reach, or no Kafka at all."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator

from kafka.protocol.broker_version_data import BrokerVersionData
from kafka.protocol.metadata import MetadataResponse

_METADATA = 3
_API_VERSIONS = 18
_UNSUPPORTED_VERSION = 35


@contextlib.contextmanager
def listener(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """A listener on this host, each of whose connections is served by a thread of its own; its ``host:port``."""
    server = socket.create_server(("127.0.0.1", 0))
    connections: list[socket.socket] = []
    threads: list[threading.Thread] = []
    ended = threading.Event()

    def run() -> None:
        while True:
            connection, _ = server.accept()
            if ended.is_set():
                connection.close()
                return
            connections.append(connection)
            threads.append(threading.Thread(target=one, args=(connection,)))
            threads[-1].start()

    def one(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            serve(connection)

    accepting = threading.Thread(target=run)
    accepting.start()
    try:
        yield f"127.0.0.1:{server.getsockname()[1]}"
    finally:
        ended.set()
        socket.create_connection(server.getsockname(), 1).close()  # it waits in accept
        accepting.join()
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        server.close()


def old_broker(version: tuple[int, ...], advertised: str) -> Callable[[socket.socket], None]:
    """For ``listener``: answers like a broker of that version which says that the cluster is at ``advertised``."""
    apis = BrokerVersionData(version).api_versions

    def serve(connection: socket.socket) -> None:
        stream = connection.makefile("rb")
        while len(head := stream.read(4)) == 4:
            request = stream.read(struct.unpack(">i", head)[0])
            api, api_version, correlation = struct.unpack_from(">hhi", request)
            if api == _API_VERSIONS:
                body = _api_versions(apis, api_version)
            elif api == _METADATA:
                body = _metadata(advertised, api_version)
            else:
                return
            connection.sendall(struct.pack(">ii", 4 + len(body), correlation) + body)

    return serve


def _api_versions(apis: dict[int, tuple[int, int]], version: int) -> bytes:
    known = version <= apis[_API_VERSIONS][1]
    entries = b"".join(struct.pack(">hhh", api, *versions) for api, versions in apis.items())
    answer = struct.pack(">hi", 0 if known else _UNSUPPORTED_VERSION, len(apis)) + entries
    return answer + (struct.pack(">i", 0) if known and version > 0 else b"")  # throttle time


def _metadata(advertised: str, version: int) -> bytes:
    """One broker, no topic."""
    host, _, port = advertised.rpartition(":")
    broker = MetadataResponse.MetadataResponseBroker(version=version, node_id=1, host=host, port=int(port), rack=None)
    return bytes(
        MetadataResponse(
            version=version, throttle_time_ms=0, brokers=[broker], cluster_id=None, controller_id=1, topics=[]
        ).encode()
    )


def hang_up(connection: socket.socket) -> None:
    """For ``listener``: no Kafka; closes the connection when something comes."""
    connection.recv(1 << 16)


def speak_http(connection: socket.socket) -> None:
    """For ``listener``: a web server."""
    connection.recv(1 << 16)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


def say_nothing(connection: socket.socket) -> None:
    """For ``listener``: accepts, reads, and never answers."""
    while connection.recv(1 << 16):
        pass


@contextlib.contextmanager
def black_hole() -> Iterator[str]:
    """``host:port`` whose connections never come about, as behind a firewall that drops packets."""
    with socket.socket() as server, contextlib.ExitStack() as stack:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        address = server.getsockname()
        for _ in range(8):  # the queue of those that wait to be accepted is full then
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(address)
        yield f"127.0.0.1:{address[1]}"


def free_port() -> int:
    """A port on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
