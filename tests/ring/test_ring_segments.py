"""Segments and liveness: files that are damaged, foreign, too large or half gone; processes that look alive or dead."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from comux import ring
from comux.errors import ConfigError, LayoutMismatchError, TopicBusyError, TopicCorruptError, TopicExistsError
from comux.testing.ring_faults import Job, VictimServer, payload, read_journal, read_payload

DAMAGE = """
from comux.errors import ComuxError
import itertools
from comux.testing.ring_faults import payload
kind, first_place, last_place, step = sys.argv[2], *map(int, sys.argv[3:6])
shape = {"data_bytes": 65536} if kind == "variable" else {"dtype": "u1", "shape": (64,)}
if kind == "pool": shape |= {"layout": "pool", "pins": 2}
whole = ring.create(ring.RingSpec("whole", slots=8, max_groups=2, max_ports=8, max_procs=4, **shape), directory=PLACE)
with whole.producer() as p, whole.member("g", start="beginning", durable=True) as m:
    for i in range(11):
        p.put(payload(i, 64), flags=i == 7)
        if i < 5:
            m.take(0).ack()
    held = m.take(0)
    layout = whole._attachment.config
data = bytearray(whole.path.read_bytes())
whole.close()

def use():
    damaged = ring.attach("damaged", directory=PLACE)
    with damaged:
        calls = [damaged.check, damaged.stats, damaged.groups, damaged.reap, lambda: damaged.find_time(5),
                 lambda: damaged.find_flag(1), lambda: damaged.record_at(damaged.high_water - 1),
                 lambda: damaged.observer().latest()]
        def read():
            with damaged.reader(start="beginning") as reader:
                for _ in range(20):
                    if reader.copy(0) is None: break
        def consume():
            with damaged.member("g") as member:
                for _ in range(20):
                    lease = member.take(0)
                    if lease is None: break
                    lease.bytes(); lease.headers; lease.key; lease.ack()
        def produce():
            with damaged.producer() as p:
                for _ in range(20):
                    p.put(payload(3, 64), timeout=0)
        for call in (*calls, read, consume, produce, damaged.check):
            try:
                call()
            except ComuxError:
                pass

opened = refused = 0
signal.signal(signal.SIGALRM, signal.SIG_DFL)
for place in range(first_place, min(last_place, len(data)), step):
    for flip in (0x01, 0x80, 0xFF):
        print(place, flip, file=sys.stderr, flush=True)
        signal.alarm(10)
        data[place] ^= flip
        (PLACE / "damaged.ring").write_bytes(data)
        data[place] ^= flip
        try:
            use()
            opened += 1
        except ComuxError as error:
            assert "\\n" not in str(error)
            refused += 1
