"""Two databases that speak MongoDB's protocol; MongoDB itself comes from no package registry.

``Mongo`` is FerretDB, whose data are SQLite files in the server's folder: what was written is there after a kill. It
has no change streams. ``MongoStreams`` is mongo-java-server: it has them, keeps everything in memory, and a kill loses
it. Neither asks who comes; both listen on 127.0.0.1 only.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from servers.fetching import JAVA_PACKAGE, binary, jars, tool
from servers.keeping import Entry, NotReady, Ports

_HERE = Path(__file__).parent
_POM = _HERE / "mongo-streams-pom.xml"
_CLIENT_TIMEOUT = 5.0


class _OneProcess:
    """What both have in common: one process with one address, and the round trip."""

    def _entry(self, name: str, folder: Path, address: str, command: list[str]) -> Entry:
        url = f"mongodb://{address}/"
        process = {"address": address, "log": str(folder / "server.log"), "command": command}
        processes = {name: process}
        return {"kind": "mongo", "bootstrap": url, "addresses": {"plain": url}, "users": {}, "processes": processes}

    def round_trip(self, entry: Entry, names: list[str]) -> None:
        """Put a document into a database of its own, read it back, remove the database."""
        from pymongo import MongoClient
        from pymongo.errors import PyMongoError

        milliseconds = int(_CLIENT_TIMEOUT * 1000)
        database, document = f"comux_services_ready_{secrets.token_hex(8)}", {"_id": secrets.token_hex(8)}
        client: MongoClient[dict[str, Any]] = MongoClient(
            entry["bootstrap"], serverSelectionTimeoutMS=milliseconds, socketTimeoutMS=milliseconds
        )
        try:
            with client:
                client[database]["ready"].insert_one(dict(document))
                found = client[database]["ready"].find_one(document)
                client.drop_database(database)
        except PyMongoError as exc:
            raise NotReady(f"{type(exc).__name__}: {exc}") from exc
        if found != document:
            raise NotReady(f"a document written to {database} came back as {found}")


class Mongo(_OneProcess):
    """FerretDB with SQLite, built by Go."""

    def fetch(self) -> None:
        binary(_HERE / "ferretdb")

    def prepare(self, name: str, folder: Path, ports: Ports) -> Entry:
        program = binary(_HERE / "ferretdb")
        data = folder / "data"
        data.mkdir(mode=0o700)
        address = f"127.0.0.1:{ports.take()}"
        return self._entry(name, folder, address, [str(program), address, str(data)])


class MongoStreams(_OneProcess):
    """mongo-java-server, in memory."""

    def fetch(self) -> None:
        tool("java", JAVA_PACKAGE)
        jars(_POM)

    def prepare(self, name: str, folder: Path, ports: Ports) -> Entry:
        java = tool("java", JAVA_PACKAGE)
        class_path = ":".join(map(str, jars(_POM)))
        address = f"127.0.0.1:{ports.take()}"
        options = ["-Xmx128m", "-XX:TieredStopAtLevel=1", "-cp", class_path]
        program = str(_HERE / "MongoStreams.java")
        return self._entry(name, folder, address, [java, *options, program, *address.split(":")])
