"""From what a registry states to what runs: the difference, and the thread that carries it out.

Lives here: ``Change``, ``difference`` and ``Watcher``. May import: what ``control`` may. Must never know: what carries
a change out.

**Whose sources.** A watcher compares what its registry states now with what that registry stated before and was carried
out, never with what runs. So a source that was made by a command is none of its business, and neither is a setting that
a command changed, until the registry says something new about it.

**Trouble.** A registry that cannot be read, or states something wrong, changes no source: there is an event and a field
of ``status``, and another try after a pause that grows. A change that fails (the topic of a new camera is not there
yet) is tried again likewise; the others are carried out meanwhile.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from comux.control.registry import Registry
from comux.errors import ClosedError, ConfigError, UnknownSourceError
from comux.options import CamId, SourceOptions
from comux.telemetry import EventLog

_PAUSE_FIRST: Final = 0.5
_PAUSE_MOST: Final = 30.0


@dataclass(frozen=True, slots=True)
class Change:
    """One step from what runs to what is stated.

    Attributes:
        action: What to do.
        cam_id: With which source.
        value: ``create``: its ``SourceOptions``; ``update``: the settings that change; ``delete``: ``None``.
    """

    action: Literal["create", "update", "delete"]
    cam_id: CamId
    value: SourceOptions | Mapping[str, Any] | None = None


def difference(
    desired: Iterable[SourceOptions], actual: Iterable[SourceOptions], defaults: Mapping[str, Any] | None = None
) -> tuple[Change, ...]:
    """The changes that make ``actual`` what is ``desired``; deletions first, so that no two sources want one topic.

    Args:
        desired, actual: Sources by what is said of each; ids ``1`` and ``"1"`` are one.
        defaults: What holds for a setting of which nothing is said any more; else the default of ``SourceOptions``.
    """
    wanted = {str(source.cam_id): source for source in desired}
    there = {str(source.cam_id): source for source in actual}
    deleted = [Change("delete", source.cam_id) for key, source in there.items() if key not in wanted]
    updated = [
        Change("update", there[key].cam_id, changes)
        for key, source in wanted.items()
        if key in there and (changes := _changes(source, there[key], defaults or {}))
    ]
    created = [Change("create", source.cam_id, source) for key, source in wanted.items() if key not in there]
    return (*deleted, *updated, *created)


def _changes(wanted: SourceOptions, there: SourceOptions, defaults: Mapping[str, Any]) -> dict[str, Any]:
    given, had = ({name: getattr(each, name) for name in each.model_fields_set} for each in (wanted, there))
    changes = {name: value for name, value in given.items() if name not in had or had[name] != value}
    for name in had.keys() - given.keys():
        field = SourceOptions.model_fields[name]
        value = defaults[name] if name in defaults else field.get_default(call_default_factory=True)
        if had[name] != value:
            changes[name] = value
    changes.pop("cam_id", None)
    return changes


class Watcher:
    """Carries out what a registry states, as it changes, in a thread of its own.

    Args:
        registry: Is closed with the watcher: nothing else ends its waiting.
        apply: Carries one change out, in the watcher's thread; raises where it cannot.
        events: Gets ``registry.lost``, ``registry.back`` and ``registry.failed``.
        stated: What the registry stated when it was last fetched, which runs already.
        defaults: See ``difference``; asked at each change.
        pause_first, pause_most: Seconds between two tries.

    Thread-safe. In a child of a fork it does nothing.
    """

    def __init__(
        self,
        registry: Registry,
        apply: Callable[[Change], Any],
        *,
        events: EventLog,
        stated: Iterable[SourceOptions] = (),
        defaults: Callable[[], Mapping[str, Any]] = dict,
        pause_first: float = _PAUSE_FIRST,
        pause_most: float = _PAUSE_MOST,
    ) -> None:
        self._registry = registry
        self._apply = apply
        self._events = events
        self._defaults = defaults
        self._pauses = (pause_first, pause_most)
        self._desired = tuple(stated)
        self._applied = {str(source.cam_id): source for source in self._desired}
        self._trouble: tuple[float, str] | None = None  # Unix seconds of the first of these errors, text of the last
        self._failed: dict[str, str] = {}
        self._stop = threading.Event()
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="comux-registry", daemon=True)
        self._starting = threading.Lock()

    def start(self) -> None:
        """Begin to watch. Idempotent; nothing after ``close``."""
        with self._starting:
            if not self._stop.is_set() and self._thread.ident is None:
                self._thread.start()

    def close(self, timeout: float = 5.0) -> None:
        """End the thread and close the registry; a change under way is finished. Idempotent.

        Args:
            timeout: Seconds to wait for the thread at most.
        """
        if os.getpid() != self._pid:
            return
        with self._starting:
            self._stop.set()
        self._registry.close()
        if self._thread.ident is None or self._thread is threading.current_thread():
            return
        self._thread.join(timeout)
        if self._thread.is_alive():
            text = f"the registry's thread has not ended {timeout:g} s after close; not waiting longer"
            self._events.emit("registry.stuck", text, level=logging.WARNING)

    def status(self) -> dict[str, Any]:
        """JSON-ready: ``watching``; ``unreachable_since`` (Unix seconds) and ``error`` while the registry cannot be
        used; ``failed``: the errors of changes that are tried again, by id. Never waits."""
        trouble = self._trouble
        return {
            "watching": self._thread.is_alive(),
            "unreachable_since": None if trouble is None else trouble[0],
            "error": None if trouble is None else trouble[1],
            "failed": dict(self._failed),
        }

    # -- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        first, most = self._pauses
        pause, fetch = first, False
        while not self._stop.is_set():
            try:
                fetch = fetch or self._registry.wait_for_change(pause if self._failed else None)
                if self._stop.is_set():
                    return
                if fetch:
                    self._desired = self._registry.fetch()
                    fetch, pause = False, first
                    self._well()
                elif self._failed:
                    pause = min(2 * pause, most)
                else:  # it had no deadline
                    raise ClosedError("the registry was closed by somebody else")
            except ClosedError as exc:
                if not self._stop.is_set():
                    self._ill(exc)
                return
            except Exception as exc:  # noqa: BLE001 - whatever a registry raises, sources go on
                if self._stop.is_set():
                    return
                self._ill(exc)
                # What is wrong in it stays so until it changes; what could not be read may have changed meanwhile.
                fetch = not isinstance(exc, ConfigError)
                self._stop.wait(pause)
                pause = min(2 * pause, most)
                continue
            self._carry_out()

    def _carry_out(self) -> None:
        failed: dict[str, str] = {}
        for change in difference(self._desired, self._applied.values(), self._defaults()):
            if self._stop.is_set():
                return
            key = str(change.cam_id)
            try:
                self._apply(change)
            except Exception as exc:  # noqa: BLE001 - one source's trouble is not the others'
                if not (change.action == "delete" and isinstance(exc, UnknownSourceError)):  # somebody was faster
                    failed[key] = f"{change.action}: {type(exc).__name__}: {exc}"
                    if self._failed.get(key) != failed[key]:
                        text = f"what the registry states was not carried out, trying again: {failed[key]}"
                        self._events.emit("registry.failed", text, source=key, level=logging.WARNING)
                    continue
            if change.action == "delete":
                del self._applied[key]
            else:
                self._applied[key] = next(source for source in self._desired if str(source.cam_id) == key)
        self._failed = failed

    def _ill(self, exc: Exception) -> None:
        before, text = self._trouble, f"{type(exc).__name__}: {exc}"
        self._trouble = (time.time() if before is None else before[0], text)
        if before is None or before[1].partition(":")[0] != type(exc).__name__:
            self._events.emit("registry.lost", f"sources stay as they are: {text}", level=logging.WARNING)

    def _well(self) -> None:
        before, self._trouble = self._trouble, None
        if before is not None:
            seconds = time.time() - before[0]
            self._events.emit("registry.back", f"the registry can be used again after {seconds:.1f} s")
