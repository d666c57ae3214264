"""What a manager knows about sources before they start, and what follows from it for each of them.

**Whose options are whose.** Options of the engine's client belong to an address. What is given for all sources holds
where the manager's packets are, and for results and commands that go there too. A source that names another cluster
gets them without the secrets (no command may have a password sent to a place of its choice), one that is on another
engine gets none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from comux.control import Change
from comux.errors import ConfigError
from comux.options import SourceOptions, topic_name
from comux.redaction import is_secret
from comux.transport import parse_address

_FILLED_IN: Final = ("consume_topic", "produce_topic", "address", "produce_address", "share_frames")


@dataclass
class Settings:
    """What a manager knows about sources before they start.

    Attributes:
        address: Engine of the packets.
        produce_address: Engine of the results; ``None``: where the packets are.
        consume_schema, produce_schema: Topics of a source.
        share_schema: Topic of a source's decoded frames; ``None``: not shared.
        defaults: Keys of ``SourceOptions`` for every source that does not set them itself.
        store_bytes_total: Bytes of decoded pictures waiting to be taken at most, of all sources together; ``None``:
            only each source's own ``store_bytes`` holds.
        strict: Whether a missing topic or engine is an error at the start.
        check_produce: Whether the produce topics are made at the start.
        produce_options: Passed to the engine of the results.
        stated: What the program's list or registry states of each source now, whatever commands made of it.
        reserved: What topics of durable control begin with, which are no source's; empty: there are none.
        restored: Ids of sources that commands of an earlier life changed: what is missing for one of them at the start
            is its own trouble.
        decode_processes: How many processes decode; 0: the sources' threads do; ``"auto"``: these, until the
            interpreter is seen to hold one up.
    """

    address: str = "shm://"
    produce_address: str | None = None
    consume_schema: str = "raw_:cam_id"
    produce_schema: str = "stream_:cam_id"
    share_schema: str | None = None
    defaults: dict[str, Any] = field(default_factory=dict)
    store_bytes_total: int | None = 1 << 30
    strict: bool = True
    check_produce: bool = False
    produce_options: dict[str, Any] = field(default_factory=dict)
    stated: dict[str, SourceOptions] = field(default_factory=dict)
    reserved: str = ""
    restored: set[str] = field(default_factory=set)
    decode_processes: int | Literal["auto"] = 0

    def resolve(self, spec: SourceOptions) -> SourceOptions:
        """A source's complete settings: its own, the defaults, topics and addresses filled in.

        Raises:
            ConfigError: they do not fit together.
        """
        given = {name: getattr(spec, name) for name in spec.model_fields_set}
        filled = [name for name in _FILLED_IN if given.get(name) is None]
        values = {**self.defaults, **{name: value for name, value in given.items() if name not in filled}}
        address = values.setdefault("address", self.address)
        named = parse_address(address).topic
        if "client_options" not in given and values.get("client_options"):
            values["client_options"] = self._fit_for(address, values["client_options"])
        cam_id = values["cam_id"]
        values.setdefault("consume_topic", named or topic_name(self.consume_schema, cam_id))
        values.setdefault("produce_topic", topic_name(self.produce_schema, cam_id))
        values.setdefault("produce_address", self.produce_address or address)
        if self.share_schema is not None:
            values.setdefault("share_frames", topic_name(self.share_schema, cam_id))
        options = SourceOptions(**values)
        for name in (options.consume_topic, options.produce_topic, options.share_frames):
            if self.reserved and (name or "").startswith(self.reserved):
                raise ConfigError(f"source {cam_id!r}: topic {name!r} is a topic of the control plane; name another")
        if options.codec == "frames" and options.share_frames is not None:
            raise ConfigError(f"source {cam_id!r}: it reads shared frames; sharing them again is not needed")
        return options

    def restate(self, change: Change) -> None:
        """The registry states something anew."""
        key, value = str(change.cam_id), change.value
        if isinstance(value, SourceOptions):
            self.stated[key] = value
        elif value is None:
            self.stated.pop(key, None)
        elif key in self.stated:
            spec = self.stated[key]
            self.stated[key] = SourceOptions(
                **{name: getattr(spec, name) for name in spec.model_fields_set} | dict(value)
            )

    def options_of_packets(self, address: str, specs: Iterable[SourceOptions]) -> Mapping[str, Any]:
        """Client options with which packets are read from ``address``; none where nobody reads there.

        Args:
            address: Of an engine.
            specs: The sources.
        """
        for spec in specs:
            if spec.model_fields_set & {"address", "client_options"}:
                options = self.resolve(spec)
                if options.address == address:
                    return options.client_options
        return (self.defaults.get("client_options") or {}) if address == self.address else {}

    def options_of_results(self, address: str, specs: Iterable[SourceOptions]) -> dict[str, Any]:
        """Those given for results; where packets come from there too, beside theirs."""
        return {**self.options_of_packets(address, specs), **self.produce_options}

    def _fit_for(self, address: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """What of the client options for all sources holds at one's address: see the module."""
        here, there = parse_address(self.address), parse_address(address)
        if here.scheme != there.scheme:
            return {}
        if here.namespace == there.namespace:
            return options
        return {name: value for name, value in options.items() if not is_secret(name)}
