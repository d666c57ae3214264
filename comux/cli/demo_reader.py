"""The demo's second party: a process of its own that reads the results back and checks them.

Run by the demo as ``python -m comux.cli.demo_reader ADDRESS PARENT CAM_ID…``; not for people. Twice a second, and at
the end (SIGTERM), it writes a line of JSON: how many results it read, how many were right, how many it missed.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

import crc32c

from comux.errors import ClosedError, ComuxError, EndOfStream
from comux.headers import decode_headers
from comux.lifecycle import end_with_parent, stop_on_signals
from comux.options import topic_name
from comux.records import HEADER_CRC32C, HEADER_SOURCE, Record
from comux.transport import Consumer, connect

CONSUME_SCHEMA: Final = "raw_:cam_id"
PRODUCE_SCHEMA: Final = "stream_:cam_id"
REPORT_EVERY: Final = 0.5  #: seconds
LAST_READ: Final = 3.0  #: seconds
OFFSETS_KEPT: Final = 256


class Checker:
    """Reads results and keeps count.

    Args:
        cam_ids: By produce topic.
    """

    def __init__(self, cam_ids: Mapping[str, str]) -> None:
        self._cam_ids = cam_ids
        self._last_ns = dict.fromkeys(cam_ids.values(), 0)
        self._offsets: dict[str, deque[int]] = {cam_id: deque(maxlen=OFFSETS_KEPT) for cam_id in cam_ids.values()}
        self.read = 0
        self.right = 0
        self.missed = 0
        self.by_source = dict.fromkeys(cam_ids.values(), 0)
        self.trouble = ""

    def take(self, record: Record) -> None:
        """Count one result."""
        self.read += 1
        self.missed += record.skipped
        cam_id = self._cam_ids[record.topic]
        self.by_source[cam_id] += 1
        trouble = self._trouble(record, cam_id)
        if trouble is None:
            self.right += 1
        else:
            self.trouble = f"{record.topic} offset {record.offset}: {trouble}"

    def _trouble(self, record: Record, cam_id: str) -> str | None:
        """What is wrong with a result: its headers, where it says it is from, or its packet."""
        try:
            results = decode_headers(record)
        except ComuxError as error:
            return str(error)
        box = results.get("box")
        if not isinstance(results.get("motion"), float) or not (box is None or len(box) == 4):
            return f"motion and box did not come back as they were sent: {results}"
        try:
            topic, _, offset = json.loads(record.header(HEADER_SOURCE) or b"null")
        except (TypeError, ValueError):
            return f"header {HEADER_SOURCE} does not say which packet it is from"
        if topic != topic_name(CONSUME_SCHEMA, cam_id) or offset in self._offsets[cam_id]:
            return f"it is from {topic} offset {offset}, which is another camera's or was here before"
        self._offsets[cam_id].append(offset)
        # Pictures come in the order of their times; with B-frames their packets have offsets in another one.
        if record.timestamp_ns <= self._last_ns[cam_id]:
            return f"its picture is not later than the one before: {record.timestamp_ns} ns, {self._last_ns[cam_id]} ns"
        self._last_ns[cam_id] = record.timestamp_ns
        stamped = record.header(HEADER_CRC32C)
        if stamped is not None and int(stamped, 16) != crc32c.crc32c(record.value):
            return "the packet is not the one that was published: its checksum differs"
        return None

    def report(self) -> dict[str, Any]:
        """The counts, JSON-ready."""
        return {
            "read_back": self.read,
            "verified": self.right,
            "missed": self.missed,
            "by_source": self.by_source,
            "trouble": self.trouble,
        }


def main(arguments: Sequence[str]) -> int:
    """Read results until SIGTERM.

    Args:
        arguments: Address, pid of the parent, ids.
    """
    address, parent, *cam_ids = arguments
    topics = {topic_name(PRODUCE_SCHEMA, cam_id): cam_id for cam_id in cam_ids}
    checker = Checker(topics)
    with connect(address) as broker, broker.consumer(list(topics), start="beginning", on_end="wait") as consumer:
        with stop_on_signals(on_stop=consumer.wakeup) as stop:
            if not end_with_parent(int(parent)):
                return 0
            said = time.monotonic()
            while not stop.is_set():
                _read(consumer, checker, REPORT_EVERY)
                if time.monotonic() - said >= REPORT_EVERY:
                    said = time.monotonic()
                    _say(checker)
        ends = {topic: broker.topic(topic).high_water for topic in topics}  # what was sent before we were asked to end
        deadline = time.monotonic() + LAST_READ
        while any(consumer.position(topic) < end for topic, end in ends.items()) and time.monotonic() < deadline:
            _read(consumer, checker, REPORT_EVERY)
        _say(checker)
    return 0


def _read(consumer: Consumer, checker: Checker, timeout: float) -> bool:
    try:
        records = consumer.poll(timeout, max_records=200)
    except (EndOfStream, ClosedError):
        return False
    for record in records:
        checker.take(record)
    return bool(records)


def _say(checker: Checker) -> None:
    print(json.dumps(checker.report()), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
