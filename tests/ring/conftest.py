"""What the ring's tests share: a private folder, processes that die on purpose, waiting under a deadline."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("comux.testing")


@pytest.fixture()
def ring_dir(_private_shared_memory: Path) -> Iterator[Path]:
    """A folder for topics of this test only, in shared memory, gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="ring-", dir=_private_shared_memory))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def victims() -> Iterator[object]:
    """The process victims are forked from."""
    from comux.testing.ring_faults import VictimServer

    with VictimServer() as server:
        yield server


@pytest.fixture()
def wait_until() -> Callable[..., None]:
    """``wait_until(condition, what, seconds=10)``: return once it holds, fail with ``what`` at the deadline."""

    def wait(condition: Callable[[], object], what: str, seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"after {seconds} s still not: {what}")
            threading.Event().wait(0.002)

    return wait
