from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.unit.evaluation.conftest import build_pack

from scanvit.core.errors import ConfigError
from scanvit.data.pack import Pack
from scanvit.evaluation.predictions import Predictions
from scanvit.evaluation.subgroups import FEW_PATIENTS, UNKNOWN, axis_values, gap_sentences, known_axes, measure_axis


def halves(make_predictions: Callable[..., Predictions], *, wrong_in_second: int, patients: int = 80) -> Predictions:
    """The first half is named rightly, of the second all but some, by turns of both classes."""
    table = make_predictions([0, 1] * (patients // 2), classes=2)
    called = table.targets.copy()
    wrong = np.arange(patients // 2, patients // 2 + wrong_in_second)
    called[wrong] = 1 - called[wrong]
    return replace(table, logits=np.eye(2, dtype=np.float32)[called] * 3)


def test_the_gap_between_two_groups_is_found_with_its_interval(make_predictions: Callable[..., Predictions]) -> None:
    table = halves(make_predictions, wrong_in_second=12)
    axis = measure_axis("sex", table, ["F"] * 40 + ["M"] * 40, draws=300, seed=0)
    assert {group.name: group.figures["accuracy"].value for group in axis.groups} == {"F": 1.0, "M": pytest.approx(0.7)}
    gap = axis.gaps[0]
    assert (gap.better, gap.worse, gap.class_name) == ("F", "M", None)
    assert gap.difference.value == pytest.approx(0.3)
    assert gap.difference.low is not None
    assert 0.05 < gap.difference.low < 0.3
    assert "M lies 30.0 points" in gap_sentences(axis)[0]


def test_equal_groups_are_not_told_to_differ(make_predictions: Callable[..., Predictions]) -> None:
    table = make_predictions([0, 1] * 60, classes=2, strength=1.0)
    axis = measure_axis("sex", table, ["F", "F", "M", "M"] * 30, draws=200, seed=0)
    assert "Chance alone may give as much." in gap_sentences(axis)[0]


def test_a_small_group_is_warned_of_and_not_compared(make_predictions: Callable[..., Predictions]) -> None:
    table = halves(make_predictions, wrong_in_second=20)
    axis = measure_axis("sex", table, ["F"] * 70 + ["M"] * 10, draws=50, seed=0)
    assert [group.is_small for group in axis.groups] == [False, True]
    assert "10 patients only" in (axis.groups[1].warning or "")
    assert axis.gaps == []
    assert str(FEW_PATIENTS) in gap_sentences(axis)[0]


def test_a_class_of_few_patients_in_a_group_says_so(make_predictions: Callable[..., Predictions]) -> None:
    table = make_predictions([0, 1] * 20 + [2] * 3, strength=1.0, seed=2)
    group = measure_axis("sex", table, ["F"] * 43, draws=100, seed=0).groups[0]
    assert group.recall["class-2"].low is not None
    assert "3 patients, of 43" in (group.recall["class-2"].note or "")
    assert "3 patients of one class" in (group.figures["balanced_accuracy"].note or "")
    assert group.figures["accuracy"].note is None


def test_a_group_of_one_class_says_what_its_accuracy_is(make_predictions: Callable[..., Predictions]) -> None:
    table = halves(make_predictions, wrong_in_second=4)
    axis = measure_axis("source", table, ["a" if target else "b" for target in table.targets], draws=50, seed=0)
    assert "sensitivity to that class" in (axis.groups[0].warning or "")
    assert axis.groups[0].figures["macro_auroc"].value is None
    assert "same shares" in (axis.gaps[0].note or "")


def test_bands_stand_in_their_order_and_rare_groups_together(make_predictions: Callable[..., Predictions]) -> None:
    table = make_predictions([0, 1, 2] * 20)
    ages = [["0-9", "10-19", "90+", UNKNOWN][i % 4] for i in range(60)]
    assert [group.name for group in measure_axis("age_band", table, ages, draws=0, seed=0).groups] == ["0-9", "10-19", "90+", UNKNOWN]
    scanners = [f"scanner {i % 15}" for i in range(60)]
    groups = measure_axis("scanner", table, scanners, draws=0, seed=0).groups
    assert len(groups) == 13
    assert groups[-1].name == "3 others"
    assert sum(group.images for group in groups) == 60


def test_values_come_from_the_manifest(tmp_path: Path) -> None:
    build_pack(tmp_path / "pack", ("a", "b"), attributes={"sex": ["F", "M", ""]})
    pack = Pack.open(tmp_path / "pack")
    assert known_axes(pack) == ["source", "format", "width", "height", "sex"]
    values = axis_values(pack, ["test-001", "test-000", "val-002"], ["sex", "width", "source"])
    assert values["width"] == ["16 px"] * 3
    assert values["source"] == ["clinic"] * 3
    assert values["sex"] == ["M", "F", UNKNOWN]
    with pytest.raises(ConfigError, match="patient_id"):
        axis_values(pack, ["test-000"], ["patient_id"])
