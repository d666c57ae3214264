"""``make models``: every model of the ring and every mutant, checked; a table of what came out; non-zero where anything
deviates.

    python models/run.py [--full] [--only WORD] [--memory GB]

A model without a mutant must hold, a mutant must fail: a mutant that passes says that the model does not see what it
was written for. The quick form takes about a minute; ``--full`` adds the large configurations, which take hours of a
core and up to ``--memory`` each.

Spin is taken from PATH, else from Debian's package, which is downloaded and unpacked below ``.models/`` without root.
Where neither can be had, the Spin models are skipped and the table says so; with ``--full`` that is a failure. The
weak-memory checker needs nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import litmus

HERE = Path(__file__).resolve().parent
KEPT = HERE.parent / ".models"
DEPTH = 1_000_000


@dataclass(frozen=True)
class Case:
    """One configuration of one model. ``full``: only with ``--full``. ``bits``: bit-state hashing, not exhaustive."""

    model: str
    options: str
    full: bool = False
    bits: bool = False

    @property
    def mutant(self) -> bool:
        return "MUT_" in self.options


def cases(model: str, *options: str, full: bool = False, bits: bool = False) -> tuple[Case, ...]:
    return tuple(Case(model, o, full, bits) for o in options)


CASES = (
    *cases(
        "lock",
        "CRASHES=0 NP=3 ROUNDS=1",
        "CRASHES=1 NP=2 ROUNDS=1",
        "LEAVE NP=2 ROUNDS=1",
        "MUT_W CRASHES=0 NP=3 ROUNDS=2",
        "MUT_GEN CRASHES=2 NP=2 ROUNDS=1",
    ),
    *cases(
        "wait",
        "MODE=1 NM=2 REC=2",
        "MODE=1 ONE NM=2 REC=2",
        "MODE=1 MUT_LEAVE",
        "MODE=1 ONE MUT_LEAVE",
        "MODE=1 ONE MUT_SEEN",
        "MODE=1 ONE MUT_RECHECK",
        "MODE=2 REC=2",
        "MODE=2 MUT_ORDER",
        "MODE=3 N=2 REC=4",
        "MODE=3 MUT_HOLE N=2 REC=4",
        "MODE=3 MUT_ONE N=2 REC=4",
        "MODE=3 STONES N=2 REC=4",
        "MODE=3 STONES MUT_STONE N=2 REC=4",
        "MODE=4 REC=4",
        "MODE=4 REC=4 MUT_HOLE",
    ),
    *cases(
        "topic",
        "NMB=1 K=2 N=1 CRASHES=0 ABORT NACK",
        "NMB=1 K=1 N=1 CRASHES=1",
        "ONE NMB=1 K=2 N=1 CRASHES=1",
        "NMB=2 K=2 N=2 CRASHES=0 STEAL",
        "ONE NMB=2 K=2 N=2 CRASHES=0 STEAL",
        "DROP NMB=1 K=2 N=1 CRASHES=0",
        "SUSPEND NMB=1 K=2 N=1 CRASHES=0",
        "SUSPEND RESUME_END NMB=1 K=2 N=1 CRASHES=0",
        "END NMB=2 K=1 N=1 CRASHES=0",
        "ENDANY NPR=2 NMB=1 K=1 N=2 CRASHES=0",
        "LOSSY NMB=0 K=3 N=1 CRASHES=0 ABORT",
        "LOSSY ONE NMB=0 K=3 N=1 CRASHES=0",
        "MUT_HEAD NMB=1 K=2 N=1 CRASHES=1",
        "MUT_GATE NMB=1 K=2 N=1 CRASHES=1",
        "MUT_NEXT NMB=1 K=1 N=1 CRASHES=1",
        "MUT_PORT ONE NMB=1 K=1 N=1 CRASHES=2",
        "MUT_GEN NMB=1 K=1 N=1 CRASHES=1",
        "MUT_START STEAL NMB=2 K=2 N=2 CRASHES=0",
        "MUT_STEAL STEAL NMB=2 K=2 N=2 CRASHES=0",
        "MUT_DROP DROP NMB=1 K=2 N=1 CRASHES=1",
        "MUT_DROPCAS DROP NMB=1 K=2 N=1 CRASHES=0",
        "MUT_DRAG SUSPEND NMB=1 K=2 N=1 CRASHES=1",
        "MUT_PUB ONE NMB=1 K=1 N=1 CRASHES=0",
        "MUT_LIMIT ONE NMB=1 K=4 N=2 CRASHES=0",
        "MUT_GATE ONE NMB=1 K=2 N=1 CRASHES=1",
        "MUT_NEXT ONE NMB=1 K=1 N=1 CRASHES=1",
        "MUT_WRITER ONE NPR=2 NMB=1 K=1 N=2 CRASHES=0",
        "MUT_END END NMB=2 K=1 N=1 CRASHES=0",
        "MUT_ENDOFF ENDANY NPR=2 NMB=1 K=1 N=2 CRASHES=0",
        "MUT_TAIL LOSSY NMB=0 K=2 N=1 CRASHES=0",
        "MUT_VALID LOSSY NMB=0 K=2 N=1 CRASHES=0",
        "MUT_CUM LOSSY NMB=0 K=2 N=1 CRASHES=1 ABORT",
        "MUT_RESET LOSSY NMB=0 K=4 N=1 CRASHES=0 ABORT",
    ),
    *cases(
        "pins",
        "K=1 NR=2 R=4 LOOKS=1",
        *(
            f"MUT_{mistake} K=1 NR=2 R=4 LOOKS=1"
            for mistake in ("VALID_FIRST", "LOOK_FIRST", "LIMBO", "FEW", "REBUILD", "ONE_LOOK")
        ),
    ),
    *cases(
        "lock",
        "CRASHES=0 NP=3 ROUNDS=2",
        "CRASHES=2 NP=2 ROUNDS=1",
        "CRASHES=1 NP=3 ROUNDS=1",
        "LEAVE NP=3 ROUNDS=1",
        full=True,
    ),
    *cases(
        "wait",
        "MODE=1 NM=3 REC=4",
        "MODE=1 ONE NM=3 REC=3",
        "MODE=2 REC=4",
        "MODE=3 N=4 REC=8",
        "MODE=4 REC=6",
        full=True,
    ),
    *cases(
        "topic",
        "DROP NMB=1 K=2 N=1 CRASHES=1",
        "DROP ONE NMB=1 K=2 N=1 CRASHES=1",
        "SUSPEND NMB=1 K=2 N=1 CRASHES=1",
        "SUSPEND RESUME_END NMB=1 K=2 N=1 CRASHES=1",
        "LOSSY NMB=0 K=2 N=1 CRASHES=1 ABORT",
        "ONE DIRECT NMB=2 K=2 N=2 CRASHES=0 STEAL",
        "ONE NMB=1 K=1 N=1 CRASHES=2",
        "ONE NMB=2 K=1 N=1 CRASHES=1 STEAL",
        "NMB=1 K=3 N=2 CRASHES=1 ABORT NACK",
        "NMB=1 K=2 N=1 CRASHES=2",
        "NMB=2 K=2 N=2 CRASHES=1 STEAL",
        "NPR=2 NMB=1 K=1 N=2 CRASHES=1",
        "ONE NMB=1 K=3 N=2 CRASHES=2",
        "ONE AHEAD=1 NMB=1 K=4 N=2 CRASHES=1",
        "ONE NMB=2 K=2 N=2 CRASHES=1 STEAL",
        "ONE NPR=2 NMB=1 K=1 N=2 CRASHES=1",
        "ONE DIRECT NMB=2 K=2 N=2 CRASHES=1 STEAL",
        "DROP NMB=1 K=3 N=2 CRASHES=1",
        "DROP ONE NMB=1 K=3 N=2 CRASHES=1",
        "DROP NMB=2 K=2 N=1 CRASHES=0 STEAL",
        "SUSPEND NMB=1 K=3 N=2 CRASHES=1",
        "SUSPEND RESUME_END NMB=1 K=3 N=2 CRASHES=1",
        "SUSPEND ONE NMB=1 K=3 N=2 CRASHES=1",
        "END NMB=2 K=1 N=1 CRASHES=1",
        "END ONE NMB=2 K=2 N=2 CRASHES=1",
        "ENDANY NPR=2 NMB=1 K=1 N=2 CRASHES=1",
        "LOSSY NMB=0 K=4 N=1 CRASHES=0 ABORT",
        "LOSSY NMB=0 K=3 N=2 CRASHES=1 ABORT",
        "LOSSY ONE NMB=0 K=4 N=2 CRASHES=1",
        "LOSSY DROP NMB=1 K=2 N=1 CRASHES=0",
        full=True,
    ),
    *cases("pins", "K=2 NR=2 R=3 LOOKS=1", "K=1 NR=2 R=5 LOOKS=2 CRASHES=2", full=True),
    *cases("topic", "NPR=2 NMB=2 K=1 N=2 CRASHES=1 STEAL", full=True, bits=True),
)


@dataclass(frozen=True)
class Result:
    states: int
    seconds: float
    megabytes: float
    what: str  # "holds", "fails: ...", or why it is neither


def find_spin() -> str | None:
    """The spin program: on PATH, unpacked before, or out of Debian's package; ``None`` where it cannot be had."""
    unpacked = KEPT / "usr" / "bin" / "spin"
    if found := shutil.which("spin"):
        return found
    if unpacked.exists():
        return str(unpacked)
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        return None
    KEPT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        got = subprocess.run(
            ["apt-get", "download", "-q", "spin"], cwd=place, capture_output=True, text=True, check=False
        )
        packages = list(Path(place).glob("*.deb"))
        if got.returncode or not packages:
            print(f"apt-get download spin: {got.stderr.strip().splitlines()[-1:]}")
            return None
        subprocess.run(["dpkg-deb", "-x", str(packages[0]), str(KEPT)], check=True)
    return str(unpacked) if unpacked.exists() else None


