from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from scanvit.evaluation.calibrate import Calibration, Threshold
from scanvit.evaluation.conformal import Conformal
from scanvit.evaluation.judgement import judge

PROBS = np.array([0.1, 0.6, 0.3], np.float32)


def engine(*, calibrated: bool) -> Any:
    thresholds = (
        Threshold(class_name="b", rule="sensitivity", target=0.95, threshold=0.5),
        Threshold(class_name="c", rule="sensitivity", target=0.95, threshold=0.4),
        Threshold(class_name="b", rule="specificity", target=0.9, threshold=0.7),
    )
    sets = Conformal(coverage=0.9, thresholds=(0.2, 0.2, 0.2))
    calibration = Calibration(temperature=2.0, thresholds=thresholds, conformal=sets, outliers=None)
    return SimpleNamespace(class_names=["a", "b", "c"], calibration=calibration if calibrated else None)


def test_all_that_was_fitted_is_told() -> None:
    said = judge(engine(calibrated=True), PROBS, 1.5)
    assert (said["prediction"], said["probability"]) == ("b", pytest.approx(0.6))
    assert said["operating_points"] == {"sensitivity 95 %": {"b": True, "c": False}, "specificity 90 %": {"b": False}}
    assert said["conformal_set"] == ["b", "c"]
    assert (said["coverage"], said["outlier_score"], said["outlier"]) == (0.9, 1.5, True)
    assert "agreement" not in said


def test_what_was_not_fitted_is_left_out() -> None:
    assert judge(engine(calibrated=False), PROBS, None).keys() == {"prediction", "probability", "probabilities"}


@pytest.mark.parametrize(("reading", "expected"), [("b", "agrees"), ("a", "differs"), ("z", "unknown class"), ("", "unknown class")])
def test_a_first_reading_is_compared(reading: str, expected: str) -> None:
    assert judge(engine(calibrated=False), PROBS, None, first_reading=reading)["agreement"] == expected
