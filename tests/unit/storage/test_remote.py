from __future__ import annotations

import os
import unicodedata
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanvit.core.errors import StorageError
from scanvit.storage.remote import Remote, check_names, parse_remote
from scanvit.storage.workplace import tells_apart


@pytest.mark.parametrize(
    ("text", "kind", "bucket", "prefix"),
    [
        ("swift:scans", "swift", "scans", ""),
        ("swift:scans/train/lung normal", "swift", "scans", "train/lung normal"),
        ("s3:scans/train/", "s3", "scans", "train"),
        ("s3://scans/train", "s3", "scans", "train"),
        ("s3:a:b/c:d", "s3", "a:b", "c:d"),
    ],
)
def test_a_remote_is_read(text: str, kind: str, bucket: str, prefix: str) -> None:
    assert parse_remote(text) == Remote(kind=kind, bucket=bucket, prefix=prefix)
    assert parse_remote(str(parse_remote(text))) == parse_remote(text)


@pytest.mark.parametrize("text", ["", "scans", "scans/train", "gs:scans", "S3:scans", "s3:", "swift:/", "s3:a//b", "s3:a/../b", "s3:a/b\nc", "s3:..", "./data"])
def test_what_is_no_remote_is_refused(text: str) -> None:
    with pytest.raises(StorageError) as caught:
        parse_remote(text)
    assert caught.value.hint


def test_a_whole_store_is_a_place_only_to_list() -> None:
    assert parse_remote("swift:", whole_store=True) == Remote(kind="swift", bucket="")
    assert str(parse_remote("s3:", whole_store=True)) == "s3:"


def test_the_parent_of_a_remote() -> None:
    assert str(parse_remote("s3:b/c/d").parent) == "s3:b/c"
    assert str(parse_remote("s3:b/c").parent) == "s3:b"


@pytest.mark.parametrize(
    "names",
    [
        ["a", "b/c", "b/d/e", "-n", "ü b/#1 'x'.png", "back\\slash", "a.b", "..a", "a..", "x" * 255],
        ["train/Normal/1.png", "train/Pneumonia/1.png", "val/Normal/1.png"],
    ],
)
def test_honest_names_pass(names: list[str]) -> None:
    check_names(names, where="s3:b")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["/etc/passwd"], "leaves its folder"),
        (["a/../../b"], "leaves its folder"),
        (["."], "leaves its folder"),
        (["a//b"], "leaves its folder"),
        (["a/"], "leaves its folder"),
        ([".scanvit-transfer/lock"], "no file may have"),
        (["\uff0e\uff0e/b"], "leaves its folder"),
        (["a\0b"], "character"),
        (["a\nb"], "character"),
        (["a\u2400b"], "character"),
        (["a\uff0fb"], "character"),
        (["a\u201bb"], "character"),
        (["a\udcffb"], "character"),
        (["a/" + "x" * 256], "256 bytes|258 bytes"),
        (["ä" * 128], "256 bytes"),
        (["/".join(["abcd"] * 206)], "1,029 bytes"),
        (["a", "A"], "both 'a' and 'A'"),
        (["Normal/1.png", "normal/2.png"], "both 'Normal' and 'normal'"),
        (["a/B/1", "a/b/2"], "both 'a/B' and 'a/b'"),
        (["é", "e\u0301"], "both"),
        (["a", "a/b"], "both 'a' and 'a/'"),
        (["a/b/c", "A"], "both"),
    ],
)
def test_names_that_are_no_files_or_not_each_its_own_are_refused(names: list[str], said: str) -> None:
    with pytest.raises(StorageError, match=said):
        check_names(names, where="s3:b")


@given(st.lists(st.text(alphabet=st.sampled_from("aAé/.\\ \n\0\uff0e\u0301ß-~"), max_size=8), max_size=6))
def test_names_that_pass_stay_inside_and_stay_apart(names: list[str]) -> None:
    try:
        check_names(names, where="s3:b")
    except StorageError:
        return
    root = Path("/data/in")
    for name in names:
        inside = os.path.normpath(root / name)
        assert inside.startswith("/data/in/")
        assert inside == str(root / name)
        assert "\0" not in name
    folded = {unicodedata.normalize("NFC", name).casefold() for name in names}
    assert len(folded) == len(set(names))
    assert not folded & {str(parent) for name in folded for parent in PurePosixPath(name).parents}


def test_names_that_differ_in_case_pass_for_a_file_system_that_keeps_them_apart() -> None:
    names = ["Run/model.pth", "run/Model.pth", "caf\u00e9", "cafe\u0301"]
    with pytest.raises(StorageError, match="cannot stand side by side"):
        check_names(names, where="s3:b")
    check_names(names, where="s3:b", apart=True)
    with pytest.raises(StorageError, match="cannot stand side by side"):
        check_names(["a", "a/b"], where="s3:b", apart=True)


def test_a_file_system_is_asked_by_writing_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "probe").touch()
    assert tells_apart(tmp_path) is not (tmp_path / "PROBE").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["probe"]
