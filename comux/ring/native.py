"""The door to the C module: which build is loaded, and the failpoints of the test build.

``COMUX_RING_FAILPOINTS=1`` in the environment at import loads the build with failpoints;
``COMUX_FAILPOINT=name:nth[:action]`` then arms one at once.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final, Literal

from comux.errors import ConfigError, UnsupportedError

if not sys.platform.startswith("linux"):
    raise UnsupportedError(
        f"the local engine (shm://) needs Linux, this is {sys.platform}; use kafka:// or run comux in a Linux container"
    )

WITH_FAILPOINTS: Final = os.environ.get("COMUX_RING_FAILPOINTS") == "1"

if TYPE_CHECKING:
    from . import _ring as core
else:
    try:
        if WITH_FAILPOINTS:
            from . import _ring_failpoints as core
        else:
            from . import _ring as core
    except ImportError as error:
        raise UnsupportedError(
            f"the ring's C module is not built ({error}); install comux, or run: python setup.py build_ext --inplace"
        ) from error

__all__ = ["WITH_FAILPOINTS", "core", "failpoint", "failpoints"]
ACTIONS: Final = {"off": 0, "kill": 1, "stop": 2}


def failpoint(name: str, nth: int = 1, action: Literal["kill", "stop", "off"] = "kill") -> None:
    """Let this process die (``kill``) or stop (``stop``) at the ``nth`` pass of a failpoint, one at a time.

    Raises:
        UnsupportedError: this is the build without failpoints.
        ConfigError: no failpoint has this name, or the action is unknown.
    """
    _need_failpoints()
    if action not in ACTIONS:
        raise ConfigError(f"action {action!r}: one of {', '.join(ACTIONS)}")
    core.failpoint(name, nth, ACTIONS[action])


def failpoints() -> list[str]:
    """Names of all failpoints, sorted.

    Raises:
        UnsupportedError: this is the build without failpoints.
    """
    _need_failpoints()
    return sorted(set(core.failpoints()))


def _need_failpoints() -> None:
    if not WITH_FAILPOINTS:
        raise UnsupportedError("failpoints are in the test build: set COMUX_RING_FAILPOINTS=1 before comux is imported")


def _arm_from_environment() -> None:
    wanted = os.environ.get("COMUX_FAILPOINT", "")
    if not wanted or not WITH_FAILPOINTS:
        return
    name, _, rest = wanted.partition(":")
    nth, _, action = rest.partition(":")
    if not nth.isdigit() or (action and action not in ACTIONS):
        raise ConfigError(f"COMUX_FAILPOINT={wanted!r}: name:nth[:kill|stop|off]")
    core.failpoint(name, int(nth), ACTIONS[action or "kill"])


_arm_from_environment()
