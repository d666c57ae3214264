"""The video benchmark: a short run delivers everything with true ages, goals are judged right, a long one goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from comux.lifecycle import child_environment

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def video(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The package benchmarks/video, as long as a test wants it."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import video.bench
    import video.clips
    import video.goals
    import video.tables

    yield video
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("video", "common"):
            del sys.modules[name]


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    """Runs the benchmark; what its file holds then, and what it printed."""

    def run(*arguments: str) -> tuple[dict[str, Any], str]:
        call = [sys.executable, str(BENCHMARKS / "video/bench.py"), *arguments]
        call += ["--json", str(tmp_path / "video.json"), "--clips", str(tmp_path / "clips"), "--append"]
        done = subprocess.run(call, env=child_environment(), capture_output=True, text=True, timeout=110, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads((tmp_path / "video.json").read_text()), done.stdout

    return run


TINY = ("--sizes", "360p", "--codecs", "h264", "--rounds", "1", "--share", "0.02")


def rows_of(found: dict[str, Any], key: str) -> dict[str, Any]:
    return {row["name"]: row for row in found["groups"][key]["rows"]}


def test_a_short_run_gets_every_picture_and_goes_on(bench: Any, tmp_path: Path) -> None:
    files = ("--only", "every", "--ways", "decode,comux,PyAV")
    found, printed = bench(*TINY, *files, "--cameras", "2")
    rows = rows_of(found, "every h264 360p 2")
    assert list(rows) == ["decode only (ceiling)", "comux", "PyAV loop per thread"]
    for row in rows.values():
        assert row["errors"] == []
        (one,) = row["rounds"]
        assert one["pictures"] == one["expected"] == 2 * (30 + 60)
        assert one["fps"] > 0 and one["cpu"] > 0 and one["memory"] > 0
    assert "| 2 × 360p h264 | comux" in printed
    before = json.dumps(found)
    again, _ = bench(*TINY, *files, "--cameras", "2")
    assert json.dumps(again) == before, "what is there is not measured again"
    more, _ = bench(*TINY, *files, "--cameras", "2", "--rounds", "2", "--seconds", "0")
    assert json.dumps(more) == before, "and nothing is begun without time for it"
    report = [sys.executable, str(BENCHMARKS / "report.py"), str(tmp_path)]
    page = subprocess.run(report, capture_output=True, text=True, check=True).stdout
    assert page.startswith("## Video beside its rivals") and "### Every picture as BGR" in page


def test_live_cameras_are_watched_by_topic_and_by_pipe(bench: Any) -> None:
    found, _ = bench(*TINY, "--only", "newest", "--ways", "comux,PyAV", "--cameras", "2", "--share", "0.2")
    rows = rows_of(found, "newest h264 360p 2")
    assert list(rows) == ["comux", "comux, window=0", "PyAV loop per thread"]
    for name, row in rows.items():
        assert row["errors"] == [], name
        (one,) = row["rounds"]
        assert one["pictures"] > 0 and one["rising"] and not one["unread"], (name, one)
        assert 0 < one["age_p50"] <= one["age_p99"], (name, one)


@pytest.mark.torture
@pytest.mark.parametrize("part", ["every", "newest"])
def test_rivals_run_or_say_why_they_do_not(bench: Any, part: str) -> None:
    """A rival whose adapter is wrong would be no rival: it gives every picture, or rising numbers of them."""
    found, _ = bench(*TINY, "--only", part, "--cameras", "2", "--share", "0.2")
    for name, row in rows_of(found, f"{part} h264 360p 2").items():
        assert row["errors"] == [], name
        (one,) = row["rounds"]
        assert one["pictures"] == one["expected"] if part == "every" else one["rising"], name
    assert all(found["absent"].values())


# -- its own judgement -----------------------------------------------------------------------------------------------


def file_row(name: str, rates: list[float | None], *, rival: bool = True, lost: int = 0, **more: Any) -> dict[str, Any]:
    rounds = [
        None if fps is None else {"fps": fps, "cpu": 0.004, "memory": 5e7, "pictures": 100 - lost, "expected": 100}
        for fps in rates
    ]
    disturbed = more.get("disturbed", [False] * len(rates))
    for one, mark in zip(rounds, disturbed, strict=True):
        if one is not None:
            one["disturbed"] = mark
    return {"name": name, "rival": rival, "rounds": rounds, "errors": [] if None not in rates else ["why"]}


def found_with(*rows: dict[str, Any], cameras: int = 8) -> dict[str, Any]:
    group = {"part": "every", "codec": "h264", "size": "1080p", "cameras": cameras, "rows": list(rows)}
    return {"groups": {f"every h264 1080p {cameras}": group}, "absent": {"torchcodec": "ModuleNotFoundError: no"}}


def test_goals_are_judged_by_the_rounds_own_ratios(video: Any) -> None:
    found = found_with(
        file_row("decode only (ceiling)", [500.0, 250.0, 500.0], rival=False),
        file_row("comux", [450.0, 225.0, 440.0], rival=False),
        file_row("PyAV loop per thread", [400.0, 210.0, 400.0]),
        file_row("loses some", [490.0, 490.0, 490.0], lost=1),
        file_row("fails", [None, None, None]),
    )
    ceiling, rival, memory = video.goals.compare(found)
    assert ceiling == ("every picture, 8 × 1080p", "0.900 (0.88–0.90); by CPU 1.00", "the ceiling", "≥ 0.88", "met")
    assert rival == (
        "every picture, 8 × 1080p",
        "1.100 (1.07–1.12); by CPU 1.00",
        "PyAV loop per thread",
        "≥ 1.12",
        "missed",
    )
    assert memory[1:] == ("6.25 MB", "every h264 1080p", "≤ 64 MB", "met")
    page = video.tables.page(found)
    assert "| 8 × 1080p h264 | loses some | 490 | 490–490 | 0.980 | 4.00 ms | 6 MB | 99 of 100 |" in page
    assert "fails; failed: why" in page and "Absent: torchcodec (ModuleNotFoundError: no)." in page


def test_disturbed_rounds_count_only_where_there_are_no_others(video: Any) -> None:
    ceiling = file_row("decode only (ceiling)", [500.0, 500.0], rival=False, disturbed=[False, True])
    ours = file_row("comux", [450.0, 100.0], rival=False)
    assert video.goals.ratios(ours, ceiling) == [0.9]
    ours = file_row("comux", [450.0, 100.0], rival=False, disturbed=[True, True])
    assert video.goals.ratios(ours, ceiling) == [0.9, 0.2]
    assert video.goals.median(ours, "fps") == 275.0
    assert "comux (2 disturbed)" in video.tables.group_table(found_with(ceiling, ours)["groups"]["every h264 1080p 8"])


def test_live_goals_are_judged(video: Any) -> None:
    def live(**figures: Any) -> dict[str, Any]:
        base = {"fps": 40.0, "pictures": 240, "slowest": 10.0, "cpu": 1.0, "memory": 4e7, "disturbed": False}
        one = {
            **base,
            "age_p99": 0.03,
            "age_late": 0.02,
            "age_early": 0.02,
            "fairness": 1.0,
            "alone": 10.0,
            "beside": 9.0,
        }
        return {"name": "comux", "rival": False, "rounds": [{**one, **figures}], "errors": []}

    def group(part: str, cameras: int, row: dict[str, Any]) -> dict[str, Any]:
        return {"part": part, "codec": "h264", "size": "1080p", "cameras": cameras, "rows": [row]}

    groups = {
        "compute h264 1080p 4": group("compute", 4, live()),
        "busy h264 1080p 4": group("busy", 4, live(slowest=29.9)),
        "low h264 1080p 16": group("low", 16, live(age_late=0.5, fairness=0.7)),
    }
    lines = {line[0].rpartition(": ")[2]: line[4] for line in video.goals.compare({"groups": groups, "absent": {}})}
    assert lines["its rate"] == "missed"
    assert lines["the slowest camera"] == "met"
    assert (lines["cores"], lines["lag that grows"], lines["the slowest"]) == ("met", "missed", "missed")


def test_what_is_poured_into_pipes_is_the_clip_piece_by_piece(video: Any, tmp_path: Path) -> None:
    """Each piece holds one whole packet: else a live picture would wait for its successor, and rivals look slow."""
    import io

    import av

    packets = video.clips.repeated(video.clips.encoded(tmp_path, "h264", "360p", 6), 8)
    pieces = video.clips.chunks("h264", "360p", packets)
    assert len(pieces) == 8 and all(len(piece) > len(p.data) - 64 for piece, p in zip(pieces, packets, strict=True))
    for count in (3, 8):
        with av.open(io.BytesIO(b"".join(pieces[:count]))) as container:
            assert sum(packet.size > 0 for packet in container.demux(video=0)) == count
