"""The figures of a multi-class classifier, for many weightings of the images at once.

A weighting says how often each image counts. All ones gives the plain figure; the bootstrap passes thousands of resamples. Undefined
figures (0/0) are NaN here, never 0. Equal to scikit-learn's with ``sample_weight``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False, kw_only=True)
class Metrics:
    """D weightings, K classes. Per-class figures take each class against the rest."""

    accuracy: Array
    """(D,)"""
    balanced_accuracy: Array
    """(D,), the mean recall of the classes that the targets hold."""
    macro_auroc: Array
    """(D,), the mean AUROC of the classes that the targets hold."""
    log_loss: Array
    """(D,), nats."""
    precision: Array
    """(D, K), TP / (TP + FP)"""
    recall: Array
    """(D, K), sensitivity: TP / (TP + FN)"""
    specificity: Array
    """(D, K), TN / (TN + FP)"""
    f1: Array
    """(D, K), 2 TP / (2 TP + FP + FN)"""
    auroc: Array
    """(D, K), the chance that an image of the class scores above one of another; ties count half."""
    average_precision: Array
    """(D, K), the mean precision over the recall steps, not interpolated."""


OVERALL = ("accuracy", "balanced_accuracy", "macro_auroc", "log_loss")
PER_CLASS = ("precision", "recall", "specificity", "f1", "auroc", "average_precision")


class MetricComputer:
    """Sorts once; then each call costs a few passes over the images."""

    def __init__(self, targets: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], probs: npt.NDArray[np.floating], losses: Array) -> None:
        """(N,), (N,), (N, K) and (N,)."""
        self.classes = probs.shape[1]
        self.losses = losses
        # One column a cell of the confusion matrix would be N x K^2: summing by sorted runs needs no such table.
        cell = targets * self.classes + predicted
        self._by_cell = np.argsort(cell, kind="stable")
        self._cells, self._cell_starts = np.unique(cell[self._by_cell], return_index=True)
        self._rankings = [_Ranking(probs[:, k], targets == k) for k in range(self.classes)]
        self._present = np.isin(np.arange(self.classes), targets)

    def confusion(self, weights: Array) -> Array:
        """(N, D) weights -> (D, K, K): rows are targets, columns predictions."""
        cells = np.zeros((self.classes**2, weights.shape[1]))
        cells[self._cells] = np.add.reduceat(weights[self._by_cell], self._cell_starts, axis=0)
        return cells.T.reshape(-1, self.classes, self.classes)

    def __call__(self, weights: Array) -> Metrics:
        """``weights`` (N, D) of images; a column is one weighting."""
        confusion = self.confusion(weights)
        total = confusion.sum(axis=(1, 2))
        hits = np.diagonal(confusion, axis1=1, axis2=2)
        actual, called = confusion.sum(axis=2), confusion.sum(axis=1)
        others = total[:, None] - actual
        recall = _ratio(hits, actual)
        ranked = [ranking(weights) for ranking in self._rankings]
        auroc = np.stack([area for area, _ in ranked], axis=1)
        return Metrics(
            accuracy=_ratio(hits.sum(axis=1), total),
            # Over the classes that the targets hold: where a resample lost one of them, the mean is undefined (NaN), not another mean.
            balanced_accuracy=recall[:, self._present].mean(axis=1),
            macro_auroc=auroc[:, self._present].mean(axis=1),
            log_loss=_ratio(self.losses @ weights, total),
            precision=_ratio(hits, called),
            recall=recall,
            specificity=_ratio(others - (called - hits), others),
            f1=_ratio(2 * hits, actual + called),
            auroc=auroc,
            average_precision=np.stack([precision for _, precision in ranked], axis=1),
        )


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
        area = _ratio((positive * ranked_below).sum(axis=0), positives * negatives)
        # A group that weighs nothing has no precision and adds nothing.
        precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
        return area, _ratio((positive * precision).sum(axis=0), positives)

    def _sum_groups(self, values: Array) -> Array:
        return values if len(self._starts) == len(values) else np.add.reduceat(values, self._starts, axis=0)


def _ratio(numerator: Array, denominator: Array) -> Array:
    """0/0 is NaN."""
    return np.divide(numerator, denominator, out=np.full(np.shape(numerator), np.nan), where=denominator > 0)
