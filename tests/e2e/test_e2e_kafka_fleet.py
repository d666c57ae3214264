"""A fleet on a real cluster: each camera in exactly one process; the dead replaced, the new given their part."""

from __future__ import annotations

import itertools
import json
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from service_fixtures import KafkaCluster

from comux import Comux
from comux.control import send_command
from comux.errors import ConfigError, ConnectError, UnsupportedError
from comux.records import HEADER_DTYPE, HEADER_SHAPE, HEADER_SOURCE, KEYFRAME, Record
from comux.transport import Broker, TopicSpec, connect
from tests.e2e.conftest import Program

SESSION_MS = 6000  # the shortest that brokers allow
HEADERS = ((HEADER_DTYPE, b"|u1"), (HEADER_SHAPE, b"[4, 4, 3]"))
PICTURE = np.zeros((4, 4, 3), np.uint8)
FAR = 60.0  #: seconds after which what must happen has not

Until = Callable[..., Any]


class Fleet:
    """Cameras of raw pictures on a cluster, and the processes that share them."""

    def __init__(self, cluster: KafkaCluster, folder: Path) -> None:
        self.address = f"kafka://{cluster.bootstrap}?prefix=fleet-{uuid.uuid4().hex[:10]}."
        self.broker: Broker = connect(self.address)
        self.members: list[Program] = []
        self.sent: dict[str, list[int]] = defaultdict(list)
        self._folder = folder
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def cameras(self, names: list[str], period: float) -> None:
        """Publish a picture of each every ``period`` seconds, from now on."""
        producers = {}
        for name in names:
            self.broker.create_topic(TopicSpec(f"raw_{name}"))
            producers[name] = self.broker.producer(f"raw_{name}")

        def run() -> None:
            while not self._stop.wait(period):
                for name, producer in producers.items():
                    offset = producer.send(PICTURE, headers=HEADERS, flags=KEYFRAME).result(20)
                    assert offset is not None
                    self.sent[name].append(offset)

        thread = threading.Thread(target=run, name="comux-test-cameras")
        self._threads.append(thread)
        thread.start()

    def member(self, durable: bool = False, **options: Any) -> Program:
        """One more process; its loop is running when this returns."""
        settings = {
            "address": self.address,
            "group": "fleet",
            "topics": "raw_*",
            "durable": durable,
            "session_timeout_ms": SESSION_MS,
            **options,
        }
        member = Program(self._folder / f"member-{len(self.members)}.jsonl", "shares", settings, {})
        self.members.append(member)
        member.wait_for("running", timeout=FAR)
        return member

    def rest(self) -> None:
        """No more pictures."""
        self._stop.set()
        for thread in self._threads:
            thread.join(20)

    def close(self) -> None:
        for member in self.members:
            if member.process.poll() is None:
                member.kill()
        self.rest()
        for topic in self.broker.topics():
            self.broker.delete_topic(topic, force=True)
        self.broker.close()


