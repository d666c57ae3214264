"""Damaged topics: metadata bytes are changed, attach is fuzzed: an error, never a crash, a hang or a wrong record.

The work is done by C programs of ``tests/ring/native`` (damage.c, fuzz_attach.c), which abort on a record that is not
what was put at its offset. A sample of the bytes in every run, each byte under AddressSanitizer with ``make sanitize``.
The same for the binding, by Python, is in test_ring_segments.py.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
from pathlib import Path

import pytest
from ring_native import Change, build_program, compiles, patched_copy

PLAIN = ("-O1", "-Wall", "-Wextra", "-Werror")
ADDRESS = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
NO_SEAL = Change("lossy.c", "    if (CX_UNLIKELY(d->bits != cx_desc_seal(d))) return false;\n", "")


def damage(program: Path, place: Path, *which: object, timeout: float = 100) -> subprocess.CompletedProcess[str]:
    command = [str(program), str(place), *map(str, which)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    print(done.stdout)
    for left in place.glob("damaged-*.ring"):
        left.unlink()
    return done


def judge(done: subprocess.CompletedProcess[str], least: int) -> None:
    assert done.returncode == 0, done.stderr[-4000:]
    kinds = re.findall(r"opened (\d+), refused (\d+), (\d+) records compared", done.stdout)
    assert len(kinds) == 4
    for opened, refused, compared in kinds:
        assert int(opened) > least and int(refused) > least / 20 and int(compared) > 5 * least


def test_a_sample_of_damaged_bytes_gives_errors_and_no_wrong_record(ring_dir: Path, tmp_path: Path) -> None:
    judge(damage(build_program("damage", tmp_path, PLAIN), ring_dir, 97), 300)


def test_a_ring_that_does_not_look_at_the_seal_hands_out_wrong_records(ring_dir: Path, tmp_path: Path) -> None:
    """The test of the one above."""
    program = build_program("damage", tmp_path / "mutant", PLAIN, patched_copy([NO_SEAL], tmp_path))
    done = damage(program, ring_dir, 7, "descriptors")
    assert done.returncode != 0
    assert "with byte" in done.stderr and "offset" in done.stderr


@pytest.mark.torture
def test_every_damaged_byte_gives_an_error_and_no_wrong_record(ring_dir: Path, tmp_path: Path) -> None:
    judge(damage(build_program("damage", tmp_path, ADDRESS), ring_dir, 1, timeout=3600), 20_000)


# -- fuzzing ----------------------------------------------------------------------------------------------------------

TRACE = ("-O1", "-fsanitize-coverage=trace-pc")
TRACED = """
__attribute__((no_sanitize_coverage)) void __sanitizer_cov_trace_pc(void) {}
int main(void) { return 0; }
"""
FUZZED = """
#include <stdlib.h>
int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size) { _Exit(data && size > 1000); }
"""
SECONDS = float(os.environ.get("COMUX_TORTURE_SECONDS") or 60)
CLANG = (os.environ.get("CLANG") or "clang").split()
LIBFUZZER = ("-O1", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all")
NO_LIMIT = Change("geometry.c", "    if (sane) geometry(&want);", "    geometry(&want);")


def fuzz(program: Path, place: Path, corpus: Path, seconds: float) -> subprocess.CompletedProcess[str]:
    """Fuzz attach with the loop of fuzz_loop.c."""
    seed = os.environ.get("COMUX_TORTURE_SEED") or str(random.SystemRandom().randrange(2**31))
    corpus.mkdir(exist_ok=True)
    done = subprocess.run(
        [program, corpus, str(seconds), seed],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COMUX_FUZZ_PLACE": str(place)},
    )
    print(f"\nseed {seed}: {done.stdout}")
    for left in place.glob("damaged-*.ring"):
        left.unlink()
    return done


def judge_fuzzing(done: subprocess.CompletedProcess[str], corpus: Path) -> None:
    assert done.returncode == 0, f"{(corpus / 'current').read_bytes()!r}\n{done.stderr[-4000:]}"
    found = re.search(r"(\d+) inputs tried, (\d+) edges \((\d+) at the start\), (\d+) inputs kept", done.stdout)
    assert found is not None
    tried, edges, first, kept = map(int, found.groups())
    assert tried > 20 and edges > first > 100 and kept > 4, "the fuzzer found its way nowhere"


def test_attach_survives_a_few_seconds_of_fuzzing(ring_dir: Path, tmp_path: Path) -> None:
    if not compiles(TRACE, tmp_path, program=TRACED):
        pytest.skip("the compiler lacks -fsanitize-coverage=trace-pc; gcc and clang have it")
    program = build_program("fuzz_attach", tmp_path, TRACE, more=["fuzz_loop"])
    judge_fuzzing(fuzz(program, ring_dir, tmp_path / "corpus", 4.0), tmp_path / "corpus")


@pytest.mark.torture
def test_attach_survives_fuzzing(ring_dir: Path, tmp_path: Path) -> None:
    """Under AddressSanitizer, with the loop of fuzz_loop.c."""
    program = build_program("fuzz_attach", tmp_path, [*TRACE, *ADDRESS], more=["fuzz_loop"])
    judge_fuzzing(fuzz(program, ring_dir, tmp_path / "corpus", SECONDS), tmp_path / "corpus")


@pytest.mark.torture
def test_attach_survives_libfuzzer(ring_dir: Path, tmp_path: Path) -> None:
    """The same inputs from libFuzzer, where there is a clang that has it (``CLANG=`` names one)."""
    if not compiles(LIBFUZZER, tmp_path, CLANG, FUZZED):
        pytest.skip(
            f"{' '.join(CLANG)} with libFuzzer is not installed (Debian: clang libclang-rt-dev); fuzz_loop.c ran"
        )
    program = build_program("fuzz_attach", tmp_path, LIBFUZZER, compiler=CLANG)
    done = subprocess.run(
        [program, f"-max_total_time={SECONDS:.0f}", "-max_len=256", "-timeout=20", f"-artifact_prefix={tmp_path}/"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COMUX_FUZZ_PLACE": str(ring_dir)},
    )
    assert done.returncode == 0, done.stderr[-6000:]
    print(done.stderr.splitlines()[-1])


@pytest.mark.torture
def test_fuzzing_finds_a_hang(ring_dir: Path, tmp_path: Path) -> None:
    """The test of the two above: a check of limits that comes too late is what the first fuzzing found."""
    program = build_program(
        "fuzz_attach", tmp_path / "mutant", TRACE, patched_copy([NO_LIMIT], tmp_path), ["fuzz_loop"]
    )
    done = fuzz(program, ring_dir, tmp_path / "corpus", 120.0)
    assert done.returncode == -14, "the alarm rang for nothing, or never"
