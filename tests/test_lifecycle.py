"""Pid files, ending programs and whom they started, with real processes: obedient, deaf, dead, replaced, strangers."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from comux.errors import ConfigError
from comux.family import Family
from comux.lifecycle import (
    StopEvent,
    end_with_parent,
    process_start,
    stop_on_signals,
    terminate,
    until_stopped,
    write_pid_file,
)

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "terminate.py"

OBEDIENT = """
import sys, signal
from comux.lifecycle import write_pid_file
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
write_pid_file(sys.argv[1]); print("ready", flush=True); signal.pause()
"""
PLAIN = """
import sys, signal
from comux.lifecycle import write_pid_file
write_pid_file(sys.argv[1]); print("ready", flush=True); signal.pause()
"""
DEAF = """
import sys, signal
from comux.lifecycle import write_pid_file
signal.signal(signal.SIGTERM, signal.SIG_IGN)
write_pid_file(sys.argv[1]); print("ready", flush=True)
while True: signal.pause()
"""
FIRST_COMUX = """
import os, signal, sys
file = open(sys.argv[1], "w"); file.write(str(os.getpid())); file.flush(); print("ready", flush=True); signal.pause()
"""
SHORT = """
import sys
from comux.lifecycle import write_pid_file
write_pid_file(sys.argv[1]); print("ready", flush=True); sys.stdin.readline()
"""
Spawn = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Spawn]:
    children: list[subprocess.Popen[str]] = []

    def start(code: str, *args: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", code, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path
        )
        children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        return child

    yield start
    for child in children:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()


def test_the_file_names_this_process_and_only_its_user_may_read_it(tmp_path: Path) -> None:
    path = write_pid_file(tmp_path / "pid")
    content = json.loads(path.read_text())
    assert (content["pid"], content["start"]) == (os.getpid(), process_start(os.getpid()))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["pid"]
    assert write_pid_file(tmp_path / "pid") == path


def test_an_obedient_program_ends_and_its_file_goes(tmp_path: Path, spawn: Spawn) -> None:
    child = spawn(OBEDIENT, "pid")
    result = terminate(tmp_path / "pid")
    assert (result.outcome, result.pid, result.ok, result.exit_code) == ("terminated", child.pid, True, 0)
    assert child.wait() == 0
    assert list(tmp_path.iterdir()) == []


def test_a_program_without_a_handler_ends_and_its_file_goes(tmp_path: Path, spawn: Spawn) -> None:
    child = spawn(PLAIN, "pid")
    assert terminate(tmp_path / "pid").outcome == "terminated"
    assert child.wait() == -signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_a_deaf_program_is_left_or_killed(tmp_path: Path, spawn: Spawn) -> None:
    child = spawn(DEAF, "pid")
    asked = terminate(tmp_path / "pid", timeout=0.2, kill=False)
    assert (asked.outcome, asked.exit_code) == ("still_running", 1)
    assert child.poll() is None
    assert (tmp_path / "pid").exists()
    result = terminate(tmp_path / "pid", timeout=0.2)
    assert (result.outcome, result.exit_code) == ("killed", 0)
    assert result.seconds >= 0.2
    assert child.wait() == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_a_normal_exit_removes_the_file(tmp_path: Path, spawn: Spawn) -> None:
    child = spawn(SHORT, "pid")
    assert (tmp_path / "pid").exists()
    child.communicate("end\n")
    assert child.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_a_dead_programs_file_is_an_answer(tmp_path: Path, spawn: Spawn) -> None:
    child = spawn(PLAIN, "pid")
    child.kill()
    child.wait()
    result = terminate(tmp_path / "pid")
    assert (result.outcome, result.pid, result.exit_code) == ("not_running", child.pid, 0)
    assert list(tmp_path.iterdir()) == []
    again = terminate(tmp_path / "pid")
    assert (again.outcome, again.exit_code) == ("no_file", 0)


def test_a_zombie_counts_as_ended(tmp_path: Path, spawn: Spawn) -> None:
    child = spawn(PLAIN, "pid")
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, but not collected
    assert terminate(tmp_path / "pid").outcome == "not_running"


def test_a_reused_pid_is_refused(tmp_path: Path, spawn: Spawn) -> None:
    child = spawn(PLAIN, "own")
    start = process_start(child.pid)
    assert start is not None
    text = json.dumps({"pid": child.pid, "start": start - 1, "comux": 1})
    (tmp_path / "pid").write_text(text)
    result = terminate(tmp_path / "pid")
    assert (result.outcome, result.exit_code) == ("refused", 2)
    assert "another process" in result.message
    assert child.poll() is None
    assert (tmp_path / "pid").read_text() == text


def test_the_first_comuxs_bare_number(tmp_path: Path, spawn: Spawn) -> None:
    child = spawn(FIRST_COMUX, "pid")
    assert (tmp_path / "pid").read_text() == str(child.pid)
    assert terminate(tmp_path / "pid").outcome == "terminated"
    assert child.wait() == -signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_a_bare_number_of_another_kind_of_program_is_refused(tmp_path: Path) -> None:
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(b"ready\n")
        child.stdin.flush()
        assert child.stdout.readline() == b"ready\n"  # its exec is over: until then it has no command line
        (tmp_path / "pid").write_text(f"{child.pid}\n")
        result = terminate(tmp_path / "pid")
        assert (result.outcome, result.exit_code) == ("refused", 2)
        assert "cat" in result.message
        assert child.poll() is None
    finally:
        child.stdin.close()
        child.wait()
        child.stdout.close()


@pytest.mark.parametrize("pid", [-1, 0, 1, 2**40, -os.getpgrp()])
def test_numbers_that_are_never_ended(tmp_path: Path, pid: int) -> None:
    for text in (str(pid), json.dumps({"pid": pid, "start": process_start(1) or 0, "comux": 1})):
        (tmp_path / "pid").write_text(text)
        assert terminate(tmp_path / "pid").outcome == "refused"


def test_it_does_not_end_itself(tmp_path: Path) -> None:
    write_pid_file(tmp_path / "pid")
    assert terminate(tmp_path / "pid").outcome == "refused"


@pytest.mark.parametrize("text", ["", "hello", "4711 4712", "{}", '{"pid": true, "start": 1}', "[" * 5000, "9" * 5000])
def test_what_is_no_pid_file_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "pid"
    path.write_text(text)
    result = terminate(path)
    assert (result.outcome, result.exit_code) == ("refused", 2)
    with pytest.raises(ConfigError, match="pid file"):
        write_pid_file(path)
    assert path.read_text() == text
    assert [p.name for p in tmp_path.iterdir()] == ["pid"]


def test_links_and_folders_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "pid").symlink_to("victim")
    assert terminate(tmp_path / "pid").outcome == "refused"
    with pytest.raises(ConfigError, match="symbolic link"):
        write_pid_file(tmp_path / "pid")
    assert (tmp_path / "victim").read_text() == "precious"
    (tmp_path / "folder").mkdir()
    assert terminate(tmp_path / "folder").outcome == "refused"
    with pytest.raises(ConfigError, match="cannot be written"):
        write_pid_file(tmp_path / "missing" / "pid")


def test_a_living_programs_file_is_kept_and_a_stale_one_replaced(tmp_path: Path, spawn: Spawn) -> None:
    child = spawn(PLAIN, "pid")
    before = (tmp_path / "pid").read_text()
    with pytest.raises(ConfigError, match=f"pid {child.pid}, which is running"):
        write_pid_file(tmp_path / "pid")
    assert (tmp_path / "pid").read_text() == before
    child.kill()
    child.wait()
    write_pid_file(tmp_path / "pid")
    assert json.loads((tmp_path / "pid").read_text())["pid"] == os.getpid()
    assert [p.name for p in tmp_path.iterdir()] == ["pid"]


def test_of_many_programs_starting_at_once_one_has_the_file(tmp_path: Path) -> None:
    code = """
