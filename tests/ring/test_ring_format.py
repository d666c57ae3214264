"""``docs/reference/ring-format.md`` says what ``layout.h`` says: every field, where it is, how long it is."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "comux" / "ring" / "_core"
PAGE = ROOT / "docs" / "reference" / "ring-format.md"
PADDING = re.compile(r"pad|reserved|tail_pad")


def documented() -> dict[str, dict[str, tuple[int, int]]]:
    """struct -> field -> (at, size), from the tables below the headings that name a struct."""
    structs: dict[str, dict[str, tuple[int, int]]] = {}
    fields: dict[str, tuple[int, int]] | None = None
    for line in PAGE.read_text().splitlines():
        if line.startswith("#"):
            named = re.search(r"`(cx_\w+)`, (\d+) bytes", line)
            fields = structs.setdefault(named[1], {"": (0, int(named[2]))}) if named else None
        elif fields is not None and (row := re.match(r"\| (\d+) \| `(\w+)` \| (\d+) \|", line)):
            assert row[2] not in fields, f"{row[2]} twice"
            fields[row[2]] = (int(row[1]), int(row[3]))
    return structs


def compiled(structs: dict[str, dict[str, tuple[int, int]]], place: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """The same, as the compiler sees it."""
    cc = shutil.which("cc") or shutil.which("gcc")
    if cc is None:
        pytest.skip("no C compiler on PATH: layout.h cannot be asked")
    lines = ['#include "layout.h"', "#include <stdio.h>", "int main(void) {"]
    for struct, fields in structs.items():
        for field in fields:
            at, size = f"offsetof({struct}, {field})", f"sizeof((({struct} *)0)->{field})"
            what = f"{at}, {size}" if field else f"(size_t)0, sizeof({struct})"
            lines.append(f'printf("{struct} {field or "-"} %zu %zu\\n", {what});')
    source = place / "layout.c"
    source.write_text("\n".join([*lines, "return 0; }\n"]))
    subprocess.run([cc, "-std=gnu11", "-I", str(CORE), "-o", str(place / "layout"), str(source)], check=True)
    told = subprocess.run([str(place / "layout")], capture_output=True, text=True, check=True).stdout
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for struct, field, at, size in (line.split() for line in told.splitlines()):
        found.setdefault(struct, {})["" if field == "-" else field] = (int(at), int(size))
    return found


def test_every_documented_field_is_where_the_page_says(tmp_path: Path) -> None:
    structs = documented()
    assert compiled(structs, tmp_path) == structs


def test_no_field_of_the_layout_is_missing_on_the_page() -> None:
    code = re.sub(r"/\*.*?\*/", "", (CORE / "layout.h").read_text(), flags=re.S)
    structs = documented()
    written = re.findall(r"typedef struct \{(.*?)\n\} (cx_\w+);", code, flags=re.S)
    assert {struct for _, struct in written} == set(structs)
    for body, struct in written:
        declared = re.findall(r"(?:u?int\d+_t|char)\s+([^;]+);", body)
        fields = {
            re.sub(r"\[.*?\]", "", f).strip() for names in declared for f in re.sub(r"\[.*?\]", "", names).split(",")
        }
        assert {f for f in fields if not PADDING.match(f)} == set(structs[struct]) - {""}, struct


@pytest.mark.parametrize(
    "name", ["CX_LAYOUT_MAJOR", "CX_LAYOUT_MINOR", "CX_BYTE_ORDER", "CX_FIXED_AUX", "CX_RETIRED_AT", "CX_LINE"]
)
def test_the_numbers_of_the_layout_are_on_the_page(name: str) -> None:
    value = re.search(rf"#define {name} (\w+)", (CORE / "layout.h").read_text())
    assert value is not None
    assert re.search(rf"`{name}` \| {value[1].rstrip('u')} \|", PAGE.read_text()), f"{name} = {value[1]}"
