"""Durable control: what commands made of the sources outlasts the program, and each command is carried out once."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comux.control import Change, Controller, make_command, send_command, state_topic_of
from comux.control.durable import DurableState, MethodsOf, Overlay, _Step
from comux.errors import ComuxError, ConfigError, DeliveryError, TopicBusyError, WaitTimeoutError
from comux.options import SourceOptions
from comux.telemetry import EventLog
from comux.transport import Broker, TopicSpec

Make = Callable[..., Controller]
Until = Callable[[Callable[[], Any]], Any]
STATE = state_topic_of("config", "comux")


def write(broker: Broker, action: str, value: Any = None, **headers: Any) -> int:
    """Put a command on the topic, as somebody does who waits for no answer."""
    key, data, wire = make_command(action, value, **headers)
    with broker.producer("config") as producer:
        offset = producer.send(data, key=key, headers=wire).result(5)
    assert offset is not None
    return offset


def saved(broker: Broker) -> dict[str, Any]:
    """The newest state."""
    record = broker.record_at(STATE, broker.topic(STATE).high_water - 1)
    assert record is not None
    state: dict[str, Any] = json.loads(bytes(record.value))
    return state


def die(controller: Controller) -> None:
    """What a SIGKILL leaves: whatever was saved, and nothing that is saved at an end."""
    assert controller._state is not None
    controller._state._dirty = False
    controller.close()


# -- the overlay ---------------------------------------------------------------------------------------------------


def test_the_overlay_is_the_shortest_way_from_what_is_stated() -> None:
    overlay = Overlay()
    overlay.create({"cam_id": "new", "rate": 5})
    overlay.update("new", {"rate": 7, "W": 64})
    overlay.update("cam1", {"rate": 1})
    overlay.update("cam1", {"rate": None, "paused": True})
    overlay.delete("cam2")
    assert overlay.steps() == [
        {"action": "delete", "value": {"cam_id": "cam2"}},
        {"action": "update", "value": {"cam_id": "cam1", "rate": None, "paused": True}},
        {"action": "create", "value": {"cam_id": "new", "rate": 7, "W": 64}},
    ]
    overlay.delete("new")
    overlay.delete("cam1")
    overlay.create({"cam_id": "cam2", "codec": "raw"})
    overlay.update("cam2", {"rate": 2})
    assert overlay.steps() == [
        {"action": "delete", "value": {"cam_id": "cam1"}},
        {"action": "delete", "value": {"cam_id": "cam2"}},
        {"action": "create", "value": {"cam_id": "cam2", "codec": "raw", "rate": 2}},
    ]
    overlay.delete("cam2")
    assert overlay.steps() == [
        {"action": "delete", "value": {"cam_id": "cam1"}},
        {"action": "delete", "value": {"cam_id": "cam2"}},
    ]


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda child: st.lists(child, max_size=3) | st.dictionaries(st.text(max_size=3), child, max_size=3),
    max_leaves=5,
)
_forged = st.fixed_dictionaries(
    {
        "action": st.sampled_from(["create", "update", "delete"]),
        "value": st.dictionaries(st.sampled_from(["cam_id", "rate", "W", "?"]), _json, max_size=3),
        "was": st.dictionaries(st.sampled_from(["cam_id", "rate", "W", "?"]), _json, max_size=3),
    }
)


@given(st.lists(_forged, max_size=6))
def test_whatever_stands_in_a_state_an_overlay_can_be_made_of_it(steps: list[Any]) -> None:
    overlay = Overlay()
    overlay.take([_Step(**step) for step in steps])
    again = Overlay()
    again.take([_Step(**step) for step in overlay.steps()])
    assert sorted(again.steps(), key=str) == sorted(overlay.steps(), key=str)
    for key, names in overlay.outdated(lambda cam_id: {"rate": 1}).items():
        assert overlay.forget(key, dict.fromkeys(names))
    assert overlay.outdated(lambda cam_id: {"rate": 1}) == {}


def test_what_the_program_states_anew_is_forgotten() -> None:
    overlay = Overlay()
    overlay.update("cam1", {"rate": 5, "W": 64})
    overlay.delete("cam2")
    overlay.create({"cam_id": 3})
    assert overlay.forget("cam1", {"rate": 9}) and not overlay.forget("cam1", {"rate": 9})
    assert overlay.forget("cam2") and overlay.forget("3") and not overlay.forget("nobody")
    assert overlay.steps() == [{"action": "update", "value": {"cam_id": "cam1", "W": 64}}]
    assert overlay.forget("cam1", {"W": 1, "H": 1})
    assert len(overlay) == 0


def test_the_newer_word_counts() -> None:
    """What the program stated when a command came stands beside it, through all lives."""
    overlay = Overlay()
    overlay.update("cam1", {"rate": 5, "W": 64}, {"cam_id": "cam1", "rate": 9.0})
    overlay.update("cam2", {"rate": 5})  # not known
    overlay.create({"cam_id": "cam3"})
    overlay.update("cam3", {"rate": 1}, {"rate": 4})
    again = Overlay()
    again.take([_Step(**step) for step in json.loads(json.dumps(overlay.steps()))])
    assert again.steps() == overlay.steps()
    assert again.steps()[0]["was"] == {"rate": 9.0, "W": None}
    assert again.outdated({"cam1": {"rate": 9.0}, "cam2": {"rate": 1}}.get) == {}
    assert again.outdated({"cam1": {"rate": 8.0}}.get) == {"cam1": ["rate"]}
    assert again.outdated({"cam1": {"W": 32}}.get) == {"cam1": ["rate", "W"]}
    assert again.outdated(lambda cam_id: None) == {}, "not stated any more"
    assert again.forget("cam1", {"rate": None})
    assert again.outdated({"cam1": {"rate": 8.0}}.get) == {}


_commands = st.tuples(
    st.sampled_from(["create", "update", "delete"]),
    st.sampled_from(["a", "b", "c", "d"]),
    st.sampled_from(["rate", "W", "H"]),
    st.integers(1, 3),
)


def _apply(sources: dict[str, dict[str, Any]], action: str, cam_id: str, settings: dict[str, Any]) -> bool:
    """A manager in three lines: what cannot be done changes nothing."""
    if (action == "create") == (cam_id in sources):
        return False
    if action == "delete":
        del sources[cam_id]
    else:
        sources[cam_id] = {**sources.get(cam_id, {}), **settings}
    return True


@given(st.lists(_commands, max_size=30))
def test_stated_sources_and_overlay_give_what_the_commands_gave(commands: list[Any]) -> None:
    stated: dict[str, dict[str, Any]] = {"a": {"rate": 9}, "b": {}}
    running = {key: dict(value) for key, value in stated.items()}
    overlay = Overlay()
    for action, cam_id, name, number in commands:
        if not _apply(running, action, cam_id, {name: number}):
            continue
        if action == "create":
            overlay.create({"cam_id": cam_id, name: number})
        elif action == "update":
            overlay.update(cam_id, {name: number})
        else:
            overlay.delete(cam_id)
        again = Overlay()
        again.take([_Step(**step) for step in json.loads(json.dumps(overlay.steps()))])
        assert sorted(again.steps(), key=str) == sorted(overlay.steps(), key=str)
    restored = {key: dict(value) for key, value in stated.items()}
    for step in overlay.steps():
        settings = {name: value for name, value in step["value"].items() if name != "cam_id"}
        assert _apply(restored, step["action"], step["value"]["cam_id"], settings), step
    assert restored == running
    assert list(restored) == list(running), "the order of the batch"


# -- one life after another ----------------------------------------------------------------------------------------


def test_a_second_life_has_what_commands_made_and_reads_on(control: Make, broker: Broker, target: Any) -> None:
    first = control(durable=True)
    assert (first.durable, first.status()["durable"]["offset"]) == (True, 0), "the first start is written down at once"
    send_command(broker, "config", "create", {"cam_id": "cam2", "rate": 5})
    send_command(broker, "config", "update", {"cam_id": "cam2", "W": 64})
    send_command(broker, "config", "update", {"cam_id": "cam1", "rate": 3})
    assert send_command(broker, "config", "status")["ok"]
    assert not send_command(broker, "config", "update", {"cam_id": "nobody", "W": 64})["ok"]
    assert saved(broker)["offset"] == 5
    die(first)
    write(broker, "delete", {"cam_id": "cam1"})  # while nobody is there
    target.sources, target.calls = {"cam1": {}}, []
    second = control(durable=True)
    assert send_command(broker, "config", "status")["result"]["sources"] == ["cam2"]
    assert target.calls == [
        ("update", {"cam_id": "cam1", "rate": 3}),
        ("create", {"cam_id": "cam2", "rate": 5.0, "W": 64}),
        ("delete", {"cam_id": "cam1"}),
    ]
    assert second.account().received == 2
    [event] = second.events.recent("control.restored")
    assert (event.data["offset"], event.data["changes"], event.data["done"]) == (5, 2, 2)
    assert second.status()["durable"] == {"topic": STATE, "offset": 7, "changes": 2, "error": None}


def test_what_comes_before_the_first_start_is_not_meant(control: Make, broker: Broker, target: Any) -> None:
    broker.create_topic(TopicSpec("config"))
    for number in range(3):
        write(broker, "create", {"cam_id": f"old{number}"})
    die(control(durable=True))
    write(broker, "create", {"cam_id": "new"})
    control(durable=True)
    assert send_command(broker, "config", "status")["result"]["sources"] == ["cam1", "new"]


@pytest.mark.parametrize("action", ["create", "note", "stop"])
def test_what_was_not_saved_is_done_by_the_next_life_and_by_no_later_one(
    control: Make, broker: Broker, target: Any, until: Until, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    ran: list[str] = []
    acts = {"note": lambda comux, value: ran.append("note")}
    target.stop = lambda: ran.append("stop") or {}
    first = control(durable=True, acts=acts)
    with monkeypatch.context() as patched:
        patched.setattr(DurableState, "save", lambda self: False)  # its program dies before
        write(broker, action, {"cam_id": "x"} if action == "create" else None)
        until(lambda: first.account().delivered == 1)
        die(first)
    ran.clear()
    target.sources = {"cam1": {}}
    second = control(durable=True, acts=acts)
    assert send_command(broker, "config", "status")["ok"]
    until(lambda: second.account().delivered == 2)
    die(second)
    assert (ran, "x" in target.sources) == (([], True) if action == "create" else ([action], False))
    ran.clear()
    target.calls = []
    control(durable=True, acts=acts)
    assert send_command(broker, "config", "status")["ok"]
    assert ran == []
    assert [call for call, _ in target.calls] == ["create"] * (action == "create"), "restored, not commanded again"


def test_an_act_that_kills_its_program_runs_once(control: Make, broker: Broker, target: Any, until: Until) -> None:
    entered, release = threading.Event(), threading.Event()
    runs: list[Any] = []

    def slow(comux: Any, value: Any) -> None:
        runs.append(value)
        entered.set()
        assert release.wait(20)

    first = control(durable=True, acts={"slow": slow})
    write(broker, "slow", 1)
    assert entered.wait(20)
    assert first._state is not None
    until(lambda: first.status()["durable"]["offset"] == 1)
    release.set()
    die(first)
    control(durable=True, acts={"slow": slow})
    assert send_command(broker, "config", "status")["ok"]
    assert runs == [1]


def test_pause_rate_and_resume_are_kept(broker: Broker, control: Make, target: Any) -> None:
    states = {"cam1": "PAUSED", "7": "PAUSED"}
    target.pause = lambda cam_id=None: {"sources": states}
    target.resume = lambda cam_id=None: {"sources": states}
    target.set_rate = lambda cam_id, rate: {}
    control(durable=True)
    send_command(broker, "config", "pause")
    send_command(broker, "config", "resume", "cam1")
    send_command(broker, "config", "set_rate", {"cam_id": 7, "rate": None})
    assert saved(broker)["changes"] == [
        {"action": "update", "value": {"cam_id": "cam1", "paused": False}},
        {"action": "update", "value": {"cam_id": "7", "paused": True, "rate": None}},
    ]


# -- what may have happened meanwhile ------------------------------------------------------------------------------


def test_commands_that_were_lapped_meanwhile_are_counted_and_told(control: Make, broker: Broker, target: Any) -> None:
    broker.create_topic(TopicSpec("config", records=4, policy="drop_oldest"))
    die(control(durable=True))
    for number in range(10):
        write(broker, "create", {"cam_id": f"x{number}"})
    second = control(durable=True)
    there = send_command(broker, "config", "status")["result"]["sources"]
    books = second.account()
    lost = books.dropped["lapped"]  # the last command may have cost one more
    assert lost in (6, 7) and there == ["cam1", *(f"x{number}" for number in range(lost, 10))]
    assert books.balanced
    assert second.events.recent("control.lapped")


@pytest.mark.parametrize("records", [1, 9], ids=["shorter", "longer"])
def test_a_topic_that_was_made_anew_is_read_from_its_beginning(
    control: Make, broker: Broker, target: Any, records: int
) -> None:
    first = control(durable=True)
    for number in range(3):
        send_command(broker, "config", "create", {"cam_id": f"x{number}"})
    die(first)
    broker.delete_topic("config")
    broker.create_topic(TopicSpec("config"))
    for number in range(records):
        write(broker, "create", {"cam_id": f"y{number}"})
    target.sources = {"cam1": {}}
    second = control(durable=True)
    there = send_command(broker, "config", "status")["result"]["sources"]
    assert there == ["cam1", "x0", "x1", "x2", *(f"y{number}" for number in range(records))]
    assert "made anew" in second.events.recent("control.reset")[0].message
    assert saved(broker)["offset"] == records + 1


def test_a_topic_that_was_cleared_with_everything_begins_anew(control: Make, broker: Broker, target: Any) -> None:
    first = control(durable=True)
    send_command(broker, "config", "create", {"cam_id": "x"})
    die(first)
    for topic in broker.topics():
        broker.delete_topic(topic)
    target.sources = {"cam1": {}}
    second = control(durable=True)
    assert send_command(broker, "config", "status")["result"]["sources"] == ["cam1"]
    assert second.status()["durable"]["offset"] == 1


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff\x00 no JSON",
        b"[" * 100_000,
        b"{}",
        b'{"version": 2, "offset": 9, "last": null, "changes": []}',
        b'{"version": 1, "offset": -1, "last": null, "changes": []}',
        b'{"version": 1, "offset": 9, "last": [-1, 0], "changes": []}',
        b'{"version": 1, "offset": 9, "last": [9223372036854775808, 0], "changes": []}',
        b'{"version": 1, "offset": "9", "last": null, "changes": []}',
        b'{"version": 1, "offset": 9, "last": [1], "changes": []}',
        b'{"version": 1, "offset": 9, "last": null, "changes": [{"action": "stop", "value": {}}]}',
        b'{"version": 1, "offset": 9, "last": null, "changes": [], "more": 1}',
    ],
)
def test_a_state_that_is_of_no_use_is_told_of_and_the_one_before_counts(
    control: Make, broker: Broker, target: Any, value: bytes
) -> None:
    first = control(durable=True)
    send_command(broker, "config", "create", {"cam_id": "x"})
    die(first)
    with broker.producer(STATE) as producer:
        producer.send(b"of another client", key=b"other").result(5)
        producer.send(value, key=b"comux").result(5)
    target.sources = {"cam1": {}}
    second = control(durable=True)
    assert send_command(broker, "config", "status")["result"]["sources"] == ["cam1", "x"]
    [event] = second.events.recent("control.state")
    assert STATE in event.message and "offset 3" in event.message
    assert saved(broker)["offset"] == 2


def test_without_any_usable_state_it_is_a_first_start(control: Make, broker: Broker, target: Any) -> None:
    broker.create_topic(TopicSpec("config"))
    write(broker, "create", {"cam_id": "old"})
    broker.create_topic(TopicSpec(STATE, records=16))
    with broker.producer(STATE) as producer:
        for _ in range(20):
            producer.send(b"nothing", key=b"comux").result(5)
    controller = control(durable=True)
    assert send_command(broker, "config", "status")["result"]["sources"] == ["cam1"]
    assert len(controller.events.recent("control.state")) == 16


def test_a_forged_state_may_do_no_more_than_a_command(control: Make, broker: Broker, target: Any) -> None:
    steps = [
        {"action": "create", "value": {"cam_id": "a", "address": "tcp://evil"}},
        {"action": "create", "value": {"cam_id": "b", "client_options": {"password": "x"}}},
        {"action": "update", "value": {"cam_id": "cam1", "produce_topic": "config"}},
        {"action": "update", "value": {"cam_id": "cam1", "consume_topic": STATE}},
        {"action": "create", "value": {"cam_id": ""}},
        {"action": "create", "value": {}},
        {"action": "delete", "value": {"cam_id": ["cam1"]}},
        {"action": "create", "value": {"cam_id": "good"}},
    ]
    broker.create_topic(TopicSpec("config"))
    broker.create_topic(TopicSpec(STATE))
    with broker.producer(STATE) as producer:
        state = {"version": 1, "offset": 0, "last": None, "changes": steps}
        producer.send(json.dumps(state).encode(), key=b"comux").result(5)
    controller = control(durable=True)
    assert target.calls == [("create", {"cam_id": "good"})]
    told = {event.source: event.message for event in controller.events.recent("control.unrestored")}
    says = {"a": "not allowed", "b": "the program only", "cam1": "control plane", "": "empty", "['cam1']": "topic name"}
    assert set(told) == set(says)  # what is said of one source is one step, and of no source none
    assert [key for key, text in says.items() if text not in told[key]] == []


def test_what_cannot_be_restored_holds_up_nothing_and_stays_wanted(control: Make, broker: Broker, target: Any) -> None:
    first = control(durable=True)
    for value in ({"cam_id": "mine", "rate": 5}, {"cam_id": "gone"}, {"cam_id": "good"}):
        send_command(broker, "config", "create", value)
    die(first)

    class Own(MethodsOf):
        def restore(self, change: Change) -> bool:
            if change.cam_id == "gone":
                raise ConfigError("no such codec")
            return change.cam_id != "mine"  # the program states that one itself now

    second = control(durable=True, sources=Own(target))
    told = {event.source: event.message for event in second.events.recent("control.unrestored")}
    assert set(told) == {"mine", "gone"}
    assert "states that source itself" in told["mine"] and "no such codec" in told["gone"]
    send_command(broker, "config", "status")
    assert [step["value"]["cam_id"] for step in saved(broker)["changes"]] == ["gone", "good"]


def test_what_was_done_to_a_source_that_is_not_stated_any_more_is_forgotten(
    control: Make, broker: Broker, target: Any
) -> None:
    target.sources = {"cam1": {}, "cam2": {}, "cam3": {}}
    first = control(durable=True)
    for action, value in [
        ("delete", {"cam_id": "cam1"}),
        ("update", {"cam_id": "cam2", "rate": 5}),
        ("delete", {"cam_id": "cam3"}),
        ("create", {"cam_id": "cam3", "rate": 7}),
    ]:
        assert send_command(broker, "config", action, value)["ok"]
    die(first)
    target.sources = {}
    second = control(durable=True)
    assert [event.source for event in second.events.recent("control.unrestored")] == ["cam2"]
    assert send_command(broker, "config", "status")["result"]["sources"] == ["cam3"]
    assert saved(broker)["changes"] == [{"action": "create", "value": {"cam_id": "cam3", "rate": 7}}]
    die(second)
    target.sources, target.calls = {"cam1": {}, "cam2": {}}, []
    third = control(durable=True)
    assert send_command(broker, "config", "status")["result"]["sources"] == ["cam1", "cam2", "cam3"]
    assert not third.events.recent("control.unrestored")


# -- saving --------------------------------------------------------------------------------------------------------


def test_saving_that_fails_is_told_of_and_tried_again(
    control: Make, broker: Broker, target: Any, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[ComuxError] = [WaitTimeoutError("no room"), DeliveryError("no broker")]
    send = DurableState._send

    def fails(self: DurableState) -> None:
        if errors:
            raise errors[0]
        send(self)

    controller = control(durable=True)
    monkeypatch.setattr(DurableState, "_send", fails)
    assert send_command(broker, "config", "create", {"cam_id": "x"})["ok"], "the program goes on"
    errors.pop(0)
    assert send_command(broker, "config", "create", {"cam_id": "y"})["ok"]
    state = controller.status()["durable"]
    assert (state["offset"], state["error"]) == (0, "DeliveryError: no broker")
    assert saved(broker)["changes"] == []
    assert len(controller.events.recent("control.unsaved")) == 1, "once"
    errors.clear()
    until(lambda: controller.status()["durable"]["offset"] == 2)  # without another command
    assert [step["value"]["cam_id"] for step in saved(broker)["changes"]] == ["x", "y"]
    assert controller.status()["durable"]["error"] is None
    assert controller.events.recent("control.saved")


def test_what_a_registry_restated_is_tried_again_too(
    control: Make, broker: Broker, target: Any, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that would try waits for commands just then."""
    controller = control(durable=True)
    send_command(broker, "config", "update", {"cam_id": "cam1", "rate": 5})

    def fails(self: DurableState) -> None:
        raise WaitTimeoutError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(DurableState, "_send", fails)
        controller.restate(Change("delete", "cam1"), lambda change: None)
        assert len(saved(broker)["changes"]) == 1
    until(lambda: saved(broker)["changes"] == [])
    assert controller.status()["durable"]["error"] is None