import sys
from comux.errors import ConfigError
from comux.lifecycle import write_pid_file
print("ready", flush=True); sys.stdin.readline()
try:
    write_pid_file("pid"); print("mine", flush=True)
except ConfigError:
    print("taken", flush=True)
sys.stdin.readline()
"""
    (tmp_path / "pid").write_text(json.dumps({"pid": 2**22 + 5, "start": 1, "comux": 1}))  # stale
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path
        )
        for _ in range(4)
    ]
    try:
        for word in ("ready", None):
            answers = [child.stdout.readline().strip() for child in children if child.stdout]
            if word is None:
                assert sorted(answers) == ["mine", "taken", "taken", "taken"]
                owner = children[answers.index("mine")].pid
                assert json.loads((tmp_path / "pid").read_text())["pid"] == owner
            for child in children:
                assert child.stdin is not None
                child.stdin.write("go\n")
                child.stdin.flush()
    finally:
        for child in children:
            child.communicate(timeout=20)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_timeout_is_refused(tmp_path: Path) -> None:
    for timeout in (-1, float("nan"), True, "5", 1e12):
        with pytest.raises(ConfigError, match="no time"):
            terminate(tmp_path / "pid", timeout=timeout)  # type: ignore[arg-type]


def test_the_script(tmp_path: Path, spawn: Spawn) -> None:
    def run(*args: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, str(SCRIPT), *args], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, done.stdout + done.stderr

    assert run()[0] == 0
    child = spawn(DEAF, "pid")
    code, text = run("--timeout", "0.2", "--no-kill")
    assert (code, str(child.pid) in text) == (1, True)
    code, text = run("--timeout", "0.2")
    assert (code, "killed" in text) == (0, True)
    (tmp_path / "pid").write_text("1")
    assert run("pid")[0] == 2
    assert run("--timeout", "-3")[0] == 2


def test_signals_set_an_event_once_and_then_act_as_before() -> None:
    calls: list[str] = []
    with stop_on_signals(signal.SIGTERM, on_stop=lambda: calls.append("stop")) as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(5)
        assert calls == ["stop"]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    failures: list[Exception] = []

    def elsewhere() -> None:
        try:
            with stop_on_signals():
                pass
        except ConfigError as exc:
            failures.append(exc)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert len(failures) == 1


STORM = """
import signal, sys, threading
from comux.lifecycle import StopEvent
event = StopEvent()
signal.signal(signal.SIGALRM, lambda *a: event.set())
print("ready", flush=True)
for n in range(5_000):
    signal.setitimer(signal.ITIMER_REAL, (1 + n % 60) * 1e-6)  # one signal a round, each round at another point
    event.clear()
    event.wait(1e-6)
    event.set()
    assert event.is_set() and event.wait() and event.wait(0)
