from __future__ import annotations

import json
from pathlib import Path

import pytest

from scanvit.core.errors import ChecksumError, PlatformStateError
from scanvit.platform.backup import _write_sums
from scanvit.platform.restore import read_manifest, verify


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    (folder / "artifacts" / "1").mkdir(parents=True)
    (folder / "artifacts" / "1" / "a file").write_bytes(b"content")
    (folder / "database.dump").write_bytes(b"PGDMP")
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "rows": {}, "versions": {"schema": "x"}, "objects": 1, "size_bytes": 7}))
    _write_sums(folder)
    return folder


def check(folder: Path) -> None:
    verify(folder, lambda *_: None)


def test_a_whole_backup_passes(copy: Path) -> None:
    check(copy)
    assert read_manifest(copy)["objects"] == 1


def test_a_name_with_a_separator_of_unicode_is_one_name(copy: Path) -> None:
    (copy / "artifacts" / "1" / "a\u2028b").write_bytes(b"content")
    (copy / "SHA256SUMS").unlink()
    _write_sums(copy)
    check(copy)


@pytest.mark.parametrize("harm", ["changed", "missing", "more", "link", "no sums"])
def test_a_damaged_one_is_refused_by_the_name_of_the_file(copy: Path, harm: str) -> None:
    path = copy / "artifacts" / "1" / "a file"
    if harm == "changed":
        path.write_bytes(b"Content")
    elif harm == "more":
        (copy / "artifacts" / "another").write_bytes(b"")
    elif harm == "no sums":
        (copy / "SHA256SUMS").unlink()
    else:
        path.unlink()
        if harm == "link":
            (copy.parent / "outside").write_bytes(b"content")
            path.symlink_to(copy.parent / "outside")
    with pytest.raises(ChecksumError, match="SHA256SUMS" if harm == "no sums" else "another" if harm == "more" else "a file"):
        check(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', "null"])
def test_a_folder_that_is_no_backup_is_told(copy: Path, text: str) -> None:
    (copy / "manifest.json").write_text(text)
    with pytest.raises(PlatformStateError, match="is no backup"):
        read_manifest(copy)


def test_another_format_is_told(copy: Path) -> None:
    (copy / "manifest.json").write_text(json.dumps({"format": 2, "rows": {}, "versions": {"schema": "x"}, "objects": 1, "size_bytes": 7}))
    with pytest.raises(PlatformStateError, match="knows 1"):
        read_manifest(copy)
