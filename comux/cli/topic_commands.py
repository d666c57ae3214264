"""The commands on topics and groups of any engine: ``topics`` and ``groups``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from comux.cli.control_commands import Format
from comux.dead_letters import MAX_DELIVERIES

topics = typer.Typer(help="Look at topics, make and remove them.", no_args_is_help=True, rich_markup_mode=None)
groups = typer.Typer(
    help="Where consumer groups stand, and putting them elsewhere.", no_args_is_help=True, rich_markup_mode=None
)

Address = Annotated[
    str, typer.Option("--address", "-a", metavar="ADDRESS", help="Engine: shm://, shm://NAME, kafka://HOST:PORT.")
]
Topic = Annotated[str, typer.Argument(metavar="TOPIC")]
Topics = Annotated[list[str], typer.Argument(metavar="TOPIC…")]
Start = Annotated[
    str, typer.Option("--from", metavar="end|beginning|keyframe|OFFSET|SECONDS.0", help="Where to begin.")
]


machine = typer.Typer(rich_markup_mode=None)


@machine.command("doctor", short_help="What of this machine comux needs, and what to type where it is not there.")
def doctor_command(format: Format = "table") -> None:
    """Look at shared memory, limits, locks, the clock and codecs; what is missing with its remedy.

    Exit code 1: something is wrong.
    """
    from comux.cli.doctor import run_doctor

    raise typer.Exit(run_doctor(format))


@machine.command("gc", short_help="Remove local topics and files that nobody alive owns.")
def gc_command(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    persistent: Annotated[
        bool, typer.Option("--persistent", help="Also topics made to stay, with what is unread in them.")
    ] = False,
    address: Address = "shm://",
    format: Format = "table",
) -> None:
    """Session topics whose processes are all dead, files half-made by the dead, empty folders; and what stays, and why.

    shm:// is about every namespace, shm://NAME about one. What somebody alive uses is never removed.
    """
    from comux.cli.gc import run_gc

    run_gc(address, dry_run=dry_run, persistent=persistent, format=format)


@topics.command("list")
def topics_list(address: Address = "shm://", format: Format = "table") -> None:
    """Every topic of an engine: what is readable, whether it has ended."""
    from comux.cli.topics import list_topics

    list_topics(address, format)


@topics.command("info")
def topics_info(topic: Topic, address: Address = "shm://", format: Format = "table") -> None:
    """How a topic was made, what it holds, and the groups that read it."""
    from comux.cli.topics import show_topic

    show_topic(address, topic, format)


@topics.command("tail")
def topics_tail(
    names: Topics,
    start: Start = "end",
    count: Annotated[int | None, typer.Option("--count", "-n", min=1, metavar="N", help="End after so many.")] = None,
    address: Address = "shm://",
    format: Format = "table",
) -> None:
    """Records as they come, a line each, until Ctrl-C or the streams' ends; json: a line of JSON each.

    Nothing is held back or taken from anybody by it.
    """
    from comux.cli.topics import tail_topics

    tail_topics(address, names, start=start, count=count, format=format)


topics.command("echo", hidden=True)(topics_tail)

Seconds = Annotated[float | None, typer.Option(min=0.0, metavar="S", help="End after this long.")]
Every = Annotated[float, typer.Option(min=0.05, metavar="S", help="Seconds that each line is about.")]


@topics.command("hz")
def topics_hz(
    names: Topics,
    seconds: Seconds = None,
    every: Every = 1.0,
    address: Address = "shm://",
    format: Format = "table",
) -> None:
    """Records per second, and the intervals between them by the producer's stamps, until Ctrl-C."""
    _measure("hz", names, seconds, every, address, format)


@topics.command("bw")
def topics_bw(
    names: Topics,
    seconds: Seconds = None,
    every: Every = 1.0,
    address: Address = "shm://",
    format: Format = "table",
) -> None:
    """Bytes per second, until Ctrl-C."""
    _measure("bw", names, seconds, every, address, format)


def _measure(
    what: Literal["hz", "bw"], names: list[str], seconds: float | None, every: float, address: str, format: str
) -> None:
    from comux.cli.topics import measure_topics

    measure_topics(address, names, what=what, seconds=seconds, every=every, format=format)


