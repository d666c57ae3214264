"""The cameras file: settings of the program, defaults, watching, and its JSON Schema."""

from __future__ import annotations

import json
import os
import threading
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from comux import Comux
from comux.control import YamlRegistry, cameras_schema, is_cameras_file, read_cameras_file
from comux.control.cameras_file import FileSettings
from comux.errors import ConfigError
from comux.multiplexer.results import SendLimits
from comux.multiplexer.setup import read_settings
from comux.options import SourceOptions

WHOLE = """
address: memory://cameras-file
control_topic: config
model: detect:Detector
watch_registry: true
batch: {timeout: 0.5, min_items: 2}
defaults:
  rate: 10
  W: 1280
  H: 720
cameras:
  - cam1
  - {cam_id: 7, rate: 5}
  - cam_id: gate
    codec: hevc
    client_options: {group_id: x}
"""


def write(tmp_path: Path, text: str, name: str = "cameras.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_all_of_a_file(tmp_path: Path) -> None:
    file = read_cameras_file(write(tmp_path, WHOLE))
    assert file.words() == {"address": "memory://cameras-file", "control_topic": "config", "watch_registry": True}
    assert file.settings.model == "detect:Detector"
    assert file.settings.batch.model_dump() == {
        "frame": False, "timeout": 0.5, "window": None, "min_items": 2, "align": None, "max_age": None,
    }  # fmt: skip
    assert file.sources == (
        SourceOptions(cam_id="cam1", rate=10, W=1280, H=720),
        SourceOptions(cam_id=7, rate=5, W=1280, H=720),
        SourceOptions(cam_id="gate", rate=10, W=1280, H=720, codec="hevc", client_options={"group_id": "x"}),
    )
    assert (file.lines["model"], file.lines["cam1"], file.lines["gate"]) == (4, 12, 14)


def test_json_is_yaml(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps({"cameras": ["a", {"cam_id": "b", "rate": 2.5}]}), "cameras.json")
    assert YamlRegistry(path).fetch() == (SourceOptions(cam_id="a"), SourceOptions(cam_id="b", rate=2.5))
    assert is_cameras_file(str(path)) and is_cameras_file(path) and not is_cameras_file("cam1")


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("adress: shm://\ncameras: [a]", 1, "there is no key 'adress'; did you mean 'address'"),
        ("cameras: [a]\naddress: shn://x", 2, "no engine shn:// in this version"),
        ("cameras: [a]\naddress: 5", 2, "address: input should be a valid string"),
        ("cameras: [a]\nconsume_schema: raw", 2, "consume_schema='raw'"),
        ("cameras: [a]\ncontrol_topic: a/b", 2, "control_topic='a/b'"),
        ("cameras: [a]\nemit: some", 2, "emit='some'"),
        ("cameras: [a]\nlog_level: LOUD", 2, "log_level='LOUD'"),
        ("cameras: [a]\nmodel: detect", 2, "write module:function, as in detect:model"),
        ("cameras: [a]\nmodel: os.system('x'):f", 2, "write module:function"),
        ("cameras: [a]\nbatch:\n  timeout: -1", 3, "batch.timeout=-1"),
        ("cameras: [a]\nbatch:\n  tmeout: 1", 3, "there is no key 'batch.tmeout'; did you mean 'timeout'"),
        ("cameras: [a]\nbatch: 5", 2, "batch=5"),
        ("cameras: [a]\ndefaults: 5", 2, "defaults is no mapping"),
        ("cameras: [a]\ndefaults:\n  rate: fast", 3, "defaults: rate='fast'"),
        ("cameras: [a]\ndefaults:\n  rat: 1", 3, "defaults: there is no setting 'rat'; did you mean 'rate'"),
        ("cameras: [a]\ndefaults:\n  cam_id: b", 3, "it belongs to one camera"),
        ("cameras: [a]\ndb_url: mongodb://h", 2, "db_url and cameras both say"),
        ("model: a:b", 1, "cameras is missing"),
        ("cameras:\n  - cam_id: a\n    rate: ${file:secret}", 3, "rate='***'"),
    ],
)
def test_errors_name_line_key_value_and_remedy(tmp_path: Path, text: str, line: int, says: str) -> None:
    (tmp_path / "secret").write_text("hunter2")
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_cameras_file(path)
    assert str(caught.value).startswith(f"cameras file {str(path)!r}, line {line}: ")
    assert says in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_secret_of_an_address_is_shown(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2")
    for text in ("address: kafka://u:${file:secret}@@", 'db_url: ["${file:secret}"]'):
        with pytest.raises(ConfigError) as caught:
            read_cameras_file(write(tmp_path, f"cameras: [a]\n{text}"))
        assert "hunter2" not in str(caught.value)


def test_comux_takes_all_of_a_file_and_the_program_wins(tmp_path: Path) -> None:
    path = write(tmp_path, WHOLE.replace("memory://cameras-file", "memory://cameras-file-1"))
    with pytest.raises(ConfigError, match="takes no options, got group_id"):  # it reached the engine
        Comux(path).start()
    path = write(tmp_path, "address: memory://of-the-file\nclient_name: me\ncameras: [a]")
    for arguments in ((path,), (str(path),)):
        cameras = Comux(*arguments)
        assert (cameras.client_name, cameras.status()["address"]) == ("me", "memory://of-the-file")
        cameras.close()
    cameras = Comux(path, address="memory://of-the-program")
    assert cameras.status()["address"] == "memory://of-the-program"
    cameras.close()


# -- watching ------------------------------------------------------------------------------------------------------


def test_a_change_is_seen_when_it_has_lasted(tmp_path: Path) -> None:
    path = write(tmp_path, "cameras: [a]")
    registry = YamlRegistry(path, poll_period=0.01)
    assert registry.ret_cam_ids() == ("a",)
    assert not registry.wait_for_change(0.1)
    write(tmp_path, "cameras: [a, b]")
    assert registry.wait_for_change(30)
    assert registry.ret_cam_ids() == ("a", "b")
    assert not registry.wait_for_change(0.1)


def test_the_file_may_vanish_be_wrong_and_come_back(tmp_path: Path) -> None:
    path = write(tmp_path, "cameras: [a]")
    registry = YamlRegistry(path, poll_period=0.01)
    registry.fetch()
    path.unlink()
    for text in (None, "cameras: [", "cameras: [b]"):
        if text is not None:
            write(tmp_path, text)
        assert registry.wait_for_change(30)
        if text != "cameras: [b]":
            with pytest.raises(ConfigError):
                registry.fetch()
    assert registry.ret_cam_ids() == ("b",)


def test_a_secret_that_changes_is_a_change(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("one")
    path = write(tmp_path, "cameras:\n  - cam_id: a\n    group: ${file:secret}")
    registry = YamlRegistry(path, poll_period=0.01)
    assert registry.fetch()[0].group == "one"
    assert not registry.wait_for_change(0.1)
    (tmp_path / "secret").write_text("three")
    assert registry.wait_for_change(30)
    assert registry.fetch()[0].group == "three"


def test_close_ends_waiting_from_another_thread(tmp_path: Path) -> None:
    registry = YamlRegistry(write(tmp_path, "cameras: [a]"))
    registry.fetch()
    seen: list[bool] = []
    thread = threading.Thread(target=lambda: seen.append(registry.wait_for_change(None)))
    thread.start()
    registry.close()
    thread.join(30)
    assert seen == [False]


@pytest.mark.parametrize("change", ["address: memory://b", "address: memory://a\ncontrol_topic: config", ""])
def test_what_only_a_restart_changes_is_one_error_and_changes_nothing(tmp_path: Path, change: str) -> None:
    path = write(tmp_path, "address: memory://a\ncameras: [a]")
    registry = YamlRegistry(path)
    registry.fetch()
    write(tmp_path, f"{change}\ncameras: [a, b]")
    with pytest.raises(ConfigError, match="only cameras change while a program runs"):
        registry.fetch()
    write(tmp_path, "address: memory://a\ncameras: [a, b]")
    assert registry.ret_cam_ids() == ("a", "b")


def test_what_the_schema_says_of_defaults_is_so(tmp_path: Path) -> None:
    limits, said = SendLimits(), FileSettings()
    for name in SendLimits.__dataclass_fields__:
        assert getattr(limits, name) == getattr(said, name)
    settings, results = read_settings({})
    assert (settings.address, settings.consume_schema, settings.produce_schema, settings.strict) == (
        said.address, said.consume_schema, said.produce_schema, said.strict_on_fail,
    )  # fmt: skip
    assert (settings.produce_address, settings.share_schema, results["emit_wait"]) == (None, None, None)
    assert read_settings({"emit": "all"})[1]["emit_wait"] == said.emit_wait
    cameras = Comux(write(tmp_path, "address: memory://defaults\ncameras: [a]"))
    assert (cameras.client_name, cameras.controller) == (said.client_name, None)
    cameras.close()


# -- schema --------------------------------------------------------------------------------------------------------


def valid(document: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(cameras_schema()).is_valid(document))


def test_the_shipped_schema_is_the_one_that_is_made() -> None:
    shipped = json.loads((files("comux.control") / "cameras.schema.json").read_text())
    remedy = "make it anew: comux config schema -o comux/control/cameras.schema.json"
    assert shipped == cameras_schema(), remedy
    jsonschema.Draft202012Validator.check_schema(shipped)


def test_every_setting_is_described() -> None:
    schema = cameras_schema()
    for table in (schema, schema["$defs"]["Source"], schema["$defs"]["BatchSettings"]):
        assert [name for name, each in table["properties"].items() if not each.get("description")] == []


def test_what_is_right_fits_the_schema() -> None:
    assert valid(yaml.safe_load(WHOLE))
    assert valid({"db_url": "mongodb://h", "db_database": "d", "client_name": "me"})
    assert valid({"cameras": ["a", 1, {"cam_id": "b", "rate": "${RATE:-5}", "mode": "${MODE}", "shape": [2, 3]}]})
    assert valid({"cameras": ["a"], "defaults": {"W": "${W}", "dtype": [["x", "<i4"]]}, "strict_on_fail": "${STRICT}"})


@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        {"cameras": []},
        {"cameras": "a"},
        {"cameras": [1.5]},
        {"cameras": [{"rate": 5}]},
        {"cameras": [{"cam_id": "a", "rat": 5}]},
        {"cameras": [{"cam_id": "a", "rate": "fast"}]},
        {"cameras": [{"cam_id": "a", "W": 0}]},
        {"cameras": ["a"], "defaults": {"cam_id": "b"}},
        {"cameras": ["a"], "adress": "shm://"},
        {"cameras": ["a"], "batch": {"timeout": "soon"}},
        {"cameras": ["a"], "emit": "some"},
    ],
)
def test_what_is_wrong_does_not(document: Any) -> None:
    assert not valid(document)


_VALUES = st.none() | st.booleans() | st.integers(-2, 70_000) | st.floats() | st.sampled_from(
    ["", "end", "auto", "all", "a:b", "raw_:cam_id", "shm://", "x" * 200]
)  # fmt: skip
_KEYS = st.sampled_from([*SourceOptions.model_fields, "nothing"])
_ENTRY = st.dictionaries(_KEYS, _VALUES, max_size=4) | _VALUES


@given(cameras=st.lists(_ENTRY, max_size=3), defaults=st.dictionaries(_KEYS, _VALUES, max_size=2))
def test_whatever_stands_in_a_file_is_right_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, cameras: list[Any], defaults: dict[str, Any]
) -> None:
    path = Path(os.environ["COMUX_DIR"]).parent / f"comux-test-cameras-{os.getpid()}.yaml"
    path.write_text(yaml.safe_dump({"cameras": cameras, "defaults": defaults}))
    try:
        file = read_cameras_file(path)
    except ConfigError as exc:
        assert "\n" not in str(exc)
    else:
        assert file.sources and valid({"cameras": cameras, "defaults": defaults})
    finally:
        path.unlink()
