"""What ``get_batch`` gives: one item per source, in the order of ``cam_ids``.

Lives here: ``Item``, ``Batch``, ``Status``, ``Timestamps``: plain facts, complete when the caller gets them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from comux.decoders.interface import Identity
from comux.errors import ConfigError, UnknownSourceError
from comux.options import CamId
from comux.records import Record


class Status(StrEnum):
    """What an item is, or why it is empty."""

    FRESH = "fresh"  #: a picture that was not delivered before
    DEGRADED = "degraded"  #: likewise, decoded across damage (``on_damage="deliver"``)
    NO_NEW_FRAME = "no_new_frame"  #: the source runs, its next picture is not there yet
    STARTING = "starting"  #: no picture since the source started
    STALLED = "stalled"  #: no packet for a while
    RECONNECTING = "reconnecting"  #: the topic or its engine is gone
    RESYNCING = "resyncing"  #: packets come, no clean keyframe yet
    DECODE_ERROR = "decode_error"  #: packets come that the codec refuses
    PAUSED = "paused"
    ENDED = "ended"
    FAILED = "failed"
    REMOVED = "removed"  #: deleted while the call waited


class Timestamps(NamedTuple):
    """Unix times of one picture in seconds; ``None`` where unknown.

    Attributes:
        capture: As the packet's producer gave it.
        append: The engine took the packet.
        decoded: The decoder gave the picture out.
        delivered: The call that returned it was about to return.
    """

    capture: float | None = None
    append: float | None = None
    decoded: float | None = None
    delivered: float | None = None


class Item:
    """One source's part of a batch; unpacks as ``(cam_id, index, array)``.

    Attributes:
        cam_id: Of the source.
        index: Offset of the packet whose picture this is; ``None`` where the item is empty.
        array: The picture; ``None`` where the item is empty. Belongs to the caller. ``bytes`` of the packet where
            ``frame=True`` was asked for.
        status: See ``Status``.
        reason: One line for people.
        timestamps: See ``Timestamps``.
        record: The packet; ``None`` where the item is empty.
        identity: ``(epoch, offset, sub)`` of the packet; ``None`` where the item is empty.
        degraded: Decoded across damage.
        age_estimated: ``age`` is an estimate: the timestamp is by another host's clock, or by one that was set.
    """

    __slots__ = (
        "_clock_behind",
        "age_estimated",
        "array",
        "cam_id",
        "degraded",
        "identity",
        "index",
        "reason",
        "record",
        "status",
        "timestamps",
    )

    def __init__(
        self,
        cam_id: CamId,
        status: Status,
        reason: str = "",
        *,
        array: Any = None,
        record: Record | None = None,
        identity: Identity | None = None,
        degraded: bool = False,
        timestamps: Timestamps | None = None,
        clock_behind: float = 0.0,
        age_estimated: bool = False,
    ) -> None:
        self.cam_id = cam_id
        self.status = status
        self.reason = reason
        self.array = array
        self.record = record
        self.identity = identity
        self.index: int | None = None if identity is None else identity.offset
        self.degraded = degraded
        self.timestamps = timestamps or Timestamps()
        self.age_estimated = age_estimated
        self._clock_behind = clock_behind

    @property
    def age(self) -> float | None:
        """Seconds from capture to delivery; ``None`` where the item is empty.

        Where ``age_estimated``: less the distance of the two clocks, which is estimated from the record that travelled
        fastest in the last ten minutes; so it is too short by that record's journey.
        """
        capture, delivered = self.timestamps.capture, self.timestamps.delivered
        return None if capture is None or delivered is None else delivered - capture - self._clock_behind

    @property
    def packet(self) -> bytes | None:
        """The undecoded packet; ``None`` where the item is empty."""
        return None if self.record is None else bytes(self.record.value)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.cam_id, self.index, self.array))

    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int) -> Any:
        return (self.cam_id, self.index, self.array)[i]

    def __bool__(self) -> bool:
        return self.record is not None

    def _pixels(self) -> npt.NDArray[Any]:
        if not isinstance(self.array, np.ndarray):
            raise ValueError(f"source {self.cam_id!r}: the item holds no array, it is {self.status}: {self.reason}")
        return self.array

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        array = self._pixels()
        if dtype is not None and np.dtype(dtype) != array.dtype:
            if copy is False:
                raise ValueError(f"{array.dtype} becomes {np.dtype(dtype)} only by a copy")
            return array.astype(dtype)
        return array.copy() if copy else array

    def __dlpack__(self, **options: Any) -> Any:
        return self._pixels().__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        kind, number = self._pixels().__dlpack_device__()
        return int(kind), int(number)

    def __repr__(self) -> str:
        what = f"{self.array.shape}" if isinstance(self.array, np.ndarray) else self.reason
        return f"<Item {self.cam_id!r} {self.status} index={self.index} {what}>"


class Batch(Sequence[Item]):
    """The items of one call, one per source, in the order of ``cam_ids``.

    Args:
        items: In order.
        block: The contiguous array that the items' arrays are rows of, where the batch was converted in place.
    """

    __slots__ = ("_block", "_items")

    def __init__(self, items: Sequence[Item], block: npt.NDArray[Any] | None = None) -> None:
        self._items = tuple(items)
        self._block = block

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, i: int) -> Item: ...

    @overload
    def __getitem__(self, i: slice) -> tuple[Item, ...]: ...

    def __getitem__(self, i: int | slice) -> Item | tuple[Item, ...]:
        return self._items[i]

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    @property
    def cam_ids(self) -> tuple[CamId, ...]:
        """The sources, in order."""
        return tuple(item.cam_id for item in self._items)

    @property
    def fresh(self) -> tuple[Item, ...]:
        """The items that hold a picture."""
        return tuple(item for item in self._items if item)

    def of(self, cam_id: CamId) -> Item:
        """The item of one source.

        Raises:
            UnknownSourceError: the batch has no such source.
        """
        for item in self._items:
            if item.cam_id == cam_id:
                return item
        raise UnknownSourceError(f"the batch has no source {cam_id!r}; it has {', '.join(map(repr, self.cam_ids))}")

    def stack(
        self,
        pad: int | None = None,
        *,
        shape: tuple[int, ...] | None = None,
        out: npt.NDArray[Any] | None = None,
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """All pictures in one contiguous array, and which rows hold one.

        Args:
            pad: Value for the rows of empty items, and for what is missing to the right and below of pictures that
                are smaller than the others. ``None``: empty rows are 0, and pictures must be equal in shape.
            shape: Of every row, the same for each batch, whatever the pictures; smaller ones need ``pad``. ``None``:
                that of the largest picture.
            out: Written and returned, ``(N, *shape)`` of the pictures' dtype: memory of your own, such as pinned.

        Returns:
            ``(N, *shape)`` of the pictures' dtype, and ``bool (N,)``. Where the batch was converted in place (pictures
            kept ``freshest``, equal shapes) and neither ``out`` nor another ``shape`` was asked for, the array shares
            memory with the items' arrays; else it is a copy. ``uint8 (N, 0)`` (with ``shape``: ``(N, *shape)``) where
            no item holds a picture.

        Raises:
            ConfigError: shapes differ and ``pad`` is ``None``; one does not fit into ``shape``; dtypes or numbers of
                dimensions differ; ``out`` has another shape or dtype.
        """
        arrays = [item.array for item in self._items]
        mask = np.array([isinstance(array, np.ndarray) for array in arrays], dtype=np.bool_)
        held = [array for array in arrays if isinstance(array, np.ndarray)]
        fill = 0 if pad is None else pad
        if held and self._block is not None and out is None and shape in (None, self._block.shape[1:]):
            self._block[~mask] = fill
            return self._block, mask
        if out is not None:
            if out.shape[:1] != (len(arrays),) or (shape is not None and out.shape[1:] != tuple(shape)):
                raise ConfigError(f"stack: out has shape {out.shape}, not ({len(arrays)}, …) with rows of {shape}")
            shape = out.shape[1:]
        rows = self._row_shape(held, pad, None if shape is None else tuple(shape))
        dtype = held[0].dtype if held else np.dtype(np.uint8) if out is None else out.dtype
        if out is None:
            out = np.empty((len(arrays), *rows), dtype)
        elif out.dtype != dtype:
            raise ConfigError(f"stack: out is {out.dtype}, the pictures are {dtype}")
        for row, array in zip(out, arrays, strict=True):
            if not isinstance(array, np.ndarray):
                row[...] = fill
                continue
            if array.shape != rows:
                row[...] = fill
            row[tuple(slice(0, n) for n in array.shape)] = array
        return out, mask

    @staticmethod
    def _row_shape(
        held: Sequence[npt.NDArray[Any]], pad: int | None, wanted: tuple[int, ...] | None
    ) -> tuple[int, ...]:
        shapes = sorted({array.shape for array in held})
        kinds = {(array.ndim, array.dtype) for array in held}
        if wanted is not None:
            for array in held:
                if array.ndim != len(wanted) or any(n > most for n, most in zip(array.shape, wanted, strict=True)):
                    raise ConfigError(f"stack: a picture of {array.shape} does not fit into rows of {wanted}")
        if not held:
            return wanted or (0,)
        if len(kinds) > 1 or (len({*shapes, wanted or shapes[0]}) > 1 and pad is None):
            raise ConfigError(
                f"stack: the pictures have the shapes {shapes} and dtypes {sorted({str(a.dtype) for a in held})}; set "
                "W and H for all sources, or pass pad="
            )
        return wanted or tuple(max(sizes) for sizes in zip(*shapes, strict=True))

    def __repr__(self) -> str:
        return f"<Batch {' '.join(f'{item.cam_id}:{item.status}' for item in self._items)}>"
