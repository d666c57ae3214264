"""``comux apply, status, sources, control, config``: a running program, looked at and changed from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from feed_threads import FeedThread
from PIL import Image

from comux import Comux, connect

FILE = """
address: {address}
control_topic: config
defaults: {{start: beginning}}
cameras:
  - cam1
  - {{cam_id: cam2, rate: 5}}
"""


@pytest.fixture
def program(tmp_path: Path, wait_until: Any) -> Iterator[Comux]:
    """cam1 and cam2 of three, run by this process, whose file is ``cameras.yaml``."""
    address = f"shm://control-{os.getpid()}"
    feeds = [FeedThread(f"synthetic://64x48@30?gop=5&camera={n}", address, f"raw_cam{n}") for n in (1, 2, 3)]
    with connect(address) as broker:
        wait_until(lambda: {"raw_cam1", "raw_cam2", "raw_cam3"} <= set(broker.topics()), 30)
    path = tmp_path / "cameras.yaml"
    path.write_text(FILE.format(address=address))
    with Comux(path, acts={"double": lambda _, value: value * 2, "raw": lambda _, value: repr(value)}) as cameras:
        yield cameras
    for feed in feeds:
        feed.end()
    with connect(address) as broker:
        for topic in broker.topics():
            broker.delete_topic(topic, force=True)


def picture(program: Comux, cam_id: str) -> tuple[int, ...]:
    """Shape of a source's next picture."""
    while True:
        item = program.read(cam_id, timeout=20)
        if item.array is not None:
            return item.array.shape
        assert str(item.status) in ("waiting", "removed", "updated"), item


def data(ended: Any) -> Any:
    assert ended.err == "", ended
    return json.loads(ended.out)


def test_status_and_sources_tell_what_runs(execute: Callable[..., Any], program: Comux) -> None:
    program.get_batch(timeout=20)
    status = data(execute("status", "-f", "cameras.yaml", "--format", "json"))
    assert set(status["sources"]) == {"cam1", "cam2"}
    assert status["total"]["balanced"] is True
    table = execute("status", "-f", "cameras.yaml")
    assert table.code == 0
    for word in ("cam1", "cam2", "received", "(balanced)", "results: 0 sent", "commands on 'config'"):
        assert word in table.out
    sources = data(execute("sources", "list", "-f", "cameras.yaml", "--format", "json"))
    assert sources["cam2"]["settings"] == {"cam_id": "cam2", "rate": 5.0, "start": "beginning"}
    assert "rate=5.0" in execute("sources", "list", "-f", "cameras.yaml").out


def test_sources_are_created_changed_paused_and_deleted(execute: Callable[..., Any], program: Comux) -> None:
    where = ("-a", program.status()["address"], "-c", "config")
    created = execute("sources", "create", "cam3", "rate=3", "start=beginning", "W=32", "H=24", *where)
    assert (created.code, created.out) == (0, "source 'cam3' created\n")
    assert execute("sources", "update", "cam3", "rate=null", *where).code == 0
    assert execute("sources", "pause", "cam3", "cam1", *where).out.count("paused") == 2
    assert program.status()["sources"]["cam3"]["state"] == "PAUSED"
    assert execute("sources", "resume", *where).out == "every source resumed\n"
    sought = data(execute("sources", "seek", "cam3", "0", *where, "--format", "json"))
    assert sought[0]["result"]["position"] == 0
    assert picture(program, "cam3") == (24, 32, 3)
    assert execute("sources", "delete", "cam3", *where).code == 0
    assert program.cam_ids == ("cam1", "cam2")
    refused = execute("sources", "delete", "cam3", "cam2", *where)
    assert refused.code == 1
    assert "refused: no source 'cam3'" in refused.out and "source 'cam2' deleted" in refused.out
    for words in (("update", "cam1", "rate"), ("update", "cam1", "rate=1", "rate=2"), ("create", "x", "=5")):
        wrong = execute("sources", *words, *where)
        assert (wrong.code, wrong.err.count("\n")) == (2, 1), wrong


def test_a_snapshot_is_a_picture(execute: Callable[..., Any], program: Comux, tmp_path: Path) -> None:
    ended = execute("sources", "snapshot", "cam1", "-o", "cam1.jpg", "-f", "cameras.yaml")
    assert ended.code == 0, ended
    with Image.open(tmp_path / "cam1.jpg") as picture:
        assert picture.size == (64, 48)