@topics.command("create")
def topics_create(
    topic: Topic,
    records: Annotated[int, typer.Option(min=1, metavar="N", help="How many records are kept.")] = 1024,
    data_bytes: Annotated[
        int | None, typer.Option("--bytes", min=1, metavar="N", help="How many bytes of them; default: the engine's.")
    ] = None,
    policy: Annotated[
        str, typer.Option(metavar="wait|drop_oldest|drop_newest", help="What a full topic does with groups behind.")
    ] = "wait",
    dtype: Annotated[str | None, typer.Option(metavar="DTYPE", help="Records are arrays of it, as in uint8.")] = None,
    shape: Annotated[str, typer.Option(metavar="AxBxC", help="Of each of them.")] = "",
    layout: Annotated[
        str, typer.Option(metavar="ring|pool", help="pool: views of arrays hold as long as they are held.")
    ] = "ring",
    writers: Annotated[str, typer.Option(metavar="one|many", help="one: faster, a second is refused.")] = "many",
    max_deliveries: Annotated[
        int, typer.Option(min=0, metavar="N", help="Deliveries to a group before a record is a dead letter; 0: never.")
    ] = MAX_DELIVERIES,
    metadata: Annotated[str | None, typer.Option(metavar="JSON|@FILE", help="Facts kept with it.")] = None,
    address: Address = "shm://",
) -> None:
    """Make a topic."""
    from comux.cli.topics import create_topic, parse_shape, read_metadata
    from comux.options import check_choice
    from comux.transport import TopicSpec

    words: dict[str, Any] = {
        "policy": check_choice(policy, "policy", ("wait", "drop_oldest", "drop_newest")),
        "layout": check_choice(layout, "layout", ("ring", "pool")),
        "writers": check_choice(writers, "writers", ("one", "many")),
        "max_deliveries": max_deliveries,
    }
    facts, size = read_metadata(metadata), parse_shape(shape)
    create_topic(
        address,
        TopicSpec(topic, records=records, data_bytes=data_bytes, dtype=dtype, shape=size, metadata=facts, **words),
    )


@topics.command("delete")
def topics_delete(names: Topics, address: Address = "shm://") -> None:
    """Remove topics; one that a living program writes is refused."""
    from comux.cli.topics import delete_topics

    delete_topics(address, names)


@topics.command("pause")
def topics_pause(topic: Topic, address: Address = "shm://") -> None:
    """Stop a topic for everybody: producers wait, or drop by the topic's policy, until it is resumed."""
    from comux.cli.groups import set_paused

    set_paused(address, topic, None, paused=True)


@topics.command("resume")
def topics_resume(topic: Topic, address: Address = "shm://") -> None:
    """Let records into a paused topic again."""
    from comux.cli.groups import set_paused

    set_paused(address, topic, None, paused=False)


@groups.command("list")
def groups_list(
    names: Annotated[list[str] | None, typer.Argument(metavar="[TOPIC…]", help="None: all.")] = None,
    address: Address = "shm://",
    format: Format = "table",
) -> None:
    """Every group of topics: committed offset, lag in records, members, records lost to it."""
    from comux.cli.groups import list_groups

    list_groups(address, names or [], None, format)


@groups.command("lag")
def groups_lag(
    group: Annotated[str, typer.Argument(metavar="GROUP")],
    names: Annotated[list[str] | None, typer.Argument(metavar="[TOPIC…]", help="None: all.")] = None,
    address: Address = "shm://",
    format: Format = "table",
) -> None:
    """How far one group is behind, topic by topic, and which members hold records for how long."""
    from comux.cli.groups import list_groups

    list_groups(address, names or [], group, format)


@groups.command("reset")
def groups_reset(
    group: Annotated[str, typer.Argument(metavar="GROUP")],
    topic: Topic,
    to: Annotated[str, typer.Option("--to", metavar="end|beginning|keyframe|OFFSET|SECONDS.0", help="Where it goes.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be.")] = False,
    address: Address = "shm://",
) -> None:
    """Put a group without living members elsewhere in a topic."""
    from comux.cli.groups import reset_group
    from comux.cli.topics import parse_start

    reset_group(address, topic, group, parse_start(to), dry_run=dry_run)


Group = Annotated[str, typer.Argument(metavar="GROUP")]


@groups.command("pause")
def groups_pause(group: Group, topic: Topic, address: Address = "shm://") -> None:
    """Hand the members of a group nothing until it is resumed; the topic goes on."""
    from comux.cli.groups import set_paused

    set_paused(address, topic, group, paused=True)


@groups.command("resume")
def groups_resume(group: Group, topic: Topic, address: Address = "shm://") -> None:
    """Let a paused group go on."""
    from comux.cli.groups import set_paused

    set_paused(address, topic, group, paused=False)


@groups.command("claim")
def groups_claim(
    group: Annotated[str, typer.Argument(metavar="GROUP")],
    topic: Topic,
    idle: Annotated[str, typer.Option("--idle", metavar="30s", help="Held for at least so long: 500ms, 30s, 5m.")],
    address: Address = "shm://",
    format: Format = "table",
) -> None:
    """Take records from members that hang; other members get them, and a late acknowledgement is refused."""
    from comux.cli.groups import claim_stale

    claim_stale(address, topic, group, idle, format)


@groups.command("delete")
def groups_delete(
    group: Annotated[str, typer.Argument(metavar="GROUP")], topic: Topic, address: Address = "shm://"
) -> None:
    """Forget where a group stands on a topic; one with living members is refused."""
    from comux.cli.groups import delete_group

    delete_group(address, topic, group)
