"""The size calculator: its numbers are the sizes of the files that are created."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from comux import ring
from comux.errors import ConfigError
from comux.feeds import open_feed, topic_spec
from comux.planning import shared_memory
from comux.planning.shared_memory import Wanted, camera_ring, plan_memory
from comux.ring.space import space_of
from comux.transport import TopicSpec, connect
from comux.transport.local import ring_spec

WANTED = [
    pytest.param(Wanted(2), id="packets-of-ten-seconds"),
    pytest.param(Wanted(3, depth=64, bitrate=20e6, fps=60), id="packets-by-number"),
    pytest.param(Wanted(1, "arrays", 641, 359, depth=7), id="arrays-of-odd-sizes"),
    pytest.param(Wanted(2, "arrays", 1920, 1080, depth=0.1, groups=20), id="arrays-for-many-groups"),
    pytest.param(Wanted(4, "records", record_bytes=24_000, depth=100, results=1, control=True), id="records"),
]


@pytest.mark.parametrize("wanted", WANTED)
def test_the_numbers_are_the_sizes_of_the_files(wanted: Wanted, tmp_path: Path) -> None:
    plan = plan_memory(wanted, tmp_path)
    assert list(tmp_path.iterdir()) == []
    spec = camera_ring(wanted)
    for number in range(wanted.cameras):
        ring.create(replace(spec, name=f"raw_cam{number}"), directory=tmp_path).close()
    made = sum(path.stat().st_size for path in tmp_path.iterdir())
    blocks = sum(path.stat().st_blocks * 512 for path in tmp_path.iterdir())
    assert plan.topics[0].total == made
    assert made <= blocks <= made + 8192 * wanted.cameras, "every page is there from the beginning"


def test_results_commands_and_replies_are_what_a_program_makes(tmp_path: Path) -> None:
    from comux.control.replies import reply_spec

    plan = plan_memory(Wanted(1, results=2, control=True), tmp_path)
    sizes = {each.topic: each for each in plan.topics}
    assert sizes["results"].count == 2 and sizes["results"].data_bytes == 64 << 20
    assert sizes["replies"].bytes == ring_spec(reply_spec("r")).required_bytes
    assert plan.bytes == sum(each.count * each.bytes for each in plan.topics)


def test_a_camera_is_planned_as_it_is_published(tmp_path: Path) -> None:
    feed = open_feed("synthetic://320x240@30")
    spec, facts, rate = topic_spec(feed, "raw_cam"), feed.facts, feed.bytes_per_second
    wanted = Wanted(1, width=facts.width, height=facts.height, fps=facts.fps, bitrate=rate * 8)
    with connect("shm://", directory=tmp_path) as broker:
        broker.create_topic(spec)
    assert plan_memory(wanted, tmp_path).bytes == (tmp_path / "raw_cam.ring").stat().st_size


def test_what_does_not_fit_is_said_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    little = replace(space_of(tmp_path), in_memory=True, size=64 << 20, free=60 << 20)
    little = replace(little, limit=50 << 20, limit_free=40 << 20)
    monkeypatch.setattr(shared_memory, "space_of", lambda directory: little)
    plan = plan_memory(Wanted(8, "arrays", depth=64), tmp_path)
    assert not plan.fits and len(plan.advice) == 2
    assert "--shm-size=" in plan.advice[0] and "--memory" in plan.advice[1]
    shm = int(plan.advice[0].split("--shm-size=")[1].split("m")[0])
    assert shm * 10**6 >= plan.bytes + (4 << 20)
    assert plan_memory(Wanted(1), tmp_path).fits


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"cameras": 0}, "--cameras 0: give 1 to 10000"),
        ({"content": "records"}, "--record 0: give 1"),
        ({"content": "pictures"}, "content 'pictures'"),
        ({"depth": 0}, "--depth: 0 records"),
        ({"content": "arrays", "depth": 1e9}, "--depth"),
        ({"groups": 65}, "--groups 65: give 0 to 64"),
        ({"fps": float("nan")}, "--fps nan"),
    ],
)
def test_nonsense_is_one_line(words: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Wanted(**({"cameras": 1} | words))  # type: ignore[arg-type]


def test_a_topic_spec_becomes_the_ring_that_is_created(tmp_path: Path) -> None:
    spec = TopicSpec("t", records=9, dtype="float32", shape=(3, 5), policy="drop_newest")
    with connect("shm://", directory=tmp_path) as broker:
        broker.create_topic(spec)
    assert (tmp_path / "t.ring").stat().st_size == ring_spec(spec).required_bytes
