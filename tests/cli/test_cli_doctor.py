"""``comux doctor``: each look, where all is well and where it is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from comux.cli import doctor, main


def test_it_looks_at_this_machine_and_says_what_it_found(run: Callable[..., Any]) -> None:
    ended = run("doctor", "--format", "json")
    findings = {finding["check"]: finding for finding in json.loads(ended.out)}
    assert list(findings) == list(doctor.CHECKS)
    assert ended.code == (1 if any(finding["verdict"] == "wrong" for finding in findings.values()) else 0)
    assert all(finding["found"] for finding in findings.values())
    assert all(finding["remedy"] for finding in findings.values() if finding["verdict"] == "wrong")
    for name in ("folder of topics", "locks", "codecs"):
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


def test_little_shared_memory_and_a_limit_below_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    room = SimpleNamespace(f_bavail=100, f_blocks=16384, f_frsize=4096)  # Docker's 64 MB
    monkeypatch.setattr(doctor.os, "statvfs", lambda path: room)
    verdict, found, remedy = doctor.shared_memory()
    assert (verdict, "0 of 64 MB" in found, "--shm-size" in remedy) == ("wrong", True, True)
    monkeypatch.setattr(doctor, "CGROUP", tmp_path)
    assert doctor.memory_limit()[:2] == ("ok", "no limit")
    (tmp_path / "memory.max").write_text("max\n")
    assert doctor.memory_limit()[:2] == ("ok", "no limit")
    (tmp_path / "memory.max").write_text(f"{32 << 20}\n")
    verdict, found, remedy = doctor.memory_limit()
    assert (verdict, found.startswith("32 MB"), "--memory" in remedy) == ("warning", True, True)


def test_locks_that_a_file_system_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(doctor.fcntl, "fcntl", refuse)
    verdict, found, remedy = doctor.locks()
    assert (verdict, "Invalid argument" in found, "COMUX_DIR" in remedy) == ("wrong", True, True)


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
