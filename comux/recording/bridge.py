"""The bridge: which topics go over it, under which names; each goes on its own (``link``).

**Which.** The topic that an address names, or those of ``topics``: names, or patterns with ``*``, ``?`` and ``[…]``.
A pattern is matched anew every second, so a topic that appears later is copied too, from its beginning; a name is
waited for. Where source and destination are one engine, a topic that is another one's copy is no source: else the
pattern ``*`` would find the copies of copies for ever.

**Group.** By default each pair of a source and a destination topic has a group of its own on the source, named after
the destination: two bridges to different places do not share the records, the same bridge started again goes on.
"""

from __future__ import annotations

import fnmatch
import hashlib
import logging
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final

from comux.account import AccountSnapshot, total
from comux.errors import ComuxError, ConfigError, UnknownTopicError
from comux.telemetry import EventLog
from comux.transport import Start, parse_address
from comux.transport.names import check_consumer, check_name

from .ends import Engine, Target
from .link import Link, LinkOptions, LinkStatus

DISCOVER: Final = 1.0  #: seconds between two looks for topics that match
_TICK: Final = 0.1


class Bridge:
    """Copies topics from one engine to another until it is stopped.

    Args:
        source: Address of the engine to read; one that names a topic means that topic.
        destination: Address of the engine to write; one that names a topic means that all records go there.
        topics: Names or patterns; only where ``source`` names no topic.
        prefix: Put before the names at the destination.
        start: Where a group begins that has no position yet, and a lossy bridge: as ``Broker.consumer``.
        group: Name of the consumer group on the source, for all topics; ``None``: one named after the destination.
        lossy: Read without a group: nothing waits for the bridge, what it misses is counted, nothing is resumed.
        once: Stop at the end of what is there when a topic is first opened.
        drop_too_large: Drop, and count, records that are larger than a limit of the destination, instead of waiting
            for somebody to raise it.

    Attributes:
        events: ``bridge.state`` for each topic's changes of state, ``bridge.source`` where the source cannot be asked
            for its topics.

    Raises:
        ConfigError: an argument is wrong; nothing was opened yet.
    """

    def __init__(
        self,
        source: str,
        destination: str,
        *,
        topics: Sequence[str] = (),
        prefix: str = "",
        start: Start = "beginning",
        group: str | None = None,
        lossy: bool = False,
        once: bool = False,
        drop_too_large: bool = False,
    ) -> None:
        self.events = EventLog()
        self._source = Engine(source)
        self._destination = Engine(destination)
        self._into = parse_address(destination).topic
        self._prefix = prefix
        self._wanted = _wanted(source, topics)
        if lossy and group is not None:
            raise ConfigError(f"group={group!r} and lossy: a lossy bridge reads without a group; leave one of them out")
        if prefix and self._into is not None:
            raise ConfigError(f"prefix={prefix!r}, and {destination!r} names the topic {self._into!r}: leave one out")
        if prefix:
            check_name("prefix", prefix)
        check_consumer(self._wanted, group, start, "wait")
        self._group = group
        self._lossy = lossy
        self._options = LinkOptions(None, start, once, drop_too_large or lossy)
        self._links: dict[str, Link] = {}
        self._gone = AccountSnapshot()  # of links that are over, and whose topic has another one now
        self._targets: dict[str, Target] = {}
        self._lock = threading.Lock()
        self._looked = False
        self._stop = threading.Event()
        same = self._source.id == self._destination.id
        self._hide_copies = same and self._into is None
        if same and any(self._name_of(name) == name for name in self._wanted if not _is_pattern(name)):
            raise ConfigError(f"{source!r} and {destination!r} are the same topic: give another one, or a prefix")
        if self._hide_copies and not prefix:
            raise ConfigError(f"{source!r} and {destination!r} are the same topics: give a prefix for the copies")

    # -- running ---------------------------------------------------------------------------------------------------

    def run(self, stop: threading.Event | None = None) -> bool:
        """Copy until ``stop`` is set or ``close`` called; with ``once`` until everything is copied. Once, any thread.

        Blocks; every topic's thread has ended when it returns.

        Returns:
            ``False`` where a topic failed for good (``once`` only).

        Raises:
            UnknownTopicError: ``once``, and a topic does not exist or none matches.
        """
        look_at = 0.0
        try:
            while not (self._stop.is_set() or (stop is not None and stop.is_set())):
                if time.monotonic() >= look_at and not (self._options.once and self._looked):
                    self._discover()
                    look_at = time.monotonic() + DISCOVER
                if self._options.once and self._looked and all(link.over for link in self._snapshot()):
                    break
                (self._stop if stop is None else stop).wait(_TICK)
        finally:
            self.close()
        return not any(status.state == "failed" for status in self.status())

    def close(self) -> None:
        """Stop and wait until every thread has ended: what is not acknowledged stays at the source. Twice is fine."""
        self._stop.set()
        links = self._snapshot()
        for link in links:
            link.stop()
        for link in links:
            link.join()
        self._source.close()
        self._destination.close()

    def __enter__(self) -> Bridge:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def status(self) -> list[LinkStatus]:
        """Every topic as it stands, in the order in which they were found. From any thread."""
        return [link.status() for link in self._snapshot()]

    def account(self) -> AccountSnapshot:
        """All topics together, those that are gone included. From any thread."""
        with self._lock:
            return total([self._gone, *(link.account.snapshot() for link in self._links.values())])

    def _snapshot(self) -> list[Link]:
        with self._lock:
            return list(self._links.values())

    # -- which topics ----------------------------------------------------------------------------------------------

    def _discover(self) -> None:
        """Begin a link for each topic that has none. The source may be away: then another time."""
        patterns = [name for name in self._wanted if _is_pattern(name)]
        found = [name for name in self._wanted if not _is_pattern(name)]
        if patterns or self._options.once:
            try:
                there = self._source.broker().topics()
            except ComuxError as exc:
                if not exc.retriable:
                    raise
                self.events.emit("bridge.source", f"its topics cannot be listed: {exc}", level=logging.WARNING)
                there = None
            if there is None and self._options.once:
                return
            matching = [name for name in there or () if any(fnmatch.fnmatchcase(name, each) for each in patterns)]
            if self._hide_copies:
                copies = {self._name_of(name) for name in matching}
                matching = [name for name in matching if name not in copies]
            if self._options.once:
                self._must_exist(found, matching, there or [])
            found += [name for name in matching if name not in found]
        for name in found:
            self._begin(name, name not in self._wanted)
        self._looked = True

    def _must_exist(self, named: Sequence[str], matching: Sequence[str], there: Sequence[str]) -> None:
        missing = next((name for name in named if name not in there), None)
        if missing is None and (named or matching):
            return
        what = f"topic {missing!r}" if missing is not None else f"topic that matches {', '.join(self._wanted)}"
        listed = (
            f"there are {', '.join(there[:5])}{', …' if len(there) > 5 else ''}" if there else "there is none at all"
        )
        raise UnknownTopicError(f"no {what} at {self._source.address}: {listed}")

    def _begin(self, name: str, by_pattern: bool) -> None:
        former = self._links.get(name)
        if former is not None and not (former.over and former.status().state == "gone"):
            return
        into = self._name_of(name)
        target = self._targets.setdefault(into, Target(into))
        later = self._looked and by_pattern
        options = LinkOptions(
            None if self._lossy else self._group or self._default_group(into),
            "beginning" if later else self._options.start,
            self._options.once,
            self._options.drop_too_large,
        )
        link = Link(self._source, self._destination, name, target, options, self._tell, by_pattern)
        if former is not None:
            former.join()
        with self._lock:
            if former is not None:
                self._gone += former.account.snapshot()
            self._links[name] = link
        link.begin()

    def _name_of(self, topic: str) -> str:
        return self._into if self._into is not None else self._prefix + topic

    def _default_group(self, into: str) -> str:
        return "bridge-" + hashlib.sha256(f"{self._destination.id}/{into}".encode()).hexdigest()[:12]

    def _tell(self, status: LinkStatus) -> None:
        level = {"waiting": logging.WARNING, "failed": logging.ERROR}.get(status.state, logging.INFO)
        message = status.state + (f": {status.reason}" if status.reason else "")
        self.events.emit("bridge.state", message, source=status.topic, level=level, **status.as_dict())


def _is_pattern(name: str) -> bool:
    return any(sign in name for sign in "*?[")


def _wanted(source: str, topics: Sequence[str]) -> tuple[str, ...]:
    """The names and patterns asked for, each once."""
    named = parse_address(source).topic
    if isinstance(topics, str):
        topics = (topics,)
    if named is not None and topics:
        raise ConfigError(f"{source!r} names the topic {named!r}, and topics={list(topics)}: leave one of them out")
    if named is None and not topics:
        raise ConfigError(f"which topics of {source!r}? name one in the address, or give topics, for example 'raw_*'")
    wanted = tuple(dict.fromkeys([named] if named is not None else topics))
    for name in wanted:
        if not _is_pattern(name):
            check_name("topic", name)
    return wanted
