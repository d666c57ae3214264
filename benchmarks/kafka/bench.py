"""Records to and from a real Kafka broker: through comux, and through the Kafka clients there are for Python.

    python benchmarks/kafka/bench.py [--rounds 5] [--sizes 1000,24000,1000000] [--share 1.0] [--json FILE]

Producing and consuming are measured apart, each measurement in a process of its own. The clients take turns within a
round, so that a machine that slows down slows all of them, and each round begins with another one. What was produced
is read back and checked; all consumers read the same topic, written once. The broker is that of
KAFKA_BOOTSTRAP_SERVERS, else one that is started for the run (scripts/services) and ended with it. *wrong* counts
records that are missing, too many or not what was sent.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import common
import kafka_clients as clients
import kafka_tables as tables

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
MEGABYTES = {1_000: 60, 24_000: 240, 1_000_000: 400}  # moved by one measurement, at a share of 1
PACKAGES = ("comux", "kafka-python", "crc32c", "confluent-kafka", "aiokafka")
SETTINGS = ("equal", "own")
READER = clients.Confluent.name  # the quickest, for what is not measured


@contextmanager
def broker() -> Iterator[tuple[str, str]]:
    """Address of a broker for this run, and what it is."""
    given = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
    if given:
        yield given, "the cluster of KAFKA_BOOTSTRAP_SERVERS"
        return
    services = [sys.executable, str(ROOT / "scripts" / "services")]
    with tempfile.TemporaryDirectory(prefix="comux-bench-") as folder:
        state = ["--state", str(Path(folder) / "state")]
        up = [*services, "up", "kafka", *state, "--while", str(os.getpid())]
        try:
            done = subprocess.run(up, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode != 0:
                raise SystemExit(done.returncode)
            pom = (ROOT / "scripts" / "servers" / "kafka-pom.xml").read_text()
            version = re.search(r"<artifactId>kafka_[\d.]+</artifactId>\s*<version>([\d.]+)<", pom)
            yield done.stdout.strip(), f"Apache Kafka {version[1] if version else '?'} on the same machine"
        finally:
            subprocess.run([*services, "down", *state], check=False)


class Topics:
    """Makes and removes the run's topics."""

    def __init__(self, servers: str) -> None:
        from kafka.admin import KafkaAdminClient

        self._admin = KafkaAdminClient(bootstrap_servers=servers)

    def make(self) -> str:
        topic = f"comux-bench-{secrets.token_hex(6)}"
        details = {"num_partitions": 1, "replication_factor": 1, "configs": {"max.message.bytes": str(clients.LARGEST)}}
        self._admin.create_topics({topic: details}, wait_for_metadata=True)
        return topic

    def remove(self, topic: str) -> None:
        self._admin.delete_topics([topic])

    def close(self) -> None:
        self._admin.close()


def measure(name: str, direction: str, job: clients.Job) -> clients.Timing:
    """One client, one direction, in a fresh process."""
    call = [sys.executable, str(HERE), "--one", name, direction, json.dumps(dataclasses.asdict(job))]
    done = subprocess.run(call, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode != 0:
        raise SystemExit(f"{name} {direction}: {done.stderr.strip() or done.returncode}")
    return clients.Timing(**json.loads(done.stdout.strip().splitlines()[-1]))


def one(name: str, direction: str, text: str) -> None:
    client, job = clients.ALL[name](), clients.Job(**json.loads(text))
    timing = client.produce(job) if direction == "produce" else client.consume(job)
    print(json.dumps(dataclasses.asdict(timing)))


def produced(name: str, job: clients.Job, topics: Topics) -> clients.Timing:
    """Measure producing to a topic of its own, and read that back."""
    job = dataclasses.replace(job, topic=topics.make())
    timing = measure(name, "produce", job)
    timing.wrong = measure(READER, "consume", job).wrong
    topics.remove(job.topic)
    return timing


def run(
    servers: str, sizes: Sequence[int], rounds: int, share: float, names: Sequence[str], settings: Sequence[str]
) -> list[dict[str, Any]]:
    topics, results = Topics(servers), []
    for size in sizes:
        n = max(clients.WARM * 2, int(MEGABYTES.get(size, 100) * 1e6 * share / size))
        written = clients.Job(servers, topics.make(), size, n, equal=True)
        measure("kafka-python", "produce", written)
        measure(READER, "consume", written)  # it is complete, and in the page cache
        rows = {
            key: {"settings": key[0], "direction": key[1], "bytes": size, "n": n, "name": key[2]}
            | {"rates": [], "cpu_us": [], "wrong": 0}
            for key in ((s, d, name) for s in settings for d in ("produce", "consume") for name in names)
        }
        for turn in range(rounds):
            order = [*names[turn % len(names) :], *names[: turn % len(names)]]
            for key in ((s, d, name) for s in settings for d in ("produce", "consume") for name in order):
                job = dataclasses.replace(written, equal=key[0] == "equal")
                timing = produced(key[2], job, topics) if key[1] == "produce" else measure(key[2], "consume", job)
                rows[key]["rates"].append(timing.n / timing.seconds)
                rows[key]["cpu_us"].append(timing.cpu / timing.n * 1e6)
                rows[key]["wrong"] += timing.wrong
        topics.remove(written.topic)
        results += rows.values()
        for kind in settings:
            print(f"{kind} settings\n")
            for direction in ("produce", "consume"):
                print(tables.table([rows[kind, direction, name] for name in names]), flush=True)
    topics.close()
    return results


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        return one(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", default=",".join(map(str, MEGABYTES)))
    parser.add_argument("--share", type=float, default=1.0, help="of the records, for short trials")
    parser.add_argument("--clients", default=",".join(clients.ALL))
    parser.add_argument("--settings", default=",".join(SETTINGS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    facts = common.machine(PACKAGES)
    with broker() as (servers, what):
        print(f"{common.describe(facts)}; {what}\n")
        sizes = [int(size) for size in options.sizes.split(",")]
        names, settings = options.clients.split(","), options.settings.split(",")
        rows = run(servers, sizes, options.rounds, options.share, names, settings)
    if options.json:
        common.save(options.json, {"machine": facts, "broker": what, "results": rows})
    if any(row["wrong"] for row in rows):
        raise SystemExit("records are missing, too many or not what was sent: see above")
    return None


if __name__ == "__main__":
    main()
