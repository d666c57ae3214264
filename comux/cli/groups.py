"""``comux groups``: where the consumer groups of topics stand, and putting them elsewhere."""

from __future__ import annotations

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
    numbers = ("committed", "lag", "members", "lost")
    table = plain_table("group", "topic", *numbers, "", right=numbers)
    for row in rows:
        marks = [word for word in ("durable", "suspended") if row[word]]
        table.add_row(row["name"], row["topic"], *(str(row[number]) for number in numbers), ", ".join(marks))
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
    else:
        print(f"no groups on {shown(address)}" if group is None else f"no group {group!r} on {shown(address)}")


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
