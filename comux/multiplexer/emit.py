"""``emit="all"``: every packet of a source again, in offset order, so that the output plays; results where there are.

**Problem.** Results come in the order of the user's loop, late, and not for every packet; a video that plays needs
every packet, in order, once.

**Algorithm.** Every packet that a source receives is appended to its line. ``offer`` attaches results to a packet in
line. One thread publishes the head of each line as soon as it has results, or has waited ``emit_wait`` seconds, or the
line holds more than ``max_bytes``. Where the engine takes them more slowly than they come, the line grows to twice
that, then its oldest are given up (event ``results.overflow``, their results fail). Results for a packet that has left
are refused with a clear error. Packets the source never received (lapped, jumped) are missing in the output too;
``comux-source`` shows where.

**Ends.** ``close`` publishes what is in line, with the results it has by then.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from comux.errors import DeliveryError, NotRetainedError
from comux.multiplexer.results import ResultFuture, Results
from comux.multiplexer.retention import record_bytes
from comux.options import CamId
from comux.records import Headers, Record
from comux.telemetry import EventLog

_CLOSE: Final = 5.0


@dataclass(eq=False, slots=True)
class _Pending:
    """A packet in line; ``headers`` and ``future`` are there once its results are."""

    cam_id: CamId
    record: Record
    due: float
    nbytes: int
    headers: Headers | None = None
    future: ResultFuture | None = None


@dataclass(slots=True)
class _Line:
    pending: deque[_Pending] = field(default_factory=deque)
    nbytes: int = 0


class Emitter:
    """See the module. Thread-safe; its thread starts with the first packet.

    Args:
        results: Publishes.
        where: Address and topic that a source's packets go to.
        events: Where failures are told.
        wait: Seconds a packet waits for its results.
        max_bytes: Of one source's line.
    """

    def __init__(
        self,
        results: Results,
        where: Callable[[CamId], tuple[str, str]],
        events: EventLog,
        *,
        wait: float,
        max_bytes: int = 64 << 20,
    ) -> None:
        self._results = results
        self._where = where
        self._events = events
        self._wait = wait
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._lines: dict[str, _Line] = {}
        self._thread: threading.Thread | None = None
        self._closing = False

    def received(self, cam_id: CamId, record: Record) -> None:
        """A source received a packet; called in offset order from its thread."""
        size = record_bytes(record)
        lost: list[_Pending] = []
        with self._lock:
            if self._closing:
                return
            line = self._lines.setdefault(str(cam_id), _Line())
            while line.pending and line.nbytes + size > 2 * self._max_bytes:
                lost.append(line.pending.popleft())
                line.nbytes -= lost[-1].nbytes
            line.pending.append(_Pending(cam_id, record, time.monotonic() + self._wait, size))
            line.nbytes += size
            if self._thread is None:
                # Daemon: the manager's exit hook closes it first; see Source.start.
                self._thread = threading.Thread(target=self._run, name="comux-emit", daemon=True)
                self._thread.start()
            if len(line.pending) == 1 or line.nbytes > self._max_bytes:
                self._changed.notify()
        if lost:
            self._overflow(cam_id, lost)

    def _overflow(self, cam_id: CamId, lost: list[_Pending]) -> None:
        first, last = lost[0].record.offset, lost[-1].record.offset
        text = f"packets {first} to {last} were not emitted: the engine takes them more slowly than they come"
        for pending in lost:
            if pending.future is not None:
                self._results.settle(pending.future, None, DeliveryError(text))
        self._events.emit("results.overflow", text, source=str(cam_id), level=logging.WARNING, count=len(lost))

    @property
    def nbytes(self) -> int:
        """Bytes in line."""
        with self._lock:
            return sum(line.nbytes for line in self._lines.values())

    def offer(self, cam_id: CamId, record: Record, headers: Headers, future: ResultFuture) -> None:
        """Attach results to a packet in line.

        Raises:
            NotRetainedError: it has left, or has results already.
        """
        with self._lock:
            line = self._lines.get(str(cam_id), _Line())
            for pending in line.pending:
                if (pending.record.epoch, pending.record.offset) == (record.epoch, record.offset):
                    if pending.future is not None:
                        break
                    pending.headers, pending.future = headers, future
                    self._changed.notify()
                    return
            head = line.pending[0].record.offset if line.pending else "none"
        raise NotRetainedError(
            f"source {cam_id!r}: the packet of index {record.offset} was emitted already (emit='all'; the first in "
            f"line is {head}). Send sooner, once per picture, or raise emit_wait ({self._wait} s)"
        )

    def _run(self) -> None:
        while True:
            with self._lock:
                batch, due = self._take()
                if not batch:
                    if self._closing:
                        return
                    self._changed.wait(None if due is None else max(0.0, due - time.monotonic()))
            for pending in batch:
                self._publish(pending)

    def _take(self) -> tuple[list[_Pending], float | None]:
        """Heads that may go now, and when the next one may."""
        now = time.monotonic()
        out: list[_Pending] = []
        due: float | None = None
        for line in self._lines.values():
            while line.pending:
                head = line.pending[0]
                late = head.due <= now or line.nbytes > self._max_bytes or self._closing
                if head.future is None and not late:
                    due = head.due if due is None else min(due, head.due)
                    break
                out.append(line.pending.popleft())
                line.nbytes -= head.nbytes
        return out, due

    def _publish(self, pending: _Pending) -> None:
        cam_id, record = pending.cam_id, pending.record
        try:
            address, topic = self._where(cam_id)
            if pending.future is None or pending.headers is None:
                self._results.pass_on(cam_id, address, topic, record)
            else:
                self._results.publish(address, topic, record, pending.headers, pending.future)
        except Exception as exc:  # noqa: BLE001 - one packet must not end the thread of all
            if pending.future is not None:
                self._results.settle(pending.future, None, exc)
            else:
                self._events.emit(
                    "results.failed",
                    f"the packet at {record.offset} was not emitted: {exc}",
                    source=str(cam_id),
                    level=logging.WARNING,
                )

    def close(self) -> None:
        """Publish what is in line and end the thread."""
        with self._lock:
            self._closing = True
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join(_CLOSE)
