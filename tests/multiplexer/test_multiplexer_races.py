"""What happens between two calls: windows, ends and updates that come at the wrong moment; each was a defect once."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from typing import Any

import pytest

from comux.account import Account
from comux.errors import EndOfStream, WaitTimeoutError
from comux.headers import decode_headers
from comux.multiplexer import Comux, State, Status
from comux.multiplexer import source as source_module
from comux.multiplexer.emit import Emitter
from comux.multiplexer.intake import Intake
from comux.multiplexer.results import Results, SendLimits
from comux.records import HEADER_SOURCE, Record
from comux.telemetry import EventLog
from comux.transport import Broker, TopicSpec


def test_the_window_ends_although_new_pictures_push_out_the_first(start: Any, feed: Any, wait_for: Any) -> None:
    fast, slow = feed("fast", gop=1), feed("slow", gop=1)
    mux = start(["fast", "slow"], mode="freshest", on_end="wait")
    slow.send()
    wait_for(lambda: mux.status()["sources"]["slow"]["state"] == State.RUNNING)
    assert mux.read("slow").index == 0
    over = threading.Event()

    def pour() -> None:
        while not over.wait(0.01):
            fast.send()

    pourer = threading.Thread(target=pour)
    pourer.start()
    try:
        wait_for(lambda: mux.status()["sources"]["fast"]["state"] == State.RUNNING)
        began = time.monotonic()
        batch = mux.get_batch(timeout=5, window=0.3)
        took = time.monotonic() - began
    finally:
        over.set()
        pourer.join()
    assert batch.of("fast") and batch.of("slow").status is Status.NO_NEW_FRAME
    assert 0.25 < took < 3, "the window, and not the time-out"


def test_a_topic_that_ends_between_connecting_and_starting_still_ends_the_source(
    address: str, feed: Any, fake: Any
) -> None:
    f = feed("a")
    with_end = Comux(["a"], address=address, decoder_factory=fake, start="beginning", mode="every_frame")
    try:
        with_end.connect("a")
        f.send(3)
        f.end()
        got = [with_end.read("a", timeout=5).index for _ in range(3)]
        assert got == [0, 1, 2]
        with pytest.raises(EndOfStream):
            with_end.get_batch(timeout=5)
    finally:
        with_end.close()


def test_a_topic_that_vanishes_before_the_start_leaves_no_handle(
    address: str, feed: Any, fake: Any, broker: Broker, wait_for: Any
) -> None:
    f = feed("a")
    feed("b")
    mux = Comux(["a", "b"], address=address, decoder_factory=fake, strict_on_fail=False)
    try:
        mux.connect("a")
        consumer = mux.consumers["a"].consumer
        f.producer.close()
        broker.delete_topic(f.topic, force=True)
        mux.start()
        wait_for(lambda: mux.status()["sources"]["a"]["state"] == State.RECONNECTING)
        wait_for(lambda: consumer._closed, what="the consumer that was connected is closed")
    finally:
        mux.close()


def test_an_update_before_the_first_packet_loses_none(start: Any, feed: Any, fake: Any) -> None:
    f = feed("a")
    mux = start(["a"], mode="every_frame")
    mux.pause("a")
    f.send(10)
    mux.update("a", W=32, H=24, paused=False)
    got = [mux.read("a", timeout=5).index for _ in range(10)]
    assert got == list(range(10)), "every packet after start() is received"


def test_an_update_keeps_a_pause_and_the_packets_that_can_be_sent(
    start: Any, feed: Any, broker: Broker, wait_for: Any
) -> None:
    f = feed("a", gop=1)
    mux = start(["a"], mode="every_frame")
    f.send(3)
    items = [mux.read("a", timeout=5) for _ in range(3)]
    mux.pause("a")
    mux.update("a", W=32, H=24)
    assert mux.send("a", items[2].index, {"n": 1}).result(5) == 0
    assert mux.send("a", items[1].index, {"n": 1}).result(5) == 1
    f.send(1)
    assert mux.read("a", timeout=0.2).status is Status.PAUSED
    mux.resume("a")
    assert mux.read("a", timeout=5).index == 3


def test_a_loop_does_not_spin_while_a_source_is_replaced(start: Any, feed: Any, fake: Any, wait_for: Any) -> None:
    f = feed("a")
    fake.gate = threading.Event()
    mux = start(["a"], mode="every_frame")
    f.send(1)
    wait_for(lambda: mux.accounts()["a"].held.get("decoder") == 1)
    updater = threading.Thread(target=mux.update, args=("a",), kwargs={"W": 32, "H": 24})
    updater.start()
    wait_for(lambda: mux._core.table.sources[0].replaced or mux._core.table.sources[0].thread is None)
    calls = 0
    try:
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            mux.get_batch(timeout=0.1)
            calls += 1
    finally:
        fake.gate.set()
        updater.join(10)
    assert calls < 20, "each call takes its time"
    f.send(9)
    f.send(1)
    assert mux.read("a", timeout=5).index == 10


def test_pausing_does_not_revive_what_has_ended(start: Any, feed: Any, wait_for: Any) -> None:
    f, _ = feed("a"), feed("b")
    mux = start(["a", "b"])
    f.send(3)
    f.end()
    wait_for(lambda: mux.status()["sources"]["a"]["state"] == State.ENDED)
    mux.pause("a")
    mux.resume("a")
    wait_for(lambda: mux.status()["sources"]["a"]["state"] == State.ENDED, 5, "it has still ended")


def test_pausing_a_finished_source_leaves_it_finished(start: Any, feed: Any, wait_for: Any) -> None:
    f = feed("a")
    mux = start(["a"], on_end="stop", start="beginning")
    f.send(3)
    f.end()
    wait_for(lambda: mux.status()["sources"]["a"]["state"] == State.ENDED)
    mux.pause("a")
    assert mux.status()["sources"]["a"]["state"] == State.ENDED
    mux.resume("a")
    assert mux.status()["sources"]["a"]["state"] == State.ENDED


def test_what_was_read_ahead_of_a_topic_is_forgotten_when_it_is_made_anew(broker: Broker) -> None:
    broker.create_topic(TopicSpec("t", records=64))
    producer = broker.producer("t")
    for n in range(30):
        producer.send(b"%d" % n)
    intake = Intake(Account(), 1 << 20, None)
    intake.consumer = broker.consumer("t", start="beginning")
    assert intake.newest_start(lambda record: record.offset == 25) == 25
    producer.close()
    intake.close()
    broker.delete_topic("t", force=True)
    broker.create_topic(TopicSpec("t", records=64))
    intake.forget("resync")
    intake.consumer = broker.consumer("t", start="beginning")
    assert intake.newest_start(lambda record: False) is None, "no such place in the new topic"
    intake.close()


def test_a_jump_that_is_cut_short_is_counted_once(broker: Broker) -> None:
    broker.create_topic(TopicSpec("t", records=64))
    producer = broker.producer("t")
    for n in range(30):
        producer.send(b"%d" % n)
    account = Account()
    intake = Intake(account, 1 << 20, None)
    intake.consumer = broker.consumer("t", start="beginning")
    assert intake.next(0) is not None
    intake.jump(20)
    intake.close()  # the engine failed right then; the source goes on at ``position``
    assert intake.position == 20
    intake.consumer = broker.consumer("t", start=intake.position)
    while intake.next(0) is not None:
        pass
    assert account.snapshot().received == 30
    assert account.snapshot().dropped == {"jumped": 19}
    intake.close()
    producer.close()


def test_emit_all_does_not_wait_for_room_that_only_it_can_make(
    start: Any, feed: Any, broker: Broker, wait_for: Any
) -> None:
    f = feed("a")
    mux = start(["a"], mode="every_frame", emit="all", emit_wait=0.2, max_in_flight=2, send_timeout=5)
    f.send(3)
    items = [mux.read("a", timeout=5) for _ in range(3)]
    began = time.monotonic()
    futures = [mux.send(item, {"n": item.index}) for item in items[1:]]
    assert [future.result(4) for future in futures] == [1, 2], "behind the packet without results"
    assert time.monotonic() - began < 4
    with broker.consumer("stream_a", start="beginning") as consumer:
        records = consumer.poll(5, 10)
    assert [record.header(HEADER_SOURCE) for record in records] == [b'["raw_a",0,%d]' % n for n in range(3)]
    assert [decode_headers(record) for record in records] == [{}, {"n": 1}, {"n": 2}]


def test_an_interrupt_after_a_result_is_out_counts_it_once(
    start: Any, feed: Any, broker: Broker, monkeypatch: Any
) -> None:
    f = feed("a")
    mux = start(["a"], mode="every_frame")
    f.send(1)
    item = mux.read("a", timeout=5)
    results = mux._core.results
    publish = results.publish

    def interrupted(*args: Any) -> None:
        publish(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(results, "publish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mux.send(item, {})
    monkeypatch.undo()
    account = results.account()
    assert (account.delivered, account.held_total, account.balanced) == (1, 0, True)
    mux.flush(1)


def test_close_while_pictures_are_converted_is_told_as_that(start: Any, feed: Any, fake: Any, wait_for: Any) -> None:
    from comux.multiplexer import assemble

    feeds = [feed(f"c{n}", gop=1) for n in range(2)]
    mux = start(["c0", "c1"], mode="freshest")
    for f in feeds:
        f.send()
    wait_for(lambda: all(len(s.store) for s in mux._core.table.sources))
    assembler = mux._core.assembler
    assembler.close()
    jobs: list[Any] = []
    for source in mux._core.table.sources:
        entry = source.store.oldest()
        assert entry is not None and entry.picture is not None
        shape, dtype = entry.picture.array_spec()
        jobs.append((assemble._Claim(source, [entry]), entry, mux._core.pool.take(shape, dtype)))
    least, assemble._PARALLEL_BYTES = assemble._PARALLEL_BYTES, 1
    try:
        assembler._run(jobs)
    finally:
        assemble._PARALLEL_BYTES = least  # type: ignore[misc]
    assert all(claim.array is not None for claim, _, _ in jobs)
    assert assembler._workers is None, "no thread is started any more"


def test_a_picture_that_does_not_know_its_shape_costs_only_itself(
    start: Any, feed: Any, wait_for: Any, monkeypatch: Any
) -> None:
    feeds = [feed(f"c{n}", gop=1) for n in range(2)]
    mux = start(["c0", "c1"], mode="freshest")
    for f in feeds:
        f.send()
    wait_for(lambda: all(len(s.store) for s in mux._core.table.sources))
    bad = mux._core.table.sources[0].store.oldest()
    assert bad is not None

    def broken() -> Any:
        raise RuntimeError("no idea")

    monkeypatch.setattr(bad.picture, "array_spec", broken)
    batch = mux.get_batch(timeout=5)
    assert batch.of("c0").status is Status.DECODE_ERROR
    assert batch.of("c1").array is not None
    assert mux.accounts()["c0"].dropped == {"decode_error": 1}


def test_an_update_between_two_lives_leaves_a_camera_a_camera(
    start: Any, feed: Any, broker: Broker, wait_for: Any
) -> None:
    f = feed("a", gop=1)
    mux = start(["a"], start="beginning", mode="every_frame")
    f.send(2)
    assert [mux.read("a", timeout=5).index for _ in range(2)] == [0, 1]
    f.end()
    f.producer.close()
    wait_for(lambda: mux.status()["sources"]["a"]["state"] == State.ENDED)
    mux.update("a", W=32, H=24)
    wait_for(lambda: mux.status()["sources"]["a"]["state"] == State.ENDED)
    assert not mux.status()["sources"]["a"]["finite"]
    f.producer = broker.producer(f.topic)
    f.send(1)
    assert mux.read("a", timeout=10).index == 2


def test_the_mode_of_the_first_call_is_kept_by_a_source_that_is_still_opening(
    address: str, feed: Any, fake: Any, monkeypatch: Any, wait_for: Any
) -> None:
    opening, known = threading.Event(), source_module.is_finite

    def slowly(*args: Any) -> bool:
        assert opening.wait(20)
        return known(*args)

    f = feed("a", gop=1)
    monkeypatch.setattr(source_module, "is_finite", slowly)
    with Comux(["a"], address=address, decoder_factory=fake) as mux:
        f.send(10)
        assert mux.get_batch(timeout=0, mode="every_frame")[0].index is None
        opening.set()
        wait_for(lambda: mux.accounts()["a"].received == 10)
        assert [mux.get_batch(timeout=5, mode="every_frame")[0].index for _ in range(10)] == list(range(10))


def test_emit_all_holds_a_bounded_number_of_bytes_while_the_engine_takes_none() -> None:
    events = EventLog()
    taking, entered = threading.Event(), threading.Event()
    out: list[int] = []

    class Stuck(Results):
        def pass_on(self, cam_id: Any, address: str, topic: str, record: Record) -> None:
            entered.set()
            assert taking.wait(20)
            out.append(record.offset)

    results = Stuck(lambda address: pytest.fail("no engine is needed"), events)
    emitter = Emitter(results, lambda cam_id: ("memory://", "t"), events, wait=0, max_bytes=10_000)
    try:
        for offset in range(200):
            emitter.received("a", Record("raw_a", offset, 1, bytes(1000)))
            assert offset or entered.wait(10), "the thread holds the first one"
            assert emitter.nbytes <= 20_000
    finally:
        taking.set()
        emitter.close()
    assert out == sorted(out) and 5 < len(out) < 50
    assert len(out) + sum(event.data["count"] for event in events.recent("results.overflow")) == 200


def test_what_emit_all_passes_on_keeps_to_the_limit_in_flight() -> None:
    sent: list[int] = []
    events = EventLog()

    class Slow:
        """A producer whose broker does not answer."""

        def send(self, value: Any, **rest: Any) -> Any:
            sent.append(1)
            return concurrent.futures.Future()

        def close(self) -> None: ...

    results = Results(lambda address: pytest.fail("open already"), events, limits=SendLimits(0.05, max_in_flight=3))
    results._outlets["memory://", "t"] = Slow()  # type: ignore[assignment]
    for offset in range(3):
        results.pass_on("a", "memory://", "t", Record("raw_a", offset, 1, b""))
    with pytest.raises(WaitTimeoutError):
        results.pass_on("a", "memory://", "t", Record("raw_a", 3, 1, b""))
    assert len(sent) == 3
    results.close()
