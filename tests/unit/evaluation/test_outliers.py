from __future__ import annotations

import json

import numpy as np
import pytest

from scanvit.evaluation.outliers import ALARMS, OutlierDetector

MIX = np.array([[1.0, 0.5, 0.0], [0.0, 0.3, 0.0], [0.2, 0.0, 2.0]])


def drawn(n: int, seed: int, *, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Two classes at distance 10, correlated traits."""
    random = np.random.default_rng(seed)
    targets = random.integers(0, 2, size=n)
    return (random.normal(size=(n, 3)) @ MIX + 10 * targets[:, None] * [1, 0, 0] + shift * np.array([0, 1, 0])).astype(np.float32), targets


def test_the_distance_is_mahalanobis_to_the_nearest_class() -> None:
    detector = OutlierDetector.fit(*drawn(50_000, 0))
    images = np.array([[0.0, 0.0, 0.0], [10.0, 0.0, 0.0], [5.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
    inverse = np.linalg.inv(MIX.T @ MIX)
    expected = [min(np.sqrt((x - m) @ inverse @ (x - m)) for m in (np.zeros(3), np.array([10.0, 0, 0]))) for x in images]
    assert detector.score(images) == pytest.approx(expected, rel=0.03, abs=0.1)


def test_of_images_like_those_of_val_one_in_a_hundred_is_an_outlier() -> None:
    detector = OutlierDetector.fit(*drawn(5000, 1)).calibrated(drawn(5000, 2)[0])
    assert (detector.score(drawn(20_000, 3)[0]) > 1).mean() == pytest.approx(ALARMS, abs=0.004)
    assert (detector.score(drawn(1000, 4, shift=5.0)[0]) > 1).mean() > 0.9


def test_it_survives_a_file() -> None:
    detector = OutlierDetector.fit(*drawn(100, 5)).calibrated(drawn(50, 6)[0])
    again = OutlierDetector.from_dict(json.loads(json.dumps(detector.to_dict())))
    traits = drawn(30, 7)[0]
    assert (again.score(traits) == detector.score(traits)).all()


def test_a_class_without_images_and_a_trait_that_never_varies() -> None:
    traits, targets = drawn(200, 8)
    detector = OutlierDetector.fit(np.c_[traits, np.ones(200)], targets * 4)
    assert detector.class_means.shape == (2, 4)
    scores = detector.score(np.array([[0.0, 0, 0, 1], [0.0, 0, 0, 2]]))
    assert np.isfinite(scores).all()
    assert scores[1] > 5 * scores[0]
