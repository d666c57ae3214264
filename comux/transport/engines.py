"""The table of engines: scheme -> who opens it, imported on first use.

A new engine is one module with ``open_broker(address, **options) -> Broker`` and one line here (or one call of
``register_engine``), nothing above it changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from comux.errors import UnknownAddressError

from .address import Address, parse_address
from .interface import Broker

Opener = Callable[..., Broker]

_engines: dict[str, str | Opener] = {
    "shm": "comux.transport.local",
    "memory": "comux.transport.memory",
    "kafka": "comux.transport.kafka",
}


def schemes() -> list[str]:
    """The schemes ``connect`` understands, sorted."""
    return sorted(_engines)


def register_engine(scheme: str, opener: str | Opener) -> None:
    """Add an engine.

    Args:
        scheme: Its address scheme.
        opener: ``opener(address, **options) -> Broker``, or the name of a module whose ``open_broker`` is that.
    """
    _engines[scheme] = opener


def connect(address: str | Sequence[str] | Address, **options: Any) -> Broker:
    """Open the engine at ``address``.

    Args:
        address: See ``comux.transport.address``. An address that names a topic is allowed; the broker offers the
            name as ``default_topic``, and it need not exist.
        options: For the engine; they win over those in the address' query.

    Returns:
        A broker; close it, or use it as a context manager.

    Raises:
        UnknownAddressError: no engine understands the address; the message lists what this version has.
        ConfigError: an option is unknown or wrong. ConnectError: the engine cannot be reached.
    """
    parsed = address if isinstance(address, Address) else parse_address(address)
    opener = _opener(parsed)
    if isinstance(opener, str):
        opener = import_module(opener).open_broker
    broker: Broker = opener(parsed, **{**parsed.query, **options})
    return broker


def check_engine(address: str | Sequence[str], options: Mapping[str, Any] | None = None) -> None:
    """Make sure that ``connect`` would find an engine for ``address``, and take these options; opens nothing.

    Args:
        address: As ``connect``'s.
        options: Checked by engines that can without connecting: those whose module has a ``check_options``.

    Raises:
        UnknownAddressError: as ``connect``. ConfigError: an option is unknown or wrong.
    """
    parsed = parse_address(address)
    opener = _opener(parsed)
    if isinstance(opener, str):
        check = getattr(import_module(opener), "check_options", None)
        if check is not None:
            check(parsed, {**parsed.query, **(options or {})})


def _opener(parsed: Address) -> str | Opener:
    opener = _engines.get(parsed.scheme)
    if opener is None:
        known = ", ".join(f"{scheme}://" for scheme in schemes())
        raise UnknownAddressError(
            f"address {parsed.text!r}: no engine {parsed.scheme}:// in this version, which has {known} (shm:// is "
            "the local"
            " one); use one of them"
        )
    return opener
