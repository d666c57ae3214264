"""``comux plan``: how much hardware so many cameras need, with what each figure stands on; and measuring the costs."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from comux.cli.demo import parse_size
from comux.decoders import canonical_codec
from comux.errors import ConfigError
from comux.options import check_choice
from comux.planning.check import Compared
from comux.planning.costs import MEASURED, from_dict, load
from comux.planning.demand import Demand, quantity, seconds
from comux.planning.estimate import plan
from comux.planning.figures import Figure, Plan, quantity_text
from comux.transport.address import parse_address


def run_plan(words: dict[str, Any], *, measured: Path | None, format: str) -> int:
    """Print the plan for ``words``, the options of the command as they were typed.

    Raises:
        ConfigError: one of them is wrong.
    """
    check_choice(format, "--format", ("table", "json"))
    demand = read_demand(words)
    answer = plan(demand, MEASURED if measured is None else load(measured))
    if format == "json":
        print(json.dumps(answer.as_dict(), indent=2))
    else:
        print_plan(answer)
    return 0


def run_measure(
    codec: str,
    *,
    check: bool,
    kafka: str | None,
    seconds: float,
    rounds: int,
    output: Path | None,
    format: str,
) -> int:
    """Measure the costs, compare them with a run where ``check`` says so, and keep them in ``output``.

    Returns:
        0.

    Raises:
        ConfigError: an option. ComuxError: the cluster, or a process that was measured.
    """
    from comux.planning.check import check_costs
    from comux.planning.measure import Effort, measure

    check_choice(format, "--format", ("table", "json"))
    check_output(output)
    if kafka is not None and parse_address(kafka).scheme != "kafka":
        raise ConfigError(f"--kafka {kafka!r}: give the address of a cluster, as in kafka://host:9092")
    effort = Effort(seconds=seconds, rounds=rounds)
    codecs = tuple(dict.fromkeys(("h264", "hevc", canonical_codec(codec) or codec)))
    # SIGTERM ends it as Ctrl-C does: what was started and made is removed.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        found = measure(effort, codecs=codecs, cluster=kafka, tell=tell)
        if check:
            costs = from_dict(found["costs"], "this run")
            found["check"] = [asdict(each) for each in check_costs(costs, effort, cluster=kafka, tell=tell)]
    finally:
        signal.signal(signal.SIGTERM, before)
    if output is not None:
        output.write_text(json.dumps(found, indent=1) + "\n")
    if format == "json":
        print(json.dumps(found, indent=2))
    else:
        print_measured(found)
    return 0


def tell(line: str) -> None:
    """One step of a measurement."""
    print(line, file=sys.stderr, flush=True)


def check_output(output: Path | None) -> None:
    """Before minutes are spent.

    Raises:
        ConfigError: no file can be written there.
    """
    if output is None:
        return
    folder = output.absolute().parent
    if output.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(f"--output {str(output)!r}: no file can be written there; name another")


def read_demand(words: dict[str, Any]) -> Demand:
    """The options as a demand.

    Raises:
        ConfigError: one of them is wrong.
    """
    width, height = parse_size(words.pop("size"))
    known: dict[str, Any] = {
        "width": width,
        "height": height,
        "bitrate": quantity(words.pop("bitrate"), "--bitrate"),
        "memory_bytes": quantity(words.pop("memory"), "--memory"),
        "network_bits": quantity(words.pop("network"), "--network"),
        "retention_s": seconds(words.pop("retention"), "--retention"),
    }
    broker_network = words.pop("broker_network")
    known["broker_network_bits"] = (
        known["network_bits"] if broker_network is None else quantity(broker_network, "--broker-network")
    )
    words["codec"] = canonical_codec(words["codec"]) or words["codec"]
    return Demand(**known, **words)


def print_plan(answer: Plan) -> None:
    """The plan for people."""
    from rich.console import Console
    from rich.table import Table

    demand = answer.demand
    console = Console()
    console.print(
        f"{demand.cameras} cameras, {demand.width}x{demand.height} {demand.codec}, {demand.fps:g} fps, "
        f"{quantity_text(demand.bitrate)}bit/s, through {demand.engine}",
        highlight=False,
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "", "stands on"):
        table.add_column(column, overflow="fold")
    table.columns[1].justify = "right"
    section = ""
    for figure in answer.figures:
        if figure.section != section:
            section = figure.section
            table.add_row(section, "", "", style="bold")
        table.add_row(f"  {figure.name}", shown(figure), figure.basis)
    console.print(table, highlight=False)
    for warning in answer.warnings:
        console.print(f"WARNING: {warning}", highlight=False)
    console.print(f"costs: {answer.source}; safety {demand.safety:g}", highlight=False)


def print_measured(found: dict[str, Any]) -> None:
    """Measured costs for people, and the comparison where there was one."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("cost", overflow="fold")
    table.add_column("", justify="right")
    for name, value in flat(found["costs"]):
        table.add_row(name, value if isinstance(value, str) else f"{value:.3g}")
    console.print(table, highlight=False)
    if "check" not in found:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("eight cameras", "planned", "measured", "", "deviation"):
        table.add_column(column, justify="left" if column == "eight cameras" else "right")
    for each in found["check"]:
        row = Compared(**each)
        table.add_row(row.name, f"{row.planned:.4g}", f"{row.measured:.4g}", row.unit, f"{row.deviation:+.0%}")
    console.print(table, highlight=False)


def flat(costs: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested costs as dotted names."""
    for name, value in costs.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def shown(figure: Figure) -> str:
    """A figure's value with its unit, three digits."""
    if figure.unit in ("bytes", "bytes/s", "bit/s"):
        return quantity_text(figure.value) + {"bytes": "B", "bytes/s": "B/s", "bit/s": "bit/s"}[figure.unit]
    value = f"{figure.value:,.0f}" if figure.value >= 100 else f"{figure.value:.3g}"
    return f"{value} {figure.unit}".rstrip()
