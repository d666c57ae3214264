"""``comux plan``: how much hardware so many cameras need, with what each figure stands on; and measuring the costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from comux.cli.demo import parse_size
from comux.options import check_choice
from comux.planning import costs as costs_module
from comux.planning.demand import Demand, quantity, seconds
from comux.planning.estimate import Figure, Plan, plan, quantity_text


def run_plan(words: dict[str, Any], *, measured: Path | None, format: str) -> int:
    """Print the plan for ``words``, the options of the command as they were typed.

    Raises:
        ConfigError: one of them is wrong.
    """
    check_choice(format, "--format", ("table", "json"))
    demand = read_demand(words)
    answer = plan(demand, costs_module.MEASURED if measured is None else costs_module.load(measured))
    if format == "json":
        print(json.dumps(answer.as_dict(), indent=2))
    else:
        print_plan(answer)
    return 0


def read_demand(words: dict[str, Any]) -> Demand:
    """The options as a demand.

    Raises:
        ConfigError: one of them is wrong.
    """
    width, height = parse_size(words.pop("size"))
    known = {
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


def shown(figure: Figure) -> str:
    """A figure's value with its unit, three digits."""
    if figure.unit in ("bytes", "bytes/s", "bit/s"):
        return quantity_text(figure.value) + {"bytes": "B", "bytes/s": "B/s", "bit/s": "bit/s"}[figure.unit]
    if figure.unit:
        return f"{figure.value:.3g} {figure.unit}"
    return f"{figure.value:.0f}" if figure.value >= 10 or figure.value == int(figure.value) else f"{figure.value:.2g}"
