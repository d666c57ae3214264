"""A `Comux` whose cameras are stated in a database: the first comux's constructor, and ours."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from feed_threads import FeedThread
from mongo_fixtures import MongoServer, OwnMongoServer, put_four
from service_fixtures import until

import comux
from comux import Comux, MongoRegistry
from comux.errors import ConfigError
from comux.lifecycle import child_environment

LONG = 30.0
CAMERA = "synthetic://64x48@30?gop=5"


class Cameras:
    """Synthetic cameras on topics of a local engine of the test's own."""

    def __init__(self) -> None:
        self.address = f"shm://t{uuid.uuid4().hex[:10]}"
        self._feeds: list[FeedThread] = []

    def run(self, *cam_ids: str | int) -> None:
        self._feeds += [FeedThread(CAMERA, self.address, f"raw_{cam_id}") for cam_id in cam_ids]
        with comux.connect(self.address) as broker:
            while not {f"raw_{cam_id}" for cam_id in cam_ids} <= set(broker.topics()):
                self._feeds[-1].stop.wait(0.02)

    def end(self) -> None:
        for feed in self._feeds:
            feed.end()
        with comux.connect(self.address) as broker:
            for topic in broker.topics():
                broker.delete_topic(topic, force=True)


@pytest.fixture
def cameras() -> Iterator[Cameras]:
    cameras = Cameras()
    yield cameras
    cameras.end()


@pytest.fixture
def level() -> Iterator[None]:
    """``log_level`` is of the whole process."""
    logger = logging.getLogger("comux")
    before = logger.level
    yield
    logger.setLevel(before)


def pictures(running: Comux, *cam_ids: Any) -> None:
    """Every source delivers."""
    for cam_id in cam_ids:
        assert running.read(cam_id, timeout=LONG).array is not None


def test_the_client_s_name_and_four_collections(mongo: MongoServer, cameras: Cameras) -> None:
    put_four(mongo)
    cameras.run("gate", 7)
    names = {"COLLECTION_Model": "Model", "COLLECTION_Schedule": "Schedule"}
    with Comux(
        "persons",
        db_url=mongo.url,
        db_database=mongo.database,
        db_collections=names,
        address=cameras.address,
        W=32,
        H=24,
    ) as running:
        assert running.cam_ids == ("gate", 7)
        assert running.client_name == "persons"
        pictures(running, "gate", 7)


@pytest.mark.parametrize("further", [(), (30,)], ids=["as its program", "with maxlen"])
def test_the_first_comux_s_arguments_in_its_order(
    mongo: MongoServer, cameras: Cameras, level: None, further: tuple[int, ...]
) -> None:
    put_four(mongo)
    cameras.run("gate", 7)
    four = {name: name for name in ("Model", "Running_Schedule", "Schedule", "Model_Camera")}
    running = Comux("persons", mongo.url, mongo.database, four, *further, "raw_:cam_id", "stream_:cam_id", "ERROR")
    try:
        running.setup_consumers(cameras.address, replace=True, max_offset_diff=20, strict_on_fail=True)
        running.setup_decoders(rate=None, W=64, H=48, de_codec="h264", pix_fmt="yuv420p")
        running.start()
        pictures(running, "gate", 7)
    finally:
        running.close()


