"""A fleet: several processes share the cameras of a cluster, each camera in exactly one of them.

**What happens.** The process joins a group of the cluster (``transport.Membership``). A topic that the group gives it
becomes a source, as by ``create``; one that the group takes away is deleted, and only then may another process have
it. Each is an event: ``fleet.assigned``, ``fleet.revoked``, ``fleet.lost`` (this process was away for longer than the
session time-out, and others have the camera already), ``fleet.refused`` (a source that could not be made). A pattern
may match what comux itself writes, results and control: those are ``fleet.passed_over``.

**Where a camera goes on.** At its newest keyframe: a loop shows the present. With ``durable=True`` at the group's
committed offset, which only ever covers packets whose batch the loop has left behind by asking for the next one, and
whose sends were acknowledged (``acks``): a camera that moves repeats at most the last batch, and loses nothing.

**Threads.** The callbacks come on a thread of the membership. ``start`` without ``strict`` tries again on a thread of
its own until the cluster is there.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from comux.errors import ClosedError, ComuxError, ConfigError
from comux.options import CamId, SourceOptions, cam_id_of
from comux.telemetry import EventLog
from comux.transport import Broker, Membership

_RETRY_MOST: Final = 5.0


class Sources(Protocol):
    """What a fleet does with cameras."""

    events: EventLog

    def create(self, spec: SourceOptions, *, strict: bool | None = None) -> SourceOptions: ...

    def delete(self, cam_id: CamId) -> None: ...


class Fleet:
    """See the module.

    Args:
        group: Name of the group.
        topics: A pattern, or the topics of ``known``.
        known: Specs of cameras by topic; empty where a pattern finds them.
        schema: How the topic of a camera without a spec is called.
        durable: Go on at the committed offset.
        start: Where a camera without a committed offset begins, unless its spec says; ``"end"`` is the newest keyframe.
        broker: Gives the engine of the cameras.
        sources: What is done with cameras.
    """

    def __init__(
        self,
        group: str,
        topics: str | None,
        known: Mapping[str, SourceOptions],
        schema: str,
        durable: bool,
        start: Any,
        broker: Callable[[], Broker],
        sources: Sources,
    ) -> None:
        self.group = group
        self.topics = topics
        self.durable = durable
        self._known = dict(known)
        self._schema = schema
        self._start = start
        self._broker = broker
        self._sources = sources
        self._membership: Membership | None = None
        self._here: dict[str, CamId] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._starter: threading.Thread | None = None

    def start(self, *, strict: bool) -> None:
        """Join. Without ``strict`` a cluster that is not there is waited for, in the background.

        Raises:
            ComuxError: the cluster cannot be used (``strict``), or shares no topics (always).
        """
        try:
            self._join()
        except ConfigError:
            raise
        except ComuxError as error:
            if strict or not error.retriable:
                raise
            self._starter = threading.Thread(target=self._keep_trying, name="comux-fleet", daemon=True)
            self._starter.start()

    def _join(self) -> None:
        topics: Any = self.topics if self.topics is not None else list(self._known)
        membership = self._broker().membership(self.group, topics, on_assigned=self._assigned, on_revoked=self._revoked)
        with self._lock:
            self._membership = membership
            closing = self._closing.is_set()
        if closing:
            membership.close()

    def _keep_trying(self) -> None:
        pause = 0.1
        while not self._closing.wait(pause):
            try:
                self._join()
                return
            except ClosedError:
                return
            except ComuxError as error:
                self._tell("fleet.waiting", f"group {self.group!r} cannot be joined yet: {error}", logging.WARNING)
            pause = min(2 * pause, _RETRY_MOST)

    def close(self) -> None:
        """Put every camera down and leave the group. Idempotent."""
        self._closing.set()
        with self._lock:
            membership, self._membership = self._membership, None
        if membership is not None:
            membership.close()
        if self._starter is not None and self._starter is not threading.current_thread():
            self._starter.join(_RETRY_MOST)

    def status(self) -> dict[str, Any]:
        """For people: the group, what is here, and what went wrong last."""
        membership = self._membership
        failure = None if membership is None else membership.failure()
        return {
            "group": self.group,
            "topics": self.topics if self.topics is not None else f"{len(self._known)} by name",
            "durable": self.durable,
            "joined": membership is not None,
            "here": sorted(map(str, self._here.values())),
            "failure": None if failure is None else str(failure),
        }

    # -- what the group says ---------------------------------------------------------------------------------------

    def _assigned(self, topics: frozenset[str]) -> None:
        for topic in sorted(topics):
            try:
                if self._passed_over(topic):
                    continue
                spec = self._spec(topic)
                self._sources.create(spec, strict=False)
            except ClosedError:
                return
            except ComuxError as error:
                self._tell("fleet.refused", f"topic {topic!r} is ours and cannot be read: {error}", logging.ERROR)
                continue
            self._here[topic] = spec.cam_id
            self._tell(
                "fleet.assigned",
                f"topic {topic!r} is read here now; {len(self._here)} cameras here",
                logging.INFO,
                str(spec.cam_id),
                topic=topic,
            )

    def _passed_over(self, topic: str) -> bool:
        if self.topics is None:
            return False
        content = str(self._broker().topic(topic).spec.metadata.get("content", ""))
        if content.startswith("comux "):
            self._tell(
                "fleet.passed_over", f"topic {topic!r} holds {content} and is no camera", logging.INFO, topic=topic
            )
        return content.startswith("comux ")

    def _spec(self, topic: str) -> SourceOptions:
        spec = self._known.get(topic)
        given: dict[str, Any] = {"cam_id": cam_id_of(self._schema, topic)}
        if spec is not None:
            given = {name: getattr(spec, name) for name in spec.model_fields_set}
        given["consume_topic"] = topic
        if self.durable:
            given.update(group=self.group, durable=True)
        if given.get("start", self._start) == "end":  # the present of a camera that moves, from where it can be decoded
            given["start"] = "keyframe"
        return SourceOptions(**given)

    def _revoked(self, topics: frozenset[str], lost: bool) -> None:
        for topic in sorted(topics):
            cam_id = self._here.pop(topic, None)
            if cam_id is None:
                continue
            try:
                self._sources.delete(cam_id)
            except ComuxError as error:  # deleted by somebody else, or everything closes
                logging.getLogger("comux.multiplexer").debug("camera %r: %s", cam_id, error)
            text = "went to another process while this one was away" if lost else "is put down for another process"
            self._tell(
                "fleet.lost" if lost else "fleet.revoked",
                f"topic {topic!r} {text}; {len(self._here)} cameras here",
                logging.WARNING if lost else logging.INFO,
                str(cam_id),
                topic=topic,
            )

    def _tell(self, name: str, text: str, level: int, source: str | None = None, **more: Any) -> None:
        self._sources.events.emit(name, text, source=source, level=level, group=self.group, **more)
