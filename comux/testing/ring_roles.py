"""The parts in the ring's torture: producers, members, a lossy reader, an observer, a visitor; each may die.

A role works until the file ``stop`` exists, then lets go of everything and leaves. Now and then it closes its handle,
or ends the epoch, and opens anew, so that every named step of the ring's code is passed in the middle of everybody's
work. It journals every attempt before and every promise after it, with the time (nanoseconds, monotonic, the same clock
for all processes of the machine):

=========  ==========================================  =====================================================
``try``    time seq                                    a put begins
``put``    time seq offset                             it returned
``refuse`` time seq                                    it was refused, the ring being full (``drop_newest``)
``start``  time offset seq redelivered                 a record was handed out (``?``: the call does not tell)
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

from comux import ring
from comux.errors import ConfigError, EndOfStream, NotRetainedError, TopicBusyError, WaitTimeoutError
from comux.testing.ring_faults import HEAD, payload, read_payload
from comux.testing.ring_scenarios import Context

PATIENCE = 30.0  #: seconds; nothing may take longer, whoever dies and however busy the machine is
SLICE = 0.4  #: seconds of one attempt
HELD = 3  #: records a member holds at most
STOPPED = object()  #: instead of a result: the torture is over


class Part:
    """What the roles share."""

    def __init__(self, c: Context) -> None:
        self.c = c
        self.random = random.Random(c.options["seed"])
        self.stop_file = Path(c.job["directory"]) / "stop"
        self.looks = 0
        if c.options["early"]:  # it may die while it attaches and opens
            c.arm()
        self.ring = self.patiently(c.attach, to_the_end=True)
        self.fixed = self.ring.spec.dtype is not None
        self.size = self.ring.spec.record_bytes or 64
        self.seq = int(c.options["instance"]) << 32

    def ready(self) -> None:
        """From here on its failpoint counts, where it did not from the start."""
        if not self.c.options["early"]:
            self.c.arm()

    def note(self, what: str, *numbers: int | str) -> None:
        """A line with the time."""
        self.c.journal.note(what, time.monotonic_ns(), *numbers)

    def stopped(self) -> bool:
        """Whether the torture is over; looks at the file now and then."""
        self.looks += 1
        return self.looks % 16 == 0 and self.stop_file.exists()

    def chance(self, share: float) -> bool:
        """True in this share of the calls."""
        return self.random.random() < share

    def value(self, seq: int) -> bytes:
        """A self-proving value; of any size where records are variable."""
        return payload(seq, self.size if self.fixed else self.random.randrange(HEAD, 700))

    def patiently(self, call: Callable[[], Any], to_the_end: bool = False) -> Any:
        """The result of ``call``, tried again while the ring is full, or while the lock's holder lives and does nothing
        (a process that the kernel has swapped out); ``STOPPED`` where the torture ends meanwhile.

        Args:
            to_the_end: also when the torture is over.

        Raises:
            WaitTimeoutError: nothing moved for ``PATIENCE`` seconds.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return call()
            except WaitTimeoutError:
                if self.stop_file.exists() and not to_the_end:
                    return STOPPED
                if time.monotonic() > deadline:
                    raise

    def next(self) -> int:
        """The next sequence number, unique among all processes, noted as tried."""
        self.seq += 1
        self.note("try", self.seq)
        return self.seq

    def told(self, first: Any, seqs: list[int]) -> None:
        """Note what a put of these sequence numbers returned: the first one's offset, or a refusal."""
        if first is STOPPED:
            return
        for i, seq in enumerate(seqs):
            if first is None:
                self.note("refuse", seq)
            else:
                self.note("put", seq, first + i)


# -- producers --------------------------------------------------------------------------------------------------------


def producer(c: Context) -> None:
    """Put one, several, through a claim, or give a claim up; close or end now and then, and open again."""
    part = Part(c)
    handle = _open_producer(part)
    part.ready()
    while handle is not None and not part.stopped():
        if (
            part.looks % 16 == 0
        ):  # where records are dropped nothing else holds a producer up, and it would starve the rest
            threading.Event().wait(0.0005)
        chance = part.random.random()
        try:
            if chance < 0.6:
                seq = part.next()
                part.told(part.patiently(partial(handle.put, part.value(seq), timeout=SLICE)), [seq])
            elif chance < 0.8:
                seqs = [part.next() for _ in range(part.random.randint(1, min(4, part.ring.spec.slots)))]
                values = [part.value(seq) for seq in seqs]
                part.told(part.patiently(partial(handle.put_many, values, timeout=SLICE)), seqs)
            elif chance < 0.985:
                _claim(part, handle, chance < 0.85)
            else:
                if chance > 0.995:
                    handle.end()
                handle.close()
                handle = _open_producer(part)
        except EndOfStream:  # somebody ended the epoch
            handle.close()
            handle = _open_producer(part)
    if handle is not None:
        handle.close()
    part.ring.close()


def _open_producer(part: Part) -> Any:
    """A producer; the next in line where there may be only one. ``None`` where the torture is over."""
    while True:
        try:
            return part.patiently(partial(part.ring.producer, part.c.options["name"]), to_the_end=True)
        except TopicBusyError:
            if part.stop_file.exists():
                return None
            threading.Event().wait(0.005)


def _claim(part: Part, handle: Any, give_up: bool) -> None:
    seq = 0 if give_up else part.next()
    value = part.value(seq)
    claim = part.patiently(partial(handle.claim, None if part.fixed else len(value) + 100, timeout=SLICE))
    if claim is None or claim is STOPPED:
        if not give_up:
            part.told(claim, [seq])
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


