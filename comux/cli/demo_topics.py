"""The demo's topics: a namespace of its own on the local engine, made before anything runs and removed at the end.

A demo that was killed cannot remove its namespace. The name holds its pid, so the next demo knows whose it was, and
that it is gone: no process has that pid, or one that started after the namespace was made.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final

from comux.cli.demo_reader import CONSUME_SCHEMA, PRODUCE_SCHEMA
from comux.errors import ConfigError
from comux.feeds import Feed, topic_spec
from comux.lifecycle import process_start
from comux.options import topic_name
from comux.redaction import shown
from comux.ring import default_directory
from comux.transport import Broker, TopicSpec, connect, for_engine, parse_address

_OWN: Final = re.compile(r"demo-(\d+)")
RESULT_SECONDS: Final = 10.0  #: of results that the produce topics hold


class DemoTopics:
    """A context manager: the topics exist inside it.

    Args:
        address: An engine; ``None``: a namespace of this process's own on ``shm://``.
        cam_ids: Of the cameras.
        feed: One of them, for the size of topics.

    Raises:
        ConfigError: the address cannot be shared between processes, or topics of these names exist there.
        NoSpaceError: there is no room for them. Nothing is left then.
    """

    def __init__(self, address: str | None, cam_ids: Sequence[str], feed: Feed) -> None:
        self.address = address or f"shm://demo-{os.getpid()}"
        self._own = address is None
        self._cam_ids = cam_ids
        self._feed = feed
        self._stack = ExitStack()

    def __enter__(self) -> DemoTopics:
        if self._own:
            remove_left_over()
            self._stack.callback(remove_namespace, self._directory())
        elif parse_address(self.address).topic is not None:
            raise ConfigError(f"--address {shown(self.address)!r}: name the engine only, the demo makes its own topics")
        with self._stack:
            broker = self._stack.enter_context(connect(self.address))
            self._check(broker)
            for spec in self._specs():
                broker.create_topic(for_engine(broker, spec))
                self._stack.callback(_delete, broker, spec.name)
            self._stack = self._stack.pop_all()
        return self

    def _directory(self) -> Path:
        return default_directory() / parse_address(self.address).namespace

    def _check(self, broker: Broker) -> None:
        if not broker.capabilities.cross_process:
            raise ConfigError(
                f"--address {shown(self.address)!r}: the demo's cameras are processes of their own; use shm://"
            )
        taken = sorted({spec.name for spec in self._specs()} & set(broker.topics()))
        if taken:
            raise ConfigError(
                f"--address {shown(self.address)!r} has topics {', '.join(taken)} already; use another address"
            )

    def _specs(self) -> list[TopicSpec]:
        specs = []
        for cam_id in self._cam_ids:
            raw = topic_spec(self._feed, topic_name(CONSUME_SCHEMA, cam_id))
            specs += [
                raw,
                TopicSpec(
                    topic_name(PRODUCE_SCHEMA, cam_id),
                    records=raw.records,
                    data_bytes=raw.data_bytes,
                    policy="drop_oldest",
                    metadata={"codec": self._feed.facts.codec, "content": "comux results"},
                ),
            ]
        return specs

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()


def _delete(broker: Broker, name: str) -> None:
    # Forced: whoever used it was this demo's and has ended, if need be killed in the middle of something.
    broker.delete_topic(name, force=True)


def remove_namespace(directory: Path) -> None:
    """Remove what is left of a namespace; one that is gone is fine."""
    shutil.rmtree(directory, ignore_errors=True)


def remove_left_over() -> list[Path]:
    """Remove the namespaces of demos that were killed; returns them."""
    base = default_directory()
    removed = []
    for directory in base.glob("demo-*") if base.is_dir() else ():
        match = _OWN.fullmatch(directory.name)
        if (
            match is not None
            and directory.is_dir()
            and not directory.is_symlink()
            and _is_dead(directory, int(match[1]))
        ):
            remove_namespace(directory)
            removed.append(directory)
    return removed


def _is_dead(directory: Path, pid: int) -> bool:
    """Whether the process that made a namespace has ended; its pid may be another's by now."""
    started_ticks = process_start(pid)
    if started_ticks is None:
        return True
    try:
        made = directory.stat().st_mtime
    except FileNotFoundError:
        return False
    started = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + started_ticks / os.sysconf("SC_CLK_TCK")
    return started > made + 1.0
