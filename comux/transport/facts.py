"""What is told of engines, topics and groups: capabilities, how a topic is made, how things stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from comux.dead_letters import MAX_DELIVERIES

Policy = Literal["wait", "drop_oldest", "drop_newest"]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do. Asking for an absent one raises ``UnsupportedError`` with the capability's name.

    ========================  =========  =========  =========
    capability                shm        memory     kafka
    ========================  =========  =========  =========
    record_sharing            True       True       False
    topic_sharing             False      False      True
    views                     True       True       False
    observer_without_reading  True       True       False
    counted_end               True       True       False
    gating                    True       True       False
    dead_letters              True       True       False
    pausing                   True       True       False
    exact_loss                True       True       False
    dense_offsets             True       True       False
    durable                   False      False      True
    cross_process             True       False      True
    timestamp_resolution_ns   1          1          1_000_000
    ========================  =========  =========  =========
    """

    record_sharing: bool  #: members of a group share record by record; a dead member's go to another, ``redelivered``
    topic_sharing: bool  #: ``membership``: the topics of a group are shared out among its members
    views: bool  #: ``views=True``: zero-copy values
    observer_without_reading: bool  #: ``observer`` looks at the newest record without being a consumer
    counted_end: bool  #: the last of k producers' clean closes ends the stream (``TopicSpec.end="auto"``)
    gating: bool  #: groups hold the writer back: ``policy`` and ``group_grace`` mean something
    dead_letters: bool  #: a record delivered ``max_deliveries`` times and never acknowledged goes to a topic of such
    pausing: bool  #: ``Broker.pause`` stops a topic or a group for everybody
    exact_loss: bool  #: ``skipped`` is exact; else at most
    dense_offsets: bool  #: offsets have no holes
    durable: bool  #: records survive the machine
    cross_process: bool  #: handles in other processes see the same topics
    timestamp_resolution_ns: int  #: 1 locally, 1_000_000 on Kafka


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """How a topic is made. Engines ignore what they have no use for, and say so in their docs.

    Attributes:
        name: Letters, digits, ``.``, ``_``, ``-``; at most 100.
        records: How many records are retained (ring slots).
        data_bytes: Bytes retained for topics of variable records; ``None``: the engine's default (64 MiB locally).
        dtype: Makes a typed topic of fixed records: each value is an array of this dtype and ``shape``.
        shape: Shape of one record of a typed topic.
        layout: Of a typed topic on shared memory: ``"pool"`` lets a view (``views=True``) show its record for as long
            as it is held, without making the writer wait, and writes records from 16 kB up where the cache is warm;
            what all groups have finished is kept for late readers only briefly. ``"ring"`` looks back ``records``.
        policy: What a full topic does when a gating group is behind.
        writers: ``"one"`` is faster and refuses a second living producer; ``"many"``.
        end: ``"auto"``: the last living producer's clean close ends the stream; ``"explicit"``: only ``end()``.
        group_grace: Seconds after which a group without a living member stops gating, unless it is durable.
        max_deliveries: How often a record is delivered to a group, unless its consumers say otherwise, before it goes
            to the group's dead-letter topic, ``<topic>.dead.<group>`` (capability ``dead_letters``); 0: for ever.
        compacted: Only the newest record of each key matters, and is kept for ever; every record has a key. For engines
            that forget by age: the others keep the newest ``records`` of all.
        metadata: JSON-ready facts kept with the topic (for example codec, width, height).
        first_offset: Where offsets begin; for tests.
    """

    name: str
    records: int = 1024
    data_bytes: int | None = None
    dtype: npt.DTypeLike | None = None
    shape: tuple[int, ...] = ()
    layout: Literal["ring", "pool"] = "ring"
    policy: Policy = "wait"
    writers: Literal["one", "many"] = "many"
    end: Literal["explicit", "auto"] = "explicit"
    group_grace: float = 10.0
    max_deliveries: int = MAX_DELIVERIES
    compacted: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)
    first_offset: int = 0


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """A topic as it stands: ``[log_start, high_water)`` is readable."""

    spec: TopicSpec
    log_start: int
    high_water: int
    epoch: int
    ended: bool
    paused: bool = False


@dataclass(frozen=True, slots=True)
class Holder:
    """A living member that holds records: handed out, not acknowledged.

    Attributes:
        name: As it was opened. pid, command: Its process.
        state: Of the process, as ``/proc`` has it (``T``: stopped); empty where unknown.
        held: How many records. oldest: Offset of the one held longest. held_s: Seconds it has been.
    """

    name: str
    pid: int
    command: str
    state: str
    held: int
    oldest: int
    held_s: float


@dataclass(frozen=True, slots=True)
class Claimed:
    """A record that ``claim_stale`` took from a member. ``held_s``: seconds it had been handed out."""

    offset: int
    pid: int
    command: str
    name: str
    held_s: float


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """A consumer group. ``lag`` = high-water mark - committed, in records."""

    name: str
    topic: str
    committed: int
    lag: int
    members: int
    durable: bool = False
    suspended: bool = False
    paused: bool = False
    lost: int = 0  #: records overwritten before the group had finished them (``drop_oldest``, suspension)
    dead_letters: int = 0  #: records that went to the group's dead-letter topic
    max_deliveries: int = 0  #: after so many deliveries without an acknowledgement; 0: never
    holders: tuple[Holder, ...] = ()  #: members that hold records, who holds one longest first (``record_sharing``)


def dtype_of(spec: TopicSpec) -> np.dtype[Any] | None:
    """The numpy dtype of a typed topic, ``None`` for variable records."""
    return None if spec.dtype is None else np.dtype(spec.dtype)
