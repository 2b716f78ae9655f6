"""A trained network as one file for other programs, checked against the network itself before the file appears.

    onnx          a graph: pixels in, logits, calibrated probabilities and outlier score out; for ONNX Runtime and all that reads ONNX
    torch         the same graph for torch.export.load (.pt2)
    safetensors   weights and record; scanvit builds the network around them

All of them carry class names, pixel contract, temperature, thresholds, outlier detector, the pack's fingerprint and the audit's findings.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from .. import __version__
from ..core.errors import ConfigError, ExportError
from ..storage.atomic import write_bytes
from .calibrate import Calibration, fit_on, is_current, read_calibration
from .engine import Answers, Pixels
from .engines import open_engine
from .estimates import Estimate, Estimator
from .own_pack import find_own_pack
from .torch_engine import TorchEngine

if TYPE_CHECKING:
    import onnx

    from ..data.pack import Pack
    from ..model.checkpoint import Classifier

Format = Literal["onnx", "torch", "safetensors"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors"}
TOLERANCE = 1e-4
"""Between the probabilities of the file and of the network."""
_VAL_IMAGES = 512
"""That the ranges of int8 are taken from, evenly over val."""
_GENERATED = 256
_RECORD_FILE = "scanvit.json"

Ask = Callable[[Pixels], Answers]


@dataclass(frozen=True, kw_only=True)
class Check:
    """What the written file said about images, beside what the network says."""

    images: int
    where: str
    """Which images: "test", or "generated" where the run's pack is out of reach or has no test images."""
    difference: float
    """The largest of any probability."""
    accuracy: float | None = None
    """Of the file; None for generated images, which have no truth."""
    drop: Estimate | None = None
    """Accuracy of the network minus accuracy of the file, with its interval over patients; of int8 alone."""

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Exported:
    path: Path
    size_bytes: int
    check: Check
    pack_found: bool
    """False: the run's pack is out of reach. Else generated images were asked about because it has no test images."""
    calibration: Literal["current", "outdated", "none"]
    """What was fitted on val: by this version, by an earlier one, or nothing."""
    opset: int | None


def export(
    run_or_file: Path | str, out: Path, *, format: Format, quantize: Literal["int8"] | None = None, max_drop: float = 0.01, pack: Path | str | None = None
) -> Exported:
    """Write ``out``, whole or not at all, after it gave the network's probabilities within ``TOLERANCE`` on the test split of the run's pack.

    ``pack``: where the pack is, if it was moved. Out of reach or without test images, generated images are asked about, and int8 is refused.
    ``quantize``: of onnx alone.
    ``max_drop``: how much accuracy int8 may cost on test.

    Raises ExportError where the file would answer otherwise, ConfigError, CheckpointError, RunMissingError, PackError for a ``pack`` that does not fit.
    """
    from ..model.checkpoint import load_model

    if quantize and format != "onnx":
        raise ConfigError(f"{quantize} is made of onnx alone, not of {format}.", hint="Use --format onnx, or leave --quantize out.")
    model = load_model(run_or_file)
    opened = find_own_pack(model, pack)
    if quantize and opened is None:
        raise ConfigError("int8 needs the run's pack: its ranges come from val, and what it costs is measured on test.", hint="Say where it is: --pack PACK")
    if quantize and opened and not len(opened.targets("test")):
        raise ConfigError(f"What int8 costs is measured on test images, and {opened.path} has no test images.", hint="Leave --quantize out.")
    if opened is not None and not is_current(model.calibration):
        from .calibrate import calibrate

        model.calibration = calibrate(model, opened).to_dict()
    with tempfile.TemporaryDirectory() as folder:
        made = _write(model, Path(folder), format=format, quantize=quantize, pack=opened)
        check = _check(model, made.ask, opened, quantized=quantize is not None)
        _judge(check, format, max_drop=max_drop if quantize else None)
        made.about["check"] = check.to_dict()
        data = made.finish()
    write_bytes(out, data)
    calibration: Literal["current", "outdated", "none"] = "current" if is_current(model.calibration) else "outdated" if model.calibration else "none"
    return Exported(path=out, size_bytes=len(data), check=check, pack_found=opened is not None, calibration=calibration, opset=made.about.get("opset"))


@dataclass(frozen=True, kw_only=True)
class _Made:
    """A file that is written but not yet signed."""

    ask: Ask
    about: dict[str, Any]
    """What goes into the file's record as "export"."""
    finish: Callable[[], bytes]
    """With ``about`` as it is by then."""


def _write(model: Classifier, folder: Path, *, format: Format, quantize: str | None, pack: Pack | None) -> _Made:
    about: dict[str, Any] = {"scanvit": __version__}
    if format == "onnx":
        return _write_onnx(model, folder, about | {"quantize": quantize}, pack=pack)
    return _write_torch(model, folder, about) if format == "torch" else _write_safetensors(model, folder, about)


def _write_onnx(model: Classifier, folder: Path, about: dict[str, Any], *, pack: Pack | None) -> _Made:
    from .onnx_engine import OnnxEngine
    from .onnx_graph import OPSET, quantized, to_onnx
    from .onnx_record import require

    require("onnx", "onnxscript", "onnxruntime")
    about |= {"opset": OPSET}
    proto, record = to_onnx(model), model.record()
    if about["quantize"]:
        assert pack is not None
        val = pack.images("val")
        rows = np.linspace(0, len(val) - 1, min(len(val), _VAL_IMAGES)).astype(int)
        if not len(rows):
            raise ConfigError("int8 takes its ranges from val images, and the pack has none.", hint="Leave --quantize out.")
        proto = quantized(proto, (np.array(val[rows[start : start + 32]]) for start in range(0, len(rows), 32)), folder)
        record["calibration"] = _calibrate_anew(model, proto, pack, folder).to_dict()

    def finish() -> bytes:
        _sign(proto, record | {"export": about})
        data: bytes = proto.SerializeToString()
        return data

    draft = folder / "draft.onnx"
    draft.write_bytes(finish())
    return _Made(ask=OnnxEngine(draft), about=about, finish=finish)


