"""Real servers for tests: the fixtures ``kafka``, ``own_kafka``, ``kafka3`` and ``services``.

``kafka`` is one broker for the whole run: whichever worker needs it first starts it, the controlling process ends it,
however the run ends. ``own_kafka`` and ``kafka3`` are a test's own, to be killed and started again. All of them go
through ``scripts/services``. A test that asks for one carries the mark ``services`` by itself.

With KAFKA_BOOTSTRAP_SERVERS in the environment ``kafka`` is that cluster, and what only a cluster of our own offers is
skipped. Where Java or Maven are missing the tests are skipped and the run ends with a line that says so; with
COMUX_REQUIRE_SERVICES=1 they fail.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "services"
FIXTURES = {"kafka", "own_kafka", "kafka3", "services"}
_STATE = "COMUX_TEST_SERVICES_STATE"
_OWNER = "COMUX_TEST_SERVICES_OWNER"
_RUN = pytest.StashKey[Path]()
_EXTERNAL = "KAFKA_BOOTSTRAP_SERVERS"
_REQUIRED = "COMUX_REQUIRE_SERVICES"
_MISSING_TOOL = 3
_SKIPPED = "no server: "


def until(condition: Callable[[], Any], what: str, timeout: float = 30.0) -> Any:
    """Wait until ``condition`` gives something true, and give it back."""
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {timeout:.0f} s: {what}"
        pause.wait(0.02)
    return found


class Services:
    """``scripts/services`` with one state folder; what it starts ends with the run at the latest, even by SIGKILL."""

    def __init__(self, state: Path) -> None:
        self.state = state

    def command(self, verb: str, *arguments: str) -> list[str]:
        return [sys.executable, str(SCRIPT), verb, "--state", str(self.state), *arguments]

    def run(self, verb: str, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a verb to its end, whatever its exit code."""
        command = self.command(verb, *arguments)
        return subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)

    def do(self, verb: str, *arguments: str) -> str:
        """Run a verb that must succeed and give back what it printed. Skips where this machine cannot run servers."""
        done = self.run(verb, *arguments)
        if done.returncode == _MISSING_TOOL and not os.environ.get(_REQUIRED):
            pytest.skip(_SKIPPED + done.stderr.strip())
        if done.returncode != 0:
            pytest.fail(f"scripts/services {verb} {' '.join(arguments)}: exit code {done.returncode}\n{done.stderr}")
        return done.stdout

    def up(self, server: str) -> str:
        """Start a server, or do nothing where it runs; gives its bootstrap addresses."""
        return self.do("up", "--while", os.environ[_OWNER], server).strip()

    def entry(self, server: str) -> dict[str, Any]:
        """What the state file says of a server."""
        found: dict[str, Any] = json.loads((self.state / "state.json").read_text())["servers"][server]
        return found


class KafkaCluster:
    """Addresses of a running cluster and who may use it."""

    def __init__(self, bootstrap: str, entry: dict[str, Any] | None) -> None:
        self.bootstrap = bootstrap
        self._entry = entry

    def _known(self, what: str) -> dict[str, Any]:
        if self._entry is None:
            pytest.skip(f"{_EXTERNAL} names a cluster of yours: its {what} is not known here")
        return self._entry

    @property
    def sasl(self) -> str:
        """The SASL_PLAINTEXT address: PLAIN and SCRAM-SHA-256."""
        return str(self._known("SASL listener")["addresses"]["sasl_plaintext"])

    @property
    def ssl(self) -> str:
        """The TLS address; the server's certificate is for 127.0.0.1 and localhost, signed by `ca_file`."""
        return str(self._known("TLS listener")["addresses"]["ssl"])

    @property
    def sasl_ssl(self) -> str:
        """The address with SASL over TLS."""
        return str(self._known("SASL over TLS listener")["addresses"]["sasl_ssl"])

    @property
    def users(self) -> dict[str, str]:
        """Passwords by user: alice may do everything, bob what no ACL forbids."""
        return dict(self._known("users")["users"])

    @property
    def ca_file(self) -> str:
        """The authority's certificate (PEM), for clients."""
        return str(self._known("certificate authority")["ca_file"])

    @property
    def data(self) -> Path:
        """Where a cluster of one broker keeps its topics."""
        (process,) = self._known("data folder")["processes"].values()
        return Path(process["log"]).parent / "data"


