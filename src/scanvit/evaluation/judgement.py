"""What is said about one image: the class, how sure, against which threshold, and whether to listen at all. Plain data for JSON, CSV and the web page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from .calibrate import Calibration
    from .engine import Engine

AGREES, DIFFERS, UNKNOWN = "agrees", "differs", "unknown class"


def judge(engine: Engine, probs: npt.NDArray[np.floating], outlier_score: float | None, *, first_reading: str | None = None) -> dict[str, Any]:
    """``probs``: (K,), calibrated. ``first_reading``: what somebody said before; the class's name.

    prediction, probability, probabilities ({class: 0..1}); where the network was calibrated, operating_points ({rule: {class: called or not}}),
    conformal_set (classes) and coverage; outlier_score (above 1 the image is unlike all that the network knows) and outlier; first_reading and
    agreement ("agrees", "differs", "unknown class").
    """
    names, best = engine.class_names, int(probs.argmax())
    values = probs.tolist()  # numbers of Python: for a few classes, many times as fast as an array's
    shares = [round(share, 6) for share in values]
    said: dict[str, Any] = {"prediction": names[best], "probability": shares[best], "probabilities": dict(zip(names, shares, strict=True))}
    if engine.calibration:
        said["operating_points"] = _operating_points(engine.calibration, dict(zip(names, values, strict=True)))
        said["conformal_set"] = [name for name, share, least in zip(names, values, engine.calibration.conformal.thresholds, strict=True) if share >= least]
        said["coverage"] = engine.calibration.conformal.coverage
    if outlier_score is not None:
        said |= {"outlier_score": round(outlier_score, 4), "outlier": outlier_score > 1}
    if first_reading is not None:
        agreement = UNKNOWN if first_reading not in names else AGREES if first_reading == names[best] else DIFFERS
        said |= {"first_reading": first_reading, "agreement": agreement}
    return said


def _operating_points(calibration: Calibration, probs: Mapping[str, float]) -> dict[str, dict[str, bool]]:
    """{"sensitivity 95 %": {class: whether its probability reaches the threshold that keeps that much on val}}."""
    points: dict[str, dict[str, bool]] = {}
    for threshold in calibration.thresholds:
        points.setdefault(threshold.title, {})[threshold.class_name] = probs[threshold.class_name] >= threshold.threshold
    return points
