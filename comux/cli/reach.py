"""Where a running program is reached, for every command that talks to one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from comux.control import Remote, read_cameras_file

ADDRESS_VARIABLE: Final = "COMUX_ADDRESS"
TOPIC_VARIABLE: Final = "COMUX_CONTROL_TOPIC"
DEFAULT_ADDRESS: Final = "shm://"
DEFAULT_TOPIC: Final = "config"


def reach(
    address: str | None,
    topic: str | None,
    file: Path | None = None,
    *,
    target: str | None = None,
    timeout: float = 5.0,
) -> Remote:
    """The program that obeys a control topic.

    Args:
        address, topic: Of the control topic; ``None``: as ``file`` says, else ``COMUX_ADDRESS`` and
            ``COMUX_CONTROL_TOPIC``, else ``shm://`` and ``config``.
        file: A cameras file.
        target: Name of the client meant; ``None``: as ``file`` says.
        timeout: Seconds that an answer is waited for.

    Raises:
        ComuxError: the file is wrong, or the engine cannot be reached.
    """
    if file is not None:
        settings = read_cameras_file(file).settings
        said = settings.model_fields_set
        address = address or settings.control_address or (settings.address if "address" in said else None)
        topic = topic or settings.control_topic
        target = target or (settings.client_name if "client_name" in said else None)
    return Remote(
        address or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS,
        topic or os.environ.get(TOPIC_VARIABLE) or DEFAULT_TOPIC,
        target=target,
        timeout=timeout,
    )
