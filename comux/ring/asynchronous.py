"""Waiting for a ring's handle in an event loop: its descriptor, and no thread of the interpreter."""

from __future__ import annotations

import asyncio
import os
from typing import Protocol


class HasDescriptor(Protocol):
    """A handle with a ``fileno`` that is readable where there is something to be looked at."""

    def fileno(self) -> int: ...


async def readable(handle: HasDescriptor) -> None:
    """Return when ``handle`` has something to be looked at, or was closed. Cancelling it takes nothing from anybody.

    Each wait has a copy of the descriptor: several tasks may wait for one handle, and a handle that is closed meanwhile
    leaves the copies readable, so that nobody waits for a number that means another file by then.
    """
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def tell() -> None:
        if not ready.done():
            ready.set_result(None)

    copy = os.dup(handle.fileno())
    try:
        loop.add_reader(copy, tell)
        try:
            await ready
        finally:
            loop.remove_reader(copy)
    finally:
        os.close(copy)