def test_apply_says_what_differs_makes_it_so_and_then_nothing_differs(
    execute: Callable[..., Any], program: Comux, tmp_path: Path
) -> None:
    path = tmp_path / "cameras.yaml"
    assert execute("apply", "cameras.yaml").out == "nothing to change\n"
    text = path.read_text().replace("  - cam1\n", "  - cam3\n").replace("rate: 5", "rate: 7, W: 32, H: 24")
    path.write_text(text)
    planned = execute("apply", "cameras.yaml", "--dry-run")
    assert planned.code == 0
    for word in ("cam1", "delete", "cam2", "update", "rate", "5.0", "7.0", "cam3", "create", "nothing was changed"):
        assert word in planned.out
    assert program.cam_ids == ("cam1", "cam2")
    differ = execute("config", "diff", "cameras.yaml", "--format", "json")
    assert differ.code == 1
    assert [(c["action"], c["cam_id"]) for c in json.loads(differ.out)] == [
        ("delete", "cam1"), ("update", "cam2"), ("create", "cam3"),
    ]  # fmt: skip
    done = execute("apply", "cameras.yaml")
    assert (done.code, done.out.endswith("3 of 3 changes made\n")) == (0, True), done
    assert program.cam_ids == ("cam2", "cam3")
    assert picture(program, "cam2") == (24, 32, 3)
    assert execute("config", "diff", "cameras.yaml").code == 0
    path.write_text(text + "  - nothing\n")
    refused = execute("apply", "cameras.yaml", "--format", "json")
    assert refused.code == 1
    (answer,) = json.loads(refused.out)
    assert (answer["cam_id"], answer["ok"]) == ("nothing", False)
    assert "raw_nothing" in answer["error"]


def test_apply_may_watch_the_file(start: Callable[..., Any], program: Comux, tmp_path: Path, wait_until: Any) -> None:
    watching = start("apply", "cameras.yaml", "--watch")
    watching.wait_for("nothing to change")
    path = tmp_path / "cameras.yaml"
    text = path.read_text()
    path.write_text(text + "  - [\n")
    watching.wait_for("no YAML", where="err")
    path.write_text(text + "  - cam3\n")
    watching.wait_for("1 of 1 changes made")
    assert program.cam_ids == ("cam1", "cam2", "cam3")
    watching.send(signal.SIGINT)
    assert watching.end().code == 0


def test_a_program_watches_its_file_itself(program: Comux, tmp_path: Path, wait_until: Any) -> None:
    address = program.status()["address"]
    path = tmp_path / "watched.yaml"
    path.write_text(f"address: {address}\nwatch_registry: true\ncameras: [cam1]\n")
    with Comux(path) as cameras:
        path.write_text(f"address: {address}\nwatch_registry: true\ncameras:\n  - cam1\n  - cam2\n")
        wait_until(lambda: cameras.cam_ids == ("cam1", "cam2"), 30)
        path.write_text(f"address: {address}\nwatch_registry: true\ncameras: [cam9, cam1")
        wait_until(lambda: "no YAML" in str(cameras.status()["registry"]["error"]), 30)
        path.write_text(f"address: {address}\nwatch_registry: true\ncameras: [cam2]\n")
        wait_until(lambda: cameras.cam_ids == ("cam2",), 30)
        wait_until(lambda: cameras.status()["registry"]["error"] is None, 30)


def test_any_command_may_be_sent(execute: Callable[..., Any], program: Comux) -> None:
    assert execute("control", "send", "double", "21", "-f", "cameras.yaml").out == "42\n"
    assert execute("control", "send", "raw", "{not json", "-f", "cameras.yaml").out == "'{not json'\n"
    assert execute("control", "send", "raw", "--raw", "21", "-f", "cameras.yaml").out == "21\n"
    refused = execute("control", "send", "nothing", "-f", "cameras.yaml")
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert "no action 'nothing' is defined" in refused.err
    answer = data(execute("control", "send", "delete", "cam2", "-f", "cameras.yaml", "--format", "json"))
    assert (answer["ok"], answer["responder"]) == (True, "comux")
    assert program.cam_ids == ("cam1",)


