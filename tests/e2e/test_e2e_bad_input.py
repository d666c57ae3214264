"""Bad input: one clear error before anything starts, and nothing is left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comux import Comux, TopicSpec, connect
from comux.errors import (
    ComuxError,
    ConfigError,
    ConnectError,
    LayoutMismatchError,
    NoSpaceError,
    TopicExistsError,
    UnknownAddressError,
    UnknownCodecError,
    UnknownTopicError,
)
from comux.feeds import publish

VIDEO = {"codec": "h264", "width": 640, "height": 360}
Row = tuple[str, type[ComuxError], str, Callable[[str], Any]]


def _start(cam_ids: Any = ("video",), **settings: Any) -> Callable[[str], Any]:
    """Start a manager as a program would."""

    def do(address: str) -> Any:
        with Comux(cam_ids if isinstance(cam_ids, str) else list(cam_ids), **{"address": address, **settings}) as mux:
            return mux

    return do


def _setup(method: str, **arguments: Any) -> Callable[[str], Any]:
    """One ``setup_…`` of the first comux's, then the start."""

    def do(address: str) -> Any:
        mux = Comux(["video"], address=address)
        try:
            getattr(mux, method)(**arguments)
            mux.start()
        finally:
            mux.close()

    return do


def _publish(source: str, topic: str = "raw_video", **options: Any) -> Callable[[str], Any]:
    return lambda address: publish(source, address, topic, frames=1, pace="fast", **options)


def _create(**spec: Any) -> Callable[[str], Any]:
    def do(address: str) -> Any:
        with connect(address) as broker:
            broker.create_topic(TopicSpec(**{"name": "fresh", **spec}))

    return do


def _twice(address: str) -> Any:
    with connect(address) as broker:
        broker.create_topic(TopicSpec("raw_array", records=8, dtype="f4", shape=(2, 2)), exist_ok=True)


def _send_wrong_array(address: str) -> Any:
    with connect(address) as broker, broker.producer("raw_array") as producer:
        producer.send(np.zeros((5, 4), np.uint8))


def _send_wrong_dtype(address: str) -> Any:
    with connect(address) as broker, broker.producer("raw_array") as producer:
        producer.send(np.zeros((4, 4), np.float32))


