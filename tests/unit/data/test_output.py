from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from scanvit.core.errors import PackError, StorageError
from scanvit.data.output import beside, make_way, output_lock, refuse_inside, replacing
from scanvit.data.sources import reads, sources_from_dict


def everything(path: str) -> bool:
    return True


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


def test_what_killed_writers_left_goes_and_what_another_one_writes_stays(tmp_path: Path) -> None:
    leftover = tmp_path / ".mine.abcd_123.tmp"
    leftover.mkdir()
    with replacing(tmp_path / "mine.v2") as other:
        make_way(tmp_path / "mine", overwrite=False)
        assert other.exists()
        assert not leftover.exists()


def test_a_pack_inside_its_own_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to("images")
    (tmp_path / "set.zip").touch()
    for out in (tmp_path / "images" / "packs" / "p1", tmp_path / "link" / "p1", tmp_path / "images"):
        with pytest.raises(PackError, match="inside the source"):
            refuse_inside(out, [(tmp_path / "set.zip", everything), (tmp_path / "images", everything)])
    refuse_inside(tmp_path / "images2", [(tmp_path / name, everything) for name in ("set.zip", "images", "none")])


@pytest.mark.parametrize(
    ("include", "out", "refused"),
    [
        (["chest/*", "oct/*"], "PACK", False),
        (["chest/*", "oct/*"], "chest/PACK", True),
        (["chest/*", "oct/*"], ".", True),
        ("*.png", "packs/p1", False),
        ("*.npy", "packs/p1", True),
        ("re:^[^/]*/train", "packs/p1", False),
        ("re:^[^/]*/train", "p1", True),
    ],
)
def test_a_pack_may_lie_in_a_source_that_leaves_it_out(tmp_path: Path, include: Any, out: str, refused: bool) -> None:
    source = sources_from_dict({"sources": [{"name": "s", "path": ".", "include": include}]}).sources[0]
    with pytest.raises(PackError, match="inside the source") if refused else nullcontext():
        refuse_inside(tmp_path / out, [(tmp_path, reads(source))])


@pytest.mark.parametrize("name", ["circle/pack", "long" * 100], ids=["circle", "long"])
def test_a_place_that_cannot_be_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(StorageError, match="cannot be written"), output_lock(tmp_path / name):
        pass


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
