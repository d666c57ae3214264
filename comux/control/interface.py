"""What the controller needs of the thing it controls.

A protocol of attributes rather than of exact signatures: the manager's methods keep their own, richer ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

Act = Callable[[Any, Any], Any]
"""A user's action: called as ``act(comux, value)`` in the acts' own thread; what it returns is the answer's result."""


class Target(Protocol):
    """What is controlled. Every method is called from the controller's thread and returns a JSON-ready mapping.

    They raise ``ComuxError`` where the command cannot be carried out, and then have changed nothing. Further actions
    (``pause, resume, seek, set_rate, snapshot, stop``) are carried out by the methods of that name, where there are.
    """

    @property
    def create(self) -> Callable[..., Mapping[str, Any]]:
        """``create(**spec)``: a new source; the keys of ``SourceOptions`` that the command gave (``cam_id`` too)."""

    @property
    def update(self) -> Callable[..., Mapping[str, Any]]:
        """``update(cam_id, **changes)``: change one source; the keys of ``SourceOptions`` that the command gave."""

    @property
    def delete(self) -> Callable[..., Mapping[str, Any]]:
        """``delete(cam_id)``: end one source and free what it holds."""

    @property
    def status(self) -> Callable[..., Mapping[str, Any]]:
        """``status()``: everything as it stands."""
