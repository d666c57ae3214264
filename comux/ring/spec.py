"""What a topic is made of, and what it tells about itself: frozen facts, checked before anything is created."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from comux.dead_letters import MAX_DELIVERIES, MAX_DELIVERIES_LIMIT
from comux.errors import ConfigError

from .directory import check_name

if TYPE_CHECKING:
    import numpy as np

Policy = Literal["wait", "drop_oldest", "drop_newest"]
Writers = Literal["one", "many"]
EndRule = Literal["explicit", "auto"]
Lifetime = Literal["persistent", "session"]
Layout = Literal["ring", "pool"]

POLICIES: Final = ("wait", "drop_oldest", "drop_newest")
KIB: Final = 1024
MIB: Final = 1024 * KIB
DATA_BYTES_MAX: Final = 64 * MIB
RECORD_GUESS: Final = 256 * KIB  #: per slot, where nobody says how many bytes to retain
HEARTBEAT_NS: Final = 100_000_000
SPEC_BYTES: Final = 3072
PINS: Final = 16
PINS_MAX: Final = 64
LOOK_BACK_MAX: Final = 8
_ONE_WRITER, _END_AUTO, _SESSION, _POOL = 1, 2, 4, 8
_FOREVER_NS: Final = 2**62
_IDLE_MAX_S: Final = 2_000_000  #: times of delivery are 31 bits of milliseconds apart at most


@dataclass(frozen=True)
class RingSpec:
    """How a topic is made. Raises ``ConfigError`` for anything that cannot be, before anything is created.

    Attributes:
        name: Letters, digits, ``.``, ``_``, ``-``; at most 100.
        slots: The most records retained, 1 to 2**24.
        data_bytes: Bytes retained for variable records, rounded up to 64 KiB. Default: 256 KiB per slot, at most
            64 MiB, at least 1 MiB. Not for fixed slots.
        dtype: Given: fixed slots, each record one array of this numpy dtype and ``shape``. ``None``: variable records.
        shape: Shape of one record of a topic of fixed slots.
        layout: Of fixed slots. ``"ring"``: records stand one behind the other, so that batches are one array.
            ``"pool"``: any slot for any record, so that a reader's view stays what it is for as long as it is held,
            without making the producer wait, and records from 16 kB up are written where the cache is warm.
        pins: Pool: views held at once, of all readers together, 1 to 64, each at the price of a slot; default 16. Where
            all are taken, a reader gets a copy.
        look_back: Pool: how many records that all groups have finished stay readable; default 8, at most ``slots``.
            Where no group gates, all ``slots`` do.
        policy: A full ring where a gating group is behind: ``"wait"``, ``"drop_oldest"``, ``"drop_newest"``.
        writers: ``"one"`` publishes without the lock and refuses a second living producer; ``"many"``.
        end: ``"auto"``: the last living producer's clean close ends the stream; ``"explicit"``: only ``end()`` does.
        lifetime: ``"session"``: the last process to close the topic removes it; ``"persistent"``: it stays.
        max_record: Largest record in bytes (value, key and headers); default: what fits.
        max_procs, max_ports, max_groups: Processes attached (255 at most), open handles (4096), groups (64).
        group_grace: Seconds after which a group without a living member stops gating, unless it is durable.
        max_deliveries: How often a record is delivered to a group, unless that says otherwise, before it goes to the
            group's dead-letter topic; 0: for ever.
        mode: Permissions of the file.
        metadata: JSON-ready facts kept with the topic; together with the dtype at most about 3 kB.
        first_offset: Where offsets begin.
    """

    name: str
    _: KW_ONLY
    slots: int = 1024
    data_bytes: int | None = None
    dtype: Any = None
    shape: tuple[int, ...] = ()
    layout: Layout = "ring"
    pins: int | None = None
    look_back: int | None = None
    policy: Policy = "wait"
    writers: Writers = "many"
    end: EndRule = "explicit"
    lifetime: Lifetime = "persistent"
    max_record: int | None = None
    max_procs: int = 64
    max_ports: int = 128
    max_groups: int = 8
    group_grace: float = 10.0
    max_deliveries: int = MAX_DELIVERIES
    mode: int = 0o600
    metadata: Mapping[str, Any] = field(default_factory=dict)
    first_offset: int = 0

    def __post_init__(self) -> None:
        check_name(self.name)
        self._check_numbers()
        self._check_choices()
        self._settle_record()
        self._settle_pool()
        if len(self.to_json().encode()) >= SPEC_BYTES:
            raise self._wrong(f"dtype and metadata exceed {SPEC_BYTES - 1} bytes as JSON; shorten the metadata")

    # -- checks ----------------------------------------------------------------------------------------------------

    def _wrong(self, what: str) -> ConfigError:
        return ConfigError(f"topic {self.name!r}: {what}")

    def _check_numbers(self) -> None:
        for label, low, high in (
            ("slots", 1, 2**24),
            ("max_procs", 1, 255),
            ("max_ports", 1, 4096),
            ("max_groups", 1, 64),
            ("first_offset", 0, 2**60),
            ("max_deliveries", 0, MAX_DELIVERIES_LIMIT),
            ("mode", 0, 0o777),
        ):
            value = getattr(self, label)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise self._wrong(f"{label}={value!r}: an integer from {low} to {high}")
        grace = self.group_grace
        if not isinstance(grace, int | float) or math.isnan(grace) or grace < 0:
            raise self._wrong(f"group_grace={grace!r}: seconds, 0 or more")

    def _check_choices(self) -> None:
        for label, allowed in (
            ("policy", POLICIES),
            ("writers", ("one", "many")),
            ("layout", ("ring", "pool")),
            ("end", ("explicit", "auto")),
            ("lifetime", ("persistent", "session")),
        ):
            if getattr(self, label) not in allowed:
                raise self._wrong(f"{label}={getattr(self, label)!r}: one of {', '.join(allowed)}")
        if not isinstance(self.metadata, Mapping):
            raise self._wrong("metadata is not a mapping")
        try:
            json.dumps(dict(self.metadata))
        except (TypeError, ValueError) as error:
            raise self._wrong(f"metadata is not JSON ({error})") from error

    def _settle_record(self) -> None:
        given: Any = self.shape
        shape = (given,) if isinstance(given, int) else tuple(given)
        if not all(isinstance(n, int) and n >= 1 for n in shape):
            raise self._wrong(f"shape={self.shape!r}: positive integers")
        object.__setattr__(self, "shape", shape)
        if self.dtype is None:
            if shape:
                raise self._wrong("a shape needs a dtype")
            self._settle_variable()
        else:
            self._settle_fixed(shape)
        if self.max_record is not None and (not isinstance(self.max_record, int) or self.max_record < 1):
            raise self._wrong(f"max_record={self.max_record!r}: a positive number of bytes")

    def _settle_variable(self) -> None:
        size = self.data_bytes
        if size is None:
            size = max(MIB, min(DATA_BYTES_MAX, self.slots * RECORD_GUESS), self.max_record or 0)
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= 2**40:
            raise self._wrong(f"data_bytes={self.data_bytes!r}: an integer from 1 to 2**40")
        size = -(-size // (64 * KIB)) * 64 * KIB
        object.__setattr__(self, "data_bytes", size)
        if self.max_record is not None and self.max_record > size:
            raise self._wrong(f"max_record={self.max_record} exceeds data_bytes={size}")

    def _settle_fixed(self, shape: tuple[int, ...]) -> None:
        import numpy as np

        if self.data_bytes is not None:
            raise self._wrong("data_bytes is for variable records; fixed slots take slots times the record's size")
        try:
            dtype = np.dtype(self.dtype)
        except TypeError as error:
            raise self._wrong(f"dtype={self.dtype!r}: {error}") from error
        if dtype.subdtype is not None:
            dtype, inner = dtype.subdtype
            shape = (*shape, *inner)
        if dtype.hasobject or dtype.itemsize == 0:
            raise self._wrong(f"dtype {dtype} holds Python objects or no bytes; use a plain or structured dtype")
        object.__setattr__(self, "dtype", dtype)
        object.__setattr__(self, "shape", shape)
        size = self.record_bytes
        if size * self.slots > 2**40 or size >= 2**32 - 64:
            raise self._wrong(f"{self.slots} slots of {size} bytes exceed the limits (4 GiB a record, 1 TiB in all)")

    def _settle_pool(self) -> None:
        if self.layout == "ring":
            if self.pins is not None or self.look_back is not None:
                raise self._wrong("pins and look_back belong to layout='pool'")
            return
        if self.dtype is None:
            raise self._wrong("layout='pool' is for fixed slots; give a dtype and a shape")
        for label, default, low, high in (
            ("pins", PINS, 1, PINS_MAX),
            ("look_back", min(LOOK_BACK_MAX, self.slots), 0, self.slots),
        ):
            value = getattr(self, label)
            if value is None:
                object.__setattr__(self, label, default)
            elif not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise self._wrong(f"{label}={value!r}: an integer from {low} to {high}")

    # -- derived ---------------------------------------------------------------------------------------------------

    @property
    def record_bytes(self) -> int:
        """Bytes of one record of fixed slots; 0 for variable records."""
        return 0 if self.dtype is None else math.prod(self.shape) * int(self.dtype.itemsize)

    @property
    def required_bytes(self) -> int:
        """Size of the segment in bytes; loads the C module."""
        from .native import core

        return core.required_bytes(path="", **self.to_core())

    def to_json(self) -> str:
        """What the C core keeps without understanding it."""
        described: dict[str, Any] = {"metadata": dict(self.metadata), "mode": self.mode}
        if self.max_deliveries != MAX_DELIVERIES:
            described["max_deliveries"] = self.max_deliveries
        if self.dtype is not None:
            import numpy as np

            described["dtype"] = np.lib.format.dtype_to_descr(self.dtype)
            described["shape"] = list(self.shape)
        return json.dumps(described, separators=(",", ":"))

    def to_core(self) -> dict[str, Any]:
        """Arguments of the C module's ``create`` but the path."""
        options = (self.writers == "one") * _ONE_WRITER | (self.end == "auto") * _END_AUTO
        grace = self.group_grace * 1e9
        return {
            "name": self.name,
            "spec": self.to_json(),
            "kind": 0 if self.dtype is None else 1,
            "policy": POLICIES.index(self.policy),
            "options": options | (self.lifetime == "session") * _SESSION | (self.layout == "pool") * _POOL,
            "slots": self.slots,
            "data_bytes": self.data_bytes or 0,
            "item_bytes": self.record_bytes,
            "max_record": self.max_record or 0,
            "max_procs": self.max_procs,
            "max_ports": self.max_ports,
            "max_groups": self.max_groups,
            "first_offset": self.first_offset,
            "group_grace_ns": int(grace) if grace < _FOREVER_NS else _FOREVER_NS,
            "heartbeat_ns": HEARTBEAT_NS,
            "mode": self.mode,
            "pins": self.pins or 0,
            "look_back": self.look_back or 0,
        }


