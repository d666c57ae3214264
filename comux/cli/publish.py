"""``comux publish``: a feed in the foreground, with a line when it starts and one when it has ended."""

from __future__ import annotations

import signal
import sys
import threading

from comux.errors import ConfigError
from comux.feeds import FeedPacket, FeedReport, publish
from comux.lifecycle import end_with_parent, stop_on_signals
from comux.redaction import shown


def run_publish(
    source: str,
    *,
    topic: str,
    address: str,
    pace: str,
    loop: bool,
    seconds: float | None,
    frames: int | None,
    quiet: bool,
    parent: int | None,
) -> int:
    """Publish until the feed ends, a limit is reached, or a signal asks to stop; the stream is ended then.

    Args:
        source, topic, address, loop, seconds, frames: As ``comux.feeds.publish``.
        pace: ``realtime``, ``fast``, or a number of frames per second as text.
        quiet: Print errors only.
        parent: Process with which to end.

    Returns:
        0, or 130 after Ctrl-C.
    """
    speed = parse_pace(pace)
    with stop_on_signals() as stop:
        if parent is not None and not end_with_parent(parent):
            return 0
        first = threading.Event()

        def announce(packet: FeedPacket) -> None:
            """At the first packet: by then nothing is wrong with the source, the address or the topic."""
            if not quiet and not first.is_set():
                first.set()
                print(
                    f"publishing {source} as {topic} on {shown(address)}; Ctrl-C ends it", file=sys.stderr, flush=True
                )

        report = publish(
            source,
            address,
            topic,
            pace=speed,
            loop=loop or None,
            seconds=seconds,
            frames=frames,
            stop=stop,
            on_packet=announce,
        )
    if not quiet:
        print(summary(report))
    return 130 if stop.signal == signal.SIGINT else 0


def parse_pace(text: str) -> str | float:
    """``realtime``, ``fast``, or frames per second.

    Raises:
        ConfigError: none of these.
    """
    if text in ("realtime", "fast"):
        return text
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"pace {text!r}: give realtime, fast, or a number of frames per second") from None


def summary(report: FeedReport) -> str:
    """One line: what was published and why it ended."""
    faults = ", ".join(f"{count} {kind}" for kind, count in report.fault_counts.items())
    return (
        f"{report.topic}: {report.records} packets ({report.keyframes} keyframes, {report.bytes / 1e6:.1f} MB) in "
        f"{report.seconds:.1f} s, {report.reason}" + (f"; faults on request: {faults}" if faults else "")
    )
