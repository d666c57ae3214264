"""What one packet, picture, megabyte, camera and topic cost: the constants of the arithmetic.

Seconds are CPU seconds of one core unless said otherwise; megabytes and megapixels are 10^6. ``MEASURED`` is what
``benchmarks/scaling/measure.py`` found on the machine it names, and what the plan stands on where nothing else is
given: ``measured.json``, the costs of ``benchmarks/results/scaling-2-cores.json``, which has the whole measurement with
its spread. ``load`` reads such files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from comux.errors import ConfigError


@dataclass(frozen=True, slots=True)
class CodecCosts:
    """Decoding one packet costs ``packet_s`` + megapixels x ``megapixel_s`` + megabytes x ``megabyte_s``.

    Attributes:
        packet_s: Whatever it holds.
        megapixel_s: Per megapixel of the picture.
        megabyte_s: Per megabyte of the packet.
    """

    packet_s: float
    megapixel_s: float
    megabyte_s: float


@dataclass(frozen=True, slots=True)
class EngineCosts:
    """What the loop's process pays for reading from, and sending to, one engine.

    Attributes:
        packet_s: A packet, from the topic to the decoder and into the store.
        megabyte_s: A megabyte of packets.
        item_s: A picture handed over in a batch.
        batch_s: A batch, however many pictures are in it.
        send_s: A result sent.
        process_bytes: Memory of a process, its cameras left out.
        source_bytes: Memory of a camera, its pictures left out.
        open_s: Wall seconds until a camera that is opened shows pictures, per camera of a process.
    """

    packet_s: float
    megabyte_s: float
    item_s: float
    batch_s: float
    send_s: float
    process_bytes: float
    source_bytes: float
    open_s: float


@dataclass(frozen=True, slots=True)
class BrokerCosts:
    """What one broker pays.

    Attributes:
        idle: Cores of a broker whose clients do nothing.
        append_s: A record taken in; records of cameras are batches of one, as they come.
        append_megabyte_s: A megabyte taken in.
        read_s: A record read by one reader.
        read_megabyte_s: A megabyte read by one reader.
        copy_s: A record for each further copy, of all brokers together.
        copy_megabyte_s: A megabyte likewise.
        partition_bytes: Memory of a partition.
        create_s: Wall seconds until a new topic can be used.
    """

    idle: float
    append_s: float
    append_megabyte_s: float
    read_s: float
    read_megabyte_s: float
    copy_s: float
    copy_megabyte_s: float
    partition_bytes: float
    create_s: float


@dataclass(frozen=True, slots=True)
class GroupCosts:
    """What sharing topics out among processes takes.

    Attributes:
        join_s: Wall seconds from a process' joining until it has its topics, ...
        join_topic_s: ... and per topic of the group.
        dead_s: Wall seconds from a process' death until others have its topics, ...
        dead_topic_s: ... and per topic of the group.
        member: Cores of a member.
        metadata_topic_s: A topic of the cluster, each time a member looks what topics there are.
    """

    join_s: float
    join_topic_s: float
    dead_s: float
    dead_topic_s: float
    member: float
    metadata_topic_s: float


@dataclass(frozen=True, slots=True)
class Costs:
    """All constants.

    Attributes:
        source: Where they were measured, in words.
        decode: By codec.
        convert_megapixel_s: A megapixel of a delivered array.
        picture_bytes: Memory of a camera's pictures and arrays per pixel, by mode, with a loop that keeps up.
        record_bytes: Of a record on the wire and on disk, its value left out: headers, and a batch of its own.
        shm, kafka: By engine.
        broker, group: Of a cluster.
    """

    source: str
    decode: Mapping[str, CodecCosts]
    convert_megapixel_s: float
    picture_bytes: Mapping[str, float]
    record_bytes: float
    shm: EngineCosts
    kafka: EngineCosts
    broker: BrokerCosts
    group: GroupCosts

    def engine(self, name: str) -> EngineCosts:
        """Those of ``shm`` or ``kafka``."""
        return self.kafka if name == "kafka" else self.shm

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def load(path: str | Path) -> Costs:
    """Read the costs of a file that ``comux plan --measure`` or ``benchmarks/scaling/measure.py`` wrote.

    What was not measured there (a cluster) is taken from ``MEASURED``, and ``source`` says so.

    Raises:
        ConfigError: no such file, no such measurement; names the key.
    """
    try:
        found = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"measured figures {str(path)!r} cannot be read: {error}") from None
    costs = found.get("costs") if isinstance(found, dict) else None
    if not isinstance(costs, dict):
        raise ConfigError(f"{str(path)!r} holds no measured costs; make such a file by: comux plan --measure -o FILE")
    return from_dict(costs, str(path))


def from_dict(costs: Mapping[str, Any], where: str) -> Costs:
    """The costs a mapping of their names stands for; see ``load``."""
    names = [field.name for field in fields(Costs)]
    if unknown := sorted(costs.keys() - set(names)):
        raise ConfigError(f"{where}: costs.{unknown[0]} is unknown; there are {', '.join(names)}")
    borrowed = [name for name in names if name not in costs]
    source = str(costs.get("source", where))
    if borrowed:
        source += f"; {', '.join(borrowed)}: {MEASURED.source}"
    own: dict[str, Any] = {name: getattr(MEASURED, name) for name in borrowed}
    for name in names:
        if name in costs and name != "source":
            own[name] = _read(name, costs[name], where)
    return Costs(**{**own, "source": source})


def _read(name: str, value: Any, where: str) -> Any:
    if name == "decode":
        return {codec: _group(CodecCosts, f"decode.{codec}", each, where) for codec, each in _table(name, value, where)}
    if name == "picture_bytes":
        return {mode: _number(f"picture_bytes.{mode}", each, where) for mode, each in _table(name, value, where)}
    kinds: dict[str, type[Any]] = {"shm": EngineCosts, "kafka": EngineCosts, "broker": BrokerCosts, "group": GroupCosts}
    return _group(kinds[name], name, value, where) if name in kinds else _number(name, value, where)


def _table(name: str, value: Any, where: str) -> list[tuple[str, Any]]:
    if not isinstance(value, dict) or not value:
        raise ConfigError(f"{where}: costs.{name} is {value!r}, not a table of figures")
    return list(value.items())


def _group(kind: type[Any], name: str, value: Any, where: str) -> Any:
    names = [field.name for field in fields(kind)]
    given = dict(_table(name, value, where))
    if set(given) != set(names):
        wrong = sorted(set(given) ^ set(names))[0]
        raise ConfigError(f"{where}: costs.{name}.{wrong} is {'unknown' if wrong in given else 'missing'}")
    return kind(**{key: _number(f"{name}.{key}", given[key], where) for key in names})


def _number(name: str, value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ConfigError(f"{where}: costs.{name} is {value!r}, not a number of at least 0")
    return float(value)


MEASURED: Final = load(Path(__file__).with_name("measured.json"))
