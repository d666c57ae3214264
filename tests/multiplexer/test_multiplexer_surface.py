"""The door: constructor forms, the first comux's program, bad input, control, fork, exit."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comux.control import send_command
from comux.errors import (
    ClosedError,
    ComuxError,
    ConfigError,
    ConnectError,
    UnknownAddressError,
    UnknownCodecError,
    UnknownSourceError,
    UnknownTopicError,
)
from comux.headers import decode_headers
from comux.multiplexer import Comux
from comux.transport import Broker

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_the_first_comux_documented_program_runs(address: str, feed: Any, fake: Any, broker: Broker) -> None:
    """Call by call as its README writes it; only the addresses (and the fake codec) are ours."""
    feeds = [feed(cam) for cam in ("cam1", "cam2")]
    servers = [address]
    acts = {"hello": lambda comux, value: f"hello {value}"}
    mux = Comux(["cam1", "cam2"], "raw_:cam_id", "stream_:cam_id", "ERROR", decoder_factory=fake)
    mux.setup_consumers(servers, overwrite=True, end=True, max_offset_diff=20, strict_on_fail=True, over_write=False)
    mux.setup_controller("config", servers, acts)
    mux.setup_decoders(rate=10, W=1920 // 40, H=1080 // 40, de_codec="h264", pix_fmt="yuv420p")
    mux.setup_producer(servers, strict_on_fail=True, over_write=False)
    mux.start()
    try:
        for f in feeds:
            f.send(1)
        sent = set()
        while len(sent) < 2:
            batch = mux.get_batch(timeout=10)
            for item in batch:
                cam_id, index, array = item
                if array is None:
                    continue
                assert array.shape == (27, 48, 3)
                mux.send(cam_id, index, {"mean": float(array.mean()), "cam": cam_id})
                sent.add(cam_id)
        mux.flush(5)
        for cam in ("cam1", "cam2"):
            record = broker.record_at(f"stream_{cam}", 0)
            assert record is not None
            assert decode_headers(record) == {"mean": 0.0, "cam": cam}
        assert send_command(broker, "config", "hello", "world", timeout=5)["ok"]
    finally:
        mux.close()


def test_reference_form_and_single_steps(address: str, feed: Any, fake: Any) -> None:
    f = feed("7")
    with Comux([7], [address], "control", [address], {}, end=False, max_offset_diff=20, decoder_factory=fake) as mux:
        f.send(1)
        assert mux.read(7, timeout=5).index == 0
        assert mux.get_topic_from_cam_id(7, "consume") == "raw_7"
        assert mux.get_topic_from_cam_id(7, "produce") == "stream_7"
        assert mux.get_cam_id_from_topic("raw_7") == mux.get_cam_id_from_topic("stream_7") == 7
        with pytest.raises(UnknownSourceError):
            mux.get_cam_id_from_topic("raw_8")
        assert mux.controller is not None


def test_mappings_and_connecting(address: str, feed: Any, fake: Any, broker: Broker) -> None:
    feeds = {cam: feed(cam) for cam in ("a", "b", "c")}
    mux = Comux(list(feeds), address=address, mode="every_frame", decoder_factory=fake)
    with mux:
        pass
    mux = Comux(list(feeds), address=address, mode="every_frame", decoder_factory=fake)
    try:
        consumer = mux.connect("a")
        assert (consumer.offset, consumer.topic_last_offset) == (0, 0)
        with pytest.raises(NameError):
            mux.connect("a", overwrite=False)
        mux.connect_all()
        assert set(mux.consumers) == {"a", "b", "c"}
        with pytest.raises(NameError):
            mux.setup_consumers([address], replace=False)
        for f in feeds.values():
            f.send(5)
        thread = mux.listen(consumer)
        assert thread.is_alive()
        assert mux.read("a", timeout=5).index == 0
        mux.threads["a"] = thread
        mux.threads["a"] = None
        assert mux.threads["a"] is not thread
        mux.consumers["b"] = broker.consumer("raw_b", start="beginning", on_end="wait")
        assert mux.read("b", timeout=5).index == 0
        with pytest.raises(ConfigError):
            mux.threads["b"] = threading.Thread()
        del mux.consumers["b"]
        del mux.threads["c"]
        assert mux.cam_ids == ("a",)
        with pytest.raises(KeyError):
            mux.consumers["b"]
        assert len(mux.threads) == 1
    finally:
        mux.close()


BAD: list[tuple[type[ComuxError], str, dict[str, Any]]] = [
    (ConfigError, "empty", {"cam_ids": []}),
    (ConfigError, "duplicate", {"cam_ids": ["a", "a"]}),
    (ConfigError, "duplicate", {"cam_ids": [1, "1"]}),
    (ConfigError, "empty", {"cam_ids": ["a", ""]}),
    (ConfigError, "list", {"cam_ids": "a"}),
    (ConfigError, "cam_id", {"consume_schema": "raw_cam"}),
    (ConfigError, "cam_id", {"produce_schema": ":cam_id:cam_id"}),
    (UnknownCodecError, "nosuch", {"codec": "nosuch"}),
    (ConfigError, "W", {"W": -1}),
    (ConfigError, "array_format", {"array_format": "cmyk"}),
    (ConfigError, "dtype", {"codec": "raw", "dtype": "notatype"}),
    (ConfigError, "mode", {"mode": "newest"}),
    (ConfigError, "emit", {"emit": "some"}),
    (ConfigError, "emit_wait", {"emit": "all", "emit_wait": -1}),
    (ConfigError, "send_timeout", {"send_timeout": "soon"}),
    (ConfigError, "header_schema", {"header_schema": 5}),
    (ConfigError, "log_level", {"log_level": "LOUD"}),
    (ConfigError, "share_frames", {"share_frames": "frames"}),
    (ConfigError, "db_database is missing: cameras from MongoDB need", {"db_url": "mongodb://x"}),
    (ConfigError, "cam_ids of type list and db_url=", {"db_url": "mongodb://x", "db_database": "lab"}),
    (ConfigError, "control_topic", {"acts": {}}),
    (UnknownAddressError, "nonsense", {"address": "nonsense"}),
    (UnknownAddressError, "feed", {"address": "rtsp://camera"}),
    (ConfigError, "max_offset_dif", {"max_offset_dif": 3}),
    (UnknownTopicError, "raw_missing", {"cam_ids": ["missing", "alsomissing"]}),
]


@pytest.mark.parametrize(("kind", "text", "options"), BAD, ids=[f"{kind.__name__}-{text}" for kind, text, _ in BAD])
def test_bad_input_is_one_clear_error_and_nothing_is_left(
    address: str, feed: Any, broker: Broker, kind: type[ComuxError], text: str, options: dict[str, Any]
) -> None:
    feed("a")
    before = (set(threading.enumerate()), broker.topics())
    arguments = {"cam_ids": ["a"], "address": address, **options}
    with pytest.raises(kind, match=text) as raised, Comux(arguments.pop("cam_ids"), **arguments):
        raise AssertionError("it started")
    assert "\n" not in str(raised.value)
    assert (set(threading.enumerate()), broker.topics()) == before


def test_all_missing_topics_are_named_at_once(address: str) -> None:
    with pytest.raises(UnknownTopicError, match=r"2 sources.*raw_a.*raw_b"):
        Comux(["a", "b"], address=address).start()


def test_a_cluster_where_nobody_listens_is_one_clear_error() -> None:
    with pytest.raises(ConnectError, match=r"2 sources.*kafka://127\.0\.0\.1:1: nobody listens.*strict_on_fail"):
        Comux(["a", "b"], address="kafka://127.0.0.1:1").start()


def test_sources_from_yaml_with_settings_of_their_own(address: str, feed: Any, fake: Any, tmp_path: Path) -> None:
    feeds = [feed("cam1"), feed("gate")]
    path = tmp_path / "cameras.yaml"
    path.write_text("cameras:\n  - cam1\n  - {cam_id: gate, W: 32, H: 24, mode: every_frame}\n")
    with Comux(path, address=address, decoder_factory=fake, W=64) as mux:
        for f in feeds:
            f.send(1)
        shapes = {item.cam_id: item.array.shape for item in mux.get_batch(timeout=10, min_items=2)}
    assert shapes == {"cam1": (8, 64, 3), "gate": (24, 32, 3)}


def test_control_creates_updates_deletes_and_answers(
    address: str, feed: Any, fake: Any, broker: Broker, wait_for: Any
) -> None:
    seen: list[Any] = []
    one, two = feed("one"), feed("two")
    with Comux(
        ["one"],
        address=address,
        decoder_factory=fake,
        control_topic="config",
        acts={"note": lambda c, v: seen.append(v)},
    ) as mux:
        assert send_command(broker, "config", "create", {"cam_id": "two", "mode": "every_frame"}, timeout=10)["ok"]
        for f in (one, two):
            f.send(3)
        assert mux.get_batch(timeout=10, min_items=2).cam_ids == ("one", "two")
        assert send_command(broker, "config", "update", {"cam_id": "two", "W": 32}, timeout=10)["ok"]
        two.send(10)
        wait_for(lambda: (item := mux.get("two")).array is not None and item.array.shape[1] == 32)
        status = send_command(broker, "config", "status", None, timeout=10)
        assert status["ok"]
        assert send_command(broker, "config", "pause", {"cam_id": "one"}, timeout=10)["ok"]
        wait_for(lambda: mux.status()["sources"]["one"]["state"] == "PAUSED")
        assert not send_command(broker, "config", "create", {"cam_id": "one"}, timeout=10)["ok"]
        assert not send_command(broker, "config", "delete", {"cam_id": "nobody"}, timeout=10)["ok"]
        assert send_command(broker, "config", "note", {"x": 1}, timeout=10)["ok"]
        assert send_command(broker, "config", "delete", {"cam_id": "two"}, timeout=10)["ok"]
        assert mux.get_batch(timeout=0).cam_ids == ("one",)
        assert seen == [{"x": 1}]


def test_shared_frames_are_read_without_decoding_again(
    address: str, feed: Any, fake: Any, broker: Broker, wait_for: Any
) -> None:
    f = feed("a", gop=10)
    with Comux(["a"], address=address, decoder_factory=fake, share_frames=True, mode="every_frame") as mux:
        f.send(1)
        assert mux.read("a", timeout=5).index == 0
        wait_for(lambda: "frames_a" in broker.topics())
        reader = Comux(
            ["a"],
            address=address,
            consume_schema="frames_:cam_id",
            codec="frames",
            mode="every_frame",
            start="beginning",
        )
        with reader:
            f.send(6)
            items = [reader.read("a", timeout=10) for _ in range(7)]
            assert [item.index for item in items] == list(range(7))
            assert all((item.array == item.index).all() for item in items)
            original = broker.record_at("raw_a", 3)
            assert original is not None
            assert items[3].record.value == original.value
            assert items[3].record.topic == "raw_a"
            reader.send(items[3], {"n": 3}).result(5)
    record = broker.record_at("stream_a", 0)
    assert record is not None
    assert (record.value, decode_headers(record)) == (original.value, {"n": 3})


def test_a_forked_child_gets_a_clear_error(address: str, feed: Any, fake: Any) -> None:
    feed("a")
    with Comux(["a"], address=address, decoder_factory=fake) as mux:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            answers = []
            for call in (mux.get_batch, mux.status, mux.accounts, lambda: mux.send("a", 0, {})):
                try:
                    call()
                    answers.append("no error")
                except ClosedError:
                    answers.append("closed")
                except BaseException as exc:  # noqa: BLE001 - the child must reach _exit
                    answers.append(repr(exc))
            mux.close()
            os.write(writing, ",".join(answers).encode())
            os._exit(0)
        os.close(writing)
        answer = os.read(reading, 1000)
        os.close(reading)
        os.waitpid(pid, 0)
        assert answer == b"closed,closed,closed,closed"
        assert mux.get_batch(timeout=0).cam_ids == ("a",)


@pytest.mark.parametrize("ending", ["", "del cameras", "sys.exit(0)", "raise SystemExit(0)"])
def test_a_program_that_forgets_close_still_ends(ending: str) -> None:
    program = textwrap.dedent(
        f"""
        import sys
        import comux
        from comux.transport import TopicSpec
        broker = comux.connect("memory://exit")
        for cam in "abcd":
            broker.create_topic(TopicSpec("raw_" + cam))
        cameras = comux.Comux(list("abcd"), address="memory://exit", control_topic="config", emit="all")
        cameras.start()
        cameras.get_batch(timeout=0.1)
        print("done", flush=True)
        {ending}
        """
    )
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parent,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    assert time.monotonic() - begin < 30


def test_a_manager_that_is_let_go_ends_its_threads(address: str, feed: Any, fake: Any, wait_for: Any) -> None:
    import gc

    feed("a")
    mux = Comux(["a"], address=address, decoder_factory=fake)
    mux.start()
    thread = mux.threads["a"]
    del mux
    gc.collect()
    wait_for(lambda: not thread.is_alive())


def test_paused_sources_and_a_waiting_call_cost_no_cpu(address: str, feed: Any, fake: Any, wait_for: Any) -> None:
    cams = ["a", "b", "c", "d"]
    for cam in cams:
        feed(cam)
    with Comux(cams, address=address, decoder_factory=fake) as mux:
        for cam in cams:
            mux.pause(cam)
        before = time.process_time()
        mux.get_batch(timeout=2)
        assert time.process_time() - before < 0.2, "ten times more than is promised, for busy machines"


def test_status_is_json_and_counts(address: str, feed: Any, fake: Any) -> None:
    import json

    f = feed("a")
    with Comux(["a"], address=address, decoder_factory=fake, mode="every_frame") as mux:
        f.send(10)
        for _ in range(10):
            mux.read("a", timeout=5)
        status = json.loads(json.dumps(mux.status()))
    source = status["sources"]["a"]
    assert (source["state"], source["account"]["delivered"], source["lag"]) == ("RUNNING", 10, 0)
    assert source["size"] == [16, 8]
    assert source["age"] > 0
    assert status["total"]["balanced"]


def test_arrays_are_what_was_asked_for(address: str, feed: Any, fake: Any) -> None:
    f = feed("a")
    with Comux(["a"], address=address, decoder_factory=fake, W=20, H=10) as mux:
        f.send(1)
        array = mux.read("a", timeout=5).array
    assert (array.shape, array.dtype, array.flags.writeable) == ((10, 20, 3), np.uint8, True)
