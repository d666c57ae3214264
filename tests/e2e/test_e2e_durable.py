"""SIGKILL at each step of a change of sources: the next life has exactly the sources that were wanted.

A program kills itself at a named step, before or after it, in one life after another; each life begins with what the
ones before left, and is asked what sources it has before the next command.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from comux import Comux
from comux.control import make_command, send_command
from comux.errors import TopicBusyError
from comux.transport import Broker

Sources = dict[str, dict[str, Any]]

LONG = 30.0
STEPS = {
    "create": ("parse", "connect", "swap", "start", "overlay", "save", "answer"),
    "update": ("parse", "swap", "stop", "join", "start", "overlay", "save", "answer"),
    "delete": ("parse", "let go", "stop", "join", "overlay", "save", "answer"),
}
FILE_STEPS = ("carry out", "connect", "swap", "start")
NAMES = ("one", "two", "three", "four", "five")


def deaths(steps: tuple[str, ...]) -> list[str]:
    return [f"{when} {step}" for step in steps for when in ("before", "after")]


def write(broker: Broker, action: str, value: Any) -> None:
    """A command of somebody who waits for no answer."""
    key, data, headers = make_command(action, value)
    with broker.producer("config") as producer:
        producer.send(data, key=key, headers=headers, timeout=30).result(30)


def asked(broker: Broker) -> Sources:
    """The sources that a living program has, as they are stated, in order; also of those that run."""
    answer = send_command(broker, "config", "sources", timeout=LONG)
    assert answer["ok"], answer
    sources = {key: {k: v for k, v in spec.items() if k != "cam_id"} for key, spec in answer["result"].items()}
    running = send_command(broker, "config", "status", timeout=LONG)["result"]["sources"]
    assert list(running) == list(sources), "what runs is what is stated"
    return sources


def begun(program: Any, number: int) -> None:
    """The n-th life, counted from 0, runs, and those before it ended as they were to end."""
    program.wait_for("started", number + 1)
    codes = [line["code"] for line in program.lines("ended")]
    assert codes == [-signal.SIGKILL] * number, program.errors()


def finished(place: Any, program: Any) -> None:
    """The last life is told to stop."""
    assert send_command(place.broker, "config", "stop", timeout=LONG)["ok"]
    assert program.wait(LONG) == 0
    assert program.lines("ended")[-1]["code"] == 0, program.errors()


def command_of(action: str, number: int) -> dict[str, Any]:
    """The argument of the n-th command of a kind, each with an effect of its own."""
    if action == "create":
        return {"cam_id": f"new{number}", "rate": number + 1.0}
    if action == "update":
        return {"cam_id": "one" if number % 2 else "mine", "maxlen": number + 30}
    return {"cam_id": f"new{number}" if number % 2 else f"own{number}"}


def carry_out(sources: Sources, action: str, value: dict[str, Any]) -> None:
    """What a command makes of the sources; one that cannot be carried out changes nothing."""
    settings = {k: v for k, v in value.items() if k != "cam_id"}
    for cam_id in [value["cam_id"]] if "cam_id" in value else list(sources):
        if (action == "create") == (cam_id in sources):
            return
        if action == "delete":
            del sources[cam_id]
        elif action == "resume":
            sources[cam_id].pop("paused", None)
        else:
            more = {"paused": True} if action == "pause" else settings
            sources[cam_id] = {**sources.get(cam_id, {}), **more}


@pytest.mark.parametrize("action", STEPS)
def test_a_program_killed_at_each_step_of_a_command_has_the_wanted_sources_in_its_next_life(
    place: Any, action: str
) -> None:
    points = deaths(STEPS[action])
    own = ["one", *(f"own{number}" for number in range(len(points)))] if action == "delete" else ["one"]
    made = [f"new{number}" for number in range(len(points))]
    for cam in {"mine", *own, *made}:
        place.topic(f"raw_{cam}", records=4, data_bytes=1 << 16)
    wanted: Sources = {cam: {} for cam in own}
    lives = [{"death": death, "of": json.dumps(command_of(action, n))} for n, death in enumerate(points)]
    program = place.program(
        "lives", program="controlled", deaths=[*lives, {}], cams=own, codec="raw", durable_control=True
    )
    for number, death in enumerate([*points, ""]):
        begun(program, number)
        if number == 0:
            for cam in ["mine", *(made if action == "delete" else [])]:
                value = {"cam_id": cam, "rate": 3.0}
                assert send_command(place.broker, "config", "create", value, timeout=LONG)["ok"]
                carry_out(wanted, "create", value)
        sources = asked(place.broker)
        assert sources == wanted, f"after {points[number - 1]}"
        assert list(sources) == list(wanted), "the order of the batch"
        if death:
            write(place.broker, action, command_of(action, number))
            carry_out(wanted, action, command_of(action, number))
    finished(place, program)


class _File:
    """What a program's file of sources says; replaced whole."""

    def __init__(self, path: Path, *sources: dict[str, Any]) -> None:
        self.path = path
        self.stated: Sources = {}
        self.state(*sources)

    def state(self, *sources: dict[str, Any]) -> None:
        """Sources that come, or are said otherwise."""
        self.stated |= {source["cam_id"]: {k: v for k, v in source.items() if k != "cam_id"} for source in sources}
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps([{"cam_id": cam, **settings} for cam, settings in self.stated.items()]))
        new.rename(self.path)


