"""The commands, their options and their exit codes; the work is in the module each command imports.

An error the user can do something about is one line on stderr and exit code 2. A traceback appears only with
``comux --debug …`` or ``COMUX_DEBUG=1``.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from comux._version import __version__
from comux.cli.control_commands import app as control_app
from comux.cli.topic_commands import Address, groups, machine, topics
from comux.errors import ComuxError

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130
DEBUG_VARIABLE: Final = "COMUX_DEBUG"

EPILOG: Final = (
    "Exit codes: 0 done (for demo and run also after Ctrl-C); 1 failed, refused or different, and nothing you typed is "
    "to blame; 2 a wrong option, name, address or file, or no room, said in one line; 130 interrupted by Ctrl-C. "
    f"{DEBUG_VARIABLE}=1 shows tracebacks."
)

app = typer.Typer(
    name="comux",
    help="Many live streams in one Python loop over numpy arrays.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(topics, name="topics")
app.add_typer(groups, name="groups")
app.add_typer(machine)
app.add_typer(control_app)

# Typer has brought its own copy of click for a while and used the real one before; both are reached from here.
_UsageError: Any = typer.BadParameter.__mro__[1]
_ClickError: Any = _UsageError.__mro__[1]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"comux {__version__}")
        raise typer.Exit


def _show_tracebacks(wanted: bool) -> None:
    if wanted:
        os.environ[DEBUG_VARIABLE] = "1"


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Say the version and end.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", callback=_show_tracebacks, is_eager=True, help="Show tracebacks of errors.")
    ] = False,
) -> None:
    pass


@app.command(short_help="Cameras into one loop, results out: see it work.")
def demo(
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0.1, metavar="S", help="How long pictures are shown; default: until Ctrl-C, or 15 where no terminal is."
        ),
    ] = None,
    cameras: Annotated[
        int, typer.Option(min=1, max=64, metavar="N", help="How many cameras, each a process of its own.")
    ] = 4,
    size: Annotated[str, typer.Option(metavar="WxH", help="Size of the cameras' pictures.")] = "640x360",
    fps: Annotated[float, typer.Option(min=0.5, max=240, metavar="FPS", help="Pictures per second and camera.")] = 30.0,
    video: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The cameras play this file, looped, instead.")
    ] = None,
    format: Annotated[
        str, typer.Option("--format", metavar="table|json", help="json: stdout carries only the result, at the end.")
    ] = "table",
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PNG", help="Contact sheet of the last batch.")
    ] = Path("demo-contact-sheet.png"),
    mode: Annotated[
        str, typer.Option(metavar="auto|freshest|every_frame", help="What a batch takes of each camera.")
    ] = "auto",
    address: Annotated[
        str | None, typer.Option("--address", "-a", metavar="ADDRESS", help="Engine; default: shm://demo-PID, removed.")
    ] = None,
) -> None:
    """Four synthetic cameras into one loop, results out, read back by another process.

    cam3 stalls now and then and comes back, cam4 damages a packet now and then, on purpose. Ends on Ctrl-C with the
    balanced account of every camera.
    """
    from comux.cli.demo import DemoOptions, parse_size, run_demo

    width, height = parse_size(size)
    options = DemoOptions(
        seconds=seconds,
        cameras=cameras,
        width=width,
        height=height,
        fps=fps,
        video=video,
        format=format,
        output=output,
        mode=mode,
        address=address,
    )
    raise typer.Exit(run_demo(options))


@app.command(short_help="Publish a file or synthetic camera on a topic.")
def publish(
    source: Annotated[str, typer.Argument(metavar="FILE|synthetic://…", help="A video file or a synthetic camera.")],
    topic: Annotated[str, typer.Option("--topic", "-t", metavar="TOPIC", help="Created where it is missing.")],
    address: Address = "shm://",
    pace: Annotated[str, typer.Option(metavar="realtime|fast|FPS", help="How fast packets go out.")] = "realtime",
    loop: Annotated[bool, typer.Option("--loop", help="Begin again at the end of a file.")] = False,
    seconds: Annotated[float | None, typer.Option(min=0.0, metavar="S", help="End after this long.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, metavar="N", help="End after this many pictures.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors.")] = False,
    parent: Annotated[int | None, typer.Option(hidden=True, help="End with this process.")] = None,
) -> None:
    """Publish a video file or a synthetic camera on a topic, packet by packet, as a camera would.

    A synthetic camera: synthetic://640x360@30?gop=30&bframes=2&seed=1&camera=1. Ctrl-C ends it cleanly.
    """
    from comux.cli.publish import run_publish

    code = run_publish(
        source,
        topic=topic,
        address=address,
        pace=pace,
        loop=loop,
        seconds=seconds,
        frames=frames,
        quiet=quiet,
        parent=parent,
    )
    raise typer.Exit(code)


@app.command(short_help="Copy topics from one engine to another.")
def bridge(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="shm://lab, or with a topic: shm://lab/raw_cam1.")],
    destination: Annotated[str, typer.Argument(metavar="DEST", help="An engine, or one topic of it for everything.")],
    topics: Annotated[
        list[str] | None, typer.Option("--topics", "-t", metavar="NAME|PATTERN", help="Which; may be given repeatedly.")
    ] = None,
    prefix: Annotated[str, typer.Option(metavar="TEXT", help="Put before the topics' names at DEST.")] = "",
    start: Annotated[
        str, typer.Option("--from", metavar="beginning|end|keyframe", help="Where to begin the first time.")
    ] = "beginning",
    group: Annotated[
        str | None, typer.Option(metavar="NAME", help="Consumer group at SOURCE; default: one for each DEST topic.")
    ] = None,
    lossy: Annotated[
        bool, typer.Option("--lossy", help="Without a group: hold nothing back, count what is missed, no resuming.")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="End when everything is copied that is there now.")] = False,
    drop_too_large: Annotated[
        bool, typer.Option("--drop-too-large", help="Drop and count records that DEST refuses for their size.")
    ] = False,
    format: Annotated[
        str, typer.Option("--format", metavar="table|json", help="json: one status a line on stdout.")
    ] = "table",
) -> None:
    """Copy topics from one engine to another: values, keys, headers, timestamps, flags and ends of streams.

    A record is let go of at SOURCE only when its copy is at DEST. Ended by Ctrl-C or killed, the same command goes on
    where it stopped; what may have been copied twice carries the header comux-duplicate.
    """
    from comux.cli.bridge import run_bridge

    code = run_bridge(
        source,
        destination,
        topics=topics or (),
        prefix=prefix,
        start=start,
        group=group,
        lossy=lossy,
        once=once,
        drop_too_large=drop_too_large,
        format=format,
    )
    raise typer.Exit(code)


planner = typer.Typer(rich_markup_mode=None)
app.add_typer(planner, name="plan")


@planner.command("memory", short_help="How much shared memory local topics need, and whether it is there.")
def plan_memory(
    cameras: Annotated[int, typer.Option(metavar="N", help="How many cameras, a topic each.")] = 1,
    size: Annotated[str, typer.Option(metavar="WxH", help="Size of their pictures.")] = "1920x1080",
    fps: Annotated[float, typer.Option(metavar="FPS", help="Records per second of each.")] = 30.0,
    bitrate: Annotated[str, typer.Option(metavar="BITS", help="Bits per second of each, as in 4M.")] = "4M",
    arrays: Annotated[bool, typer.Option("--arrays", help="Records are pictures (BGR), not packets of video.")] = False,
    record: Annotated[
        str | None, typer.Option(metavar="BYTES", help="Records are of so many bytes, whatever is in them.")
    ] = None,
    depth: Annotated[str, typer.Option(metavar="N|TIME", help="Records kept of each, or a time, as in 10s.")] = "10s",
    groups: Annotated[int, typer.Option(metavar="N", help="Consumer groups of each topic.")] = 1,
    results: Annotated[int, typer.Option(metavar="N", help="Topics of results.")] = 0,
    control: Annotated[bool, typer.Option("--control", help="Commands and replies go over topics too.")] = False,
    address: Address = "shm://",
    format: Annotated[str, typer.Option("--format", metavar="table|json", help="How it is printed.")] = "table",
) -> None:
    """The bytes that creating these topics takes, exactly, beside what is free here.

    comux plan memory --cameras 8 --arrays --depth 64
    """
    from comux.cli.plan_memory import run_plan_memory

    words: dict[str, Any] = {
        "cameras": cameras,
        "size": size,
        "fps": fps,
        "bitrate": bitrate,
        "arrays": arrays,
        "record": record,
        "depth": depth,
        "groups": groups,
        "results": results,
        "control": control,
    }
    raise typer.Exit(run_plan_memory(words, address=address, format=format))


@planner.callback(invoke_without_command=True, short_help="How much hardware so many cameras need.")
def plan(
    context: typer.Context,
    cameras: Annotated[int, typer.Option(metavar="N", help="How many cameras.")] = 100,
    size: Annotated[str, typer.Option(metavar="WxH", help="Size of their pictures.")] = "1920x1080",
    fps: Annotated[float, typer.Option(metavar="FPS", help="Frames per second of each.")] = 30.0,
    bitrate: Annotated[str, typer.Option(metavar="BITS", help="Bits per second of each, as in 4M.")] = "4M",
    codec: Annotated[str, typer.Option(metavar="CODEC", help="h264, hevc, or what --measured knows.")] = "h264",
    rate: Annotated[
        float | None, typer.Option(metavar="N", help="Pictures per second delivered of each; default: all.")
    ] = None,
    gop: Annotated[
        int | None,
        typer.Option(metavar="N", help="Pictures per keyframe, where that is fixed: --rate then saves decoding."),
    ] = None,
    mode: Annotated[str, typer.Option(metavar="freshest|every_frame", help="What batches take.")] = "freshest",
    engine: Annotated[str, typer.Option(metavar="kafka|shm", help="Where the cameras' topics are.")] = "kafka",
    results_bytes: Annotated[int, typer.Option(metavar="N", help="Bytes of each result's headers; -1: none.")] = 2000,
    readers: Annotated[int, typer.Option(metavar="N", help="How many times each result is read.")] = 1,
    cores: Annotated[int, typer.Option(metavar="N", help="Of each machine that decodes.")] = 16,
    memory: Annotated[str, typer.Option(metavar="BYTES", help="Of each, as in 64G.")] = "64G",
    network: Annotated[str, typer.Option(metavar="BITS", help="Of each, per second and way, as in 10G.")] = "10G",
    brokers: Annotated[int | None, typer.Option(metavar="N", help="There are; default: as many as needed.")] = None,
    broker_cores: Annotated[int, typer.Option(metavar="N", help="Of each broker.")] = 8,
    broker_network: Annotated[
        str | None, typer.Option(metavar="BITS", help="Of each broker; default: as --network.")
    ] = None,
    replication: Annotated[int, typer.Option(metavar="N", help="Copies of each record.")] = 3,
    retention: Annotated[str, typer.Option(metavar="TIME", help="How long records are kept, as in 1h.")] = "1h",
    safety: Annotated[float, typer.Option(metavar="X", help="Needs are multiplied by this.")] = 1.5,
    measured: Annotated[Path | None, typer.Option(metavar="FILE", help="Costs measured on your machine.")] = None,
    format: Annotated[str, typer.Option("--format", metavar="table|json", help="How it is printed.")] = "table",
    measure: Annotated[bool, typer.Option("--measure", help="Measure the costs on this machine: minutes.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Measure, run eight cameras, compare with the plan.")] = False,
    kafka: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Of a cluster, for --measure and --check.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.2, metavar="S", help="Of each run that is measured.")] = 3.0,
    rounds: Annotated[int, typer.Option(min=1, metavar="N", help="Of runs; medians count.")] = 3,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where measured costs go.")
    ] = None,
) -> None:
    """How many cores, machines, brokers and bytes so many cameras need, and which is short first.

    Each figure says what it stands on. docs/explanation/scaling.md has worked examples.
    """
    if context.invoked_subcommand:
        return
    from comux.cli.plan import run_measure, run_plan

    if measure or check:
        effort: dict[str, Any] = {"seconds": seconds, "rounds": rounds}
        raise typer.Exit(run_measure(codec, check=check, kafka=kafka, output=output, format=format, **effort))
    # What is asked for are all the other parameters, by their names.
    others = ("measured", "format", "measure", "check", "kafka", "seconds", "rounds", "output")
    words = {name: value for name, value in context.params.items() if name not in others}
    words["results_bytes"] = None if results_bytes == -1 else results_bytes
    raise typer.Exit(run_plan(words, measured=measured, format=format))


@app.command(short_help="End a running program by its pid file.")
def terminate(
    pid_file: Annotated[Path, typer.Argument(metavar="[PIDFILE]", help="What the program wrote.")] = Path("pid"),
    timeout: Annotated[float, typer.Option(min=0.0, metavar="S", help="Seconds to wait before killing.")] = 10.0,
    kill: Annotated[bool, typer.Option("--kill/--no-kill", help="Kill what does not end in time.")] = True,
) -> None:
    """End a running program and the processes it started: ask (SIGTERM), wait, kill; removes its pid file.

    A pid file whose program has ended already is an answer, not an error; a pid that now belongs to another program
    is refused.
    """
    from comux.cli.terminate import run_terminate

    raise typer.Exit(run_terminate(pid_file, timeout=timeout, kill=kill))


def run(arguments: list[str] | None = None) -> None:
    """The ``comux`` command: run ``arguments`` (default: the process's) and exit.

    Raises:
        SystemExit: always, with one of the documented codes.
    """
    sys.exit(execute(sys.argv[1:] if arguments is None else arguments))


def execute(arguments: list[str]) -> int:
    """Run one command and return its exit code; errors are printed on stderr in one line each."""
    try:
        result = app(args=arguments, prog_name="comux", standalone_mode=False)
        code = result if isinstance(result, int) else OK
        sys.stdout.flush()
    except _ClickError as error:
        return _usage(error)
    except ComuxError as error:
        return _report(error, str(error) or type(error).__name__, USAGE)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone (`comux … | head`). The interpreter would complain once more at its end.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - stays open to the end of the process
        return FAILED
    except OSError as error:
        return _report(error, str(error), USAGE)
    except Exception as error:  # noqa: BLE001 - the last frame of the program: whatever comes is one line
        return _report(error, f"unexpected {type(error).__name__}: {error} ({DEBUG_VARIABLE}=1 shows where)", FAILED)
    return code


def _usage(error: Any) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
        print(error.format_message())
        return USAGE
    path = error.ctx.command_path if getattr(error, "ctx", None) is not None else "comux"
    print(f"comux: {_one_line(error.format_message())} ({path} --help lists what there is)", file=sys.stderr)
    return USAGE


def _report(error: BaseException, message: str, code: int) -> int:
    if os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0"):
        traceback.print_exception(error)
    print(f"comux: {_one_line(message)}", file=sys.stderr)
    return code


def _one_line(message: str) -> str:
    return " ".join(message.split()).removesuffix(".")
