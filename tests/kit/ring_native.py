"""The ring's C sources built again for tests: with one change that breaks the protocol, or under a sanitizer.

What is shipped carries no mutants. A ``Change`` is a text to be replaced, which must be there exactly once: where the
core has moved on, the test fails and says so, instead of testing an unchanged copy.

``build_extension`` lays a newly built binding over a folder of links to the installed package; a Python with that
folder first in PYTHONPATH runs it. ``build_program`` links the core with a C program of ``tests/ring/native``, without
Python.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import comux

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "comux" / "ring" / "_core"
PROGRAMS = ROOT / "tests" / "ring" / "native"
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
COMPILER = (os.environ.get("CC") or "cc").split()


@dataclass(frozen=True)
class Change:
    """In ``file``, ``was`` becomes ``now``."""

    file: str
    was: str
    now: str


@dataclass(frozen=True)
class Mutant:
    """``failpoints``: at which steps a death shows the difference; empty: none is needed, or any may do."""

    name: str
    changes: tuple[Change, ...]
    failpoints: tuple[str, ...] = ()


def patched_copy(changes: Iterable[Change], place: Path) -> Path:
    """A copy of the core's sources with the changes made.

    Raises:
        AssertionError: a text to be replaced is not there exactly once.
    """
    copy = place / "_core"
    shutil.copytree(CORE, copy)
    for change in changes:
        file = copy / change.file
        text = file.read_text()
        found = text.count(change.was)
        assert found == 1, f"{change.file} has {found} times, not once:\n{change.was}"
        file.write_text(text.replace(change.was, change.now))
    return copy


def compiles(flags: Sequence[str], place: Path, compiler: Sequence[str] = COMPILER, program: str = "") -> bool:
    """Whether the compiler can build and start a program with these flags (a sanitizer's library may be missing)."""
    source = place / "probe.c"
    source.write_text((program or "int main(void) { return 0; }") + "\n")
    target = place / "probe"
    try:
        done = subprocess.run([*compiler, *flags, str(source), "-o", str(target)], capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return done.returncode == 0 and subprocess.run([target], capture_output=True, check=False).returncode == 0


def build_program(
    name: str,
    place: Path,
    flags: Sequence[str],
    core: Path = CORE,
    more: Sequence[str] = (),
    compiler: Sequence[str] = COMPILER,
) -> Path:
    """A program of ``tests/ring/native`` with the core, without Python.

    Args:
        more: further sources of that folder.
    """
    place.mkdir(parents=True, exist_ok=True)
    sources = [PROGRAMS / f"{name}.c", *(PROGRAMS / f"{other}.c" for other in more)]
    sources += [source for source in sorted(core.glob("*.c")) if not source.name.startswith("binding")]
    flags = ["-g", *flags]
    return _link(
        _compile(sources, [f"-I{core}", *flags], place, compiler), [*flags, "-pthread"], place / name, compiler
    )


def build_extension(core: Path, place: Path, flags: Sequence[str], failpoints: Sequence[bool] = (True,)) -> Path:
    """Build the binding (with failpoints, without) from these sources; the folder to be put first in PYTHONPATH."""
    tree = place / "tree"
    _mirror(Path(comux.__file__).parent, tree / "comux")
    _mirror(Path(comux.__file__).parent / "ring", tree / "comux" / "ring")
    include = sysconfig.get_path("include")
    for wanted in failpoints:
        name = "_ring_failpoints" if wanted else "_ring"
        objects = place / f"objects{name}"
        objects.mkdir()
        macros = ["-DCOMUX_FAILPOINTS=1"] if wanted else []
        built = _compile(
            sorted(core.glob("*.c")), ["-fPIC", "-fvisibility=hidden", f"-I{include}", *macros, *flags], objects
        )
        extension = tree / "comux" / "ring" / (name + SUFFIX)
        extension.unlink()
        _link(built, ["-shared", "-pthread", *flags], extension)
    return tree


def _compile(
    sources: Sequence[Path], flags: Sequence[str], place: Path, compiler: Sequence[str] = COMPILER
) -> list[Path]:
    def one(source: Path) -> Path:
        target = place / (source.stem + ".o")
        _run([*compiler, "-std=gnu11", "-fno-strict-aliasing", *flags, "-c", str(source), "-o", str(target)])
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(one, sources))


def _link(objects: Sequence[Path], flags: Sequence[str], target: Path, compiler: Sequence[str] = COMPILER) -> Path:
    _run([*compiler, *map(str, objects), *flags, "-o", str(target)])
    return target


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _mirror(folder: Path, to: Path) -> None:
    """``to``: a real folder of links to what is in ``folder``."""
    if to.is_symlink():
        to.unlink()
    to.mkdir(parents=True)
    for entry in folder.iterdir():
        if entry.name != "__pycache__":
            (to / entry.name).symlink_to(entry)
