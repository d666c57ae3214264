"""Video beside its rivals: 1 to 16 cameras, 360p to 1080p, H.264 and HEVC; every picture, the newest, beside a model.

    python benchmarks/video/bench.py [--quick] [--only every,live] [--cameras 4] [--sizes 1080p] [--codecs h264]
        [--ways comux,OpenCV] [--rounds 3] [--seconds 270] [--json FILE [--append]] [--png FILE]

The parts: ``every`` (files, every picture as BGR), ``resized`` (the same made 640x360), ``newest`` (live cameras, what
is newest), ``compute`` (the newest beside a model of 100 ms in the loop), ``busy`` (every picture beside a thread of
pure Python), ``low`` (many cameras watched at 2 and 1 pictures a second). CPU of low rates by camera: ``low_rates.py``.

A group is one part, codec, size and number of cameras. In each of its rounds every way takes its turn, in a process of
its own, so that a machine that slows down slows all of them; before and after each the machine is looked at (a short
decode on every core): what was disturbed is repeated, and marked where that did not help. Ratios are medians of the
rounds' own, of the undisturbed ones where there are any. With ``--append`` the groups that FILE has go on where they
stopped, and with ``--seconds`` no round is begun that would not end in time, so that a long run is made in pieces.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common
from video import adapters, clips, live, runs, tables

PACKAGES = ("comux", "numpy", "av", "opencv-python-headless", "vidgear")
PARTS = ("every", "resized", "newest", "compute", "busy", "low")
PICTURES = {"360p": 6000, "720p": 2000, "1080p": 1000}  #: of all cameras together, beside the warm-up
SMALL = (640, 360)
ROUNDS = {"every": 3, "resized": 3, "newest": 2, "compute": 3, "busy": 3, "low": 1}
LOW = {16: 2.0, 64: 1.0}  #: cameras watched at so many a second
LOW_S = 20.0
LOW_WARM_S = 15.0  #: comux learns how long a GOP is, and makes up for what that cost
LIVE_S = 6.0
WARM_S = 3.0


@dataclass(frozen=True)
class Group:
    """What is measured side by side."""

    part: str
    codec: str
    size: str
    cameras: int

    @property
    def key(self) -> str:
        return f"{self.part} {self.codec} {self.size} {self.cameras}"


def groups(parts: Sequence[str], codecs: Sequence[str], sizes: Sequence[str], counts: Sequence[int]) -> Iterator[Group]:
    """All that were asked for; the parts beside a model and at low rates are of one kind of camera each."""
    for part in parts:
        if part == "low":
            yield from (Group(part, "h264", "1080p", cameras) for cameras in LOW)
        elif part in ("compute", "busy"):
            yield Group(part, "h264", "1080p", 4)
        elif part == "resized":
            yield from (Group(part, codec, "1080p", cameras) for codec in codecs for cameras in counts)
        else:
            yield from (Group(part, codec, size, cameras) for codec in codecs for size in sizes for cameras in counts)


def ways(group: Group, words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Who takes turns in a group, and why the others cannot."""
    absent = {way.name: why for way in runs.WAYS if (why := way.absent()) is not None}
    names = [way.name for way in runs.WAYS if way.name not in absent]
    if group.part not in ("every", "resized"):
        ours = {"newest": "comux, window=0", "busy": "comux, decode_processes=2" if _in_processes() else ""}
        names = [name for name in live.WATCHES if name in names or name == ours.get(group.part)]
    return [name for name in names if not words or any(word in name for word in words)], absent


def _in_processes() -> bool:
    """Whether this comux decodes in worker processes where it is told to."""
    from comux.multiplexer.settings import Settings

    return "decode_processes" in Settings.__dataclass_fields__


