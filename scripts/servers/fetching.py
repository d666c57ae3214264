"""The cache of downloads: complete folders only, made once, whoever asks at the same time."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from servers.keeping import MissingTool, ServiceError, run, say

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
    """The jars a Maven POM names, with all they depend on; downloaded the first time (43 MB for Kafka).

    The folder's name holds the POM's checksum, so a changed POM is another folder. It is filled under a name of its
    own and renamed when it is complete: a download that was cut off is never taken for a whole one.
    """
    name = f"{pom.stem}-{hashlib.sha256(pom.read_bytes()).hexdigest()[:12]}"
    home = cache() / name
    if not home.is_dir():
        cache().mkdir(parents=True, exist_ok=True)
        with (cache() / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not home.is_dir():
                _download(pom, home)
    return sorted(home.glob("*.jar"))


def _download(pom: Path, home: Path) -> None:
    tool("java", "openjdk-17-jre-headless")
    maven = tool("mvn", "maven")
    for left in home.parent.glob(f"{home.name}.part-*"):  # of a download that was killed; the lock is ours
        shutil.rmtree(left)
    part = Path(tempfile.mkdtemp(prefix=f"{home.name}.part-", dir=home.parent))
    try:
        say(f"fetching {pom.stem} into {home} (once)")
        command = [maven, "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", f"-DoutputDirectory={part}"]
        code, output = run(command, timeout=_FETCH_TIMEOUT)
        if code != 0 or not any(part.glob("*.jar")):
            raise ServiceError(f"mvn could not fetch {pom.name} (exit code {code}):\n{output[-3000:]}")
        part.chmod(0o755)
        part.rename(home)
    finally:
        shutil.rmtree(part, ignore_errors=True)
