from __future__ import annotations

import os
from pathlib import Path

import pytest

from scanvit.data.files import expand


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("b/2.png", "b/1.JPG", "b/deep/3.jpeg", "b/notes.txt", "a.png", "b/.hidden/4.png", "b/.5.png", "[odd].png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "b" / "IM0001").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "b" / "1.2.840.1").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "b" / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "b" / "README").write_bytes(b"no image")
    return tmp_path


def test_a_folder_means_its_images_sorted_and_those_below(tree: Path) -> None:
    assert list(expand(["b"])) == ["b/1.2.840.1", "b/1.JPG", "b/2.png", "b/IM0001", "b/deep/3.jpeg"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["[odd].png", "a.png"]),
        ("b/?.png", ["b/2.png"]),
        ("b/**/*.jpeg", ["b/deep/3.jpeg"]),
        ("**/*.png", ["[odd].png", "a.png", "b/2.png"]),
        ("b/[de]*", ["b/deep/3.jpeg"]),
        ("b/.*.png", ["b/.5.png"]),
        ("[odd].png", ["[odd].png"]),
        ("none/*.png", ["none/*.png"]),
        ("missing.png", ["missing.png"]),
    ],
)
def test_a_pattern_means_what_fits(tree: Path, pattern: str, expected: list[str]) -> None:
    assert list(expand([pattern])) == expected


def test_an_absolute_pattern_works_and_the_order_given_is_kept(tree: Path) -> None:
    assert list(expand([f"{tree}/*.png", "a.png"])) == [f"{tree}/[odd].png", f"{tree}/a.png", "a.png"]


def test_a_link_in_a_circle_ends(tree: Path) -> None:
    os.symlink(tree / "b", tree / "b" / "again")
    assert len(list(expand(["b"]))) == 5
    assert len(list(expand(["**/*.png"]))) == 3


def test_files_come_as_they_are_asked_for(tree: Path) -> None:
    given = iter(["a.png", "b"])
    first = expand(given)
    assert next(first) == "a.png"
    assert next(given) == "b", "the rest was not read"
