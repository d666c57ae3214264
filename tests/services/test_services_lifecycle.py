"""`scripts/services` leaves nothing: after down, after Ctrl-C, after SIGKILL, after the run that started a server."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kafka_client import make_topic, read, send
from servers.keeping import Ports
from service_fixtures import KafkaCluster, OwnKafkaCluster, Services, until

KIT = Path(__file__).resolve().parents[1] / "kit"


def pids(entry: dict[str, Any]) -> list[int]:
    return [process["pid"] for process in entry["processes"].values() if "pid" in process]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def popen(command: list[str], **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def launched(services: Services, server: str) -> dict[str, Any]:
    """A server's entry as soon as one of its processes runs."""

    def look() -> dict[str, Any] | None:
        try:
            entry = services.entry(server)
        except (FileNotFoundError, KeyError):
            return None
        return entry if pids(entry) else None

    found: dict[str, Any] = until(look, f"a process of {server} runs")
    return found


# -- with real servers -------------------------------------------------------------------------------------------------


def test_the_life_of_a_server(services: Services) -> None:
    """Two ``up`` at once start one; killed and started again it keeps address and records; ``down`` leaves nothing."""
    services.do("fetch", "kafka")
    both = [popen(services.command("up", "kafka")) for _ in range(2)]
    said = [each.communicate(timeout=90) for each in both]
    assert [each.returncode for each in both] == [0, 0], said
    entry = services.entry("kafka")
    assert [out for out, _ in said] == [entry["bootstrap"] + "\n"] * 2
    assert all(map(listens, entry["addresses"].values()))
    passwords_are_kept_to_the_user(services, entry)

    kafka = OwnKafkaCluster(services, "kafka")
    assert kafka.bootstrap == entry["bootstrap"]
    (broker,) = kafka.brokers
    pid = kafka.pid(broker)
    topic = make_topic(kafka.bootstrap)
    send(topic, [b"before"], bootstrap_servers=kafka.bootstrap)
    kafka.kill()
    assert kafka.status() == {broker: False}
    assert not runs(pid)
    assert not listens(kafka.bootstrap)
    kafka.start()
    assert kafka.status() == {broker: True}
    send(topic, [b"after"], bootstrap_servers=kafka.bootstrap)
    assert read(topic, 2, bootstrap_servers=kafka.bootstrap) == [b"before", b"after"]

    pid = kafka.pid(broker)
    services.do("down")
    assert not runs(pid)
    assert not any(map(listens, entry["addresses"].values()))
    assert not services.state.exists()
    assert "nothing runs" in services.do("status")
    services.do("down")  # again: nothing to do is no error


