"""comux: many live streams in one Python loop over numpy arrays.

Lives here: the public door, resolved on first use so that ``import comux`` is quick and works where a room's system
calls or libraries do not exist. May import: every room, lazily. Must never know: how any of them works.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comux._version import __version__

if TYPE_CHECKING:
    from comux.control import Control as Control
    from comux.control import MongoConnect as MongoConnect
    from comux.control import MongoRegistry as MongoRegistry
    from comux.lifecycle import terminate as terminate
    from comux.lifecycle import write_pid_file as write_pid_file
    from comux.multiplexer import Batch as Batch
    from comux.multiplexer import Comux as Comux
    from comux.multiplexer import Item as Item
    from comux.multiplexer import decode_headers as decode_headers
    from comux.records import Record as Record
    from comux.transport import Broker as Broker
    from comux.transport import TopicSpec as TopicSpec
    from comux.transport import connect as connect

_DOORS = {
    "Comux": "comux.multiplexer",
    "Batch": "comux.multiplexer",
    "Item": "comux.multiplexer",
    "decode_headers": "comux.multiplexer",
    "Control": "comux.control",
    "MongoConnect": "comux.control",
    "MongoRegistry": "comux.control",
    "connect": "comux.transport",
    "Broker": "comux.transport",
    "TopicSpec": "comux.transport",
    "Record": "comux.records",
    "write_pid_file": "comux.lifecycle",
    "terminate": "comux.lifecycle",
}

__all__ = ["__version__", *sorted(_DOORS)]


def __getattr__(name: str) -> Any:
    if name in _DOORS:
        from importlib import import_module

        value = getattr(import_module(_DOORS[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'comux' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_DOORS})
