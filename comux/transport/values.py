"""Values as they are offered: checked by every engine in the same way; times as they are asked for; and claims of
engines that have no place to write in.
"""

from __future__ import annotations

import math
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from comux.errors import ConfigError, RecordTooLargeError

from .interface import Claim


def earliest_ns(timestamp: float) -> int:
    """The first nanosecond that a Unix time in seconds may mean. A double holds today's to a quarter of a microsecond,
    so a record's own ``timestamp`` may be a little later than it is: what begins there begins with that record."""
    return max(0, round(timestamp * 1e9) - int(2e9 * math.ulp(timestamp)))


def check_buffer(name: str, value: Any) -> memoryview:
    """``value`` as a C-contiguous buffer.

    Raises:
        ConfigError: it is none.
    """
    try:
        view = memoryview(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"topic {name!r}: a value of type {type(value).__name__} is no buffer; send bytes or an array"
        ) from error
    if not view.c_contiguous:
        raise ConfigError(f"topic {name!r}: the value is not C-contiguous; send np.ascontiguousarray(value)")
    return view


def check_array(name: str, value: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """``value`` as an array of exactly ``dtype`` and ``shape``; bytes of the same length are taken as such an array's.

    Raises:
        ConfigError: it is not; the message has both sides.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        nbytes = memoryview(value).nbytes
        if nbytes == dtype.itemsize * math.prod(shape):
            return np.frombuffer(value, dtype).reshape(shape)
        raise ConfigError(f"topic {name!r} holds arrays of dtype {dtype} and shape {shape}, not {nbytes} bytes")
    array: npt.NDArray[Any] = value if isinstance(value, (np.ndarray, np.generic)) else np.asarray(value)  # type: ignore[assignment]
    if array.dtype != dtype or array.shape != shape:
        raise ConfigError(
            f"topic {name!r} holds arrays of dtype {dtype} and shape {shape}, not {array.dtype} and {array.shape}"
        )
    return np.asarray(array)


def claim_size(topic: str, nbytes: int | None, dtype: np.dtype[Any] | None, shape: tuple[int, ...]) -> int:
    """How many bytes a claim reserves; raises ``ConfigError`` where ``nbytes`` does not fit the topic's kind."""
    if dtype is None:
        if nbytes is None or nbytes < 0:
            raise ConfigError(f"topic {topic!r} holds variable records: claim(nbytes) needs their size, got {nbytes}")
        return nbytes
    size = int(dtype.itemsize * np.prod(shape, dtype=np.int64))
    if nbytes not in (None, size):
        raise ConfigError(f"topic {topic!r} holds records of {size} bytes, not {nbytes}; claim() without a size")
    return size


class PrivateClaim(Claim):
    """A claim whose buffer is memory of its own, copied at commit.

    Args:
        topic: For messages.
        dtype, shape: Of a typed topic.
        nbytes: Of the buffer.
    """

    def __init__(self, topic: str, dtype: np.dtype[Any] | None, shape: tuple[int, ...], nbytes: int) -> None:
        self.offset = None
        self._topic = topic
        self._dtype = dtype
        self._shape = shape
        self._nbytes = nbytes
        self._data: npt.NDArray[np.uint8] = np.zeros(nbytes, np.uint8)
        self.buffer = memoryview(self._data.data)
        self._open = True

    @property
    def array(self) -> npt.NDArray[Any]:
        return self._data if self._dtype is None else self._data.view(self._dtype).reshape(self._shape)

    def _check_used(self, used: int | None) -> int:
        """How many bytes are to be published."""
        used = self._nbytes if used is None else used
        if not 0 <= used <= self._nbytes or (self._dtype is not None and used != self._nbytes):
            raise RecordTooLargeError(f"topic {self._topic!r}: {used} bytes used of a claim of {self._nbytes}")
        return used

    def __enter__(self) -> PrivateClaim:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if not self._open:
            return
        if kind is None:
            self.commit()
        else:
            self.abort()
