"""Sets of classes instead of one answer, that hold the truth as often as promised: split conformal prediction.

The promise (Vovk et al. 2005; Sadinle et al. 2019 for classes one by one) is about new patients like those of val, whatever the network:
of the images of each class, at least ``coverage`` get a set with that class in it, on average over the draw of val. Images of one patient
are alike, so with few patients the promise is looser than it sounds; the measured coverage on test stands beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class Conformal:
    coverage: float
    """What is promised."""
    thresholds: tuple[float, ...]
    """Of each class: it stands in the set from this probability on. 0 where val had too few of its images to promise anything less."""

    def sets(self, probs: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
        """(N, K) probabilities -> (N, K), whether the class is in the image's set. A set may be empty: nothing known looks like that image."""
        return probs >= np.array(self.thresholds)


def fit_conformal(probs: npt.NDArray[np.floating], targets: npt.NDArray[np.int64], *, coverage: float) -> Conformal:
    """Thresholds for each class alone, from val: the k-th smallest probability that its own images got, k = floor((n + 1) (1 - coverage)).

    With n images of a class below 1 / (1 - coverage) - 1 that is no image at all, and the class stands in every set.
    """
    thresholds = []
    for k in range(probs.shape[1]):
        own = np.sort(probs[targets == k, k])
        rank = int(np.floor((len(own) + 1) * (1 - coverage) + 1e-9))
        thresholds.append(float(own[rank - 1]) if rank else 0.0)
    return Conformal(coverage=coverage, thresholds=tuple(thresholds))
