"""Membership of a consumer group that shares *topics*: which process has which, by Kafka's own protocol.

**Problem.** Thirty cameras, three processes: each camera in exactly one, a dead process' cameras in another within the
session time-out, a new process gets its part, and whoever hands a camera over has put it down before the other picks
it up.

**Algorithm.** A member is a ``KafkaConsumer`` that subscribes to all the topics (a list, or a pattern) and fetches
nothing: every partition it is assigned is paused at once. Reading is the business of ordinary consumers of the same
connection (``Broker.consumer``, assigned partitions), opened and closed by the callbacks. So a rebalance moves only
the cameras that move; the others do not notice. The assignor is cooperative-sticky: what stays, stays.

``on_revoked`` is awaited by the group protocol itself, on the client's I/O loop (heartbeats go on): only when it has
returned, or after ``_HAND_OVER`` seconds, may another member be given these topics. A member that was thrown out (it
was stopped longer than the session time-out) is told with ``lost=True``: others have them already.

**Committing.** Lanes of durable consumers are attached here, because only a member may commit; what they want committed
is, every half second, before a hand-over, and at the end.

**Threads.** One polls, one calls the callbacks, in order. Both end with ``close``, which leaves the group, so that the
others need not wait for the session time-out.
"""

from __future__ import annotations

import fnmatch
import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.consumer.subscription_state import AsyncConsumerRebalanceListener
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

from comux.errors import ClosedError, ComuxError, StaleLeaseError

from .interface import Membership, OnAssigned, OnRevoked
from .kafka_cluster import SETTINGS, Cluster
from .kafka_commits import LOST, as_offsets, commit_now, wanted_of
from .kafka_failures import Notes, translate
from .kafka_lane import Lane
from .kafka_net import build, keep_joining
from .kafka_poller import Lifeline

_log = logging.getLogger("comux.transport")

_POLL_MS: Final = 200
_COMMIT_S: Final = 0.5
_COMMIT_TIMEOUT: Final = 5.0
_HAND_OVER: Final = 10.0
_TICK: Final = 0.01
_CLOSE_MS: Final = 5000


