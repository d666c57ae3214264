"""`MongoRegistry` on two real servers: one with change streams, one that is polled."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from mongo_fixtures import MongoServer, OwnMongoServer, put_four
from service_fixtures import until

from comux.control import MongoConnect, MongoRegistry
from comux.errors import AuthenticationError, ConfigError, ConnectError

LONG = 30.0


@pytest.fixture
def registries() -> Iterator[Any]:
    """Makes registries of the test's database; they are closed at its end."""
    made: list[MongoRegistry] = []

    def make(server: MongoServer, client_name: str | None = None, **options: Any) -> MongoRegistry:
        words = {"db_collections": "cameras", "poll_period": 0.05, "timeout": 10.0, **options}
        made.append(MongoRegistry(client_name, db_url=server.url, db_database=server.database, **words))
        return made[-1]

    yield make
    for registry in made:
        registry.close()


def ids(registry: MongoRegistry) -> list[Any]:
    return list(registry.ret_cam_ids())


def test_both_forms(mongo: MongoServer, registries: Any) -> None:
    put_four(mongo)
    assert ids(registries(mongo, "persons", db_collections=None)) == ["gate", 7]
    assert ids(registries(mongo, "cars", db_collections={"COLLECTION_Model": "Model"})) == [8]
    mongo.put("cameras", {"_id": "b", "rate": 5}, {"_id": "a", "W": 640, "H": 480, "codec": "mjpeg"})
    a, b = registries(mongo).fetch()
    assert (a.cam_id, a.W, a.codec, b.cam_id, b.rate) == ("a", 640, "mjpeg", "b", 5)


def test_the_first_comux_s_mongo_connect(mongo: MongoServer) -> None:
    put_four(mongo)
    names = {"Model": "Model", "Running_Schedule": "Running_Schedule", "Schedule": "Schedule"}
    connection = MongoConnect("persons", mongo.url, mongo.database, names)
    try:
        connection.connect()
        connection.fetch()
        assert list(connection.ret_cam_ids()) == ["gate", 7]
    finally:
        connection.close()


def test_errors_name_database_collection_document_and_field(mongo: MongoServer, registries: Any) -> None:
    put_four(mongo)
    mongo["Schedule"].update_one({"_id": 2}, {"$unset": {"model_camera_id": 1}})
    registry = registries(mongo, "persons", db_collections=None)
    with pytest.raises(
        ConfigError,
        match=rf"database '{mongo.database}' at .*: collection 'Schedule', document _id 2: field 'model_camera_id'",
    ):
        registry.fetch()
    assert registry.status()["error"] is None  # the server is well
    with pytest.raises(ConfigError, match="collection 'Model': no document with category 'dogs'"):
        registries(mongo, "dogs", db_collections=None).fetch()
    with pytest.raises(ConfigError, match="collection 'cameras' is empty or missing"):
        registries(mongo).fetch()


def test_what_is_read_is_bounded(mongo: MongoServer, registries: Any) -> None:
    mongo.put("cameras", *({"_id": f"cam{n}"} for n in range(5)))
    assert len(registries(mongo, max_documents=5).fetch()) == 5
    with pytest.raises(ConfigError, match="more than max_documents=4 documents"):
        registries(mongo, max_documents=4).fetch()
    mongo.put("large", *({"_id": f"cam{n}", "extradata": "A" * 400_000} for n in range(3)))
    with pytest.raises(ConfigError, match="or max_bytes=1000000 bytes"):
        registries(mongo, db_collections="large", max_bytes=1_000_000).fetch()


def test_credentials_that_are_refused(mongo: MongoServer) -> None:
    """Neither server knows users, and says so, each in its own way."""
    if "@" in mongo.url:
        pytest.skip("MONGODB_URL has credentials of its own")
    url = mongo.url.replace("mongodb://", "mongodb://bob:geheim@")
    with MongoRegistry(db_url=url, db_database="lab", db_collections="cameras") as registry:
        with pytest.raises(AuthenticationError, match="refused the credentials of db_url") as refused:
            registry.fetch()
        assert not refused.value.retriable
        assert "geheim" not in str(refused.value) + str(registry.status())


def test_changes_are_seen_and_nothing_else_is(mongo: MongoServer, registries: Any) -> None:
    mongo.put("cameras", {"_id": "a"})
    registry = registries(mongo)
    assert ids(registry) == ["a"]
    assert registry.wait_for_change(0.3) is False
    assert registry.status()["watched_by"] == {"mongo": "poll", "mongo-streams": "stream"}.get(
        mongo.name, registry.status()["watched_by"]
    )
    mongo.put("others", {"_id": "z"})
    assert registry.wait_for_change(0.3) is False

    mongo.put("cameras", {"_id": "b"})
    assert registry.wait_for_change(LONG) is True
    assert ids(registry) == ["a", "b"]
    mongo["cameras"].update_one({"_id": "a"}, {"$set": {"rate": 3.0}})
    assert registry.wait_for_change(LONG) is True
    assert [source.rate for source in registry.fetch()] == [3.0, None]
    mongo["cameras"].delete_one({"_id": "b"})
    assert registry.wait_for_change(LONG) is True
    assert ids(registry) == ["a"]
    assert registry.wait_for_change(0.3) is False