signal.alarm(0)
print(opened, refused)
"""
# Where the parts of the segment DAMAGE makes lie: superblock, control, processes and ports, groups, then the rest.
AFTER_GROUPS = 8192 + 4 * 128 + 8 * 256 + 2 * 384
PARTS = [
    pytest.param(0, 4096, 23, id="superblock"),
    pytest.param(4096, 5120, 3, id="control", marks=pytest.mark.core),
    pytest.param(8192, 8192 + 4 * 128 + 8 * 256, 11, id="processes-and-ports"),
    pytest.param(AFTER_GROUPS - 2 * 384, AFTER_GROUPS, 3, id="groups"),
    pytest.param(AFTER_GROUPS, AFTER_GROUPS + 3000, 5, id="words-descriptors"),
]
CASES = [
    *(
        pytest.param(*p.values, kind, id=f"{p.id}-{kind}", marks=p.marks)
        for p in PARTS
        for kind in ("variable", "fixed")
    ),
    pytest.param(AFTER_GROUPS + 64 + 8 * 320, AFTER_GROUPS + 3600, 3, "pool", id="pool-pool", marks=pytest.mark.core),
]


@pytest.mark.parametrize(("first", "last", "step", "kind"), CASES)
def test_damage_is_an_error_and_never_a_crash(
    first: int, last: int, step: int, kind: str, in_child: Callable[..., str]
) -> None:
    """Bits of every kind of field are flipped; the topic is refused or used: no signal, no hang, no other error."""
    out = in_child(DAMAGE, kind, str(first), str(last), str(step), timeout=60)
    opened, refused = map(int, out.split())
    assert opened + refused >= 3 * (last - first) // step
    if first == 0:
        assert refused > opened


def test_the_remedy_is_named_for_another_version_and_for_rubbish(ring_dir: Path) -> None:
    with ring.create(ring.RingSpec("t", slots=4, data_bytes=65536), directory=ring_dir) as r:
        path, whole = r.path, r.path.read_bytes()
    path.unlink()
    cases: list[tuple[bytes, type[Exception], str]] = [
        (whole[:8] + b"\x63\x00" + whole[10:], LayoutMismatchError, r"99\.\d.*this comux reads"),
        (b"PARQUET1" + whole[8:], LayoutMismatchError, "magic"),
        (whole[:-4096], TopicCorruptError, "bytes"),
        (whole[:100], LayoutMismatchError, "100 bytes"),
        (b"", LayoutMismatchError, "not a comux topic"),
        (whole[:80] + b"\xff" + whole[81:], TopicCorruptError, "checksum"),
    ]
    for data, error, words in cases:
        path.write_bytes(data)
        with pytest.raises(error, match=words):
            ring.attach("t", directory=ring_dir)
        assert path.read_bytes() == data, "a file that was refused was written to"
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(LayoutMismatchError, match="symbolic link"):
        ring.attach("t", directory=ring_dir)


def test_of_many_that_create_at_once_one_succeeds(ring_dir: Path, victims: VictimServer) -> None:
    journals = [ring_dir / f"j{i}" for i in range(8)]
    pids = [victims.start(Job("create", "t", str(ring_dir), str(j), options={"fresh": "fresh"})) for j in journals]
    codes = [victims.wait(pid).code for pid in pids]
    assert sorted(codes) == [0] + [1] * 7
    errors = [words for j in journals for what, words in read_journal(j) if what == "error"]
    assert {words[0] for words in errors} == {"TopicExistsError"}
    with pytest.raises(TopicExistsError):
        ring.create(ring.RingSpec("fresh", slots=9, data_bytes=65536), directory=ring_dir, exist_ok=True)
    ring.create(ring.RingSpec("fresh", slots=8, data_bytes=65536), directory=ring_dir, exist_ok=True).close()
    assert ring.names(ring_dir) == ["fresh"]


def can_mount() -> bool:
    script = "mount -t tmpfs -o size=64k tmpfs /mnt"
    return subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True).returncode == 0


def test_a_full_tmpfs_is_an_error_with_the_remedy_and_leaves_nothing(ring_dir: Path) -> None:
    if not can_mount():
        pytest.skip("no user namespace may mount a tmpfs here")
    place = ring_dir / "small"
    place.mkdir(mode=0o700)
    code = """
        import os, sys
        from pathlib import Path
        from comux import ring
        from comux.errors import NoSpaceError
        place = Path(sys.argv[1])
        os.chmod(place, 0o700)
        free = lambda: os.statvfs(place).f_bavail
        before = free()
        for _ in range(3):
            try:
                ring.create(ring.RingSpec("t", slots=64, data_bytes=8 << 20), directory=place)
            except NoSpaceError as error:
                print(error)
        assert free() == before and list(place.iterdir()) == []
        with ring.create(ring.RingSpec("t", slots=16, data_bytes=65536), directory=place) as r, r.producer() as p:
            p.put(b"fits")
    """
    script = f'mount -t tmpfs -o size=1m,mode=700 tmpfs "{place}" && exec "$0" -c "$1" "{place}"'
    command = ["unshare", "-rm", "sh", "-c", script, sys.executable, textwrap.dedent(code)]
    out = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert out.returncode == 0, out.stderr
    lines = out.stdout.splitlines()
    assert len(lines) == 3
    for word in ("'t'", "8.", "MB", "--shm-size", "--ipc=host", "COMUX_DIR"):
        assert word in lines[0]


def test_directories_of_others_are_refused(ring_dir: Path) -> None:
    spec = ring.RingSpec("t", slots=4, data_bytes=65536)
    link = ring_dir / "link"
    (ring_dir / "real").mkdir(mode=0o700)
    link.symlink_to(ring_dir / "real")
    file = ring_dir / "file"
    file.touch()
    open_to_all = ring_dir / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    for place, words in ((link, "symbolic link"), (file, "not a directory"), (open_to_all, "chmod")):
        with pytest.raises(ConfigError, match=words):
            ring.create(spec, directory=place)
        with pytest.raises(ConfigError, match=words):
            ring.attach("t", directory=place)
    if os.geteuid() == 0:
        foreign = ring_dir / "foreign"
        foreign.mkdir(mode=0o700)
        os.chown(foreign, 12345, 12345)
        with pytest.raises(ConfigError, match="12345"):
            ring.create(spec, directory=foreign)
        os.chown(foreign, 0, 0)
        ring.create(spec, directory=foreign).close()
        os.chown(foreign / "t.ring", 12345, 12345)
        with pytest.raises(LayoutMismatchError, match="12345"):
            ring.attach("t", directory=foreign)


# -- who is alive -----------------------------------------------------------------------------------------------------

HOLDER = """
import os, sys, time, signal
from pathlib import Path
from comux import ring
r = ring.attach("t", directory=sys.argv[1])
m = r.member("g", start="beginning")
lease = m.take(5)
p = r.producer("holder")
claim = p.claim(8)
{then}
print("ready", flush=True)
time.sleep(60)
"""


class Holder:
    """A process that holds a record and a claim, and then does something to itself."""

    def __init__(self, place: Path, then: str = "", words: Sequence[str] = ()) -> None:
        code = HOLDER.format(then=textwrap.dedent(then))
        command = [*words, sys.executable, "-c", code, str(place)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.said = self.process.stdout.readline().split()

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        assert self.process.stdout
        self.process.stdout.close()
        self.process.wait(10)


@pytest.fixture()
def topic(ring_dir: Path) -> Any:
    with ring.create(ring.RingSpec("t", slots=8, data_bytes=65536), directory=ring_dir) as r:
        r.member("g", start="beginning").close()
        with r.producer() as p:
            p.put(b"record")
        yield r


def redelivered(topic: ring.Ring) -> bool:
    with topic.member("g") as m:
        lease = m.take(0)
        return lease is not None and lease.redelivered


def test_a_zombie_is_dead(topic: ring.Ring, ring_dir: Path, wait_until: Any) -> None:
    with Holder(ring_dir) as holder:
        assert holder.said == ["ready"] and not redelivered(topic)
        os.kill(holder.process.pid, signal.SIGKILL)  # and nobody waits for it
        wait_until(lambda: topic.reap() > 0, "the zombie is found dead")
        stat = Path(f"/proc/{holder.process.pid}/stat").read_text()
        assert stat.rpartition(")")[2].split()[0] == "Z"
        assert redelivered(topic) and topic.check() == []


def test_a_stopped_process_is_alive(topic: ring.Ring, ring_dir: Path) -> None:
    with Holder(ring_dir) as holder:
        os.kill(holder.process.pid, signal.SIGSTOP)
        assert topic.reap() == 0 and not redelivered(topic)
        (claim,) = topic.stats().open_claims
        assert claim.pid == holder.process.pid and claim.alive and claim.name == "holder"


def test_a_daemoniser_that_closes_every_descriptor_is_alive(topic: ring.Ring, ring_dir: Path) -> None:
    then = "os.closerange(3, 4096)"
    with Holder(ring_dir, then) as holder:
        assert holder.said == ["ready"]
        assert topic.reap() == 0 and not redelivered(topic)
        assert len(topic.stats().open_claims) == 1
        holder.process.kill()
        holder.process.wait(10)
        assert topic.reap() == 2 and redelivered(topic) and not topic.stats().open_claims


def test_what_a_program_held_that_became_another_is_free_when_that_ends(
    topic: ring.Ring, ring_dir: Path, wait_until: Any
) -> None:
    """exec drops the kernel's locks, yet the process runs on under its number: it cannot be told from a daemoniser that
    closed its descriptors, and a living process is never reaped."""
    then = "print('ready', flush=True); os.execv('/bin/sleep', ['sleep', '60'])"
    with Holder(ring_dir, then) as holder:
        comm = Path(f"/proc/{holder.process.pid}/comm")
        wait_until(lambda: comm.read_text().strip() == "sleep", "it became another program")
        assert topic.reap() == 0
        assert f"{topic.path}" not in {str(fd.readlink()) for fd in Path(f"/proc/{holder.process.pid}/fd").iterdir()}
        holder.process.kill()
        wait_until(lambda: topic.reap() == 2, "its handles are found ownerless")
        assert redelivered(topic)


@pytest.mark.parametrize("who", ["child", "parent"])
def test_after_a_fork_each_dies_for_itself(topic: ring.Ring, ring_dir: Path, who: str, wait_until: Any) -> None:
    then = """
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        print("ready", child, flush=True)
    """
    with Holder(ring_dir, then) as holder:
        child = int(holder.said[1])
        try:
            if who == "child":
                os.kill(child, signal.SIGKILL)
                stat = Path(f"/proc/{child}/stat")
                wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z", "the child is dead")
                assert topic.reap() == 0 and not redelivered(topic)
            else:
                holder.process.kill()
                holder.process.wait(10)
                wait_until(lambda: topic.reap() > 0, "the parent is dead although its child lives")
                assert redelivered(topic)
        finally:
            if who == "parent":
                os.kill(child, signal.SIGKILL)
    assert topic.check() == []


def test_a_child_of_a_fork_cannot_touch_anything(
    topic: ring.Ring, ring_dir: Path, in_child: Callable[..., str]
) -> None:
    out = in_child(
        """
        import gc
        from comux.errors import ClosedError
        r = ring.attach("t", directory=PLACE)
        m, p, reader, observer = r.member("g"), r.producer(), r.reader(start="beginning"), r.observer()
        lease, view, claim = m.take(0), reader.poll(0), p.claim(4)
        array = lease.array
        pid = os.fork()
        if pid == 0:
            calls = [lambda: m.take(0), lambda: p.put(b"x"), lambda: reader.copy(0), lambda: observer.latest(),
                     lease.ack, claim.commit, r.reap, lambda: r.high_water, r.groups, r.stats, r.check,
                     lambda: r.member("g"), r.producer, r.reader, lambda: ring.wait_any([reader, m], 0),
                     lambda: p.put_many([b"x"])]
            for i, call in enumerate(calls):
                try:
                    print(i, call())
                except ClosedError:
                    pass
            print(bytes(array))
            with ring.attach("t", directory=PLACE) as mine:
                print(mine.high_water, mine.reap(), len(mine.stats().open_claims))
            del lease, view, claim, m, p, reader, observer, r, calls, call
            gc.collect()
            sys.stdout.flush()
            os._exit(0)
        os.waitpid(pid, 0)
        claim.buffer[:] = b"good"
        claim.commit()
        lease.ack()
        print(claim.offset, r.groups()[0].done, r.check(), r.record_at(1).value)
        r.close()
        """
    )
    assert out.splitlines() == ["b'record'", "1 0 1", "1 1 [] b'good'"]


def test_what_everybody_left_behind_is_there_for_the_next(topic: ring.Ring, ring_dir: Path) -> None:
    with Holder(ring_dir) as holder:
        assert holder.said == ["ready"]
        topic.close()
    began = time.monotonic()
    with ring.attach("t", directory=ring_dir) as r, r.producer() as p:
        assert p.put(b"next", timeout=5) == 2  # offset 1 was the dead one's claim
        with r.member("g") as m:
            lease = m.take(5)
            assert (lease.offset, lease.redelivered, lease.bytes()) == (0, True, b"record")
            lease.ack()
            assert m.take(5).offset == 2
        assert r.check() == [] and time.monotonic() - began < 5


def test_removal_is_refused_while_somebody_lives_and_newcomers_get_the_new_one(ring_dir: Path) -> None:
    spec = ring.RingSpec("t", slots=4, data_bytes=65536)
    with ring.create(spec, directory=ring_dir) as old, old.producer() as p:
        with pytest.raises(TopicBusyError):
            ring.unlink("t", ring_dir)
        ring.unlink("t", ring_dir, force=True)
        with ring.create(spec, directory=ring_dir) as new:
            p.put(b"old"), p.put(b"old")
            assert (old.high_water, new.high_water) == (2, 0)
            with ring.attach("t", directory=ring_dir) as again:
                assert again.high_water == 0
    assert ring.names(ring_dir) == ["t"]


def test_a_killed_session_topic_is_collected(ring_dir: Path, in_child: Callable[..., str]) -> None:
    in_child(
        """
        r = ring.create(ring.RingSpec("gone", slots=4, data_bytes=65536, lifetime="session"), directory=PLACE)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        code_wanted=-9,
    )
    ring.create(ring.RingSpec("kept", slots=4, data_bytes=65536), directory=ring_dir).close()
    assert ring.names(ring_dir) == ["gone", "kept"]
    assert ring.gc(ring_dir) == ["gone"]
    assert ring.names(ring_dir) == ["kept"]


