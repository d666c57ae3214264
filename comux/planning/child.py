"""The processes that are measured: cameras, the loop, and members of a consumer group.

Each is ``python -m comux.planning.child``: what it is to do comes as one line of JSON on its standard input, what it
has to say goes as lines of JSON to its standard output, and it ends when its input ends: by its parent's will, and when
its parent is dead. ``Child`` is the parent's side.

A process of its own, so that its CPU time and its memory are those of what is measured and of nothing else.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from comux.errors import ComuxError
from comux.lifecycle import child_environment, python_command

_END: Final = 10.0
_STEP: Final = 0.2  # seconds a batch is waited for at most


class Child:
    """A process of this module, from its parent's side. A context manager.

    Args:
        role: ``cameras``, ``loop`` or ``member``.
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

    def hear(self) -> Any:
        """The next thing it says; waits.

        Raises:
            ComuxError: it failed, in its own words.
        """
        line = self._out.readline()
        if not line:
            code = self._process.wait(_END)
            raise ComuxError(f"measuring: the {self._role} process ended with code {code} before it was done")
        said = json.loads(line)
        if isinstance(said, dict) and "error" in said:
            raise ComuxError(f"measuring: the {self._role} process failed: {said['error']}")
        return said

    def kill(self) -> None:
        """SIGKILL it; returns when it has ended."""
        self._process.kill()
        self._process.wait()

    def finish(self) -> list[Any]:
        """Ask it to end; everything it still had to say."""
        self._in.close()
        said = [json.loads(line) for line in self._out]
        self._process.wait(_END)
        return said

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if not self._in.closed:
            try:
                self._in.close()
            except BrokenPipeError:
                pass
        try:
            self._process.wait(_END)
        except subprocess.TimeoutExpired:
            self.kill()
        self._out.close()


# -- the child's side ----------------------------------------------------------------------------------------------


def say(what: Any) -> None:
    """One line to the parent."""
    print(json.dumps(what), flush=True)  # noqa: T201 - the pipe to the parent


def anonymous_bytes() -> int:
    """Memory of this process that is its own: resident, without shared memory and files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cameras(stop: threading.Event, *, address: str, topics: list[str], clip: str, fps: float) -> None:
    """Publish one file, looped, on every topic, until told to stop; a thread for each.

    Says ``ready`` when each topic has its first packet, and at the end what was published.
    """
    from comux.feeds import FeedPacket, open_feed, publish, topic_spec
    from comux.transport import connect

    started = threading.Semaphore(0)
    packets = [0] * len(topics)
    sizes = [0] * len(topics)
    failed: list[ComuxError] = []

    with connect(address) as broker:
        for topic in topics:
            spec = topic_spec(open_feed(clip, loop=True), topic)
            if not broker.capabilities.gating:
                spec = replace(spec, policy="wait")  # the engine drops by age and size, whoever is behind
            broker.create_topic(spec)

        def run(number: int) -> None:
            def count(packet: FeedPacket) -> None:
                packets[number] += 1
                sizes[number] += len(packet.data)
                if packets[number] == 1:
                    started.release()

            stop.wait(number / len(topics) / fps)  # cameras are not in step
            try:
                publish(
                    clip,
                    broker,
                    topics[number],
                    pace=fps,
                    loop=True,
                    stop=stop,
                    end=False,
                    on_packet=count,
                    create_topic=False,
                )
            except ComuxError as error:
                failed.append(error)
                stop.set()

        threads = [threading.Thread(target=run, args=(number,)) for number in range(len(topics))]
        for thread in threads:
            thread.start()
        for _ in topics:
            while not started.acquire(timeout=_STEP) and not stop.is_set():
                pass
        begun_cpu, begun = time.process_time(), time.monotonic()
        if not failed:
            say("ready")
        stop.wait()
        cpu, seconds = time.process_time() - begun_cpu, time.monotonic() - begun
        for thread in threads:
            thread.join()
    if failed:
        raise failed[0]
    say({"packets": sum(packets), "bytes": sum(sizes), "cpu_s": cpu, "seconds": seconds})


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

    After ``warm_up`` seconds with a picture of every camera it is measured for ``seconds``: CPU time of the process,
    packets, batches, items, memory before the cameras and with them. Says one object.
    """
    import numpy  # noqa: F401 - not part of what a camera costs

    import comux.multiplexer.shared  # noqa: F401 - likewise: codecs and conversion are loaded
    from comux import Comux

    empty = anonymous_bytes()
    opened = time.monotonic()
    result = {} if results_bytes is None else {"result": b"x" * results_bytes}
    batches = items = sent = 0
    with Comux(cam_ids, address=address, **settings) as manager:

        def turn() -> None:
            nonlocal batches, items, sent
            batch = manager.get_batch(timeout=_STEP)
            batches += 1
            for item in batch:
                if item.array is None:
                    continue
                items += 1
                if results_bytes is not None:
                    manager.send(item, result)
                    sent += 1

        seen: set[str] = set()
        while len(seen) < len(cam_ids) and not stop.is_set():
            seen.update(str(item.cam_id) for item in manager.get_batch(timeout=_STEP) if item.array is not None)
        open_s = time.monotonic() - opened
        until = time.monotonic() + warm_up
        while time.monotonic() < until and not stop.is_set():
            turn()
        batches = items = sent = 0
        before, cpu, begun = received(manager), time.process_time(), time.monotonic()
        switches = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
        while time.monotonic() < begun + seconds and not stop.is_set():
            turn()
        cpu, wall, packets = time.process_time() - cpu, time.monotonic() - begun, received(manager) - before
        said = {
            "cameras": len(cam_ids),
            "open_s": open_s,
            "seconds": wall,
            "cpu_s": cpu,
            "packets": packets,
            "batches": batches,
            "items": items,
            "sent": sent,
            "switches": resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - switches,
            "empty_bytes": empty,
            "bytes": anonymous_bytes(),
            "dropped": {cam: account["dropped"] for cam, account in manager.accounts().items()} if False else None,
        }
    say(said)


def received(manager: Any) -> int:
    """Packets that all sources have received."""
    return sum(account.received for account in manager.accounts().values())


def main() -> int:
    """Read what to do, do it until the standard input ends."""
    what = json.loads(sys.stdin.readline())
    roles: dict[str, Callable[..., None]] = {"cameras": cameras, "loop": loop}
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
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # the thread that watches the input is still reading it
