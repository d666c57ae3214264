"""``comux demo``: cameras in, one loop, results out, read back; all of comux in one window.

Each camera is a process that publishes real H.264 on a topic. This process reads all topics with ``Comux``, looks for
motion in the arrays, sends each result with the packet it belongs to; a third party, a process of its own, reads the
results back and checks them. cam3 stalls on purpose and comes back, cam4 damages a packet now and then.

The end, whatever brings it (time, Ctrl-C, SIGTERM, an error): the books are read, the children are asked to end and
killed if they do not, the contact sheet is written, the topics are removed, the summary is printed. The loop never
waits longer than ``STEP``, so that all this is done well within a second. After ``kill -9`` of this process the
children end by themselves, and the next demo removes the topics.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from comux.cli.contact_sheet import Tile, draw_sheet, save_sheet
from comux.cli.demo_reader import CONSUME_SCHEMA, PRODUCE_SCHEMA
from comux.cli.demo_topics import DemoTopics
from comux.cli.demo_view import Counts, Moment, View, open_view, print_summary
from comux.cli.motion import Motion, MotionDetector
from comux.cli.publishers import Publishers, end_child, join_child, start_child
from comux.cli.tables import causes
from comux.errors import ComuxError, ConfigError, EndOfStream
from comux.feeds import Feed, open_feed, read_marks
from comux.lifecycle import stop_on_signals
from comux.multiplexer import Batch, Comux, Item
from comux.options import check_choice, topic_name
from comux.telemetry import Event

STEP: Final = 0.2  #: seconds a batch is waited for, at most
WARM_UP: Final = 20.0  #: seconds after which the clock starts whether every camera has shown a picture or not
DEFAULT_SECONDS: Final = 15.0  #: where no terminal is: a run that nobody can stop ends by itself
CHILDREN_END: Final = 0.6  #: seconds children have to end in order
FLUSH: Final = 0.2
MARKS_AREA: Final = (17.5 / 32, 5.5 / 24)  #: where synthetic cameras draw their numbers, as parts of width and height
STALLING, DAMAGED = 3, 4
FAULTS: Final = {STALLING: "stall@6s+3s", DAMAGED: "corrupt@4s"}


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the demo was asked for; see ``comux demo --help``."""

    seconds: float | None = None
    cameras: int = 4
    width: int = 640
    height: int = 360
    fps: float = 30.0
    video: Path | None = None
    format: str = "table"
    output: Path = Path("demo-contact-sheet.png")
    mode: str = "auto"
    address: str | None = None

    @property
    def cam_ids(self) -> tuple[str, ...]:
        return tuple(f"cam{number}" for number in range(1, self.cameras + 1))

    def source(self, number: int) -> str:
        """What camera ``number`` publishes, from 1."""
        if self.video is not None:
            return str(self.video)
        faults = f"&faults={FAULTS[number]}" if number in FAULTS else ""
        gop = max(1, round(self.fps))
        return f"synthetic://{self.width}x{self.height}@{self.fps:g}?gop={gop}&camera={number}&seed={number}{faults}"


def parse_size(text: str) -> tuple[int, int]:
    """``640x360`` as width and height.

    Raises:
        ConfigError: it is no size.
    """
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and len(text) < 20):
        raise ConfigError(f"size {text!r}: give width and height in pixels, as in 640x360")
    return int(width), int(height)


def run_demo(options: DemoOptions) -> int:
    """Run the demo in the main thread until its time is over, Ctrl-C or SIGTERM.

    Returns:
        0, or 1 where the books do not balance.

    Raises:
        ComuxError: it cannot start: a wrong option, no room in shared memory, a publisher that fails. Nothing is left.
    """
    feed = check(options)
    logging.getLogger("comux").addHandler(logging.NullHandler())  # the view tells events; stderr is not written twice
    if options.seconds is None and not (sys.stdout.isatty() and options.format == "table"):
        options = replace(options, seconds=DEFAULT_SECONDS)
    # Before the stack opens: a Ctrl-C at any later moment finds everything registered for its removal.
    with stop_on_signals() as stop, ExitStack() as stack:
        demo = _Demo(options, feed, stop, stack)
        try:
            demo.run()
        finally:
            # From here on it is done in a moment; a second, impatient Ctrl-C would only leave a mess.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
        summary = demo.finish()
    return summary.print(options)


def check(options: DemoOptions) -> Feed:
    """Everything that can be known to be wrong before anything starts.

    Returns:
        The first camera's feed, for the facts of its stream.

    Raises:
        ConfigError: names the option.
    """
    check_choice(options.format, "--format", ("table", "json"))
    check_choice(options.mode, "--mode", ("auto", "freshest", "every_frame"))
    folder = options.output.absolute().parent
    if options.output.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(f"--output {str(options.output)!r}: no file can be written there; name another")
    if options.video is not None and not options.video.is_file():
        raise ConfigError(f"--video {str(options.video)!r}: there is no such file")
    return open_feed(options.source(1), loop=options.video is not None)


