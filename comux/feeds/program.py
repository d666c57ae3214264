"""A feed as a program of its own: ends cleanly on Ctrl-C and SIGTERM. What ``comux publish`` runs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from .faults import FeedPacket
from .publish import FeedReport, Pace, publish


def main_publish(
    source: str,
    *,
    topic: str,
    address: str = "shm://",
    pace: Pace = "realtime",
    loop: bool | None = None,
    frames: int | None = None,
    seconds: float | None = None,
    faults: str | None = None,
    create_topic: bool = True,
    records: int | None = None,
    data_bytes: int | None = None,
    on_packet: Callable[[FeedPacket], None] | None = None,
) -> FeedReport:
    """Publish until the feed ends, a limit is reached, or SIGINT or SIGTERM asks to stop; then end the stream.

    Args and errors: as ``comux.feeds.publish``. To be called in the main thread (signals); elsewhere only the feed's
    own end and limits stop it. The handlers that were installed before are put back.
    """
    stop = threading.Event()
    with _stopped_by_signals(stop):
        return publish(
            source,
            address,
            topic,
            pace=pace,
            loop=loop,
            frames=frames,
            seconds=seconds,
            faults=faults,
            stop=stop,
            create_topic=create_topic,
            records=records,
            data_bytes=data_bytes,
            on_packet=on_packet,
        )


@contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
