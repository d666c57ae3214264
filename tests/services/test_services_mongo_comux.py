"""A `Comux` whose cameras are stated in a database: the first comux's constructor, and ours."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from feed_threads import FeedThread
from mongo_fixtures import MongoServer, put_four

import comux
from comux import Comux
from comux.errors import ConfigError

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
