"""The network side of kafka-python's clients, with an ear on it: what went wrong with which broker, and is it still?

**Problem.** kafka-python retries everything and tells nobody: a wrong password, a certificate that does not fit and a
host where nobody listens all end as "Unable to bootstrap" after the full time-out, and a broker that dies while a
consumer polls is only a line in the log.

**What this does.** ``watched(notes)`` makes the ``kafka_client`` that every client of one broker handle is given. It
notes the newest failure of each node's connection in ``notes``, takes the note back when a connection comes about, and
lets a bootstrap end as soon as every address it may try has failed for good, or three times.

**Threads.** Notes are written by the I/O threads of the clients and read by any; single dictionary operations only.

The exceptions meant here are those of kafka-python; ``translate`` makes them ours.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from kafka import errors as kafka_errors
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector

from comux.errors import (
    AuthenticationError,
    BrokerTooOldError,
    ClosedError,
    ComuxError,
    ConfigError,
    ConnectError,
    NotAuthorizedError,
    RecordTooLargeError,
    TlsError,
    TopicError,
    TopicExistsError,
    UnknownTopicError,
    WaitTimeoutError,
)

from .address import redacted

C = TypeVar("C")
_TRIES: Final = 3
_REFUSED_CREDENTIALS: Final = (
    kafka_errors.SaslAuthenticationFailedError,
    kafka_errors.UnsupportedSaslMechanismError,
    kafka_errors.IllegalSaslStateError,
)


class _NoSecrets(logging.Filter):
    """kafka-python writes the options of an admin client, passwords among them, into its debug log."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, Mapping):
            record.args = redacted(record.args)
        elif isinstance(record.args, tuple):
            record.args = tuple(redacted(a) if isinstance(a, Mapping) else a for a in record.args)
        return True


logging.getLogger("kafka").addHandler(logging.NullHandler())  # what it warns of, comux reports; who listens still can
logging.getLogger("kafka.admin.client").addFilter(_NoSecrets())


class Notes:
    """The newest failure of each node, by node id; a node without one is well or was not tried."""

    def __init__(self) -> None:
        self._trouble: dict[Any, BaseException] = {}
        self._failures: dict[Any, int] = {}
        self.newest: BaseException | None = None  #: of any node, ever
        self.client: KafkaNetClient | None = None  #: the newest that was made

    def failed(self, node: Any, error: BaseException) -> None:
        """A connection to ``node`` did not come about, or was lost."""
        self._failures[node] = self._failures.get(node, 0) + 1
        self._trouble[node] = self.newest = error

    def connected(self, node: Any) -> None:
        """A connection to ``node`` came about."""
        self._trouble.pop(node, None)
        self._failures.pop(node, None)

    def trouble(self, node: Any) -> BaseException | None:
        """Why there is no connection to ``node``; ``None`` where nothing is known to be wrong."""
        return self._trouble.get(node)

    def hopeless(self, node: Any) -> BaseException | None:
        """The failure of a node that is not worth another try of a bootstrap."""
        error = self._trouble.get(node)
        if error is None or not (_for_good(error) or self._failures.get(node, 0) >= _TRIES):
            return None
        return error


def _for_good(error: BaseException) -> bool:
    return isinstance(error, (*_REFUSED_CREDENTIALS, kafka_errors.AuthorizationError)) or _tls_cause(error) is not None