@dataclass(frozen=True)
class Scale:
    """How long each measurement is; ``share``: of the usual length."""

    folder: Path
    share: float

    def once(self, group: Group, name: str) -> dict[str, Any]:
        """One measurement."""
        if group.part in ("every", "resized"):
            return runs.every(name, self.file_job(group))
        seconds = (LOW_S if group.part == "low" else LIVE_S) * self.share
        job = live.LiveJob(
            self.folder,
            group.codec,
            group.size,
            group.cameras,
            seconds,
            (LOW_WARM_S if group.part == "low" else WARM_S) * min(1.0, 2 * self.share),
            model={"compute": "compute", "busy": "python"}.get(group.part, ""),
            every=group.part == "busy",
            rate=LOW.get(group.cameras, 1.0) if group.part == "low" else 0.0,
        )
        return runs.watched(name, job, self.folder)

    def file_job(self, group: Group) -> adapters.Job:
        frames = adapters.WARM_UP + max(10, int(PICTURES[group.size] * self.share) // group.cameras)
        out = SMALL if group.part == "resized" else None
        return adapters.Job(self.folder, group.codec, group.size, group.cameras, frames, out)

    def prepare(self, group: Group) -> None:
        """Clips, before anything is measured."""
        if group.part in ("every", "resized"):
            job = self.file_job(group)
            clips.file_of(self.folder, job.codec, job.size, job.frames, job.made)
        else:
            clips.encoded(self.folder, group.codec, group.size)

    def seconds(self, group: Group, names: Sequence[str]) -> float:
        """What a round takes, about."""
        if group.part in ("every", "resized"):
            each = 6.0 * self.share + 2.0
        else:
            each = (LOW_S + LOW_WARM_S + 5.0 if group.part == "low" else LIVE_S + 6.0) * self.share + 2.0
        return each * len(names) * (1.6 if group.codec == "hevc" else 1.0)


def one_round(group: Group, rows: dict[str, Any], number: int, scale: Scale, gate: runs.Gate) -> None:
    """Everybody's turn; another one begins each time."""
    names = list(rows)
    start = number % len(names)
    for name in names[start:] + names[:start]:
        try:
            rows[name]["rounds"].append(gate.measure(partial(scale.once, group, name)))
        except runs.Failed as error:
            rows[name]["rounds"].append(None)
            rows[name]["errors"].append(str(error))


def run(options: argparse.Namespace, found: dict[str, Any], folder: Path) -> None:
    """Every round of every group that was asked for and is not there; ``found`` grows."""
    end, scale = time.monotonic() + options.seconds, Scale(folder, options.share)
    words = [word for word in options.ways.split(",") if word]
    counts = [int(word) for word in options.cameras.split(",")]
    gate = None
    rivals = {way.name for way in runs.WAYS if way.rival}
    for group in groups(options.only.split(","), options.codecs.split(","), options.sizes.split(","), counts):
        names, found["absent"] = ways(group, words)
        facts = {"part": group.part, "codec": group.codec, "size": group.size, "cameras": group.cameras}
        known = found["groups"].get(group.key) or {
            **facts,
            "rows": [{"name": name, "rival": name in rivals, "rounds": [], "errors": []} for name in names],
        }
        rows = {row["name"]: row for row in known["rows"]}
        done, wanted = len(known["rows"][0]["rounds"]), options.rounds or ROUNDS[group.part]
        took = scale.seconds(group, names)
        for number in range(done, wanted):
            scale.prepare(group)
            gate = gate or runs.Gate(folder)
            begin = time.monotonic()
            if begin + took > end:
                print(f"left for another run: {group.key}, from round {number + 1}", flush=True)
                break
            one_round(group, rows, number, scale, gate)
            took = time.monotonic() - begin
            found["groups"][group.key] = known
            if options.json:
                common.save(options.json, found)
        if len(known["rows"][0]["rounds"]) > done:
            print(tables.group_table(known), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a short round of a few groups")
    parser.add_argument("--only", default=",".join(PARTS), help="parts")
    parser.add_argument("--cameras", default="1,4,8,16")
    parser.add_argument("--sizes", default="360p,720p,1080p")
    parser.add_argument("--codecs", default=",".join(clips.CODECS))
    parser.add_argument("--ways", default="", help="words in names, separated by commas")
    parser.add_argument("--rounds", type=int, default=0, help="default: by part, 1 to 3")
    parser.add_argument("--share", type=float, default=1.0, help="of the usual length of each measurement")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no group that would take longer")
    parser.add_argument("--clips", type=Path, help="folder to keep the clips in; default: made anew")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--append", action="store_true", help="go on with what the file has")
    parser.add_argument("--png", type=Path)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.share, options.rounds, options.codecs = min(options.share, 0.1), 1, "h264"
        options.cameras, options.sizes, options.only = "1,4", "360p,1080p", "every,resized,newest,compute,busy"
    return options


def main() -> None:
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing that was started is left behind
    if options.inside:
        runs.inside(*json.loads(options.inside))
        return
    facts = common.machine(PACKAGES)
    found: dict[str, Any] = {"machine": facts, "groups": {}, "absent": {}}
    if options.append and options.json and options.json.exists():
        found["groups"] = json.loads(options.json.read_text())["groups"]
    print(common.describe(facts), "\n", flush=True)
    folder = options.clips or Path(tempfile.mkdtemp(prefix="comux-bench-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        run(options, found, folder)
    finally:
        if options.clips is None:
            shutil.rmtree(folder)
    print(*tables.goals(found), sep="\n")
    for name, why in found["absent"].items():
        print(f"absent: {name} ({why})")
    if options.png:
        from video import plot

        plot.draw(found, options.png)


if __name__ == "__main__":
    main()