signal.setitimer(signal.ITIMER_REAL, 0)
"""


def test_a_signal_may_set_the_event_whatever_it_interrupts(spawn: Spawn) -> None:
    """With ``threading.Event`` this child hangs: the handler waits for the lock of what it interrupted."""
    assert spawn(STORM).wait(60) == 0


def test_the_event_wakes_all_who_wait_and_tells_the_signal() -> None:
    event = StopEvent()
    assert not event.wait(0) and not event.wait(0.01) and event.signal is None
    waiting = [threading.Thread(target=event.wait) for _ in range(5)]
    for thread in waiting:
        thread.start()
    event.set()
    for thread in waiting:
        thread.join(10)
    assert not any(thread.is_alive() for thread in waiting)
    event.clear()
    assert not event.is_set() and not event.wait(0.01)
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(10) and stop.signal == signal.SIGTERM


# -- a program and whom it started ---------------------------------------------------------------------------------

# Starts what it is told to, each a letter: p a child that ends on SIGTERM, d one that ignores it, g one that ignores it
# and has a child that does, too. On SIGTERM it ends ("obeys"), or starts another deaf child.
FAMILY = """
import os, signal, subprocess, sys
from comux.lifecycle import write_pid_file
IGNORE = "import signal, subprocess, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
DEAF = IGNORE + "print('up', flush=True)\\nwhile True: signal.pause()"
PLAIN = "import signal; print('up', flush=True); signal.pause()"
PAIR = IGNORE + f"subprocess.Popen([sys.executable, '-c', {DEAF!r}])\\nwhile True: signal.pause()"
def start(code):
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"up\\n"  # a grandchild has the same stdout
    return child
