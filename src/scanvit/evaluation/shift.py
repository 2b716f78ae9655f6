"""What changes when a network meets data from elsewhere: how often it is right, how sure it is, and which classes move.

The images of the two sets are of different patients, so each figure is resampled in either set on its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from .bootstrap import Figures
from .calibration import fit_temperature
from .estimates import Estimate, Estimator
from .metrics import Array, MetricComputer, ratio
from .predictions import Predictions

BINS = 20
"""Of the histograms: of the highest probability over 0..1, of the outlier score over 0..``OUTLIER_TOP``."""
OUTLIER_TOP = 2.0
FIGURES = ("accuracy", "balanced_accuracy", "macro_auroc", "log_loss", "ece")


@dataclass(frozen=True, kw_only=True)
class Moved:
    """One figure on the run's own test images, on these, and the difference, these - own."""

    own: Estimate
    here: Estimate
    difference: Estimate


@dataclass(frozen=True, kw_only=True)
class ClassShift:
    name: str
    own_images: int
    images: int
    recall: Moved
    specificity: Moved
    called: Moved
    """Share of the images that are given this class."""


@dataclass(frozen=True, kw_only=True)
class Shift:
    own_images: int
    """Of the run's own test split; of the classes alone that these images are of."""
    own_patients: int
    images: int
    figures: dict[str, Moved]
    """By the names in ``FIGURES``."""
    confidence: Moved
    """Mean of the highest probability."""
    outliers: Moved | None
    """Share of the images that the detector calls outliers; None where the checkpoint has none."""
    classes: list[ClassShift]
    temperature: float
    """Fitted on val of the run's own pack."""
    refitted_temperature: float
    """That these images would ask for."""
    recalibrated_ece: Estimate
    """With temperatures fitted on one half of these patients and judged on the other, and the reverse."""
    confidence_counts: dict[str, list[int]]
    """{own, here}: images by highest probability, ``BINS`` of them."""
    outlier_counts: dict[str, list[int]] | None
    sentences: list[str] = field(default_factory=list)


def measure_shift(own: Predictions, here: Predictions, *, draws: int, seed: int) -> Shift:
    """``own``: on the run's own test split. Only its images of classes that ``here`` holds count: the others cannot be compared."""
    assert own.class_names == here.class_names
    present = np.unique(here.targets)
    part = own.take(np.flatnonzero(np.isin(own.targets, present)).tolist())
    tables = (part, here)
    estimators = [Estimator(table.patient_ids, draws=draws, seed=seed + number) for number, table in enumerate(tables)]
    first, second = (estimator(_figures(table)) for estimator, table in zip(estimators, tables, strict=True))

    def moved(name: str, column: int | None = None, *, is_share: bool = False) -> Moved:
        behind = [estimator.patients_behind(name, table, column) for estimator, table in zip(estimators, tables, strict=True)]
        return Moved(
            own=first.of(name, column, patients=behind[0], of_class=column is None, is_share=is_share),
            here=second.of(name, column, patients=behind[1], of_class=column is None, is_share=is_share),
            difference=second.minus(first, name, column, patients=min(behind)),
        )

    has_outliers = part.outlier_scores is not None and here.outlier_scores is not None
    shift = Shift(
        own_images=len(part),
        own_patients=len(set(part.patient_ids)),
        images=len(here),
        figures={name: moved(name, is_share=name == "accuracy") for name in FIGURES},
        confidence=moved("confidence"),
        outliers=moved("outliers", is_share=True) if has_outliers else None,
        classes=[
            ClassShift(
                name=here.class_names[k],
                own_images=int((part.targets == k).sum()),
                images=int((here.targets == k).sum()),
                recall=moved("recall", k, is_share=True),
                specificity=moved("specificity", k, is_share=True),
                called=moved("called", k, is_share=True),
            )
            for k in range(len(here.class_names))
        ],
        temperature=here.temperature,
        refitted_temperature=fit_temperature(here.logits, here.targets),
        recalibrated_ece=_recalibrated_ece(here, draws=draws, seed=seed),
        confidence_counts={"own": _counts(_confidence(part), 1.0), "here": _counts(_confidence(here), 1.0)},
        outlier_counts={"own": _counts(_outliers(part), OUTLIER_TOP), "here": _counts(_outliers(here), OUTLIER_TOP)} if has_outliers else None,
    )
    return replace(shift, sentences=_sentences(shift))


