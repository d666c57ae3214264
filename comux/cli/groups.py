"""``comux groups``: where the consumer groups of topics stand, and putting them elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from comux.cli.tables import check_format, console, plain_table, print_json
from comux.errors import ComuxError, ConfigError, UnknownTopicError
from comux.redaction import shown
from comux.transport import Broker, connect


def group_rows(broker: Broker, names: Iterable[str], group: str | None = None) -> list[dict[str, Any]]:
    """The groups of topics, as plain data."""
    rows: list[dict[str, Any]] = []
    for name in names:
        try:
            rows += [asdict(info) for info in broker.groups(name) if group in (None, info.name)]
        except UnknownTopicError:  # it was removed just now
            continue
    return rows


def group_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A line for each group and topic."""
    numbers = ("committed", "lag", "members", "lost", "dead")
    table = plain_table("group", "topic", *numbers, "", right=numbers)
    for row in rows:
        marks = [word for word in ("durable", "suspended", "paused") if row[word]]
        figures = {**row, "dead": row["dead_letters"]}
        table.add_row(row["name"], row["topic"], *(str(figures[number]) for number in numbers), ", ".join(marks))
    return table


def list_groups(address: str, topics: Sequence[str], group: str | None, format: str) -> None:
    """Print where groups stand.

    Args:
        address: Of the engine.
        topics: Which; none: all.
        group: One alone; ``None``: all.
        format: ``table`` or ``json``.

    Raises:
        ComuxError: a topic that was named does not exist.
    """
    as_data = check_format(format)
    with connect(address) as broker:
        for name in topics:
            broker.topic(name)
        rows = group_rows(broker, topics or broker.topics(), group)
    if as_data:
        print_json(rows)
    elif rows:
        console().print(group_table(rows))
        for line in holder_lines(rows) if group is not None else ():
            print(line)
    else:
        print(f"no groups on {shown(address)}" if group is None else f"no group {group!r} on {shown(address)}")


def holder_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Who holds records of the groups, a line each."""
    lines = []
    for row in rows:
        for one in row["holders"]:
            state = ", stopped" if one["state"] == "T" else ""
            name = f" {one['name']!r}" if one["name"] else ""
            lines.append(
                f"{row['topic']}: member{name} of pid {one['pid']} ({one['command'] or 'this process'}{state}) holds"
                f" {one['held']} records, offset {one['oldest']} for {one['held_s']:.1f} s"
            )
    return lines


def set_paused(address: str, topic: str, group: str | None, *, paused: bool) -> None:
    """Pause or resume a topic, or one group of it.

    Raises:
        ComuxError: there is none, or the engine cannot.
    """
    with connect(address) as broker:
        (broker.pause if paused else broker.resume)(topic, group)
    print(f"{topic if group is None else f'group {group!r} of {topic}'} {'paused' if paused else 'resumed'}")


_UNITS = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str) -> float:
    """``30s``, ``500ms``, ``5m``, ``1h``, or a number of seconds.

    Raises:
        ConfigError: none of these.
    """
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)(ms|s|m|h|)", text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is no duration: write 30s, 500ms, 5m or a number of seconds")
    return float(match[1]) * _UNITS[match[2]]


def claim_stale(address: str, topic: str, group: str, idle: str, format: str) -> None:
    """Take from members of a group what they have held for ``idle``, and print what and from whom.

    Raises:
        ComuxError: there is no such group, or the engine has no members that hold records.
    """
    as_data, seconds = check_format(format), parse_duration(idle)
    with connect(address) as broker:
        found = broker.claim_stale(topic, group, seconds)
    if as_data:
        print_json([asdict(one) for one in found])
        return
    for one in found:
        print(f"{topic} offset {one.offset}: claimed from pid {one.pid} ({one.command}), held for {one.held_s:.1f} s")
    print(f"{len(found)} records of group {group!r} on {topic} are delivered again")


def delete_group(address: str, topic: str, group: str) -> None:
    """Forget where a group stands on a topic.

    Raises:
        ComuxError: there is none, or it has living members.
    """
    with connect(address) as broker:
        broker.delete_group(topic, group)
    print(f"group {group!r} of {topic} deleted")


def reset_group(address: str, topic: str, group: str, to: Any, *, dry_run: bool) -> None:
    """Put a group elsewhere in a topic: it is forgotten, and begins anew there.

    Args:
        address: Of the engine.
        topic: Which.
        group: One that has no living member.
        to: A ``Start``.
        dry_run: Only say what would be.

    Raises:
        ConfigError: it has living members: they would go on where they are. ComuxError: there is no such group.
    """
    with connect(address) as broker:
        before = next((info for info in broker.groups(topic) if info.name == group), None)
        if before is None:
            there = ", ".join(repr(info.name) for info in broker.groups(topic)) or "none"
            raise ConfigError(f"topic {topic!r} has no group {group!r}; there are: {there}")
        if before.members:
            raise ConfigError(f"group {group!r} of {topic!r} has {before.members} living members; end them first")
        with broker.consumer(topic, start=to, on_end="wait") as probe:
            target = probe.position()
        if not dry_run:
            _begin_anew(broker, topic, group, target, durable=before.durable)
    words = "would go" if dry_run else "went"
    print(f"group {group!r} of {topic} {words} from offset {before.committed} to {target}")


def _begin_anew(broker: Broker, topic: str, group: str, target: int, *, durable: bool) -> None:
    broker.delete_group(topic, group)
    try:
        broker.consumer(topic, group=group, start=target, on_end="wait", durable=durable).close()
    except ComuxError as error:
        raise ConfigError(
            f"group {group!r} of {topic!r} was forgotten and could not be made anew at {target}: {error}"
        ) from error
