"""A process that decodes dies, hangs, keeps dying; the program dies, is interrupted, closes: who notices it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes_kit import clip, seen, send, wait_for

from comux import Comux
from comux.errors import ConfigError
from comux.processes import workers

LIVE: dict[str, Any] = {"start": "beginning", "mode": "every_frame", "decode_threads": 1}


class Loop(threading.Thread):
    """Takes everything; remembers the indices of each source and the least of their pixels' sum."""

    def __init__(self, mux: Comux) -> None:
        super().__init__(daemon=True)
        self.mux = mux
        self.got: dict[str, list[tuple[int, int]]] = {}
        self.start()

    def run(self) -> None:
        for batch in self.mux:
            for item in batch:
                if item.array is not None:
                    row = (item.index, int(item.array.sum(dtype=np.int64)))
                    self.got.setdefault(str(item.cam_id), []).append(row)

    def count(self, cam: str) -> int:
        return len(self.got.get(cam, ()))


def stop(pid: int) -> None:
    """Stop every thread of a process, and return when they stand still."""
    os.kill(pid, signal.SIGSTOP)
    tasks = Path(f"/proc/{pid}/task")
    wait_for(lambda: all(" T " in (task / "stat").read_text() for task in tasks.iterdir()), what="its standstill")


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return text.rpartition(")")[2].split()[0] in "ZX"


def zlib_of(array: Any) -> int:
    return zlib.crc32(np.ascontiguousarray(array))


def place_of_once(mux: Comux, cam: str) -> dict[str, Any]:
    def there() -> Any:
        return next((p for p in mux.status()["decode_processes"] if cam in p["sources"] and p["pid"]), None)

    return dict(wait_for(there, what=f"a process of {cam}"))


def ended(mux: Comux) -> list[Any]:
    return [event for event in mux.events.recent("decoding.process") if event.data["state"] == "ended"]


def test_a_process_that_is_killed_takes_only_its_sources_with_it_for_a_moment(address: str, topic: Any) -> None:
    packets = clip("h264", 180)
    producers = {cam: topic(cam) for cam in ("a", "b")}

    for producer in producers.values():
        for packet in packets:
            send(producer, packet)
        producer.end()
    with Comux(["a", "b"], address=address, **LIVE) as mux:
        right = {row[0]: row for row in seen(mux)["a"]}
    with Comux(["a", "b"], address=address, **LIVE, on_end="wait", decode_processes=2) as mux:
        victim, other = place_of_once(mux, "a"), place_of_once(mux, "b")
        assert victim["pid"] != other["pid"]
        wait_for(lambda: mux.accounts()["a"].held.get("decoder"), what="B-frames in the decoder")
        got: dict[str, dict[int, int]] = {"a": {}, "b": {}}

        def take(until: Any) -> None:
            while not until():
                for item in mux.get_batch(timeout=0.2):
                    if item.array is not None:
                        assert item.index not in got[item.cam_id], "no picture twice"
                        got[item.cam_id][item.index] = zlib_of(item.array)

        take(lambda: len(got["a"]) >= 40)  # 64 wait at most, so it is not through with its 180
        quiet: list[Any] = []
        mux.events.listen(lambda event: quiet.append(event) if event.source == "b" else None)
        os.kill(victim["pid"], signal.SIGKILL)
        take(lambda: len(got["b"]) == 180 and mux.status()["sources"]["a"]["state"] == "ENDED")
        account = mux.accounts()
        events = mux.events.recent("source.state", "a")
        died = [event for event in mux.events.recent("decoding.process") if event.data["state"] == "ended"]
    assert account["b"].delivered == 180, "the other one's source lost nothing"
    states = {str(event.data["new"]) for event in quiet if event.kind == "source.state"}
    assert states <= {"RUNNING", "ENDED"}
    assert all(row == right[index][6] for index, row in got["a"].items()), "every picture that came is right"
    assert account["a"].balanced
    assert account["a"].dropped["failed"] >= 1
    assert account["a"].delivered + account["a"].dropped_total == 180
    assert account["a"].delivered >= 180 - 15 - account["a"].dropped["failed"], "it went on at the next keyframe"
    lost = [event for event in events if event.data["new"] == "RECONNECTING"]
    assert len(lost) == 1
    assert f"its decode process {victim['pid']} was ended by SIGKILL" in lost[0].message
    assert len(died) == 1
    assert died[0].data["sources"] == ["a"]


