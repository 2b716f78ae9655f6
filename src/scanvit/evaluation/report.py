"""report.html: one file that opens offline and says in plain words how far a run can be trusted."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..core.events import metric_history
from ..core.loading import experiment_from_dict, experiment_to_dict, flatten
from ..pages import figures
from .estimates import Estimate
from .image_facts import judged_images
from .metrics import PER_CLASS
from .page import render
from .scores import Scores
from .sections import shift_section, subgroup_section

if TYPE_CHECKING:
    from ..data.pack import Pack
    from .predictions import Predictions

LOW_SENSITIVITY = 0.8
"""Classes whose interval reaches below this are named as not to be relied on."""
FEW_PATIENTS = 30
"""Classes with fewer patients are named as too few to judge."""
_MOST_ERRORS = 24
_GALLERY_BYTES = 600_000


def render_report(scores: Scores, predictions: Predictions, *, pack: Pack, run_dir: Path, experiment: dict[str, Any]) -> str:

    names = scores.class_names
    gates = pack.audit()
    rows = [(name, scores.per_class[name]) for name in names]
    return render(
        "report.html.j2",
        scores=scores,
        rows=rows,
        per_class_figures=PER_CLASS,
        summary=summarize(scores),
        audited=bool(gates),
        gates=[{key: str(gate.get(key) or "") for key in ("gate", "title", "verdict", "detail", "reason")} for gate in scores.audit],
        forests=[_forest(scores, "recall", "Sensitivity"), _forest(scores, "specificity", "Specificity")],
        confusion=_confusion(scores),
        roc=[
            {"name": name, "path": figures.roc_path(predictions.targets == k, predictions.probs[:, k]), "scores": scores.per_class[name].figures}
            for k, name in enumerate(names)
        ],
        charts=learning_charts(run_dir, scores.checkpoint),
        gallery=worst_errors(predictions, judged_images(pack, predictions.image_ids)),
        errors=int((predictions.predicted != predictions.targets).sum()),
        sources=Counter(predictions.sources).most_common(20),
        counts={split: sum(classes.values()) for split, classes in pack.counts.items()},
        pack_name=pack.path.name,
        patients=pack.patients,
        contract=pack.contract,
        environment=read_environment(run_dir),
        subgroups=subgroup_section(scores),
        shift=shift_section(scores.shift),
        settings=flatten(experiment),
        changed=changed_settings(experiment),
    )


def summarize(scores: Scores) -> dict[str, Any]:
    """What the first paragraphs say: the commonest class, the weakest, the commonest confusion, and what not to rely on."""
    matrix = np.array(scores.confusion_matrix)
    actual = matrix.sum(axis=1)
    errors = matrix - np.diag(np.diag(matrix))
    truth, called = (int(i) for i in np.unravel_index(errors.argmax(), errors.shape))
    judged = [(name, scores.per_class[name]) for name in scores.class_names if scores.per_class[name].images]
    weakest = min(judged, key=lambda item: item[1].figures["recall"].value or 0.0)
    low = [(name, s.figures["recall"]) for name, s in judged if _may_be_low(s.figures["recall"]) and s.patients >= FEW_PATIENTS]
    return {
        "commonest": {"name": scores.class_names[int(actual.argmax())], "share": float(actual.max() / actual.sum())},
        "weakest": {"name": weakest[0], "recall": weakest[1].figures["recall"]} if len(judged) > 1 else None,
        "confusion": {
            "truth": scores.class_names[truth],
            "called": scores.class_names[called],
            "count": int(errors[truth, called]),
            "of": int(actual[truth]),
        },
        "low": sorted(low, key=lambda item: item[1].value or 0.0),
        "few": [(name, s.patients) for name, s in judged if s.patients < FEW_PATIENTS],
        "absent": [name for name in scores.class_names if not scores.per_class[name].images],
        "low_bound": LOW_SENSITIVITY,
        "few_bound": FEW_PATIENTS,
    }


def learning_charts(run_dir: Path, checkpoint: dict[str, Any]) -> list[figures.Chart]:
    history = metric_history(run_dir)
    best = (float(checkpoint["epoch"]), "best") if isinstance(checkpoint.get("epoch"), int) else None

    def points(metric: str) -> list[figures.Point]:
        return [(float(epoch), value) for epoch, _, value in history.get(metric, [])]

    losses = {"train": points("train_loss"), "validation": points("val_loss")}
    accuracies = {"train": points("train_accuracy"), "validation": points("val_accuracy")}
    charts = [figures.line_chart(losses, title="Loss", marker=best), figures.line_chart(accuracies, title="Accuracy, %", marker=best, percent=True)]
    return [chart for chart in charts if chart]


def worst_errors(predictions: Predictions, images: npt.NDArray[np.uint8]) -> list[dict[str, Any]]:
    """The most confident wrong answers first, as many as fit the page's budget."""
    certainty = predictions.probs[np.arange(len(predictions)), predictions.predicted]
    wrong = np.flatnonzero(predictions.predicted != predictions.targets)
    chosen = wrong[np.argsort(-certainty[wrong], kind="stable")][:_MOST_ERRORS]
    shown: list[dict[str, Any]] = []
    size_bytes = 0
    for i in map(int, chosen):
        uri = figures.png_data_uri(np.array(images[i]))
        size_bytes += len(uri)
        if shown and size_bytes > _GALLERY_BYTES:
            break
        truth, called = int(predictions.targets[i]), int(predictions.predicted[i])
        shown.append(
            {
                "uri": uri,
                "image_id": predictions.image_ids[i],
                "truth": predictions.class_names[truth],
                "called": predictions.class_names[called],
                "called_probability": float(certainty[i]),
                "truth_probability": float(predictions.probs[i, truth]),
            }
        )
    return shown


