"""Confidence intervals by resampling patients (Efron and Tibshirani 1993, chapters 6 and 14).

Patients are drawn with replacement, each with all their images: images of one patient are alike, and counting them as independent gives
intervals that are too narrow. The interval is BCa: the percentiles are shifted for the bias of the draws and for how the figure's
spread changes with its value, which matters for shares near 0 or 1 and for small splits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .metrics import Array

LEVEL = 0.95
METHOD = "BCa bootstrap over patients"
Figures = Callable[[Array], dict[str, Array]]
"""Weights (N, D) of images to {name: (D,) or (D, K)}; NaN where a weighting leaves a figure undefined."""

_CHUNK = 2**19  # weights held at a time: 4 MB, about a core's cache
_JACKKNIFE_GROUPS = 400
"""With more patients, random groups of them are left out in turn: skewness over groups estimates the same acceleration, at a bounded cost."""
SAME = 1e-12
"""Draws nearer than this to the figure count as equal to it: sums in another order."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Resampled:
    """What an interval is made of, for every figure: (B,) or (B, K)."""

    draws: dict[str, Array]
    left_out: dict[str, Array]
    """The figure without each patient, or group of patients, in turn."""


def patient_index(patient_ids: list[str]) -> tuple[npt.NDArray[np.int64], int]:
    """(N,) numbers of the patients, and how many there are."""
    names, index = np.unique(np.array(patient_ids, dtype=object), return_inverse=True)
    return index.astype(np.int64), len(names)


def resamples(patients: int, *, draws: int, seed: int, at_once: int) -> Iterator[Array]:
    """How often each patient was drawn: (patients, up to ``at_once``) a time, ``draws`` columns in all. Each column sums to ``patients``."""
    random = np.random.default_rng(seed)
    for start in range(0, draws, at_once):
        columns = min(at_once, draws - start)
        drawn = random.integers(patients, size=(columns, patients)) + patients * np.arange(columns)[:, None]
        yield np.bincount(drawn.ravel(), minlength=columns * patients).reshape(columns, patients).T.astype(np.float64)


def leave_out(patients: int, *, seed: int, at_once: int) -> Iterator[Array]:
    """Weights (patients, up to ``at_once``) that leave out one patient, or one of ``_JACKKNIFE_GROUPS`` random groups, in turn."""
    groups = min(patients, _JACKKNIFE_GROUPS)
    group = np.random.default_rng([seed, 1]).permutation(patients) % groups
    for start in range(0, groups, at_once):
        yield (group[:, None] != np.arange(start, min(start + at_once, groups))).astype(np.float64)


def bootstrap(figures: Figures, index: npt.NDArray[np.int64], patients: int, *, draws: int, seed: int) -> Resampled:
    """``index`` (N,): the patient of each image. The same seed draws the same patients, whatever the figures."""
    at_once = max(1, _CHUNK // max(len(index), 1))

    def compute(weightings: Iterator[Array]) -> dict[str, Array]:
        parts = [figures(weights[index]) for weights in weightings]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    return Resampled(
        draws=compute(resamples(patients, draws=draws, seed=seed, at_once=at_once)),
        left_out=compute(leave_out(patients, seed=seed, at_once=at_once)),
    )


def bca_interval(value: float, draws: Array, left_out: Array, *, level: float = LEVEL) -> tuple[float, float] | None:
    """The BCa interval of a figure: Efron 1987, "Better bootstrap confidence intervals", section 3.

    Undefined draws are left out; None where they are more than half. Quantiles by linear interpolation.
    """
    from scipy.special import ndtr, ndtri

    defined = draws[~np.isnan(draws)]
    if not len(defined) or 2 * len(defined) < len(draws):
        return None
    below = (defined < value - SAME).sum() + (np.abs(defined - value) <= SAME).sum() / 2
    # Where all draws lie on one side, as far out as this many draws can tell.
    bias = ndtri(np.clip(below / len(defined), 1 / (2 * len(defined)), 1 - 1 / (2 * len(defined))))
    tails = ndtri([(1 - level) / 2, (1 + level) / 2])
    shares = ndtr(bias + (bias + tails) / np.maximum(1 - _acceleration(left_out) * (bias + tails), 1e-3))
    low, high = np.quantile(defined, shares)
    return float(low), float(high)


def _acceleration(left_out: Array) -> float:
    """Efron and Tibshirani 1993, formula 14.15. 0 where the figure does not vary, or is mostly undefined."""
    defined = left_out[~np.isnan(left_out)]
    if 2 * len(defined) < len(left_out):
        return 0.0
    influence = defined.mean() - defined
    spread = float((influence**2).sum()) ** 1.5
    return float((influence**3).sum()) / (6 * spread) if spread > 1e-30 else 0.0