def spec_from(name: str, config: Mapping[str, Any]) -> RingSpec:
    """The spec of an existing topic, from its superblock.

    Raises:
        ConfigError: the stored description makes no sense.
    """
    described = json.loads(config["spec"])
    fixed = config["kind"] == 1
    pool = bool(config["options"] & _POOL)
    largest = config["max_record"]
    return RingSpec(
        name,
        slots=config["slots"],
        data_bytes=None if fixed else config["data_bytes"],
        dtype=_dtype_from(described["dtype"]) if fixed else None,
        shape=tuple(described["shape"]) if fixed else (),
        layout="pool" if pool else "ring",
        pins=config["pins"] if pool else None,
        look_back=config["look_back"] if pool else None,
        policy=POLICIES[config["policy"]],
        writers="one" if config["options"] & _ONE_WRITER else "many",
        end="auto" if config["options"] & _END_AUTO else "explicit",
        lifetime="session" if config["options"] & _SESSION else "persistent",
        max_record=None if largest >= min(config["data_bytes"], 2**32 - 64) else largest,
        max_procs=config["max_procs"],
        max_ports=config["max_ports"],
        max_groups=config["max_groups"],
        group_grace=math.inf if config["group_grace_ns"] >= _FOREVER_NS else config["group_grace_ns"] / 1e9,
        max_deliveries=described.get("max_deliveries", MAX_DELIVERIES),
        mode=described.get("mode", 0o600),
        metadata=described.get("metadata", {}),
        first_offset=config["first_offset"],
    )


