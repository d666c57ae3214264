"""Live cameras in a process of their own: each publishes 30 packets a second, when they are due, whoever is slow.

For comux each is a topic on shared memory. For the others each is a named pipe of a megabyte (two seconds) with
Matroska: what an RTSP camera is after the network. A reader that is slower than that makes the pipe full, and the
packets wait, as they do in a camera's own buffers. The cameras are out of step, as real ones are. When each packet was
due is written into a file that the reader maps: the age of a picture counts from there.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from video import clips

LONGEST_S = 90
ADDRESS = "shm://bench-video-live"


def due_file(folder: Path, cameras: int, mode: str) -> np.memmap:
    """When packet ``[camera, number]`` was due, monotonic seconds; 0: not yet."""
    return np.memmap(folder / "due", np.float64, mode, shape=(cameras, LONGEST_S * clips.FPS))


def pipe(folder: Path, camera: int) -> str:
    return str(folder / f"camera-{camera}")


class Clock:
    """Says when packet ``number`` of a camera is due, and waits until then."""

    def __init__(self, due: np.memmap, cameras: int) -> None:
        self.due, self.cameras, self.start = due, cameras, time.monotonic() + 0.05

    def wait(self, camera: int, number: int) -> None:
        at = self.start + (number + camera / self.cameras) / clips.FPS
        ahead = at - time.monotonic()
        if ahead > 0:
            time.sleep(ahead)
        self.due[camera, number] = at


def publish(codec: str, packets: list[clips.Packet], due: np.memmap, cameras: int, stop: threading.Event) -> None:
    """To topics, in one thread."""
    from comux import TopicSpec, connect
    from comux.records import KEYFRAME

    with connect(ADDRESS) as broker:
        mean = sum(len(packet.data) for packet in packets) // len(packets)
        producers = []
        for camera in range(cameras):
            spec = TopicSpec(
                f"raw_cam{camera}",
                records=10 * clips.FPS,
                data_bytes=max(4 << 20, 15 * clips.FPS * mean),
                policy="drop_oldest",
                metadata={"codec": codec},
            )
            broker.create_topic(spec)
            producers.append(broker.producer(spec.name))
        _ready()
        clock = Clock(due, cameras)
        for number in range(due.shape[1]):
            packet = packets[number % len(packets)]
            for camera, producer in enumerate(producers):
                clock.wait(camera, number)
                if stop.is_set():
                    break
                producer.send(packet.data, flags=KEYFRAME if packet.keyframe else 0)
            if stop.is_set():
                break
        for producer in producers:
            producer.close()
        for name in broker.topics():
            broker.delete_topic(name, force=True)


def pour(folder: Path, pieces: list[bytes], due: np.memmap, cameras: int, stop: threading.Event) -> None:
    """Into pipes, a thread for each."""
    import fcntl

    for camera in range(cameras):
        os.mkfifo(pipe(folder, camera))
    _ready()
    clock = Clock(due, cameras)

    def work(camera: int) -> None:
        out = os.open(pipe(folder, camera), os.O_WRONLY)
        fcntl.fcntl(out, getattr(fcntl, "F_SETPIPE_SZ", 1031), 1 << 20)
        try:
            for number in range(due.shape[1]):
                clock.wait(camera, number)
                if stop.is_set():
                    break
                rest = memoryview(pieces[number])
                while rest:
                    rest = rest[os.write(out, rest) :]
        except BrokenPipeError:
            pass
        finally:
            os.close(out)

    for camera in range(cameras):
        threading.Thread(target=work, args=(camera,), daemon=True).start()
    stop.wait()


def _ready() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def main() -> None:
    folder, clip_folder, codec, size, cameras, where = sys.argv[1:]
    due = due_file(Path(folder), int(cameras), "r+")
    packets = clips.encoded(Path(clip_folder), codec, size)
    stop = threading.Event()

    def ended() -> None:
        sys.stdin.read()  # whoever started us closes it, or is dead
        stop.set()

    if where == "topics":
        target, arguments = publish, (codec, packets, due, int(cameras), stop)
    else:
        pieces = clips.chunks(codec, size, clips.repeated(packets, due.shape[1]))
        target, arguments = pour, (Path(folder), pieces, due, int(cameras), stop)
    worker = threading.Thread(target=target, args=arguments)
    worker.start()
    while worker.is_alive() and not any(due[:, 0]):
        time.sleep(0.01)  # ``_ready`` reads the line that says go
    ended()
    worker.join()


if __name__ == "__main__":
    main()