@pytest.mark.parametrize("durable", [False, True], ids=["plain", "durable"])
def test_a_program_killed_at_each_step_of_a_create_has_what_its_file_says_in_its_next_life(
    place: Any, tmp_path: Path, durable: bool
) -> None:
    points = deaths(FILE_STEPS)
    for cam in ("one", "mine", *(f"new{number}" for number in range(len(points)))):
        place.topic(f"raw_{cam}", records=4, data_bytes=1 << 16)
    file = _File(tmp_path / "cameras.json", {"cam_id": "one"})
    lives = [*({"death": death} for death in points), {}]
    options = {"path": str(file.path), "codec": "raw", "durable_control": durable}
    program = place.program("lives", program="watched", deaths=lives, **options)
    made: Sources = {}
    for number, death in enumerate([*points, ""]):
        begun(program, number)
        if durable and not number:
            made = {"mine": {"rate": 3.0}}
            assert send_command(place.broker, "config", "create", {"cam_id": "mine", "rate": 3.0}, timeout=LONG)["ok"]
        sources = asked(place.broker)
        assert sources == {**file.stated, **made}, f"after {points[number - 1]}"
        assert list(sources) == [*file.stated, *made]
        if death:
            file.state({"cam_id": f"new{number}", "rate": number + 1.0})
    finished(place, program)


def test_a_program_killed_at_each_step_of_what_its_file_says_anew_has_that_whatever_a_command_said(
    place: Any, tmp_path: Path
) -> None:
    points = deaths(("carry out", "save", "swap", "stop", "join", "start"))
    place.topic("raw_one", records=4, data_bytes=1 << 16)
    file = _File(tmp_path / "cameras.json", {"cam_id": "one", "maxlen": 30})
    lives = [*({"death": death} for death in points), {}]
    options = {"path": str(file.path), "codec": "raw", "durable_control": True}
    program = place.program("lives", program="watched", deaths=lives, **options)
    for number, death in enumerate([*points, ""]):
        begun(program, number)
        assert asked(place.broker)["one"]["maxlen"] == file.stated["one"]["maxlen"], f"after {points[number - 1]}"
        if death:
            value = {"cam_id": "one", "maxlen": number + 31, "rate": 3.0}
            assert send_command(place.broker, "config", "update", value, timeout=LONG)["ok"]
            file.state({"cam_id": "one", "maxlen": number + 61})
    assert asked(place.broker)["one"]["rate"] == 3.0, "the file says nothing of it"
    finished(place, program)


def test_what_changes_no_source_is_done_once_or_not_at_all(place: Any) -> None:
    place.topic("raw_one", records=4, data_bytes=1 << 16)
    cuts = [("note", "before save"), ("note", "after save"), ("note", "after answer"), ("stop", "after save")]
    values = [{} if action == "stop" else {"n": n} for n, (action, _) in enumerate(cuts)]
    lives = [{"death": death, "of": json.dumps(value)} for (_, death), value in zip(cuts, values, strict=True)]
    program = place.program(
        "lives", program="controlled", deaths=[*lives, {}], cams=["one"], codec="raw", durable_control=True
    )
    for number, (action, _) in enumerate(cuts):
        begun(program, number)
        assert asked(place.broker) == {"one": {}}
        write(place.broker, action, values[number])
    begun(program, len(cuts))  # the ``stop`` was the last life's
    assert asked(place.broker) == {"one": {}}
    assert [line["value"]["n"] for line in program.lines("act")] == [0, 2], "not saved, so again; saved, so not again"
    finished(place, program)


@pytest.mark.parametrize("death", ["publish.before:2", "publish.after:2"])
def test_a_program_killed_in_the_ring_while_it_saves(place: Any, death: str) -> None:
    """The state's is the one ring here with one writer: the first record it publishes is the first start's."""
    for cam in ("one", "two"):
        place.topic(f"raw_{cam}", records=4, data_bytes=1 << 16)
    options = {"cams": ["one"], "codec": "raw", "durable_control": True}
    env = {"COMUX_RING_FAILPOINTS": "1", "COMUX_FAILPOINT": death}
    program = place.program("controlled", env=env, **options)
    program.wait_for("started")
    write(place.broker, "create", {"cam_id": "two"})
    assert program.wait(LONG) == -signal.SIGKILL, program.errors()
    program = place.program("controlled", **options)
    program.wait_for("started")
    assert asked(place.broker) == {"one": {}, "two": {}}
    program.kill()


