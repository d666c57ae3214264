"""Futures of engines whose ``send`` has its outcome when it returns."""

from __future__ import annotations

from collections.abc import Callable

from .interface import SendFuture


class DoneFuture(SendFuture):
    """A ``send`` that was published at ``offset`` (``None``: ``drop_newest`` dropped it)."""

    __slots__ = ("_offset",)

    def __init__(self, offset: int | None) -> None:
        self._offset = offset

    def done(self) -> bool:
        return True

    def result(self, timeout: float | None = None) -> int | None:
        return self._offset

    def exception(self, timeout: float | None = None) -> BaseException | None:
        return None

    def add_done_callback(self, fn: Callable[[SendFuture], None]) -> None:
        fn(self)