@pytest.fixture
def fleet(kafka: KafkaCluster, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(kafka, tmp_path)
    try:
        yield fleet
    finally:
        fleet.close()


def here(member: Program) -> set[str]:
    """The cameras a process has now, as its events tell."""
    cameras: set[str] = set()
    for line in member.lines():
        if line["what"] == "fleet.assigned":
            cameras.add(line["cam"])
        elif line["what"] in ("fleet.revoked", "fleet.lost"):
            cameras.discard(line["cam"])
    return cameras


def seen_since(member: Program, when: float) -> set[str]:
    """Cameras of which its loop took a picture after ``when`` (Unix seconds)."""
    return {cam for line in member.lines("batch") if line["at"] > when for cam in line["pictures"]}


def spans(member: Program, died_at: float | None) -> dict[str, list[tuple[float, float]]]:
    """When a process had which camera.

    One that did not run for longer than the session time-out is told afterwards (``fleet.lost``) that others have its
    cameras by now: it had them until the last picture it gave its loop.
    """
    out: dict[str, list[tuple[float, float]]] = defaultdict(list)
    since: dict[str, float] = {}
    shown: dict[str, float] = {}
    for line in member.lines():
        if line["what"] == "batch":
            shown.update(dict.fromkeys(line["pictures"], line["at"]))
        elif line["what"] == "fleet.assigned":
            since[line["cam"]] = shown[line["cam"]] = line["at"]
        elif line["what"] in ("fleet.revoked", "fleet.lost") and line["cam"] in since:
            cam = line["cam"]
            out[cam].append((since.pop(cam), line["at"] if line["what"] == "fleet.revoked" else shown[cam]))
    for cam, at in since.items():
        out[cam].append((at, float("inf") if died_at is None else died_at))
    return out


@pytest.mark.timeout(300)
def test_three_processes_share_thirty_cameras_one_is_killed_and_one_added(fleet: Fleet, until: Until) -> None:
    names = [f"cam{i:02d}" for i in range(30)]
    fleet.cameras(names, 0.25)
    first, second, third = (fleet.member() for _ in range(3))

    def shared(*members: Program, of: list[str] = names) -> bool:
        parts = [here(member) for member in members]
        return sorted(itertools.chain(*parts)) == sorted(of) and min(map(len, parts)) >= len(of) // len(members) - 1

    until(lambda: shared(first, second, third), FAR, "thirty cameras shared by three")
    settled = time.time()
    for member in (first, second, third):
        until(lambda m=member: seen_since(m, settled) == here(m), FAR, "pictures of exactly its own cameras")

    orphans = here(second)
    second.kill()
    killed = time.time()
    until(lambda: shared(first, third), FAR, "the dead one's cameras are with the others")
    moved = time.time()
    until(lambda: seen_since(first, moved) | seen_since(third, moved) == set(names), FAR, "pictures of all thirty")
    took = max(line["at"] for m in (first, third) for line in m.lines("fleet.assigned") if line["cam"] in orphans)
    print(f"{len(orphans)} cameras moved within {took - killed:.1f} s of a SIGKILL (session time-out {SESSION_MS} ms)")

    fourth = fleet.member()
    until(lambda: shared(first, third, fourth), FAR, "the new process has its part")
    names = [*names, "late"]
    fleet.cameras(["late"], 0.25)
    until(lambda: shared(first, third, fourth, of=names), FAR, "a new topic that matches appears by itself")

    for member in (first, third, fourth):
        member.ask()
        assert member.wait() == 0, member.errors()
        assert member.lines("stopped")[0]["balanced"]

    # At no time had two living processes the same camera: who takes it, takes it after the other has put it down.
    had = [spans(first, None), spans(second, killed), spans(third, None), spans(fourth, None)]
    for cam in names:
        times = sorted(span for spans_of in had for span in spans_of.get(cam, ()))
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(times)), (cam, times)
    # Lossy: a camera that moves goes on at its newest keyframe, here every picture; no index runs backwards.
    for member in fleet.members:
        last: dict[str, int] = {}
        for line in member.lines("batch"):
            for cam, index in line["pictures"].items():
                assert index > last.get(cam, -1)
                last[cam] = index


