"""The costs that `comux plan` stands on, on this machine, with real brokers of its own: about half an hour.

    python benchmarks/scaling/measure.py [--rounds 4] [--json benchmarks/results/scaling-2-cores.json]
        [--built-in comux/planning/measured.json]

What `comux plan --measure --check` measures, and what takes a cluster that may be filled with topics and killed: many
partitions on one broker, copies among three, a fleet one of whose processes is killed, and the bytes on disk. Needs
Java 17 and Maven (scripts/services).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common

from comux.planning.check import check_costs
from comux.planning.child import Child, removed_topics
from comux.planning.costs import from_dict
from comux.planning.decoding import FPS
from comux.planning.groups import METADATA_S, Members
from comux.planning.loops import Cameras, Clips, engine_address, medians
from comux.planning.measure import FEW, Effort, measure
from comux.planning.server import Server

SERVICES = Path(__file__).resolve().parents[2] / "scripts" / "services"
PARTITIONS = (250, 500, 1000)
FLEET = (3, 24)  # processes, cameras
TINY = (64, 48, 60_000)
RICH = (640, 360, 12_000_000)


def tell(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line} (load {os.getloadavg()[0]:.1f})", file=sys.stderr, flush=True)


@contextlib.contextmanager
def cluster(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A cluster of our own: its address, and what scripts/services knows of it."""
    with tempfile.TemporaryDirectory(prefix="comux-bench-") as folder:
        state = Path(folder) / "state"
        call = [sys.executable, str(SERVICES)]
        subprocess.run(
            [*call, "up", "--state", str(state), "--while", str(os.getpid()), name], check=True, stdout=sys.stderr
        )
        try:
            entry = json.loads((state / "state.json").read_text())["servers"][name]
            yield f"kafka://{entry['bootstrap']}", entry
        finally:
            subprocess.run([*call, "down", "--state", str(state), "--patience", "0"], check=True)


def bytes_on_disk(address: str, entry: dict[str, Any], clips: Clips) -> dict[str, float]:
    """What a record takes in the broker's log, its value left out."""
    own = engine_address(address)
    prefix = own.partition("prefix=")[2]
    topics = [f"raw_cam{number}" for number in range(FEW)]
    with removed_topics(own):
        with Child("cameras", address=own, topics=topics, clip=clips.file(*TINY), fps=FPS) as feed:
            feed.hear()
            threading.Event().wait(5.0)  # so that there is something on the disk
            feed.ask()
            feed.hear()
        from comux import connect

        with connect(own) as broker:
            records, size = 0, 0
            for topic in topics:
                with broker.consumer(topic, start="beginning", on_end="wait") as consumer:
                    while consumer.lag():
                        for record in consumer.poll(1.0, 500):
                            records += 1
                            size += len(record.value)
        logs = [Path(process["log"]).parent / "data" for process in entry["processes"].values()]
        disk = sum(path.stat().st_size for log in logs for path in log.glob(f"{prefix}raw_*/*.log"))
    return {"records": records, "value_bytes": size, "disk_bytes": disk, "record_bytes": (disk - size) / records}


def partitions(address: str, seconds: float) -> list[dict[str, float]]:
    """One broker with more and more partitions: its memory, its idle CPU, topics made per second, a group's members."""
    from comux import TopicSpec, connect

    own, server = engine_address(address), Server.at(address)
    assert server is not None
    out: list[dict[str, float]] = []
    with removed_topics(own), connect(own) as broker:
        made = 0
        for count in PARTITIONS:
            tell(f"one broker with {count} partitions")
            begun = time.monotonic()
            for number in range(made, count):
                broker.create_topic(TopicSpec(f"raw_{number}"))
            create_s, made = (time.monotonic() - begun) / (count - made), count
            memory, cpu = server.memory_bytes(), server.cpu_s()
            threading.Event().wait(seconds)  # it is the idle broker that is measured
            idle = (server.cpu_s() - cpu) / seconds
            names = {f"raw_{number}" for number in range(count)}
            with Members(own, f"group-{count}") as members:
                begun = time.monotonic()
                for _ in range(2):
                    members.add()
                first_s = members.settled(names) - begun
                threading.Event().wait(4 * METADATA_S)  # several looks at the topics
                member_cpu = statistics.median(members.finish())
            out.append(
                {
                    "partitions": count,
                    "create_s": create_s,
                    "broker_bytes": memory,
                    "idle": idle,
                    "first_s": first_s,
                    "member_cpu": member_cpu,
                }
            )
    return out


