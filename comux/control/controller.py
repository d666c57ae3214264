"""The controller: one thread that reads the config topic, and answers every command.

**Problem.** Commands come from anywhere, some of them hostile; they change a running system whose loop must not notice.

**One command's way.** ``poll`` → *envelope* (who is meant, where the answer goes; never fails) → not ours:
``ignored`` → too many of late? → *parse* (sizes, names, JSON) → the user's *filter* → *expires* → came before? →
carried out → answered → event. What fails on the way is answered with the error and changes nothing. Built-in actions
run in this thread one after the other, so two clients that command the same source at once are served in the topic's
order. Users' acts run in ``ActWorker``'s thread.

**Books.** The account counts commands: received = delivered (carried out, or failed while at it) + dropped: ``ignored``
(meant for another, or filtered), ``rejected`` (malformed, unknown or not allowed), ``expired``, ``repeated`` (a
``request-id`` again), ``busy`` (too many in a second, or acts waiting), ``shutdown`` (still waiting at the end),
``lapped`` (overwritten before they were read) + held: ``control``, ``acts``.

**Durable.** With ``durable=True`` position and changes of sources survive the program, see ``durable``: which step is
saved when, and what a crash between two of them leaves.

**Ends.** ``close()`` may come from any thread, also from within an act or a ``stop`` command: then it does not wait
for the thread it is called from. The reading thread owns the consumer and closes it; the replies are closed by whoever
of reader, running act and ``close`` lets go of them last (``_users``), so even the act that closes is answered. If the
topic vanishes or the engine fails, the thread waits with growing pauses and goes on by itself: at its position, or at
the start of a topic that had to be made anew. Nothing that a command holds can end the thread.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Final

from comux.account import Account, AccountSnapshot
from comux.control.acts import ActWorker, call, check_acts
from comux.control.commands import (
    BUILT_IN,
    EVERYONE,
    Command,
    CommandLimits,
    Envelope,
    arguments_of,
    parse_command,
    read_envelope,
    reply_topic_of,
)
from comux.control.desired import Change
from comux.control.durable import CHANGES, DurableState, MethodsOf, Sources
from comux.control.interface import Act, Target
from comux.control.repeats import Repeats
from comux.control.replies import CONTROL, Replies, failure, success
from comux.errors import (
    ClosedError,
    CommandError,
    ComuxError,
    ConfigError,
    UnknownActionError,
    UnknownTopicError,
    UnsupportedError,
)
from comux.options import check_positive, check_topic_name
from comux.records import Record
from comux.telemetry import EventLog
from comux.transport import Broker, Consumer, Start, TopicSpec, for_engine
from comux.transport.pace import Budget

_BATCH: Final = 16
_PAUSE_FIRST: Final = 0.05
_PAUSE_MOST: Final = 5.0


class _Refused(Exception):
    """A command is not carried out: ``cause`` for the books, ``error`` or ``outcome`` for the answer; or neither."""

    def __init__(self, cause: str, error: Exception | None = None, *, outcome: Mapping[str, Any] | None = None) -> None:
        super().__init__(cause)
        self.cause = cause
        self.outcome = outcome if error is None else failure(error)


class Controller:
    """Carries out the commands of one config topic.

    Args:
        broker: Engine of the config topic; stays the caller's (``owns_broker``: is closed with the controller).
        topic: The config topic; made when it is missing.
        target: What is controlled. A missing method makes its action unavailable.
        acts: The user's actions by name; one with a built-in's name replaces it.
        subject: First argument of the acts; ``None``: ``target``.
        name: This client's name: what ``target`` headers are compared with, and ``responder`` in the answers.
        reply_topic: Where answers go by default; ``None``: ``<topic>_replies``.
        events: Where commands are told as ``control.*`` events; ``None``: a log of its own (``.events``).
        command_filter: Commands for which it returns false are ignored. Called in the controller's thread.
        schemes: Address schemes that ``create`` and ``update`` may name; ``None``: the config topic's own.
        start: Where reading begins; ``"end"``: only what comes from now on. ``durable``: at the first start ever.
        durable: Go on after a crash where the last life ended, with what commands had made of the sources.
        sources: ``durable``: the program's own, which are changed in ``connect``; ``None``: by the target's methods.
        limits: How large commands may be.
        pending_acts: Acts that may wait for their turn at most.
        owns_broker: Close ``broker`` with the controller.

    Thread-safe; a context manager that starts on entry.

    Raises:
        ConfigError: a wrong setting.
    """

    def __init__(
        self,
        broker: Broker,
        topic: str,
        target: Target | Any,
        *,
        acts: Mapping[str, Act] | None = None,
        subject: Any = None,
        name: str = "comux",
        reply_topic: str | None = None,
        events: EventLog | None = None,
        command_filter: Callable[[Command], bool] | None = None,
        schemes: Iterable[str] | None = None,
        start: Start = "end",
        durable: bool = False,
        sources: Sources | None = None,
        limits: CommandLimits | None = None,
        pending_acts: int = 64,
        owns_broker: bool = False,
    ) -> None:
        self.topic = check_topic_name(topic, "config topic")
        self.name = name
        self.acts = check_acts(acts)
        self.events = events if events is not None else EventLog()
        self.reply_topic = check_topic_name(reply_topic or reply_topic_of(topic), "reply topic")
        if self.reply_topic == self.topic:
            raise ConfigError(f"reply topic {topic!r} is the config topic itself: answers would be read as commands")
        self._broker = broker
        self._owns_broker = owns_broker
        self._target = target
        self._subject = target if subject is None else subject
        self._filter = command_filter
        self._schemes = frozenset(schemes if schemes is not None else (str(broker.address).partition("://")[0],))
        self._start: Start = start
        self._limits = limits or CommandLimits()
        self._budget = Budget(self._limits.per_second, int(self._limits.bytes_per_second))
        self._patient = start != "end" or durable
        self._state: DurableState | None = None
        if durable:
            known = sources or MethodsOf(target)
            self._state = DurableState(broker, topic, name, self._schemes, known, self.events)
        self._repeats = Repeats()
        self._account = Account()
        self._replies = Replies(broker, self.reply_topic)
        self._worker = ActWorker(f"comux-acts-{topic}", check_positive(pending_acts, "pending_acts"))
        self._consumer: Consumer | None = None
        self._thread: threading.Thread | None = None  # ours, from ``start``
        self._running = False
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._closed = False
        self._users = 1  # of replies and broker: this object, the reader, acts that run or wait
        self._pid = os.getpid()
        self._at_exit: Callable[[], None] | None = None

    # -- life ------------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Make the topic where it is missing and take the place from which commands will be read; ``durable``: carry
        out what commands had made of the sources. Idempotent.

        Raises:
            ComuxError: the engine cannot be reached or refuses the topic. TopicBusyError: ``durable``, and another
                client of this name runs (engines that can tell). ClosedError.
        """
        state = self._state
        with self._lock:
            self._check_open()
            if self._consumer is None:
                self._make_topic()
                if state is not None:
                    self._start = state.load(self._start)
                self._consumer = self._open()
                if state is not None:
                    state.begin(self._consumer)
        if state is not None:
            state.restore()

    def start(self) -> None:
        """Begin in a thread of its own; every command sent after this returned is seen. Idempotent.

        Raises:
            ComuxError: as ``connect``.
        """
        self.connect()
        with self._lock:
            self._check_open()
            if self._running:
                return
            self._running = True
            self._users += 1
            self._thread = threading.Thread(target=self._run, name=f"comux-control-{self.topic}", daemon=True)
            self._at_exit = _closer(self)
            atexit.register(self._at_exit)
            self._thread.start()

    def run(self) -> None:
        """Carry out commands in the calling thread until ``close()``.

        Raises:
            ComuxError: as ``connect``. ConfigError: it runs already.
        """
        self.connect()
        with self._lock:
            self._check_open()
            if self._running:
                raise ConfigError(f"control of topic {self.topic!r} runs already; close it first")
            self._running = True
            self._users += 1
        self._run()

    def close(self, timeout: float = 5.0) -> None:
        """End: the command being carried out is finished and answered, acts still waiting are answered with an error.

        Args:
            timeout: Seconds to wait for each of the two threads at most. An act that takes longer goes on alone.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            consumer, thread, running = self._consumer, self._thread, self._running
        if os.getpid() != self._pid:
            return  # a forked child holds no thread and no handle of its own
        self._stop.set()
        if consumer is not None:
            with contextlib.suppress(ClosedError):
                consumer.close() if not running else consumer.wakeup()
        self._worker.close()
        ended = self._worker.join(timeout)
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
            ended = ended and not thread.is_alive()
        if not ended:
            text = (
                f"control of topic {self.topic!r}: a command has not ended {timeout} s after close; not waiting longer"
            )
            self.events.emit("control.stuck", text, level=logging.WARNING)
        if self._at_exit is not None:
            atexit.unregister(self._at_exit)
        self._release()

    def __enter__(self) -> Controller:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed or os.getpid() != self._pid:
            raise ClosedError(
                f"control of topic {self.topic!r} was closed, or inherited through a fork; make a new one"
            )

    def _release(self) -> None:
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            self._replies.close()
            if self._state is not None:
                self._state.close()
            if self._owns_broker:
                self._broker.close()

    # -- what can be asked -----------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether commands are being read."""
        return self._running and not self._closed

    @property
    def durable(self) -> bool:
        """Whether commands and what they made of the sources outlast a crash."""
        return self._state is not None

    @property
    def offset(self) -> int:
        """Offset of the next command to be read."""
        with self._lock:
            self._check_open()
            return -1 if self._consumer is None else self._consumer.position()

    @property
    def topic_last_offset(self) -> int:
        """High-water mark of the config topic: the offset that the next command sent will have."""
        with self._lock:
            self._check_open()
            return self._broker.topic(self.topic).high_water if self._consumer is None else self._consumer.end_offset()

    def account(self) -> AccountSnapshot:
        """The commands' balance, see the module."""
        return self._account.snapshot()

    def status(self) -> dict[str, Any]:
        """JSON-ready: topic, reply topic, whether it runs, answers sent and failed, the account; ``durable``: see
        ``DurableState.status``, ``None`` where it is not."""
        return {
            "topic": self.topic,
            "reply_topic": self.reply_topic,
            "running": self.running,
            "answers": {"sent": self._replies.sent, "failed": self._replies.failed},
            "account": self._account.snapshot().as_dict(),
            "durable": None if self._state is None else self._state.status(),
        }

    def restate(self, change: Change, carry_out: Callable[[Change], Any]) -> None:
        """Carry out what the program's registry states anew: from now on its word counts, not an earlier command's.

        Raises:
            Exception: as ``carry_out``.
        """
        with contextlib.nullcontext() if self._state is None else self._state.restated(change, self._wake):
            carry_out(change)

    def _wake(self) -> None:
        consumer = self._consumer
        if consumer is not None:
            with contextlib.suppress(ClosedError):
                consumer.wakeup()

    def act(self, action: str, value: Any = None) -> Any:
        """Carry out an action directly, in the calling thread.

        Args:
            action: One of the user's acts or a built-in.
            value: Its argument, as a command would carry it, decoded.

        Returns:
            What the act or the target's method returned.

        Raises:
            UnknownActionError: nobody defined it. UnsupportedError: the target lacks it. CommandError: the value does
                not fit. Whatever the act raises.
        """
        command = Command(action, value, value if isinstance(value, bytes) else None, not isinstance(value, bytes))
        if action in self.acts:
            return call(self.acts[action], self._subject, command)
        return self._built_in(command)()

    # -- the thread ------------------------------------------------------------------------------------------------

    def _make_topic(self) -> None:
        if self.topic not in self._broker.topics():
            spec = TopicSpec(self.topic, records=1024, data_bytes=4 << 20, policy="drop_oldest", metadata=CONTROL)
            self._broker.create_topic(for_engine(self._broker, spec), exist_ok=True)

    def _open(self) -> Consumer:
        return self._broker.consumer(self.topic, start=self._start, on_end="wait", name=f"comux-control-{self.name}")

    def _run(self) -> None:
        pause = _PAUSE_FIRST
        try:
            while not self._stop.is_set():
                try:
                    self._poll_once()
                    pause = _PAUSE_FIRST
                except Exception as exc:  # noqa: BLE001 - an engine's trouble ends no control thread
                    if self._stop.is_set() or not self._lost(exc):
                        break
                    self._stop.wait(pause)
                    pause = min(2 * pause, _PAUSE_MOST)
        finally:
            with self._lock:
                self._running = False
                consumer = self._consumer
            if consumer is not None:
                consumer.close()
            self._release()

    def _poll_once(self) -> None:
        with self._lock:
            if self._stop.is_set():
                return
            if self._consumer is None:
                self._make_topic()
                self._consumer = self._open()
                self.events.emit("control.connected", f"control of topic {self.topic!r} reads again")
            consumer, state = self._consumer, self._state
        for record in consumer.poll(timeout=None if state is None else state.patience(), max_records=_BATCH):
            if self._stop.is_set():
                return
            self._start = record.offset + 1
            self._receive(record)
        if state is not None:
            state.save()

    def _lost(self, exc: Exception) -> bool:
        """Give the consumer up; the next turn opens another one where this one was, or at the start of a new topic.

        Returns:
            ``False`` where there is nothing to go on with: somebody closed the broker.
        """
        with self._lock:
            consumer, self._consumer = self._consumer, None
        if consumer is None and isinstance(exc, ClosedError):
            self.events.emit("control.ended", f"control of topic {self.topic!r}: the broker was closed under it")
            return False
        if isinstance(exc, UnknownTopicError):
            self._start = "beginning"
        elif consumer is not None:
            with contextlib.suppress(ComuxError):
                self._start = consumer.position()
        if consumer is not None:
            with contextlib.suppress(ComuxError):
                consumer.close()
            text = f"control of topic {self.topic!r} lost its topic, trying again: {type(exc).__name__}: {exc}"
            self.events.emit("control.lost", text, level=logging.WARNING)
        return True

    # -- one command -----------------------------------------------------------------------------------------------

    def _receive(self, record: Record) -> None:
        if record.skipped:
            self._account.skip("lapped", record.skipped)
            text = (
                f"topic {self.topic!r}: {record.skipped} commands before offset {record.offset} were overwritten unread"
            )
            self.events.emit("control.lapped", text, level=logging.WARNING, skipped=record.skipped)
        self._account.receive("control")
        envelope = read_envelope(record, self._limits)
        try:
            self._carry_out(self._admit(record, envelope), envelope)
        except _Refused as refused:
            self._account.drop("control", refused.cause)
            self._passed(record, save=refused.outcome is not None)
            if refused.outcome is not None:
                self._answer(envelope, record.offset, refused.outcome)

    def _passed(self, read: Record | Command, *, save: bool = True) -> None:
        """Durable: the next life goes on behind this command."""
        if self._state is not None:
            self._state.passed(read.offset, read.timestamp_ns)
            if save:
                self._state.save()

    def _admit(self, record: Record, envelope: Envelope) -> Command:
        """The command in a record, if it is one that this client shall carry out now."""
        if envelope.target not in (None, EVERYONE, self.name):
            raise _Refused("ignored", None)
        due = self._budget.due(now := time.monotonic())
        if due <= 0 and self._state is not None and record.offset >= self._state.backlog:
            self._patient = False  # the backlog is worked off
        if due > 0 and self._patient:  # what was written while nobody read is no flood
            self._stop.wait(due)
            now += due
        elif due > 0:
            limits = self._limits
            many = CommandError(
                f"the command at offset {record.offset} was not read: more than {limits.per_second:g} commands, or "
                f"{limits.bytes_per_second:g} bytes of them, came within a second; send it again later"
            )
            many.retriable = True
            raise _Refused("busy", many)
        self._budget.spend(1, len(record.value or b""), now)
        try:
            command = parse_command(record, self._limits)
            wanted = self._filter is None or self._filter(command)
        except Exception as exc:  # noqa: BLE001 - the user's filter may raise anything
            raise _Refused("rejected", exc)
        if not wanted:
            raise _Refused("ignored", None)
        if command.expires is not None and time.time() > command.expires:
            late = time.time() - command.expires
            raise _Refused(
                "expired", CommandError(f"action {command.action!r} expired {late:.3f} s ago; send it again")
            )
        try:
            earlier = self._repeats.earlier(command)
        except CommandError as exc:
            raise _Refused("repeated", exc)
        if earlier is not None:
            raise _Refused("repeated", outcome=earlier)
        return command

    def _carry_out(self, command: Command, envelope: Envelope) -> None:
        if command.action in self.acts:
            self._passed(command)  # first: at most once
            self._queue_act(command, envelope)
            return
        try:
            method = self._built_in(command)
        except ComuxError as exc:
            raise _Refused("rejected", exc)
        outcome = self._change(command, method) if command.action in CHANGES else self._do(command, method)
        self._account.deliver("control")
        self._repeats.answered(command, outcome)
        self._answer(envelope, command.offset, outcome)

    def _do(self, command: Command, method: Callable[[], Any]) -> dict[str, Any]:
        """The outcome of what leaves the sources as they are stated."""
        self._passed(command)  # first: at most once
        return _attempt(method)

    def _change(self, command: Command, method: Callable[[], Any]) -> dict[str, Any]:
        """The outcome of a change of sources, saved."""
        state = self._state
        if state is None:
            return _attempt(method)
        with state.lock:
            outcome = _attempt(method)
            if outcome["ok"]:
                state.carried_out(command, outcome["result"])
            self._passed(command)
        return outcome

    def _built_in(self, command: Command) -> Callable[[], Any]:
        """The target's method for a built-in action with its checked arguments."""
        action = command.action
        if action not in BUILT_IN:
            known = ", ".join(sorted({*BUILT_IN, *self.acts}))
            raise UnknownActionError(f"no action {action!r} is defined; there are: {known[:400]}")
        method = getattr(self._target, action, None)
        if not callable(method):
            raise UnsupportedError(f"action {action!r} is not available: what {self.name!r} controls has none")
        arguments = arguments_of(command, self._schemes, self.topic)
        return lambda: method(**arguments)

    def _queue_act(self, command: Command, envelope: Envelope) -> None:
        act = self.acts[command.action]

        def job() -> None:
            outcome = _attempt(lambda: call(act, self._subject, command))
            self._account.deliver("acts")
            self._repeats.answered(command, outcome)
            self._answer(envelope, command.offset, outcome)
            self._release()

        def abandon() -> None:
            self._account.drop("acts", "shutdown")
            gone = ClosedError(
                f"action {command.action!r} was still waiting when {self.name!r} ended; nothing was done"
            )
            self._answer(envelope, command.offset, failure(gone))
            self._release()

        with self._lock:
            self._users += 1
        self._account.move("control", "acts")
        if not self._worker.submit(job, abandon):
            self._account.move("acts", "control")
            self._release()
            if self._stop.is_set():
                raise _Refused("shutdown", ClosedError(f"{self.name!r} is ending; nothing was done"))
            busy = CommandError(f"action {command.action!r}: too many acts are waiting already; send it again later")
            busy.retriable = True
            raise _Refused("busy", busy)

    def _answer(self, envelope: Envelope, offset: int, outcome: Mapping[str, Any]) -> None:
        """Tell what came of a command: as an event, then to who asked. Never raises, never waits long."""
        body = {
            "ok": outcome["ok"],
            "action": envelope.action,
            "request_id": envelope.request_id,
            "responder": self.name,
            "offset": offset,
            **outcome,
        }
        error = outcome.get("error")
        text = f"action {envelope.action!r} at offset {offset}: " + ("done" if error is None else error["message"])
        level = logging.INFO if error is None else logging.WARNING
        facts = {key: body[key] for key in ("ok", "action", "request_id", "responder", "offset")}
        self.events.emit("control.command", text, level=level, error=error, **facts)
        problem = self._replies.send(envelope.reply_to, body)
        if problem is not None:
            self.events.emit("control.unanswered", problem, level=logging.WARNING, **facts)


def _attempt(work: Callable[[], Any]) -> dict[str, Any]:
    """The outcome of a piece of somebody else's code."""
    try:
        return success(work())
    except Exception as exc:  # noqa: BLE001 - a failing command is an answer
        return failure(exc)


def _closer(controller: Controller) -> Callable[[], None]:
    """What runs at the program's end. The threads are daemons, so a program that forgot ``close()`` gets there."""
    reference = weakref.ref(controller)

    def close() -> None:
        alive = reference()
        if alive is not None:
            alive.close(timeout=1.0)

    return close