class _Call:
    """One callback to be made."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call
        self.done = threading.Event()


class KafkaMembership(Membership):
    """See ``Membership`` and the module. Thread-safe.

    Args:
        cluster: Of the connection.
        group: Our name of the group.
        topics: Our names, or a pattern with ``*`` and ``?``.
        on_assigned, on_revoked: See ``Membership``.
        lifeline: Of the connection.
        forget: Called once at the end.
    """

    def __init__(
        self,
        cluster: Cluster,
        group: str,
        topics: Sequence[str] | str,
        on_assigned: OnAssigned,
        on_revoked: OnRevoked,
        lifeline: Lifeline,
        forget: Callable[[KafkaMembership], None],
    ) -> None:
        self.group = group
        self._cluster = cluster
        self._topics = topics
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        self._lifeline = lifeline
        self._forget = forget
        self._notes = Notes(cluster.options.client)
        self._lock = threading.Lock()
        self._owned: set[str] = set()
        self._lanes: set[Lane] = set()
        self._closed = threading.Event()
        self._failure: ComuxError | None = None
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._consumer = self._open()
        self._poll_thread = threading.Thread(target=self._run, name=f"comux-kafka-member-{group}", daemon=True)
        self._call_thread = threading.Thread(target=self._make_calls, name=f"comux-kafka-share-{group}", daemon=True)
        self._call_thread.start()
        self._poll_thread.start()

    def _open(self) -> KafkaConsumer:
        options = self._cluster.options
        ours: dict[str, Any] = {
            "client_id": "comux-member",
            "reconnect_backoff_max_ms": 1000,
            "retry_backoff_ms": 50,
            "metadata_max_age_ms": 3000,  # how soon a new topic that matches appears
            "session_timeout_ms": 10_000,
            "heartbeat_interval_ms": 1_000,
            "allow_auto_create_topics": False,
            "metrics_enabled": False,
            "partition_assignment_strategy": [CooperativeStickyAssignor],
        }
        arguments = options.for_client("consumer", **ours)
        # What is assigned is paused: where it would begin to fetch does not matter.
        arguments.update(group_id=self._cluster.full(self.group), enable_auto_commit=False, auto_offset_reset="latest")
        consumer = build(KafkaConsumer, arguments, self._cluster.where, self._notes)
        listener = _Listener(self, consumer)
        if isinstance(self._topics, str):
            pattern = fnmatch.translate(self._cluster.full(self._topics))
            consumer.subscribe(pattern=f"(?!{re.escape(SETTINGS)}$)(?!__)(?:{pattern})", listener=listener)
        else:
            consumer.subscribe(topics=[self._cluster.full(topic) for topic in self._topics], listener=listener)
        return consumer

    # -- what others ask -------------------------------------------------------------------------------------------

    def assigned(self) -> frozenset[str]:
        with self._lock:
            return frozenset(self._owned)

    def failure(self) -> ComuxError | None:
        return self._failure

    def attach(self, lanes: Iterable[Lane]) -> None:
        """Commit what these want committed, from now on."""
        with self._lock:
            self._lanes.update(lanes)

    def detach(self, lanes: Iterable[Lane]) -> None:
        """No longer commit for these."""
        with self._lock:
            self._lanes.difference_update(lanes)

    def commit(self, lanes: Iterable[Lane], timeout: float) -> None:
        """As ``Poller.commit``."""
        wanted = wanted_of(lanes)
        if not wanted:
            return
        if self._closed.is_set():
            raise ClosedError(f"the membership of group {self.group!r} is closed")
        try:
            commit_now(self._consumer, wanted, timeout)
        except kafka_errors.KafkaError as error:
            where = f"{self._cluster.where}: group {self.group!r}"
            if isinstance(error, LOST):
                raise StaleLeaseError(
                    f"{where}: lost its topics before the commit; their records come again"
                ) from error
            right = f"READ on group {self._cluster.full(self.group)!r}"
            raise translate(error, f"{where}: commit", self._notes, right=right) from error

    def close(self) -> None:
        if self._lifeline.dead or self._closed.is_set():
            self._closed.set()
            return
        current = threading.current_thread()
        if current is self._call_thread:
            raise ClosedError("a membership cannot be closed by its own callback")
        owned = self.assigned()
        if owned:  # put everything down before leaving
            call = _Call(lambda: self._revoke(owned, False))
            self._calls.put(call)
            call.done.wait(_HAND_OVER)
        self._closed.set()
        self._poll_thread.join(2 * _CLOSE_MS / 1000)
        self._calls.put(None)
        self._call_thread.join(2 * _CLOSE_MS / 1000)
        self._forget(self)

    # -- the polling thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        next_commit = 0.0
        try:
            while not self._closed.is_set():
                try:
                    keep_joining(self._consumer)
                    self._consumer.poll(timeout_ms=_POLL_MS)
                    self._failure = None
                    if time.monotonic() >= next_commit:
                        next_commit = time.monotonic() + _COMMIT_S
                        self._commit_quietly()
                except kafka_errors.KafkaError as error:
                    self._note(error)
                except Exception:  # noqa: BLE001 - whoever stops polling is thrown out of the group
                    _log.exception("%s: group %s: polling failed and goes on", self._cluster.where, self.group)
                    self._closed.wait(0.2)
        finally:
            self._leave()

    def _note(self, error: kafka_errors.KafkaError) -> None:
        right = f"READ on group {self._cluster.full(self.group)!r}"
        self._failure = translate(error, f"{self._cluster.where}: group {self.group!r}", self._notes, right=right)
        _log.warning("%s", self._failure)
        self._closed.wait(0.2)

    def _commit_quietly(self) -> None:
        with self._lock:
            lanes = list(self._lanes)
        wanted = wanted_of(lanes)
        if not wanted:
            return
        try:
            self._consumer.commit(as_offsets(wanted), timeout_ms=int(_COMMIT_TIMEOUT * 1000))
        except kafka_errors.KafkaError as error:
            _log.debug("%s: group %s: commit failed: %s", self._cluster.where, self.group, error)
            for lane in lanes:
                lane.want_commit_again(wanted)

    def _leave(self) -> None:
        try:
            self._commit_quietly()
            self._consumer.close(autocommit=False, timeout_ms=_CLOSE_MS)
        except Exception as error:  # noqa: BLE001 - whatever the client says at its end must not reach anybody
            _log.debug("%s: group %s: leaving: %s", self._cluster.where, self.group, error)

    # -- the callbacks ---------------------------------------------------------------------------------------------

    def _make_calls(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call.call()
            except Exception:  # noqa: BLE001 - the user's callback must not end the group's
                _log.exception("%s: group %s: a callback failed", self._cluster.where, self.group)
            finally:
                call.done.set()

    def ours(self, partitions: Iterable[TopicPartition]) -> frozenset[str]:
        """Our names of the topics whose partition is among these."""
        prefix, number = self._cluster.options.prefix, self._cluster.options.partition or 0
        return frozenset(p.topic.removeprefix(prefix) for p in partitions if p.partition == number)

    def assign(self, topics: frozenset[str]) -> None:
        """From the I/O thread: these are ours now."""
        if topics:
            self._calls.put(_Call(lambda: self._assign(topics)))

    def _assign(self, topics: frozenset[str]) -> None:
        with self._lock:
            self._owned |= topics
        self._on_assigned(topics)

    def revoke(self, topics: frozenset[str], lost: bool) -> _Call:
        """From the I/O thread: these are ours no longer, once the call is done."""
        call = _Call(lambda: self._revoke(topics, lost))
        self._calls.put(call)
        return call

    def _revoke(self, topics: frozenset[str], lost: bool) -> None:
        with self._lock:
            topics &= self._owned
            self._owned -= topics
        if topics:
            self._on_revoked(topics, lost)


class _Listener(AsyncConsumerRebalanceListener):  # type: ignore[misc]
    """Hands over between the group protocol and the callbacks; on the client's I/O loop."""

    def __init__(self, membership: KafkaMembership, consumer: KafkaConsumer) -> None:
        self._membership = membership
        self._consumer = consumer

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._consumer.pause(*assigned)
        self._membership.assign(self._membership.ours(assigned))

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        await self._put_down(self._membership.revoke(self._membership.ours(revoked), False))

    async def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
        await self._put_down(self._membership.revoke(self._membership.ours(lost), True))

    async def _put_down(self, call: _Call) -> None:
        deadline = time.monotonic() + _HAND_OVER
        while not call.done.is_set():
            if time.monotonic() > deadline:
                _log.warning("topics were not put down within %s s of a hand-over", _HAND_OVER)
                return
            await self._consumer._net.sleep(_TICK)
