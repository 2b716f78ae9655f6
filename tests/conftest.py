"""Fixtures for all tests. Warnings are errors (pyproject.toml)."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from tests.file_server import FileServer

from scanvit.data.prepare import prepare

# No test asserts a time: a busy machine is no fault of the code.
settings.register_profile("scanvit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("scanvit")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the real, openly licensed images beside the checkout; skips where it is absent."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real images are not beside this checkout (../shared/data)")
    return folder


HEAVY = (
    *("faults/test_ddp.py", "test_ray_train.py", "test_platform_native.py", "test_objects.py", "test_shipping.py", "test_tracking.py", "test_tune.py"),
    *("test_object_keystone.py", "faults/test_one_process.py", "test_ray_decoding.py", "test_worlds.py", "test_nodes.py", "test_registry.py"),
    *("faults/test_ddp_nodes.py", "test_notebooks.py", "test_object_mount.py", "test_remote.py", "test_ray_open.py", "test_dashboards.py"),
    *("test_containers.py", "test_platform_containers.py"),
)
"""In tests/integration: what starts servers and clusters, the longest first, so that two processes end at about the same time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test by its folder (`-m unit`, `-m "not integration"`), and the heavy ones; these come last, in the order of ``HEAVY``."""
    places = {}
    for item in items:
        folder, *rest = item.path.relative_to(REPOSITORY / "tests").parts
        if folder in ("unit", "integration", "meta", "gpu"):
            item.add_marker(folder)
        if folder == "integration" and (name := "/".join(rest)) in HEAVY:
            item.add_marker("heavy")
            places[item] = HEAVY.index(name)
    items.sort(key=lambda item: places.get(item, -1))


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


@pytest.fixture(scope="session")
def make_dicom() -> Callable[..., bytes]:
    """make_dicom(pixels, syntax="1.2.840.10008.1.2.1", **elements) -> a DICOM file. ``pixels``: (H, W), (N, H, W) or (H, W, 3), stored as they
    are, or bytes; ``elements``: keyword=value, over what the pixels say; None leaves one out. Skips where pydicom is not installed."""
    pydicom = pytest.importorskip("pydicom", reason="the extra 'dicom' is not installed")
    return partial(_write_dicom, pydicom)


def _write_dicom(pydicom: Any, pixels: np.ndarray, *, syntax: str = "1.2.840.10008.1.2.1", **elements: Any) -> bytes:
    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = syntax
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = "1.2.3"
    is_colour = pixels.ndim == 3 and pixels.shape[2] == 3
    shape = pixels.shape[:2] if is_colour else pixels.shape[-2:]
    bits = 8 * pixels.dtype.itemsize
    values = {"SamplesPerPixel": 3 if is_colour else 1, "PhotometricInterpretation": "RGB" if is_colour else "MONOCHROME2"}
    values |= {"Rows": shape[0], "Columns": shape[1], "BitsAllocated": bits, "BitsStored": bits, "PixelRepresentation": int(pixels.dtype.kind == "i")}
    values |= {"PlanarConfiguration": 0} if is_colour else {}
    values |= {"NumberOfFrames": len(pixels)} if pixels.ndim == 3 and not is_colour else {}
    values |= {"PixelData": pixels.tobytes() + b"\0" * (pixels.nbytes % 2)} | elements
    values.setdefault("HighBit", (values["BitsStored"] or 8) - 1)
    stream = io.BytesIO()
    with pydicom.config.disable_value_validation():
        for keyword, value in values.items():
            if value is not None:
                setattr(file, keyword, value)
        file["PixelData"].VR = "OB" if bits == 8 else "OW"
        file.save_as(stream, enforce_file_format=True)
    return stream.getvalue()