# What was wrong; which error; words its one line holds, in this order (what, where, how to go on); how it is done.
TABLE: list[Row] = [
    ("unknown codec", UnknownCodecError, "video.*'h265x'.*known are.*h264", _start(codec="h265x")),
    ("codec that is no name", ConfigError, "video.*codec=5", _start(codec=5)),
    ("codec of another topic", ConfigError, "video.*carries h264, not hevc.*set codec='h264'", _start(codec="hevc")),
    ("dtype that is none", ConfigError, "dtype='nonsense'.*no numpy dtype", _start(codec="raw", dtype="nonsense")),
    ("dtype of objects", ConfigError, "dtype='O'.*never pickled", _start(codec="raw", dtype="O")),
    ("shape of nothing", ConfigError, "shape.*greater than 0", _start(codec="raw", dtype="u1", shape=(0, 4))),
    (
        "dtype of another topic",
        ConfigError,
        "raw_array.*uint8.*float32.*leave both out",
        _start(["array"], codec="raw", dtype="f4", shape=(4, 4)),
    ),
    (
        "shape of another topic",
        ConfigError,
        r"raw_array.*\(4, 4\).*\(5, 4\).*leave both out",
        _start(["array"], codec="raw", dtype="u1", shape=(5, 4)),
    ),
    ("video out of arrays", ConfigError, "raw_array.*arrays.*set codec='raw'", _start(["array"], codec="h264")),
    ("video into arrays", TopicExistsError, "raw_array.*arrays.*uint8", _publish("synthetic://64x48@30", "raw_array")),
    ("array of another shape", ConfigError, r"raw_array.*\(4, 4\).*\(5, 4\)", _send_wrong_array),
    ("array of another dtype", ConfigError, "raw_array.*uint8.*float32", _send_wrong_dtype),
    ("topic made with another dtype", TopicExistsError, "raw_array.*uint8.*float32", _twice),
    ("consume schema without id", ConfigError, "consume_schema 'raw'.*:cam_id 0 times", _start(consume_schema="raw")),
    ("produce schema without id", ConfigError, "produce_schema.*:cam_id 0 times", _start(produce_schema="out")),
    ("schema of no text", ConfigError, "consume_schema is int", _start(consume_schema=5)),
    ("schema with a slash", ConfigError, "consume_schema.*letters", _start(consume_schema="a/:cam_id")),
    ("duplicate ids", ConfigError, "'video' at position 2.*duplicate of position 0", _start(["video", "b", "video"])),
    ("a number and its text", ConfigError, "duplicate.*1 and '1'", _start([1, "1"])),
    ("an empty id", ConfigError, "position 1.*cam_id is empty", _start(["video", ""])),
    ("no ids", ConfigError, "cam_ids is empty.*at least one", _start([])),
    ("one text for ids", ConfigError, "'video' is str, not a list.*write", _start("video")),
    ("missing topic", UnknownTopicError, "'nobody'.*raw_nobody.*strict_on_fail", _start(["video", "nobody"])),
    ("unknown address", UnknownAddressError, "nowhere://.*shm://", _start(address="nowhere://x")),
    ("no address", UnknownAddressError, "'nonsense'.*shm://", _start(address="nonsense")),
    ("no cluster", ConnectError, "kafka://127.0.0.1:1: nobody listens", _start(address="kafka://127.0.0.1:1")),
    ("no cluster, as a list", ConnectError, "127.0.0.1:1: nobody listens", _start(address=["127.0.0.1:1"])),
    ("no such host", ConnectError, "nowhere.invalid:9092: the host is not", _start(address="nowhere.invalid:9092")),
    ("a camera's address", UnknownAddressError, "rtsp://camera.*comux publish", _start(address="rtsp://camera")),
    ("unknown address of results", UnknownAddressError, "nowhere://.*shm://", _start(produce_address="nowhere://")),
    ("picture asked for too large", ConfigError, "200x200.*max_pixels=1000", _start(W=200, H=200, max_pixels=1000)),
    ("picture carried too large", ConfigError, "raw_video.*640x360.*max_pixels=1000.*raise", _start(max_pixels=1000)),
    ("side of nothing", ConfigError, "W=0", _start(W=0)),
    ("size as text", ConfigError, "H='360'", _start(H="360")),
    ("unknown setting", ConfigError, "max_offset_dif", _start(max_offset_dif=5)),
    ("a feed nobody understands", UnknownAddressError, "gopher://.*synthetic://", _publish("gopher://x")),
    ("a feed's odd size", ConfigError, "65x49.*even", _publish("synthetic://65x49@30")),
    ("a fault nobody knows", ConfigError, "melt.*stall", _publish("synthetic://64x48@30", faults="melt@5s")),
    ("a file that is not there", ConfigError, "nothere.mp4", _publish("/nothere.mp4")),
    ("topic name", ConfigError, "'a/b'.*letters", _create(name="a/b")),
    ("topic of no records", ConfigError, "fresh.*records.*0", _create(records=0)),
    ("topic of objects", ConfigError, "dtype.*object", _create(dtype="O")),
    ("topic's policy", ConfigError, "'forget'.*drop_oldest", _create(policy="forget")),
    ("lag limit as text", ConfigError, "max_offset_diff '20'", _setup("setup_consumers", max_offset_diff="20")),
    (
        "servers as a number",
        ConfigError,
        "bootstrap_servers of type int",
        _setup("setup_consumers", bootstrap_servers=5),
    ),
    ("strict as text", ConfigError, "strict_on_fail 'yes'.*True", _setup("setup_consumers", strict_on_fail="yes")),
    ("end as text", ConfigError, "end='x'.*beginning", _setup("setup_consumers", end="x")),
    ("client option", ConfigError, "nonsense", _setup("setup_consumers", nonsense=1)),
    ("rate as text", ConfigError, "rate='fast'.*number", _setup("setup_decoders", rate="fast")),
    ("rate below nothing", ConfigError, "rate=-1.*greater than 0", _setup("setup_decoders", rate=-1)),
    ("width as text", ConfigError, "W='wide'.*integer", _setup("setup_decoders", W="wide")),
    ("codec of setup_decoders", UnknownCodecError, "'h265x'.*known", _setup("setup_decoders", de_codec="h265x")),
    ("pixel format", ConfigError, "pix_fmt.*'nonsense'.*yuv420p", _setup("setup_decoders", pix_fmt="nonsense")),
    ("array format", ConfigError, "array_format='cmyk'.*bgr24", _setup("setup_decoders", array_format="cmyk")),
    ("config topic", ConfigError, "config topic is int", _setup("setup_controller", topic=5)),
    ("acts", ConfigError, "acts 5.*mapping", _setup("setup_controller", topic="config", acts=5)),
    ("an act", ConfigError, "acts: 'a'.*function", _setup("setup_controller", topic="config", acts={"a": 5})),
    ("controller's option", ConfigError, "'speed'.*Controller", _setup("setup_controller", topic="config", speed=5)),
    (
        "controller's address",
        UnknownAddressError,
        "nowhere://.*shm://",
        _setup("setup_controller", topic="config", bootstrap_servers="nowhere://"),
    ),
    ("producer's address", UnknownAddressError, "nowhere://", _setup("setup_producer", bootstrap_servers="nowhere://")),
    ("producer's flag", ConfigError, "strict_on_fail 3", _setup("setup_producer", strict_on_fail=3)),
    ("producer's option", ConfigError, "nonsense", _setup("setup_producer", nonsense=1)),
    ("results' limit", ConfigError, "send_timeout 'soon'.*seconds", _start(send_timeout="soon")),
    ("header schema", ConfigError, "header_schema", _start(header_schema=5)),
]
CORE = ("unknown codec", "duplicate ids", "missing topic", "unknown address", "picture carried too large")