# -- members ----------------------------------------------------------------------------------------------------------


def member(c: Context) -> None:
    """Take, hold up to three, acknowledge in any order, give some back; leave with what is held, and come again."""
    part = Part(c)
    handle = _open_member(part)
    part.ready()
    held: list[tuple[Any, bytes]] = []
    while not part.stopped():
        if part.chance(0.01):
            handle = _leave(part, handle, held)
        if not held and part.fixed and part.chance(0.1):
            handle = _take_run(part, handle)
        if len(held) < HELD:
            try:
                lease = part.patiently(partial(handle.take, 0.05), to_the_end=True)
            except EndOfStream:
                handle = _leave(part, handle, held)
                continue
            if lease is not None:
                held.append(_begin(part, lease))
                if part.chance(0.3):
                    continue
        if held:
            _finish(part, *held.pop(part.random.randrange(len(held))))
    while held:
        _finish(part, *held.pop())
    handle.close()
    part.ring.close()


def _open_member(part: Part) -> Any:
    on_end = "stop" if part.chance(0.5) else "wait"
    options = part.c.options
    join = partial(part.ring.member, options["group"], start="beginning", name=options["name"], on_end=on_end)
    return part.patiently(join, to_the_end=True)


def _leave(part: Part, handle: Any, held: list[tuple[Any, bytes]]) -> Any:
    """Close, which gives back what is held, and join again."""
    offsets = [lease.offset for lease, _ in held]
    for offset in offsets:
        part.note("nacking", offset)
    handle.close()
    held.clear()
    for offset in offsets:
        part.note("nacked", offset)
    return _open_member(part)


def _take_run(part: Part, handle: Any) -> Any:
    """Several fixed records as one array, acknowledged in one call."""
    try:
        batch = part.patiently(partial(handle.take_many, HELD, 0.0), to_the_end=True)
    except EndOfStream:
        return _leave(part, handle, [])
    if batch is None:
        return handle
    values = [array.tobytes() for array in batch]
    for offset, value in zip(batch.offsets, values, strict=True):
        _started(part, offset, value, "?")
    for offset, before, array in zip(batch.offsets, values, batch, strict=True):
        if array.tobytes() != before:
            part.note("torn", offset, "changed while it was held")
        part.note("acking", offset)
    batch.ack()
    for offset in batch.offsets:
        part.note("acked", offset)
    return handle


def _begin(part: Part, lease: Any) -> tuple[Any, bytes]:
    value = lease.bytes()
    _started(part, lease.offset, value, int(lease.redelivered))
    return lease, value


def _started(part: Part, offset: int, value: bytes, marked: int | str) -> None:
    try:
        part.note("start", offset, read_payload(value), marked)
    except ValueError as error:
        part.note("torn", offset, str(error))


def _finish(part: Part, lease: Any, value: bytes) -> None:
    offset = lease.offset
    if lease.bytes() != value:
        part.note("torn", offset, "changed while it was held")
    if part.chance(0.02):
        part.note("nacking", offset)
        lease.nack()
        part.note("nacked", offset)
    else:
        part.note("acking", offset)
        lease.ack()
        part.note("acked", offset)


# -- those nobody waits for -------------------------------------------------------------------------------------------


def reader(c: Context) -> None:
    """Read without a group, as copies and as views; leave and come again."""
    part = Part(c)
    come = partial(part.ring.reader, start="end", on_end="wait", name=c.options["name"])
    handle = part.patiently(come, to_the_end=True)
    start = handle.position
    part.note("opened", start)
    part.ready()
    while not part.stopped():
        if part.chance(0.01):  # fall behind
            threading.Event().wait(0.005)
        if part.chance(0.005):
            handle.close()
            handle = part.patiently(come, to_the_end=True)
            start = handle.position
            part.note("opened", start)
        if part.chance(0.5):
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
    part.ready()
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


def visitor(c: Context) -> None:
    """Come and go: declare a group and remove it, make a topic of the session and be the last to leave it."""
    part = Part(c)
    part.ready()
    spec = ring.RingSpec(VISITED, slots=4, data_bytes=65536, lifetime="session")
    while not part.stopped():
        part.patiently(partial(forget_guests, part.ring), to_the_end=True)
        join = partial(part.ring.member, GUESTS, start="end", on_end="wait")
        with part.patiently(join, to_the_end=True) as guest:
            lease = part.patiently(partial(guest.take, 0))
            if lease is not None and lease is not STOPPED:
                lease.ack()
        part.patiently(partial(forget_guests, part.ring), to_the_end=True)
        with ring.create(spec, Path(c.job["directory"]), exist_ok=True) as visited, visited.producer() as handle:
            handle.put(b"was here", timeout=0)
        threading.Event().wait(0.005)
    part.ring.close()


GUESTS = "guests"  #: the visitor's group; it holds the writers up from its declaration to its removal
VISITED = "visited"  #: the visitor's own topic


def forget_guests(topic: Any) -> None:
    """Remove the visitor's group, which one that died may have left behind."""
    try:
        topic.remove_group(GUESTS)
    except ConfigError:  # there is none
        pass


ROLES: dict[str, Callable[[Context], None]] = {
    "torture_producer": producer,
    "torture_member": member,
    "torture_reader": reader,
    "torture_observer": observer,
    "torture_visitor": visitor,
}
