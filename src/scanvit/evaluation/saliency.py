"""Which images a report explains, their maps, and whether these maps are of the network at all."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .inference import Progress

if TYPE_CHECKING:
    from ..model.checkpoint import Classifier
    from .explain import Method
    from .predictions import Predictions

MOST_ERRORS, MOST_RIGHT, MOST_OCCLUDED = 18, 6, 4
CHANGED_BELOW = 0.5
"""Rank correlation with the maps of random weights from which on a map says more of the image than of the network."""
LIMIT_S = 60.0
"""After which no further image is explained: of a large network on a CPU, occlusion alone takes seconds an image."""
_AT_ONCE = 4
_CHECKED = 8


@dataclass(frozen=True, eq=False, kw_only=True)
class Case:
    """An image of the split, and where the network looked when it gave its answer."""

    row: int
    is_right: bool
    maps: dict[Method, npt.NDArray[np.float32]] = field(default_factory=dict)
    """{method: (h, w), 0..1}, of the class that it was given; empty where the time was up."""


@dataclass(frozen=True, kw_only=True)
class SanityCheck:
    """Adebayo et al. 2018: other weights, another map."""

    method: str
    correlation: float
    """Mean rank correlation (Spearman) of the maps with those of a network of random weights."""
    images: int
    is_changed: bool


@dataclass(frozen=True, kw_only=True)
class Saliency:
    explained: int
    left_out: int
    """Cases without maps, because ``LIMIT_S`` was over."""
    checks: list[SanityCheck]


def choose_cases(predictions: Predictions) -> list[Case]:
    """The most confident wrong answers, then of each class the most confident right one, the commonest classes first."""
    certainty = predictions.probs[np.arange(len(predictions)), predictions.predicted]
    right = predictions.predicted == predictions.targets
    wrong = np.flatnonzero(~right)
    rows = wrong[np.argsort(-certainty[wrong], kind="stable")][:MOST_ERRORS].tolist()
    cases = [Case(row=row, is_right=False) for row in rows]
    counts = np.bincount(predictions.targets, minlength=len(predictions.class_names))
    for k in np.argsort(-counts, kind="stable"):
        own = np.flatnonzero(right & (predictions.targets == k))
        if len(own) and len(cases) < len(rows) + MOST_RIGHT:
            cases.append(Case(row=int(own[certainty[own].argmax()]), is_right=True))
    return cases


def explain_cases(
    model: Classifier, images: npt.NDArray[np.uint8], predictions: Predictions, *, limit_s: float = LIMIT_S, progress: Progress | None = None
) -> tuple[list[Case], Saliency]:
    """Rollout and relevance of every case, occlusion of a few of both kinds, and the check with random weights. ``images``: of the split."""
    from .explain import explain

    model, until_s = model.cpu(), time.monotonic() + limit_s
    cases, random = choose_cases(predictions), _with_random_weights(model)
    called = [int(predictions.predicted[case.row]) for case in cases]
    work, done, total = list(_work(cases)), 0, 0
    total = sum(len(numbers) for _, numbers in work)
    theirs: dict[Method, list[float]] = {}
    for method, numbers in work:
        if time.monotonic() > until_s:
            break
        pixels, classes = np.stack([images[cases[i].row] for i in numbers]), [called[i] for i in numbers]
        maps = explain(model, pixels, classes, method=method)
        for i, values in zip(numbers, maps, strict=True):
            cases[i].maps[method] = values
        correlations = theirs.setdefault(method, [])
        if len(correlations) < _CHECKED:
            correlations += map(_rank_correlation, maps, explain(random, pixels, classes, method=method))
        done += len(numbers)
        if progress:
            progress(done, total)
    checks = []
    for method, correlations in theirs.items():
        mean = float(np.mean(correlations))
        checks.append(SanityCheck(method=method, correlation=mean, images=len(correlations), is_changed=mean < CHANGED_BELOW))
    explained = sum(bool(case.maps) for case in cases)
    return cases, Saliency(explained=explained, left_out=len(cases) - explained, checks=checks)


def _work(cases: Sequence[Case]) -> Iterator[tuple[Method, list[int]]]:
    """What to do, what matters most first: some images at a time."""
    numbers = list(range(len(cases)))
    right = [i for i in numbers if cases[i].is_right]
    few = [i for i in numbers if not cases[i].is_right][: MOST_OCCLUDED // 2]
    few += right[: MOST_OCCLUDED - len(few)]
    methods: tuple[tuple[Method, list[int]], ...] = (("relevance", numbers), ("rollout", numbers), ("occlusion", few))
    for method, chosen in methods:
        for start in range(0, len(chosen), _AT_ONCE):
            yield method, chosen[start : start + _AT_ONCE]


def _with_random_weights(model: Classifier) -> Classifier:
    import torch

    from ..model.vit import VisionTransformer

    trained: VisionTransformer = model.network
    channels, side, _ = trained.image_shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = VisionTransformer(trained.config, num_classes=trained.num_classes, image_size_px=side, channels=channels)
    other: Any = copy(model)
    other._modules = dict(model._modules)
    other.network = network.eval()
    return other


def _rank_correlation(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """0 where one of the maps is the same everywhere: it follows nothing."""
    from scipy.stats import rankdata

    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])
