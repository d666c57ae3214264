"""Feeds that publish in a thread of the test, and remember what they published."""

from __future__ import annotations

import threading
from typing import Any

from comux.feeds import FeedPacket, FeedReport, publish
from comux.transport import Broker


class FeedThread:
    """A feed publishing in a thread; remembers every packet it made by sequence number."""

    def __init__(self, source: str, address: str | Broker, topic: str, **options: Any) -> None:
        self.packets: dict[int, FeedPacket] = {}
        self.report: FeedReport | None = None
        self.error: BaseException | None = None
        self.stop = threading.Event()
        self._given = (source, address, topic, options)
        self._thread = threading.Thread(target=self._run, name=f"comux-test-feed-{topic}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        source, address, topic, options = self._given
        try:
            self.report = publish(source, address, topic, stop=self.stop, on_packet=self._note, **options)
        except BaseException as exc:  # noqa: BLE001 - handed to the test by join()
            self.error = exc

    def _note(self, packet: FeedPacket) -> None:
        if packet.seq >= 0:
            self.packets.setdefault(packet.seq, packet)

    def join(self, timeout: float = 60.0) -> FeedReport:
        """The report, once the feed has ended."""
        self._thread.join(timeout)
        assert not self._thread.is_alive(), f"the feed of {self._given[2]} has not ended within {timeout} s"
        if self.error is not None:
            raise self.error
        assert self.report is not None
        return self.report

    def end(self) -> None:
        """Stop it and wait, whatever became of it."""
        self.stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()