def _descriptors() -> set[str]:
    found = set()
    for fd in Path("/proc/self/fd").iterdir():
        try:
            target = str(fd.readlink())
        except OSError:
            continue
        if not target.startswith(("pipe:", "socket:", "anon_inode:")):
            found.add(f"{fd.name} {target}")
    return found


@pytest.mark.parametrize(
    ("kind", "words", "do"),
    [pytest.param(*row[1:], id=row[0], marks=[pytest.mark.core] * (row[0] in CORE)) for row in TABLE],
)
def test_bad_input_is_one_clear_error_and_leaves_nothing(
    place: Any, kind: type[ComuxError], words: str, do: Callable[[str], Any]
) -> None:
    place.topic("raw_video", records=16, metadata=VIDEO)
    place.broker.create_topic(TopicSpec("raw_array", records=8, dtype="u1", shape=(4, 4)))
    before = (set(threading.enumerate()), sorted(place.directory.iterdir()), _descriptors())
    with pytest.raises(ComuxError) as raised:
        do(place.address)
    assert isinstance(raised.value, kind), repr(raised.value)
    assert re.search(words, str(raised.value)), str(raised.value)
    assert "\n" not in str(raised.value)
    assert (set(threading.enumerate()), sorted(place.directory.iterdir()), _descriptors()) == before


def test_a_picture_larger_than_allowed_stays_out_where_the_topic_did_not_say(place: Any, until: Any) -> None:
    """The stream itself announces the size: refused before it is decoded, and said; the other source goes on."""
    for cam, size in (("large", "640x360"), ("small", "64x48")):
        place.topic(f"raw_{cam}", records=512, metadata={"codec": "h264"})
        place.feed(f"synthetic://{size}@30?frames=30", f"raw_{cam}", pace="fast", end=False).join()
    settings = {"start": "beginning", "mode": "every_frame", "max_pixels": 10_000}
    with Comux(["large", "small"], address=place.address, **settings) as cameras:
        pictures = 0
        while pictures < 25:  # the last ones wait in the decoder for what follows them
            batch = cameras.get_batch(timeout=5)
            assert not batch.of("large")
            if batch.of("small"):
                assert batch.of("small").array.shape == (48, 64, 3)
                pictures += 1
        item = cameras.get("large")
        assert item.status == "decode_error"
        assert re.search(r"too_large.*640x360.*max_pixels=10000", item.reason), item.reason
        books = until(lambda: (books := cameras.accounts()["large"]).received == 30 and books)
        assert books.balanced and books.delivered == 0 and books.dropped.get("too_large", 0) > 0


# -- shared memory that is too small --------------------------------------------------------------------------------

