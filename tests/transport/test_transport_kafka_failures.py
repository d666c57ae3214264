"""Kafka clusters that cannot be reached, without a broker: what the error says, and what is left behind."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_kafka import black_hole, free_port, hang_up, listener, old_broker, say_nothing, speak_http
from kafka import errors as kafka_errors

from comux.errors import BrokerTooOldError, ComuxError, ConnectError, TlsError, WaitTimeoutError
from comux.transport import connect
from comux.transport.kafka_failures import Notes, Trouble, translate

SHORT = 0.5


def failure(address: str, within: float = 4.0, **options: object) -> ComuxError:
    begun = time.monotonic()
    with pytest.raises(ComuxError) as caught:
        connect(address, **options)
    assert time.monotonic() - begun < within
    assert "\n" not in str(caught.value)
    assert address.partition("?")[0] in str(caught.value)
    return caught.value


@pytest.fixture(autouse=True)
def _no_network_stays() -> Iterator[None]:
    """Each client of kafka-python has a thread and a selector. (Refused sockets are held by what is logged.)"""

    def left() -> list[str]:
        links = [str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
        threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("kafka")]
        return [link for link in links if "eventpoll" in link] + threads

    before = left()
    yield
    assert left() == before


def test_nobody_listens() -> None:
    error = failure(f"kafka://127.0.0.1:{free_port()}")
    assert type(error) is ConnectError and error.retriable
    assert "nobody listens there" in str(error)


def test_each_of_several_addresses_has_its_reason() -> None:
    first, second = f"127.0.0.1:{free_port()}", "no-such-host.invalid:9092"
    error = failure(f"kafka://{first},{second}")
    assert type(error) is ConnectError
    assert all(word in str(error) for word in (first, second, "nobody listens", "DNS"))


def test_a_host_nobody_knows() -> None:
    error = failure("kafka://no-such-host.invalid:9092")
    assert type(error) is ConnectError and error.retriable
    assert "host is not known (DNS)" in str(error)


def test_nobody_answers() -> None:
    with listener(say_nothing) as there:
        error = failure(f"kafka://{there}", connect_timeout=SHORT)
    assert type(error) is ConnectError and error.retriable
    assert "gave no answer within 0.5 s" in str(error)


def test_packets_are_dropped() -> None:
    with black_hole() as there:
        error = failure(f"kafka://{there}", connect_timeout=SHORT)
    assert type(error) is ConnectError and error.retriable
    assert "nobody answers there" in str(error)


@pytest.mark.parametrize("serve", [hang_up, speak_http])
def test_no_kafka_broker(serve: Callable[[socket.socket], None]) -> None:
    with listener(serve) as there:
        error = failure(f"kafka://{there}")
    assert type(error) is ConnectError and error.retriable
    assert "is no Kafka broker" in str(error) and "security_protocol" in str(error)


@pytest.mark.parametrize("serve", [hang_up, speak_http])
def test_tls_where_nobody_speaks_it(serve: Callable[[socket.socket], None]) -> None:
    with listener(serve) as there:
        error = failure(f"kafka://{there}", security_protocol="SSL")
    assert type(error) is TlsError and not error.retriable
    assert "speaks no TLS" in str(error)


@pytest.mark.parametrize("options", [{}, {"api_version": (0, 10)}], ids=["found", "stated"])
def test_a_broker_that_is_too_old(options: dict[str, object]) -> None:
    with listener(old_broker((0, 10, 0), "127.0.0.1:1")) as there:
        error = failure(f"kafka://{there}", **options)
    assert type(error) is BrokerTooOldError and not error.retriable
    assert "Kafka 0.10" in str(error) and "0.11" in str(error)


def test_the_cluster_names_a_place_that_cannot_be_reached() -> None:
    """``advertised.listeners`` of a broker in a container: the beginning works, and nothing else does."""
    nowhere = f"127.0.0.1:{free_port()}"
    with listener(old_broker((2, 0), nowhere)) as there:
        begun = time.monotonic()
        with connect(f"kafka://{there}") as broker, pytest.raises(ConnectError) as caught:
            broker.topics()
    assert time.monotonic() - begun < 4.0
    text = str(caught.value)
    assert nowhere in text and "advertised.listeners" in text and "nobody listens" in text


def test_one_address_of_several_is_enough() -> None:
    """Whichever kafka-python tries first: a dead one, or one whose packets are dropped, does not take all the time."""
    with black_hole() as hole, listener(old_broker((2, 0), "127.0.0.1:1")) as there:
        for _ in range(2):
            begun = time.monotonic()
            connect(f"kafka://127.0.0.1:{free_port()},{hole},{there}", connect_timeout=3.0).close()
            assert time.monotonic() - begun < 3.0


def test_a_broker_that_only_says_that_it_failed_is_asked_again() -> None:
    """Seen while a broker starts: it ended sources for good."""
    error = translate(kafka_errors.UnknownError("-1"), "here", Notes({}))
    assert type(error) is ConnectError and error.retriable and "its log" in str(error)


def test_what_stands_behind_a_timeout_is_told_while_it_lasts() -> None:
    notes = Notes({})
    waited = kafka_errors.KafkaTimeoutError("60 s")
    assert type(translate(waited, "here", notes)) is WaitTimeoutError
    refused = kafka_errors.KafkaConnectionError("111 ECONNREFUSED")
    notes.failed(1, Trouble(refused, "h:1", advertised=True))
    assert "nobody listens" in str(translate(waited, "here", notes))
    notes.connected(1, for_good=True)
    assert type(translate(waited, "here", notes)) is WaitTimeoutError


@pytest.mark.parametrize(
    "verify,says",
    [
        ("unable to get local issuer certificate", "ssl_cafile"),
        ("Hostname mismatch, certificate is not valid for 'b2'.", "connect by a name"),
        ("certificate has expired", "renew"),
        ("", "ssl_certfile"),
    ],
)
def test_tls_failures_say_what_to_do(verify: str, says: str) -> None:
    """Also where kafka-python wraps them in nothing but an argument."""
    inner = ssl.SSLCertVerificationError(1, "[SSL: SOMETHING] something")
    inner.verify_message = verify
    inner.reason = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    error = translate(kafka_errors.KafkaConnectionError(inner), "kafka://h:1", Notes({}))
    assert type(error) is TlsError and says in str(error)
