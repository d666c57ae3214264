"""The crash table as tests: a process dies at every named place of the ring's code, the survivors must not notice.

Each row of ``TABLE`` is a row of the design's crash tables: what dies where, and what must be true afterwards. Every
row runs for fixed and variable records, one and many writers, at the first and at a later pass of the place, where the
place exists there. The victim is a process of its own (``comux.testing.ring_faults``); what it was promised stands in
its journal. After each death the same questions are asked of the survivors (``Stage.aftermath``):

* every invariant holds (``check()`` is empty), and no claim is left open;
* every put that returned is delivered exactly once, every acknowledgement that returned is final, everything else that
  was handed out comes again, marked; nothing is torn;
* the lossy reader's received and lost records are exactly those that exist;
* the next producer, the next member and the end of the stream work.
"""

from __future__ import annotations

import os
import signal
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from comux import ring
from comux.errors import EndOfStream, LayoutMismatchError, WaitTimeoutError
from comux.testing.ring_faults import Death, Job, VictimServer, payload, read_journal, read_payload

SIZE = 64
MANY, ONE = ("many",), ("one",)
BOTH = (*MANY, *ONE)
KINDS = ("variable", "fixed")
POOL = ("pool",)
ALL = (*KINDS, *POOL)
SHAPES: dict[str, dict[str, Any]] = {
    "variable": {"data_bytes": 65536},
    "fixed": {"dtype": "u1", "shape": (SIZE,)},
    "pool": {"dtype": "u1", "shape": (SIZE,), "layout": "pool", "pins": 2},
}


@dataclass(frozen=True)
class Row:
    """One row: ``scenario`` dies at ``failpoint`` after the survivors did ``before``.

    ``put``: whether the record whose put did not return exists afterwards: never, always, either.
    ``ack``: whether the record whose ack did not return is final (done), comes again, or either.
    """

    name: str
    failpoint: str | None
    scenario: str
    before: str = "gated"
    writers: tuple[str, ...] = BOTH
    kinds: tuple[str, ...] = KINDS
    nths: tuple[int, ...] = (1, 2)
    policy: str = "wait"
    put: str = "either"
    ack: str = "either"
    options: tuple[tuple[str, Any], ...] = ()
    end: str = "explicit"
    ended: bool | None = None
    grace: float = 10.0


