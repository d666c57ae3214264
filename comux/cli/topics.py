"""``comux topics``: what an engine holds, what goes over a topic, making and removing it."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from comux.cli.groups import group_rows, group_table
from comux.cli.tables import check_format, console, plain_table, print_json
from comux.control import nearest
from comux.errors import ClosedError, ComuxError, ConfigError, EndOfStream, HeaderError
from comux.headers import decode_headers
from comux.lifecycle import until_stopped
from comux.records import Record
from comux.redaction import shown
from comux.transport import Broker, TopicInfo, TopicSpec, connect

_PREVIEW = 120  # characters of a value


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
    return {**_row_of(info), "kind": _kind(info)}


def _kind(info: TopicInfo) -> str:
    spec = info.spec
    what = "records" if spec.dtype is None else f"{spec.dtype} {tuple(spec.shape)}"
    codec = spec.metadata.get("codec")
    return ", ".join(
        filter(None, (str(codec) if codec else what, "ended" if info.ended else "", "paused" if info.paused else ""))
    )


def show_topic(address: str, name: str, format: str) -> None:
    """Print all there is to know of a topic: how it was made, what it holds, who reads it."""
    as_data = check_format(format)
    with connect(address) as broker:
        info = broker.topic(name)
        newest = broker.record_at(name, info.high_water - 1) if info.high_water > info.log_start else None
        groups = group_rows(broker, [name])
    facts = {**_row_of(info), **_spec_of(info.spec), "newest": None if newest is None else newest.timestamp_ns / 1e9}
    if as_data:
        print_json({"topic": name, **facts, "groups": groups})
        return
    table = plain_table("", "")
    for key, value in facts.items():
        table.add_row(key, _words(key, value))
    out = console()
    out.print(name, style="bold", highlight=False)
    out.print(table)
    out.print(group_table(groups) if groups else "no groups read it")


def _row_of(info: TopicInfo) -> dict[str, Any]:
    return {
        "records": info.high_water - info.log_start,
        "first": info.log_start,
        "next": info.high_water,
        "epoch": info.epoch,
        "ended": info.ended,
        "paused": info.paused,
    }


def _spec_of(spec: TopicSpec) -> dict[str, Any]:
    return {
        "retained": spec.records,
        "data_bytes": spec.data_bytes,
        "dtype": None if spec.dtype is None else str(spec.dtype),
        "shape": list(spec.shape),
        "policy": spec.policy,
        "writers": spec.writers,
        "end": spec.end,
        "group_grace": spec.group_grace,
        "max_deliveries": spec.max_deliveries,
        "metadata": dict(spec.metadata),
    }


def _words(key: str, value: Any) -> str:
    if key == "newest" and value is not None:
        return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(value))}, {time.time() - value:.1f} s ago"
    return str(value) if not isinstance(value, (dict, list)) else json.dumps(value)


def create_topic(address: str, spec: TopicSpec) -> None:
    """Make a topic.

    Raises:
        ComuxError: it exists, something about it is wrong, or there is no room.
    """
    with connect(address) as broker:
        info = broker.create_topic(spec)
    print(f"{spec.name} created: {info.spec.records} records are kept")


def delete_topics(address: str, names: list[str]) -> None:
    """Remove topics, one by one.

    Raises:
        ComuxError: one does not exist or is in use; those before it are removed.
    """
    with connect(address) as broker:
        for name in names:
            broker.delete_topic(name)
            print(f"{name} deleted")


# -- what goes over it ---------------------------------------------------------------------------------------------


def parse_start(text: str) -> Any:
    """Where reading begins: a word, an offset (``7``), or a Unix time (``1790000000.0``).

    Raises:
        ConfigError: none of these.
    """
    if text in ("beginning", "end", "keyframe"):
        return text
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise ConfigError(f"{text!r} is no place in a topic: give beginning, end, keyframe, an offset, or a Unix time")


def tail_topics(address: str, names: Sequence[str], *, start: str, count: int | None, format: str) -> None:
    """Print records as they come, a line each, until Ctrl-C, the end of the streams, or ``count`` of them."""
    as_data, place = check_format(format), parse_start(start)
    with (
        connect(address) as broker,
        broker.consumer(list(names), start=place) as consumer,
        until_stopped(on_stop=consumer.close),
        suppress(ClosedError, EndOfStream),
    ):
        left = float("inf") if count is None else count
        while left > 0:
            for record in consumer.poll(timeout=None, max_records=int(min(64, left))):
                print(_json(record_as_json(record)) if as_data else record_line(record), flush=True)
                left -= 1


def _json(value: Any) -> str:
    return json.dumps(value, default=nearest, ensure_ascii=False)


def record_as_json(record: Record) -> dict[str, Any]:
    """A record without its value, which may be anything and large: its size, and of text and JSON what it says."""
    return {
        "topic": record.topic,
        "offset": record.offset,
        "timestamp": record.timestamp_ns / 1e9,
        "key": None if record.key is None else record.key.decode("utf-8", "backslashreplace"),
        "bytes": _nbytes(record),
        "epoch": record.epoch,
        "keyframe": record.keyframe,
        "skipped": record.skipped,
        "headers": headers_of(record),
        "value": _preview(record),
    }


def record_line(record: Record) -> str:
    """A record in one line."""
    clock = time.strftime("%H:%M:%S", time.localtime(record.timestamp_ns // 10**9))
    millis = record.timestamp_ns // 10**6 % 1000
    parts = [f"{record.topic} {record.offset:>8}  {clock}.{millis:03d} {_nbytes(record):>8} B"]
    if record.skipped:
        parts.append(f"(after {record.skipped} that were missed)")
    if record.keyframe:
        parts.append("key")
    if record.key is not None:
        parts.append(f"key={record.key.decode('utf-8', 'backslashreplace')!r}")
    headers = {name: value for name, value in headers_of(record).items() if not name.startswith("comux-")}
    parts += [f"{name}={_cut(value if isinstance(value, str) else _json(value))}" for name, value in headers.items()]
    preview = _preview(record)
    if preview is not None:
        parts.append(preview)
    return "  ".join(parts)


def _nbytes(record: Record) -> int:
    return 0 if record.value is None else memoryview(record.value).nbytes


def _preview(record: Record) -> str | None:
    """The beginning of what is text; ``None`` for pictures, arrays, packets."""
    if not isinstance(record.value, bytes) or not record.value:
        return None
    try:
        text = record.value[: 4 * _PREVIEW].decode()
    except UnicodeDecodeError:
        return None
    if not text.replace("\n", " ").replace("\t", " ").isprintable():
        return None
    return _cut(" ".join(text.split()))


def _cut(text: str) -> str:
    return text if len(text) <= _PREVIEW else text[: _PREVIEW - 1] + "…"


def headers_of(record: Record) -> dict[str, Any]:
    """Results as they were given to ``send``; other headers as text."""
    out: dict[str, Any] = {
        name: None if value is None else bytes(value).decode("utf-8", "backslashreplace")
        for name, value in record.headers
    }
    with suppress(HeaderError):  # they are somebody else's
        out.update(decode_headers(record))
    return out


def measure_topics(
    address: str,
    names: Sequence[str],
    *,
    what: Literal["hz", "bw"],
    seconds: float | None,
    every: float,
    format: str,
) -> None:
    """Print how many records (``hz``) or bytes (``bw``) a second come on topics, until Ctrl-C or for ``seconds``."""
    as_data = check_format(format)
    with (
        connect(address) as broker,
        broker.consumer(list(names), start="end", on_end="wait") as consumer,
        until_stopped(on_stop=consumer.close),
        suppress(ClosedError),
    ):
        deadline = float("inf") if seconds is None else time.monotonic() + seconds
        while time.monotonic() < deadline:
            rows = _window(consumer, list(names), every)
            if as_data:
                print(json.dumps(rows), flush=True)
            else:
                console().print(_hz_table(rows) if what == "hz" else _bw_table(rows))


def _window(consumer: Any, names: list[str], every: float) -> dict[str, dict[str, Any]]:
    """One stretch of time: per topic records, bytes, records missed, and the intervals by the producer's stamps."""
    stamps: dict[str, list[int]] = {name: [] for name in names}
    nbytes, missed = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    began = time.monotonic()
    while (left := began + every - time.monotonic()) > 0:
        for record in consumer.poll(timeout=left, max_records=256):
            stamps[record.topic].append(record.timestamp_ns)
            nbytes[record.topic] += _nbytes(record)
            missed[record.topic] += record.skipped
    seconds = time.monotonic() - began
    return {name: _figures(stamps[name], nbytes[name], missed[name], seconds) for name in names}


