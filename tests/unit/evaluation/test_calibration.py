from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from scanvit.evaluation.calibration import fit_temperature, reliability
from scanvit.evaluation.estimates import Estimator
from scanvit.evaluation.predictions import softmax


def sharpened(factor: float, *, images: int = 20_000, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a perfectly calibrated network, times a factor; targets drawn from the network's true probabilities."""
    random = np.random.default_rng(seed)
    logits = 2 * random.normal(size=(images, classes))
    targets = (random.random((images, 1)) > softmax(logits.astype(np.float32)).cumsum(axis=1)).sum(axis=1).clip(max=classes - 1)
    return (factor * logits).astype(np.float32), targets


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_what_made_the_network_too_sure(factor: float) -> None:
    assert fit_temperature(*sharpened(factor)) == pytest.approx(factor, rel=0.03)


@given(seed=st.integers(0, 2**32), factor=st.floats(0.1, 10), images=st.integers(1, 40))
def test_no_temperature_beside_it_is_better(seed: int, factor: float, images: int) -> None:
    logits, targets = sharpened(factor, images=images, seed=seed)
    best = fit_temperature(logits, targets)

    def loss(temperature: float) -> float:
        """Each image once as what it is, and once, with the weight of the doubt, as each other class."""
        probs, doubt = softmax((logits / temperature).astype(np.float64)), 1 / (images + 2)
        weights = np.where(np.arange(4) == targets[:, None], 1 - doubt, doubt / 3)
        return float(log_loss(np.tile(np.arange(4), images), probs.repeat(4, axis=0), sample_weight=weights.ravel(), labels=range(4)))

    assert 0.05 <= best <= 20.001
    assert loss(best) <= loss(1.0) + 1e-6
    for other in (best * 0.98, best * 1.02):
        assert loss(best) <= loss(min(max(other, 0.05), 20.0)) + 1e-6


def test_a_few_images_that_are_all_named_rightly_do_not_make_every_answer_sure() -> None:
    """Rule of succession: with 22 right ones of 22, about one in 24 is still to be expected wrong."""
    targets = np.arange(22) % 2
    logits = (np.eye(2)[targets] * 3).astype(np.float32)
    temperature = fit_temperature(logits, targets)
    assert softmax(logits, temperature)[np.arange(22), targets] == pytest.approx(23 / 24, abs=1e-3)
    assert fit_temperature(np.zeros((5, 1), np.float32), np.zeros(5, np.int64)) == 1.0


def test_nothing_to_fit_on_leaves_the_probabilities_alone() -> None:
    assert fit_temperature(np.empty((0, 3), np.float32), np.empty(0, np.int64)) == 1.0


def test_the_bins_are_scikit_learns() -> None:
    random = np.random.default_rng(1)
    probs = random.random(3000)
    right = random.random(3000) < probs**2
    bins = reliability(probs, right, Estimator([str(i // 3) for i in range(3000)], draws=100, seed=0))
    share, mean = calibration_curve(right, probs, n_bins=15)
    assert [b.share.value for b in bins] == pytest.approx(share)
    assert [b.probability for b in bins] == pytest.approx(mean)
    assert sum(b.images for b in bins) == 3000
    for b in bins[3:]:
        assert b.share.value is not None
        assert b.share.low is not None
        assert b.share.high is not None
        assert b.share.low <= b.share.value <= b.share.high


def test_a_bin_of_one_patient_has_no_interval() -> None:
    bins = reliability(np.array([0.01, 0.99, 0.98]), np.array([False, True, True]), Estimator(["a", "b", "c"], draws=50, seed=0))
    assert [b.images for b in bins] == [1, 2]
    assert bins[0].share.low is None
    assert "1 patient" in (bins[0].share.note or "")
