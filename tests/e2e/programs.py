"""Programs the acceptance tests run in processes of their own: ``programs.py NAME JOURNAL OPTIONS``.

Each is a function that takes the options (JSON) as keywords. What it was told or promised it appends to the journal,
one line of JSON per ``write``, which a SIGKILL cannot tear.
"""

from __future__ import annotations

import json
import os
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any

_journal = -1


def note(what: str, **facts: Any) -> None:
    """Append one line; it is there in full once the call has returned."""
    os.write(_journal, (json.dumps({"what": what, **facts}) + "\n").encode())


def publish(address: str, topic: str, source: str, **options: Any) -> None:
    """A camera: notes every packet that went out."""
    from comux.feeds import FeedPacket
    from comux.feeds import publish as run
    from comux.lifecycle import stop_on_signals

    def on_packet(packet: FeedPacket) -> None:
        note("packet", seq=packet.seq, frame=packet.frame)

    with stop_on_signals() as stop:
        report = run(source, address, topic, stop=stop, on_packet=on_packet, **options)
    note("report", **report.as_dict())


def send(address: str, topic: str, count: int) -> None:
    """A producer: notes each record when it is accepted."""
    from comux import connect

    with connect(address) as broker, broker.producer(topic) as producer:
        for number in range(count):
            note("sending", number=number)
            offset = producer.send(b"victim %d " % number + b"x" * 200).result(20)
            note("sent", number=number, offset=offset)


def member(address: str, topic: str, group: str) -> None:
    """A member of a group: notes what it takes, what it is about to acknowledge, and what it has acknowledged."""
    from comux import connect

    with connect(address) as broker, broker.consumer(topic, group=group, start="beginning") as consumer:
        note("ready")
        for record in consumer:
            note("taken", offset=record.offset)
            note("acking", offset=record.offset)
            consumer.ack(record)
            note("acked", offset=record.offset)


def manager(address: str, cams: list[Any], sends: bool = True, limit: int = 0, **settings: Any) -> None:
    """A program with a loop: notes every picture, sends a result for each; ends after ``limit`` pictures, if any."""
    from comux import Comux
    from comux.feeds import read_marks

    seen = 0
    with Comux(cams, address=address, **settings) as cameras:
        note("started")
        for batch in cameras:
            for item in batch.fresh:
                marks = read_marks(item.array)
                if sends:
                    cameras.send(item, {"frame": marks and marks[1]})
                digest = zlib.crc32(item.array.tobytes())
                note("item", cam=item.cam_id, index=item.index, epoch=item.identity.epoch, marks=marks, digest=digest)
                seen += 1
            if limit and seen >= limit:
                break
        cameras.flush(20)
        note("modules", names=sorted(name for name in sys.modules if name.startswith("comux.decoders.")))


def waits(address: str, cams: list[str], catches: bool = True, closes: bool = True) -> None:
    """A program that waits for pictures that never come, until somebody interrupts it."""
    from comux import Comux

    def wait(cameras: Comux) -> None:
        cameras.start()
        note("waiting")
        cameras.get_batch(min_items=len(cams))
        note("batch")

    cameras = Comux(cams, address=address, control_topic="config")
    try:
        if closes:
            with cameras:
                wait(cameras)
        else:
            wait(cameras)
    except KeyboardInterrupt:
        note("interrupted", at=time.monotonic())
        if not catches:
            raise


def forgets(address: str, cams: list[str], how: str) -> None:
    """A program that takes pictures, sends results and never closes anything."""
    from comux import Comux

    cameras = Comux(cams, address=address, control_topic="config", share_frames=True, start="beginning")
    batch = cameras.get_batch(timeout=20)
    for item in batch.fresh:
        cameras.send(item, {"forgotten": True})
    note("leaving", pictures=len(batch.fresh))
    if how == "raises":
        raise RuntimeError("on purpose")
    if how == "exits":
        sys.exit(3)


def serves(address: str, cams: list[str], orderly: bool) -> None:
    """A program with a pid file; ``orderly``: it ends its loop when it is asked to."""
    from comux import Comux, write_pid_file
    from comux.lifecycle import stop_on_signals

    write_pid_file()
    with Comux(cams, address=address) as cameras:
        if not orderly:
            note("running")
            for _ in cameras:
                pass
            return
        with stop_on_signals() as stop:
            note("running")
            while not stop.is_set():
                cameras.get_batch(timeout=0.2)
    note("stopped")


def managed(
    address: str,
    cams: list[str],
    parent: int | None = None,
    drain: str = "sends",
    publishes: str = "",
    folder: str = "",
    **more: Any,
) -> None:
    """A manager that runs until it is told to end: holds its first picture, and sends it when the loop has ended.

    Args:
        parent: Process with which to end.
        drain: ``"sends"``; ``"hangs"``: it never comes to an end by itself once it was told.
        publishes: A source that it has published on every camera's topic, by processes that do not watch it.
        folder: Where it has a topic of its own, which goes with it.
        more: For ``Comux``.
    """
    import subprocess
    import threading

    from comux import Comux, ring
    from comux.lifecycle import child_environment, python_command, until_stopped

    if folder:
        own = ring.create(ring.RingSpec("own", slots=8, lifetime="session"), folder)
        note("own", name=own.name)
    env = child_environment()
    for cam in cams if publishes else ():
        call = python_command("comux", "publish", publishes, "-t", f"raw_{cam}", "-a", address, "--quiet")
        note("child", pid=subprocess.Popen(call, env=env).pid)
    held = None
    with Comux(cams, address=address, **more) as cameras:
        with until_stopped("pid", parent=parent, on_stop=cameras.stop):
            note("running", pid=os.getpid())
            for batch in cameras:
                for item in batch.fresh[: held is None]:
                    held = item
                    note("holds", index=item.index)
            note("told")
            while drain == "hangs":
                threading.Event().wait(1)
        if held is not None:
            cameras.send(held, {"after": "the end"})
    note("stopped", balanced=all(account.balanced for account in cameras.accounts().values()))


def parent(**options: Any) -> None:
    """Starts ``managed``, which ends with it, and waits to be killed."""
    import subprocess

    call = [sys.executable, __file__, "managed", sys.argv[2], json.dumps({**options, "parent": os.getpid()})]
    subprocess.Popen(call).wait()


def shares(address: str, group: str, topics: str, durable: bool, send: bool = False, **options: Any) -> None:
    """A member of a fleet: notes what it was given, what it put down, and every picture its loop took."""
    from comux import Comux
    from comux.lifecycle import stop_on_signals

    def told(event: Any) -> None:
        if event.kind.startswith("fleet."):
            note(event.kind, cam=event.source, at=time.time())

    cameras = Comux(None, address=address, share=group, topics=topics, durable=durable, codec="raw", **options)
    cameras.events.listen(told)
    with cameras, stop_on_signals() as stop:
        note("running")
        while not stop.is_set():
            fresh = cameras.get_batch(timeout=0.2).fresh
            if send:
                for item in fresh:
                    cameras.send(item, {"by": os.getpid()})
            if fresh:
                note("batch", pictures={str(item.cam_id): item.index for item in fresh}, at=time.time())
    note("stopped", balanced=all(account.balanced for account in cameras.accounts().values()))


PROGRAMS: dict[str, Callable[..., None]] = {
    f.__name__: f for f in (publish, send, member, manager, waits, forgets, serves, managed, parent, shares)
}

if __name__ == "__main__":
    _journal = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    PROGRAMS[sys.argv[1]](**json.loads(sys.argv[3]))
