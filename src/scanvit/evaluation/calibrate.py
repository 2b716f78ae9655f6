"""What has to be fitted on validation images before a network is used: temperature, thresholds, sets, and what is foreign to it.

It is kept in ``checkpoint.pth`` and goes into every export. Nothing here ever sees a test image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..core.errors import CheckpointError
from .calibration import fit_temperature
from .conformal import Conformal, fit_conformal
from .inference import Progress, infer, infer_traits
from .operating_points import Threshold, choose_thresholds
from .outliers import OutlierDetector
from .predictions import softmax
from .selective import confidences_for

if TYPE_CHECKING:
    from ..data.pack import Pack
    from ..model.checkpoint import Classifier

FORMAT = 4
"""Of the record in a checkpoint; since 4 the temperature is fitted against targets with doubt. A record of another format, of an earlier version, is
fitted again (``is_current``)."""
COVERAGE = 0.9
"""Of the sets of classes."""
_MOST_IMAGES = 5_000
"""Training images that the outlier detector is fitted on, evenly over the split: more change nothing, and cost a pass."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Calibration:
    temperature: float
    """What logits are divided by. 1 where val has no image."""
    thresholds: tuple[Threshold, ...]
    """See ``operating_points``; of the classes that val holds."""
    conformal: Conformal
    outliers: OutlierDetector | None
    """None where train or val has too few images to tell."""
    images: int = 0
    """Of val, on which all of it was fitted."""
    confidences: tuple[float, ...] = ()
    """The lowest one still answered, for each of ``selective.COVERAGES``. Empty in records of an earlier version."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "format": FORMAT,
            "images": self.images,
            "temperature": self.temperature,
            "thresholds": [asdict(threshold) for threshold in self.thresholds],
            "confidences": list(self.confidences),
            "conformal": {"coverage": self.conformal.coverage, "thresholds": list(self.conformal.thresholds)},
            "outlier_detector": self.outliers.to_dict() if self.outliers else None,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Of a record of this version or an earlier one, which holds less (``is_current``)."""
        thresholds = tuple(Threshold(**threshold) for threshold in values["thresholds"])
        told = values.get("outlier_detector")
        return cls(
            images=int(values.get("images", 0)),
            temperature=float(values["temperature"]),
            thresholds=thresholds,
            confidences=tuple(values.get("confidences", ())),
            conformal=Conformal(coverage=values["conformal"]["coverage"], thresholds=tuple(values["conformal"]["thresholds"])),
            outliers=OutlierDetector.from_dict(told) if told else None,
        )


def is_current(record: Mapping[str, Any]) -> bool:
    """Does a checkpoint's record hold all that this version fits? Not where a run was stopped before its end, or an earlier version made it."""
    return record.get("format") == FORMAT


def calibrate_checkpoint(path: Path, pack: Pack, *, progress: Progress | None = None) -> None:
    """Fit on the pack that the network was trained on, and keep it in the file ``path``, whole or not at all."""
    from ..model.checkpoint import load_model, set_calibration

    set_calibration(path, calibrate(load_model(path), pack, progress=progress).to_dict())


def calibrate(model: Classifier, pack: Pack, *, progress: Progress | None = None) -> Calibration:
    """From the train and val images of the pack that the network was trained on."""
    targets, images = np.asarray(pack.targets("train"), np.int64), pack.images("val")
    known = slice(None, None, max(1, -(-len(targets) // _MOST_IMAGES)))
    tell = progress or (lambda done, n: None)
    has_enough = len(targets) > 1 and len(images) > 1
    n = len(images) + (len(targets[known]) if has_enough else 0)
    tell(0, n)
    val = infer(model, images, progress=lambda done, _: tell(done, n))
    outliers = None
    if has_enough:
        traits = infer_traits(model, pack.images("train")[known], progress=lambda done, _: tell(len(images) + done, n))
        outliers = OutlierDetector.fit(traits, targets[known]).calibrated(val.traits)
    return fit_on(val.logits, np.asarray(pack.targets("val"), np.int64), model.class_names, outliers=outliers)


def fit_on(logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int64], class_names: list[str], *, outliers: OutlierDetector | None) -> Calibration:
    """From what a network says of val: (N, K) and (N,)."""
    temperature = fit_temperature(logits, targets)
    probs = softmax(logits, temperature)
    return Calibration(
        images=len(targets),
        temperature=temperature,
        thresholds=tuple(choose_thresholds(probs, targets, class_names)),
        confidences=confidences_for(probs),
        conformal=fit_conformal(probs, targets, coverage=COVERAGE),
        outliers=outliers,
    )


def read_calibration(values: dict[str, Any]) -> Calibration | None:
    """Of a checkpoint or an export; None where nothing was fitted. Raises CheckpointError."""
    if not values:
        return None
    try:
        return Calibration.from_dict(values)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError("The file's calibration is damaged.", hint="Evaluate the run again, or export it again.") from None
