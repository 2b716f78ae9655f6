"""What is left of the accuracy when the part of the image that should matter is covered: the audit's border probe, on the trained network.

A network that still names the class where it can only see the border has learned markers, collimation or the source: accuracy there is
proof that such a trace exists. That it falls is no proof of the opposite, as a covered image is foreign to the network (Maguolo and Nanni 2021
train on covered films; here nothing is trained).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .estimates import FEWEST_PATIENTS, Estimate, Estimator
from .inference import Progress, infer
from .metrics import Array, ratio

if TYPE_CHECKING:
    from ..model.checkpoint import Classifier
    from .predictions import Predictions

MOST_IMAGES = 2_000
"""Judged at the most, evenly over the split: the intervals are narrow enough, and each view costs a pass."""
_FRAME = 1 / 8
"""Width of the border, of the side: the audit's (data.audit.confounding), 44 % of the area."""
_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True)
class View:
    """What the network was shown of each image; the rest lay under the image's own mean."""

    name: str
    """whole, centre_covered, border_only or centre_only."""
    shown: float
    """Share of the area."""
    accuracy: Estimate
    balanced_accuracy: Estimate


@dataclass(frozen=True, kw_only=True)
class Masking:
    images: int
    commonest: float
    """Share of the commonest class among them: what always naming it gets."""
    classes: list[str]
    """Those of which the balanced accuracy is the mean: with five patients or more, or all where none has."""
    chance: float
    """Balanced accuracy of an answer that does not look at the image: at most one in the number of classes."""
    views: list[View]
    gives_away: bool
    """Is the balanced accuracy on borders alone above chance, with its whole interval?"""


def shown_parts(side: int) -> dict[str, npt.NDArray[np.bool_]]:
    """{view: (side, side), True where the image is shown}."""
    edge, quarter = round(side * _FRAME), round(side / 4)
    inner, core = np.zeros((2, side, side), bool)
    inner[edge : side - edge, edge : side - edge] = True
    core[quarter : side - quarter, quarter : side - quarter] = True
    return {"whole": np.ones((side, side), bool), "centre_covered": ~core, "border_only": ~inner, "centre_only": inner}


def cover(pixels: npt.NDArray[np.uint8], shown: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """(N, C, H, W), with the mean of each image and channel where (H, W) is not shown: nothing darker or brighter than the rest appears."""
    means = pixels.mean(axis=(2, 3), keepdims=True).round().astype(np.uint8)
    return np.where(shown, pixels, means)


def judge_masked(
    model: Classifier, images: npt.NDArray[np.uint8], predictions: Predictions, *, draws: int, seed: int, progress: Progress | None = None
) -> Masking:
    """``images`` (N, C, H, W), as in the table of their predictions."""
    step = -(-len(predictions) // MOST_IMAGES)
    judged = predictions.take(range(0, len(predictions), step))
    parts, n = shown_parts(images.shape[-1]), len(judged)
    right = {"whole": judged.predicted == judged.targets}
    for number, name in enumerate(list(parts)[1:]):
        answers = []
        for start in range(0, n, _AT_ONCE):
            pixels = np.array(images[start * step : (start + _AT_ONCE) * step : step])
            answers.append(infer(model, cover(pixels, parts[name])).logits.argmax(axis=1))
            if progress:
                progress(number * n + min(start + _AT_ONCE, n), (len(parts) - 1) * n)
        right[name] = np.concatenate(answers) == judged.targets
    return _estimate(judged, parts, right, Estimator(judged.patient_ids, draws=draws, seed=seed))


def _estimate(judged: Predictions, parts: dict[str, npt.NDArray[np.bool_]], right: dict[str, npt.NDArray[np.bool_]], estimator: Estimator) -> Masking:
    counts = np.bincount(judged.targets, minlength=len(judged.class_names))
    present = np.flatnonzero(counts)
    behind = {k: estimator.patients_of(judged.targets == k) for k in present}
    # Others would leave it undefined in many resamples.
    counted = [k for k in present if behind[k] >= FEWEST_PATIENTS] or list(present)
    fewest = min(behind[k] for k in counted)
    of_class = (judged.targets[:, None] == np.array(counted)).astype(np.float64)  # (N, classes)
    answers = np.stack([right[name] for name in parts], axis=1).astype(np.float64)
    hits = np.stack([of_class * right[name][:, None] for name in parts], axis=1).reshape(len(judged), -1)

    def figures(weights: Array) -> dict[str, Array]:
        actual = weights.T @ of_class
        found = (weights.T @ hits).reshape(weights.shape[1], len(parts), len(counted))
        recall = ratio(found, actual[:, None])
        return {"accuracy": weights.T @ answers / weights.sum(axis=0)[:, None], "balanced_accuracy": recall.mean(axis=2)}

    estimated = estimator(figures)
    views = [
        View(
            name=name,
            shown=float(shown.mean()),
            accuracy=estimated.of("accuracy", k, is_share=True),
            balanced_accuracy=estimated.of("balanced_accuracy", k, patients=fewest, of_class=True),
        )
        for k, (name, shown) in enumerate(parts.items())
    ]
    border, chance = next(view.balanced_accuracy for view in views if view.name == "border_only"), 1 / len(counted)
    return Masking(
        images=len(judged),
        commonest=float(counts.max() / len(judged)),
        classes=[judged.class_names[k] for k in counted],
        chance=chance,
        views=views,
        gives_away=len(counted) > 1 and border.low is not None and border.low > chance,
    )
