"""Confidence intervals by resampling patients (Efron and Tibshirani 1993, chapters 6 and 13).

Patients are drawn with replacement, each with all their images: images of one patient are alike, and counting them as independent gives
intervals that are too narrow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import numpy.typing as npt

from .metrics import Array, MetricComputer

LEVEL = 0.95
METHOD = "percentile bootstrap over patients"
_CHUNK = 2**19  # weights held at a time: 4 MB, about a core's cache


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


def bootstrap(computer: MetricComputer, index: npt.NDArray[np.int64], patients: int, *, draws: int, seed: int) -> dict[str, Array]:
    """{name of a figure: (draws,) or (draws, K)}; NaN where a draw leaves the figure undefined."""
    at_once = max(1, _CHUNK // max(len(index), 1))
    parts = [asdict(computer(weights[index])) for weights in resamples(patients, draws=draws, seed=seed, at_once=at_once)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def percentile_interval(values: Array) -> tuple[float, float] | None:
    """The middle 95 % of the defined draws (linear interpolation). None where fewer than half of the draws are defined."""
    defined = values[~np.isnan(values)]
    if not len(defined) or 2 * len(defined) < len(values):
        return None
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
