"""What documents say, and what is never shown; without a server (see services/test_services_mongo.py for those)."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from bson import Int64, ObjectId
from bson.errors import InvalidBSON
from pymongo.errors import (
    AutoReconnect,
    ConfigurationError,
    ExecutionTimeout,
    OperationFailure,
    ServerSelectionTimeoutError,
)

from comux.control import MongoConnect, MongoRegistry
from comux.control.mongo_documents import form_of
from comux.errors import (
    AuthenticationError,
    ClosedError,
    ConfigError,
    ConnectError,
    NotAuthorizedError,
    TlsError,
    WaitTimeoutError,
)

NOBODY = "mongodb://127.0.0.1:9/"  # the discard port: nobody listens there


def reader(**collections: list[dict[str, Any]]) -> Any:
    """A database of plain dictionaries that knows the three filters that are used."""

    def read(collection: str, wanted: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        for document in collections.get(collection, []):
            if "category" in wanted and document.get("category") != wanted["category"]:
                continue
            if "_id" in wanted and document["_id"] not in wanted["_id"]["$in"]:
                continue
            yield document

    return read


def four(**changes: list[dict[str, Any]]) -> Any:
    a, b = ObjectId(), ObjectId()
    whole: dict[str, list[dict[str, Any]]] = {
        "Model": [{"_id": 1, "category": "persons"}, {"_id": 2, "category": "cars"}],
        "Running_Schedule": [{"_id": "r1", "schedule_id": a}, {"_id": "r2", "schedule_id": b}],
        "Schedule": [{"_id": b, "model_camera_id": 12}, {"_id": a, "model_camera_id": 11}],
        "Model_Camera": [{"_id": 11, "camera_id": "gate", "model_id": 1}, {"_id": 12, "camera_id": Int64(7)}],
    }
    return reader(**(whole | changes))


def test_the_four_collections_lead_from_the_model_to_its_cameras() -> None:
    found = form_of("persons", None).sources(four())
    assert [source.cam_id for source in found] == ["gate", 7]
    assert type(found[1].cam_id) is int


def test_another_model_s_cameras_are_not_this_one_s() -> None:
    found = form_of("cars", None).sources(four())
    assert [source.cam_id for source in found] == [7]  # 'gate' says model_id 1


def test_a_camera_of_two_running_schedules_is_one_source() -> None:
    read = four(Schedule=[], Running_Schedule=[{"_id": 1, "schedule_id": 5}, {"_id": 2, "schedule_id": 6}])
    with pytest.raises(ConfigError, match=r"document _id 1: schedule_id 5 is no _id in collection 'Schedule'"):
        form_of("persons", None).sources(read)
    schedules = [{"_id": 5, "model_camera_id": 11}, {"_id": 6, "model_camera_id": 11.0}]
    read = four(Schedule=schedules, Running_Schedule=[{"_id": 1, "schedule_id": 5}, {"_id": 2, "schedule_id": 6}])
    assert [source.cam_id for source in form_of("persons", None).sources(read)] == ["gate"]


def test_no_running_schedule_is_no_camera() -> None:
    assert form_of("persons", {}).sources(four(Running_Schedule=[])) == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Model": []}, r"collection 'Model': no document with category 'persons', the client_name; exactly one"),
        (
            {"Model": [{"_id": 1, "category": "persons"}, {"_id": 2, "category": "persons"}]},
            r"collection 'Model': 2 documents \(_id 1, 2\) with category 'persons'",
        ),
        (
            {"Running_Schedule": [{"_id": "r1"}]},
            r"collection 'Running_Schedule', document _id 'r1': field 'schedule_id' is missing; it must be the _id of",
        ),
        (
            {"Running_Schedule": [{"_id": "r1", "schedule_id": 9}], "Schedule": [{"_id": 9}]},
            r"collection 'Schedule', document _id 9: field 'model_camera_id' is missing; .* in 'Model_Camera'",
        ),
        (
            {"Model_Camera": [{"_id": 11}, {"_id": 12, "camera_id": 1}]},
            r"collection 'Model_Camera', document _id 11: field 'camera_id' is missing",
        ),
        (
            {"Model_Camera": [{"_id": 11, "camera_id": "no topic"}, {"_id": 12, "camera_id": 1}]},
            r"document _id 11: camera_id: cam_id 'no topic' cannot be part of a topic name",
        ),
        (
            {"Model_Camera": [{"_id": 11, "camera_id": True}, {"_id": 12, "camera_id": 1}]},
            r"document _id 11: camera_id True is bool; write text or a whole number",
        ),
    ],
)
def test_what_is_wrong_in_the_four_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        form_of("persons", None).sources(four(**changes))


def test_a_sheet_holds_whole_settings() -> None:
    read = reader(
        cameras=[
            {"_id": "gate", "rate": 10, "W": Int64(1280), "H": 720, "codec": "hevc"},
            {"_id": ObjectId(), "cam_id": 7, "client_options": {"check_crcs": False}},
        ]
    )
    gate, seven = form_of(None, "cameras").sources(read)
    assert (gate.cam_id, gate.rate, gate.W, gate.codec) == ("gate", 10, 1280, "hevc")
    assert (seven.cam_id, seven.client_options) == (7, {"check_crcs": False})


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        (
            [{"_id": "gate", "ratte": 10}],
            r"document _id 'gate': source 'gate': there is no setting 'ratte'; did you mean",
        ),
        ([{"_id": "gate", "W": "wide"}], r"document _id 'gate': source 'gate': W='wide': "),
        ([{"_id": 1}, {"_id": "1"}], r"document _id '1': cam_id '1' is a duplicate of document _id 1"),
        ([{"_id": 2.5}], r"document _id 2.5: cam_id is missing, and _id 2.5 is float; write text or a whole number"),
        ([{"_id": 1, "cam_id": None}], r"document _id 1: source None: cam_id=None"),
        ([], r"collection 'cameras' is empty or missing"),
    ],
)
def test_what_is_wrong_in_a_sheet_is_named(documents: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        form_of(None, "cameras").sources(reader(cameras=documents))


@pytest.mark.parametrize(
    ("client_name", "collections", "message"),
    [
        (None, None, "client_name None: the four collections are searched for a model of that category"),
        ("persons", ["a"], "db_collections of type list: give the name of one collection, or a mapping"),
        ("persons", {"Modell": "m"}, "db_collections: there is no 'Modell'; did you mean 'Model'"),
        ("persons", {"COLLECTION_Model": ""}, "db_collections: COLLECTION_Model='' is no name"),
    ],
)
def test_collections_that_mean_nothing(client_name: Any, collections: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MongoRegistry(client_name, db_url=NOBODY, db_database="lab", db_collections=collections)


def test_the_four_may_have_other_names() -> None:
    names = {"COLLECTION_Model": "models", "Schedule": "plans"}
    assert form_of("persons", names).collections == ("models", "Running_Schedule", "plans", "Model_Camera")


# -- the registry, without a server ------------------------------------------------------------------------------------

PASSWORD = "gehe%2Fim"  # of "gehe/im"


@pytest.mark.parametrize(
    "url",
    [
        "mongodb://bob:gehe/im@db:27017/lab",
        "mongodb://bob:gehe@im@db:27017/",
        "mongodb://bob:geheim?x@db/",
        "mongodb://bob:gehe%zzim@db:27017/?w=wrong",
        "mongodb://bob:geheim@db:port/",
        "http://bob:geheim@db/",
        "bob:geheim@db",
        42,
    ],
)
def test_a_url_that_is_none_is_not_repeated(url: Any) -> None:
    with pytest.raises(ConfigError, match="db_url") as refused:
        MongoRegistry("persons", db_url=url, db_database="lab")
    assert "gehe" not in str(refused.value)
    assert "mongodb://user:password@host:port/" in str(refused.value)


@pytest.mark.parametrize(
    "options", [{"timeout": 0}, {"timeout": None}, {"poll_period": -1}, {"max_documents": 0}, {"db_database": ""}]
)
def test_wrong_arguments(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        MongoRegistry("persons", **{"db_url": NOBODY, "db_database": "lab", **options})


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (
            OperationFailure("no gehe/im", 18),
            AuthenticationError,
            "refused the credentials of db_url (code 18): no ***",
        ),
        (OperationFailure("no such command: 'saslStart'", 59), AuthenticationError, "refused the credentials"),
        (OperationFailure("not allowed", 13), NotAuthorizedError, "grant the role 'read' on it"),
        (ServerSelectionTimeoutError("db:1: refused"), ConnectError, "MongoDB at db:1 cannot be reached within 5 s"),
        (AutoReconnect("SSL handshake failed: db:1: CERTIFICATE_VERIFY_FAILED"), TlsError, "tlsCAFile="),
        (ExecutionTimeout("too slow", 50), WaitTimeoutError, "did not answer within 5 s"),
        (OperationFailure("odd gehe%2Fim", 99), ConnectError, "OperationFailure (code 99): odd ***"),
        (ConfigurationError("no file for SERVICE_NAME:gehe-key"), ConfigError, "no file for ***; correct db_url"),
        (InvalidBSON("bad length"), ConfigError, "what it sent is no document: bad length"),
    ],
)
def test_errors_are_told_apart_and_show_no_password(error: Exception, kind: type[Exception], words: str) -> None:
    url = f"mongodb://bob:{PASSWORD}@db:1/lab?authMechanismProperties=SERVICE_NAME:gehe-key"
    with MongoRegistry("persons", db_url=url, db_database="lab") as registry:
        told = registry._translated(error)
        assert type(told) is kind
        assert words in str(told)
        assert "gehe" not in str(told) + repr(registry) + str(registry.status())
        assert told.retriable == (kind in (ConnectError, WaitTimeoutError))


def test_nobody_there_is_one_error_that_a_retry_may_help() -> None:
    registry = MongoRegistry(db_url=NOBODY, db_database="lab", db_collections="cameras", timeout=0.2)
    assert registry.status()["unreachable_since"] is None
    with registry:
        for call in (registry.fetch, registry.connect, registry.ret_cam_ids, lambda: registry.wait_for_change(5)):
            with pytest.raises(
                ConnectError, match=r"MongoDB at 127\.0\.0\.1:9 cannot be reached within 0.2 s"
            ) as refused:
                call()
            assert refused.value.retriable
        status = registry.status()
        assert status["error"] == str(refused.value)
        assert status["unreachable_since"] > 0
        assert status["watched_by"] is None


def test_close_ends_a_wait_and_everything_after_it() -> None:
    registry = MongoRegistry(db_url=NOBODY, db_database="lab", db_collections="cameras", timeout=60)
    answers: list[bool] = []

    def wait() -> None:
        try:
            answers.append(registry.wait_for_change(None))
        except ClosedError:  # close came first
            answers.append(False)

    waiting = threading.Thread(target=wait, name="comux-test-wait")
    waiting.start()
    waiting.join(0.1)  # most likely it waits for the server now; either way it must end
    registry.close()
    registry.close()
    waiting.join(30)
    assert answers == [False]
    for call in (registry.fetch, registry.connect, lambda: registry.wait_for_change(0)):
        with pytest.raises(ClosedError, match="closed"):
            call()


def test_a_child_inherits_a_registry_that_only_raises() -> None:
    with MongoRegistry(db_url=NOBODY, db_database="lab", db_collections="cameras", timeout=0.2) as registry:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                registry.close()
                registry.fetch()
            except ClosedError as exc:
                code = 0 if "inherited through a fork" in str(exc) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_the_first_comux_s_words() -> None:
    with MongoConnect("persons", NOBODY, "lab", {"Model": "models"}, timeout=0.2) as registry:
        for call in (registry.connect, registry.fetch, registry.ret_cam_ids):
            with pytest.raises(ConnectError):
                call()
