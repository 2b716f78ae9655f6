"""Which engine a network is asked through: PyTorch for runs, checkpoints and safetensors, ONNX Runtime for exported .onnx files."""

from __future__ import annotations

from pathlib import Path

from ..core.errors import CheckpointError
from .calibrate import is_current
from .engine import Engine


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
    from .torch_engine import TorchEngine

    if threads:
        torch.set_num_threads(threads)
    return TorchEngine(load_model(run_or_file))


def note_on_calibration(engine: Engine) -> str | None:
    """What its user has to be told where what was fitted on val is outdated."""
    if engine.calibration is None or is_current(engine.record["calibration"]):
        return None
    return "What was fitted on val is of an earlier version of scanvit: evaluate the run, or export it again, to have it fitted anew."
