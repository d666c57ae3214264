"""What durable control needs to go on after a crash: how far commands were read, and what they made of the sources.

**Problem.** A program that was killed starts again from what it states itself: a list, a file, a database. What
commands changed since is not in there, and reading the config topic from its beginning would do again what was done
long ago, where it still has the records at all.

**Algorithm.** Each client has a small topic, ``<config topic>_state_<client>``, of which the newest record counts::

    {"version": 1, "offset": 17, "last": [16, 1790000000000000000], "changes": [{"action": "create", "value": {…}}, …]}

``offset`` is the next command to be read, ``changes`` the shortest list of commands that makes of the program's own
sources what all commands before that one made of them (``Overlay``). They are one record, so they always agree.
``last`` is offset and timestamp of the newest command that was read: a topic that was made anew holds another one
there. The first start begins at the end and writes that down, so that what comes while the program is away is read.

**Order**, and what a SIGKILL leaves:

=====================  ==============================  ==============================================================
command                steps                           killed in between
=====================  ==============================  ==============================================================
changes the sources    carried out, saved, answered    before *saved*: read again, by a program that stands where it
                                                       stood, so with the same result; after: done, not answered
everything else        saved, carried out, answered    done once or not at all: a ``stop`` does not stop the next life
refused                saved, answered                 before *saved*: refused again
another client's       saved with the next              passed over again
=====================  ==============================  ==============================================================

Where saving fails, the program goes on and it is tried again: what is in the topic is older then, and still agrees.

**Trust.** Whoever may write to the state may do no more than whoever may send commands: what stands in it is checked as
commands are. There can be no secret in it, for no command may carry one. A record that is damaged, or of another
version, is told of and the one before it counts.

**Whose word.** The overlay holds what *commands* did, never what the program does by itself, for it will do that again.
The newer word counts. With each setting that a command changed stands what the program stated of it then (``was``): a
life that finds another statement goes by that one. What a watched registry states anew is forgotten here *before* it is
carried out.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from comux.control.commands import Command, arguments_of, object_of, state_topic_of
from comux.control.desired import Change
from comux.control.replies import CONTROL
from comux.errors import ComuxError, ConfigError, TopicBusyError, UnknownSourceError, UnknownTopicError
from comux.options import CamId, SourceOptions, check_topic_name
from comux.telemetry import EventLog
from comux.transport import Broker, Consumer, Producer, Start, TopicSpec, for_engine

CHANGES: Final = frozenset({"create", "update", "delete", "pause", "resume", "set_rate"})  #: actions that leave a mark
_VERSION: Final = 1
_KEPT: Final = 16  # records of a state topic where the engine keeps a number of them
_SAVE_TIMEOUT: Final = 2.0
_RETRY: Final = 1.0


_Whole = Annotated[int, Field(ge=0, lt=2**63)]


class _Step(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    action: Literal["create", "update", "delete"]
    value: dict[str, Any]
    was: dict[str, Any] = {}


class _Saved(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    version: Literal[1]
    offset: _Whole
    last: tuple[_Whole, _Whole] | None
    changes: list[_Step]


@dataclass(slots=True)
class _Mark:
    """What commands did to one id: the program's source was deleted; another one was made; settings were changed."""

    deleted: bool = False
    created: dict[str, Any] | None = None
    updated: dict[str, Any] = field(default_factory=dict)
    was: dict[str, Any] = field(default_factory=dict)  #: what the program stated of them; absent: not known


class Sources(Protocol):
    """What durable control needs to know of the program's sources, and asks to be done with them."""

    def stated(self, cam_id: CamId) -> Mapping[str, Any] | None:
        """What the program itself states of a source now, JSON-ready and without secrets; ``None``: nothing."""

    def restore(self, change: Change) -> bool:
        """Carry out what an earlier life's command had done.

        Returns:
            ``False`` where the program states the source to be created itself now, and that counts.

        Raises:
            Exception: it cannot be done.
        """


