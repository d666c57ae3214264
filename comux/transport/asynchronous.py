"""``async for record in consumer``: any engine's consumer in an event loop.

A record that is there is handed out at once, in the loop's own thread. Only where there is none does a thread wait in
``poll``, one for as long as the wait lasts. A task that is cancelled meanwhile wakes it up; what it may have got in
that very moment is kept and comes first when the consumer is iterated again, so that nothing is lost.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import TYPE_CHECKING

from comux.errors import EndOfStream
from comux.records import Record

if TYPE_CHECKING:
    from .interface import Consumer


class AsyncRecords:
    """The asynchronous iterator of one consumer; the same one for every ``async for`` over it."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._kept: deque[Record] = deque()

    def __aiter__(self) -> AsyncRecords:
        return self

    async def __anext__(self) -> Record:
        while not self._kept:
            try:
                self._kept += self._consumer.poll(0)
                if not self._kept:
                    self._kept += await self._wait()
            except EndOfStream:
                raise StopAsyncIteration from None
        return self._kept.popleft()

    async def _wait(self) -> list[Record]:
        loop = asyncio.get_running_loop()
        polled: asyncio.Future[list[Record]] = loop.create_future()

        def settle(records: list[Record], error: BaseException | None) -> None:
            if polled.done():
                self._kept += records
            elif error is not None:
                polled.set_exception(error)
            else:
                polled.set_result(records)

        def wait() -> None:
            records: list[Record] = []
            failure: BaseException | None = None
            try:
                records = self._consumer.poll(None)
            except BaseException as error:  # noqa: BLE001 - raised in the task that waits
                failure = error
            try:
                loop.call_soon_threadsafe(settle, records, failure)
            except RuntimeError:  # the loop is closed
                self._kept += records

        thread = threading.Thread(target=wait, name="comux-async-poll", daemon=True)
        thread.start()
        try:
            return await asyncio.shield(polled)
        except asyncio.CancelledError:
            self._consumer.wakeup()  # the thread ends now, and not when a record comes
            self._kept += await _of_the_end(polled)
            raise


async def _of_the_end(polled: asyncio.Future[list[Record]]) -> list[Record]:
    """What the poll had got when it was woken up; errors come again with the next poll."""
    try:
        return await asyncio.shield(polled)
    except asyncio.CancelledError:  # cancelled twice: settle() keeps it
        polled.cancel()
        return []
    except Exception:  # noqa: BLE001
        return []
