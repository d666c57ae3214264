"""``comux control``: any command to a running program, and what goes over its control topic."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Literal

from comux.cli.signals import ended_by_signals
from comux.cli.sources import value_of
from comux.cli.tables import print_json
from comux.control import Remote
from comux.errors import ClosedError


def send(remote: Remote, action: str, text: str | None, *, raw: bool, as_data: bool) -> int:
    """Send one command and print its answer.

    Args:
        remote: The program.
        action: A built-in or a user's act.
        text: Its argument; ``-``: from stdin.
        raw: Send the bytes as they are, rather than as JSON.
        as_data: Print the whole answer.

    Returns:
        0, or 1 where it was not carried out.
    """
    data = None if text is None else sys.stdin.buffer.read() if text == "-" else text.encode(errors="surrogateescape")
    value: Any = data if raw or data is None else value_of(data.decode())
    answer = remote.answer(action, value)
    if as_data:
        print_json(answer)
    elif answer["ok"]:
        result = answer.get("result")
        if result is not None or not answer.get("note"):
            print(result if isinstance(result, str) else json.dumps(result, indent=2, ensure_ascii=False))
        if answer.get("note"):
            print(answer["note"], file=sys.stderr)
    else:
        print(f"comux: {answer['responder']}: {answer['error']['message']}", file=sys.stderr)
    return 0 if answer["ok"] else 1


def tail(remote: Remote, *, start: Literal["beginning", "end"], count: int | None, as_data: bool) -> int:
    """Print commands and answers as they come, until Ctrl-C or ``count`` of them.

    Returns:
        0.
    """
    with ended_by_signals(remote.close):
        try:
            for number, said in enumerate(remote.overhear(start), 1):
                print(json.dumps(said, ensure_ascii=False) if as_data else _line(said), flush=True)
                if number == count:
                    break
        except ClosedError:
            pass
    return 0


def _line(said: dict[str, Any]) -> str:
    clock = time.strftime("%H:%M:%S", time.localtime(said["timestamp"]))
    text = json.dumps(said["value"], ensure_ascii=False) if said["value"] is not None else ""
    who = said["action"] if said["kind"] == "command" else f"  {said['responder']} answers {said['action']}"
    mark = "" if said["kind"] == "command" else " ok" if said["ok"] else " refused"
    return f"{clock} {said['offset']:>6}  {who}{mark} {text if len(text) <= 200 else text[:199] + '…'}".rstrip()