LONG = (("count", 100_000_000),)
TABLE = (
    Row("creating: before link", "create.before_link", "create", nths=(1,), options=(("fresh", "fresh"),)),
    Row("attaching: byte locked", "attach.byte_locked", "attach", "records", nths=(1,)),
    Row("attaching: generation bumped", "attach.generation", "attach", "records", nths=(1,)),
    Row("attaching: has a slot, still holds newcomers' byte", "attach.decided", "attach", "records", nths=(1,)),
    Row("attaching: lock held", "attach.lock_held", "attach", "records", nths=(1,)),
    Row("attaching: recovered, nobody woken", "recover.before_wake", "attach", "records", nths=(1,)),
    Row("opening a port: before state", "port.before_state", "open_producer", nths=(1,), put="never"),
    Row("opening a port: after state", "port.after_state", "open_producer", nths=(1,), put="never"),
    Row(
        "opening a port: member before state",
        "port.before_state",
        "open_member",
        "records",
        options=(("groups", "gg"),),
    ),
    Row(
        "opening a port: member after state", "port.after_state", "open_member", "records", options=(("groups", "gg"),)
    ),
    Row("declaring a group: before state", "group.before_state", "open_member", "records", options=(("groups", "hi"),)),
    Row("declaring a group: after state", "group.after_state", "open_member", "records", options=(("groups", "hi"),)),
    Row("opening the next epoch: before", "epoch.before", "open_producer", "ended", nths=(1,), put="never", ended=True),
    Row("opening the next epoch: after", "epoch.after", "open_producer", "ended", nths=(1,), put="never", ended=False),
    Row("lock: between CAS and first store", "lock.held", "produce", writers=MANY),
    Row("lock: between CAS and first store", "lock.held", "produce", writers=ONE, nths=(1,), put="never"),
    Row("lock: after the last store", "lock.before_unlock", "produce", writers=MANY),
    Row("lock: after the last store", "lock.before_unlock", "produce", writers=ONE, nths=(1,), put="never"),
    Row("lock: after exchange, before the wake", "lock.after_unlock", "produce", writers=MANY),
    Row("lock: after exchange, before the wake", "lock.after_unlock", "produce", writers=ONE, nths=(1,), put="never"),
    Row("lock: while asleep", "lock.asleep", "attach", "lock stopped", nths=(1,)),
    Row("lock: stolen from the dead", "lock.stolen", "attach", "lock left", nths=(1,)),
    Row("claim: after tail", "claim.after_tail", "produce", "free", kinds=ALL, put="never", options=(("count", 24),)),
    Row("claim: before head", "claim.before_head", "produce", writers=MANY, kinds=ALL, put="never"),
    Row("claim: after head, before data_head", "claim.after_head", "produce", writers=MANY, kinds=ALL, put="never"),
    Row("filling the payload", "put.filling", "produce", kinds=ALL, put="never"),
    Row(
        "pool: slots given back", "pool.reclaimed", "produce", "free", kinds=POOL, put="never", options=(("count", 24),)
    ),
    Row("pool: lists half computed", "pool.rebuilding", "attach", "records", MANY, POOL, (1,)),
    Row("pool: lists half computed", "pool.rebuilding", "open_producer", "records", ONE, POOL, (1,), put="never"),
    Row("pin: taken, not yet known to hold", "pin.taken", "look", "records", kinds=POOL),
    Row("pins held", None, "look", "records", kinds=POOL, nths=(1,)),
    Row("filling a run", "put_many.filling", "produce_many", nths=(1,), put="never"),
    Row("filling a claim: just opened", "claim.open", "abort", put="either"),
    Row("filling a claim: half written", None, "fill", nths=(1,), put="never"),
    Row("filling two payloads", None, "fill", nths=(1,), writers=MANY, put="never", options=(("claims", 2),)),
    Row("commit: trim half-done", "commit.trim", "trim", writers=MANY, kinds=("variable",), put="never"),
    Row("commit: before word", "commit.before_word", "produce", writers=MANY, put="never"),
    Row("commit: after word, before published", "commit.after_word", "produce", writers=MANY, put="always"),
    Row("commit: some words of a run", "commit.after_word", "produce_many", writers=MANY, nths=(1, 2, 3)),
    Row("commit: after word, before published", "publish.before", "produce", writers=MANY, put="always"),
    Row("commit: after published", "publish.between", "produce", writers=MANY, put="always"),
    Row("commit: after unlock, before the wakes", "commit.after_unlock", "produce", writers=MANY, put="always"),
    Row("one writer: payload, descriptor, word", "publish.before", "produce", writers=ONE, put="never"),
    Row("one writer: published", "publish.after", "produce", writers=ONE, put="always"),
    Row("one writer: a run published", "publish.after", "produce_many", writers=ONE, nths=(1,), put="always"),
    Row("lock for a wake-up: held", "wake.group", "produce", "member asleep", put="always", options=LONG),
    Row("wake-up of lossy readers", "wake.readers", "produce", "reader asleep", put="always", options=LONG),
    Row("abort: after word", "abort.after_word", "abort", writers=MANY),
    Row(
        "drop oldest: after word",
        "drop.after_word",
        "produce",
        policy="drop_oldest",
        put="never",
        options=(("count", 24),),
    ),
    Row(
        "drop oldest: after next",
        "drop.after_next",
        "produce",
        policy="drop_oldest",
        put="never",
        options=(("count", 24),),
    ),
    Row(
        "drop oldest: prefetched word taken away",
        "drop.after_word",
        "produce",
        "prefetched",
        policy="drop_oldest",
        put="never",
        options=(("count", 24),),
    ),
    Row(
        "suspended group left behind: after word",
        "drop.after_word",
        "produce",
        "unattended",
        put="never",
        options=(("count", 24),),
        grace=0.0,
    ),
    Row(
        "suspended group left behind: after next",
        "drop.after_next",
        "produce",
        "unattended",
        put="never",
        options=(("count", 24),),
        grace=0.0,
    ),
    Row("waiting: producer registered", "wait.space_registered", "produce", "full", put="never"),
    Row("end: before the flag", "end.before_flag", "end", nths=(1,), ended=False),
    Row("end: after the flag", "end.after_flag", "end", nths=(1,), ended=True),
    Row("a crash is no end", "close.before_end", "close_producer", nths=(1,), end="auto", ended=False),
    Row(
        "end by the last close: before the flag",
        "end.before_flag",
        "close_producer",
        nths=(1,),
        end="auto",
        ended=False,
    ),
    Row("end by the last close: after the flag", "end.after_flag", "close_producer", nths=(1,), end="auto", ended=True),
    Row("detach: producer, port still in use", "port.before_free", "close_producer", nths=(1,)),
    Row("detach: producer, port free", "port.after_free", "close_producer", nths=(1,)),
    Row("take: words marked, before next", "take.words", "consume", "records", ack="again"),
    Row("take: after next", "take.next", "consume", "records", ack="again"),
    Row("take: a tombstone passed", "take.tombstone", "consume", "tombstones", writers=MANY),
    Row("take: a returned record", "take.red", "take_returned", "returned"),
    Row("start: one record", "start.after_word", "consume", "records"),
    Row("steal: CAS done", "steal.after_cas", "consume", "prefetched"),
    Row("processing", None, "hold", "records", nths=(1,)),
    Row("ack: before ACKED", "ack.before_word", "consume", "records", ack="again"),
    Row("ack: after ACKED, before done", "ack.after_word", "consume", "records", ack="done"),
    Row(
        "ack: before the wake call",
        "ack.before_wake",
        "consume",
        "producer asleep",
        ack="done",
        options=(("timeout", 5.0),),
    ),
    Row("wake-up of producers", "wake.space", "consume", "producer asleep", nths=(1,), options=(("timeout", 5.0),)),
    Row("nack: after state, before nred", "nack.after_word", "give_back", "records"),
    Row("waiting: nothing found, not yet registered", "take.nothing", "wait_member", nths=(1,)),
    Row("waiting: woken, dies before taking", "lock.held", "wait_member", nths=(2,)),
    Row("waiting: member registered", "wait.member_registered", "wait_member", nths=(1, 2)),
    Row("detach: member, words released", "close.member_words", "close_member", "records", nths=(1,)),
    Row("detach: member, words half released", "reap.word", "close_member", "records"),
    Row("detach: member, port still in use", "port.before_free", "close_member", "records", nths=(1,)),
    Row("detach: member, port free", "port.after_free", "close_member", "records", nths=(1,)),
    Row("detach: everything given back", "leave.released", "leave", "records", nths=(1,)),
    Row("reap: a claim", "reap.claim", "attach", "claims left", writers=MANY),
    Row("reap: a record", "reap.word", "attach", "records left"),
    Row("reap: port still in use", "port.before_free", "attach", "records left", nths=(1,)),
    Row("reap: after a port", "recover.after_port", "attach", "records left", nths=(1,)),
    Row("reap: before the wakes", "recover.before_wake", "attach", "records left", nths=(1,)),
)
CORE = {
    "claim: after head, before data_head",
    "one writer: published",
    "ack: before ACKED",
    "start: one record",
    "reap: a record",
}


