"""What sharing topics out among processes takes, by Kafka's group protocol: joining, dying, waiting.

Members that read nothing (``child.member``): what is seen is the protocol, the broker and the client, no camera.
"""

from __future__ import annotations

import secrets
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from comux.errors import ComuxError
from comux.transport import TopicSpec, connect

from .child import Child, removed_topics
from .costs import GroupCosts

TOPICS: Final = (30, 300)
METADATA_S: Final = 3.0  #: a member of ``Broker.membership`` looks for new topics this often
_SETTLES: Final = 90.0  # seconds in which a group settles, at most


def measure_group(
    address: str, tell: Callable[[str], None], sizes: Sequence[int] = TOPICS, members: int = 3
) -> list[Any]:
    """For each number of topics: a group of so many members is joined by one more, then one of them is killed.

    Returns:
        For each: ``topics``, ``members``, ``create_s`` of a topic, ``first_s`` (all of them started at once until
        every topic is somebody's), ``join_s``, ``dead_s``, and ``member_cpu`` in cores, of a member that only waits.
    """
    out = []
    for topics in sizes:
        tell(f"group: {members} members, {topics} topics")
        names = {f"raw_{number}" for number in range(topics)}
        with removed_topics(address):
            begun = time.monotonic()
            with connect(address) as broker:
                for name in sorted(names):
                    broker.create_topic(TopicSpec(name))
            create_s = (time.monotonic() - begun) / topics
            out.append(
                {"topics": topics, "members": members, "create_s": create_s, **_one_group(address, names, members)}
            )
    return out


def _one_group(address: str, names: set[str], members: int) -> dict[str, float]:
    group = f"group-{secrets.token_hex(4)}"
    with Members(address, group) as them:
        begun = time.monotonic()
        for _ in range(members):
            them.add()
        first = them.settled(names) - begun
        begun = time.monotonic()
        them.add()
        joined = them.settled(names) - begun
        begun = time.monotonic()
        them.kill_one()
        dead = them.settled(names) - begun
        waits = them.finish()
    return {"first_s": first, "join_s": joined, "dead_s": dead, "member_cpu": statistics.median(waits)}


class Members:
    """Members of one group, each a process that a thread listens to. A context manager."""

    def __init__(self, address: str, group: str) -> None:
        self._what = {"address": address, "group": group, "topics": "raw_*"}
        self._changed = threading.Condition()
        self._members: list[_Member] = []

    def add(self) -> None:
        """Start one more; does not wait for it."""
        self._members.append(_Member(Child("member", **self._what), self._changed))

    def kill_one(self) -> None:
        """SIGKILL the first; its topics are nobody's from now on."""
        self._members.pop(0).kill()

    def settled(self, names: set[str]) -> float:
        """Wait until every topic is exactly one living member's and each has some; when that was (monotonic).

        Raises:
            ComuxError: a member ended, or it takes too long.
        """
        deadline = time.monotonic() + _SETTLES
        with self._changed:
            while not self._balanced(names):
                left = deadline - time.monotonic()
                if left <= 0 or any(member.over for member in self._members):
                    raise ComuxError(
                        f"measuring: {len(self._members)} members did not share {len(names)} topics within "
                        f"{_SETTLES:g} s"
                    )
                self._changed.wait(left)
            return max(member.at for member in self._members)

    def _balanced(self, names: set[str]) -> bool:
        parts = [member.topics for member in self._members]
        return all(parts) and sum(map(len, parts)) == len(names) and set().union(*parts) == names

    def finish(self) -> list[float]:
        """End all; the cores that each took while it was a member."""
        return [member.finish() for member in self._members]

    def __enter__(self) -> Members:
        return self

    def __exit__(self, *exc: object) -> None:
        for member in self._members:
            member.kill()


class _Member:
    """One member's process and the thread that listens to it."""

    def __init__(self, child: Child, changed: threading.Condition) -> None:
        self.topics: set[str] = set()
        self.at = 0.0
        self.over = False
        self._cores = 0.0
        self._child = child
        self._changed = changed
        self._thread = threading.Thread(target=self._listen, name=f"comux-planning-member-{child.pid}", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        for said in self._child.said():
            with self._changed:
                if "topics" in said:
                    self.topics, self.at = set(said["topics"]), said["at"]
                elif "cpu_s" in said:
                    self._cores = said["cpu_s"] / said["seconds"]
                self._changed.notify_all()
        with self._changed:
            self.over = True
            self._changed.notify_all()

    def finish(self) -> float:
        self._child.ask()
        self._thread.join()
        return self._cores

    def kill(self) -> None:
        self._child.kill()
        self._thread.join()
        self._child.close()


def group_costs(runs: Sequence[Mapping[str, float]]) -> GroupCosts:
    """Straight lines through the smallest and the largest group."""
    small, large = runs[0], runs[-1]

    def line(name: str) -> tuple[float, float]:
        slope = max(0.0, (large[name] - small[name]) / max(1.0, large["topics"] - small["topics"]))
        return max(0.0, small[name] - slope * small["topics"]), slope

    member, topic = line("member_cpu")
    return GroupCosts(*line("join_s"), *line("dead_s"), member, topic * METADATA_S)
