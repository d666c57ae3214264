"""Durable control on a real Kafka broker: killed at each step, its broker killed too, and whatever retention says."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest
from kafka.admin import ConfigResource
from kafka_rooms import Room, room
from service_fixtures import OwnKafkaCluster, until

from comux import Comux
from comux.control import Change, make_command, send_command, state_topic_of
from comux.errors import ConnectError

LONG = 60.0
DEATHS = ("after parse", "before overlay", "before save", "after save", "after answer")
STATE = state_topic_of("config", "comux")


def command(there: Room, action: str, value: Any = None) -> Any:
    answer = send_command(there.broker, "config", action, value, timeout=LONG)
    assert answer["ok"], answer
    return answer["result"]


def saved(there: Room) -> dict[str, Any]:
    record = there.broker.record_at(STATE, there.broker.topic(STATE).high_water - 1)
    assert record is not None
    state: dict[str, Any] = json.loads(record.value)
    return state


def test_a_program_killed_at_each_step_of_a_create_has_the_wanted_sources_in_its_next_life(
    there: Room, place: Any
) -> None:
    made = [f"new{number}" for number in range(len(DEATHS))]
    for cam in ("one", *made):
        there.topic(f"raw_{cam}")
    values = [{"cam_id": cam, "rate": 7.0} for cam in made]
    lives = [{"death": death, "of": json.dumps(value)} for death, value in zip(DEATHS, values, strict=True)]
    options = {"cams": ["one"], "codec": "raw", "durable_control": True, "address": there.address}
    program = place.program("lives", program="controlled", deaths=[*lives, {}], **options)
    wanted = [{"cam_id": "one"}]
    for number in range(len(DEATHS) + 1):
        program.wait_for("started", number + 1, timeout=LONG)
        assert [line["code"] for line in program.lines("ended")] == [-signal.SIGKILL] * number, program.errors()
        assert list(command(there, "sources").values()) == wanted, f"after {DEATHS[number - 1]}"
        if number < len(DEATHS):
            key, data, headers = make_command("create", values[number])
            with there.broker.producer("config") as producer:
                producer.send(data, key=key, headers=headers).result(LONG)
            wanted.append(values[number])
    command(there, "stop")
    assert program.wait(LONG) == 0
    assert saved(there)["offset"] == there.broker.topic("config").high_water


def test_no_retention_deletes_the_state(there: Room) -> None:
    there.topic("raw_one")
    there.topic("raw_two")
    options = {"retention.ms": "1000", "cleanup.policy": "delete"}
    words: dict[str, Any] = {"address": there.address, "control_topic": "config", "durable_control": True}
    with Comux(["one"], client_options={"topic_config": options}, **words):
        command(there, "create", "two")
    resource = ConfigResource("TOPIC", there.full(STATE), {"cleanup.policy": None})
    found = there.admin().describe_configs([resource], config_filter="all")
    assert found["topic"][there.full(STATE)]["cleanup.policy"]["value"] == "compact"
    there.delete_up_to("config", there.broker.topic("config").high_water)  # what retention may do to the commands
    with Comux(["one"], **words) as again:
        assert again.cam_ids == ("one", "two")
        command(there, "delete", "one")
    with Comux(["one"], **words) as again:
        assert again.cam_ids == ("two",)


@pytest.mark.torture
def test_the_state_outlasts_its_broker_and_the_program_goes_on_meanwhile(own_kafka: OwnKafkaCluster) -> None:
    with room(own_kafka.bootstrap) as there:
        for cam in ("one", "two", "three"):
            there.topic(f"raw_{cam}")
        words: dict[str, Any] = {"address": there.address, "control_topic": "config", "durable_control": True}
        with Comux(["one"], **words) as cameras:
            command(there, "create", "two")
            own_kafka.kill(*own_kafka.brokers)
            assert [item.cam_id for item in cameras.get_batch(timeout=0.5)] == ["one", "two"]
            assert cameras.controller is not None
            cameras.controller.restate(
                Change("create", "two"), lambda change: None
            )  # stated by the program from now on
            assert cameras.status()["control"]["durable"]["error"] is not None
            own_kafka.start(*own_kafka.brokers)

            def again() -> bool:
                try:
                    return bool(send_command(there.broker, "config", "create", "three", timeout=5)["ok"])
                except ConnectError:  # before anything was sent: the clients look for the broker once a second
                    return False

            until(again, "a command is obeyed again", LONG)
            until(lambda: cameras.status()["control"]["durable"]["error"] is None, "it is saved", LONG)
            assert [step["value"]["cam_id"] for step in saved(there)["changes"]] == ["three"]
        with Comux(["one"], **words) as cameras:
            assert cameras.cam_ids == ("one", "three")
