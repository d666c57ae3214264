"""Product 1: many sources, one ``get_batch`` loop, results re-emitted.

Lives here: ``Comux`` and what it is made of: sources, lag rule, picture stores, batches, retention, results.
May import: ``control``, ``transport``, ``decoders``, ``headers`` and everything below them.
Must never know: how an engine stores records, how a codec works, or who reads the results.
"""

from __future__ import annotations

from comux.headers import decode_headers, encode_headers
from comux.multiplexer.batch import Batch, Item, Status, Timestamps
from comux.multiplexer.manager import Comux
from comux.multiplexer.states import State

__all__ = ["Batch", "Comux", "Item", "State", "Status", "Timestamps", "decode_headers", "encode_headers"]