def test_a_state_topic_that_is_deleted_under_it_is_made_anew(control: Make, broker: Broker, target: Any) -> None:
    control(durable=True)
    broker.delete_topic(STATE, force=True)
    send_command(broker, "config", "create", {"cam_id": "x"})
    assert (saved(broker)["offset"], len(saved(broker)["changes"])) == (1, 1)


def test_what_was_refused_or_meant_for_others_is_behind_it_too(
    control: Make, broker: Broker, target: Any, until: Until
) -> None:
    controller = control(durable=True)
    write(broker, "delete", {"cam_id": "cam1"}, target="other")
    until(lambda: controller.status()["durable"]["offset"] == 1)
    assert not send_command(broker, "config", "levitate")["ok"]
    assert saved(broker)["offset"] == 2
    request = {"request_id": "r1"}
    write(broker, "create", {"cam_id": "x"}, **request)
    write(broker, "create", {"cam_id": "x"}, **request)
    until(lambda: controller.status()["durable"]["offset"] == 4)
    assert controller.account().dropped["repeated"] == 1


def test_a_backlog_of_any_size_is_no_flood(control: Make, broker: Broker, target: Any) -> None:
    broker.create_topic(TopicSpec("config", records=2048, data_bytes=4 << 20, policy="drop_oldest"))
    die(control(durable=True))
    for number in range(700):
        write(broker, "update", {"cam_id": "cam1", "rate": number + 1})
    second = control(durable=True)
    answer = send_command(broker, "config", "status", timeout=20)
    assert answer["ok"]
    assert target.sources["cam1"]["rate"] == 700.0
    assert not second.account().dropped.get("busy")


