from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from scanvit.core.errors import DataError
from scanvit.data.path_list import read_list


def test_a_path_a_line_whatever_ends_it(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"a.png\r\nb c.png\n\n\xff.png")
    assert list(read_list(str(tmp_path / "list"))) == [("a.png", None), ("b c.png", None), ("\udcff.png", None)]


def test_nul_lets_names_hold_line_ends(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"a\nb.png\0c.png\0")
    assert [path for path, _ in read_list(str(tmp_path / "list"), null=True)] == ["a\nb.png", "c.png"]


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"a.png\n" * 100_000)))
    assert sum(1 for _ in read_list("-")) == 100_000


def test_a_reading_stands_beside_each_path(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text('\ufeffpath,who,label\n"a, b.png",x, lung-normal \nc.png,y,\n', encoding="utf-8")
    assert list(read_list(str(tmp_path / "list.csv"), column="label")) == [("a, b.png", "lung-normal"), ("c.png", "")]


@pytest.mark.parametrize(
    ("content", "says"),
    [("path,other\na,b\n", "no column 'label'"), ("a.png\nb.png\n", "no column 'path'"), ("path,label\na\n", "Line 2"), ("", "no column 'path'")],
)
def test_a_list_without_readings_is_refused(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(DataError, match=says):
        list(read_list(str(tmp_path / "list.csv"), column="label"))


def test_what_is_no_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"\0" * 3_000_000)
    with pytest.raises(DataError, match="more than"):
        list(read_list(str(tmp_path / "image")))
    with pytest.raises(DataError, match="cannot be read"):
        list(read_list(str(tmp_path / "none")))
