"""The cache of downloads: complete folders only, made once, whoever asks at the same time."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from servers.keeping import MissingTool, ServiceError, run, say

JAVA_PACKAGE = "openjdk-17-jre-headless"
_FETCH_TIMEOUT = 600.0


def cache() -> Path:
    """Where downloads are kept: ``COMUX_SERVICES_CACHE``, else ``~/.cache/comux/services``."""
    return Path(os.environ.get("COMUX_SERVICES_CACHE") or Path.home() / ".cache" / "comux" / "services")


def tool(name: str, package: str) -> str:
    """The path of a program. Raises `MissingTool` with the package to install where it is not on the PATH."""
    found = shutil.which(name)
    if found is None:
        raise MissingTool(f"{name} is not on the PATH; install it (Debian: apt-get install {package})")
    return found


def jars(pom: Path) -> list[Path]:
    """The jars a Maven POM names, with all they depend on; downloaded the first time (43 MB for Kafka)."""
    return sorted(_kept(pom.stem, [pom], lambda part: _download(pom, part)).glob("*.jar"))


def binary(source: Path) -> Path:
    """The program that a folder with ``main.go`` and ``go.mod`` is the source of; built the first time."""
    home = _kept(source.name, [source / "go.mod", source / "main.go"], lambda part: _build(source, part))
    return home / source.name


def _kept(stem: str, made_from: list[Path], make: Callable[[Path], None]) -> Path:
    """A folder of the cache that ``make`` filled, once.

    The folder's name holds the checksum of the files it is made from, so a changed one is another folder. It is filled
    under a name of its own and renamed when it is complete: what was cut off is never taken for a whole one.
    """
    name = f"{stem}-{hashlib.sha256(b''.join(path.read_bytes() for path in made_from)).hexdigest()[:12]}"
    home = cache() / name
    if not home.is_dir():
        cache().mkdir(parents=True, exist_ok=True)
        with (cache() / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not home.is_dir():
                _fill(home, make)
    return home


def _fill(home: Path, make: Callable[[Path], None]) -> None:
    for left in home.parent.glob(f"{home.name}.part-*"):  # of one that was killed; the lock is ours
        shutil.rmtree(left)
    part = Path(tempfile.mkdtemp(prefix=f"{home.name}.part-", dir=home.parent))
    try:
        make(part)
        part.chmod(0o755)
        part.rename(home)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _download(pom: Path, folder: Path) -> None:
    tool("java", JAVA_PACKAGE)
    maven = tool("mvn", "maven")
    say(f"fetching {pom.stem} (once)")
    command = [maven, "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", f"-DoutputDirectory={folder}"]
    code, output = run(command, timeout=_FETCH_TIMEOUT)
    if code != 0 or not any(folder.glob("*.jar")):
        raise ServiceError(f"mvn could not fetch {pom.name} (exit code {code}):\n{output[-3000:]}")


def _build(source: Path, folder: Path) -> None:
    """``go build`` in a copy, for it writes down in go.mod and go.sum all that it found."""
    go = tool("go", "golang-go")
    say(f"building {source.name} (once, a minute or two)")
    with tempfile.TemporaryDirectory(prefix="source-", dir=folder) as copy:
        for name in ("go.mod", "main.go"):
            shutil.copy(source / name, copy)
        command = [go, "build", "-C", copy, "-mod=mod", "-trimpath", "-o", str(folder / source.name), "."]
        code, output = run(command, timeout=_FETCH_TIMEOUT, env={"CGO_ENABLED": "0"})
        if code != 0 or not (folder / source.name).is_file():
            raise ServiceError(f"go could not build {source.name} (exit code {code}):\n{output[-3000:]}")
