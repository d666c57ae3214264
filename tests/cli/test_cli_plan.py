"""``comux plan``: a table for people, JSON for programs, one line for nonsense; and measuring as a person does it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from comux.cli import main
from comux.cli.plan import shown
from comux.planning.costs import MEASURED, load
from comux.planning.figures import Figure


def execute(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main.execute(["plan", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_table_says_what_is_needed_and_what_it_stands_on(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = execute(capsys, "--cameras", "1000", "--size", "1280x720", "--bitrate", "2M", "--rate", "5")
    assert (code, err) == (0, "")
    for words in (
        "1000 cameras, 1280x720 h264, 30 fps, 2 Mbit/s, through kafka",
        "cores to have",
        "machines",
        "cameras per core",
        "partitions of a broker",
        "a process dies",
        MEASURED.source,
        "safety 1.5",
    ):
        assert words in out


def test_json_is_the_whole_plan(capsys) -> None:
    code, out, _ = execute(capsys, "--cameras", "100", "--format", "json", "--codec", "h265")
    answer = json.loads(out)
    assert code == 0
    assert answer["demand"]["codec"] == "hevc"
    assert answer["machine_limit"] in answer["machine_load"]
    assert {"section", "name", "value", "unit", "basis", "safe"} == set(answer["figures"][0])


def test_no_results_no_results_topics(capsys) -> None:
    _, out, _ = execute(capsys, "--cameras", "100", "--format", "json", "--results-bytes", "-1")
    figures = {figure["name"]: figure["value"] for figure in json.loads(out)["figures"]}
    assert figures["topics"] == 100
    assert figures["out of a machine"] == 0


def test_measured_costs_of_a_file_are_planned_with(capsys, tmp_path: Path) -> None:
    costs = MEASURED.as_dict()
    costs["source"] = "my machine"
    costs["decode"]["h264"] = {"packet_s": 1.0, "megapixel_s": 0, "megabyte_s": 0}
    (tmp_path / "costs.json").write_text(json.dumps({"costs": costs}))
    _, out, _ = execute(capsys, "--cameras", "10", "--format", "json", "--measured", str(tmp_path / "costs.json"))
    answer = json.loads(out)
    assert answer["source"] == "my machine"
    assert answer["figures"][0]["value"] == pytest.approx(300)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cameras", "0"], ["--cameras 0"]),
        (["--cameras", "many"], ["--cameras", "integer"]),
        (["--size", "big"], ["big", "640x360"]),
        (["--bitrate", "4"], ["--bitrate 4", "4M"]),
        (["--bitrate", "fast"], ["--bitrate 'fast'", "4M"]),
        (["--codec", "vp9"], ["vp9", "h264", "--measure"]),
        (["--memory", "lots"], ["--memory 'lots'"]),
        (["--retention", "soon"], ["--retention 'soon'", "1h"]),
        (["--brokers", "2"], ["--brokers 2", "3 copies"]),
        (["--format", "xml"], ["xml", "table, json"]),
        (["--measured", "no/such.json"], ["no/such.json"]),
        (["--measure", "--output", "no/such/folder/costs.json"], ["no/such/folder"]),
        (["--measure", "--kafka", "shm://"], ["shm://", "kafka://host:9092"]),
        (["--measure", "--codec", "vp99"], ["vp99"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_nonsense_is_one_line_and_code_2(capsys, arguments: list[str], words: list[str]) -> None:
    code, out, err = execute(capsys, *arguments)
    assert (code, out) == (2, "")
    assert len([line for line in err.splitlines() if line.startswith("comux:")]) == 1
    for word in words:
        assert word in err


def test_what_was_measured_is_printed_written_and_planned_with(capsys, tmp_path: Path, monkeypatch) -> None:
    from comux.planning import check, measure

    asked = []

    def measured(effort, *, codecs, cluster, tell):
        asked.append((effort.seconds, effort.rounds, codecs, cluster))
        return {"costs": {**MEASURED.as_dict(), "source": "my machine"}}

    monkeypatch.setattr(measure, "measure", measured)
    monkeypatch.setattr(check, "check_costs", lambda *a, **k: [check.Compared("CPU of the loop", 1.1, 1.0, "cores")])
    file = tmp_path / "costs.json"
    code, out, err = execute(
        capsys,
        "--check",
        "-o",
        str(file),
        "--seconds",
        "2",
        "--rounds",
        "5",
        "--codec",
        "h265",
        "--kafka",
        "kafka://a:1",
    )
    assert (code, err) == (0, "")
    assert asked == [(2.0, 5, ("h264", "hevc"), "kafka://a:1")]
    assert "shm.packet_s" in out
    assert "+10%" in out
    assert load(file).source == "my machine"
    assert json.loads(file.read_text())["check"] == [
        {"name": "CPU of the loop", "planned": 1.1, "measured": 1.0, "unit": "cores"}
    ]
    assert execute(capsys, "--measured", str(file))[0] == 0


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0456, "cores", "0.0456 cores"),
        (1270.4, "cores", "1,270 cores"),
        (20_000, "", "20,000"),
        (3, "", "3"),
        (5.31, "", "5.31"),
        (2.51e9, "bytes", "2.51 GB"),
        (3.4e8, "bit/s", "340 Mbit/s"),
        (9e7, "bytes/s", "90 MB/s"),
        (17.42, "s", "17.4 s"),
    ],
)
def test_figures_are_shown_with_three_digits_and_their_unit(value: float, unit: str, text: str) -> None:
    assert shown(Figure("", "", value, unit, "")) == text


def test_memory_of_local_topics_for_people_and_programs(capsys, monkeypatch) -> None:
    code, out, err = execute(capsys, "memory", "--cameras", "8", "--arrays", "--depth", "4", "--size", "640x360")
    assert (code, err) == (0, "")
    for words in ("raw_*", "all of it", "0.133 s", "are free"):
        assert words in out
    code, out, _ = execute(capsys, "memory", "--cameras", "8", "--record", "24k", "--depth", "64", "--format", "json")
    answer = json.loads(out)
    assert code == 0 and answer["fits"] is True and answer["advice"] == []
    assert answer["bytes"] == 8 * answer["topics"][0]["bytes"] and answer["topics"][0]["records"] == 64


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--depth", "some"), "--depth 'some'"),
        (("--depth", "10 parsecs"), "--depth '10 parsecs'"),
        (("--size", "big"), "size 'big'"),
        (("--address", "memory://"), "only topics on shm:// take shared memory"),
        (("--cameras", "0"), "--cameras 0"),
    ],
)
def test_nonsense_about_memory_is_one_line(capsys, arguments: tuple[str, ...], words: str) -> None:
    code, _, err = execute(capsys, "memory", *arguments)
    assert code == 2 and words in err and err.count("\n") == 1
