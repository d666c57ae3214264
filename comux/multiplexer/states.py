"""What a source is: its states, what its manager gives it, and what its settings mean to engine and decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from comux.decoders import canonical_codec
from comux.decoders.interface import Decoder, DecoderOptions, Picture
from comux.decoders.pool import ArrayPool
from comux.errors import ComuxError, ConfigError, ConnectError
from comux.multiplexer.pictures import Hub, StoreMode
from comux.options import CamId, SourceOptions
from comux.processes import Mover
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
        warm: Makes memory for pictures of a source like this one ready, kept by a mode; may take milliseconds.
        mover: Sees whether another process should decode for this source; ``None``: that is settled.
    """

    hub: Hub
    events: EventLog
    pool: ArrayPool
    broker: Callable[[SourceOptions], Broker]
    decoder: Callable[[DecoderOptions], Decoder]
    received: Callable[[CamId, Record], None] | None = None
    threads: Callable[[], int] = lambda: 1
    warm: Callable[[CamId, StoreMode, Picture], None] = lambda cam_id, mode, picture: None
    mover: Mover | None = None


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
        hwaccel=options.hwaccel,
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


def check_topic(options: SourceOptions, info: TopicInfo) -> None:
    """Hold a source's settings against what its topic says it carries; a topic that says nothing passes.

    Raises:
        ConfigError: another codec, dtype or shape, or pictures of more than ``max_pixels``; names the remedy.
    """
    spec, metadata = info.spec, info.spec.metadata
    where = f"source {options.cam_id!r}: topic {spec.name!r}"
    codec = canonical_codec(decoder_options(options, topic=info).codec)
    carried = canonical_codec(str(metadata.get("codec", "")))
    if codec is not None and spec.dtype is not None and codec != "raw":
        raise ConfigError(f"{where} holds arrays of {spec.dtype} {spec.shape}, not {codec} packets; set codec='raw'")
    if codec is not None and carried is not None and codec != carried:
        raise ConfigError(f"{where} carries {carried}, not {codec}; set codec={carried!r}, or read another topic")
    if spec.dtype is not None:
        dtype, shape = options.numpy_dtype, options.shape
        if (dtype is not None and dtype != spec.dtype) or (shape is not None and shape != tuple(spec.shape)):
            raise ConfigError(
                f"{where} holds arrays of {spec.dtype} {tuple(spec.shape)}, not of dtype={dtype} shape={shape}; "
                "leave both out, or set them so"
            )
    width, height = metadata.get("width"), metadata.get("height")
    if isinstance(width, int) and isinstance(height, int) and width * height > options.max_pixels:
        raise ConfigError(
            f"{where} carries pictures of {width}x{height} = {width * height} pixels, more than "
            f"max_pixels={options.max_pixels}; raise it"
        )


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


def together(failures: Sequence[tuple[CamId, ComuxError]]) -> ComuxError:
    """One error for several sources: of the kind they share, else one that says whether a retry may help."""
    kinds = {type(exc) for _, exc in failures}
    retriable = all(exc.retriable for _, exc in failures)
    kind = kinds.pop() if len(kinds) == 1 else ConnectError if retriable else ComuxError
    text = "; ".join(f"source {cam_id!r}: {exc}" for cam_id, exc in failures)
    count = "1 source" if len(failures) == 1 else f"{len(failures)} sources"
    hint = ". Start what publishes them, or pass strict_on_fail=False" if retriable else ""
    return kind(f"{count} cannot start. {text}{hint}")
