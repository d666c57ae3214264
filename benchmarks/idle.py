"""What waiting costs: four paused cameras and a get_batch that waits, as a share of one core.

python benchmarks/idle.py [--seconds 10]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import common


def measure(seconds: float) -> float:
    """Percent of a core over ``seconds``."""
    from comux import Comux, TopicSpec, connect

    ids = [f"cam{i}" for i in range(4)]
    with connect("shm://bench-idle") as broker:
        try:
            for cam_id in ids:
                broker.create_topic(TopicSpec(f"raw_{cam_id}", data_bytes=1 << 20), exist_ok=True)
            with Comux(ids, address="shm://bench-idle") as cameras:
                for cam_id in ids:
                    cameras.pause(cam_id)
                cameras.get_batch(timeout=0.5)
                wall, cpu = time.monotonic(), time.process_time()
                while time.monotonic() - wall < seconds:
                    cameras.get_batch(timeout=min(1.0, seconds))
                return 100 * (time.process_time() - cpu) / (time.monotonic() - wall)
        finally:
            for name in broker.topics():
                broker.delete_topic(name, force=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    print(common.describe(common.machine()), "\n")
    share = measure(options.seconds)
    print(f"four paused cameras and a waiting get_batch: {share:.3f} % of a core over {options.seconds:g} s")


if __name__ == "__main__":
    main()
