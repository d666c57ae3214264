"""Arrays as bytes with a description: dtype and shape in headers. Nothing is ever pickled, nothing is evaluated.

A dtype is its numpy string (``<f4``); a structured one is JSON: ``{"names": [...], "formats": [...], "offsets": [...],
"itemsize": n}``, a field with a shape ``{"base": ..., "shape": [...]}``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from comux.errors import ConfigError, DecodeError
from comux.records import HEADER_CODEC, HEADER_DTYPE, HEADER_SHAPE, Headers, Record

_MAX_HEADER: Final = 1 << 16
_MAX_DEPTH: Final = 8


def _describe(dtype: np.dtype[Any]) -> Any:
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return {"base": _describe(base), "shape": list(shape)}
    if dtype.names is None:
        return dtype.str
    fields: Mapping[str, Any] = dtype.fields or {}
    return {
        "names": list(dtype.names),
        "formats": [_describe(fields[name][0]) for name in dtype.names],
        "offsets": [int(fields[name][1]) for name in dtype.names],
        "itemsize": dtype.itemsize,
    }


def _rebuild(described: Any, depth: int = 0) -> np.dtype[Any]:
    if depth > _MAX_DEPTH:
        raise ValueError(f"more than {_MAX_DEPTH} levels of structure")
    if isinstance(described, str):
        return np.dtype(described)
    if not isinstance(described, dict):
        raise ValueError(f"{type(described).__name__} describes no dtype")
    if "base" in described:
        return np.dtype((_rebuild(described["base"], depth + 1), tuple(int(n) for n in described["shape"])))
    return np.dtype(
        {
            "names": [str(name) for name in described["names"]],
            "formats": [_rebuild(one, depth + 1) for one in described["formats"]],
            "offsets": [int(n) for n in described["offsets"]],
            "itemsize": int(described["itemsize"]),
        }
    )


def dtype_to_text(dtype: np.dtype[Any]) -> str:
    """How ``comux-dtype`` writes a dtype.

    Raises:
        ConfigError: it holds Python objects, which cannot travel without pickling.
    """
    if dtype.hasobject:
        raise ConfigError(f"dtype {dtype} holds Python objects; comux never pickles, send numbers or bytes")
    described = _describe(dtype)
    return described if isinstance(described, str) else json.dumps(described, separators=(",", ":"))


def dtype_from_text(text: str) -> np.dtype[Any]:
    """Read ``comux-dtype``.

    Raises:
        DecodeError: it describes no dtype, or one of Python objects.
    """
    try:
        dtype = _rebuild(json.loads(text) if text.startswith("{") else text)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError, SyntaxError) as error:
        raise DecodeError(f"dtype {text[:80]!r} cannot be read: {error}") from error
    if dtype.hasobject or dtype.itemsize == 0:
        raise DecodeError(f"dtype {text[:80]!r} holds Python objects or nothing; it is refused")
    return dtype


def array_headers(array: npt.NDArray[Any]) -> Headers:
    """The headers that let the ``raw`` codec give ``array`` back: codec, dtype, shape.

    Raises:
        ConfigError: the dtype holds Python objects.
    """
    return (
        (HEADER_CODEC, b"raw"),
        (HEADER_DTYPE, dtype_to_text(array.dtype).encode()),
        (HEADER_SHAPE, json.dumps(list(array.shape)).encode()),
    )


def array_value(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The bytes of ``array`` in C order, as a one-dimensional uint8 array; a copy only where it is not contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def read_headers(record: Record) -> tuple[np.dtype[Any] | None, tuple[int, ...] | None]:
    """Dtype and shape that a record's headers state; ``None`` for what they do not.

    Raises:
        DecodeError: what they state cannot be read.
    """
    raw_dtype, raw_shape = record.header(HEADER_DTYPE), record.header(HEADER_SHAPE)
    dtype: np.dtype[Any] | None = None
    shape: tuple[int, ...] | None = None
    if len(raw_dtype or b"") > _MAX_HEADER or len(raw_shape or b"") > _MAX_HEADER:
        raise DecodeError(f"dtype or shape header of more than {_MAX_HEADER} bytes")
    try:
        if raw_dtype is not None:
            dtype = dtype_from_text(raw_dtype.decode())
        if raw_shape is not None:
            sides = json.loads(raw_shape)
            if not isinstance(sides, list) or any(type(n) is not int or n < 0 for n in sides) or len(sides) > 32:
                raise DecodeError(f"shape {raw_shape[:80]!r} is no list of whole numbers")
            shape = tuple(sides)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"dtype or shape header cannot be read: {error}") from error
    return dtype, shape


def as_array(record: Record, dtype: npt.DTypeLike | None, shape: tuple[int, ...] | None) -> npt.NDArray[Any]:
    """A record's value as an array, without a copy where the value is the reader's own.

    Args:
        record: Its headers, then its own array type, then the arguments say what it is.
        dtype, shape: Where the record says nothing. A dtype without a shape is one-dimensional.

    Returns:
        A read-only array, or a copy where the value is a view on memory that somebody else may overwrite.

    Raises:
        DecodeError: the size does not fit, or nothing says what the bytes are.
    """
    value = record.value
    stated_dtype, stated_shape = read_headers(record)
    if isinstance(value, np.ndarray) and stated_dtype is None and stated_shape is None:
        array = value
        if dtype is not None and array.dtype != np.dtype(dtype):
            raise DecodeError(f"array is {array.dtype}, not {np.dtype(dtype)}")
        if shape is not None and array.shape != shape:
            raise DecodeError(f"array has shape {array.shape}, not {shape}")
    else:
        array = _from_buffer(value, stated_dtype, stated_shape, dtype, shape)
    if record._valid is not None or isinstance(value, (memoryview, bytearray)):
        array = array.copy()
        if not record.valid():
            raise DecodeError("the view was overwritten while it was copied; read faster or without views")
    if array.dtype.hasobject:
        raise DecodeError(f"array of {array.dtype} holds Python objects; it is refused")
    return array


def _from_buffer(
    value: Any,
    stated_dtype: np.dtype[Any] | None,
    stated_shape: tuple[int, ...] | None,
    dtype: npt.DTypeLike | None,
    shape: tuple[int, ...] | None,
) -> npt.NDArray[Any]:
    if stated_dtype is not None:
        kind = stated_dtype
    elif dtype is not None:
        kind = np.dtype(dtype)
    else:
        raise DecodeError("neither the record nor the options say its dtype (comux-dtype, comux-shape)")
    if isinstance(value, np.ndarray):
        value = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    if not isinstance(value, (bytes, bytearray, memoryview, np.ndarray)):
        raise DecodeError(f"a value of type {type(value).__name__} is no array")
    size = value.nbytes if isinstance(value, (memoryview, np.ndarray)) else len(value)
    sides = stated_shape if stated_shape is not None else shape
    if sides is None:
        if size % kind.itemsize:
            raise DecodeError(f"{size} bytes are no whole number of {kind} ({kind.itemsize} bytes each)")
        sides = (size // kind.itemsize,)
    if math.prod(sides) * kind.itemsize != size:
        raise DecodeError(f"{size} bytes are not {kind} {sides}, which takes {math.prod(sides) * kind.itemsize}")
    return np.frombuffer(value, kind).reshape(sides) if size else np.empty(sides, kind)
