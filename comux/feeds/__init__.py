"""Feeds: what publishes packets into topics: video files and synthetic cameras, with faults on request.

Lives here: the feeds an address names (``sources``, ``synthetic`` with ``scene`` and ``marks``), faults (``faults``)
and publishing (``publish``).
May import: ``comux.transport``, ``comux.decoders`` (files, encoding), account, records, errors; crc32c, numpy.
Must never know: who reads the topic, batches, commands.
"""

from __future__ import annotations

from .faults import Fault, FeedPacket, InjectedFault, inject, parse_faults
from .marks import read_marks
from .publish import FeedReport, publish, publish_arrays, retention, topic_spec
from .sources import Feed, open_feed
from .synthetic import SyntheticCamera, parse_synthetic, synthetic_packets

__all__ = [
    "Fault",
    "Feed",
    "FeedPacket",
    "FeedReport",
    "InjectedFault",
    "SyntheticCamera",
    "inject",
    "open_feed",
    "parse_faults",
    "parse_synthetic",
    "publish",
    "publish_arrays",
    "read_marks",
    "retention",
    "synthetic_packets",
    "topic_spec",
]
