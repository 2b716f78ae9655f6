"""PyTorch, for runs, checkpoints and safetensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .calibrate import read_calibration
from .engine import Answers, Pixels
from .inference import batch_size, infer
from .outliers import OutlierDetector
from .predictions import softmax

if TYPE_CHECKING:
    from ..model.checkpoint import Classifier
    from .explain import Maps


class TorchEngine:
    name = "PyTorch"
    explained_by = "relevance"
    callers = 1

    def __init__(self, model: Classifier) -> None:
        self.model = model
        self.class_names, self.contract, self.record = model.class_names, model.contract, model.record()
        self.calibration = read_calibration(model.calibration)
        self.batch = batch_size(self.contract.shape, passes=model.inference.passes)
        self._outliers: OutlierDetector | None = self.calibration.outliers if self.calibration else None

    def __call__(self, pixels: Pixels) -> Answers:
        logits, traits = infer(self.model, pixels)
        scores = self._outliers.score(traits) if self._outliers else None
        return Answers(logits, softmax(logits, self.model.temperature), scores)

    def explain(self, pixels: Pixels, classes: Sequence[int]) -> Maps:
        from .explain import explain

        return explain(self.model.cpu(), pixels, classes)
