"""The bridge: which topics go over it, under which names; each goes on its own (``link``).

**Which.** The topic that an address names, or those of ``topics``: names, or patterns with ``*``, ``?`` and ``[…]``.
Once a second the source is asked for its topics, so a topic that appears later is copied too, from its beginning. Where
source and destination are one engine, what looks like a copy is no source: else the pattern ``*`` would find the copies
of copies for ever.

**Group.** By default the group on the source is named after the destination and the names there: two bridges to
different places do not share the records, the same bridge started again goes on.

**Several bridges, one group.** Where groups share topics (Kafka) the bridges are members of the group, and the link of
a topic lives from ``on_assigned`` to ``on_revoked``: it has acknowledged what it copied, and sends no more, before
another bridge is given the topic. Where members would share records one bridge copies, the others stand by (``link``).
"""

from __future__ import annotations

import fnmatch
import hashlib
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Final

from comux.account import AccountSnapshot, total
from comux.errors import ComuxError, ConfigError, UnknownTopicError
from comux.telemetry import EventLog
from comux.transport import Broker, Membership, Start, parse_address
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
            for its topics, or a group cannot be joined.

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
        same = self._source.id == self._destination.id
        if same and not prefix and (self._into is None or self._into in self._wanted):
            raise ConfigError(f"{source!r} and {destination!r} are the same topics: give a prefix, or another topic")
        self._same = same
        self._options = LinkOptions(
            None if lossy else group or self._default_group(), start, once, drop_too_large or lossy
        )
        self._links: dict[str, Link] = {}
        self._former = AccountSnapshot()  # of links that are over, and whose topic has another one now
        self._targets: dict[str, Target] = {}
        self._memberships: list[Membership] = []
        self._there_first: frozenset[str] | None = None  # topics of the source when it was first asked
        self._trouble = ""
        self._lock = threading.RLock()
        self._stop = threading.Event()

    # -- running ---------------------------------------------------------------------------------------------------

    def run(self, stop: threading.Event | None = None) -> bool:
        """Copy until ``stop`` is set or ``close`` called; with ``once`` until everything is copied. To be called once.

        Blocks; every topic's thread has ended when it returns.

        Returns:
            ``False`` where a topic failed for good (``once`` only).

        Raises:
            ConfigError: an option of an address is wrong. UnknownTopicError: ``once``, and a topic does not exist or
                none matches. ComuxError: the source cannot be used, and trying again does not help (credentials).
        """
        look_at = 0.0
        waiting: set[str] | None = None  # ``once``: the topics that are not done
        try:
            while not (self._stop.is_set() or (stop is not None and stop.is_set())):
                if time.monotonic() >= look_at and not (self._options.once and waiting is not None):
                    found = self._look_for_topics()
                    waiting = waiting if found is None else set(found)
                    look_at = time.monotonic() + DISCOVER
                wrong = self._source.wrong or self._destination.wrong
                if wrong is not None:
                    raise wrong
                if self._options.once and waiting is not None:
                    waiting -= {link.topic for link in self._snapshot() if link.over}
                    if not waiting:
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
        with self._lock:
            memberships, self._memberships = self._memberships, []
        for membership in memberships:
            membership.close()
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
        """All topics together, what went before included. From any thread."""
        with self._lock:
            return total([self._former, *(link.account.snapshot() for link in self._links.values())])

    def _snapshot(self) -> list[Link]:
        with self._lock:
            return list(self._links.values())

    # -- which topics ----------------------------------------------------------------------------------------------

    def _look_for_topics(self) -> list[str] | None:
        """Begin a link for each topic that has none, or join the group that says which are ours.

        Returns:
            The topics there are to copy; ``None`` where the source is away.
        """
        try:
            broker = self._source.broker()
            there = broker.topics()
            if self._there_first is None:
                self._there_first = frozenset(there)
            found = [name for name in there if self._matches(name) and not self._is_copy(name)]
            if self._options.once:
                self._must_exist(found, there)
            if self._options.group is not None and broker.capabilities.topic_sharing:
                self._join(broker, self._options.group)
            else:
                for name in dict.fromkeys([*filter(_is_name, self._wanted), *found]):
                    self._begin(name)
            self._say("")
            return found
        except ComuxError as exc:
            hopeless = not exc.retriable or (self._options.once and isinstance(exc, UnknownTopicError))
            if hopeless and (self._there_first is None or self._options.once):
                raise
            self._say(f"the source: {exc}")
            return None

    def _say(self, trouble: str) -> None:
        """Report trouble that concerns no single topic, once."""
        if trouble and trouble != self._trouble:
            self.events.emit("bridge.source", trouble, level=logging.WARNING)
        self._trouble = trouble

    def _matches(self, name: str) -> bool:
        return any(name == each or fnmatch.fnmatchcase(name, each) for each in self._wanted)

    def _is_copy(self, name: str) -> bool:
        """Whether a topic of the source is what this bridge makes of another one."""
        if not self._same:
            return False
        if self._into is not None:
            return name == self._into
        return name.startswith(self._prefix) and self._matches(name.removeprefix(self._prefix))

    def _must_exist(self, found: Sequence[str], there: Sequence[str]) -> None:
        missing = [name for name in self._wanted if _is_name(name) and name not in there]
        if found and not missing:
            return
        what = f"topic {missing[0]!r}" if missing else f"topic that matches {', '.join(self._wanted)}"
        some = f"there are {', '.join(there[:5])}{', …' if len(there) > 5 else ''}" if there else "there is none at all"
        raise UnknownTopicError(f"no {what} at {parse_address(self._source.address).text}: {some}")

    def _join(self, broker: Broker, group: str) -> None:
        """Become a member of the group, for the names and for each pattern. Says what is the matter with it."""
        with self._lock:
            if not self._memberships:
                names = list(filter(_is_name, self._wanted))
                for topics in [*([names] if names else []), *(each for each in self._wanted if not _is_name(each))]:
                    self._memberships.append(
                        broker.membership(group, topics, on_assigned=self._assigned, on_revoked=self._revoked)
                    )
            failures = [failure for each in self._memberships if (failure := each.failure()) is not None]
        if failures:
            raise failures[0]

    def _assigned(self, topics: frozenset[str]) -> None:
        for name in sorted(topics):
            if not self._is_copy(name):
                self._begin(name)

    def _revoked(self, topics: frozenset[str], lost: bool) -> None:
        links = [link for link in self._snapshot() if link.topic in topics]
        for link in links:
            link.stop(yields=not self._stop.is_set())
        for link in links:
            link.join()

    def _begin(self, name: str) -> None:
        """Start a topic's link, unless it has one that lives, or is done."""
        with self._lock:
            former = self._links.get(name)
            if self._stop.is_set() or (former is not None and former.status().state not in ("gone", "standby")):
                return
            if former is not None:
                if former.alive and former.status().state == "standby":
                    return
                former.join()
                self._former += former.account.snapshot()
            into = self._into if self._into is not None else self._prefix + name
            target = self._targets.setdefault(into, Target(into))
            new = self._there_first is not None and name not in self._there_first
            options = replace(self._options, start="beginning") if new else self._options
            link = Link(self._source, self._destination, name, target, options, self._tell, name not in self._wanted)
            self._links[name] = link
            link.begin()

    def _default_group(self) -> str:
        where = f"{self._destination.id}/{self._into if self._into is not None else self._prefix + '*'}"
        return "bridge-" + hashlib.sha256(where.encode()).hexdigest()[:12]

    def _tell(self, status: LinkStatus) -> None:
        level = {"waiting": logging.WARNING, "failed": logging.ERROR}.get(status.state, logging.INFO)
        message = status.state + (f": {status.reason}" if status.reason else "")
        self.events.emit("bridge.state", message, source=status.topic, level=level, **status.as_dict())


def _is_name(text: str) -> bool:
    """Whether it is no pattern."""
    return not any(sign in text for sign in "*?[")


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
        if _is_name(name):
            check_name("topic", name)
    return wanted
