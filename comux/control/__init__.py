"""Control: commands come in on a topic, are checked, carried out one at a time, and answered.

Lives here: command schemas, the controller's thread, the users' acts, replies, the client that sends a command, and the
registries that say which sources there are. May import: ``transport``, ``options``, ``headers``, ``telemetry``,
``account``, the nouns. Must never know: the multiplexer (it is handed in as a ``Target``), decoders, any front door.
"""

from __future__ import annotations

from comux.control.client import send_command
from comux.control.commands import Command, CommandLimits, make_command, parse_command
from comux.control.controller import Controller, current_command
from comux.control.interface import Act, Target
from comux.control.legacy import Control
from comux.control.registry import ListRegistry, Registry, YamlRegistry, open_registry

__all__ = [
    "Act",
    "Command",
    "CommandLimits",
    "Control",
    "Controller",
    "ListRegistry",
    "Registry",
    "Target",
    "YamlRegistry",
    "current_command",
    "make_command",
    "open_registry",
    "parse_command",
    "send_command",
]
