"""What a victim of ``ring_faults`` does until it dies: one function per piece of work.

A scenario attaches, prepares what it needs, arms its failpoint just before the work the failpoint lies in, and works.
It writes to its journal before each attempt and after each promise (see ``ring_faults``).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comux import ring
from comux.errors import EndOfStream
from comux.testing.ring_faults import Journal, payload, read_payload

SIZE = 64


class Context:
    """What a scenario is given: its job, its journal, the ring's doors."""

    def __init__(self, job: dict[str, Any], journal: Journal) -> None:
        self.job = job
        self.options: dict[str, Any] = job["options"]
        self.journal = journal
        self.seq = int(self.options.get("seq", 1000))

    def arm(self) -> None:
        """From here on the failpoint counts its passes."""
        if self.job["failpoint"]:
            ring.failpoint(self.job["failpoint"], self.job["nth"], self.job["action"])

    def attach(self) -> Any:
        """The ring of the job."""
        return ring.attach(self.job["topic"], directory=Path(self.job["directory"]))

    def put(self, producer: Any, timeout: float = 5.0, **fields: Any) -> None:
        """Put the next self-proving value and write down what became of it."""
        seq = self.seq
        self.seq += 1
        self.journal.note("try", seq)
        offset = producer.put(payload(seq, SIZE), timeout=timeout, **fields)
        self.journal.note("put", seq, -1 if offset is None else offset)

    def take(self, member: Any, timeout: float = 0.0) -> Any:
        """Take one record and write down what was handed out; ``None`` where nothing came."""
        self.journal.note("taking")
        lease = member.take(timeout)
        if lease is not None:
            self.journal.note("start", lease.offset, read_payload(lease.bytes()), int(lease.redelivered))
        return lease

    def ack(self, lease: Any) -> None:
        """Acknowledge and write it down."""
        offset = lease.offset
        self.journal.note("acking", offset)
        lease.ack()
        self.journal.note("acked", offset)

    def nack(self, lease: Any) -> None:
        """Give back and write it down."""
        offset = lease.offset
        self.journal.note("nacking", offset)
        lease.nack()
        self.journal.note("nacked", offset)


def produce(c: Context) -> None:
    """Put ``count`` records one after another."""
    producer = c.attach().producer("victim")
    c.arm()
    for _ in range(c.options.get("count", 6)):
        c.put(producer)


def produce_many(c: Context) -> None:
    """Put runs of three."""
    producer = c.attach().producer("victim")
    values = [payload(c.seq + i, SIZE) for i in range(3)]
    c.arm()
    for i in range(3):
        c.journal.note("try", c.seq + i)
    first = producer.put_many(values, timeout=5)
    for i in range(3):
        c.journal.note("put", c.seq + i, first + i)


