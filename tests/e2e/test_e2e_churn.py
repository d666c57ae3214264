"""Sources come and go beside eight cameras: nothing grows, and the cameras' loop does not miss a picture.

``benchmarks/churn/bench.py`` measures, and says what is wrong. It runs in a process of its own: the memory of this one
is everybody's.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "benchmarks" / "churn" / "bench.py"


def _churn(folder: Path, *arguments: str, timeout: float = 110.0) -> tuple[int, str, dict[str, Any]]:
    """Exit code, what was printed, and what was measured."""
    call = [sys.executable, str(BENCH), "--quiet", "1", "--json", str(folder / "churn.json"), *arguments]
    done = subprocess.run(call, capture_output=True, text=True, timeout=timeout, check=False)
    assert (folder / "churn.json").exists(), done.stdout + done.stderr
    return done.returncode, done.stdout + done.stderr, json.loads((folder / "churn.json").read_text())


def _judge(result: dict[str, Any]) -> list[str]:
    spec = importlib.util.spec_from_file_location("comux_churn_bench", BENCH)
    assert spec is not None and spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    found: list[str] = bench.judge(result)
    return found


def test_fifty_sources_come_and_go_and_nothing_grows(tmp_path: Path) -> None:
    code, text, result = _churn(tmp_path, "--cycles", "50", "--every", "1")
    assert code == 0 and "WRONG" not in text, text
    assert len(result["cameras"]) == 8 and len(result["samples"]) == 51
    assert all(book["delivered"] > 0 for book in result["cameras"].values())
    assert _judge(result) == []

    # What each of its sentences is there for: it is not said of the above because it never is.
    def spoilt(change: Any) -> list[str]:
        other = copy.deepcopy(result)
        change(other)
        return _judge(other)

    for kind in ("threads", "descriptors", "segments"):
        assert [line.split(":")[0] for line in spoilt(lambda r, k=kind: r["samples"][-1].update({k: 99}))] == [kind]
    book = result["cameras"]["cam3"]
    jumped = spoilt(lambda r: r["cameras"]["cam3"].update(dropped={"jumped": 1}, delivered=book["delivered"] - 1))
    assert "dropped {'jumped': 1}" in jumped[0]
    assert "balance" in spoilt(lambda r: r["cameras"]["cam3"].update(delivered=book["delivered"] - 1))[0]
    assert "never came" in spoilt(lambda r: r["cameras"]["cam3"].update(missing=1))[0]


def test_a_leak_of_fifty_kilobytes_a_cycle_is_found(tmp_path: Path) -> None:
    code, text, _ = _churn(tmp_path, "--cycles", "100", "--every", "2", "--cameras", "2", "--plant", "memory")
    assert code == 1 and "WRONG: memory: " in text, text


@pytest.mark.torture
def test_a_thousand_sources_come_and_go_and_nothing_grows(tmp_path: Path) -> None:
    code, text, result = _churn(tmp_path, "--cycles", "1000", timeout=1800)
    print(text)
    assert code == 0 and "WRONG" not in text, text
    assert len(result["cameras"]) == 8 and result["cycles"] == 1000
