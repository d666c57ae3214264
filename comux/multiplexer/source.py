"""One source: a thread that turns a topic's packets into pictures, its states and its books.

**Problem.** A camera stalls, vanishes, sends garbage, falls behind, comes back. Nothing of that may reach another
source or the user's loop, and every packet must end in exactly one column of the books.

**The thread.** ``_open`` (consumer, decoder) → again and again: pause? → lag rule → next packet → decoder → outcomes →
picture store. Whatever is raised ends one round of it: an engine's error becomes RECONNECTING, an unexpected exception
FAILED, both with a growing pause and another try; only wrong settings are final. The thread waits in ``poll``, in the
store (full, ``every_frame``) or in an event (paused, backing off), never in a loop.

**Books.** A packet is held at ``queue`` (read ahead), ``decoder``, ``pictures``, in this order; each step is one call
of the account. ``_in_decoder`` mirrors the middle column, so that a decoder that is given up leaves nothing behind.
Drop causes: ``lapped`` (the topic overwrote it), ``jumped``, ``lag`` (both lag rule), ``resync``, ``decode_error``,
``too_large``, ``no_picture``, ``duplicate`` (all from the decoder), ``rate``, ``superseded``, ``stale``, ``align``
(batch), ``failed`` (in a decoder that was given up), ``removed`` and ``closed`` (still waiting when the source or the
manager ended).

**Ends.** ``stop`` sets a flag, closes the store, wakes the consumer and joins. The thread that opened the consumer
closes it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from comux.account import Account
from comux.decoders.interface import ABSORBED, Decoder, DecoderOptions, Outcome, Picture
from comux.decoders.pool import ArrayPool
from comux.errors import (
    ClosedError,
    ComuxError,
    ConfigError,
    EndOfStream,
    UnknownTopicError,
    UnsupportedError,
)
from comux.multiplexer.lag import DEFAULT_RECORDS, LagLimits, LagRule, Step
from comux.multiplexer.pacing import PeriodMeter, RateLimiter
from comux.multiplexer.pictures import Entry, Hub, PictureStore, StoreMode
from comux.multiplexer.retention import Retention, record_bytes
from comux.multiplexer.shared import FrameSharer
from comux.options import CamId, SourceOptions
from comux.records import Record
from comux.telemetry import EventLog
from comux.transport import Broker, Consumer, Start, TopicInfo

_log = logging.getLogger("comux.multiplexer")

_RETRY_FIRST: Final = 0.05
_RETRY_MOST: Final = 5.0
_POLL_LEAST: Final = 0.05
_POLL_MOST: Final = 5.0
_STALL_LEAST: Final = 2.0
_READ_AHEAD: Final = 64


class State(StrEnum):
    """What a source does; each change is an event ``source.state``."""

    STARTING = "STARTING"
    RUNNING = "RUNNING"
    STALLED = "STALLED"
    RECONNECTING = "RECONNECTING"
    RESYNCING = "RESYNCING"
    PAUSED = "PAUSED"
    ENDED = "ENDED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a source is given by its manager.

    Attributes:
        hub: The manager's lock and condition.
        events: Where states and faults are told.
        pool: Memory of arrays.
        broker: Gives the engine of a source; raises ``ComuxError``.
        decoder: Makes a decoder.
        received: Called with every packet in offset order (``emit="all"``), or ``None``.
        threads: How many codec threads a finite source may have.
    """

    hub: Hub
    events: EventLog
    pool: ArrayPool
    broker: Callable[[SourceOptions], Broker]
    decoder: Callable[[DecoderOptions], Decoder]
    received: Callable[[CamId, Record], None] | None = None
    threads: Callable[[], int] = lambda: 1


def decoder_options(options: SourceOptions, *, threads: int = 1) -> DecoderOptions:
    """The decoder's part of a source's settings."""
    return DecoderOptions(
        codec=options.codec,
        pix_fmt=options.pix_fmt,
        width=options.W,
        height=options.H,
        array_format=options.array_format,
        max_pixels=options.max_pixels,
        threads=threads if options.decode_threads is None else options.decode_threads,
        on_damage=options.on_damage,
        extradata=options.extradata,
        dtype=options.numpy_dtype,
        shape=options.shape,
        framing="bytestream" if options.framing == "bytestream" else "record",
    )


