"""The Kafka benchmark runs, and finds every record that it sent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from service_fixtures import KafkaCluster

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
CLIENTS = ["comux", "comux+librdkafka", "kafka-python", "confluent-kafka", "aiokafka"]


def test_one_short_round_finds_every_record_of_every_client(kafka: KafkaCluster, tmp_path: Path) -> None:
    call = [sys.executable, str(BENCHMARKS / "kafka" / "bench.py"), "--rounds", "1", "--sizes", "1000"]
    call += ["--share", "0.01", "--settings", "equal", "--json", str(tmp_path / "kafka.json")]
    environment = os.environ | {"KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap}
    done = subprocess.run(call, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "kafka.json").read_text())["results"]
    assert [(row["direction"], row["name"]) for row in rows] == [
        (direction, client) for direction in ("produce", "consume") for client in CLIENTS
    ]
    assert all(row["wrong"] == 0 and row["n"] == 600 and len(row["rates"]) == 1 and row["rates"][0] > 0 for row in rows)

    report = [sys.executable, str(BENCHMARKS / "report.py"), str(tmp_path)]
    page = subprocess.run(report, capture_output=True, text=True, check=True).stdout
    assert page.startswith("## Kafka")
    assert page.count("| produce | 1,000 B |") == page.count("| consume | 1,000 B |") == len(CLIENTS)
