"""What ``make models`` checks, as far as it takes seconds: memory orders here, all of it as torture."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "models"
CORE = ROOT / "comux" / "ring" / "_core"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(MODELS))
    spec = importlib.util.spec_from_file_location(f"comux_models_{name}", MODELS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_every_memory_order_is_needed_and_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock-free programs hold under weak memory, and each fails once one of its orders is weakened."""
    results = list(load("litmus", monkeypatch).run())
    assert [name for name, _, fine in results if not fine] == []
    assert sum(states is None for _, states, _ in results) > sum(states is not None for _, states, _ in results)


def test_every_named_order_of_the_core_has_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ``SYNC name`` comment of the C core is named in the table that says which program checks it."""
    table = str(load("litmus", monkeypatch).__doc__)
    named = {n for path in CORE.glob("*.[ch]") for n in re.findall(r"SYNC ([\w-]+) \(", path.read_text())}
    assert named and {n for n in named if not re.search(rf"SYNC .*\b{n}\b", table)} == set()


@pytest.mark.parametrize("model", ["lock", "pins", "topic", "wait"])
def test_every_mutant_in_a_model_is_run_and_every_one_that_is_run_exists(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mutant nobody runs proves nothing, and one that is not in the model would be the model itself."""
    cases = load("run", monkeypatch).CASES
    written = set(re.findall(r"#if(?:n?def| .*defined\() ?(MUT_\w+)", (MODELS / f"{model}.pml").read_text()))
    run = {o for c in cases if c.model == model for o in c.options.split() if o.startswith("MUT_")}
    assert written == run and written


def test_the_functions_a_model_says_it_follows_exist() -> None:
    """The table at the top of each model names functions of the core; one that is gone makes it stale."""
    code = "".join(p.read_text() for p in CORE.glob("*.[ch]"))
    for path in MODELS.glob("*.pml"):
        head = path.read_text().split("*/")[0]
        named = set(re.findall(r"\b(cx_\w+|(?:[a-z]+_)+[a-z]+)\b", " ".join(re.findall(r"\w+\.c (.*)", head))))
        assert named, f"{path.name} has no table"
        assert {n for n in named if not re.search(rf"\b{n}\b", code)} == set(), path.name


@pytest.mark.torture
def test_models_hold_and_mutants_fail() -> None:
    done = subprocess.run([sys.executable, str(MODELS / "run.py")], capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
