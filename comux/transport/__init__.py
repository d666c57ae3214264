"""Topics: one interface over several engines, found by address.

Lives here: the interface every engine keeps (``interface``), addresses (``address``), the table of engines
(``engines``), and the engines themselves: ``local`` (shared memory), ``kafka`` (Apache Kafka, the only door to
kafka-python) and ``memory`` (one process, for tests).
May import: ``comux.ring``, ``comux.records``, ``comux.account``, ``comux.errors``, numpy.
Must never know: codecs, sources, batches.
"""

from __future__ import annotations

from .address import Address, parse_address
from .engines import check_engine, connect, register_engine, schemes
from .interface import (
    Broker,
    Capabilities,
    Claim,
    Claimed,
    Consumer,
    GroupInfo,
    Holder,
    Membership,
    Observer,
    Producer,
    SendFuture,
    Start,
    TopicInfo,
    TopicSpec,
    for_engine,
)

__all__ = [
    "Address",
    "Broker",
    "Capabilities",
    "Claim",
    "Claimed",
    "Consumer",
    "GroupInfo",
    "Holder",
    "Membership",
    "Observer",
    "Producer",
    "SendFuture",
    "Start",
    "TopicInfo",
    "TopicSpec",
    "check_engine",
    "connect",
    "for_engine",
    "parse_address",
    "register_engine",
    "schemes",
]
