"""Programs the acceptance tests run in processes of their own: ``programs.py NAME JOURNAL OPTIONS``.

Each is a function that takes the options (JSON) as keywords. What it was told or promised it appends to the journal,
one line of JSON per ``write``, which a SIGKILL cannot tear.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
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


def _step(name: str) -> tuple[Any, str]:
    """Where a step of a change is taken: an object and the name of its function."""
    from comux.control import controller, durable, replies
    from comux.multiplexer import actions
    from comux.multiplexer.core import Core
    from comux.multiplexer.source import Source

    return {
        "parse": (controller, "parse_command"),
        "carry out": (actions, "carry_out"),
        "connect": (Core, "connect"),
        "swap": (Core, "_swap"),
        "start": (Source, "start"),
        "let go": (Core, "drop_connected"),
        "stop": (Source, "stop"),
        "join": (Core, "_join"),
        "overlay": (durable.DurableState, "carried_out"),
        "save": (durable.DurableState, "_send"),
        "answer": (replies.Replies, "send"),
    }[name]


def _die_at(death: str, armed: threading.Event) -> None:
    """SIGKILL for this process once it is ``armed`` and comes to a step; ``death``: ``before save``, ``after save``."""
    when, _, name = death.partition(" ")
    owner, function = _step(name)
    original = getattr(owner, function)

    def hooked(*args: Any, **kwargs: Any) -> Any:
        if armed.is_set() and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if armed.is_set():
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, function, hooked)


def _serve(cams: Any, **settings: Any) -> None:
    """A loop until a command tells it to stop. The act ``sources`` answers with what is said of each source, ``note``
    writes its value into the journal."""
    from comux import Comux
    from comux.errors import EndOfStream

    parent = os.getppid()
    acts: dict[str, Any] = {
        "sources": lambda cameras, value: {key: spec.spec() for key, spec in cameras._core.specs.items()},
        "note": lambda cameras, value: note("act", value=value),
    }
    with Comux(cams, control_topic="config", acts=acts, **settings) as cameras:
        note("started")
        while os.getppid() == parent:  # whoever is left behind ends
            try:
                cameras.get_batch(timeout=0.5)
            except EndOfStream:
                return


def controlled(address: str, cams: Any, death: str = "", of: str = "", **settings: Any) -> None:
    """A program that obeys commands; it kills itself at one step of the command with the value ``of``."""
    from comux.control import controller

    if death:
        armed = threading.Event()
        _die_at(death, armed)
        parse = controller.parse_command

        def arms(record: Any, *args: Any) -> Any:
            if record.value == of.encode():
                armed.set()
            return parse(record, *args)

        controller.parse_command = arms
    _serve(cams, address=address, **settings)


def watched(address: str, path: str, death: str = "", **settings: Any) -> None:
    """A program whose sources are what a file says, as JSON; it kills itself at one step of the first change."""
    from comux.control import Registry
    from comux.options import SourceOptions

    armed, file = threading.Event(), Path(path)

    class File(Registry):
        """Looks at the file twenty times a second."""

        _read = ""

        def fetch(self) -> tuple[SourceOptions, ...]:
            if self._read:
                armed.set()
            self._read = file.read_text()
            return tuple(SourceOptions(**entry) for entry in json.loads(self._read))

        def wait_for_change(self, timeout: float | None = None) -> bool:
            deadline = None if timeout is None else time.monotonic() + timeout
            while deadline is None or time.monotonic() < deadline:
                if file.read_text() != self._read:
                    return True
                if self._closing.wait(0.05):
                    return False
            return False

    if death:
        _die_at(death, armed)
    _serve(File(), address=address, watch_registry=True, **settings)


def lives(program: str, deaths: list[dict[str, str]], **options: Any) -> None:
    """One program again and again, each time with another death and noted when it has ``ended``. They are forks of this
    process, which has everything imported and nothing opened, so that a life costs no second."""
    import comux.multiplexer.manager  # noqa: F401

    for death in deaths:
        child = os.fork()
        if child == 0:
            try:
                PROGRAMS[program](**options, **death)
                os._exit(0)
            except BaseException:  # noqa: BLE001 - nothing of the parent's may run in the child
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
        _, status = os.waitpid(child, 0)
        note("ended", code=os.waitstatus_to_exitcode(status))


PROGRAMS: dict[str, Callable[..., None]] = {
    f.__name__: f
    for f in (
        publish,
        send,
        member,
        manager,
        waits,
        forgets,
        serves,
        managed,
        parent,
        shares,
        controlled,
        watched,
        lives,
    )
}

if __name__ == "__main__":
    _journal = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    PROGRAMS[sys.argv[1]](**json.loads(sys.argv[3]))