def fill(c: Context) -> None:
    """Die in the middle of filling claims."""
    producer = c.attach().producer("victim")
    c.put(producer)
    claims = [producer.claim(SIZE) for _ in range(c.options.get("claims", 1))]
    for claim in claims:
        claim.buffer[: SIZE // 2] = b"\xee" * (SIZE // 2)
    os.kill(os.getpid(), signal.SIGKILL)


def abort(c: Context) -> None:
    """Claim and give up, twice, with a record in between."""
    producer = c.attach().producer("victim")
    c.arm()
    for _ in range(2):
        try:
            with producer.claim(SIZE) as claim:
                claim.buffer[:4] = b"torn"
                raise KeyError
        except KeyError:
            c.put(producer)


def trim(c: Context) -> None:
    """Claim far more than is used."""
    producer = c.attach().producer("victim")
    c.arm()
    for _ in range(3):
        seq = c.seq
        c.seq += 1
        c.journal.note("try", seq)
        with producer.claim(4096) as claim:
            claim.buffer[:SIZE] = payload(seq, SIZE)
            claim.commit(SIZE)
        c.journal.note("put", seq, claim.offset)


def end(c: Context) -> None:
    """End the epoch after two records."""
    producer = c.attach().producer("victim")
    c.put(producer)
    c.put(producer)
    c.arm()
    producer.end()
    c.journal.note("ended")


def close_producer(c: Context) -> None:
    """Close cleanly after two records (``end='auto'``: that is the end)."""
    producer = c.attach().producer("victim")
    c.put(producer)
    c.put(producer)
    c.arm()
    producer.close()
    c.journal.note("closed")


def open_producer(c: Context) -> None:
    """Open a producer and put a record."""
    attached = c.attach()
    c.arm()
    producer = attached.producer("victim")
    c.put(producer)


def open_member(c: Context) -> None:
    """Open members, the named groups being new or not."""
    attached = c.attach()
    c.arm()
    for group in c.options["groups"]:
        attached.member(group, start="beginning")


def consume(c: Context) -> None:
    """Take and acknowledge until nothing is left, closing with what ``keep`` says still held."""
    member = c.attach().member("g", name="victim")
    c.arm()
    while (lease := c.take(member, c.options.get("timeout", 0.0))) is not None:
        c.ack(lease)


def give_back(c: Context) -> None:
    """Take, give back, take again."""
    member = c.attach().member("g", name="victim")
    c.arm()
    for _ in range(3):
        lease = c.take(member)
        if lease is not None:
            c.nack(lease)
    lease = c.take(member)
    if lease is not None:
        c.ack(lease)


def take_returned(c: Context) -> None:
    """Take what others gave back or left behind."""
    attached = c.attach()
    member = attached.member("g", name="victim")
    c.arm()
    while (lease := c.take(member)) is not None:
        c.ack(lease)


def hold(c: Context) -> None:
    """Die holding records, none acknowledged."""
    member = c.attach().member("g", name="victim")
    held = [c.take(member) for _ in range(c.options.get("count", 3))]
    assert all(lease is not None for lease in held)
    os.kill(os.getpid(), signal.SIGKILL)


def look(c: Context) -> None:
    """Look at records in place without a group, holding every view; then die."""
    reader = c.attach().reader(start="beginning", name="victim")
    c.arm()
    held = reader.poll_many(c.options.get("count", 2), 0)
    assert held
    os.kill(os.getpid(), signal.SIGKILL)


def poison(c: Context) -> None:
    """Take and acknowledge until nothing is left, and die over the record with the sequence number ``poison``."""
    member = c.attach().member("g", name="victim")
    c.arm()
    while (lease := c.take(member)) is not None:
        if read_payload(lease.bytes()) == c.options["poison"]:
            os.kill(os.getpid(), signal.SIGKILL)
        c.ack(lease)


def pause(c: Context) -> None:
    """Pause the topic, or the group that is named."""
    topic = c.attach()
    c.arm()
    topic.pause(c.options.get("group"))


def ack_batch(c: Context) -> None:
    """Take a batch of ``count`` and acknowledge it."""
    batch = c.attach().member("g", name="victim").take_many(c.options["count"], 0)
    c.arm()
    batch.ack()


def claim_stale(c: Context) -> None:
    """Claim whatever the group's members hold."""
    topic = c.attach()
    c.arm()
    topic.claim_stale("g", 0.0)


def wait_member(c: Context) -> None:
    """Wait in a take for what does not come."""
    member = c.attach().member("g", name="victim")
    c.arm()
    c.take(member, float(c.options.get("timeout", 5.0)))


def close_member(c: Context) -> None:
    """Close a member that holds two records."""
    member = c.attach().member("g", name="victim")
    held = [c.take(member), c.take(member)]
    c.arm()
    member.close()
    c.journal.note("closed", len(held))


def attach(c: Context) -> None:
    """Attach, armed beforehand."""
    c.arm()
    attached = c.attach()
    attached.reap()


def drain(c: Context) -> None:
    """Attach, armed beforehand, and work as a member."""
    c.arm()
    member = c.attach().member("g", name="victim")
    while (lease := c.take(member)) is not None:
        c.ack(lease)


def create(c: Context) -> None:
    """Create another topic."""
    c.arm()
    spec = ring.RingSpec(c.options["fresh"], slots=8, data_bytes=65536)
    ring.create(spec, directory=Path(c.job["directory"]))
    c.journal.note("created")


def to_the_end(c: Context) -> None:
    """A member that reads to the end of the stream."""
    member = c.attach().member("g", name="victim")
    c.arm()
    try:
        while (lease := c.take(member, 5.0)) is not None:
            c.ack(lease)
    except EndOfStream:
        c.journal.note("end")


def reset(c: Context) -> None:
    """Attach without a past."""
    c.arm()
    ring.attach(c.job["topic"], directory=Path(c.job["directory"]), on_stale="reset").close()


def leave(c: Context) -> None:
    """Attach and close cleanly; where there is a FIFO ``go``, all who read it leave when its last writer closes it."""
    attached = c.attach()
    gate = os.open(Path(c.job["directory"]) / c.options["go"], os.O_RDONLY) if "go" in c.options else -1
    c.journal.note("attached")
    if gate >= 0:
        os.read(gate, 1)
        os.close(gate)
    c.arm()
    attached.close()
    c.journal.note("left")


SCENARIOS: dict[str, Callable[[Context], None]] = {
    f.__name__: f
    for f in (
        produce,
        produce_many,
        fill,
        abort,
        trim,
        end,
        close_producer,
        open_producer,
        open_member,
        consume,
        give_back,
        take_returned,
        hold,
        look,
        poison,
        claim_stale,
        ack_batch,
        pause,
        wait_member,
        close_member,
        attach,
        drain,
        create,
        to_the_end,
        leave,
        reset,
    )
}


def run(job: dict[str, Any], journal: Journal) -> None:
    """Run the scenario, or the role in the torture, that ``job`` names."""
    from comux.testing.ring_roles import ROLES

    name = job["scenario"]
    (SCENARIOS.get(name) or ROLES[name])(Context(job, journal))
