"""How a pack comes to a node."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scanvit.cluster import packs
from scanvit.cluster.packs import PackSource, obtain, source_of
from scanvit.core.errors import PackCorruptError, PackMismatchError
from scanvit.data.pack import Pack
from scanvit.storage.remote import parse_remote


def test_a_path_is_looked_for_here_and_then_below_data_path(small_pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert source_of("pack", {"DATA_PATH": str(small_pack.parent)}).path == str(small_pack)
    (tmp_path / "pack").mkdir()
    assert source_of("pack", {"DATA_PATH": str(small_pack.parent)}).path == str(tmp_path / "pack")
    assert source_of(str(small_pack), {"DATA_PATH": "/elsewhere"}).path == str(small_pack)


@pytest.mark.parametrize(("text", "shown"), [("s3://packs/mine", "s3:packs/mine"), ("swift:packs/mine", "swift:packs/mine")])
def test_an_object_store_is_recognised_and_written_so_that_it_is_again(text: str, shown: str) -> None:
    source = source_of(text, {"AWS_SECRET_ACCESS_KEY": "hidden"})
    assert str(source) == shown
    assert source_of(str(source), {}).remote == source.remote
    assert "hidden" not in repr(source)


def test_another_pack_under_the_same_path_is_refused(small_pack: Path, tmp_path: Path) -> None:
    source = PackSource(path=str(small_pack), fingerprint="0" * 64)
    with pytest.raises(PackMismatchError, match=r"on the node .* not 000000000000"):
        obtain(source, tmp_path)


@pytest.fixture
def pulls(small_pack: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Counts the copies; the store itself is for the integration tests."""
    made: list[Path] = []

    def pull(store: Any, folder: Path) -> None:
        made.append(folder)
        shutil.copytree(small_pack, folder, dirs_exist_ok=True)

    monkeypatch.setattr(packs, "open_store", lambda remote, environment: None)
    monkeypatch.setattr(packs, "pull", pull)
    return made


def test_a_pack_is_fetched_once_a_node_and_read_through(small_pack: Path, tmp_path: Path, pulls: list[Path]) -> None:
    source = PackSource(remote=parse_remote("s3:packs/mine"), fingerprint=Pack.open(small_pack).fingerprint)
    assert obtain(source, tmp_path).fingerprint == obtain(source, tmp_path).fingerprint == source.fingerprint
    assert len(pulls) == 1


def test_a_fetched_pack_with_a_flipped_bit_is_removed(small_pack: Path, tmp_path: Path, pulls: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    honest = packs.pull

    def pull(store: Any, folder: Path) -> Any:
        honest(store, folder)
        array = folder / "train.npy"
        array.write_bytes(array.read_bytes()[:-1] + b"\xff")

    monkeypatch.setattr(packs, "pull", pull)
    source = PackSource(remote=parse_remote("s3:packs/mine"), fingerprint=Pack.open(small_pack).fingerprint)
    with pytest.raises(PackCorruptError):
        obtain(source, tmp_path)
    assert not pulls[0].exists()
    monkeypatch.setattr(packs, "pull", honest)
    assert obtain(source, tmp_path).fingerprint == source.fingerprint


def test_a_pack_of_unknown_fingerprint_is_fetched_anew_each_time(tmp_path: Path, pulls: list[Path]) -> None:
    source = PackSource(remote=parse_remote("s3:packs/mine"))
    obtain(source, tmp_path)
    obtain(replace(source), tmp_path)
    assert len(pulls) == 2
