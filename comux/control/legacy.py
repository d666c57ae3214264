"""``Control``, by the first comux's words: the same controller underneath.

Differences that are meant: nothing is printed (results are answers and events), the group is gone, a failing act ends
nothing, and ``kill`` waits for the thread instead of sleeping.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from comux.account import AccountSnapshot
from comux.control.controller import Controller
from comux.control.interface import Act
from comux.errors import UnknownActionError, UnsupportedError
from comux.telemetry import EventLog
from comux.transport import Broker, connect


class Control:
    """Commands of one topic, for one comux.

    Args:
        topic: The config topic.
        bootstrap_servers: The address of its engine (also a list of ``host:port``), or an open ``Broker``.
        acts: The user's actions: ``acts[name](comux, value)``.
        comux: What is controlled; its ``create, update, delete, status`` are the built-in actions.
        options: Of ``Controller``.

    Nothing happens before ``connect``, ``sub``, ``start`` or ``run``. A context manager that starts on entry.
    """

    def __init__(
        self,
        topic: str,
        bootstrap_servers: str | Sequence[str] | Broker,
        acts: Mapping[str, Act] | None = None,
        comux: Any = None,
        **options: Any,
    ) -> None:
        self.topic = topic
        self.bootstrap_servers = bootstrap_servers
        self.acts = dict(acts or {})
        self.comux = comux
        self.events: EventLog = options.pop("events", None) or EventLog()
        self._options = options
        self._controller: Controller | None = None

    @property
    def controller(self) -> Controller:
        """The controller underneath; connects where that has not happened."""
        self.connect()
        assert self._controller is not None
        return self._controller

    def connect(self) -> None:
        """Open the engine. Idempotent.

        Raises:
            ComuxError: the address is unknown, or the engine cannot be reached.
        """
        if self._controller is None:
            servers = self.bootstrap_servers
            mine = not isinstance(servers, Broker)
            broker = servers if isinstance(servers, Broker) else connect(servers)
            try:
                self._controller = Controller(
                    broker,
                    self.topic,
                    self.comux,
                    acts=self.acts,
                    events=self.events,
                    owns_broker=mine,
                    **self._options,
                )
            except BaseException:
                if mine:
                    broker.close()
                raise

    def sub(self) -> None:
        """Take the place from which commands will be read: the topic's end. Idempotent."""
        self.controller.connect()

    def run(self) -> None:
        """Carry out commands in the calling thread until ``kill()``."""
        self.controller.run()

    def start(self) -> None:
        """Carry out commands in a thread of its own."""
        self.controller.start()

    def act(self, action: str, value: Any = None) -> Any:
        """Carry out one action directly.

        Returns:
            The act's result, or exactly ``✘ No action '<action>' defined!``.
        """
        act: Callable[[Any, Any], Any] | None = self.acts.get(action)
        if act is not None:
            return act(self.comux, value)
        try:
            return self.controller.act(action, value)
        except (UnknownActionError, UnsupportedError):
            return f"✘ No action '{action}' defined!"

    @property
    def offset(self) -> int:
        """Offset of the next command to be read; -1 before ``sub``."""
        return self.controller.offset

    @property
    def topic_last_offset(self) -> int:
        """High-water mark of the config topic."""
        return self.controller.topic_last_offset

    def account(self) -> AccountSnapshot:
        """The commands' balance."""
        return self.controller.account()

    def kill(self) -> None:
        """End; finishes the command being carried out. Twice is fine."""
        if self._controller is not None:
            self._controller.close()

    close = kill

    def __enter__(self) -> Control:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()
