"""A broker that runs on this machine: its process, found by the port it listens on; its CPU time and memory."""

from __future__ import annotations

import os
from pathlib import Path

from comux.transport.address import parse_address

_LISTENS = "0A"


class Server:
    """The processes that listen on the ports of an address.

    Args:
        pids: Of them.
    """

    def __init__(self, pids: set[int]) -> None:
        self.pids = pids

    @classmethod
    def at(cls, address: str) -> Server | None:
        """Of a Kafka address; ``None`` where it names no broker of this machine and this user."""
        hosts = parse_address(address).hosts
        ports = {int(host.rpartition(":")[2]) for host in hosts if host.startswith(("127.", "localhost:"))}
        pids = _listeners(ports) if ports else set()
        return cls(pids) if pids else None

    def cpu_s(self) -> float:
        """CPU seconds that all of them have taken."""
        ticks = 0
        for pid in self.pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory_bytes(self) -> int:
        """Resident memory of all of them."""
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.pids)
        return pages * os.sysconf("SC_PAGE_SIZE")


def _listeners(ports: set[int]) -> set[int]:
    inodes = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) in ports:
                inodes.add(f"socket:[{fields[9]}]")
    found = set()
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        try:
            targets = {os.readlink(fd) for fd in (process / "fd").iterdir()}  # noqa: PTH115 - they are no paths
        except OSError:  # another user's, or it has ended
            continue
        if targets & inodes:
            found.add(int(process.name))
    return found
