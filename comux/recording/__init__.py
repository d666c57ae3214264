"""Recording: topics taken from one place to another, whole and in order.

Lives here: the bridge, which copies topics between engines: ``bridge`` (which topics, the account, starting and
stopping), ``link`` (one topic's thread) and ``copies`` (what a copy says about its original, and finding it again).
May import: ``comux.transport``, telemetry, account, records, errors, numpy.
Must never know: codecs, sources, batches, feeds, commands.
"""

from __future__ import annotations

from .bridge import Bridge
from .copies import Origin, origin_of
from .link import LinkStatus

__all__ = ["Bridge", "LinkStatus", "Origin", "origin_of"]
