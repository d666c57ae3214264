"""Clearing up: what nobody alive owns goes, everything else stays, whoever comes or goes meanwhile."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from comux import ring
from comux.errors import UnknownTopicError
from comux.ring import log as log_module

LIFE_BYTE = (1 << 40) - 1
SESSION = ring.RingSpec("t", slots=8, data_bytes=65536, lifetime="session")
KEPT = ring.RingSpec("kept", slots=8, data_bytes=65536)

HOLDER = """
import os, sys
from comux import ring
spec = ring.RingSpec("t", slots=8, data_bytes=65536, lifetime="session")
r = ring.create(spec, directory=sys.argv[1], exist_ok=True)
p = r.producer()
p.put(b"record")
{then}
print("ready", flush=True)
sys.stdin.read()
os._exit(0)
"""


@contextmanager
def holder(place: Path, then: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process that uses a session topic until it is killed."""
    command = [sys.executable, "-c", HOLDER.format(then=then), str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def one(place: Path, **words: bool) -> ring.Found:
    (found,) = ring.collect(place, **words)
    return found


def lock(file: int, type: int, start: int, length: int = 1) -> None:
    fcntl.fcntl(file, 37, struct.pack("hhqqi", type, os.SEEK_SET, start, length, 0))  # F_OFD_SETLK


def resealed(data: bytearray) -> bytes:
    data[20:24] = bytes(4)
    data[20:24] = struct.pack("<I", zlib.crc32(bytes(data[:4032])))
    return bytes(data)


# -- the living and the dead ---------------------------------------------------------------------------------------


def test_a_topic_of_the_living_stays_and_of_the_dead_goes(ring_dir: Path) -> None:
    with holder(ring_dir) as process:
        for words in ({}, {"persistent": True}, {"dry_run": True}):
            found = one(ring_dir, **words)
            assert not found.removed and found.reason.startswith(f"used by process {process.pid} (python")
        process.kill()
        process.wait(30)
    found = one(ring_dir, dry_run=True)
    assert found.removed and found.reason == "a session topic, all its processes are dead"
    assert found.bytes == (ring_dir / "t.ring").stat().st_size
    assert ring.names(ring_dir) == ["t"], "a dry run removes nothing"
    assert one(ring_dir).removed and ring.names(ring_dir) == [] and ring.collect(ring_dir) == []


def test_one_that_lost_its_descriptors_is_alive(ring_dir: Path) -> None:
    """No lock says so: its open producer names it, and /proc is asked."""
    with holder(ring_dir, "os.closerange(3, 4096)") as process:
        for words in ({"dry_run": True}, {}):
            found = one(ring_dir, **words)
            assert not found.removed and str(process.pid) in found.reason
        process.kill()
        process.wait(30)
    assert one(ring_dir).removed


def test_this_process_is_alive_too(ring_dir: Path) -> None:
    with ring.create(SESSION, directory=ring_dir), holder(ring_dir):
        found = one(ring_dir)
        assert not found.removed and found.reason.endswith("and 1 other")
        assert f"process {os.getpid()} " in found.reason


# -- topics made to stay -------------------------------------------------------------------------------------------


def test_persistent_topics_go_only_where_that_is_said(ring_dir: Path) -> None:
    with ring.create(KEPT, directory=ring_dir) as r, r.producer() as p:
        r.member("fast", start="beginning", durable=True).close()
        with r.member("slow", start="beginning", durable=True) as slow:
            p.put_many([b"a", b"b", b"c"])
            lease = slow.take(0)
            assert lease is not None
            lease.ack()
    found = one(ring_dir)
    assert not found.removed
    assert found.reason == "persistent, nobody uses it: 3 of 3 records not finished by a group; --persistent removes it"
    with ring.attach("kept", directory=ring_dir) as r, r.member("fast") as fast:
        fast.take_many(3).ack()
    assert one(ring_dir, persistent=True, dry_run=True).removed and ring.names(ring_dir) == ["kept"]
    assert one(ring_dir, persistent=True).removed and ring.names(ring_dir) == []


# -- those who come and go meanwhile -------------------------------------------------------------------------------


def test_somebody_who_is_just_attaching_keeps_it(ring_dir: Path) -> None:
    with holder(ring_dir):
        pass
    file = os.open(ring_dir / "t.ring", os.O_RDWR)
    try:
        lock(file, fcntl.F_RDLCK, LIFE_BYTE)  # what an attach holds before it has a process slot
        assert [one(ring_dir).removed, one(ring_dir, dry_run=True).removed] == [False, False]
        assert one(ring_dir).reason == "somebody is attaching or removing it just now"
    finally:
        os.close(file)
    assert one(ring_dir).removed


def test_whoever_attaches_while_it_is_cleared_up_has_all_of_it_or_finds_nothing(ring_dir: Path) -> None:
    """Two processes create, attach and leave a session topic as fast as they can, one clears up all the time."""
    code = """
import sys
from comux import ring
from comux.errors import TopicError
spec = ring.RingSpec("t", slots=8, data_bytes=65536, lifetime="session")
had = 0
for i in range(150):
    try:
        with ring.create(spec, directory=sys.argv[1], exist_ok=True) if i % 3 else ring.attach("t", sys.argv[1]) as r:
            with ring.attach("t", directory=sys.argv[1]) as again:  # the name leads to what we have
                assert again.path.stat().st_nlink == 1
            with r.producer() as p:
                p.put(b"x")
            had += 1
    except LookupError:
        pass
print(had)
"""
    command = [sys.executable, "-c", code, str(ring_dir)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(command, **pipes) for _ in range(2)]  # type: ignore[call-overload]
    try:
        looks, going = 0, True
        while going:
            going = any(child.poll() is None for child in children)
            for found in ring.collect(ring_dir, dry_run=looks % 5 == 0):
                assert found.what == "topic" and found.name == "t"
            looks += 1
        for child in children:
            out, err = child.communicate(timeout=30)
            assert (child.returncode, err) == (0, "")
            assert int(out) >= 100
    finally:
        for child in children:
            child.kill()
            child.communicate()
    assert ring.names(ring_dir) == []


def test_a_folder_cleared_up_while_a_topic_is_made_is_made_again(
    ring_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, made = ring_dir / "lab", []

    def make(base: Path) -> None:
        real(base)
        made.append(base)
        if len(made) == 1:
            assert [found.what for found in ring.collect(ring_dir, nested=True)] == ["folder"]

    real = log_module.make_directory
    monkeypatch.setattr(log_module, "make_directory", make)
    with ring.create(KEPT, directory=place) as r:
        assert made == [place, place] and r.path.exists()


# -- what is not ours ----------------------------------------------------------------------------------------------


def test_damaged_and_foreign_files_stay_as_they_are(ring_dir: Path) -> None:
    with ring.create(KEPT, directory=ring_dir) as r:
        whole = r.path.read_bytes()
    (ring_dir / "kept.ring").unlink()
    cases = {
        "other-version": (whole[:8] + b"\x63\x00" + whole[10:], "has layout 99"),
        "checksum": (whole[:80] + b"\xff" + whole[81:], "the superblock's checksum is wrong"),
        "short": (whole[:-4096], "contradicts itself or the file's size"),
        "notes": (b"dear diary" * 1000, "not a comux topic (its magic differs)"),
        "nothing": (b"", "not a comux topic (0 bytes)"),
    }
    for name, (data, _) in cases.items():
        (ring_dir / f"{name}.ring").write_bytes(data)
    (ring_dir / "readme.txt").write_text("mine")
    (ring_dir / "link.ring").symlink_to("/etc/hostname")
    found = {each.name: each for each in ring.collect(ring_dir, persistent=True)}
    assert set(found) == {*cases, "link"} and not any(each.removed for each in found.values())
    for name, (data, words) in cases.items():
        assert words in found[name].reason
        assert (ring_dir / f"{name}.ring").read_bytes() == data
    assert "symbolic link" in found["link"].reason
    assert (ring_dir / "link.ring").is_symlink() and (ring_dir / "readme.txt").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_files_and_folders_of_others_stay(ring_dir: Path) -> None:
    for place in (ring_dir, ring_dir / "theirs"):
        ring.create(KEPT, directory=place).close()
    os.chown(ring_dir / "kept.ring", 12345, 12345)
    os.chown(ring_dir / "theirs", 12345, 12345)
    found = ring.collect(ring_dir, persistent=True, nested=True)
    assert [(each.removed, "belongs to user 12345" in each.reason) for each in found] == [(False, True)]
    assert (ring_dir / "theirs/kept.ring").exists()


@pytest.mark.parametrize("lifetime", ["session", "persistent"])
def test_what_was_made_before_the_last_boot_is_nobodys(ring_dir: Path, lifetime: str) -> None:
    spec = ring.RingSpec("old", slots=8, data_bytes=65536, lifetime="persistent")
    with ring.create(spec, directory=ring_dir) as r, r.producer() as p:
        p.put(b"record")
        path = r.path
    data = bytearray(path.read_bytes())
    data[32:48] = bytes(16)
    options = struct.unpack_from("<I", data, 68)[0]
    struct.pack_into("<I", data, 68, options | 4 * (lifetime == "session"))
    path.write_bytes(resealed(data))
    found = one(ring_dir)
    assert found.reason.startswith("made before the last boot, ")
    assert found.removed == (lifetime == "session") and path.exists() != found.removed
    assert [each.removed for each in ring.collect(ring_dir, persistent=True)] == [True] * (not found.removed)


# -- what a death left half-made -----------------------------------------------------------------------------------


def test_half_made_files_of_the_dead_go_and_of_the_living_stay(ring_dir: Path) -> None:
    dead, living = ring_dir / ".t.4711.tmp", ring_dir / ".t.4712.tmp"
    dead.write_bytes(b"half")
    file = os.open(living, os.O_RDWR | os.O_CREAT, 0o600)
    (ring_dir / ".hidden.tmp").write_text("not named by us")
    try:
        lock(file, fcntl.F_RDLCK, LIFE_BYTE)
        for dry_run in (True, False):
            found = {each.path: each for each in ring.collect(ring_dir, dry_run=dry_run)}
            assert found[dead].removed and not found[living].removed
            assert found[living].reason == "somebody is making it just now"
            assert dead.exists() == dry_run and living.exists()
    finally:
        os.close(file)
    assert one(ring_dir).removed and [path.name for path in ring_dir.iterdir()] == [".hidden.tmp"]


def test_the_temporary_name_of_a_whole_topic_goes_and_the_topic_stays(ring_dir: Path) -> None:
    """Its creator died between the link and the removal of the temporary name."""
    with ring.create(KEPT, directory=ring_dir) as r:
        second = ring_dir / ".kept.1.tmp"
        os.link(r.path, second)
        assert [each.removed for each in ring.collect(ring_dir)] == [False, False]
    topic, half_made = ring.collect(ring_dir)
    assert not topic.removed and half_made.removed and not second.exists()
    with ring.attach("kept", directory=ring_dir) as r:
        assert r.check() == []


def test_empty_folders_go_and_the_base_stays(ring_dir: Path) -> None:
    ring.create(KEPT, directory=ring_dir / "used").close()
    (ring_dir / "empty").mkdir(mode=0o700)
    (ring_dir / "theirs").mkdir()
    (ring_dir / "theirs/file").touch()
    with holder(ring_dir / "dead"):
        pass
    would = [(each.what, each.name) for each in ring.collect(ring_dir, nested=True, dry_run=True) if each.removed]
    assert would == [("topic", "t"), ("folder", "dead"), ("folder", "empty")]
    assert [(each.what, each.name) for each in ring.collect(ring_dir, nested=True) if each.removed] == would
    assert {path.name for path in ring_dir.iterdir()} == {"used", "theirs"}
    assert ring.collect(ring_dir / "nowhere") == []


def test_it_waits_for_nobody(ring_dir: Path) -> None:
    """A process stopped while it holds everything (in the middle of removing it) does not stop the others."""
    with holder(ring_dir):
        pass
    file = os.open(ring_dir / "t.ring", os.O_RDWR)
    try:
        lock(file, fcntl.F_WRLCK, LIFE_BYTE, 256)
        done: list[ring.Found] = []
        thread = threading.Thread(target=lambda: done.extend(ring.collect(ring_dir)))
        thread.start()
        thread.join(30)
        assert [each.removed for each in done] == [False]
    finally:
        os.close(file)
    with pytest.raises(UnknownTopicError):
        ring.collect(ring_dir)
        ring.attach("t", directory=ring_dir)