def cases() -> Iterator[Any]:
    for row in TABLE:
        for writers in row.writers:
            for kind in row.kinds:
                for nth in row.nths:
                    place = row.failpoint or "in the middle"
                    name = f"{row.name} [{place} #{nth} {kind} {writers}]"
                    yield pytest.param(row, writers, kind, nth, id=name, marks=[pytest.mark.core] * (row.name in CORE))


class Stage:
    """The survivors: this process, with an idle member ``m`` of group g and a lossy reader, both from the beginning."""

    def __init__(self, row: Row, writers: str, kind: str, place: Path, server: VictimServer, wait_until: Any) -> None:
        self.row, self.place, self.server, self.wait_until = row, place, server, wait_until
        spec = ring.RingSpec(
            "t",
            slots=8,
            policy=row.policy,
            writers=writers,
            end=row.end,
            group_grace=row.grace,
            max_procs=8,
            max_ports=16,
            **SHAPES[kind],
        )
        self.ring = ring.create(spec, directory=place)
        self.reader = self.ring.reader(start="beginning", on_end="wait")
        self.member: Any = None
        self.known: dict[int, int] = {}  # offset -> sequence number, of puts that returned
        self.seen: dict[int, tuple[int, bool, int]] = {}  # offset -> what the survivors' member was handed
        self.received: dict[int, int] = {}
        self.returned_here: set[int] = set()
        self.helpers: list[int] = []
        self.stop = threading.Event()
        self.thread: threading.Thread | None = None
        self.failures: list[BaseException] = []
        self.held: list[Any] = []
        self.seq = 0

    def kill_helpers(self) -> None:
        """First of all: one of them may stand still inside of the lock."""
        while self.helpers:
            pid = self.helpers.pop()
            os.kill(pid, signal.SIGKILL)
            self.server.wait(pid)

    def close(self) -> None:
        self.kill_helpers()
        self.stop.set()
        if self.member is not None:
            self.member.wakeup()
        self.reader.wakeup()
        if self.thread is not None:
            self.thread.join(20)
        for lease in self.held:
            lease.release()
        if self.member is not None:
            self.member.close()
        self.reader.close()
        self.ring.close()

    # -- before the death ---------------------------------------------------------------------------------------------

    def put(self, producer: Any, n: int = 1, timeout: float = 5.0) -> None:
        for _ in range(n):
            offset = producer.put(payload(self.seq, SIZE), timeout=timeout)
            self.known[offset] = self.seq
            self.seq += 1

    def records(self, n: int = 6) -> None:
        with self.ring.producer("survivor") as producer:
            self.put(producer, n)

    def job(self, scenario: str, name: str, failpoint: str | None = None, nth: int = 1, **more: Any) -> Job:
        return Job(scenario, "t", str(self.place), str(self.place / name), failpoint, nth, **more)

    def helper_dies(self, scenario: str, failpoint: str | None = None, **options: Any) -> None:
        death = self.server.run(self.job(scenario, "helper.journal", failpoint, options=options))
        assert death.signal == signal.SIGKILL, (death, read_journal(self.place / "helper.journal"))

    def prepare(self) -> None:
        if self.row.before not in ("free", "reader asleep", "unattended"):
            self.member = self.ring.member("g", start="beginning", on_end="wait")
        BEFORE[self.row.before](self)

    def run_in_thread(self, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - looked at by aftermath
                self.failures.append(error)

        self.thread = threading.Thread(target=guarded, name="comux-test-sleeper")
        self.thread.start()

    def consume_until_told(self) -> None:
        while not self.stop.is_set():
            self.accept(self.member.take(0.5))

    def poll_until_told(self) -> None:
        while not self.stop.is_set():
            record = self.reader.copy(0.5)
            if record is not None:
                self.received[record.offset] = read_payload(bytes(record.value))

    def produce_until_told(self) -> None:
        with self.ring.producer("survivor") as producer:
            while not self.stop.is_set():
                try:
                    self.put(producer, timeout=0.2)
                except WaitTimeoutError:
                    continue

    # -- after it -----------------------------------------------------------------------------------------------------

    def accept(self, lease: Any) -> bool:
        if lease is None:
            return False
        offset = lease.offset
        assert offset not in self.seen or offset in self.returned_here, f"offset {offset} was delivered twice"
        self.seen[offset] = (read_payload(lease.bytes()), lease.redelivered, lease.delivery_count)
        lease.ack()
        return True

    def drain(self) -> None:
        if self.member is None:
            return
        while self.accept(self.member.take(0)):
            pass

    def read_all(self) -> None:
        while (record := self.reader.copy(0)) is not None:
            assert not self.received or record.offset > max(self.received)
            self.received[record.offset] = read_payload(bytes(record.value))

    def aftermath(self, journal: list[tuple[str, list[str]]]) -> None:
        self.settle()
        put = {int(w[1]): int(w[0]) for what, w in journal if what == "put"}
        assert not set(put) & set(self.known)
        self.known.update(put)
        tried = {int(w[0]) for what, w in journal if what == "try"} - set(put.values())
        self.check_the_end()
        self.drain()
        self.go_on()
        self.check_puts(tried)
        if self.member is not None:
            self.check_deliveries(journal)
        self.check_lossy()
        assert self.ring.check() == []

    def settle(self) -> None:
        self.kill_helpers()
        self.stop.set()
        if self.member is not None:
            self.member.wakeup()
        self.reader.wakeup()
        if self.thread is not None:
            self.thread.join(20)
            assert not self.thread.is_alive(), "a survivor hangs"
        assert not self.failures, self.failures
        for lease in self.held:
            offset = lease.offset
            self.seen[offset] = (read_payload(lease.bytes()), lease.redelivered, lease.delivery_count)
            lease.ack()
        self.held.clear()
        self.ring.reap()
        assert self.ring.check() == []
        assert not self.ring.stats().open_claims
        for group in self.ring.groups():
            if group.name != "g":  # declared by the victim: it gates from then on
                assert group.members == 0
                self.ring.remove_group(group.name)

    def check_the_end(self) -> None:
        if self.row.ended is not None:
            assert self.ring.ended is self.row.ended

    def go_on(self) -> None:
        """The next producer, the next member, the next end."""
        before = self.ring.high_water
        producer = self.ring.producer("next")
        watcher = self.ring.reader(start="end", on_end="stop")
        self.put(producer, 2)
        self.drain()
        if self.member is not None:
            with self.ring.member("g", on_end="wait") as fellow:
                self.put(producer, 3)
                while self.accept(fellow.take(0)) or self.accept(self.member.take(0)):
                    pass
        assert all(offset >= before for offset in sorted(self.known)[-2:])
        self.read_all()
        producer.end()
        producer.close()
        while (record := self.until_end(watcher)) is not None:
            assert record.offset >= before
        watcher.close()

    def until_end(self, watcher: Any) -> Any:
        try:
            record = watcher.copy(5)
            assert record is not None, "the end was not told"
            return record
        except EndOfStream:
            return None

    def check_puts(self, tried: set[int]) -> None:
        """The record whose put did not return: exists or not, as the row says; and then it is whole."""
        found = {seq for seq, _, _ in self.seen.values()} | set(self.received.values())
        if self.row.put == "always":
            assert tried <= found and tried, "a record whose commit had happened is gone"
        if self.row.put == "never":
            assert not tried & found, "a record whose commit had not happened is there"
        assert found <= set(self.known.values()) | tried
        for offset, seq in {**{o: s for o, (s, _, _) in self.seen.items()}, **self.received}.items():
            assert self.known.setdefault(offset, seq) == seq

    def check_deliveries(self, journal: list[tuple[str, list[str]]]) -> None:
        started = {int(w[0]) for what, w in journal if what == "start"}
        acked = {int(w[0]) for what, w in journal if what == "acked"}
        doubtful = {int(w[0]) for what, w in journal if what == "acking"} - acked
        attempts = sum(what == "taking" for what, _ in journal)
        assert not acked & set(self.seen), "an acknowledged record came again"
        if self.row.ack == "done":
            assert doubtful and not doubtful & set(self.seen)
        if self.row.ack == "again":
            assert doubtful <= set(self.seen)
        missing = set(self.known) - set(self.seen) - acked - doubtful
        group = next(g for g in self.ring.groups() if g.name == "g")
        if self.row.policy == "drop_oldest":  # the count may miss the record being dropped at the death, by one
            assert len(missing) - 1 <= group.lost <= len(missing) + 1
        else:
            assert not missing and group.lost == 0
        again = (started - acked - doubtful) & set(self.seen)
        assert all(self.seen[o][1] and self.seen[o][2] >= 2 for o in again), "redelivered and not marked"
        marked = {o for o, (_, redelivered, _) in self.seen.items() if redelivered} - self.returned_here
        assert len(marked - started) <= (attempts > len(started)), "marked as redelivered and never handed out"

    def check_lossy(self) -> None:
        self.read_all()
        account = self.reader.account()
        assert account.balanced and account.received == self.ring.high_water
        assert len(self.received) + self.reader.lost == len(self.known)


def _before_tombstones(stage: Stage) -> None:
    with stage.ring.producer("survivor") as producer:
        for _ in range(3):
            stage.put(producer)
            with pytest.raises(KeyError), producer.claim(SIZE):
                raise KeyError


def _before_returned(stage: Stage) -> None:
    stage.records()
    leases = [stage.member.take(0) for _ in range(3)]
    for lease in leases:
        stage.returned_here.add(lease.offset)
        lease.nack()


def _before_prefetched(stage: Stage) -> None:
    stage.records()
    stage.held.append(stage.member.take(0))
    if stage.row.policy == "drop_oldest":
        lease = stage.held.pop()
        stage.accept(lease)


def _before_unattended(stage: Stage) -> None:
    """A group that nobody attends holds the writer back until it is suspended, at once here."""
    stage.ring.member("left", start="beginning", on_end="wait").close()
    stage.records()


def _before_ended(stage: Stage) -> None:
    with stage.ring.producer("survivor") as producer:
        stage.put(producer, 2)
        producer.end()


def _before_claims_left(stage: Stage) -> None:
    stage.helper_dies("fill", claims=2, seq=500)
    stage.known.update(
        {int(w[1]): int(w[0]) for what, w in read_journal(stage.place / "helper.journal") if what == "put"}
    )


def _before_records_left(stage: Stage) -> None:
    stage.records()
    stage.helper_dies("hold")
    stage.returned_here |= {int(w[0]) for what, w in read_journal(stage.place / "helper.journal") if what == "start"}


def _before_lock_stopped(stage: Stage) -> None:
    stage.records()
    pid = stage.server.start(stage.job("produce", "helper.journal", "lock.held", action="stop", options={"seq": 500}))
    stage.helpers.append(pid)
    stat = Path(f"/proc/{pid}/stat")
    stage.wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "the lock's owner stands still")


