"""How much memory topics can still have: of the file system they lie on, and under the limit of the control group.

The two refuse in different ways. A file system that is full says so, and the core asks it before it creates anything
(``NoSpaceError``). A control group's limit never says no: a page too many ends a process (the OOM killer), and pages of
tmpfs count for whoever touches them first, which is who creates the topic. So the limit is read before.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from comux.errors import NoSpaceError

from .spec import RingSpec

ROOT: Final = Path("/")  #: what /proc and /sys are found in
_MEMORY_TYPES: Final = ("tmpfs", "ramfs")
_UNLIMITED: Final = 1 << 60


@dataclass(frozen=True, slots=True)
class Space:
    """What there is for topics of one directory, in bytes.

    Attributes:
        directory: It, or where it does not exist yet the nearest one above it that does.
        size, free: Of its file system; ``None`` where that has no bound of its own.
        in_memory: Whether its files are memory (tmpfs), and so count for the control group.
        limit: The least memory limit of this process' control group and those above it; ``None`` without one.
        limit_free: What is left under it, pages that can be dropped not counted as used.
        swap: What the group may swap out beside the limit.
    """

    directory: Path
    size: int | None
    free: int | None
    in_memory: bool
    limit: int | None
    limit_free: int | None
    swap: int

    @property
    def usable(self) -> int | None:
        """Bytes that topics may have without anything being refused or killed; ``None``: no bound is known."""
        bounds = [self.free, (self.limit_free if self.in_memory else None)]
        known = [bound for bound in bounds if bound is not None]
        return min(known) if known else None


def space_of(directory: Path) -> Space:
    """Look at what there is; creates nothing.

    Raises:
        OSError: the file system cannot be asked.
    """
    place = directory.absolute()
    while not place.exists():
        place = place.parent
    stat = os.statvfs(place)
    bounded = stat.f_blocks > 0  # tmpfs with size=0 has no bound, and says 0
    limits = list(_limits())
    least = min(limits, default=None)
    return Space(
        directory=place,
        size=stat.f_blocks * stat.f_frsize if bounded else None,
        free=stat.f_bavail * stat.f_frsize if bounded else None,
        in_memory=_type_of(place) in _MEMORY_TYPES,
        limit=None if least is None else least[0],
        limit_free=min((limit - used for limit, used, _ in limits), default=None),
        swap=0 if least is None else least[2],
    )


def check_limit(spec: RingSpec, directory: Path) -> None:
    """Before a topic is created: what the control group allows. The file system's room is the core's to check.

    Warns (``RuntimeWarning``) where the topic fits under the limit only once something else has gone.

    Raises:
        NoSpaceError: the whole limit is less than the topic; the message has the numbers and the remedy.
    """
    try:
        space = space_of(directory)
    except OSError:  # creating will meet it too, and say where
        return
    if not space.in_memory or space.limit is None or space.limit_free is None:
        return
    need = spec.required_bytes
    if need > space.limit + space.swap:
        raise NoSpaceError(
            f"topic {spec.name!r} needs {megabytes(need)}, the memory limit of this container (control group) is "
            f"{megabytes(space.limit)}; {_remedy(need)}, or ask for fewer slots or data_bytes"
        )
    if need > space.limit_free:
        warnings.warn(
            f"topic {spec.name!r} takes {megabytes(need)} of memory, {megabytes(max(0, space.limit_free))} are left of "
            f"this container's limit of {megabytes(space.limit)}: a process may be killed for it; {_remedy(need)}",
            RuntimeWarning,
            stacklevel=3,
        )


def megabytes(count: int) -> str:
    """``1234567`` as ``1.2 MB``."""
    return f"{count / 1e6:.1f} MB"


def _remedy(need: int) -> str:
    return f"raise it (docker run --memory=…, by {-(-need // 10**6)}m or more)"


# -- what the kernel says ------------------------------------------------------------------------------------------


def _type_of(place: Path) -> str:
    """The type of the file system a path lies on; empty where the kernel does not tell."""
    device = place.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in _read(ROOT / "proc/self/mountinfo").splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[2:3] == [number]:
            return rest.split()[0]
    return ""


def _limits() -> Iterator[tuple[int, int, int]]:
    """Limit, bytes in use and swap allowed, of this process' control group and each one above it that has a limit."""
    for base, group, version in _groups():
        names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        # In a container a group may have its path on the host, which is not there: then those above it count.
        for place in (base / group, *(base / group).parents):
            limit = _number(_read(place / names[0]))
            if limit is not None and limit < _UNLIMITED:
                used = max(0, (_number(_read(place / names[1])) or 0) - _droppable(place))
                yield limit, used, _swap(place)
            if place == base:
                break


def _groups() -> Iterator[tuple[Path, str, int]]:
    for line in _read(ROOT / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            yield ROOT / "sys/fs/cgroup", path.lstrip("/"), 2
        elif "memory" in controllers.split(","):
            yield ROOT / "sys/fs/cgroup/memory", path.lstrip("/"), 1


def _droppable(place: Path) -> int:
    """Pages of files on disks that nobody uses: the kernel drops them before it kills."""
    facts = dict(line.split(" ", 1) for line in _read(place / "memory.stat").splitlines() if " " in line)
    return _number(facts.get("total_inactive_file", facts.get("inactive_file", ""))) or 0


def _swap(place: Path) -> int:
    total = 0
    for line in _read(ROOT / "proc/meminfo").splitlines():
        if line.startswith("SwapTotal:"):
            total = int(line.split()[1]) * 1024
    allowed = _number(_read(place / "memory.swap.max"))
    return total if allowed is None else min(total, allowed)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(text: str) -> int | None:
    word = text.strip()
    return int(word) if word.isdigit() else None
