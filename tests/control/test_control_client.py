"""A command that was sent, and its answer, when the engine is away in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from comux.control import Controller, send_command
from comux.errors import ConnectError, NotAuthorizedError, WaitTimeoutError
from comux.transport import Broker, Consumer


def failing(broker: Broker, monkeypatch: pytest.MonkeyPatch, error: Exception, times: int | None) -> list[Exception]:
    """Replies cannot be read ``times`` times (``None``: ever); gives the list of what was raised."""
    opened, raised = broker.consumer, []

    def consumer(topic: Any, **options: Any) -> Consumer:
        found = opened(topic, **options)
        if topic == "config_replies":
            poll = found.poll

            def polled(*arguments: Any, **words: Any) -> Any:
                if times is None or len(raised) < times:
                    raised.append(error)
                    raise error
                return poll(*arguments, **words)

            monkeypatch.setattr(found, "poll", polled, raising=False)
        return found

    monkeypatch.setattr(broker, "consumer", consumer)
    return raised


def test_an_engine_that_is_away_for_a_moment_does_not_hide_the_answer(
    broker: Broker, control: Callable[..., Controller], monkeypatch: pytest.MonkeyPatch
) -> None:
    control()
    raised = failing(broker, monkeypatch, ConnectError("nobody listens there"), times=2)
    assert send_command(broker, "config", "create", {"cam_id": "cam2"}, timeout=60)["ok"]
    assert len(raised) == 2


def test_an_engine_that_stays_away_is_named(
    broker: Broker, control: Callable[..., Controller], target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    control()
    failing(broker, monkeypatch, ConnectError("nobody listens there"), times=None)
    with pytest.raises(WaitTimeoutError, match=r"within 0\.3 s; while waiting: nobody listens there"):
        send_command(broker, "config", "status", timeout=0.3)


def test_what_does_not_pass_by_itself_is_told_at_once(
    broker: Broker, control: Callable[..., Controller], monkeypatch: pytest.MonkeyPatch
) -> None:
    control()
    raised = failing(broker, monkeypatch, NotAuthorizedError("may not read"), times=None)
    with pytest.raises(NotAuthorizedError):
        send_command(broker, "config", "status", timeout=60)
    assert len(raised) == 1
