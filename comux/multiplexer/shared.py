"""Decoded frames in a topic, so that other processes read them without decoding again (codec ``frames``).

Lives here: ``FrameSharer``, used by one source's thread. The topic drops its oldest frames when it is full, so readers
slow nobody; each frame carries its layout and the original packet, so a reader can use it and ``send`` it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final

import numpy.typing as npt

from comux.decoders.interface import ArrayFormat, Picture
from comux.errors import ComuxError
from comux.options import CamId
from comux.records import HEADER_CLOCK
from comux.telemetry import EventLog
from comux.transport import Broker, Producer, TopicSpec, for_engine

FRAMES_KEPT: Final = 8
_RETRY_NS: Final = 2_000_000_000
_SEND_TIMEOUT: Final = 1.0


class FrameSharer:
    """Publishes one source's frames; what fails is told once and tried again later, the source goes on.

    Args:
        cam_id: Of the source.
        topic: Where to; made when the first frame's size is known.
        broker: Gives the engine; may raise ``ComuxError``.
        array_format: Of the arrays.
        events: Where failures are told.
        frames: How many frames the topic holds.
    """

    def __init__(
        self,
        cam_id: CamId,
        topic: str,
        broker: Callable[[], Broker],
        array_format: ArrayFormat,
        events: EventLog,
        *,
        frames: int = FRAMES_KEPT,
    ) -> None:
        self._cam_id = cam_id
        self.topic = topic
        self._broker = broker
        self._array_format: ArrayFormat = array_format
        self._events = events
        self._frames = frames
        self._producer: Producer | None = None
        self._not_before_ns = 0
        self.shared = 0
        self.failed = 0

    def publish(self, picture: Picture, array: npt.NDArray[Any]) -> None:
        """Share one frame. Never raises for what an engine does."""
        if self._producer is None and time.monotonic_ns() < self._not_before_ns:
            self.failed += 1
            return
        from comux.decoders.raw import encode_shared_frame

        try:
            value, headers, flags = encode_shared_frame(array, picture.record, self._array_format)
            owner = picture.record.header(HEADER_CLOCK)
            if owner is not None:  # the frame keeps the packet's timestamp
                headers = (*headers, (HEADER_CLOCK, owner))
            if self._producer is None:
                self._producer = self._open(int(memoryview(value).nbytes))
            self._producer.send(
                value,
                key=picture.record.key,
                headers=headers,
                timestamp_ns=picture.record.timestamp_ns,
                flags=flags,
                timeout=_SEND_TIMEOUT,
            )
            self.shared += 1
        except ComuxError as exc:
            self.failed += 1
            self._not_before_ns = time.monotonic_ns() + _RETRY_NS
            self.close()
            self._events.emit(
                "source.share", f"frames are not shared: {exc}", source=str(self._cam_id), level=logging.WARNING
            )

    def _open(self, frame_bytes: int) -> Producer:
        broker = self._broker()
        spec = TopicSpec(
            self.topic,
            records=max(2, self._frames),
            data_bytes=(frame_bytes + (1 << 20)) * max(2, self._frames),
            policy="drop_oldest",
            metadata={"codec": "frames", "source": str(self._cam_id)},
        )
        broker.create_topic(for_engine(broker, spec), exist_ok=True)
        return broker.producer(self.topic, name=f"{self._cam_id}-frames")

    def close(self) -> None:
        """Let go of the topic; it stays, so that readers can finish."""
        producer, self._producer = self._producer, None
        if producer is not None:
            try:
                producer.close()
            except ComuxError as exc:
                self._events.emit("source.share", f"the producer could not be closed: {exc}", source=str(self._cam_id))
