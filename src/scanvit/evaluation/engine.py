"""A network to ask, whatever runs it: PyTorch for runs, checkpoints and safetensors, ONNX Runtime for exported .onnx files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ..core.errors import CheckpointError
from .calibrate import Calibration
from .inference import batch_size, infer
from .outliers import OutlierDetector
from .predictions import softmax

if TYPE_CHECKING:
    from ..core.contract import PixelContract
    from ..model.checkpoint import Classifier
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


def open_engine(run_or_file: Path | str, *, threads: int | None = None, callers: int = 1) -> Engine:
    """For a run folder, a checkpoint.pth, an address of MLflow, or what ``scanvit export`` wrote as .onnx or .safetensors.

    ``threads``: of the computation; left out, what the engine chooses. ``callers``: threads that will ask it at the same time, where it can be asked so
    (``Engine.callers``): they do the computation themselves, which for many images is the faster way.

    Raises RunMissingError, CheckpointError, and ConfigError where the engine is not installed.
    """
    suffix = Path(run_or_file).suffix
    if suffix == ".pt2":
        raise CheckpointError(
            f"{run_or_file} is a program for torch.export.load, which may run code of its author: scanvit does not open it.",
            hint="Give the run, or export it as onnx or safetensors.",
        )
    if suffix == ".onnx":
        from .onnx_engine import OnnxEngine

        return OnnxEngine(Path(run_or_file), threads=threads, callers=callers)

    import torch

    from ..model.checkpoint import load_model

    if threads:
        torch.set_num_threads(threads)
    return TorchEngine(load_model(run_or_file))


def read_calibration(values: dict[str, Any]) -> Calibration | None:
    """Of a checkpoint or an export; None where nothing was fitted. Raises CheckpointError."""
    if not values:
        return None
    try:
        return Calibration.from_dict(values)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError("The file's calibration is damaged.", hint="Evaluate the run again, or export it again.") from None
