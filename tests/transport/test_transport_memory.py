"""The in-memory engine keeps the contract; what is its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from comux.errors import ClosedError, ConfigError, UnknownTopicError
from comux.testing import TransportContract
from comux.transport import Broker, TopicSpec, connect, memory


def name_of(place: Path) -> str:
    return f"contract-{abs(hash(place))}"


class TestMemory(TransportContract):
    def make_broker(self, place: Path) -> Broker:
        return connect(f"memory://{name_of(place)}")

    @pytest.fixture(autouse=True)
    def _forget(self, place: Path) -> Iterator[None]:
        yield
        memory.discard(name_of(place))


@pytest.fixture
def store() -> Iterator[str]:
    yield "own"
    memory.discard("own")


def test_a_name_is_one_store(store: str) -> None:
    with connect(f"memory://{store}") as a, connect(f"memory://{store}/cam1") as b, connect("memory://another") as c:
        a.create_topic(TopicSpec("cam1"))
        assert b.topics() == ["cam1"]
        assert b.default_topic == "cam1"
        assert a.default_topic is None
        assert c.topics() == []
    memory.discard("another")


def test_options_are_refused(store: str) -> None:
    with pytest.raises(ConfigError, match="speed"):
        connect(f"memory://{store}?speed=11")


def test_discard_deletes_topics_under_their_users(store: str) -> None:
    with connect(f"memory://{store}") as broker:
        broker.create_topic(TopicSpec("a"))
        consumer = broker.consumer("a")
        memory.discard(store)
        with pytest.raises(UnknownTopicError):
            consumer.poll(0)


def test_a_forked_child_has_no_live_handle(store: str) -> None:
    with connect(f"memory://{store}") as broker:
        broker.create_topic(TopicSpec("a"))
        consumer = broker.consumer("a")
        child = os.fork()
        if child == 0:
            code = 1
            try:
                consumer.poll(0)
            except ClosedError:
                consumer.close()
                broker.close()
                with connect(f"memory://{store}") as fresh:
                    code = 0 if fresh.topics() == [] else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert consumer.poll(0) == []