def _before_reader_asleep(stage: Stage) -> None:
    """It has said so in ``pub_ec``: one that comes after the first record may run behind the writer for ever."""
    stage.run_in_thread(stage.poll_until_told)
    at = 4096 + 512  # the control block, its line of what a publisher looks at
    with stage.ring.path.open("rb", buffering=0) as file:
        stage.wait_until(lambda: os.pread(file.fileno(), 1, at)[0] & 1, "the reader says that it sleeps", 60.0)


BEFORE: dict[str, Callable[[Stage], None]] = {
    "gated": lambda stage: None,
    "free": lambda stage: None,
    "records": lambda stage: stage.records(),
    "full": lambda stage: stage.records(8),
    "tombstones": _before_tombstones,
    "returned": _before_returned,
    "prefetched": _before_prefetched,
    "ended": _before_ended,
    "unattended": _before_unattended,
    "claims left": _before_claims_left,
    "records left": _before_records_left,
    "lock left": lambda stage: stage.helper_dies("produce", "lock.held", seq=500),
    "lock stopped": _before_lock_stopped,
    "member asleep": lambda stage: stage.run_in_thread(stage.consume_until_told),
    "reader asleep": _before_reader_asleep,
    "producer asleep": lambda stage: stage.run_in_thread(stage.produce_until_told),
}


