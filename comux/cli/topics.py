"""``comux topics``: what an engine holds, and removing it."""

from __future__ import annotations

from comux.errors import ComuxError
from comux.redaction import shown
from comux.transport import TopicInfo, connect


def list_topics(address: str) -> None:
    """Print every topic of the engine at ``address``."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("topic", overflow="fold")
    for column in ("records", "first", "next", "epoch"):
        table.add_column(column, justify="right")
    table.add_column("kind", overflow="fold")
    with connect(address) as broker:
        names = broker.topics()
        for name in names:
            try:
                info = broker.topic(name)
            except ComuxError as error:  # one that is broken or was just removed hides no other
                table.add_row(name, "", "", "", "", str(error))
                continue
            table.add_row(
                name,
                str(info.high_water - info.log_start),
                str(info.log_start),
                str(info.high_water),
                str(info.epoch),
                _kind(info),
            )
    if names:
        Console().print(table)
    else:
        print(f"no topics on {shown(address)}")


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
