"""What holds for every test: the built package is what runs, and nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

import comux

pytest_plugins = ["hangs", "service_fixtures", "kafka_rooms", "mongo_fixtures"]

CHECKOUT = Path(__file__).resolve().parents[1]
SHM = Path("/dev/shm")

# The same examples in every run: a red run is red for everybody. `make torture` draws new ones.
settings.register_profile("same", derandomize=True, database=None, deadline=None)  # speed decides nothing
settings.register_profile("new", database=None, deadline=None)
settings.load_profile("new" if "COMUX_TORTURE_SECONDS" in os.environ else "same")

# pytest rewrites every assertion of the tests it reads, which takes longer than reading them: the next process that
# reads them (each worker is one) finds it done. So does the next scripts/services.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# pydantic looks into each installed package for plug-ins of its own; the hundreds of programs of the tests need none.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")


# What runs on the other interpreters too: the C code's binding, the engines, and the way of a picture from end to end.
# Properties tried with hundreds of examples are those of our code, whatever runs it.
CORE = (
    "ring/test_ring_basics",
    "transport/",
    "decoders/",
    "test_headers",
    "test_lifecycle",
    "multiplexer/test_multiplexer_video",
    "cli/test_cli_examples",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        tried = getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
        if item.nodeid.removeprefix("tests/").startswith(CORE) and not tried:
            item.add_marker(pytest.mark.core)


def pytest_report_header() -> str:
    return f"comux {comux.__version__} from {Path(comux.__file__).parent}"


def pytest_configure() -> None:
    # A shell starts background jobs with SIGINT ignored, and programs hand that down to theirs: no Ctrl-C would ever
    # reach a child of a test. (Under SIGINT's usual handler, children start with the usual disposition.)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    installed = Path(comux.__file__).resolve().parent != CHECKOUT / "comux"
    if os.environ.get("COMUX_TEST_INSTALLED") and not installed:
        raise pytest.UsageError(f"tests must run the installed comux, not {comux.__file__}")


@pytest.fixture(scope="session", autouse=True)
def _private_shared_memory() -> Iterator[Path]:
    """All topics of the run live in one private folder, which must be empty of living things at the end."""
    base = Path(tempfile.mkdtemp(prefix=f"comux-test-{os.getpid()}-", dir=SHM if SHM.is_dir() else None))
    old = os.environ.get("COMUX_DIR")
    os.environ["COMUX_DIR"] = str(base)
    yield base
    if old is None:
        del os.environ["COMUX_DIR"]
    else:
        os.environ["COMUX_DIR"] = old
    shutil.rmtree(base)


def _children() -> set[int]:
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            found.update(map(int, (task / "children").read_text().split()))
        except OSError:  # the thread ended between the listing and the look
            continue
    return found


def _threads() -> set[threading.Thread]:
    # kafka-python leaves the thread of a client that it could not make; ours are named, and must end.
    return {t for t in threading.enumerate() if t.name.startswith(("comux", "kafka-io-comux"))}


def _shared() -> set[str]:
    """Files of topics in this run's folder and in the default one; other folders are other runs' business."""
    folders = [Path(os.environ["COMUX_DIR"]), SHM / f"comux-{os.getuid()}"]
    return {str(Path(at) / name) for folder in folders for at, _, names in os.walk(folder) for name in names}


def _descriptors() -> set[str]:
    """Open descriptors of comux's own files (by target, so that numbers being reused do not matter)."""
    found = set()
    for fd in Path("/proc/self/fd").iterdir():
        try:
            target = str(fd.readlink())
        except OSError:
            continue
        if "comux" in target:
            found.add(f"{fd.name} -> {target}")
    return found


def _real_time() -> set[str]:
    """Threads above all others, which starve the machine when they compute: an encoder of AV1 leaves them to root."""
    found = set()
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
            if os.sched_getscheduler(int(thread.name)) != os.SCHED_OTHER:
                found.add(thread.name)
    return found


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """Threads, child processes, shared memory, descriptors and scheduling are after a test what they were before."""
    looks = {"child processes": _children, "threads": _threads, "shared memory": _shared, "descriptors": _descriptors}
    looks["real-time threads"] = _real_time
    before = {what: look() for what, look in looks.items()}
    yield
    deadline = time.monotonic() + 10
    left: dict[str, set[object]] = {}
    while time.monotonic() < deadline:
        left = {what: set(look() - before[what]) for what, look in looks.items()}  # type: ignore[operator]
        if not any(left.values()):
            return
        threading.Event().wait(0.02)
    pytest.fail("left behind: " + "; ".join(f"{what}: {sorted(map(str, x))}" for what, x in left.items() if x))