RAW_FORK = """
    import ctypes, platform
    libc = ctypes.CDLL(None, use_errno=True)
    # Past every fork handler: SYS_fork, or SYS_clone where there is none.
    raw = (57,) if platform.machine() == "x86_64" else (220, signal.SIGCHLD, 0, 0, 0, 0)
    child = libc.syscall(*raw)
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print("ready", child, flush=True)
"""


def test_a_dead_parent_is_found_though_a_child_without_our_handler_keeps_its_lock(
    topic: ring.Ring, ring_dir: Path, wait_until: Any
) -> None:
    """The byte stays locked, by a copy of the descriptor; who the slot names is gone all the same."""
    with Holder(ring_dir, RAW_FORK) as holder:
        child = int(holder.said[1])
        try:
            assert topic.reap() == 0 and not redelivered(topic)
            holder.process.kill()
            holder.process.wait(10)
            assert Path(f"/proc/{child}/fd").exists(), "the child lives, with the descriptor"
            wait_until(lambda: topic.reap() > 0, "the parent is dead although its byte is locked", 30)
            assert redelivered(topic)
        finally:
            os.kill(child, signal.SIGKILL)
    assert topic.check() == []


def in_a_pid_namespace(*more: str) -> list[str]:
    """Command words that start a program as the first of a PID namespace of its own; skips where none may be made."""
    words = ["unshare", "-Upr", "--fork", "--kill-child", *more]
    if shutil.which("unshare") is None or subprocess.run([*words, "true"], capture_output=True).returncode != 0:
        pytest.skip(
            "no unshare(1), or this system allows no user and PID namespaces: their death cannot be tested here"
        )
    return words


