"""Fixtures for all tests. Warnings are errors (pyproject.toml)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.file_server import FileServer

from scanvit.data.prepare import prepare

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the real, openly licensed images beside the checkout; skips where it is absent."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real images are not beside this checkout (../shared/data)")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test by its folder: `-m unit`, `-m "not integration"`."""
    for item in items:
        folder = item.path.relative_to(REPOSITORY / "tests").parts[0]
        if folder in ("unit", "integration", "meta", "gpu"):
            item.add_marker(folder)


@pytest.fixture
def file_server() -> Iterator[FileServer]:
    server = FileServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def small_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of 16 px images in three classes that differ by where a bright bar lies; 150 images, each its own patient."""
    folder = tmp_path_factory.mktemp("small")
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 150)
    images = generator.integers(0, 128, (150, 16, 16))
    for image, label in zip(images, labels, strict=True):
        image[4 * label : 4 * label + 4] += 60
    np.savez(folder / "bars.npz", train_images=images.astype(np.uint8), train_labels=labels[:, None])
    prepare(folder / "bars.npz", folder / "pack", settings={"image_size_px": 16}, workers=1)
    return folder / "pack"
