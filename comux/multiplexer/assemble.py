"""Assembling a batch: wait for pictures under one deadline, claim, convert, commit.

**When a batch is complete.** Every RUNNING source has a picture; or ``window`` has passed since the first one was
there; or the deadline. While the window is measured (``window=None``), a source that has missed three of its own
pictures is not waited for: the window is as long as the others' period, and each of them would lose pictures to it
until the silent one counts as STALLED. A picture that was there before the previous batch was returned counts from that
return, so that sources with a backlog still fill batches. ``min_items`` holds back the first two conditions. The call
also returns at once when a source of its table is deleted, and when nothing more can come.

**Interrupts.** Everything claimed is listed in ``_Claims`` before it leaves its store; an exception (Ctrl-C included)
gives back what is not committed yet, in order.

**Conversion.** Pictures that are not converted yet and agree in shape become rows of one block, so ``Batch.stack``
costs nothing. Larger ones are shared among a few threads; the kernel releases the GIL.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from comux.decoders.pool import ArrayPool
from comux.errors import ClosedError, EndOfStream, WaitTimeoutError
from comux.multiplexer.batch import Batch, Item, Status, Timestamps
from comux.multiplexer.pictures import Entry, Hub
from comux.multiplexer.source import Source
from comux.multiplexer.states import State

WINDOW_MOST: Final = 0.05
_PARALLEL_BYTES: Final = 1 << 20  # smaller pictures are converted sooner than handed to another thread

_EMPTY: Final = {
    State.STARTING: Status.STARTING,
    State.RUNNING: Status.NO_NEW_FRAME,
    State.STALLED: Status.STALLED,
    State.RECONNECTING: Status.RECONNECTING,
    State.RESYNCING: Status.RESYNCING,
    State.PAUSED: Status.PAUSED,
    State.ENDED: Status.ENDED,
    State.FAILED: Status.FAILED,
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a caller asked for, checked.

    Attributes:
        deadline: Monotonic seconds; ``None`` waits.
        window: Seconds; ``None``: the fastest running source's period, at most 50 ms.
        min_items: Fewest pictures.
        align: Seconds within which capture times must lie; ``None``: any.
        max_age: Seconds; older pictures are dropped, ``stale``.
        packets: Packets instead of arrays.
    """

    deadline: float | None = None
    window: float | None = None
    min_items: int = 1
    align: float | None = None
    max_age: float | None = None
    packets: bool = False

    def left(self) -> float | None:
        """Seconds until the deadline."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


@dataclass(slots=True)
class _Claim:
    """One source's place in a batch under way."""

    source: Source
    entries: list[Entry]
    array: Any = None
    trouble: str | None = None