def _figures(table: Predictions) -> Figures:
    computer = MetricComputer.of(table)
    flags = [_confidence(table), (_outliers(table) > 1).astype(np.float64)]
    called = table.predicted[:, None] == np.arange(len(table.class_names))
    means = np.column_stack([*flags, called]).astype(np.float64)

    def figures(weights: Array) -> dict[str, Array]:
        shares = ratio(weights.T @ means, weights.sum(axis=0)[:, None])
        return computer(weights) | {"confidence": shares[:, 0], "outliers": shares[:, 1], "called": shares[:, 2:]}

    return figures


def _confidence(table: Predictions) -> Array:
    return table.probs.max(axis=1).astype(np.float64)


def _outliers(table: Predictions) -> Array:
    return np.zeros(len(table)) if table.outlier_scores is None else table.outlier_scores


def _counts(values: Array, top: float) -> list[int]:
    places = np.clip(np.floor(values / top * BINS), 0, BINS - 1).astype(np.int64)
    counts: list[int] = np.bincount(places, minlength=BINS).tolist()
    return counts


def _recalibrated_ece(table: Predictions, *, draws: int, seed: int) -> Estimate:
    estimator = Estimator(table.patient_ids, draws=draws, seed=seed)
    if estimator.patients < 2:
        return Estimate(value=None, note="Needs two patients or more.")
    half = (np.random.default_rng(seed).permutation(estimator.patients) % 2)[estimator.index]
    logits = table.logits.copy()
    for number in (0, 1):
        logits[half == number] /= fit_temperature(table.logits[half != number], table.targets[half != number])
    refitted = replace(table, logits=logits, temperature=1.0)
    computer = MetricComputer.of(refitted)
    return estimator(lambda weights: {"ece": computer(weights)["ece"]}).of("ece")


def _sentences(shift: Shift) -> list[str]:
    said = [_accuracy_sentence(shift), _calibration_sentence(shift)]
    lost = [(c.name, c.recall) for c in shift.classes if c.recall.difference.value is not None]
    if lost:
        name, recall = max(lost, key=lambda item: abs(item[1].difference.value or 0.0))
        said.append(
            f"The class that moves most is {name}: its sensitivity goes from {_percent(recall.own)} to {_percent(recall.here)} "
            f"({_points(recall.difference)}; {_verdict(recall.difference)})."
        )
    called = max(shift.classes, key=lambda c: abs(c.called.difference.value or 0.0))
    said.append(f"{called.name} is named for {_percent(called.called.here)} of these images, and for {_percent(called.called.own)} of its own.")
    if shift.outliers:
        said.append(
            f"{_percent(shift.outliers.here)} of these images are outliers to the network, against {_percent(shift.outliers.own)} of its own test images."
        )
    return said


def _accuracy_sentence(shift: Shift) -> str:
    accuracy = shift.figures["accuracy"]
    return (
        f"The network names {_percent(accuracy.here)} of these images rightly, and {_percent(accuracy.own)} of its own test images of the same classes: "
        f"{_points(accuracy.difference)} ({_verdict(accuracy.difference)})."
    )


def _calibration_sentence(shift: Shift) -> str:
    ece, confidence = shift.figures["ece"], shift.confidence
    return (
        f"It is on average {_percent(confidence.here)} sure here ({_percent(confidence.own)} at home); its probabilities are {_percent(ece.here)} off "
        f"({_percent(ece.own)} at home). With a temperature fitted on such images they would be {_percent(shift.recalibrated_ece)} off."
    )


def _percent(estimate: Estimate) -> str:
    return "–" if estimate.value is None else f"{100 * estimate.value:.1f} %"


def _points(estimate: Estimate) -> str:
    if estimate.value is None:
        return "no difference can be told"
    interval = "" if estimate.low is None or estimate.high is None else f", interval {100 * estimate.low:+.1f} to {100 * estimate.high:+.1f}"
    return f"{100 * estimate.value:+.1f} points{interval}"


def _verdict(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return "without an interval"
    few = ", by very few patients" if estimate.note else ""
    return ("more than chance would give" if estimate.low > 0 or estimate.high < 0 else "no more than chance may give") + few