def passwords_are_kept_to_the_user(services: Services, entry: dict[str, Any]) -> None:
    assert stat.S_IMODE((services.state / "state.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((services.state / "kafka").stat().st_mode) == 0o700
    told = services.do("status") + services.do("status", "--format", "json")
    assert f"runs  {entry['bootstrap']}" in told
    assert not any(password in told for password in entry["users"].values())


@pytest.mark.torture
def test_an_interrupted_up_leaves_nothing(services: Services) -> None:
    services.do("fetch", "kafka3")
    up = popen(services.command("up", "kafka3"))
    entry = launched(services, "kafka3")
    up.send_signal(signal.SIGINT)
    _, err = up.communicate(timeout=30)
    assert up.returncode == 130, err
    assert not any(map(runs, pids(entry)))
    assert not services.state.exists()


@pytest.mark.torture
def test_what_a_killed_up_left_is_removed_when_its_owner_ends(services: Services) -> None:
    services.do("fetch", "kafka3")
    owner = popen([sys.executable, "-c", "import signal; signal.pause()"])
    up = popen(services.command("up", "--while", str(owner.pid), "kafka3"))
    entry = launched(services, "kafka3")
    up.kill()
    up.communicate(timeout=30)
    entry = services.entry("kafka3")
    assert runs(entry["watcher"]["pid"])
    owner.kill()
    owner.communicate(timeout=30)
    until(lambda: not services.state.exists(), "the state folder is gone", timeout=120)
    until(lambda: not runs(entry["watcher"]["pid"]), "the watcher has ended")
    assert not any(map(runs, pids(entry)))


INNER = """
import pytest
from pathlib import Path
from threading import Event
from kafka.admin import KafkaAdminClient

def test_plain(kafka):
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    admin.list_topics()
    admin.close()

def test_sasl(kafka):
    assert kafka.sasl

def test_own(own_kafka):
    own_kafka.kill()

def test_for_ever(kafka, request):
    Path("started").write_text(kafka.bootstrap)
    Event().wait(100)
"""


def inner(folder: Path, *arguments: str, **env: str) -> subprocess.Popen[str]:
    """A pytest run of its own with our fixtures, over the tests of INNER."""
    (folder / "test_inner.py").write_text(INNER)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = services: servers\n")
    clean = {key: value for key, value in os.environ.items() if key != "COMUX_REQUIRE_SERVICES"}
    command = [sys.executable, "-m", "pytest", "-p", "service_fixtures", "-p", "no:cacheprovider", "-ra", *arguments]
    return popen(
        command, cwd=folder, start_new_session=True, env=clean | {"PYTHONPATH": str(KIT), "TMPDIR": str(folder)} | env
    )


def test_a_cluster_of_the_users_own(kafka: KafkaCluster, tmp_path: Path) -> None:
    run = inner(tmp_path, "-k", "not for_ever", KAFKA_BOOTSTRAP_SERVERS=kafka.bootstrap)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 0, out + err
    assert "1 passed, 2 skipped" in out
    assert "its SASL listener is not known here" in out
    assert "which no test may kill" in out
    assert not list(tmp_path.glob("comux-services-*"))


@pytest.mark.torture
def test_the_end_of_a_run_by_ctrl_c_ends_its_server(services: Services, tmp_path: Path) -> None:
    services.do("fetch", "kafka")
    run = inner(tmp_path, "-k", "for_ever", "-n", "1")
    try:
        address = until(
            lambda: (tmp_path / "started").exists() and (tmp_path / "started").read_text(), "it started", 60
        )
        assert listens(address)
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does: all processes of the run
        out, err = run.communicate(timeout=30)
    finally:
        run.kill()
        run.communicate()
    assert run.returncode == pytest.ExitCode.INTERRUPTED, out + err
    assert not listens(address)
    assert not list(tmp_path.glob("comux-services-*"))


# -- without: what is missing, what fails ------------------------------------------------------------------------------


class Tools:
    """Stand-ins for java and mvn in a folder that is the whole PATH, and an empty cache of downloads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        self.cache = folder / "cache"
        self.services = Services(folder / "state")
        self.env = {**os.environ, "PATH": str(folder / "bin"), "COMUX_SERVICES_CACHE": str(self.cache)}

    def add(self, name: str, body: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f"#!{sys.executable}\nimport os, pathlib, signal, sys, time\n{body}\n")
        path.chmod(0o755)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.services.run(*arguments, env=self.env)

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        return popen(self.services.command(*arguments), env=self.env)


FETCHES = """
home = pathlib.Path(sys.argv[-1].partition("=")[2])
with open("FOLDER/calls", "a") as calls:
    calls.write(f"{os.getpid()}\\n")
while not pathlib.Path("FOLDER/go").exists():
    time.sleep(0.01)
(home / "broker.jar").touch()
"""


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    return Tools(tmp_path)


def test_without_java_it_says_what_to_install(tools: Tools) -> None:
    done = tools.run("up", "kafka")
    assert done.returncode == 3
    assert "java is not on the PATH; install it (Debian: apt-get install openjdk-17-jre-headless)" in done.stderr
    assert not tools.services.state.exists()


def test_without_maven_it_says_what_to_install(tools: Tools) -> None:
    tools.add("java", "")
    done = tools.run("up", "kafka")
    assert done.returncode == 3
    assert "mvn is not on the PATH; install it (Debian: apt-get install maven)" in done.stderr
    assert not tools.services.state.exists()


def test_a_broker_that_dies_at_once_shows_its_log(tools: Tools) -> None:
    (tools.folder / "go").touch()
    tools.add("mvn", FETCHES.replace("FOLDER", str(tools.folder)))
    tools.add("java", 'if "kafka.Kafka" in sys.argv:\n    sys.exit("no room on the disk")')
    done = tools.run("up", "kafka3")
    assert done.returncode == 1
    assert re.search(r"kafka3-[123] ended while starting; the end of its log:\nno room on the disk", done.stderr), (
        done.stderr
    )
    assert not tools.services.state.exists()


def test_a_download_that_fails_leaves_nothing_and_is_told(tools: Tools) -> None:
    tools.add("java", "")
    tools.add("mvn", 'pathlib.Path(sys.argv[-1].partition("=")[2], "half.jar").touch()\nsys.exit("no network")')
    done = tools.run("fetch", "kafka")
    assert done.returncode == 1
    assert "mvn could not fetch kafka-pom.xml (exit code 1):\nno network" in done.stderr
    assert [each for each in tools.cache.iterdir() if each.is_dir()] == []


def test_two_downloads_at_once_are_one(tools: Tools) -> None:
    tools.add("java", "")
    tools.add("mvn", FETCHES.replace("FOLDER", str(tools.folder)))
    both = [tools.popen("fetch", "kafka") for _ in range(2)]
    until((tools.folder / "calls").exists, "one downloads")
    (tools.folder / "go").touch()
    said = [each.communicate(timeout=30) for each in both]
    assert [each.returncode for each in both] == [0, 0], said
    assert len((tools.folder / "calls").read_text().splitlines()) == 1
    (home,) = (each for each in tools.cache.iterdir() if each.is_dir())
    assert [each.name for each in home.iterdir()] == ["broker.jar"]


def test_an_interrupted_download_leaves_nothing(tools: Tools) -> None:
    tools.add("java", "")
    tools.add("mvn", FETCHES.replace("FOLDER", str(tools.folder)))
    up = tools.popen("up", "kafka3")
    calls = tools.folder / "calls"
    until(lambda: calls.exists() and calls.read_text().endswith("\n"), "it downloads")
    up.send_signal(signal.SIGINT)
    _, err = up.communicate(timeout=30)
    assert up.returncode == 130, err
    assert not runs(int(calls.read_text()))
    assert [each for each in tools.cache.iterdir() if each.is_dir()] == []
    assert not tools.services.state.exists()


def test_a_folder_with_other_files_stays(tools: Tools) -> None:
    tools.services.state.mkdir()
    (tools.services.state / "mine").touch()
    assert tools.run("up", "kafka").returncode == 3
    assert tools.run("down").returncode == 0
    assert [each.name for each in tools.services.state.iterdir()] == ["mine"]


@pytest.mark.parametrize("verb", ["kill", "start"])
def test_a_name_that_is_not_there_is_told(tools: Tools, verb: str) -> None:
    done = tools.run(verb, "kafka3-2")
    assert done.returncode == 1
    assert f"nothing was started in {tools.services.state}" in done.stderr


def test_tests_without_java_are_skipped_loudly(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    run = inner(tmp_path, "-n", "1", PATH=str(tmp_path / "bin"))
    out, err = run.communicate(timeout=60)
    assert run.returncode == 0, out + err
    loud, counts = out.strip().splitlines()[-2:]
    assert loud.startswith("NOT TESTED: 4 tests that need real servers. services: java is not on the PATH; install it")
    assert "4 skipped" in counts


def test_tests_without_java_fail_where_servers_are_required(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    run = inner(tmp_path, PATH=str(tmp_path / "bin"), COMUX_REQUIRE_SERVICES="1")
    out, err = run.communicate(timeout=60)
    assert run.returncode == 1, out + err
    assert "4 errors" in out
    assert "java is not on the PATH; install it" in out


def test_a_port_that_was_taken_is_given_to_nobody_else_until_its_server_has_it() -> None:
    ports = Ports()
    try:
        port = ports.take()
        with socket.socket() as other, pytest.raises(OSError):
            other.bind(("127.0.0.1", port))
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Java does
            server.bind(("127.0.0.1", port))
            server.listen()
            ports.close()
            assert listens(f"127.0.0.1:{port}")
    finally:
        ports.close()