def test_one_that_keeps_dying_is_started_after_growing_pauses_and_nobody_else_minds(address: str, topic: Any) -> None:
    producers = {cam: topic(cam, finite=False) for cam in ("a", "b")}
    packets = clip("h264", 60)
    with Comux(["a", "b"], address=address, **LIVE, decode_processes=2) as mux:
        loop = Loop(mux)
        deaths = []
        for n in range(4):
            pid = place_of_once(mux, "a")["pid"]
            os.kill(pid, signal.SIGKILL)
            send(producers["a"], packets[0])  # it is seen when the next packet is to be decoded
            wait_for(lambda n=n: len(ended(mux)) > n, what=f"death {n}")
            deaths.append(ended(mux)[-1])
        assert [event.data["failures"] for event in deaths] == [1, 2, 3, 4]
        pauses = [event.data["pause"] for event in deaths]
        assert pauses[0] == 0.0
        assert 0 < pauses[1] < pauses[2] < pauses[3]
        for packet in packets:
            for producer in producers.values():
                send(producer, packet)
        wait_for(lambda: loop.count("b") >= 58, what="pictures of the other")
        wait_for(lambda: loop.count("a") >= 58, what="pictures of the one that died")
        assert mux.status()["sources"]["b"]["restarts"] == 0
        assert all(account.balanced for account in mux.accounts().values())
        mux.stop()
        loop.join(10)


