"""The control plane on a real Apache Kafka broker: every action, from another process' connection, and an outage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka_rooms import Room, balanced, room, with_both_libraries
from service_fixtures import OwnKafkaCluster, until

from comux import Comux
from comux.cli import main
from comux.control import make_command, send_command
from comux.errors import EndOfStream, WaitTimeoutError

CAMERA = "synthetic://64x48@30?gop=5&camera={}"


@pytest.fixture
def running(there: Room) -> Iterator[Comux]:
    """cam1 of three, with an act, a filter and a control topic."""
    for number in (1, 2, 3):
        there.feed(CAMERA.format(number), f"raw_cam{number}")
    until(lambda: {f"raw_cam{n}" for n in (1, 2, 3)} <= set(there.broker.topics()), "the cameras are there")
    with Comux(["cam1"], address=there.address, mode="every_frame", client_name="bench") as cameras:
        cameras.setup_controller(
            "config",
            there.address,
            {"double": lambda _, value: value * 2},
            command_filter=lambda command: command.value != "unwanted",
        )
        yield cameras


def shape(cameras: Comux, cam_id: str) -> tuple[int, ...] | None:
    array = cameras.read(cam_id, timeout=30).array
    return None if array is None else array.shape


@with_both_libraries
def test_every_action_by_command(there: Room, running: Comux) -> None:
    def ask(action: str, value: Any = None) -> Any:
        answer = send_command(there.address, "config", action, value, timeout=30, target="bench")
        assert answer["ok"], answer["error"]
        return answer["result"]

    def state(cam_id: str) -> str:
        return str(running.status()["sources"][cam_id]["state"])

    assert shape(running, "cam1") == (48, 64, 3)
    ask("create", {"cam_id": "cam2", "W": 32, "H": 24})
    assert "cam2" in running.get_batch(timeout=30).cam_ids  # the very next one
    until(lambda: shape(running, "cam2") == (24, 32, 3), "pictures of the new source")
    received = running.accounts()["cam2"].received
    ask("update", {"cam_id": "cam2", "W": 16, "H": 12})
    until(lambda: shape(running, "cam2") == (12, 16, 3), "smaller pictures")
    ask("update", {"cam_id": "cam2", "consume_topic": "raw_cam3"})
    until(lambda: running.status()["sources"]["cam2"]["topic"] == "raw_cam3", "another topic")
    until(lambda: shape(running, "cam2") == (12, 16, 3), "pictures of the other topic")
    assert running.accounts()["cam2"].received > received, "its books go on"
    ask("pause", "cam2")
    until(lambda: state("cam2") == "PAUSED", "it pauses")
    ask("resume")
    until(lambda: shape(running, "cam2") is not None and state("cam2") == "RUNNING", "it goes on")
    assert ask("seek", {"cam_id": "cam2", "to": 0})["position"] == 0
    ask("set_rate", {"cam_id": "cam2", "rate": 2.0})
    until(lambda: shape(running, "cam2") and running.accounts()["cam2"].dropped.get("rate"), "the rate is kept")
    assert ask("snapshot", "cam1")["sources"]["cam1"]["jpeg"]
    assert ask("double", 21) == 42
    assert set(ask("status")["stated"]) == {"cam1", "cam2"}
    ask("delete", "cam2")
    assert running.cam_ids == ("cam1",)
    ask("stop")
    with pytest.raises(EndOfStream):
        while True:
            running.get_batch(timeout=1)
    assert balanced(running)


@with_both_libraries
def test_what_is_wrong_filtered_for_others_or_repeated_changes_nothing(there: Room, running: Comux) -> None:
    with there.broker.producer("config") as producer:
        sent = [
            make_command("delete", "cam1", target="somebody"),
            make_command("double", "unwanted"),
            make_command("delete", "cam1", expires=1.0),
            make_command("levitate", "cam1"),
            make_command("update", {"cam_id": "cam1", "address": "memory://x"}),
            (b"\xff\xfe", b"\x00", ()),
            make_command("set_rate", {"cam_id": "cam1", "rate": 5}, request_id="once"),
            make_command("set_rate", {"cam_id": "cam1", "rate": 5}, request_id="once"),
        ]
        for key, value, headers in sent:
            producer.send(value, key=key, headers=headers).result(30)
    controller = running.controller
    assert controller is not None
    until(lambda: controller.account().received == len(sent), "all are read")
    until(lambda: controller.account().held_total == 0, "all are done with")
    book = controller.account()
    assert dict(book.dropped) == {"ignored": 2, "expired": 1, "rejected": 3, "repeated": 1}
    assert (book.delivered, running.cam_ids) == (1, ("cam1",))


def test_the_command_line_on_kafka(there: Room, running: Comux, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "cameras.yaml"
    text = f"address: {there.address}\ncontrol_topic: config\nclient_name: bench\n"
    path.write_text(text + "cameras: [cam1, {cam_id: cam2, rate: 5}]\n")
    assert main.execute(["apply", str(path), "--timeout", "30"]) == 0
    assert "1 of 1 changes made" in capsys.readouterr().out
    assert running.cam_ids == ("cam1", "cam2")
    assert main.execute(["config", "diff", str(path)]) == 0
    capsys.readouterr()
    assert main.execute(["control", "tail", "-f", str(path), "--from", "beginning", "-n", "2", "--format", "json"]) == 0
    kinds = [json.loads(line)["kind"] for line in capsys.readouterr().out.splitlines()]
    assert kinds == ["command", "answer"]


def test_commands_go_on_after_the_broker_was_killed(own_kafka: OwnKafkaCluster) -> None:
    with room(own_kafka.bootstrap) as there:
        there.feed(CAMERA.format(1), "raw_cam1")
        until(lambda: "raw_cam1" in there.broker.topics(), "the camera is there")
        with Comux(
            ["cam1"], address=there.address, control_topic="config", acts={"double": lambda _, v: v * 2}
        ) as running:
            assert send_command(there.address, "config", "double", 1, timeout=30)["result"] == 2
            own_kafka.kill(*own_kafka.brokers)
            until(lambda: running.status()["sources"]["cam1"]["state"] == "RECONNECTING", "it is missed")
            own_kafka.start(*own_kafka.brokers)

            def answered() -> bool:
                try:
                    return bool(send_command(there.address, "config", "double", 2, timeout=5)["result"] == 4)
                except WaitTimeoutError:
                    return False

            until(answered, "commands are obeyed again", timeout=90)
            until(lambda: running.status()["sources"]["cam1"]["state"] == "RUNNING", "the camera is back", timeout=90)
