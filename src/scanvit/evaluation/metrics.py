"""The figures of a multi-class classifier, for many weightings of the images at once.

A weighting says how often each image counts. All ones gives the plain figure; the bootstrap passes thousands of resamples. Undefined
figures (0/0) are NaN here, never 0. Equal to scikit-learn's with ``sample_weight``.

    D weightings    N images    K classes    Figures of a class take it against the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from .predictions import Predictions

Array = npt.NDArray[np.float64]
Kind = Literal["share", "area", "loss", "error", "coefficient"]
"""How a figure reads: share and error in percent, the others as decimals. A share is a mean over images or patients, each right or wrong."""

OVERALL: dict[str, Kind] = {
    "accuracy": "share",
    "balanced_accuracy": "share",  # the mean recall of the classes that the targets hold
    "kappa": "coefficient",  # Cohen 1960: agreement beyond chance
    "mcc": "coefficient",  # Matthews' correlation for K classes: Gorodkin 2004, R_K
    "log_loss": "loss",  # nats
    "brier": "loss",  # Brier 1950: the squared distance of the probabilities from the truth, summed over the classes, 0..2
    "ece": "error",  # of the highest probability; see calibration_bins
}
PER_CLASS: dict[str, Kind] = {
    "recall": "share",  # sensitivity, TP / (TP + FN)
    "specificity": "share",  # TN / (TN + FP)
    "precision": "share",  # positive predictive value, TP / (TP + FP)
    "npv": "share",  # negative predictive value, TN / (TN + FN)
    "f1": "area",  # 2 TP / (2 TP + FP + FN)
    "auroc": "area",  # the chance that an image of the class scores above one of another; ties count half
    "average_precision": "area",  # the mean precision over the recall steps, not interpolated
    "class_ece": "error",  # of the class's own probability
}
AVERAGED = ("recall", "specificity", "precision", "npv", "f1", "auroc", "average_precision")
"""Also given as ``macro_NAME``, the mean of the classes that the targets hold, and ``weighted_NAME``, weighted by their images."""
KINDS: dict[str, Kind] = OVERALL | PER_CLASS | {f"{average}_{name}": PER_CLASS[name] for average in ("macro", "weighted") for name in AVERAGED}
OVERALL_NAMES = (*OVERALL, *(f"{average}_{name}" for average in ("macro", "weighted") for name in AVERAGED))

CALIBRATION_BINS = 15
"""Of equal width over 0..1, as in Guo et al. 2017, section 2. A probability on an edge falls into the lower bin."""
_EDGE = 1e-5
"""In bins, how near an edge counts as on it: an edge in float32 lies up to 5e-7 beside it, and a probability out of a softmax a little more."""


class MetricComputer:
    """Sorts once; then each call costs a few passes over the images."""

    def __init__(
        self,
        targets: npt.NDArray[np.int64],
        predicted: npt.NDArray[np.int64],
        probs: npt.NDArray[np.floating],
        losses: Array,
        ranks: npt.NDArray[np.floating] | None = None,
    ) -> None:
        """(N,), (N,), (N, K), (N,), and (N, K): what the images are ranked by for the areas, if not by ``probs``."""
        self.classes = probs.shape[1]
        self._losses = np.stack([losses, ((probs - np.eye(self.classes)[targets]) ** 2).sum(axis=1)])
        # One column a cell of the confusion matrix would be N x K^2: summing by sorted runs needs no such table.
        cell = targets * self.classes + predicted
        self._by_cell = np.argsort(cell, kind="stable")
        self._cells, self._cell_starts = np.unique(cell[self._by_cell], return_index=True)
        ranks = probs if ranks is None else ranks
        self._rankings = [_Ranking(ranks[:, k], targets == k) for k in range(self.classes)]
        self._class_calibration = [CalibrationError(probs[:, k], targets == k) for k in range(self.classes)]
        self._calibration = CalibrationError(probs[np.arange(len(targets)), predicted], predicted == targets)
        self._present = np.isin(np.arange(self.classes), targets)

    @classmethod
    def of(cls, table: Predictions) -> MetricComputer:
        """Ranked by log-odds: probabilities of float32 near 1 are all the same, and the areas of two classes would not be each other's mirror."""
        return cls(table.targets, table.predicted, table.probs, table.losses, table.log_odds)

    def confusion(self, weights: Array) -> Array:
        """(N, D) weights -> (D, K, K): rows are targets, columns predictions."""
        cells = np.zeros((self.classes**2, weights.shape[1]))
        cells[self._cells] = np.add.reduceat(weights[self._by_cell], self._cell_starts, axis=0)
        return cells.T.reshape(-1, self.classes, self.classes)

    def __call__(self, weights: Array) -> dict[str, Array]:
        """``weights`` (N, D) of images; a column is one weighting. {figure: (D,) of all, (D, K) of the classes}."""
        confusion = self.confusion(weights)
        total = confusion.sum(axis=(1, 2))
        actual = confusion.sum(axis=2)
        per_class = self._of_classes(confusion, weights)
        overall = {
            "accuracy": ratio(np.einsum("dkk->d", confusion), total),
            "balanced_accuracy": _mean(per_class["recall"][:, self._present]),
            **_agreement(confusion),
        }
        # Over the classes that the targets hold: where a resample lost one of them, the mean is undefined (NaN), not another mean.
        shares = ratio(actual, total[:, None])[:, self._present]
        for name in AVERAGED:
            values = per_class[name][:, self._present]
            overall |= {f"macro_{name}": _mean(values), f"weighted_{name}": (values * shares).sum(axis=1)}
        return overall | per_class | self.calibration(weights)

    def calibration(self, weights: Array) -> dict[str, Array]:
        """log_loss, brier, ece and class_ece alone, at a small part of the cost of all."""
        log_loss, brier = (ratio(losses @ weights, weights.sum(axis=0)) for losses in self._losses)
        of_class = np.stack([calibration(weights) for calibration in self._class_calibration], axis=1)
        return {"log_loss": log_loss, "brier": brier, "ece": self._calibration(weights), "class_ece": of_class}

    def _of_classes(self, confusion: Array, weights: Array) -> dict[str, Array]:
        total = confusion.sum(axis=(1, 2))[:, None]
        hits = np.diagonal(confusion, axis1=1, axis2=2)
        actual, called = confusion.sum(axis=2), confusion.sum(axis=1)
        passed = total - actual - called + hits  # true negatives
        ranked = [ranking(weights) for ranking in self._rankings]
        return {
            "recall": ratio(hits, actual),
            "specificity": ratio(passed, total - actual),
            "precision": ratio(hits, called),
            "npv": ratio(passed, total - called),
            "f1": ratio(2 * hits, actual + called),
            "auroc": np.stack([area for area, _ in ranked], axis=1),
            "average_precision": np.stack([precision for _, precision in ranked], axis=1),
        }