class MethodsOf:
    """The sources of any ``Target``, by its methods. What the program states is not known.

    Args:
        target: Has ``create``, ``update``, ``delete``.
    """

    def __init__(self, target: Any) -> None:
        self._target = target

    def stated(self, cam_id: CamId) -> Mapping[str, Any] | None:
        """Not known."""
        return None

    def restore(self, change: Change) -> bool:
        """By the method of that name."""
        value = change.value
        if isinstance(value, SourceOptions):
            self._target.create(**{name: getattr(value, name) for name in value.model_fields_set})
        elif value is not None:
            self._target.update(change.cam_id, **value)
        else:
            self._target.delete(change.cam_id)
        return True


class Overlay:
    """What commands made of the sources, relative to what the program states. Values are as commands have them: JSON.

    Used under the caller's lock.
    """

    def __init__(self) -> None:
        self._marks: dict[str, _Mark] = {}

    def __len__(self) -> int:
        return len(self._marks)

    def create(self, value: Mapping[str, Any]) -> None:
        """A source was made; the newest one is the last of them."""
        mark = self._marks.pop(str(value["cam_id"]), None) or _Mark()
        mark.created, mark.updated, mark.was = dict(value), {}, {}
        self._marks[str(value["cam_id"])] = mark

    def update(self, cam_id: Any, changes: Mapping[str, Any], stated: Mapping[str, Any] | None = None) -> None:
        """Settings of a source were changed.

        Args:
            cam_id: Of the source.
            changes: The settings.
            stated: What the program states of it, where that is known.
        """
        if not changes:
            return
        mark = self._marks.setdefault(str(cam_id), _Mark())
        if mark.created is not None:
            mark.created.update(changes)
            return
        mark.updated.update(changes)
        if stated is not None:
            mark.was.update({name: stated.get(name) for name in changes})

    def delete(self, cam_id: Any) -> None:
        """A source was deleted: the program's, or one that a command had made."""
        mark = self._marks.pop(str(cam_id), None) or _Mark()
        if mark.created is None or mark.deleted:
            self._marks[str(cam_id)] = _Mark(deleted=True)

    def forget(self, cam_id: Any, settings: Mapping[str, Any] | None = None) -> bool:
        """The program states a source anew, or these settings of it.

        Returns:
            Whether there was something to forget.
        """
        mark = self._marks.get(str(cam_id))
        if mark is None:
            return False
        if settings is None:
            del self._marks[str(cam_id)]
            return True
        known = mark.updated if mark.created is None else mark.created
        there = known.keys() & settings.keys() - {"cam_id"}
        for name in there:
            del known[name]
            mark.was.pop(name, None)
        if mark == _Mark():
            del self._marks[str(cam_id)]
        return bool(there)

    def gone(self, cam_id: Any) -> bool:
        """The program does not state a source any more: what was done to it is of no more use, if it comes again.

        Returns:
            Whether there was something to forget.
        """
        mark = self._marks[str(cam_id)]
        there = mark.deleted or bool(mark.updated)
        mark.deleted, mark.updated, mark.was = False, {}, {}
        if mark == _Mark():
            del self._marks[str(cam_id)]
        return there

    def outdated(self, stated: Callable[[CamId], Mapping[str, Any] | None]) -> dict[str, list[str]]:
        """Settings that the program states otherwise than when a command changed them, by id."""
        found: dict[str, list[str]] = {}
        for key, mark in self._marks.items():
            now = stated(key) if mark.was else None
            names = [] if now is None else [name for name, was in mark.was.items() if now.get(name) != was]
            if names:
                found[key] = names
        return found

    def steps(self) -> list[dict[str, Any]]:
        """As commands, in an order in which they can be carried out: who goes leaves its topic to who comes."""
        gone = [{"action": "delete", "value": {"cam_id": key}} for key, mark in self._marks.items() if mark.deleted]
        changed = [
            {"action": "update", "value": {"cam_id": key, **mark.updated}, **({"was": mark.was} if mark.was else {})}
            for key, mark in self._marks.items()
            if mark.updated
        ]
        made = [
            {"action": "create", "value": mark.created} for mark in self._marks.values() if mark.created is not None
        ]
        return [*gone, *changed, *made]

    def take(self, steps: list[_Step]) -> None:
        """Begin with what ``steps`` gave."""
        self._marks = {}
        for step in steps:
            cam_id = step.value.get("cam_id")
            if step.action == "create" and cam_id is not None:
                self.create(step.value)
            elif step.action == "update":
                self.update(cam_id, {name: value for name, value in step.value.items() if name != "cam_id"})
                mark = self._marks.get(str(cam_id))
                if mark is not None:
                    mark.was = {name: was for name, was in step.was.items() if name in mark.updated}
            elif step.action == "delete":
                self.delete(cam_id)


