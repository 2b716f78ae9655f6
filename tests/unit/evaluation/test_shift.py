from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from scanvit.evaluation.predictions import Predictions
from scanvit.evaluation.shift import BINS, measure_shift


def test_the_same_kind_of_images_has_not_shifted(make_predictions: Callable[..., Predictions]) -> None:
    own, here = (make_predictions([0, 1, 2] * 50, strength=1.5, seed=seed) for seed in (0, 1))
    accuracy = measure_shift(own, here, draws=300, seed=0).figures["accuracy"]
    assert accuracy.difference.low is not None
    assert accuracy.difference.high is not None
    assert accuracy.difference.low < 0 < accuracy.difference.high
    assert accuracy.difference.value == pytest.approx((accuracy.here.value or 0) - (accuracy.own.value or 0))


def test_a_class_that_is_lost_is_named(make_predictions: Callable[..., Predictions]) -> None:
    own = make_predictions([0, 1, 2] * 60, strength=3.0)
    here = make_predictions([0, 1, 2] * 60, strength=3.0, seed=1)
    logits = here.logits.copy()
    logits[here.targets == 2] = [0, 4, 0]  # the third class is taken for the second
    shift = measure_shift(own, replace(here, logits=logits), draws=200, seed=0)
    assert shift.figures["accuracy"].difference.high is not None
    assert shift.figures["accuracy"].difference.high < 0
    assert "more than chance would give" in shift.sentences[0]
    assert any(sentence.startswith("The class that moves most is class-2") for sentence in shift.sentences)
    assert any(sentence.startswith(("class-1 is named for", "class-2 is named for")) for sentence in shift.sentences)
    assert sum(shift.confidence_counts["here"]) == 180
    assert len(shift.confidence_counts["own"]) == BINS


def test_only_classes_that_both_hold_are_compared(make_predictions: Callable[..., Predictions]) -> None:
    shift = measure_shift(make_predictions([0, 1, 2] * 20), make_predictions([0, 1] * 20, seed=1), draws=20, seed=0)
    assert shift.own_images == 40
    assert [c.own_images for c in shift.classes] == [20, 20, 0]
    assert shift.outliers is None


def test_a_class_of_one_patient_is_not_said_to_have_moved(make_predictions: Callable[..., Predictions]) -> None:
    own = make_predictions([0, 1, 2] * 40, strength=3.0)
    here = make_predictions([0, 1] * 60 + [2] * 4, strength=3.0, seed=1, patients=[f"patient-{min(i, 120)}" for i in range(124)])
    logits = here.logits.copy()
    logits[here.targets == 2] = [0, 5, 0]
    shift = measure_shift(own, replace(here, logits=logits), draws=100, seed=0)
    moved = shift.classes[2].recall
    assert moved.difference.value is not None
    assert (moved.here.low, moved.difference.low) == (None, None)
    assert "1 patient" in (moved.here.note or "")
    assert "1 patient" in (moved.difference.note or "")
    assert shift.figures["balanced_accuracy"].difference.low is None
    assert "1 patient" not in (shift.classes[2].specificity.difference.note or "")
    assert "without an interval" in next(sentence for sentence in shift.sentences if "moves most" in sentence)


def test_a_class_of_few_patients_says_so_on_either_side(make_predictions: Callable[..., Predictions]) -> None:
    own, here = make_predictions([0, 1, 2] * 40), make_predictions([0, 1] * 60 + [2] * 3, seed=1)
    shift = measure_shift(own, here, draws=100, seed=0)
    recall, balanced = shift.classes[2].recall, shift.figures["balanced_accuracy"]
    assert recall.own.note is None
    assert "3 patients, of 123" in (recall.here.note or "")
    assert "Behind one of the two stand 3 patients:" in (recall.difference.note or "")
    assert "3 patients of one class" in (balanced.here.note or "")


def test_where_its_own_test_has_none_of_the_classes_nothing_is_compared(make_predictions: Callable[..., Predictions]) -> None:
    shift = measure_shift(make_predictions([0, 1] * 20), make_predictions([2] * 20, seed=1), draws=20, seed=0)
    assert shift.own_images == 0
    assert shift.figures["accuracy"].difference.value is None
    assert shift.figures["accuracy"].here.value is not None


def test_overconfidence_is_seen_and_a_new_temperature_mends_it(make_predictions: Callable[..., Predictions]) -> None:
    own = make_predictions([0, 1, 2] * 100, strength=1.0)
    own = replace(own, outlier_scores=np.full(300, 0.5))
    here = make_predictions([0, 1, 2] * 100, strength=1.0, seed=1)
    here = replace(here, logits=here.logits * 5, outlier_scores=np.r_[np.full(150, 0.5), np.full(150, 1.5)])
    shift = measure_shift(own, here, draws=100, seed=0)
    assert shift.refitted_temperature > 3
    assert (shift.recalibrated_ece.value or 1) < (shift.figures["ece"].here.value or 0) / 2
    assert shift.outliers is not None
    assert (shift.outliers.own.value, shift.outliers.here.value) == (0, 0.5)
    assert shift.outlier_counts is not None
    assert shift.outlier_counts["here"][15] == 150
