"""The figures of the report's parts about trust: charts and strips from ``scores.trust``."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...pages import figures
from ..masking import Masking
from ..predictions import Predictions
from ..scores import Scores
from ..selective import risk_coverage
from ..trust import OutlierScores, Selective
from .curves import reliability_figure

_VIEWS = {
    "whole": ("The whole image", "as it was judged above"),
    "centre_covered": ("Centre covered", "the middle half of each side lies under gray"),
    "border_only": ("Border alone", "the frame that the audit probes: an eighth of each side"),
    "centre_only": ("Without the border", "the same frame lies under gray"),
}
_CURVE_POINTS = 60


def trust_figures(scores: Scores, predictions: Predictions) -> dict[str, Any]:
    """What the templates draw; everything is None or empty for scores without ``trust``."""
    if scores.trust is None:
        return {"risk": None, "reliability": [], "readers": [], "outlier_chart": None, "set_chart": None, "views": None}
    trust = scores.trust
    return {
        "risk": _risk_chart(predictions),
        "reliability": [reliability_figure(part.reliability) for part in (trust.calibrated.before, trust.calibrated.after)],
        "readers": _readers(trust.selective),
        "outlier_chart": _outlier_chart(trust.outliers) if trust.outliers else None,
        "set_chart": figures.histogram({"images": trust.sets.sizes}, title="Size of the sets, % of the images", x_label="classes in the set"),
        "views": _views(trust.masking),
    }


def _risk_chart(predictions: Predictions) -> figures.Chart | None:
    coverage, error = risk_coverage(predictions.probs.max(axis=1), predictions.predicted != predictions.targets)
    # The first few images decide little and jump much: a hundredth of the images, at the least ten, begin the curve.
    begun = coverage * len(predictions) >= max(10, 0.01 * len(predictions))
    coverage, error = coverage[begun], error[begun]
    chosen = np.unique(np.linspace(0, len(coverage) - 1, _CURVE_POINTS).astype(int)) if len(coverage) else np.zeros(0, int)
    points = [(100 * float(coverage[i]), float(error[i])) for i in chosen]
    return figures.line_chart({"errors": points}, title="Errors among the images answered, %", x_label="answered, the surest first, %", percent=True)


def _readers(selective: Selective) -> list[dict[str, Any]]:
    """One row a confidence, one cell a first reader."""
    errors = sorted({row.reader_error for row in selective.second_reader})
    rows = []
    for covered in selective.covered:
        of = {row.reader_error: row for row in selective.second_reader if row.confidence == covered.confidence}
        rows.append({"covered": covered, "readers": [of[error] for error in errors]})
    return rows


def _outlier_chart(outliers: OutlierScores) -> figures.Chart | None:
    return figures.histogram(
        {"images": outliers.histogram},
        title="How far from the training images, % of the images",
        x_label="distance, as a multiple of the limit",
        unit=outliers.bin_width,
        marker=(1.0, "outlier from here on"),
    )


def _views(masking: Masking) -> dict[str, Any]:
    """One strip a view, on a common axis, with the line of chance."""
    estimates = [view.balanced_accuracy for view in masking.views]
    axis = figures.percent_axis([*(bound for e in estimates for bound in (e.low, e.value)), masking.chance])
    rows = []
    for view in masking.views:
        estimate, (title, what) = view.balanced_accuracy, _VIEWS[view.name]
        strip = axis.strip(estimate.value, estimate.low, estimate.high)
        rows.append({"view": view, "title": title, "what": what, "strip": strip})
    chance = axis.strip(masking.chance, None, None)
    whole = masking.views[0].balanced_accuracy.value or 0.0
    border = next(view for view in masking.views if view.name == "border_only").balanced_accuracy.value or 0.0
    # Of what the network knows beyond chance, the share that its border alone gives.
    kept = (border - masking.chance) / (whole - masking.chance) if whole > masking.chance else None
    return {"rows": rows, "axis": axis, "chance": chance.value if chance else None, "kept": None if kept is None else max(0.0, kept)}