def check(case: Case, spin: str, memory_mb: int) -> Result:
    """Generate, compile and run the verifier of one case, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="comux-model-") as place:
        options = [f"-D{o}" for o in case.options.split()]
        made = subprocess.run(
            [spin, "-a", *options, str(HERE / f"{case.model}.pml")],
            cwd=place,
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode or not (Path(place) / "pan.c").exists():
            return Result(0, 0, 0, f"spin: {made.stdout.strip()[-200:]}")
        how = ["-DBITSTATE"] if case.bits else ["-DCOLLAPSE", f"-DMEMLIM={memory_mb}"]
        level = "-O2" if case.full else "-O0"
        cc = [os.environ.get("CC", "cc"), level, "-w", "-DSAFETY", "-DVECTORSZ=2048", *how, "-o", "pan", "pan.c"]
        built = subprocess.run(cc, cwd=place, capture_output=True, text=True, check=False)
        if built.returncode:
            return Result(0, 0, 0, f"compiler: {built.stderr.strip()[-200:]}")
        began = time.monotonic()
        ran = subprocess.run(
            ["./pan", f"-m{DEPTH * (10 if case.full else 1)}", *(["-w33"] if case.bits else [])],
            cwd=place,
            capture_output=True,
            text=True,
            check=False,
        )
        return read_result(ran.stdout, time.monotonic() - began)


def read_result(text: str, seconds: float) -> Result:
    """What pan's output says; a search that was cut short is neither "holds" nor "fails"."""
    errors = re.search(r"errors: (\d+)", text)
    states = re.search(r"([\d.e+]+) states, stored", text)
    memory = re.search(r"([\d.]+)\s+total actual memory usage", text)
    why = re.search(r"pan:\s?\d+: (.*?) \(at depth", text)
    if errors and int(errors[1]) and why:
        what = f"fails: {why[1]}"
    elif "max search depth too small" in text or "error: max search" in text:
        what = "cut short: search depth"
    elif "out of memory" in text or "memory limit" in text.lower() or not errors:
        what = "cut short: memory"
    else:
        what = "holds"
    return Result(int(float(states[1])) if states else 0, seconds, float(memory[1]) if memory else 0.0, what)


