"""The last process to leave a session topic takes it along, whoever leaves when, and whoever dies or stops in between.

The victims of these tests wait at a gate (a FIFO whose writer the test holds) and leave when it opens, all at once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from comux import ring
from comux.errors import TopicExistsError, UnknownTopicError
from comux.testing.ring_faults import Death, Job, VictimServer, read_journal

WaitUntil = Callable[..., None]
SPEC = ring.RingSpec("t", slots=8, data_bytes=65536, lifetime="session")
AFTER = {"leave.released": ["t"], "leave.alone": ["t"], "leave.unlinked": []}  # where a leaver dies: what it leaves


@contextmanager
def gate(ring_dir: Path) -> Iterator[str]:
    """A FIFO's name; who waits at it goes on when the block ends."""
    path = ring_dir / "go"
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR)  # both directions: opening waits for nobody, here and at the victims
    try:
        yield path.name
    finally:
        path.unlink()  # whoever has it open keeps it
        os.close(writer)


def leaver(ring_dir: Path, go: str, name: str = "a", failpoint: str | None = None, action: str = "kill") -> Job:
    """Attaches, waits at the gate, leaves."""
    return Job("leave", "t", str(ring_dir), str(ring_dir / name), failpoint, action=action, options={"go": go})


def noted(ring_dir: Path, what: str, name: str = "a") -> bool:
    path = ring_dir / name
    return path.exists() and what in {word for word, _ in read_journal(path)}


def topic_left_by_a_death(ring_dir: Path, victims: VictimServer, wait_until: WaitUntil, failpoint: str) -> None:
    """A session topic with one record, whose last process died at ``failpoint`` while it left."""
    with gate(ring_dir) as go, ring.create(SPEC, directory=ring_dir) as r, r.producer() as p:
        p.put(b"kept")
        pid = victims.start(leaver(ring_dir, go, failpoint=failpoint))
        wait_until(lambda: noted(ring_dir, "attached"), "the victim is attached")
    assert victims.wait(pid) == Death(pid, signal.SIGKILL, 0)


def _attach(ring_dir: Path, left: bool) -> None:
    if not left:
        with pytest.raises(UnknownTopicError):
            ring.attach("t", directory=ring_dir)
        return
    with ring.attach("t", directory=ring_dir) as r, r.reader(start="beginning") as reader:
        assert r.check() == []
        view = reader.poll(0)
        assert view is not None and view.bytes() == b"kept"


def _create(ring_dir: Path, left: bool) -> None:
    if left:
        with pytest.raises(TopicExistsError):
            ring.create(SPEC, directory=ring_dir)
    with ring.create(SPEC, directory=ring_dir, exist_ok=True) as r, r.producer() as p:
        assert r.check() == []
        assert p.put(b"new") == int(left)


def _gc(ring_dir: Path, left: bool) -> None:
    assert ring.gc(ring_dir) == ["t"] * left


def _unlink(ring_dir: Path, left: bool) -> None:
    if not left:
        with pytest.raises(UnknownTopicError):
            ring.unlink("t", directory=ring_dir)
        return
    ring.unlink("t", directory=ring_dir)


THEN: dict[str, Callable[[Path, bool], None]] = {"attach": _attach, "create": _create, "gc": _gc, "unlink": _unlink}


@pytest.mark.core
@pytest.mark.parametrize("then", THEN)
@pytest.mark.parametrize("failpoint", AFTER)
def test_whoever_comes_next_finds_a_whole_topic_or_none(
    failpoint: str, then: str, ring_dir: Path, victims: VictimServer, wait_until: WaitUntil
) -> None:
    """The last one dies while it leaves: the file is gone, or as good as before and gone after the next one left."""
    topic_left_by_a_death(ring_dir, victims, wait_until, failpoint)
    assert ring.names(ring_dir) == AFTER[failpoint]
    THEN[then](ring_dir, bool(AFTER[failpoint]))
    assert ring.names(ring_dir) == []


@pytest.mark.core
@pytest.mark.parametrize("failpoint", ["leave.released", "leave.alone", "leave.unlinked"])
def test_a_leaver_that_stands_still_does_not_keep_the_topic(
    failpoint: str, ring_dir: Path, victims: VictimServer, wait_until: WaitUntil
) -> None:
    """One is stopped at each step of leaving, the other leaves meanwhile, then the first goes on: nothing is left."""
    with ring.create(SPEC, directory=ring_dir) as r:
        with gate(ring_dir) as go:
            pid = victims.start(leaver(ring_dir, go, failpoint=failpoint, action="stop"))
            wait_until(lambda: noted(ring_dir, "attached"), "the victim is attached")
            if failpoint != "leave.released":  # it gets there only where it is the last
                r.close()
        stat = Path(f"/proc/{pid}/stat")
        wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "the victim stands still")
    if failpoint == "leave.released":
        assert ring.names(ring_dir) == [], "the other one was the last then, and removed it"
    os.kill(pid, signal.SIGCONT)
    assert victims.wait(pid) == Death(pid, 0, 0)
    assert ring.names(ring_dir) == []


@pytest.mark.core
def test_the_last_of_many_that_leave_at_once_removes_a_session_topic(
    ring_dir: Path, victims: VictimServer, wait_until: WaitUntil
) -> None:
    """Each asks whether it is the last in the same step in which nobody else can come or go: never do all say no."""
    names = "abcdef"
    for i in range(20):
        with gate(ring_dir) as go:
            with ring.create(SPEC, directory=ring_dir):
                pids = [victims.start(leaver(ring_dir, go, f"{name}{i}")) for name in names]
                wait_until(lambda: all(noted(ring_dir, "attached", f"{n}{i}") for n in names), "all are in")  # noqa: B023
            assert ring.names(ring_dir) == ["t"], "they still use it"
        assert [victims.wait(pid) for pid in pids] == [Death(pid, 0, 0) for pid in pids]
        assert ring.names(ring_dir) == [], f"round {i}: nobody removed it"


@pytest.mark.core
def test_a_topic_used_after_a_chdir_is_still_removed(ring_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ring_dir.parent)
    with ring.create(SPEC, directory=ring_dir.name) as r:
        assert r.path.is_absolute()
        monkeypatch.chdir(ring_dir)
    assert ring.names(ring_dir) == []
