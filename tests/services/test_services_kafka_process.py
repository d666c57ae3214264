"""Processes and a real broker: forked children, Ctrl-C, closing from another thread, and what idle cameras cost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from kafka_rooms import Room, with_both_libraries
from service_fixtures import until

from comux import Comux
from comux.errors import ClosedError, ComuxError
from comux.transport import TopicSpec, connect

_FORK = """
import json, os, signal, sys
from comux import Comux
from comux.errors import ClosedError
from comux.transport import TopicSpec, connect

address, how = sys.argv[1:3]
broker = connect(address)
broker.create_topic(TopicSpec("raw_cam"))
producer, consumer = broker.producer("raw_cam"), broker.consumer("raw_cam", start="beginning")
member = broker.consumer("raw_cam", group="g", start="beginning")
cameras = Comux(["cam"], address=address)
cameras.start()
for number in range(5):
    producer.send(b"before").result(20)
assert len(consumer.poll(20)) == 1

def closed(call):
    try:
        call()
    except ClosedError:
        return True
    return False

reading, writing = os.pipe()
child = os.fork()
if child == 0:
    signal.alarm(20)  # a child that hangs is killed, and the parent says so
    calls = {
        "topics": broker.topics, "consumer": lambda: broker.consumer("raw_cam"), "poll": lambda: consumer.poll(0),
        "send": lambda: producer.send(b"child"), "flush": producer.flush, "commit": member.commit,
        "get_batch": lambda: cameras.get_batch(timeout=0), "end": producer.end, "seek": lambda: consumer.seek(0),
    }
    told = {name: closed(call) for name, call in calls.items()}
    for handle in (member, consumer, producer, cameras, broker):
        handle.close()
    os.write(writing, json.dumps(told).encode())
    if how == "exit":
        sys.exit(0)  # runs destructors and atexit, of kafka-python's producers too
    os._exit(0)
os.close(writing)
told = json.loads(os.read(reading, 10000) or b"{}")
_, status = os.waitpid(child, 0)
offsets = [producer.send(b"after").result(20) for _ in range(5)]
records = []
while len(records) < 9:
    records += consumer.poll(20, 100)
grouped = []
while len(grouped) < 10:
    grouped += member.poll(20, 100)
member.commit()
notes = [broker._cluster.notes, broker._outlet.notes, *(poller._notes for poller in broker._pollers)]
troubles = [repr(trouble) for each in notes for trouble in each.troubles]
cameras.close()
broker.close()
print(json.dumps({"told": told, "status": status, "offsets": offsets, "troubles": troubles,
                  "values": [record.value.decode() for record in records]}))
