"""Books of sources that were deleted: they stay in the totals, in memory that does not grow with every deletion.

A deleted source's account is kept as it is while something may still move in it (a picture in a batch under way, a
thread that ends late), and folded into one sum per id after that. The newest ids have a sum of their own; those of
older ones are folded together under ``EARLIER``.
"""

from __future__ import annotations

from typing import Final

from comux.account import AccountSnapshot
from comux.multiplexer.source import Source
from comux.options import CamId

EARLIER: Final = "(earlier)"
_IDS: Final = 1000


class PastBooks:
    """See the module. Used under the caller's lock."""

    def __init__(self) -> None:
        self._open: list[Source] = []
        self._sums: dict[str, tuple[CamId, AccountSnapshot]] = {}  # oldest deletion first

    def add(self, source: Source) -> None:
        """A source was deleted; its thread may still run."""
        self._fold()
        self._open.append(source)

    def _fold(self) -> None:
        still: list[Source] = []
        for source in self._open:
            cam_id, ended, books = source.cam_id, source.join(0), source.account.snapshot()
            if books.held_total or not ended:
                still.append(source)
                continue
            before = self._sums.pop(str(cam_id), (cam_id, AccountSnapshot()))[1]
            self._sums[str(cam_id)] = (cam_id, before + books)
        self._open = still
        while len(self._sums) > _IDS:
            oldest = next(key for key in self._sums if key != EARLIER)
            earlier = self._sums.get(EARLIER, (EARLIER, AccountSnapshot()))[1]
            self._sums[EARLIER] = (EARLIER, earlier + self._sums.pop(oldest)[1])

    def books(self) -> dict[CamId, AccountSnapshot]:
        """By id."""
        out = dict(self._sums.values())
        for source in self._open:
            out[source.cam_id] = out.get(source.cam_id, AccountSnapshot()) + source.account.snapshot()
        return out