def is_finite(options: SourceOptions, info: TopicInfo) -> bool:
    """Whether a source ends: its settings say so, or (where they say nothing) its topic does.

    A topic is finite where its metadata has a true ``finite`` (feeds of files set it), or where it has ended already
    and is not read from its end.
    """
    if "on_end" in options.model_fields_set:
        return options.on_end == "stop"
    return bool(info.spec.metadata.get("finite")) or (info.ended and options.start not in ("end", "keyframe"))


def open_consumer(options: SourceOptions, broker: Broker, start: Start, *, finite: bool) -> Consumer:
    """Open the consumer of a source.

    Raises:
        ComuxError: what the engine says.
    """
    return broker.consumer(
        options.consume_topic or "",
        group=options.group,
        start=start,
        on_end="stop" if finite else "wait",
        durable=options.durable,
        name=str(options.cam_id),
    )


class Source:
    """One feed's thread, states, pictures and retained packets.

    Args:
        options: Complete settings: ``consume_topic`` and ``address`` are set.
        around: What the manager provides.
        sharer: Publishes decoded frames, or ``None``.
        consumer: An open consumer to begin with (closed by the source), or ``None``.
        account: Books to go on with, where the source replaces an earlier one.
        position: Offset to go on at, likewise.

    ``options``, ``account``, ``store``, ``retained`` and the figures may be read from any thread.
    """

    def __init__(
        self,
        options: SourceOptions,
        around: Surroundings,
        *,
        sharer: FrameSharer | None = None,
        consumer: Consumer | None = None,
        account: Account | None = None,
        position: int | None = None,
    ) -> None:
        assert options.consume_topic is not None and options.address is not None
        self.options = options
        self.cam_id: CamId = options.cam_id
        self.topic: str = options.consume_topic
        self.account = account if account is not None else Account()
        self.finite = options.on_end == "stop"
        self.store = PictureStore(around.hub, self.account, self.own_mode, max_bytes=options.store_bytes)
        self.retained = Retention(options.cam_id, maxlen=options.maxlen, max_bytes=options.retain_bytes)
        self.state = State.STARTING
        self.reason = "not started"
        self.since_ns = time.monotonic_ns()
        self.finished = False  #: nothing more will come, whatever happens
        self.removed = False
        self.jumps = 0
        self.restarts = 0
        self.last_trouble: str | None = None  #: newest drop cause since the last picture
        self.last_age: float | None = None
        self.size: tuple[int, int] | None = None
        self.arrivals = PeriodMeter()
        self.pictures = PeriodMeter()
        self.deliveries = PeriodMeter(64)
        self.consumer: Consumer | None = None
        self.thread: threading.Thread | None = None
        self._around = around
        self._hub = around.hub
        self._sharer = sharer
        self._adopted = consumer
        self._decoder: Decoder | None = None
        self._converting = True
        self._in_decoder = 0
        self._queue: deque[Record] = deque()
        self._start_ahead: int | None = None
        self._expected_skip = 0
        self._position = position
        self._first_try = True
        self._made_anew = False
        self._progress = False
        self._epoch_over = False
        self._last_record_ns = time.monotonic_ns()
        self._lag_seen = (0, 0.0, time.monotonic_ns())
        self._limiter = None if options.rate is None else RateLimiter(options.rate)
        self._rule = LagRule(self._limits())
        self._stopping = False
        self._cause = "removed"
        self._pause = options.paused
        self._wake = threading.Event()

    # -- what the manager asks -------------------------------------------------------------------------------------

    @property
    def own_mode(self) -> StoreMode:
        """How this source keeps pictures where the caller of ``get_batch`` does not say."""
        return self.auto_mode if self.options.mode == "auto" else self.options.mode

    @property
    def auto_mode(self) -> StoreMode:
        """``every_frame`` for finite sources, ``freshest`` for live ones."""
        return "every_frame" if self.finite else "freshest"

    def _limits(self) -> LagLimits:
        records = self.options.max_offset_diff
        if records is None and self.own_mode == "freshest":
            records = DEFAULT_RECORDS
        return LagLimits(records, self.options.max_age)

    def start(self) -> None:
        """Begin in a thread of its own. Idempotent."""
        if self.thread is None:
            # Daemon: a program that forgets close() still ends; the manager's exit hook stops and joins it first.
            self.thread = threading.Thread(target=self._run, name=f"comux-source-{self.cam_id}", daemon=True)
            self._last_record_ns = time.monotonic_ns()
            self.thread.start()

    def pause(self) -> None:
        """Stop fetching; pictures that wait stay. Returns at once."""
        self._pause = True
        self._set_state(State.PAUSED, "paused")
        self._nudge()

    def resume(self) -> None:
        """Go on; the lag rule decides from where."""
        with self._hub.lock:
            if not self._pause:
                return
            self._pause = False
        self._set_state(State.RUNNING if self.pictures.period_ns else State.STARTING, "resumed")
        self._wake.set()

    def set_rate(self, rate: float | None) -> None:
        """Deliver at most ``rate`` pictures per second from now on."""
        self.options = self.options.changed(rate=rate)
        self._limiter = None if rate is None else RateLimiter(rate)

    def stop(self, cause: str) -> None:
        """Tell the thread to end; what still waits is dropped with ``cause``. Does not wait."""
        self._cause = cause
        self._stopping = True
        with self._hub.lock:
            self.store.close(cause)
            self.finished = True
            self.removed = self.removed or cause == "removed"
            self._hub.arrived.notify_all()
        self._nudge()
        if self.thread is None:
            self._finish()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the thread to end; ``False`` where it has not in time."""
        thread = self.thread
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(timeout)
        return not thread.is_alive()

    def lag(self) -> tuple[int, float, float]:
        """Records behind, seconds behind, and the age of this figure in seconds."""
        consumer = self.consumer
        if consumer is not None:
            with contextlib.suppress(ComuxError):
                self._lag_seen = (consumer.lag() + len(self._queue), consumer.lag_seconds(), time.monotonic_ns())
        records, seconds, seen_ns = self._lag_seen
        return records, seconds, (time.monotonic_ns() - seen_ns) / 1e9

    @property
    def position(self) -> int | None:
        """Offset after the newest packet that was read; ``None`` before the first."""
        return self._position

    @property
    def damage(self) -> dict[str, int]:
        """How often the decoder saw doubt, by reason."""
        decoder = self._decoder
        return {} if decoder is None else dict(decoder.damage)

    def _nudge(self) -> None:
        self._wake.set()
        consumer = self.consumer
        if consumer is not None:
            with contextlib.suppress(ComuxError):
                consumer.wakeup()

    # -- states ----------------------------------------------------------------------------------------------------

    def _set_state(self, state: State, reason: str, *, level: int = logging.INFO) -> None:
        with self._hub.lock:
            old = self.state
            if self._pause and state not in (State.PAUSED, State.ENDED, State.FAILED):
                return
            if (old, self.reason) == (state, reason):
                return
            self.state, self.reason, self.since_ns = state, reason, time.monotonic_ns()
            self._hub.arrived.notify_all()
        if old is not state:
            self._around.events.emit(
                "source.state", f"{old} -> {state}: {reason}", source=str(self.cam_id), level=level, old=old, new=state
            )

    # -- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        pause = _RETRY_FIRST
        try:
            while not self._stopping:
                self._progress = False
                if self._round():
                    return
                self.restarts += 1
                pause = _RETRY_FIRST if self._progress else min(2 * pause, _RETRY_MOST)
                self._wake.clear()
                if not self._stopping:
                    self._wake.wait(pause)
        finally:
            self._finish()

    def _round(self) -> bool:
        """Open and read until something happens; ``True`` where that is final."""
        try:
            self._open()
            self._read()
            return True
        except (ConfigError, UnsupportedError) as exc:
            self._set_state(State.FAILED, str(exc), level=logging.ERROR)
            self.finished = True
            return True
        except ComuxError as exc:
            if self._stopping:
                return True
            if exc.retriable or isinstance(exc, ClosedError):
                self._set_state(State.RECONNECTING, str(exc), level=logging.WARNING)
            else:
                self._set_state(State.FAILED, str(exc), level=logging.ERROR)
            self._made_anew = self._made_anew or isinstance(exc, UnknownTopicError)
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is this source's own
            _log.exception("source %r failed and will be tried again", self.cam_id)
            self._set_state(State.FAILED, f"{type(exc).__name__}: {exc}", level=logging.ERROR)
            self._give_up_decoder("failed")
        self._close_consumer()
        return self._stopping

    def _open(self) -> None:
        options = self.options
        consumer, self._adopted = self._adopted, None
        broker = self._around.broker(options)
        info = broker.topic(self.topic)
        if self._first_try:
            self.finite = is_finite(options, info)
            with self._hub.lock:
                self.store.set_mode(self.own_mode)
            self._rule.limits = self._limits()
        if consumer is None:
            consumer = open_consumer(options, broker, self._where_to_start(), finite=self.finite)
        self.consumer = consumer
        self._first_try = self._made_anew = False
        if self._decoder is None:
            threads = self._around.threads() if self.finite else 1
            self._decoder = self._around.decoder(decoder_options(options, threads=threads))
            self._converting = True

    def _where_to_start(self) -> Start:
        """A topic that was not there when the source started, or was made anew, is read from its beginning."""
        if self._made_anew:
            if self._position is not None:
                self._settle(self._decoder.reset("resync") if self._decoder else [])
                self._drop_queue("resync")
            self._position = None
            self._rule.forget()
            return "beginning"
        if self._position is not None:
            return self._position
        return self.options.start

    def _read(self) -> None:
        while not self._stopping:
            if self._pause:
                self._wait_while_paused()
                continue
            if self._rule.limits.active or self._rule.catching_up:
                self._apply_lag_rule()
            record = self._next()
            if record is not None:
                self._feed(record)
            elif self.finished:
                return

    def _wait_while_paused(self) -> None:
        self._set_state(State.PAUSED, "paused")
        self._wake.clear()
        if self._pause and not self._stopping:
            self._wake.wait()
        self._last_record_ns = time.monotonic_ns()

    def _next(self) -> Record | None:
        if self._queue:
            return self._queue.popleft()
        consumer = self.consumer
        assert consumer is not None
        idle = (time.monotonic_ns() - self._last_record_ns) / 1e9
        try:
            records = consumer.poll(self._poll_timeout(idle))
        except EndOfStream:
            self._end(final=True)
            return None
        if records:
            self._admit(records)
            self._queue.extend(records[1:])
            return records[0]
        self._idle(consumer)
        return None

    def _poll_timeout(self, idle: float) -> float:
        """Wait as long again as nothing came, so that an idle source costs nothing, but see a stall in time."""
        timeout = min(max(idle, _POLL_LEAST), _POLL_MOST)
        if self.state in (State.STALLED, State.ENDED):
            return timeout
        return max(min(timeout, self._stall_after() - idle), 0.01)

    def _stall_after(self) -> float:
        if self.options.stall_after is not None:
            return self.options.stall_after
        return max(_STALL_LEAST, 4e-9 * (self.arrivals.period_ns or 0))

    def _idle(self, consumer: Consumer) -> None:
        if self._epoch_over or self._stopping or self._pause:
            return
        if not self.finite and consumer.ended():
            self._end(final=False)
            return
        idle = (time.monotonic_ns() - self._last_record_ns) / 1e9
        if self.state is not State.STALLED and idle >= self._stall_after():
            self._set_state(State.STALLED, f"no packet for {idle:.1f} s", level=logging.WARNING)

    def _end(self, *, final: bool) -> None:
        """The epoch ended: the last pictures come out of the decoder."""
        assert self._decoder is not None
        self._settle(self._decoder.drain())
        self._epoch_over = True
        if self._stopping:
            return
        self._set_state(State.ENDED, "the stream ended" if final else "the stream ended; waiting for its next life")
        if final:
            with self._hub.lock:
                self.finished = True
                self._hub.arrived.notify_all()

    def _admit(self, records: list[Record]) -> None:
        """Packets came in: count them, and what was lost before them."""
        now = time.monotonic_ns()
        for record in records:
            lapped = record.skipped - self._expected_skip
            self._expected_skip = 0
            self.account.skip("lapped", lapped)
            self.account.receive("queue")
            self.arrivals.tick(now)
            self._position = record.offset + 1
            if self._around.received is not None:
                self._around.received(self.cam_id, record)
        self._last_record_ns = now
        self._progress = True
        self._epoch_over = False

    def _feed(self, record: Record) -> None:
        decoder, consumer = self._decoder, self.consumer
        assert decoder is not None and consumer is not None
        self.account.move("queue", "decoder")
        self._in_decoder += 1
        self._settle(decoder.feed(record))
        if consumer.group is not None:
            consumer.commit()
        if decoder.resyncing and self.state in (State.RUNNING, State.STALLED, State.ENDED, State.RECONNECTING):
            self._set_state(State.RESYNCING, self._resync_reason())

    def _resync_reason(self) -> str:
        return f"waiting for a clean keyframe ({self.last_trouble})" if self.last_trouble else "waiting for a keyframe"

    # -- outcomes --------------------------------------------------------------------------------------------------

    def _settle(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            if outcome.picture is not None:
                self._keep(outcome.picture, outcome.first)
            elif outcome.first:
                self._in_decoder -= 1
                if outcome.cause == ABSORBED:
                    self.account.absorb("decoder")
                else:
                    self._trouble(outcome)
                    self.account.drop("decoder", outcome.cause or "no_picture")

    def _trouble(self, outcome: Outcome) -> None:
        cause = outcome.cause or "no_picture"
        if cause != self.last_trouble and cause not in ("lag", "jumped"):
            self._around.events.emit(
                "source.damage",
                f"offset {outcome.record.offset}: {cause}{': ' if outcome.detail else ''}{outcome.detail}",
                source=str(self.cam_id),
                level=logging.DEBUG if cause == "resync" else logging.WARNING,
                offset=outcome.record.offset,
                cause=cause,
            )
        self.last_trouble = cause

    def _refuse(self, first: bool, cause: str) -> None:
        if first:
            self._in_decoder -= 1
            self.account.drop("decoder", cause)

    def _keep(self, picture: Picture, first: bool) -> None:
        self._rule.gave_picture()
        self.size = (picture.width, picture.height)
        limiter = self._limiter
        if limiter is not None and not limiter.take(picture.record.timestamp_ns):
            self._refuse(first, "rate")
            return
        array = None
        if self.store.mode == "every_frame" or self._sharer is not None:
            try:
                shape, dtype = picture.array_spec()
                array = picture.to_array(out=self._around.pool.take(shape, dtype))
            except Exception as exc:  # noqa: BLE001 - a picture that cannot be converted is this source's own trouble
                self._trouble(Outcome(picture.record, cause="decode_error", detail=f"{type(exc).__name__}: {exc}"))
                self._refuse(first, "decode_error")
                return
        if self._sharer is not None and array is not None:
            self._sharer.publish(picture, array)
        nbytes = picture.nbytes if array is None else array.nbytes + record_bytes(picture.record)
        entry = Entry(
            picture.record,
            picture.identity,
            picture.degraded,
            picture.decoded_ns,
            nbytes,
            picture if array is None else None,
            array,
            first,
        )
        if not self.store.put(entry, "decoder"):
            self._refuse(first, self._cause)
            return
        if first:
            self._in_decoder -= 1
        self.pictures.tick(time.monotonic_ns())
        self.last_trouble = None
        if self.state is not State.RUNNING:
            self._set_state(State.RUNNING, "pictures come")

    def _give_up_decoder(self, cause: str) -> None:
        decoder, self._decoder = self._decoder, None
        self.account.drop("decoder", cause, self._in_decoder)
        self._in_decoder = 0
        if decoder is not None:
            try:
                decoder.close()
            except Exception:  # noqa: BLE001 - a plug-in's failure to close must not end the source
                _log.exception("source %r: the decoder could not be closed", self.cam_id)

    def _drop_queue(self, cause: str) -> None:
        self.account.drop("queue", cause, len(self._queue))
        self._queue.clear()

    # -- lag -------------------------------------------------------------------------------------------------------

    def _apply_lag_rule(self) -> None:
        consumer, decoder = self.consumer, self._decoder
        assert consumer is not None and decoder is not None
        records = consumer.lag() + len(self._queue)
        age = 0.0
        if self._rule.limits.age is not None and records:
            oldest = self._queue[0].timestamp if self._queue else None
            age = consumer.lag_seconds() if oldest is None else max(0.0, time.time() - oldest)
        self._lag_seen = (records, age, time.monotonic_ns())
        position = 0
        if records and consumer.group is None:
            position = self._queue[0].offset if self._queue else consumer.position()
        step, target = self._rule.decide(records, age, position, self._newest_start)
        if step is Step.JUMP:
            assert target is not None
            self._jump(position, target, records)
        elif step is Step.WAIT:
            self._settle(decoder.reset("resync"))
            self._set_state(State.RESYNCING, f"{age:.1f} s behind, waiting for the next keyframe")
        if self._converting is (step is Step.CATCH_UP):
            self._converting = not self._converting
            decoder.set_converting(self._converting)

    def _newest_start(self) -> int | None:
        """Newest offset ahead that a decoder can start from; streams without flags are read ahead and looked at."""
        consumer, decoder = self.consumer, self._decoder
        assert consumer is not None and decoder is not None
        if consumer.group is not None:
            return None  # a member of a group cannot seek
        flagged = consumer.newest_keyframe()
        if flagged is not None:
            return flagged
        room = self.options.queue_bytes - sum(record_bytes(record) for record in self._queue)
        while room > 0 and not self._stopping:
            try:
                records = consumer.poll(0, _READ_AHEAD)
            except EndOfStream:
                break  # seen again, and acted upon, when the queue is empty
            if not records:
                break
            self._admit(records)
            self._queue.extend(records)
            for record in records:
                room -= record_bytes(record)
                if decoder.starts_at(record):
                    self._start_ahead = record.offset
        return self._start_ahead

    def _jump(self, position: int, target: int, behind: int) -> None:
        consumer, decoder = self.consumer, self._decoder
        assert consumer is not None and decoder is not None
        while self._queue and self._queue[0].offset < target:
            self._queue.popleft()
            self.account.drop("queue", "jumped")
        if not self._queue:
            ahead = target - consumer.position()
            if ahead > 0:
                consumer.seek(target)
                self.account.skip("jumped", ahead)
                self._expected_skip = ahead
        self._settle(decoder.reset("jumped"))
        self.jumps += 1
        self._around.events.emit(
            "source.jump",
            f"{behind} records behind: went from offset {position} to the keyframe at {target}",
            source=str(self.cam_id),
            position=position,
            target=target,
            behind=behind,
        )

    # -- the end ---------------------------------------------------------------------------------------------------

    def _close_consumer(self) -> None:
        consumer, self.consumer = self.consumer, None
        if consumer is not None:
            try:
                consumer.close()
            except ComuxError as exc:
                _log.warning("source %r: its consumer could not be closed: %s", self.cam_id, exc)

    def _finish(self) -> None:
        """The thread ends: nothing is held outside the picture store any more."""
        self._close_consumer()
        self._drop_queue(self._cause)
        self._give_up_decoder(self._cause)
        if self._adopted is not None:
            self._adopted.close()
        if self._sharer is not None:
            self._sharer.close()
        with self._hub.lock:
            self.finished = True
            self._hub.arrived.notify_all()
        if self._stopping:
            self._set_state(State.ENDED, self._cause)