def calibration_bins(probs: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """The bin of each probability, 0 .. CALIBRATION_BINS - 1."""
    return np.clip(np.ceil(np.asarray(probs, np.float64) * CALIBRATION_BINS - _EDGE) - 1, 0, CALIBRATION_BINS - 1).astype(np.int64)


class CalibrationError:
    """Expected calibration error: the mean distance, weighted by images, between a bin's mean probability and its share of right answers."""

    def __init__(self, probs: npt.NDArray[np.floating], right: npt.NDArray[np.bool_]) -> None:
        bins = calibration_bins(probs)
        self._order = np.argsort(bins, kind="stable")
        self._starts = np.unique(bins[self._order], return_index=True)[1]
        self._gaps = (probs.astype(np.float64) - right)[self._order, None]

    def __call__(self, weights: Array) -> Array:
        gaps = np.add.reduceat(self._gaps * weights[self._order], self._starts, axis=0)
        return ratio(np.abs(gaps).sum(axis=0), weights.sum(axis=0))


class _Ranking:
    """Images in falling order of one class's score, equal scores in one group."""

    def __init__(self, scores: npt.NDArray[np.floating], positive: npt.NDArray[np.bool_]) -> None:
        self._order = np.argsort(-scores, kind="stable")
        ordered = scores[self._order]
        self._starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        self._positive = positive[self._order]
        # Only groups with an image of the class add to either sum.
        self._groups = np.unique(np.searchsorted(self._starts, np.flatnonzero(self._positive), side="right") - 1)

    def __call__(self, weights: Array) -> tuple[Array, Array]:
        """(N, D) weights -> AUROC (D,) and average precision (D,)."""
        if not len(self._groups):
            undefined = np.full(weights.shape[1], np.nan)
            return undefined, undefined
        ordered = weights[self._order]
        positive = self._sum_groups(ordered * self._positive[:, None])[self._groups]
        ordered = self._sum_groups(ordered)
        called = np.cumsum(ordered, axis=0)
        total, called = called[-1], called[self._groups]
        tied = ordered[self._groups] - positive
        found = np.cumsum(positive, axis=0)
        positives = found[-1]
        negatives = total - positives
        ranked_below = negatives - (called - found) + tied / 2
        area = ratio((positive * ranked_below).sum(axis=0), positives * negatives)
        # A group that weighs nothing has no precision and adds nothing.
        precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
        return area, ratio((positive * precision).sum(axis=0), positives)

    def _sum_groups(self, values: Array) -> Array:
        return values if len(self._starts) == len(values) else np.add.reduceat(values, self._starts, axis=0)


def _agreement(confusion: Array) -> dict[str, Array]:
    """Cohen's kappa and Matthews' correlation, (D,) each, from (D, K, K). Undefined where one class is all there is."""
    total = confusion.sum(axis=(1, 2))
    hits = np.einsum("dkk->d", confusion)
    actual, called = confusion.sum(axis=2), confusion.sum(axis=1)
    by_chance = (actual * called).sum(axis=1)
    kappa = ratio(hits * total - by_chance, total**2 - by_chance)
    spread = (total**2 - (actual**2).sum(axis=1)) * (total**2 - (called**2).sum(axis=1))
    return {"kappa": kappa, "mcc": ratio(hits * total - by_chance, np.sqrt(spread))}


def _mean(of_classes: Array) -> Array:
    """(D, classes) -> (D,); NaN without a class."""
    return ratio(of_classes.sum(axis=1), np.array(float(of_classes.shape[1])))


def ratio(numerator: Array, denominator: Array) -> Array:
    """0/0 is NaN."""
    return np.divide(numerator, denominator, out=np.full(np.shape(numerator), np.nan), where=denominator > 0)
