"""Operating points: from which probability on a class is called, so that its sensitivity or its specificity is what was asked for.

A threshold is chosen on val and judged on test. Chosen on the judged images themselves, it would always keep its promise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from .estimates import Estimate, Estimator
from .metrics import Array
from .predictions import Predictions

Rule = Literal["sensitivity", "specificity"]
TARGETS: tuple[tuple[Rule, float], ...] = (("sensitivity", 0.95), ("specificity", 0.95))


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    class_name: str
    rule: Rule
    """What was asked for: at least ``target`` of it on val, and as much of the other as that leaves."""
    target: float
    threshold: float
    """The class is called from this probability on."""
    chosen: dict[str, float]
    """sensitivity and specificity on the images it was chosen on."""
    judged: dict[str, Estimate]
    """sensitivity, specificity, ppv and npv on the images that are judged."""


def choose_threshold(positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating], *, rule: Rule, target: float) -> float | None:
    """The highest score that keeps the sensitivity, or the lowest that keeps the specificity, at ``target``. (N,) each.

    Between the two neighbouring scores, so that rounding decides nothing. None where only one kind of image is there.
    """
    if positive.all() or not positive.any():
        return None
    kept = np.sort(scores[positive] if rule == "sensitivity" else scores[~positive])
    # At most this many may be on the wrong side.
    allowed = int(np.floor((1 - target) * len(kept) + 1e-9))
    if rule == "sensitivity":
        edge = kept[allowed]
        below = scores[scores < edge]
        return float((edge + below.max()) / 2) if len(below) else float(edge)
    edge = kept[len(kept) - 1 - allowed]
    above = scores[scores > edge]
    return float((edge + above.min()) / 2) if len(above) else float(np.nextafter(edge, np.inf))


def operating_points(val: Predictions, test: Predictions, *, draws: int, seed: int) -> list[OperatingPoint]:
    """For every class and every one of ``TARGETS``, where val holds the class and others."""
    estimator = Estimator(test.patient_ids, draws=draws, seed=seed)
    found = []
    for k, name in enumerate(val.class_names):
        for rule, target in TARGETS:
            threshold = choose_threshold(val.targets == k, val.probs[:, k], rule=rule, target=target)
            if threshold is None:
                continue
            positive, called = test.targets == k, test.probs[:, k] >= threshold
            behind = {"sensitivity": positive, "specificity": ~positive, "ppv": called, "npv": ~called}
            estimated = estimator(_Judge(positive, called))
            judged = {figure: estimated.of(figure, patients=estimator.patients_of(images), is_share=True) for figure, images in behind.items()}
            on_val = _Judge(val.targets == k, val.probs[:, k] >= threshold)(np.ones((len(val), 1)))
            chosen = {figure: float(on_val[figure][0]) for figure in ("sensitivity", "specificity")}
            found.append(OperatingPoint(class_name=name, rule=rule, target=target, threshold=threshold, chosen=chosen, judged=judged))
    return found


class _Judge:
    """The four figures of one class that is called or not."""

    def __init__(self, positive: npt.NDArray[np.bool_], called: npt.NDArray[np.bool_]) -> None:
        cells = [positive & called, ~positive & ~called, ~positive & called, positive & ~called]
        self._cells = np.stack(cells).astype(np.float64)

    def __call__(self, weights: Array) -> dict[str, Array]:
        hits, passed, alarms, missed = self._cells @ weights
        parts = {"sensitivity": (hits, missed), "specificity": (passed, alarms), "ppv": (hits, alarms), "npv": (passed, missed)}
        return {name: np.divide(a, a + b, out=np.full_like(a, np.nan), where=a + b > 0) for name, (a, b) in parts.items()}
