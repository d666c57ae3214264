"""A broker of the in-memory engine, and records of a topic as a list."""

from __future__ import annotations

import itertools

import pytest

from comux.transport import connect

_numbers = itertools.count()


@pytest.fixture
def broker():
    with connect(f"memory://feeds-{next(_numbers)}") as made:
        yield made


@pytest.fixture
def records_of(broker):
    def read(topic):
        with broker.consumer(topic, start="beginning") as consumer:
            return list(consumer)

    return read
