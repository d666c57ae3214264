"""No call of the binding keeps or loses a reference, whether it succeeds or raises.

Each case makes one call, or a few that belong together, and leaves everything as it was. It is run a hundred times;
what is allocated and the counts of the objects that were handed in must be the same after as before. The cases
are named by what they call, and every attribute of every type of the C module must be among them.
"""

from __future__ import annotations

import gc
import os
import sys
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comux import ring
from comux.errors import ComuxError, StaleLeaseError
from comux.ring.native import core

TIMES = 100
BYTES_A_CALL = 8  #: less than any object: what an honest cache or a dictionary's growth may cost on average
KEY, VALUE, HEADERS, NAME = b"key-of-the-test", b"value" * 20, [("name", b"text"), ("none", None)], "a name of the test"
WATCHED = (KEY, VALUE, HEADERS, NAME, HEADERS[0], ring.Record if hasattr(ring, "Record") else core.Lease)
Case = Callable[[], Any]


class World:
    """A ring of each kind with a handle of each role, and the cases that use them."""

    def __init__(self, place: Path) -> None:
        self.place = place
        options: dict[str, Any] = {"slots": 8, "max_ports": 16}
        self.var = ring.create(ring.RingSpec("var", data_bytes=65536, max_record=4096, **options), directory=place)
        self.fix = ring.create(ring.RingSpec("fix", dtype="i4", shape=(4,), **options), directory=place)
        self.put = self.var.producer()
        self.put_fixed = self.fix.producer()
        self.take = self.var.member("g", start="beginning", on_end="wait")
        self.take_fixed = self.fix.member("g", start="beginning", on_end="wait")
        self.read = self.var.reader(start="beginning", on_end="wait")
        self.array = np.arange(4, dtype="i4")
        self.att = self.var._attachment
        self.target = bytearray(len(VALUE))
        self.record()  # so that there is a newest one
        self.lease().ack()

    def close(self) -> None:
        self.var.close()
        self.fix.close()

    # -- pieces -------------------------------------------------------------------------------------------------------

    def record(self) -> int:
        return self.put.put(VALUE, key=KEY, headers=HEADERS, timestamp_ns=5, flags=1, tag=7, timeout=0)

    def lease(self) -> Any:
        return self.take.take(0)

    def drop_lease(self) -> None:
        self.record()
        self.lease()
        self.lease().ack()

    def with_lease(self, use: Callable[[Any], Any]) -> Case:
        def call() -> None:
            self.record()
            lease = self.lease()
            use(lease)
            try:
                lease.ack()
            except StaleLeaseError:  # the use was to finish it
                pass

        return call

    def with_run(self, use: Callable[[Any], Any]) -> Case:
        def call() -> None:
            self.put_fixed.put_many(np.stack([self.array] * 2), timeout=0)
            run = self.take_fixed._take_run(2, 0)
            use(run)
            try:
                run.ack()
            except ComuxError:  # the use was to release it
                pass
            self.take_fixed.position  # noqa: B018
            while (lease := self.take_fixed.take(0)) is not None:
                lease.ack()

        return call

    def with_view(self, use: Callable[[Any], Any]) -> Case:
        return lambda: use(self.att.latest())

    def with_claim(self, use: Callable[[Any], Any]) -> Case:
        def call() -> None:
            claim = self.put.claim(256, timeout=0)
            use(claim)
            try:
                claim.abort()
            except ComuxError:
                pass
            while (lease := self.lease()) is not None:
                lease.ack()

        return call

    def fill(self) -> None:
        """Until the ring is full: that is the error path of every put."""
        try:
            while True:
                self.record()
        except ComuxError:
            pass
        while (lease := self.lease()) is not None:
            lease.ack()

    def made(self, **change: Any) -> Any:
        spec = ring.RingSpec("made", slots=2, data_bytes=65536)
        return core.create(path=str(self.place / "made.ring"), **{**spec.to_core(), **change})

    def make(self) -> None:
        made = self.made()
        made.close()
        core.unlink(made.path, False)

    def use_other(self, use: Callable[[Any], Any]) -> Case:
        """On an attachment of its own."""

        def call() -> None:
            made = self.made()
            path = made.path
            use(made)
            made.close()
            core.unlink(path, False)

        return call


