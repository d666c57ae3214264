"""The arithmetic beside a real run: costs measured now, eight cameras run now, on both engines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from service_fixtures import KafkaCluster

from comux.errors import ComuxError, UnknownCodecError
from comux.planning.check import CAMERAS, Compared, check_costs, compare
from comux.planning.costs import MEASURED, from_dict, load
from comux.planning.loops import Cameras, Clips, engine_address
from comux.planning.measure import Effort, measure
from comux.planning.needs import needs_of
from comux.planning.server import Server
from comux.ring import default_directory
from comux.transport import connect

# The machine does other things meanwhile, and one short round is no measurement: this shows that the sums are of the
# right things in the right units. The deviations of a proper measurement are in docs/explanation/scaling.md.
LOOP = {"CPU of the loop": 2.5, "memory of the loop": 1.5}


def assert_near(rows: list[Compared], limits: dict[str, float]) -> None:
    print("\n".join(f"{each.name}: {each.planned:.4g} planned, {each.measured:.4g} measured" for each in rows))
    found = {each.name: each for each in rows}
    assert set(limits) <= set(found)
    for name, limit in limits.items():
        each = found[name]
        assert each.measured / limit < each.planned < each.measured * limit, each


@pytest.mark.timeout(300)  # a dozen processes, one after another: 15 s alone, more where others want the cores
def test_eight_local_cameras_take_what_the_plan_says(effort: Effort, tmp_path: Path) -> None:
    found = measure(effort, codecs=("h264",), tell=print)
    (tmp_path / "costs.json").write_text(json.dumps(found))
    costs = load(tmp_path / "costs.json")
    assert "broker" in costs.source  # what was not measured is said to be built in
    assert_near(check_costs(costs, effort, tell=print), LOOP)


def test_a_codec_that_cannot_be_measured_is_refused_at_once(effort: Effort) -> None:
    with pytest.raises(UnknownCodecError, match=r"'vp99'.*h264"):
        measure(effort, codecs=("h264", "vp99"), tell=pytest.fail)


def test_a_process_that_fails_is_one_error_in_its_own_words(tmp_path: Path) -> None:
    cameras = Cameras(engine_address(None), str(tmp_path / "missing.mp4"), 2)
    with pytest.raises(ComuxError, match=r"cameras process failed.*missing\.mp4"), cameras:
        pytest.fail("there is nothing to publish")


@pytest.mark.torture
@pytest.mark.timeout(600)
def test_eight_cameras_through_kafka_take_what_the_plan_says(effort: Effort, kafka: KafkaCluster) -> None:
    cluster = f"kafka://{kafka.bootstrap}"
    found = measure(Effort(seconds=2.0, rounds=1), codecs=("h264",), cluster=cluster, tell=print)
    costs = from_dict(found["costs"], "this run")
    rows = check_costs(costs, effort, cluster=cluster, tell=print)
    assert_near(rows, LOOP if Server.at(cluster) is None else LOOP | {"CPU of the broker": 3.0})


def test_an_interrupt_in_the_middle_of_a_run_leaves_nothing(tmp_path: Path) -> None:
    address = engine_address(None)
    clip = Clips(tmp_path).file(64, 48, 60_000)
    with pytest.raises(KeyboardInterrupt), Cameras(address, clip, 2):
        with connect(address) as broker:
            assert broker.topics() == ["raw_cam0", "raw_cam1"]
        raise KeyboardInterrupt
    assert not (default_directory() / address.removeprefix("shm://")).exists()


def test_what_was_not_done_is_not_planned_for() -> None:
    """A machine too busy to take every picture is compared by those it took."""
    run = {
        "seconds": 2.0,
        "packets": 240,
        "items": 48,
        "cpu_s": 0.5,
        "bytes": 60e6,
        "feed_bytes": 4e6,
        "feed_packets": 960,
    }
    rows = {row.name: row for row in compare(CAMERAS, MEASURED, run)}
    done = needs_of(replace(CAMERAS, fps=15.0, rate=3.0, bitrate=8 * 4e6 / 960 * 15), MEASURED, processes=1)
    assert rows["CPU of the loop"].planned == pytest.approx(done.cores)
    assert rows["CPU of the loop"].measured == 0.25
    assert (rows["packets in"].planned, rows["packets in"].measured) == (240, 120)
    assert rows["packets in"].deviation == 1.0
    assert (rows["results out"].planned, rows["results out"].measured) == (240, 24)
