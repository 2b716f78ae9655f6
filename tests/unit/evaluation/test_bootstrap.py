from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanvit.evaluation.bootstrap import bootstrap, patient_index, percentile_interval, resamples
from scanvit.evaluation.metrics import MetricComputer
from scanvit.evaluation.predictions import Predictions


def drawn(predictions: Predictions, *, draws: int = 400, seed: int = 0) -> dict[str, np.ndarray]:
    computer = MetricComputer(predictions.targets, predictions.predicted, predictions.probs, predictions.losses)
    return bootstrap(computer, *patient_index(predictions.patient_ids), draws=draws, seed=seed)


@given(patients=st.integers(1, 40), draws=st.integers(1, 30), at_once=st.integers(1, 31), seed=st.integers(0, 99))
def test_each_draw_takes_as_many_patients_as_there_are(patients: int, draws: int, at_once: int, seed: int) -> None:
    weights = np.concatenate(list(resamples(patients, draws=draws, seed=seed, at_once=at_once)), axis=1)
    assert weights.shape == (patients, draws)
    assert (weights.sum(axis=0) == patients).all()


def test_the_draws_do_not_depend_on_how_many_are_made_at_once() -> None:
    one, many = (np.concatenate(list(resamples(11, draws=20, seed=5, at_once=n)), axis=1) for n in (1, 20))
    assert (one == many).all()


def test_every_patient_is_drawn_alike() -> None:
    weights = next(resamples(10, draws=20_000, seed=0, at_once=20_000))
    assert weights.mean(axis=1) == pytest.approx(np.ones(10), abs=0.03)
    assert weights.var(axis=1) == pytest.approx(np.full(10, 0.9), abs=0.05)  # of a multinomial: n p (1 - p)


def test_the_seed_decides(make_predictions: Callable[..., Predictions]) -> None:
    predictions = make_predictions([0, 1, 2] * 20)
    first, again, other = drawn(predictions, seed=1), drawn(predictions, seed=1), drawn(predictions, seed=2)
    assert all(np.array_equal(first[name], again[name], equal_nan=True) for name in first)
    assert not np.array_equal(first["accuracy"], other["accuracy"])


def test_the_spread_of_accuracy_is_the_binomial_one(make_predictions: Callable[..., Predictions]) -> None:
    predictions = make_predictions([0, 1, 2] * 100)
    accuracy = (predictions.predicted == predictions.targets).mean()
    assert drawn(predictions, draws=4000)["accuracy"].std() == pytest.approx(np.sqrt(accuracy * (1 - accuracy) / 300), rel=0.06)


def test_more_images_of_the_same_patients_do_not_narrow_the_interval(make_predictions: Callable[..., Predictions]) -> None:
    once = make_predictions([0, 1, 2] * 10)
    ten_times = Predictions(
        image_ids=once.image_ids * 10,
        patient_ids=once.patient_ids * 10,
        sources=once.sources * 10,
        targets=np.tile(once.targets, 10),
        logits=np.tile(once.logits, (10, 1)),
        class_names=once.class_names,
        fingerprint=once.fingerprint,
    )
    for name, values in drawn(once).items():
        assert drawn(ten_times)[name] == pytest.approx(values, nan_ok=True), name


@pytest.mark.parametrize("seed", range(5))
def test_the_interval_holds_the_estimate(make_predictions: Callable[..., Predictions], seed: int) -> None:
    predictions = make_predictions([0, 1, 2] * 50, seed=seed)
    computer = MetricComputer(predictions.targets, predictions.predicted, predictions.probs, predictions.losses)
    point, samples = computer(np.ones((150, 1))), drawn(predictions)
    for name in ("accuracy", "balanced_accuracy", "macro_auroc", "log_loss"):
        interval = percentile_interval(samples[name])
        assert interval is not None
        assert interval[0] < getattr(point, name)[0] < interval[1]


def test_percentiles_by_hand() -> None:
    assert percentile_interval(np.arange(1001.0)) == pytest.approx((25, 975))


def test_undefined_draws_are_left_out_until_they_are_too_many() -> None:
    assert percentile_interval(np.array([1.0, np.nan, 1.0, np.nan])) == (1.0, 1.0)
    assert percentile_interval(np.array([1.0, np.nan, np.nan])) is None
    assert percentile_interval(np.array([np.nan])) is None