def end(att: Any) -> None:
    """End the epoch, and try to go on with it."""
    producer = core.Producer(att, "")
    producer.end()
    refused(lambda: producer.put(VALUE))()
    producer.close()


def refused(call: Case) -> Case:
    """A call that must raise."""

    def wrapped() -> None:
        try:
            call()
        except Exception:  # noqa: BLE001 - whatever is raised: it must be raised
            return
        raise AssertionError("nothing was raised")

    return wrapped


def attributes(of: Any, names: str, prefix: str, where: Callable[[Callable[[Any], Any]], Case]) -> dict[str, Case]:
    """A case for each of the names of ``of``: read."""
    return {f"{prefix}.{name}": where(lambda x, name=name: getattr(x, name)) for name in names.split()}


def on(thing: Any) -> Callable[[Callable[[Any], Any]], Case]:
    return lambda use: lambda: use(thing)


def records(w: World) -> dict[str, Case]:
    """Leases, views, runs and claims."""
    shown = "offset epoch timestamp_ns append_ns flags tag producer_id nbytes key headers buffer array"
    cases = {
        **attributes(None, f"{shown} delivery_count redelivered held", "Lease", w.with_lease),
        **attributes(None, f"{shown} skipped kept pinned", "View", w.with_view),
        **attributes(None, "first", "Run", w.with_run),
        **attributes(None, "offset nbytes buffer array", "Claim", w.with_claim),
    }
    cases |= {
        "Lease.ack": w.with_lease(lambda x: x.ack()),
        "Lease.ack: twice": w.with_lease(lambda x: (x.ack(), refused(x.ack)())),
        "Lease.release": w.with_lease(lambda x: x.release()),
        "Lease.nack": w.with_lease(lambda x: (x.nack(), w.lease().ack())),
        "Lease.nack: after ack": w.with_lease(lambda x: (x.ack(), refused(x.nack)())),
        "Lease.bytes": w.with_lease(lambda x: x.bytes()),
        "Lease.bytes: released": w.with_lease(lambda x: (x.ack(), refused(x.bytes)())),
        "Lease.__enter__": w.with_lease(lambda x: x.__enter__()),
        "Lease.__exit__": w.with_lease(lambda x: x.__exit__(None, None, None)),
        "Lease.__reduce__": w.with_lease(lambda x: refused(x.__reduce__)()),
        "Lease.__repr__": w.with_lease(repr),
        "Lease.__buffer__": w.with_lease(lambda x: bytes(memoryview(x))),
        "Lease.__buffer__: released": w.with_lease(lambda x: (x.ack(), refused(lambda: memoryview(x))())),
        "Lease._bury": w.with_lease(lambda x: x._bury()),
        "Lease: dropped": w.drop_lease,
        "View.valid": w.with_view(lambda x: x.valid()),
        "View.copy": w.with_view(lambda x: x.copy()),
        "View.copy_into": w.with_view(lambda x: x.copy_into(w.target)),
        "View.copy_into: too small": w.with_view(lambda x: refused(lambda: x.copy_into(bytearray(1)))()),
        "View.copy_into: no buffer": w.with_view(lambda x: refused(lambda: x.copy_into(NAME))()),
        "View.bytes": w.with_view(lambda x: x.bytes()),
        "View.__buffer__": w.with_view(lambda x: bytes(memoryview(x))),
        "View.__reduce__": w.with_view(lambda x: refused(x.__reduce__)()),
        "View.__repr__": w.with_view(repr),
        "Run.ack": w.with_run(lambda x: x.ack()),
        "Run.nack": w.with_run(lambda x: x.nack()),
        "Run.nack: after ack": w.with_run(lambda x: (x.ack(), refused(x.nack)())),
        "Run.timestamps": w.with_run(lambda x: x.timestamps()),
        "Run.timestamps: released": w.with_run(lambda x: (x.ack(), refused(x.timestamps)())),
        "Run.__len__": w.with_run(len),
        "Run.__enter__": w.with_run(lambda x: x.__enter__()),
        "Run.__exit__": w.with_run(lambda x: x.__exit__(ValueError, None, None)),
        "Run.__buffer__": w.with_run(lambda x: bytes(memoryview(x))),
        "Run.__reduce__": w.with_run(lambda x: refused(x.__reduce__)()),
        "Claim.commit": w.with_claim(lambda x: x.commit(10, key=KEY, headers=HEADERS, timestamp_ns=1, flags=2, tag=3)),
        "Claim.commit: too much": w.with_claim(lambda x: refused(lambda: x.commit(10**6))()),
        "Claim.commit: bad headers": w.with_claim(lambda x: refused(lambda: x.commit(1, headers=[(NAME, 5)]))()),
        "Claim.commit: bad key": w.with_claim(lambda x: refused(lambda: x.commit(1, key=NAME))()),
        "Claim.abort": w.with_claim(lambda x: x.abort()),
        "Claim.commit: aborted": w.with_claim(lambda x: (x.abort(), refused(lambda: x.commit(1))())),
        "Claim.__enter__": w.with_claim(lambda x: x.__enter__()),
        "Claim.__exit__": w.with_claim(lambda x: x.__exit__(None, None, None)),
        "Claim.__exit__: raised": w.with_claim(lambda x: x.__exit__(KeyError, KeyError(), None)),
        "Claim.__buffer__": w.with_claim(lambda x: memoryview(x)[:2].tobytes()),
        "Claim.__reduce__": w.with_claim(lambda x: refused(x.__reduce__)()),
        "Claim: dropped": lambda: w.put.claim(64, timeout=0) and None,
    }
    return cases


