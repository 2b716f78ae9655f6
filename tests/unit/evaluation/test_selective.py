from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanvit.evaluation.estimates import Estimator
from scanvit.evaluation.predictions import Predictions
from scanvit.evaluation.selective import (
    area_under_risk,
    assumed_second_reader,
    confidences_for,
    covered,
    risk_coverage,
    second_reader,
    second_reader_table,
)


def test_risk_and_coverage_by_hand() -> None:
    coverage, error = risk_coverage(np.array([0.9, 0.6, 0.8, 0.6]), np.array([False, True, True, False]))
    assert coverage.tolist() == [0.25, 0.5, 1.0]  # the two of 0.6 come together
    assert error.tolist() == [0.0, 0.5, 0.5]
    assert area_under_risk(coverage, error) == pytest.approx(0.25 * 0 + 0.25 * 0.5 + 0.5 * 0.5)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=50))
def test_all_answered_is_the_plain_error(images: list[tuple[int, bool]]) -> None:
    confidence, wrong = (np.array(column) for column in zip(*images, strict=True))
    coverage, error = risk_coverage(confidence, wrong)
    assert coverage[-1] == 1
    assert error[-1] == pytest.approx(wrong.mean())
    assert (np.diff(coverage) > 0).all()
    assert 0 <= area_under_risk(coverage, error) <= 1


def test_where_it_is_surest_it_errs_least(make_predictions: Callable[..., Predictions]) -> None:
    val, test = make_predictions([0, 1, 2] * 200, seed=1), make_predictions([0, 1, 2] * 200, seed=2)
    rows = covered(confidences_for(val.probs), test, Estimator(test.patient_ids, draws=100, seed=0))
    errors = [row.error.value for row in rows]
    assert errors == sorted(errors, reverse=True)  # type: ignore[type-var]
    assert errors[0] == pytest.approx((test.predicted != test.targets).mean())
    for row in rows[1:]:
        assert row.coverage.value == pytest.approx(row.aimed_coverage, abs=0.06)
        assert row.error.low is not None
        assert row.error.high is not None
        assert row.error.low <= row.error.value <= row.error.high  # type: ignore[operator]


def test_without_validation_images_everything_is_answered() -> None:
    assert set(confidences_for(np.zeros((0, 3), np.float32))) == {0.0}


def test_a_real_first_reader_by_hand(make_predictions: Callable[..., Predictions]) -> None:
    predictions = make_predictions([0, 0, 1, 1], classes=2, strength=50.0)  # the network is right, and sure
    readings = np.array([0, 1, 1, 0])
    result = second_reader(predictions, readings, 0.9)
    assert (result.reader_error, result.cleared, result.error_cleared, result.caught) == (0.5, 0.5, 0.0, 1.0)
    nothing = second_reader(predictions, readings, 1.1)
    assert (nothing.cleared, nothing.error_cleared, nothing.caught) == (0.0, None, 1.0)


def test_the_assumed_reader_is_the_mean_of_real_ones(make_predictions: Callable[..., Predictions]) -> None:
    predictions = make_predictions([0, 1, 2] * 100)
    random, results = np.random.default_rng(0), []
    for _ in range(400):
        slips = random.random(300) < 0.1
        readings = np.where(slips, (predictions.targets + random.integers(1, 3, size=300)) % 3, predictions.targets)
        results.append(second_reader(predictions, readings, 0.5))
    assumed = assumed_second_reader(predictions, 0.1, 0.5)
    assert assumed.cleared == pytest.approx(np.mean([r.cleared for r in results]), abs=0.005)
    assert assumed.error_cleared == pytest.approx(np.mean([r.error_cleared for r in results]), abs=0.003)
    assert assumed.caught == pytest.approx(np.mean([r.caught for r in results]), abs=0.02)


def test_the_table_is_of_the_readings_where_there_are_some(make_predictions: Callable[..., Predictions]) -> None:
    predictions = make_predictions([0, 1, 2] * 10)
    assert len(second_reader_table(predictions, [0.5, 0.9])) == 6
    (row,) = second_reader_table(predictions, [0.5], predictions.targets)
    assert (row.reader_error, row.caught, row.error_cleared) == (0.0, None, 0.0)
