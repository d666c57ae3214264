"""How much shared memory the topics of so many cameras take, and whether it is there.

The sizes are not estimates: the topics are specified as ``comux publish``, the multiplexer and ``create_topic`` do it,
and each size is what the ring's core computes when it creates the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from comux.control.replies import reply_spec
from comux.errors import ConfigError
from comux.feeds import retention
from comux.multiplexer.results import PRODUCE_RECORDS
from comux.ring import RingSpec
from comux.ring.space import Space, megabytes, space_of
from comux.transport import TopicSpec
from comux.transport.local import ring_spec

Content = Literal["packets", "arrays", "records"]

CONTENTS: Final = ("packets", "arrays", "records")
GROUPS_BUILT_IN: Final = 8  #: that a topic has places for, whether they are used or not: ``RingSpec.max_groups``
_BESIDE: Final = 512  #: bytes of key and headers that our feeds add to a record, rounded up


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for.

    Attributes:
        cameras: How many camera topics.
        content: ``packets`` of video, ``arrays`` (uncompressed BGR pictures), or ``records`` of ``record_bytes``.
        width, height: Of a picture, pixels.
        fps: Records per second of each camera.
        bitrate: Bits per second of each; for packets.
        record_bytes: Of each record; for records.
        depth: Records that are kept, or seconds where it is a float.
        groups: Consumer groups that read each topic.
        results: Topics of results.
        control: Whether commands and replies go over topics too.
    """

    cameras: int
    content: Content = "packets"
    width: int = 1920
    height: int = 1080
    fps: float = 30.0
    bitrate: float = 4e6
    record_bytes: int = 0
    depth: int | float = 10.0
    groups: int = 1
    results: int = 0
    control: bool = False

    def __post_init__(self) -> None:
        if self.content not in CONTENTS:
            raise ConfigError(f"content {self.content!r} is none of {', '.join(CONTENTS)}")
        for name, value, least, most in (
            ("--cameras", self.cameras, 1, 10_000),
            ("--size", self.width, 1, 65536),
            ("--size", self.height, 1, 65536),
            ("--fps", self.fps, 0.001, 100_000),
            ("--bitrate", self.bitrate, 1, 1e12),
            ("--groups", self.groups, 0, 64),
            ("--results", self.results, 0, 10_000),
            ("--record", self.record_bytes, 1 if self.content == "records" else 0, 2**32 - 65),
        ):
            if not least <= value <= most:
                raise ConfigError(f"{name} {value:g}: give {least:g} to {most:g}")
        if not 1 <= self.records <= 2**24:
            raise ConfigError(f"--depth: {self.records:g} records of each camera; give 1 to {2**24}")

    @property
    def records(self) -> int:
        """Kept of each camera."""
        kept = self.depth if isinstance(self.depth, int) else round(self.depth * self.fps)
        if self.content == "packets" and isinstance(self.depth, float):
            return retention(self.fps, self.bitrate / 8, self.depth)[0]
        return int(min(kept, 2**24 + 1))


