"""Sending a command and waiting for its answer: for the command line, tests, and programs."""

from __future__ import annotations

import json
import secrets
import threading
import time
from typing import Any, Final

from comux.control.commands import make_command, reply_topic_of
from comux.control.replies import reply_spec
from comux.errors import ComuxError, WaitTimeoutError
from comux.options import check_timeout, check_topic_name
from comux.transport import Broker, connect, for_engine

_PAUSE: Final = 0.1  # seconds between two looks while the engine cannot be reached


def send_command(
    broker: Broker | str,
    topic: str,
    action: str,
    value: Any = None,
    *,
    timeout: float | None = 5.0,
    target: str | None = None,
    reply_topic: str | None = None,
) -> dict[str, Any]:
    """Send one command and return its first answer.

    The command expires with ``timeout``, so that nothing is carried out that its sender has given up.

    Args:
        broker: Engine of the config topic, or its address.
        topic: The config topic.
        action: A built-in or a user's act.
        value: Its argument: ``bytes`` as they are, else JSON.
        timeout: Seconds to wait for the answer; ``None`` waits.
        target: Name of the client meant; ``None``: every one (the first answer counts).
        reply_topic: ``None``: ``<topic>_replies``.

    Returns:
        The answer, see ``comux.control.replies``; ``answer["ok"]`` tells whether it was carried out.

    Raises:
        WaitTimeoutError: nobody answered, or the engine went away meanwhile and was not back in time; the command may
            have been carried out. UnknownTopicError: the config topic does not exist. CommandError: the value has no
            JSON form. ConnectError: the engine cannot be reached; nothing was sent.
    """
    check_topic_name(topic, "config topic")
    seconds = check_timeout(timeout)
    if isinstance(broker, str):
        with connect(broker) as opened:
            return _exchange(opened, topic, action, value, seconds, target, reply_topic or reply_topic_of(topic))
    return _exchange(broker, topic, action, value, seconds, target, reply_topic or reply_topic_of(topic))


def _exchange(
    broker: Broker, topic: str, action: str, value: Any, timeout: float | None, target: str | None, reply_topic: str
) -> dict[str, Any]:
    broker.topic(topic)
    if reply_topic not in broker.topics():
        broker.create_topic(for_engine(broker, reply_spec(reply_topic)), exist_ok=True)
    request_id = secrets.token_hex(8)
    key, data, headers = make_command(
        action,
        value,
        request_id=request_id,
        reply_to=reply_topic,
        target=target,
        expires=None if timeout is None else time.time() + timeout,
    )
    deadline = None if timeout is None else time.monotonic() + timeout
    with broker.consumer(reply_topic, start="end", on_end="wait") as answers:
        with broker.producer(topic) as producer:
            producer.send(data, key=key, headers=headers, timeout=timeout).result(timeout)
        trouble: ComuxError | None = None
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                for record in answers.poll(timeout=left, max_records=64):
                    answer = _read(record.value)
                    if answer is not None and answer.get("request_id") == request_id:
                        return answer
            except ComuxError as exc:  # the command is on its way: the answer may stand there when the engine is back
                if not exc.retriable:
                    raise
                trouble = exc
                threading.Event().wait(_PAUSE if left is None else min(left, _PAUSE))
            if left == 0.0:
                raise WaitTimeoutError(
                    f"no answer to {action!r} on topic {topic!r} within {timeout} s"
                    + (f" from {target!r}" if target else "")
                    + (f"; while waiting: {trouble}" if trouble else ": is the program that it controls running?")
                ) from trouble


def _read(value: Any) -> dict[str, Any] | None:
    """An answer, or ``None`` for what else may stand on a reply topic."""
    try:
        answer = json.loads(bytes(value or b""))
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None
