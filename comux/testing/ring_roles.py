"""The parts in the ring's torture: producers, members, a lossy reader, an observer; each is a process that may die.

A role works until the file ``stop`` exists, then lets go of everything and leaves. It journals every attempt before and
every promise after it, with the time (nanoseconds, monotonic, the same clock for all processes of the machine):

=========  ==========================================  =====================================================
``try``    time seq                                    a put begins
``put``    time seq offset                             it returned
``start``  time offset seq redelivered                 a record was handed out
``acking`` time offset                                 its acknowledgement begins; the value was still whole
``acked``  time offset                                 it returned
``nacked`` time offset                                 giving it back returned (``nacking`` before it)
``got``    time offset seq skipped                     the lossy reader has a validated record
``torn``   time offset text                            a value that was valid by the ring's word is damaged
``error``  type text                                   anything else went wrong
=========  ==========================================  =====================================================
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from comux.errors import NotRetainedError, TopicBusyError, WaitTimeoutError
from comux.testing.ring_faults import HEAD, payload, read_payload
from comux.testing.ring_scenarios import Context

PATIENCE = 8.0  #: seconds; nothing may take longer, whoever dies
SLICE = 0.4  #: seconds of one attempt


class Part:
    """What the roles share."""

    def __init__(self, c: Context) -> None:
        self.c = c
        self.random = random.Random(c.options["seed"])
        self.stop_file = Path(c.job["directory"]) / "stop"
        self.looks = 0
        self.ring = c.attach()
        self.fixed = self.ring.spec.dtype is not None
        self.size = self.ring.spec.record_bytes or 64
        self.seq = int(c.options["instance"]) << 32

    def note(self, what: str, *numbers: int | str) -> None:
        """A line with the time."""
        self.c.journal.note(what, time.monotonic_ns(), *numbers)

    def stopped(self) -> bool:
        """Whether the torture is over; looks at the file now and then."""
        self.looks += 1
        return self.looks % 16 == 0 and self.stop_file.exists()

    def value(self, seq: int) -> bytes:
        """A self-proving value; of any size where records are variable."""
        return payload(seq, self.size if self.fixed else self.random.randrange(HEAD, 700))

    def patiently(self, call: Callable[[], Any]) -> Any:
        """The result of ``call``, tried again while the ring is full; ``None`` where the torture is over meanwhile.

        Raises:
            WaitTimeoutError: nothing moved for ``PATIENCE`` seconds.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return call()
            except WaitTimeoutError:
                if self.stop_file.exists():
                    return None
                if time.monotonic() > deadline:
                    raise

    def next(self) -> int:
        """The next sequence number, unique among all processes, noted as tried."""
        self.seq += 1
        self.note("try", self.seq)
        return self.seq


def producer(c: Context) -> None:
    """Put one, several, through a claim, or give a claim up."""
    part = Part(c)
    try:
        handle = part.ring.producer(c.options["name"])
    except TopicBusyError:
        part.note("busy")
        threading.Event().wait(0.01)
        return
    c.arm()
    while not part.stopped():
        chance = part.random.random()
        if chance < 0.6:
            seq = part.next()
            offset = part.patiently(partial(handle.put, part.value(seq), timeout=SLICE))
            if offset is not None:
                part.note("put", seq, offset)
        elif chance < 0.8:
            seqs = [part.next() for _ in range(part.random.randint(1, min(4, part.ring.spec.slots)))]
            values = [part.value(seq) for seq in seqs]
            first = part.patiently(partial(handle.put_many, values, timeout=SLICE))
            for i, seq in enumerate(seqs if first is not None else ()):
                part.note("put", seq, first + i)
        else:
            _claim(part, handle, chance < 0.85)
    handle.close()
    part.ring.close()


def _claim(part: Part, handle: Any, give_up: bool) -> None:
    seq = 0 if give_up else part.next()
    value = part.value(seq)
    claim = part.patiently(partial(handle.claim, None if part.fixed else len(value) + 100, timeout=SLICE))
    if claim is None:
        return
    try:
        with claim:
            claim.buffer[: len(value) // 2] = value[: len(value) // 2]
            if give_up:
                raise KeyError
            claim.buffer[: len(value)] = value
            claim.commit(len(value))
    except KeyError:
        return
    part.note("put", seq, claim.offset)


def member(c: Context) -> None:
    """Take, hold up to three, acknowledge in any order, give some back."""
    part = Part(c)
    handle = part.ring.member(c.options["group"], start="beginning", name=c.options["name"], on_end="wait")
    c.arm()
    held: list[tuple[Any, bytes]] = []
    while not part.stopped():
        if len(held) < 3:
            lease = handle.take(0.05)
            if lease is not None:
                held.append(_begin(part, lease))
                if part.random.random() < 0.3:
                    continue
        if held:
            _finish(part, *held.pop(part.random.randrange(len(held))))
    while held:
        _finish(part, *held.pop())
    handle.close()
    part.ring.close()


def _begin(part: Part, lease: Any) -> tuple[Any, bytes]:
    value = lease.bytes()
    try:
        part.note("start", lease.offset, read_payload(value), int(lease.redelivered))
    except ValueError as error:
        part.note("torn", lease.offset, str(error))
    return lease, value


def _finish(part: Part, lease: Any, value: bytes) -> None:
    offset = lease.offset
    if lease.bytes() != value:
        part.note("torn", offset, "changed while it was held")
    if part.random.random() < 0.02:
        part.note("nacking", offset)
        lease.nack()
        part.note("nacked", offset)
    else:
        part.note("acking", offset)
        lease.ack()
        part.note("acked", offset)


def reader(c: Context) -> None:
    """Read without a group, as copies and as views."""
    part = Part(c)
    handle = part.ring.reader(start="end", on_end="wait", name=c.options["name"])
    start = handle.position
    part.note("opened", start)
    c.arm()
    while not part.stopped():
        if part.random.random() < 0.01:  # fall behind
            threading.Event().wait(0.005)
        if part.random.random() < 0.5:
            record = handle.copy(0.05)
            if record is not None:
                _received(part, record.offset, bytes(record.value), record.skipped)
        else:
            view = handle.poll(0.05)
            if view is not None:
                _look(part, view)
        account = handle.account()
        if not account.balanced or account.received != handle.position - start:
            part.note("torn", handle.position, f"the reader's account does not balance: {account}")
    handle.close()
    part.ring.close()


def _look(part: Part, view: Any) -> None:
    try:
        value = view.bytes()
    except NotRetainedError:
        part.note("lapped", view.offset, view.skipped)
        return
    if view.valid():
        _received(part, view.offset, value, view.skipped)
    else:
        part.note("lapped", view.offset, view.skipped)


def _received(part: Part, offset: int, value: bytes, skipped: int) -> None:
    try:
        part.note("got", offset, read_payload(value), skipped)
    except ValueError as error:
        part.note("torn", offset, str(error))


def observer(c: Context) -> None:
    """Look at the newest record now and then; it never gets older."""
    part = Part(c)
    handle = part.ring.observer()
    c.arm()
    newest = -1
    while not part.stopped():
        record = handle.latest()
        if record is not None:
            if record.offset < newest:
                part.note("torn", record.offset, f"the newest record was {newest} before")
            newest = record.offset
            try:
                read_payload(bytes(record.value))
            except ValueError as error:
                part.note("torn", record.offset, str(error))
        threading.Event().wait(0.002)
    part.ring.close()


ROLES: dict[str, Callable[[Context], None]] = {
    "torture_producer": producer,
    "torture_member": member,
    "torture_reader": reader,
    "torture_observer": observer,
}
