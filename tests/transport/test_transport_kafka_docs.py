"""What docs/reference/kafka.md says is what the code does."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from comux import errors
from comux.transport import kafka_wire
from comux.transport.kafka import CAPABILITIES
from comux.transport.kafka_options import _REFUSED, OWN, KafkaOptions

PAGE = (Path(__file__).resolve().parents[2] / "docs/reference/kafka.md").read_text()


def table(heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, without its head."""
    part = PAGE.partition(f"{heading}\n")[2]
    lines = part[part.index("\n|") :].strip().partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_own_options_and_their_defaults() -> None:
    rows = {name: row[1] for row in table("## Options") for name in names(row[0])}
    assert set(rows) == OWN
    fields = {field.name: field.default for field in dataclasses.fields(KafkaOptions)}
    assert rows["queue_bytes"] == f"{fields['queue_bytes'] // 2**20} MiB"
    assert rows["buffer_bytes"] == f"{fields['buffer_bytes'] // 2**20} MiB"
    assert rows["connect_timeout"] == f"{fields['connect_timeout']:g} s"


def test_the_refused_options() -> None:
    refused = {name.partition("=")[0] for row in table("### Options that are refused") for name in names(row[0])}
    assert refused == {*_REFUSED, "enable_auto_commit"}


def test_the_capabilities() -> None:
    rows = {names(row[0])[0]: row[1] for row in table("## What Kafka has and lacks")}
    assert rows == {field.name: str(getattr(CAPABILITIES, field.name)) for field in dataclasses.fields(CAPABILITIES)}


def test_the_headers() -> None:
    assert {names(row[0])[0] for row in table("## What stands in a topic")} == kafka_wire._OURS


def test_the_errors_and_which_are_tried_again() -> None:
    kinds = {name: getattr(errors, name) for row in table("## Errors") for name in names(row[0])}
    assert all(issubclass(kind, errors.ComuxError) for kind in kinds.values())
    said = PAGE.partition("may succeed later by itself:")[2].partition(".")[0]
    assert sorted(names(said)) == sorted(name for name, kind in kinds.items() if kind.retriable)
