"""What went wrong with a Kafka cluster: noted by node while it lasts, and told as one of comux' errors.

Lives here: ``Notes``, which the networks of the clients keep (``kafka_net``), and ``translate``. kafka-python's
exceptions mean much or little: a time-out stands for whatever kept the client from connecting, so it is told as the
newest trouble that is noted. Each error says where, what, the numbers, and what to do.

**Threads.** Notes are written by the I/O threads of the clients and read by any; single dictionary operations only.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kafka import errors as kafka_errors

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
    TopicCorruptError,
    TopicError,
    TopicExistsError,
    UnknownTopicError,
    WaitTimeoutError,
)

from .kafka_fetched import Unreadable
from .kafka_security import speaks_tls, uses_sasl, uses_tls

TRIES: Final = 3  #: failures in a row after which an address to begin with is given up
_REFUSED_CREDENTIALS: Final = (
    kafka_errors.SaslAuthenticationFailedError,
    kafka_errors.UnsupportedSaslMechanismError,
    kafka_errors.IllegalSaslStateError,
)
_WAITED: Final = (kafka_errors.KafkaTimeoutError, kafka_errors.NodeNotReadyError)


class HungUp(kafka_errors.KafkaConnectionError):  # type: ignore[misc]
    """A listener closed the connection without a word.

    Args:
        greeted: It had answered the greeting before, and did not like the first request.
    """

    def __init__(self, greeted: bool) -> None:
        super().__init__("it closed the connection")
        self.greeted = greeted


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why there is no connection to a node.

    Attributes:
        error: kafka-python's.
        at: ``host:port``.
        advertised: The cluster named that place; else the user did.
    """

    error: BaseException
    at: str
    advertised: bool

    @property
    def final(self) -> bool:
        """Whether trying again would end the same."""
        error = self.error
        for_good = isinstance(error, (*_REFUSED_CREDENTIALS, kafka_errors.AuthorizationError))
        return for_good or _tls_cause(error) is not None


class Notes:
    """The newest trouble of each node, by node id; a node without one is well or was not tried.

    Args:
        client: kafka-python's options of the connection.
    """

    def __init__(self, client: Mapping[str, Any]) -> None:
        self.client = client
        self._troubles: dict[Any, Trouble] = {}  # in the order in which they were noted
        self._failures: dict[Any, int] = {}

    def count(self, node: Any) -> None:
        """A connection to ``node`` did not come about, or was lost."""
        self._failures[node] = self._failures.get(node, 0) + 1

    def failed(self, node: Any, trouble: Trouble) -> None:
        """Why; takes the place of what is noted."""
        self._troubles.pop(node, None)
        self._troubles[node] = trouble

    def connected(self, node: Any, *, for_good: bool) -> None:
        """A connection to ``node`` came about; not ``for_good`` where it has still to show what it is worth."""
        self._troubles.pop(node, None)
        if for_good:
            self._failures.pop(node, None)

    def forget(self, node: Any) -> None:
        """Whatever went wrong with ``node`` means nothing any more."""
        self._troubles.pop(node, None)
        self._failures.pop(node, None)

    def failures(self, node: Any) -> int:
        """How often in a row ``node`` failed."""
        return self._failures.get(node, 0)

    def trouble(self, node: Any) -> Trouble | None:
        """Why there is no connection to ``node``; ``None`` where nothing is known to be wrong."""
        return self._troubles.get(node)

    @property
    def troubles(self) -> list[Trouble]:
        """All there are now, the newest last."""
        return list(self._troubles.values())

    def hopeless(self, node: Any) -> BaseException | None:
        """The failure of a node that is not worth another try of a bootstrap."""
        trouble = self._troubles.get(node)
        if trouble is None or not (trouble.final or self.failures(node) >= TRIES):
            return None
        return trouble.error


