"""The table of sources: never changed, swapped whole, so that a running ``get_batch`` keeps the one it began with."""

from __future__ import annotations

from dataclasses import dataclass

from comux.multiplexer.source import Source
from comux.options import CamId


@dataclass(frozen=True)
class Table:
    """The sources as they are, in order."""

    sources: tuple[Source, ...] = ()

    def find(self, cam_id: CamId) -> Source | None:
        """The source of that id; ``1`` and ``"1"`` are the same."""
        return next((source for source in self.sources if str(source.cam_id) == str(cam_id)), None)
