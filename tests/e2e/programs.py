"""Programs the acceptance tests run in processes of their own: ``programs.py NAME JOURNAL OPTIONS``.

Each is a function that takes the options (JSON) as keywords. What it was told or promised it appends to the journal,
one line of JSON per ``write``, which a SIGKILL cannot tear.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

_journal = -1


def note(what: str, **facts: Any) -> None:
    """Append one line; it is there in full once the call has returned."""
    os.write(_journal, (json.dumps({"what": what, **facts}) + "\n").encode())


def publish(address: str, topic: str, source: str, **options: Any) -> None:
    """A camera: notes every packet that went out."""
    from comux.feeds import FeedPacket, main_publish

    def on_packet(packet: FeedPacket) -> None:
        note("packet", seq=packet.seq, frame=packet.frame)

    report = main_publish(source, topic=topic, address=address, on_packet=on_packet, **options)
    note("report", **report.as_dict())


PROGRAMS: dict[str, Callable[..., None]] = {f.__name__: f for f in (publish,)}

if __name__ == "__main__":
    _journal = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    PROGRAMS[sys.argv[1]](**json.loads(sys.argv[3]))
