"""The polling thread: one ``KafkaConsumer`` for all topics of one cluster that are read in one way.

**Problem.** A ``KafkaConsumer`` is not thread-safe, has a thread and connections of its own, and has to be polled in
time or its group loses it. Thirty cameras must not mean thirty of them, and a slow decoder must not keep one from
polling.

**Algorithm.** A poller owns one consumer and one thread; consumers (handles) put their *lanes* (``kafka_lane``) into
it. The thread does, again and again: what the handles asked for (new lanes, seeks, pauses, commits), one ``poll``, and
every quarter of a second a look at every lane: is there still a connection to the broker that has it, does the topic
exist. A lane whose queue holds more than ``queue_bytes``, or that is over its rate, is paused in the consumer and
resumed when half of it has been taken; the others go on. A partition can be read by one lane of a poller, so a second
reader of the same topic in the same way is given another poller.

**Two ways.** Without a group partitions are *assigned*: no rebalance ever. With a group they are *subscribed*: Kafka's
group protocol decides which process has which, and the lanes are told (``assigned``, ``revoked``).

**Asked for meanwhile.** A ``poll`` that finds nothing returns after ``_POLL_MS``; the fetch it waits for takes at most
``fetch_max_wait_ms`` (100). So a seek on a quiet topic takes up to that long.

**Ends.** The thread ends when the broker handle closes, or, with a group, when the last lane leaves (and with it the
group). In a forked child it does not exist; handles know (``Lifeline``).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

from kafka import TopicPartition
from kafka import errors as kafka_errors
from kafka.consumer.subscription_state import AsyncConsumerRebalanceListener
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

from comux.errors import ClosedError, ComuxError, ConfigError, ConnectError, StaleLeaseError, UnknownTopicError

from .confluent_reader import ConfluentReader
from .kafka_cluster import Cluster
from .kafka_commits import LOST, as_offsets, commit_now, wanted_of
from .kafka_failures import Notes, translate, unreadable
from .kafka_fetched import Unreadable
from .kafka_lane import Lane
from .kafka_net import keep_joining
from .kafka_reader import open_reader
from .pace import Budget

_log = logging.getLogger("comux.transport")

_POLL_MS: Final = 50
_LOOK_S: Final = 0.25
_COMMIT_S: Final = 0.05
_UNKNOWN_S: Final = 1.0
_CLOSE_MS: Final = 5000
_MAX_POLL_RECORDS: Final = 1000
_REQUEST_MS: Final = 5000
_TRIES: Final = 3  # times that a batch which cannot be read is fetched: it may have been damaged on its way


class Lifeline:
    """Whether the process that opened a connection is this one; false in a forked child."""

    def __init__(self) -> None:
        self.dead = False


class _Held:
    """What the thread knows of a lane."""

    __slots__ = ("ahead", "applied", "budget", "doubtful", "fetching", "known", "tries", "unknown_since")

    def __init__(self, budget: Budget | None) -> None:
        self.applied = -1  # generation that the consumer stands at
        self.fetching = True
        self.ahead = False  # the position lies beyond the end: wait for the log to reach it
        self.known = False  # was seen in the cluster's metadata
        self.unknown_since: float | None = None
        self.budget = budget
        self.doubtful = -1  # offset that could not be read
        self.tries = 0  # how often


class Poller:
    """See the module. ``add``, ``remove``, ``kick``, ``commit`` and ``close`` may be called from any thread.

    Args:
        cluster: Of the connection.
        group: Full name of the group; ``None``: partitions are assigned.
        lifeline: Of the connection.
    """

    def __init__(self, cluster: Cluster, group: str | None, lifeline: Lifeline) -> None:
        self.group = group
        self.ended = False
        self._cluster = cluster
        self._lifeline = lifeline
        self._notes = Notes(cluster.options.client)
        self._lock = threading.Lock()
        self._asked = threading.Condition(self._lock)
        self._lanes: dict[TopicPartition, Lane] = {}  # as wanted; guarded by the lock
        self._kicked: set[Lane] = set()
        self._changed = False
        self._closing = False
        self._held: dict[Lane, _Held] = {}  # the thread's
        self._refused: kafka_errors.AuthorizationError | None = None
        self._next_look = 0.0
        self._next_commit = 0.0
        self._record_bytes: float | None = None  # of the newest, where bytes are limited
        self._consumer = self._open()
        name = "comux-kafka-poll" if group is None else f"comux-kafka-poll-{group}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _open(self) -> Any:  # a PartitionReader; with a group, kafka-python's
        options = self._cluster.options
        ours: dict[str, Any] = {
            "client_id": "comux",
            "fetch_max_wait_ms": 100,
            "max_partition_fetch_bytes": min(options.queue_bytes, 4 << 20),
            "retry_backoff_ms": 50,  # also how long poll sleeps until the cluster's metadata are there
            "metadata_max_age_ms": 30_000,
            "max_poll_records": _MAX_POLL_RECORDS,
            "session_timeout_ms": 10_000,
            "heartbeat_interval_ms": 2_000,
            "allow_auto_create_topics": False,
            "metrics_enabled": False,
            "partition_assignment_strategy": [CooperativeStickyAssignor],
        }
        arguments = options.for_client("consumer", **ours)
        arguments.update(group_id=self.group, enable_auto_commit=False, auto_offset_reset="none")
        if self.group is None and options.library == "confluent":
            return ConfluentReader(self._cluster, arguments, self._notes)
        return open_reader(arguments, self._cluster.where, self._notes)

    # -- asked for by others ---------------------------------------------------------------------------------------

    def reads_any(self, partitions: Iterable[TopicPartition]) -> bool:
        """Whether one of these is read here already."""
        with self._lock:
            return any(partition in self._lanes for partition in partitions)

    def add(self, lanes: Sequence[Lane]) -> bool:
        """Read these from now on; ``False`` where one is read here already, or the poller has ended."""
        with self._asked:
            if self.ended or self._closing or any(lane.partition in self._lanes for lane in lanes):
                return False
            self._lanes.update({lane.partition: lane for lane in lanes})
            self._changed = True
            self._asked.notify()
            return True

    def remove(self, lanes: Sequence[Lane]) -> None:
        """Read these no longer. With a group, waits until what they had acknowledged is committed and they are left."""
        with self._asked:
            for lane in lanes:
                if self._lanes.get(lane.partition) is lane:
                    del self._lanes[lane.partition]
            self._changed = True
            last = not self._lanes and self.group is not None
            self._closing = self._closing or last
            self._asked.notify()
        if last and threading.current_thread() is not self._thread and not self._lifeline.dead:
            self._thread.join(2 * _CLOSE_MS / 1000)

    def kick(self, lane: Lane) -> None:
        """Something about the lane changed: look at it before the next poll."""
        with self._asked:
            self._kicked.add(lane)
            self._asked.notify()

    def ask_mark(self, lane: Lane) -> None:
        """Have the high-water mark of a topic that is not being fetched asked for; returns at once."""
        self._consumer.ask_mark(lane.partition, lane.state.saw)

    def commit(self, lanes: Iterable[Lane], timeout: float) -> None:
        """Commit what the lanes want committed, and wait until the cluster has it. Does not wait for a ``poll``.

        Raises:
            StaleLeaseError: the partitions went to another member meanwhile; their records come again, there.
            WaitTimeoutError, ConnectError, ...: the cluster does not answer.
        """
        wanted = wanted_of(lanes)
        if not wanted:
            return
        if self.ended:
            raise ClosedError("the group was left")
        try:
            commit_now(self._consumer, wanted, timeout)
        except kafka_errors.KafkaError as error:
            self._want_again(wanted)
            where = f"{self._cluster.where}: group {self.group!r}"
            if isinstance(error, LOST):
                raise StaleLeaseError(
                    f"{where}: lost its partitions before the commit; their records come again"
                ) from error
            right = f"READ on group {self.group!r}"
            raise translate(error, f"{where}: commit", self._notes, right=right) from error

    def deleted(self, partition: TopicPartition) -> None:
        """The topic was deleted through this connection."""
        lane = self._lanes.get(partition)
        if lane is not None:
            lane.fail(UnknownTopicError(f"topic {lane.name!r} was deleted under its consumer; create it again"))
            self._drop(lane)

    def close(self) -> None:
        """End the thread and the consumer. Idempotent."""
        with self._asked:
            self._closing = True
            self._asked.notify()
        if not self._lifeline.dead and threading.current_thread() is not self._thread:
            self._thread.join(2 * _CLOSE_MS / 1000)

    def abandon(self) -> None:
        """In a forked child: nothing of the client runs there."""
        self._consumer.abandon()

    # -- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                try:
                    self._turn()
                except kafka_errors.KafkaError as error:
                    self._failed(error)
                except Exception:  # noqa: BLE001 - a poller that dies silently would stop every camera of the cluster
                    _log.exception("%s: polling failed and goes on", self._cluster.where)
                    self._pause_a_moment()
        finally:
            self._finish()

    def _wait_for_work(self) -> bool:
        """Wait while nothing is to be read; ``False`` where the thread is to end."""
        with self._asked:
            while not self._closing:
                if self._changed or self._lanes:
                    return True
                self._asked.wait()
            return False

    def _pause_a_moment(self) -> None:
        with self._asked:
            if not self._closing:
                self._asked.wait(0.1)

    def _turn(self) -> None:
        self._apply()
        if (refused := self._refused) is not None:
            self._refused = None
            raise refused
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + _LOOK_S
            self._consumer.serve()
            for lane in list(self._held):
                self._look(lane)
        if self.group is None and not any(held.fetching for held in self._held.values()):
            with self._asked:  # all wait for their readers: poll would only sleep
                if not (self._changed or self._kicked or self._closing):
                    self._asked.wait(self._until_next(now))
            return
        if self.group is not None:
            keep_joining(self._consumer)
        self._hand_out(self._consumer.poll(timeout_ms=_POLL_MS, max_records=self._most()))
        for partition, what in self._consumer.unreadable():
            self._unreadable(partition, what)

    def _most(self) -> int:
        """Records that one poll may bring: where a rate is limited, a tenth of a second's, so that it is even."""
        options, most = self._cluster.options, float(_MAX_POLL_RECORDS)
        if options.records_per_second is not None:
            most = min(most, options.records_per_second / 10)
        if options.bytes_per_second is not None:
            size = self._record_bytes
            most = min(most, 1 if size is None else options.bytes_per_second / 10 / size)
        return max(1, int(most))

    def _until_next(self, now: float) -> float:
        due = [held.budget.due(now) for held in self._held.values() if held.budget is not None]
        return max(0.001, min([self._next_look - now, *(d for d in due if d > 0)]))

    def _hand_out(self, found: dict[TopicPartition, list[Any]]) -> None:
        for partition, messages in found.items():
            lane = self._lanes.get(partition)
            held = None if lane is None else self._held.get(lane)
            if lane is None or held is None:
                continue
            if self._is_another(lane):
                continue
            before = lane.bytes_read + lane.nbytes
            waiting = lane.deliver(held.applied, messages, self._consumer.highwater(partition))
            if waiting < 0:  # fetched before the lane was told that it has the partition, or after it was taken away
                if partition in self._consumer.assignment():
                    self._consumer.seek(partition, messages[0][3])
                continue
            if held.budget is not None:
                nbytes = lane.bytes_read + lane.nbytes - before
                held.budget.spend(len(messages), nbytes, time.monotonic())
                self._record_bytes = max(1.0, nbytes / max(1, len(messages)))
            if waiting > self._cluster.options.queue_bytes or held.budget is not None:
                self._regulate(lane, held)

    # -- what was asked for ----------------------------------------------------------------------------------------

    def _apply(self) -> None:
        with self._lock:
            changed, self._changed = self._changed, False
            kicked, self._kicked = self._kicked, set()
            wanted = dict(self._lanes) if changed else {}
        if changed:
            self._change(wanted)
        for lane in kicked:
            if lane in self._held:
                self._bring_up(lane, self._held[lane])
        if self.group is not None:
            self._commit_some()

    def _change(self, wanted: dict[TopicPartition, Lane]) -> None:
        options = self._cluster.options
        for lane in [lane for lane in self._held if wanted.get(lane.partition) is not lane]:
            del self._held[lane]
        fresh = [lane for lane in wanted.values() if lane not in self._held]
        for lane in fresh:
            limited = options.records_per_second is not None or options.bytes_per_second is not None
            budget = Budget(options.records_per_second, options.bytes_per_second) if limited else None
            self._held[lane] = _Held(budget)
        if self.group is None:
            self._consumer.assign(list(wanted))
        elif wanted:
            self._consumer.subscribe(topics=[partition.topic for partition in wanted], listener=_Listener(self))
        paused = self._consumer.paused()
        for lane in fresh:
            self._held[lane].fetching = lane.partition not in paused  # another lane may have been here before
            self._bring_up(lane, self._held[lane])

    def _bring_up(self, lane: Lane, held: _Held) -> None:
        """Make the consumer stand where the lane wants it, paused or not."""
        with lane.condition:
            generation, position = lane.generation, lane.position
        if lane.partition not in self._consumer.assignment():
            return
        if generation != held.applied:
            self._consumer.seek(lane.partition, position)
            held.applied, held.ahead = generation, False
        self._regulate(lane, held)

    def _regulate(self, lane: Lane, held: _Held) -> None:
        """Pause or resume: the user's wish, the bytes that wait, the rate."""
        if lane.partition not in self._consumer.assignment():
            return
        limit = self._cluster.options.queue_bytes
        full = lane.nbytes > (limit if held.fetching else limit // 2)
        early = held.budget is not None and held.budget.due(time.monotonic()) > 0
        wanted = not (lane.paused or full or early or held.ahead)
        if wanted and not held.fetching:
            self._consumer.resume(lane.partition)
        elif not wanted and held.fetching:
            self._consumer.pause(lane.partition)
        held.fetching = wanted

    def _commit_some(self) -> None:
        """Commit what became finished, without waiting for the answer."""
        now = time.monotonic()
        if now < self._next_commit:
            return
        self._next_commit = now + _COMMIT_S
        wanted = wanted_of(self._held)
        if wanted:
            self._consumer.commit_async(as_offsets(wanted), callback=self._committed)

    def _committed(self, offsets: dict[TopicPartition, Any], result: Any) -> None:
        """The fate of a commit nobody waits for; one that failed is tried again with the next."""
        if isinstance(result, kafka_errors.AuthorizationError):
            self._refused = result  # heartbeats are refused too then, and kafka-python keeps that to itself
        if isinstance(result, Exception):
            _log.debug("%s: group %s: commit failed: %s", self._cluster.where, self.group, result)
            self._want_again({partition: committed.offset for partition, committed in offsets.items()})

    def _want_again(self, offsets: dict[TopicPartition, int]) -> None:
        for partition in offsets:
            lane = self._lanes.get(partition)
            if lane is not None:
                lane.want_commit_again(offsets)

    # -- looking after the lanes -----------------------------------------------------------------------------------

    def _look(self, lane: Lane) -> None:
        held = self._held[lane]
        leader = self._consumer.leader_of(lane.partition)
        if leader is None:
            self._unknown(lane, held)
            return
        held.known, held.unknown_since = True, None
        if self._is_another(lane):
            return
        lane.set_trouble(self._trouble(lane, leader))
        if held.ahead and lane.trouble is None:
            held.ahead = self._end_offset(lane) < lane.position
        if held.applied != lane.generation or not held.fetching:
            self._bring_up(lane, held)
        if held.fetching and lane.trouble is None and lane.owned and lane.partition in self._consumer.assignment():
            high_water = self._consumer.highwater(lane.partition)
            if high_water is not None:
                lane.state.saw(high_water)
            position = self._consumer.place_of(lane.partition)
            if position is not None:  # it has gone past offsets that hold no record
                lane.passed(held.applied, position)

    def _is_another(self, lane: Lane) -> bool:
        """Whether the topic is no longer the one that the lane was opened on; the lane is told."""
        topic_id = self._consumer.topic_id_of(lane.partition.topic)
        if topic_id is None or lane.topic_id is None or topic_id == lane.topic_id:
            return False
        self._made_anew(lane, "it was deleted and made anew")
        return True

    def _made_anew(self, lane: Lane, why: str) -> None:
        lane.fail(UnknownTopicError(f"{self._cluster.where}: topic {lane.name!r}: {why}; open it again"))
        self._drop(lane)

    def _trouble(self, lane: Lane, leader: int) -> ComuxError | None:
        what = f"{self._cluster.where}: topic {lane.name!r}"
        if leader == -1:
            return ConnectError(f"{what}: no broker leads its partition now; wait, or start the brokers that have it")
        error = self._notes.trouble(leader)
        return None if error is None else translate(error, what, self._notes)

    def _unknown(self, lane: Lane, held: _Held) -> None:
        """The cluster's metadata, as the consumer has it, lacks the topic."""
        now = time.monotonic()
        if held.unknown_since is None:
            held.unknown_since = now
        if now - held.unknown_since < _UNKNOWN_S:
            return
        held.unknown_since = now
        try:
            if not self._cluster.exists(lane.name):
                lane.fail(UnknownTopicError(f"{self._cluster.where}: topic {lane.name!r} was deleted; create it again"))
        except ComuxError as error:
            lane.set_trouble(error)

    def _end_offset(self, lane: Lane) -> int:
        try:
            return int(self._consumer.end_offsets([lane.partition], timeout_ms=_REQUEST_MS)[lane.partition])
        except kafka_errors.KafkaError:
            return -1

    def _failed(self, error: kafka_errors.KafkaError) -> None:
        """What ``poll`` raised, as what it means for the lanes."""
        where = self._cluster.where
        if isinstance(error, kafka_errors.OffsetOutOfRangeError):
            for partition, offset in dict(error.args[0]).items():
                self._out_of_range(partition, offset)
        elif isinstance(error, kafka_errors.LogTruncationError):
            for partition in error.divergent_offsets:
                lane = self._lanes.get(partition)
                if lane is not None:
                    self._made_anew(lane, "it lost its newest records, which were read")
        elif isinstance(error, kafka_errors.NoOffsetForPartitionError):
            self._begin_anew(error)
        elif isinstance(error, kafka_errors.TopicAuthorizationFailedError):
            names = set(error.args[0]) if error.args else set()
            for lane in [lane for lane in self._held if not names or lane.partition.topic in names]:
                lane.fail(translate(error, f"{where}: topic {lane.name!r}", self._notes, right=_reading(lane)))
                self._drop(lane)
        elif isinstance(error, (kafka_errors.GroupAuthorizationFailedError, kafka_errors.AuthorizationError)):
            for lane in list(self._held):
                lane.fail(
                    translate(
                        error, f"{where}: group {self.group!r}", self._notes, right=f"READ on group {self.group!r}"
                    )
                )
                self._drop(lane)
        else:
            _log.warning("%s: poll: %s: %s", where, type(error).__name__, error)
            self._pause_a_moment()

    def _drop(self, lane: Lane) -> None:
        with self._asked:
            if self._lanes.get(lane.partition) is lane:
                del self._lanes[lane.partition]
                self._changed = True

    def _out_of_range(self, partition: TopicPartition, offset: int) -> None:
        lane = self._lanes.get(partition)
        held = None if lane is None else self._held.get(lane)
        if lane is None or held is None:
            return
        try:
            begin = self._consumer.beginning_offsets([partition], timeout_ms=_REQUEST_MS)[partition]
            end = self._consumer.end_offsets([partition], timeout_ms=_REQUEST_MS)[partition]
        except kafka_errors.KafkaError as error:
            lane.set_trouble(translate(error, f"{self._cluster.where}: topic {lane.name!r}", self._notes))
            return
        if offset > end:
            if lane.sought:
                held.ahead = True
                self._regulate(lane, held)
            else:
                self._made_anew(
                    lane,
                    f"it ends at {end}, before {offset}, which was read: it was deleted and made anew, or lost its "
                    "newest records",
                )
            return
        if offset >= begin:  # the records up to it were written while its end was asked for
            self._consumer.seek(partition, offset)
            return
        target = end if self._cluster.options.get("auto_offset_reset") == "latest" else begin
        lane.passed(held.applied, target, max(0, target - offset))
        self._consumer.seek(partition, target)

    def _unreadable(self, partition: TopicPartition, what: Unreadable) -> None:
        """Records that cannot be read: fetched again, then passed over and counted; where that is no help, the end."""
        lane = self._lanes.get(partition)
        held = None if lane is None else self._held.get(lane)
        if lane is None or held is None:
            return
        error = unreadable(what, f"{self._cluster.where}: topic {lane.name!r}")
        held.tries = held.tries + 1 if held.doubtful == what.offset else 1
        held.doubtful = what.offset
        end = what.end
        nonsense = end is None or not what.offset < end <= self._end_offset(lane)
        if isinstance(error, ConfigError) or (nonsense and held.tries >= _TRIES):
            lane.fail(error)
            self._drop(lane)
        elif end is not None and held.tries >= _TRIES:
            _log.warning("%s; offsets %d to %d are passed over, counted as corrupt", error, what.offset, end - 1)
            lane.passed(held.applied, end, end - what.offset, "corrupt")
            self._consumer.seek(partition, end)

    # -- groups ----------------------------------------------------------------------------------------------------

    def _assigned(self, partitions: Iterable[TopicPartition]) -> None:
        """From the consumer's I/O thread, in the middle of ``poll``."""
        for partition in partitions:
            lane = self._lanes.get(partition)
            if lane is not None:
                held = self._held.get(lane)
                if held is not None:
                    held.applied, held.fetching = lane.generation, True
                lane.assigned(None)

    def _revoked(self, partitions: Iterable[TopicPartition]) -> None:
        for partition in partitions:
            lane = self._lanes.get(partition)
            if lane is not None:
                lane.revoked()

    def _begin_anew(self, error: kafka_errors.NoOffsetForPartitionError) -> None:
        """Partitions of a group that has no committed offset there: begin where the lanes were told to."""
        for partition in error.args[0] if error.args else ():
            lane = self._lanes.get(partition)
            if lane is not None and partition in self._consumer.assignment():
                self._consumer.seek(partition, lane.position)

    def _finish(self) -> None:
        with self._lock:
            self.ended = True
            lanes = list(self._lanes.values())
        try:
            if self.group is not None:
                wanted = wanted_of(self._held)
                if wanted:
                    commit_now(self._consumer, wanted, _CLOSE_MS / 1000)
        except kafka_errors.KafkaError as error:
            _log.warning(
                "%s: group %s: the last commit failed, records come again: %s", self._cluster.where, self.group, error
            )
        try:
            self._consumer.close(autocommit=False, timeout_ms=_CLOSE_MS)
        except Exception as error:  # noqa: BLE001 - whatever the client says at its end must not reach anybody
            _log.debug("%s: closing the consumer: %s", self._cluster.where, error)
        for lane in lanes:
            lane.fail(ClosedError(f"consumer of topic {lane.name!r}: its connection is closed; open a new one"))


class _Listener(AsyncConsumerRebalanceListener):  # type: ignore[misc]
    """Tells the lanes which partitions are this process'."""

    def __init__(self, poller: Poller) -> None:
        self._poller = poller

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._poller._assigned(assigned)

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._poller._revoked(revoked)

    async def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
        self._poller._revoked(lost)


def _reading(lane: Lane) -> str:
    return f"READ on topic {lane.partition.topic!r}"
