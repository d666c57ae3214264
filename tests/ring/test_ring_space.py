"""Room for topics, looked at before one is created: the file system's, and the control group's limit."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from comux import ring
from comux.errors import NoSpaceError, TopicExistsError
from comux.ring import space

MB = 1 << 20
Kernel = Callable[..., None]


@pytest.fixture
def kernel(tmp_path: Path, ring_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """A /proc and a /sys that say what they are told; topics lie on a tmpfs."""
    device = ring_dir.stat().st_dev

    def say(group: str = "0::/", type: str = "tmpfs", swap_kb: int = 0, **files: Any) -> None:
        proc = tmp_path / "kernel/proc"
        (proc / "self").mkdir(parents=True, exist_ok=True)
        (proc / "self/cgroup").write_text(f"12:cpu,cpuacct:/x\n{group}\n")
        mount = f"30 1 {os.major(device)}:{os.minor(device)} / / rw,nosuid shared:7 - {type} none rw\n"
        (proc / "self/mountinfo").write_text("20 1 0:999 / /elsewhere rw - ext4 /dev/vda rw\n" + mount)
        (proc / "meminfo").write_text(f"MemTotal: 9999999 kB\nSwapTotal: {swap_kb} kB\n")
        for name, value in files.items():
            path = tmp_path / "kernel/sys/fs/cgroup" / name.replace("__", "/").replace("_DOT_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{value}\n")

    monkeypatch.setattr(space, "ROOT", tmp_path / "kernel")
    return say


def a_topic(directory: Path, megabytes: int) -> None:
    ring.create(ring.RingSpec("t", slots=16, data_bytes=megabytes * MB), directory=directory).close()


def test_a_topic_larger_than_the_memory_limit_is_refused_and_nothing_is_created(kernel: Kernel, ring_dir: Path) -> None:
    kernel(memory_DOT_max=8 * MB, memory_DOT_current=MB)
    with pytest.raises(NoSpaceError) as error:
        a_topic(ring_dir, 16)
    for words in ("topic 't' needs 16.", "control group", "8.4 MB", "docker run --memory", "fewer slots"):
        assert words in str(error.value)
    assert list(ring_dir.iterdir()) == []


def test_a_topic_that_fits_under_the_limit_but_not_beside_the_rest_warns(kernel: Kernel, ring_dir: Path) -> None:
    kernel(memory_DOT_max=24 * MB, memory_DOT_current=20 * MB)
    with pytest.warns(RuntimeWarning, match=r"takes 16\.\d MB of memory, 4\.2 MB are left .* --memory") as caught:
        a_topic(ring_dir, 16)
    assert Path(caught[0].filename).name == Path(__file__).name
    assert ring.names(ring_dir) == ["t"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(TopicExistsError):  # it takes no memory any more
            a_topic(ring_dir, 16)


@pytest.mark.parametrize("case", ["disk", "swap", "droppable", "no-limit", "unlimited-v1"])
def test_what_is_no_reason_to_warn(kernel: Kernel, ring_dir: Path, case: str) -> None:
    full = {"memory_DOT_max": 24 * MB, "memory_DOT_current": 20 * MB}
    if case == "disk":
        kernel(type="ext4", **full)
    elif case == "droppable":
        kernel(**full, memory_DOT_stat=f"anon 5\ninactive_file {19 * MB}")
    elif case == "swap":
        kernel(swap_kb=64 << 10, memory_DOT_max=8 * MB, memory_DOT_current=0)
    elif case == "no-limit":
        kernel(memory_DOT_max="max", memory_DOT_current=20 * MB)
    else:
        kernel("4:memory:/", memory__memory_DOT_limit_in_bytes=2**63 - 4096)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if case == "swap" else "error")  # swapped out it fits: warned of, not refused
        a_topic(ring_dir, 16)
    assert ring.names(ring_dir) == ["t"]


def test_the_narrowest_of_all_groups_above_counts(kernel: Kernel, ring_dir: Path) -> None:
    kernel(
        "0::/slice/job",
        slice__memory_DOT_max=64 * MB,
        slice__memory_DOT_current=60 * MB,
        slice__job__memory_DOT_max=32 * MB,
        slice__job__memory_DOT_current=MB,
    )
    found = space.space_of(ring_dir)
    assert (found.limit, found.limit_free) == (32 * MB, 4 * MB)
    assert found.usable == 4 * MB
    # The first version of control groups; the path of the host, which is not in the container.
    kernel("4:memory:/docker/abc", memory__memory_DOT_limit_in_bytes=16 * MB, memory__memory_DOT_usage_in_bytes=MB)
    found = space.space_of(ring_dir / "not" / "there")
    assert (found.limit, found.limit_free, found.directory) == (16 * MB, 15 * MB, ring_dir)


def test_a_full_file_system_refuses_before_anything_is_allocated(
    ring_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = space.space_of(ring_dir).free
    assert free is not None
    spec = ring.RingSpec("huge", slots=16, data_bytes=free + 64 * MB)
    with pytest.raises(NoSpaceError, match=r"'huge' needs .* are free in .*--shm-size=\d+M or --ipc=host.*COMUX_DIR"):
        ring.create(spec, directory=ring_dir)
    assert list(ring_dir.iterdir()) == []
