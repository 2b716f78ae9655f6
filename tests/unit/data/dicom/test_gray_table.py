from __future__ import annotations

import math

import numpy as np
import pytest

from scanvit.core.errors import ImageError
from scanvit.data.dicom.gray_table import Lut, Rescale, Window, gray_table

AS_STORED = Rescale()


def grays(values: list[int], lowest: int, highest: int, **settings: object) -> list[float]:
    table = gray_table(lowest, highest, **{"modality": AS_STORED, "voi": None, "inverted": False, **settings})  # type: ignore[arg-type]
    assert table.dtype == np.float32
    return [round(float(table[value - lowest]), 3) for value in values]


def test_without_a_window_the_range_is_shown() -> None:
    assert grays([0, 100, 255], 0, 255) == [0, 100, 255]
    assert grays([-512, 0, 511], -512, 511) == [0, round(512 / 1023 * 255, 3), 255]


def test_monochrome1_is_inverted() -> None:
    assert grays([0, 100, 255], 0, 255, inverted=True) == [255, 155, 0]


def test_a_falling_rescale_turns_bright_to_dark() -> None:
    assert grays([0, 100, 255], 0, 255, modality=Rescale(slope=-1, intercept=7)) == [255, 155, 0]


def test_one_value_alone_is_dark() -> None:
    assert grays([7], 7, 7) == [0]


# PS3.3 C.11.2.1.2.1, its own note: center 2048, width 4096 maps 0..4095 to the whole output; center 2048, width 1 is a threshold.
@pytest.mark.parametrize(
    ("window", "values", "expected"),
    [
        (Window(center=2048, width=4096), [0, 4095], [0, 255]),
        (Window(center=2048, width=4096), [1365], [85]),
        (Window(center=2048, width=1), [2047, 2048], [0, 255]),
        (Window(center=0.5, width=2), [0, 1], [127.5, 255]),
        (Window(center=100, width=51), [74, 75, 100, 124, 125, 4000], [0, round((75 - 99.5 + 25) / 50 * 255, 3), 130.05, 252.45, 255, 255]),
        (Window(center=100, width=50, function="LINEAR_EXACT"), [75, 100, 125], [0, 127.5, 255]),
        (Window(center=100, width=40, function="SIGMOID"), [100, 110], [127.5, round(255 / (1 + math.exp(-1)), 3)]),
    ],
)
def test_windows_follow_the_standard(window: Window, values: list[int], expected: list[float]) -> None:
    assert grays(values, 0, 4095, voi=window) == pytest.approx(expected, abs=2e-3)


def test_the_window_counts_in_rescaled_values() -> None:
    houndsfield = Rescale(slope=2, intercept=-1000)
    assert grays([450, 500, 550], 0, 4095, modality=houndsfield, voi=Window(center=0, width=200, function="LINEAR_EXACT")) == [0, 127.5, 255]


def test_a_voi_table_maps_what_lies_beyond_its_ends_to_its_ends() -> None:
    table = Lut(first=10, bits=8, entries=np.array([5, 50, 255], np.uint16))
    assert grays([0, 10, 11, 12, 13, 99], 0, 255, voi=table) == [5, 5, 50, 255, 255, 255]


def test_a_voi_table_may_have_more_than_256_entries_of_8_bits() -> None:
    table = Lut(first=0, bits=8, entries=np.arange(1024, dtype=np.uint16) // 4)
    assert grays([0, 512, 1023], 0, 4095, voi=table) == [0, 128, 255]


def test_a_modality_table_comes_before_the_window() -> None:
    table = Lut(first=0, bits=10, entries=np.array([1023, 512, 0], np.uint16))
    assert grays([0, 1, 2], 0, 255, modality=table) == [255, round(512 / 1023 * 255, 3), 0]
    assert grays([0, 1, 2], 0, 255, modality=table, voi=Window(center=600, width=1)) == [255, 0, 0]


@pytest.mark.parametrize(
    "settings",
    [
        {"modality": Rescale(slope=0)},
        {"modality": Rescale(slope=math.nan)},
        {"modality": Rescale(slope=1e300)},
        {"modality": Rescale(intercept=math.inf)},
        {"voi": Window(center=0, width=0)},
        {"voi": Window(center=0, width=0.5)},
        {"voi": Window(center=math.nan, width=10)},
        {"voi": Window(center=0, width=-1, function="SIGMOID")},
        {"voi": Window(center=0, width=0, function="LINEAR_EXACT")},
    ],
    ids=str,
)
def test_settings_without_a_meaning_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ImageError):
        grays([0], 0, 255, **settings)


def test_extreme_but_finite_settings_stay_in_range() -> None:
    for voi in (Window(center=1e9, width=1e-9, function="SIGMOID"), Window(center=-1e9, width=1e9), Window(center=5, width=1e9)):
        table = gray_table(-32768, 32767, modality=Rescale(slope=-1e9), voi=voi, inverted=False)
        assert ((table >= 0) & (table <= 255)).all()
