"""The commands on topics and groups of any engine: ``topics`` and ``groups``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from comux.cli.control_commands import Format

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
    writers: Annotated[str, typer.Option(metavar="one|many", help="one: faster, a second is refused.")] = "many",
    metadata: Annotated[str | None, typer.Option(metavar="JSON|@FILE", help="Facts kept with it.")] = None,
    address: Address = "shm://",
) -> None:
    """Make a topic."""
    from comux.cli.topics import create_topic, parse_shape, read_metadata
    from comux.options import check_choice
    from comux.transport import TopicSpec

    words: dict[str, Any] = {
        "policy": check_choice(policy, "policy", ("wait", "drop_oldest", "drop_newest")),
        "writers": check_choice(writers, "writers", ("one", "many")),
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
    """How far one group is behind, topic by topic."""
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


@groups.command("delete")
def groups_delete(
    group: Annotated[str, typer.Argument(metavar="GROUP")], topic: Topic, address: Address = "shm://"
) -> None:
    """Forget where a group stands on a topic; one with living members is refused."""
    from comux.cli.groups import delete_group

    delete_group(address, topic, group)
