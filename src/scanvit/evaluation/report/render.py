"""From scores to report.html and the cards: what the templates need, computed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...core.events import metric_history
from ...core.loading import experiment_from_dict, experiment_to_dict, flatten
from ...pages import figures
from ..image_facts import judged_images
from ..metrics import PER_CLASS
from ..page import render
from ..saliency import Case
from ..scores import Scores
from ..sections import shift_section, subgroup_section
from .cards import render_cards
from .checklists import answers_of, checklists
from .curves import precision_recall_curves, roc_curves
from .environment import read_environment
from .gallery import album, covered_examples
from .summary import FEW_PATIENTS, may_be_low, summarize
from .trust import trust_figures

if TYPE_CHECKING:
    from ...data.pack import Pack
    from ..predictions import Predictions

_OF_A_RUN = ("model", "training", "chosen", "single", "initialised", "predictors", "software", "hardware", "code", "seed", "weights")
_OF_ITS_PACK = ("sources", "selection", "split", "disjoint")
_GATE = ("gate", "title", "verdict", "detail", "reason")


@dataclass(frozen=True, kw_only=True)
class Rendered:
    report: str
    """HTML."""
    cards: dict[str, str]
    """{file name: Markdown}."""


def render_report(
    scores: Scores,
    predictions: Predictions,
    *,
    pack: Pack,
    run_dir: Path,
    experiment: dict[str, Any],
    cases: Sequence[Case],
    originals: Mapping[int, npt.NDArray[np.uint8]],
) -> Rendered:
    """``cases``: what ``explain_cases`` gave; ``originals``: {row: pixels} of those that were found. The same input gives the same bytes."""
    names, images, gates, environment = scores.class_names, judged_images(pack, predictions.image_ids), pack.audit(), read_environment(run_dir)
    shown = album(cases, predictions, images, originals)
    roc, precision_recall = roc_curves(predictions, scores), precision_recall_curves(predictions, scores)
    context: dict[str, Any] = {
        "scores": scores,
        "trust": scores.trust,
        "rows": [(name, scores.per_class[name]) for name in names],
        "per_class_figures": PER_CLASS,
        "summary": summarize(scores),
        "audited": bool(gates),
        "gates": [{key: str(gate.get(key) or "") for key in _GATE} for gate in scores.audit],
        "verdicts": [{key: str(gate.get(key) or "") for key in _GATE} for gate in gates],
        "forests": [_forest(scores, "recall", "Sensitivity"), _forest(scores, "specificity", "Specificity")],
        "confusion": _confusion(scores),
        "roc": roc,
        "precision_recall": precision_recall,
        "charts": learning_charts(run_dir, scores.checkpoint),
        "wrong": [case for case in shown if not case["is_right"]],
        "right": [case for case in shown if case["is_right"]],
        "covered": covered_examples(cases, images, pack),
        "errors": int((predictions.predicted != predictions.targets).sum()),
        "sources": Counter(predictions.sources).most_common(20),
        "counts": {split: sum(classes.values()) for split, classes in pack.counts.items()},
        "class_counts": pack.counts,
        "pack_name": pack.path.name,
        "pack_settings": pack.settings,
        "patients": pack.patients,
        "contract": pack.contract,
        "environment": environment,
        "settings": {key: value for key, value in flatten(experiment).items() if key != "data.pack"},  # a path of this machine
        "changed": changed_settings(experiment),
        "subgroups": subgroup_section(scores),
        "shift": shift_section(scores.shift),
    }
    context |= trust_figures(scores, predictions)
    answers = answers_of(scores, gates=gates, settings=dict(pack.settings), environment=environment, sections=_sections(scores))
    # Of predictions from elsewhere nobody knows the network, and of external data the pack is not the one that was trained on.
    unknown: tuple[str, ...] = () if scores.checkpoint else _OF_A_RUN
    unknown += _OF_ITS_PACK if scores.shift else ()
    answers = {name: answer for name, answer in answers.items() if name not in unknown}
    context["checklists"] = checklists(answers)
    return Rendered(report=render("report.html.j2", **context), cards=render_cards(context))


def _sections(scores: Scores) -> frozenset[str]:
    """Of the report, those that not every one has."""
    return frozenset(name for name, held in (("subgroups", scores.subgroups), ("shift", scores.shift)) if held)


def learning_charts(run_dir: Path, checkpoint: dict[str, Any]) -> list[figures.Chart]:
    history = metric_history(run_dir)
    best = (float(checkpoint["epoch"]), "best") if isinstance(checkpoint.get("epoch"), int) else None

    def points(metric: str) -> list[figures.Point]:
        return [(float(epoch), value) for epoch, _, value in history.get(metric, [])]

    losses = {"train": points("train_loss"), "validation": points("val_loss")}
    accuracies = {"train": points("train_accuracy"), "validation": points("val_accuracy")}
    charts = [figures.line_chart(losses, title="Loss", marker=best), figures.line_chart(accuracies, title="Accuracy, %", marker=best, percent=True)]
    return [chart for chart in charts if chart]


def changed_settings(experiment: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{key: (value, default)} of the settings that are not the reference's."""
    default = flatten(experiment_to_dict(experiment_from_dict({})))
    left_out = ("name", "description", "data.", "tracking.")
    return {key: (value, default.get(key)) for key, value in flatten(experiment).items() if not key.startswith(left_out) and value != default.get(key)}


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
            "weak": figure == "recall" and (s.patients < FEW_PATIENTS or may_be_low(e)),
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
