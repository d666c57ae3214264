"""``decode_processes="auto"``: the decision by numbers, moves that lose nothing, and once beside a busy loop."""

from __future__ import annotations

import itertools
import sys
import threading
import time
import zlib
from typing import Any

import numpy as np
import pytest
from processes_kit import clip, send, wait_for

from comux import Comux
from comux.decoders.interface import DecoderOptions
from comux.decoders.registry import create_decoder
from comux.errors import DecoderLostError
from comux.processes import DecodeProcesses, RemoteDecoder, moving
from comux.processes.moving import Judge, Mover, Window
from comux.records import Record

MS = 1_000_000


def window(
    held_ms: float, *, packets: int = 30, work_ms: float = 4.0, queued_ms: float = 0.0, samples: int = 8
) -> Window:
    """A second of a camera whose packets take so long each."""
    seen = Window(1000 * MS, packets)
    for _ in range(samples):
        seen.add(int((held_ms + work_ms + queued_ms) * MS), int(work_ms * MS), int(queued_ms * MS))
    return seen


def mean_of(some: int, held_ms: float, more: int, much_ms: float) -> Window:
    seen = window(held_ms, samples=some)
    for _ in range(more):
        seen.add(int(much_ms * MS), 4 * MS, 0)
    return seen


@pytest.mark.parametrize(
    ("what", "seen", "held_up"),
    [
        ("nobody else", window(0.05), False),
        ("a busy interpreter: two waits of 5 ms a packet", window(10), True),
        ("sixteen cameras and a model", window(60, work_ms=2), True),
        ("an interpreter that is busy one time in five", window(2), False),
        ("a short switch interval", window(0.6), False),
        ("other programs take the cores", window(0.1, queued_ms=40), False),
        ("both, and the cores are the greater trouble by far", window(5, queued_ms=40), False),
        ("a large picture: waiting is the lesser part", window(6, work_ms=12), False),
        ("one picture a second: nobody is held up by 10 ms", window(10, packets=1, samples=5), False),
        ("five pictures a second", window(9, packets=5, samples=5), False),
        ("one packet stood still for seconds, in a debugger", mean_of(9, 0.1, 1, 8000), False),
        ("a kernel that does not say", Window(1000 * MS, 30), False),
        ("nothing came", Window(1000 * MS), False),
    ],
)
def test_when_the_interpreter_is_the_limit(what: str, seen: Window, held_up: bool) -> None:
    assert seen.held_up is held_up, what


def test_one_bad_second_decides_nothing() -> None:
    judge = Judge()
    bad, good = window(10), window(0.1)
    assert [judge.see(each) for each in (bad, bad, good, bad, bad, bad, bad, good)] == [
        *(False, False, False, False, False, True, True, False)
    ]


def test_the_kernel_says_how_long_a_thread_waited_for_a_core() -> None:
    first = moving.queued_ns()
    if first is None:
        pytest.skip("this kernel has no schedstat: auto stays with threads here, as the table above says")
    sum(range(100_000))
    assert moving.queued_ns() >= first


