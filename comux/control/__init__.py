"""Control: commands come in on a topic, are checked, carried out one at a time, and answered.

Lives here: command schemas, the controller's thread, the users' acts, replies, the client that sends a command, and the
registries that say which sources there are. May import: ``transport``, ``options``, ``headers``, ``telemetry``,
``account``, the nouns. Must never know: the multiplexer (it is handed in as a ``Target``), decoders, any front door.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from comux.control.acts import current_command
from comux.control.cameras_schema import cameras_schema
from comux.control.client import send_command
from comux.control.commands import Command, CommandLimits, make_command, parse_command, state_topic_of
from comux.control.controller import Controller
from comux.control.desired import Change, Watcher, difference
from comux.control.durable import Sources
from comux.control.interface import Act, Target
from comux.control.legacy import Control
from comux.control.registry import ListRegistry, Registry, is_cameras_file, open_registry
from comux.control.remote import Applied, Remote, apply, changes_to
from comux.control.replies import nearest

if TYPE_CHECKING:
    from comux.control.cameras_file import CamerasFile as CamerasFile
    from comux.control.cameras_file import YamlRegistry as YamlRegistry
    from comux.control.cameras_file import read_cameras_file as read_cameras_file
    from comux.control.mongo import MongoConnect as MongoConnect
    from comux.control.mongo import MongoRegistry as MongoRegistry

__all__ = [
    "Act",
    "Applied",
    "CamerasFile",
    "Change",
    "Command",
    "CommandLimits",
    "Control",
    "Controller",
    "ListRegistry",
    "MongoConnect",
    "MongoRegistry",
    "Registry",
    "Remote",
    "Sources",
    "Target",
    "Watcher",
    "YamlRegistry",
    "apply",
    "cameras_schema",
    "changes_to",
    "current_command",
    "difference",
    "is_cameras_file",
    "make_command",
    "nearest",
    "open_registry",
    "parse_command",
    "read_cameras_file",
    "send_command",
    "state_topic_of",
]


_ON_FIRST_USE = {
    "CamerasFile": "comux.control.cameras_file",
    "MongoConnect": "comux.control.mongo",
    "MongoRegistry": "comux.control.mongo",
    "YamlRegistry": "comux.control.cameras_file",
    "read_cameras_file": "comux.control.cameras_file",
}


def __getattr__(name: str) -> Any:
    """On first use, what few programs have: pymongo, the models of a cameras file; each takes a tenth of a second."""
    if name in _ON_FIRST_USE:
        return getattr(import_module(_ON_FIRST_USE[name]), name)
    raise AttributeError(f"module 'comux.control' has no attribute {name!r}")
