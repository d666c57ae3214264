"""What hangs ends, and says where it stood: a run of the tests that never ends tells nobody anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

KIT = Path(__file__).resolve().parents[1] / "kit"
TIMED = Path(__file__).resolve().parents[2] / "scripts" / "timed"
STUCK = """
import threading
import pytest

@pytest.fixture
def stuck():
    yield
    threading.Event().wait()  # for ever

def test_fails(stuck):
    assert not "this"
"""


def test_tidying_up_that_hangs_after_a_failure_ends_with_all_stacks(tmp_path: Path) -> None:
    (tmp_path / "test_stuck.py").write_text(STUCK)
    limits = ["-o", "faulthandler_timeout=1", "-o", "faulthandler_exit_on_timeout=true"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "hangs", *limits, "test_stuck.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(KIT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ran.returncode == 1
    assert "Timeout" in ran.stderr, ran
    assert "in stuck" in ran.stderr


def test_a_part_of_the_tests_that_never_ends_is_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "faulthandler", "-c", "import threading\nthreading.Event().wait()"]
    ran = subprocess.run(
        [str(TIMED), str(tmp_path / "times"), "waiting", *command],
        env={**os.environ, "TIMED_LIMIT": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ran.returncode != 0
    assert "threading" in ran.stderr  # its stack
    assert "waiting" in (tmp_path / "times").read_text()
