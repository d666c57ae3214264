"""Addresses and the table of engines."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from typing import Any

import pytest

from comux.errors import UnknownAddressError
from comux.transport import Address, Capabilities, connect, parse_address, register_engine
from comux.transport.engines import _engines


@pytest.mark.parametrize(
    "text,scheme,namespace,hosts,topic,query",
    [
        ("shm://", "shm", "", (), None, {}),
        ("shm://lab", "shm", "lab", (), None, {}),
        ("shm://lab/raw_cam1", "shm", "lab", (), "raw_cam1", {}),
        ("shm:///raw_cam1", "shm", "", (), "raw_cam1", {}),
        ("shm://lab?mode=0600&x=", "shm", "lab", (), None, {"mode": "0600", "x": ""}),
        ("memory://x/topic", "memory", "x", (), "topic", {}),
        ("kafka://b1:9092,b2:9093/raw", "kafka", "b1:9092,b2:9093", ("b1:9092", "b2:9093"), "raw", {}),
        ("b1:9092, b2:9092", "kafka", "b1:9092,b2:9092", ("b1:9092", "b2:9092"), None, {}),
        (["b1:9092", "[::1]:9092"], "kafka", "b1:9092,[::1]:9092", ("b1:9092", "[::1]:9092"), None, {}),
    ],
)
def test_forms(text: Any, scheme: str, namespace: str, hosts: Any, topic: Any, query: Any) -> None:
    address = parse_address(text)
    assert (address.scheme, address.namespace, address.hosts) == (scheme, namespace, hosts)
    assert (address.topic, dict(address.query)) == (topic, query)


@pytest.mark.parametrize(
    "text,says",
    [
        ("", "shm://"),
        ("nonsense", "shm://"),
        ("host:port", "shm://"),
        ("shm://a b", "letters"),
        ("shm://..", "letters"),
        ("shm://lab/one/two", "letters"),
        ("shm://lab?broken", "options"),
        ("kafka://", "host:port"),
        ("kafka://host", "host:port"),
        ("kafka://host:0", "65535"),
        ("kafka://host:70000/x", "65535"),
        ("kafka://host:1/a b", "letters"),
        ("rtsp://camera/1", "comux publish"),
        ([], "host:port"),
        ([1], "host:port"),
        (5, "host:port"),
        (None, "host:port"),
    ],
    ids=str,
)
def test_what_nobody_understands(text: Any, says: str) -> None:
    with pytest.raises(UnknownAddressError, match=says):
        parse_address(text)


def test_an_unknown_scheme_lists_the_known() -> None:
    with pytest.raises(UnknownAddressError, match=r"kafka://, memory://, shm://"):
        connect("pigeon://loft")


def test_a_new_engine_is_one_call() -> None:
    seen: list[Any] = []

    def opener(address: Address, **options: Any) -> Any:
        seen.append((address.namespace, options))
        return connect("memory://")

    register_engine("loft", opener)
    try:
        with connect("loft://x?a=1&b=2", b=3):
            assert seen == [("x", {"a": "1", "b": 3})]
    finally:
        del _engines["loft"]


def test_the_table_of_capabilities_is_true() -> None:
    rows = [line.split() for line in (Capabilities.__doc__ or "").splitlines() if line.strip()]
    header = next(i for i, row in enumerate(rows) if row[0] == "capability")
    table = {row[0]: row[1:] for row in rows[header + 2 : -1]}
    for column, scheme in enumerate(rows[header][1:]):
        engine = import_module(f"comux.transport.{'local' if scheme == 'shm' else scheme}")
        said = {name: words[column].replace("_", "") for name, words in table.items()}
        assert said == {f.name: str(getattr(engine.CAPABILITIES, f.name)) for f in dataclasses.fields(Capabilities)}
