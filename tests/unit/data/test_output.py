from __future__ import annotations

import os
from pathlib import Path

import pytest

from scanvit.core.errors import PackError
from scanvit.data.output import beside, make_way, output_lock, replacing


def pack_at(folder: Path, text: str = "old") -> Path:
    folder.mkdir()
    (folder / "dataset.json").write_text(text, encoding="utf-8")
    return folder


def test_a_second_writer_is_turned_away(tmp_path: Path) -> None:
    out = tmp_path / "pack"
    with output_lock(out):
        with pytest.raises(PackError, match="Another process"), output_lock(out):
            pass
        with output_lock(tmp_path / "other"):
            pass
    with output_lock(out):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_pack_is_never_replaced(tmp_path: Path) -> None:
    out = tmp_path / "pack"
    out.mkdir()
    (out / "thesis.tex").touch()
    for overwrite in (False, True):
        with pytest.raises(PackError, match="no pack"):
            make_way(out, overwrite=overwrite)
    assert (out / "thesis.tex").exists()


def test_a_pack_is_replaced_only_where_asked(tmp_path: Path) -> None:
    out = pack_at(tmp_path / "pack")
    with pytest.raises(PackError, match="exists"):
        make_way(out, overwrite=False)
    make_way(out, overwrite=True)
    assert (out / "dataset.json").exists()


def test_the_old_pack_goes_when_the_new_one_is_whole(tmp_path: Path) -> None:
    out = pack_at(tmp_path / "pack")
    with replacing(out) as folder:
        (folder / "dataset.json").write_text("new", encoding="utf-8")
        assert (out / "dataset.json").read_text(encoding="utf-8") == "old"
    assert (out / "dataset.json").read_text(encoding="utf-8") == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]


def test_a_failure_leaves_the_old_pack(tmp_path: Path) -> None:
    out = pack_at(tmp_path / "pack")
    with pytest.raises(RuntimeError), replacing(out):
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]


def test_a_kill_between_the_two_renames_is_mended(tmp_path: Path) -> None:
    out = pack_at(tmp_path / "pack")
    pack_at(beside(out, "next"), "new")
    os.rename(out, beside(out, "old"))
    with pytest.raises(PackError, match="exists"):
        make_way(out, overwrite=False)
    assert (out / "dataset.json").read_text(encoding="utf-8") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]
