"""The processes that are measured: cameras, the loop, and members of a consumer group.

Each is ``python -m comux.planning.child``: what it is to do comes as one line of JSON on its standard input, what it
has to say goes as lines of JSON to its standard output, and it ends when its input ends: by its parent's will, and when
its parent is dead. ``Child`` is the parent's side.

A process of its own, so that its CPU time and its memory are those of what is measured and of nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from comux.errors import ComuxError, UnknownTopicError
from comux.lifecycle import child_environment, python_command

_END: Final = 10.0
_KNOWN: Final = 10.0  # seconds in which every broker of a cluster hears of a new topic
_STEP: Final = 0.2  # seconds a batch is waited for at most


class Child:
    """A process of this module, from its parent's side. A context manager.

    Args:
        role: Name of one of the functions below: ``cameras``, ``loop``, ``reader``, ``member``, ``fleet``.
        what: Its arguments, JSON-ready.
    """

    def __init__(self, role: str, **what: Any) -> None:
        self._process = subprocess.Popen(
            python_command("comux.planning.child"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=child_environment(),
            text=True,
            process_group=0,  # Ctrl-C reaches the parent alone, which ends its children
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        self._role = role
        self._in.write(json.dumps({"role": role, **what}) + "\n")
        self._in.flush()

    @property
    def pid(self) -> int:
        return self._process.pid

    def said(self) -> Iterator[Any]:
        """What it says, until it has ended."""
        for line in self._out:
            yield json.loads(line)

    def hear(self) -> Any:
        """The next thing it says; waits.

        Raises:
            ComuxError: it failed, in its own words.
        """
        said = next(self.said(), None)
        if said is None:
            code = self._process.wait(_END)
            raise ComuxError(f"measuring: the {self._role} process ended with code {code} before it was done")
        if isinstance(said, dict) and "error" in said:
            raise ComuxError(f"measuring: the {self._role} process failed: {said['error']}")
        return said

    def ask(self) -> None:
        """Ask it to end; does not wait."""
        with contextlib.suppress(BrokenPipeError):
            self._in.close()

    def kill(self) -> None:
        """SIGKILL it; returns when it has ended."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Ask it to end, wait, kill it where it does not; close its pipes."""
        self.ask()
        try:
            self._process.wait(_END)
        except subprocess.TimeoutExpired:
            self.kill()
        self._out.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


@contextlib.contextmanager
def removed_topics(address: str) -> Iterator[None]:
    """Delete every topic at ``address``, a namespace of our own, at the end, and a local namespace's folder."""
    try:
        yield
    finally:
        from comux.ring import default_directory
        from comux.transport import connect, parse_address

        with connect(address) as broker:
            for topic in broker.topics():
                broker.delete_topic(topic, force=True)
        parsed = parse_address(address)
        if parsed.scheme == "shm":
            with contextlib.suppress(OSError):  # never made, or somebody else's topics are in it
                (default_directory() / parsed.namespace).rmdir()


# -- the child's side ----------------------------------------------------------------------------------------------


_saying = threading.Lock()  # callbacks of groups speak from threads of their own


def say(what: Any) -> None:
    """One line to the parent."""
    with _saying:
        sys.stdout.write(json.dumps(what) + "\n")
        sys.stdout.flush()


