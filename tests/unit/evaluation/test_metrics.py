from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn import metrics as sk

from scanvit.evaluation.metrics import MetricComputer, calibration_bins
from scanvit.evaluation.predictions import softmax


def computed(targets: np.ndarray, probs: np.ndarray, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    weights = np.ones((len(targets), 1)) if weights is None else weights
    losses = -np.log(probs[np.arange(len(targets)), targets].astype(np.float64))
    return MetricComputer(targets, probs.argmax(axis=1), probs, losses)(weights)


@st.composite
def judged_images(draw: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets (every class is there), probabilities with ties, weights of 0 to 3 that leave no class out."""
    classes, n = draw(st.integers(2, 5)), draw(st.integers(10, 60))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    targets = np.concatenate([np.arange(classes), random.integers(classes, size=n)])
    logits = np.round(random.normal(size=(len(targets), classes)), draw(st.sampled_from([0, 1, 6]))).astype(np.float32)
    weights = random.integers(0, 4, size=len(targets)).astype(np.float64)
    weights[:classes] = np.maximum(weights[:classes], 1)
    return targets, softmax(logits), weights


@given(judged_images())
def test_equal_to_scikit_learn_with_weights(images: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    targets, probs, weights = images
    predicted, classes = probs.argmax(axis=1), np.arange(probs.shape[1])
    assume(set(predicted[weights > 0]) == set(classes))  # scikit-learn's 0/0 is a 0 with a warning
    ours = computed(targets, probs, weights[:, None])
    kept = weights > 0  # scikit-learn's average precision is NaN where the highest scores weigh nothing
    targets, probs, predicted, weights = targets[kept], probs[kept], predicted[kept], weights[kept]
    precision, recall, f1, _ = sk.precision_recall_fscore_support(targets, predicted, labels=classes, sample_weight=weights)
    assert ours["accuracy"][0] == pytest.approx(sk.accuracy_score(targets, predicted, sample_weight=weights))
    assert ours["balanced_accuracy"][0] == pytest.approx(sk.balanced_accuracy_score(targets, predicted, sample_weight=weights))
    assert ours["precision"][0] == pytest.approx(precision)
    assert ours["recall"][0] == pytest.approx(recall)
    assert ours["f1"][0] == pytest.approx(f1)
    normalized = probs.astype(np.float64) / probs.sum(axis=1, keepdims=True, dtype=np.float64)
    assert ours["log_loss"][0] == pytest.approx(sk.log_loss(targets, normalized, labels=classes, sample_weight=weights), rel=1e-5)
    for k in classes:
        assert ours["auroc"][0, k] == pytest.approx(sk.roc_auc_score(targets == k, probs[:, k], sample_weight=weights))
        assert ours["average_precision"][0, k] == pytest.approx(sk.average_precision_score(targets == k, probs[:, k], sample_weight=weights))
        assert ours["specificity"][0, k] == pytest.approx(sk.recall_score(targets != k, predicted != k, sample_weight=weights))
        assert ours["npv"][0, k] == pytest.approx(sk.precision_score(targets != k, predicted != k, sample_weight=weights))
    assert ours["macro_auroc"][0] == pytest.approx(ours["auroc"][0].mean())
    assert ours["mcc"][0] == pytest.approx(sk.matthews_corrcoef(targets, predicted, sample_weight=weights), abs=1e-9)
    assert ours["kappa"][0] == pytest.approx(sk.cohen_kappa_score(targets, predicted, sample_weight=weights), abs=1e-9)
    assert ours["brier"][0] == pytest.approx(np.average(((probs - np.eye(len(classes))[targets]) ** 2).sum(axis=1), weights=weights), rel=1e-5)
    for average in ("macro", "weighted"):
        figures = sk.precision_recall_fscore_support(targets, predicted, labels=classes, sample_weight=weights, average=average)[:3]
        assert [ours[f"{average}_{name}"][0] for name in ("precision", "recall", "f1")] == pytest.approx(figures)


@given(judged_images())
def test_a_weight_counts_like_repeated_images(images: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    targets, probs, weights = images
    times = weights.astype(int)
    weighted, repeated = computed(targets, probs, weights[:, None]), computed(np.repeat(targets, times), np.repeat(probs, times, axis=0))
    for name in weighted:
        assert weighted[name] == pytest.approx(repeated[name], nan_ok=True), name


def test_many_weightings_at_once_are_each_on_its_own() -> None:
    random = np.random.default_rng(3)
    targets, probs = random.integers(3, size=50), softmax(random.normal(size=(50, 3)).astype(np.float32))
    weights = random.integers(0, 3, size=(50, 7)).astype(np.float64)
    together = computed(targets, probs, weights)
    for column in range(7):
        alone = computed(targets, probs, weights[:, [column]])
        for name in together:
            assert together[name][column] == pytest.approx(alone[name][0]), name


def test_by_hand() -> None:
    targets = np.array([0, 0, 0, 1, 1, 2])
    probs = np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.3, 0.5, 0.2], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7], [0.1, 0.3, 0.6]])
    m = computed(targets, probs)
    assert m["accuracy"][0] == pytest.approx(4 / 6)
    assert m["recall"][0] == pytest.approx([2 / 3, 1 / 2, 1])
    assert m["balanced_accuracy"][0] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert m["precision"][0] == pytest.approx([1, 1 / 2, 1 / 2])
    assert m["specificity"][0] == pytest.approx([1, 3 / 4, 4 / 5])
    assert m["f1"][0] == pytest.approx([4 / 5, 1 / 2, 2 / 3])
    # Class 1: 0.7 and 0.2 against 0.1, 0.3, 0.5, 0.3: the first beats all four, the second one of them.
    assert m["auroc"][0, 1] == pytest.approx(5 / 8)
    # Class 1, falling: 0.7 hit (1/1), 0.5, 0.3 twice, 0.2 hit (2/5).
    assert m["average_precision"][0, 1] == pytest.approx((1 + 2 / 5) / 2)
    assert m["log_loss"][0] == pytest.approx(-np.log([0.8, 0.6, 0.3, 0.7, 0.2, 0.6]).mean())


def test_confusion_matrix_has_targets_in_rows() -> None:
    probs = np.eye(3)[[1, 1, 2]] * 0.9 + 0.03
    computer = MetricComputer(np.array([0, 1, 1]), probs.argmax(axis=1), probs, np.zeros(3))
    assert computer.confusion(np.ones((3, 1)))[0].tolist() == [[0, 1, 0], [0, 1, 1], [0, 0, 0]]


def test_what_is_undefined_is_nan_and_not_zero() -> None:
    targets, probs = np.array([0, 0, 1]), np.array([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.7, 0.3, 0.0]])
    m = computed(targets, np.maximum(probs, 1e-9))
    assert np.isnan(m["recall"][0, 2])
    assert np.isnan(m["auroc"][0, 2])
    assert np.isnan(m["average_precision"][0, 2])
    assert np.isnan(m["f1"][0, 2])
    assert np.isnan(m["precision"][0]).tolist() == [False, True, True]  # only class 0 was ever called
    assert m["recall"][0, 1] == 0
    assert m["balanced_accuracy"][0] == pytest.approx(0.5)  # over the two classes that are there
    assert m["macro_auroc"][0] == pytest.approx(1.0)


def test_a_weighting_that_loses_a_class_leaves_the_means_undefined() -> None:
    targets, probs = np.array([0, 1, 2]), np.eye(3) * 0.9 + 0.03
    m = computed(targets, probs, np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 0.0]]))
    assert m["balanced_accuracy"][0] == 1
    assert np.isnan(m["balanced_accuracy"][1])
    assert np.isnan(m["macro_auroc"][1])
    assert m["accuracy"].tolist() == [1, 1]


def of_table(table: list[list[int]]) -> dict[str, np.ndarray]:
    """The figures of a confusion matrix, rows: truth."""
    pairs = [(i, j) for i, row in enumerate(table) for j, count in enumerate(row) for _ in range(count)]
    targets, called = (np.array(column) for column in zip(*pairs, strict=True))
    return computed(targets, softmax(5 * np.eye(len(table), dtype=np.float32)[called]))


def test_kappa_of_cohens_own_example() -> None:
    """Cohen 1960, table 1: proportions .25 .13 .12 / .12 .02 .16 / .03 .15 .02 of 200, kappa -0.09."""
    assert of_table([[50, 26, 24], [24, 4, 32], [6, 30, 4]])["kappa"][0] == pytest.approx(-0.09, abs=0.005)


def test_mcc_is_the_correlation_of_two_classes() -> None:
    table = [[90, 10], [5, 45]]
    expected = (90 * 45 - 10 * 5) / np.sqrt(100 * 50 * 95 * 55)
    assert of_table(table)["mcc"][0] == pytest.approx(expected)


def test_auroc_of_hanley_and_mcneils_example() -> None:
    """Hanley and McNeil 1982, table I: 109 CT images rated 1 to 5, area 0.893."""
    normal, abnormal = [33, 6, 6, 11, 2], [3, 2, 2, 11, 33]
    targets = np.repeat([0, 1], [58, 51])
    ratings = np.concatenate([np.repeat(np.arange(5), normal), np.repeat(np.arange(5), abnormal)])
    probs = np.stack([1 - ratings / 5 - 0.05, ratings / 5 + 0.05], axis=1)
    assert computed(targets, probs)["auroc"][0] == pytest.approx([0.893, 0.893], abs=0.0005)


def test_calibration_error_by_hand() -> None:
    """Two bins: 0.9 twice, once right; 0.6 twice, both right. |0.9 - 0.5| and |0.6 - 1|, half the images each."""
    probs = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    ours = computed(np.array([0, 1, 0, 1]), probs)
    assert ours["ece"][0] == pytest.approx((0.4 + 0.4) / 2)
    # Class 0: 0.9 twice with one of the class, 0.6 with it, 0.4 without it.
    assert ours["class_ece"][0, 0] == pytest.approx((2 * 0.4 + 0.4 + 0.4) / 4)


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0), (1e-6, 0), (1 / 15, 0), (1 / 15 + 1e-6, 1), (0.5, 7), (1.0, 14)])
def test_a_probability_on_an_edge_falls_into_the_lower_bin(probability: float, expected: int) -> None:
    assert calibration_bins(np.array([probability]))[0] == expected


@pytest.mark.parametrize("edge", range(1, 16))
def test_an_edge_is_an_edge_in_float32_as_well(edge: int) -> None:
    assert calibration_bins(np.array([edge / 15], np.float32))[0] == edge - 1
    through_logits = softmax(np.log([[edge / 15, max(1 - edge / 15, 1e-12)]]).astype(np.float32))[:, 0]
    assert calibration_bins(through_logits)[0] == edge - 1