def _dtype_from(descr: Any) -> np.dtype[Any]:
    import numpy as np

    def restore(part: Any) -> Any:
        if isinstance(part, str):
            return part
        fields = []
        for name, kind, *shape in part:
            titled = tuple(name) if isinstance(name, list) else name
            fields.append((titled, restore(kind), *(tuple(s) for s in shape)))
        return fields

    return np.lib.format.descr_to_dtype(restore(descr))


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """A consumer group as it stands.

    Attributes:
        next: First offset no member ever took. done, committed: everything below is finished.
        lag: Records published and not finished. lost: overwritten before the group had finished them.
        suspended: It has had no member for ``group_grace`` and no longer holds producers back.
        paused: Its members are handed nothing until it is resumed.
        dead_letters: Records that went to its dead-letter topic. max_deliveries: after so many deliveries; 0: never.
    """

    name: str
    start: int
    next: int
    done: int
    committed: int
    members: int
    lag: int
    suspended: bool
    durable: bool
    delivered: int
    acked: int
    redelivered: int
    lost: int
    dead_letters: int
    max_deliveries: int
    paused: bool


@dataclass(frozen=True, slots=True)
class PortInfo:
    """An open handle of any process. ``kind``: producer, member or reader. ``alive``: its process is.

    Attributes:
        state: Of its process, the letter of ``/proc`` (``T``: stopped); empty where that cannot be seen from here.
        held: Members: records handed out and not acknowledged. oldest_held: offset of the one held longest.
        held_s: For how many seconds it has been.
    """

    kind: str
    name: str
    group: str
    pid: int
    command: str
    id: int
    records: int
    bytes: int
    last_offset: int
    lost: int
    blocked_s: float
    waiting: int
    alive: bool
    state: str
    held: int
    oldest_held: int
    held_s: float


