"""Share the cameras of a Kafka cluster: start this program several times, each takes its part.

    python examples/fleet.py kafka://127.0.0.1:9092 --seconds 20

Cameras are the topics ``raw_*``; publish some first:

    comux publish 'synthetic://320x180@10?camera=1' --topic raw_cam1 --address kafka://127.0.0.1:9092
"""

from __future__ import annotations

import argparse
import time

from comux import Comux
from comux.telemetry import Event


def told(event: Event) -> None:
    """Every hand-over of a camera is an event."""
    if event.kind.startswith("fleet."):
        print(f"{event.kind}: {event.message}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="of the cluster: kafka://host:port")
    parser.add_argument("--group", default="fleet-example", help="processes with the same group share the cameras")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to run")
    options = parser.parse_args()

    cameras = Comux(None, address=options.address, share=options.group, topics="raw_*", strict_on_fail=False)
    cameras.events.listen(told)
    pictures = 0
    with cameras:
        until = time.monotonic() + options.seconds
        while time.monotonic() < until:
            for cam_id, index, array in cameras.get_batch(timeout=0.5):
                if array is not None:
                    pictures += 1
                    cameras.send(cam_id, index, headers={"mean": float(array.mean())})
        here = cameras.status()["fleet"]["here"]
    print(f"{pictures} pictures; cameras here at the end: {', '.join(here) or 'none'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