def told(*_):
    if sys.argv[1] == "obeys":
        os._exit(0)
    children.append(start(DEAF))
signal.signal(signal.SIGTERM, told)
children = [start({"p": PLAIN, "d": DEAF, "g": PAIR}[letter]) for letter in sys.argv[2]]
write_pid_file("pid"); print("ready", flush=True)
while True: signal.pause()
"""


def _below(pid: int) -> list[int]:
    """Its descendants."""
    found = [int(word) for path in Path(f"/proc/{pid}/task").glob("*/children") for word in path.read_text().split()]
    return [*found, *(other for child in found for other in _below(child))]


def _running(pids: list[int]) -> list[int]:
    return [pid for pid in pids if process_start(pid) is not None]


@pytest.mark.parametrize(
    ("manner", "whom", "count", "outcome"),
    [("obeys", "p", 1, "terminated"), ("obeys", "dg", 3, "terminated"), ("is deaf", "pdg", 5, "killed")],
)
def test_whom_a_program_started_ends_with_it(
    tmp_path: Path, spawn: Spawn, manner: str, whom: str, count: int, outcome: str
) -> None:
    child = spawn(FAMILY, manner, whom)
    family = _below(child.pid)
    assert len(family) == len(whom) + whom.count("g") and _running(family) == family
    result = terminate(tmp_path / "pid", timeout=10 if manner == "obeys" else 3)
    # The deaf one started one more when it was asked to end.
    assert (result.outcome, result.pid, result.children, result.ok) == (outcome, child.pid, count, True), result
    assert _running(family) == [] and list(tmp_path.iterdir()) == []
    assert f"it had started {count} process" in result.message


def test_children_that_ignore_it_are_left_where_nothing_may_be_killed(tmp_path: Path, spawn: Spawn) -> None:
    child = spawn(FAMILY, "obeys", "pd")
    family = _below(child.pid)
    result = terminate(tmp_path / "pid", timeout=0.5, kill=False)
    deaf = _running(family)
    try:
        assert (result.outcome, result.exit_code, len(deaf)) == ("still_running", 1, 1), result
        assert result.message.endswith(f"still running: pid {deaf[0]}")
        assert child.wait(10) == 0 and not (tmp_path / "pid").exists()
    finally:
        for pid in deaf:
            os.kill(pid, signal.SIGKILL)


DAEMON = """
import os, signal, sys
from comux.lifecycle import write_pid_file
if os.fork() == 0:
    if os.fork():
        os._exit(0)
    print(os.getpid(), flush=True)
    signal.pause()
