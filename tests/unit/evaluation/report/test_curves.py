from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from scanvit.evaluation.calibration import ReliabilityBin
from scanvit.evaluation.estimates import Estimate
from scanvit.evaluation.predictions import Predictions
from scanvit.evaluation.report.curves import precision_recall_curves, reliability_figure, roc_curves
from scanvit.evaluation.scoring import compute_scores

ABOUT = {"run": "r", "experiment": "e", "split": "test", "audit": []}


def corners(path: str) -> np.ndarray:
    """The points of a path, back in shares with the y axis upwards."""
    points = np.array([[float(n) for n in pair.split(",")] for pair in re.split("[ML]", path)[1:]])
    return np.stack([points[:, 0] / 100, 1 - points[:, 1] / 100], axis=1)


def test_the_drawn_roc_curve_has_the_area_of_the_figure(make_predictions: Callable[..., Predictions]) -> None:
    predictions = make_predictions([0, 1, 1] * 40)
    scores = compute_scores(predictions, about=ABOUT, draws=0, seed=0)
    drawn = roc_curves(predictions, scores)
    assert [curve.path is None for curve in drawn] == [False, False, True]  # no image of the last class
    for k in (0, 1):
        points = corners(drawn[k].path or "")
        assert np.trapezoid(points[:, 1], points[:, 0]) == pytest.approx(roc_auc_score(predictions.targets == k, predictions.probs[:, k]), abs=0.005)
        assert drawn[k].decision is not None
        x, y, _ = drawn[k].decision or (0, 0, "")
        called, positive = predictions.predicted == k, predictions.targets == k
        assert (x, y) == (pytest.approx(100 * called[~positive].mean(), abs=0.06), pytest.approx(100 - 100 * called[positive].mean(), abs=0.06))
        assert all("sensitivity" in text for *_, text in drawn[k].marks)


def test_the_drawn_precision_recall_curve_is_that_of_the_figure(make_predictions: Callable[..., Predictions]) -> None:
    predictions = make_predictions([0, 1, 1] * 40)
    drawn = precision_recall_curves(predictions, compute_scores(predictions, about=ABOUT, draws=0, seed=0))
    for k, share in ((0, 1 / 3), (1, 2 / 3)):
        points = corners(drawn[k].path or "")
        area = float((np.diff(points[:, 0]) * points[1:, 1]).sum())
        assert area == pytest.approx(average_precision_score(predictions.targets == k, predictions.probs[:, k]), abs=0.01)
        assert drawn[k].base == pytest.approx(100 - 100 * share, abs=0.06)


def test_a_tooltip_says_what_its_bin_holds() -> None:
    held = ReliabilityBin(images=40, probability=0.75, share=Estimate(value=0.6, low=0.5, high=0.7))
    few = ReliabilityBin(images=2, probability=0.95, share=Estimate(value=1.0, note="No interval."))
    first, second = reliability_figure([held, few])
    assert (first["x"], first["y"], first["bounds"], first["weight"]) == (75.0, 40.0, (50.0, 30.0), 1.0)
    assert first["text"].startswith("40 images, 75 % sure on average: 60.0")
    assert (second["bounds"], second["weight"]) == (None, 0.05)
