"""What tests of comux and of its extensions build on.

Lives here: ``TransportContract``, the promises of ``comux.transport.interface`` as tests that every engine runs.
May import: every room, and pytest (an optional dependency: only the modules of this room import it, on first use).
Must never know: a particular engine. Nothing imports this room at run time.

An engine's own test module::

    import pytest

    pytest.register_assert_rewrite("comux.testing")  # in conftest.py: readable failures

    from comux.testing import TransportContract


    class TestMine(TransportContract):
        def make_broker(self, place): ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .transport_contract import TransportContract

__all__ = ["TransportContract"]


def __getattr__(name: str) -> Any:
    if name == "TransportContract":
        from .transport_contract import TransportContract

        return TransportContract
    raise AttributeError(f"module 'comux.testing' has no attribute {name!r}")
