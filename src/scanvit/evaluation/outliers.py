"""How far an image lies from all that the network was trained on. A classifier always answers; this says when not to listen.

The distance is that of what the head reads, its features, to the nearest class (Lee et al. 2018: Mahalanobis, one covariance for all
classes). An image is an outlier where it lies farther out than all but a hundredth of the validation images. A second detector, on the
principal components of thumbnails, was tried and found nothing that this one did not (docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .metrics import Array

ALARMS = 0.01
"""Share of validation images that are called outliers."""
_SHRINKAGE = 1e-3


@dataclass(frozen=True, eq=False, kw_only=True)
class OutlierDetector:
    """Plain arrays, so that it travels in a checkpoint. K classes, D features."""

    class_means: Array
    """(K, D), without classes that training had no image of."""
    precision: Array
    """(D, D), the inverse of the covariance within classes."""
    limit: float
    """The distance that counts as 1."""

    @classmethod
    def fit(cls, features: npt.NDArray[np.floating], targets: npt.NDArray[np.int64]) -> OutlierDetector:
        """On training images, (N, D) and (N,). The limit is 1 until ``calibrated``."""
        present, index = np.unique(targets, return_inverse=True)
        means = np.stack([features[index == k].mean(axis=0, dtype=np.float64) for k in range(len(present))])
        spread = (features - means[index]).astype(np.float64)
        covariance = spread.T @ spread / len(spread)
        # A direction in which training images do not differ at all has no inverse.
        covariance += (_SHRINKAGE * np.trace(covariance) / len(covariance) + 1e-12) * np.eye(len(covariance))
        return cls(class_means=means, precision=np.linalg.inv(covariance), limit=1.0)

    def calibrated(self, features: npt.NDArray[np.floating]) -> OutlierDetector:
        """With a limit from validation images, which it was not fitted on."""
        return self.limited_to(self.score(features))

    def limited_to(self, scores: npt.NDArray[np.floating]) -> OutlierDetector:
        """With the limit that calls ``ALARMS`` of these images outliers; (N,), scored with the present one."""
        limit = float(np.quantile(scores, 1 - ALARMS, method="higher"))
        return replace(self, limit=max(limit * self.limit, 1e-12))

    def score(self, features: npt.NDArray[np.floating]) -> Array:
        """(N, D) -> (N,) from 0; above 1 is an outlier."""
        gaps = features[:, None].astype(np.float64) - self.class_means
        squared = np.einsum("nkd,de,nke->nk", gaps, self.precision, gaps, optimize=True).min(axis=1)
        distances: Array = np.sqrt(squared.clip(min=0)) / self.limit
        return distances

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        return {"class_means": self.class_means.tolist(), "precision": self.precision.tolist(), "limit": self.limit}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> OutlierDetector:
        means, precision = (np.asarray(values[name], np.float64) for name in ("class_means", "precision"))
        return cls(class_means=means, precision=precision, limit=float(values["limit"]))
