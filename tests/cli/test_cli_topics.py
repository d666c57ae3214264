"""``comux topics`` and ``comux groups``: what is on an engine, and what goes over it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from comux import connect
from comux.errors import WaitTimeoutError
from comux.headers import encode_headers
from comux.transport import Broker, TopicSpec


@pytest.fixture
def place() -> Iterator[Broker]:
    """An engine of the test's own with one topic of ten records, one of them JSON with results."""
    with connect(f"shm://topics-{os.getpid()}") as broker:
        broker.create_topic(TopicSpec("raw_a", records=64, metadata={"codec": "h264"}))
        with broker.producer("raw_a") as producer:
            for number in range(9):
                producer.send(b"\x00\xff%d" % number, key=b"k", flags=1 if number == 0 else 0).result(20)
            headers = (*encode_headers({"mean": 1.5, "boxes": [1, 2]}), ("by", b"somebody"))
            producer.send(b'{"x": 1}', headers=headers).result(20)
        yield broker
        for topic in broker.topics():
            broker.delete_topic(topic, force=True)


def data(ended: Any) -> Any:
    assert (ended.code, ended.err) == (0, ""), ended
    return json.loads(ended.out)


def test_info_tells_how_it_was_made_what_it_holds_and_who_reads(execute: Callable[..., Any], place: Broker) -> None:
    with place.consumer("raw_a", group="g", start="beginning") as consumer:
        consumer.ack(consumer.poll(20)[0])
        told = data(execute("topics", "info", "raw_a", "-a", place.address, "--format", "json"))
        shown = execute("topics", "info", "raw_a", "-a", place.address)
    assert (told["records"], told["next"], told["retained"], told["metadata"]) == (10, 10, 64, {"codec": "h264"})
    (group,) = told["groups"]
    assert (group["name"], group["committed"], group["lag"], group["members"]) == ("g", 1, 9, 1)
    assert shown.code == 0
    for word in ("raw_a", "h264", "policy", "wait", "s ago", "committed"):
        assert word in shown.out
    missing = execute("topics", "info", "raw_b", "-a", place.address)
    assert (missing.code, missing.err.count("\n")) == (2, 1)
    assert "did you mean 'raw_a'" in missing.err


def test_tail_shows_records_and_takes_none_from_anybody(
    execute: Callable[..., Any], start: Callable[..., Any], place: Broker
) -> None:
    words = ("topics", "tail", "raw_a", "-a", place.address, "--from")
    ended = execute(*words, "8", "-n", "2", "--format", "json")
    binary, text = map(json.loads, ended.out.splitlines())
    assert (binary["offset"], binary["bytes"], binary["key"], binary["value"]) == (8, 3, "k", None)
    assert (text["offset"], text["value"]) == (9, '{"x": 1}')
    assert (text["headers"]["mean"], text["headers"]["boxes"], text["headers"]["by"]) == (1.5, [1, 2], "somebody")
    tail = start(*words, "beginning")
    shown = tail.wait_for(r"raw_a +9 .*mean=1\.5 .*boxes=\[1, 2\] .*by=somebody .*\{\"x\": 1\}\n")
    assert "key=" in shown and shown.count("\n") == 10
    tail.send(signal.SIGINT)
    assert tail.end().code == 0
    assert place.groups("raw_a") == []
    wrong = execute(*words, "yesterday")
    assert (wrong.code, wrong.err.count("\n")) == (2, 1)
    echo = execute("topics", "echo", "raw_a", "-a", place.address, "--from", "beginning", "-n", "1")
    assert (echo.code, echo.out.count("\n")) == (0, 1)


@pytest.mark.parametrize(("what", "column"), [("hz", "records/s"), ("bw", "MB/s")])
def test_hz_and_bw_measure_what_comes(
    execute: Callable[..., Any], start: Callable[..., Any], place: Broker, what: str, column: str
) -> None:
    measuring = start("topics", what, "raw_a", "-a", place.address, "--every", "0.2", "--format", "json")
    measuring.wait_for("raw_a")
    with place.producer("raw_a") as producer:
        for number in range(5):
            producer.send(bytes(1000), timestamp_ns=10**18 + number * 10**8).result(20)
        measuring.wait_for('"interval_max": 0.1')
    measuring.send(signal.SIGINT)
    ended = measuring.end()
    assert ended.code == 0
    rows = [json.loads(line)["raw_a"] for line in ended.out.splitlines()]
    assert sum(row["records"] + row["missed"] for row in rows) == 5
    assert sum(row["bytes"] for row in rows) == 5000
    busy = max(rows, key=lambda row: row["records"])
    assert busy["records_per_second"] == pytest.approx(busy["records"] / busy["seconds"], abs=0.01)
    table = execute("topics", what, "raw_a", "-a", place.address, "--every", "0.05", "--seconds", "0.1")
    assert table.code == 0 and column in table.out


