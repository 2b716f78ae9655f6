from __future__ import annotations

import hashlib

import pytest

from scanvit.core.contract import PixelContract
from scanvit.core.errors import EmptyClassError
from scanvit.data.image_table import ImageTable, ImageTableBuilder
from scanvit.data.placement import Placement, place
from scanvit.data.selection import Candidate
from scanvit.data.sources import Source, Sources, SplitConfig

CLASSES = ["a", "b"]
Image = tuple[str, str, str]  # class, patient, what it shows


def table(images: list[Image], splits: list[str] | None = None) -> ImageTable:
    builder = ImageTableBuilder(CLASSES)
    for number, (class_name, patient, shown) in enumerate(images):
        path = f"{class_name}/{number:03d}.png"
        candidate = Candidate(path=path, class_name=class_name, patient_id=f"s:{patient}", split=splits[number] if splits else None, size_bytes=1)
        digests = {"sha256": path, "pixels_sha256": shown, "perceptual_hash": shown}
        row = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in digests.items()}
        builder.append(0, candidate, row | {"path": path, "format": "PNG", "width_px": 8, "height_px": 8, "index": number}, batch=0)
    return builder.finish()


def placed(images: ImageTable, **split: float) -> Placement:
    spec = Sources(sources=(Source(name="s", path="s"),), split=SplitConfig(**split))  # type: ignore[arg-type]
    return place(images, spec, class_names=CLASSES, source_names=["s"], earlier=None, contract=PixelContract(image_size_px=8))


def test_of_equal_pixels_one_stays_and_of_contradicting_ones_none() -> None:
    images = table([("a", "1", "x"), ("a", "2", "x"), ("a", "3", "y"), ("b", "4", "y"), ("a", "5", "p"), ("b", "6", "q")])
    found = placed(images)
    assert images.strings("path").to_pylist() == ["a/000.png", "a/004.png", "b/005.png"]
    assert len(found.splits) == 3
    assert {(one.path, one.reason) for one in found.quarantined} >= {("a/001.png", "duplicate")}
    assert {one.path for one in found.quarantined} == {"a/001.png", "a/002.png", "b/003.png"}


def test_no_patient_stands_in_two_splits() -> None:
    shown = [(CLASSES[number % 2], str(number // 3), str(number)) for number in range(90)]
    images = table(shown)
    splits = placed(images, final_eval=0.2).splits.tolist()
    assert set(splits) == {0, 1, 2, 3}
    assert len({(patient, split) for patient, split in zip(images.strings("patient_id").to_pylist(), splits, strict=True)}) == 30


def test_splits_that_came_with_the_images_stay() -> None:
    given = ["train", "test", "val", "train"]
    images = table([("a", "1", "p"), ("a", "2", "q"), ("b", "3", "r"), ("b", "4", "s")], given)
    assert placed(images).splits.tolist() == [0, 2, 1, 0]


def test_a_class_of_which_nothing_is_left_is_named() -> None:
    with pytest.raises(EmptyClassError, match="'b' has no image left"):
        placed(table([("a", "1", "p"), ("a", "2", "x"), ("b", "3", "x")]))
