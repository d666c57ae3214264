"""Topics with ``layout="pool"``: a held view is never torn, and the producer never waits for it."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comux import ring
from comux.errors import ConfigError, LayoutMismatchError, NotRetainedError

SHAPE = (2048,)  # of u8: four pages
WRITERS = pytest.mark.parametrize("writers", ["one", "many"])
pytestmark = pytest.mark.core


def make(place: Path, **fields: Any) -> ring.Ring:
    wanted = {"slots": 8, "dtype": "u8", "shape": SHAPE, "layout": "pool", "pins": 4, **fields}
    return ring.create(ring.RingSpec("t", **wanted), directory=place)


def value(i: int) -> np.ndarray:
    return np.full(SHAPE, i, "u8")


def number(array: np.ndarray) -> int:
    """What the array says throughout; fails where it is torn."""
    assert (array == array[0]).all(), f"torn: {np.unique(array)}"
    return int(array[0])


@WRITERS
def test_held_views_stay_what_they_are_while_the_ring_is_lapped(ring_dir: Path, writers: str) -> None:
    with make(ring_dir, writers=writers) as r, r.producer() as p, r.reader() as reader:
        held = []
        for i in range(100):
            assert p.put(value(i), timeout=0, key=b"%d" % i, headers=[("n", b"%d" % i)]) == i, (
                "the producer had to wait"
            )
            view = reader.poll(0)
            held += [view] * (i in (0, 1, 50))
        assert [number(v.array) for v in held] == [0, 1, 50]
        assert [v.key for v in held] == [b"0", b"1", b"50"] and held[2].headers == (("n", b"50"),)
        assert all(v.kept and v.pinned and v.valid() for v in held)
        assert r.log_start > 50 and r.record_at(0) is None, "nothing else is retained that long"
        assert r.check() == []


@WRITERS
def test_where_every_pin_is_taken_readers_get_copies(ring_dir: Path, writers: str) -> None:
    with make(ring_dir, writers=writers, pins=2) as r, r.producer() as p:
        readers = [r.reader() for _ in range(3)]
        held: list[Any] = []
        for i in range(40):
            p.put(value(i), timeout=0, key=b"%d" % i)
            held += [reader.poll(0) for reader in readers]
        assert [v.pinned for v in held] == [True, True] + [False] * 118
        assert all(v.kept and number(v.array) == i // 3 and v.key == b"%d" % (i // 3) for i, v in enumerate(held))
        assert all(x.account().balanced and x.lost == 0 for x in readers)
        del held[:2]
        gc.collect()
        p.put(value(41), timeout=0)
        assert readers[0].poll(0).pinned, "a pin that was given back is taken again"
        assert r.check() == []


def test_an_array_outlives_its_view_its_reader_and_its_ring_and_keeps_the_process_attached(ring_dir: Path) -> None:
    with make(ring_dir, lifetime="session") as r, r.producer() as p, r.reader() as reader:
        p.put(value(7))
        part = reader.poll(0).array[10:20]
    other = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(WRITE_50), str(ring_dir)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert other.returncode == 0, other.stderr
    assert part.tolist() == [7] * 10
    assert ring.names(ring_dir) == ["t"], "a session topic stays as long as something is shown of it"
    del part
    gc.collect()
    assert ring.names(ring_dir) == []


WRITE_50 = """
    import sys, numpy as np
    from comux import ring
    with ring.attach("t", sys.argv[1]) as r, r.producer() as p:
        for i in range(50):
            p.put(np.full((2048,), 100 + i, "u8"), timeout=0)
        assert r.check() == []
