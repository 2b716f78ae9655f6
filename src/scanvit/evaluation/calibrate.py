"""What has to be fitted on validation images before a network is used: temperature, thresholds, sets, and what is foreign to it.

It is kept in ``checkpoint.pth`` and goes into every export. Nothing here ever sees a test image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .calibration import fit_temperature
from .conformal import Conformal, fit_conformal
from .inference import Inference, infer
from .operating_points import TARGETS, Rule, choose_threshold
from .outliers import OutlierDetector
from .predictions import softmax

if TYPE_CHECKING:
    from ..data.pack import Pack
    from ..model.checkpoint import Classifier

COVERAGE = 0.9
"""Of the sets of classes."""
_MOST_IMAGES = 5_000
"""Training images that the outlier detector is fitted on, evenly over the split: more change nothing, and cost a pass."""


@dataclass(frozen=True, kw_only=True)
class Threshold:
    class_name: str
    rule: Rule
    target: float
    threshold: float
    """Of the calibrated probability."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Calibration:
    temperature: float
    """What logits are divided by. 1 where val has no image."""
    thresholds: tuple[Threshold, ...]
    """See ``operating_points``; of the classes that val holds."""
    conformal: Conformal
    outliers: OutlierDetector | None
    """None where train or val has too few images to tell."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "temperature": self.temperature,
            "thresholds": [asdict(threshold) for threshold in self.thresholds],
            "conformal": {"coverage": self.conformal.coverage, "thresholds": list(self.conformal.thresholds)},
            "outliers": self.outliers.to_dict() if self.outliers else None,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        conformal = Conformal(coverage=values["conformal"]["coverage"], thresholds=tuple(values["conformal"]["thresholds"]))
        outliers = OutlierDetector.from_dict(values["outliers"]) if values["outliers"] else None
        thresholds = tuple(Threshold(**threshold) for threshold in values["thresholds"])
        return cls(temperature=float(values["temperature"]), thresholds=thresholds, conformal=conformal, outliers=outliers)


def calibrate_checkpoint(path: Path, pack: Pack) -> None:
    """Fit on the pack that the network was trained on, and keep it in the file ``path``, whole or not at all."""
    from ..model.checkpoint import load_model, set_calibration

    set_calibration(path, calibrate(load_model(path), pack).to_dict())


def calibrate(model: Classifier, pack: Pack) -> Calibration:
    """From the train and val images of the pack that the network was trained on."""
    val, targets = infer(model, pack.images("val")), np.asarray(pack.targets("val"), np.int64)
    temperature = fit_temperature(val.logits, targets)
    probs = softmax(val.logits, temperature)
    thresholds = []
    for k, name in enumerate(model.class_names):
        for rule, target in TARGETS:
            if (threshold := choose_threshold(targets == k, probs[:, k], rule=rule, target=target)) is not None:
                thresholds.append(Threshold(class_name=name, rule=rule, target=target, threshold=threshold))
    return Calibration(
        temperature=temperature,
        thresholds=tuple(thresholds),
        conformal=fit_conformal(probs, targets, coverage=COVERAGE),
        outliers=_fit_outliers(model, pack, val),
    )


def _fit_outliers(model: Classifier, pack: Pack, val: Inference) -> OutlierDetector | None:
    targets = np.asarray(pack.targets("train"), np.int64)
    if len(targets) < 2 or len(val.features) < 2:
        return None
    step = max(1, -(-len(targets) // _MOST_IMAGES))
    train = infer(model, pack.images("train")[::step])
    return OutlierDetector.fit(train.features, targets[::step]).calibrated(val.features)