_SMALL = """
import json, os, sys
from pathlib import Path
from comux import connect, TopicSpec
from comux.errors import NoSpaceError
from comux.feeds import publish

directory = Path(sys.argv[1])
out = {}
with connect("shm://") as broker:
    broker.create_topic(TopicSpec("fits", records=8, data_bytes=1 << 20))
    try:
        broker.create_topic(TopicSpec("raw_cam", records=64, data_bytes=128 << 20))
    except NoSpaceError as exc:
        out["error"] = str(exc)
    out["left"] = sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file())
    try:
        publish("synthetic://640x360@30", "shm://", "raw_feed", frames=1, pace="fast", data_bytes=128 << 20)
    except NoSpaceError as exc:
        out["feed"] = str(exc)
    out["topics"] = broker.topics()
    with broker.producer("fits") as producer:
        out["sent"] = producer.send(b"still works").result(5)
    info = os.statvfs(directory)
    out["free"] = info.f_bavail * info.f_frsize
print(json.dumps(out))
"""


def _with_small_memory(tmp_path: Path) -> dict[str, Any]:
    """Run ``_SMALL`` with ``COMUX_DIR`` on a file system of 64 MB; skips only where none can be mounted."""
    mounted = tmp_path / "shm"
    mounted.mkdir()
    program = tmp_path / "small.py"
    program.write_text(_SMALL)
    unshare, mount = shutil.which("unshare"), shutil.which("mount")
    if unshare is None or mount is None:
        pytest.skip("no unshare(1) or mount(8) here: a file system of 64 MB cannot be mounted")
    inner = '"$1" -t tmpfs -o size=64m tmpfs "$2" || exit 77; COMUX_DIR="$2/topics" exec "$3" "$4" "$2"'
    done = subprocess.run(
        [unshare, "-rm", "sh", "-c", inner, "sh", mount, str(mounted), sys.executable, str(program)],
        env=os.environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip(f"a file system of 64 MB cannot be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    out: dict[str, Any] = json.loads(done.stdout)
    return out


def test_shared_memory_of_64_mb_is_said_with_need_free_and_remedy(tmp_path: Path) -> None:
    out = _with_small_memory(tmp_path)
    for topic, text in (("raw_cam", out["error"]), ("raw_feed", out["feed"])):
        found = re.search(r"needs ([0-9.]+) MB, ([0-9.]+) MB are free", text)
        assert found is not None, text
        need, free = map(float, found.groups())
        assert topic in text and need > 128 and 40 < free < 68
        assert "--shm-size" in text and "COMUX_DIR" in text, text
        assert "\n" not in text
    assert out["left"] == ["topics/fits.ring"]
    assert out["topics"] == ["fits"]
    assert out["sent"] == 0
    assert out["free"] > 60e6, "what was not made takes no memory"


# -- segments of others ----------------------------------------------------------------------------------------------


def test_no_space_error_is_an_os_error() -> None:
    assert issubclass(NoSpaceError, OSError)


def _other_version(path: Path) -> None:
    with path.open("r+b") as file:
        assert file.read(8)
        version = int.from_bytes(file.read(2), "little")
        file.seek(8)
        file.write((version + 1).to_bytes(2, "little"))


def _no_segment(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"notcomux")


def _other_owner(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file to another user")
    os.chown(path, 12345, 12345)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        pytest.param(_other_version, "layout.*remove the topic", marks=pytest.mark.core),
        (_no_segment, "not a comux topic.*remove"),
        (_other_owner, "belongs to user 12345.*COMUX_DIR"),
    ],
)
def test_a_segment_of_another_version_or_owner_is_refused_before_anything_starts(
    place: Any, spoil: Callable[[Path], None], words: str
) -> None:
    place.topic("raw_cam", records=16, metadata={"codec": "h264"})
    spoil(place.directory / "raw_cam.ring")
    before = (set(threading.enumerate()), _descriptors())
    for do in (_start(["cam"]), _publish("synthetic://64x48@30", "raw_cam")):
        with pytest.raises(LayoutMismatchError, match=words) as raised:
            do(place.address)
        assert "raw_cam" in str(raised.value) and "\n" not in str(raised.value)
        assert (set(threading.enumerate()), _descriptors()) == before
    place.topic("raw_other", records=16)
    assert set(place.broker.topics()) == {"raw_cam", "raw_other"}, "the others are not touched"
