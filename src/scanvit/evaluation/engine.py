"""What a network is asked through, whatever runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from ..core.contract import PixelContract
    from .calibrate import Calibration
    from .explain import Maps

Pixels = npt.NDArray[np.uint8]


class Answers(NamedTuple):
    """Of N images."""

    logits: npt.NDArray[np.float32]
    """(N, K)"""
    probs: npt.NDArray[np.float32]
    """(N, K), calibrated."""
    outlier_scores: npt.NDArray[np.float64] | None
    """(N,), above 1 is an outlier; None where the file cannot tell."""


class Engine(Protocol):
    """A trained network, ready to be asked."""

    name: str
    """Of what runs it."""
    class_names: list[str]
    contract: PixelContract
    record: dict[str, Any]
    """``Classifier.record``."""
    calibration: Calibration | None
    batch: int
    """Images that it likes best at a time."""
    callers: int
    """Threads that may ask it at the same time."""

    def __call__(self, pixels: Pixels) -> Answers:
        """(N, C, H, W), 0..255, of the contract's shape."""
        ...

    @property
    def explained_by(self) -> str:
        """The method of ``explain``."""
        ...

    def explain(self, pixels: Pixels, classes: Sequence[int]) -> Maps:
        """(N, h, w), 0..1: where in each image the class is read from (``evaluation.explain``)."""
        ...
