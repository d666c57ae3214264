"""Results as record headers, and back: exactly what was sent.

Lives here: ``encode_headers``, ``decode_headers``, ``apply_schema``. May import: ``records``, ``errors``, numpy.
Must never know: engines, sources, who sends.

Each result is one header; one more header, ``comux-types``, says which headers are results and how each decodes:

=============  ==============================  ==============================================================
Python type    header value                    entry in ``comux-types``
=============  ==============================  ==============================================================
bytes          as it is                        ``"bytes"`` (a memoryview comes back as bytes)
bytearray      as it is                        ``"bytearray"``
str            UTF-8                           ``"str"``
bool, int,     JSON                            ``"json"``
float, None
list, dict     JSON                            ``"json"``, or ``"tree"`` where numpy values or bytes are inside
numpy.ndarray  its bytes in C order            ``["array", dtype, shape]``
numpy scalar   its bytes                       ``["scalar", dtype]``, ``"numpy.str"``, ``"numpy.bytes"``
=============  ==============================  ==============================================================

``5`` and ``"5"``, ``True`` and ``1``, ``1`` and ``1.0`` differ after the round trip as they did before. Infinities
and NaN are written ``Infinity``, ``-Infinity``, ``NaN`` (Python's and JavaScript's words, not strict JSON). What
changes: a tuple becomes a list, a subclass its base type (an IntEnum an int), a Fortran-ordered array C-ordered.
Object dtypes, masked arrays, dictionary keys that are no strings and unknown types are refused, never pickled or
turned into text.

In a ``tree`` each value that JSON lacks stands as ``{"$comux": kind, …}`` with its bytes in base64; a user's own
dictionary that holds the key ``$comux`` is written as a list of pairs, so nothing is ambiguous. Large arrays are best
sent as headers of their own: those are neither copied through base64 nor parsed.

A record that went through several comux programs carries one ``comux-types`` per program: the results of all of them
come back, later ones winning. Headers that no ``comux-types`` names belong to the original packet and are left alone.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from comux.errors import ConfigError, HeaderError
from comux.records import HEADER_TYPES, Header, Headers, Record

__all__ = ["HeaderSchema", "apply_schema", "check_schema", "decode_headers", "encode_headers", "headers_bytes"]

HeaderSchema = type[Any] | Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""A pydantic model class, or a function from the headers the user gave to the headers to send."""

MAX_DEPTH: Final = 64  #: of nested lists and dictionaries
_RESERVED_PREFIX: Final = "comux-"
_MARK: Final = "$comux"
_PLAIN_DTYPE: Final = re.compile(r"[<>|=]?(?:\?|[biufcSUV]\d{1,9}|[mM]8(?:\[\d{0,9}[A-Za-z]{1,2}\])?)")


# -- encoding ------------------------------------------------------------------------------------------------------


def encode_headers(results: Mapping[str, Any] | None) -> Headers:
    """Turn a mapping of results into record headers, ``comux-types`` last.

    Args:
        results: Name to value; see the module's table for what a value may be. ``None`` and ``{}`` give ``()``.

    Returns:
        ``(name, bytes)`` pairs in the mapping's order, then ``comux-types``. Nothing refers to the values any more.

    Raises:
        HeaderError: A name or value cannot be sent; the message names it and what to do instead. It is a ``ValueError``
            and a ``TypeError``.
    """
    if not results:
        return ()
    if not isinstance(results, Mapping):
        raise HeaderError(f"headers are a {type(results).__name__}, not a mapping of names to values: pass a dict")
    out: list[Header] = []
    types: dict[str, Any] = {}
    for name, value in results.items():
        _check_name(name)
        types[name], data = _encode_value(name, value)
        out.append((name, data))
    out.append((HEADER_TYPES, json.dumps(types, separators=(",", ":")).encode()))
    return tuple(out)


def headers_bytes(headers: Iterable[Header]) -> int:
    """Bytes of all names (UTF-8) and values together; an engine's own framing is not counted."""
    return sum(len(name.encode("utf-8", "surrogatepass")) + (len(value) if value else 0) for name, value in headers)


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise HeaderError(f"header name {name!r} is {type(name).__name__}, not str: use str({name!r})")
    if not name:
        raise HeaderError("a header name is empty: give it a name")
    if name.lower().startswith(_RESERVED_PREFIX):
        raise HeaderError(
            f"header name {name!r} is reserved: names that begin with 'comux-' are comux's own; rename it"
        )
    _utf8(name, name, "the name")