@pytest.mark.parametrize("own_proc", [True, False], ids=["its own /proc", "the outer /proc"])
def test_a_holder_in_a_pid_namespace_of_its_own_is_seen_and_its_death_too(
    topic: ring.Ring, ring_dir: Path, wait_until: Any, own_proc: bool
) -> None:
    words = in_a_pid_namespace(*(["--mount-proc"] if own_proc else []))
    with Holder(ring_dir, "print('ready', os.getpid(), flush=True)", words) as holder:
        assert holder.said == ["ready", "1"], "it is the first of its namespace"
        assert topic.reap() == 0 and not redelivered(topic)
        assert {p.pid for p in topic.stats().ports} == {1}
        holder.process.kill()
        wait_until(lambda: topic.reap() == 2, "its death is seen from outside", 30)
        assert redelivered(topic) and topic.check() == []


@pytest.mark.parametrize("own_proc", [True, False], ids=["its own /proc", "the outer /proc"])
def test_who_dies_in_a_pid_namespace_is_found_by_its_fellows_there(
    topic: ring.Ring, ring_dir: Path, own_proc: bool
) -> None:
    """Also where /proc still shows the outer processes: their numbers say nothing about ours."""
    words = in_a_pid_namespace(*(["--mount-proc"] if own_proc else []))
    then = """
        lease.nack(), claim.abort()
        r.close()
        def hold():
            other = ring.attach("t", directory=sys.argv[1])
            member = other.member("g")
            lease = member.take(5)
            os.write(writes, b"h")
            signal.pause()
        reads, writes = os.pipe()
        child = os.fork()
        if child == 0:
            hold()
        os.read(reads, 1)
        here = ring.attach("t", directory=sys.argv[1])
        alive = here.reap()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        print("ready", os.getpid(), alive, here.reap(), flush=True)
    """
    with Holder(ring_dir, then, words) as holder:
        assert holder.said == ["ready", "1", "0", "1"]
    assert redelivered(topic)


