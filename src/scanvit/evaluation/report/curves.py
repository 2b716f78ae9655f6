"""The geometry of a report's square figures: ROC, precision and recall, reliability. All in a box of 100 x 100, the y axis pointing down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ...pages import figures
from ..calibration import ReliabilityBin
from ..operating_points import OperatingPoint
from ..page import figure, interval
from ..predictions import Predictions
from ..scores import Scores

_MARKS = 40
Mark = tuple[float, float, str]
"""x, y, and what stands there."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Of one class against the rest."""

    name: str
    path: str | None
    """The ``d`` of an SVG path; None where the curve is not defined."""
    marks: list[Mark] = field(default_factory=list)
    """Points along the curve, for the pointer and the keyboard."""
    decision: Mark | None = None
    """Where the network stands when it answers with its likeliest class."""
    points: list[Mark] = field(default_factory=list)
    """The operating points chosen on val."""
    base: float = 0.0
    """Height of the line that a network without any skill would draw (precision and recall)."""


def roc_curves(predictions: Predictions, scores: Scores) -> list[Curve]:
    from sklearn.metrics import roc_curve

    curves = []
    for k, name in enumerate(predictions.class_names):
        positive, own = predictions.targets == k, scores.per_class[name].figures
        if positive.all() or not positive.any():
            curves.append(Curve(name=name, path=None))
            continue
        false_alarms, found, thresholds = roc_curve(positive, predictions.log_odds[:, k])
        points = np.stack([100 * false_alarms, 100 - 100 * found], axis=1)
        said = [
            f"called from {_said(t)} on: sensitivity {100 * y:.1f} %, specificity {100 - 100 * x:.1f} %"
            for x, y, t in zip(false_alarms, found, thresholds, strict=True)
        ]
        recall, specificity = own["recall"], own["specificity"]
        decision = None
        if recall.value is not None and specificity.value is not None:
            text = f"likeliest class: sensitivity {figure(recall)}, specificity {figure(specificity)}"
            decision = (round(100 * (1 - specificity.value), 1), round(100 * (1 - recall.value), 1), text)
        curves.append(Curve(name=name, path=_path(points), marks=_marks(points, said), decision=decision, points=_roc_points(name, scores)))
    return curves


def precision_recall_curves(predictions: Predictions, scores: Scores) -> list[Curve]:
    from sklearn.metrics import precision_recall_curve

    curves = []
    for k, name in enumerate(predictions.class_names):
        positive, own = predictions.targets == k, scores.per_class[name].figures
        if positive.all() or not positive.any():
            curves.append(Curve(name=name, path=None))
            continue
        precision, recall, thresholds = precision_recall_curve(positive, predictions.log_odds[:, k])
        points = np.stack([100 * recall, 100 - 100 * precision], axis=1)[::-1]
        said = [
            f"called from {_said(t)} on: sensitivity {100 * x:.1f} %, precision {100 * y:.1f} %"
            for x, y, t in zip(recall, precision, [*thresholds, np.inf], strict=True)
        ][::-1]
        decision = None
        if own["recall"].value is not None and own["precision"].value is not None:
            text = f"likeliest class: sensitivity {figure(own['recall'])}, precision {figure(own['precision'])}"
            decision = (round(100 * own["recall"].value, 1), round(100 * (1 - own["precision"].value), 1), text)
        base = round(100 - 100 * float(positive.mean()), 1)
        curves.append(Curve(name=name, path=_path(points), marks=_marks(points, said), decision=decision, base=base))
    return curves


def reliability_figure(bins: Sequence[ReliabilityBin]) -> list[dict[str, Any]]:
    """Of each bin: where its dot and its interval stand, how strongly it counts (0..1 of the fullest bin), and what the tooltip says."""
    most = max((held.images for held in bins), default=1)
    drawn = []
    for held in bins:
        share = held.share.value or 0.0
        bounds = None if held.share.low is None or held.share.high is None else (round(100 - 100 * held.share.low, 1), round(100 - 100 * held.share.high, 1))
        text = f"{held.images} images, {100 * held.probability:.0f} % sure on average: {figure(held.share)} right"
        if bounds:
            text += f" ({interval(held.share)})"
        x, y = round(100 * held.probability, 1), round(100 - 100 * share, 1)
        drawn.append({"x": x, "y": y, "bounds": bounds, "weight": round(held.images / most, 3), "text": text})
    return drawn


def _roc_points(name: str, scores: Scores) -> list[Mark]:
    points: list[OperatingPoint] = scores.trust.operating_points if scores.trust else []
    marks = []
    for point in points:
        sensitivity, specificity = point.judged["sensitivity"], point.judged["specificity"]
        if point.chosen.class_name == name and sensitivity.value is not None and specificity.value is not None:
            text = f"{point.chosen.rule} of {100 * point.chosen.target:g} % on val: here sensitivity {figure(sensitivity)}, specificity {figure(specificity)}"
            marks.append((round(100 * (1 - specificity.value), 1), round(100 * (1 - sensitivity.value), 1), text))
    return marks


def _path(points: npt.NDArray[np.floating]) -> str:
    return figures.svg_path([(round(float(x), 1), round(float(y), 1)) for x, y in figures.thin(points)])


def _marks(points: npt.NDArray[np.floating], said: Sequence[str]) -> list[Mark]:
    """Some of the points, evenly along the curve."""
    length = np.concatenate([[0.0], np.abs(np.diff(points, axis=0)).sum(axis=1).cumsum()])
    chosen = np.unique(np.searchsorted(length, np.linspace(0, length[-1], _MARKS)).clip(max=len(points) - 1))
    return [(round(float(points[i, 0]), 1), round(float(points[i, 1]), 1), said[i]) for i in chosen]


def _said(log_odds: float) -> str:
    from scipy.special import expit

    return f"{100 * expit(log_odds):.1f} %" if np.isfinite(log_odds) else "above the highest probability"
