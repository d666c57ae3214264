"""What a source is: its states, what its manager gives it, and what its settings mean to engine and decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from comux.decoders.interface import Decoder, DecoderOptions
from comux.decoders.pool import ArrayPool
from comux.multiplexer.pictures import Hub
from comux.options import CamId, SourceOptions
from comux.records import Record
from comux.telemetry import EventLog
from comux.transport import Broker, Consumer, Start, TopicInfo


class State(StrEnum):
    """What a source does; each change is an event ``source.state``."""

    STARTING = "STARTING"
    RUNNING = "RUNNING"
    STALLED = "STALLED"
    RECONNECTING = "RECONNECTING"
    RESYNCING = "RESYNCING"
    PAUSED = "PAUSED"
    ENDED = "ENDED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a source is given by its manager.

    Attributes:
        hub: The manager's lock and condition.
        events: Where states and faults are told.
        pool: Memory of arrays.
        broker: Gives the engine of a source; raises ``ComuxError``.
        decoder: Makes a decoder.
        received: Called with every packet in offset order (``emit="all"``), or ``None``.
        threads: How many codec threads a finite source may have.
    """

    hub: Hub
    events: EventLog
    pool: ArrayPool
    broker: Callable[[SourceOptions], Broker]
    decoder: Callable[[DecoderOptions], Decoder]
    received: Callable[[CamId, Record], None] | None = None
    threads: Callable[[], int] = lambda: 1


def decoder_options(options: SourceOptions, *, threads: int = 1, topic: TopicInfo | None = None) -> DecoderOptions:
    """The decoder's part of a source's settings; a codec that they do not say is the one the topic was made for."""
    codec = options.codec
    if topic is not None and "codec" not in options.model_fields_set:
        codec = str(topic.spec.metadata.get("codec", codec))
    return DecoderOptions(
        codec=codec,
        pix_fmt=options.pix_fmt,
        width=options.W,
        height=options.H,
        array_format=options.array_format,
        max_pixels=options.max_pixels,
        threads=threads if options.decode_threads is None else options.decode_threads,
        on_damage=options.on_damage,
        extradata=options.extradata,
        dtype=options.numpy_dtype,
        shape=options.shape,
        framing="bytestream" if options.framing == "bytestream" else "record",
    )


def is_finite(options: SourceOptions, info: TopicInfo) -> bool:
    """Whether a source ends: its settings say so, or (where they say nothing) its topic does.

    A topic is finite where its metadata has a true ``finite`` (feeds of files set it), or where it has ended already
    and is not read from its end.
    """
    if "on_end" in options.model_fields_set:
        return options.on_end == "stop"
    return bool(info.spec.metadata.get("finite")) or (info.ended and options.start not in ("end", "keyframe"))


def open_consumer(options: SourceOptions, broker: Broker, start: Start, *, finite: bool) -> Consumer:
    """Open the consumer of a source.

    Raises:
        ComuxError: what the engine says.
    """
    return broker.consumer(
        options.consume_topic or "",
        group=options.group,
        start=start,
        on_end="stop" if finite else "wait",
        durable=options.durable,
        name=str(options.cam_id),
    )
