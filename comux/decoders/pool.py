"""Recycled arrays: memory for pictures that is handed out again only after everybody has let go of it.

The problem. A 1080p BGR array is 6.2 MB. Freshly mapped memory costs 0.2-4 ms of page faults per picture, more than the
conversion that fills it, and ``numpy.empty`` gives such memory back to the kernel each time.

The algorithm. The pool owns *mappings*: private, page-touched memory, aligned to 64 bytes (2 MiB where the array is
that large). ``take`` lays a fresh ndarray over an idle mapping and keeps only a weak reference to it. Every view,
slice, memoryview or DLPack capsule made from that ndarray holds the ndarray itself alive (it is the end of numpy's
chain of bases, because a mapping is no ndarray), so the weak reference's callback runs exactly when the last of them
is gone, and puts the mapping back. Counting references by hand would say the same under the GIL, but not on
free-threaded builds nor on interpreters that borrow references (3.14); the callback is right on all of them.

Invariants. A mapping is in exactly one of: idle, under one living ndarray, forgotten. Nothing is written to a mapping
by the pool after it was handed out. The callback may run in any thread and inside the garbage collector, so it takes
no lock: it only calls single operations that are atomic.
"""

from __future__ import annotations

import contextlib
import mmap
import weakref
from collections import Counter, deque
from collections.abc import Iterable
from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_PAGE: Final = mmap.PAGESIZE
_HUGE: Final = 2 << 20
_KEPT: Final = 2  # of a size, whatever the limit says
_Loan = weakref.ref[npt.NDArray[Any]]
ArraySpec = tuple[tuple[int, ...], npt.DTypeLike, int]  #: shape, dtype, how many


class _Mapping:
    """Private memory of ``size`` bytes that begins ``offset`` bytes into ``memory``, all pages present."""

    __slots__ = ("memory", "offset", "size")

    def __init__(self, size: int) -> None:
        align = _HUGE if size >= _HUGE else _PAGE
        self.size = size
        # Mapped one alignment too long; what is cut off at both ends is never touched and so costs no memory.
        self.memory = mmap.mmap(-1, size + align, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        start = np.frombuffer(self.memory, np.uint8).ctypes.data
        self.offset = -start % align
        if align == _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
            # A kernel without transparent huge pages refuses; small pages serve as well, a little slower.
            with contextlib.suppress(OSError):
                self.memory.madvise(mmap.MADV_HUGEPAGE, self.offset, size)
        np.frombuffer(self.memory, np.uint8, size, self.offset)[::_PAGE] = 0  # the kernel has zeroed the rest


class ArrayPool:
    """Arrays whose memory is recycled.

    Args:
        max_idle_bytes: Idle memory kept for later; what comes back beyond it is given to the system, except that two
            arrays of a size are always kept (a batch of many cameras may be larger than any such limit).

    Thread-safe; ``take`` never waits. Arrays may outlive the pool. A child made by ``fork`` has private copies.
    """

    def __init__(self, max_idle_bytes: int = 256 << 20) -> None:
        self.max_idle_bytes = max_idle_bytes
        self.mapped = 0  #: mappings ever made; steady once the pool is warm
        self._idle: dict[int, deque[_Mapping]] = {}
        self._loans: dict[int, tuple[_Loan, _Mapping]] = {}

    def take(self, shape: tuple[int, ...], dtype: npt.DTypeLike = np.uint8) -> npt.NDArray[Any]:
        """Hand out a C-contiguous array that nobody else holds.

        Args:
            shape: Of the array.
            dtype: Of the array; no object dtypes.

        Returns:
            An array aligned to 64 bytes at least, its contents undefined (old pixels). Its memory is used again when
            it and all views of it are gone.

        Raises:
            ValueError: the dtype holds Python objects.
        """
        dtype = np.dtype(dtype)
        if dtype.hasobject:
            raise ValueError(f"dtype {dtype} holds Python objects; recycled memory cannot")
        size = _size(shape, dtype)
        try:
            mapping = self._idle[size].pop()
        except (KeyError, IndexError):
            mapping = self._map(size)
        array: npt.NDArray[Any] = np.ndarray(shape, dtype, mapping.memory, mapping.offset)
        loan = weakref.ref(array, self._returned)
        self._loans[id(loan)] = (loan, mapping)
        return array

    def prepare(self, shape: tuple[int, ...], dtype: npt.DTypeLike = np.uint8, count: int = 1) -> None:
        """See to it that memory for ``count`` arrays is there, what is lent included: map and touch what is missing.

        Each costs the kernel milliseconds; a source pays them before it counts as running. Blocks that long.

        Args:
            shape: Of the arrays.
            dtype: Of the arrays.
            count: How many; fewer where ``max_idle_bytes`` is reached.
        """
        size = _size(shape, np.dtype(dtype))
        there = len(self._idle.get(size, ())) + sum(mapping.size == size for _, mapping in list(self._loans.values()))
        for _ in range(count - there):
            if not self._room(size):
                return
            self._idle.setdefault(size, deque()).append(self._map(size))

    def trim(self, wanted: Iterable[ArraySpec]) -> None:
        """Give idle memory beyond what is wanted to the system; what is lent stays.

        Args:
            wanted: Shape, dtype and number of the arrays for which memory may idle.
        """
        most: Counter[int] = Counter()
        for shape, dtype, count in wanted:
            most[_size(shape, np.dtype(dtype))] += count
        for size, mappings in list(self._idle.items()):
            with contextlib.suppress(IndexError):  # another thread took the last one meanwhile
                while len(mappings) > most[size]:
                    mappings.pop()

    @property
    def idle_bytes(self) -> int:
        """Memory that waits for its next use, in bytes."""
        return sum(size * len(mappings) for size, mappings in list(self._idle.items()))

    @property
    def lent(self) -> int:
        """Arrays handed out whose memory is still held by somebody."""
        return len(self._loans)

    def _map(self, size: int) -> _Mapping:
        # Another size than before: the pictures have changed, so what idles in other sizes makes room.
        for other in list(self._idle):
            while other != size and self.idle_bytes + size > self.max_idle_bytes and self._idle[other]:
                try:
                    self._idle[other].pop()
                except IndexError:
                    break
        self._idle.setdefault(size, deque())
        self.mapped += 1
        return _Mapping(size)

    def _returned(self, loan: _Loan) -> None:
        _, mapping = self._loans.pop(id(loan))
        if self._room(mapping.size):
            self._idle[mapping.size].append(mapping)

    def _room(self, size: int) -> bool:
        """Whether one more mapping may idle."""
        return len(self._idle.get(size, ())) < _KEPT or self.idle_bytes + size <= self.max_idle_bytes


def _size(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Bytes of the mapping under such an array: whole pages."""
    return max(1, -(-prod(shape) * dtype.itemsize // _PAGE)) * _PAGE
