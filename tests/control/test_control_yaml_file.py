"""Variables and secrets in YAML files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from comux.control.yaml_file import YamlFile
from comux.errors import ConfigError


def value(tmp_path: Path, text: str) -> Any:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    file = YamlFile(path, "test file", "write something")
    return file.construct(file.root)


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("${NUMBER}", 5),
        ("'${NUMBER}'", "5"),
        ("a: ${NUMBER}\nb: ${FLOAT}\nc: ${TRUTH}\nd: ${NOTHING:-}", {"a": 5, "b": 1.5, "c": True, "d": None}),
        ("${HOST}:9092", "kafka1:9092"),
        ("['kafka://${HOST:-x}', '${MISSING:-y}', '${EMPTY:-z}']", ["kafka://kafka1", "y", "z"]),
        ("${EMPTY}", None),
        ("${MISSING:-a:-b}", "a:-b"),
        ("cost: $5, $$, {}", {"cost": "$5, $$, {}"}),
        ("$${NUMBER} and ${NUMBER}", "${NUMBER} and 5"),
        ("${LIST}", "[1, 2]"),
        ("${TAG}", "!!python/name:os.system"),
        ("&a ${NUMBER}", 5),
        ("- &a ${NUMBER}\n- *a", [5, 5]),
    ],
)
def test_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, becomes: Any) -> None:
    for name, content in {
        "NUMBER": "5",
        "FLOAT": "1.5",
        "TRUTH": "true",
        "HOST": "kafka1",
        "EMPTY": "",
        "LIST": "[1, 2]",
        "TAG": "!!python/name:os.system",
    }.items():
        monkeypatch.setenv(name, content)
    monkeypatch.delenv("MISSING", raising=False)
    assert value(tmp_path, text) == becomes


def test_keys_are_not_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAME", "rate")
    assert value(tmp_path, "'${NAME}': 1") == {"${NAME}": 1}


def test_a_secret_is_the_first_line_of_its_file_and_always_text(tmp_path: Path) -> None:
    (tmp_path / "number").write_text("12345\nmore\n")
    (tmp_path / "windows").write_bytes(b"geheim\r\n")
    text = f"a: ${{file:number}}\nb: kafka://u:${{file:{tmp_path}/windows}}@h\nc: ${{file:number}}"
    assert value(tmp_path, text) == {"a": "12345", "b": "kafka://u:geheim@h", "c": "12345"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: ${MISSING}", "variable MISSING is not set: set it, or write ${MISSING:-text}"),
        ("a: ${}", "${} is none of"),
        ("a: ${a b}", "${a b} is none of"),
        ("a: ${HOME", "${ without a }"),
        ("a: ${file:nowhere}", "${file:nowhere} cannot be read: No such file"),
        ("a: ${file:empty}", "the first line of ${file:empty} is empty"),
        ("a: ${file:binary}", "is no UTF-8 text"),
        ("a: ${file:large}", "is larger than"),
        ("a: ${file:.}", "cannot be read"),
    ],
)
def test_what_cannot_be_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, says: str) -> None:
    monkeypatch.delenv("MISSING", raising=False)
    (tmp_path / "empty").write_text("\nsecond")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "large").write_text("x" * 70_000)
    with pytest.raises(ConfigError) as caught:
        value(tmp_path, text)
    assert says in str(caught.value)
    assert "line 1" in str(caught.value)


def test_braces_within_braces_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"within \{\} or \[\], write \$\{…\} in quotes"):
        value(tmp_path, "a: {b: ${HOME}}")
