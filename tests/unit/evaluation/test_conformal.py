from __future__ import annotations

import numpy as np
import pytest

from scanvit.evaluation.conformal import fit_conformal
from scanvit.evaluation.predictions import softmax


def drawn(n: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    targets = random.choice(3, size=n, p=[0.6, 0.3, 0.1])
    return softmax((random.normal(size=(n, 3)) + 1.5 * np.eye(3)[targets]).astype(np.float32)), targets


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_every_class_is_covered_as_promised_on_average(coverage: float) -> None:
    random, covered = np.random.default_rng(0), []
    for _ in range(300):
        conformal = fit_conformal(*drawn(200, random), coverage=coverage)
        probs, targets = drawn(400, random)
        sets = conformal.sets(probs)
        covered.append([sets[targets == k, k].mean() for k in range(3)])
    mean = np.mean(covered, axis=0)
    assert (mean >= coverage - 0.01).all()
    assert (mean[:2] <= coverage + 0.03).all()  # the rare class has about 20 images: coarse steps, on the safe side


def test_by_hand() -> None:
    """Nine images of class 0: the first of the sorted probabilities, since (9 + 1) * 0.1 = 1."""
    own = np.array([0.3, 0.9, 0.8, 0.5, 0.6, 0.7, 0.95, 0.85, 0.4])
    probs = np.stack([own, 1 - own], axis=1)
    conformal = fit_conformal(probs, np.zeros(9, np.int64), coverage=0.9)
    assert conformal.thresholds == pytest.approx((0.3, 0.0))  # class 1 has no image: it stands in every set
    assert conformal.sets(np.array([[0.2, 0.8], [0.3, 0.7]])).tolist() == [[False, True], [True, True]]


def test_too_few_images_promise_nothing_less_than_all() -> None:
    assert fit_conformal(np.full((5, 1), 0.9), np.zeros(5, np.int64), coverage=0.95).thresholds == (0.0,)
