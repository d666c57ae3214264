"""``comux run``: a cameras file, a model, the loop around them, and its end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from comux import connect
from comux.cli.first_comux import is_first_comux
from comux.cli.run_file import words_of_env
from comux.errors import ConfigError
from comux.feeds import publish

MODEL = """
import json, sys

def means(batch):
    return {item.cam_id: {"mean": float(item.array.mean())} for item in batch if item}

def in_order(batch):
    return [{"index": item.index} if item else None for item in batch]

def silent(batch):
    return None

class Counter:
    def __init__(self):
        self.batches = 0
    def __call__(self, batch):
        self.batches += 1
    def close(self):
        print(f"closed after {self.batches}", file=sys.stderr)

class Unmakeable:
    def __init__(self):
        raise RuntimeError("no GPU here")

def failing(batch):
    raise ValueError("a mistake in the model")

def stuck(batch):
    print("stuck", flush=True, file=sys.stderr)
    while True:
        pass

number = 5
"""
RECORDS = 30


@pytest.fixture
def recorded(tmp_path: Path) -> Callable[..., str]:
    """A namespace with two recorded cameras that end, and a file beside the models that reads them."""
    made: list[str] = []

    def make(name: str, extra: str = "", model: str = "model:means") -> str:
        address = f"shm://run-{name}"
        made.append(address)
        (tmp_path / "model.py").write_text(MODEL)
        for number in (1, 2):
            source = f"synthetic://64x48@30?gop=10&bframes=0&camera={number}"
            publish(source, address, f"raw_cam{number}", pace="fast", frames=RECORDS)
        text = f"address: {address}\nmodel: {model}\n{extra}\n"
        text += "defaults: {start: beginning, on_end: stop, mode: every_frame}\ncameras: [cam1, cam2]\n"
        (tmp_path / "cameras.yaml").write_text(text)
        return address

    yield make
    for address in made:
        with connect(address) as broker:
            for topic in broker.topics():
                broker.delete_topic(topic, force=True)


@pytest.mark.parametrize(("model", "header"), [("model:means", "mean"), ("model:in_order", "index")])
def test_every_picture_goes_through_the_model_and_its_result_out(
    run: Callable[..., Any], recorded: Callable[..., str], tmp_path: Path, model: str, header: str
) -> None:
    address = recorded(header, model=model)
    ended = run("run", "cameras.yaml", "--format", "json", timeout=60)
    assert ended.code == 0, ended.err
    said = json.loads(ended.out)
    assert (said["pictures"], said["sent"], said["ended"]) == (2 * RECORDS, 2 * RECORDS, "end")
    assert all(book["balanced"] and book["delivered"] == RECORDS for book in said["sources"].values())
    assert not (tmp_path / "pid").exists()
    with connect(address) as broker, broker.consumer("stream_cam2", start="beginning", on_end="wait") as consumer:
        records = []
        while len(records) < RECORDS:
            records += consumer.poll(20)
    assert all(record.header(header) is not None for record in records)


def test_a_class_is_made_once_and_closed_and_batches_are_limited(
    run: Callable[..., Any], recorded: Callable[..., str]
) -> None:
    recorded("class")
    ended = run("run", "cameras.yaml", "--model", "model:Counter", "--batches", "3", "--pid-file", "")
    assert ended.code == 0, ended.err
    assert "closed after 3" in ended.err
    assert "3 batches" in ended.out and "balanced ✓" in ended.out


def test_a_model_that_raises_is_shown_whole_and_ends_the_run_in_order(
    run: Callable[..., Any], recorded: Callable[..., str], tmp_path: Path
) -> None:
    recorded("raises", model="model:failing")
    ended = run("run", "cameras.yaml", "--format", "json")
    assert ended.code == 1
    assert "model.py" in ended.err and "ValueError: a mistake in the model" in ended.err
    said = json.loads(ended.out)
    assert (said["ended"], said["error"]) == ("error", "ValueError: a mistake in the model")
    assert all(book["balanced"] for book in said["sources"].values())
    assert not (tmp_path / "pid").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(
    start: Callable[..., Any], recorded: Callable[..., str], tmp_path: Path, number: signal.Signals, wait_until: Any
) -> None:
    address = recorded(f"signal-{int(number)}", extra="batch: {timeout: null}")
    text = (tmp_path / "cameras.yaml").read_text().replace("on_end: stop", "on_end: wait")
    (tmp_path / "cameras.yaml").write_text(text)
    running = start("run", "cameras.yaml", "--format", "json")
    running.wait_for("running model:means on 2 cameras; Ctrl-C ends it; comux terminate pid ends it too", where="err")
    assert json.loads((tmp_path / "pid").read_text())["pid"] == running.pid
    with connect(address) as broker:
        wait_until(lambda: "stream_cam1" in broker.topics(), 30)
        with broker.consumer("stream_cam1", start="beginning", on_end="wait") as results:
            taken = 0
            while taken < RECORDS:  # it has done all there is, and waits for more without a time-out
                taken += len(results.poll(30))
    running.send(number)
    ended = running.end()
    assert ended.code == 0, ended.err
    said = json.loads(ended.out)
    assert said["ended"] == number.name
    assert all(book["balanced"] for book in said["sources"].values())
    assert not (tmp_path / "pid").exists()


def test_a_second_signal_ends_a_stuck_model_at_once(start: Callable[..., Any], recorded: Callable[..., str]) -> None:
    recorded("stuck", model="model:stuck")
    running = start("run", "cameras.yaml", "--pid-file", "")
    running.wait_for("stuck", where="err")
    running.send(signal.SIGTERM)
    running.wait_for("told to stop", where="err")
    assert running.process.poll() is None
    running.send(signal.SIGTERM)
    assert running.end().code == -signal.SIGTERM


def test_it_ends_with_the_process_it_was_told(
    start: Callable[..., Any], recorded: Callable[..., str], tmp_path: Path
) -> None:
    recorded("parent", model="model:silent")
    text = (tmp_path / "cameras.yaml").read_text().replace("on_end: stop", "on_end: wait")
    (tmp_path / "cameras.yaml").write_text(text)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as parent:
        running = start("run", "cameras.yaml", "--format", "json", "--parent", str(parent.pid))
        running.wait_for("running model:silent", where="err")
        parent.kill()
        ended = running.end()
    assert ended.code == 0, ended.err
    assert all(book["balanced"] for book in json.loads(ended.out)["sources"].values())


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("nowhere:f", "model 'nowhere:f': nowhere cannot be imported: ModuleNotFoundError"),
        ("model:nothing", "there is no 'nothing' in"),
        ("model:number", "model 'model:number' is int: give a function"),
        ("model:Unmakeable", "cannot be made: RuntimeError: no GPU here"),
        ("model", "write module:function"),
    ],
)
def test_a_model_that_is_none_is_one_line_and_nothing_starts(
    execute: Callable[..., Any], recorded: Callable[..., str], tmp_path: Path, model: str, says: str
) -> None:
    recorded("none")
    ended = execute("run", "cameras.yaml", "--model", model)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1), ended
    assert says in ended.err
    assert not (tmp_path / "pid").exists()


def test_a_file_without_a_model_or_with_a_missing_camera_is_one_line(
    execute: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "cameras.yaml").write_text("address: shm://run-missing\ncameras: [nothing]\n")
    ended = execute("run", "cameras.yaml")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "names no model: write 'model: module:function' in it, or give --model" in ended.err
    ended = execute("run", "cameras.yaml", "--model", "model:means")
    assert ended.code == 2
    assert "raw_nothing" in ended.err
    ended = execute("run", "other.yaml")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "No such file" in ended.err


# -- the first comux's .env ----------------------------------------------------------------------------------------


def test_the_first_comuxs_command_line_is_told_from_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["x.env"], [".env"], ["a/b.env", "--num=3"], ["--timeout=1"], ["--timeout", "1"], ["--batch"]):
        assert is_first_comux(words)
    for words in ([], ["run", "x.env"], ["--help"], ["demo", "--seconds", "1"], ["status"]):
        assert not is_first_comux(words)
    Path(".env").write_text("PORT=80\n")
    assert not is_first_comux([])
    Path(".env").write_text("export client_name=me\ndb_url = mongodb://h\n")
    assert is_first_comux([])


def test_its_keys_are_words_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.env"
    path.write_text(
        "client_name=model\ndb_url='mongodb://h:1'\ndb_database=db\nconsumer_bootstrap_servers=a:1, b:2\n"
        "producer_bootstrap_servers=c:3\ncontrol_bootstrap_servers=d:4\nconfig_topic=config\nconsume_schema=raw_:cam_id\n"
        "COLLECTION_Model=Models\nOTHER=1\n"
    )
    monkeypatch.setenv("db_database", "another")
    assert words_of_env(path) == {
        "client_name": "model",
        "db_url": "mongodb://h:1",
        "db_database": "another",
        "address": "a:1,b:2",
        "produce_address": "c:3",
        "control_address": "d:4",
        "control_topic": "config",
        "consume_schema": "raw_:cam_id",
        "db_collections": {"COLLECTION_Model": "Models"},
    }
    path.write_text("client_name=model\ndb_ulr=x\n")
    with pytest.raises(ConfigError, match="no key 'db_ulr'; did you mean 'db_url'"):
        words_of_env(path)
    path.write_text("client_name=model\n")
    with pytest.raises(ConfigError, match="db_url is missing: set it in the environment or in"):
        words_of_env(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        words_of_env(tmp_path)


def test_python_m_comux_without_its_keys_says_which_is_missing(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "x.env").write_text("client_name=model\n")
    ended = run("x.env", "--num=1", "--timeout=1", "--cam_id=a", "--batch")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "db_url is missing" in ended.err