def anonymous_bytes() -> int:
    """Memory of this process that is its own: resident, without shared memory and files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cameras(
    stop: threading.Event, *, address: str, topics: list[str], clip: str, fps: float, apart: bool = False
) -> None:
    """Publish one file, looped, on every topic, until told to stop; a thread for each.

    Says ``ready`` when each topic has its first packet, and at the end what was published since.

    Args:
        address, topics, clip: Where, and what.
        fps: Of each, whatever the file has.
        apart: Each with a connection of its own, as cameras have; else one for all, which costs less.
    """
    from comux.feeds import FeedPacket, open_feed, publish, topic_spec
    from comux.transport import Broker, connect

    started = threading.Semaphore(0)
    packets, sizes = [0] * len(topics), [0] * len(topics)
    failed: list[ComuxError] = []

    def run(number: int, broker: Broker) -> None:
        def count(packet: FeedPacket) -> None:
            packets[number] += 1
            sizes[number] += len(packet.data)
            if packets[number] == 1:
                started.release()

        stop.wait(number / len(topics) / fps)  # cameras are not in step
        known_by = time.monotonic() + _KNOWN
        while not stop.is_set():
            try:
                publish(clip, broker, topics[number], pace=fps, loop=True, stop=stop, end=False, on_packet=count)
            except UnknownTopicError as error:  # of several brokers one may hear of a new topic a little later
                if packets[number] or time.monotonic() > known_by:
                    failed.append(error)
                    stop.set()
                stop.wait(_STEP)
            except ComuxError as error:
                failed.append(error)
                stop.set()

    with contextlib.ExitStack() as stack:
        brokers = [stack.enter_context(connect(address)) for _ in (topics if apart else topics[:1])]
        for topic in topics:
            spec = topic_spec(open_feed(clip, loop=True), topic)
            if not brokers[0].capabilities.gating:
                spec = replace(spec, policy="wait")  # the engine drops by age and size, whoever is behind
            brokers[0].create_topic(spec)
        threads = [
            threading.Thread(target=run, args=(number, brokers[number % len(brokers)])) for number in range(len(topics))
        ]
        for thread in threads:
            thread.start()
        for _ in topics:
            while not started.acquire(timeout=_STEP) and not stop.is_set():
                pass
        cpu, begun, before = time.process_time(), time.monotonic(), (sum(packets), sum(sizes))
        if not failed:
            say("ready")
        stop.wait()
        cpu, wall = time.process_time() - cpu, time.monotonic() - begun
        after = sum(packets), sum(sizes)
        for thread in threads:
            thread.join()
    if failed:
        raise failed[0]
    say({"packets": after[0] - before[0], "bytes": after[1] - before[1], "cpu_s": cpu, "seconds": wall})


def loop(
    stop: threading.Event,
    *,
    address: str,
    cam_ids: list[str],
    seconds: float,
    warm_up: float,
    settings: Mapping[str, Any],
    results_bytes: int | None,
) -> None:
    """The user's loop over so many cameras, doing nothing with the arrays but sending results.

    When every camera has shown a picture and ``warm_up`` seconds have passed it says ``begun`` and is measured for
    ``seconds``: CPU time of the process, packets, batches, items, memory before the cameras and with them.
    """
    import comux.decoders.video
    import comux.multiplexer.shared  # noqa: F401 - both are loaded: no part of what a camera costs
    from comux import Comux

    empty, opened = anonymous_bytes(), time.monotonic()
    result = {} if results_bytes is None else {"result": b"x" * results_bytes}
    manager = Comux(cam_ids, address=address, strict_on_fail=False, **settings)
    if results_bytes is not None:
        manager.setup_producer()  # the results' topics are made before the loop turns
    with manager:
        counts = _Counts()
        while len(counts.seen) < len(cam_ids) and not stop.is_set():
            counts.turn(manager, None)
        open_s = time.monotonic() - opened
        until = time.monotonic() + warm_up
        while time.monotonic() < until and not stop.is_set():
            counts.turn(manager, result if results_bytes is not None else None)
        counts = _Counts()
        say("begun")
        books, cpu, begun = manager.accounts(), time.process_time(), time.monotonic()
        while time.monotonic() < begun + seconds and not stop.is_set():
            counts.turn(manager, result if results_bytes is not None else None)
        cpu, wall, ended = time.process_time() - cpu, time.monotonic() - begun, manager.accounts()
        said = {
            "cameras": len(cam_ids),
            "open_s": open_s,
            "seconds": wall,
            "cpu_s": cpu,
            "packets": _received(ended) - _received(books),
            "batches": counts.batches,
            "items": counts.items,
            "empty_bytes": empty,
            "bytes": anonymous_bytes(),
        }
    say(said)


class _Counts:
    """What a loop was given."""

    def __init__(self) -> None:
        self.batches = self.items = 0
        self.seen: set[str] = set()

    def turn(self, manager: Any, result: Mapping[str, Any] | None) -> None:
        """One batch; with a result for each picture of it where there is one."""
        batch = manager.get_batch(timeout=_STEP)
        self.batches += 1
        for item in batch:
            if item.array is not None:
                self.items += 1
                self.seen.add(str(item.cam_id))
                if result is not None:
                    manager.send(item, result)


def _received(accounts: Mapping[Any, Any]) -> int:
    return sum(account.received for account in accounts.values())


def reader(stop: threading.Event, *, address: str, topics: list[str], seconds: float, warm_up: float) -> None:
    """Poll packets off topics and do nothing with them: what the engine alone costs, by records and by bytes."""
    from comux.transport import connect
    from comux.transport.kafka_wire import size_of

    with connect(address) as broker, broker.consumer(topics, on_end="wait") as consumer:
        until = time.monotonic() + warm_up
        while time.monotonic() < until and not stop.is_set():
            consumer.poll(_STEP, 100)
        say("begun")
        packets = size = wire = 0
        cpu, begun = time.process_time(), time.monotonic()
        while time.monotonic() < begun + seconds and not stop.is_set():
            for record in consumer.poll(_STEP, 100):
                packets += 1
                size += len(record.value)
                wire += size_of(record.value, record.key, [(name, content or b"") for name, content in record.headers])
        say(
            {
                "cpu_s": time.process_time() - cpu,
                "seconds": time.monotonic() - begun,
                "packets": packets,
                "value_bytes": size,
                "wire_bytes": wire,
            }
        )


def member(stop: threading.Event, *, address: str, group: str, topics: str) -> None:
    """A member of a group that reads nothing: says which topics it has whenever that changes, and when (monotonic).

    At the end: the CPU time it took since its first assignment, and for how long.
    """
    from comux.transport import connect

    mine: set[str] = set()
    since: list[float] = []

    def assigned(names: frozenset[str]) -> None:
        mine.update(names)
        if not since:
            since.extend((time.process_time(), time.monotonic()))
        say({"at": time.monotonic(), "topics": sorted(mine)})

    def revoked(names: frozenset[str], lost: bool) -> None:
        mine.difference_update(names)
        say({"at": time.monotonic(), "topics": sorted(mine)})

    with connect(address) as broker:
        membership = broker.membership(group, topics, on_assigned=assigned, on_revoked=revoked)
        try:
            stop.wait()
            cpu, at = time.process_time(), time.monotonic()
        finally:
            membership.close()
    if since:
        say({"cpu_s": cpu - since[0], "seconds": at - since[1]})


def fleet(stop: threading.Event, *, address: str, group: str, topics: str) -> None:
    """A process of a fleet: says when (monotonic) it shows the first picture of a camera that became its own.

    And which camera went to another process.
    """
    from comux import Comux

    mine: set[str] = set()  # a picture may still come of a camera that has gone
    shown: set[str] = set()

    def listen(event: Any) -> None:
        cam = str(event.source)
        if event.kind == "fleet.assigned":
            mine.add(cam)
        elif event.kind in ("fleet.revoked", "fleet.lost"):
            mine.discard(cam)
            shown.discard(cam)
            say({"gone": cam})

    manager = Comux(share=group, topics=topics, address=address)
    manager.events.listen(listen)
    with manager:
        while not stop.is_set():
            for item in manager.get_batch(timeout=_STEP):
                cam = str(item.cam_id)
                if item.array is not None and cam in mine and cam not in shown:
                    shown.add(cam)
                    say({"cam": cam, "at": time.monotonic()})


def main() -> int:
    """Read what to do, do it until the standard input ends."""
    what = json.loads(sys.stdin.readline())
    roles: dict[str, Callable[..., None]] = {
        "cameras": cameras,
        "loop": loop,
        "reader": reader,
        "member": member,
        "fleet": fleet,
    }
    stop = threading.Event()

    def watch() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=watch, name="comux-planning-watch", daemon=True).start()
    try:
        roles[what.pop("role")](stop, **what)
    except ComuxError as error:
        say({"error": str(error)})
        return 1
    except BrokenPipeError:  # the parent was killed: there is nobody to tell
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # the thread that watches the input is still reading it