def handles(w: World) -> dict[str, Case]:
    """Producers, members and readers."""
    put, take, read = w.put, w.take, w.read
    used = {"_counts": lambda x: x._counts(), "closed": lambda x: x.closed, "epoch": lambda x: x.epoch}
    opened = {
        "Producer": (put, "producer_id", lambda: w.var.producer(NAME)),
        "Member": (take, "position lag held", lambda: w.var.member("g", name=NAME)),
        "Reader": (read, "_position lost lag", lambda: w.var.reader(name=NAME)),
    }
    cases: dict[str, Case] = {}
    for kind, (handle, names, new) in opened.items():
        cases |= {f"{kind}.{name}": (lambda f=f, h=handle: f(h)) for name, f in used.items()}
        cases |= attributes(None, names, kind, on(handle))
        cases[f"{kind}.close"] = lambda new=new: new().close()
        cases[f"{kind}.__new__: bad arguments"] = refused(lambda kind=kind: getattr(core, kind)(NAME))
        cases[f"{kind}.close: used after"] = lambda new=new: (
            (h := new()).close(),
            refused(lambda: getattr(h, {"Producer": "end", "Member": "take", "Reader": "poll"}[type(h).__name__])())(),
        )
    cases |= {
        "Producer.put": lambda: (w.record(), w.lease().ack()),
        "Producer.put: full": w.fill,
        "Producer.put: too large": refused(lambda: put.put(b"x" * 5000)),
        "Producer.put: no buffer": refused(lambda: put.put(NAME)),
        "Producer.put: bad headers": refused(lambda: put.put(VALUE, headers=[(NAME, VALUE), (5, 6)])),
        "Producer.put: bad key": refused(lambda: put.put(VALUE, key=NAME)),
        "Producer.put: bad keyword": refused(lambda: put.put(VALUE, colour=NAME)),
        "Producer.put: bad timeout": refused(lambda: put.put(VALUE, timeout=NAME)),
        "Producer.put: None": lambda: (put.put(None), w.lease().ack()),
        "Producer.put: array": lambda: (w.put_fixed.put(w.array), w.take_fixed.take(0).ack()),
        "Producer.put: wrong array": refused(lambda: w.put_fixed.put(w.array[:2])),
        "Producer.put_many": lambda: (put.put_many([VALUE, VALUE], tag=1), w.lease().ack(), w.lease().ack()),
        "Producer.put_many: one bad": refused(lambda: put.put_many([VALUE, NAME])),
        "Producer.put_many: too many": refused(lambda: put.put_many([VALUE] * 9)),
        "Producer.put_many: no sequence": refused(lambda: put.put_many(5)),
        "Producer.claim": w.with_claim(lambda x: None),
        "Producer.claim: too large": refused(lambda: put.claim(10**6)),
        "Producer.claim: bad size": refused(lambda: put.claim(NAME)),
        "Producer.end": w.use_other(end),
        "Member.take": lambda: (w.record(), w.lease().ack()),
        "Member.take: nothing": lambda: take.take(0),
        "Member.take: bad timeout": refused(lambda: take.take(float("nan"))),
        "Member._take_run": w.with_run(lambda x: None),
        "Member._take_run: variable": refused(lambda: take._take_run(2, 0)),
        "Member._take_run: none": lambda: w.take_fixed._take_run(2, 0),
        "Member._take_run: zero": refused(lambda: w.take_fixed._take_run(0)),
        "Member.ack": w.with_lease(lambda x: take.ack(x.offset)),
        "Member.ack: a lease": w.with_lease(take.ack),
        "Member.ack: not held": refused(lambda: take.ack(2**40)),
        "Member.ack: no number": refused(lambda: take.ack(NAME)),
        "Member.nack": w.with_lease(lambda x: (take.nack(x), w.lease().ack())),
        "Member.nack: not held": refused(lambda: take.nack(2**40)),
        "Member.wakeup": lambda: (take.wakeup(), take.take(0)),
        "Member.__iter__": lambda: iter(take),
        "Member.__next__": lambda: (w.record(), next(take).ack()),
        "Member.__new__: bad start": refused(lambda: w.var.member("other", start=NAME)),
        "Reader.poll": lambda: (w.record(), w.lease().ack(), [read.poll(0) for _ in range(2)]),
        "Reader.poll: nothing": lambda: (read.seek(w.var.high_water), read.poll(0)),
        "Member._claim_stale": lambda: take._claim_stale(10**6),
        "Member._claim_stale: bad": refused(lambda: take._claim_stale(NAME)),
        "Member.fileno": take.fileno,
        "Reader.fileno": read.fileno,
        "Reader.seek": lambda: read.seek(w.var.high_water),
        "Reader.seek: no number": refused(lambda: read.seek(NAME)),
        "Reader.wakeup": lambda: (read.wakeup(), read.poll(0)),
        "Reader._retract": lambda: (read.seek_end(), w.record(), w.lease().ack(), read._retract(read.poll(0))),
        "Reader._retract: no view": refused(lambda: read._retract(NAME)),
    }
    return cases