"""


def test_a_record_overwritten_before_it_could_be_kept_is_a_loss_that_is_told(ring_dir: Path) -> None:
    with make(ring_dir) as r, r.producer() as p, r.reader() as reader:
        for i in range(30):
            p.put(value(i))
        views = reader.poll_many(99, 0)
        assert [v.offset for v in views] == list(range(30 - len(views), 30)) and len(views) >= 4
        assert views[0].skipped == 30 - len(views)
        assert reader.account().balanced


def test_groups_get_theirs_in_order_and_what_they_finished_is_used_again(ring_dir: Path) -> None:
    with make(ring_dir, slots=16, look_back=2) as r, r.member("g", start="beginning") as m, r.producer() as p:
        for i in range(10):
            p.put(value(i), timeout=0)
        batch = m.take_many(10, 0)
        assert batch is not None and [number(a) for a in batch.array] == list(range(10))
        assert [number(a) for a in batch] == list(range(10)) == [number(batch[i]) for i in range(10)]
        batch.ack()
        slots = set()
        for i in range(10, 40):
            p.put(value(i), timeout=0)
            with m.take(0) as lease:
                assert number(lease.array) == i
                slots.add(lease.array.__array_interface__["data"][0])
        assert len(slots) < 16, "the slot freed last is used first"
        assert r.high_water - r.log_start <= 2 + 16, (
            "what the group finished is kept for late readers, but not for long"
        )
        with pytest.raises(ConfigError):
            m._take_run(2, 0)
        assert r.check() == []


@WRITERS
def test_runs_claims_and_claims_given_up(ring_dir: Path, writers: str) -> None:
    with make(ring_dir, writers=writers) as r, r.producer() as p, r.reader() as reader:
        for turn in range(20):
            p.put_many(np.stack([value(10 * turn + k) for k in range(3)]), timeout=0)
            with p.claim(timeout=0) as claim:
                claim.array[:] = 10 * turn + 3
            p.claim(timeout=0).abort()
            assert [number(v.array) for v in reader.poll_many(9, 0)] == [10 * turn + k for k in range(4)]
        assert r.check() == []


def test_a_full_pool_waits_for_groups_and_never_for_views(ring_dir: Path) -> None:
    with make(ring_dir, policy="drop_newest") as r, r.member("g", start="beginning") as m, r.producer() as p:
        reader = r.reader(start="beginning")
        for i in range(8):
            p.put(value(i))
        held = reader.poll_many(4, 0)
        assert p.put(value(8)) is None, "the group has finished nothing"
        while (lease := m.take(0)) is not None:
            lease.ack()
        for i in range(9, 40):
            assert p.put(value(i)) is not None
            with m.take(0) as lease:
                assert number(lease.array) == i
        assert [number(v.array) for v in held] == [0, 1, 2, 3]


def test_the_pins_of_a_killed_process_are_given_back(ring_dir: Path, in_child: Callable[..., str]) -> None:
    with make(ring_dir, pins=2) as r, r.producer() as p, r.reader() as reader:
        p.put(value(0))
        in_child(
            """
            r = ring.attach("t", PLACE)
            reader = r.reader(start="beginning")
            held = [reader.poll(0).array, r.reader(start="beginning").poll(0).array]
            reader.close()
            os.kill(os.getpid(), signal.SIGKILL)
            """,
            code_wanted=-signal.SIGKILL,
        )
        r.reap()
        p.put(value(1), timeout=0)
        held = [reader.poll(0), r.reader(start="beginning").poll(0)]
        assert all(v.pinned for v in held)
        assert r.check() == []


def test_a_forked_child_neither_gives_back_nor_keeps_its_parents_pins(ring_dir: Path) -> None:
    with make(ring_dir, pins=1) as r, r.producer() as p, r.reader() as reader:
        p.put(value(5))
        view = reader.poll(0)
        child = os.fork()
        if child == 0:
            try:
                del view
                gc.collect()
            finally:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        for i in range(30):
            p.put(value(100 + i), timeout=0)
        assert number(view.array) == 5 and view.pinned


@WRITERS
def test_views_held_across_threads_and_processes_are_never_torn(ring_dir: Path, writers: str) -> None:
    """A producer that laps everybody against readers that hold what they see for a while: each view says one number."""
    with make(ring_dir, slots=4, pins=6, writers=writers) as r, r.producer() as p:
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", textwrap.dedent(HOLD), str(ring_dir)], stdout=subprocess.PIPE, text=True
        )
        errors: list[BaseException] = []

        def hold() -> None:
            try:
                with r.reader() as reader:
                    hold_and_look(reader, 400)
            except BaseException as error:  # noqa: BLE001 - looked at below
                errors.append(error)

        threads = [threading.Thread(target=hold) for _ in range(2)]
        for thread in threads:
            thread.start()
        i = 0
        while child.poll() is None or any(thread.is_alive() for thread in threads):
            p.put(value(i), timeout=0)
            i += 1
            if i % 64 == 0:  # enough to lap everybody; a machine that runs nobody else would show nothing
                threading.Event().wait(0.0005)
        for thread in threads:
            thread.join()
        assert not errors, errors
        assert child.communicate()[0].strip() == "whole" and child.returncode == 0
        assert r.check() == []


def hold_and_look(reader: Any, views: int) -> None:
    """Hold five views at any time; look at each when it comes and when it goes."""
    held: list[tuple[Any, int]] = []
    for _ in range(views):
        view = reader.poll(30)
        held.append((view, number(view.array)))
        if len(held) > 5:
            old, said = held.pop(0)
            assert number(old.array) == said


HOLD = """
    import sys
    from comux import ring
    def number(array):
        assert (array == array[0]).all(), "torn"
        return int(array[0])
    held = []
    with ring.attach("t", sys.argv[1]) as r, r.reader() as reader:
        for _ in range(400):
            view = reader.poll(30)
            held.append((view, number(view.array)))
            if len(held) > 5:
                old, said = held.pop(0)
                assert number(old.array) == said, "torn while it was held"
        held.clear()
    print("whole")