def _utf8(name: str, text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as exc:
        raise HeaderError(
            f"header {name!r}: {what} holds half a surrogate pair at {exc.start}, which UTF-8 has no form for"
        ) from None


def _encode_value(name: str, value: Any) -> tuple[Any, bytes]:
    """Type tag and bytes of one header's value."""
    if isinstance(value, np.ndarray):
        return _encode_array(name, value)
    if isinstance(value, np.generic):
        return _encode_scalar(name, value)
    if isinstance(value, bytes):
        return "bytes", bytes(value)
    if isinstance(value, bytearray):
        return "bytearray", bytes(value)
    if isinstance(value, memoryview):
        return "bytes", value.tobytes()
    if isinstance(value, str):
        return "str", _utf8(name, value, "the text")
    tree = _Tree(name)
    plain = tree.encode(value, 0)
    try:
        text = json.dumps(plain, separators=(",", ":"), ensure_ascii=False)
    except ValueError as exc:  # an integer beyond Python's limit for conversion to text
        raise HeaderError(f"header {name!r}: {exc}") from None
    return ("tree" if tree.marked else "json"), _utf8(name, text, "a text inside it")


class _Tree:
    """Checks a value that becomes JSON; ``marked`` tells whether anything inside needed a mark."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.marked = False

    def encode(self, value: Any, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise HeaderError(
                f"header {self.name!r} nests more than {MAX_DEPTH} levels deep (or holds itself): flatten it"
            )
        if isinstance(value, (np.ndarray, np.generic, bytes, bytearray, memoryview)):
            tag, data = _encode_value(self.name, value)
            self.marked = True
            return {_MARK: tag, "data": base64.b64encode(data).decode()}
        if value is None or value is True or value is False:
            return value
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return float(value)
        if isinstance(value, (list, tuple)):
            return [self.encode(item, depth + 1) for item in value]
        if isinstance(value, Mapping):
            return self._encode_mapping(value, depth)
        raise HeaderError(
            f"header {self.name!r}: {type(value).__name__} cannot be sent; send str, bytes, numbers, bool, None, list, "
            "dict or numpy arrays (numpy.asarray(value) for a tensor, value.isoformat() for a date)"
        )

    def _encode_mapping(self, value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise HeaderError(
                    f"header {self.name!r}: the dictionary key {key!r} is {type(key).__name__}, and JSON keys are "
                    f"text: use str, or send a list of pairs"
                )
            out[key] = self.encode(item, depth + 1)
        if _MARK in out:
            self.marked = True
            return {_MARK: "dict", "items": [[key, item] for key, item in out.items()]}
        return out


def _encode_array(name: str, array: npt.NDArray[Any]) -> tuple[Any, bytes]:
    if isinstance(array, np.ma.MaskedArray):
        raise HeaderError(
            f"header {name!r} is a masked array: send .filled(value), and the mask as a header of its own"
        )
    return ["array", _dtype_to_json(name, array.dtype), list(array.shape)], array.tobytes()


def _encode_scalar(name: str, value: np.generic) -> tuple[Any, bytes]:
    if isinstance(value, np.str_):
        return "numpy.str", _utf8(name, str.__str__(value), "the text")  # numpy's own str() cuts final NULs
    if isinstance(value, np.bytes_):
        return "numpy.bytes", bytes(value)
    return ["scalar", _dtype_to_json(name, value.dtype)], value.tobytes()


def _dtype_to_json(name: str, dtype: np.dtype[Any]) -> Any:
    """``dtype.str``, or the field list of a structured dtype; refuses what does not come back the same."""
    if dtype.hasobject:
        raise HeaderError(
            f"header {name!r} has dtype {dtype}, which holds Python objects: convert it with .astype, or send a list"
        )
    described: Any = dtype.str if dtype.names is None else np.lib.format.dtype_to_descr(dtype)
    described = json.loads(json.dumps(described))
    try:
        same = dtype.itemsize > 0 and _dtype_from_json(described) == dtype
    except (HeaderError, ValueError, TypeError):
        same = False
    if not same:
        raise HeaderError(
            f"header {name!r} has dtype {dtype!r}, which has no exact description: convert it with .astype"
        )
    return described


# -- decoding ------------------------------------------------------------------------------------------------------


def decode_headers(headers: Sequence[Header] | Record) -> dict[str, Any]:
    """Give back the results that ``encode_headers`` was given.

    Args:
        headers: A record's headers, or the record.

    Returns:
        Name to value, in the order sent. Empty where no ``comux-types`` is there. Arrays are fresh and writable.

    Raises:
        HeaderError: The headers contradict themselves (damaged, cut, or made by something else). Nothing else is raised
            for what they contain, and no more is allocated than their own size implies.
    """
    pairs = headers.headers if isinstance(headers, Record) else headers
    before: dict[str, bytes | None] = {}
    out: dict[str, Any] = {}
    for pair in pairs:
        try:
            name, value = pair
        except (TypeError, ValueError):
            raise HeaderError(f"header {pair!r} is no (name, value) pair") from None
        if name == HEADER_TYPES:
            for result, tag in _parse_types(value).items():
                if result not in before:
                    raise HeaderError(f"{HEADER_TYPES} lists {result!r}, but no such header precedes it")
                out[result] = _decode_value(result, tag, before[result])
        else:
            before[name] = value
    return out


def _parse_types(value: bytes | None) -> dict[str, Any]:
    types = _load_json(HEADER_TYPES, value)
    if not isinstance(types, dict):
        raise HeaderError(f"{HEADER_TYPES} holds a JSON {type(types).__name__}, not an object of name and type")
    return types


def _load_json(name: str, value: bytes | None) -> Any:
    if not isinstance(value, bytes):
        raise HeaderError(f"header {name!r} has the value {value!r}, not the bytes of a JSON text")
    try:
        return json.loads(value.decode())
    except (ValueError, RecursionError) as exc:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise HeaderError(f"header {name!r} ({len(value)} bytes) is no JSON: {exc}") from None


def _decode_value(name: str, tag: Any, value: bytes | None) -> Any:
    if not isinstance(value, bytes):
        raise HeaderError(f"header {name!r} has no value, its type says {tag!r}")
    if isinstance(tag, str):
        return _decode_text_tag(name, tag, value)
    if isinstance(tag, list) and len(tag) == 3 and tag[0] == "array":
        return _decode_array(name, tag[1], tag[2], value)
    if isinstance(tag, list) and len(tag) == 2 and tag[0] == "scalar":
        return _decode_array(name, tag[1], [], value)[()]
    raise HeaderError(f"header {name!r} has the unknown type {_short(tag)}: was it sent by a later comux?")


def _decode_text_tag(name: str, tag: str, value: bytes) -> Any:
    if tag == "json":
        return _load_json(name, value)
    if tag == "tree":
        return _unmark(name, _load_json(name, value), 0)
    if tag == "bytes":
        return value
    if tag == "bytearray":
        return bytearray(value)
    if tag == "numpy.bytes":
        return np.bytes_(value)
    if tag in ("str", "numpy.str"):
        try:
            text = value.decode()
        except UnicodeDecodeError as exc:
            raise HeaderError(
                f"header {name!r} is no UTF-8 text: {exc.reason} at byte {exc.start} of {len(value)}"
            ) from None
        return text if tag == "str" else np.str_(text)
    raise HeaderError(f"header {name!r} has the unknown type {_short(tag)}: was it sent by a later comux?")


def _unmark(name: str, node: Any, depth: int) -> Any:
    if depth > 2 * MAX_DEPTH + 2:  # an escaped dictionary nests twice per level
        raise HeaderError(f"header {name!r} nests more than {MAX_DEPTH} levels deep")
    if isinstance(node, list):
        return [_unmark(name, item, depth + 1) for item in node]
    if not isinstance(node, dict):
        return node
    if _MARK not in node:
        return {key: _unmark(name, item, depth + 1) for key, item in node.items()}
    tag = node[_MARK]
    try:
        if tag == "dict":
            return {str(key): _unmark(name, item, depth + 1) for key, item in node["items"]}
        data = base64.b64decode(node["data"], validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error):
        raise HeaderError(f"header {name!r} holds a damaged mark {_short(tag)}") from None
    if tag == "tree":  # never written; refused so that input cannot nest texts in texts
        raise HeaderError(f"header {name!r} holds a damaged mark 'tree'")
    return _decode_value(name, tag, data)


def _decode_array(name: str, described: Any, shape: Any, value: bytes) -> npt.NDArray[Any]:
    try:
        dtype = _dtype_from_json(described)
    except (TypeError, ValueError, KeyError, SyntaxError, RecursionError, OverflowError) as exc:
        raise HeaderError(f"header {name!r} has no usable dtype {_short(described)}: {exc}") from None
    if not isinstance(shape, list) or len(shape) > 32 or not all(type(n) is int and 0 <= n < 2**62 for n in shape):
        raise HeaderError(f"header {name!r} has no usable shape {_short(shape)}")
    need = math.prod(shape) * dtype.itemsize
    if need != len(value) or dtype.itemsize == 0 or dtype.hasobject:
        raise HeaderError(f"header {name!r}: dtype {dtype} and shape {shape} need {need} bytes, {len(value)} are there")
    try:
        array = np.ndarray(tuple(shape), dtype, buffer=bytearray(value))  # .copy() would leave padding undefined
        if dtype.kind == "U" and array.size:
            array.astype(np.dtype("O"))  # numpy checks code points only when an element is looked at
        return array
    except (TypeError, ValueError, OverflowError, SystemError) as exc:
        raise HeaderError(f"header {name!r}: no array of dtype {dtype} and shape {shape}: {exc}") from None


def _dtype_from_json(described: Any, depth: int = 0) -> np.dtype[Any]:
    """Undo ``_dtype_to_json``. Only plain type strings and field lists: no comma strings, no objects."""
    if depth > 8:
        raise HeaderError("a dtype nests more than 8 levels deep")
    if isinstance(described, str):
        if not _PLAIN_DTYPE.fullmatch(described):
            raise HeaderError(f"{_short(described)} is no numpy type string")
        return np.dtype(described)
    return np.lib.format.descr_to_dtype(_descr(described, depth))


def _descr(described: Any, depth: int) -> Any:
    """Field lists with the tuples that JSON turned into lists put back."""
    if isinstance(described, str):
        return _dtype_from_json(described, depth).str
    if not isinstance(described, list) or not described or depth > 8:
        raise HeaderError(f"{_short(described)} is no list of fields")
    fields: list[Any] = []
    for field in described:
        if not isinstance(field, list) or len(field) not in (2, 3):
            raise HeaderError(f"{_short(field)} is no field (name, type, shape)")
        field_name = tuple(field[0]) if isinstance(field[0], list) else field[0]
        parts: list[Any] = [field_name, _descr(field[1], depth + 1)]
        if len(field) == 3:
            if not isinstance(field[2], list) or not all(type(n) is int and 0 < n < 2**31 for n in field[2]):
                raise HeaderError(f"{_short(field[2])} is no shape of a field")
            parts.append(tuple(field[2]))
        fields.append(tuple(parts))
    return fields


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


# -- the user's schema ---------------------------------------------------------------------------------------------


def check_schema(schema: object) -> None:
    """Raise ``ConfigError`` unless ``schema`` is ``None``, a pydantic model class or a function."""
    if schema is None or hasattr(schema, "model_validate") or (callable(schema) and not isinstance(schema, type)):
        return
    raise ConfigError(
        f"header_schema is {schema!r}: give a pydantic model class, or a function from mapping to mapping"
    )


def apply_schema(schema: HeaderSchema | None, headers: Mapping[str, Any]) -> Mapping[str, Any]:
    """Check and shape the results by the user's ``header_schema``.

    Args:
        schema: A pydantic model class (the headers are validated; its fields, by alias, are what is sent), a function
            from mapping to mapping, or ``None``.
        headers: What the user passed to ``send``.

    Returns:
        The headers to encode.

    Raises:
        HeaderError: The schema refuses the headers; each fault is named. ConfigError: ``schema`` is no schema.
    """
    if schema is None:
        return headers
    check_schema(schema)
    name = getattr(schema, "__name__", repr(schema))
    validate = getattr(schema, "model_validate", None)
    try:
        if validate is not None:
            shaped: Any = validate(dict(headers)).model_dump(by_alias=True)
        else:
            shaped = schema(headers)
    except Exception as exc:  # whatever the user's schema raises means: refused
        raise HeaderError(f"header_schema {name} refused the headers: {_faults(exc)}") from exc
    if not isinstance(shaped, Mapping):
        raise HeaderError(
            f"header_schema {name} returned {type(shaped).__name__}, not a mapping: return the headers to send"
        )
    return shaped


def _faults(exc: Exception) -> str:
    """One line out of a pydantic ``ValidationError`` (or any other exception)."""
    errors = getattr(exc, "errors", None)
    listed = errors() if callable(errors) else None
    if not isinstance(listed, list) or not listed or not all(isinstance(fault, dict) for fault in listed):
        return f"{type(exc).__name__}: {exc}"
    lines = []
    for fault in listed:
        where = ".".join(str(part) for part in fault.get("loc", ())) or "headers"
        lines.append(f"{where}: {fault.get('msg', '')}, got {_short(fault.get('input'))}")
    return "; ".join(lines)
