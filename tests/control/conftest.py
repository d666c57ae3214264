"""A target that keeps books of what was done to it, an engine of its own per test, and waiting under a deadline."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from comux.control import Controller
from comux.errors import UnknownSourceError
from comux.transport import Broker, connect

_numbers = itertools.count()


class FakeTarget:
    """What a manager looks like from here: sources by id, and a list of the calls."""

    def __init__(self) -> None:
        self.sources: dict[Any, dict[str, Any]] = {"cam1": {}}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.entered = threading.Event()
        self.release = threading.Event()
        self.release.set()

    def create(self, **spec: Any) -> dict[str, Any]:
        self.calls.append(("create", dict(spec)))
        self.sources[spec["cam_id"]] = spec
        return {"sources": list(self.sources)}

    def update(self, cam_id: Any, **changes: Any) -> dict[str, Any]:
        self.calls.append(("update", {"cam_id": cam_id, **changes}))
        if cam_id not in self.sources:
            raise UnknownSourceError(f"no source {cam_id!r}; there are: {', '.join(map(str, self.sources))}")
        self.sources[cam_id].update(changes)
        return self.sources[cam_id]

    def delete(self, cam_id: Any) -> dict[str, Any]:
        self.calls.append(("delete", {"cam_id": cam_id}))
        if self.sources.pop(cam_id, None) is None:
            raise UnknownSourceError(f"no source {cam_id!r}")
        return {"sources": list(self.sources)}

    def status(self) -> dict[str, Any]:
        self.entered.set()
        assert self.release.wait(20)
        return {"sources": list(self.sources)}

    def seek(self, cam_id: Any, to: Any) -> dict[str, Any]:
        self.calls.append(("seek", {"cam_id": cam_id, "to": to}))
        return {"cam_id": cam_id, "to": to}


@pytest.fixture
def broker() -> Iterator[Broker]:
    with connect(f"memory://control{next(_numbers)}") as opened:
        yield opened


@pytest.fixture
def target() -> FakeTarget:
    return FakeTarget()


@pytest.fixture
def control(broker: Broker, target: FakeTarget) -> Iterator[Callable[..., Controller]]:
    """``control(**options)``: a started controller on topic ``config``, closed after the test."""
    made: list[Controller] = []

    def start(**options: Any) -> Controller:
        controller = Controller(broker, "config", target, **options)
        made.append(controller)
        controller.start()
        return controller

    yield start
    target.release.set()
    for controller in made:
        controller.close()


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], Any]:
    """``until(condition)``: its first true value; fails after 20 s."""

    def wait(condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + 20
        while not (value := condition()):
            assert time.monotonic() < deadline, "the condition did not come true within 20 s"
            time.sleep(0.002)
        return value

    return wait