def test_topics_are_made_as_asked(execute: Callable[..., Any], place: Broker) -> None:
    where = ("-a", place.address)
    made = execute(
        "topics", "create", "t", "--records", "16", "--policy", "drop_oldest", "--metadata", '{"x": 1}', *where
    )
    assert made.code == 0, made
    spec = place.topic("t").spec
    assert (spec.records, spec.policy, dict(spec.metadata)) == (16, "drop_oldest", {"x": 1})
    assert execute("topics", "create", "u", "--dtype", "int16", "--shape", "4x3", "--writers", "one", *where).code == 0
    assert (place.topic("u").spec.shape, place.topic("u").spec.writers) == ((4, 3), "one")
    for wrong in (
        ("t",),
        ("v", "--policy", "x"),
        ("v", "--dtype", "x"),
        ("v", "--dtype", "u1", "--shape", "3,4"),
        ("v", "--metadata", "[]"),
        ("v", "--metadata", "{"),
        ("a/b",),
    ):
        ended = execute("topics", "create", *wrong, *where)
        assert (ended.code, ended.err.count("\n")) == (2, 1), ended
    assert "v" not in place.topics()


def test_groups_are_listed_put_elsewhere_and_forgotten(execute: Callable[..., Any], place: Broker) -> None:
    where = ("-a", place.address)
    assert "no groups" in execute("groups", "list", *where).out
    with place.consumer("raw_a", group="g", start="beginning", durable=True) as consumer:
        for _ in range(3):
            consumer.ack(consumer.poll(20)[0])
        busy = execute("groups", "reset", "g", "raw_a", "--to", "end", *where)
        assert (busy.code, "1 living members" in busy.err) == (2, True)
    (row,) = data(execute("groups", "list", *where, "--format", "json"))
    assert (row["name"], row["topic"], row["committed"], row["lag"], row["durable"]) == ("g", "raw_a", 3, 7, True)
    assert "raw_a" in execute("groups", "lag", "g", *where).out
    assert "no group 'h'" in execute("groups", "lag", "h", *where).out
    planned = execute("groups", "reset", "g", "raw_a", "--to", "7", "--dry-run", *where)
    assert planned.out == "group 'g' of raw_a would go from offset 3 to 7\n"
    assert place.groups("raw_a")[0].committed == 3
    assert execute("groups", "reset", "g", "raw_a", "--to", "7", *where).code == 0
    (group,) = place.groups("raw_a")
    assert (group.committed, group.durable) == (7, True)
    with place.consumer("raw_a", group="g", durable=True) as consumer:
        assert consumer.poll(20)[0].offset == 7
    missing = execute("groups", "reset", "h", "raw_a", "--to", "end", *where)
    assert (missing.code, "there are: 'g'" in missing.err) == (2, True)
    assert execute("groups", "delete", "g", "raw_a", *where).code == 0
    assert place.groups("raw_a") == []


def test_who_holds_records_is_shown_and_they_can_be_claimed(execute: Callable[..., Any], place: Broker) -> None:
    where = ("-a", place.address)
    with place.consumer("raw_a", group="g", start="beginning", name="slow") as consumer:
        consumer.poll(20)
        (row,) = data(execute("groups", "lag", "g", *where, "--format", "json"))
        (holder,) = row["holders"]
        assert (holder["name"], holder["pid"], holder["held"], holder["oldest"]) == ("slow", os.getpid(), 1, 0)
        shown = execute("groups", "lag", "g", *where)
        assert f"member 'slow' of pid {os.getpid()}" in shown.out and "holds 1 records, offset 0 for" in shown.out
        none = execute("groups", "claim", "g", "raw_a", "--idle", "1h", *where)
        assert (none.code, none.out) == (0, "0 records of group 'g' on raw_a are delivered again\n")
        claimed = data(execute("groups", "claim", "g", "raw_a", "--idle", "0ms", *where, "--format", "json"))
        assert [one["offset"] for one in claimed] == [0]
        while not consumer.poll(20)[0].redelivered:
            pass  # what it had fetched with it comes first
        shown = execute("groups", "claim", "g", "raw_a", "--idle", "0", *where)
        assert f"offset 0: claimed from pid {os.getpid()}" in shown.out
    for words, said in ((("g", "raw_a", "--idle", "soon"), "duration"), (("h", "raw_a", "--idle", "1s"), "'h'")):
        wrong = execute("groups", "claim", *words, *where)
        assert (wrong.code, wrong.err.count("\n")) == (2, 1) and said in wrong.err


def test_a_topic_and_a_group_are_paused_and_resumed(execute: Callable[..., Any], place: Broker) -> None:
    where = ("-a", place.address)
    with place.consumer("raw_a", group="g", start="beginning") as consumer, place.producer("raw_a") as producer:
        assert execute("topics", "pause", "raw_a", *where).out == "raw_a paused\n"
        assert data(execute("topics", "info", "raw_a", *where, "--format", "json"))["paused"]
        assert "paused" in execute("topics", "list", *where).out
        with pytest.raises(WaitTimeoutError, match="topics resume raw_a"):
            producer.send(b"no", timeout=0)
        assert execute("topics", "resume", "raw_a", *where).code == 0
        assert producer.send(b"yes", timeout=20).result(20) == 10
        assert execute("groups", "pause", "g", "raw_a", *where).out == "group 'g' of raw_a paused\n"
        assert "paused" in execute("groups", "list", *where).out
        assert consumer.poll(0) == []
        assert execute("groups", "resume", "g", "raw_a", *where).code == 0
        assert consumer.poll(20)
    missing = execute("groups", "pause", "h", "raw_a", *where)
    assert (missing.code, missing.err.count("\n")) == (2, 1) and "'h'" in missing.err
