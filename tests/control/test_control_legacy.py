"""``Control`` by the first comux's words."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from comux.control import Control, send_command
from comux.errors import ClosedError, UnknownAddressError
from comux.transport import Broker


def test_act_gives_the_result_or_the_first_comuxs_exact_words(broker: Broker, target: Any) -> None:
    with Control("config", broker, {"double": lambda comux, value: (comux is target, value * 2)}, target) as control:
        assert control.act("double", 4) == (True, 8)
        assert control.act("status", None) == {"sources": ["cam1"]}
        assert control.act("create", "cam2") == {"sources": ["cam1", "cam2"]}
        assert control.act("dance", 1) == "✘ No action 'dance' defined!"
        assert control.act("pause", None) == "✘ No action 'pause' defined!"


def test_connect_sub_run_offsets_kill(broker: Broker, target: Any) -> None:
    control = Control("config", broker, {}, target)
    control.connect()
    assert control.offset == -1
    control.sub()
    assert (control.offset, control.topic_last_offset) == (0, 0)
    thread = threading.Thread(target=control.run)
    thread.start()
    assert send_command(broker, "config", "status")["ok"]
    assert (control.offset, control.topic_last_offset) == (1, 1)
    assert control.account().delivered == 1
    control.kill()
    thread.join(20)
    assert not thread.is_alive()
    control.kill()
    with pytest.raises(ClosedError):
        control.sub()


def test_an_address_opens_and_closes_its_own_broker(target: Any) -> None:
    with Control("config", "memory://legacy", {"x": lambda comux, value: value}, target):
        assert send_command("memory://legacy", "config", "x", 3)["result"] == 3


def test_a_wrong_address_is_one_error(target: Any) -> None:
    with pytest.raises(UnknownAddressError):
        Control("config", "nothing", {}, target).connect()