def weak_memory(wanted: str) -> tuple[int, int]:
    """Run the litmus programs; how many ran and how many deviate."""
    n = bad = 0
    for name, states, fine in litmus.run():
        if wanted and wanted not in f"litmus {name}":
            continue
        n, bad = n + 1, bad + (not fine)
        if not fine:
            print(f"DEVIATES  litmus: {name}: {'violated' if states is None else 'holds'}")
    if n:
        print(f"litmus: {n} programs, {bad} deviate")
    return n, bad


def row(case: Case, result: Result) -> bool:
    """Print one line of the table; whether the result is the wanted one."""
    wanted = "fails" if case.mutant else "holds"
    fine = result.what.startswith(wanted)
    found = result.what if case.mutant or not fine else "holds" + (" (bit-state: not exhaustive)" if case.bits else "")
    print(
        f"{'ok' if fine else 'DEVIATES':<9} {case.model:<6} {case.options:<52} {result.states:>12,} "
        f"{result.seconds:>7.1f} s {result.megabytes:>6.0f} MB  {found[:60]}",
        flush=True,
    )
    return fine


def main() -> int:
    """The command. 0: everything as expected."""
    parser = argparse.ArgumentParser(description="Check the models of the ring and their mutants.")
    parser.add_argument("--full", action="store_true", help="the large configurations too")
    parser.add_argument("--only", default="", help="only what has this word in its name")
    parser.add_argument("--memory", type=float, default=6.0, help="most memory of one search, in GB (default 6)")
    args = parser.parse_args()
    began = time.monotonic()
    n, bad = weak_memory(args.only)
    todo = [c for c in CASES if (args.full or not c.full) and args.only in f"{c.model} {c.options}"]
    spin = find_spin() if todo else None
    if todo and spin is None:
        print(
            f"SKIPPED: {len(todo)} Spin models: spin is neither on PATH nor to be had from Debian; apt-get install spin"
        )
        return 1 if args.full or bad else 0
    for case in todo:
        n += 1
        bad += not row(case, check(case, str(spin), int(args.memory * 1000)))
    print(f"{n} checks, {bad} deviate, {time.monotonic() - began:.0f} s")
    if not n:
        print(f"nothing is called {args.only!r}")
    return 1 if bad or not n else 0


if __name__ == "__main__":
    sys.exit(main())
