"""Dead letters: where a record goes that was delivered again and again and never acknowledged.

Lives here: the dead-letter topic's name and what such a record says about itself, the same for every engine that has
them. May import: ``records``. Must never know: engines.

A dead letter is the record as it was (value, key, timestamp, flags, its own headers first) with four headers more:
``comux-dead-source`` (JSON ``[topic, epoch, offset]``), ``comux-dead-group``, ``comux-dead-deliveries`` (decimal) and
``comux-dead-reason``. The same record can be there twice, after a death in the middle of it; by its source one sees it.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, Final

from comux.records import (
    HEADER_DEAD_DELIVERIES,
    HEADER_DEAD_GROUP,
    HEADER_DEAD_REASON,
    HEADER_DEAD_SOURCE,
    HEADER_DTYPE,
    HEADER_SHAPE,
    Headers,
)

if TYPE_CHECKING:
    import numpy as np

MAX_DELIVERIES: Final = 5  #: of a group nobody said otherwise for
MAX_DELIVERIES_LIMIT: Final = 4000  #: deliveries are counted to 4095
LETTERS_KEPT: Final = 256  #: records that a dead-letter topic made by the way keeps, at most
CAUSE: Final = "dead_letter"  #: in accounts
_NAME_MAX: Final = 100
_UNFIT: Final = re.compile(r"[^A-Za-z0-9._-]")


def dead_letter_topic(topic: str, group: str) -> str:
    """Name of the topic in which the dead letters of a group are: ``<topic>.dead.<group>``.

    Letters of the group's name that a topic's cannot have become ``_``. Where that, or the length, would make two
    groups share a name, eight hex digits of a digest of both names are appended to it.
    """
    fit = _UNFIT.sub("_", group)
    name = f"{topic}.dead.{fit}"
    if fit == group and len(name) <= _NAME_MAX:
        return name
    digest = hashlib.sha256(f"{topic}\0{group}".encode()).hexdigest()[:8]
    return f"{name[: _NAME_MAX - 9]}-{digest}"


def described(dtype: np.dtype[Any] | None, shape: tuple[int, ...]) -> Headers:
    """Headers by which bytes of a typed topic become an array again in the dead-letter topic, which is not typed."""
    if dtype is None:
        return ()
    import numpy as np

    text = dtype.str if dtype.names is None else json.dumps(np.lib.format.dtype_to_descr(dtype))
    return ((HEADER_DTYPE, text.encode()), (HEADER_SHAPE, json.dumps(list(shape)).encode()))


def dead_headers(topic: str, epoch: int, offset: int, group: str, deliveries: int) -> Headers:
    """The headers that tell of a dead letter where it was and why it is one."""
    source = json.dumps([topic, epoch, offset], separators=(",", ":"))
    reason = f"delivered {deliveries} times and never acknowledged"
    return (
        (HEADER_DEAD_SOURCE, source.encode()),
        (HEADER_DEAD_GROUP, group.encode()),
        (HEADER_DEAD_DELIVERIES, str(deliveries).encode()),
        (HEADER_DEAD_REASON, reason.encode()),
    )
