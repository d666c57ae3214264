"""The compose file promises what `scripts/services` does. Docker itself is not run here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from servers import kafka

ROOT = Path(__file__).resolve().parents[2]
SERVICES = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
COMPOSE = {name: service for name, service in SERVICES.items() if name != "mongo"}


def setting(name: str) -> str:
    """The image's name for one of the broker's settings."""
    return "KAFKA_" + name.replace(".", "_").upper()


@pytest.mark.parametrize("name", COMPOSE)
def test_the_image_is_the_version_that_is_tested(name: str) -> None:
    pom = (ROOT / "scripts/servers/kafka-pom.xml").read_text()
    (version,) = re.findall(r"<artifactId>kafka_2.13</artifactId>\s*<version>(.+)</version>", pom)
    assert COMPOSE[name]["image"] == f"apache/kafka:{version}"


@pytest.mark.parametrize("name", COMPOSE)
def test_only_this_machine_can_connect_and_is_told_the_port_it_came_by(name: str) -> None:
    (ports,) = COMPOSE[name]["ports"]
    outside = re.fullmatch(r"(127\.0\.0\.1:\d+):9092", ports)
    assert outside
    assert COMPOSE[name]["environment"]["KAFKA_ADVERTISED_LISTENERS"] == f"HOST://{outside[1]},INSIDE://{name}:9094"


@pytest.mark.parametrize(("names", "count"), [(["kafka"], 1), (["kafka3-1", "kafka3-2", "kafka3-3"], 3)])
def test_limits_and_copies_are_those_of_scripts_services(names: list[str], count: int) -> None:
    voters = [f"{name}:9093" for name in names]
    ours: dict[str, Any] = kafka.cluster_settings(voters)
    for name in ("auto.create.topics.enable", "message.max.bytes", "replica.fetch.max.bytes"):
        ours[name] = kafka.COMMON[name]
    for node, name in enumerate(names, 1):
        environment = COMPOSE[name]["environment"]
        assert {each: environment[setting(each)] for each in ours} == ours
        assert environment["KAFKA_NODE_ID"] == str(node)
    assert len(names) == count


def test_the_database_is_for_this_machine_and_has_change_streams() -> None:
    mongo = SERVICES["mongo"]
    assert mongo["ports"] == ["127.0.0.1:27017:27017"]
    assert mongo["command"][1:3] == ["--replSet", "rs0"]
    assert "rs.initiate({_id:'rs0',members:[{_id:0,host:'127.0.0.1:27017'}]})" in mongo["healthcheck"]["test"][-1]