# -- who may -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["my cam", "", "x" * 99, "a/b"])
def test_a_name_that_cannot_be_part_of_a_topic_is_one_clear_error(broker: Broker, target: Any, name: str) -> None:
    with pytest.raises(ConfigError, match="durable control"):
        Controller(broker, "config", target, name=name, durable=True)


def test_a_second_living_client_of_the_same_name_is_refused(control: Make, broker: Broker, target: Any) -> None:
    control(durable=True)
    with pytest.raises(TopicBusyError, match="client_name"):
        control(durable=True)
    control(durable=True, name="other")
    assert {STATE, state_topic_of("config", "other")} <= set(broker.topics())


@pytest.mark.parametrize("key", ["consume_topic", "produce_topic", "share_frames"])
def test_no_command_names_a_state_topic_as_a_sources(control: Make, broker: Broker, target: Any, key: str) -> None:
    control()
    for topic in (STATE, state_topic_of("config", "another")):
        answer = send_command(broker, "config", "create", {"cam_id": "x", key: topic})
        assert "control plane" in answer["error"]["message"]
    assert target.calls == []


def test_what_a_registry_states_anew_counts_from_then_on(control: Make, broker: Broker, target: Any) -> None:
    controller = control(durable=True)
    send_command(broker, "config", "update", {"cam_id": "cam1", "rate": 5, "W": 64})
    seen: list[Any] = []

    def carry_out(change: Change) -> None:
        seen.append(saved(broker)["changes"])  # forgotten before: the next life finds it stated
        raise ConfigError("not now")

    with pytest.raises(ConfigError, match="not now"):
        controller.restate(Change("update", "cam1", {"rate": 9.0}), carry_out)
    assert seen == [[{"action": "update", "value": {"cam_id": "cam1", "W": 64}}]]
    controller.restate(Change("create", "cam9", SourceOptions(cam_id="cam9")), lambda change: None)
    controller.restate(Change("delete", "cam1"), lambda change: None)
    assert saved(broker)["changes"] == []


def test_without_durable_nothing_is_kept(control: Make, broker: Broker) -> None:
    controller = control(events=EventLog())
    controller.restate(Change("delete", "cam1"), lambda change: None)
    assert controller.status()["durable"] is None
    assert STATE not in broker.topics()
