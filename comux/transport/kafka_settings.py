"""What of a ``TopicSpec`` is kept with a topic on a Kafka cluster, as JSON, and back (``kafka_cluster`` says where)."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from .interface import TopicSpec, dtype_of

_log = logging.getLogger("comux.transport")
_KEPT = ("records", "data_bytes", "layout", "writers", "group_grace")


def settings_of(spec: TopicSpec) -> dict[str, Any]:
    """What of a spec differs from the defaults, JSON-ready."""
    plain = TopicSpec(spec.name)
    out: dict[str, Any] = {}
    dtype = dtype_of(spec)
    if dtype is not None:
        out["dtype"] = dtype.str if dtype.names is None else dtype.descr
        out["shape"] = list(spec.shape)
    for field_name in _KEPT:
        if getattr(spec, field_name) != getattr(plain, field_name):
            out[field_name] = getattr(spec, field_name)
    if spec.metadata:
        out["metadata"] = dict(spec.metadata)
    return out


def spec_from(name: str, entry: Mapping[str, Any]) -> TopicSpec:
    """The spec of a kept entry; a field that is not as ``settings_of`` writes it counts for nothing."""
    dtype: Any = entry.get("dtype")
    if isinstance(dtype, list):
        dtype = [tuple(tuple(part) if isinstance(part, list) else part for part in item) for item in dtype]
    fields = {key: entry[key] for key in _KEPT if key in entry}
    metadata = entry.get("metadata")
    try:
        return TopicSpec(
            name,
            dtype=None if dtype is None else np.dtype(dtype),
            shape=tuple(entry.get("shape", ())),
            metadata=metadata if isinstance(metadata, dict) else {},
            **fields,
        )
    except (TypeError, ValueError) as error:
        _log.warning("the kept settings of topic %r cannot be read and count for nothing: %s", name, error)
        return TopicSpec(name)


def parse_settings(value: bytes | None) -> dict[str, Any] | None:
    """The entry in a record of the topic of settings; ``None`` where it holds none."""
    if value is None:
        return None
    try:
        entry = json.loads(value)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