# -- a topic without a past -------------------------------------------------------------------------------------------


def test_a_stale_topic_is_resumed_or_reset_as_asked(ring_dir: Path) -> None:
    spec = ring.RingSpec("t", slots=8, data_bytes=65536, first_offset=2**32 - 2)
    with ring.create(spec, directory=ring_dir) as topic, topic.producer() as producer:
        topic.member("g", durable=True).close()
        producer.put_many([b"0", b"1", b"2"])
        topic.pause("g")
        with ring.attach("t", directory=ring_dir, on_stale="reset") as shared:  # this process is alive
            assert shared.high_water == 2**32 + 1 and shared.epoch == 0
    with ring.attach("t", directory=ring_dir, on_stale="resume") as topic:
        assert topic.high_water == 2**32 + 1 and topic.groups()[0].name == "g"
    with ring.attach("t", directory=ring_dir, on_stale="reset") as topic:
        assert (topic.log_start, topic.high_water, topic.epoch, topic.ended) == (2**32 - 2, 2**32 - 2, 1, False)
        assert topic.groups() == [] and topic.stats().committed == 0 and topic.check() == []
        assert topic.record_at(2**32 - 1) is None and topic.observer().latest() is None
        with topic.producer() as producer, topic.member("g", start="beginning") as member:
            assert producer.put(b"new") == 2**32 - 2
            lease = member.take(5)
            assert (lease.bytes(), lease.epoch) == (b"new", 1)
            lease.ack()
        assert topic.check() == []
    with ring.create(spec, directory=ring_dir, exist_ok=True, on_stale="reset") as topic:
        assert topic.epoch == 2
    with pytest.raises(ConfigError, match="on_stale"):
        ring.attach("t", directory=ring_dir, on_stale="forget")  # type: ignore[arg-type]


