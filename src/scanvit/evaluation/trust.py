"""What a network's answers can be trusted with, beyond how often they are right: the part of the scores that a user of the network acts on.

Every choice (temperature, thresholds, confidences, sets, limit) was fitted on validation images and lies in the checkpoint; here it is
judged on other images, with intervals.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from .calibration import ReliabilityBin, reliability
from .estimates import Estimate, Estimator
from .masking import Masking
from .metrics import CALIBRATION_BINS, Array, MetricComputer, ratio
from .operating_points import OperatingPoint, operating_points
from .outliers import ALARMS
from .predictions import Predictions
from .readings import Readings
from .saliency import Saliency
from .selective import Covered, SecondReader, area_under_risk, covered, risk_coverage, second_reader_table

if TYPE_CHECKING:
    from .calibrate import Calibration

_OUTLIER_BINS, _LAST_OUTLIER_BIN = 24, 3.0


@dataclass(frozen=True, kw_only=True)
class Confidence:
    """Of probabilities: how far they may be taken at their word."""

    ece: Estimate
    """Of the highest probability, ``bins`` bins of equal width."""
    brier: Estimate
    log_loss: Estimate
    class_ece: dict[str, Estimate]
    reliability: list[ReliabilityBin]
    """Of the highest probability."""


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    temperature: float
    fitted_on: int
    """Images of val."""
    bins: int
    before: Confidence
    """Without the temperature."""
    after: Confidence


@dataclass(frozen=True, kw_only=True)
class Selective:
    aurc: float
    """Mean error rate over all coverages (Geifman et al. 2019)."""
    covered: list[Covered]
    second_reader: list[SecondReader]
    readings: int | None = None
    """Images that a person had read. None: first readers are assumed."""


@dataclass(frozen=True, kw_only=True)
class SetScores:
    """Of conformal sets."""

    promised: float
    reached: Estimate
    by_class: dict[str, Estimate]
    mean_size: Estimate
    sizes: list[int]
    """Images whose set has 0, 1, .. K classes."""


@dataclass(frozen=True, kw_only=True)
class OutlierScores:
    expected: float
    """Share of validation images that were to be called outliers."""
    images: int
    """Called outliers here."""
    share: Estimate
    error_among_them: Estimate
    error_among_others: Estimate
    histogram: list[int]
    """Images by score, in bins of equal width from 0; the last holds all above."""
    bin_width: float


@dataclass(frozen=True, kw_only=True)
class Trust:
    calibrated: Calibrated
    operating_points: list[OperatingPoint]
    selective: Selective
    sets: SetScores
    outliers: OutlierScores | None
    """None where the checkpoint cannot tell."""
    masking: Masking
    saliency: Saliency


def judge_calibration(predictions: Predictions, calibration: Calibration, estimator: Estimator) -> Calibrated:
    return Calibrated(
        temperature=calibration.temperature,
        fitted_on=calibration.images,
        bins=CALIBRATION_BINS,
        before=_confidence(predictions, 1.0, estimator),
        after=_confidence(predictions, calibration.temperature, estimator),
    )


def judge_selective(predictions: Predictions, calibration: Calibration, estimator: Estimator, readings: Readings | None = None) -> Selective:
    wrong = predictions.predicted != predictions.targets
    return Selective(
        aurc=area_under_risk(*risk_coverage(predictions.probs.max(axis=1), wrong)),
        covered=covered(calibration.confidences, predictions, estimator),
        second_reader=second_reader_table(predictions.take(readings.rows), calibration.confidences, readings.classes)
        if readings
        else second_reader_table(predictions, calibration.confidences),
        readings=len(readings.rows) if readings else None,
    )


def judge_sets(predictions: Predictions, calibration: Calibration, estimator: Estimator) -> SetScores:
    sets = calibration.conformal.sets(predictions.probs)
    held = sets[np.arange(len(predictions)), predictions.targets].astype(np.float64)
    size = sets.sum(axis=1).astype(np.float64)
    of_class = np.eye(sets.shape[1])[predictions.targets]

    def figures(weights: Array) -> dict[str, Array]:
        total, actual = weights.sum(axis=0), weights.T @ of_class
        found = weights.T @ (of_class * held[:, None])
        return {
            "reached": held @ weights / total,
            "size": size @ weights / total,
            "by_class": ratio(found, actual),
        }

    estimated = estimator(figures)
    by_class = {
        name: estimated.of("by_class", k, patients=estimator.patients_of(predictions.targets == k), undefined="The split has no image of it.", is_share=True)
        for k, name in enumerate(predictions.class_names)
    }
    return SetScores(
        promised=calibration.conformal.coverage,
        reached=estimated.of("reached", is_share=True),
        by_class=by_class,
        mean_size=estimated.of("size"),
        sizes=np.bincount(size.astype(int), minlength=sets.shape[1] + 1).tolist(),
    )


def judge_outliers(predictions: Predictions, estimator: Estimator) -> OutlierScores | None:
    scores = predictions.outlier_scores
    if scores is None:
        return None
    out, wrong = scores > 1, predictions.predicted != predictions.targets
    flags = np.stack([out, out & wrong, ~out, ~out & wrong]).astype(np.float64)

    def figures(weights: Array) -> dict[str, Array]:
        called, bad, others, bad_others = flags @ weights
        return {"share": called / weights.sum(axis=0), "among": ratio(bad, called), "others": ratio(bad_others, others)}

    estimated, width = estimator(figures), _LAST_OUTLIER_BIN / _OUTLIER_BINS
    return OutlierScores(
        expected=ALARMS,
        images=int(out.sum()),
        share=estimated.of("share", is_share=True),
        error_among_them=estimated.of("among", patients=estimator.patients_of(out), undefined="No image was called an outlier.", is_share=True),
        error_among_others=estimated.of("others", patients=estimator.patients_of(~out), undefined="Every image was called an outlier.", is_share=True),
        histogram=np.bincount(np.minimum(scores / width, _OUTLIER_BINS).astype(int), minlength=_OUTLIER_BINS + 1).tolist(),
        bin_width=width,
    )


def judge_points(predictions: Predictions, calibration: Calibration, estimator: Estimator) -> list[OperatingPoint]:
    return operating_points(calibration.thresholds, predictions, estimator)


def _confidence(predictions: Predictions, temperature: float, estimator: Estimator) -> Confidence:
    at = replace(predictions, temperature=temperature)
    estimated = estimator(MetricComputer.of(at).calibration)
    return Confidence(
        ece=estimated.of("ece"),
        brier=estimated.of("brier"),
        log_loss=estimated.of("log_loss"),
        class_ece={name: estimated.of("class_ece", k) for k, name in enumerate(predictions.class_names)},
        reliability=reliability(at.probs[np.arange(len(at)), at.predicted], at.predicted == at.targets, estimator),
    )
