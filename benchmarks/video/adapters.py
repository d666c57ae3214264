"""One way of getting every frame of N cameras as BGR arrays into Python; each runs alone in a process of its own.

All decode the same H.264 packets. ``decode only`` converts and keeps nothing: no way of delivering frames can be
faster on these cores, so it is the ceiling.

Each adapter returns when every frame was there (monotonic seconds, rising). The rate is that of the frames after the
first second of video of every camera: threads, codecs and memory are warm then, for all alike.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# The frames are taken by one consumer, as a model would: it looks at a few bytes of each.
TOUCH = (0, 0, 0)
# Frames per camera that are not counted.
WARM_UP = 30


def rate(times: list[float], cameras: int) -> float:
    """Frames per second after the warm-up."""
    first = WARM_UP * cameras
    return (len(times) - first - 1) / (times[-1] - times[first])


def _packets(clip: Path) -> list[bytes]:
    from comux.decoders.containers import open_video, packets

    open_video(str(clip))
    return [bytes(p.data) for p in packets(str(clip))]


def _codec_threads(cameras: int) -> int:
    """What comux gives a finite source: the cores that would be idle otherwise. All get it, the ceiling too."""
    return max(1, (os.cpu_count() or 1) // cameras)


def _decoder(cameras: int) -> Any:
    import av

    av.logging.set_level(None)
    context = av.CodecContext.create("h264", "r")
    context.thread_count = _codec_threads(cameras)
    context.thread_type = "SLICE" if context.thread_count == 1 else "FRAME"
    return context


def decode_only(clip: Path, cameras: int) -> list[float]:
    """The ceiling: one thread per camera, nothing converted."""
    import av

    data = _packets(clip)
    times: list[float] = []

    def work() -> None:
        context = _decoder(cameras)
        for packet in [*data, None]:
            times.extend(time.monotonic() for _ in context.decode(None if packet is None else av.Packet(packet)))

    threads = [threading.Thread(target=work) for _ in range(cameras)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(times)


def pyav_threads(clip: Path, cameras: int) -> list[float]:
    """A PyAV loop per thread with ``to_ndarray``, frames handed over a queue."""
    import av

    data = _packets(clip)
    frames: queue.Queue[Any] = queue.Queue(2 * cameras)

    def work() -> None:
        context = _decoder(cameras)
        for packet in [*data, None]:
            for frame in context.decode(None if packet is None else av.Packet(packet)):
                frames.put(frame.to_ndarray(format="bgr24"))
        frames.put(None)

    return _take(frames, cameras, work)


def opencv_threads(clip: Path, cameras: int) -> list[float]:
    """An OpenCV VideoCapture per thread, frames handed over a queue."""
    import cv2

    frames: queue.Queue[Any] = queue.Queue(2 * cameras)

    def work() -> None:
        capture = cv2.VideoCapture(str(clip), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, _codec_threads(cameras)])
        while True:
            good, frame = capture.read()
            if not good:
                break
            frames.put(frame)
        capture.release()
        frames.put(None)

    return _take(frames, cameras, work)


def _take(frames: queue.Queue[Any], cameras: int, work: Callable[[], None]) -> list[float]:
    threads = [threading.Thread(target=work) for _ in range(cameras)]
    for thread in threads:
        thread.start()
    left, touched = cameras, 0
    times: list[float] = []
    while left:
        frame = frames.get()
        if frame is None:
            left -= 1
            continue
        touched += int(frame[TOUCH])
        times.append(time.monotonic())
    for thread in threads:
        thread.join()
    return times


def comux_loop(clip: Path, cameras: int) -> list[float]:
    """comux: the packets on shared-memory topics, one ``get_batch`` loop."""
    from comux import Comux, TopicSpec, connect

    data = _packets(clip)
    ids = [f"cam{i}" for i in range(cameras)]
    with connect("shm://bench-video") as broker:
        try:
            for cam_id in ids:
                spec = TopicSpec(f"raw_{cam_id}", records=len(data) + 1, data_bytes=sum(map(len, data)) + (4 << 20))
                broker.create_topic(spec)
                with broker.producer(spec.name) as producer:
                    for packet in data:
                        producer.send(packet)
                    producer.end()
            touched = 0
            times: list[float] = []
            with Comux(ids, address="shm://bench-video", start="beginning", mode="every_frame") as loop:
                for batch in loop:
                    for _, _, array in batch:
                        if array is not None:
                            touched += int(array[TOUCH])
                            times.append(time.monotonic())
        finally:
            for name in broker.topics():
                broker.delete_topic(name, force=True)
    return times


ALL: dict[str, Callable[[Path, int], list[float]]] = {
    "decode only (ceiling)": decode_only,
    "comux": comux_loop,
    "PyAV loop per thread": pyav_threads,
    "OpenCV thread per camera": opencv_threads,
}


def make_clip(path: Path, width: int, height: int, frames: int, bframes: int = 2) -> None:
    """A clip of a synthetic camera with sensor noise, H.264, GOP 30 with B-frames or without."""
    import av

    from comux.feeds.scene import Scene

    scene = Scene(width, height, camera=1, seed=1)
    rng = np.random.default_rng(3)
    noise = rng.integers(-6, 7, (8, height * 3 // 2, width), dtype=np.int16)
    options = {"preset": "veryfast", "crf": "23", "bf": str(bframes), "g": "30"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            planes = scene.picture(number).astype(np.int16) + noise[number % 8]
            frame = av.VideoFrame.from_ndarray(np.clip(planes, 0, 255).astype(np.uint8), format="yuv420p")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
