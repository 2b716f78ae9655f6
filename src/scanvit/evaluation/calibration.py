"""Are 90 % sure answers right nine times in ten? Reliability diagrams, and the temperature that makes it so.

Expected calibration errors and the Brier score are figures like the others (``metrics``), with the same bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .estimates import Estimate, Estimator
from .metrics import CALIBRATION_BINS, Array, calibration_bins, ratio

_TEMPERATURES = (0.05, 20.0)


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Images whose probability lies in one of the bins of ``metrics.calibration_bins``."""

    images: int
    probability: float
    """Their mean."""
    share: Estimate
    """Of them, those that are what the probability is of."""


def fit_temperature(logits: npt.NDArray[np.floating], targets: npt.NDArray[np.int64]) -> float:
    """The T that gives softmax(logits / T) the lowest log loss: Guo et al. 2017, section 4.2. (N, K), (N,). It changes no answer.

    Against targets that keep 1 / (N + 2) for the other classes, alike (Platt 1999, section 2.2, for two classes): N images that are all named rightly
    do not say that the next one will be, and against hard targets would make every answer as sure as the bounds allow. Fitted on val, never on
    the images that are judged. 1 where there is nothing to fit on. Within 0.05 .. 20.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    n, classes = logits.shape
    if not n or classes < 2:
        return 1.0
    values, doubt = logits.astype(np.float64), 1 / (n + 2)
    truth = values[np.arange(n), targets]
    expected = (1 - doubt) * truth + doubt * (values.sum(axis=1) - truth) / (classes - 1)

    def loss(log_beta: float) -> float:
        beta = np.exp(log_beta)
        return float((logsumexp(beta * values, axis=1) - beta * expected).mean())

    low, high = np.log(1 / np.array(_TEMPERATURES[::-1]))
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(-found.x)) if found.fun < loss(0.0) else 1.0


def reliability(probs: npt.NDArray[np.floating], right: npt.NDArray[np.bool_], estimator: Estimator) -> list[ReliabilityBin]:
    """A reliability diagram's bins that hold images, from low to high. ``right``: whether an image is what its probability is of. (N,) each."""
    bins = calibration_bins(probs)
    member = bins[:, None] == np.arange(CALIBRATION_BINS)

    def shares(weights: Array) -> dict[str, Array]:
        held, hits = (weights.T @ flags.astype(np.float64) for flags in (member, member & right[:, None]))
        return {"share": ratio(hits, held)}

    estimated = estimator(shares)
    return [
        ReliabilityBin(
            images=int(member[:, k].sum()),
            probability=float(probs[member[:, k]].mean(dtype=np.float64)),
            share=estimated.of("share", int(k), patients=estimator.patients_of(member[:, k]), is_share=True),
        )
        for k in np.unique(bins)
    ]
