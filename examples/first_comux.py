"""The documented program of the first comux, call by call. Only the addresses have changed.

Start one or two cameras first, for example::

    comux publish "synthetic://640x360@30?camera=1" --topic raw_cam1
    comux publish "synthetic://640x360@30?camera=2" --topic raw_cam2

then this program, and read the results from ``stream_cam1`` and ``stream_cam2``. It ends when every stream has ended,
or after ``COMUX_SECONDS`` seconds (or the seconds given as first argument), or on Ctrl-C.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np

from comux import Comux
from comux.errors import EndOfStream

warnings.simplefilter("ignore", DeprecationWarning)  # the first comux's spellings still work, with a note each

SERVERS = [os.environ.get("COMUX_ADDRESS", "shm://")]  # was: ["kafka1:9092", "kafka2:9092"]
CAM_IDS = os.environ.get("COMUX_CAMERAS", "cam1,cam2").split(",")


def model(array: np.ndarray) -> dict[str, object]:
    """Something that looks at a picture: brightness, and where it is brightest."""
    grey = array.mean(axis=2)
    row, column = np.unravel_index(int(grey.argmax()), grey.shape)
    return {"brightness": round(float(grey.mean()), 2), "brightest": [int(column), int(row)]}


def say_hello(comux: Comux, value: object) -> str:
    """A control action: what it returns is the answer."""
    return f"hello {value}"


def main() -> None:
    seconds = float(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("COMUX_SECONDS", "inf"))
    deadline = time.monotonic() + seconds

    pid_file = Path("pid")
    pid_file.write_text(str(os.getpid()))

    comux = Comux(CAM_IDS, "raw_:cam_id", "stream_:cam_id", "ERROR")
    comux.setup_consumers(SERVERS, overwrite=True, end=True, max_offset_diff=20, strict_on_fail=True, over_write=False)
    comux.setup_controller("config", SERVERS, {"hello": say_hello})
    comux.setup_decoders(rate=10, W=1920, H=1080, de_codec="h264", pix_fmt="yuv420p")
    comux.setup_producer(SERVERS, strict_on_fail=True, over_write=False)
    comux.start()

    sent = 0
    try:
        while time.monotonic() < deadline:  # was: while True
            batch = comux.get_batch(timeout=min(10, max(0.0, deadline - time.monotonic())))
            for item in batch:
                cam_id, index, array = item
                if array is None:
                    continue
                headers = model(array)
                comux.send(cam_id, index, headers)
                sent += 1
            if all(item.status == "ended" for item in batch):  # the first comux waited for ever
                break
    except (KeyboardInterrupt, EndOfStream):
        pass
    finally:
        comux.close()
        pid_file.unlink(missing_ok=True)
    print(f"{sent} results sent")


if __name__ == "__main__":
    main()