class DurableState:
    """Keeps position and overlay of one client of a config topic; see the module. Thread-safe.

    Args:
        broker: Engine of the config topic.
        config_topic: Whose commands.
        client: Name of the client: the state is its own.
        schemes: Address schemes that commands may name.
        sources: The program's.
        events: Gets ``control.restored``, ``control.unrestored``, ``control.reset``, ``control.state`` (a record that
            is no use), ``control.unsaved`` and ``control.saved``.

    Attributes:
        topic: Where it is kept.
        lock: Held while a change of sources is carried out and saved, so that the two agree whoever else saves.

    Raises:
        ConfigError: the client's name cannot be part of a topic's.
    """

    def __init__(
        self,
        broker: Broker,
        config_topic: str,
        client: str,
        schemes: frozenset[str],
        sources: Sources,
        events: EventLog,
    ) -> None:
        try:
            self.topic = check_topic_name(state_topic_of(config_topic, client), "state topic")
        except ConfigError as exc:
            raise ConfigError(f"client {client!r} cannot have durable control: {exc}") from None
        if not client:
            raise ConfigError("durable control keeps its state by the client's name, which is empty; give one")
        self.lock = threading.RLock()
        self._broker = broker
        self._config_topic = config_topic
        self._client = client
        self._schemes = schemes
        self._sources = sources
        self._events = events
        self._overlay = Overlay()
        self._offset = 0
        self._last: tuple[int, int] | None = None
        self._dirty = False
        self._saved: int | None = None
        self._error: str | None = None
        self._producer: Producer | None = None
        self._restored = False
        self._start: Start | None = None
        self.backlog = 0  #: commands before this offset came while nobody was there to read them

    # -- beginning -------------------------------------------------------------------------------------------------

    def load(self, start: Start) -> Start:
        """Make the topic where it is missing, and read it. The config topic exists.

        Args:
            start: Where commands are read from at the first start ever.

        Returns:
            Where to read from.

        Raises:
            TopicBusyError: another living client of this name keeps its state there (engines that can tell).
            ComuxError: the engine refuses.
        """
        with self.lock:
            if self._start is not None:
                return self._start
            self._open()
            saved = self._newest()
            if saved is None:
                return start
            self._overlay.take(saved.changes)
            self._offset, self._last, self._saved = saved.offset, saved.last, saved.offset
            info = self._broker.topic(self._config_topic)
            if saved.offset > info.high_water + info.ended or not self._same(saved):
                text = (
                    f"topic {self._config_topic!r} was made anew since offset {saved.offset} was reached: its commands "
                    "are read from its beginning"
                )
                self._events.emit("control.reset", text, level=logging.WARNING)
                self._start = "beginning"
            else:
                self._start = saved.offset
            return self._start

    def begin(self, consumer: Consumer) -> None:
        """Reading begins; the first start ever is written down at once.

        Raises:
            ComuxError: it cannot be written.
        """
        with self.lock:
            self.backlog = consumer.end_offset()
            if self._saved is None:
                self._offset = consumer.position()
                before = self._broker.record_at(self._config_topic, self._offset - 1) if self._offset else None
                self._last = None if before is None else (before.offset, before.timestamp_ns)
                self._send()

    def restore(self) -> None:
        """Make of the program's sources what commands had made of them; once. What cannot be done is an event, and
        stays in the state: the next life tries again. What the program's own statement has overtaken is forgotten."""
        with self.lock:
            if self._restored:
                return
            self._restored = True
            for key, names in self._overlay.outdated(self._sources.stated).items():
                self._dirty = self._overlay.forget(key, dict.fromkeys(names)) or self._dirty
                text = f"the program states {', '.join(names)} anew, so what a command said before counts no more"
                self._events.emit("control.unrestored", text, source=key, action="update")
            steps, done = self._overlay.steps(), 0
            for step in steps:
                done += self._restore(step)
            if self._saved is not None:
                text = (
                    f"commands are read from offset {self._offset}; {done} of {len(steps)} changes of sources are back"
                )
                self._events.emit("control.restored", text, offset=self._offset, changes=len(steps), done=done)

    def _restore(self, step: Mapping[str, Any]) -> bool:
        action, key = step["action"], str(step["value"].get("cam_id"))
        try:
            arguments = arguments_of(Command(action, step["value"], None, True), self._schemes, self._config_topic)
            if self._sources.restore(_change(action, arguments)):
                return True
            problem, level = "the program states that source itself now", logging.INFO
            self._dirty = self._overlay.forget(key) or self._dirty
        except UnknownSourceError:
            problem, level = "the program does not state that source any more", logging.INFO
            self._dirty = self._overlay.gone(key) or self._dirty
            if action == "delete":
                return True
        except Exception as exc:  # noqa: BLE001 - one source's trouble is not the others'
            problem, level = f"{type(exc).__name__}: {exc}", logging.WARNING
        text = f"what a command did before the last end is not done again: {action}: {problem}"
        self._events.emit("control.unrestored", text, source=key, level=level, action=action)
        return False

    def _same(self, saved: _Saved) -> bool:
        """Whether the config topic still is the one that the state is of, as far as it can be told."""
        if saved.last is None:
            return True
        record = self._broker.record_at(self._config_topic, saved.last[0])
        return record is None or record.timestamp_ns == saved.last[1]

    def _newest(self) -> _Saved | None:
        """The newest record that is of use."""
        info = self._broker.topic(self.topic)
        for offset in range(info.high_water - 1, max(info.log_start, info.high_water - _KEPT) - 1, -1):
            record = self._broker.record_at(self.topic, offset)
            if record is None or record.key != self._client.encode():
                continue
            try:
                return _Saved.model_validate_json(bytes(record.value or b""))
            except ValidationError as exc:
                fault = exc.errors()[0]
                where = ".".join(map(str, fault["loc"])) or "value"
                text = (
                    f"topic {self.topic!r}: the state at offset {offset} is of no use ({where}: {fault['msg'][:200]}): "
                    "the one before it counts, if there is one"
                )
                self._events.emit("control.state", text, level=logging.ERROR, offset=offset)
        return None

    # -- what happens ----------------------------------------------------------------------------------------------

    def passed(self, offset: int, timestamp_ns: int) -> None:
        """A command was read and need not be read again."""
        with self.lock:
            self._offset, self._last = offset + 1, (offset, timestamp_ns)
            self._dirty = True

    def carried_out(self, command: Command, result: Any) -> None:
        """A command changed sources; ``result`` is what the target returned."""
        value, action = object_of(command), command.action
        with self.lock:
            self._dirty = True
            if action == "create":
                self._overlay.create(value)
            elif action == "delete":
                self._overlay.delete(value["cam_id"])
            elif action in ("pause", "resume"):
                one, everyone = value.get("cam_id"), result.get("sources", ()) if isinstance(result, Mapping) else ()
                for cam_id in everyone if one is None else (one,):
                    self._update(cam_id, {"paused": action == "pause"})
            else:
                self._update(value["cam_id"], {name: v for name, v in value.items() if name != "cam_id"})

    def _update(self, cam_id: Any, changes: Mapping[str, Any]) -> None:
        self._overlay.update(cam_id, changes, self._sources.stated(cam_id))

    @contextlib.contextmanager
    def restated(self, change: Change, unsaved: Callable[[], None]) -> Iterator[None]:
        """While what the program's registry states anew is carried out: its word counts from now on.

        Args:
            change: What it states.
            unsaved: Called where that cannot be written down now, for who tries again.
        """
        with self.lock:
            settings = change.value if change.action == "update" and isinstance(change.value, Mapping) else None
            if self._overlay.forget(change.cam_id, settings):
                self._dirty = True
                if not self.save():
                    unsaved()
            yield

    # -- keeping ---------------------------------------------------------------------------------------------------

    def save(self) -> bool:
        """Write what is not written yet; waits at most ``2`` s. Never raises for what an engine does.

        Returns:
            Whether everything is written now.
        """
        with self.lock:
            if not self._dirty:
                return True
            try:
                try:
                    self._send()
                except UnknownTopicError:  # deleted since
                    self._drop()
                    self._send()
            except ComuxError as exc:
                self._drop()
                known, self._error = self._error, f"{type(exc).__name__}: {exc}"
                if known is None:
                    text = f"topic {self.topic!r}: the state is not saved, trying again: {self._error}"
                    self._events.emit("control.unsaved", text, level=logging.WARNING, offset=self._offset)
                return False
            if self._error is not None:
                self._error = None
                self._events.emit(
                    "control.saved", f"topic {self.topic!r}: the state is saved again", offset=self._offset
                )
            return True

    def patience(self) -> float | None:
        """Seconds until ``save`` should be tried again; ``None``: nothing is to be saved."""
        return _RETRY if self._dirty else None

    def status(self) -> dict[str, Any]:
        """JSON-ready: ``topic``, saved ``offset`` of the next command, ``changes`` held, last save's ``error``."""
        return {"topic": self.topic, "offset": self._saved, "changes": len(self._overlay), "error": self._error}

    def close(self) -> None:
        """Write what is left, unless that fails already, and let go of the topic."""
        with self.lock:
            if self._error is None and self._producer is not None:
                self.save()
            self._drop()

    def _send(self) -> None:
        state = {"version": _VERSION, "offset": self._offset, "last": self._last, "changes": self._overlay.steps()}
        producer = self._producer or self._open()
        value = json.dumps(state, separators=(",", ":")).encode()
        producer.send(value, key=self._client.encode(), timeout=_SAVE_TIMEOUT).result(_SAVE_TIMEOUT)
        self._saved, self._dirty = self._offset, False

    def _open(self) -> Producer:
        if self.topic not in self._broker.topics():
            kept: dict[str, Any] = {"records": _KEPT, "data_bytes": 4 << 20, "policy": "drop_oldest", "compacted": True}
            spec = TopicSpec(self.topic, writers="one", metadata=CONTROL, **kept)
            self._broker.create_topic(for_engine(self._broker, spec), exist_ok=True)
        try:
            self._producer = self._broker.producer(self.topic, name=f"comux-state-{self._client}")
        except TopicBusyError as exc:
            raise TopicBusyError(
                f"a client {self._client!r} of topic {self._config_topic!r} runs already and keeps its state on "
                f"{self.topic!r}; give each its own client_name ({exc})"
            ) from None
        return self._producer

    def _drop(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            with contextlib.suppress(ComuxError):
                producer.close()


def _change(action: str, arguments: dict[str, Any]) -> Change:
    """What a checked command says, for whoever carries changes out."""
    if action == "create":
        return Change("create", arguments["cam_id"], SourceOptions(**arguments))
    cam_id = arguments.pop("cam_id")
    return Change("update", cam_id, arguments) if action == "update" else Change("delete", cam_id)
