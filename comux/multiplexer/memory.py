"""Memory for pictures, made ready before a source counts as running, and given back when it has gone.

Fresh memory costs milliseconds of page faults a picture, so it is mapped and touched at a source's first picture. How
much there should be depends on the sources there are: one that comes among others of its kind adds its share, one that
is changed or deleted takes its share along. So sources that come and go do not let the memory grow.
"""

from __future__ import annotations

import logging
import threading
from typing import Any, Final

import numpy as np

from comux.decoders.interface import Picture
from comux.decoders.pool import ArrayPool, ArraySpec
from comux.multiplexer.pictures import StoreMode
from comux.options import CamId

_log = logging.getLogger("comux.multiplexer")

_EACH: Final = 3  # arrays of a source that keeps every frame: being filled, waiting, with the user
_BLOCKS: Final = 2  # of all sources that keep the freshest: being filled, with the user


class Memory:
    """What the sources need of a pool. Thread-safe.

    Args:
        pool: Of the manager.
    """

    def __init__(self, pool: ArrayPool) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._needs: dict[str, tuple[StoreMode, tuple[int, ...], np.dtype[Any]]] = {}

    def warm(self, cam_id: CamId, mode: StoreMode, picture: Picture, sources: int) -> None:
        """A source's first picture is there: map and touch what pictures like it will need. May take milliseconds.

        Kept ``freshest``, pictures are converted by whoever takes a batch, into one block for all sources.

        Args:
            cam_id: Of the source; what it needed before is not needed any more.
            mode: How it keeps its pictures.
            picture: Its first.
            sources: How many there are.
        """
        if picture.passed is not None:
            return  # whoever decoded it has memory of its own for its arrays
        try:
            shape, dtype = picture.array_spec()
            with self._lock:
                before = self._needs.get(str(cam_id))
                need = self._needs[str(cam_id)] = (mode, shape, dtype)
                if before not in (None, need):
                    self._pool.trim(self._wanted(sources))
                if mode == "every_frame":
                    self._pool.prepare(shape, dtype, _EACH * sum(other == need for other in self._needs.values()))
                else:
                    self._pool.prepare((sources, *shape), dtype, _BLOCKS)
        except Exception as exc:  # noqa: BLE001 - a picture that cannot become an array is told of where it is converted
            _log.debug("no memory made ready: %s", exc)

    def forget(self, cam_id: CamId, sources: int) -> None:
        """A source has gone: give back what it alone needed.

        Args:
            cam_id: Of the source.
            sources: How many there are still.
        """
        with self._lock:
            if self._needs.pop(str(cam_id), None) is not None:
                self._pool.trim(self._wanted(sources))

    def _wanted(self, sources: int) -> list[ArraySpec]:
        wanted: list[ArraySpec] = []
        for mode, shape, dtype in self._needs.values():
            wanted.append((shape, dtype, _EACH if mode == "every_frame" else _BLOCKS))
        for shape, dtype in {(shape, dtype) for mode, shape, dtype in self._needs.values() if mode == "freshest"}:
            wanted.append(((sources, *shape), dtype, _BLOCKS))
        return wanted
