"""``decode_processes="auto"``: seeing that the interpreter is the limit, and moving a source's decoder then.

**What is measured.** In a source's own thread, around ``Decoder.feed`` of every fourth packet: the time that passed,
the thread's processor time, and how long it was ready and no core was free for it (the kernel says so). What remains is
time in which it was held up by something else than work or other programs: it waited for the interpreter. That is so
with one codec thread in software; with more, or a device, it waits for those, and nothing is concluded.

**Decision.** Pure, see ``Judge``: in three windows of a second or more in a row the thread was held up for
``HELD_LEAST_NS`` a packet or more, for more than half of the time it was decoding, and for a twentieth of all time.

**Move.** At a packet from which on nothing refers to anything before it, parameter sets included, when the process is
there and ready: the decoder here gives out what it holds, the one there begins with that packet. So no picture is lost.
One source moves at a time, and those that are left are judged anew: the interpreter may be free enough now.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from comux.decoders.interface import Decoder, DecoderOptions, Outcome
from comux.errors import ComuxError
from comux.processes.remote import RemoteDecoder
from comux.records import Record
from comux.telemetry import EventLog

WINDOW_NS: Final = 1_000_000_000
WINDOWS: Final = 3
SAMPLES_LEAST: Final = 5  # of a window, which goes on until there are
EVERY: Final = 4
HELD_LEAST_NS: Final = 2_000_000  # of a packet: the switch interval is 5 ms, and a packet asks twice
_MOST_NS: Final = 20_000_000  # of one packet: whoever stood still for longer did not wait for the interpreter


@dataclass(slots=True)
class Window:
    """What was measured; nanoseconds.

    Attributes:
        length_ns: Of the window.
        packets: Fed to the decoder in it.
        samples: How many of them were measured.
        wall_ns: These were in the decoder.
        cpu_ns: Processor time of that.
        queued_ns: The thread was ready and no core was free.
    """

    length_ns: int = 0
    packets: int = 0
    samples: int = 0
    wall_ns: int = 0
    cpu_ns: int = 0
    queued_ns: int = 0

    def add(self, wall_ns: int, cpu_ns: int, queued_ns: int) -> None:
        """One more sample."""
        self.samples += 1
        self.wall_ns += min(wall_ns, cpu_ns + queued_ns + _MOST_NS)
        self.cpu_ns += cpu_ns
        self.queued_ns += queued_ns

    @property
    def held_ns(self) -> int:
        """Time of the samples in which the thread waited for something else than a core."""
        return max(0, self.wall_ns - self.cpu_ns - self.queued_ns)

    @property
    def held_up(self) -> bool:
        """Whether that was so much that another process would do better."""
        return (
            self.samples >= SAMPLES_LEAST
            and self.held_ns >= HELD_LEAST_NS * self.samples
            and 2 * self.held_ns > self.wall_ns
            and 20 * self.held_ns * self.packets > self.length_ns * self.samples
        )


class Judge:
    """Says when windows enough in a row were held up. Pure."""

    def __init__(self) -> None:
        self.row = 0

    def see(self, window: Window) -> bool:
        """Take in the next window; whether the interpreter is the limit."""
        self.row = self.row + 1 if window.held_up else 0
        return self.row >= WINDOWS


class Processes(Protocol):
    """What a ``Mover`` needs of ``DecodeProcesses``."""

    def prepared(self, source: str) -> bool:
        """Whether a source's process is ready; starts it where it does not run. Never waits."""

    def take_turn(self) -> bool:
        """Whether a source may move now; nobody else may for a while then."""

    def moved(self, source: str) -> None:
        """It has its decoder there now, and from now on."""

    def apart(self, source: str, options: DecoderOptions) -> RemoteDecoder:
        """Make a decoder there."""

    @property
    def moves(self) -> int:
        """How many sources have moved: when that changes, the others are judged anew."""


class Mover:
    """One source's; used by its thread.

    Args:
        source: Its id.
        processes: That it may move to.
        events: Where a move is told: ``decoding.moved``.
    """

    def __init__(self, source: str, processes: Processes, events: EventLog) -> None:
        self._source = source
        self._processes = processes
        self._events = events
        self._judge = Judge()
        self._limit: Window | None = None  # the interpreter is the limit: the window that made it so
        self._seen_moves = 0
        self._begin()

    def _begin(self) -> None:
        self._begun_ns = time.monotonic_ns()
        self._window = Window()

    def feed(self, decoder: Decoder, record: Record) -> list[Outcome]:
        """``decoder.feed``, measured where it is the turn."""
        window = self._window
        window.packets += 1
        if window.packets % EVERY:
            return decoder.feed(record)
        queued = queued_ns()
        begun, cpu = time.monotonic_ns(), time.thread_time_ns()
        outcomes = decoder.feed(record)
        cpu, wall = time.thread_time_ns() - cpu, time.monotonic_ns() - begun
        after = queued_ns()
        if queued is not None and after is not None:
            window.add(wall, cpu, after - queued)
        window.length_ns = time.monotonic_ns() - self._begun_ns
        if window.length_ns >= WINDOW_NS and window.samples >= SAMPLES_LEAST:
            self._close_window(decoder.options)
        return outcomes

    def _close_window(self, options: DecoderOptions) -> None:
        window = self._window
        if self._processes.moves != self._seen_moves:
            self._seen_moves = self._processes.moves
            self._judge.row = min(self._judge.row, WINDOWS - 1)  # this window began before the move
            self._limit = None
        elif options.threads == 1 and options.hwaccel is None:
            self._limit = window if self._judge.see(window) else None
        self._begin()

    def due(self, decoder: Decoder, record: Record) -> bool:
        """Whether to move before this packet is fed."""
        return (
            self._limit is not None
            and self._processes.prepared(self._source)
            and decoder.begins_anew(record)
            and self._processes.take_turn()
        )

    def move(self, decoder: Decoder, record: Record) -> RemoteDecoder | None:
        """Another decoder that begins with ``record``; ``None`` where there is none after all.

        Args:
            decoder: The one here, drained.
            record: The next packet.
        """
        window = self._limit
        assert window is not None
        self._limit = None
        try:
            there = self._processes.apart(self._source, decoder.options)
        except ComuxError as error:
            self._events.emit(
                "decoding.moved", f"it stays: {error}", source=self._source, level=logging.WARNING, moved=False
            )
            return None
        there.known_damage(decoder.damage)
        self._processes.moved(self._source)
        held_ms = window.held_ns / max(1, window.samples) / 1e6
        share = window.held_ns / max(1, window.wall_ns)
        self._events.emit(
            "decoding.moved",
            f"decoded in another process from offset {record.offset} on: for {WINDOWS} s its thread was held up by the "
            f"interpreter, {held_ms:.1f} ms a packet, {share:.0%} of the time it decoded",
            source=self._source,
            moved=True,
            offset=record.offset,
            held_ms=round(held_ms, 3),
            share=round(share, 3),
            packets=window.packets,
        )
        return there


def queued_ns() -> int | None:
    """How long this thread was ready and no core was free for it, since it began; ``None``: the kernel does not say."""
    try:
        return int(Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
