"""The local log: crash-safe topics in shared memory, without a daemon.

Lives here: the C core (``_core``), its binding, segments and their directory, producers, members, lossy readers,
observers, waiting. May import: ``comux.records``, ``comux.errors``, ``comux.account``, numpy. Must never know:
addresses, brokers, codecs, sources; what a record means.

Importing this package is cheap and works anywhere; the C module is loaded on first use and needs Linux.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .directory import default_directory as default_directory
from .directory import names as names
from .spec import ClaimedRecord as ClaimedRecord
from .spec import GroupInfo as GroupInfo
from .spec import OpenClaim as OpenClaim
from .spec import PortInfo as PortInfo
from .spec import ProducerStats as ProducerStats
from .spec import RingSpec as RingSpec
from .spec import RingStats as RingStats

if TYPE_CHECKING:
    from .clearing import Found as Found
    from .clearing import collect as collect
    from .clearing import gc as gc
    from .handles import Batch as Batch
    from .handles import Claim as Claim
    from .handles import Lease as Lease
    from .handles import Member as Member
    from .handles import Observer as Observer
    from .handles import Producer as Producer
    from .handles import Reader as Reader
    from .handles import View as View
    from .log import Ring as Ring
    from .log import attach as attach
    from .log import create as create
    from .log import unlink as unlink
    from .native import failpoint as failpoint
    from .native import failpoints as failpoints
    from .waiting import wait_any as wait_any

_DOORS = {
    "Batch": "handles",
    "Found": "clearing",
    "Claim": "handles",
    "Lease": "handles",
    "Member": "handles",
    "Observer": "handles",
    "Producer": "handles",
    "Reader": "handles",
    "View": "handles",
    "Ring": "log",
    "attach": "log",
    "collect": "clearing",
    "create": "log",
    "gc": "clearing",
    "unlink": "log",
    "failpoint": "native",
    "failpoints": "native",
    "wait_any": "waiting",
}

__all__ = [
    "ClaimedRecord",
    "GroupInfo",
    "OpenClaim",
    "PortInfo",
    "ProducerStats",
    "RingSpec",
    "RingStats",
    "default_directory",
    "names",
    *sorted(_DOORS),
]


def __getattr__(name: str) -> Any:
    if name in _DOORS:
        from importlib import import_module

        value = getattr(import_module(f"{__name__}.{_DOORS[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'comux.ring' has no attribute {name!r}")
