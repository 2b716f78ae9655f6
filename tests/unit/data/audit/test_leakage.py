from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scanvit.core.errors import PackCorruptError
from scanvit.data.audit import Gate
from scanvit.data.audit.leakage import gate_identical_pixels, gate_near_duplicates, gate_patients
from scanvit.data.audit.view import AuditView
from scanvit.data.near_duplicates import NEAR_DUPLICATE_BITS
from scanvit.data.pack import Pack

MakePack = Callable[..., Path]


def judged(gate: Callable[[AuditView], Gate], folder: Path) -> Gate:
    return gate(AuditView(Pack.open(folder)))


def balanced() -> list[tuple[str, str, str, str]]:
    return [(split, name, source, f"{split}{name}{i}") for split in ("train", "val", "test") for name in "ab" for source in "st" for i in range(5)]


def brighter(pixels: np.ndarray) -> np.ndarray:
    return (pixels + 25).astype(np.uint8)


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 230, (1, 8, 8), np.uint8)


def test_clean_splits_pass(make_pack: MakePack) -> None:
    folder = make_pack(balanced())
    for gate in (gate_patients, gate_identical_pixels, gate_near_duplicates):
        found = judged(gate, folder)
        assert (found.verdict, found.figure) == ("pass", 0.0)


def test_a_patient_in_two_splits_fails_g1(make_pack: MakePack) -> None:
    rows = [*balanced(), ("train", "a", "s", "leak"), ("test", "b", "s", "leak")]
    found = judged(gate_patients, make_pack(rows))
    assert (found.verdict, found.figure) == ("fail", 1.0)
    assert "s:leak" in found.detail
    assert [picture.split for picture in found.examples[0].pictures] == ["train", "test"]


@pytest.mark.parametrize("sources", [3, ["s"], [{"patient": None}]], ids=str)
def test_settings_that_name_no_sources_are_told(make_pack: MakePack, sources: object) -> None:
    with pytest.raises(PackCorruptError, match=r"settings\.sources in .* is no list of sources"):
        judged(gate_patients, make_pack(settings={"sources": sources}))


def test_the_same_name_in_two_sources_is_two_patients(make_pack: MakePack) -> None:
    rows = [*balanced(), ("train", "a", "s", "same"), ("test", "b", "t", "same")]
    assert judged(gate_patients, make_pack(rows)).verdict == "pass"


def test_unknown_patients_fail_g1(make_pack: MakePack) -> None:
    settings = {"sources": [{"name": "s", "patient": None, "patients": None}, {"name": "t", "patient": "(?P<patient>.)", "patients": None}]}
    found = judged(gate_patients, make_pack(balanced(), settings=settings))
    assert found.verdict == "fail"
    assert "patients of s:" in found.detail


def test_identical_pixels_in_two_splits_fail_g2_alone(make_pack: MakePack) -> None:
    folder = make_pack(balanced(), {0: picture(0), 59: picture(0)})
    found = judged(gate_identical_pixels, folder)
    assert (found.verdict, found.figure) == ("fail", 1.0)
    assert "a/0.png = b/59.png" in found.detail
    assert [picture.split for picture in found.examples[0].pictures] == ["train", "test"]
    assert judged(gate_near_duplicates, folder).verdict == "pass"


def test_identical_pixels_in_one_split_pass_g2(make_pack: MakePack) -> None:
    assert judged(gate_identical_pixels, make_pack(balanced(), {0: picture(0), 1: picture(0)})).verdict == "pass"


def test_near_duplicates_in_two_splits_fail_g3_alone(make_pack: MakePack) -> None:
    folder = make_pack(balanced(), {0: picture(0), 59: brighter(picture(0)), 20: picture(1), 40: brighter(picture(1))})
    found = judged(gate_near_duplicates, folder)
    assert (found.verdict, found.figure) == ("fail", 2.0)
    assert "a/0.png and b/59.png" in found.detail
    assert "1 of the pairs have different classes" in found.detail
    assert "--near-duplicates move" in found.detail
    assert {tuple(picture.split for picture in example.pictures) for example in found.examples} == {("train", "test"), ("val", "test")}
    assert judged(gate_identical_pixels, folder).verdict == "pass"
    assert judged(gate_patients, folder).verdict == "pass"


def test_near_duplicates_in_one_split_pass_g3_and_are_counted(make_pack: MakePack) -> None:
    found = judged(gate_near_duplicates, make_pack(balanced(), {0: picture(0), 1: brighter(picture(0))}))
    assert found.verdict == "pass"
    assert "1 near-duplicate pairs lie inside one split" in found.detail
    assert sum(found.measured["near_duplicate_pairs"]) == 1


def test_flat_pictures_are_no_near_duplicates(make_pack: MakePack) -> None:
    flat = {0: np.full((1, 8, 8), 9, np.uint8), 59: np.full((1, 8, 8), 200, np.uint8)}
    assert judged(gate_near_duplicates, make_pack(balanced(), flat)).verdict == "pass"


def test_the_histograms_count_copies_and_strangers(make_pack: MakePack) -> None:
    measured = judged(gate_near_duplicates, make_pack(balanced(), {0: picture(0), 59: brighter(picture(0))})).measured
    strangers = measured["nearest_of_another_patient"]
    assert sum(strangers) == 60
    assert sum(strangers[: NEAR_DUPLICATE_BITS + 1]) == 2
    assert sum(measured["copies"]) == 60 * 6
    assert len(strangers) == len(measured["copies"]) == 257


@pytest.mark.parametrize("rows", [[("train", "a", "s", "p"), ("test", "b", "s", "q")]])
def test_two_images_are_enough(make_pack: MakePack, rows: list[tuple[str, str, str, str]]) -> None:
    assert judged(gate_near_duplicates, make_pack(rows)).verdict == "pass"
