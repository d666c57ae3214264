"""The commands around running cameras and talking to them: ``run, apply, status, sources, control, config``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(rich_markup_mode=None)
sources = typer.Typer(
    help="The sources of a running program: look at them, change them.", no_args_is_help=True, rich_markup_mode=None
)
control = typer.Typer(
    help="Commands to a running program, and what it is told.", no_args_is_help=True, rich_markup_mode=None
)
config = typer.Typer(help="Cameras files: check, compare, schema.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(sources, name="sources")
app.add_typer(control, name="control")
app.add_typer(config, name="config")


def _formats(incomplete: str) -> list[str]:
    return [word for word in ("table", "json") if word.startswith(incomplete)]


Address = Annotated[
    str | None,
    typer.Option(
        "--address", "-a", metavar="ADDRESS", help="Engine of the control topic; default: $COMUX_ADDRESS, shm://."
    ),
]
Topic = Annotated[
    str | None,
    typer.Option("--control", "-c", metavar="TOPIC", help="The control topic; default: $COMUX_CONTROL_TOPIC, config."),
]
File = Annotated[
    Path | None, typer.Option("--file", "-f", metavar="FILE", help="A cameras file that says where the program is.")
]
Target = Annotated[str | None, typer.Option(metavar="NAME", help="The client meant, where several obey the topic.")]
Timeout = Annotated[float, typer.Option(min=0.0, metavar="S", help="Seconds to wait for the answer.")]
Format = Annotated[
    str, typer.Option("--format", metavar="table|json", help="How it is printed.", autocompletion=_formats)
]
CamIds = Annotated[list[str], typer.Argument(metavar="CAM_ID…")]
Settings = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE…]", help="As in rate=5 W=640 H=360.")]


@app.command("run", short_help="Run a model over the cameras of a file.")
def run_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A cameras file, or the first comux's .env.")],
    model: Annotated[
        str | None, typer.Option(metavar="MODULE:FUNCTION", help="Instead of the file's; its folder is searched first.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=0.0, metavar="S", help="End after this long.")] = None,
    batches: Annotated[int | None, typer.Option(min=1, metavar="N", help="End after so many batches.")] = None,
    pid_file: Annotated[
        str, typer.Option(metavar="PATH", help="Where to say who runs, for comux terminate; '': nowhere.")
    ] = "pid",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors.")] = False,
    format: Format = "table",
) -> None:
    """Run a model over the cameras of a file, until Ctrl-C, SIGTERM, or the end of every stream.

    The model is called with each batch; what it returns goes out with the packets: a list with one mapping of headers
    per item, a mapping by cam_id, or None. A first signal ends in order, a second one at once.
    """
    from comux.cli.run_file import RunOptions, run_file

    options = RunOptions(model, seconds, batches, Path(pid_file) if pid_file else None, quiet, format)
    raise typer.Exit(run_file(file, options))


@app.command("first-comux", hidden=True)
def first_comux_command(
    env: Annotated[Path | None, typer.Argument(metavar="[ENV]", help="Its .env; default: the one here.")] = None,
    timeout: Annotated[float | None, typer.Option(min=0.0, metavar="S", help="Seconds for each batch.")] = None,
    number: Annotated[int | None, typer.Option("--num", min=1, metavar="N", help="Batches; default: no end.")] = None,
    cam_id: Annotated[str | None, typer.Option("--cam_id", metavar="ID", help="Show one camera alone.")] = None,
    batch: Annotated[bool, typer.Option("--batch", help="Show all of each batch.")] = False,
) -> None:
    """What python -m comux did in the first comux: take pictures of a database's cameras and print what came."""
    from comux.cli.run_file import show_cameras

    raise typer.Exit(show_cameras(env, timeout=timeout, number=number, cam_id=cam_id, batch=batch))


@app.command("apply", short_help="Bring a running program's cameras to what a file states.")
def apply_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A cameras file.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    delete: Annotated[
        bool, typer.Option("--delete/--no-delete", help="End cameras that the file does not name.")
    ] = True,
    watch: Annotated[bool, typer.Option("--watch", help="Go on whenever the file changes, until Ctrl-C.")] = False,
    address: Address = None,
    topic: Topic = None,
    target: Target = None,
    timeout: Timeout = 10.0,
    format: Format = "table",
) -> None:
    """Print how a running program's cameras differ from a file, and have each difference made.

    A camera that cannot be changed does not keep the others from it. Exit code 1: some were refused.
    """
    from comux.cli.apply import run_apply

    code = run_apply(
        file,
        address=address,
        topic=topic,
        target=target,
        timeout=timeout,
        dry_run=dry_run,
        delete=delete,
        watch=watch,
        format=format,
    )
    raise typer.Exit(code)