def test_what_is_said_is_overheard(execute: Callable[..., Any], start: Callable[..., Any], program: Comux) -> None:
    assert execute("control", "send", "double", "4", "-f", "cameras.yaml").code == 0
    heard = execute("control", "tail", "--from", "beginning", "-n", "2", "-f", "cameras.yaml", "--format", "json")
    command, answer = map(json.loads, heard.out.splitlines())
    assert (command["kind"], command["action"], command["value"]) == ("command", "double", 4)
    assert (answer["kind"], answer["ok"], answer["value"]) == ("answer", True, 8)
    tail = start("control", "tail", "--from", "beginning", "-f", "cameras.yaml")
    tail.wait_for(r"double 4\n.*answers double ok 8")
    tail.send(signal.SIGINT)
    assert tail.end().code == 0


def test_where_nobody_is_reached_is_one_line(execute: Callable[..., Any], tmp_path: Path) -> None:
    for words in (("status",), ("sources", "list"), ("control", "tail"), ("control", "send", "status")):
        ended = execute(*words, "-a", "shm://nobody", "-c", "config")
        assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1), ended
        assert "config" in ended.err
    (tmp_path / "cameras.yaml").write_text("address: shm://nobody\ncameras: [a]\n")
    assert execute("apply", "cameras.yaml").code == 2
    assert execute("status", "-f", "nowhere.yaml").code == 2


def test_address_and_topic_may_stand_in_the_environment(program: Comux, tmp_path: Path) -> None:
    environment = {**os.environ, "COMUX_ADDRESS": program.status()["address"], "COMUX_CONTROL_TOPIC": "config"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "comux", "control", "send", "double", "1"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "2\n"), done


# -- config --------------------------------------------------------------------------------------------------------


def test_config_check_names_file_line_key_value_and_remedy(execute: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "right.yaml").write_text("control_topic: config\nmodel: a:b\ncameras: [a, b]\n")
    (tmp_path / "wrong.yaml").write_text("cameras:\n  - cam_id: a\n    rat: 5\n")
    right = execute("config", "check", "right.yaml")
    assert (right.code, right.out) == (0, "right.yaml: right: 2 cameras, control on 'config', model a:b\n")
    both = execute("config", "check", "right.yaml", "wrong.yaml")
    assert both.code == 2
    assert "line 3: source 'a': there is no setting 'rat'; did you mean 'rate'?" in both.out
    found = json.loads(execute("config", "check", "right.yaml", "wrong.yaml", "--format", "json").out)
    assert [each["ok"] for each in found] == [True, False]


def test_config_diff_compares_two_files(execute: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("cameras: [a, {cam_id: b, rate: 5}]\n")
    (tmp_path / "two.yaml").write_text("cameras: [{cam_id: b}, c]\n")
    assert execute("config", "diff", "one.yaml", "one.yaml").code == 0
    differ = execute("config", "diff", "one.yaml", "two.yaml", "--format", "json")
    assert differ.code == 1
    assert json.loads(differ.out) == [
        {"action": "delete", "cam_id": "a", "settings": {}},
        {"action": "update", "cam_id": "b", "settings": {"rate": [5.0, None]}},
        {"action": "create", "cam_id": "c", "settings": {}},
    ]


def test_config_schema_prints_the_shipped_schema(execute: Callable[..., Any], tmp_path: Path) -> None:
    from comux.control import cameras_schema

    assert data(execute("config", "schema")) == cameras_schema()
    assert execute("config", "schema", "-o", "schema.json").code == 0
    assert json.loads((tmp_path / "schema.json").read_text()) == cameras_schema()


# -- completion ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "offers"),
    [("comux so", "sources"), ("comux sources cr", "create"), ("comux status --for", "--format"),
     ("comux status --format ", "json")],
)  # fmt: skip
def test_the_shell_completes_commands_options_and_words(tmp_path: Path, words: str, offers: str) -> None:
    command = Path(sys.executable).with_name("comux")
    environment = {**os.environ, "_COMUX_COMPLETE": "complete_bash", "COMP_WORDS": words}
    environment["COMP_CWORD"] = str(len(words.split(" ")) - 1)
    done = subprocess.run([command], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert offers in done.stdout.split(), done
    told = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # it looks which shell called it
    shown = subprocess.run([command, "--show-completion", "bash"], env=told, capture_output=True, text=True, timeout=60)
    assert "_COMUX_COMPLETE=complete_bash" in shown.stdout, shown
