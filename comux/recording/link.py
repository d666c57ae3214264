"""One topic's way over the bridge: a thread that reads records, sends copies, and only then lets go of the originals.

**Problem.** Two engines, no transaction over both. The bridge may be killed at any instant, either engine may go away
for any time, the destination may be full, thrown away or filled by others too. No record may be lost; what comes twice
must be recognisable; and a topic of its own trouble must not hold up another.

**Algorithm.** The link is a member of a durable group on the source, so that the source keeps what the link has not
acknowledged. In turn:

1. ``poll`` a few records (at most ``BATCH``); they are now held for this link.
2. ``send`` a copy of each; every copy names its original (``copies``).
3. When the destination's future says that a copy is there, acknowledge the original: one by one where members share
   records, else the batch by ``commit`` once all its copies are there.

There is one way to recover, from a crash as from any error: the *session* (consumer, producer) is over, all that is not
acknowledged goes back to the source, and after a pause (0.1 s, doubling to 5 s) the next session begins. It looks at
the newest records of the destination, and for every record that *may have been sent before* it decides:

- proven to be there: acknowledged without a copy, counted as dropped, cause ``duplicate``;
- the look was complete and nothing can be under way any more: it is not there, it is copied as if for the first time;
- else: copied with the header ``comux-duplicate: possible``. Such a record may be the only copy: whoever wants each
  record once compares ``comux-bridge``, and throws nothing away because of the mark alone.

Which records may have been sent before: where members share records the engine says so itself (``redelivered``); where
they do not, the first ``BATCH`` of a session that continues from a committed position, as never more than that are
sent and not acknowledged. And those this process sent and saw fail. One whose fate is still open when its session ends
(the destination was away for longer than ``PATIENCE``) is not sent again: the next session waits for the same future.

Two halves: ``Intake`` is the source's end (group, books), ``Outlet`` the destination's (proof, sending, ends).

**What a crash leaves.** Before 2: the record is not there, and is copied. Between 2 and 3: a copy, or none, or (where
the engine sends in the background) one that arrives yet; the next session sees it and skips, or marks. After 3: nothing
to do. While a copy is being written: an engine publishes a record whole or not at all.

*Under way*: a copy that a dead process handed to a server may be appended after the look. So on a durable engine a
record that is not seen is marked, not taken for absent.

**Order.** One producer per link, sends in the order of offsets, and one bridge at a time. Where members share records
a second bridge with the same group stands by: it looks after joining whether it is alone, and leaves where it is not,
before it took anything; so of two at least one leaves, and the one that is at work never does. Where groups share
topics (Kafka) each topic has one member anyway, and moves to another only when this one has let go (``Bridge``).
Without repeats the copies are in the order of the originals. Where an engine fails one record and takes its successor,
the one that failed comes after it.

**Ends.** An end is carried over once every copy before it is there: when the source's epoch is over and read, or before
the first record of a later epoch. Whether it was carried before a crash is seen at the destination: its epoch is past
the one that the newest copy is in. The producer is opened with the first record to send, so that a bridge that has
nothing to copy opens no new epoch. Several sources into one topic end it when all of them have ended.

**A full destination** holds the link up; after ``PATIENCE`` seconds without progress its records go back to the source,
so that a ``drop_oldest`` topic, which never waits for a reader, can drop them (counted ``lapped``) instead of standing
still.

**Invariants.** The account balances at every instant: received = delivered (the destination has acknowledged the copy)
+ dropped + held, at ``bridge`` (in hand) or ``source`` (given back, will come again). No record is acknowledged before
its copy is, except where it is counted as dropped.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from comux.account import Account, AccountSnapshot
from comux.errors import ComuxError, UnknownTopicError
from comux.transport import Start

from .ends import Engine, Standby, Target
from .intake import Intake
from .outlet import Outlet

_log = logging.getLogger("comux.recording")

_BACKOFF: Final = (0.1, 5.0)
_STANDBY: Final = 1.0

State = Literal["starting", "copying", "waiting", "failed", "standby", "ended", "done", "gone", "stopped"]


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """How one topic is copied; see ``Bridge``. ``group`` is ``None`` in lossy mode."""

    group: str | None
    start: Start
    once: bool
    drop_too_large: bool


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """One topic as it stands.

    Attributes:
        topic, destination: Names of the source's and of the destination's topic.
        group: In which the source is read; ``None``: lossy.
        state: ``starting``; ``copying``; ``waiting`` (an engine or a topic is away or full, tried again); ``failed``
            (something has to be changed; tried again all the same); ``standby`` (another bridge does it); ``ended``
            (the source has, everything is copied); ``done`` (``once``); ``gone`` (the source was deleted);
            ``stopped``.
        reason: Why, for ``waiting``, ``failed`` and ``standby``.
        lag: Records of the source not yet read, when last seen.
        marked: Copies sent with ``comux-duplicate``.
        ends: Ends of the stream carried over.
        account: received = delivered + dropped (``duplicate``, ``lapped``, ``corrupt``, ``aborted``, ``drop_newest``,
            ``too_large``, ``loop``, ``removed``, ``returned``) + held (``bridge``, ``source``).
    """

    topic: str
    destination: str
    group: str | None
    state: State
    reason: str
    lag: int
    marked: int
    ends: int
    account: AccountSnapshot

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON-ready dictionary."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name != "account"}
        return plain | {"account": self.account.as_dict()}


class Link:
    """Copies one topic in a thread of its own, ``comux-bridge-<topic>``.

    Args:
        source, destination: Where from and to.
        topic: Of the source.
        target: The topic of the destination.
        options: See ``LinkOptions``.
        changed: Called with the status when state or reason changed, in the link's thread.
        vanishes: Whether the link is over when the source is deleted (it was found by a pattern).
        owns: Whether the topic is this process' in a group that shares topics; ``None``: there is no such group.
    """

    def __init__(
        self,
        source: Engine,
        destination: Engine,
        topic: str,
        target: Target,
        options: LinkOptions,
        changed: Callable[[LinkStatus], None],
        vanishes: bool,
        owns: Callable[[], bool] | None,
    ) -> None:
        self.topic = topic
        self.account = Account()
        self._source = source
        self._target = target
        self._options = options
        self._changed = changed
        self._vanishes = vanishes
        self._stop = threading.Event()
        self._yields = False
        self._state: State = "starting"
        self._reason = ""
        self._intake = Intake(source, topic, options.group, options.start, self.account, self._stop, owns)
        self._outlet = Outlet(destination, target, source, topic, options.drop_too_large, self._intake, self._stop)
        self._thread = threading.Thread(target=self._run, name=f"comux-bridge-{topic}", daemon=True)

    # -- life ------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start the thread; once."""
        self._target.join(self)
        self._thread.start()

    def stop(self, *, yields: bool = False) -> None:
        """Ask it to end after the record it is at; does not wait.

        Args:
            yields: Another bridge goes on with the topic.
        """
        self._yields = yields
        self._stop.set()
        self._intake.wakeup()

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    @property
    def over(self) -> bool:
        """Whether everything is done that will be."""
        return self._state in ("done", "gone", "stopped") or (self._options.once and self._state == "failed")

    def status(self) -> LinkStatus:
        """From any thread; never waits for an engine."""
        return LinkStatus(
            self.topic,
            self._target.name,
            self._options.group,
            self._state,
            self._reason,
            self._intake.lag,
            self._outlet.marked,
            self._outlet.ends,
            self.account.snapshot(),
        )

    def _tell(self, state: State, reason: str = "") -> None:
        if (state, reason) != (self._state, self._reason):
            self._state, self._reason = state, reason
            self._changed(self.status())

    def _run(self) -> None:
        pause = _BACKOFF[0]
        while not self._stop.is_set():
            before = self.account.snapshot().delivered
            try:
                if self._session():
                    self._tell("done")
                    return
            except Standby as exc:
                self._tell("standby", str(exc))
                self._stop.wait(_STANDBY)
                continue
            except ComuxError as exc:
                if not self._stop.is_set() and not self._trouble(exc):
                    return
            except Exception as exc:  # noqa: BLE001 - a mistake of ours in one link must not end the others
                _log.exception("the link of topic %r failed", self.topic)
                self._tell("failed", f"unexpected {type(exc).__name__}: {exc}")
            if self._state == "failed" and self._options.once:
                return
            pause = _BACKOFF[0] if self.account.snapshot().delivered > before else min(2 * pause, _BACKOFF[1])
            self._stop.wait(pause)
        if self._yields:
            self._target.leave(self)
            self._intake.hand_over()
            self._tell("standby", f"group {self._options.group!r} gave the topic to another bridge")
        else:
            self._tell("stopped")

    def _trouble(self, error: ComuxError) -> bool:
        """Say why the session is over; returns whether there is to be another one."""
        if self._vanishes and isinstance(error.__cause__, UnknownTopicError) and not self._source_exists():
            self._target.leave(self)
            self._tell("gone")
            return False
        self._tell("waiting" if error.retriable else "failed", str(error))
        return True

    def _source_exists(self) -> bool:
        try:
            return self.topic in self._source.broker().topics()
        except ComuxError:
            return True  # who cannot be asked has not said no

    # -- a session -------------------------------------------------------------------------------------------------

    def _session(self) -> bool:
        """Copy until something goes wrong, or a stop; returns whether everything is done (``once``)."""
        try:
            low = self._intake.open()
            self._outlet.open(low)
            self._tell("copying")
            while not self._stop.is_set():
                records = self._intake.poll()
                if records:
                    self._target.not_at_end(self)
                    self._tell("copying")
                    self._outlet.copy(records)
                    self._intake.commit()
                if (not records or self._options.once) and self._caught_up(not records):
                    return True
            return False
        finally:
            self._outlet.close()
            self._intake.close()

    def _caught_up(self, idle: bool) -> bool:
        """Carry an end over, where the source is at one; returns whether everything is done (``once``)."""
        ended = self._intake.ended()
        if ended:
            if self._target.at_end(self):
                self._outlet.end()
            self._tell("ended")
        return self._options.once and (ended or self._intake.past_goal(idle))