@app.command("status", short_help="A running program as it stands.")
def status_command(
    address: Address = None,
    topic: Topic = None,
    file: File = None,
    target: Target = None,
    timeout: Timeout = 5.0,
    format: Format = "table",
) -> None:
    """Every source with its figures and books, the totals, results, commands and the registry."""
    from comux.cli.status import show_status

    with _reach(address, topic, file, target, timeout) as remote:
        raise typer.Exit(show_status(remote, _json(format)))


def _reach(address: str | None, topic: str | None, file: Path | None, target: str | None, timeout: float) -> Any:
    from comux.cli.reach import reach

    return reach(address, topic, file, target=target, timeout=timeout)


def _json(format: str) -> bool:
    from comux.cli.tables import check_format

    return check_format(format)


# -- sources -------------------------------------------------------------------------------------------------------


@sources.command("list")
def sources_list(
    address: Address = None,
    topic: Topic = None,
    file: File = None,
    target: Target = None,
    timeout: Timeout = 5.0,
    format: Format = "table",
) -> None:
    """Every source: state, topic, and what was said of it."""
    from comux.cli.sources import list_sources

    with _reach(address, topic, file, target, timeout) as remote:
        raise typer.Exit(list_sources(remote, _json(format)))


def _change(
    action: str,
    cam_ids: list[str],
    settings: dict[str, Any],
    where: tuple[str | None, str | None, Path | None, str | None, float],
    format: str,
) -> None:
    from comux.cli.sources import change

    as_data = _json(format)
    with _reach(*where) as remote:
        raise typer.Exit(change(remote, action, cam_ids, settings, as_data))


@sources.command("create")
def sources_create(
    cam_id: Annotated[str, typer.Argument(metavar="CAM_ID")],
    settings: Settings = None,
    address: Address = None,
    topic: Topic = None,
    file: File = None,
    target: Target = None,
    timeout: Timeout = 10.0,
    format: Format = "table",
) -> None:
    """Add a source; it is in the next batch."""
    from comux.cli.sources import settings_of

    _change("create", [cam_id], settings_of(settings or []), (address, topic, file, target, timeout), format)


@sources.command("update")
def sources_update(
    cam_id: Annotated[str, typer.Argument(metavar="CAM_ID")],
    settings: Annotated[list[str], typer.Argument(metavar="KEY=VALUE…", help="As in rate=5 W=640 H=360.")],
    address: Address = None,
    topic: Topic = None,
    file: File = None,
    target: Target = None,
    timeout: Timeout = 10.0,
    format: Format = "table",
) -> None:
    """Change settings of one source; the others do not notice."""
    from comux.cli.sources import settings_of

    _change("update", [cam_id], settings_of(settings), (address, topic, file, target, timeout), format)


@sources.command("delete")
def sources_delete(
    cam_ids: CamIds,
    address: Address = None,
    topic: Topic = None,
    file: File = None,
    target: Target = None,
    timeout: Timeout = 10.0,
    format: Format = "table",
) -> None:
    """End sources and free what they hold."""
    _change("delete", cam_ids, {}, (address, topic, file, target, timeout), format)


AllOrSome = Annotated[list[str] | None, typer.Argument(metavar="[CAM_ID…]", help="None: all.")]


@sources.command("pause")
def sources_pause(
    cam_ids: AllOrSome = None,
    address: Address = None,
    topic: Topic = None,
    file: File = None,
    target: Target = None,
    timeout: Timeout = 10.0,
    format: Format = "table",
) -> None:
    """Fetch no more from sources, or from all."""
    _change("pause", cam_ids or [], {}, (address, topic, file, target, timeout), format)


@sources.command("resume")
def sources_resume(
    cam_ids: AllOrSome = None,
    address: Address = None,
    topic: Topic = None,
    file: File = None,
    target: Target = None,
    timeout: Timeout = 10.0,
    format: Format = "table",
) -> None:
    """Go on with sources, or with all."""
    _change("resume", cam_ids or [], {}, (address, topic, file, target, timeout), format)


