"""What is asked of a source's thread from outside: to go on somewhere else, to show its next picture.

**Problem.** A consumer and a decoder belong to the source's thread. Who asks is another (a command, the user's loop),
wants an answer, and must not wait for a camera that is away.

**Algorithm.** A *wish* is put into the source's ``Wishes``; its thread carries it out when it comes to it, and the one
who asked waits as long as he likes, or not at all. A newer seek takes the place of one that waits. Whatever still waits
when the source ends is told so.
"""

from __future__ import annotations

import base64
import io
import threading
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from comux.decoders.interface import Picture
from comux.errors import ClosedError, ComuxError, UnsupportedError
from comux.multiplexer.intake import Intake

SeekTo = Literal["beginning", "end", "keyframe"] | int | float
"""An offset (``int``), the first packet at or after a Unix time in seconds (``float``), or a word."""

_QUALITY: Final = 80


class Wish:
    """One thing that is asked for. Fulfilled once, by the source's thread; read by any."""

    def __init__(self) -> None:
        self._told = threading.Event()
        self._result: Any = None
        self._error: ComuxError | None = None

    def fulfil(self, result: Any) -> None:
        """It is done; ``result`` is what came of it."""
        self._result = result
        self._told.set()

    def refuse(self, error: ComuxError) -> None:
        """It will not be done."""
        self._error = error
        self._told.set()

    def wait(self, timeout: float) -> Any:
        """What came of it; ``None`` where nothing has within ``timeout`` seconds.

        Raises:
            ComuxError: it will not be done.
        """
        if not self._told.wait(timeout):
            return None
        if self._error is not None:
            raise self._error
        return self._result


class Wishes:
    """What is asked of one source. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seek: tuple[SeekTo, Wish] | None = None
        self._pictures: list[Wish] = []
        self._over: ComuxError | None = None

    @property
    def seeks(self) -> bool:
        """Whether the source is to go on somewhere else."""
        return self._seek is not None

    @property
    def pictures(self) -> bool:
        """Whether somebody wants to see the next picture."""
        return bool(self._pictures)

    def seek(self, to: SeekTo) -> Wish:
        """Ask to go on at ``to``."""
        wish = Wish()
        with self._lock:
            if self._over is not None:
                wish.refuse(self._over)
                return wish
            before, self._seek = self._seek, (to, wish)
        if before is not None:
            before[1].refuse(ClosedError("another seek came before this one was carried out; nothing was done"))
        return wish

    def picture(self) -> Wish:
        """Ask for a copy of the next picture."""
        wish = Wish()
        with self._lock:
            if self._over is None:
                self._pictures.append(wish)
            else:
                wish.refuse(self._over)
        return wish

    def take_seek(self) -> tuple[SeekTo, Wish] | None:
        """The seek to be carried out now. The source's thread."""
        with self._lock:
            taken, self._seek = self._seek, None
            return taken

    def show(self, picture: Picture, array: npt.NDArray[Any] | None) -> None:
        """Fulfil the wishes for a picture. The source's thread.

        Args:
            picture: The picture.
            array: What it was converted to, where it was.
        """
        with self._lock:
            wishes, self._pictures = self._pictures, []
        copy = picture.to_array() if array is None else array.copy()
        for wish in wishes:
            wish.fulfil((picture.record, copy))

    def end(self, error: ComuxError) -> None:
        """The source has ended: nothing more will be done. The source's thread, or who stops one that never ran."""
        with self._lock:
            self._over = error
            waiting = [*self._pictures, *([] if self._seek is None else [self._seek[1]])]
            self._pictures, self._seek = [], None
        for wish in waiting:
            wish.refuse(error)


def target_of(to: SeekTo, intake: Intake, decoder: Any) -> int:
    """The offset that a seek means now.

    Args:
        to: Where to.
        intake: Of the source.
        decoder: Says what it can start from.

    Raises:
        UnsupportedError: the source is a member of a group. ComuxError: the engine's.
    """
    consumer = intake.open()
    if consumer.group is not None:
        raise UnsupportedError(
            f"a member of group {consumer.group!r} cannot seek: its records are shared; read without a group"
        )
    found: int | None = None
    if to == "beginning":
        found = consumer.beginning_offset()
    elif to == "keyframe":
        found = intake.newest_start(decoder.starts_at)
    elif isinstance(to, float):
        found = consumer.offset_for_time(to)
    elif isinstance(to, int):
        found = to
    if found is None:
        consumer.seek_to_end()
        found = consumer.position()
    return found


def as_shown(array: npt.NDArray[Any], width: int) -> dict[str, Any]:
    """A picture for an answer: a JPEG of at most ``width`` pixels across, or what can be said of an array that is none.

    Returns:
        ``shape``, ``dtype``, and ``jpeg`` (base64) where the array is ``uint8`` of shape ``(H, W)`` or ``(H, W, 3)``
        (taken as BGR); else ``min``, ``max``, ``mean`` where it holds numbers.
    """
    told: dict[str, Any] = {"shape": list(array.shape), "dtype": str(array.dtype)}
    if array.dtype == np.uint8 and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        image = Image.fromarray(np.ascontiguousarray(array if array.ndim == 2 else array[:, :, ::-1]))
        if image.width > width:
            image = image.resize((width, max(1, round(image.height * width / image.width))))
        out = io.BytesIO()
        image.save(out, "JPEG", quality=_QUALITY)
        return {**told, "jpeg": base64.b64encode(out.getvalue()).decode()}
    if array.size and array.dtype.kind in "biuf":
        numbers = array.astype(np.float64, copy=False)
        told |= {"min": float(numbers.min()), "max": float(numbers.max()), "mean": float(numbers.mean())}
    return told
