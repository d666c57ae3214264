"""Real databases for tests: the fixtures ``mongo``, ``own_mongo`` and a database of the test's own on them.

Both run once for each of the two servers of ``scripts/services``: ``mongo`` (on disk, no change streams) and
``mongo-streams`` (in memory, with change streams). ``mongo`` is shared by the whole run; ``own_mongo`` is the test's
own, to be killed and started again. With MONGODB_URL in the environment ``mongo`` is that server instead of both.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId
from pymongo import MongoClient
from service_fixtures import _STATE, Services

SERVERS = ("mongo", "mongo-streams")
_EXTERNAL = "MONGODB_URL"
Document = dict[str, Any]


class MongoServer:
    """A running server, and a database on it that is the test's own."""

    def __init__(self, url: str, name: str) -> None:
        self.url = url
        self.name = name
        self.database = f"comux_test_{secrets.token_hex(6)}"
        self.client: MongoClient[Document] = MongoClient(url, serverSelectionTimeoutMS=20_000)

    def __getitem__(self, collection: str) -> Any:
        return self.client[self.database][collection]

    def put(self, collection: str, *documents: Document) -> None:
        self[collection].insert_many([dict(each) for each in documents])

    def close(self) -> None:
        self.client.close()


class OwnMongoServer(MongoServer):
    """A server of a test's own, which it may kill and start again."""

    def __init__(self, services: Services, name: str) -> None:
        super().__init__(services.up(name), name)
        self._services = services

    @property
    def keeps_data(self) -> bool:
        """Whether what was written is still there after ``kill`` and ``start``."""
        return self.name == "mongo"

    def kill(self) -> None:
        """SIGKILL; returns when it has ended."""
        self._services.do("kill", self.name)

    def start(self) -> None:
        """Start it again on its port; returns when it answers."""
        self._services.do("start", self.name)


def put_four(server: MongoServer) -> dict[str, Any]:
    """The first comux's collections: persons on cameras gate and 7, cars on camera 8; gives some of the ids."""
    model, other, plan, binding = ObjectId(), ObjectId(), ObjectId(), ObjectId()
    server.put("Model", {"_id": model, "category": "persons"}, {"_id": other, "category": "cars"})
    server.put("Model_Camera", {"_id": binding, "model_id": model, "camera_id": "gate"})
    server.put("Model_Camera", {"_id": 12, "model_id": model, "camera_id": 7})
    server.put("Model_Camera", {"_id": 13, "model_id": other, "camera_id": 8})
    server.put("Schedule", {"_id": plan, "model_camera_id": binding}, {"_id": 2, "model_camera_id": 12})
    server.put("Schedule", {"_id": 3, "model_camera_id": 13})
    server.put("Running_Schedule", {"_id": 1, "schedule_id": plan}, {"_id": 2, "schedule_id": 2})
    server.put("Running_Schedule", {"_id": 3, "schedule_id": 3})
    return {"plan": plan, "binding": binding}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"mongo", "own_mongo"}.intersection(metafunc.fixturenames):
        servers = ("external",) if os.environ.get(_EXTERNAL) else SERVERS
        metafunc.parametrize("mongo_server", servers)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"mongo", "own_mongo"}.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.services)


@cache
def _running(server: str) -> str:
    """The URL of a server for the whole run; nobody ends it, so that a worker asks once."""
    return Services(Path(os.environ[_STATE])).up(server)


@pytest.fixture
def mongo(mongo_server: str) -> Iterator[MongoServer]:
    """A database of this test's own on a server for the whole run: leave the server running."""
    if external := os.environ.get(_EXTERNAL):
        server = MongoServer(external, mongo_server)
    else:
        server = MongoServer(_running(mongo_server), mongo_server)
    yield server
    server.client.drop_database(server.database)
    server.close()


@pytest.fixture
def own_mongo(mongo_server: str, services: Services) -> Iterator[OwnMongoServer]:
    """A server of this test's own."""
    if os.environ.get(_EXTERNAL):
        pytest.skip(f"{_EXTERNAL} names a server of yours, which no test may kill")
    server = OwnMongoServer(services, mongo_server)
    yield server
    server.close()
