"""All benchmarks in one run: `make bench`, or `make bench ARGS="--quick"`.

python benchmarks/run.py [--quick] [--folder benchmarks/results]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
NO_SERVER = 3  # exit code: a program that a server needs is not on this machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round of each, to see that they run")
    parser.add_argument("--folder", type=Path, default=None, help="where the figures go as JSON")
    options = parser.parse_args()
    ring = ["ipc/bench.py"]
    video = ["video/bench.py"]
    busy = ["video/busy_model.py"]
    kafka = ["kafka/bench.py"]
    idle = ["idle.py"]
    if options.quick:
        ring += ["--rounds", "1", "--share", "0.05", "--sizes", "64,24000"]
        video += ["--quick"]
        busy += ["--rounds", "1", "--seconds", "3", "--cameras", "4", "--sizes", "360p"]
        kafka += ["--rounds", "1", "--share", "0.02", "--settings", "equal"]
        idle += ["--seconds", "2"]
    if options.folder is not None:
        ring += ["--json", str(options.folder / "ring.json")]
        video += ["--json", str(options.folder / "video.json")]
        busy += ["--json", str(options.folder / "busy-model.json")]
        kafka += ["--json", str(options.folder / "kafka.json")]
    for call in (ring, video, busy, kafka, idle):
        done = subprocess.run([sys.executable, str(HERE / call[0]), *call[1:]], check=False)
        if call is kafka and done.returncode == NO_SERVER:
            print("Kafka was not measured: no broker can be started here, see above")
        elif done.returncode != 0:
            raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