def _tls_cause(error: BaseException) -> ssl.SSLError | None:
    """The TLS failure behind an error of kafka-python, which wraps it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLError):
            return seen
        inner = next((part for part in seen.args if isinstance(part, BaseException)), None)
        seen = inner or seen.__cause__ or seen.__context__
    return None


# -- telling -------------------------------------------------------------------------------------------------------


def unreadable(what: Unreadable, where: str) -> ComuxError:
    """Why records cannot be read: a package is missing (``ConfigError``), or what is stored is damaged."""
    at = f"{where} at offset {what.offset}"
    if isinstance(what.error, kafka_errors.UnsupportedCodecError):
        return ConfigError(
            f"{at}: compressed in a way that no Python package here undoes ({detail(what.error)}); "
            "pip install 'comux[compression]'"
        )
    beyond = "go on behind it with start=, or seek"
    return TopicCorruptError(f"{at}: the records stored there cannot be read ({detail(what.error)}); {beyond}")


def translate(error: BaseException | Trouble, what: str, notes: Notes, *, right: str = "") -> ComuxError:
    """kafka-python's (or the network's) exception as one of ours.

    Args:
        error: What was raised, or noted.
        what: Where, for the message: ``"kafka://h:9092: topic 'raw_cam1'"``.
        notes: Say what lies behind a time-out, and who asks.
        right: The right that is missing where the cluster says that one is: ``"READ on topic 'raw_cam1'"``.
    """
    if isinstance(error, ComuxError):
        return error
    if isinstance(error, _WAITED) and notes.troubles:
        error = notes.troubles[-1]
    else:
        error = next((trouble for trouble in notes.troubles if trouble.error is error), error)
    if isinstance(error, Trouble):
        if error.advertised and error.at not in what:
            what = f"{what}: broker at {error.at}, as the cluster names it (advertised.listeners)"
        elif error.at not in what or "," in what:
            what = f"{what}: at {error.at}"
        error = error.error
    if isinstance(error, kafka_errors.AuthorizationError):
        return _not_authorized(what, error, notes, right)
    if isinstance(error, _REFUSED_CREDENTIALS):
        return _refused(what, error, notes)
    if isinstance(error, HungUp):
        return _hung_up(what, error, notes)
    if isinstance(error, kafka_errors.KafkaProtocolError):
        return ConnectError(
            f"{what}: what answers there is not understood ({detail(error)}); it is no Kafka broker, or its listener "
            f"wants another security_protocol than {notes.client.get('security_protocol', 'PLAINTEXT')!r}"
        )
    for kinds, make in _TABLE:
        if isinstance(error, kinds):
            return make(what, error)
    if (tls := _tls_cause(error)) is not None:
        return TlsError(f"{what}: no secure connection: {_tls_reason(tls)}")
    if isinstance(error, (kafka_errors.KafkaConnectionError, OSError)):
        return _no_connection(what, error)
    if isinstance(error, kafka_errors.UnknownError):  # brokers answer so while they start; it says nothing of us
        return ConnectError(f"{what}: the broker failed at it and does not say why; its log does; it is tried again")
    if getattr(error, "retriable", False):
        return ConnectError(f"{what}: {detail(error)}; it is tried again")
    return TopicError(f"{what}: {detail(error)}")


def opening_failure(error: BaseException, what: str, notes: Notes, timeout: float) -> ComuxError:
    """Why a client could not be made: the trouble that tells most, and in short that of the other addresses.

    Args:
        error: What was raised.
        what: Which cluster, for the message.
        notes: Of the attempt.
        timeout: Seconds it was given.
    """
    troubles = [trouble for trouble in notes.troubles if trouble.error is error or isinstance(error, _WAITED)]
    if not troubles:
        return _answering(translate(error, what, notes), what, timeout)
    troubles = notes.troubles
    told = [(translate(trouble, what, notes), trouble) for trouble in troubles]
    told.sort(key=lambda pair: _telling(pair[0], pair[1]))
    failure, first = told[0]
    failure = _answering(failure, what, timeout)
    others = "".join(f"; {trouble.at}: {_brief(trouble.error)}" for _, trouble in told[1:])
    if _not_understood(first.error) and not uses_tls(notes.client) and speaks_tls(*_host_port(first.at)):
        protocol = "SASL_SSL" if uses_sasl(notes.client) else "SSL"
        return TlsError(f"{what}: the listener at {first.at} wants TLS; set security_protocol={protocol!r}{others}")
    return type(failure)(f"{failure}{others}") if others else failure


def _not_understood(error: BaseException) -> bool:
    """Whether a listener did not speak our language from the first word on."""
    return isinstance(error, kafka_errors.KafkaProtocolError) or (isinstance(error, HungUp) and not error.greeted)


def _telling(failure: ComuxError, trouble: Trouble) -> int:
    """Somebody who refuses tells more than nobody."""
    return 0 if not failure.retriable else 1 if isinstance(trouble.error, HungUp) else 2


def _answering(failure: ComuxError, what: str, timeout: float) -> ComuxError:
    if not isinstance(failure, WaitTimeoutError):
        return failure
    return ConnectError(
        f"{what}: somebody accepts connections there and gave no answer within {timeout:g} s; check that it is a Kafka "
        "broker, and well"
    )


def _host_port(at: str) -> tuple[str, int]:
    host, _, port = at.rpartition(":")
    return host.strip("[]"), int(port)


def detail(error: BaseException) -> str:
    """What an exception of kafka-python says, without the names it repeats."""
    name = type(error).__name__
    text = ": ".join(str(part) for part in error.args).strip()
    while text.startswith(name):
        text = text.removeprefix(name).lstrip(": ")
    return text or getattr(error, "description", "") or name.removesuffix("Error")


def _brief(error: BaseException) -> str:
    text = detail(error)
    return "nobody listens" if "refused" in text.lower() else "host not known (DNS)" if "DNS" in text else text


def _who(notes: Notes) -> str:
    user = notes.client.get("sasl_plain_username")
    return f"user {user!r} is" if user and uses_sasl(notes.client) else "this client is"


def _not_authorized(what: str, error: BaseException, notes: Notes, right: str) -> NotAuthorizedError:
    if not right:
        named = error.args[0] if error.args else ""
        kind = type(error).__name__.removesuffix("AuthorizationFailedError").lower()
        names = ", ".join(map(repr, named)) if isinstance(named, (set, list, tuple)) else ""
        right = f"it on {kind}{' ' if names else ''}{names}"
    return NotAuthorizedError(f"{what}: {_who(notes)} not authorised; ask for an ACL that allows {right}")


def _refused(what: str, error: BaseException, notes: Notes) -> AuthenticationError:
    mechanism, user = notes.client.get("sasl_mechanism"), notes.client.get("sasl_plain_username")
    if isinstance(error, kafka_errors.UnsupportedSaslMechanismError):
        return AuthenticationError(
            f"{what}: the listener does not offer sasl_mechanism={mechanism!r}; ask which it has enabled and set that"
        )
    if isinstance(error, kafka_errors.IllegalSaslStateError):
        return AuthenticationError(
            f"{what}: the listener takes no credentials, security_protocol is "
            f"{notes.client.get('security_protocol')!r}; use its SASL port, or leave the credentials out"
        )
    return AuthenticationError(
        f"{what}: the credentials of user {user!r} were refused by {mechanism} ({detail(error)}); check "
        "sasl_plain_username, its password, and sasl_mechanism"
    )


def _hung_up(what: str, error: HungUp, notes: Notes) -> ComuxError:
    protocol = notes.client.get("security_protocol", "PLAINTEXT")
    if error.greeted and not uses_sasl(notes.client):
        wanted = "SASL_SSL" if uses_tls(notes.client) else "SASL_PLAINTEXT"
        return AuthenticationError(
            f"{what}: the listener hung up {TRIES} times at the first request: it wants credentials; set "
            f"security_protocol={wanted!r}, sasl_mechanism, sasl_plain_username and its password"
        )
    return ConnectError(
        f"{what}: the connection was closed without a word; the broker went away, is no Kafka broker, or its listener "
        f"wants another security_protocol than {protocol!r}"
    )


def _tls_reason(error: ssl.SSLError) -> str:
    reason = (error.reason or str(error)).replace("_", " ").lower()
    if "wrong version number" in reason or "record layer failure" in reason or "eof" in reason:
        return (
            f"{reason}: that listener speaks no TLS; use its TLS port, or security_protocol='PLAINTEXT' or "
            "'SASL_PLAINTEXT'"
        )
    verify = getattr(error, "verify_message", "")
    if "match" in verify:
        return f"{verify}; connect by a name or address that stands in the broker's certificate"
    if "expired" in verify or "not yet valid" in verify:
        return f"the broker's certificate: {verify}; renew it, or set the clock"
    if verify:
        return f"the broker's certificate: {verify}; set ssl_cafile to the authority that signed it"
    return f"{reason}; check ssl_cafile, ssl_certfile and ssl_keyfile against what the listener asks for"


def _no_connection(what: str, error: BaseException) -> ConnectError:
    text = detail(error)
    low = text.lower()
    if "refused" in low:
        return ConnectError(
            f"{what}: nobody listens there (connection refused); start the cluster, or correct host:port"
        )
    if "dns" in low:
        return ConnectError(f"{what}: the host is not known (DNS); correct its name, or the name service")
    if "timed out" in low:
        return ConnectError(f"{what}: nobody answers there ({text}); check host:port, the network and firewalls")
    if any(word in low for word in ("closed", "disconnected", "reset", "eof", "broken pipe", "recv")):
        return ConnectError(f"{what}: the connection was lost ({text}); the broker went away; it is tried again")
    return ConnectError(f"{what}: no connection ({text}); check host:port and the network")


def _too_old(what: str, error: BaseException) -> ComuxError:
    return BrokerTooOldError(f"{what}: the broker is too old ({detail(error)}); comux needs Kafka 0.11, tests run on 4")


_TABLE: Final[Sequence[tuple[tuple[type[BaseException], ...], Callable[[str, BaseException], ComuxError]]]] = (
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
            f"{what}: the record is larger than the cluster takes ({detail(error)}); raise max.message.bytes of the "
            "topic"
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
        lambda what, error: ConfigError(f"{what}: {detail(error)}"),
    ),
    (
        (kafka_errors.IllegalStateError, kafka_errors.Cancelled),
        lambda what, error: ClosedError(f"{what}: closed ({detail(error)})"),
    ),
    (
        (kafka_errors.RequestTimedOutError, kafka_errors.KafkaTimeoutError),
        lambda what, error: WaitTimeoutError(f"{what}: no answer in time ({detail(error)})"),
    ),
)