def topics(w: World) -> dict[str, Case]:
    """Attachments and the module's functions."""
    att, path = w.att, str(w.place / "absent.ring")
    names = "name path config closed paused log_start high_water epoch ended end_offset"
    cases = {
        **attributes(None, names, "Attachment", on(att)),
        "Attachment.end_offset: ended": w.use_other(lambda a: (core.Producer(a, "").end(), a.end_offset)),
        "Attachment.peek": lambda: att.peek(w.var.high_water - 1),
        "Attachment.peek: nothing": lambda: att.peek(2**50),
        "Attachment.peek: no number": refused(lambda: att.peek(NAME)),
        "Attachment.latest": att.latest,
        "Attachment.find_flag": lambda: (att.find_flag(1, 0), att.find_flag(4, 0)),
        "Attachment.find_flag: bad": refused(lambda: att.find_flag(NAME, 0)),
        "Attachment.find_time": lambda: (att.find_time(0), att.find_time(2**62)),
        "Attachment.find_time: bad": refused(lambda: att.find_time(NAME)),
        "Attachment.groups": att.groups,
        "Attachment.remove_group": lambda: (w.var.member("gone").close(), att.remove_group("gone")),
        "Attachment.remove_group: none": refused(lambda: att.remove_group(NAME)),
        "Attachment.remove_group: in use": refused(lambda: att.remove_group("g")),
        "Attachment.remove_group: no text": refused(lambda: att.remove_group(5)),
        "Attachment.stats": att.stats,
        "Attachment.stats: a claim": w.with_claim(lambda x: att.stats()),
        "Attachment.check": att.check,
        "Attachment.pause": lambda: (att.pause(True), att.pause(False)),
        "Attachment.pause: a group": lambda: (att.pause(True, "g"), att.pause(False, "g")),
        "Attachment.pause: none": refused(lambda: att.pause(True, NAME)),
        "Attachment.claim_stale": lambda: att.claim_stale("g", 10**6),
        "Attachment.claim_stale: none": refused(lambda: att.claim_stale(NAME, 10**6)),
        "Attachment.reap": att.reap,
        "Attachment.types": w.use_other(lambda a: a.types(w.array.dtype, (4,), np.ndarray, np.generic, len, len)),
        "Attachment.types: bad": refused(lambda: att.types(1, 2, 3, 4, 5, 6)),
        "Attachment.close": w.make,
        "Attachment.close: used after": w.use_other(lambda a: (a.close(), refused(a.stats)())),
        "create": w.make,
        "create: exists": refused(lambda: core.create(path=str(w.var.path), **w.var.spec.to_core())),
        "create: no such folder": refused(lambda: w.made(path="/nowhere/at/all.ring")),
        "create: missing": refused(lambda: core.create(path=path)),
        "required_bytes": lambda: core.required_bytes(path="", **w.var.spec.to_core()),
        "required_bytes: bad": refused(lambda: core.required_bytes(path=5)),
        "attach": lambda: core.attach(str(w.var.path)).close(),
        "attach: absent": refused(lambda: core.attach(path)),
        "attach: no topic": refused(lambda: core.attach(__file__)),
        "survey": lambda: core.survey(str(w.var.path), 0),
        "survey: absent": refused(lambda: core.survey(path, 0)),
        "unlink": w.make,
        "unlink: absent": refused(lambda: core.unlink(path, False)),
        "unlink: in use": refused(lambda: core.unlink(str(w.var.path), False)),
        "wait_any": lambda: (w.record(), core.wait_any([w.take], 0), w.lease().ack()),
        "wait_any: nothing": lambda: core.wait_any([w.take, w.take_fixed], 0),
        "wait_any: no handle": refused(lambda: core.wait_any([NAME], 0)),
        "wait_any: no iterable": refused(lambda: core.wait_any(5, 0)),
    }
    if hasattr(core, "failpoints"):
        cases |= {"failpoints": core.failpoints, "failpoint": refused(lambda: core.failpoint(NAME, 1, 1))}
    return cases


