from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scanvit.core.errors import StorageError
from scanvit.storage.new_folder import new_folder


def test_whoever_asks_in_the_same_second_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: new_folder(tmp_path / "runs", "tiny.v1"), range(40)))
    assert len({*folders}) == 40
    assert all(folder.is_dir() and re.fullmatch(r"tiny\.v1-\d{8}-\d{6}(-[0-9a-f]{6})?", folder.name) for folder in folders)


def test_a_place_that_takes_no_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("in the way")
    with pytest.raises(StorageError, match="runs/tiny-"):
        new_folder(tmp_path / "runs", "tiny")
