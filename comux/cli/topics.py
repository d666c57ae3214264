"""``comux topics``: what an engine holds, and removing it."""

from __future__ import annotations

from typing import Any

from comux.cli.tables import check_format, console, plain_table, print_json
from comux.errors import ComuxError
from comux.redaction import shown
from comux.transport import Broker, TopicInfo, connect


def list_topics(address: str, format: str = "table") -> None:
    """Print every topic of the engine at ``address``."""
    as_data = check_format(format)
    with connect(address) as broker:
        rows = {name: _row(broker, name) for name in broker.topics()}
    if as_data:
        print_json(rows)
        return
    numbers = ("records", "first", "next", "epoch")
    table = plain_table("topic", *numbers, "kind", right=numbers)
    for name, row in rows.items():
        table.add_row(name, *(str(row.get(number, "")) for number in numbers), row.get("kind") or row["error"])
    if rows:
        console().print(table)
    else:
        print(f"no topics on {shown(address)}")


def _row(broker: Broker, name: str) -> dict[str, Any]:
    try:
        info = broker.topic(name)
    except ComuxError as error:  # one that is broken or was just removed hides no other
        return {"error": str(error)}
    return {
        "records": info.high_water - info.log_start,
        "first": info.log_start,
        "next": info.high_water,
        "epoch": info.epoch,
        "ended": info.ended,
        "kind": _kind(info),
    }


def _kind(info: TopicInfo) -> str:
    spec = info.spec
    what = "records" if spec.dtype is None else f"{spec.dtype} {tuple(spec.shape)}"
    codec = spec.metadata.get("codec")
    return ", ".join(filter(None, (str(codec) if codec else what, "ended" if info.ended else "")))


def delete_topics(address: str, names: list[str]) -> None:
    """Remove topics, one by one.

    Raises:
        ComuxError: one does not exist or is in use; those before it are removed.
    """
    with connect(address) as broker:
        for name in names:
            broker.delete_topic(name)
            print(f"{name} deleted")
