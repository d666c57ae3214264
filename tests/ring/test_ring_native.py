"""The core without Python, and what the sanitizers say about it: C programs of ``tests/ring/native`` (see driver.c).

Plain in every run; under ThreadSanitizer, AddressSanitizer and UndefinedBehaviorSanitizer with ``make sanitize``, where
the binding's own tests run with a binding built under the last two as well.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from ring_native import COMPILER, CORE, PROGRAMS, ROOT, Change, build_extension, build_program, compiles, patched_copy

WAYS = ("threads", "processes")
KINDS_OF_RING = 12
THREAD = ("-O1", "-fsanitize=thread", "-Wno-tsan")
ADDRESS = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
TSAN = f"suppressions={PROGRAMS / 'tsan.supp'} history_size=7 exitcode=66"
RELEASE = "__atomic_exchange_n(&a->ctl->lock, 0, __ATOMIC_RELEASE)"
WEAK_LOCK = (
    Change("lock.c", "false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);", "false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);"),
    Change("lock.c", RELEASE, RELEASE.replace("RELEASE", "RELAXED")),
)


def seconds(share: float) -> float:
    """A share of what ``make sanitize SECONDS=…`` gives."""
    return max(2.0, share * float(os.environ.get("COMUX_TORTURE_SECONDS") or 60))


def need(flags: Sequence[str], place: Path) -> None:
    place.mkdir(exist_ok=True)
    if not compiles(flags, place):
        pytest.skip(f"{' '.join(COMPILER)} cannot build or run programs with {' '.join(flags)}; install its libraries")


def run(program: Path, way: str, place: Path, length: float, **environment: str) -> subprocess.CompletedProcess[str]:
    seed = os.environ.get("COMUX_TORTURE_SEED") or str(random.SystemRandom().randrange(2**31))
    print(f"\n{program.name} {way}, {length:.0f} s, seed {seed}")
    done = subprocess.run(
        [program, way, place, str(length), seed],
        capture_output=True,
        text=True,
        check=False,
        timeout=60 + 30 * length,
        env={**os.environ, **environment},
    )
    print(done.stdout)
    return done


@pytest.mark.timeout(400)  # mostly the compiler
def test_the_core_works_without_python(ring_dir: Path, tmp_path: Path) -> None:
    program = build_program("driver", tmp_path, ["-O1", "-Wall", "-Wextra", "-Werror"])
    for way in WAYS:
        done = run(program, way, ring_dir, 2.0)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == KINDS_OF_RING


def test_how_long_a_sleep_may_take(ring_dir: Path, tmp_path: Path) -> None:
    program = build_program("patience", tmp_path, ["-O0", "-Wall", "-Wextra", "-Werror"])
    done = subprocess.run([program, ring_dir], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.torture
def test_threads_that_share_an_attachment_do_not_race(ring_dir: Path, tmp_path: Path) -> None:
    need(THREAD, tmp_path)
    done = run(build_program("driver", tmp_path, THREAD), "threads", ring_dir, seconds(0.3), TSAN_OPTIONS=TSAN)
    assert done.returncode == 0, done.stderr[-6000:]
    assert len(done.stdout.splitlines()) == KINDS_OF_RING


@pytest.mark.torture
def test_the_thread_sanitizer_would_see_a_lock_that_orders_nothing(ring_dir: Path, tmp_path: Path) -> None:
    """The test of the one above: with the lock's orderings weakened, it reports."""
    need(THREAD, tmp_path)
    program = build_program("driver", tmp_path / "weak", THREAD, patched_copy(WEAK_LOCK, tmp_path))
    done = run(program, "threads", ring_dir, 3.0, TSAN_OPTIONS=TSAN)
    races = re.findall(r"SUMMARY: ThreadSanitizer: data race .* in (\w+)", done.stderr)
    print(f"{len(races)} races reported, in {sorted(set(races))}")
    assert races, "no race is seen where the lock orders nothing: a clean report means nothing"


@pytest.mark.torture
@pytest.mark.parametrize("way", WAYS)
def test_the_core_touches_only_its_own_memory(way: str, ring_dir: Path, tmp_path: Path) -> None:
    need(ADDRESS, tmp_path)
    done = run(build_program("driver", tmp_path, ADDRESS), way, ring_dir, seconds(0.2))
    assert done.returncode == 0, done.stderr[-6000:]


def library(name: str) -> str:
    return subprocess.run(
        [*COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()


SHORT = "not torture and not services"
BINDING_TESTS = (
    "test_ring_basics.py",
    "test_ring_views.py",
    "test_ring_corners.py",
    "test_ring_references.py",
)


@pytest.mark.torture
def test_the_binding_touches_only_its_own_memory(tmp_path: Path) -> None:
    """The binding's tests with a binding, and an interpreter's allocations, that AddressSanitizer watches."""
    need(ADDRESS, tmp_path)
    tree = build_extension(CORE, tmp_path, ADDRESS, (False, True))
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree),
        "PYTHONMALLOC": "malloc",
        "LD_PRELOAD": f"{library('libasan.so')} {library('libubsan.so')}",
        # The interpreter keeps what it likes (test_ring_references.py counts ours); tests that want a signal want it.
        "ASAN_OPTIONS": "detect_leaks=0:handle_segv=0:handle_sigbus=0:handle_abort=0",
        "COMUX_ASAN": "1",
    }
    done = subprocess.run(
        [
            sys.executable,
            *("-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=600", "-m", SHORT),
            *BINDING_TESTS,
        ],
        cwd=ROOT / "tests" / "ring",
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    print(done.stdout[-3000:])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    assert "AddressSanitizer" not in done.stdout + done.stderr
