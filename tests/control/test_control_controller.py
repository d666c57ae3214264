"""The controller's thread: every command answered, none ends it, slow acts block nobody, it ends when asked."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comux.control import Command, Controller, current_command, make_command, send_command
from comux.errors import ClosedError, ConfigError, UnknownTopicError, WaitTimeoutError
from comux.telemetry import EventLog
from comux.transport import Broker, TopicSpec, connect

Make = Callable[..., Controller]
Until = Callable[[Callable[[], Any]], Any]


def threads_named(word: str) -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith(f"comux-{word}")]


def test_built_in_actions_change_the_target_and_answer_with_what_it_is_now(
    control: Make, broker: Broker, target: Any
) -> None:
    control(name="gate")
    answer = send_command(broker, "config", "status")
    assert answer["ok"] is True
    assert (answer["action"], answer["responder"], answer["offset"]) == ("status", "gate", 0)
    assert answer["result"] == {"sources": ["cam1"]}
    assert send_command(broker, "config", "create", {"cam_id": "cam2", "rate": 5})["result"]["sources"] == [
        "cam1",
        "cam2",
    ]
    assert send_command(broker, "config", "update", {"cam_id": "cam2", "W": 64})["result"]["W"] == 64
    assert send_command(broker, "config", "delete", "cam1")["result"]["sources"] == ["cam2"]
    assert send_command(broker, "config", "seek", {"cam_id": "cam2", "to": 5})["ok"] is True
    assert target.calls == [
        ("create", {"cam_id": "cam2", "rate": 5.0}),
        ("update", {"cam_id": "cam2", "W": 64}),
        ("delete", {"cam_id": "cam1"}),
        ("seek", {"cam_id": "cam2", "to": 5}),
    ]


def test_what_fails_is_answered_and_changes_nothing(control: Make, broker: Broker, target: Any) -> None:
    controller = control()
    for action, value, kind in [
        ("delete", "nobody", "UnknownSourceError"),
        ("create", {"cam_id": "x", "address": "tcp://evil"}, "CommandError"),
        ("create", {"cam_id": ""}, "CommandError"),
        ("pause", "cam1", "UnsupportedError"),
        ("invented", None, "UnknownActionError"),
        ("status", {"extra": 1}, "CommandError"),
        ("__class__", None, "UnknownActionError"),
        ("calls", None, "UnknownActionError"),
    ]:
        answer = send_command(broker, "config", action, value)
        assert answer["ok"] is False
        assert answer["error"]["type"] == kind
        assert answer["error"]["message"]
    assert target.sources == {"cam1": {}}
    books = controller.account()
    assert (books.received, books.delivered, dict(books.dropped)) == (8, 1, {"rejected": 7})
    assert books.balanced


def test_a_users_act_gets_its_value_and_the_raw_bytes(control: Make, broker: Broker, target: Any) -> None:
    seen: list[tuple[Any, Any, bytes | None]] = []

    def hello(comux: Any, value: Any) -> Any:
        command = current_command()
        assert command is not None
        seen.append((comux, value, command.raw))
        return {"array": np.arange(3), "scalar": np.float32(0.5), "bytes": b"ab", "set": {1}, "other": object}

    control(acts={"hello": hello, "create": lambda comux, value: "mine"}, subject="the comux")
    result = send_command(broker, "config", "hello", {"a": 1})["result"]
    assert (result["array"], result["scalar"], result["bytes"], result["set"]) == ([0, 1, 2], 0.5, "ab", [1])
    send_command(broker, "config", "hello", b"\xff\x00")
    send_command(broker, "config", "hello")
    assert seen == [
        ("the comux", {"a": 1}, b'{"a": 1}'),
        ("the comux", b"\xff\x00", b"\xff\x00"),
        ("the comux", None, None),
    ]
    assert send_command(broker, "config", "create", "x")["result"] == "mine"
    assert target.calls == []
    assert current_command() is None


def test_an_act_that_raises_or_exits_is_answered_and_the_next_runs(control: Make, broker: Broker) -> None:
    control(acts={"boom": lambda comux, value: 1 / 0, "exit": lambda comux, value: sys.exit(3), "ok": lambda c, v: v})
    assert send_command(broker, "config", "boom")["error"]["type"] == "ZeroDivisionError"
    assert "sys.exit(3)" in send_command(broker, "config", "exit")["error"]["message"]
    assert send_command(broker, "config", "ok", 5)["result"] == 5


def test_a_slow_act_blocks_no_command_and_a_full_queue_is_an_answer(
    control: Make, broker: Broker, until: Until
) -> None:
    gate, entered = threading.Event(), threading.Event()

    def slow(comux: Any, value: Any) -> str:
        entered.set()
        assert gate.wait(20)
        return "done"

    controller = control(acts={"slow": slow}, pending_acts=2)
    with _replies(broker) as answers, broker.producer("config") as producer:
        for number in range(5):
            key, value, headers = make_command("slow", request_id=f"s{number}")
            producer.send(value, key=key, headers=headers)
            if number == 0:
                assert entered.wait(20)
        assert send_command(broker, "config", "status")["ok"] is True  # while the act is inside
        early = _collect(answers, 3)
        busy = {a["request_id"]: a for a in early if not a["ok"]}
        assert sorted(busy) == ["s3", "s4"]
        assert all(a["error"]["retriable"] and "too many acts" in a["error"]["message"] for a in busy.values())
        assert dict(controller.account().held) == {"acts": 3}
        gate.set()
        assert sorted(a["request_id"] for a in _collect(answers, 3)) == ["s0", "s1", "s2"]
    books = controller.account()
    assert (books.delivered, dict(books.dropped), books.balanced) == (4, {"busy": 2}, True)


def _replies(broker: Broker) -> Any:
    broker.create_topic(TopicSpec("config_replies"), exist_ok=True)
    return broker.consumer("config_replies", start="beginning", on_end="wait")


def _collect(answers: Any, count: int) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    deadline = time.monotonic() + 20
    while len(out) < count:
        assert time.monotonic() < deadline, f"{len(out)} of {count} answers within 20 s"
        out += [json.loads(r.value) for r in answers.poll(timeout=1, max_records=count - len(out))]
    return out


def test_target_filter_and_expiry(control: Make, broker: Broker, until: Until, target: Any) -> None:
    def night(command: Command) -> bool:
        if command.value == "raise":
            raise RuntimeError("the filter broke")
        return command.value != "night"

    controller = control(name="gate", command_filter=night)
    assert send_command(broker, "config", "create", "a", target="gate")["ok"]
    assert send_command(broker, "config", "create", "b", target="*")["ok"]
    with pytest.raises(WaitTimeoutError, match="from 'yard'"):
        send_command(broker, "config", "create", "c", target="yard", timeout=0.2)
    with pytest.raises(WaitTimeoutError):
        send_command(broker, "config", "create", "night", timeout=0.2)
    assert "the filter broke" in send_command(broker, "config", "create", "raise")["error"]["message"]
    with _replies(broker) as answers, broker.producer("config") as producer:
        answers.seek_to_end()
        key, value, headers = make_command("create", "late", expires=time.time() - 1, request_id="late")
        producer.send(value, key=key, headers=headers)
        assert "expired 1." in _collect(answers, 1)[0]["error"]["message"]
    assert [call[1]["cam_id"] for call in target.calls] == ["a", "b"]
    books = controller.account()
    assert dict(books.dropped) == {"ignored": 2, "rejected": 1, "expired": 1}
    assert books.balanced


def test_each_command_is_an_event(control: Make, broker: Broker) -> None:
    events = EventLog()
    control(events=events)
    send_command(broker, "config", "status")
    send_command(broker, "config", "nothing")
    good, bad = events.recent("control.command")
    assert (good.data["ok"], good.data["action"], good.data["error"]) == (True, "status", None)
    assert (bad.data["ok"], bad.data["error"]["type"]) == (False, "UnknownActionError")


def test_the_answer_goes_where_reply_to_says_and_nowhere_else(control: Make, broker: Broker) -> None:
    control()
    assert send_command(broker, "config", "status", reply_topic="config_replies_mine")["ok"]
    broker.create_topic(TopicSpec("raw_cam1"))
    with _replies(broker) as answers, broker.producer("config") as producer:
        for reply_to in ("config", "raw_cam1", "made_up"):
            key, value, headers = make_command("status", request_id=reply_to, reply_to=reply_to)
            producer.send(value, key=key, headers=headers)
        refused = _collect(answers, 3)
    assert [(a["request_id"], a["ok"]) for a in refused] == [("config", False), ("raw_cam1", False), ("made_up", False)]
    assert broker.topic("raw_cam1").high_water == 0
    assert broker.topic("config").high_water == 4
    assert "made_up" not in broker.topics()


def test_reply_topics_made_for_others_are_limited(control: Make, broker: Broker, until: Until) -> None:
    controller = control()
    with broker.producer("config") as producer:
        for number in range(80):
            key, value, headers = make_command("status", reply_to=f"config_replies_{number}")
            producer.send(value, key=key, headers=headers)
    until(lambda: controller.account().delivered == 80)
    until(lambda: sum(controller.status()["answers"].values()) == 80)
    assert controller.status()["answers"] == {"sent": 64, "failed": 16}
    assert len([name for name in broker.topics() if name.startswith("config_replies")]) == 64
    assert len(controller.events.recent("control.unanswered")) == 16


def test_a_result_too_large_is_said(control: Make, broker: Broker) -> None:
    broker.create_topic(TopicSpec("config_replies", data_bytes=1 << 16))
    control(acts={"big": lambda comux, value: "x" * (1 << 20)})
    answer = send_command(broker, "config", "big")
    assert (answer["ok"], answer["result"]) == (True, None)
    assert "too large" in answer["note"]


def test_only_commands_from_now_on(broker: Broker, target: Any) -> None:
    broker.create_topic(TopicSpec("config"))
    with broker.producer("config") as producer:
        producer.send(b'"old"', key=b"create")
    with Controller(broker, "config", target) as controller:
        assert send_command(broker, "config", "status")["result"] == {"sources": ["cam1"]}
        assert controller.offset == controller.topic_last_offset == 2
        assert controller.account().received == 1


def test_overwritten_commands_are_counted(control: Make, broker: Broker, target: Any) -> None:
    broker.create_topic(TopicSpec("config", records=4, policy="drop_oldest"))
    controller = control()
    target.release.clear()
    with broker.producer("config") as producer:
        producer.send(None, key=b"status")
        assert target.entered.wait(20)  # the thread is busy and reads nothing
        for _ in range(30):
            producer.send(None, key=b"nothing")
    target.release.set()
    assert send_command(broker, "config", "status")["ok"]
    books = controller.account()
    assert books.received == 32
    assert books.balanced
    assert books.dropped["lapped"] == 32 - books.delivered - books.dropped["rejected"] > 0
    assert controller.events.recent("control.lapped")


def test_the_topic_may_vanish_and_come_back(control: Make, broker: Broker, until: Until) -> None:
    controller = control()
    assert send_command(broker, "config", "status")["ok"]
    broker.delete_topic("config", force=True)
    until(lambda: controller.events.recent("control.connected"))
    assert send_command(broker, "config", "status")["ok"]
    broker.delete_topic("config_replies", force=True)
    assert send_command(broker, "config", "status")["ok"]


def test_a_broker_closed_under_it_ends_the_thread(control: Make, broker: Broker, until: Until) -> None:
    controller = control()
    broker.close()
    until(lambda: not threads_named("control"))
    assert not controller.running


def test_close_answers_what_waits_and_is_repeatable(broker: Broker, target: Any) -> None:
    gate, entered = threading.Event(), threading.Event()

    def slow(comux: Any, value: Any) -> str:
        entered.set()
        assert gate.wait(20)
        return "done"

    controller = Controller(broker, "config", target, acts={"slow": slow})
    controller.start()
    with _replies(broker) as answers, broker.producer("config") as producer:
        for number in range(3):
            key, value, headers = make_command("slow", request_id=f"s{number}")
            producer.send(value, key=key, headers=headers)
        assert entered.wait(20)
        assert send_command(broker, "config", "status")["ok"]
        closer = threading.Thread(target=controller.close)
        closer.start()
        gate.set()
        closer.join(20)
        found = {a["request_id"]: a for a in _collect(answers, 4) if str(a["request_id"]).startswith("s")}
    assert found["s0"]["result"] == "done"
    assert [found[n]["error"]["type"] for n in ("s1", "s2")] == ["ClosedError", "ClosedError"]
    books = controller.account()
    assert (dict(books.dropped), dict(books.held), books.balanced) == ({"shutdown": 2}, {}, True)
    assert not threads_named("control") and not threads_named("acts")
    controller.close()
    for use in (controller.start, controller.connect, lambda: controller.offset):
        with pytest.raises(ClosedError):
            use()


def test_close_does_not_wait_for_a_stuck_act(broker: Broker, target: Any, until: Until) -> None:
    gate, entered = threading.Event(), threading.Event()

    def stuck(comux: Any, value: Any) -> None:
        entered.set()
        assert gate.wait(30)

    controller = Controller(broker, "config", target, acts={"stuck": stuck})
    controller.start()
    with broker.producer("config") as producer:
        producer.send(None, key=b"stuck")
    assert entered.wait(20)
    controller.close(timeout=0.1)
    assert controller.events.recent("control.stuck")
    assert dict(controller.account().held) == {"acts": 1}
    gate.set()
    until(lambda: not threads_named("acts"))
    assert controller.account().delivered == 1
    assert controller.status()["answers"] == {"sent": 1, "failed": 0}


def test_an_act_and_a_stop_may_close(broker: Broker, target: Any, until: Until) -> None:
    controller = Controller(broker, "config", target, acts={"bye": lambda comux, value: controller.close() or "bye"})
    controller.start()
    assert send_command(broker, "config", "bye")["result"] == "bye"
    until(lambda: not threads_named("acts") and not threads_named("control"))
    target.stop = lambda: second.close() or {"stopped": True}
    second = Controller(broker, "config", target)
    second.start()
    assert send_command(broker, "config", "stop")["result"] == {"stopped": True}
    until(lambda: not threads_named("control"))


def test_run_in_the_callers_thread(broker: Broker, target: Any) -> None:
    controller = Controller(broker, "config", target)
    controller.connect()
    thread = threading.Thread(target=controller.run)
    thread.start()
    assert send_command(broker, "config", "status")["ok"]
    with pytest.raises(ConfigError, match="already"):
        controller.run()
    controller.close()
    thread.join(20)
    assert not thread.is_alive()


def test_wrong_settings_are_refused_at_once(broker: Broker, target: Any) -> None:
    for topic, options, says in [
        ("a b", {}, "config topic"),
        ("config", {"reply_topic": "config"}, "itself"),
        ("config", {"acts": {"x": 5}}, "not a function"),
        ("config", {"acts": {5: print}}, "no text"),
        ("config", {"pending_acts": 0}, "pending_acts"),
    ]:
        with pytest.raises(ConfigError, match=says):
            Controller(broker, topic, target, **options)  # type: ignore[arg-type]
    assert broker.topics() == []


def test_the_client_says_what_is_missing(broker: Broker) -> None:
    with pytest.raises(UnknownTopicError):
        send_command(broker, "config", "status")
    broker.create_topic(TopicSpec("config"))
    began = time.monotonic()
    with pytest.raises(WaitTimeoutError, match="is the program that it controls running"):
        send_command(broker, "config", "status", timeout=0.1)
    assert time.monotonic() - began < 10


def test_the_client_takes_an_address(control: Make, broker: Broker) -> None:
    control()
    assert send_command(broker.address, "config", "status")["ok"]


def test_two_clients_at_once_each_get_their_own_answers(control: Make, broker: Broker) -> None:
    control(acts={"echo": lambda comux, value: value})
    wrong: list[Any] = []

    def client(number: int) -> None:
        for turn in range(20):
            answer = send_command(broker, "config", "echo", [number, turn])
            if answer.get("result") != [number, turn]:
                wrong.append(answer)

    clients = [threading.Thread(target=client, args=(n,)) for n in range(3)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join(60)
    assert wrong == []


def test_an_idle_controller_costs_no_time(control: Make) -> None:
    control(acts={"x": lambda c, v: v})
    before = time.process_time()
    threading.Event().wait(0.5)
    assert time.process_time() - before < 0.25  # a busy loop would have taken 0.5


_actions = st.sampled_from(
    [b"status", b"create", b"update", b"delete", b"seek", b"pause", b"stop", b"hello", b"\xff", b""]
)
_values = st.sampled_from([b"cam1", b"{}", b'{"cam_id": "cam2"}', b'{"cam_id": {}}', b"[[[", b"NaN", b'"\\ud800"']) | (
    st.binary(max_size=60)
)
_headers = st.lists(
    st.tuples(
        st.sampled_from(["request-id", "reply-to", "target", "expires", "x"]),
        st.none() | st.sampled_from([b"config", b"config_replies", b"yard", b"1e9", b"\xff"]) | st.binary(max_size=20),
    ),
    max_size=4,
)


@given(st.lists(st.tuples(_actions | st.binary(max_size=20), st.none() | _values, _headers), max_size=20))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_hostile_commands_never_end_the_thread_and_each_is_answered_or_counted(
    target: Any, commands: list[tuple[bytes, bytes | None, list[tuple[str, bytes | None]]]]
) -> None:
    calls: Counter[str] = Counter()
    with (
        connect("memory://hostile") as broker,
        Controller(
            broker, "config", target, acts={"hello": lambda comux, value: calls.update(["hello"])}
        ) as controller,
    ):
        with broker.producer("config") as producer:
            for key, value, headers in commands:
                producer.send(value, key=key, headers=headers)
        assert send_command(broker, "config", "status", timeout=20)["ok"]
        deadline = time.monotonic() + 20
        while controller.account().held_total and time.monotonic() < deadline:
            time.sleep(0.001)
        books = controller.account()
        assert books.received == len(commands) + 1 == books.delivered + books.dropped_total
        assert set(books.dropped) <= {"rejected", "ignored", "expired", "repeated"}
        assert controller.running
        for name in broker.topics():
            broker.delete_topic(name, force=True)
    target.calls.clear()


def test_a_program_that_forgets_to_close_ends(tmp_path: Any) -> None:
    code = """
from comux.control import Controller, send_command
from comux.transport import connect
class T:
    def status(self): return {}
broker = connect("memory://")
controller = Controller(broker, "config", T(), acts={"x": lambda c, v: v})
controller.start()
assert send_command(broker, "config", "x", 1)["result"] == 1
print("end")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")
