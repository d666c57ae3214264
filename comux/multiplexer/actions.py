"""What may be done to sources while they run, beside making, changing and ending them (``core``)."""

from __future__ import annotations

import math
import time
from typing import Any, Final

from comux.control import Change
from comux.errors import ComuxError, ConfigError, UnsupportedError, WaitTimeoutError
from comux.multiplexer.core import Core
from comux.multiplexer.source import Source
from comux.multiplexer.wishes import SeekTo, Wish, as_shown
from comux.options import CamId, SourceOptions, check_positive

_WORDS: Final = ("beginning", "end", "keyframe")
ANSWER: Final = 1.0  #: seconds that a seek waits for its source
PICTURE: Final = 2.0  #: seconds that a snapshot waits for a picture


def carry_out(core: Core, change: Change) -> None:
    """Do what a registry's change says.

    Raises:
        ComuxError: as ``Core``'s methods.
    """
    if isinstance(change.value, SourceOptions):
        core.create(change.value)
    elif change.value is not None:
        core.update(change.cam_id, change.value)
    else:
        core.delete(change.cam_id)


class StatedSources:
    """The program's sources as durable control knows them (``comux.control.Sources``).

    Args:
        core: Of the manager.
    """

    def __init__(self, core: Core) -> None:
        self._core = core

    def stated(self, cam_id: CamId) -> dict[str, Any] | None:
        """What the program's list or registry states of a source."""
        spec = self._core.settings.stated.get(str(cam_id))
        return None if spec is None else spec.shown()

    def restore(self, change: Change) -> bool:
        """Do again what a command had done in an earlier life; before the start, where what is missing is waited for.

        Raises:
            ComuxError: as ``Core``'s methods.
        """
        core, key = self._core, str(change.cam_id)
        if isinstance(change.value, SourceOptions):
            if key in core.specs:
                return False
            core.create(change.value, strict=False)
        else:
            carry_out(core, change)
        core.settings.restored.add(key)
        return True


def pause(core: Core, cam_id: CamId | None, *, paused: bool) -> dict[str, str]:
    """Stop fetching from a source, or go on; ``None``: all sources.

    Returns:
        Each one's state.

    Raises:
        UnknownSourceError.
    """
    chosen = [spec.cam_id for spec in core.specs.values()] if cam_id is None else [cam_id]
    states: dict[str, str] = {}
    for each in chosen:
        core.remember(each, paused=paused)
        source = core.table.find(each)
        if source is not None:
            source.pause() if paused else source.resume()
        states[str(each)] = "not started" if source is None else str(source.state)
    return states


def check_seek(to: object) -> SeekTo:
    """A place to go to.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(to, str) and to in _WORDS:
        return to  # type: ignore[return-value]
    if isinstance(to, (int, float)) and not isinstance(to, bool) and 0 <= to < math.inf:
        return to
    raise ConfigError(
        f"seek to {str(to)[:80]!r}: give an offset (a whole number), a Unix time in seconds (a float), or one of "
        f"{', '.join(_WORDS)}"
    )


def seek(core: Core, cam_id: CamId, to: object, timeout: float = ANSWER) -> int | None:
    """Go on somewhere else in a source's topic; one that has ended is started again.

    Args:
        core: Of the manager.
        cam_id: Of the source.
        to: See ``check_seek``.
        timeout: Seconds to wait for its thread.

    Returns:
        The offset, or ``None`` where it is not there yet: the source will go there when it is connected.

    Raises:
        UnknownSourceError. ConfigError: no place. UnsupportedError: it reads for a group.
    """
    place = check_seek(to)
    source = core.find(cam_id)
    if source.options.group is not None:
        raise UnsupportedError(
            f"source {cam_id!r} reads for group {source.options.group!r}, whose members share its records: it cannot "
            "seek"
        )
    wish: Wish
    if source.finished and not source.removed:
        wishes: list[Wish] = []
        core.restart(cam_id, prepare=lambda new: wishes.append(new.wishes.seek(place)))
        wish = wishes[0]
    else:
        wish = source.seek(place)
    found: int | None = wish.wait(timeout)
    where = "when it is connected" if found is None else f"offset {found}"
    core.events.emit("source.seek", f"to {to!r}: {where}", source=str(cam_id))
    return found


def snapshot(core: Core, cam_id: CamId | None, width: int, timeout: float = PICTURE) -> dict[str, dict[str, Any]]:
    """A source's next picture, small; ``None``: every source's. The loop gets it as well.

    Args:
        core: Of the manager.
        cam_id: Of the source.
        width: Pixels across, at most.
        timeout: Seconds to wait for pictures, all together.

    Returns:
        By id: ``index``, ``timestamp`` (Unix seconds), and what ``as_shown`` says; or ``error``.

    Raises:
        UnknownSourceError. ConfigError: a wrong width. ComuxError: the one source gives no picture in time.
    """
    check_positive(width, "width")
    sources = list(core.table.sources) if cam_id is None else [core.find(cam_id)]
    wishes = [(source, source.wishes.picture()) for source in sources]
    deadline = time.monotonic() + timeout
    shown: dict[str, dict[str, Any]] = {}
    for source, wish in wishes:
        try:
            shown[str(source.cam_id)] = _shown(source, wish, width, max(0.0, deadline - time.monotonic()), timeout)
        except ComuxError as exc:
            if cam_id is not None:
                raise
            shown[str(source.cam_id)] = {"error": str(exc)}
    return shown


def _shown(source: Source, wish: Wish, width: int, left: float, timeout: float) -> dict[str, Any]:
    found = None if source.store.blocked else wish.wait(left)
    if found is None:  # none came: it waits for the loop, or for its camera
        found = source.store.newest_copy()
    if found is None:
        raise WaitTimeoutError(
            f"source {source.cam_id!r} gave no picture within {timeout:g} s: it is {source.state} ({source.reason})"
        )
    record, array = found
    return {"index": record.offset, "timestamp": record.timestamp_ns / 1e9, **as_shown(array, width)}
