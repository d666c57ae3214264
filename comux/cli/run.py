"""``comux run FILE``: the loop around a model, of a cameras file or of the first comux's ``.env``.

A model is a function that is called with each ``Batch``, or a class whose object is made once and called so. What it
returns goes out as ``Comux.send_batch`` takes it: a list with one mapping of headers per item, a mapping by ``cam_id``,
or ``None`` for nothing. An object's ``close`` is called at the end.

**The end.** After the first SIGTERM or Ctrl-C the model finishes the batch it has, its results are sent and waited for,
sources and topics are left, and the accounts are printed. A second signal ends the process at once.
"""

from __future__ import annotations

import importlib
import logging
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comux.cli.signals import ended_by_signals
from comux.cli.tables import books_table, check_format, console, print_json
from comux.errors import ConfigError, DeliveryError, EndOfStream, WaitTimeoutError
from comux.lifecycle import StopEvent, write_pid_file
from comux.multiplexer import Batch, Comux

Model = Callable[[Batch], Any]
_FLUSH = 10.0  #: seconds that results are waited for at the end


@dataclass
class Work:
    """What the loop did.

    Attributes:
        batches: Taken.
        pictures: In them.
        sent: Results handed to ``send_batch``.
        failure: What the model raised; ``None``: nothing.
    """

    batches: int = 0
    pictures: int = 0
    sent: int = 0
    undelivered: str | None = None
    failure: BaseException | None = field(default=None, repr=False)


def run_model(
    cameras: Comux,
    model: Model,
    asked: Mapping[str, Any],
    *,
    name: str,
    seconds: float | None,
    batches: int | None,
    pid_file: Path | None,
    quiet: bool,
    format: str,
) -> int:
    """Run a model over the cameras until a signal, the end of every stream, ``seconds`` or ``batches``.

    Args:
        cameras: Not started yet; closed at the end.
        model: Called with each batch.
        asked: Arguments of ``get_batch``.
        name: Of the model, for people.
        seconds, batches: Limits; ``None``: none.
        pid_file: Says who runs, see ``comux.lifecycle``; ``None``: none is written.
        quiet: Print errors only.
        format: ``table`` or ``json``: stdout carries the result alone.

    Returns:
        0, or 1 where the model raised.

    Raises:
        ComuxError: nothing was started.
    """
    as_data = check_format(format)
    work, began = Work(), time.monotonic()
    with ExitStack() as stack:
        stack.callback(cameras.close)
        stop = stack.enter_context(ended_by_signals(cameras.stop))
        if pid_file is not None:
            write_pid_file(pid_file)
        cameras.start()
        if not quiet:
            where = "" if pid_file is None else f"; comux terminate {pid_file} ends it too"
            many = len(cameras.cam_ids)
            print(f"running {name} on {many} cameras; Ctrl-C ends it{where}", file=sys.stderr, flush=True)
        deadline = None if seconds is None else time.monotonic() + seconds
        _loop(cameras, model, asked, work, stop, deadline, batches)
        _drain(cameras, work)
    books = {str(cam_id): account.as_dict() for cam_id, account in cameras.accounts().items()}
    _report(work, books, time.monotonic() - began, stop, as_data=as_data, quiet=quiet)
    return 0 if work.failure is None else 1


def _loop(
    cameras: Comux,
    model: Model,
    asked: Mapping[str, Any],
    work: Work,
    stop: StopEvent,
    deadline: float | None,
    batches: int | None,
) -> None:
    while not stop.is_set() and work.batches != batches and (deadline is None or time.monotonic() < deadline):
        try:
            batch = cameras.get_batch(**asked)
        except EndOfStream:
            return
        work.batches += 1
        work.pictures += sum(1 for item in batch if item)
        try:
            results = model(batch)
            if results is not None:
                work.sent += len(cameras.send_batch(batch, results))
        except Exception as exc:  # noqa: BLE001 - the user's code: shown whole, and the run ends in order
            work.failure = exc
            traceback.print_exception(exc)
            return


def _drain(cameras: Comux, work: Work) -> None:
    """What was sent arrives; what failed is told."""
    try:
        cameras.flush(_FLUSH)
    except (DeliveryError, WaitTimeoutError) as exc:
        work.undelivered = str(exc)
        print(f"comux: {exc}", file=sys.stderr)


def _report(
    work: Work, books: Mapping[str, Any], seconds: float, stop: StopEvent, *, as_data: bool, quiet: bool
) -> None:
    ended = "signal" if stop.signal is not None else "error" if work.failure is not None else "end"
    if as_data:
        print_json(
            {
                "seconds": round(seconds, 3),
                "batches": work.batches,
                "pictures": work.pictures,
                "sent": work.sent,
                "undelivered": work.undelivered,
                "ended": signal.Signals(stop.signal).name if stop.signal is not None else ended,
                "error": None if work.failure is None else f"{type(work.failure).__name__}: {work.failure}",
                "sources": books,
            }
        )
    elif not quiet:
        out = console()
        out.print(f"after {seconds:.1f} s", style="bold", highlight=False)
        out.print(books_table(books))
        out.print(f"{work.batches} batches, {work.pictures} pictures, {work.sent} results sent", highlight=False)


# -- the model -----------------------------------------------------------------------------------------------------


@contextmanager
def opened_model(named: str, folder: Path) -> Iterator[Model]:
    """A model by its name, closed at the end.

    Args:
        named: ``module:function`` or ``module:class``.
        folder: Where modules are looked for first.

    Raises:
        ConfigError: it cannot be imported, is not there, or cannot be called.
    """
    module_name, colon, name = named.partition(":")
    if not colon or not module_name or not name:
        raise ConfigError(f"model {named!r}: write module:function, as in detect:model")
    sys.path.insert(0, str(folder.resolve()))
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as exc:
        raise ConfigError(f"model {named!r}: {module_name} cannot be imported: {type(exc).__name__}: {exc}") from exc
    for part in name.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"model {named!r}: there is no {name!r} in {getattr(found, '__file__', module_name)}")
        found = getattr(found, part)
    try:
        model = found() if isinstance(found, type) else found
    except Exception as exc:
        raise ConfigError(f"model {named!r} cannot be made: {type(exc).__name__}: {exc}") from exc
    if not callable(model):
        raise ConfigError(f"model {named!r} is {type(model).__name__}: give a function of a batch, or a class of such")
    with ExitStack() as stack:
        if callable(getattr(model, "close", None)):
            stack.callback(model.close)
        yield model


def log_to_stderr(quiet: bool) -> None:
    """Events of comux as lines on stderr."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
    )
    logging.getLogger("comux").setLevel(logging.ERROR if quiet else logging.INFO)