def _sign(proto: onnx.ModelProto, record: dict[str, Any]) -> None:
    import onnx

    from .onnx_record import FORMAT, metadata

    onnx.helper.set_model_props(proto, metadata(record | {"format": FORMAT}))


def _calibrate_anew(model: Classifier, proto: onnx.ModelProto, pack: Pack, folder: Path) -> Calibration:
    """What was fitted on the network's answers to val, fitted on those of the rounded one; it is in the graph already."""
    from .onnx_engine import OnnxEngine
    from .onnx_graph import set_temperature

    path = folder / "rounded.onnx"
    _sign(proto, model.record())
    path.write_bytes(proto.SerializeToString())
    answers, before = OnnxEngine(path)(pack.images("val")), read_calibration(model.calibration)
    outliers = before.outliers if before else None
    refitted = outliers.limited_to(answers.outlier_scores) if outliers and answers.outlier_scores is not None else None
    after = fit_on(answers.logits, np.asarray(pack.targets("val"), np.int64), model.class_names, outliers=refitted)
    set_temperature(proto, after.temperature, outlier_limit=refitted.limit / outliers.limit if outliers and refitted else 1.0)
    return after


def _write_torch(model: Classifier, folder: Path, about: dict[str, Any]) -> _Made:
    import json

    import torch

    from .onnx_graph import program, quiet
    from .onnx_record import FORMAT

    graph, _ = program(model)
    path = folder / "model.pt2"

    def finish() -> bytes:
        record = model.record() | {"format": FORMAT, "export": about}
        with quiet():
            torch.export.save(graph, path, extra_files={_RECORD_FILE: json.dumps(record, allow_nan=False)})
        return path.read_bytes()

    finish()
    loaded = torch.export.load(path).module()

    def ask(pixels: Pixels) -> Answers:
        with torch.inference_mode():
            parts = [loaded(torch.from_numpy(np.array(pixels[start : start + 64]))) for start in range(0, len(pixels), 64)]
        logits, probs, *scores = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
        return Answers(logits, probs, scores[0].astype(np.float64) if scores else None)

    return _Made(ask=ask, about=about, finish=finish)


def _write_safetensors(model: Classifier, folder: Path, about: dict[str, Any]) -> _Made:
    from ..model.safetensors_file import write_safetensors

    path = folder / "model.safetensors"

    def finish() -> bytes:
        write_safetensors(path, model.network.state_dict(), model.record() | {"export": about})
        return path.read_bytes()

    finish()
    return _Made(ask=open_engine(path), about=about, finish=finish)


def _check(model: Classifier, ask: Ask, pack: Pack | None, *, quantized: bool) -> Check:
    network = TorchEngine(model)
    if pack is None or not len(pack.targets("test")):
        shape, random = model.contract.shape, np.random.default_rng(0)
        pixels = random.integers(0, 256, (_GENERATED, *shape), dtype=np.uint8)
        pixels[::2] = pixels[::2, :, :1, :1]  # half of them flat
        return Check(images=len(pixels), where="generated", difference=float(np.abs(network(pixels).probs - ask(pixels).probs).max()))
    images, targets = pack.images("test"), np.asarray(pack.targets("test"), np.int64)
    before, after = network(images), ask(images)
    right: list[npt.NDArray[np.bool_]] = [answers.logits.argmax(axis=1) == targets for answers in (before, after)]
    difference = float(np.abs(before.probs - after.probs).max())
    drop = _drop(right[0], right[1], pack.rows("test", "patient_id")["patient_id"].to_pylist()) if quantized else None
    return Check(images=len(images), where="test", difference=difference, accuracy=float(right[1].mean()), drop=drop)


def _drop(before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_], patient_ids: list[str]) -> Estimate:
    lost = before.astype(np.float64) - after
    return Estimator(patient_ids, draws=2000, seed=0)(lambda weights: {"drop": lost @ weights / weights.sum(axis=0)}).of("drop")


def _judge(check: Check, format: Format, *, max_drop: float | None) -> None:
    """``max_drop``: None where the file has to be exact."""
    if max_drop is None and not check.difference <= TOLERANCE:  # NaN is refused as well
        raise ExportError(
            f"A probability of the {format} file differs by {check.difference:.2g} from the network's, more than {TOLERANCE:g}; nothing was written.",
            hint="Please report it, with the experiment.yaml of the run.",
        )
    if max_drop is not None and check.drop and check.drop.value is not None and check.drop.value > max_drop:
        low, high = check.drop.low, check.drop.high
        interval = f" (95 % interval {100 * low:.1f} to {100 * high:.1f})" if low is not None and high is not None else ""
        enough = max(0.0, math.ceil(1000 * check.drop.value) / 1000)
        raise ExportError(
            f"int8 costs {100 * check.drop.value:.1f} points of accuracy on test{interval}, more than {100 * max_drop:g}; nothing was written.",
            hint=f"Export without --quantize, or allow more: --max-drop {enough:g}",
        )
