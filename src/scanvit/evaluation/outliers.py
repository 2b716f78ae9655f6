"""How far an image lies from all that the network was trained on. A classifier always answers; this says when not to listen.

Two distances, since each is blind where the other sees: of the features that the head reads, to the nearest class (Lee et al. 2018, Mahalanobis
with one covariance for all classes), and of a thumbnail, to the plane through the training thumbnails' principal components. An image
counts as an outlier where either is larger than that of all but a hundredth of the validation images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .metrics import Array

ALARMS = 0.01
"""Share of validation images that each of the two distances may call outliers."""
_THUMBNAIL_PX = 16
_VARIANCE = 0.95
_MOST_IMAGES = 4000
"""Training thumbnails that the components are taken from, evenly over the split."""
_SHRINKAGE = 1e-3


@dataclass(frozen=True, eq=False, kw_only=True)
class OutlierDetector:
    """Fitted on training images; plain arrays, so that it travels in a checkpoint. D features, K classes, R components."""

    class_means: Array
    """(K, D); NaN for a class without an image."""
    precision: Array
    """(D, D), the inverse covariance within classes."""
    thumbnail_mean: Array
    """(256,)"""
    components: Array
    """(R, 256), rows of length 1."""
    feature_limit: float
    """The squared distance of features that counts as 1."""
    thumbnail_limit: float

    @classmethod
    def fit(cls, features: Array, targets: npt.NDArray[np.int64], pixels: npt.NDArray[np.uint8], *, classes: int) -> OutlierDetector:
        """On train: (N, D), (N,), (N, C, H, W). The limits are 1 until ``calibrated``."""
        means = np.full((classes, features.shape[1]), np.nan)
        for k in np.unique(targets):
            means[k] = features[targets == k].mean(axis=0, dtype=np.float64)
        covariance = np.cov((features - means[targets]).T.astype(np.float64), bias=True).reshape(features.shape[1], -1)
        covariance += _SHRINKAGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance)) + 1e-12 * np.eye(len(covariance))
        small = thumbnails(pixels[:: max(1, len(pixels) // _MOST_IMAGES)])
        mean = small.mean(axis=0)
        _, lengths, directions = np.linalg.svd(small - mean, full_matrices=False)
        explained = np.cumsum(lengths**2) / max(float((lengths**2).sum()), 1e-30)
        components = directions[: int(np.searchsorted(explained, _VARIANCE)) + 1]
        inverse = np.linalg.inv(covariance)
        return cls(class_means=means, precision=inverse, thumbnail_mean=mean, components=components, feature_limit=1.0, thumbnail_limit=1.0)

    def calibrated(self, features: Array, pixels: npt.NDArray[np.uint8]) -> OutlierDetector:
        """With limits from validation images that it was not fitted on."""
        limits = [max(float(np.quantile(d, 1 - ALARMS, method="higher")), 1e-12) for d in self._distances(features, pixels)]
        return OutlierDetector(**asdict(self) | {"feature_limit": limits[0], "thumbnail_limit": limits[1]})

    def score(self, features: Array, pixels: npt.NDArray[np.uint8]) -> Array:
        """(N,) from 0; above 1 is an outlier."""
        near, plain = self._distances(features, pixels)
        return np.sqrt(np.maximum(near / self.feature_limit, plain / self.thumbnail_limit))

    def _distances(self, features: Array, pixels: npt.NDArray[np.uint8]) -> tuple[Array, Array]:
        known = self.class_means[~np.isnan(self.class_means).any(axis=1)]
        gaps = features[:, None].astype(np.float64) - known
        near = np.einsum("nkd,de,nke->nk", gaps, self.precision, gaps, optimize=True).min(axis=1)
        small = thumbnails(pixels) - self.thumbnail_mean
        rest = small - (small @ self.components.T) @ self.components
        return near, (rest**2).sum(axis=1)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> OutlierDetector:
        limits: dict[str, Any] = {name: float(values[name]) for name in ("feature_limit", "thumbnail_limit")}
        arrays = {name: np.asarray(values[name], np.float64) for name in ("class_means", "precision", "thumbnail_mean", "components")}
        return cls(**arrays, **limits)


def thumbnails(pixels: npt.NDArray[np.uint8]) -> Array:
    """(N, C, H, W) -> (N, 256): gray, reduced by averaging, each with mean 0 and spread 1, so that exposure does not count. A blank image is 0."""
    import torch

    gray = torch.from_numpy(np.ascontiguousarray(pixels)).float().mean(dim=1, keepdim=True)
    small = torch.nn.functional.adaptive_avg_pool2d(gray, _THUMBNAIL_PX).flatten(1).double().numpy()
    small -= small.mean(axis=1, keepdims=True)
    spread = small.std(axis=1, keepdims=True)
    thumbs: Array = np.divide(small, spread, out=np.zeros_like(small), where=spread > 1e-9)
    return thumbs
