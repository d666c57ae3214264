"""What goes wrong with librdkafka's connections: noted by broker while it lasts, as ``kafka_failures`` wants it.

**Problem.** librdkafka retries everything, too, and tells in two ways: an error callback with a line of text, and
statistics with the state of every connection. A line says why, and nothing says when it is over; statistics say what
is, and not why.

**Algorithm.** A line that begins with a broker's name and number is noted for it. Statistics take the note back when
the connection is up. A broker that is not connected in two statistics in a row, without a line, is noted too. What
cannot be read counts for nothing: then a topic is silent without a reason, and nothing else.

**Threads.** The callbacks are called by whoever polls the client.
"""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Final

from kafka import errors as kafka_errors

from .confluent_options import library
from .kafka_failures import Notes, Trouble

#: ``sasl_ssl://host:9092/1: Connect to ipv4#10.0.0.1:9092 failed: Connection refused (after 0ms in state CONNECT)``
_LINE: Final = re.compile(r"(?:[a-z_]+://)?(?P<at>\S+)/(?P<node>\d+): (?P<why>.*)", re.DOTALL)
_UP: Final = ("UP", "UPDATE")
_IDLE: Final = ("INIT",)  # it was not needed yet


def as_kafka_error(error: Any) -> Exception:
    """A ``KafkaError`` of confluent-kafka's as the exception that kafka-python has for it."""
    kinds = library().KafkaError
    code, text = error.code(), error.str()
    if code == kinds._SSL:
        reason, text = text, ssl.SSLError(1, text)
        text.reason = reason
    made: Exception
    for codes, kind in (
        ((kinds._TRANSPORT, kinds._ALL_BROKERS_DOWN, kinds._RESOLVE, kinds._SSL), kafka_errors.KafkaConnectionError),
        ((kinds._AUTHENTICATION,), kafka_errors.SaslAuthenticationFailedError),
        ((kinds._MSG_TIMED_OUT, kinds._TIMED_OUT, kinds._TIMED_OUT_QUEUE), kafka_errors.KafkaTimeoutError),
        ((kinds._UNKNOWN_TOPIC, kinds._UNKNOWN_PARTITION), kafka_errors.UnknownTopicOrPartitionError),
        ((kinds._PURGE_QUEUE, kinds._PURGE_INFLIGHT, kinds._DESTROY), kafka_errors.Cancelled),
    ):
        if code in codes:
            made = kind(text)
            return made
    made = kafka_errors.for_code(code)(text) if code >= 0 else kafka_errors.KafkaError(text)
    return made


class Ear:
    """The callbacks of one client.

    Args:
        notes: Where troubles are noted.
        topics: Told of each statistics: topics by name, as librdkafka has them.

    Attributes:
        fatal: The client takes nothing any more.
        missing: An error said that a topic is not there, since this was last set to false.
        refused: The newest error about rights, since this was last set to ``None``.
    """

    def __init__(self, notes: Notes, topics: Callable[[Mapping[str, Any]], None] = lambda topics: None) -> None:
        self.fatal = False
        self.missing = False
        self.refused: Exception | None = None
        self._notes = notes
        self._topics = topics
        self._down: set[int] = set()

    def error(self, error: Any) -> None:
        """``error_cb``."""
        kinds = library().KafkaError
        self.fatal = self.fatal or error.fatal()
        ours = as_kafka_error(error)
        if isinstance(ours, kafka_errors.UnknownTopicOrPartitionError):
            self.missing = True
        elif error.code() == kinds.TOPIC_AUTHORIZATION_FAILED:
            self.refused = ours
        found = _LINE.match(error.str())
        if found is not None:
            if error.code() in (kinds._TRANSPORT, kinds._RESOLVE, kinds._TIMED_OUT):  # no answer: as good as none
                ours = kafka_errors.KafkaConnectionError(found["why"])
            self._notes.failed(int(found["node"]), Trouble(ours, found["at"], advertised=True))

    def statistics(self, text: str) -> None:
        """``stats_cb``."""
        seen = json.loads(text)
        down: set[int] = set()
        for name, broker in seen.get("brokers", {}).items():
            node, state = broker.get("nodeid", -1), broker.get("state")
            if node < 0 or state in _IDLE:
                continue
            if state in _UP:
                self._notes.connected(node, for_good=True)
                continue
            down.add(node)
            if node in self._down and self._notes.trouble(node) is None:
                at = name.rpartition("://")[2].rpartition("/")[0]
                lost = kafka_errors.KafkaConnectionError(f"no connection (librdkafka: {state})")
                self._notes.failed(node, Trouble(lost, at, advertised=True))
        self._down = down
        self._topics(seen.get("topics", {}))