def copies(seconds: float, rounds: int) -> dict[str, Any]:
    """CPU of three brokers together, with one and with three copies of each record."""
    runs: dict[str, list[Any]] = {}
    with cluster("kafka3") as (address, _), tempfile.TemporaryDirectory(prefix="comux-bench-") as folder:
        clips = Clips(Path(folder))
        for number in range(rounds + 1):  # the first warms the brokers up, and does not count
            tell(f"three brokers, round {number} of {rounds}")
            for name, clip, cameras in (("many", TINY, 24), ("rich", RICH, FEW)):
                for factor in (1, 3):
                    own = engine_address(address) + f"&replication_factor={factor}"
                    with Cameras(own, clips.file(*clip), cameras, apart=True) as feed:
                        run = feed.run(seconds=seconds, warm_up=0, role=None)
                    if number:
                        runs.setdefault(f"{name}_{factor}", []).append(run)
    return {kind: medians(each) for kind, each in runs.items()}


def copy_costs(runs: dict[str, Any]) -> tuple[float, float]:
    """Seconds of a record and of a megabyte for each further copy: the brokers' CPU beyond that with one copy."""
    more = {
        name: (runs[f"{name}_3"]["broker_cpu_s"] / runs[f"{name}_3"]["seconds"])
        - runs[f"{name}_1"]["broker_cpu_s"] / runs[f"{name}_1"]["seconds"]
        for name in ("many", "rich")
    }
    rate = {n: runs[f"{n}_3"]["feed_packets"] / runs[f"{n}_3"]["feed_seconds"] for n in more}
    size = {n: runs[f"{n}_3"]["feed_bytes"] / runs[f"{n}_3"]["feed_seconds"] / 1e6 for n in more}
    record = max(0.0, more["many"] / 2 / rate["many"])
    megabyte = max(0.0, (more["rich"] / 2 - record * rate["rich"]) / size["rich"])
    return record, megabyte


def fleet(address: str, clips: Clips) -> dict[str, Any]:
    """A fleet of real processes, one killed: seconds until each of its cameras shows pictures elsewhere."""
    processes, cameras = FLEET
    tell(f"a fleet of {processes} processes, {cameras} cameras, one process killed")
    own = engine_address(address)
    topics = [f"raw_cam{number}" for number in range(cameras)]
    shown: dict[str, dict[str, float]] = {}
    changed = threading.Condition()

    def listen(name: str, child: Child) -> None:
        for said in child.said():
            with changed:
                if "cam" in said:
                    shown[name][said["cam"]] = said["at"]
                else:
                    shown[name].pop(said["gone"], None)
                changed.notify_all()

    def together() -> set[str]:
        return {cam for cams in shown.values() for cam in cams}

    with removed_topics(own), contextlib.ExitStack() as stack:
        feed = stack.enter_context(Child("cameras", address=own, topics=topics, clip=clips.file(*TINY), fps=10))
        feed.hear()
        begun = time.monotonic()
        children = {}
        for number in range(processes):
            name = f"process {number}"
            shown[name] = {}
            children[name] = stack.enter_context(Child("fleet", address=own, group="fleet", topics="raw_*"))
            threading.Thread(target=listen, args=(name, children[name]), daemon=True).start()
        fair = cameras // processes
        with changed:
            if not changed.wait_for(
                lambda: len(together()) == cameras and all(len(cams) == fair for cams in shown.values()), 120
            ):
                raise SystemExit(f"the fleet did not share the cameras out within 120 s: {shown}")
            first_s = max(at for cams in shown.values() for at in cams.values()) - begun
            victim, orphans = "process 0", set(shown["process 0"])
            killed = time.monotonic()
            children[victim].kill()
            shown[victim] = {}
            if not changed.wait_for(lambda: orphans <= together(), 120):
                raise SystemExit("the killed process' cameras did not come back within 120 s")
            back = sorted(at - killed for cams in shown.values() for cam, at in cams.items() if cam in orphans)
    return {"processes": processes, "cameras": cameras, "first_s": first_s, "moved": len(back), "back_s": back}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", type=Path, help="everything, with its spread")
    parser.add_argument("--built-in", type=Path, help="the costs alone: comux/planning/measured.json")
    options = parser.parse_args()
    effort = Effort(seconds=options.seconds, rounds=options.rounds)
    found: dict[str, Any] = {}

    def keep() -> None:
        if options.json:  # after each part: a part that fails costs the later ones only
            common.save(options.json, found)

    with cluster("kafka") as (address, entry), tempfile.TemporaryDirectory(prefix="comux-bench-") as folder:
        found |= measure(effort, cluster=address, tell=tell)
        clips = Clips(Path(folder))
        found["disk"] = bytes_on_disk(address, entry, clips)
        found["costs"]["record_bytes"] = found["disk"]["record_bytes"]
        keep()
        plain = from_dict(found["costs"], "this run")
        found["check"] = {
            "shm": [asdict(each) for each in check_costs(plain, effort, tell=tell)],
            "kafka": [asdict(each) for each in check_costs(plain, effort, cluster=address, tell=tell)],
        }
        keep()
        found["fleet"] = fleet(address, clips)
        keep()
        found["partitions"] = partitions(address, 2 * options.seconds)
        keep()
    found["copies"] = copies(options.seconds, options.rounds)
    add_cluster_costs(found)
    keep()
    if options.built_in:
        common.save(options.built_in, {"costs": found["costs"]})
    report(found)