"""


@with_both_libraries
@pytest.mark.parametrize("how", ["exit", "_exit"])
def test_a_forked_child_has_no_live_handle_and_its_end_disturbs_nothing(there: Room, how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FORK, there.address, how], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert all(report["told"].values()) and len(report["told"]) == 9, report
    assert report["status"] == 0, "the child did not end by itself"
    assert report["offsets"] == [5, 6, 7, 8, 9]
    assert report["values"] == ["before"] * 4 + ["after"] * 5
    assert report["troubles"] == [], "a connection of the parent was lost"


# -- Ctrl-C, close from another thread -----------------------------------------------------------------------------


def _interrupted(call: Callable[[], Any], after: float = 0.3) -> None:
    timer = threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            call()
    finally:
        timer.join()


def test_ctrl_c_while_waiting(there: Room) -> None:
    """Nothing is lost by it: the handles go on."""
    there.topic("raw")
    with connect(there.address, linger_ms=3000, buffer_bytes=100_000) as broker:
        producer, consumer = broker.producer("raw"), broker.consumer("raw", start="beginning")
        member = broker.consumer("raw", group="g", start="beginning")
        _interrupted(consumer.poll)
        _interrupted(member.poll)
        futures = [producer.send(b"1")]  # lingers
        _interrupted(producer.flush)
        _interrupted(lambda: futures[0].result())
        futures.append(producer.send(bytes(90_000)))
        _interrupted(lambda: producer.send(bytes(90_000)))  # no room until the first have left
        assert [future.result(20) for future in futures] == [0, 1]
        account = producer.account()
        assert account.balanced
        assert (account.delivered, account.dropped, account.held_total) == (2, {"failed": 1}, 0)
        assert consumer.poll(20)[0].value == b"1"
        assert member.poll(20)[0].offset == 0


def test_ctrl_c_in_get_batch_gives_back_what_was_claimed(there: Room) -> None:
    there.topic("raw_cam")
    with Comux(["cam"], address=there.address) as cameras:
        _interrupted(cameras.get_batch)
        assert cameras.accounts()["cam"].balanced
        assert cameras.get_batch(timeout=0).cam_ids == ("cam",)


@pytest.mark.parametrize("group", [None, "g"])
def test_close_from_another_thread_ends_every_wait(there: Room, group: str | None) -> None:
    there.topic("raw")
    broker = connect(there.address, linger_ms=2000, buffer_bytes=100_000)
    consumer, producer = broker.consumer("raw", group=group), broker.producer("raw")
    producer.send(bytes(90_000))
    outcomes: dict[str, BaseException] = {}

    def wait(name: str, call: Callable[[], Any]) -> threading.Thread:
        def run() -> None:
            try:
                call()
            except ComuxError as error:
                outcomes[name] = error

        thread = threading.Thread(target=run, name=f"test-{name}")
        thread.start()
        return thread

    waits = {"poll": consumer.poll, "send": lambda: producer.send(bytes(90_000)), "flush": producer.flush}
    threads = [wait(name, call) for name, call in waits.items()]
    begin = time.monotonic()
    until(lambda: time.monotonic() > begin + 0.3 and all(thread.is_alive() for thread in threads), "all wait", 5)
    broker.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive(), thread.name
    assert set(outcomes) - {"flush"} == {"poll", "send"}  # what was under way may be flushed by closing
    assert all(isinstance(error, ClosedError) for error in outcomes.values()), outcomes


@with_both_libraries
def test_close_while_handles_are_being_opened_leaves_nothing(there: Room) -> None:
    """Again and again, at another moment each time; the fixture of all tests looks for threads."""
    there.topic("raw")
    outcomes: list[BaseException] = []

    def open_all(broker: Any) -> None:
        try:
            while True:
                broker.producer("raw").close()
                broker.consumer("raw")
                broker.consumer("raw", group="g").close()
        except BaseException as error:  # noqa: BLE001 - looked at below
            outcomes.append(error)

    for number in range(8):
        broker = connect(there.address)
        thread = threading.Thread(target=open_all, args=(broker,), name="test-open")
        thread.start()
        threading.Event().wait(number * 0.03)
        begin = time.monotonic()
        broker.close()
        assert time.monotonic() - begin < 8
        thread.join(20)
        assert not thread.is_alive()
    assert [type(error) for error in outcomes] == [ClosedError] * 8, outcomes


# -- cost ----------------------------------------------------------------------------------------------------------


@with_both_libraries
def test_eight_idle_cameras_cost_little(there: Room) -> None:
    cams = [f"cam{number}" for number in range(8)]
    for cam in cams:
        there.broker.create_topic(TopicSpec(f"raw_{cam}"))
    with Comux(cams, address=there.address) as cameras:
        until(
            lambda: {source["state"] for source in cameras.status()["sources"].values()} == {"STALLED"}, "all are idle"
        )
        wall, cpu = time.monotonic(), time.process_time()
        until(lambda: time.monotonic() > wall + 3, "three seconds")
        share = (time.process_time() - cpu) / (time.monotonic() - wall)
    print(f"8 idle Kafka sources: {100 * share:.1f} % of a core")
    assert share < 0.25