class Assembler:
    """Makes batches out of sources.

    Args:
        hub: The manager's lock.
        pool: Memory of arrays.
    """

    def __init__(self, hub: Hub, pool: ArrayPool) -> None:
        self._hub = hub
        self._pool = pool
        self._turn: object | None = None
        self._turn_over = threading.Condition(hub.lock)
        self._workers: ThreadPoolExecutor | None = None
        self._workers_lock = threading.Lock()  # ``single`` and ``close`` come beside ``batch``
        self._returned_ns = 0
        self.closed = False
        self.stopped = False  #: nothing is delivered any more: the loop is to end

    def batch(self, table: Callable[[], Sequence[Source]], wanted: Wanted) -> Batch:
        """One item per source of the table as it is when the call's turn has come. Concurrent calls take turns.

        A call that waits returns with what it has when a source is created, replaced or removed, so that the next one
        begins with the new table.

        Raises:
            EndOfStream: every source has ended and everything was delivered.
            WaitTimeoutError: another thread's call took all of the time.
        """
        token = object()  # whose turn it is; an interrupt at any place finds it here, or not
        try:
            self._take_turn(token, wanted)
            return self._assemble(self._some(table, wanted), wanted, table)
        finally:
            if self._turn is token:
                with self._hub.lock:
                    self._returned_ns = time.monotonic_ns()
                    self._turn = None
                    self._turn_over.notify_all()  # one alone may be interrupted just then

    def _take_turn(self, token: object, wanted: Wanted) -> None:
        with self._hub.lock:
            while self._turn is not None:
                left = wanted.left()
                if left == 0:
                    raise WaitTimeoutError(
                        "another thread's get_batch has not returned within the timeout; call it again"
                    )
                self._turn_over.wait(left)
            self._turn = token

    def _some(self, table: Callable[[], Sequence[Source]], wanted: Wanted) -> Sequence[Source]:
        """The table; where it is empty, wait for a source to be created."""
        with self._hub.lock:
            while not (sources := table()) and not self.closed and not self.stopped:
                left = wanted.left()
                if left == 0:
                    break
                self._hub.arrived.wait(left)
            return sources

    def single(self, source: Source, wanted: Wanted) -> Item:
        """One source's item; does not take turns with ``batch``."""
        return self._assemble([source], wanted)[0]

    def stop(self) -> None:
        """Let every call, also one that waits, end with ``EndOfStream`` from now on."""
        with self._hub.lock:
            self.stopped = True
            self._hub.arrived.notify_all()

    def close(self) -> None:
        """Wake every waiting call; end the conversion threads."""
        with self._hub.lock:
            self.closed = True
            self._hub.arrived.notify_all()
        with self._workers_lock:
            workers, self._workers = self._workers, None
        if workers is not None:
            workers.shutdown(wait=True)

    def _assemble(
        self, sources: Sequence[Source], wanted: Wanted, table: Callable[[], Sequence[Source]] | None = None
    ) -> Batch:
        claims = [_Claim(source, []) for source in sources]
        for source in sources:
            if (acks := source.acks) is not None:
                acks.superseded()
        eager = 1 if wanted.align is not None else 0
        try:
            with self._hub.lock:
                self._hub.eager += eager
                try:
                    ready = self._wait(sources, wanted, table)
                    for claim in claims:
                        if claim.source in ready:
                            claim.source.store.claim(claim.entries)
                finally:
                    self._hub.eager -= eager
            block = None if wanted.packets else self._convert(claims)
            return self._commit(claims, block, wanted)
        except BaseException:
            with self._hub.lock:
                for claim in claims:
                    while claim.entries:
                        claim.source.store.give_back(claim.entries[-1])
                        claim.entries.pop()
            raise
        finally:
            for source in sources:
                source.acknowledge()

    # -- waiting ---------------------------------------------------------------------------------------------------

    def _wait(
        self, sources: Sequence[Source], wanted: Wanted, table: Callable[[], Sequence[Source]] | None
    ) -> set[Source]:
        """Wait (``hub.lock`` held) until the batch is complete; returns the sources whose picture is to be claimed."""
        first_ns: int | None = None  # by our own watch: in ``freshest`` the first picture may be pushed out meanwhile
        while True:
            ready = self._ready(sources, wanted)
            first_ns = self._first_ns(ready, first_ns)
            if self.closed:
                raise ClosedError("this Comux was closed while get_batch waited")
            if self.stopped:
                raise EndOfStream("this Comux was told to stop; close it")
            if any(source.removed or source.replaced for source in sources):
                return ready
            if table is not None and len(table()) > len(sources):
                return ready
            live = [source for source in sources if not source.finished]
            if sources and not live and not any(len(source.store) for source in sources):
                raise EndOfStream(f"all {len(sources)} sources have ended and every picture was delivered")
            now = time.monotonic()
            until = wanted.deadline
            if ready and len(ready) >= min(wanted.min_items, len(ready.union(live))):
                complete = all(source in ready or not self._expected(source, now, wanted) for source in live)
                window_end = self._window_end(ready, first_ns, wanted)
                if complete or now >= window_end:
                    return ready
                until = window_end if until is None else min(until, window_end)
            if wanted.deadline is not None and now >= wanted.deadline:
                return ready
            self._hub.arrived.wait(None if until is None else max(0.0, until - now))

    @staticmethod
    def _expected(source: Source, now: float, wanted: Wanted) -> bool:
        """Whether a batch waits (within its window) for this source's next picture."""
        if source.state is not State.RUNNING:
            return False
        return wanted.window is not None or not source.pictures.overdue(int(now * 1e9))

    @staticmethod
    def _first_ns(ready: set[Source], before: int | None) -> int | None:
        """When the first picture of this call was there; ``None``: there is none (any more)."""
        oldest = [entry.stored_ns for source in ready if (entry := source.store.oldest()) is not None]
        if not oldest:
            return None
        return min(oldest) if before is None else min(before, *oldest)

    def _window_end(self, ready: set[Source], first_ns: int | None, wanted: Wanted) -> float:
        window = wanted.window
        if window is None:
            periods = [p for source in ready if (p := source.pictures.period_ns) is not None]
            window = min([WINDOW_MOST, *(period / 1e9 for period in periods)])
        return max(first_ns or 0, self._returned_ns) / 1e9 + window

    @staticmethod
    def _ready(sources: Sequence[Source], wanted: Wanted) -> set[Source]:
        """Drop what may not be delivered any more; the sources that have a picture for this batch."""
        if wanted.max_age is not None:
            limit_ns = time.time_ns() - int(wanted.max_age * 1e9)
            for source in sources:
                source.store.drop_older_than(limit_ns, "stale", source.intake.captured_ns)
        if wanted.align is not None:
            picks = [
                source.intake.captured_ns(entry) for source in sources if (entry := source.store.peek()) is not None
            ]
            if picks:
                limit_ns = max(picks) - int(wanted.align * 1e9)
                for source in sources:
                    source.store.drop_older_than(limit_ns, "align", source.intake.captured_ns)
        return {source for source in sources if len(source.store)}

    # -- converting ------------------------------------------------------------------------------------------------

    def _convert(self, claims: Sequence[_Claim]) -> npt.NDArray[Any] | None:
        """Fill in the arrays; returns the block they are rows of, where there is one."""
        rows = [(row, claim, claim.entries[0]) for row, claim in enumerate(claims) if claim.entries]
        for _, claim, entry in rows:
            claim.array = entry.array
        todo: list[tuple[int, _Claim, Entry]] = []
        specs: list[tuple[tuple[int, ...], np.dtype[Any]]] = []
        for row, claim, entry in rows:
            if entry.picture is None:
                continue
            try:
                specs.append(entry.picture.array_spec())
                todo.append((row, claim, entry))
            except Exception as exc:  # noqa: BLE001 - as in ``_convert_one``
                claim.trouble = f"{type(exc).__name__}: {exc}"
        if not todo:
            return None
        block = None
        if len(todo) == len(rows) and all(spec == specs[0] for spec in specs):
            shape, dtype = specs[0]
            block = self._pool.take((len(claims), *shape), dtype)
        jobs: list[tuple[_Claim, Entry, npt.NDArray[Any]]] = []
        for (row, claim, entry), (shape, dtype) in zip(todo, specs, strict=True):
            jobs.append((claim, entry, block[row] if block is not None else self._pool.take(shape, dtype)))
        self._run(jobs)
        return block

    def _run(self, jobs: Sequence[tuple[_Claim, Entry, npt.NDArray[Any]]]) -> None:
        futures: list[Future[None]] = []
        if len(jobs) > 1 and jobs[0][2].nbytes >= _PARALLEL_BYTES:
            futures = self._submit(jobs[1:])
        try:
            for job in jobs[: len(jobs) - len(futures)]:
                _convert_one(*job)
        finally:
            for future in futures:
                future.result()

    def _submit(self, jobs: Sequence[tuple[_Claim, Entry, npt.NDArray[Any]]]) -> list[Future[None]]:
        """Hand jobs to the threads, which the first call starts; none where ``close`` has ended them."""
        with self._workers_lock:
            if self.closed:
                return []
            if self._workers is None:
                count = min(4, os.cpu_count() or 1)
                self._workers = ThreadPoolExecutor(count, thread_name_prefix="comux-convert")
            return [self._workers.submit(_convert_one, *job) for job in jobs]

    # -- handing over ----------------------------------------------------------------------------------------------

    def _commit(self, claims: Sequence[_Claim], block: npt.NDArray[Any] | None, wanted: Wanted) -> Batch:
        now_ns, mono_ns = time.time_ns(), time.monotonic_ns()
        items: list[Item] = []
        with self._hub.lock:
            for claim in claims:
                if claim.entries and claim.trouble is None:
                    entry = claim.entries[0]
                    array = bytes(entry.record.value) if wanted.packets else claim.array
                    item = _item(claim.source, entry, array, now_ns, mono_ns)
                    claim.source.retained.add(entry.record)
                    claim.source.last_age = item.age
                    claim.source.deliveries.tick(mono_ns)
                    claim.entries.clear()
                    claim.source.store.commit(entry)
                else:
                    item = _empty(claim)
                    if claim.entries:
                        claim.source.store.spoil(claim.entries[0], "decode_error")
                        claim.entries.clear()
                items.append(item)
        return Batch(items, block)


