"""Answers: one JSON record per command on a reply topic.

An answer's key is the request-id (or ``None``), its value

``{"ok": true, "action": …, "request_id": …, "responder": …, "offset": …, "result": …}`` or
``{"ok": false, …, "error": {"type": …, "message": …, "retriable": …}}``.

Answering must never stop commands from being read: a reply topic that is full, gone or too small costs at most
``_SEND_TIMEOUT`` seconds and is counted in ``failed``.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from comux.errors import ComuxError, RecordTooLargeError, UnknownTopicError
from comux.transport import Broker, Producer, TopicSpec, for_engine

CONTROL: Final = {"content": "comux control"}  #: metadata of the topics of control: no fleet takes them for cameras
_SEND_TIMEOUT: Final = 0.5
_OPEN: Final = 8  #: producers kept open; the one unused longest is closed
_CREATED: Final = 64  #: reply topics one controller makes at most, or hostile names would fill the memory


def reply_spec(name: str) -> TopicSpec:
    """How a reply topic is made: small, never gating."""
    return TopicSpec(name, records=256, data_bytes=4 << 20, policy="drop_oldest", metadata=CONTROL)


class Replies:
    """Sends answers; thread-safe.

    Args:
        broker: Engine of the config topic.
        default_topic: Where answers go whose command names no topic.
    """

    def __init__(self, broker: Broker, default_topic: str) -> None:
        self._broker = broker
        self.default_topic = default_topic
        self._producers: OrderedDict[str, Producer] = OrderedDict()
        self._created: set[str] = set()
        self._lock = threading.Lock()
        self.sent = 0
        self.failed = 0

    def send(self, topic: str | None, body: Mapping[str, Any]) -> str | None:
        """Send one answer.

        Args:
            topic: ``None``: the default.
            body: JSON-ready, see the module.

        Returns:
            ``None``, or why it could not be sent.
        """
        name = topic or self.default_topic
        key = None if body.get("request_id") is None else str(body["request_id"]).encode()
        with self._lock:
            try:
                try:
                    self._send(name, key, body)
                except RecordTooLargeError as exc:
                    self._send(name, key, _shortened(body, exc))
                except UnknownTopicError:  # deleted since: once more with a new one
                    self._drop(name)
                    self._send(name, key, body)
            except ComuxError as exc:
                self._drop(name)
                self.failed += 1
                return f"no answer on topic {name!r}: {exc}"
            self.sent += 1
            return None

    def _send(self, name: str, key: bytes | None, body: Mapping[str, Any]) -> None:
        producer = self._producer(name)
        producer.send(encode(body), key=key, timeout=_SEND_TIMEOUT)

    def _producer(self, name: str) -> Producer:
        producer = self._producers.get(name)
        if producer is None:
            if name not in self._broker.topics():
                if name not in self._created and len(self._created) >= _CREATED:
                    raise UnknownTopicError(
                        f"topic {name!r} is missing and {_CREATED} reply topics were made; reuse one"
                    )
                self._broker.create_topic(for_engine(self._broker, reply_spec(name)), exist_ok=True)
                self._created.add(name)
            producer = self._producers[name] = self._broker.producer(name, name="comux-replies")
            while len(self._producers) > _OPEN:
                self._producers.popitem(last=False)[1].close()
        self._producers.move_to_end(name)
        return producer

    def _drop(self, name: str) -> None:
        producer = self._producers.pop(name, None)
        if producer is not None:
            producer.close()

    def close(self) -> None:
        """Close the producers; the topics stay for those who read them."""
        with self._lock:
            while self._producers:
                self._producers.popitem()[1].close()


def encode(body: Mapping[str, Any]) -> bytes:
    """JSON of an answer; what has no JSON form becomes the nearest thing that has (see ``nearest``)."""
    try:
        return json.dumps(body, default=nearest, skipkeys=True).encode()
    except (TypeError, ValueError, RecursionError) as exc:
        return json.dumps(
            {**body, "result": None, "note": f"the result has no JSON form: {exc}"}, default=repr
        ).encode()


def nearest(value: Any) -> Any:
    """What stands in an answer for a value without a JSON form."""
    if isinstance(value, np.generic):
        return nearest(value.item()) if isinstance(value.item(), (bytes, np.generic)) else value.item()
    if isinstance(value, np.ndarray):
        return value.tolist() if value.size <= 1000 and not value.dtype.hasobject else repr(value)[:200]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value[:1000]).decode("utf-8", "replace")
    if isinstance(value, (set, frozenset)):
        return list(value)
    if isinstance(value, Mapping):
        return dict(value)
    as_dict = getattr(value, "as_dict", None)
    return as_dict() if callable(as_dict) else repr(value)[:1000]


def _shortened(body: Mapping[str, Any], exc: RecordTooLargeError) -> dict[str, Any]:
    short = {key: body.get(key) for key in ("ok", "action", "request_id", "responder", "offset")}
    return {**short, "result": None, "note": f"the result was too large to send: {exc}"}


def success(result: Any) -> dict[str, Any]:
    """The part of an answer that says what came of the command."""
    return {"ok": True, "result": result}


def failure(exc: BaseException) -> dict[str, Any]:
    """The part of an answer that says why nothing was changed."""
    message = str(exc) or type(exc).__name__
    return {
        "ok": False,
        "error": {
            "type": type(exc).__name__,
            "message": message[:1000],
            "retriable": bool(getattr(exc, "retriable", False)),
        },
    }
