"""House rules no linter checks: sizes, room headers, words that must not appear. Numbers may only fall."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = sorted((ROOT / "comux").rglob("*.py"))
C_FILES = sorted([*(ROOT / "comux").rglob("*.c"), *(ROOT / "comux").rglob("*.h")])
MODULE_LINES = 600
FUNCTION_LINES = 70
LONGER_MODULES: dict[str, int] = {}
LONGER_FUNCTIONS: dict[str, int] = {}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", [*PACKAGE, *C_FILES], ids=name)
def test_a_file_is_something_a_person_can_hold(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= LONGER_MODULES.get(name(path), MODULE_LINES)


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_functions_are_short(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            where = f"{name(path)}:{node.name}"
            assert length <= LONGER_FUNCTIONS.get(where, FUNCTION_LINES), f"{where} has {length} lines"


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{name(path)} has no docstring"


@pytest.mark.parametrize(
    "path", [p for p in PACKAGE if p.name == "__init__.py" and p.parent.name != "comux"], ids=lambda p: p.parent.name
)
def test_every_room_says_what_lives_in_it(path: Path) -> None:
    doc = ast.get_docstring(ast.parse(path.read_text())) or ""
    for sentence in ("Lives here", "May import", "Must never know"):
        assert sentence in doc, f"{name(path)} does not say: {sentence}"


def test_every_ordering_of_the_ring_has_both_halves() -> None:
    """A ``SYNC name (release)`` comment needs its ``SYNC name (acquire)``, and the other way round."""
    halves: dict[str, set[str]] = {}
    for path in C_FILES:
        for word, half in re.findall(r"SYNC ([\w-]+) \((release|acquire)\)", path.read_text()):
            halves.setdefault(word, set()).add(half)
    assert halves, "the C core names its orderings with SYNC comments"
    assert {word: h for word, h in halves.items() if h != {"release", "acquire"}} == {}


def test_no_unfinished_marks_or_machine_paths() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: no list of the project's own files")
    marks = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
    paths = re.compile(r"/(wo" + r"rk|ro" + r"ot)/[a-z.]")
    bad = []
    for line in listed.stdout.split("\n"):
        path = ROOT / line
        if not line or not path.is_file() or path.suffix in {".png", ".bin"}:
            continue
        for number, text in enumerate(path.read_text().splitlines(), 1):
            if marks.search(text) or paths.search(text):
                bad.append(f"{line}:{number}: {text.strip()[:80]}")
    assert bad == []
