"""The local engine keeps the contract; and what only it can show: other processes, deaths, signals, leftovers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from comux.errors import ClosedError, ConfigError, UnknownTopicError
from comux.testing import TransportContract
from comux.testing.transport_base import WAIT, Background, eventually, take, values
from comux.transport import Broker, TopicSpec, connect, local_consumer

Script = Callable[..., "subprocess.Popen[str]"]

HEAD = """
import os, sys, time, signal
from pathlib import Path
from comux.transport import connect, TopicSpec
broker = connect("shm://", directory=Path(sys.argv[1]))
def say(*words):
    print(*words, flush=True)
"""


def private_directory() -> Path:
    """A folder of this test alone, beside the other topics of the run."""
    base = os.environ.get("COMUX_DIR")
    return Path(tempfile.mkdtemp(prefix="local-", dir=base))


class TestLocal(TransportContract):
    @pytest.fixture
    def place(self) -> Iterator[Path]:
        path = private_directory()
        yield path
        shutil.rmtree(path)

    def make_broker(self, place: Path) -> Broker:
        return connect("shm://", directory=place)


@pytest.fixture
def place() -> Iterator[Path]:
    path = private_directory()
    yield path
    shutil.rmtree(path)


@pytest.fixture
def broker(place: Path) -> Iterator[Broker]:
    with connect("shm://", directory=place) as broker:
        yield broker


@pytest.fixture
def script(place: Path) -> Iterator[Script]:
    """Start Python code in a process of its own; it is killed and reaped at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *args: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HEAD + code, str(place), *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    text = process.stdout.readline().strip()
    assert text, process.communicate()[1]
    return text


def test_another_process_sees_the_same_topics(broker: Broker, script: Script) -> None:
    broker.create_topic(TopicSpec("numbers", records=64))
    broker.create_topic(TopicSpec("arrays", dtype="<f4", shape=(3, 2), records=16))
    with broker.consumer("numbers") as numbers, broker.consumer("arrays") as arrays:
        process = script(
            """
import numpy as np
with broker.producer("numbers", name="there") as p:
    for i in range(50):
        p.send(b"%d" % i, key=b"k", headers=[("n", b"%d" % i), ("n", None)], timestamp_ns=i)
    p.end()
with broker.producer("arrays") as p:
    p.send(np.full((3, 2), 7, "<f4"))
    p.end()
say(*broker.topics())
broker.close()
"""
        )
        got = list(numbers)
        assert [record.value for record in got] == [b"%d" % i for i in range(50)]
        assert got[7].headers == (("n", b"7"), ("n", None))
        assert (got[7].key, got[7].timestamp_ns) == (b"k", 7)
        assert np.array_equal(take(arrays, 1)[0].value, np.full((3, 2), 7, "<f4"))
        assert line(process) == "arrays numbers"
        assert process.wait(WAIT) == 0, process.communicate()[1]


def test_what_a_killed_member_held_goes_to_another(broker: Broker, script: Script) -> None:
    broker.create_topic(TopicSpec("work", records=64))
    with broker.producer("work") as producer:
        for i in range(10):
            producer.send(b"%d" % i)
    process = script(
        """
c = broker.consumer("work", group="g", start="beginning")
got = c.poll(10, 4)
c.ack(got[0])
say(*[r.offset for r in got])
time.sleep(1000)
"""
    )
    held = [int(word) for word in line(process).split()]
    with broker.consumer("work", group="g") as consumer:
        process.kill()
        process.wait(WAIT)
        records = take(consumer, 9)
        assert sorted(record.offset for record in records) == [*held[1:], *range(held[-1] + 1, 10)]
        again = {record.offset for record in records if record.redelivered}
        assert again == set(held[1:])
        consumer.commit()
        assert consumer.poll(0) == []


def test_a_producer_killed_in_a_claim_publishes_nothing_and_stops_nobody(broker: Broker, script: Script) -> None:
    broker.create_topic(TopicSpec("topic", records=8))
    with broker.consumer("topic", start="beginning") as lossy, broker.consumer("topic", group="g") as member:
        process = script(
            """
p = broker.producer("topic")
p.send(b"before")
claim = p.claim(1000)
claim.buffer[:500] = bytes(range(250)) * 2
say("claimed")
time.sleep(1000)
"""
        )
        assert line(process) == "claimed"
        with broker.producer("topic") as producer:
            producer.send(b"after").result(WAIT)
            assert values(take(lossy, 1)) == [b"before"]
            process.kill()
            process.wait(WAIT)
            assert values(take(lossy, 1)) == [b"after"]
            assert values(take(member, 2)) == [b"before", b"after"]
            member.commit()
            for i in range(30):  # the dead one's room is free again
                producer.send(b"%d" % i, timeout=WAIT)
                member.poll(WAIT)
                member.commit()
        assert lossy.account().balanced


def test_a_crash_is_no_end(broker: Broker, script: Script) -> None:
    broker.create_topic(TopicSpec("topic", end="auto"))
    with broker.consumer("topic", start="beginning") as consumer:
        process = script("p = broker.producer('topic'); p.send(b'x'); say('sent'); time.sleep(1000)")
        assert line(process) == "sent"
        take(consumer, 1)
        process.kill()
        process.wait(WAIT)
        assert consumer.poll(0.3) == []
        assert not consumer.ended()
        assert not broker.topic("topic").ended
        with broker.producer("topic") as producer:
            producer.send(b"y").result(WAIT)
        assert values(list(consumer)) == [b"y"]


