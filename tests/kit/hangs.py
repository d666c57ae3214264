"""A plug-in of pytest: what tidies up after a failed test has a limit too.

pytest-timeout interrupts a test once, and pytest takes back its own limit (``faulthandler_timeout``) when a test fails,
for debuggers. A teardown that waits for what the test left stuck would then wait for ever, and say nothing. Here it
gets that limit anew.
"""

from __future__ import annotations

import faulthandler

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key as STDERR  # the one that is not captured


@pytest.hookimpl(trylast=True)
def pytest_exception_interact(node: pytest.Item | pytest.Collector) -> None:
    limit = float(node.config.getini("faulthandler_timeout") or 0)
    if limit and isinstance(node, pytest.Item):  # pytest takes it back when the test has ended
        faulthandler.dump_traceback_later(limit, exit=True, file=node.config.stash[STDERR])
