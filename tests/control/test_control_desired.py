"""`difference`, and the thread that carries it out: every trouble of a registry leaves the sources as they are."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from service_fixtures import until

from comux.control import Change, ListRegistry, Registry, Watcher, difference
from comux.errors import ConfigError, ConnectError, UnknownSourceError
from comux.options import SourceOptions
from comux.telemetry import EventLog

LONG = 30.0


def sources(*settings: Any) -> tuple[SourceOptions, ...]:
    return ListRegistry(settings).fetch()


def test_difference_is_what_was_created_changed_and_deleted() -> None:
    actual = sources("a", {"cam_id": "b", "rate": 5.0, "W": 64, "H": 48}, "c")
    desired = sources("a", {"cam_id": "b", "rate": 6.0, "W": 64, "H": 48}, "d")
    assert difference(desired, actual) == (
        Change("delete", "c"),
        Change("update", "b", {"rate": 6.0}),
        Change("create", "d", desired[2]),
    )
    assert difference(desired, desired) == ()
    assert difference(sources({"cam_id": 7}), sources({"cam_id": "7"})) == ()
    assert difference((), actual) == (Change("delete", "a"), Change("delete", "b"), Change("delete", "c"))


def test_what_is_not_said_any_more_is_what_holds_for_all() -> None:
    actual = sources({"cam_id": "a", "rate": 5.0, "W": 64, "codec": "mjpeg", "client_options": {"x": 1}})
    (change,) = difference(sources("a"), actual, {"codec": "hevc"})
    assert change.value == {"rate": None, "W": None, "codec": "hevc", "client_options": {}}


class Stated(Registry):
    """A registry told by a test: what to state, or what to raise; each is one change."""

    def __init__(self, *first: Any) -> None:
        self.now: Any = sources(*first)
        self.told: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def fetch(self) -> tuple[SourceOptions, ...]:
        if isinstance(self.now, Exception):
            raise self.now
        return tuple(self.now)

    def state(self, now: Any) -> None:
        self.now = now
        self.told.put(True)

    def wait_for_change(self, timeout: float | None = None) -> bool:
        try:
            return bool(self.told.get(timeout=timeout))
        except queue.Empty:
            return False

    def close(self) -> None:
        super().close()
        self.told.put(False)


class Done:
    """Carries changes out by writing them down; what a test says fails."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, Any]] = []
        self.failing: dict[Any, Exception] = {}

    def __call__(self, change: Change) -> None:
        if change.cam_id in self.failing:
            raise self.failing[change.cam_id]
        self.changes.append((change.action, change.cam_id))


@pytest.fixture
def watch() -> Iterator[Callable[..., tuple[Watcher, Done, EventLog]]]:
    made: list[Watcher] = []

    def start(registry: Registry) -> tuple[Watcher, Done, EventLog]:
        done, events = Done(), EventLog()
        stated = registry.fetch()
        made.append(Watcher(registry, done, events=events, stated=stated, pause_first=0.01, pause_most=0.05))
        made[-1].start()
        return made[-1], done, events

    yield start
    for watcher in made:
        watcher.close()
        assert not watcher.status()["watching"]


def test_changes_are_carried_out_once(watch: Any) -> None:
    registry = Stated("a")
    _, done, _ = watch(registry)
    registry.state(sources("a", {"cam_id": "b", "rate": 2.0}))
    registry.state(sources("a", {"cam_id": "b", "rate": 3.0}))
    registry.state(sources({"cam_id": "b", "rate": 3.0}))
    until(lambda: ("delete", "a") in done.changes, "a is deleted")
    registry.state(sources("c"))
    until(lambda: ("create", "c") in done.changes, "c is created")
    assert [each for each in done.changes if each[0] != "update"] == [
        *sorted([("create", "b"), ("delete", "a")], key=done.changes.index),
        ("delete", "b"),
        ("create", "c"),
    ]


def test_a_registry_that_is_gone_or_wrong_changes_nothing(watch: Any) -> None:
    registry = Stated("a")
    watcher, done, events = watch(registry)
    registry.state(ConnectError("no server"))
    until(lambda: watcher.status()["error"] == "ConnectError: no server", "it is told")
    since = watcher.status()["unreachable_since"]
    registry.now = ConfigError("document 3 is wrong")
    until(lambda: watcher.status()["error"] == "ConfigError: document 3 is wrong", "it was tried again")
    assert watcher.status()["unreachable_since"] == since
    assert done.changes == []
    registry.state(sources("a", "b"))
    until(lambda: done.changes == [("create", "b")], "it recovers")
    assert watcher.status()["error"] is None
    assert [event.kind for event in events.recent("registry")] == ["registry.lost", "registry.lost", "registry.back"]


def test_a_change_that_fails_is_tried_again_and_holds_up_no_other(watch: Any) -> None:
    registry = Stated("a", "x")
    watcher, done, events = watch(registry)
    done.failing = {"b": ConnectError("no topic yet"), "x": UnknownSourceError("no source 'x'")}
    registry.state(sources("a", "b", "c"))
    until(lambda: watcher.status()["failed"], "it has failed")
    assert watcher.status()["failed"] == {"b": "create: ConnectError: no topic yet"}  # x was deleted by somebody else
    assert done.changes == [("create", "c")]
    done.failing = {}
    until(lambda: done.changes == [("create", "c"), ("create", "b")], "it was tried again")
    until(lambda: not watcher.status()["failed"], "it is told")
    assert len(events.recent("registry.failed")) == 1


def test_a_registry_closed_by_somebody_else_ends_the_thread(watch: Any) -> None:
    registry = Stated("a")
    watcher, done, _ = watch(registry)
    registry.close()
    until(lambda: not watcher.status()["watching"], "the thread ends")
    assert "closed by somebody else" in watcher.status()["error"]
    assert done.changes == []


def test_a_registry_that_knows_of_no_change_waits_until_it_is_closed() -> None:
    registry = ListRegistry(["a"])
    assert registry.wait_for_change(0) is False
    answers: list[bool] = []
    wait = threading.Thread(target=lambda: answers.append(registry.wait_for_change()), name="comux-test-wait")
    wait.start()
    registry.close()
    wait.join(LONG)
    assert answers == [False]


def test_a_child_of_a_fork_leaves_the_registry_alone(watch: Any) -> None:
    watcher, _, _ = watch(Stated("a"))
    child = os.fork()
    if child == 0:
        watcher.close()
        os._exit(7 if watcher._registry._closing.is_set() else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
