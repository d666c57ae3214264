"""``comux status``: a running program as it stands, asked of it through its control topic."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from comux.cli.tables import age_in_ms, causes, console, plain_table, print_json, state
from comux.control import Remote


def show_status(remote: Remote, as_data: bool) -> int:
    """Every source with its figures and books, the totals, results, commands, and the registry."""
    status = remote.ask("status")
    if as_data:
        print_json(status)
        return 0
    out = console()
    out.print(_sources(status["sources"]))
    for line in lines(status):
        out.print(line, highlight=False, markup=False, soft_wrap=True)
    return 0


def _sources(sources: Mapping[str, Mapping[str, Any]]) -> Table:
    numbers = ("fps", "lag", "lag s", "age ms", "received", "delivered", "held")
    table = plain_table("source", "state", *numbers, "dropped", right=numbers)
    for cam_id, source in sources.items():
        book = source["account"]
        word = source["state"] if source["state"] == "RUNNING" else f"{source['state']} {source['reason']}"
        table.add_row(
            cam_id,
            state(source["state"]) if word == source["state"] else word,
            f"{source['fps']:.1f}",
            str(source["lag"]),
            f"{source['lag_seconds']:.2f}",
            age_in_ms(source),
            str(book["received"]),
            str(book["delivered"]),
            str(book["held"]),
            causes(book["dropped"]),
        )
    return table


def lines(status: Mapping[str, Any]) -> list[str]:
    """What stands below the table."""
    total, results = status["total"], status["results"]
    balance = "balanced" if total["balanced"] else "NOT BALANCED"
    dropped = causes(total["dropped"]) or "nothing"
    out = [
        f"{status['client']}: received {total['received']} = delivered {total['delivered']} + absorbed "
        f"{total['absorbed']} + dropped {sum(total['dropped'].values())} + held {total['held']} ({balance}); dropped: "
        f"{dropped}",
        f"results: {results['received']} sent, {results['delivered']} arrived, {results['held']} on their way"
        + (f", dropped: {causes(results['dropped'])}" if any(results["dropped"].values()) else ""),
    ]
    control = status.get("control")
    if control is not None:
        book = control["account"]
        refused = causes(book["dropped"])
        out.append(
            f"commands on {control['topic']!r}: {book['received']} came, {book['delivered']} carried out"
            + (f", {refused}" if refused else "")
        )
    registry = status.get("registry")
    if registry is not None:
        since = registry["unreachable_since"]
        gone = "" if since is None else f" unreachable for {time.time() - since:.0f} s: {registry['error']}"
        out.append("registry:" + (gone or " watched"))
        out += [f"registry: {key}: {text}" for key, text in registry["failed"].items()]
    return out
