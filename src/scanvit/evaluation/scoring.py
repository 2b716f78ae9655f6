"""From predictions to scores: every figure with its interval, or with a sentence that says why it has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ConfigError
from .bootstrap import LEVEL, METHOD
from .estimates import Estimate, Estimated, Estimator
from .metrics import OVERALL_NAMES, PER_CLASS, Array, MetricComputer
from .predictions import Predictions
from .scores import ClassScores, Scores
from .subgroups import subgroups

if TYPE_CHECKING:
    from ..data.pack import Pack

_SHARES = ("accuracy", "precision", "recall", "specificity", "npv")
"""Means of right and wrong answers: without a wrong one among n patients, Clopper and Pearson's bound says how many there may be."""
_WHY_UNDEFINED = {
    "precision": "No image was given this class.",
    "npv": "Every image was given this class.",
    "recall": "The split has no image of this class.",
    "specificity": "Every image of the split is of this class.",
    "f1": "The split has no image of this class, and none was given it.",
    "auroc": "Needs images of this class and of another.",
    "average_precision": "The split has no image of this class.",
    "precision_at_prevalence": "Needs a sensitivity and a specificity, and an image that was given this class.",
    "npv_at_prevalence": "Needs a sensitivity and a specificity, and an image that was not given this class.",
}


@dataclass(frozen=True, kw_only=True)
class Detail:
    """What is asked of predictions besides the figures that are always given."""

    prevalence: Mapping[str, float] = field(default_factory=dict)
    """{class: its share where the model is to be used}, for predictive values there."""
    by: Sequence[str] | None = None
    """Axes of subgroups (``subgroups.known_axes``). None: those that the pack offers by itself."""
    readings: Path | None = None
    """First readings by people (``readings``), for the second-reader table. None: readers are assumed."""


def score_on_pack(predictions: Predictions, pack: Pack, *, about: dict[str, Any], detail: Detail, draws: int, seed: int) -> Scores:
    """``compute_scores`` with the subgroups that the pack's manifest tells. Raises ConfigError for an unknown class or axis."""
    scores = compute_scores(predictions, about=about, draws=draws, seed=seed, prevalence=detail.prevalence)
    return replace(scores, subgroups=subgroups(predictions, pack, by=detail.by, draws=draws, seed=seed))


def compute_scores(predictions: Predictions, *, about: dict[str, Any], draws: int, seed: int, prevalence: Mapping[str, float] | None = None) -> Scores:
    """``about``: the fields of Scores that predictions do not hold (run, experiment, split, audit, cost).

    ``prevalence``: {class: its share where the model is to be used}, for predictive values there. Raises ConfigError for an unknown class.
    """
    expected = _checked(prevalence or {}, predictions.class_names)
    computer = MetricComputer.of(predictions)
    share = np.array([expected.get(name, np.nan) for name in predictions.class_names])

    def figures(weights: Array) -> dict[str, Array]:
        return _at_prevalence(computer(weights), share) if expected else computer(weights)

    estimator = Estimator(predictions.patient_ids, draws=draws, seed=seed)
    estimated = estimator(figures)
    confusion = computer.confusion(np.ones((len(predictions), 1)))[0].astype(int)
    per_class = {}
    for k, name in enumerate(predictions.class_names):
        names = [*PER_CLASS, *(("precision_at_prevalence", "npv_at_prevalence") if name in expected else ())]
        estimates = {}
        for figure in names:
            behind, why = estimator.patients_behind(figure, predictions, k), _WHY_UNDEFINED.get(figure, "Undefined.")
            estimates[figure] = estimated.of(figure, k, patients=behind, undefined=why, is_share=figure in _SHARES)
        images, patients = int(confusion[k].sum()), estimator.patients_of(predictions.targets == k)
        per_class[name] = ClassScores(images=images, patients=patients, figures=estimates, prevalence=expected.get(name))
    absent = [name for name, scores in per_class.items() if not scores.images]
    return Scores(
        images=len(predictions),
        patients=estimator.patients,
        class_names=predictions.class_names,
        fingerprint=predictions.fingerprint,
        checkpoint=predictions.checkpoint,
        interval={"level": LEVEL, "method": METHOD, "draws": draws, "seed": seed},
        overall={name: _overall(estimated, estimator, predictions, name, absent) for name in OVERALL_NAMES},
        per_class=per_class,
        confusion_matrix=confusion.tolist(),
        **about,
    )


def _checked(prevalence: Mapping[str, float], class_names: list[str]) -> dict[str, float]:
    """In the order of the classes. Raises ConfigError."""
    for name, share in prevalence.items():
        if name not in class_names:
            raise ConfigError(f"There is no class {name!r} to give a prevalence for.", hint=f"The classes are: {', '.join(class_names)}.")
        if not 0 < share < 1:
            raise ConfigError(f"A prevalence of {share:g} for {name!r} is none.", hint="It is a share between 0 and 1, such as 0.02 for one in fifty.")
    return {name: prevalence[name] for name in class_names if name in prevalence}


def _at_prevalence(figures: dict[str, Array], share: Array) -> dict[str, Array]:
    """Add the predictive values at other prevalences, (K,), than the split's: Bayes' theorem on sensitivity and specificity."""
    recall, specificity = figures["recall"], figures["specificity"]
    found, missed = share * recall, share * (1 - recall)
    alarms, passed = (1 - share) * (1 - specificity), (1 - share) * specificity
    with np.errstate(invalid="ignore", divide="ignore"):  # 0/0 is NaN: undefined
        return figures | {"precision_at_prevalence": found / (found + alarms), "npv_at_prevalence": passed / (passed + missed)}


def _overall(estimated: Estimated, estimator: Estimator, predictions: Predictions, name: str, absent: Sequence[str]) -> Estimate:
    behind, why = estimator.patients_behind(name, predictions), _why_undefined(name, predictions)
    estimate = estimated.of(name, patients=behind, of_class=True, undefined=why, is_share=name in _SHARES)
    if absent and (name == "balanced_accuracy" or name.startswith("macro_")):
        note = f"Left out, as the split has no image of it: {', '.join(absent)}."
        return replace(estimate, note=f"{estimate.note} {note}" if estimate.note else note)
    return estimate


def _why_undefined(name: str, predictions: Predictions) -> str:
    """Of a figure of all images; a mean over classes is undefined where that of one class is."""
    held, called = np.unique(predictions.targets), np.unique(predictions.predicted)
    missed = [predictions.class_names[k] for k in np.setdiff1d(held, called)]
    if name in ("macro_precision", "weighted_precision") and missed:
        return f"Undefined: no image was given the class {', '.join(missed)}."
    if (name in ("macro_npv", "weighted_npv") or (name == "mcc" and len(held) > 1)) and len(called) == 1:
        return f"Undefined: every image was given the class {predictions.class_names[called[0]]}."
    return "Undefined: the split holds one class only."
