"""What every benchmark shares: the machine in words, payloads and their checks, medians with their spread, tables."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

VARIANTS = 8  # different payloads, sent in turn
SMALL = 64 * 1024
PACKAGES = ("comux", "numpy", "av", "pyzmq", "opencv-python-headless")


def payloads(size: int) -> list[bytes]:
    rng = np.random.default_rng(7)
    return [rng.integers(0, 256, size, dtype=np.uint8).tobytes() for _ in range(VARIANTS)]


def checksum_of(size: int) -> Callable[[Any], int]:
    """Reads every byte of a buffer, as fast as there is: XXH3 for small records, a 64-bit sum for large ones."""
    if size <= SMALL:
        return xxhash.xxh3_64_intdigest  # type: ignore[no-any-return]
    add, view, u64 = np.add.reduce, np.frombuffer, np.uint64
    return lambda buffer: int(add(view(buffer, u64)))


class Check:
    """Counts records whose bytes are not those of the record expected next."""

    def __init__(self, size: int) -> None:
        self.checksum = checksum_of(size)
        self.expected = [self.checksum(p) for p in payloads(size)]


def machine(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """The machine and the versions that decide the figures."""
    model = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": versions,
    }


def describe(facts: dict[str, Any]) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in facts["packages"].items())
    return f"{facts['cpu']}, {facts['cores']} cores, Linux {facts['kernel']}, Python {facts['python']}; {versions}"


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest of one figure's rounds."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def human(rate: float) -> str:
    """``1234567`` -> ``1.23 M``."""
    for limit, unit in ((1e6, " M"), (1e3, " k")):
        if rate >= limit:
            return f"{rate / limit:.3g}{unit}"
    return f"{rate:.3g}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def save(path: Path, results: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