@pytest.mark.parametrize(("row", "writers", "kind", "nth"), list(cases()))
def test_survivors_go_on(
    row: Row, writers: str, kind: str, nth: int, ring_dir: Path, victims: VictimServer, wait_until: Any
) -> None:
    stage = Stage(row, writers, kind, ring_dir, victims, wait_until)
    try:
        stage.prepare()
        death = victims.run(stage.job(row.scenario, "journal", row.failpoint, nth, options=dict(row.options)))
        journal = read_journal(ring_dir / "journal")
        assert death == Death(death.pid, signal.SIGKILL, 0), f"never came to the place: {death}, {journal[-3:]}"
        stage.aftermath(journal)
    finally:
        stage.close()


LAST_LEAVES = {"leave.alone", "leave.unlinked"}  # no survivor there to look: test_ring_leaving.py
LETTERS = {"take.spent", "bury.copied", "bury.before_word", "bury.after_word", "bury.counted"}  # _dead_letters.py
CLAIMS = {"claim_stale.after_word", "claim_stale.before_wake"}  # test_ring_slow_members.py
PAUSES = {"pause.topic", "pause.group"}  # test_ring_pause.py
RESETS = {"reset.begun", "reset.half", "reset.done"}  # test_ring_segments.py
RUNS = {"ack.run_words"}  # test_ring_slow_members.py


