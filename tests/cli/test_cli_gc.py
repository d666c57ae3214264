"""``comux gc``: a table for people, JSON for programs, and nothing of the living removed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from comux import ring
from comux.transport import TopicSpec, connect

SESSION = ring.RingSpec("gone", slots=8, data_bytes=65536, lifetime="session")


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of topics of its own, with a namespace."""
    monkeypatch.setenv("COMUX_DIR", str(tmp_path / "topics"))
    with connect("shm://lab") as broker:
        broker.create_topic(TopicSpec("stays", records=8, data_bytes=65536))
    return tmp_path / "topics" / "lab"


def a_dead_topic(lab: Path) -> None:
    """A session topic that nobody uses: its name is put back after its last process left and took it along."""
    with ring.create(SESSION, directory=lab) as r:
        (lab / "aside").hardlink_to(r.path)
    data = bytearray((lab / "aside").read_bytes())
    data[4032:4036] = bytes(4)  # not marked as removed
    (lab / "aside").unlink()
    (lab / "gone.ring").write_bytes(data)


def test_what_goes_and_what_stays_with_the_reason(execute: Callable[..., Any], lab: Path) -> None:
    a_dead_topic(lab)
    (lab.parent / "empty").mkdir(mode=0o700)
    would = execute("gc", "--dry-run", "--format", "json")
    rows = {row["name"]: row for row in json.loads(would.out)}
    assert {name: row["removed"] for name, row in rows.items()} == {"gone": True, "stays": False, "empty": True}
    assert rows["gone"]["bytes"] == (lab / "gone.ring").stat().st_size and rows["gone"]["dry_run"] is True
    assert ring.names(lab) == ["gone", "stays"]
    shown = execute("gc", "--dry-run")
    assert "would be removed" in shown.out and "2 would be removed" in shown.out
    done = execute("gc")
    assert (done.code, done.err) == (0, "")
    for words in ("lab/gone", "lab/stays", "a session topic, all its processes are dead", "2 removed, 0."):
        assert words in " ".join(done.out.split())
    assert ring.names(lab) == ["stays"] and not (lab.parent / "empty").exists()
    assert "1 removed" in execute("gc", "--persistent", "--address", "shm://lab").out
    assert ring.names(lab) == [] and lab.is_dir()
    assert execute("gc", "--address", "shm://nowhere").out == "nothing on shm://nowhere\n"


@pytest.mark.parametrize(
    ("address", "words"),
    [("memory://", "gc is for shm://"), ("shm://lab/stays", "names a topic"), ("ftp://x", "ftp")],
)
def test_other_addresses_are_one_line(execute: Callable[..., Any], address: str, words: str) -> None:
    ended = execute("gc", "--address", address)
    assert ended.code == 2 and words in ended.err and ended.err.count("\n") == 1


def test_a_folder_that_others_may_write_is_refused(execute: Callable[..., Any], lab: Path) -> None:
    lab.parent.chmod(0o777)
    ended = execute("gc")
    assert ended.code == 2 and "chmod go-w" in ended.err