class AtOnce(Judge):
    """Takes every window for one that was held up."""

    def see(self, window: Window) -> bool:
        del window
        return True


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every source moves at the first keyframe it can move at, once its process is ready."""
    monkeypatch.setattr(moving, "Judge", AtOnce)
    monkeypatch.setattr(moving, "WINDOW_NS", 0)
    monkeypatch.setattr(moving, "SAMPLES_LEAST", 0)


@pytest.mark.parametrize("options", [{}, {"rate": 7.0}, {"W": 80, "H": 60, "array_format": "gray"}])
@pytest.mark.parametrize("codec", ["h264", "hevc", "mjpeg"])
def test_a_move_loses_no_picture_and_no_book(
    address: str, topic: Any, at_once: None, codec: str, options: dict[str, Any]
) -> None:
    packets = clip(codec, 180)
    found = []
    for cam, setting in (("a", 0), ("b", "auto")):
        producer = topic(cam, finite=False)
        words = {"start": "beginning", "mode": "every_frame", "codec": codec, **options}
        with Comux([cam], address=address, decode_processes=setting, **words) as mux:
            got: list[Any] = []
            for n, packet in enumerate(packets):
                send(producer, packet)
                take(mux, cam, got)
                if n == 40 and setting:
                    wait_for(lambda mux=mux, cam=cam, got=got: take(mux, cam, got) or ready(mux), what="its process")
            producer.end()
            wait_for(lambda mux=mux, cam=cam, got=got: take(mux, cam, got) or state(mux, cam) == "ENDED")
            take(mux, cam, got)
            moved = [event for event in mux.events.recent("decoding.moved") if event.data["moved"]]
            assert len(moved) == (1 if setting else 0)
            assert all(event.data["offset"] % 15 == 0 or codec == "mjpeg" for event in moved)
            found.append((got, mux.accounts()[cam], mux._core.find(cam).damage))
    assert found[0] == found[1]
    assert len(found[0][0]) == found[0][1].delivered > 30


@pytest.mark.parametrize("fails", ["apart", "select"])
def test_a_process_that_dies_while_a_source_moves_there(
    address: str, topic: Any, at_once: None, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """Before it has the decoder: the source stays, with every picture. After: as when it dies later."""
    holder = DecodeProcesses if fails == "apart" else RemoteDecoder
    works, calls = getattr(holder, fails), []

    def once(self: Any, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise DecoderLostError("its decode process 1 was ended by a test")
        return works(self, *arguments)

    monkeypatch.setattr(holder, fails, once)
    producer = topic("a", finite=False)
    got: list[Any] = []
    with Comux(["a"], address=address, start="beginning", mode="every_frame", decode_processes="auto") as mux:
        for n, packet in enumerate(clip("h264", 180)):
            send(producer, packet)
            take(mux, "a", got)
            if n == 40:
                wait_for(lambda: take(mux, "a", got) or ready(mux), what="its process")
        producer.end()
        wait_for(lambda: take(mux, "a", got) or state(mux, "a") == "ENDED")
        take(mux, "a", got)
        moved = [event.data["moved"] for event in mux.events.recent("decoding.moved")]
        account = mux.accounts()["a"]
    assert account.balanced
    assert account.held_total == 0
    assert len({row[0] for row in got}) == len(got) == account.delivered
    if fails == "apart":
        assert moved[0] is False
        assert account.delivered == 180
    else:
        assert moved == [True]
        assert account.dropped["failed"] == 1
        assert account.delivered == 180 - account.dropped_total >= 180 - 15


def take(mux: Comux, cam: str, got: list[Any]) -> None:
    """Everything that waits."""
    while item := mux.read(cam, timeout=0):
        got.append((item.index, item.timestamps.capture, zlib.crc32(np.ascontiguousarray(item.array))))


def state(mux: Comux, cam: str) -> str:
    return str(mux.status()["sources"][cam]["state"])


def ready(mux: Comux) -> bool:
    """The process that a source may move to has said that it is ready."""
    places = mux._core.processes._places
    return any(place.process is not None and place.process.ready for place in places)


def test_sources_move_one_after_another(
    address: str, topic: Any, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    works, turns = DecodeProcesses.take_turn, []

    def noting(self: DecodeProcesses) -> bool:
        before = time.monotonic()
        taken = works(self)
        if taken:
            turns.append((before, time.monotonic()))
        return taken

    monkeypatch.setattr(DecodeProcesses, "take_turn", noting)
    cams = ["a", "b", "c"]
    producers = {cam: topic(cam, finite=False) for cam in cams}
    packets = clip("mjpeg", 30)
    stop = threading.Event()

    def publish() -> None:
        n = 0
        while not stop.wait(0.01):
            for producer in producers.values():
                producer.send(packets[n % 30].data)
            n += 1

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        with Comux(cams, address=address, codec="mjpeg", decode_processes="auto") as mux:

            def moves() -> list[Any]:
                mux.get_batch(timeout=0.1)
                return [event for event in mux.events.recent("decoding.moved") if event.data["moved"]]

            events = wait_for(lambda: found if len(found := moves()) == 3 else None)
            assert {event.source for event in events} == set(cams)
            assert len(turns) == 3
            assert all(later[1] - earlier[0] >= 1.0 for earlier, later in itertools.pairwise(turns))
            assert all(account.balanced for account in mux.accounts().values())
            assert mux._core.processes.moves == 3
            # Changed afterwards, it stays where it is; made anew, it begins here again.
            mux.update("a", codec="mjpeg", max_pixels=10**6)
            wait_for(lambda: mux.get_batch(timeout=0.1)[0].array is not None)
            assert len(moves()) == 3
            mux.delete("b")
            assert "b" not in mux._core.processes._moved
    finally:
        stop.set()
        thread.join()


def test_no_move_where_a_fresh_decoder_would_lack_something() -> None:
    """An open GOP, a keyframe without its parameter sets, pieces of a stream, arrays: nowhere to begin."""
    closed, opened = clip("h264", 45), clip("h264", 45, open_gop=1)

    def places(packets: Any, **options: Any) -> list[int]:
        decoder = create_decoder(DecoderOptions(**options))
        try:
            records = [Record("t", n, 0, packet.data) for n, packet in enumerate(packets)]
            return [record.offset for record in records if decoder.begins_anew(record)]
        finally:
            decoder.close()

    assert places(closed) == [0, 15, 30]
    assert 0 in places(opened)
    assert set(places(opened)) <= {0, 15, 30}
    assert places(clip("mjpeg", 3), codec="mjpeg") == [0, 1, 2]
    assert places(clip("hevc", 45), codec="hevc")[0] == 0
    assert places(closed, framing="bytestream") == []
    assert places(closed, codec="raw") == []


def test_frame_threads_and_devices_are_not_judged() -> None:
    """They wait for something that is not the interpreter."""

    class Nothing:
        moves = 0

    mover = Mover("a", Nothing(), None)  # type: ignore[arg-type]
    mover._judge = AtOnce()
    for options in (DecoderOptions(threads=2), DecoderOptions(hwaccel="cuda")):
        mover._close_window(options)
        assert mover._limit is None
    mover._close_window(DecoderOptions())
    assert mover._limit is not None


def test_beside_a_loop_that_computes_in_python_a_camera_moves_by_itself(
    address: str, topic: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For real. The loop keeps the interpreter for 50 ms at a time instead of 5, so that it is plain on any machine;
    one window is enough, since what else computes here may hide the next."""
    if moving.queued_ns() is None:
        pytest.skip("this kernel has no schedstat")
    producer = topic("a", finite=False)
    packets = clip("h264", 60, "1280x720", bframes=0)
    monkeypatch.setattr(moving, "WINDOWS", 1)
    interval = sys.getswitchinterval()
    over = threading.Event()

    def publish() -> None:
        n = 0
        while not over.wait(1 / 60):
            packet = packets[n % 60]
            producer.send(packet.data, flags=1 if packet.keyframe else 0)
            n += 1

    feed = threading.Thread(target=publish)
    feed.start()
    try:
        with Comux(["a"], address=address, mode="freshest", decode_processes="auto") as mux:
            wait_for(lambda: mux.get_batch(timeout=0.5)[0].array is not None)

            def busy() -> None:
                total = 0
                while not over.is_set():
                    for number in range(1000):
                        total += number * number

            model = threading.Thread(target=busy)
            model.start()
            sys.setswitchinterval(0.05)
            try:
                event = wait_for(
                    lambda: next(iter(e for e in mux.events.recent("decoding.moved") if e.data["moved"]), None), 60
                )
                assert event.source == "a"
                assert event.data["held_ms"] >= 2
                assert "held up by the interpreter" in event.message
                before = mux.accounts()["a"].delivered
                wait_for(lambda: mux.get_batch(timeout=0.5) and mux.accounts()["a"].delivered > before + 20)
            finally:
                sys.setswitchinterval(interval)
                over.set()
                model.join()
    finally:
        over.set()
        feed.join()
