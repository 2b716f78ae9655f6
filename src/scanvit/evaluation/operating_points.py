"""Operating points: from which probability on a class is called, so that its sensitivity or its specificity is what was asked for.

A threshold is chosen on val and judged on test. Chosen on the judged images themselves, it would always keep its promise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from .estimates import Estimate, Estimator
from .metrics import Array, ratio
from .predictions import Predictions

Rule = Literal["sensitivity", "specificity"]
TARGETS: tuple[tuple[Rule, float], ...] = (("sensitivity", 0.95), ("specificity", 0.95))
_FIGURES = ("sensitivity", "specificity", "ppv", "npv")


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Of one class, for one of ``TARGETS``."""

    class_name: str
    rule: Rule
    """What was asked for: at least ``target`` of it on val, and as much of the other as that leaves."""
    target: float
    threshold: float
    """The class is called from this calibrated probability on."""
    sensitivity: float | None = None
    """On the images it was chosen on. None in records of an earlier version."""
    specificity: float | None = None

    @property
    def title(self) -> str:
        """ "sensitivity 95 %": what predictions call it."""
        return f"{self.rule} {100 * self.target:g} %"


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """A threshold, and what it does on images that it was not chosen on."""

    chosen: Threshold
    judged: dict[str, Estimate]
    """sensitivity, specificity, ppv and npv."""


def choose_threshold(positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating], *, rule: Rule, target: float) -> float | None:
    """The highest score that keeps the sensitivity, or the lowest that keeps the specificity, at ``target``. (N,) each.

    Between the two neighbouring scores, so that rounding decides nothing; where no number of their kind lies between them, at the one that keeps the
    promise. None where only one kind of image is there.
    """
    if positive.all() or not positive.any():
        return None
    kept = np.sort(scores[positive] if rule == "sensitivity" else scores[~positive])
    # At most this many may be on the wrong side.
    allowed = int(np.floor((1 - target) * len(kept) + 1e-9))
    if rule == "sensitivity":
        edge = kept[allowed]
        below = scores[scores < edge]
        return _between(below.max(), edge, otherwise=edge) if len(below) else float(edge)
    edge = kept[len(kept) - 1 - allowed]
    above = scores[scores > edge]
    return _between(edge, above.min(), otherwise=above.min()) if len(above) else float(np.nextafter(edge, np.inf))


def _between(low: np.floating, high: np.floating, *, otherwise: np.floating) -> float:
    """The middle, as long as it is none of the two where scores of their kind are compared with it: NumPy rounds a threshold to float32 for those."""
    middle = (float(low) + float(high)) / 2
    return middle if low < low.dtype.type(middle) < high else float(otherwise)


def choose_thresholds(probs: npt.NDArray[np.floating], targets: npt.NDArray[np.int64], class_names: Sequence[str]) -> Iterator[Threshold]:
    """For every class and every one of ``TARGETS``, where the images, (N, K) and (N,), hold the class and others."""
    for k, name in enumerate(class_names):
        positive = targets == k
        for rule, target in TARGETS:
            threshold = choose_threshold(positive, probs[:, k], rule=rule, target=target)
            if threshold is not None:
                called = probs[:, k] >= threshold
                shares = {"sensitivity": float(called[positive].mean()), "specificity": float((~called[~positive]).mean())}
                yield Threshold(class_name=name, rule=rule, target=target, threshold=threshold, **shares)


def operating_points(thresholds: Sequence[Threshold], test: Predictions, estimator: Estimator) -> list[OperatingPoint]:
    """Of the thresholds whose class is one of the table's: what they do on its images. ``estimator``: of its patients."""
    cases = []
    for chosen in thresholds:
        if chosen.class_name in test.class_names:
            k = test.class_names.index(chosen.class_name)
            cases.append((chosen, test.targets == k, test.probs[:, k] >= chosen.threshold))
    if not cases:
        return []
    estimated = estimator(_Judge([(positive, called) for _, positive, called in cases]))
    points = []
    for column, (chosen, positive, called) in enumerate(cases):
        behind = zip(_FIGURES, (positive, ~positive, called, ~called), strict=True)
        judged = {figure: estimated.of(figure, column, patients=estimator.patients_of(images), is_share=True) for figure, images in behind}
        points.append(OperatingPoint(chosen=chosen, judged=judged))
    return points


class _Judge:
    """The four figures of T classes that are called or not: {figure: (D, T)}."""

    def __init__(self, cases: Sequence[tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]]) -> None:
        cells = [(positive & called, ~positive & ~called, ~positive & called, positive & ~called) for positive, called in cases]
        self._cells = np.array(cells, np.float32)  # (T, 4, N): of zeros and ones, exact

    def __call__(self, weights: Array) -> dict[str, Array]:
        n = self._cells.shape[2]
        counted = (weights.T.astype(np.float32) @ self._cells.reshape(-1, n).T).astype(np.float64).reshape(weights.shape[1], -1, 4)
        hits, passed, alarms, missed = np.moveaxis(counted, 2, 0)
        parts = {"sensitivity": (hits, missed), "specificity": (passed, alarms), "ppv": (hits, alarms), "npv": (passed, missed)}
        return {name: ratio(a, a + b) for name, (a, b) in parts.items()}
