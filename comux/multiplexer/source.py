"""One source: a thread that turns a topic's packets into pictures, its states and its books.

**Problem.** A camera stalls, vanishes, sends garbage, falls behind, comes back. Nothing of that may reach another
source or the user's loop, and every packet must end in exactly one column of the books.

**The thread.** ``_open`` (consumer, decoder) → again and again: pause? → lag rule → next packet → decoder → outcomes →
picture store. Whatever is raised ends one round of it: an engine's error becomes RECONNECTING, an unexpected exception
FAILED, both with a growing pause and another try; only wrong settings are final. The thread waits in ``poll``, in the
store (full, ``every_frame``) or in an event (paused, backing off), never in a loop.

**Books.** A packet is held at ``queue`` (read ahead), ``decoder``, ``pictures``, in this order; each step is one call
of the account.
Drop causes: ``lapped`` (the topic overwrote it), ``corrupt`` (Kafka keeps it damaged), ``jumped``, ``lag`` (both lag
rule), ``resync``, ``decode_error``, ``too_large``, ``no_picture``, ``duplicate`` (all from the decoder), ``rate``,
``superseded``, ``stale``, ``align`` (batch), ``failed`` (in a decoder that was given up), ``removed`` and ``closed``
(still waiting when the source or the manager ended).

**Groups.** A member of a group acknowledges a packet when it left the books (``acks``): what waits when the source ends
or dies comes again. So a finite source keeps its consumer until its last picture was taken.

**Ends.** ``stop`` sets a flag, closes the store, wakes the consumer and joins; who opened the consumer closes it. What
was read and what is in the decoder is dropped, or waits for the source that takes over (``keeps``).
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from comux.account import Account
from comux.decoders.interface import ABSORBED, Outcome, Picture
from comux.decoders.rate import RateLimiter
from comux.errors import (
    ClosedError,
    ComuxError,
    ConfigError,
    DecoderLostError,
    EndOfStream,
    UnknownTopicError,
    UnsupportedError,
)
from comux.multiplexer.acks import Acks
from comux.multiplexer.clocks import SourceClock
from comux.multiplexer.decoding import Decoding
from comux.multiplexer.intake import Intake
from comux.multiplexer.lag import DEFAULT_RECORDS, LagLimits, LagRule, Step
from comux.multiplexer.pacing import PeriodMeter
from comux.multiplexer.pictures import Entry, PictureStore, StoreMode
from comux.multiplexer.retention import Retention
from comux.multiplexer.shared import FrameSharer
from comux.multiplexer.states import State, Surroundings, decoder_options, is_finite, open_consumer
from comux.multiplexer.trouble import Trouble
from comux.multiplexer.wishes import SeekTo, Wish, Wishes, target_of
from comux.options import CamId, Mode, SourceOptions
from comux.records import Record
from comux.transport import Consumer, Start

_log = logging.getLogger("comux.multiplexer")

_RETRY_FIRST: Final = 0.05
_RETRY_MOST: Final = 5.0


class Source:
    """One feed's thread, states, pictures and retained packets.

    Args:
        options: Complete settings: ``consume_topic`` and ``address`` are set.
        around: What the manager provides.
        sharer: Publishes decoded frames, or ``None``.
        consumer: An open consumer to begin with (closed by the source), or ``None``.
        account, position, retained: Books, offset to go on at, and packets that stay sendable of the one it replaces.
        finite, paused: Whether it ends, where that is known; begin paused. ``None``: by the settings.

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
        retained: Retention | None = None,
        finite: bool | None = None,
        paused: bool | None = None,
    ) -> None:
        assert options.consume_topic is not None and options.address is not None
        self.options = options
        self.cam_id: CamId = options.cam_id
        self.topic: str = options.consume_topic
        self.account = account if account is not None else Account()
        self._asked_mode: Mode = options.mode
        self.known_finite = finite  #: ``None`` before it is known
        self.finite = options.on_end == "stop" if finite is None else finite
        self.store = PictureStore(around.hub, self.account, self.own_mode, max_bytes=options.store_bytes)
        self.retained = Retention(options.cam_id) if retained is None else retained
        self.retained.limit(maxlen=options.maxlen, max_bytes=options.retain_bytes)
        self.state = State.STARTING
        self.reason = "not started"
        self.since_ns = time.monotonic_ns()
        self.finished = False  #: nothing more will come, whatever happens
        self.removed = False
        self.replaced = False  #: another ``Source`` goes on in its place
        self.keeps = self.kept = False  #: what was read and is in the decoder is, or was, left for that one
        self.jumps = self.restarts = 0
        self.trouble = Trouble(options.cam_id, around.events)
        self.last_age: float | None = None
        self.size: tuple[int, int] | None = None
        self.pictures = PeriodMeter()
        self.deliveries = PeriodMeter(64)
        self.thread: threading.Thread | None = None
        self._around = around
        received = around.received
        self.intake = Intake(
            self.account,
            options.queue_bytes,
            None if received is None else lambda record: received(options.cam_id, record),
            position,
            SourceClock(str(options.cam_id), around.events),
        )
        self._hub = around.hub
        self._sharer = sharer
        self._adopted = consumer
        if consumer is not None:
            self.intake.take_place(consumer)
        self._acks: Acks | None = None
        self._limiter = RateLimiter(options.rate)
        self._decoding = Decoding(self.cam_id, self.account, self._limiter, around.mover)
        self._first_try = True
        self._made_anew = self._progress = self._epoch_over = False
        self._rule = LagRule(self._limits())
        self._stopping = False
        self._cause = "removed"
        self._pause = options.paused if paused is None else paused
        self.wishes = Wishes()
        self._wake = threading.Event()

    # -- what the manager asks -------------------------------------------------------------------------------------

    @property
    def own_mode(self) -> StoreMode:
        """How this source keeps pictures: as a caller of ``get_batch`` said last, else by the settings."""
        return self.auto_mode if self._asked_mode == "auto" else self._asked_mode

    @property
    def auto_mode(self) -> StoreMode:
        """``every_frame`` for finite sources, ``freshest`` for live ones."""
        return "every_frame" if self.finite else "freshest"

    def keep(self, mode: Mode) -> None:
        """Keep pictures by this mode from now on, whatever ``auto`` turns out to be. ``hub.lock`` is held."""
        self._asked_mode = mode
        if self.store.mode != self.own_mode:
            self.store.set_mode(self.own_mode)

    def _limits(self) -> LagLimits:
        """By the settings; the default limit applies only while pictures are kept ``freshest``."""
        self._limits_mode = self.store.mode
        records = self.options.max_offset_diff
        if records is None and self.store.mode == "freshest":
            records = DEFAULT_RECORDS
        return LagLimits(records, self.options.max_age)

    def start(self) -> None:
        """Begin in a thread of its own. Idempotent."""
        if self.thread is None:
            # Daemon: a program that forgets close() still ends; the manager's exit hook stops and joins it first.
            self.thread = threading.Thread(target=self._run, name=f"comux-source-{self.cam_id}", daemon=True)
            self.intake.last_ns = time.monotonic_ns()
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
        self._epoch_over = False  # an end is seen, and said, again
        self._nudge()

    @property
    def paused(self) -> bool:
        """Whether it was told to pause."""
        return self._pause

    def seek(self, to: SeekTo) -> Wish:
        """Go on at ``to`` as soon as the thread comes to it; what waits to be delivered is dropped, ``jumped``."""
        wish = self.wishes.seek(to)
        with self._hub.lock:
            self.store.drop_all("jumped")  # the thread may wait for room
        self._nudge()
        return wish

    def acknowledge(self) -> None:
        """Members of a group: acknowledge what was delivered or dropped. Outside of ``hub.lock``; any thread."""
        acks = self._acks
        if acks is not None:
            acks.flush()
            if self.finished:
                self._wake.set()  # its thread may wait for the last one

    @property
    def acks(self) -> Acks | None:
        """What a member of a group has not finished with; ``None`` without a group, and while there is no consumer."""
        return self._acks

    def set_rate(self, rate: float | None) -> None:
        """Deliver at most ``rate`` pictures per second from now on."""
        self.options = self.options.changed(rate=rate)
        self._limiter.set_rate(rate)

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

    @property
    def consumer(self) -> Consumer | None:
        """What the thread reads from, while it does."""
        return self.intake.consumer

    @property
    def damage(self) -> dict[str, int]:
        """How often the decoder saw doubt, by reason."""
        return self._decoding.damage

    def _nudge(self) -> None:
        self._wake.set()
        self.intake.wakeup()

    def take_over(self, old: Source) -> None:
        """Before the start: go on where another one ended, with what it ``keeps``."""
        with self._hub.lock:
            kept = old.keeps = old.keeps and old.kept  # a thread that has not ended drops it itself
        if kept:
            self.intake.take_over(old.intake)
            same = old.options.decode_threads == self.options.decode_threads
            self._decoding.take_over(old._decoding, threads=same)
        else:
            self.intake.position, self.intake.clock = old.intake.position, old.intake.clock

    # -- states ----------------------------------------------------------------------------------------------------

    def _set_state(self, state: State, reason: str, *, level: int = logging.INFO) -> None:
        with self._hub.lock:
            old = self.state
            if self._pause and state not in (State.PAUSED, State.ENDED, State.FAILED):
                return
            if self.finished and state not in (State.ENDED, State.FAILED):
                return  # pause and resume do not revive it
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
            if isinstance(exc, DecoderLostError):
                self._give_up_decoder("failed", str(exc))
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is this source's own
            _log.exception("source %r failed and will be tried again", self.cam_id)
            self._set_state(State.FAILED, f"{type(exc).__name__}: {exc}", level=logging.ERROR)
            self._give_up_decoder("failed")
        self._close_intake()
        return self._stopping

    def _close_intake(self) -> None:
        self.acknowledge()
        self._acks = None
        self.intake.close()

    def _open(self) -> None:
        options = self.options
        consumer, self._adopted = self._adopted, None
        if consumer is not None:
            self.intake.adopt(consumer)  # first of all, so that it is closed whatever happens
        broker = self._around.broker(options)
        self.intake.clock.local = broker.capabilities.views  # which only an engine on this machine can give
        info = broker.topic(self.topic)
        if self._first_try:
            if self.known_finite is None:
                self.known_finite = self.finite = is_finite(options, info)
            with self._hub.lock:
                self.store.set_mode(self.own_mode)
            self._rule.limits = self._limits()
        if consumer is None:
            consumer = open_consumer(options, broker, self._where_to_start(), finite=self.finite)
            self.intake.adopt(consumer)
        self._acks = None if consumer.group is None else Acks(consumer, deferred=options.durable)
        self.store.left = self._left
        self._first_try = self._made_anew = False
        if self._decoding.decoder is None or self._decoding.inherited:
            threads = self._decoding.threads or (self._around.threads() if self.finite else 1)
            self._decoding.open(self._around.decoder, decoder_options(options, threads=threads, topic=info))

    def _where_to_start(self) -> Start:
        """A topic that was not there when the source started, or was made anew, is read from its beginning."""
        intake = self.intake
        if self._made_anew:
            decoder = self._decoding.decoder
            self._settle(decoder.reset("resync") if decoder else [])
            intake.forget("resync")
            self._rule.forget()
            return "beginning"
        return self.options.start if intake.position is None else intake.position

    def _read(self) -> None:
        while not self._stopping:
            if self.wishes.seeks:
                self._seek()
            if self._pause:
                self._wait_while_paused()
                continue
            if self.store.mode != self._limits_mode:
                self._rule.limits = self._limits()
            if self._rule.limits.active or self._rule.catching_up or self._decoding.hurried:
                self._apply_lag_rule()
            record = self._next()
            if record is not None:
                self._feed(record)
            elif self.finished:
                self._wait_until_taken()
                return

    def _wait_until_taken(self) -> None:
        """The stream is over: a member of a group stays until its last packet is acknowledged."""
        acks = self._acks
        while acks is not None and not self._stopping:
            self._wake.clear()
            acks.flush()
            if not acks.unfinished:
                return
            self._wake.wait()

    def _wait_while_paused(self) -> None:
        self._set_state(State.PAUSED, "paused")
        self._wake.clear()
        if self._pause and not self._stopping:
            with self.intake.paused():
                self._wake.wait()
        self.intake.last_ns = time.monotonic_ns()

    def _next(self) -> Record | None:
        intake = self.intake
        try:
            quiet = self.state in (State.STALLED, State.ENDED)
            record = intake.next(intake.patience(self.options.stall_after, quiet))
        except EndOfStream:
            self._end(final=True)
            return None
        if record is None:
            self._idle()
        else:
            self._progress = True
            self._epoch_over = False
        return record

    def _idle(self) -> None:
        if self._epoch_over or self._stopping or self._pause:
            return
        if self.intake.open().ended():  # also of a finite source, whose topic ended after its consumer was opened
            self._end(final=self.finite)
            return
        idle = self.intake.idle
        if idle < self.intake.stall_after(self.options.stall_after):
            return
        if self.state is not State.STALLED:
            self._set_state(State.STALLED, f"no packet for {idle:.1f} s", level=logging.WARNING)
        if self._acks is not None and not self.store.blocked:
            topic = self._around.broker(self.options).topic(self.topic)
            self._acks.make_room(topic, self._around.events, self.cam_id)

    def _end(self, *, final: bool) -> None:
        """The epoch ended: the last pictures come out of the decoder."""
        assert self._decoding.decoder is not None
        self._settle(self._decoding.decoder.drain())
        self._epoch_over = True
        if self._stopping:
            return
        self._set_state(State.ENDED, "the stream ended" if final else "the stream ended; waiting for its next life")
        if final:
            with self._hub.lock:
                self.finished = True
                self._hub.arrived.notify_all()

    def _feed(self, record: Record) -> None:
        decoding, acks = self._decoding, self._acks
        if acks is not None:
            acks.took(record)
        self._settle(decoding.accept(record))
        self._settle(decoding.feed(record))
        if acks is not None:
            acks.flush()
        if decoding.resyncing and self.state in (State.RUNNING, State.STALLED, State.ENDED, State.RECONNECTING):
            why = f"a clean keyframe ({self.trouble.cause})" if self.trouble.cause else "a keyframe"
            self._set_state(State.RESYNCING, f"waiting for {why}")

    # -- outcomes --------------------------------------------------------------------------------------------------

    def _settle(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            if outcome.picture is not None:
                self._keep(outcome.picture, outcome.record, outcome.first)
            elif outcome.first:
                if outcome.cause == ABSORBED:
                    self._decoding.absorb()
                else:
                    if outcome.cause != "rate":
                        self.trouble.see(outcome)
                    self._decoding.drop(outcome.cause or "no_picture")
                self._left(outcome.record)

    def _left(self, record: Record) -> None:
        """A packet left the books; any thread, also under ``hub.lock``."""
        acks = self._acks
        if acks is not None:
            acks.left(record)

    def _refuse(self, packet: Record, first: bool, cause: str) -> None:
        if first:
            self._decoding.drop(cause)
            self._left(packet)

    def _keep(self, picture: Picture, packet: Record, first: bool) -> None:
        self._rule.gave_picture()
        if self.size is None:
            self._around.warm(self.cam_id, self.store.mode, picture)  # before it counts as running
        self.size = (picture.width, picture.height)
        if not self._decoding.takes(picture):
            self._refuse(packet, first, "rate")
            return
        array = picture.ready
        if array is None and (self.store.mode == "every_frame" or self._sharer is not None):
            try:
                shape, dtype = picture.array_spec()
                array = picture.to_array(out=self._around.pool.take(shape, dtype))
            except Exception as exc:  # noqa: BLE001 - a picture that cannot be converted is this source's own trouble
                self.trouble.see(Outcome(picture.record, cause="decode_error", detail=f"{type(exc).__name__}: {exc}"))
                self._refuse(packet, first, "decode_error")
                return
        if self._sharer is not None and array is not None:
            self._sharer.publish(picture, array)
        if self.wishes.pictures:
            self.wishes.show(picture, array)
        entry = Entry.of(picture, array, packet, counted=first)
        if first and self._acks is not None:
            self._acks.stored(packet)
        if not self.store.put(entry, "decoder"):
            if first:  # it comes again to whoever reads for the group next
                self._decoding.drop(self._cause)
            return
        if first:
            self._decoding.stored()
        self.pictures.tick(time.monotonic_ns())
        self.trouble.cause = None
        if self.state is not State.RUNNING:
            self._set_state(State.RUNNING, "pictures come")

    def _give_up_decoder(self, cause: str, detail: str = "") -> None:
        self.trouble.cause, self.trouble.detail = cause, detail
        if self._acks is not None and not self._stopping:
            self._acks.give_up()
        self._decoding.give_up(cause)

    # -- lag -------------------------------------------------------------------------------------------------------

    def _apply_lag_rule(self) -> None:
        intake, decoder = self.intake, self._decoding.decoder
        assert decoder is not None
        records, age = intake.lag()
        position = intake.next_offset() if records else 0
        step, target = self._rule.decide(records, age, position, lambda: intake.newest_start(decoder.starts_at))
        if step is Step.JUMP:
            assert target is not None
            intake.jump(target)
            self._settle(decoder.reset("jumped"))
            self.jumps += 1
            self._around.events.emit(
                "source.jump",
                f"{records} records behind: went from offset {position} to the keyframe at {target}",
                source=str(self.cam_id),
                position=position,
                target=target,
                behind=records,
            )
        elif step is Step.WAIT:
            self._settle(decoder.reset("resync"))
            self._set_state(State.RESYNCING, f"{age:.1f} s behind, waiting for the next keyframe")
        self._decoding.convert(step is not Step.CATCH_UP, hurried=self._rule.hurries(records, age, self.store.mode))

    def _seek(self) -> None:
        to, wish = self.wishes.take_seek() or ("end", Wish())
        decoder = self._decoding.decoder
        assert decoder is not None
        try:
            target = target_of(to, self.intake, decoder)
            self.intake.seek(target)
        except ComuxError as exc:
            wish.refuse(exc)
            if not isinstance(exc, (UnsupportedError, ConfigError)):
                raise
            return
        self._settle(decoder.reset("jumped"))
        with self._hub.lock:
            self.store.drop_all("jumped")
        self._rule.asked()
        self._epoch_over = False
        wish.fulfil(target)

    # -- the end ---------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """The thread ends: nothing is held outside the picture store any more."""
        self._close_intake()
        self.wishes.end(ClosedError(f"source {self.cam_id!r} has ended ({self.reason}); nothing was done"))
        with self._hub.lock:
            self.kept = self.keeps
        if not self.kept:
            self.intake.drop_queue(self._cause)
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
