"""What ``comux run`` is given: a cameras file, or the first comux's ``.env``."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dotenv import dotenv_values

from comux.cli.run import log_to_stderr, opened_model, run_model
from comux.control import is_cameras_file, read_cameras_file
from comux.errors import ConfigError
from comux.multiplexer import Batch, Comux
from comux.options import suggestion

#: Keys of the first comux's ``.env``, and the words of ``Comux`` they mean.
WORDS: Final = {
    "client_name": "client_name",
    "db_url": "db_url",
    "db_database": "db_database",
    "consume_schema": "consume_schema",
    "produce_schema": "produce_schema",
    "consumer_bootstrap_servers": "address",
    "producer_bootstrap_servers": "produce_address",
    "control_bootstrap_servers": "control_address",
    "config_topic": "control_topic",
}
COLLECTIONS: Final = (
    "COLLECTION_Model",
    "COLLECTION_Running_Schedule",
    "COLLECTION_Schedule",
    "COLLECTION_Model_Camera",
)
NEEDED: Final = ("client_name", "db_url", "db_database", "consumer_bootstrap_servers")
_LISTS: Final = frozenset(word for word in WORDS if word.endswith("bootstrap_servers"))


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the command line says of a run; ``None``: as the file says."""

    model: str | None = None
    seconds: float | None = None
    batches: int | None = None
    pid_file: Path | None = None
    quiet: bool = False
    format: str = "table"


def run_file(path: Path, options: RunOptions) -> int:
    """Run the model that a file names over the cameras it states.

    Returns:
        As ``run_model``.

    Raises:
        ComuxError: something is wrong, and nothing was started.
    """
    asked: Mapping[str, Any] = {"timeout": 1.0}
    if is_cameras_file(str(path)):
        settings = read_cameras_file(path).settings
        named, asked = options.model or settings.model, settings.batch.model_dump()
        remedy = "write 'model: module:function' in it"
        words: dict[str, Any] = {}
    else:
        words = words_of_env(path)
        named, remedy = options.model, "it has no place in an .env file"
    if named is None:
        raise ConfigError(f"{str(path)!r} names no model: {remedy}, or give --model")
    log_to_stderr(options.quiet)
    with opened_model(named, path.parent) as model:
        cameras = Comux(**words) if words else Comux(path)
        return run_model(
            cameras,
            model,
            asked,
            name=named,
            seconds=options.seconds,
            batches=options.batches,
            pid_file=options.pid_file,
            quiet=options.quiet,
            format=options.format,
        )


def words_of_env(path: Path | None) -> dict[str, Any]:
    """Arguments of ``Comux`` from the first comux's keys: of a file, else of the environment; what is missing is asked
    for where a terminal is.

    Args:
        path: Of the file; ``None``: ``.env`` where there is one. The environment wins.

    Raises:
        ConfigError: the file cannot be read, a key is misspelt, or one is missing.
    """
    found: dict[str, str] = {}
    source = path if path is not None else Path(".env")
    if path is not None or source.is_file():
        try:
            text = source.read_text(encoding="utf-8")
            found = {key: value for key, value in dotenv_values(stream=io.StringIO(text)).items() if value}
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(f"{str(source)!r} cannot be read: {exc}") from None
    for key in found:
        if key not in WORDS and key not in COLLECTIONS and key.lower().startswith(("collection", "db_", "client_")):
            raise ConfigError(f"{str(source)!r}: there is no key {key!r}{suggestion(key, (*WORDS, *COLLECTIONS))}")
    found |= {key: os.environ[key] for key in (*WORDS, *COLLECTIONS) if os.environ.get(key)}
    for key in NEEDED:
        if key not in found:
            found[key] = _asked(key, source)
    words: dict[str, Any] = {word: found[key] for key, word in WORDS.items() if key in found}
    for key in _LISTS & found.keys():
        words[WORDS[key]] = ",".join(server.strip() for server in found[key].split(","))
    collections = {key: found[key] for key in COLLECTIONS if key in found}
    if collections:
        words["db_collections"] = collections
    return words


def _asked(key: str, source: Path) -> str:
    text = input(f"{key}: ").strip() if sys.stdin.isatty() else ""
    if not text:
        raise ConfigError(f"{key} is missing: set it in the environment or in {str(source)!r}")
    return text


def show_cameras(
    path: Path | None, *, timeout: float | None, number: int | None, cam_id: str | None, batch: bool
) -> int:
    """The first comux's own command: take pictures and print what came, a line for each.

    Args:
        path: The ``.env``; ``None``: of this folder.
        timeout: Seconds to wait for each.
        number: How many batches to take; ``None``: until Ctrl-C.
        cam_id: Show one camera alone.
        batch: Show all of a batch, also where ``cam_id`` is given.

    Returns:
        0, or 1 where something failed.
    """
    words = words_of_env(path)
    log_to_stderr(quiet=True)
    cameras = Comux(**words)

    def model(taken: Batch) -> None:
        for item in taken:
            if batch or cam_id is None or str(item.cam_id) == cam_id:
                what = item.status if item.array is None else f"{item.array.shape} {item.array.dtype}"
                print(f"{item.cam_id} {item.index} {what}", flush=True)

    return run_model(
        cameras,
        model,
        {"timeout": timeout},
        name="a look",
        seconds=None,
        batches=number,
        pid_file=None,
        quiet=False,
        format="table",
    )
