"""ONNX Runtime on a file that ``scanvit export`` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.contract import PixelContract
from ..core.errors import CheckpointError, ScanvitError
from ..core.loading import inference_of
from ..core.runtime import usable_cores
from .calibrate import read_calibration
from .engine import Answers, Pixels
from .inference import images_within
from .onnx_record import FORMAT, INPUT, OUTPUTS, read_metadata, require

if TYPE_CHECKING:
    from .explain import Maps

_HINT = "Write it again: scanvit export RUN --format onnx"
_BATCH_PX = {"cpu": 2**14, "gpu": 2**22}
"""Pixels in a batch. What a core works on should stay in its cache: the reference network at 64 px reads a third more images/s by 4 than by 64."""
_MOST_CALLERS = {"cpu": 256, "gpu": 2}
"""A GPU computes for one at a time; the other's images are on their way meanwhile."""
_FIELDS = {"class_names": list, "contract": dict, "fingerprint": str, "audit": list, "calibration": dict}


class OnnxEngine:
    explained_by = "occlusion"
    """The only one of the methods that asks nothing of the network but answers."""

    def __init__(self, path: Path, *, threads: int | None = None, callers: int = 1) -> None:
        """``threads`` are shared out among ``callers``, threads that ask at the same time.

        Raises CheckpointError for a file that cannot be used, ConfigError where onnxruntime is not installed.
        """
        require("onnxruntime")
        if not path.is_file():
            raise CheckpointError(f"There is no file {path}.", hint="Check the path.")
        self.path = path
        threads, providers = threads or usable_cores(), _providers()
        device = "cpu" if providers[0] == "CPUExecutionProvider" else "gpu"
        self.callers = min(callers, threads, _MOST_CALLERS[device])
        self.session = _session(path, threads // self.callers, providers)
        try:
            self.record = _record(self.session.get_modelmeta().custom_metadata_map)
            self.contract = PixelContract.from_dict(self.record["contract"])
            self.calibration, passes = read_calibration(self.record["calibration"]), inference_of(self.record).passes
        except (ScanvitError, ValueError, TypeError, RecursionError) as error:
            message = error.message if isinstance(error, ScanvitError) else "its metadata is damaged."
            raise CheckpointError(f"{path}: {message}", hint=_HINT) from None
        self.class_names: list[str] = self.record["class_names"]
        self._check_graph()
        quantize = self.record.get("export", {}).get("quantize")
        self.name = "ONNX Runtime" + (f", {quantize}" if quantize else "")
        self.batch = images_within(_BATCH_PX[device], self.contract.shape, passes=passes)

    def __call__(self, pixels: Pixels) -> Answers:
        parts = [self._run(pixels[start : start + self.batch]) for start in range(0, len(pixels), self.batch)]
        logits, probs, *scores = (np.concatenate(part) for part in zip(*parts, strict=True))
        return Answers(logits, probs, scores[0].astype(np.float64) if scores else None)

    def explain(self, pixels: Pixels, classes: Sequence[int]) -> Maps:
        from .explain import occlusion

        return occlusion(lambda images: self(images).logits, pixels, classes)

    def _run(self, pixels: Pixels) -> list[np.ndarray]:
        answers: list[np.ndarray] = self.session.run(None, {INPUT: np.ascontiguousarray(pixels)})
        return answers

    def _check_graph(self) -> None:
        """A foreign graph with our metadata must not surprise the code that reads its answers."""
        (given, *more), outputs = self.session.get_inputs(), self.session.get_outputs()
        names = tuple(output.name for output in outputs)
        fits = not more and (given.name, given.type, tuple(given.shape[1:])) == (INPUT, "tensor(uint8)", self.contract.shape)
        fits = fits and names in (OUTPUTS, OUTPUTS[:2]) and all(output.shape[1:] == [len(self.class_names)] for output in outputs[:2])
        if not fits:
            raise CheckpointError(f"{self.path}: its graph is not the one that its metadata describes.", hint=_HINT)


def _session(path: Path, threads: int, providers: list[str]) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Threads that wait by spinning take the cores from those that decode.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        # The bytes, not the path: an export is one file, and has no weights in others.
        return onnxruntime.InferenceSession(path.read_bytes(), options, providers=providers)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.", hint="Check the path and its permissions.") from None
    except Exception as error:  # onnxruntime has a type for each of its states, none of which it exports
        raise CheckpointError(f"{path} cannot be read as an ONNX file ({type(error).__name__}).", hint=_HINT) from None


def _providers() -> list[str]:
    import onnxruntime

    known = onnxruntime.get_available_providers()
    return [name for name in ("CUDAExecutionProvider", "ROCMExecutionProvider", "CPUExecutionProvider") if name in known]


def _record(properties: dict[str, str]) -> dict[str, Any]:
    record = read_metadata(properties)
    if not record:
        raise CheckpointError("it does not say what classes and pixels it is for.", hint=_HINT)
    if record.get("format") != FORMAT:
        raise CheckpointError(f"it has format {record.get('format')!r:.40}; this version of scanvit reads {FORMAT}.", hint=_HINT)
    for key, kind in _FIELDS.items():
        if not isinstance(record.get(key), kind):
            raise CheckpointError(f"its {key!r} is missing or damaged.", hint=_HINT)
    if not all(isinstance(name, str) for name in record["class_names"]):
        raise CheckpointError("its class names are damaged.", hint=_HINT)
    return record
