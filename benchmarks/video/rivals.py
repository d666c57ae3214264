"""The other ways, each as its own documentation shows it for speed; where several are shown, the fastest here."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from video.adapters import Job, Tally, Way, decoder, look, take


def _shrink(array: Any, job: Job) -> Any:
    """As OpenCV's own area average."""
    if job.out is None:
        return array
    import cv2

    return cv2.resize(array, job.out, interpolation=cv2.INTER_AREA)


class PyAv(Way):
    """A loop per thread."""

    name = "PyAV loop per thread"
    does = (
        "to_ndarray(format='bgr24'), resizing in the same libswscale call, handed over a queue. Colour by libswscale's "
        "defaults: some 46 dB"
    )
    package = "av"

    def every(self, job: Job, tally: Tally) -> None:
        import av

        data = job.packets()

        def read(_: int, put: Callable[[Any], None]) -> None:
            context = decoder(job)
            for packet in [*data, None]:
                for frame in context.decode(None if packet is None else av.Packet(packet)):
                    put(to_array(frame, job.out))

        take(job, tally, read)


def to_array(frame: Any, out: tuple[int, int] | None) -> Any:
    """BGR of one picture of PyAV's."""
    if out is None:
        return frame.to_ndarray(format="bgr24")
    return frame.reformat(width=out[0], height=out[1], format="bgr24", interpolation="AREA").to_ndarray()


class OpenCv(Way):
    """VideoCapture."""

    name = "OpenCV thread per camera"
    does = (
        "VideoCapture.read, resized by cv2.resize(INTER_AREA), handed over a queue. Ignores colour tags: BT.709 31 dB"
    )
    package = "cv2"

    def every(self, job: Job, tally: Tally) -> None:
        import cv2

        def read(_: int, put: Callable[[Any], None]) -> None:
            capture = cv2.VideoCapture(str(job.file), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, job.threads])
            while (found := capture.read())[0]:
                put(_shrink(found[1], job))
            capture.release()

        cv2.setNumThreads(1)  # cv2.resize's own threads would fight the decoders
        take(job, tally, read)


class VidGear(Way):
    """CamGear: OpenCV in a thread with a queue of 96."""

    name = "VidGear CamGear"
    does = (
        "CamGear in its threaded queue mode, read in turn, resized by cv2.resize. OpenCV's colours; 96 pictures waiting"
    )
    package = "vidgear.gears"

    def every(self, job: Job, tally: Tally) -> None:
        import cv2

        cv2.setNumThreads(1)
        os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = f"threads;{job.threads}"
        from vidgear.gears import CamGear

        opened = [CamGear(source=str(job.file), backend=cv2.CAP_FFMPEG, logging=False) for _ in range(job.cameras)]
        streams = [stream.start() for stream in opened]
        running = list(streams)
        while running:
            for stream in list(running):
                array = stream.read()
                if array is None:
                    running.remove(stream)
                    continue
                look(_shrink(array, job))
                tally.add()
        for stream in streams:
            stream.stop()


class FfmpegPipes(Way):
    """A process of ffmpeg for each camera."""

    name = "ffmpeg pipes"
    does = "ffmpeg -pix_fmt bgr24 -f rawvideo through a pipe, a process per camera. Colour by libswscale's defaults"

    @classmethod
    def absent(cls) -> str | None:
        return None if shutil.which("ffmpeg") else "no program ffmpeg in PATH"

    def every(self, job: Job, tally: Tally) -> None:
        source = ["-threads", str(job.threads), "-i", str(job.file)]

        def read(_: int, put: Callable[[Any], None]) -> None:
            with raw_pictures(source, job.shape, scaled=job.out is not None) as pictures:
                for array in pictures:
                    put(array)

        take(job, tally, read)


@contextmanager
def raw_pictures(source: list[str], shape: tuple[int, ...], *, scaled: bool) -> Iterator[Iterator[Any]]:
    """Pictures out of a process of ffmpeg, each in an array of its own."""
    scale = ["-vf", f"scale={shape[1]}:{shape[0]}:flags=area"] if scaled else []
    call = ["ffmpeg", "-v", "error", "-nostdin", *source, *scale, "-pix_fmt", "bgr24", "-f", "rawvideo", "-"]
    with subprocess.Popen(call, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        _widen(process.stdout.fileno())

        def pictures() -> Iterator[Any]:
            while True:
                array = np.empty(shape, np.uint8)
                if not _fill(process.stdout, memoryview(array).cast("B")):
                    return
                yield array

        try:
            yield pictures()
        finally:
            process.kill()


def _widen(pipe: int) -> None:
    import fcntl

    fcntl.fcntl(pipe, getattr(fcntl, "F_SETPIPE_SZ", 1031), 1 << 20)


def _fill(pipe: Any, room: memoryview) -> bool:
    at = 0
    while at < len(room):
        got = pipe.readinto(room[at:])
        if not got:
            return False
        at += got
    return True


class TorchCodec(Way):
    """torchcodec, where it is installed already."""

    name = "torchcodec"
    does = "VideoDecoder per thread, RGB tensors made BGR arrays by a view. No colour beyond FFmpeg's; no live cameras"
    package = "torchcodec.decoders"

    def every(self, job: Job, tally: Tally) -> None:
        from torchcodec.decoders import VideoDecoder

        def read(_: int, put: Callable[[Any], None]) -> None:
            source = VideoDecoder(str(job.file), dimension_order="NHWC", num_ffmpeg_threads=job.threads)
            for frame in source:
                put(_shrink(frame.numpy()[..., ::-1], job))

        take(job, tally, read)


class GStreamer(Way):
    """OpenCV over GStreamer, where both are installed already."""

    name = "GStreamer (through OpenCV)"
    does = "filesrc ! decodebin ! videoconvert ! appsink, a thread per camera. Colour by videoconvert"
    package = "cv2"

    @classmethod
    def absent(cls) -> str | None:
        missing = super().absent()
        if missing is not None:
            return missing
        import cv2

        return (
            None if "GStreamer:                   YES" in cv2.getBuildInformation() else "this OpenCV has no GStreamer"
        )

    def every(self, job: Job, tally: Tally) -> None:
        import cv2

        def read(_: int, put: Callable[[Any], None]) -> None:
            line = (
                f"filesrc location={job.file} ! decodebin ! videoconvert ! video/x-raw,format=BGR ! appsink sync=false"
            )
            capture = cv2.VideoCapture(line, cv2.CAP_GSTREAMER)
            while (found := capture.read())[0]:
                put(_shrink(found[1], job))
            capture.release()

        take(job, tally, read)


class Inference(Way):
    """Roboflow's pipeline, where it is installed already."""

    name = "Roboflow InferencePipeline"
    does = "VideoSource with the WAIT and EAGER strategies per camera, multiplexed. OpenCV's colours"
    package = "inference"

    def every(self, job: Job, tally: Tally) -> None:
        from inference.core.interfaces.camera.utils import multiplex_videos

        for frames in multiplex_videos(videos=[str(job.file)] * job.cameras, force_stream_reconnection=False):
            for frame in frames:
                look(_shrink(frame.image, job))
                tally.add()


RIVALS: list[type[Way]] = [PyAv, OpenCv, VidGear, FfmpegPipes, TorchCodec, GStreamer, Inference]