def test_a_change_between_fetch_and_wait_is_seen(mongo: MongoServer, registries: Any) -> None:
    mongo.put("cameras", {"_id": "a"})
    registry = registries(mongo, poll_period=60)
    registry.fetch()
    mongo.put("cameras", {"_id": "b"})  # no stream is open yet, and the first look of a poll would be in a minute
    assert registry.wait_for_change(LONG) is True


def test_a_burst_is_seen_whole(mongo: MongoServer, registries: Any) -> None:
    mongo.put("cameras", {"_id": "a"})
    registry = registries(mongo)
    registry.fetch()
    assert registry.wait_for_change(0) is False
    for n in range(150):
        mongo.put("cameras", {"_id": f"cam{n}"})
    seen = 0
    while len(ids(registry)) < 151:
        assert registry.wait_for_change(LONG) is True
        seen += 1
    assert 0 <= seen < 151
    assert registry.wait_for_change(1.5) is False  # what is left of the events tells nothing new


def test_each_of_the_four_collections_is_watched(mongo: MongoServer, registries: Any) -> None:
    known = put_four(mongo)
    registry = registries(mongo, "persons", db_collections=None)
    assert ids(registry) == ["gate", 7]
    assert registry.wait_for_change(0) is False
    steps: list[tuple[str, Any, Any, list[Any]]] = [
        ("Running_Schedule", {"_id": 2}, None, ["gate"]),
        ("Model_Camera", {"_id": known["binding"]}, {"$set": {"camera_id": "door"}}, ["door"]),
        ("Schedule", {"_id": known["plan"]}, {"$set": {"model_camera_id": 12}}, [7]),
        ("Model", {"category": "cars"}, {"$set": {"category": "persons"}}, []),
    ]
    for collection, which, change, wanted in steps:
        if change is None:
            mongo[collection].delete_one(which)
        else:
            mongo[collection].update_one(which, change)
        assert registry.wait_for_change(LONG) is True, collection
        if wanted:
            assert ids(registry) == wanted
        else:
            with pytest.raises(ConfigError, match="2 documents"):
                registry.fetch()


def test_a_dropped_collection_is_a_change_and_so_is_its_return(mongo: MongoServer, registries: Any) -> None:
    mongo.put("cameras", {"_id": "a"})
    registry = registries(mongo)
    registry.fetch()
    assert registry.wait_for_change(0.3) is False
    mongo["cameras"].drop()
    assert registry.wait_for_change(LONG) is True
    with pytest.raises(ConfigError, match="is empty or missing"):
        registry.fetch()
    assert registry.wait_for_change(0.3) is False
    mongo.put("cameras", {"_id": "b"})
    assert registry.wait_for_change(LONG) is True
    assert ids(registry) == ["b"]


def test_close_ends_a_wait(mongo: MongoServer, registries: Any) -> None:
    mongo.put("cameras", {"_id": "a"})
    registry = registries(mongo, poll_period=60)
    registry.fetch()
    answers: list[bool] = []
    wait = threading.Thread(target=lambda: answers.append(registry.wait_for_change(None)), name="comux-test-wait")
    wait.start()
    until(lambda: registry.status()["watched_by"] is not None, "it waits")
    registry.close()
    wait.join(LONG)
    assert answers == [False]


def test_the_server_is_killed_and_comes_back(own_mongo: OwnMongoServer, registries: Any) -> None:
    own_mongo.put("cameras", {"_id": "a"})
    registry = registries(own_mongo, timeout=1.0)
    registry.fetch()
    assert registry.wait_for_change(0) is False
    own_mongo.kill()
    with pytest.raises(ConnectError) as gone:
        registry.wait_for_change(LONG)
    assert gone.value.retriable
    with pytest.raises(ConnectError):
        registry.fetch()
    since = registry.status()["unreachable_since"]
    assert since is not None
    with pytest.raises(ConnectError):
        registry.wait_for_change(0)
    assert registry.status()["unreachable_since"] == since

    own_mongo.start()
    if not own_mongo.keeps_data:
        own_mongo.put("cameras", {"_id": "a"})
    assert ids(registry) == ["a"]
    assert registry.status()["unreachable_since"] is None
    assert registry.wait_for_change(0.3) is False
    own_mongo.put("cameras", {"_id": "b"})
    assert registry.wait_for_change(LONG) is True
    assert ids(registry) == ["a", "b"]
