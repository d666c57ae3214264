"""Product 1: many sources, one ``get_batch`` loop, results re-emitted.

Lives here: ``Comux`` and what it is made of: sources, lag rule, picture stores, batches, retention, results.
May import: ``control``, ``transport``, ``decoders``, ``headers`` and everything below them.
Must never know: how an engine stores records, how a codec works, or who reads the results.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from comux.headers import decode_headers as decode_headers
    from comux.headers import encode_headers as encode_headers
    from comux.multiplexer.batch import Batch as Batch
    from comux.multiplexer.batch import Item as Item
    from comux.multiplexer.batch import Status as Status
    from comux.multiplexer.batch import Timestamps as Timestamps
    from comux.multiplexer.manager import Comux as Comux
    from comux.multiplexer.source import State as State

_DOORS = {
    "Comux": "comux.multiplexer.manager",
    "Batch": "comux.multiplexer.batch",
    "Item": "comux.multiplexer.batch",
    "Status": "comux.multiplexer.batch",
    "Timestamps": "comux.multiplexer.batch",
    "State": "comux.multiplexer.source",
    "decode_headers": "comux.headers",
    "encode_headers": "comux.headers",
}

__all__ = ["Batch", "Comux", "Item", "State", "Status", "Timestamps", "decode_headers", "encode_headers"]


def __getattr__(name: str) -> Any:
    if name in _DOORS:
        from importlib import import_module

        value = getattr(import_module(_DOORS[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'comux.multiplexer' has no attribute {name!r}")
