"""A program that runs elsewhere, reached through its control topic: what it does is asked of it, as commands.

For the command line, and for whoever brings a running program to what a cameras file states (``apply``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

from comux.control.client import send_command
from comux.control.commands import LOCAL_ONLY, CommandLimits, read_envelope, reply_topic_of
from comux.control.desired import Change, difference
from comux.control.replies import reply_spec
from comux.errors import CommandError, ComuxError
from comux.options import SourceOptions
from comux.records import Record
from comux.transport import Broker, connect, for_engine


@dataclass(frozen=True, slots=True)
class Applied:
    """One change, and what came of it.

    Attributes:
        change: It.
        error: Why it was not carried out; ``None``: it was.
    """

    change: Change
    error: str | None = None


class Remote:
    """A running program. A context manager; holds a connection from entry on.

    Args:
        address: Engine of the control topic.
        topic: The control topic.
        target: Name of the client meant; ``None``: whoever answers first.
        timeout: Seconds that an answer is waited for.
        options: Of the engine's client.

    Raises:
        ComuxError: the engine cannot be reached.
    """

    def __init__(
        self,
        address: str,
        topic: str,
        *,
        target: str | None = None,
        timeout: float = 5.0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.topic = topic
        self.target = target
        self.timeout = timeout
        self._broker: Broker = connect(address, **(options or {}))

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back. Idempotent."""
        self._broker.close()

    def answer(self, action: str, value: Any = None) -> dict[str, Any]:
        """The answer to a command, whether it was carried out or not; see ``send_command``.

        Raises:
            WaitTimeoutError: nobody answered. UnknownTopicError: there is no such control topic.
        """
        return send_command(self._broker, self.topic, action, value, timeout=self.timeout, target=self.target)

    def ask(self, action: str, value: Any = None) -> Any:
        """What a command gave.

        Raises:
            CommandError: it was not carried out; the message says why. And as ``answer``.
        """
        answer = self.answer(action, value)
        if not answer.get("ok"):
            error = answer.get("error") or {}
            raise CommandError(f"{answer.get('responder') or 'it'} did not {action}: {error.get('message')}")
        if answer.get("note"):
            raise CommandError(f"{action}: {answer['note']}")
        return answer.get("result")

    def sources(self, known: Iterable[SourceOptions] = ()) -> tuple[SourceOptions, ...]:
        """What is said of each of its sources, in order. Whoever answered is the ``target`` from now on.

        Args:
            known: Stand in for secrets, which the program does not tell, where all else is the same.

        Raises:
            CommandError: it told nothing of the kind, or a group says which sources it has. And as ``answer``.
        """
        status = self.ask("status")
        self.target = self.target or status.get("client")
        if status.get("fleet"):
            raise CommandError(
                f"{self.target} shares its cameras through group {status['fleet'].get('group')!r}, which says who has "
                "which: they are not stated one by one"
            )
        stated = status.get("stated")
        if not isinstance(stated, Mapping):
            raise CommandError(f"what obeys topic {self.topic!r} does not say what its sources are")
        here = {str(source.cam_id): source for source in known}
        return tuple(_source(settings, here.get(key)) for key, settings in stated.items())

    def overhear(self, start: Literal["beginning", "end"] = "end") -> Iterator[dict[str, Any]]:
        """Commands and answers as they come, JSON-ready: ``kind`` (``"command"`` or ``"answer"``), ``offset``,
        ``timestamp`` (Unix seconds), ``action``, ``value``; of a command ``request_id, target``, of an answer
        ``request_id, responder, ok``. Blocks until ``close``, from any thread.

        Raises:
            ClosedError: closed. UnknownTopicError: there is no such control topic.
        """
        self._broker.topic(self.topic)
        replies = reply_topic_of(self.topic)
        if replies not in self._broker.topics():
            self._broker.create_topic(for_engine(self._broker, reply_spec(replies)), exist_ok=True)
        with self._broker.consumer([self.topic, replies], start=start, on_end="wait") as consumer:
            while True:
                found = consumer.poll(timeout=None, max_records=64)  # of two topics, each in its own order
                for record in sorted(found, key=lambda record: record.timestamp_ns):
                    yield _command(record) if record.topic == self.topic else _answer(record)

    def carry_out(self, change: Change) -> None:
        """Have a change made.

        Raises:
            CommandError: it cannot be. And as ``answer``.
        """
        if change.action == "delete":
            self.ask("delete", change.cam_id)
            return
        if isinstance(change.value, SourceOptions):
            settings = {name: getattr(change.value, name) for name in change.value.model_fields_set}
            plain = change.value.plain(settings)
        else:
            settings = dict(change.value or {})
            plain = SourceOptions(cam_id=change.cam_id, **settings).plain(settings)
        for name in LOCAL_ONLY & settings.keys():
            raise CommandError(f"{name} can be set by the program only: start it again with this file")
        self.ask(change.action, {**plain, "cam_id": change.cam_id})


def changes_to(
    there: Iterable[SourceOptions], desired: Iterable[SourceOptions], *, delete: bool = True
) -> tuple[Change, ...]:
    """What makes the sources that are ``there`` those that are desired.

    Args:
        there: As ``Remote.sources`` gave them.
        desired: Sources.
        delete: Whether sources that nobody desires are to go.
    """
    return tuple(change for change in difference(desired, there) if delete or change.action != "delete")


def apply(
    remote: Remote, changes: Iterable[Change], told: Callable[[Applied], Any] = lambda applied: None
) -> tuple[Applied, ...]:
    """Have changes made, one after the other; one that fails does not keep the others from it.

    Args:
        remote: The program.
        changes: In order.
        told: Called after each.
    """
    out: list[Applied] = []
    for change in changes:
        try:
            remote.carry_out(change)
        except ComuxError as exc:
            out.append(Applied(change, str(exc)))
        else:
            out.append(Applied(change))
        told(out[-1])
    return tuple(out)


def _command(record: Record) -> dict[str, Any]:
    envelope = read_envelope(record, CommandLimits())
    return {
        "kind": "command",
        "offset": record.offset,
        "timestamp": record.timestamp_ns / 1e9,
        "action": envelope.action,
        "request_id": envelope.request_id,
        "target": envelope.target,
        "value": _value(record),
    }


def _answer(record: Record) -> dict[str, Any]:
    body = _value(record)
    said = body if isinstance(body, dict) else {}
    return {
        "kind": "answer",
        "offset": record.offset,
        "timestamp": record.timestamp_ns / 1e9,
        "action": said.get("action"),
        "request_id": said.get("request_id"),
        "responder": said.get("responder"),
        "ok": said.get("ok"),
        "value": said.get("result") if said.get("ok") else said.get("error", body),
    }


def _value(record: Record) -> Any:
    """A record's value: JSON where it is, else text, with what is none of it shown as escapes."""
    data = bytes(record.value or b"")
    if not data:
        return None
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return data.decode("utf-8", "backslashreplace")


def _source(settings: Mapping[str, Any], known: SourceOptions | None) -> SourceOptions:
    """A source by what its program says; secrets, which are hidden in that, are those of ``known`` where all but they
    agree."""
    values = dict(settings)
    if known is not None:
        shown = known.stated()
        for name in known.model_fields_set & values.keys():
            if shown.get(name) == values[name]:
                values[name] = getattr(known, name)
    return SourceOptions(**values)