@pytest.mark.timeout(300)
def test_a_durable_fleet_loses_no_picture_when_a_process_is_killed(fleet: Fleet, until: Until) -> None:
    names = [f"cam{i}" for i in range(6)]
    options = {"durable": True, "send": True, "mode": "every_frame", "start": "beginning"}
    first, second = fleet.member(**options), fleet.member(**options)
    fleet.cameras(names, 0.05)
    until(lambda: len(here(first)) == len(here(second)) == 3, FAR, "six cameras shared by two")
    second.wait_for("batch", 20)
    taken = {cam: index for line in second.lines("batch") for cam, index in line["pictures"].items()}
    orphans = here(second)
    second.kill()
    until(lambda: here(first) == set(names), FAR, "all cameras are with the survivor")
    until(lambda: all(fleet.sent[cam][-1] > taken[cam] + 20 for cam in taken), FAR, "the cameras went on")
    fleet.rest()

    def results(cam: str) -> Counter[int]:
        with fleet.broker.consumer(f"stream_{cam}", start="beginning", on_end="wait") as consumer:
            records: list[Record] = []
            while consumer.position() < consumer.end_offset():
                records += consumer.poll(5.0, 500)
        return Counter(json.loads(record.header(HEADER_SOURCE) or b"")[2] for record in records)

    for cam in names:
        until(lambda c=cam: set(results(c)) >= set(fleet.sent[c]), FAR, f"a result for every picture of {cam}")
        repeated = sum(count - 1 for count in results(cam).values())
        print(f"{cam}: {len(fleet.sent[cam])} pictures, {repeated} repeated")
        assert cam in orphans or repeated == 0  # a camera that was put down in time repeats nothing
    first.ask()
    assert first.wait() == 0, first.errors()
    # What the loop was done with is committed: a new member repeats at most the last batch.
    before = {cam: max(results(cam)) for cam in names}
    third = fleet.member(**options)
    until(lambda: here(third) == set(names), FAR, "the next process has them all")
    again = {cam: index for line in third.lines("batch") for cam, index in line["pictures"].items()}
    assert all(index >= before[cam] - 1 for cam, index in again.items()), (before, again)


def test_a_pattern_takes_what_comux_writes_itself_for_no_camera(kafka: KafkaCluster, until: Until) -> None:
    """Results and control beside the cameras, all of them matched by ``*``."""
    address = f"kafka://{kafka.bootstrap}?prefix=all-{uuid.uuid4().hex[:10]}."
    options: dict[str, Any] = {"address": address, "control_topic": "config", "client_name": "gate", "codec": "raw"}
    with connect(address) as broker:
        broker.create_topic(TopicSpec("raw_a"))
        producer = broker.producer("raw_a")
        with Comux(["a"], start="beginning", **options) as alone:
            producer.send(PICTURE, headers=HEADERS, flags=KEYFRAME).result(20)
            item = alone.read("a", timeout=FAR)
            assert item is not None
            alone.send(item, headers={"n": 1}).result(FAR)
            send_command(address, "config", "status", timeout=FAR)
        with Comux(None, share="all", topics="*", **options) as cameras:
            until(lambda: cameras.status()["fleet"]["here"] == ["a"], FAR, "the camera is here")
            until(lambda: len(told(cameras)) == 3, FAR, "the rest was passed over")
            assert told(cameras) == {"config", "config_replies", "stream_a"}
            assert cameras.status()["fleet"]["here"] == ["a"]


def told(cameras: Comux) -> set[str]:
    return {event.data["topic"] for event in cameras.events.recent() if event.kind == "fleet.passed_over"}


def test_a_fleet_waits_for_its_cluster_where_it_may() -> None:
    nowhere = "kafka://127.0.0.1:1"
    with pytest.raises(ConnectError, match="nobody listens"):
        Comux(None, address=nowhere, share="fleet", topics="raw_*").start()
    with Comux(None, address=nowhere, share="fleet", topics="raw_*", strict_on_fail=False) as cameras:
        assert len(cameras.get_batch(timeout=0.3)) == 0
        fleet = cameras.status()["fleet"]
        assert (fleet["group"], fleet["joined"], fleet["here"]) == ("fleet", False, [])


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="topic_sharing"):
        Comux(["a"], address="memory://", share="fleet", strict_on_fail=False).start()
    with pytest.raises(ConfigError, match=r"topics.*share"):
        Comux(["a"], address="memory://").setup_consumers(topics="raw_*")
    with pytest.raises(ConfigError, match="share"):
        Comux(["a"], address="memory://", share="no/slashes")