def _figures(stamps: list[int], nbytes: int, missed: int, seconds: float) -> dict[str, Any]:
    gaps = sorted((b - a) / 1e9 for a, b in itertools.pairwise(sorted(stamps)))  # B-frames
    count = len(stamps)
    return {
        "records": count,
        "missed": missed,
        "bytes": nbytes,
        "seconds": round(seconds, 6),
        "records_per_second": round((count + missed) / seconds, 3),
        "bytes_per_second": round(nbytes / seconds, 1),
        "interval_min": gaps[0] if gaps else None,
        "interval_median": gaps[len(gaps) // 2] if gaps else None,
        "interval_max": gaps[-1] if gaps else None,
    }


def _hz_table(rows: dict[str, dict[str, Any]]) -> Any:
    numbers = ("records/s", "min ms", "median ms", "max ms", "missed")
    table = plain_table("topic", *numbers, right=numbers)
    for name, row in rows.items():
        gaps = [row[f"interval_{which}"] for which in ("min", "median", "max")]
        shown_gaps = ["-" if gap is None else f"{gap * 1e3:.1f}" for gap in gaps]
        table.add_row(name, f"{row['records_per_second']:.1f}", *shown_gaps, str(row["missed"]))
    return table


def _bw_table(rows: dict[str, dict[str, Any]]) -> Any:
    numbers = ("MB/s", "records/s", "bytes a record", "missed")
    table = plain_table("topic", *numbers, right=numbers)
    for name, row in rows.items():
        mean = row["bytes"] / row["records"] if row["records"] else 0.0
        rate = f"{row['bytes_per_second'] / 1e6:.3f}"
        table.add_row(name, rate, f"{row['records_per_second']:.1f}", f"{mean:.0f}", str(row["missed"]))
    return table


def parse_shape(text: str) -> tuple[int, ...]:
    """``480x640x3`` as numbers.

    Raises:
        ConfigError: it is none.
    """
    try:
        shape = tuple(int(part) for part in text.split("x")) if text else ()
    except ValueError:
        raise ConfigError(f"shape {text!r}: write numbers with an x between them, as in 480x640x3") from None
    return shape


def read_metadata(text: str | None) -> dict[str, Any]:
    """A JSON object, or the file that holds one after ``@``.

    Raises:
        ConfigError: it is none.
    """
    if text is None:
        return {}
    try:
        value = json.loads(Path(text[1:]).read_text() if text.startswith("@") else text)
    except ValueError as exc:
        raise ConfigError(f"metadata is no JSON: {exc}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"metadata is a JSON {type(value).__name__}, not an object")
    return value