@pytest.mark.parametrize(
    "wait",
    [
        "broker.consumer('a').poll()",
        "broker.consumer('a', group='other').poll()",
        "broker.consumer(['a', 'b']).poll()",
        "next(iter(broker.consumer(['a', 'b'], group='other')))",
        "broker.producer('full').send(b'x')",
    ],
)
def test_ctrl_c_ends_every_wait(broker: Broker, script: Script, wait: str) -> None:
    for name in ("a", "b", "full"):
        broker.create_topic(TopicSpec(name, records=2))
    with broker.consumer("full", group="g", start="beginning"), broker.producer("full") as producer:
        producer.send(b"1")
        producer.send(b"2")
        process = script(
            f"""
import signal
try:
    say("ready")
    {wait}
except KeyboardInterrupt:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    say("interrupted")
broker.close()
"""
        )
        assert line(process) == "ready"
        # The signal may come before the wait has begun (Python raises in the try block all the same) or be taken by
        # another thread of the child's start: it is sent again until it is heard.
        said = Background(lambda: line(process))
        while said.thread.is_alive():
            process.send_signal(signal.SIGINT)
            said.thread.join(0.2)
        assert said.result() == "interrupted"


def test_a_topic_deleted_by_another_process_is_unknown(broker: Broker, script: Script) -> None:
    broker.create_topic(TopicSpec("topic"))
    with broker.consumer("topic") as consumer:
        waiting = Background(lambda: consumer.poll(WAIT))
        process = script("broker.delete_topic('topic', force=True)")
        with pytest.raises(UnknownTopicError, match="topic"):
            waiting.result()
        assert process.wait(WAIT) == 0, process.communicate()[1]


def test_a_forked_child_has_no_live_handle(broker: Broker) -> None:
    broker.create_topic(TopicSpec("topic"))
    with broker.consumer("topic", start="beginning") as consumer, broker.producer("topic") as producer:
        child = os.fork()
        if child == 0:
            code = 0
            for call in (lambda: consumer.poll(0), lambda: producer.send(b"child")):
                try:
                    call()
                    code = 1
                except ClosedError:
                    pass
            consumer.close()
            producer.close()
            broker.close()
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        producer.send(b"parent").result(WAIT)
        assert values(take(consumer, 1)) == [b"parent"]


def test_namespaces_are_folders_of_their_own(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMUX_DIR", str(place))
    with connect("shm://") as plain, connect("shm://lab/cam1") as lab:
        plain.create_topic(TopicSpec("only_here"))
        lab.create_topic(TopicSpec("cam1"))
        assert plain.topics() == ["only_here"]
        assert lab.topics() == ["cam1"]
        assert lab.default_topic == "cam1"
        with pytest.raises(UnknownTopicError, match=str(place / "lab")):
            lab.topic("only_here")


def test_unknown_options_are_refused(place: Path) -> None:
    with pytest.raises(ConfigError, match="speed"):
        connect("shm://?speed=11")


def test_nothing_is_left_in_the_folder(broker: Broker, place: Path) -> None:
    before = {path.name for path in place.iterdir()}
    broker.create_topic(TopicSpec("topic"))
    with broker.producer("topic") as producer, broker.consumer("topic", group="g") as consumer:
        producer.send(b"x")
        take(consumer, 1)
    for bad in ({"records": 0}, {"dtype": "O"}, {"metadata": {"x": "y" * 100_000}}):
        with pytest.raises(ConfigError):
            broker.create_topic(TopicSpec("bad", **bad))  # type: ignore[arg-type]
    broker.delete_topic("topic")
    assert {path.name for path in place.iterdir()} == before


def test_a_killed_member_stops_gating_after_the_grace(broker: Broker, script: Script) -> None:
    broker.create_topic(TopicSpec("topic", records=4, group_grace=0.2))
    process = script("c = broker.consumer('topic', group='g'); say('joined'); time.sleep(1000)")
    assert line(process) == "joined"
    with broker.producer("topic") as producer:
        for i in range(4):
            producer.send(b"%d" % i, timeout=WAIT)
        process.kill()
        process.wait(WAIT)
        began = time.monotonic()
        producer.send(b"goes on", timeout=WAIT)
        assert time.monotonic() - began >= 0.15
        eventually(lambda: broker.groups("topic")[0].suspended)


@pytest.mark.parametrize("on_end", ["wait", "stop"])
def test_who_holds_records_looks_around_only_where_an_end_may_stop_it(
    broker: Broker, on_end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.create_topic(TopicSpec("t", records=16))
    with broker.producer("t") as producer, broker.consumer("t", group="g", on_end=on_end, start="beginning") as member:  # type: ignore[arg-type]
        producer.send(b"held")
        assert values(member.poll(WAIT)) == [b"held"]
        waits: list[float] = []
        wait_any = local_consumer.ring.wait_any
        monkeypatch.setattr(local_consumer.ring, "wait_any", lambda hs, s: (waits.append(s), wait_any(hs, s))[1])
        assert member.poll(0.5) == []
        assert waits and (max(waits) > 0.3 if on_end == "wait" else max(waits) <= 0.1)


@pytest.mark.parametrize("address", ["memory://look-at-records", "shm://"])
def test_the_page_about_looking_in_place_does_what_it_says(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).resolve().parents[2] / "docs/how-to/look-at-records-in-place.md"
    code = page.read_text().split("```python\n")[1].split("```")[0]
    place = private_directory()
    monkeypatch.setenv("COMUX_DIR", str(place))
    try:
        exec(compile(code.replace("memory://look-at-records", address), str(page), "exec"), {})
    finally:
        shutil.rmtree(place)