@dataclass(frozen=True, slots=True)
class ClaimedRecord:
    """A record that was taken from a member that held it too long. ``held_s``: seconds it had been handed out."""

    offset: int
    pid: int
    command: str
    name: str
    held_s: float


def idle_ms(min_idle: float) -> int:
    """Seconds as the core takes them.

    Raises:
        ConfigError: below 0, or more than 24 days.
    """
    if not 0 <= min_idle <= _IDLE_MAX_S:
        raise ConfigError(f"min_idle={min_idle!r}: seconds, from 0 to {_IDLE_MAX_S}")
    return math.ceil(min_idle * 1000)


@dataclass(frozen=True, slots=True)
class OpenClaim:
    """A claim that is neither committed nor aborted; it holds later records back. ``age_s``: ``None`` in a put."""

    offset: int
    pid: int
    name: str
    command: str
    alive: bool
    age_s: float | None


@dataclass(frozen=True, slots=True)
class RingStats:
    """Counters of a topic's whole life and its state now. Read without the lock: of nearly one instant.

    Attributes:
        used, bytes_used: Records and payload bytes retained. published: high-water mark, an offset.
        committed, bytes: Records and value bytes ever published. reaped: handles of dead processes cleaned up.
        dropped_newest: Records refused by ``drop_newest``, and by ``drop_oldest`` while the topic was paused.
        dropped_oldest: Records taken from at least one group to make room. suspensions: groups that were suspended.
        takeovers: How often the lock was taken from a dead owner. blocked_s: seconds producers stood waiting.
    """

    slots: int
    used: int
    bytes_used: int
    data_bytes: int
    published: int
    log_start: int
    committed: int
    bytes: int
    aborted: int
    reaped: int
    dropped_oldest: int
    dropped_newest: int
    suspensions: int
    takeovers: int
    blocked_s: float
    open_claims: tuple[OpenClaim, ...]
    ports: tuple[PortInfo, ...]


@dataclass(frozen=True, slots=True)
class ProducerStats:
    """offered = published + dropped_newest + aborted + open_claims."""

    offered: int
    published: int
    dropped_newest: int
    aborted: int
    open_claims: int
    blocked_s: float