def _convert_one(claim: _Claim, entry: Entry, out: npt.NDArray[Any]) -> None:
    assert entry.picture is not None
    try:
        claim.array = entry.picture.to_array(out=out)
    except Exception as exc:  # noqa: BLE001 - one source's picture must not cost the others theirs
        claim.trouble = f"{type(exc).__name__}: {exc}"


def _item(source: Source, entry: Entry, array: Any, now_ns: int, mono_ns: int) -> Item:
    record = entry.record
    behind_ns, estimated = source.intake.clock.behind((entry.packet or record).offset)
    stamps = Timestamps(
        record.timestamp_ns / 1e9,
        record.append_ns / 1e9 if record.append_ns else None,
        (now_ns - mono_ns + entry.decoded_ns) / 1e9,
        now_ns / 1e9,
    )
    return Item(
        source.cam_id,
        Status.DEGRADED if entry.degraded else Status.FRESH,
        "decoded across damage" if entry.degraded else "",
        array=array,
        record=record,
        identity=entry.identity,
        degraded=entry.degraded,
        timestamps=stamps,
        clock_behind=behind_ns / 1e9,
        age_estimated=estimated,
    )


def _empty(claim: _Claim) -> Item:
    source = claim.source
    if claim.trouble is not None:
        return Item(source.cam_id, Status.DECODE_ERROR, claim.trouble)
    if source.removed:
        return Item(source.cam_id, Status.REMOVED, "the source was deleted")
    if source.replaced:
        return Item(source.cam_id, Status.STARTING, "its settings were updated")
    status = _EMPTY[source.state]
    running = (Status.STARTING, Status.RESYNCING, Status.NO_NEW_FRAME)
    trouble = source.trouble
    if status in running and trouble.cause in ("decode_error", "too_large"):
        detail = f"{trouble.cause}: {trouble.detail}" if trouble.detail else trouble.cause
        return Item(source.cam_id, Status.DECODE_ERROR, f"the decoder refused its packets ({detail})")
    return Item(source.cam_id, status, source.reason if status is not Status.NO_NEW_FRAME else "no new picture in time")