def attributes_of_the_module() -> set[str]:
    """Everything the C module offers, as ``Type.name`` or ``function``."""
    out: set[str] = set()
    for name in dir(core):
        thing = getattr(core, name)
        if isinstance(thing, type):
            own = {n for n in vars(thing) if n not in ("__doc__", "__new__", "__reduce_ex__", "__module__")}
            out |= {
                f"{name}.{n}" for n in own if not n.startswith("__") or n in ("__reduce__", "__enter__", "__exit__")
            }
        elif callable(thing):
            out.add(name)
    return out


def growth(call: Case) -> tuple[float, list[int]]:
    """Bytes allocated per call, and how the counts of the watched objects changed over all calls."""
    for _ in range(10):
        call()
    counts = [sys.getrefcount(x) for x in WATCHED]
    tracemalloc.start()
    try:
        call()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(TIMES):
            call()
        gc.collect(0)
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    return (after - before) / TIMES, [sys.getrefcount(x) - n for x, n in zip(WATCHED, counts, strict=True)]


@pytest.fixture()
def world(ring_dir: Path) -> Iterator[World]:
    w = World(ring_dir)
    yield w
    w.close()


@pytest.mark.parametrize("part", [records, handles, topics], ids=lambda p: p.__name__)
def test_no_call_keeps_or_loses_a_reference(part: Callable[[World], dict[str, Case]], world: World) -> None:
    wrong = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of what is dropped on purpose
        for name, call in part(world).items():
            for _ in range(12):  # a cache may fill, another thread may work just then; what leaks does so every time
                grown, counts = growth(call)
                if grown <= BYTES_A_CALL and all(abs(n) <= TIMES // 4 for n in counts):
                    break
            else:
                wrong[name] = (round(grown, 1), counts)
    assert wrong == {}, "bytes per call, and counts of key, value, headers, name after all calls"


def test_a_call_that_keeps_a_reference_would_be_seen() -> None:
    kept: list[bytes] = []
    assert growth(lambda: kept.append(bytes(100)))[0] > 100
    kept.clear()
    assert abs(growth(lambda: kept.append(VALUE))[1][1]) >= TIMES


def test_every_attribute_has_its_case(world: World) -> None:
    covered = {name.split(":")[0] for part in (records, handles, topics) for name in part(world)}
    assert attributes_of_the_module() - covered == set()


if os.environ.get(
    "COMUX_ASAN"
):  # it is about the memory that is touched there, and the sanitizer allocates as it likes
    TIMES, BYTES_A_CALL = 20, 10_000
