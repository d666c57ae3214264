"""The blocks of docs/how-to/secure-kafka.md do what they say, and the defaults in docs/reference/kafka.md are true."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer
from kafka.admin import KafkaAdminClient
from service_fixtures import KafkaCluster

from comux.feeds import publish
from comux.transport import connect

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCKS = re.findall(r"```python\n(.*?)```", (DOCS / "how-to/secure-kafka.md").read_text(), re.DOTALL)


@pytest.fixture
def camera(kafka: KafkaCluster, place: Any) -> Iterator[str]:
    """A camera that runs; its id."""
    cam_id = f"cam{place.prefix.rstrip('.')}"
    stop = threading.Event()
    feed = threading.Thread(
        target=publish,
        args=("synthetic://64x48@30?gop=5", f"kafka://{kafka.bootstrap}", f"raw_{cam_id}"),
        kwargs={"stop": stop},
    )
    feed.start()
    yield cam_id
    stop.set()
    feed.join()
    with connect(f"kafka://{kafka.bootstrap}") as broker:
        for topic in (f"raw_{cam_id}", f"stream_{cam_id}"):
            if topic in broker.topics():
                broker.delete_topic(topic, force=True)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_recipes(kafka: KafkaCluster, camera: str, tmp_path: Path, capsys: Any, number: int) -> None:
    password = tmp_path / "password"
    password.write_text(kafka.users["alice"])
    code = BLOCKS[number]
    for theirs, ours in {
        "b1.example.org:9092": kafka.sasl,
        "b1.example.org:9093": kafka.ssl,
        "b1.example.org:9094": kafka.sasl_ssl,
        "alice-secret": kafka.users["alice"],
        "alice.password": str(password),
        "ca.pem": kafka.ca_file,
        "cam1": camera,
    }.items():
        code = code.replace(theirs, ours)
    with connect(f"kafka://{kafka.bootstrap}") as broker:
        while f"raw_{camera}" not in broker.topics():  # the camera makes it
            threading.Event().wait(0.02)
        exec(compile(code, f"block {number}", "exec"), {})  # ours, from the checkout
        said = capsys.readouterr().out
        assert kafka.users["alice"] not in said
        if "cameras.send" in code:
            assert broker.topic(f"stream_{camera}").high_water == 1
        elif "read(" in code:
            assert "fresh" in said
        else:
            assert camera in said


def test_the_defaults_in_the_reference(kafka: KafkaCluster, place: Any) -> None:
    place.topic("t")
    broker: Any = place.broker
    broker.producer("t")
    broker.consumer("t")
    ours = {
        "admin": broker._cluster._admin.config,
        "producer": broker._outlet.client.config,
        "consumer": broker._pollers[0]._consumer.config,
    }
    theirs = {"admin": KafkaAdminClient, "producer": KafkaProducer, "consumer": KafkaConsumer}
    page = (DOCS / "reference/kafka.md").read_text()
    rows = re.findall(r"^\| ([a-z, ]+) \| `(\w+)` \| (\S+) \| (\S+) \|", page, re.MULTILINE)
    told = {name for _, name, _, _ in rows}
    for kinds, name, value, default in rows:
        for kind in theirs if kinds == "all" else kinds.split(", "):
            stated = {"`connect_timeout`": "10000", '`"all"`': "-1"}.get(value, value)
            assert (str(ours[kind][name]), str(theirs[kind].DEFAULT_CONFIG[name])) == (stated, default), (kind, name)
    named = {"bootstrap_servers", "client_id", "group_id", "kafka_client", "api_version", "compression_attrs"}
    always = {"enable_auto_commit", "auto_offset_reset", "partition_assignment_strategy"}
    limits = {"receive_message_max_bytes", "max_in_flight_requests_per_connection"}
    for kind, config in ours.items():
        differs = {name for name, default in theirs[kind].DEFAULT_CONFIG.items() if config[name] != default}
        assert differs - told <= named | always | limits, kind