def changed_settings(experiment: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{key: (value, default)} of the settings that are not the reference's."""
    default = flatten(experiment_to_dict(experiment_from_dict({})))
    left_out = ("name", "description", "data.", "tracking.")
    return {key: (value, default.get(key)) for key, value in flatten(experiment).items() if not key.startswith(left_out) and value != default.get(key)}


def _may_be_low(recall: Estimate) -> bool:
    """Without an interval the value itself decides: with enough patients that agree, it is near the truth."""
    bound = recall.value if recall.low is None else recall.low
    return bound is None or bound < LOW_SENSITIVITY


def _forest(scores: Scores, figure: str, title: str) -> dict[str, Any]:
    """One strip a class on a common axis."""
    estimates = [(name, scores.per_class[name], scores.per_class[name].figures[figure]) for name in scores.class_names]
    axis = figures.percent_axis([bound for *_, e in estimates for bound in (e.low, e.value)])
    rows = [
        {
            "name": name,
            "scores": s,
            "estimate": e,
            "strip": axis.strip(e.value, e.low, e.high),
            "weak": figure == "recall" and (s.patients < FEW_PATIENTS or _may_be_low(e)),
        }
        for name, s, e in estimates
    ]
    return {"title": title, "figure": figure, "axis": axis, "rows": rows}


def _confusion(scores: Scores) -> list[dict[str, Any]]:
    """Rows of cells: count, share of the row, and how strongly the cell is shaded (0..1)."""
    rows = []
    for i, (name, counts) in enumerate(zip(scores.class_names, scores.confusion_matrix, strict=True)):
        total = sum(counts)
        shares = [n / total if total else None for n in counts]
        cells = []
        for j, (n, share) in enumerate(zip(counts, shares, strict=True)):
            # Errors are rare: the square root makes 4 % visible beside 90 %.
            heat = (share or 0.0) if i == j else math.sqrt(share or 0.0)
            cells.append({"count": n, "share": share, "hit": i == j, "heat": round(heat, 3)})
        rows.append({"name": name, "total": total, "cells": cells})
    return rows


def read_environment(run_dir: Path) -> dict[str, Any]:
    """environment.json; empty where it is missing or damaged: it describes, and nothing depends on it."""
    try:
        values = json.loads((run_dir / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