os.wait()
write_pid_file("pid"); signal.pause()
"""


def test_who_has_left_the_family_is_left_alone(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", DAEMON], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert child.stdout is not None
    daemon = int(child.stdout.readline())
    try:
        _until(lambda: (tmp_path / "pid").exists())
        result = terminate(tmp_path / "pid")
        assert (result.outcome, result.children) == ("terminated", 0), result
        assert child.wait(10) == -signal.SIGTERM and _running([daemon]) == [daemon]
    finally:
        os.kill(daemon, signal.SIGKILL)
        child.stdout.close()


def _until(condition: Callable[[], object]) -> None:
    deadline = threading.Event()
    for _ in range(3000):
        if condition():
            return
        deadline.wait(0.01)
    pytest.fail("not within 30 s")


ENDS_ITS_PARENT = """
import subprocess, sys, signal
from comux.lifecycle import write_pid_file
write_pid_file("pid")
code = "from comux.lifecycle import terminate; r = terminate('pid'); print(r.outcome, r.children, flush=True)"
subprocess.Popen(["sh", "-c", f"{sys.executable} -c \\"{code}\\"; true"])
signal.pause()
"""


def test_a_child_may_end_its_parent_and_does_not_end_itself(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ENDS_ITS_PARENT], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert child.communicate(timeout=60)[0] == "terminated 0\n"
    assert child.returncode == -signal.SIGTERM


def test_a_reused_number_makes_nobody_a_child(spawn: Spawn) -> None:
    """The pin is of a process that has ended; its number is, by now, that of somebody who has children: us."""
    living = spawn(PLAIN, "one")
    dead = spawn(PLAIN, "two")
    pin = os.pidfd_open(dead.pid)
    dead.kill()
    dead.wait()
    with Family(os.getpid(), pin) as family:
        assert not family.look() and family.children == {} and family.segments == set()
    os.close(pin)
    pin = os.pidfd_open(os.getpid())
    with Family(os.getpid(), pin) as family:
        assert family.look() and living.pid in family.children
    os.close(pin)


# -- a child whose parent ends -------------------------------------------------------------------------------------

# Starts the child in a thread that has ended when the child is asked for the first time.
PARENT = """
import os, subprocess, sys, threading
def start():
    global child
    child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())], stdin=subprocess.PIPE)
thread = threading.Thread(target=start); thread.start(); thread.join()
sys.stdin.readline()
child.stdin.write(b"\\n"); child.stdin.flush(); sys.stdin.readline()
"""
CHILD = """
import os, signal, sys
from comux.lifecycle import end_with_parent
{before}
assert end_with_parent(int(sys.argv[1]), patience=0.2)
print("ready", flush=True); sys.stdin.readline(); print(os.getpid(), flush=True)
while True: signal.pause()
"""


@pytest.mark.parametrize("before", ["", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"], ids=["obeys", "is deaf"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_ends_when_its_parent_does(spawn: Spawn, before: str, how: signal.Signals) -> None:
    parent = spawn(PARENT, CHILD.format(before=before))
    assert parent.stdin is not None and parent.stdout is not None
    parent.stdin.write("\n")
    parent.stdin.flush()
    child = int(parent.stdout.readline())
    assert _running([child]), "the thread that started it has ended; its process has not"
    parent.send_signal(how)
    parent.wait(20)
    _until(lambda: not _running([child]))


def test_who_has_another_parent_is_told(spawn: Spawn) -> None:
    stranger = spawn(PLAIN, "pid")
    assert not end_with_parent(stranger.pid)
    stranger.kill()
    stranger.wait()
    assert not end_with_parent(stranger.pid)
    assert not any(thread.name == "comux-parent" for thread in threading.enumerate())


# -- a program's life ----------------------------------------------------------------------------------------------


def test_a_program_states_its_pid_and_stops_when_it_is_told(tmp_path: Path) -> None:
    called: list[str] = []
    with until_stopped(tmp_path / "pid", on_stop=lambda: called.append(threading.current_thread().name)) as stop:
        assert json.loads((tmp_path / "pid").read_text())["pid"] == os.getpid()
        assert not stop.is_set() and called == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(10) and stop.signal == signal.SIGTERM
        _until(lambda: called)
    assert called == ["comux-stop"] and list(tmp_path.iterdir()) == []
    with until_stopped(on_stop=lambda: called.append("never")) as stop:
        pass
    with until_stopped(parent=1 if os.getppid() != 1 else 2) as stop:
        assert stop.is_set(), "its parent has ended already"
    assert len(called) == 1 and not any(t.name == "comux-stop" for t in threading.enumerate())


def test_two_programs_do_not_share_a_pid_file(tmp_path: Path, spawn: Spawn) -> None:
    spawn(PLAIN, "pid")
    with pytest.raises(ConfigError, match="which is running"), until_stopped(tmp_path / "pid"):
        pytest.fail("it does not begin")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
