"""``comux doctor``: what of this machine comux needs, whether it is there, and what to type where it is not."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import struct
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from rich.text import Text

from comux.cli.tables import check_format, console, plain_table, print_json
from comux.errors import ComuxError, ConfigError
from comux.ring.directory import check_directory, default_directory

Verdict = Literal["ok", "warning", "wrong"]

ROOM_MB: Final = 256  #: of shared memory, below which a few cameras do not fit
FILES: Final = 1024  #: that a program with a hundred cameras has open
_STYLES: Final = {"ok": "green", "warning": "yellow", "wrong": "bold red"}
_SYS_FUTEX_WAITV: Final = 449
_F_OFD_SETLK: Final = 37
_TIME_ERROR: Final = 5
_RELEASED: Final = 1.79e9  #: Unix time before which no clock that is right can be
_CODECS: Final = ("h264", "hevc", "mjpeg", "vp9", "av1")
LOGIND: Final = (Path("/etc/systemd/logind.conf"), Path("/etc/systemd/logind.conf.d"))
CGROUP: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look found.

    Attributes:
        check: Its name.
        verdict: ``ok``; ``warning``: it works, with less; ``wrong``: something will fail.
        found: In words, with the numbers.
        remedy: What to do; empty where nothing is.
    """

    check: str
    verdict: Verdict
    found: str
    remedy: str = ""


def run_doctor(format: str) -> int:
    """Look at everything and print it.

    Returns:
        0, or 1 where something is wrong.
    """
    as_data = check_format(format)
    findings = examine()
    if as_data:
        print_json([asdict(finding) for finding in findings])
    else:
        table = plain_table("check", "", "found", "what to do")
        for each in findings:
            table.add_row(each.check, Text(each.verdict, style=_STYLES[each.verdict]), each.found, each.remedy)
        console().print(table)
    return 1 if any(finding.verdict == "wrong" for finding in findings) else 0


def examine() -> list[Finding]:
    """Every look, in order; one that fails itself is a finding."""
    out: list[Finding] = []
    for name, look in CHECKS.items():
        try:
            verdict, found, remedy = look()
            out.append(Finding(name, verdict, found, remedy))
        except Exception as exc:  # noqa: BLE001 - what one look meets must not keep the others from looking
            out.append(Finding(name, "warning", f"could not be looked at: {type(exc).__name__}: {exc}"))
    return out


Found = tuple[Verdict, str, str]


def folder() -> Found:
    """Where topics live."""
    base = default_directory()
    try:
        check_directory(base)
    except ConfigError as exc:
        return "wrong", str(exc), "do what it says, or: export COMUX_DIR=/dev/shm/mine"
    exists = "there" if base.is_dir() else "made with the first topic"
    return "ok", f"{base}, {exists}", ""


