from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanvit.evaluation.estimates import Estimator
from scanvit.evaluation.operating_points import Rule, choose_threshold, choose_thresholds, operating_points
from scanvit.evaluation.predictions import Predictions


@st.composite
def scored(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, float]:
    n = draw(st.integers(2, 60))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    positive = np.r_[True, False, random.random(n - 2) < 0.4] if n > 2 else np.array([True, False])
    return positive, np.round(random.random(n), draw(st.sampled_from([1, 2, 8]))), draw(st.sampled_from([0.5, 0.8, 0.9, 0.95, 1.0]))


@given(scored())
def test_a_sensitivity_is_kept_with_the_best_specificity_there_is(case: tuple[np.ndarray, np.ndarray, float]) -> None:
    positive, scores, target = case
    threshold = choose_threshold(positive, scores, rule="sensitivity", target=target)
    assert threshold is not None
    assert (scores[positive] >= threshold).mean() >= target - 1e-9
    others = [t for t in np.r_[scores, 2.0] if (scores[positive] >= t).mean() >= target - 1e-9]
    assert (scores[~positive] < threshold).mean() == max((scores[~positive] < t).mean() for t in others)


@given(scored())
def test_a_specificity_is_kept_with_the_best_sensitivity_there_is(case: tuple[np.ndarray, np.ndarray, float]) -> None:
    positive, scores, target = case
    threshold = choose_threshold(positive, scores, rule="specificity", target=target)
    assert threshold is not None
    assert (scores[~positive] < threshold).mean() >= target - 1e-9
    others = [t for t in np.r_[scores, 2.0] if (scores[~positive] < t).mean() >= target - 1e-9]
    assert (scores[positive] >= threshold).mean() == max((scores[positive] >= t).mean() for t in others)


def test_by_hand() -> None:
    positive, scores = np.array([True] * 4 + [False] * 4), np.array([0.9, 0.8, 0.6, 0.3, 0.7, 0.4, 0.2, 0.1])
    assert choose_threshold(positive, scores, rule="sensitivity", target=0.75) == pytest.approx(0.5)  # between 0.4 and 0.6
    assert choose_threshold(positive, scores, rule="specificity", target=0.75) == pytest.approx(0.5)
    assert choose_threshold(positive, scores, rule="specificity", target=1.0) == pytest.approx(0.75)


@pytest.mark.parametrize("rule", ["sensitivity", "specificity"])
@pytest.mark.parametrize("steps", [1, 2])
def test_neighbouring_numbers_of_float32_keep_the_promise(rule: Rule, steps: int) -> None:
    """Between them lies no third, and their middle is rounded to one of the two: once to the upper, once to the lower."""
    low = 1 - steps * np.float32(2**-24)
    scores = np.repeat(np.array([low - np.float32(2**-24), low], np.float32), 20)
    positive = np.repeat([False, True], 20)
    threshold = choose_threshold(positive, scores, rule=rule, target=0.95)
    assert ((scores >= threshold) == positive).all()
    assert [float(score) >= threshold for score in scores] == positive.tolist()  # type: ignore[operator]


@pytest.mark.parametrize("kind", [True, False])
def test_one_kind_of_image_has_no_threshold(kind: bool) -> None:
    assert choose_threshold(np.array([kind] * 3), np.arange(3.0), rule="sensitivity", target=0.9) is None


def test_chosen_on_val_and_judged_on_test(make_predictions: Callable[..., Predictions]) -> None:
    val, test = make_predictions([0, 1] * 100, seed=1), make_predictions([0, 1, 2] * 100, seed=2)
    chosen = list(choose_thresholds(val.probs, val.targets, val.class_names))
    points = operating_points(chosen, test, Estimator(test.patient_ids, draws=100, seed=0))
    assert [(p.chosen.class_name, p.chosen.rule) for p in points] == [(f"class-{k}", rule) for k in (0, 1) for rule in ("sensitivity", "specificity")]
    for point in points:
        k = int(point.chosen.class_name[-1])
        on_val, positive_on_val = val.probs[:, k] >= point.chosen.threshold, val.targets == k
        assert point.chosen.sensitivity == pytest.approx(on_val[positive_on_val].mean())
        assert point.chosen.specificity == pytest.approx((~on_val[~positive_on_val]).mean())
        assert getattr(point.chosen, point.chosen.rule) >= point.chosen.target - 1e-9
        called, positive = test.probs[:, k] >= point.chosen.threshold, test.targets == k
        assert point.judged["sensitivity"].value == pytest.approx(called[positive].mean())
        assert point.judged["specificity"].value == pytest.approx((~called[~positive]).mean())
        assert point.judged["ppv"].value == pytest.approx(positive[called].mean())
        assert point.judged["npv"].value == pytest.approx((~positive[~called]).mean())
        assert all(e.low is not None and e.high is not None and e.value is not None and e.low <= e.value <= e.high for e in point.judged.values())


def test_a_threshold_of_a_class_that_the_table_does_not_know_is_left_out(make_predictions: Callable[..., Predictions]) -> None:
    val, test = make_predictions([0, 1, 2] * 20, seed=1), make_predictions([0, 1] * 20, classes=2, seed=2)
    points = operating_points(list(choose_thresholds(val.probs, val.targets, val.class_names)), test, Estimator(test.patient_ids, draws=20, seed=0))
    assert {point.chosen.class_name for point in points} == {"class-0", "class-1"}
    assert operating_points([], test, Estimator(test.patient_ids, draws=20, seed=0)) == []