@pytest.mark.core
def test_the_table_has_every_place_the_code_names(victims: VictimServer) -> None:
    assert {row.failpoint for row in TABLE} - {None} | LAST_LEAVES | LETTERS | CLAIMS | PAUSES | RESETS | RUNS == set(
        victims.failpoints()
    )


DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "ring.md"


@pytest.mark.core
def test_the_documented_table_is_this_one() -> None:
    """Each row of ``docs/explanation/ring.md`` is a test of the same name, here or where it says, and the other way."""
    section = DOCUMENT.read_text().split("## What a crash leaves")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "|" in line][2:]
    assert rows and all(len(row) == 4 and all(row) for row in rows)
    here = {row[0]: row[1] for row in rows if "::" not in row[1]}
    written: dict[str, list[str]] = {}
    for row in TABLE:
        written.setdefault(row.name, []).append(row.failpoint or "in the middle")
    assert here == {name: ", ".join(dict.fromkeys(f"`{place}`" for place in at)) for name, at in written.items()}
    for name, test, *_ in rows:
        if "::" in test:
            file, function = test.strip("`").split("::")
            assert f"\ndef {function}(" in (Path(__file__).parent / file).read_text(), f"{name}: there is no {test}"


@pytest.mark.core
def test_a_topic_of_an_earlier_boot_is_never_resumed(ring_dir: Path) -> None:
    """Shared memory does not outlast a boot, a directory on disk does: opening is refused, creating replaces it."""
    spec = ring.RingSpec("t", slots=8, data_bytes=65536)
    with ring.create(spec, directory=ring_dir) as r, r.producer() as p:
        p.put(b"old")
        path = r.path
    superblock = bytearray(path.read_bytes()[:4032])
    superblock[20:24] = bytes(4)
    superblock[32:48] = bytes(16)  # boot_id
    superblock[20:24] = zlib.crc32(superblock).to_bytes(4, "little")
    with path.open("r+b") as file:
        file.write(superblock)
    with pytest.raises(LayoutMismatchError, match="before the last boot"):
        ring.attach("t", directory=ring_dir)
    with ring.create(spec, directory=ring_dir) as fresh, fresh.producer() as p:
        assert p.put(b"new") == 0 and fresh.check() == []


def test_a_topic_whose_creator_died_does_not_exist(ring_dir: Path, victims: VictimServer) -> None:
    """The name appears complete or not at all, and nothing is left of the attempt."""
    job = Job("create", "t", str(ring_dir), str(ring_dir / "journal"), "create.before_link", options={"fresh": "fresh"})
    assert victims.run(job).signal == signal.SIGKILL
    assert ring.names(ring_dir) == []
    assert {p.name for p in ring_dir.iterdir()} == {"journal"}
    with ring.create(ring.RingSpec("fresh", slots=8, data_bytes=65536), directory=ring_dir) as fresh:
        assert fresh.check() == []
