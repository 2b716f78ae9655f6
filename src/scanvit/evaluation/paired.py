"""Two networks on the same images: is one better? Differences with intervals over patients, McNemar's test, DeLong's test.

Two overlapping intervals do not show that two runs are alike: most of what varies is how hard the images are, and both runs share those.
The tests here look at the same images pairwise, and take images of one patient together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .estimates import Estimate, Estimator
from .metrics import OVERALL_NAMES, Array, MetricComputer
from .predictions import Predictions

Flags = npt.NDArray[np.bool_]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """Images that one network names rightly and the other wrongly."""

    first_only: int
    second_only: int
    p_value: float
    """Two-sided. 1 where they never disagree."""
    method: str


@dataclass(frozen=True, kw_only=True)
class DeLong:
    """The areas under two ROC curves of the same images."""

    first: float
    second: float
    difference: float
    """second - first"""
    low: float
    high: float
    """The 95 % interval of the difference, normal approximation."""
    p_value: float
    """Two-sided. 1 where the curves are the same."""
    method: str
    patients: int
    """Of the class, or of its rest, whichever has fewer. Two at the least; with fewer than ``estimates.FEWEST_PATIENTS`` the normal approximation finds
    differences where there are none: of two patients, in a quarter of such tests and more."""


@dataclass(frozen=True, kw_only=True)
class Paired:
    images: int
    patients: int
    differences: dict[str, Estimate]
    """second - first, by the names in ``metrics.OVERALL_NAMES``."""
    mcnemar: McNemar
    delong: dict[str, DeLong | None]
    """{class: test}; None where a class, or its rest, has fewer than two patients."""


def compare_paired(first: Predictions, second: Predictions, *, draws: int, seed: int) -> Paired:
    """``second`` against ``first``, row by row the same images, targets and classes. Patients are the first's."""
    assert first.image_ids == second.image_ids
    assert first.class_names == second.class_names
    assert (first.targets == second.targets).all()
    computers = [MetricComputer.of(table) for table in (first, second)]
    estimator = Estimator(first.patient_ids, draws=draws, seed=seed)
    index = estimator.index

    def difference(weights: Array) -> dict[str, Array]:
        before, after = (computer(weights) for computer in computers)
        return {name: after[name] - before[name] for name in after}

    estimated = estimator(difference)

    def estimate(name: str) -> Estimate:
        behind = min(estimator.patients_behind(name, table) for table in (first, second))
        return estimated.of(name, patients=behind, of_class=True, undefined="Undefined for one of the two.")

    return Paired(
        images=len(first),
        patients=estimator.patients,
        differences={name: estimate(name) for name in OVERALL_NAMES},
        mcnemar=mcnemar(first.predicted == first.targets, second.predicted == second.targets, index),
        delong={name: delong(first.targets == k, first.log_odds[:, k], second.log_odds[:, k], index) for k, name in enumerate(first.class_names)},
    )


def mcnemar(first_right: Flags, second_right: Flags, patients: Index) -> McNemar:
    """McNemar's test that both are right equally often: the exact binomial one where each patient has one image, else Obuchowski's for images in
    patients as modified by Yang et al. 2010 (Biometrical Journal 52:638). That one counts images, as the accuracy does: the test of Durkalski et
    al. 2003, which weighs each patient once, may contradict the interval of the difference. (N,) each."""
    from scipy import stats

    lost, won = first_right & ~second_right, second_right & ~first_right
    counts = int(lost.sum()), int(won.sum())
    if len(np.unique(patients)) == len(patients):
        p_value = float(stats.binomtest(counts[1], sum(counts)).pvalue) if sum(counts) else 1.0
        return McNemar(first_only=counts[0], second_only=counts[1], p_value=p_value, method="exact McNemar")
    gains = np.bincount(patients, won.astype(float) - lost)
    spread = (gains**2).sum()
    p_value = float(stats.chi2.sf(gains.sum() ** 2 / spread, 1)) if spread else 1.0
    return McNemar(first_only=counts[0], second_only=counts[1], p_value=p_value, method="McNemar for images in patients (Obuchowski 1998, Yang 2010)")


def delong(positive: Flags, first: npt.NDArray[np.floating], second: npt.NDArray[np.floating], patients: Index) -> DeLong | None:
    """The test of DeLong et al. 1988 (Biometrics 44:837) that two areas are equal; where patients have several images, with the covariance of
    Obuchowski 1997 (Biometrics 53:567), which is DeLong's for one image each. (N,) each. None where either kind of image is of fewer than two
    patients: how much such an area varies cannot be told."""
    from scipy import stats

    fewest = min(len(np.unique(patients[kind])) for kind in (positive, ~positive))
    if fewest < 2:
        return None
    areas, covariance = area_covariance(positive, np.stack([first, second]), patients)
    difference = float(areas[1] - areas[0])
    spread = float(np.sqrt(max(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1], 0.0)))
    alone = len(np.unique(patients)) == len(patients)
    return DeLong(
        first=float(areas[0]),
        second=float(areas[1]),
        difference=difference,
        low=difference - 1.959964 * spread,
        high=difference + 1.959964 * spread,
        p_value=float(2 * stats.norm.sf(abs(difference) / spread)) if spread > 1e-12 else 1.0 if abs(difference) < 1e-12 else 0.0,
        method="DeLong 1988" if alone else "DeLong for images in patients (Obuchowski 1997)",
        patients=fewest,
    )


def area_covariance(positive: Flags, scores: Array, patients: Index) -> tuple[Array, Array]:
    """AUROC of M scores (M, N) -> (M,), and the covariance of these estimates (M, M). Midranks: Sun and Xu 2014."""
    from scipy.stats import rankdata

    ours, others = scores[:, positive], scores[:, ~positive]
    ranks = rankdata(scores, axis=1)
    # How much of the other kind each image stands above, or below: the structural components.
    above = (ranks[:, positive] - rankdata(ours, axis=1)) / others.shape[1]
    below = 1 - (ranks[:, ~positive] - rankdata(others, axis=1)) / ours.shape[1]
    areas = above.mean(axis=1)
    n = int(patients.max()) + 1
    parts = [_summed(above - areas[:, None], patients[positive], n), _summed(below - areas[:, None], patients[~positive], n)]
    groups = [len(np.unique(patients[positive])), len(np.unique(patients[~positive]))]
    sizes = [ours.shape[1], others.shape[1]]
    covariance = np.zeros((len(scores), len(scores)))
    for part, count, size in zip(parts, groups, sizes, strict=True):
        covariance += (part @ part.T) / size**2 * count / max(count - 1, 1)
    both, mixed = len(np.unique(patients)), parts[0] @ parts[1].T
    covariance += (mixed + mixed.T) / (sizes[0] * sizes[1]) * both / max(both - 1, 1)
    return areas, covariance


def _summed(values: Array, patients: Index, count: int) -> Array:
    """(M, N) values summed by patient: (M, count)."""
    return np.stack([np.bincount(patients, row, minlength=count) for row in values])


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted for having looked several times (Holm 1979): the chance of one false alarm among all stays below the level."""
    ordered = sorted(p_values, key=lambda name: p_values[name])
    adjusted, highest = {}, 0.0
    for rank, name in enumerate(ordered):
        highest = adjusted[name] = max(highest, min(1.0, (len(ordered) - rank) * p_values[name]))
    return {name: adjusted[name] for name in p_values}