def _mount(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def shared_memory() -> Found:
    """Room for topics."""
    base = _mount(default_directory())
    stat = os.statvfs(base)
    free, size = (stat.f_bavail * stat.f_frsize >> 20, stat.f_blocks * stat.f_frsize >> 20)
    found = f"{free} of {size} MB are free at {base}"
    if free >= ROOM_MB:
        return "ok", found, ""
    remedy = "containers: docker run --shm-size=2g (or --ipc=host); else: mount -o remount,size=2G /dev/shm"
    return "wrong", found, f"{remedy}; comux topics list shows what takes it"


def memory_limit() -> Found:
    """A control group's limit, which kills instead of refusing."""
    limits = []
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            limits.append(int((CGROUP / name).read_text()))
        except (OSError, ValueError):  # none, or "max"
            continue
    bounded = [limit for limit in limits if limit < 1 << 60]
    if not bounded:
        return "ok", "no limit", ""
    limit = min(bounded)
    stat = os.statvfs(_mount(default_directory()))
    found = f"{limit >> 20} MB for all of this container, shared memory included"
    if limit >= stat.f_blocks * stat.f_frsize:
        return "ok", found, ""
    return "warning", found, "topics that grow past it end a process instead of an error: docker run --memory=…"


def locks() -> Found:
    """Locks of open file descriptions, by which the dead are told from the living."""
    base = _mount(default_directory())
    with tempfile.TemporaryFile(dir=base) as file:
        flock = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
        try:
            fcntl.fcntl(file, _F_OFD_SETLK, flock)
        except OSError as exc:
            remedy = "put topics on a local file system (tmpfs): export COMUX_DIR=/dev/shm/mine"
            return "wrong", f"refused at {base}: {exc.strerror}", remedy
    return "ok", f"work at {base}", ""


def waiting() -> Found:
    """Waiting for many topics at once."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(ctypes.c_long(_SYS_FUTEX_WAITV), None, 0, 0, None, 0)
    if ctypes.get_errno() not in (errno.ENOSYS, errno.EPERM):
        return "ok", "futex_waitv", ""
    missing = ctypes.get_errno() == errno.ENOSYS
    why = "this kernel has none (Linux 5.16 has)" if missing else "a seccomp profile refuses it"
    remedy = "nothing breaks: a consumer of many topics wakes up a little more often"
    return "warning", f"no futex_waitv: {why}", remedy


def logout() -> Found:
    """systemd removes a user's shared memory at logout."""
    if os.geteuid() < 1000:
        return "ok", "a system user's files stay", ""
    for path in LOGIND:
        for file in [path] if path.is_file() else sorted(path.glob("*.conf")) if path.is_dir() else []:
            for line in file.read_text(errors="replace").splitlines():
                if line.replace(" ", "").lower() in ("removeipc=no", "removeipc=false", "removeipc=0"):
                    return "ok", f"RemoveIPC=no in {file}", ""
    if not Path("/run/systemd/system").is_dir():
        return "ok", "no systemd", ""
    remedy = f"for programs that outlive a login: sudo loginctl enable-linger {os.geteuid()}, or RemoveIPC=no"
    remedy += f" in {LOGIND[0]}"
    return "warning", "systemd removes this user's topics when the last login ends (RemoveIPC)", remedy


def clock() -> Found:
    """The time of day, by which ages across machines are told."""
    libc = ctypes.CDLL(None, use_errno=True)
    kept = libc.adjtimex(ctypes.create_string_buffer(256))  # its result is the clock's state
    if kept < 0:
        return "warning", f"not known: {os.strerror(ctypes.get_errno())}", ""
    if time.time() < _RELEASED:
        return "wrong", f"it is {time.strftime('%Y-%m-%d')} here", "set the clock: timedatectl set-ntp true"
    if kept == _TIME_ERROR:
        remedy = "for ages across machines: install chrony, or timedatectl set-ntp true"
        return "warning", "not kept by a time server", remedy
    return "ok", "kept by a time server", ""


def codecs() -> Found:
    """Decoders of PyAV."""
    from comux.decoders import create_decoder
    from comux.decoders.interface import DecoderOptions

    missing = []
    for codec in _CODECS:
        try:
            create_decoder(DecoderOptions(codec=codec)).close()
        except ComuxError:
            missing.append(codec)
    if missing:
        return "warning", f"PyAV has no decoder for {', '.join(missing)}", "pip install --force-reinstall av"
    return "ok", ", ".join(_CODECS), ""


def kernel() -> Found:
    """The conversion of pictures."""
    from comux.decoders.convert import conversion_path

    path = conversion_path()
    if path in ("plain", "swscale"):
        return "warning", f"{path}: slower", "a processor with SSE4.1, AVX2 or AVX-512, and COMUX_PIXELS unset"
    return "ok", path, ""


def files() -> Found:
    """Open files a process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= FILES:
        return "ok", f"{soft} at most", ""
    return "warning", f"{soft} at most: about {soft // 8} sources", f"ulimit -n {min(hard, 65536)}"


CHECKS: Final[dict[str, Callable[[], Found]]] = {
    "folder of topics": folder,
    "shared memory": shared_memory,
    "memory limit": memory_limit,
    "locks": locks,
    "waiting": waiting,
    "logout": logout,
    "clock": clock,
    "codecs": codecs,
    "pixels": kernel,
    "open files": files,
}
