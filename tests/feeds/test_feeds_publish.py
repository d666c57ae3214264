"""Publishing: every packet one stamped record, paced, ended on purpose only, and counted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import crc32c
import numpy as np
import pytest

from comux.decoders.containers import write_video
from comux.decoders.encode import VideoEncoder
from comux.errors import ConfigError, DecodeError, EndOfStream, TopicExistsError, UnknownTopicError
from comux.feeds import publish, publish_arrays
from comux.feeds.scene import Scene
from comux.records import HEADER_CODEC, HEADER_CRC32C, HEADER_DTYPE, HEADER_FEED, HEADER_SEQUENCE, HEADER_SHAPE
from comux.transport import TopicSpec

SMALL = "synthetic://160x120@30?gop=10&camera=1"


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("feeds") / "video.mp4"
    scene = Scene(160, 120, 5, 1)
    with VideoEncoder("h264", 160, 120, 30, gop=10) as encoder:
        packets = [p for n in range(30) for p in encoder.encode(scene.picture(n), n)] + encoder.flush()
    write_video(path, "h264", 160, 120, 30, packets)
    return path


def test_records_carry_number_checksum_codec_key_time_and_flag(broker, records_of):
    before = time.time()
    report = publish(f"{SMALL}&frames=30", broker, "raw_cam1", pace="fast")
    records = records_of("raw_cam1")
    assert len(records) == 30 == report.records and report.ended and report.reason == "finished"
    for n, record in enumerate(records):
        assert record.offset == n and record.header(HEADER_SEQUENCE) == str(n).encode()
        assert record.header(HEADER_CRC32C) == f"{crc32c.crc32c(record.value):08x}".encode()
        assert record.header(HEADER_CODEC) == b"h264" and record.key == b"cam1"
        assert record.keyframe == (n % 10 == 0)
    times = sorted(r.timestamp_ns for r in records)
    assert np.diff(times) == pytest.approx(1e9 / 30, abs=1e3)
    # A feed of known length, published fast, lies in the past.
    assert before - 1.1 < times[0] / 1e9 and times[-1] / 1e9 < time.time()
    assert report.keyframes == 3 and report.bytes == sum(len(r.value) for r in records)
    assert report.account.balanced and report.account.delivered == 30
    assert json.loads(json.dumps(report.as_dict()))["records"] == 30


def test_topic_is_made_for_ten_seconds(broker):
    publish(f"{SMALL}&frames=1", broker, "cam", pace="fast")
    spec = broker.topic("cam").spec
    assert spec.records == 300 and spec.policy == "drop_oldest" and spec.data_bytes >= 1 << 20
    assert spec.metadata["codec"] == "h264" and spec.metadata["width"] == 160 and spec.metadata["finite"] is True
    publish(SMALL, broker, "live", pace="fast", frames=1)
    assert broker.topic("live").spec.metadata["finite"] is False


def test_faults_reach_the_topic_and_the_report(broker, records_of):
    faults = "missing@17,duplicate@23,swap@29,corrupt@31,cut@37"
    report = publish(f"{SMALL}&frames=200&faults={faults}", broker, "cam", pace="fast")
    records = records_of("cam")
    numbers = [int(r.header(HEADER_SEQUENCE)) for r in records]
    by_kind = {kind: [f.seq for f in report.faults if f.kind == kind] for kind in report.fault_counts}
    assert set(by_kind) == {"missing", "duplicate", "swap", "corrupt", "cut"}
    assert sorted(set(range(200)) - set(numbers)) == by_kind["missing"]
    assert sorted(n for n in set(numbers) if numbers.count(n) == 2) == by_kind["duplicate"]
    damaged = {
        int(r.header(HEADER_SEQUENCE)) for r in records if int(r.header(HEADER_CRC32C), 16) != crc32c.crc32c(r.value)
    }
    assert damaged == (set(by_kind["corrupt"]) | set(by_kind["cut"])) - set(by_kind["missing"])
    for seq in by_kind["swap"]:
        assert numbers.index(seq) > numbers.index(seq + 1)
    assert report.account.received == 200 + len(by_kind["duplicate"])
    assert report.account.dropped == {"missing": len(by_kind["missing"])} and report.account.balanced


def test_realtime_keeps_time_on_average(broker, records_of):
    report = publish(SMALL, broker, "cam", seconds=0.9)
    assert report.reason == "limit" and 20 <= report.records <= 28
    assert 0.75 < report.seconds < 30
    assert len(records_of("cam")) == report.records


def test_a_number_is_a_pace(broker, records_of):
    report = publish(f"{SMALL}&frames=60", broker, "cam", pace=120.0)
    assert report.records == 60 and 0.4 < report.seconds < 30
    times = sorted(r.timestamp_ns for r in records_of("cam"))
    assert (times[-1] - times[0]) / 1e9 == pytest.approx(59 / 120, rel=0.01)


def test_stall_is_a_pause(broker, records_of):
    report = publish(f"{SMALL}&frames=20&faults=stall@0.3s+0.5s", broker, "cam")
    gaps = np.diff(sorted(r.timestamp_ns for r in records_of("cam"))) / 1e9
    assert report.fault_counts["stall"] == 2 and report.seconds > 1.4
    assert sorted(gaps)[-2] == pytest.approx(0.5 + 1 / 30, abs=0.11)


def test_file_once_and_looped(broker, records_of, video):
    report = publish(str(video), broker, "once", pace="fast")
    assert report.records == 30 and report.reason == "finished"
    looped = publish(f"file://{video}?loop=1", broker, "looped", pace="fast", frames=75)
    assert looped.records == 75 and looped.reason == "limit"
    assert [r.value for r in records_of("looped")[30:60]] == [r.value for r in records_of("once")]
    assert [int(r.header(HEADER_SEQUENCE)) for r in records_of("looped")] == list(range(75))
    assert broker.topic("looped").spec.metadata["finite"] is False
    with pytest.raises(ConfigError, match="concerns the encoder"):
        publish(str(video), broker, "once", faults="gap@5")


def test_a_cut_file_is_no_end(broker, tmp_path, video):
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(video.read_bytes()[: video.stat().st_size * 7 // 10])
    with pytest.raises(DecodeError, match="were read"):
        publish(str(cut), broker, "cam", pace="fast")
    info = broker.topic("cam")
    assert 0 < info.high_water < 30 and not info.ended


def test_stop_ends_the_stream_while_it_waits(broker):
    stop = threading.Event()
    reports = []
    thread = threading.Thread(
        target=lambda: reports.append(publish("synthetic://160x120@0.05", broker, "cam", stop=stop)), name="feed-test"
    )
    thread.start()
    stop.set()
    thread.join(20)
    assert not thread.is_alive()
    assert reports[0].reason == "stopped" and reports[0].ended and broker.topic("cam").ended


def test_stop_ends_a_feed_that_waits_for_room(broker):
    broker.create_topic(TopicSpec("cam", records=4, policy="wait"))
    stop = threading.Event()
    with broker.consumer("cam", group="slow", start="beginning"):
        full = threading.Event()
        reports = []

        def work():
            reports.append(publish(SMALL, broker, "cam", pace="fast", stop=stop, on_packet=seen))

        def seen(packet):
            if packet.seq == 3:
                full.set()

        thread = threading.Thread(target=work, name="feed-test")
        thread.start()
        assert full.wait(20)
        stop.set()
        thread.join(20)
    assert not thread.is_alive() and reports[0].reason == "stopped" and reports[0].account.balanced


def test_a_second_life_opens_a_new_epoch(broker):
    for _ in range(2):
        publish(f"{SMALL}&frames=5", broker, "cam", pace="fast")
    with broker.consumer("cam", start="beginning", on_end="wait") as consumer:
        records = []
        while len(records) < 10:
            records += consumer.poll(timeout=5, max_records=10) or pytest.fail("records are missing")
    assert [r.offset for r in records] == list(range(10)) and len({r.epoch for r in records}) == 2
    assert [int(r.header(HEADER_SEQUENCE)) for r in records] == [*range(5), *range(5)]
    lives = [r.header(HEADER_FEED) for r in records]
    assert len(set(lives[:5])) == len(set(lives[5:])) == 1 and len(set(lives)) == 2 and None not in lives


def test_wrong_topics_and_wishes(broker):
    with pytest.raises(UnknownTopicError):
        publish(SMALL, broker, "absent", create_topic=False)
    assert broker.topics() == []
    broker.create_topic(TopicSpec("typed", dtype="u1", shape=(4,)))
    with pytest.raises(TopicExistsError, match="holds arrays"):
        publish(SMALL, broker, "typed")
    publish(f"{SMALL}&frames=1", broker, "cam", pace="fast")
    with pytest.raises(TopicExistsError, match="was made for h264"):
        publish("synthetic://160x120?codec=vp9&frames=1", broker, "cam")
    for wish in ({"pace": "slow"}, {"pace": 0}, {"pace": True}, {"frames": -1}, {"seconds": -1.0}, {"loop": True}):
        with pytest.raises(ConfigError):
            publish(SMALL, broker, "cam", **wish)


def test_arrays(broker, records_of):
    arrays = [(np.arange(12).reshape(3, 4) + n).astype(">i2") for n in range(5)]
    report = publish_arrays(arrays, broker, "raw_probe", fps=1000.0, start_ns=10**18)
    records = records_of("raw_probe")
    assert report.records == 5 and [r.timestamp_ns for r in records] == [10**18 + n * 10**6 for n in range(5)]
    for array, record in zip(arrays, records, strict=True):
        assert record.header(HEADER_DTYPE) == b">i2" and json.loads(record.header(HEADER_SHAPE)) == [3, 4]
        assert np.array_equal(np.frombuffer(record.value, ">i2").reshape(3, 4), array)
        assert int(record.header(HEADER_CRC32C), 16) == crc32c.crc32c(record.value) and record.key == b"probe"
    with pytest.raises(ConfigError, match="no objects"):
        publish_arrays([np.array([None])], broker, "raw_probe")


PROGRAM = """
import json, sys
from comux.feeds import publish
from comux.lifecycle import stop_on_signals

def seen(packet):
    if packet.seq == 5:
        print("running", flush=True)

with stop_on_signals() as stop:
    report = publish(sys.argv[1], sys.argv[2], "cam1", stop=stop, on_packet=seen)
print(json.dumps(report.as_dict()), flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_program_ends_cleanly_on_signals(tmp_path, number):
    """Another process publishes in real time; a signal makes it end the stream and report."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, SMALL, "memory://program"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    with process:
        try:
            assert process.stdout.readline() == "running\n"
            process.send_signal(number)
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()
    report = json.loads(out)
    assert process.returncode == 0 and err == ""
    assert report["reason"] == "stopped" and report["ended"] and report["account"]["balanced"]


def test_consumers_see_the_end(broker):
    publish(f"{SMALL}&frames=3", broker, "cam", pace="fast")
    with broker.consumer("cam", start="beginning") as consumer:
        assert len(consumer.poll(timeout=5, max_records=10)) == 3
        with pytest.raises(EndOfStream):
            consumer.poll(timeout=5)
