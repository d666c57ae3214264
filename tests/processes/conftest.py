"""Topics of clips."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from comux.transport import Broker, TopicSpec, connect
from comux.transport.memory import discard

_names = itertools.count()


@pytest.fixture
def address() -> Iterator[str]:
    name = f"proc{os.getpid()}x{next(_names)}"
    yield f"memory://{name}"
    discard(name)


@pytest.fixture
def broker(address: str) -> Iterator[Broker]:
    with connect(address) as opened:
        yield opened


@pytest.fixture
def topic(broker: Broker) -> Callable[..., Any]:
    """Makes a topic of a camera; returns its producer."""

    def make(cam: str, *, finite: bool = True, **spec: Any) -> Any:
        metadata = {"finite": finite, **spec.pop("metadata", {})}
        broker.create_topic(TopicSpec(f"raw_{cam}", records=8192, metadata=metadata, **spec), exist_ok=True)
        return broker.producer(f"raw_{cam}")

    return make
