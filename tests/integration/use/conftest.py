"""A small trained run, and what is made of it, for all tests of its use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scanvit.cli import main
from scanvit.data.pack import Pack


@pytest.fixture(scope="session")
def trained(small_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder; its calibration is fitted."""
    run = tmp_path_factory.mktemp("trained") / "run"
    small = ("trainer.max_epochs=4", "model.depth=2", "model.dim=16", "model.stem_widths=[8, 8]", "tracking.mlflow=false", "trainer.accelerator=cpu")
    settings = [word for setting in small for word in ("--set", setting)]
    assert main(["train", "tiny", "--pack", str(small_pack), "--run-dir", str(run), *settings]) == 0
    return run


@pytest.fixture(scope="session")
def onnx_file(trained: Path) -> Path:
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    assert main(["export", str(trained)]) == 0
    return trained / "model.onnx"


@pytest.fixture(scope="session")
def pictures(small_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The test images of the pack as PNG files, in folders by class."""
    folder, pack = tmp_path_factory.mktemp("pictures"), Pack.open(small_pack)
    paths = []
    for row, (pixels, target) in enumerate(zip(pack.images("test"), pack.targets("test"), strict=True)):
        paths.append(folder / pack.class_names[target] / f"{row:03d}.png")
        paths[-1].parent.mkdir(exist_ok=True)
        Image.fromarray(np.array(pixels[0])).save(paths[-1])
    return paths
