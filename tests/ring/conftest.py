"""What the ring's tests share: a private folder, processes that die on purpose, waiting under a deadline."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("comux.testing")


@pytest.fixture()
def ring_dir(_private_shared_memory: Path) -> Iterator[Path]:
    """A folder for topics of this test only, in shared memory, gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="ring-", dir=_private_shared_memory))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def _victim_server() -> Iterator[Any]:
    from comux.testing.ring_faults import VictimServer

    with VictimServer() as server:
        yield server


@pytest.fixture()
def victims(_victim_server: Any) -> Iterator[Any]:
    """The process victims are forked from; a test that is cut off leaves none of them at work."""
    yield _victim_server
    _victim_server.clear()


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


@pytest.fixture()
def in_child(ring_dir: Path) -> Callable[..., str]:
    """``in_child(code, *argv, timeout=20)``: run code in a fresh interpreter with ``PLACE`` set; its output.

    Fails where the child dies of a signal, raises, or takes too long; the child is gone in any case.
    """

    def run(code: str, *argv: str, timeout: float = 20.0, code_wanted: int = 0) -> str:
        start = "import sys, os, time, threading, signal\nfrom pathlib import Path\nfrom comux import ring\n"
        start += "PLACE = Path(sys.argv[1])\n"
        command = [sys.executable, "-c", start + textwrap.dedent(code), str(ring_dir), *argv]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            try:
                out, err = child.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                child.kill()
                pytest.fail(f"the child hangs: {child.communicate()}")
        assert child.returncode == code_wanted, f"the child ended with {child.returncode}: {err[-2000:]}"
        return out

    return run
