"""Commands that come again: whoever lost an answer may ask again, and whoever wrote a command down may send it again.

A command with a ``request-id`` is carried out once. The same command under the same id is answered with what came of it
the first time; another command under that id is refused. Remembered are the newest ids, and answers that are not large.
What has no ``request-id`` cannot be known to come again: give it ``expires``.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

from comux.control.commands import Command
from comux.control.replies import encode
from comux.errors import CommandError

_REMEMBERED: Final = 1024
_LARGE: Final = 4096  # bytes of an outcome that is not kept


class Repeats:
    """The newest commands that had an id. Used under the caller's lock or by one thread, but for ``answered``."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, tuple[bytes, int, Mapping[str, Any] | None]] = OrderedDict()

    def earlier(self, command: Command) -> Mapping[str, Any] | None:
        """What came of the same command before; ``None`` where it is new, and remembered from now on.

        Raises:
            CommandError: the id was another command's, or its outcome is not known (any more).
        """
        if command.request_id is None:
            return None
        known = self._seen.get(command.request_id)
        print_ = _fingerprint(command)
        if known is None:
            self._seen[command.request_id] = (print_, command.offset, None)
            while len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
            return None
        before, offset, outcome = known
        if before != print_:
            raise CommandError(
                f"request-id {command.request_id!r} was used by another command at offset {offset}; use a new one"
            )
        if outcome is None:
            raise CommandError(
                f"action {command.action!r} with request-id {command.request_id!r} came at offset {offset} already; it "
                "is not carried out twice, and what came of it is not kept"
            )
        return {**outcome, "repeated": True}

    def answered(self, command: Command, outcome: Mapping[str, Any]) -> None:
        """What came of a command; kept for those who ask again. Any thread."""
        known = None if command.request_id is None else self._seen.get(command.request_id)
        if known is not None and known[1] == command.offset and len(encode(outcome)) <= _LARGE:
            self._seen[str(command.request_id)] = (known[0], known[1], outcome)


def _fingerprint(command: Command) -> bytes:
    digest = hashlib.blake2b(command.action.encode(), digest_size=16)
    digest.update(b"\0" + (command.raw or b""))
    return digest.digest()