@sources.command("seek")
def sources_seek(
    cam_id: Annotated[str, typer.Argument(metavar="CAM_ID")],
    to: Annotated[str, typer.Argument(metavar="end|beginning|keyframe|OFFSET|SECONDS.0")],
    address: Address = None,
    topic: Topic = None,
    file: File = None,
    target: Target = None,
    timeout: Timeout = 10.0,
    format: Format = "table",
) -> None:
    """Go on elsewhere in a source's topic: at a word, an offset (7), or a Unix time (1790000000.0)."""
    from comux.cli.sources import value_of

    _change("seek", [cam_id], {"to": value_of(to)}, (address, topic, file, target, timeout), format)


@sources.command("snapshot")
def sources_snapshot(
    cam_id: Annotated[str, typer.Argument(metavar="CAM_ID")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="JPEG", help="Where it goes.")],
    width: Annotated[int | None, typer.Option(min=1, max=4096, metavar="PIXELS", help="Across, at most.")] = None,
    address: Address = None,
    topic: Topic = None,
    file: File = None,
    target: Target = None,
    timeout: Timeout = 10.0,
) -> None:
    """A source's next picture as a JPEG file; the loop gets it as well."""
    from comux.cli.sources import snapshot

    with _reach(address, topic, file, target, timeout) as remote:
        raise typer.Exit(snapshot(remote, cam_id, width, output))


# -- control -------------------------------------------------------------------------------------------------------


@control.command("send")
def control_send(
    action: Annotated[str, typer.Argument(metavar="ACTION", help="create, update, …, or an act of the program's own.")],
    value: Annotated[str | None, typer.Argument(metavar="[VALUE]", help="JSON, or text; -: from stdin.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Send the bytes as they are.")] = False,
    address: Address = None,
    topic: Topic = None,
    file: File = None,
    target: Target = None,
    timeout: Timeout = 10.0,
    format: Format = "table",
) -> None:
    """Send one command and print what it gave. Exit code 1: it was refused."""
    from comux.cli.control import send

    as_data = _json(format)
    with _reach(address, topic, file, target, timeout) as remote:
        raise typer.Exit(send(remote, action, value, raw=raw, as_data=as_data))


@control.command("tail")
def control_tail(
    start: Annotated[str, typer.Option("--from", metavar="beginning|end", help="Where to begin.")] = "end",
    count: Annotated[int | None, typer.Option("--count", "-n", min=1, metavar="N", help="End after so many.")] = None,
    address: Address = None,
    topic: Topic = None,
    file: File = None,
    format: Format = "table",
) -> None:
    """Commands and answers as they come, until Ctrl-C."""
    from comux.cli.control import tail
    from comux.options import check_choice

    as_data = _json(format)
    start = check_choice(start, "--from", ("beginning", "end"))
    with _reach(address, topic, file, None, 5.0) as remote:
        raise typer.Exit(tail(remote, start="end" if start == "end" else "beginning", count=count, as_data=as_data))


# -- config --------------------------------------------------------------------------------------------------------


@config.command("check")
def config_check(files: Annotated[list[Path], typer.Argument(metavar="FILE…")], format: Format = "table") -> None:
    """Say whether cameras files are right; an error names file, line, key, value and remedy.

    Exit code 2: one is wrong.
    """
    from comux.cli.config import check

    raise typer.Exit(check(files, format))


@config.command("diff")
def config_diff(
    before: Annotated[Path, typer.Argument(metavar="FILE")],
    after: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="None: the running program.")] = None,
    address: Address = None,
    topic: Topic = None,
    target: Target = None,
    timeout: Timeout = 10.0,
    format: Format = "table",
) -> None:
    """How the cameras of one file become those of another; or how a running program's become the file's.

    Exit code 1: they differ.
    """
    from comux.cli.config import diff, diff_running

    if after is not None:
        raise typer.Exit(diff(before, after, format))
    as_data = _json(format)
    with _reach(address, topic, before, target, timeout) as remote:
        raise typer.Exit(diff_running(remote, before, as_data))


@config.command("schema")
def config_schema(
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Default: stdout.")] = None,
) -> None:
    """The JSON Schema of cameras files, for editors."""
    from comux.cli.config import schema

    raise typer.Exit(schema(output))