def command(folder: Path, *arguments: str) -> str:
    """Stdout of ``python -m comux ARGUMENTS``."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "comux", *arguments],
        cwd=folder,
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done
    return done.stdout


def test_the_first_comux_s_env_file_and_command_line(mongo: MongoServer, cameras: Cameras, tmp_path: Path) -> None:
    put_four(mongo)
    cameras.run("gate", 7)
    (tmp_path / ".env").write_text(
        f"client_name=persons\ndb_url={mongo.url}\ndb_database={mongo.database}\n"
        f"consumer_bootstrap_servers={cameras.address}\nCOLLECTION_Model=Model\n"
    )
    for arguments in ((), (".env",)):
        words = (*arguments, "--timeout=20", "--num=2", "--batch") if arguments else ("--num=2", "--timeout=20")
        shown = command(tmp_path, *words)
        assert "7 " in shown and "(48, 64, 3) uint8" in shown and "balanced ✓" in shown
    assert "\n7 " not in command(tmp_path, ".env", "--num=2", "--timeout=20", "--cam_id=gate").partition("after")[0]
    (tmp_path / "model.py").write_text(
        "def mean(batch): return {i.cam_id: {'mean': float(i.array.mean())} for i in batch if i}"
    )
    said = json.loads(command(tmp_path, "run", ".env", "--model", "model:mean", "--batches", "3", "--format", "json"))
    assert said["batches"] == 3 and said["sent"] == said["pictures"]
    (tmp_path / "password").write_text(mongo.url)
    (tmp_path / "cameras.yaml").write_text(
        f"client_name: persons\naddress: {cameras.address}\ndb_url: ${{file:password}}\ndb_database: {mongo.database}\n"
        "model: model:mean\ndefaults: {W: 32, H: 24}\n"
    )
    said = json.loads(command(tmp_path, "run", "cameras.yaml", "--batches", "3", "--format", "json"))
    assert (said["batches"], set(said["sources"])) == (3, {"gate", "7"})


def test_whole_settings_in_one_collection(mongo: MongoServer, cameras: Cameras) -> None:
    cameras.run("a", "b")
    mongo.put("cameras", {"_id": "a", "W": 32, "H": 24}, {"_id": "x", "cam_id": "b", "array_format": "gray"})
    with Comux(
        db_url=mongo.url, db_database=mongo.database, db_collections="cameras", address=cameras.address
    ) as running:
        assert running.read("a", timeout=LONG).array.shape == (24, 32, 3)
        assert running.read("b", timeout=LONG).array.shape == (48, 64)


def test_what_is_wrong_is_one_error_before_anything_starts(mongo: MongoServer) -> None:
    put_four(mongo)
    with pytest.raises(ConfigError, match="no document with category 'dogs'"):
        Comux("dogs", db_url=mongo.url, db_database=mongo.database)
    with pytest.raises(ConfigError, match="client_name is given twice: 'persons' and 'other'"):
        Comux("persons", db_url=mongo.url, db_database=mongo.database, client_name="other")


def test_what_the_database_states_is_carried_out_while_the_loop_runs(mongo: MongoServer, cameras: Cameras) -> None:
    cameras.run("a", "b")
    mongo.put("cameras", {"_id": "a"})
    with watched(mongo, cameras) as running:
        pictures(running, "a")
        mongo.put("cameras", {"_id": "b", "W": 32, "H": 24})
        until(lambda: running.cam_ids == ("a", "b"), "b is created")
        assert running.read("b", timeout=LONG).array.shape == (24, 32, 3)
        mongo["cameras"].update_one({"_id": "b"}, {"$set": {"W": 16, "H": 12}})
        until(lambda: shape(running, "b") == (12, 16, 3), "b is smaller")
        mongo["cameras"].update_one({"_id": "b"}, {"$unset": {"W": 1, "H": 1}})
        until(lambda: shape(running, "b") == (48, 64, 3), "b is as it comes")
        mongo["cameras"].update_one({"_id": "b"}, {"$set": {"rate": "fast"}})
        until(lambda: "rate='fast'" in str(running.status()["registry"]["error"]), "what is wrong is told")
        assert running.cam_ids == ("a", "b")
        mongo["cameras"].delete_one({"_id": "b"})
        until(lambda: running.cam_ids == ("a",), "b is deleted")
        until(lambda: running.status()["registry"]["error"] is None, "all is well")
        pictures(running, "a")


def test_the_database_is_killed_under_a_running_loop_and_comes_back(
    own_mongo: OwnMongoServer, cameras: Cameras
) -> None:
    cameras.run("a", "b")
    own_mongo.put("cameras", {"_id": "a"})
    with watched(own_mongo, cameras) as running:
        pictures(running, "a")
        own_mongo.kill()
        until(lambda: running.status()["registry"]["unreachable_since"], "it is told")
        assert "cannot be reached" in running.status()["registry"]["error"]
        assert len(running.events.recent("registry.lost")) == 1
        for _ in range(20):  # they go on
            pictures(running, "a")
        own_mongo.start()
        stated = [{"_id": "b"}] if own_mongo.keeps_data else [{"_id": "a"}, {"_id": "b"}]
        own_mongo.put("cameras", *stated)
        until(lambda: running.cam_ids == ("a", "b"), "what was stated meanwhile is carried out", timeout=60.0)
        until(lambda: running.status()["registry"]["unreachable_since"] is None, "it is well")
        assert running.events.recent("registry.back")
        assert not running.events.recent("source.deleted")
        pictures(running, "a", "b")


def shape(running: Comux, cam_id: str) -> tuple[int, ...] | None:
    """Of the next picture; ``None`` where the source was being changed just then."""
    array = running.read(cam_id, timeout=LONG).array
    return None if array is None else array.shape


def watched(server: MongoServer, cameras: Cameras) -> Comux:
    registry = MongoRegistry(
        db_url=server.url, db_database=server.database, db_collections="cameras", poll_period=0.1, timeout=2.0
    )
    return Comux(registry, address=cameras.address, watch_registry=True)


def test_a_registry_that_knows_of_no_change_cannot_be_watched() -> None:
    with pytest.raises(ConfigError, match="a ListRegistry does not know when it changes"):
        Comux(["a"], watch_registry=True)
    with pytest.raises(ConfigError, match="watch_registry"):
        Comux(["a"], watch_registry="yes")
