from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from scanvit.evaluation.paired import area_covariance, compare_paired, delong, holm, mcnemar
from scanvit.evaluation.predictions import Predictions


def placements(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The structural components by their definition, pair by pair: DeLong et al. 1988, section 3."""
    ours, others = scores[positive], scores[~positive]
    kernel = (ours[:, None] > others).astype(float) + 0.5 * (ours[:, None] == others)
    return kernel.mean(axis=1), kernel.mean(axis=0)


@st.composite
def scored_twice(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    positives, negatives = draw(st.integers(2, 25)), draw(st.integers(2, 25))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    positive = np.repeat([True, False], [positives, negatives])
    return positive, np.round(random.normal(size=(2, len(positive))) + positive, draw(st.sampled_from([0, 1, 6])))


@given(scored_twice())
def test_the_covariance_is_delongs_by_definition(case: tuple[np.ndarray, np.ndarray]) -> None:
    positive, scores = case
    areas, covariance = area_covariance(positive, scores, np.arange(len(positive)))
    components = [placements(positive, row) for row in scores]
    expected = sum(np.cov(np.stack([c[i] for c in components])) / len(components[0][i]) for i in (0, 1))
    assert areas == pytest.approx([roc_auc_score(positive, row) for row in scores])
    assert covariance == pytest.approx(expected, abs=1e-12)


def test_the_standard_error_of_hanley_and_mcneils_example() -> None:
    """Hanley and McNeil 1982, table I: area 0.893 with a standard error of 0.032 (theirs by another formula; the areas of the parts give 0.031)."""
    positive = np.repeat([False, True], [58, 51])
    ratings = np.concatenate([np.repeat(np.arange(5.0), [33, 6, 6, 11, 2]), np.repeat(np.arange(5.0), [3, 2, 2, 11, 33])])
    areas, covariance = area_covariance(positive, ratings[None], np.arange(109))
    assert areas[0] == pytest.approx(0.893, abs=0.0005)
    assert np.sqrt(covariance[0, 0]) == pytest.approx(0.032, abs=0.002)


def test_images_of_one_patient_are_no_independent_evidence() -> None:
    random = np.random.default_rng(0)
    positive, patients = np.repeat([True, False], 50), np.arange(100)
    scores = random.normal(size=(2, 100)) + positive * np.array([[0.5], [1.0]])
    once = delong(positive, *scores, patients)
    copied = delong(np.tile(positive, 9), *np.tile(scores, 9), np.tile(patients, 9))
    assert once is not None
    assert copied is not None
    assert once.method == "DeLong 1988"
    assert "Obuchowski" in copied.method
    assert copied.difference == pytest.approx(once.difference)
    assert copied.p_value == pytest.approx(once.p_value, rel=0.02)


@pytest.mark.parametrize("kinds", [[True] * 4, [False] * 4])
def test_one_kind_of_image_gives_no_area(kinds: list[bool]) -> None:
    assert delong(np.array(kinds), np.arange(4.0), np.arange(4.0), np.arange(4)) is None


def test_the_same_scores_do_not_differ() -> None:
    result = delong(np.array([True, False, True, False]), np.arange(4.0), np.arange(4.0), np.arange(4))
    assert result is not None
    assert (result.difference, result.p_value) == (0.0, 1.0)


def right(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Which images each named rightly, from the four counts."""
    counts = [both, first, second, neither]
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


@pytest.mark.parametrize(
    ("first", "second", "p_value"),
    [
        (0, 5, 2 * 0.5**5),  # by hand
        (1, 9, 2 * 11 * 0.5**10),
        (3, 3, 1.0),
        (0, 0, 1.0),
        (2, 10, 0.0385742),  # binomial, two-sided: 2 * (1 + 12 + 66) / 2**12
    ],
)
def test_mcnemar_is_the_exact_binomial_test(first: int, second: int, p_value: float) -> None:
    flags = right(40, first, second, 7)
    result = mcnemar(*flags, np.arange(len(flags[0])))
    assert (result.first_only, result.second_only) == (first, second)
    assert result.p_value == pytest.approx(p_value, rel=1e-5)


def test_mcnemar_with_patients_of_one_image_nears_the_plain_statistic() -> None:
    """(150 - 86)**2 / (150 + 86) = 17.36: Agresti's survey of approval, 794, 150, 86, 570."""
    flags = right(794, 150, 86, 570)
    patients = np.arange(1600)
    patients[1] = 0  # one patient has two images, on which both agree
    result = mcnemar(*flags, patients)
    assert "Yang" in result.method
    assert result.p_value == pytest.approx(3.1e-5, rel=0.03)  # of a chi-squared value of 17.36
    assert mcnemar(*flags, np.arange(1600)).p_value == pytest.approx(3.7e-5, rel=0.1)


def test_ten_images_of_each_patient_say_no_more_than_one() -> None:
    flags = right(20, 3, 12, 5)
    once = mcnemar(*flags, np.r_[0, np.arange(39)])
    often = mcnemar(np.repeat(flags[0], 10), np.repeat(flags[1], 10), np.repeat(np.r_[0, np.arange(39)], 10))
    assert often.p_value == pytest.approx(once.p_value)


def test_a_better_network_is_seen_where_intervals_overlap(make_predictions: Callable[..., Predictions]) -> None:
    first = make_predictions([0, 1, 2] * 60, strength=1.0)
    logits = first.logits.copy()
    logits[np.arange(180), first.targets] += 0.4  # the same images, each a little better
    paired = compare_paired(first, replace(first, logits=logits), draws=400, seed=0)
    gain = paired.differences["accuracy"]
    assert gain.value is not None
    assert gain.low is not None
    assert gain.low > 0
    assert paired.mcnemar.first_only == 0
    assert paired.mcnemar.p_value < 0.01
    assert all(test is not None and test.difference > 0 and test.p_value < 0.01 for test in paired.delong.values())


def test_a_network_against_itself(make_predictions: Callable[..., Predictions]) -> None:
    predictions = make_predictions([0, 1] * 20)  # no image of the third class
    paired = compare_paired(predictions, predictions, draws=50, seed=0)
    assert paired.differences["accuracy"].value == 0
    assert paired.differences["accuracy"].low is None
    assert paired.delong["class-2"] is None


def test_one_patient_of_a_class_is_no_evidence(make_predictions: Callable[..., Predictions]) -> None:
    """Four images of one patient, which the second network loses: whether another patient would be lost, nobody can tell from them."""
    first = make_predictions([0, 1] * 40 + [2] * 4, strength=3.0, patients=[f"patient-{min(i, 80)}" for i in range(84)])
    logits = first.logits.copy()
    logits[first.targets == 2] = [5, 0, 0]
    paired = compare_paired(first, replace(first, logits=logits), draws=100, seed=0)
    assert paired.delong["class-2"] is None
    assert paired.delong["class-0"] is not None
    for name in ("balanced_accuracy", "macro_auroc", "weighted_f1"):
        assert paired.differences[name].value is not None
        assert paired.differences[name].low is None
        assert "1 patient" in (paired.differences[name].note or "")
    assert paired.differences["log_loss"].low is not None


def test_very_few_patients_of_a_class_are_warned_of(make_predictions: Callable[..., Predictions]) -> None:
    first, second = (make_predictions([0, 1] * 30 + [2] * 3, strength=1.0, seed=seed) for seed in (0, 1))
    paired = compare_paired(first, second, draws=100, seed=0)
    assert paired.delong["class-2"] is not None
    assert paired.delong["class-2"].patients == 3
    assert "3 patients of one class" in (paired.differences["macro_auroc"].note or "")
    assert paired.differences["accuracy"].note is None


def test_holms_adjustment() -> None:
    """Holm 1979: the smallest times 3, the next times 2 but no smaller than that, and so on."""
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"a": 0.5, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}
