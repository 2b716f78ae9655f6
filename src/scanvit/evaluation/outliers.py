"""How far an image lies from all that the network was trained on. A classifier always answers; this says when not to listen.

The distance is that to the nearest class (Lee et al. 2018: Mahalanobis, one covariance for all classes), of the traits that the stem sees: how
strong each of its filters answers on average, and how much that varies over the image. An image is an outlier where it lies farther out than all but
a hundredth of the validation images. What the head reads was used before: a network that is well trained keeps nothing there but what tells its
classes apart, and took noise and photographs for one of them (docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

ALARMS = 0.01
"""Share of validation images that are called outliers."""
_SHRINKAGE, _LEAST = 1e-3, 1e-6
"""Added to each trait's variance: a share of its own, and of all traits' mean."""


@dataclass(frozen=True, eq=False, kw_only=True)
class OutlierDetector:
    """Plain arrays, so that it travels in a checkpoint. K classes, T traits."""

    class_means: npt.NDArray[np.float64]
    """(K, T), without classes that training had no image of."""
    precision: npt.NDArray[np.float64]
    """(T, T), the inverse of the covariance within classes."""
    limit: float
    """The distance that counts as 1."""

    @classmethod
    def fit(cls, traits: npt.NDArray[np.floating], targets: npt.NDArray[np.int64]) -> OutlierDetector:
        """On training images, (N, T) and (N,). The limit is 1 until ``calibrated``."""
        present, index = np.unique(targets, return_inverse=True)
        means = np.stack([traits[index == k].mean(axis=0, dtype=np.float64) for k in range(len(present))])
        spread = (traits - means[index]).astype(np.float64)
        covariance = spread.T @ spread / len(spread)
        # Each trait has a scale of its own; a direction in which training images do not differ at all has no inverse.
        variances = np.diag(covariance)
        covariance += np.diag(_SHRINKAGE * variances + _LEAST * variances.mean() + 1e-12)
        return cls(class_means=means, precision=np.linalg.inv(covariance), limit=1.0)

    def calibrated(self, traits: npt.NDArray[np.floating]) -> OutlierDetector:
        """With a limit from validation images, which it was not fitted on."""
        return self.limited_to(self.score(traits))

    def limited_to(self, scores: npt.NDArray[np.floating]) -> OutlierDetector:
        """With the limit that calls ``ALARMS`` of these images outliers; (N,), scored with the present one."""
        limit = float(np.quantile(scores, 1 - ALARMS, method="higher"))
        return replace(self, limit=max(limit * self.limit, 1e-12))

    def score(self, traits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """(N, T) -> (N,) from 0; above 1 is an outlier."""
        gaps = traits[:, None].astype(np.float64) - self.class_means
        squared = np.einsum("nkd,de,nke->nk", gaps, self.precision, gaps, optimize=True).min(axis=1)
        distances: npt.NDArray[np.float64] = np.sqrt(squared.clip(min=0)) / self.limit
        return distances

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        return {"class_means": self.class_means.tolist(), "precision": self.precision.tolist(), "limit": self.limit}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> OutlierDetector:
        means, precision = (np.asarray(values[name], np.float64) for name in ("class_means", "precision"))
        return cls(class_means=means, precision=precision, limit=float(values["limit"]))
