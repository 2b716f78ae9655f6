"""Letting the network answer only where it is sure: what is left to answer, and how often it is wrong there.

risk-coverage      of all images the surest share, and the error rate within it (El-Yaniv and Wiener 2010)
second reader      a first reading that the network agrees with is cleared, every other gets a second look
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .estimates import Estimate, Estimator
from .metrics import Array, ratio
from .predictions import Predictions

COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)
READER_ERRORS = (0.01, 0.05, 0.1)
"""Of first readers whose readings are not at hand: assumed shares of wrong readings."""


@dataclass(frozen=True, kw_only=True)
class Covered:
    """The surest images, down to a confidence that was chosen on val."""

    aimed_coverage: float
    confidence: float
    """The lowest one that is still answered."""
    coverage: Estimate
    error: Estimate
    """Among those answered."""


@dataclass(frozen=True, kw_only=True)
class SecondReader:
    """What a second reading by the network does to a first one."""

    reader_error: float
    """Of the first reader: measured where readings were given, else assumed."""
    confidence: float
    """From which on the network's agreement clears a reading."""
    cleared: float
    """Share of all readings."""
    error_cleared: float | None
    """Share of wrong ones among those cleared. None where nothing is cleared."""
    caught: float | None
    """Share of the wrong readings that get a second look. None where none is wrong."""


def risk_coverage(confidence: npt.NDArray[np.floating], wrong: npt.NDArray[np.bool_]) -> tuple[Array, Array]:
    """(N,) -> coverage and error rate within it, each (M,), one point for each distinct confidence from the highest down."""
    order = np.argsort(-confidence, kind="stable")
    ordered = confidence[order]
    last = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])
    answered = last + 1.0
    return answered / len(confidence), np.cumsum(wrong[order])[last] / answered


def area_under_risk(coverage: Array, error: Array) -> float:
    """The mean error rate over all coverages (Geifman et al. 2019, AURC): each image answers at its own."""
    return float((np.diff(np.r_[0.0, coverage]) * error).sum())


def confidences_for(probs: npt.NDArray[np.floating]) -> tuple[float, ...]:
    """(N, K) probabilities of val -> for each of ``COVERAGES`` the lowest confidence that is still answered. 0, so all, without images."""
    sure = probs.max(axis=1) if len(probs) else np.zeros(1)
    return tuple(float(np.quantile(sure, 1 - aimed, method="lower")) if aimed < 1 else 0.0 for aimed in COVERAGES)


def covered(confidences: Sequence[float], test: Predictions, estimator: Estimator) -> list[Covered]:
    """For each of ``COVERAGES``, with the confidence that leaves that share of val: what it does on test. ``estimator``: of test's patients."""
    answered = test.probs.max(axis=1)[:, None] >= np.array(confidences)
    wrong = (test.predicted != test.targets)[:, None]
    flags = np.concatenate([answered, answered & wrong], axis=1).astype(np.float64)

    def figures(weights: Array) -> dict[str, Array]:
        kept, bad = np.split(weights.T @ flags, 2, axis=1)
        shares = kept / weights.sum(axis=0)[:, None]
        return {"coverage": shares, "error": ratio(bad, kept)}

    estimated = estimator(figures)
    rows = []
    for column, (aimed, confidence) in enumerate(zip(COVERAGES, confidences, strict=True)):
        behind = estimator.patients_of(answered[:, column])
        error = estimated.of("error", column, patients=behind, undefined="Nothing is answered.", is_share=True)
        rows.append(Covered(aimed_coverage=aimed, confidence=confidence, coverage=estimated.of("coverage", column), error=error))
    return rows


def second_reader(predictions: Predictions, readings: npt.NDArray[np.int64], confidence: float) -> SecondReader:
    """With the readings (N,) of a real first reader, as class indices."""
    sure = predictions.probs.max(axis=1) >= confidence
    cleared, wrong = sure & (predictions.predicted == readings), readings != predictions.targets
    return _second_reader(float(wrong.mean()), confidence, cleared=cleared.astype(float), missed=(cleared & wrong).astype(float))


def assumed_second_reader(predictions: Predictions, reader_error: float, confidence: float) -> SecondReader:
    """Without readings: a first reader who is wrong in a given share of images, whichever they are, and then names any other class alike.

    A real reader's errors lie where the network's lie too, so real figures will be worse: this is the most that can be hoped for.
    """
    sure = predictions.probs.max(axis=1) >= confidence
    right = predictions.predicted == predictions.targets
    others = max(predictions.probs.shape[1] - 1, 1)
    # The chance of each image to be cleared rightly, and wrongly.
    rightly, wrongly = sure * right * (1 - reader_error), sure * ~right * reader_error / others
    return _second_reader(reader_error, confidence, cleared=rightly + wrongly, missed=wrongly)


def second_reader_table(predictions: Predictions, confidences: Sequence[float], readings: npt.NDArray[np.int64] | None = None) -> list[SecondReader]:
    """Of a real first reader where ``readings`` are given, else of each of ``READER_ERRORS``."""
    if readings is not None:
        return [second_reader(predictions, readings, confidence) for confidence in confidences]
    return [assumed_second_reader(predictions, error, confidence) for error in READER_ERRORS for confidence in confidences]


def _second_reader(reader_error: float, confidence: float, *, cleared: Array, missed: Array) -> SecondReader:
    wrong = reader_error * len(cleared)
    return SecondReader(
        reader_error=reader_error,
        confidence=confidence,
        cleared=float(cleared.mean()),
        error_cleared=float(missed.sum() / cleared.sum()) if cleared.sum() else None,
        caught=float(1 - missed.sum() / wrong) if wrong else None,
    )