def test_one_that_hangs_is_killed(address: str, topic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_PATIENCE", 2)
    producer = topic("a", finite=False)
    packets = clip("h264", 60, bframes=0)
    with Comux(["a"], address=address, **LIVE, decode_processes=1) as mux:
        loop = Loop(mux)
        for packet in packets[:30]:
            send(producer, packet)
        wait_for(lambda: loop.count("a") == 30)
        pid = place_of_once(mux, "a")["pid"]
        stop(pid)
        for packet in packets[30:]:
            send(producer, packet)
        wait_for(lambda: gone(pid), what="its end")
        wait_for(lambda: loop.count("a") == 45, what="the pictures from the next keyframe on")
        assert "did not answer within 2 s and was killed" in ended(mux)[0].message
        account = mux.accounts()["a"]
        assert account.dropped == {"failed": 1, "resync": 14}
        mux.stop()
        loop.join(10)


def test_close_does_not_wait_for_one_that_hangs(address: str, topic: Any) -> None:
    producer = topic("a", finite=False)
    packets = clip("h264", 30, bframes=0)
    with Comux(["a"], address=address, **LIVE, decode_processes=1) as mux:
        for packet in packets[:10]:
            send(producer, packet)
        wait_for(lambda: mux.accounts()["a"].held.get("pictures") == 10)
        pid = place_of_once(mux, "a")["pid"]
        stop(pid)
        send(producer, packets[10])
        wait_for(lambda: mux.accounts()["a"].held.get("decoder") == 1)
    assert gone(pid)
    account = mux.accounts()["a"]
    assert account.balanced
    assert account.held_total == 0
    assert account.dropped["closed"] + account.dropped.get("failed", 0) == 11


PROGRAM = """
    import sys, threading
    from comux import Comux, TopicSpec, connect
    from processes_kit import clip, send

    with connect("memory://dies") as broker:
        broker.create_topic(TopicSpec("raw_a", records=4096))
        producer = broker.producer("raw_a")
        packets = clip("h264", 30)
        with Comux(["a"], address="memory://dies", start="beginning", decode_processes=2) as mux:
            for packet in packets:
                send(producer, packet)
            while not mux.read("a"):
                pass
            print(*mux._core.processes.pids(), flush=True)
            threading.Event().wait(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_program_that_ends_takes_its_processes_along(number: signal.Signals) -> None:
    kit = str(Path(__file__).resolve().parents[1] / "kit")
    environment = {**os.environ, "PYTHONPATH": kit}
    program = subprocess.Popen(
        [sys.executable, "-P", "-c", textwrap.dedent(PROGRAM)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        process_group=0,
    )
    try:
        assert program.stdout is not None and program.stderr is not None
        line = program.stdout.readline()
        assert line.strip(), program.stderr.read()
        pids = [int(word) for word in line.split()]
        assert len(pids) == 1
        program.send_signal(number)
        program.wait(20)
        wait_for(lambda: all(gone(pid) for pid in pids), 20, what="their end")
    finally:
        program.kill()
        program.communicate()


def test_the_end_of_a_program_needs_no_close(address: str, topic: Any) -> None:
    """Dropped without ``close``: as any Comux, it ends what it started."""
    producer = topic("a", finite=False)
    send(producer, clip("h264", 30)[0])
    mux = Comux(["a"], address=address, **LIVE, decode_processes=1)
    mux.start()
    pid = place_of_once(mux, "a")["pid"]
    end = mux._end
    del mux
    end()
    assert gone(pid)


def test_a_listener_may_ask_what_it_likes(address: str, topic: Any) -> None:
    """It is called in the thread that saw the death, and holds nothing up."""
    producer = topic("a", finite=False)
    packets = clip("h264", 30, bframes=0)
    heard: list[Any] = []
    with Comux(["a"], address=address, **LIVE, decode_processes=1) as mux:
        loop = Loop(mux)
        mux.events.listen(lambda event: heard.append((event.kind, mux.status()["decode_processes"])))
        os.kill(place_of_once(mux, "a")["pid"], signal.SIGKILL)
        for packet in packets:
            send(producer, packet)
        wait_for(lambda: [1 for kind, places in heard if kind == "decoding.process" and places[0]["failures"] == 1])
        wait_for(lambda: loop.count("a") >= 15)
        mux.stop()
        loop.join(10)


def test_a_program_that_cannot_start_processes_says_so_and_tries_again(
    address: str, topic: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    works, calls = subprocess.Popen, []

    def refuses(*arguments: Any, **words: Any) -> Any:
        calls.append(1)
        if len(calls) < 3:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return works(*arguments, **words)

    monkeypatch.setattr(workers.subprocess, "Popen", refuses)
    producer = topic("a", finite=False)
    for packet in clip("h264", 30, bframes=0):
        send(producer, packet)
    with Comux(["a"], address=address, **LIVE, decode_processes=1) as mux:
        wait_for(lambda: mux.accounts()["a"].held.get("pictures") == 30)
        reasons = [event.message for event in mux.events.recent("source.state", "a")]
        assert any("no decode process can be started: [Errno 11]" in reason for reason in reasons)


# -- memory --------------------------------------------------------------------------------------------------------


def test_an_array_stays_what_it_is_while_somebody_holds_it_and_is_recycled_after(address: str, topic: Any) -> None:
    producer = topic("a")
    packets = clip("h264", 180, bframes=0)
    for packet in packets:
        send(producer, packet)
    producer.end()
    with Comux(["a"], address=address, **LIVE, decode_processes=1) as mux:
        decoder = wait_for(lambda: mux._core.find("a")._decoding.decoder)
        held = [mux.read("a").array for _ in range(40)]
        sums = [int(array.sum()) for array in held]
        assert decoder._slots.lent >= 40
        view = held[3][10:20, 5:]
        before = view.copy()
        for _ in range(60):
            mux.read("a")
        assert [int(array.sum()) for array in held] == sums, "nobody wrote into them"
        most = decoder.shared_bytes
        del held
        for _ in range(70):
            mux.read("a")
        assert np.array_equal(view, before), "a view keeps its array"
        assert decoder.shared_bytes <= most
        wait_for(lambda: decoder._slots.lent <= 70)
        mux.close()
        assert np.array_equal(view, before), "also after the end"


def test_memory_of_a_slow_loop_is_bounded_and_given_back(address: str, topic: Any) -> None:
    producer = topic("a", finite=False)
    packets = clip("h264", 180, bframes=0)
    frame = 160 * 120 * 3
    with Comux(["a"], address=address, **LIVE, decode_processes=1, store_bytes=40 * frame) as mux:
        for packet in packets:
            send(producer, packet)
        wait_for(lambda: mux._core.find("a").store.blocked)
        decoder = mux._core.find("a")._decoding.decoder
        assert 40 * frame < decoder._slots.nbytes <= 64 * (frame + 4096), "segments of 16 slots"
        for _ in range(180):
            assert mux.read("a").array is not None
        send(producer, packets[0])
        wait_for(lambda: mux.accounts()["a"].received == 181)
        wait_for(lambda: decoder._slots.nbytes <= 16 * (frame + 4096), what="what idles is let go")


# -- settings ------------------------------------------------------------------------------------------------------


def test_wrong_settings() -> None:
    for wrong in (-1, 1.5, True, "many", None):
        with pytest.raises(ConfigError, match="decode_processes"):
            Comux(["a"], address="memory://wrong", decode_processes=wrong)
    with pytest.raises(ConfigError, match="decoder_factory"):
        Comux(["a"], address="memory://wrong", decode_processes=1, decoder_factory=lambda options: None)


@pytest.mark.parametrize(("word", "count"), [("3", 3), ("auto", None), ("0", 0)])
def test_in_a_cameras_file(tmp_path: Path, word: str, count: int | None) -> None:
    path = tmp_path / "cameras.yaml"
    path.write_text(f"address: memory://file\ndecode_processes: {word}\ncameras: [a]\n")
    mux = Comux(path)
    processes = mux._core.processes
    assert processes.auto is (count is None)
    assert processes.count == count or count is None
    mux.close()
    path.write_text("address: memory://file\ndecode_processes: some\ncameras: [a]\n")
    with pytest.raises(ConfigError, match="decode_processes"):
        Comux(path)


def test_what_a_decoder_is_wrong_about_is_an_error_before_anything_starts(address: str, topic: Any) -> None:
    topic("a")
    with pytest.raises(ConfigError, match="hwaccel"):
        Comux(["a"], address=address, decode_processes=1, hwaccel="nothing").start()


def test_update_goes_on_with_the_decoder_and_its_process(address: str, topic: Any) -> None:
    """Another size needs no keyframe, there as here; the process stays."""
    packets = clip("h264", 60, gop=60)
    found = []
    for processes in (0, 1):
        cam = f"u{processes}"
        producer = topic(cam, finite=False)
        with Comux([cam], address=address, **LIVE, decode_processes=processes) as mux:
            for packet in packets[:30]:
                send(producer, packet)
            wait_for(lambda mux=mux, cam=cam: mux.accounts()[cam].held.get("decoder", 0) < 3)
            wait_for(lambda mux=mux, cam=cam: sum(mux.accounts()[cam].held.values()) == 30)
            first = [mux.read(cam).array.shape for _ in range(20)]
            pids = mux._core.processes.pids()
            mux.update(cam, W=80, H=60, rate=None)
            for packet in packets[30:]:
                send(producer, packet)
            producer.end()
            wait_for(lambda mux=mux, cam=cam: mux.status()["sources"][cam]["state"] == "ENDED")
            rest = []
            while item := mux.read(cam, timeout=0):
                rest.append((item.index, zlib_of(item.array), item.array.shape))
            assert mux._core.processes.pids() == pids
            found.append((first, rest, mux.accounts()[cam]))
    assert found[0] == found[1]
    assert len(found[0][1]) >= 30
