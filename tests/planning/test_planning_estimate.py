"""The arithmetic: known answers by hand, what decides, and that it grows as it must."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from comux.errors import ConfigError
from comux.planning.costs import (
    MEASURED,
    BrokerCosts,
    CodecCosts,
    Costs,
    EngineCosts,
    GroupCosts,
    from_dict,
    load,
)
from comux.planning.demand import Demand, quantity, seconds
from comux.planning.estimate import plan
from comux.planning.needs import needs_of

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "scaling-2-cores.json"

# Round numbers, so that every answer can be worked out by hand.
ENGINE = EngineCosts(
    packet_s=1e-4,
    megabyte_s=1e-3,
    item_s=1e-5,
    batch_s=1e-3,
    send_s=1e-4,
    process_bytes=50e6,
    source_bytes=1e6,
    open_s=0.1,
)
COSTS = Costs(
    source="by hand",
    decode={"h264": CodecCosts(packet_s=1e-4, megapixel_s=1e-3, megabyte_s=0.1)},
    convert_megapixel_s=2e-4,
    picture_bytes={"freshest": 14.0, "every_frame": 16.0},
    record_bytes=200.0,
    shm=ENGINE,
    kafka=ENGINE,
    broker=BrokerCosts(
        idle=0.05,
        append_s=1e-4,
        append_megabyte_s=1e-3,
        read_s=5e-5,
        read_megabyte_s=1e-3,
        copy_s=2e-5,
        copy_megabyte_s=2e-3,
        partition_bytes=1e5,
        create_s=0.05,
    ),
    group=GroupCosts(join_s=2, join_topic_s=0, dead_s=10, dead_topic_s=0.001, member=0.01, metadata_topic_s=3e-4),
)
# 2 megapixels, 20 packets of 25,000 bytes a second: half a megabyte a second.
CAMERAS = Demand(100, 2000, 1000, fps=20, bitrate=4e6, rate=5, results_bytes=880, replication=2)


def test_the_needs_of_a_hundred_cameras_are_what_they_are_by_hand() -> None:
    needs = needs_of(CAMERAS, COSTS, processes=2)
    result_megabytes = (25_000 + 200 + 880 + 120) / 1e6
    assert needs.cpu == pytest.approx(
        {
            "decoding": 100 * (20 * (1e-4 + 2 * 1e-3) + 0.5 * 0.1),
            "conversion": 100 * 5 * 2 * 2e-4,
            "packets": 100 * (20 * 1e-4 + 0.5 * 1e-3),
            "items": 100 * 5 * 1e-5,
            "results": 100 * 5 * (1e-4 + result_megabytes * 1e-3),
            "batches": 2 * 20 * 1e-3,
        }
    )
    assert needs.in_bytes == 100 * 20 * 25_200
    assert needs.out_bytes == pytest.approx(100 * 5 * 26_200)
    assert needs.records_in == 100 * 25
    assert needs.camera_bytes == 1e6 + 14 * 2e6 + 20 * 25_000
    assert needs.shared_bytes == 0


def test_the_plan_of_a_hundred_cameras() -> None:
    answer = plan(CAMERAS, COSTS)
    assert answer.value("all of it") == pytest.approx(sum(figure.value for figure in answer.figures[:7]), rel=1e-9)
    assert answer.machine_limit == "cores"
    # 9.2 cores for decoding, 0.2 conversion, 0.25 packets, 0.06 the rest: 9.8, with safety 14.7 of 16; one machine
    assert (answer.machines, answer.processes) == (1, 1)
    assert answer.value("topics") == 200
    assert answer.value("partitions of a broker") == 400  # two copies, and one of the two brokers missing
    assert (answer.brokers, answer.broker_limit) == (2, "copies")
    assert answer.value("disk of a broker") == pytest.approx((50.4e6 + 13.1e6) * 2 * 3600 / 2)
    assert answer.value("a process joins") == pytest.approx(2 + 100 * 0.1)


@pytest.mark.parametrize(
    ("changes", "machine", "broker"),
    [
        ({"cores": 2}, "cores", "copies"),
        ({"cores": 256, "memory_bytes": 1e9}, "memory", "copies"),
        ({"cores": 256, "network_bits": 100e6, "broker_network_bits": 1e12}, "network in", "copies"),
        ({"cores": 64, "broker_network_bits": 200e6, "readers": 2}, "cores", "network out"),
        ({"cores": 64, "cameras": 20_000, "broker_cores": 4096, "broker_network_bits": 1e13}, "cores", "partitions"),
        ({"cores": 64, "cameras": 2000, "broker_cores": 1}, "cores", "cores"),
    ],
)
def test_what_is_short_first_is_named(changes: dict, machine: str, broker: str) -> None:
    answer = plan(replace(CAMERAS, **changes), COSTS)
    assert (answer.machine_limit, answer.broker_limit) == (machine, broker)


def test_one_machine_and_one_broker_may_be_missing() -> None:
    answer = plan(replace(CAMERAS, cameras=1000), COSTS)
    busy = max(answer.machine_load.values())
    assert answer.machines == -(-busy // 1) + 1
    assert answer.brokers - 1 >= max(answer.broker_load.values())
    lone = plan(replace(CAMERAS, cameras=1000, replication=1), COSTS)
    assert lone.brokers >= max(lone.broker_load.values())
    assert any("one copy" in warning for warning in lone.warnings)


def test_more_of_anything_never_needs_less() -> None:
    base = needs_of(CAMERAS, COSTS)
    for more in (
        {"cameras": 101},
        {"width": 2200},
        {"fps": 21.0, "bitrate": 4.2e6},
        {"bitrate": 5e6},
        {"rate": None},
    ):
        needs = needs_of(replace(CAMERAS, **more), COSTS)
        assert needs.cores > base.cores, more
        assert needs.in_bytes >= base.in_bytes
    assert needs_of(replace(CAMERAS, results_bytes=None), COSTS).out_bytes == 0


def test_a_rate_limit_saves_conversion_and_results_and_no_decoding() -> None:
    all_of_it, limited = (needs_of(replace(CAMERAS, rate=rate), COSTS).cpu for rate in (None, 5.0))
    assert limited["decoding"] == all_of_it["decoding"]
    assert limited["conversion"] == all_of_it["conversion"] / 4
    assert limited["results"] == pytest.approx(all_of_it["results"] / 4)


@pytest.mark.parametrize(
    ("rate", "measured"),  # of decoding everything, docs/explanation/performance.md: H.264, 30 fps, GOP of 30
    [(1.0, 0.12), (2.0, 0.57)],
)
def test_of_gops_that_are_known_a_rate_saves_decoding_too(rate: float, measured: float) -> None:
    known = Demand(1, fps=30, bitrate=4e6, gop=30)
    saved = replace(known, rate=rate)
    assert saved.decoded / 30 == pytest.approx(measured, rel=0.1)
    cpu, all_of_it = (needs_of(each, COSTS).cpu["decoding"] for each in (saved, known))
    assert cpu == pytest.approx(all_of_it * saved.decoded / 30)


def test_never_more_is_decoded_at_a_lower_rate_and_never_more_than_all() -> None:
    for gop in (1, 2, 12, 30, 250):
        rates = [0.01, 0.1, 0.5, 1.0, 2.0, 2.5, 5.0, 7.0, 15.0, 29.9, 30.0, 60.0]
        decoded = [Demand(1, fps=30, bitrate=4e6, gop=gop, rate=rate).decoded for rate in rates]
        assert decoded[-1] == decoded[-2] == 30
        assert all(0 < each <= 30 for each in decoded)
        assert decoded[0] <= 0.01 * 3.6 + 1e-9
        assert decoded[0] == min(decoded)
    assert Demand(1, fps=30, bitrate=4e6, gop=1, rate=10).decoded == pytest.approx(10)  # each is a keyframe
    assert Demand(1, fps=30, bitrate=4e6, rate=1).decoded == 30  # not known


def test_local_topics_take_shared_memory_and_no_network() -> None:
    answer = plan(replace(CAMERAS, engine="shm"), COSTS)
    # ten seconds of packets, and the results' ring
    assert answer.value("shared memory of a camera") == 10 * 0.5e6 + (64 << 20)
    assert answer.brokers == 0
    assert not [figure for figure in answer.figures if figure.section in ("network", "cluster", "fleet")]
    many = plan(replace(CAMERAS, engine="shm", cameras=1000), COSTS)
    assert any("one machine" in warning for warning in many.warnings)


def test_a_dead_process_cameras_go_to_all_the_others() -> None:
    answer = plan(replace(CAMERAS, cameras=1000), COSTS)
    each = -(-1000 // answer.processes)
    taken = -(-each // (answer.processes - 1))
    assert answer.processes > 2
    assert answer.value("a process dies") == pytest.approx(10 + 1000 * 0.001 + taken * 0.1)


def test_ten_thousand_cameras_get_a_slower_look_at_the_topics() -> None:
    answer = plan(replace(CAMERAS, cameras=10_000), COSTS)
    # 20,000 topics at 0.3 ms each are 6 s of CPU a look: every 60 s, to cost a tenth of a core
    assert answer.value("a new camera is seen after") == pytest.approx(60)
    assert answer.value("membership") == pytest.approx(answer.processes * 0.11)


def test_brokers_that_are_too_few_are_named_with_what_they_lack() -> None:
    answer = plan(replace(CAMERAS, cameras=5000, brokers=3), COSTS)
    assert answer.brokers == 3
    assert [warning for warning in answer.warnings if "3 brokers are too few: cores need" in warning]


def test_more_partitions_than_a_cluster_should_have_are_said() -> None:
    answer = plan(replace(CAMERAS, cameras=60_000), COSTS)
    assert any("240000 partitions" in warning for warning in answer.warnings)


def test_every_figure_says_what_it_stands_on_and_the_plan_is_json() -> None:
    answer = plan(CAMERAS, COSTS)
    assert all(figure.basis for figure in answer.figures)
    assert len({(figure.section, figure.name) for figure in answer.figures}) == len(answer.figures)
    assert json.loads(json.dumps(answer.as_dict()))["machines"] == answer.machines


# -- what is asked for ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cameras": 0}, ["--cameras 0", "1 to"]),
        ({"cameras": -3}, ["--cameras -3"]),
        ({"width": 8}, ["--size 8"]),
        ({"fps": 0.0}, ["--fps 0"]),
        ({"fps": float("nan")}, ["--fps nan"]),
        ({"rate": 0.0}, ["--rate 0"]),
        ({"gop": 0}, ["--gop 0"]),
        ({"bitrate": 4.0}, ["--bitrate 4", "as in 4M"]),
        ({"bitrate": 0.0}, ["--bitrate 0"]),
        ({"bitrate": float("inf")}, ["--bitrate inf"]),
        ({"bitrate": 4e12}, ["--bitrate 4e+12", "uncompressed"]),
        ({"mode": "newest"}, ["--mode", "freshest"]),
        ({"engine": "memory"}, ["--engine", "kafka"]),
        ({"results_bytes": -2}, ["--results-bytes -2"]),
        ({"readers": 0}, ["--readers 0"]),
        ({"cores": 0}, ["--cores 0"]),
        ({"memory_bytes": 64.0}, ["--memory 64", "bytes"]),
        ({"network_bits": 10.0}, ["--network 10"]),
        ({"replication": 3, "brokers": 2}, ["--brokers 2", "3 copies"]),
        ({"retention_s": 0.0}, ["--retention 0"]),
        ({"safety": 0.5}, ["--safety 0.5"]),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_nonsense_is_one_error_that_names_the_option(changes: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        replace(CAMERAS, **changes)
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize(
    ("text", "value"), [("4M", 4e6), ("1.5k", 1500), ("64G", 64e9), ("250000", 250_000), (" 1g ", 1e9), ("2T", 2e12)]
)
def test_quantities(text: str, value: float) -> None:
    assert quantity(text, "--bitrate") == value


@pytest.mark.parametrize("text", ["", "M", "4 M b", "4MM", "4Mi", "four", "1e999", "nan", "-", "4M" * 20])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--bitrate"):
        quantity(text, "--bitrate")


def test_times() -> None:
    assert [seconds(text, "--retention") for text in ("90", "90s", "30m", "1h", "7d", "2w")] == [
        90,
        90,
        1800,
        3600,
        604_800,
        1_209_600,
    ]
    with pytest.raises(ConfigError, match="as in 1h"):
        seconds("soon", "--retention")


# -- costs ---------------------------------------------------------------------------------------------------------


def test_an_unknown_codec_says_which_were_measured_and_how_to_measure_it() -> None:
    with pytest.raises(ConfigError, match=r"'vp9'.*h264.*--measure --codec vp9"):
        plan(replace(CAMERAS, codec="vp9"), COSTS)


def test_costs_survive_their_file(tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    file.write_text(json.dumps({"costs": COSTS.as_dict()}))
    assert load(file) == COSTS


def test_what_was_not_measured_is_borrowed_and_said() -> None:
    given = COSTS.as_dict()
    for name in ("kafka", "broker", "group", "record_bytes"):
        del given[name]
    costs = from_dict(given, "a file")
    assert costs.shm == COSTS.shm
    assert costs.broker == MEASURED.broker
    assert "broker" in costs.source and "by hand" in costs.source


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda c: c["decode"]["h264"].update(packet_s="fast"), "decode.h264.packet_s"),
        (lambda c: c["decode"]["h264"].update(packet_s=-1), "decode.h264.packet_s"),
        (lambda c: c["decode"]["h264"].update(packet_s=True), "decode.h264.packet_s"),
        (lambda c: c["shm"].pop("batch_s"), "shm.batch_s is missing"),
        (lambda c: c["shm"].update(magic=1), "shm.magic is unknown"),
        (lambda c: c.update(shm=3), "costs.shm"),
        (lambda c: c.update(decode={}), "costs.decode"),
        (lambda c: c.update(surprise=1), "costs.surprise"),
        (lambda c: c.update(record_bytes=float("nan")), "record_bytes"),
    ],
)
def test_a_wrong_file_names_the_key(spoil, words: str) -> None:
    given = json.loads(json.dumps(COSTS.as_dict()))
    spoil(given)
    with pytest.raises(ConfigError, match=words):
        from_dict(given, "a file")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"costs": 1}', "not json"])
def test_what_is_no_measurement_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "costs.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"costs\.json"):
        load(file)
    with pytest.raises(ConfigError, match="missing"):
        load(tmp_path / "missing.json")


def test_the_built_in_costs_are_those_of_the_committed_measurement() -> None:
    assert load(RESULTS) == MEASURED
