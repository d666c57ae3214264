"""Publishing: a feed's packets onto a topic, paced, stamped and counted.

Every packet becomes one record: value = the packet; headers ``comux-seq``, ``comux-feed``, ``comux-crc32c``,
``comux-clock``, ``comux-codec``; the ``KEYFRAME`` flag; the timestamp is when the picture was taken; the key is the
camera's id.

How a stream ends: after the feed's last packet, at a limit, and when ``stop`` is set, ``Producer.end()`` closes the
epoch and every consumer sees the end. An exception or a killed process is no end: consumers wait for the camera to come
back.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import crc32c
import numpy as np
import numpy.typing as npt

from comux.account import Account, AccountSnapshot
from comux.errors import ComuxError, ConfigError, TopicExistsError, WaitTimeoutError
from comux.records import (
    HEADER_CLOCK,
    HEADER_CODEC,
    HEADER_CRC32C,
    HEADER_DTYPE,
    HEADER_FEED,
    HEADER_SEQUENCE,
    HEADER_SHAPE,
    KEYFRAME,
    Header,
    clock_owner,
)
from comux.transport import Broker, Producer, TopicSpec, connect, for_engine

from .faults import FeedPacket, InjectedFault
from .sources import Feed, open_feed

Pace = str | float
RETAINED_S: Final = 10.0
_LEAST_BYTES: Final = 4 << 20
_MOST_BYTES: Final = 256 << 20
_STEP_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class FeedReport:
    """What one feed published.

    Attributes:
        topic: Its name.
        account: received = packets made, repeated ones included; delivered = published; dropped ``missing`` by request.
        records: Published.
        bytes: Their values.
        keyframes: Published.
        faults: Every injected fault, in order.
        seconds: Wall time from the first packet to the last.
        reason: Why it ended: ``finished``, ``limit`` or ``stopped``.
        ended: Whether the stream was ended, so that consumers see it.
    """

    topic: str
    account: AccountSnapshot
    records: int
    bytes: int
    keyframes: int
    faults: tuple[InjectedFault, ...]
    seconds: float
    reason: str
    ended: bool

    @property
    def fault_counts(self) -> Mapping[str, int]:
        """Injected faults by kind."""
        return Counter(fault.kind for fault in self.faults)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON-ready dictionary."""
        return {
            "topic": self.topic,
            "records": self.records,
            "bytes": self.bytes,
            "keyframes": self.keyframes,
            "seconds": round(self.seconds, 3),
            "reason": self.reason,
            "ended": self.ended,
            "faults": dict(self.fault_counts),
            "faults_at": [[f.seq, f.frame, f.kind] for f in self.faults],
            "account": self.account.as_dict(),
        }


