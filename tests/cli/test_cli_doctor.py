"""``comux doctor``: each look, where all is well and where it is not."""

from __future__ import annotations

import errno
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from comux.cli import doctor, main
from comux.ring.space import Space


def test_it_looks_at_this_machine_and_says_what_it_found(run: Callable[..., Any]) -> None:
    ended = run("doctor", "--format", "json")
    findings = {finding["check"]: finding for finding in json.loads(ended.out)}
    assert list(findings) == list(doctor.CHECKS)
    assert ended.code == (1 if any(finding["verdict"] == "wrong" for finding in findings.values()) else 0)
    assert all(finding["found"] for finding in findings.values())
    assert all(finding["remedy"] for finding in findings.values() if finding["verdict"] == "wrong")
    for name in ("folder of topics", "locks", "processes", "codecs"):
        assert findings[name]["verdict"] == "ok", findings[name]
    table = run("doctor")
    assert "what to do" in table.out and "shared memory" in table.out


def test_a_folder_that_others_may_write_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    base = tmp_path / "topics"
    base.mkdir()
    base.chmod(0o777)
    monkeypatch.setenv("COMUX_DIR", str(base))
    assert main.execute(["doctor", "--format", "json"]) == 1
    folder = json.loads(capsys.readouterr().out)[0]
    assert (folder["verdict"], "chmod go-w" in folder["found"]) == ("wrong", True)


def space(**facts: Any) -> Callable[[Path], Space]:
    """What the machine is said to have: 64 MB of tmpfs, half of it free, no limit."""
    usual = {"size": 64 << 20, "free": 32 << 20, "in_memory": True, "limit": None, "limit_free": None, "swap": 0}
    return lambda directory: Space(directory=Path("/dev/shm"), **(usual | facts))


@pytest.mark.parametrize(
    ("facts", "verdict", "found", "remedy"),
    [
        ({}, "wrong", "32 of 64 MB", "docker run --shm-size=2g (or --ipc=host)"),
        ({"free": 8 << 30, "size": 9 << 30}, "ok", "8192 of 9216 MB", ""),
        ({"free": 8 << 30, "size": 9 << 30, "in_memory": False}, "warning", "no memory", "COMUX_DIR=/dev/shm/mine"),
        ({"free": None, "size": None}, "ok", "no bound", ""),
    ],
)
def test_room_for_topics(
    monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], verdict: str, found: str, remedy: str
) -> None:
    monkeypatch.setattr(doctor, "space_of", space(**facts))
    said = doctor.shared_memory()
    assert said[0] == verdict and found in said[1] and remedy in said[2] and bool(said[2]) == (verdict != "ok")


def test_a_limit_that_kills_before_shared_memory_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "space_of", space())
    assert doctor.memory_limit() == ("ok", "no limit", "")
    monkeypatch.setattr(doctor, "space_of", space(size=1 << 30, limit=8 << 30, limit_free=4 << 30))
    assert doctor.memory_limit()[0] == "ok"
    monkeypatch.setattr(doctor, "space_of", space(size=8 << 30, limit=4 << 30, limit_free=1 << 30))
    verdict, found, remedy = doctor.memory_limit()
    assert (verdict, found[:7]) == ("warning", "4096 MB") and "1024 MB are left" in found
    assert "docker run --memory=11265m" in remedy  # 3 GB in use and 8 GB of shared memory


def test_locks_that_a_file_system_refuses_or_keeps_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(doctor.fcntl, "fcntl", refuse)
    verdict, found, remedy = doctor.locks()
    assert (verdict, "Invalid argument" in found, "COMUX_DIR" in remedy) == ("wrong", True, True)
    unseen = struct.pack("hhqqi", doctor.fcntl.F_UNLCK, 0, 0, 1, 0)
    monkeypatch.setattr(doctor.fcntl, "fcntl", lambda *arguments: unseen)
    verdict, found, remedy = doctor.locks()
    assert (verdict, "nobody else sees them" in found, "COMUX_DIR" in remedy) == ("wrong", True, True)


def test_no_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert doctor.processes()[0] == "ok"
    monkeypatch.setattr(doctor, "PROC", tmp_path)
    verdict, found, remedy = doctor.processes()
    assert (verdict, "self/stat" in found, remedy) == ("wrong", True, f"mount -t proc proc {tmp_path}")


