"""Dead letters of a ring: a record that its group could not finish is copied to the group's dead-letter topic.

The order is what makes it safe: copy, then acknowledge. A death in between leaves the record to be taken, and copied,
by the next member. The dead-letter topic is an ordinary topic beside the other one; it is made with the first letter.
Where somebody made it before, with the size or policy of his choice, it is used as it is.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from comux.dead_letters import LETTERS_KEPT, dead_headers, dead_letter_topic, described
from comux.errors import TopicExistsError, UnknownTopicError

from .spec import KIB, MIB, RingSpec

if TYPE_CHECKING:
    from .handles import Lease
    from .log import Ring

ROOM_S: Final = 1.0  #: how long a letter waits for room where a group that reads the letters is behind
_ROOM_FOR_HEADERS: Final = 64 * KIB
_log = logging.getLogger("comux.ring")


def bury(ring: Ring, group: str, lease: Lease) -> None:
    """Copy the record of ``lease`` to the dead-letter topic of ``group`` and acknowledge it as a dead letter.

    Raises:
        NoSpaceError, WaitTimeoutError, RecordTooLargeError, TopicError: it could not be copied; the record was given
            back and the next take tries again.
    """
    name = dead_letter_topic(ring.name, group)
    deliveries = lease.delivery_count
    try:
        headers = (
            *lease.headers,
            *described(ring.spec.dtype, ring.spec.shape),
            *dead_headers(ring.name, lease.epoch, lease.offset, group, deliveries),
        )
        with _open(name, ring) as letters, letters.producer(f"dead letters of {group}"[:47]) as producer:
            offset = producer.put(
                lease.buffer,
                key=lease.key,
                headers=headers,
                timestamp_ns=lease.timestamp_ns,
                flags=lease.flags,
                tag=lease.tag,
                timeout=ROOM_S,
            )
    except BaseException:
        lease.nack()
        raise
    _log.warning(
        "topic %r: offset %d was delivered %d times to group %r and never acknowledged; it is offset %s of %r now",
        ring.name,
        lease.offset,
        deliveries,
        group,
        offset,
        name,
    )
    lease._bury()


def _open(name: str, ring: Ring) -> Ring:
    from .log import attach, create

    place: Path = ring.path.parent
    with suppress(UnknownTopicError):
        return attach(name, place)
    try:
        return create(letters_spec(name, ring.spec), place)
    except TopicExistsError:  # another member was faster
        return attach(name, place)


def letters_spec(name: str, spec: RingSpec) -> RingSpec:
    """The dead-letter topic of a topic made like ``spec``: room for any record of it, and for 256 or fewer in all.

    It has no dead letters of its own.
    """
    slots = min(spec.slots, LETTERS_KEPT)
    if spec.dtype is not None:
        room = min(slots, 16) * (spec.record_bytes + _ROOM_FOR_HEADERS)
    else:
        room = (spec.data_bytes or MIB) + _ROOM_FOR_HEADERS
    return RingSpec(
        name,
        slots=slots,
        data_bytes=max(MIB, room),
        max_deliveries=0,
        mode=spec.mode,
        metadata={"dead_letters_of": spec.name},
    )
