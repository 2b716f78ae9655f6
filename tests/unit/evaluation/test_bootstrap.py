from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from scanvit.evaluation.bootstrap import bca_interval, bootstrap, leave_out, patient_index, resamples
from scanvit.evaluation.metrics import MetricComputer
from scanvit.evaluation.predictions import Predictions


def drawn(predictions: Predictions, *, draws: int = 400, seed: int = 0) -> dict[str, np.ndarray]:
    computer = MetricComputer(predictions.targets, predictions.predicted, predictions.probs, predictions.losses)
    return bootstrap(computer, *patient_index(predictions.patient_ids), draws=draws, seed=seed).draws


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
    point, sampled = computer(np.ones((150, 1))), bootstrap(computer, *patient_index(predictions.patient_ids), draws=400, seed=0)
    for name in ("accuracy", "balanced_accuracy", "macro_auroc", "log_loss"):
        interval = bca_interval(point[name][0], sampled.draws[name], sampled.left_out[name])
        assert interval is not None
        assert interval[0] < point[name][0] < interval[1]


def mean_of(values: np.ndarray) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    return lambda weights: {"mean": values @ weights / weights.sum(axis=0)}


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_is_scipys(seed: int) -> None:
    """Another implementation, with draws of its own: equal up to the randomness of 20,000 draws, on a skewed sample."""
    values = np.random.default_rng(seed).exponential(size=40)
    sampled = bootstrap(mean_of(values), np.arange(40), 40, draws=20_000, seed=seed)
    ours = bca_interval(values.mean(), sampled.draws["mean"], sampled.left_out["mean"])
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(seed), vectorized=True).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.03 * (theirs.high - theirs.low))


def test_it_covers_the_truth_where_percentiles_fail() -> None:
    """The variance of 20 exponential values: percentiles cover far less than the nominal 95 %, BCa comes nearer (Efron 1987)."""
    random, covered = np.random.default_rng(0), {"bca": 0, "percentile": 0}
    for _ in range(200):
        values = random.exponential(size=20)

        def variance(weights: np.ndarray, values: np.ndarray = values) -> dict[str, np.ndarray]:
            shares = weights / weights.sum(axis=0)
            return {"variance": (values**2) @ shares - (values @ shares) ** 2}

        sampled = bootstrap(variance, np.arange(20), 20, draws=999, seed=int(random.integers(2**31)))
        interval = bca_interval(values.var(), sampled.draws["variance"], sampled.left_out["variance"])
        assert interval is not None
        covered["bca"] += interval[0] <= 1.0 <= interval[1]
        low, high = np.quantile(sampled.draws["variance"], [0.025, 0.975])
        covered["percentile"] += low <= 1.0 <= high
    assert covered["bca"] >= covered["percentile"] + 10


def test_without_bias_and_skew_it_is_the_percentile_interval() -> None:
    assert bca_interval(500.0, np.arange(1001.0), np.array([1.0, 2.0, 3.0])) == pytest.approx((25, 975))


@given(patients=st.integers(2, 900), at_once=st.integers(1, 500))
def test_each_patient_is_left_out_once(patients: int, at_once: int) -> None:
    weights = np.concatenate(list(leave_out(patients, seed=0, at_once=at_once)), axis=1)
    assert weights.shape == (patients, min(patients, 400))
    assert ((weights == 0).sum(axis=1) == 1).all()


def test_groups_of_patients_give_the_same_acceleration() -> None:
    values = np.random.default_rng(0).exponential(size=4000)
    left_out = {n: np.array([np.delete(values, range(i, i + n)).mean() for i in range(0, 4000, n)]) for n in (1, 10)}
    draws = np.random.default_rng(1).normal(1.0, 0.1, size=5000)
    one, ten = (bca_interval(1.0, draws, left_out[n]) for n in (1, 10))
    assert one == pytest.approx(ten, abs=0.002)


def test_undefined_draws_are_left_out_until_they_are_too_many() -> None:
    nothing = np.array([np.nan])
    assert bca_interval(1.0, np.array([1.0, np.nan, 1.0, np.nan]), nothing) == (1.0, 1.0)
    assert bca_interval(1.0, np.array([1.0, np.nan, np.nan]), nothing) is None
    assert bca_interval(1.0, np.array([np.nan]), nothing) is None
