"""What a camera costs of which only some pictures are wanted: CPU time of 30, 10, 2 and 1 of 30 pictures a second.

    python benchmarks/video/low_rates.py [--rounds 5] [--frames 900] [--size 1920x1080] [--bitrate 4e6] [--json FILE]
        [--streams h264 "h264, 2 B-frames" hevc]

The base is a loop that decodes every packet and converts none, with the same codec: whoever throws pictures away after
decoding cannot be cheaper. comux delivers its pictures as BGR arrays through ``get_batch``. Each measurement runs in a
process of its own, on packets in the process's memory; rounds are interleaved. What is counted is the CPU time of the
whole process for the packets after the first four seconds of video: until then comux learns how long a GOP is. Packets
are put into the topic before, while the source is paused.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common

FPS = 30
WARM_UP = 4 * FPS + 5
EVERYTHING = "decode everything"
AND_TWO = "decode everything, convert 2 a second"
RATES = (30.0, 10.0, 2.0, 1.0)
STREAMS = ("h264", "h264, 2 B-frames", "hevc")


def write_clip(stream: str, size: str, frames: int, bitrate: int, path: Path) -> None:
    """Packets like a camera's, a keyframe a second; one a line: capture time in frames, keyframe, hexadecimal."""
    from comux.planning.clips import make_clip

    width, height = map(int, size.split("x"))
    bframes = 2 if "B-frames" in stream else 0
    clip = make_clip(codec_of(stream), width, height, fps=FPS, frames=frames, bitrate=bitrate, bframes=bframes)
    path.write_text("".join(f"{packet.pts} {int(packet.keyframe)} {packet.data.hex()}\n" for packet in clip))


def codec_of(stream: str) -> str:
    return stream.partition(",")[0]


def read_clip(path: Path, frames: int) -> list[tuple[int, bool, bytes]]:
    """The clip again and again until there are so many frames."""
    clip = []
    for line in path.read_text().splitlines():
        pts, key, data = line.split()
        clip.append((int(pts), key == "1", bytes.fromhex(data)))
    return [(turn * len(clip) + pts, key, data) for turn in range(-(-frames // len(clip))) for pts, key, data in clip][
        :frames
    ]


def decode_everything(codec: str, packets: list[tuple[int, bool, bytes]], every: int = 0) -> tuple[float, int]:
    """CPU seconds and pictures of a plain loop; ``every``: of how many pictures one is made an array."""
    import av

    context = av.CodecContext.create(codec, "r")
    context.thread_count = 1
    context.thread_type = "SLICE"
    begin, pictures = 0.0, 0
    for n, (pts, _, data) in enumerate(packets):
        if n == WARM_UP:
            begin, pictures = time.process_time(), 0
        packet = av.Packet(data)
        packet.pts = pts
        for frame in context.decode(packet):
            pictures += 1
            if every and pictures % every == 0:
                frame.to_ndarray(format="bgr24")
    return time.process_time() - begin, pictures // max(1, every)


def comux_at(rate: float, codec: str, packets: list[tuple[int, bool, bytes]]) -> tuple[float, int]:
    """CPU seconds and pictures delivered."""
    from comux import Comux, TopicSpec, connect
    from comux.records import KEYFRAME

    start_ns = time.time_ns()

    def publish(part: list[tuple[int, bool, bytes]]) -> None:
        for pts, key, data in part:
            stamp = start_ns + pts * 10**9 // FPS
            producer.send(data, flags=KEYFRAME if key else 0, timestamp_ns=stamp)

    with connect("memory://low-rates") as broker:
        broker.create_topic(TopicSpec("raw_a", records=len(packets) + 1, metadata={"codec": codec}))
        producer = broker.producer("raw_a")
        wanted = {} if rate >= FPS else {"rate": rate}
        settings = {"start": "beginning", "mode": "every_frame", "on_end": "stop", "decode_threads": 1}
        with Comux(["a"], address="memory://low-rates", **settings, **wanted) as loop:
            publish(packets[:WARM_UP])
            while loop.accounts()["a"].received < WARM_UP or loop.accounts()["a"].held.get("queue"):
                loop.get_batch(timeout=0.05)
            loop.pause("a")
            publish(packets[WARM_UP:])
            producer.end()
            pictures = 0
            begin = time.process_time()
            loop.resume("a")
            for batch in loop:
                pictures += sum(item.array is not None for item in batch)
            return time.process_time() - begin, pictures


def measure(name: str, codec: str, clip: Path, frames: int) -> dict[str, float]:
    """One measurement, in this process."""
    packets = read_clip(clip, frames)
    if name in (EVERYTHING, AND_TWO):
        cpu, pictures = decode_everything(codec, packets, every=FPS // 2 if name == AND_TWO else 0)
    else:
        cpu, pictures = comux_at(float(name), codec, packets)
    return {"ms": 1000 * cpu / ((len(packets) - WARM_UP) / FPS), "pictures": pictures}


def run(stream: str, clip: Path, frames: int, rounds: int) -> list[dict[str, Any]]:
    """Every row of one stream: CPU milliseconds per second of video."""
    codec = codec_of(stream)
    names = [EVERYTHING, AND_TWO, *(f"{rate:g}" for rate in RATES)]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            call = [sys.executable, __file__, "--one", name, "--codec", codec, "--clip", str(clip)]
            done = subprocess.run(
                [*call, "--frames", str(frames)], capture_output=True, text=True, check=False, timeout=600
            )
            if done.returncode != 0:
                raise SystemExit(f"{stream}, {name}: {done.stderr.strip()[-2000:]}")
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    return [
        {
            "stream": stream,
            "what": name,
            "ms": common.spread([one["ms"] for one in all_of_it]),
            "pictures": all_of_it[0]["pictures"],
            "seconds": (frames - WARM_UP) / FPS,
        }
        for name, all_of_it in found.items()
    ]


def report(rows: list[dict[str, Any]]) -> str:
    """A table of one stream."""
    base = next(row["ms"]["median"] for row in rows if row["what"] == EVERYTHING)
    lines = [
        [
            row["stream"],
            row["what"] if row["what"] in (EVERYTHING, AND_TWO) else f"comux, {row['what']} a second",
            f"{row['pictures'] / row['seconds']:.1f}",
            f"{row['ms']['median']:.1f}",
            f"{row['ms']['min']:.1f}–{row['ms']['max']:.1f}",
            f"{row['ms']['median'] / base:.2f}",
        ]
        for row in rows
    ]
    head = ["stream", "what", "pictures a second", "CPU ms per second of video", "spread", "of decoding everything"]
    return common.table(head, lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=900)
    parser.add_argument("--size", default="1920x1080")
    parser.add_argument("--bitrate", type=float, default=4e6)
    parser.add_argument("--streams", default=list(STREAMS), nargs="+", metavar="STREAM", help="; ".join(STREAMS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--codec", help=argparse.SUPPRESS)
    parser.add_argument("--clip", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.codec, options.clip, options.frames)))
        return
    facts = common.machine(("comux", "numpy", "av"))
    print(common.describe(facts), "\n")
    results = []
    with tempfile.TemporaryDirectory(prefix="comux-bench-") as folder:
        for stream in options.streams:
            clip = Path(folder) / "clip.txt"
            write_clip(stream, options.size, min(options.frames, 5 * FPS), int(options.bitrate), clip)
            rows = run(stream, clip, options.frames, options.rounds)
            results += rows
            print(report(rows), flush=True)
    if options.json:
        common.save(options.json, {"machine": facts, "results": results})


if __name__ == "__main__":
    main()