class OwnKafkaCluster(KafkaCluster):
    """A cluster of a test's own, which it may kill and start again."""

    def __init__(self, services: Services, server: str) -> None:
        bootstrap = services.up(server)
        super().__init__(bootstrap, services.entry(server))
        self._services = services
        self._server = server

    @property
    def brokers(self) -> list[str]:
        """Names for `kill`, `start` and `pid`, in the order of the node ids 1, 2, …"""
        return list(self._known("brokers")["processes"])

    def pid(self, broker: str) -> int:
        return int(self._services.entry(self._server)["processes"][broker]["pid"])

    def data(self, broker: str) -> Path:
        """The folder of a broker's logs; not to be touched while it runs."""
        return Path(self._services.entry(self._server)["processes"][broker]["log"]).parent / "data"

    def status(self) -> dict[str, bool]:
        """Which brokers run."""
        done = self._services.run("status", "--format", "json")
        told = json.loads(done.stdout)["servers"][self._server]["processes"]
        running = {name: bool(process["running"]) for name, process in told.items()}
        assert done.returncode == (0 if all(running.values()) else 1)
        return running

    def kill(self, *brokers: str) -> None:
        """SIGKILL brokers (all, if none is named). Returns when they have ended; their data stay."""
        self._services.do("kill", *(brokers or [self._server]))

    def start(self, *brokers: str) -> None:
        """Start brokers that were killed (all, if none is named): same ports, same data. Returns when they answer."""
        self._services.do("start", *(brokers or [self._server]))


@pytest.fixture(scope="session")
def kafka() -> KafkaCluster:
    """One broker for all tests of the run: use topics of your own names, and leave it running."""
    if external := os.environ.get(_EXTERNAL):
        return KafkaCluster(external, None)
    services = Services(Path(os.environ[_STATE]))
    bootstrap = services.up("kafka")
    return KafkaCluster(bootstrap, services.entry("kafka"))


@pytest.fixture
def own_kafka(services: Services) -> OwnKafkaCluster:
    """A single broker of this test's own, without SASL and TLS."""
    return _own(services, "kafka-plain")


@pytest.fixture
def kafka3(services: Services) -> OwnKafkaCluster:
    """Three brokers of this test's own: three copies of each topic, two of which must be there (``acks="all"``)."""
    return _own(services, "kafka3")


def _own(services: Services, server: str) -> OwnKafkaCluster:
    if os.environ.get(_EXTERNAL):
        pytest.skip(f"{_EXTERNAL} names a cluster of yours, which no test may kill")
    return OwnKafkaCluster(services, server)


@pytest.fixture
def services() -> Iterator[Services]:
    """``scripts/services`` with a state folder of this test's own; what it left running is ended."""
    with tempfile.TemporaryDirectory(prefix="comux-services-") as folder:
        services = Services(Path(folder) / "state")
        yield services
        services.do("down", "--patience", "0")


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def pytest_configure(config: pytest.Config) -> None:
    if not _is_worker(config):
        name = f"comux-services-{os.getpid()}-{secrets.token_hex(4)}"
        config.stash[_RUN] = Path(tempfile.gettempdir()) / name
        os.environ[_STATE] = str(config.stash[_RUN])
        os.environ[_OWNER] = str(os.getpid())
        # Brokers that live for seconds: half of the processor time of a start goes into making them fast for hours.
        # What Apache built needs no verifying each time.
        unverified = "-XX:+UnlockDiagnosticVMOptions -XX:-BytecodeVerificationRemote"
        os.environ.setdefault("KAFKA_JVM_PERFORMANCE_OPTS", f"-XX:TieredStopAtLevel=1 -XX:+UseSerialGC {unverified}")


def pytest_unconfigure(config: pytest.Config) -> None:
    state = config.stash.get(_RUN, None)
    if state is not None and state.is_dir():
        done = Services(state).run("down", "--patience", "0")
        if done.returncode != 0:
            print(done.stderr, file=sys.stderr)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    for item in items:
        if FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.services)
    yield
    items[:] = spread(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


def spread(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """The tests in an order in which those with servers, which mostly wait, come evenly among those that compute.

    Each of the ``workers`` begins with an equal run of the order. Files are dealt to them in turn, so that all begin
    with the programs of ``cli`` and ``e2e`` and end with what takes milliseconds. Tests of one file (or class) that
    follow each other stay together: they may share what is costly to make.
    """
    sides: dict[bool, list[list[pytest.Item]]] = {True: [], False: []}
    for (waits, _), group in itertools.groupby(items, lambda item: (_with_server(item), item.parent)):
        sides[waits].append(list(group))
    placed: list[tuple[float, list[pytest.Item]]] = []
    for groups in sides.values():
        count = sum(map(len, groups))
        ends = itertools.accumulate(map(len, groups))
        placed += [((end - len(group) / 2) / count, group) for end, group in zip(ends, groups, strict=True)]
    placed.sort(key=lambda pair: pair[0])
    runs: list[list[pytest.Item]] = [[] for _ in range(workers)]
    for _, group in placed:
        min(runs, key=len).extend(group)
    return [item for run in runs for item in run]


def _with_server(item: pytest.Item) -> bool:
    return item.get_closest_marker("services") is not None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: Any) -> Iterator[None]:
    """The last word of a run, after all other summaries, where tests were skipped for want of a server."""
    yield
    reasons: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        if _SKIPPED in reason:
            reason = reason.partition(_SKIPPED)[2]
            reasons[reason] = reasons.get(reason, 0) + 1
    for reason, count in reasons.items():
        terminalreporter.write_line(f"NOT TESTED: {count} tests that need real servers. {reason}", red=True, bold=True)