@pytest.mark.parametrize(
    ("number", "release", "found", "remedy"),
    [
        (errno.EINVAL, "6.1.0", "futex_waitv", ""),
        (errno.ENOSYS, "5.10.0-28-amd64", "this kernel (5.10.0-28-amd64) has none", "nothing breaks"),
        (errno.ENOSYS, "6.8.0-45-generic", "a seccomp profile refuses it", "docker run --security-opt seccomp="),
        (errno.EPERM, "5.15.0", "a seccomp profile refuses it", "libseccomp"),
    ],
)
def test_waiting_for_many_that_is_not_there_or_not_allowed(
    monkeypatch: pytest.MonkeyPatch, number: int, release: str, found: str, remedy: str
) -> None:
    monkeypatch.setattr(doctor, "_futex_waitv", lambda: number)
    monkeypatch.setattr(doctor.os, "uname", lambda: SimpleNamespace(release=release))
    said = doctor.waiting()
    assert said[0] == ("ok" if number == errno.EINVAL else "warning")
    assert found in said[1] and remedy in said[2]


@pytest.mark.parametrize(
    ("state", "now", "verdict", "found", "remedy"),
    [
        ((0, 0), 1.9e9, "ok", "kept by a time server", ""),
        ((5, 0), 1.9e9, "warning", "not kept by a time server", "chrony"),
        ((-1, errno.EPERM), 1.9e9, "warning", "Operation not permitted", "timedatectl status"),
        ((0, 0), 0.0, "wrong", "it is 19", "timedatectl set-ntp true"),
    ],
)
def test_clocks(
    monkeypatch: pytest.MonkeyPatch, state: tuple[int, int], now: float, verdict: str, found: str, remedy: str
) -> None:
    monkeypatch.setattr(doctor, "_adjtimex", lambda: state)
    clock = SimpleNamespace(time=lambda: now, strftime=lambda format: "1970-01-01")
    monkeypatch.setattr(doctor, "time", clock)
    said = doctor.clock()
    assert said[0] == verdict and found in said[1] and remedy in said[2]


@pytest.mark.parametrize(("text", "verdict"), [("[Login]\n#RemoveIPC=yes\n", "warning"), ("RemoveIPC = no\n", "ok")])
def test_systemd_may_remove_topics_at_logout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, verdict: str
) -> None:
    monkeypatch.setattr(doctor.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(doctor.Path, "is_dir", lambda self: str(self) == "/run/systemd/system")
    (tmp_path / "logind.conf").write_text(text)
    monkeypatch.setattr(doctor, "LOGIND", (tmp_path / "logind.conf", tmp_path / "none.d"))
    found = doctor.logout()
    assert found[0] == verdict
    assert verdict == "ok" or "enable-linger 1000" in found[2]


def test_codecs_that_are_missing_and_few_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    import comux.decoders
    from comux.errors import UnknownCodecError

    create = comux.decoders.create_decoder

    def without_av1(options: Any) -> Any:
        if options.codec == "av1":
            raise UnknownCodecError("no av1 here")
        return create(options)

    monkeypatch.setattr(comux.decoders, "create_decoder", without_av1)
    assert doctor.codecs()[:2] == ("warning", "PyAV has no decoder for av1")
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda which: (256, 4096))
    assert doctor.files() == ("warning", "256 at most: about 32 sources", "ulimit -n 4096")


def test_slow_pixels_are_told(tmp_path: Path) -> None:
    probe = "from comux.cli.doctor import kernel; print(kernel()[:2])"
    done = subprocess.run(
        [sys.executable, "-P", "-c", probe],
        env={**os.environ, "COMUX_PIXELS": "plain"},
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stdout == "('warning', 'plain: slower')\n"


def test_a_look_that_fails_keeps_no_other_from_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Any:
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setitem(doctor.CHECKS, "clock", fail)
    findings = {finding.check: finding for finding in doctor.examine()}
    assert findings["clock"].verdict == "warning"
    assert "ZeroDivisionError: a mistake of ours" in findings["clock"].found
    assert len(findings) == len(doctor.CHECKS)