def _tls_cause(error: BaseException) -> ssl.SSLError | None:
    """The TLS failure behind an error of kafka-python, which wraps it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


class _Manager(KafkaConnectionManager):  # type: ignore[misc]
    def __init__(self, net: Any, notes: Notes, **configs: Any) -> None:
        self._notes = notes
        super().__init__(net, **configs)

    def get_connection(self, node_id: Any, *args: Any, **kwargs: Any) -> Any:
        if self.cluster.is_bootstrap(node_id):
            failures = [self._notes.hopeless(node.node_id) for node in self.cluster.bootstrap_brokers()]
            if all(failures):
                raise next(f for f in failures if f is not None)
        known = self._conns.get(node_id)
        connection = super().get_connection(node_id, *args, **kwargs)
        if connection is not known:
            notes = self._notes
            connection.init_future.add_callback(lambda _: notes.connected(node_id))
            connection.init_future.add_errback(lambda error: notes.failed(node_id, error))
            connection.close_future.add_errback(lambda error: notes.failed(node_id, error))
        return connection


def watched(notes: Notes) -> Callable[..., KafkaNetClient]:
    """For the option ``kafka_client`` of a client: a client that keeps ``notes``."""

    def make(**configs: Any) -> KafkaNetClient:
        net = NetworkSelector(**configs)
        notes.client = KafkaNetClient(net=net, manager=_Manager(net, notes, **configs))
        return notes.client

    return make


def build(make: Callable[..., C], arguments: Mapping[str, Any], what: str, notes: Notes) -> C:
    """A consumer, producer or admin client; where it cannot be, its thread and connections end.

    Raises:
        ComuxError: why it cannot be.
    """
    try:
        return make(**arguments)
    except BaseException as error:
        client = notes.client
        if client is not None:  # kafka-python's constructors leave it running
            client.close()
            client._net.stop()
        if not isinstance(error, Exception):
            raise
        raise translate(error, what, notes) from error


def cluster_of(client: Any) -> Any:
    """What a consumer, producer or admin client knows of the cluster: topics, leaders."""
    return (client._client if hasattr(client, "_client") else client._sender._client)._manager.cluster


def translate(error: BaseException, what: str, notes: Notes | None = None) -> ComuxError:
    """kafka-python's (or the network's) exception as one of ours.

    Args:
        error: What was raised.
        what: Where, for the message: ``"kafka://h:9092: topic 'raw_cam1'"``.
        notes: Says what lies behind a time-out.
    """
    if isinstance(error, ComuxError):
        return error
    waited = isinstance(error, (kafka_errors.KafkaTimeoutError, kafka_errors.NodeNotReadyError))
    if waited and notes is not None and notes.newest is not None:
        error = notes.newest
    for kinds, make in _TABLE:
        if isinstance(error, kinds):
            return make(what, error)
    if (tls := _tls_cause(error)) is not None:
        return TlsError(f"{what}: no secure connection: {_tls_reason(tls)}")
    if isinstance(error, (kafka_errors.KafkaConnectionError, OSError)):
        return _no_connection(what, error)
    if getattr(error, "retriable", False):
        return ConnectError(f"{what}: {_text(error)}; it is tried again")
    return TopicError(f"{what}: {_text(error)}")


def _text(error: BaseException) -> str:
    text = str(error).strip()
    name = type(error).__name__.removesuffix("Error")
    return text if text.startswith("[Error") or name in text else f"{name}: {text}" if text else name


def _tls_reason(error: ssl.SSLError) -> str:
    reason = (error.reason or str(error)).replace("_", " ").lower()
    if "wrong version number" in reason or "record layer failure" in reason:
        return f"{reason}: that listener speaks no TLS; use its TLS port, or security_protocol=PLAINTEXT/SASL_PLAINTEXT"
    detail = getattr(error, "verify_message", "")
    return f"{reason}{f' ({detail})' if detail else ''}; check ssl_cafile, the host name, and the client's certificate"


def _no_connection(what: str, error: BaseException) -> ComuxError:
    text = str(error)
    if "refused" in text.lower() or isinstance(error, ConnectionRefusedError):
        return ConnectError(
            f"{what}: nobody listens there (connection refused); start the cluster, or correct host:port"
        )
    closed = any(word in text.lower() for word in ("closed", "reset", "eof", "broken pipe", "recv"))
    if closed or not text.strip():
        return ConnectError(
            f"{what}: the connection was closed ({text or 'no reason given'}); the broker went away, or the listener "
            "wants "
            "TLS or credentials: set security_protocol"
        )
    return ConnectError(f"{what}: no connection ({text}); check host:port and the network")


def _too_old(what: str, error: BaseException) -> ComuxError:
    return BrokerTooOldError(f"{what}: the broker is too old ({_text(error)}); comux needs Kafka 0.11, tests run on 4")


_TABLE: Final[tuple[tuple[tuple[type[BaseException], ...], Callable[[str, BaseException], ComuxError]], ...]] = (
    (
        _REFUSED_CREDENTIALS,
        lambda what, error: AuthenticationError(
            f"{what}: the credentials were refused ({_text(error)}); check sasl_mechanism, user and password"
        ),
    ),
    (
        (kafka_errors.AuthorizationError,),
        lambda what, error: NotAuthorizedError(
            f"{what}: not authorised ({_text(error)}); ask for an ACL that allows it"
        ),
    ),
    (
        (kafka_errors.UnknownTopicOrPartitionError, kafka_errors.UnknownTopicIdError),
        lambda what, error: UnknownTopicError(f"{what}: no such topic; create it, or start what publishes it"),
    ),
    (
        (kafka_errors.TopicAlreadyExistsError,),
        lambda what, error: TopicExistsError(f"{what}: it exists; delete it, or pass exist_ok"),
    ),
    (
        (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError),
        lambda what, error: RecordTooLargeError(
            f"{what}: the record is larger than the cluster takes ({_text(error)}); raise the topic's max.message.bytes"
        ),
    ),
    (
        (
            kafka_errors.IncompatibleBrokerVersion,
            kafka_errors.UnsupportedVersionError,
            kafka_errors.UnrecognizedBrokerVersion,
        ),
        _too_old,
    ),
    (
        (
            kafka_errors.KafkaConfigurationError,
            kafka_errors.UnsupportedCodecError,
            ValueError,
            AssertionError,
            TypeError,
        ),
        lambda what, error: ConfigError(f"{what}: {_text(error)}"),
    ),
    (
        (kafka_errors.IllegalStateError, kafka_errors.Cancelled),
        lambda what, error: ClosedError(f"{what}: closed ({_text(error)})"),
    ),
    (
        (kafka_errors.RequestTimedOutError, kafka_errors.KafkaTimeoutError),
        lambda what, error: WaitTimeoutError(f"{what}: no answer in time ({_text(error)})"),
    ),
)