@dataclass(frozen=True, slots=True)
class _Summary:
    """What is told at the end."""

    moment: Moment
    books: Mapping[str, Mapping[str, Any]]
    sheet: Path | None

    def print(self, options: DemoOptions) -> int:
        """On stdout, as asked; returns the exit code."""
        sheet = None if self.sheet is None else str(self.sheet)
        if options.format == "json":
            counts = self.moment.counts
            results = {"sent": counts.sent, "refused": counts.refused, **counts.results}
            whole = {
                "sources": self.books,
                "results": results,
                "seconds": round(self.moment.seconds, 3),
                "batches": counts.batches,
                "misread": counts.misread,
                "contact_sheet": sheet,
            }
            print(json.dumps(whole, indent=2))
        else:
            print_summary(self.moment, self.books, sheet)
        return 0 if all(book["balanced"] for book in self.books.values()) else 1


class _Demo:
    """One run.

    Args:
        options: Checked.
        feed: The first camera's.
        stop: Set by the signals.
        stack: Takes whatever must be undone.
    """

    def __init__(self, options: DemoOptions, feed: Feed, stop: threading.Event, stack: ExitStack) -> None:
        self._options = options
        self._stop = stop
        self._counts = Counts()
        self._topics = stack.enter_context(DemoTopics(options.address, options.cam_ids, feed))
        self._view: View = open_view(json=options.format == "json", title=f"comux demo, {options.cameras} cameras")
        stack.callback(self._view.close)
        self._publishers = Publishers(lambda cam_id, line: self._view.say(f"{cam_id}: {line}"))
        stack.callback(self._end_publishers)
        for number, cam_id in enumerate(options.cam_ids, 1):
            self._publishers.start(cam_id, self._publish_arguments(number, cam_id))
        self._reader = _Reader(self._topics.address, options.cam_ids, self._counts)
        stack.callback(self._reader.close)
        self._cameras = Comux(
            list(options.cam_ids),
            address=self._topics.address,
            consume_schema=CONSUME_SCHEMA,
            produce_schema=PRODUCE_SCHEMA,
            codec=feed.facts.codec,
            strict_on_fail=False,
        )
        stack.callback(self._cameras.close)
        self._deaf = self._cameras.events.listen(self._tell)
        ignore = (0.0, 0.0) if options.video is not None else MARKS_AREA
        self._detectors = {cam_id: MotionDetector(ignore) for cam_id in options.cam_ids}
        self._motions: dict[str, Motion] = {}
        self._seen: dict[str, tuple[npt.NDArray[np.uint8], float]] = {}
        self._batch: Batch | None = None
        self._clock = time.monotonic()
        self._clock_runs = False

    def _publish_arguments(self, number: int, cam_id: str) -> list[str]:
        loop = ["--loop"] if self._options.video is not None else []
        return [
            "comux",
            "publish",
            self._options.source(number),
            "--topic",
            topic_name(CONSUME_SCHEMA, cam_id),
            "--address",
            self._topics.address,
            "--quiet",
            "--parent",
            str(os.getpid()),
            *loop,
        ]

    def _tell(self, event: Event) -> None:
        """Events of sources come from their threads."""
        self._view.say(f"{event.source}: {event.message}" if event.source else event.message)

    # -- the loop --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until the time is over, a signal, or the end of every stream."""
        self._cameras.start()
        while not self._stop.is_set() and not self._over():
            self._publishers.watch(lambda cam_id: cam_id in self._seen)
            try:
                batch = self._cameras.get_batch(timeout=STEP, mode=self._options.mode)  # type: ignore[arg-type]
            except EndOfStream:
                return
            self._look_at(batch)
            if self._view.due():
                self._view.show(self._moment())

    def _over(self) -> bool:
        if not self._clock_runs:
            waited = time.monotonic() - self._clock
            if len(self._seen) < self._options.cameras and waited < WARM_UP:
                return False
            self._clock_runs, self._clock = True, time.monotonic()
        return self._options.seconds is not None and time.monotonic() - self._clock >= self._options.seconds

    def _look_at(self, batch: Batch) -> None:
        """What a user's loop does: compute something from each picture, send it with the packet it came from."""
        if batch.fresh:
            self._batch = batch
            self._counts.batches += 1
        for item in batch.fresh:
            cam_id = str(item.cam_id)
            motion = self._detectors[cam_id].look(item.array)
            results: dict[str, Any] = {"motion": motion.amount, "box": motion.box}
            if self._options.video is None:
                results["frame"] = self._frame_number(item)
            self._counts.motion[cam_id] = motion.amount
            self._motions[cam_id] = motion
            self._seen[cam_id] = item.array, time.monotonic()
            try:
                self._cameras.send(item, headers=results)
                self._counts.sent += 1
            except ComuxError as error:  # told and counted: results that fail do not stop the pictures
                self._counts.refused += 1
                self._view.say(f"{cam_id}: result not sent: {error}")

    def _frame_number(self, item: Item) -> int | None:
        """The number a synthetic camera drew; one that is not of this camera, or unreadable, is counted."""
        marks = read_marks(item.array)
        if marks is None or f"cam{marks[0]}" != item.cam_id:
            self._counts.misread += 1
            return None
        return marks[1]

    def _moment(self) -> Moment:
        seconds = time.monotonic() - self._clock if self._clock_runs else 0.0
        return Moment(seconds, self._cameras.status()["sources"], self._counts)

    # -- the end ---------------------------------------------------------------------------------------------------

    def finish(self) -> _Summary:
        """Read the books, end everything, write the sheet."""
        self._deaf()  # that every camera ends now is no news
        moment = self._moment()
        books: dict[str, dict[str, Any]] = {}
        for cam_id, status in moment.sources.items():
            facts = {name: status[name] for name in ("state", "jumps", "restarts", "damage")}
            books[cam_id] = {**status["account"], **facts}
        self._publishers.ask_to_end()
        with suppress(ComuxError):  # a result that failed was told when it failed
            self._cameras.flush(FLUSH)
        self._reader.ask_to_end()
        self._cameras.close()  # now, so that nobody decodes beside the drawing
        sheet = self._save_sheet(moment)
        self._reader.join(time.monotonic() + CHILDREN_END)
        self._view.close()
        return _Summary(moment, books, sheet)

    def _end_publishers(self) -> None:
        self._publishers.ask_to_end()
        self._publishers.join(time.monotonic() + CHILDREN_END)

    def _save_sheet(self, moment: Moment) -> Path | None:
        if self._batch is None:
            return None
        tiles = [self._tile(item, moment.sources[str(item.cam_id)]) for item in self._batch]
        pictures = sum(status["account"]["delivered"] for status in moment.sources.values())
        results = self._counts.results.get("read_back", 0)
        title = f"comux demo: {self._options.cameras} cameras, one batch"
        subtitle = (
            f"{pictures} pictures in {self._counts.batches} batches, {moment.seconds:.1f} s; {self._counts.sent} "
            f"results sent with their packets, {results} read back by another process"
        )
        try:
            save_sheet(draw_sheet(tiles, title, subtitle), self._options.output)
        except OSError as error:
            self._view.say(f"the contact sheet was not written: {error}")
            return None
        return self._options.output

    def _tile(self, item: Item, status: Mapping[str, Any]) -> Tile:
        cam_id = str(item.cam_id)
        motion = self._motions.get(cam_id, Motion(0.0, None))
        dropped = causes(status["account"]["dropped"])
        facts = [f"offset {item.index}", f"age {(item.age or 0) * 1e3:.0f} ms"] if item else []
        if not item and cam_id in self._seen:
            facts = [f"last picture {time.monotonic() - self._seen[cam_id][1]:.1f} s ago"]
        return Tile(
            cam_id,
            item.array,
            self._seen[cam_id][0] if cam_id in self._seen else None,
            "running" if item else status["state"].lower(),
            (*facts, *([f"dropped: {dropped}"] if dropped else [])),
            item.reason or str(item.status),
            motion.box,
            f"motion {motion.amount:.1f}",
        )


class _Reader:
    """The process that reads the results back, and the thread that listens to it. Main thread only.

    Args:
        address, cam_ids: What it reads.
        counts: Where its newest report goes.
    """

    def __init__(self, address: str, cam_ids: tuple[str, ...], counts: Counts) -> None:
        arguments = ["comux.cli.demo_reader", address, str(os.getpid()), *cam_ids]
        self._process = start_child(arguments, stdout=subprocess.PIPE)
        self._counts = counts
        self._thread = threading.Thread(target=self._listen, name="comux-demo-results", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with suppress(ValueError):  # the last line of a killed process may be half a line
                self._counts.results = json.loads(line)

    def ask_to_end(self) -> None:
        """It reads what is there and reports once more; does not wait."""
        end_child(self._process)

    def join(self, deadline: float) -> None:
        """Wait for its last report until monotonic time ``deadline``."""
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """End it, whatever it does. Idempotent."""
        self.ask_to_end()
        deadline = time.monotonic() + CHILDREN_END
        self.join(deadline)
        if self._process.poll() is None:
            join_child(self._process, deadline)
        self._thread.join()
        join_child(self._process, deadline)