"""


# -- what cannot be ---------------------------------------------------------------------------------------------------


def bad() -> Iterator[Any]:
    fixed = {"dtype": "u1", "shape": (8,)}
    yield pytest.param({"layout": "pool"}, "fixed slots", id="variable records")
    yield pytest.param({"layout": "heap", **fixed}, "ring, pool", id="unknown")
    yield pytest.param({"pins": 2, **fixed}, "layout='pool'", id="pins of a ring")
    yield pytest.param({"layout": "pool", "pins": 65, **fixed}, "from 1 to 64", id="too many pins")
    yield pytest.param({"layout": "pool", "slots": 4, "look_back": 5, **fixed}, "from 0 to 4", id="look_back")


@pytest.mark.parametrize(("fields", "words"), list(bad()))
def test_what_a_pool_cannot_be_is_said_before_anything_is_made(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ring.RingSpec("t", **fields)


def test_a_pool_is_found_again_as_it_was_made(ring_dir: Path) -> None:
    with make(ring_dir, pins=3, look_back=1) as r, ring.attach("t", ring_dir) as again:
        assert again.spec == r.spec and r.path.stat().st_size == r.spec.required_bytes
        with r.producer() as p, r.reader() as reader:
            p.put(value(0))
            with pytest.raises(TypeError):
                pickle.dumps(reader.poll(0))


def test_options_of_a_later_version_are_refused_by_name(ring_dir: Path) -> None:
    with make(ring_dir) as r:
        path, size = r.path, r.spec.required_bytes
    with path.open("r+b") as file:
        file.seek(68)
        options = int.from_bytes(file.read(4), "little")
        file.seek(68)
        file.write((options | 1 << 20).to_bytes(4, "little"))
    with pytest.raises(LayoutMismatchError, match="options this comux does not know"):
        ring.attach("t", ring_dir)
    assert path.stat().st_size == size


def test_a_ring_still_tells_afterwards(ring_dir: Path) -> None:
    """The default: a view of a ring is not kept, and says so."""
    with ring.create(ring.RingSpec("t", slots=4, dtype="u8", shape=SHAPE), directory=ring_dir) as r:
        p, reader = r.producer(), r.reader()
        p.put(value(0))
        view = reader.poll(0)
        assert not view.kept and not view.pinned
        for i in range(9):
            p.put(value(i))
        assert not view.valid()
        with pytest.raises(NotRetainedError):
            view.copy()