def add_cluster_costs(found: dict[str, Any]) -> None:
    """What partitions, copies and groups say."""
    broker, group = found["costs"]["broker"], found["costs"]["group"]
    few, most = found["partitions"][0], found["partitions"][-1]
    apart = most["partitions"] - few["partitions"]
    broker["partition_bytes"] = max(0.0, (most["broker_bytes"] - few["broker_bytes"]) / apart)
    broker["copy_s"], broker["copy_megabyte_s"] = copy_costs(found["copies"])
    topic = max(0.0, (most["member_cpu"] - few["member_cpu"]) / apart)
    group["metadata_topic_s"] = topic * METADATA_S
    group["member"] = max(0.0, few["member_cpu"] - topic * few["partitions"])
    joining = max(0.0, (most["first_s"] - few["first_s"]) / apart)
    group["join_topic_s"] = group["dead_topic_s"] = joining
    for name in ("join_s", "dead_s"):  # between so few topics the slope is noise; here it is not
        group[name] = statistics.mean(each[name] for each in found["group"])


def report(found: dict[str, Any]) -> None:
    """Tables for docs/explanation/scaling.md."""
    rows = [
        [
            p["codec"],
            f"{p['width']}x{p['height']}",
            f"{p['bitrate'] / 1e6:.1f}",
            f"{p['decode_s'] * 1e3:.2f} ({p['decode_least_s'] * 1e3:.2f}–{p['decode_most_s'] * 1e3:.2f})",
            f"{p['convert_s'] * 1e3:.2f}",
        ]
        for p in found["decoding"]
    ]
    print(common.table(["codec", "size", "Mbit/s", "decode, ms", "to BGR, ms"], rows), "\n")
    for engine, compared in found["check"].items():
        rows = [
            [
                c["name"],
                f"{c['planned']:.4g}",
                f"{c['measured']:.4g}",
                c["unit"],
                f"{c['planned'] / c['measured'] - 1:+.0%}",
            ]
            for c in compared
        ]
        print(common.table([engine, "planned", "measured", "", "deviation"], rows), "\n")
    rows = [[f"{v:.3g}" for v in each.values()] for each in found["partitions"]]
    print(common.table(list(found["partitions"][0]), rows), "\n")
    print(json.dumps({name: found[name] for name in ("group", "fleet", "disk", "costs")}, indent=1))


if __name__ == "__main__":
    main()
