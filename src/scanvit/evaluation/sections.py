"""What the report's sections on subgroups and on external data draw: rows with strips on one axis, and histograms."""

from __future__ import annotations

from typing import Any

from ..pages import figures
from .scores import Scores
from .shift import BINS, Shift
from .subgroups import Axis, gap_sentences

_SHOWN = {"accuracy": "Accuracy", "balanced_accuracy": "Balanced accuracy", "macro_auroc": "Macro AUROC", "log_loss": "Log loss", "ece": "Calibration error"}


def subgroup_section(scores: Scores) -> list[dict[str, Any]]:
    """One entry an axis."""
    return [_axis_section(axis) for axis in scores.subgroups]


def _axis_section(axis: Axis) -> dict[str, Any]:
    accuracies = [group.figures["accuracy"] for group in axis.groups]
    drawn = figures.percent_axis([bound for estimate in accuracies for bound in (estimate.low, estimate.value)])
    rows = [
        {"group": group, "accuracy": estimate, "strip": drawn.strip(estimate.value, estimate.low, estimate.high)}
        for group, estimate in zip(axis.groups, accuracies, strict=True)
    ]
    classes = list(dict.fromkeys(name for group in axis.groups for name in group.recall))
    return {"name": axis.name, "title": axis.title, "axis": drawn, "rows": rows, "classes": classes, "sentences": gap_sentences(axis)}


def shift_section(shift: Shift | None) -> dict[str, Any] | None:
    if shift is None:
        return None
    shown = [shift_class for shift_class in shift.classes if shift_class.images]
    values = [bound for c in shown for estimate in (c.recall.own, c.recall.here) for bound in (estimate.low, estimate.value)]
    axis = figures.percent_axis(values)
    rows = [
        {"name": c.name, "images": c.images, "own": own, "here": here, "strips": [axis.strip(e.value, e.low, e.high) for e in (own, here)]}
        for c in shown
        for own, here in [(c.recall.own, c.recall.here)]
    ]
    charts = [_histogram(shift.confidence_counts, title="How sure it is", x_label="highest probability, %", top=100, limit=None)]
    if shift.outlier_counts:
        charts.append(_histogram(shift.outlier_counts, title="How foreign the images are", x_label="outlier score, % of the limit", top=200, limit=100))
    named = {name: (title, shift.figures[name]) for name, title in _SHOWN.items()} | {"confidence": ("Mean confidence", shift.confidence)}
    if shift.outliers:
        named["outliers"] = ("Share of outliers", shift.outliers)
    return {"shift": shift, "axis": axis, "rows": rows, "charts": [chart for chart in charts if chart], "figures": named}


def _histogram(counts: dict[str, list[int]], *, title: str, x_label: str, top: int, limit: int | None) -> figures.Chart | None:
    width = top // BINS
    spread = {name: [count if place == 0 else 0 for count in values for place in range(width)] for name, values in counts.items()}
    series = {"own test images": spread["own"], "these images": spread["here"]}
    return figures.histogram(series, title=title, x_label=x_label, bin_width=width, marker=(float(limit), "limit") if limit else None)
