"""``comux plan memory``: the size calculator of local topics."""

from __future__ import annotations

from typing import Any

from comux.cli.demo import parse_size
from comux.cli.tables import check_format, console, plain_table, print_json
from comux.errors import ConfigError
from comux.planning.demand import quantity, seconds
from comux.planning.shared_memory import MemoryPlan, Wanted, plan_memory
from comux.ring.space import megabytes
from comux.transport import connect
from comux.transport.local import LocalBroker


def run_plan_memory(words: dict[str, Any], *, address: str, format: str) -> int:
    """Print what ``words``, the options of the command as they were typed, take.

    Raises:
        ConfigError: one of them is wrong.
    """
    as_data = check_format(format)
    wanted = read_wanted(words)
    with connect(address) as broker:
        if not isinstance(broker, LocalBroker):
            raise ConfigError(f"--address {address!r}: only topics on shm:// take shared memory")
        plan = plan_memory(wanted, broker.directory)
    if as_data:
        print_json(plan.as_dict())
    else:
        print_memory(plan)
    return 0


def read_wanted(words: dict[str, Any]) -> Wanted:
    """The options as numbers.

    Raises:
        ConfigError: one of them is wrong.
    """
    width, height = parse_size(words.pop("size"))
    record = words.pop("record")
    return Wanted(
        width=width,
        height=height,
        bitrate=quantity(words.pop("bitrate"), "--bitrate"),
        record_bytes=0 if record is None else int(quantity(record, "--record")),
        content="records" if record is not None else "arrays" if words.pop("arrays") else "packets",
        depth=parse_depth(words.pop("depth")),
        **{name: value for name, value in words.items() if name != "arrays"},
    )


def parse_depth(text: str) -> int | float:
    """``64`` as records, ``10s`` as seconds.

    Raises:
        ConfigError: neither.
    """
    if text.isascii() and text.isdigit() and len(text) < 12:
        return int(text)
    if text[-1:].isalpha():
        return float(seconds(text, "--depth"))
    raise ConfigError(f"--depth {text!r}: give records, as in 64, or a time, as in 10s")


def print_memory(plan: MemoryPlan) -> None:
    """The plan for people."""
    numbers = ("topics", "records", "holds", "bytes each", "all")
    table = plain_table("", *numbers, right=numbers)
    for each in plan.topics:
        held = "" if each.seconds is None else f"{each.seconds:.3g} s"
        sizes = (megabytes(each.bytes), megabytes(each.total))
        table.add_row(each.topic, str(each.count), str(each.records), held, *sizes)
    table.add_row("all of it", str(sum(each.count for each in plan.topics)), "", "", "", megabytes(plan.bytes))
    out = console()
    out.print(table)
    space = plan.space
    free = "no bound" if space.free is None else f"{megabytes(space.free)} of {megabytes(space.size or 0)} are free"
    left = "no memory limit" if space.limit is None else f"{megabytes(max(0, space.limit_free or 0))} left of the limit"
    out.print(f"{space.directory}: {free}; {left}", highlight=False)
    for line in plan.advice:
        out.print(line if plan.fits else f"WARNING: {line}", highlight=False)
    if plan.fits:
        out.print("it fits", highlight=False)
