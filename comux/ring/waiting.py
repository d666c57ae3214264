"""Waiting for any of several handles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from .handles import Member, Reader
from .native import core

H = TypeVar("H", bound=Member | Reader)


def wait_any(handles: Sequence[H], timeout: float | None = None) -> list[H]:
    """Wait until at least one of the readers and members has something to say: a record, the end, or a wakeup().

    Args:
        handles: At most 128, of any topics.
        timeout: Seconds; ``None`` waits for ever, ``0`` looks once.

    Returns:
        Those that are ready, in the given order; empty where the time passed.

    Raises:
        ClosedError: one of them is or gets closed.

    Uses no CPU while it waits (futex_waitv; kernels before 5.16 are polled in steps of 1 to 5 ms).
    """
    ready: list[H] = core.wait_any(handles, timeout)
    return ready