def publish(
    source: str,
    address: str | Broker,
    topic: str,
    *,
    pace: Pace = "realtime",
    loop: bool | None = None,
    frames: int | None = None,
    seconds: float | None = None,
    faults: str | None = None,
    stop: threading.Event | None = None,
    create_topic: bool = True,
    records: int | None = None,
    data_bytes: int | None = None,
    key: bytes | None = None,
    end: bool = True,
    on_packet: Callable[[FeedPacket], None] | None = None,
) -> FeedReport:
    """Publish a video file or a synthetic camera into a topic; returns when it ends.

    Args:
        source: A path, ``file:///path?loop=1``, or ``synthetic://…``, see ``comux.feeds.synthetic``.
        address: Of the engine, or a broker (which is left open).
        topic: Its name.
        pace: ``"realtime"``: by the stream's own times; ``"fast"``: as fast as the topic takes it; a number: that many
            frames per second.
        loop: Begin a file again at its end; ``None``: as the address says.
        frames: Packets after which the feed ends; ``None``: no limit.
        seconds: Seconds of the stream's time after which it ends; ``None``: no limit.
        faults: See ``comux.feeds.faults``, added to those of the address.
        stop: Set it from any thread to end the feed; waiting is interrupted.
        create_topic: Make the topic where it is missing, for about 10 s of packets, ``drop_oldest``.
        records, data_bytes: Size of a topic made here; ``None``: from the feed's rate.
        key: Of the records; ``None``: the topic's name without a leading ``raw_``.
        end: End the stream at the feed's end, limit or stop.
        on_packet: Called in this thread after each packet, lost ones included; must not block.

    Returns:
        What was published, and which faults were injected.

    Raises:
        ConfigError, UnknownAddressError, UnknownCodecError: before anything starts.
        UnknownTopicError: the topic is missing and ``create_topic`` is off.
        TopicExistsError: the topic carries something else.
        DecodeError: a file is cut off; what came before was published, the stream is not ended.

    Blocks; one thread. Timestamps: with ``"realtime"`` and a number, the moment the picture was due. With ``"fast"``,
    a feed of known length ends now and lies in the past, one without an end begins now and runs ahead of the clock.
    """
    speed_fps = _check_pace(pace)
    _check_limits(frames, seconds)
    feed = open_feed(source, loop=loop, faults=faults or "")
    broker = connect(address) if isinstance(address, str) else address
    try:
        if create_topic:
            _make_topic(broker, feed, topic, records, data_bytes)
        _check_topic(broker, feed, topic)
        with broker.producer(topic, name=f"feed-{topic}") as producer:
            run = _Run(feed, producer, topic.removeprefix("raw_").encode() if key is None else key)
            return run.play(pace, speed_fps, frames, seconds, stop or threading.Event(), end, on_packet)
    finally:
        if broker is not address:
            broker.close()


def _check_pace(pace: Pace) -> float | None:
    if pace in ("realtime", "fast"):
        return None
    if isinstance(pace, bool) or not isinstance(pace, (int, float)) or not 0.001 <= pace <= 100_000:
        raise ConfigError(f"pace {pace!r}: 'realtime', 'fast', or frames per second from 0.001 to 100000")
    return float(pace)


def _check_limits(frames: int | None, seconds: float | None) -> None:
    if frames is not None and frames < 0:
        raise ConfigError(f"frames={frames}: not negative")
    if seconds is not None and not seconds >= 0:
        raise ConfigError(f"seconds={seconds}: not negative")


def retention(fps: float, bytes_per_second: float, seconds: float = RETAINED_S) -> tuple[int, int]:
    """Records and bytes that hold so many seconds of a camera; at least 64 packets and 4 MiB, at most 256 MiB."""
    return max(64, round(fps * seconds)), min(_MOST_BYTES, max(_LEAST_BYTES, int(bytes_per_second * seconds)))


def topic_spec(feed: Feed, topic: str, records: int | None = None, data_bytes: int | None = None) -> TopicSpec:
    """The topic that holds about 10 s of a feed: nobody slows a camera, so the oldest packets give way."""
    facts = feed.facts
    kept, kept_bytes = retention(facts.fps, feed.bytes_per_second)
    return TopicSpec(
        topic,
        records=records or kept,
        data_bytes=data_bytes or kept_bytes,
        policy="drop_oldest",
        metadata={
            "codec": facts.codec,
            "width": facts.width,
            "height": facts.height,
            "fps": facts.fps,
            "pix_fmt": facts.pix_fmt,
            "finite": feed.finite,
        },
    )


def _make_topic(broker: Broker, feed: Feed, topic: str, records: int | None, data_bytes: int | None) -> None:
    if topic not in broker.topics():
        spec = topic_spec(feed, topic, records, data_bytes)
        broker.create_topic(for_engine(broker, spec), exist_ok=True)


def _check_topic(broker: Broker, feed: Feed, topic: str) -> None:
    spec = broker.topic(topic).spec
    if spec.dtype is not None:
        raise TopicExistsError(
            f"topic {topic!r} holds arrays of {np.dtype(spec.dtype)} {spec.shape}, not video packets"
        )
    codec = spec.metadata.get("codec", feed.facts.codec)
    if codec != feed.facts.codec:
        raise TopicExistsError(
            f"topic {topic!r} was made for {codec}, {feed.name} is {feed.facts.codec}: "
            "choose another topic or delete it"
        )


