from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scanvit.data.originals import find_originals
from scanvit.data.pack import Pack
from scanvit.data.prepare import prepare

SIZE = (48, 80)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pack, Path]:
    folder, random = tmp_path_factory.mktemp("originals"), np.random.default_rng(0)
    for k, name in enumerate(("a", "b")):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(20):
            pixels = random.integers(0, 120, size=SIZE, dtype=np.uint8) + np.uint8(100 * k)
            Image.fromarray(pixels).save(folder / "images" / name / f"{i}.png")
    (folder / "sources.yaml").write_text("image_size_px: 16\nsources:\n  - {name: clinic, path: images}\n")
    prepare(folder / "sources.yaml", folder / "pack", workers=1)
    return Pack.open(folder / "pack"), folder


def test_an_original_is_the_file_at_its_own_resolution(prepared: tuple[Pack, Path]) -> None:
    pack, root = prepared
    found = find_originals(pack, "train", [3, 0], root, most_px=384)
    assert set(found) == {0, 3}
    path = pack.rows("train", "path")["path"][3].as_py()
    expected = Image.open(root / "images" / path).resize((80, 80), Image.Resampling.BILINEAR, reducing_gap=3.0)
    assert np.array_equal(found[3][0], np.asarray(expected))
    assert find_originals(pack, "train", [3], root, most_px=32)[3].shape == (1, 32, 32)


def test_what_is_not_there_or_was_changed_is_left_out(prepared: tuple[Pack, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pack, root = prepared
    with caplog.at_level(logging.WARNING):
        assert find_originals(pack, "train", [0], tmp_path, most_px=384) == {}
    assert "clinic" in caplog.text
    path = pack.rows("train", "path")["path"][0].as_py()
    file = tmp_path / "images" / path
    file.parent.mkdir(parents=True)
    Image.new("L", SIZE).save(file)
    assert find_originals(pack, "train", [0], tmp_path, most_px=384) == {}
    assert "not the one that the pack was made from" in caplog.text
    assert root.is_dir()
