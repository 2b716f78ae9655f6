from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np
import pytest

from scanvit.evaluation.calibrate import Calibration
from scanvit.evaluation.conformal import fit_conformal
from scanvit.evaluation.estimates import Estimator
from scanvit.evaluation.operating_points import choose_thresholds
from scanvit.evaluation.predictions import Predictions
from scanvit.evaluation.scoring import compute_scores
from scanvit.evaluation.selective import confidences_for
from scanvit.evaluation.trust import judge_calibration, judge_outliers, judge_selective, judge_sets

ABOUT = {"run": "r", "experiment": "e", "split": "test", "audit": []}


def calibration(val: Predictions, *, temperature: float = 2.0, coverage: float = 0.8) -> Calibration:
    probs = replace(val, temperature=temperature).probs
    return Calibration(
        images=len(val),
        temperature=temperature,
        thresholds=tuple(choose_thresholds(probs, val.targets, val.class_names)),
        confidences=confidences_for(probs),
        conformal=fit_conformal(probs, val.targets, coverage=coverage),
        outliers=None,
    )


@pytest.fixture
def tables(make_predictions: Callable[..., Predictions]) -> tuple[Predictions, Calibration, Estimator]:
    fitted = calibration(make_predictions([0, 1, 2] * 100, seed=1))
    test = replace(make_predictions([0, 1, 2] * 60, seed=2), temperature=fitted.temperature)
    return test, fitted, Estimator(test.patient_ids, draws=200, seed=0)


def test_after_the_temperature_the_figures_are_those_of_the_scores(tables: tuple[Predictions, Calibration, Estimator]) -> None:
    test, fitted, estimator = tables
    found, scores = judge_calibration(test, fitted, estimator), compute_scores(test, about=ABOUT, draws=200, seed=0)
    uncalibrated = compute_scores(replace(test, temperature=1.0), about=ABOUT, draws=200, seed=0)
    for name in ("ece", "brier", "log_loss"):
        for ours, theirs in ((found.after, scores), (found.before, uncalibrated)):
            assert asdict(getattr(ours, name)) == pytest.approx(asdict(theirs.overall[name])), name
    assert found.after.class_ece["class-1"].value == pytest.approx(scores.per_class["class-1"].figures["class_ece"].value)
    assert found.before.ece != found.after.ece
    assert sum(held.images for held in found.after.reliability) == len(test)
    assert (found.temperature, found.fitted_on) == (2.0, 300)


def test_sets_reach_what_they_promise_on_images_like_those_of_val(tables: tuple[Predictions, Calibration, Estimator]) -> None:
    test, fitted, estimator = tables
    found = judge_sets(test, fitted, estimator)
    sets = fitted.conformal.sets(test.probs)
    assert found.reached.value == pytest.approx(sets[np.arange(len(test)), test.targets].mean())
    assert found.reached.low is not None
    assert found.reached.high is not None
    assert found.reached.low < 0.8 < found.reached.high + 0.05
    assert found.mean_size.value == pytest.approx(sets.sum(axis=1).mean())
    assert found.sizes == np.bincount(sets.sum(axis=1), minlength=4).tolist()
    assert found.by_class["class-2"].value == pytest.approx(sets[test.targets == 2, 2].mean())


def test_selective_answers_and_second_readers_use_the_confidences_of_val(tables: tuple[Predictions, Calibration, Estimator]) -> None:
    test, fitted, estimator = tables
    found = judge_selective(test, fitted, estimator)
    assert tuple(row.confidence for row in found.covered) == fitted.confidences
    assert len(found.second_reader) == 3 * len(fitted.confidences)
    assert 0 < found.aurc < float((test.predicted != test.targets).mean())


def test_outliers_are_counted_and_their_errors_told_apart(tables: tuple[Predictions, Calibration, Estimator]) -> None:
    test, _, estimator = tables
    assert judge_outliers(test, estimator) is None
    wrong = test.predicted != test.targets
    scores = np.where(wrong, 1.5, 0.5)
    scores[0] = 99.0
    found = judge_outliers(replace(test, outlier_scores=scores), estimator)
    assert found is not None
    assert found.images == int((scores > 1).sum())
    assert found.error_among_them.value == pytest.approx(wrong[scores > 1].mean())
    assert found.error_among_others.value == pytest.approx(wrong[scores <= 1].mean())
    assert sum(found.histogram) == len(test)
    assert found.histogram[-1] == 1
    nothing = judge_outliers(replace(test, outlier_scores=np.full(len(test), 0.1)), estimator)
    assert nothing is not None
    assert (nothing.images, nothing.error_among_them.value, nothing.error_among_them.note) == (0, None, "No image was called an outlier.")