def test_a_second_living_program_of_that_name_is_refused(place: Any) -> None:
    place.topic("raw_one", records=4, data_bytes=1 << 16)
    program = place.program("controlled", cams=["one"], codec="raw", durable_control=True)
    program.wait_for("started")
    words: dict[str, Any] = {"address": place.address, "control_topic": "config", "durable_control": True}
    with pytest.raises(TopicBusyError, match="client_name"):
        Comux(["one"], **words)
    assert asked(place.broker) == {"one": {}}, "the first one does not notice"
    program.kill()
    Comux(["one"], **words).close()


def test_a_state_that_points_nowhere_is_as_good_as_a_topic_made_anew(place: Any) -> None:
    place.topic("raw_one", records=4, data_bytes=1 << 16)
    state = {"version": 1, "offset": 0, "last": [2**63 - 1, 2**63 - 1], "changes": []}
    place.topic("config_state_comux", records=16)
    for offset, resets in ((0, 0), (2**63 - 1, 1)):
        with place.broker.producer("config_state_comux") as producer:
            producer.send(json.dumps({**state, "offset": offset}).encode(), key=b"comux").result(LONG)
        words: dict[str, Any] = {"control_topic": "config", "durable_control": True}
        with Comux(["one"], address=place.address, codec="raw", **words) as cameras:
            assert list(send_command(place.broker, "config", "status", timeout=LONG)["result"]["sources"]) == ["one"]
            assert len(cameras.events.recent("control.reset")) == resets


def _random_command(chance: random.Random) -> tuple[str, dict[str, Any]]:
    cam_id, number = chance.choice(NAMES), chance.randrange(30, 99)  # not the default of either setting
    action = chance.choice(["create", "create", "update", "update", "delete", "set_rate", "pause", "resume"])
    if action in ("pause", "resume") and chance.random() < 0.3:
        return action, {}
    if action in ("delete", "pause", "resume"):
        return action, {"cam_id": cam_id}
    return action, {"cam_id": cam_id, "rate" if action == "set_rate" else chance.choice(["maxlen", "rate"]): number}


def _random_deaths(place: Any, seed: int, lives: int) -> None:
    """Commands that go together and ones that do not, from another process that waits for no answer; the program is
    killed when it has given so many answers, and a moment later."""
    chance = random.Random(seed)
    for cam in NAMES:
        place.topic(f"raw_{cam}", records=4, data_bytes=1 << 16)
    wanted: Sources = {"one": {}, "two": {"rate": 5.0}}
    own = [{"cam_id": cam, **settings} for cam, settings in wanted.items()]
    for _ in range(lives):
        program = place.program("controlled", cams=own, codec="raw", durable_control=True)
        program.wait_for("started")
        assert asked(place.broker) == wanted
        count, answers = chance.randrange(1, 30), 0
        with place.broker.consumer("config_replies", on_end="wait") as replies:
            for _ in range(count):
                action, value = _random_command(chance)
                write(place.broker, action, value)
                carry_out(wanted, action, value)
            enough = chance.randrange(count)
            while answers < enough:
                answers += len(replies.poll(LONG))
        threading.Event().wait(chance.random() * 0.01)  # the instant, no waiting for anything
        program.kill()
        if chance.random() < 0.5:  # while nobody is there
            write(place.broker, "create", {"cam_id": "five"})
            carry_out(wanted, "create", {"cam_id": "five"})
    program = place.program("controlled", cams=own, codec="raw", durable_control=True)
    program.wait_for("started")
    assert asked(place.broker) == wanted, f"seed {seed}"
    program.kill()


@pytest.mark.parametrize("seed", range(2))
def test_a_program_killed_at_random_instants_has_the_wanted_sources_in_its_next_life(place: Any, seed: int) -> None:
    _random_deaths(place, seed, 3)


@pytest.mark.torture
def test_a_program_killed_at_random_instants_for_long(place: Any, tmp_path: Path) -> None:
    seed = int(os.environ.get("COMUX_TORTURE_SEED") or random.SystemRandom().randrange(2**31))
    end = time.monotonic() + float(os.environ.get("COMUX_TORTURE_SECONDS") or 60)
    while time.monotonic() < end:
        print(f"seed {seed}")
        folder = tmp_path / str(seed)
        folder.mkdir()
        fresh = type(place)(folder)
        try:
            _random_deaths(fresh, seed, 5)
        finally:
            fresh.close()
        seed += 1
