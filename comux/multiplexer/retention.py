"""Packets that ``send`` can still re-emit by their index.

A delivered item owns its packet, so ``send(item, …)`` always works. ``send(cam_id, index, …)`` needs the packet to be
held here: up to ``maxlen`` packets and ``max_bytes`` bytes per source, and whatever the limits the last two that were
delivered, which are those of the current and of the previous batch.
"""

from __future__ import annotations

import threading
from collections import deque

from comux.errors import NotRetainedError
from comux.options import CamId
from comux.records import Record


def record_bytes(record: Record) -> int:
    """Bytes of a record's value and headers, nearly."""
    value = record.value
    size = 0 if value is None else int(getattr(value, "nbytes", None) or len(value))
    return size + sum(len(name) + len(content or b"") for name, content in record.headers) + 200


class Retention:
    """Delivered packets of one source, oldest first. Thread-safe.

    Args:
        cam_id: For messages.
        maxlen: Most packets kept (at least two are).
        max_bytes: Most bytes kept.
    """

    def __init__(self, cam_id: CamId, *, maxlen: int = 20, max_bytes: int = 64 << 20) -> None:
        self._cam_id = cam_id
        self._maxlen = maxlen
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._kept: deque[tuple[Record, int]] = deque()
        self._bytes = 0
        self._forgotten = 0

    def add(self, record: Record) -> None:
        """Keep the packet of an item that is delivered now."""
        size = record_bytes(record)
        with self._lock:
            self._kept.append((record, size))
            self._bytes += size
            while len(self._kept) > 2 and (len(self._kept) > self._maxlen or self._bytes > self._max_bytes):
                self._bytes -= self._kept.popleft()[1]
                self._forgotten += 1

    def limit(self, *, maxlen: int, max_bytes: int) -> None:
        """Other limits from the next packet on."""
        with self._lock:
            self._maxlen, self._max_bytes = maxlen, max_bytes

    def get(self, index: int, epoch: int | None = None) -> Record:
        """The packet at offset ``index`` (of ``epoch``; else the newest of that offset).

        Raises:
            NotRetainedError: it is not held; the message says how far back packets reach.
        """
        with self._lock:
            for record, _ in reversed(self._kept):
                if record.offset == index and (epoch is None or record.epoch == epoch):
                    return record
            kept = [record.offset for record, _ in self._kept]
            forgotten = self._forgotten
        if not kept:
            reach = "nothing was delivered yet"
        else:
            reach = f"{len(kept)} packets are held, from {kept[0]} to {kept[-1]}; {forgotten} older ones were let go"
        raise NotRetainedError(
            f"source {self._cam_id!r}: the packet of index {index} is not held: {reach}. Send the item itself, or "
            "raise maxlen"
        )

    def __len__(self) -> int:
        with self._lock:
            return len(self._kept)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        with self._lock:
            return self._bytes

    def clear(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0
