"""Memory that the program and a process share: slots for pictures, lent by the program and handed out as arrays.

**Problem.** The array that a caller gets must be its own, writable, for as long as it likes, and must cost no copy. So
the process converts straight into the memory of that array, and who may write where is the program's to say.

**Slots.** A slot is in exactly one state: *free*, *granted* (the process may write a picture into it), or *out* (an
array lies over it). The program lays the array over it, and the array's weak reference puts the slot back when the last
view of it has gone, as in ``decoders.pool``: the callback may run in any thread and takes no lock. The process writes
only into what is granted; when it is dead, or its decoder closed, what was granted is free.

Segments of a few slots each are mapped as they are needed and let go when all their slots are free and others idle.
"""

from __future__ import annotations

import itertools
import mmap
import os
import weakref
from collections import deque
from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_PAGE: Final = mmap.PAGESIZE
_SEGMENT_BYTES: Final = 4 << 20  # about: each is a descriptor on either side, so small pictures lie many in one
_SLOTS_LEAST: Final = 2
_SLOTS_MOST: Final = 16
_IDLE: Final = 4  # slots that stay mapped though nothing lies in them
_FLAGS: Final = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)


def pages(size: int) -> int:
    """``size`` rounded up to whole pages, at least one."""
    return max(1, -(-size // _PAGE)) * _PAGE


def memory_of(size: int) -> tuple[mmap.mmap, int]:
    """New shared memory of ``size`` bytes, its pages present, and a descriptor of it, which is the caller's.

    Raises:
        OSError: there is not so much.
    """
    fd = os.memfd_create("comux-decoding", os.MFD_CLOEXEC)
    try:
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, size)
        return mmap.mmap(fd, size, flags=_FLAGS), fd
    except BaseException:
        os.close(fd)
        raise


def mapped(fd: int, size: int) -> mmap.mmap:
    """The other side of ``memory_of``; closes ``fd``."""
    try:
        return mmap.mmap(fd, size, flags=_FLAGS)
    finally:
        os.close(fd)


class _Segment:
    def __init__(self, number: int, slot_bytes: int) -> None:
        self.number = number
        self.slot_bytes = slot_bytes
        self.slots = max(_SLOTS_LEAST, min(_SLOTS_MOST, _SEGMENT_BYTES // slot_bytes))
        self.memory, self.fd = memory_of(slot_bytes * self.slots)
        self.free: deque[int] = deque(range(self.slots))
        self.loans: dict[int, tuple[weakref.ref[Any], int]] = {}

    def array(self, slot: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        array: npt.NDArray[Any] = np.ndarray(shape, dtype, self.memory, slot * self.slot_bytes)
        loan = weakref.ref(array, self._returned)
        self.loans[id(loan)] = (loan, slot)
        return array

    def _returned(self, loan: weakref.ref[Any]) -> None:
        self.free.append(self.loans.pop(id(loan))[1])


class SlotPool:
    """The program's side. For one thread; arrays may be let go of in any.

    Attributes:
        granted: Slots the process may write into, as ``[segment, slot]``, in the order in which it will.
    """

    def __init__(self) -> None:
        self.granted: deque[list[int]] = deque()
        self._segments: dict[int, _Segment] = {}
        self._numbers = itertools.count()
        self._slot_bytes = 0

    @property
    def nbytes(self) -> int:
        """Memory that is mapped, in bytes; what lies under arrays of earlier sizes is not counted."""
        return sum(segment.slot_bytes * segment.slots for segment in list(self._segments.values()))

    @property
    def lent(self) -> int:
        """Arrays that somebody holds."""
        return sum(len(segment.loans) for segment in list(self._segments.values()))

    def grant(self, count: int, size: int = 0) -> tuple[list[list[int]], list[list[int]], list[int]]:
        """Let the process have ``count`` slots in all.

        Args:
            count: How many it shall have, those granted before included.
            size: Of a picture in bytes where it has asked; another one than before takes back what was granted.

        Returns:
            What is granted now, as ``[segment, slot]``; new segments as ``[segment, slot_bytes, slots]``; and their
            descriptors, in the same order, to be closed by the caller.

        Raises:
            OSError: there is not so much memory.
        """
        if size and pages(size) != self._slot_bytes:
            self._resize(pages(size))
        grants: list[list[int]] = []
        fresh: list[list[int]] = []
        fds: list[int] = []
        while self._slot_bytes and len(self.granted) < count:
            place = self._free()
            if place is None:
                segment = _Segment(next(self._numbers), self._slot_bytes)
                self._segments[segment.number] = segment
                fresh.append([segment.number, segment.slot_bytes, segment.slots])
                fds.append(segment.fd)
                place = [segment.number, segment.free.popleft()]
            self.granted.append(place)
            grants.append(place)
        return grants, fresh, fds

    def _free(self) -> list[int] | None:
        for segment in self._segments.values():
            if segment.free:
                return [segment.number, segment.free.popleft()]
        return None

    def _resize(self, slot_bytes: int) -> None:
        self.granted.clear()  # with the segments: arrays that lie in them keep what they need
        self._segments.clear()
        self._slot_bytes = slot_bytes

    def take(self, place: list[int], shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """The array over a slot that the process has written to.

        Raises:
            ValueError: it was not the next one granted, or is too small: the process is not what it should be.
        """
        if not self.granted or self.granted[0] != place:
            raise ValueError(f"slot {place} was not the next one granted")
        segment = self._segments[place[0]]
        if prod(shape) * dtype.itemsize > segment.slot_bytes or dtype.hasobject:
            raise ValueError(f"{dtype} {shape} is more than a slot of {segment.slot_bytes} bytes")
        self.granted.popleft()
        return segment.array(place[1], shape, dtype)

    def trim(self) -> list[int]:
        """Let go of segments in which nothing lies while ``_IDLE`` other slots are free; their numbers."""
        gone: list[int] = []
        for number, segment in list(self._segments.items()):
            free = sum(len(other.free) for other in self._segments.values())
            if len(segment.free) == segment.slots and free - segment.slots >= _IDLE:
                del self._segments[number]
                gone.append(number)
        return gone


class Slots:
    """The process's side of a ``SlotPool``."""

    def __init__(self) -> None:
        self._segments: dict[int, tuple[mmap.mmap, int]] = {}
        self._granted: deque[list[int]] = deque()

    def update(self, message: dict[str, Any], fds: list[int]) -> None:
        """Take in what a message says of slots; the last of its descriptors are those of new segments."""
        for number, slot_bytes, slots in message.get("segments", ()):
            if any(size != slot_bytes for _, size in self._segments.values()):
                self._segments.clear()
            self._segments[number] = (mapped(fds.pop(0), slot_bytes * slots), slot_bytes)
        for number in message.get("gone", ()):
            self._segments.pop(number, None)
        self._granted.extend(message.get("slots", ()))

    def next_for(self, size: int) -> list[int] | None:
        """The next slot granted, where it is one for a picture of so many bytes; else none is left."""
        if self._granted and self._segments[self._granted[0][0]][1] == pages(size):
            return self._granted[0]
        self._granted.clear()  # of another size: the program takes them back
        return None

    def array(self, place: list[int], shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """The array to write a picture to."""
        memory, slot_bytes = self._segments[place[0]]
        array: npt.NDArray[Any] = np.ndarray(shape, dtype, memory, place[1] * slot_bytes)
        return array

    def used(self) -> None:
        """The next slot holds a picture now."""
        self._granted.popleft()