class _Run:
    """One feed being published."""

    def __init__(self, feed: Feed, producer: Producer, key: bytes) -> None:
        self._feed = feed
        self._producer = producer
        self._key = key
        self._life = _life()
        self._clock: Header = (HEADER_CLOCK, clock_owner())
        self._codec: Header = (HEADER_CODEC, feed.facts.codec.encode())
        self._account = Account()
        self._faults: list[InjectedFault] = []
        self._records = self._bytes = self._keyframes = 0

    def play(
        self,
        pace: Pace,
        speed_fps: float | None,
        frames: int | None,
        seconds: float | None,
        stop: threading.Event,
        end: bool,
        on_packet: Callable[[FeedPacket], None] | None,
    ) -> FeedReport:
        scale = 1.0 if speed_fps is None else self._feed.facts.fps / speed_fps
        wall_ns = time.time_ns()
        if pace == "fast":
            wall_ns -= round(1e9 * self._length_s(frames, seconds))
        start = time.monotonic()
        reason = "finished"
        made = 0
        for packet in self._feed.packets():
            if (frames is not None and made >= frames) or (seconds is not None and packet.release_s >= seconds):
                reason = "limit"
                break
            due = None if pace == "fast" else start + packet.release_s * scale
            if not _wait(stop, due):
                reason = "stopped"
                break
            if not self._publish(packet, wall_ns + round(packet.capture_s * scale * 1e9), stop):
                reason = "stopped"
                break
            made += packet.seq >= 0
            if on_packet is not None:
                on_packet(packet)
        self._producer.flush()
        if end:
            self._producer.end()
        return self._report(time.monotonic() - start, reason, end)

    def _length_s(self, frames: int | None, seconds: float | None) -> float:
        lengths = [self._feed.duration_s, seconds, None if frames is None else frames / self._feed.facts.fps]
        return min((length for length in lengths if length is not None), default=0.0)

    def _publish(self, packet: FeedPacket, timestamp_ns: int, stop: threading.Event) -> bool:
        """Send one packet and count it; ``False`` where ``stop`` was set while a full topic kept us waiting."""
        self._faults += [InjectedFault(packet.seq, packet.frame, kind) for kind in packet.faults]
        if packet.seq < 0:
            return True  # a picture that was never captured: nothing was made of it
        self._account.receive("sending")
        if "missing" in packet.faults:
            self._account.drop("sending", "missing")
            return True
        headers = (
            (HEADER_SEQUENCE, b"%d" % packet.seq),
            self._life,
            (HEADER_CRC32C, b"%08x" % packet.crc),
            self._clock,
            self._codec,
        )
        flags = KEYFRAME if packet.keyframe else 0
        try:
            sent = _send(self._producer, stop, packet.data, self._key, headers, timestamp_ns, flags)
        except ComuxError:
            self._account.drop("sending", "failed")
            raise
        if not sent:
            self._account.drop("sending", "stopped")
            return False
        self._account.deliver("sending")
        self._records += 1
        self._bytes += len(packet.data)
        self._keyframes += packet.keyframe
        return True

    def _report(self, seconds: float, reason: str, ended: bool) -> FeedReport:
        return FeedReport(
            topic=self._producer.topic,
            account=self._account.snapshot(),
            records=self._records,
            bytes=self._bytes,
            keyframes=self._keyframes,
            faults=tuple(self._faults),
            seconds=seconds,
            reason=reason,
            ended=ended,
        )


def _life() -> Header:
    """A name for this life of a feed: the same packets published again are not packets that came twice."""
    return HEADER_FEED, secrets.token_hex(4).encode()


def _send(
    producer: Producer,
    stop: threading.Event,
    value: Any,
    key: bytes,
    headers: Sequence[Header],
    timestamp_ns: int,
    flags: int,
) -> bool:
    """Send, waiting for room as long as it takes; ``False`` where ``stop`` was set meanwhile."""
    while True:
        try:
            producer.send(value, key=key, headers=headers, timestamp_ns=timestamp_ns, flags=flags, timeout=_STEP_S)
            return True
        except WaitTimeoutError:
            if stop.is_set():
                return False