@dataclass(frozen=True, slots=True)
class TopicSize:
    """Topics of one kind.

    Attributes:
        topic: Their name, or how their names begin.
        count: How many.
        records, data_bytes: Kept by each.
        seconds: Of the camera that each holds; ``None`` where that cannot be said.
        bytes: Of one topic's file.
    """

    topic: str
    count: int
    records: int
    data_bytes: int
    seconds: float | None
    bytes: int

    @property
    def total(self) -> int:
        """Bytes of all of them."""
        return self.count * self.bytes


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The answer.

    Attributes:
        wanted: What was asked for.
        topics: By kind.
        space: What there is.
        advice: What to do; empty where everything fits.
    """

    wanted: Wanted
    topics: list[TopicSize]
    space: Space
    advice: list[str]

    @property
    def bytes(self) -> int:
        """Of all topics."""
        return sum(each.total for each in self.topics)

    @property
    def fits(self) -> bool:
        """Whether what is free now is enough."""
        return self.space.usable is None or self.bytes <= self.space.usable

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        space = asdict(self.space) | {"directory": str(self.space.directory), "usable": self.space.usable}
        topics = [asdict(each) | {"total": each.total} for each in self.topics]
        return {
            "wanted": asdict(self.wanted),
            "topics": topics,
            "bytes": self.bytes,
            "space": space,
            "fits": self.fits,
            "advice": self.advice,
        }


def plan_memory(wanted: Wanted, directory: Path) -> MemoryPlan:
    """What ``wanted`` takes, and what there is in ``directory``; creates nothing.

    Raises:
        ConfigError: such topics cannot be made.
    """
    topics = list(_topics(wanted))
    plan = MemoryPlan(wanted, topics, space_of(directory), [])
    plan.advice.extend(_advice(plan))
    return plan


def camera_ring(wanted: Wanted) -> RingSpec:
    """The topic of one camera."""
    name = "raw_cam"
    if wanted.content == "arrays":
        spec = TopicSpec(name, records=wanted.records, dtype="uint8", shape=(wanted.height, wanted.width, 3))
    elif wanted.content == "records":
        each = -(-(wanted.record_bytes + _BESIDE) // 64) * 64
        spec = TopicSpec(name, records=wanted.records, data_bytes=wanted.records * each)
    else:
        spec = TopicSpec(name, records=wanted.records, data_bytes=_packet_bytes(wanted), policy="drop_oldest")
    ring = ring_spec(spec)
    return ring if wanted.groups <= GROUPS_BUILT_IN else replace(ring, max_groups=wanted.groups)


def _packet_bytes(wanted: Wanted) -> int:
    """As ``comux publish`` makes it, where a time is given; else room for so many packets, half of them large."""
    if isinstance(wanted.depth, float):
        return retention(wanted.fps, wanted.bitrate / 8, wanted.depth)[1]
    packet = wanted.bitrate / 8 / wanted.fps + _BESIDE
    return max(1, int(2 * packet * wanted.records))


def _topics(wanted: Wanted) -> Iterator[TopicSize]:
    ring = camera_ring(wanted)
    yield _size("raw_*", wanted.cameras, ring, _seconds(wanted, ring))
    if wanted.results:
        results = TopicSpec("results", records=PRODUCE_RECORDS)
        yield _size("results", wanted.results, ring_spec(results))
    if wanted.control:
        commands = TopicSpec("config", records=1024, data_bytes=4 << 20, policy="drop_oldest")
        yield _size("commands", 1, ring_spec(commands))
        yield _size("replies", 1, ring_spec(reply_spec("replies")))


def _seconds(wanted: Wanted, ring: RingSpec) -> float:
    by_records = wanted.records / wanted.fps
    if wanted.content != "packets" or ring.data_bytes is None:
        return by_records
    return min(by_records, ring.data_bytes / (wanted.bitrate / 8))


def _size(topic: str, count: int, ring: RingSpec, seconds: float | None = None) -> TopicSize:
    data = ring.data_bytes if ring.data_bytes is not None else ring.slots * ring.record_bytes
    return TopicSize(topic, count, ring.slots, data, seconds, ring.required_bytes)


def _advice(plan: MemoryPlan) -> Iterator[str]:
    wanted, space, need = plan.wanted, plan.space, plan.bytes
    if space.free is not None and need > space.free:
        used = (space.size or 0) - space.free
        enough = -(-(need + used) * 11 // 10 // 10**6)
        yield (
            f"{megabytes(need)} do not fit into the {megabytes(space.free)} that are free in {space.directory}: "
            f"docker run --shm-size={enough}m (or --ipc=host); mount -o remount,size={enough}M of it; "
            f"COMUX_DIR elsewhere; or less depth"
        )
    if space.in_memory and space.limit_free is not None and need > space.limit_free:
        yield (
            f"{megabytes(need)} are more than the {megabytes(max(0, space.limit_free))} left under this container's "
            f"memory limit, which kills instead of refusing: docker run --memory=… with {-(-need // 10**6)}m more"
        )
    if wanted.groups > GROUPS_BUILT_IN:
        yield (
            f"topics have places for {GROUPS_BUILT_IN} groups: create these with "
            f"comux.ring.create(RingSpec(…, max_groups={wanted.groups}))"
        )
