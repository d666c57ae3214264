"""`scripts/services up mongo|mongo-streams`: ready after a round trip, killed and started again, gone after down."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from mongo_fixtures import SERVERS, MongoServer
from pymongo import MongoClient
from pymongo.errors import OperationFailure
from service_fixtures import Services


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


@pytest.mark.services
@pytest.mark.parametrize("server", SERVERS)
def test_the_life_of_a_server(services: Services, server: str) -> None:
    url = services.up(server)
    assert services.up(server) == url  # it runs: nothing to do
    entry = services.entry(server)
    (process,) = entry["processes"].values()
    assert url == entry["bootstrap"] == f"mongodb://{process['address']}/"
    assert process["address"].startswith("127.0.0.1:")
    assert f"runs  {process['address']}" in services.do("status")
    with MongoClient(url) as client:
        assert not [name for name in client.list_database_names() if name.startswith("comux")]
        client["lab"]["cameras"].insert_one({"_id": "cam1"})

    services.do("kill", server)
    assert not listens(process["address"])
    assert services.run("status").returncode == 1
    services.do("start", server)
    with MongoClient(url) as client:  # same port; FerretDB's data are files, the other's were in memory
        found = list(client["lab"]["cameras"].find())
    assert found == ([{"_id": "cam1"}] if server == "mongo" else [])

    pid = services.entry(server)["processes"][server]["pid"]
    services.do("down")
    assert not runs(pid)
    assert not listens(process["address"])
    assert not services.state.exists()


def test_which_of_the_two_has_change_streams(mongo: MongoServer) -> None:
    """The reason for having both: `comux.control.mongo` watches one and polls the other."""
    mongo.put("cameras", {"_id": "cam1"})
    if mongo.name == "mongo":
        with pytest.raises(OperationFailure) as refused:
            mongo["cameras"].watch()
        assert refused.value.code == 238
    elif mongo.name == "mongo-streams":
        assert "operationTime" not in mongo.client.admin.command("ping")


@pytest.mark.parametrize(
    ("server", "tools", "missing"),
    [
        ("mongo", (), "go is not on the PATH; install it (Debian: apt-get install golang-go)"),
        ("mongo-streams", (), "java is not on the PATH; install it (Debian: apt-get install openjdk-17-jre-headless)"),
        ("mongo-streams", ("java",), "mvn is not on the PATH; install it (Debian: apt-get install maven)"),
    ],
)
def test_what_is_missing_is_told(tmp_path: Path, server: str, tools: tuple[str, ...], missing: str) -> None:
    (tmp_path / "bin").mkdir()
    for name in tools:
        (tmp_path / "bin" / name).write_text("#!/bin/sh\n")
        (tmp_path / "bin" / name).chmod(0o755)
    services = Services(tmp_path / "state")
    env = {**os.environ, "PATH": str(tmp_path / "bin"), "COMUX_SERVICES_CACHE": str(tmp_path / "cache")}
    done = services.run("up", server, env=env)
    assert done.returncode == 3
    assert missing in done.stderr
    assert not services.state.exists()
    assert not [each for each in (tmp_path / "cache").glob("*") if each.is_dir()]


def test_a_build_that_fails_leaves_nothing_and_is_told(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    go = tmp_path / "bin" / "go"
    go.write_text(f"#!{sys.executable}\nimport sys\nopen(sys.argv[-2], 'w')\nsys.exit('no network')\n")
    go.chmod(0o755)
    env = {**os.environ, "PATH": str(tmp_path / "bin"), "COMUX_SERVICES_CACHE": str(tmp_path / "cache")}
    done: subprocess.CompletedProcess[str] = Services(tmp_path / "state").run("fetch", "mongo", env=env)
    assert done.returncode == 1
    assert "go could not build ferretdb (exit code 1):\nno network" in done.stderr
    assert not [each for each in (tmp_path / "cache").glob("*") if each.is_dir()]