def _wait(stop: threading.Event, due: float | None) -> bool:
    """Wait until ``due`` (monotonic seconds); ``False`` where ``stop`` was set meanwhile."""
    if due is None:
        return not stop.is_set()
    while True:
        left = due - time.monotonic()
        if left <= 0:
            return not stop.is_set()
        # In steps: a signal handler that sets `stop` runs between them even where the wait itself is not interrupted.
        if stop.wait(min(left, _STEP_S)):
            return False


def publish_arrays(
    arrays: Iterable[npt.NDArray[Any]],
    address: str | Broker,
    topic: str,
    *,
    fps: float | None = None,
    start_ns: int | None = None,
    records: int = 256,
    key: bytes | None = None,
    end: bool = True,
    stop: threading.Event | None = None,
) -> FeedReport:
    """Publish raw arrays (codec ``raw``), each one record with its dtype and shape in the headers.

    Args:
        arrays: Of any dtype without Python objects; may differ from each other on topics of variable records.
        address: Of the engine, or a broker (which is left open).
        topic: Made where missing, for ``records`` variable records, policy ``wait``; a typed topic is used as it is.
        fps: Pace, and distance of the timestamps; ``None``: as fast as possible, stamped with the clock.
        start_ns: Unix time of the first array in nanoseconds; ``None``: now.
        records: Retained, of a topic made here.
        key: Of the records; ``None``: the topic's name without a leading ``raw_``.
        end: End the stream after the last array.
        stop: Set it from any thread to end early.

    Raises:
        ConfigError: an array holds Python objects. Errors of the topic as in ``publish``.
    """
    broker = connect(address) if isinstance(address, str) else address
    stop = stop or threading.Event()
    name = topic.removeprefix("raw_").encode() if key is None else key
    account = Account()
    sent_bytes = sent = 0
    reason = "finished"
    try:
        if topic not in broker.topics():
            metadata = {"codec": "raw", "finite": True} | ({"fps": fps} if fps else {})
            broker.create_topic(TopicSpec(topic, records=records, metadata=metadata), exist_ok=True)
        with broker.producer(topic, name=f"feed-{topic}") as producer:
            first_ns = time.time_ns() if start_ns is None else start_ns
            start = time.monotonic()
            life = _life()
            for number, array in enumerate(arrays):
                if not _wait(stop, start + number / fps if fps else None):
                    reason = "stopped"
                    break
                value = np.ascontiguousarray(array)
                account.receive("sending")
                stamp = first_ns + round(number * 1e9 / fps) if fps else time.time_ns()
                if not _send(producer, stop, value, name, _array_headers(value, sent, life), stamp, KEYFRAME):
                    account.drop("sending", "stopped")
                    reason = "stopped"
                    break
                account.deliver("sending")
                sent += 1
                sent_bytes += value.nbytes
            producer.flush()
            if end:
                producer.end()
            seconds = time.monotonic() - start
    finally:
        if broker is not address:
            broker.close()
    return FeedReport(topic, account.snapshot(), sent, sent_bytes, sent, (), seconds, reason, end)


def _array_headers(array: npt.NDArray[Any], seq: int, life: Header) -> Sequence[Header]:
    if array.dtype.hasobject or array.dtype.names:
        raise ConfigError(f"array {seq} of dtype {array.dtype}: raw records hold plain numbers, no objects or fields")
    checksum = crc32c.crc32c(array.reshape(-1).view(np.uint8).data if array.size else b"")
    shape = "[" + ", ".join(str(n) for n in array.shape) + "]"
    return (
        (HEADER_SEQUENCE, b"%d" % seq),
        life,
        (HEADER_CRC32C, b"%08x" % checksum),
        (HEADER_CLOCK, clock_owner()),
        (HEADER_CODEC, b"raw"),
        (HEADER_DTYPE, array.dtype.str.encode()),
        (HEADER_SHAPE, shape.encode()),
    )
