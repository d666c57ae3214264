"""``comux gc``: what of local topics nobody alive owns is removed; what stays is listed with the reason."""

from __future__ import annotations

from dataclasses import asdict

from rich.text import Text

from comux.cli.tables import check_format, console, plain_table, print_json
from comux.errors import ConfigError
from comux.redaction import shown
from comux.ring.clearing import Found, collect
from comux.ring.space import megabytes
from comux.transport import connect, parse_address
from comux.transport.local import LocalBroker


def run_gc(address: str, *, dry_run: bool, persistent: bool, format: str) -> None:
    """Clear up and print what was found.

    Raises:
        ConfigError: the address is of another engine, or names a topic; or its directory is not safe to use.
    """
    as_data = check_format(format)
    place = parse_address(address)
    if place.topic is not None:
        raise ConfigError(f"address {address!r} names a topic; gc is about all of a namespace: comux topics delete")
    with connect(address) as broker:
        if not isinstance(broker, LocalBroker):
            raise ConfigError(f"address {address!r}: gc is for shm://; the others clear up by themselves")
        found = collect(broker.directory, persistent=persistent, dry_run=dry_run, nested=not place.namespace)
        base = broker.directory.absolute()
    if as_data:
        print_json([asdict(each) | {"path": str(each.path), "dry_run": dry_run} for each in found])
        return
    table = plain_table("", "what", "bytes", "", "why", right=("bytes",))
    for each in found:
        gone = Text("would be removed" if dry_run else "removed", style="green") if each.removed else Text("stays")
        size = megabytes(each.bytes) if each.bytes else ""
        table.add_row(str(each.path.relative_to(base)).removesuffix(".ring"), each.what, size, gone, each.reason)
    if found:
        console().print(table)
    print(_summary(found, dry_run) if found else f"nothing on {shown(address)}")


def _summary(found: list[Found], dry_run: bool) -> str:
    gone = [each for each in found if each.removed]
    return f"{len(gone)} {'would be ' if dry_run else ''}removed, {megabytes(sum(each.bytes for each in gone))}"