def test_a_topic_somebody_uses_is_not_reset(topic: ring.Ring, in_child: Callable[..., str]) -> None:
    out = in_child("with ring.attach('t', directory=PLACE, on_stale='reset') as r: print(r.high_water, r.epoch)")
    assert out.split() == ["1", "0"]


@pytest.mark.parametrize("step", ["reset.begun", "reset.half", "reset.done"])
def test_a_reset_that_was_killed_is_done_by_whoever_comes_next(
    step: str, ring_dir: Path, victims: VictimServer
) -> None:
    with ring.create(ring.RingSpec("t", slots=8, data_bytes=65536), directory=ring_dir) as topic:
        topic.member("g", durable=True).close()
        with topic.producer() as producer:
            producer.put_many([b"0", b"1"])
    death = victims.run(Job("reset", "t", str(ring_dir), str(ring_dir / "journal"), step))
    assert death.signal == signal.SIGKILL
    with ring.attach("t", directory=ring_dir) as topic:
        assert (topic.high_water, topic.epoch, topic.groups(), topic.check()) == (0, 1, [], [])
        with topic.producer() as producer:
            assert producer.put(b"new") == 0


def test_a_pool_is_reset_with_its_slots_and_pins(ring_dir: Path, victims: VictimServer) -> None:
    spec = ring.RingSpec("t", slots=4, dtype="u1", shape=(64,), layout="pool")
    with ring.create(spec, directory=ring_dir) as topic, topic.producer() as producer:
        for seq in range(6):
            producer.put(payload(seq, 64))
    job = Job("look", "t", str(ring_dir), str(ring_dir / "journal"), options={"count": 3})
    assert victims.run(job).signal == signal.SIGKILL  # with its views pinned
    with ring.attach("t", directory=ring_dir, on_stale="reset") as topic, topic.producer() as producer:
        reader = topic.reader(start="beginning")
        for seq in range(20):
            assert producer.put(payload(seq, 64)) == seq
            record = reader.copy(5)
            assert record is not None and read_payload(bytes(record.value)) == seq
        assert topic.check() == []


# -- every field of the version --------------------------------------------------------------------------------------


def test_each_field_that_says_whose_file_it_is_is_looked_at(ring_dir: Path) -> None:
    """With a checksum that is right, so that it is the field itself that is refused."""
    with ring.create(ring.RingSpec("t", slots=4, data_bytes=65536), directory=ring_dir) as r:
        path, whole = r.path, bytearray(r.path.read_bytes())
    cases: list[tuple[int, bytes, type[Exception] | None, str]] = [
        (8, struct.pack("<H", 1), LayoutMismatchError, r"layout 1\.0, this comux reads"),
        (10, struct.pack("<H", 7), None, ""),  # a later minor: fields more, where these have reserved room
        (12, struct.pack(">I", 0x01020304), LayoutMismatchError, "layout"),
        (16, struct.pack("<I", 8192), TopicCorruptError, "checksum"),
        (24, struct.pack("<Q", 4096), TopicCorruptError, "size"),
        (32, bytes(16), LayoutMismatchError, "before the last boot"),
        (60, struct.pack("<I", 3000), LayoutMismatchError, "pages of 3000"),
        (64, struct.pack("<H", 9), TopicCorruptError, "contradicts"),
        (72, struct.pack("<Q", 2**25), TopicCorruptError, "contradicts"),
        (104, struct.pack("<I", 300), TopicCorruptError, "contradicts"),
        (152, struct.pack("<Q", 1 << 40), TopicCorruptError, "contradicts"),
    ]
    for at, field, error, words in cases:
        data = bytearray(whole)
        data[at : at + len(field)] = field
        data[20:24] = bytes(4)
        data[20:24] = struct.pack("<I", zlib.crc32(data[:4032]))
        path.write_bytes(data)
        if error is None:
            ring.attach("t", directory=ring_dir).close()
            continue
        with pytest.raises(error, match=words):
            ring.attach("t", directory=ring_dir)
        assert path.read_bytes() == data, "a file that was refused was written to"
