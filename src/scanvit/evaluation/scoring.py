"""From predictions to scores: every figure with its interval, or with a sentence that says why it has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..core.errors import ConfigError
from .bootstrap import LEVEL, METHOD, Resampled, bca_interval, bootstrap, patient_index
from .metrics import OVERALL_NAMES, PER_CLASS, Array, MetricComputer
from .predictions import Predictions
from .scores import ClassScores, Estimate, Scores

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


def compute_scores(predictions: Predictions, *, about: dict[str, Any], draws: int, seed: int, prevalence: Mapping[str, float] | None = None) -> Scores:
    """``about``: the fields of Scores that predictions do not hold (run, experiment, split, audit, cost).

    ``prevalence``: {class: its share where the model is to be used}, for predictive values there. Raises ConfigError for an unknown class.
    """
    expected = _checked(prevalence or {}, predictions.class_names)
    computer = MetricComputer(predictions.targets, predictions.predicted, predictions.probs, predictions.losses)
    once = np.ones((len(predictions), 1))
    index, patients = patient_index(predictions.patient_ids)

    share = np.array([expected.get(name, np.nan) for name in predictions.class_names])

    def figures(weights: Array) -> dict[str, Array]:
        return _at_prevalence(computer(weights), share) if expected else computer(weights)

    point = figures(once)
    sampled = bootstrap(figures, index, patients, draws=draws, seed=seed) if patients > 1 and draws else None
    confusion = computer.confusion(once)[0].astype(int)
    counts = _PatientCounts(predictions, index, patients)
    per_class = {}
    for k, name in enumerate(predictions.class_names):
        names = [*PER_CLASS, *(("precision_at_prevalence", "npv_at_prevalence") if name in expected else ())]
        estimates = {figure: _estimate(figure, point, sampled, counts.behind(figure, k), column=k) for figure in names}
        per_class[name] = ClassScores(images=int(confusion[k].sum()), patients=counts.actual[k], figures=estimates, prevalence=expected.get(name))
    absent = [name for name, scores in per_class.items() if not scores.images]
    return Scores(
        images=len(predictions),
        patients=patients,
        class_names=predictions.class_names,
        fingerprint=predictions.fingerprint,
        checkpoint=predictions.checkpoint,
        interval={"level": LEVEL, "method": METHOD, "draws": draws, "seed": seed},
        overall={name: _overall(name, point, sampled, patients, absent) for name in OVERALL_NAMES},
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


class _PatientCounts:
    """How many patients stand behind a figure: what decides whether resampling them says anything."""

    def __init__(self, predictions: Predictions, index: np.ndarray, patients: int) -> None:
        self._index, self._patients, classes = index, patients, range(len(predictions.class_names))
        self.actual = [self._distinct(predictions.targets == k) for k in classes]
        self._others = [self._distinct(predictions.targets != k) for k in classes]
        self._called = [self._distinct(predictions.predicted == k) for k in classes]
        self._not_called = [self._distinct(predictions.predicted != k) for k in classes]

    def behind(self, figure: str, k: int) -> int:
        match figure:
            case "precision":
                return self._called[k]
            case "npv":
                return self._not_called[k]
            case "specificity":
                return self._others[k]
            case "auroc" | "precision_at_prevalence" | "npv_at_prevalence":
                return min(self.actual[k], self._others[k])
            case "class_ece":
                return self._patients
            case _:
                return self.actual[k]

    def _distinct(self, chosen: np.ndarray) -> int:
        return len(np.unique(self._index[chosen]))


def _estimate(figure: str, point: dict[str, Array], sampled: Resampled | None, patients: int, *, column: int | None = None) -> Estimate:
    """Of one figure; ``column``: of one class. ``patients``: how many stand behind it."""
    at: Any = slice(None) if column is None else (slice(None), column)
    value = float(point[figure][at][0])
    if np.isnan(value):
        return Estimate(value=None, note=_WHY_UNDEFINED.get(figure, "Undefined: the split holds one class only."))
    if patients < 2:
        return Estimate(value=value, note=f"No interval: {_count_patients(patients)} cannot be resampled.")
    if sampled is None:
        return Estimate(value=value, note="No interval: no draws were made.")
    interval = bca_interval(value, sampled.draws[figure][at], sampled.left_out[figure][at])
    if interval is None:
        return Estimate(value=value, note=f"No interval: the figure is undefined in more than half of the resamples ({_count_patients(patients)}).")
    if interval[0] == interval[1]:
        return Estimate(value=value, note=_why_no_spread(patients, is_share=figure in _SHARES))
    return Estimate(value=value, low=interval[0], high=interval[1])


def _why_no_spread(patients: int, *, is_share: bool) -> str:
    """Where all patients agree, every resample does: an interval of no width would be a false claim."""
    if not is_share:
        return f"No interval: every resample of the {_count_patients(patients)} gives the same figure."
    # The exact one-sided bound (Clopper and Pearson 1934) for no exception among n.
    possible = 1 - (1 - LEVEL) ** (1 / patients)
    return f"No interval: the {_count_patients(patients)} behind it all agree. Up to {possible:.1%} of exceptions are compatible with that ({LEVEL:.0%} bound)."


def _overall(figure: str, point: dict[str, Array], sampled: Resampled | None, patients: int, absent: Sequence[str]) -> Estimate:
    estimate = _estimate(figure, point, sampled, patients)
    if absent and (figure == "balanced_accuracy" or figure.startswith("macro_")):
        note = f"Left out, as the split has no image of it: {', '.join(absent)}."
        return replace(estimate, note=f"{estimate.note} {note}" if estimate.note else note)
    return estimate


def _count_patients(patients: int) -> str:
    return "1 patient" if patients == 1 else f"{patients} patients"
