from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from scanvit.storage.checksum import sha256_file


@pytest.mark.parametrize("size", [0, 1, 3_000_001])
def test_it_is_the_sha256_of_the_content(tmp_path: Path, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    (tmp_path / "file").write_bytes(data)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()
