"""Registries: lists and YAML files, and errors that name file, line, key, value and remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from comux.control import ListRegistry, YamlRegistry, open_registry
from comux.errors import ConfigError
from comux.options import SourceOptions


def write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "cameras.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_list(tmp_path: Path) -> None:
    registry = ListRegistry(["cam1", 7, {"cam_id": "gate", "rate": 10}, SourceOptions(cam_id="yard")])
    assert registry.ret_cam_ids() == ("cam1", 7, "gate", "yard")
    assert registry.fetch()[2].rate == 10.0


def test_a_file_is_read_again_each_time(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
cameras:
  - cam1
  - 7
  - &gate {cam_id: gate, rate: 10, W: 1280, H: 720, codec: hevc}
  - <<: *gate
    cam_id: yard
""",
    )
    registry = YamlRegistry(path)
    assert registry.ret_cam_ids() == ("cam1", 7, "gate", "yard")
    assert registry.fetch()[3] == SourceOptions(cam_id="yard", rate=10, W=1280, H=720, codec="hevc")
    write(tmp_path, "cameras: [other]")
    assert registry.ret_cam_ids() == ("other",)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("cameras:\n  - a\n  - a\n", 3, "duplicate of line 2"),
        ("cameras: [a, a]\n", 1, "duplicate of line 1"),
        ("cameras:\n  - 1\n  - '1'\n", 3, "duplicate"),
        ("cameras:\n  - cam_id: a\n    rate: fast\n", 3, "rate='fast'"),
        ("cameras:\n  - cam_id: a\n    W: 1\n    rat: 5\n", 4, "did you mean 'rate'"),
        ("cameras:\n  - rate: 5\n", 2, "cam_id is missing"),
        ("cameras:\n  - a/b\n", 2, "topic name"),
        ("cameras:\n  -\n", 2, "NoneType"),
        ("cameras:\n  - true\n", 2, "bool"),
        ("cameras:\n  - 2026-01-01\n", 2, "date"),
        ("cameras:\n  - {1: 2}\n", 2, "not text"),
        ("cameras: []\n", 1, "empty"),
        ("cameras: a\n", 1, "no list"),
        ("camera:\n  - a\n", 1, "did you mean 'cameras'"),
        ("- a\n", 1, "begin with 'cameras:'"),
        ("{}\n", 1, "cameras is missing"),
        ("cameras:\n  - a\ncameras:\n  - b\n", 3, "stands here again, first on line 1"),
        ("cameras:\n  - {cam_id: a, cam_id: b}\n", 2, "stands here again"),
        ("cameras:\n  - !!python/object/apply:os.system ['true']\n", 2, "could not determine a constructor"),
        ("cameras:\n\t- a\n", 2, "no YAML"),
        ("cameras: [a\n", 2, "no YAML"),
        ("cameras:\n  - {<<: [{cam_id: a}], rate: 1}\n", 2, "merges one mapping"),
        ("cameras: &a\n  - *a\n", 1, "holds itself"),
        ("cameras: " + "[" * 20 + "]" * 20, 1, "levels deep"),
    ],
)
def test_errors_name_file_line_and_remedy(tmp_path: Path, text: str, line: int, says: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=says) as caught:
        YamlRegistry(path).fetch()
    assert f"{str(path)!r}, line {line}:" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    for content, says in [(b"", "is empty"), (b"\xff\xfe\xff", "no UTF-8"), (b"a" * (4 << 20) + b"b", "larger than")]:
        with pytest.raises(ConfigError, match=says):
            YamlRegistry(write(tmp_path, content)).fetch()
    with pytest.raises(ConfigError, match="No such file"):
        YamlRegistry(tmp_path / "missing.yaml").fetch()
    with pytest.raises(ConfigError, match="cannot be read"):
        YamlRegistry(tmp_path).fetch()


def test_a_file_of_nested_anchors_stays_small(tmp_path: Path) -> None:
    levels = ["x0: &x0 {cam_id: a}"] + [f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]" for n in range(1, 14)]
    with pytest.raises(ConfigError, match="there is no key 'x0'"):
        YamlRegistry(write(tmp_path, "\n".join(levels))).fetch()


@pytest.mark.parametrize(
    ("sources", "says"),
    [
        ("cam1", "not a list"),
        (5, "not a list"),
        ({"cam_id": "a"}, "not a list"),
        ([], "empty"),
        (["a", "a"], "position 1 is a duplicate of position 0"),
        (["a", None], "position 1"),
        (["a", {"cam_id": "b", "rate": "x"}], "position 1: source 'b': rate='x'"),
    ],
)
def test_wrong_lists(sources: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ListRegistry(sources)


def test_open_registry(tmp_path: Path) -> None:
    path = write(tmp_path, "cameras: [a]")
    assert open_registry(path).ret_cam_ids() == ("a",)
    assert open_registry(str(path)).ret_cam_ids() == ("a",)
    registry = ListRegistry(["a"])
    assert open_registry(registry) is registry
    assert open_registry(["b"]).ret_cam_ids() == ("b",)
    with pytest.raises(ConfigError):
        open_registry("cam1")
