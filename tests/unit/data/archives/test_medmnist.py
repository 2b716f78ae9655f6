from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from scanvit.core.errors import ArchiveError
from scanvit.data.archives.medmnist import MedMnistFile
from scanvit.data.archives.open import open_archive

RNG = np.random.default_rng(0)


def arrays(channels: tuple[int, ...] = ()) -> dict[str, np.ndarray]:
    values = {}
    for split, count in (("train", 5), ("val", 2), ("test", 3)):
        values[f"{split}_images"] = RNG.integers(0, 256, (count, 9, 7, *channels), np.uint8)
        values[f"{split}_labels"] = (np.arange(count) % 2)[:, None]
    return values


def save(path: Path, values: dict[str, np.ndarray], *, compressed: bool = True) -> Path:
    with open(path, "wb") as file:
        (np.savez_compressed if compressed else np.savez)(file, **values)
    return path


@pytest.mark.parametrize("channels", [(), (3,)])
@pytest.mark.parametrize("compressed", [True, False])
def test_each_image_is_a_member_named_by_split_and_label(tmp_path: Path, channels: tuple[int, ...], compressed: bool) -> None:
    values = arrays(channels)
    archive = open_archive(save(tmp_path / "x.npz", values, compressed=compressed))
    assert isinstance(archive, MedMnistFile)
    paths = [member.path for member in archive.members()]
    assert paths[:2] == ["train/0/0000000.npy", "train/1/0000001.npy"]
    assert len(paths) == 10
    for path, data in archive.read(set(paths)):
        split, label, name = path.split("/")
        index = int(name.removesuffix(".npy"))
        np.testing.assert_array_equal(np.load(io.BytesIO(data), allow_pickle=False), values[f"{split}_images"][index])
        assert int(label) == values[f"{split}_labels"][index, 0]


def test_only_wanted_images_come(tmp_path: Path) -> None:
    archive = open_archive(save(tmp_path / "x.npz", arrays()))
    assert [path for path, _ in archive.read({"val/1/0000001.npy"})] == ["val/1/0000001.npy"]


@pytest.mark.parametrize(
    "change",
    [
        {"train_images": np.zeros((5, 9, 7), np.float32)},
        {"train_images": np.zeros((5, 9, 7, 2), np.uint8)},
        {"train_images": np.asfortranarray(np.zeros((5, 9, 7), np.uint8))},
        {"train_images": np.array([{}] * 5, object)},
        {"train_images": np.zeros((5, 0, 7), np.uint8)},
        {"train_labels": np.zeros((5, 14), np.uint8)},
        {"train_labels": np.zeros((5, 1), np.float32)},
        {"train_labels": np.zeros((4, 1), np.uint8)},
        {"train_labels": np.array([{}] * 5, object)},
    ],
    ids=lambda change: "-".join(f"{k}{v.dtype}{v.shape}" for k, v in change.items()),
)
def test_arrays_of_another_kind_are_refused(tmp_path: Path, change: dict[str, np.ndarray]) -> None:
    with pytest.raises(ArchiveError):
        list(open_archive(save(tmp_path / "x.npz", arrays() | change)).members())


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    values = arrays()
    del values["val_labels"]
    with pytest.raises(ArchiveError, match="val"):
        list(open_archive(save(tmp_path / "x.npz", values)).members())
