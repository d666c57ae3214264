"""``comux doctor``: what of this machine comux needs, whether it is there, and what to type where it is not."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import resource
import struct
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

from rich.text import Text

from comux.cli.tables import check_format, console, plain_table, print_json
from comux.errors import ComuxError, ConfigError
from comux.ring.directory import check_directory, default_directory
from comux.ring.space import Space, space_of

Verdict = Literal["ok", "warning", "wrong"]

ROOM_MB: Final = 256  #: of shared memory, below which a few cameras do not fit
FILES: Final = 1024  #: that a program with a hundred cameras has open
_STYLES: Final = {"ok": "green", "warning": "yellow", "wrong": "bold red"}
_SYS_FUTEX_WAITV: Final = 449
_F_OFD_GETLK: Final = 36
_F_OFD_SETLK: Final = 37
_FLOCK: Final = "hhqqi"
_TIME_ERROR: Final = 5
_RELEASED: Final = 1.79e9  #: Unix time before which no clock that is right can be
_CODECS: Final = ("h264", "hevc", "mjpeg", "vp9", "av1")
LOGIND: Final = (Path("/etc/systemd/logind.conf"), Path("/etc/systemd/logind.conf.d"))
PROC: Final = Path("/proc")


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


def shared_memory() -> Found:
    """Room for topics."""
    space = space_of(default_directory())
    if space.free is None or space.size is None:
        return "ok", f"no bound at {space.directory}", ""
    found = f"{space.free >> 20} of {space.size >> 20} MB are free at {space.directory}"
    if not space.in_memory:
        remedy = "put topics on tmpfs, where no disk slows them: unset COMUX_DIR, or export COMUX_DIR=/dev/shm/mine"
        return "warning", f"{found}, which is no memory", remedy
    if space.free >= ROOM_MB << 20:
        return "ok", found, ""
    remedy = "containers: docker run --shm-size=2g (or --ipc=host); else: mount -o remount,size=2G /dev/shm"
    return "wrong", found, f"{remedy}; comux gc removes what nobody uses, comux plan memory says how much topics take"


def memory_limit() -> Found:
    """A control group's limit, which kills instead of refusing."""
    space = space_of(default_directory())
    if space.limit is None or space.limit_free is None:
        return "ok", "no limit", ""
    left = max(0, space.limit_free)
    found = f"{space.limit >> 20} MB for all of this container, shared memory included; {left >> 20} MB are left"
    if left >= (space.size or space.limit) and left >= ROOM_MB << 20:
        return "ok", found, ""
    remedy = f"topics that grow past it end a process instead of an error: docker run --memory={_enough(space)}m"
    return "warning", found, f"{remedy}, or systemctl set-property UNIT MemoryMax={_enough(space)}M"


def _enough(space: Space) -> int:
    """MB for what is in use and all that topics may take."""
    used = (space.limit or 0) - (space.limit_free or 0)
    return (used + max(space.size or 0, ROOM_MB << 20) >> 20) + 1


def locks() -> Found:
    """Locks of open file descriptions, by which the dead are told from the living."""
    base = space_of(default_directory()).directory
    elsewhere = "put topics on a local file system (tmpfs): export COMUX_DIR=/dev/shm/mine"
    with tempfile.NamedTemporaryFile(dir=base) as file, open(file.name, "rb") as other:  # noqa: PTH123 - its name is text
        try:
            fcntl.fcntl(file, _F_OFD_SETLK, _whole_file(fcntl.F_WRLCK))
            seen = fcntl.fcntl(other, _F_OFD_GETLK, _whole_file(fcntl.F_RDLCK))
        except OSError as exc:
            return "wrong", f"refused at {base}: {exc.strerror}", elsewhere
    if struct.unpack(_FLOCK, seen)[0] == fcntl.F_UNLCK:
        return "wrong", f"taken at {base}, but nobody else sees them: the living would look dead", elsewhere
    return "ok", f"work at {base}", ""


def _whole_file(kind: int) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, 0, 1, 0)


def processes() -> Found:
    """What /proc tells: who a process is, and the file behind a descriptor."""
    missing = [name for name in ("self/stat", "self/fd", "self/ns/pid", "self/cgroup") if not (PROC / name).exists()]
    if not missing:
        return "ok", f"{PROC} tells", ""
    return "wrong", f"{PROC} has no {', '.join(missing)}", f"mount -t proc proc {PROC}"


def waiting() -> Found:
    """Waiting for many topics at once."""
    number = _futex_waitv()
    if number not in (errno.ENOSYS, errno.EPERM):
        return "ok", "futex_waitv", ""
    slower = "nothing breaks: a consumer of many topics wakes up a little more often"
    release = os.uname().release
    version = tuple(int(part) for part in re.findall(r"\d+", release)[:2])
    if number == errno.ENOSYS and version < (5, 16):
        return "warning", f"no futex_waitv: this kernel ({release}) has none, Linux 5.16 has", slower
    remedy = (
        "update Docker and libseccomp (2.5.4 knows it), or docker run --security-opt seccomp=PROFILE that allows it"
    )
    return "warning", f"no futex_waitv: a seccomp profile refuses it (kernel {release} has it)", f"{slower}; {remedy}"


def _futex_waitv() -> int:
    """The error number of a call that waits for nothing."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(ctypes.c_long(_SYS_FUTEX_WAITV), None, 0, 0, None, 0)
    return ctypes.get_errno()


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
    kept, number = _adjtimex()
    if time.time() < _RELEASED:
        return "wrong", f"it is {time.strftime('%Y-%m-%d')} here", "set the clock: timedatectl set-ntp true"
    if kept < 0:
        return (
            "warning",
            f"not known: {os.strerror(number)}",
            "look on the host: timedatectl status, or chronyc tracking",
        )
    if kept == _TIME_ERROR:
        remedy = "for ages across machines: install chrony, or timedatectl set-ntp true (of a container: on its host)"
        return "warning", "not kept by a time server", remedy
    return "ok", "kept by a time server", ""


def _adjtimex() -> tuple[int, int]:
    """The clock's state, or -1 and an error number."""
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.adjtimex(ctypes.create_string_buffer(256)), ctypes.get_errno()


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
        remedy = "its wheels have them, a build against another FFmpeg may not: pip install --force-reinstall av"
        return "warning", f"PyAV has no decoder for {', '.join(missing)}", f"{remedy} --only-binary=av"
    return "ok", f"{', '.join(_CODECS)} (PyAV {metadata.version('av')})", ""


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
    "processes": processes,
    "waiting": waiting,
    "logout": logout,
    "clock": clock,
    "codecs": codecs,
    "pixels": kernel,
    "open files": files,
}
