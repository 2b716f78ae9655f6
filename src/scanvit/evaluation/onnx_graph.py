"""The network as a graph that needs nothing of scanvit: pixels in, logits and calibrated probabilities out. As ONNX and as a program of torch.export."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from .calibrate import read_calibration
from .onnx_record import INPUT, OUTPUTS, require

if TYPE_CHECKING:
    import onnx

    from ..model.checkpoint import Classifier

OPSET = 20


class Tail(nn.Module):
    """What stands behind the network: logits (B, K) and traits (B, 2 S) -> probabilities (B, K) and, where a detector was fitted, the outlier score (B,).

    The Mahalanobis distance is taken as the length of L^T (x - mean) with precision = L L^T, and from the classes' centre: in float32 the product
    with the precision itself, or of what is far from 0, loses digits.
    """

    temperature: Tensor
    root: Tensor | None
    centre: Tensor
    means: Tensor

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        calibration = read_calibration(model.calibration)
        outliers = calibration.outliers if calibration else None
        self.register_buffer("temperature", torch.tensor(model.temperature))
        self.register_buffer("root", None)
        if outliers:
            root = np.linalg.cholesky(outliers.precision) / outliers.limit
            self.register_buffer("root", torch.from_numpy(root).float())
            centre = outliers.class_means.mean(axis=0)
            self.register_buffer("centre", torch.from_numpy(centre).float())
            self.register_buffer("means", torch.from_numpy((outliers.class_means - centre) @ root).float())

    def forward(self, logits: Tensor, traits: Tensor) -> tuple[Tensor, ...]:
        probabilities = (logits / self.temperature).softmax(dim=1)
        if self.root is None:
            return (probabilities,)
        gaps = ((traits - self.centre) @ self.root)[:, None] - self.means
        return probabilities, (gaps * gaps).sum(dim=2).amin(dim=1).sqrt()


class Exported(nn.Module):
    """Pixels (B, C, H, W), uint8 in 0..255 -> logits, probabilities and, where there is a detector, the outlier score."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model
        self.tail = Tail(model)
        self.eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        features, traits = self.model.read(pixels)
        logits = self.model.network.head(features)
        return (logits, *self.tail(logits, traits))

    @property
    def outputs(self) -> list[str]:
        return list(OUTPUTS if self.tail.root is not None else OUTPUTS[:2])


def program(model: Classifier) -> tuple[torch.export.ExportedProgram, list[str]]:
    """The graph for any number of images at once, and the names of its outputs."""
    exported = Exported(model.cpu())
    example = torch.zeros((2, *model.contract.shape), dtype=torch.uint8)
    with quiet(), torch.no_grad():
        return torch.export.export(exported, (example,), dynamic_shapes={INPUT: {0: torch.export.Dim("batch", min=1)}}), exported.outputs


def to_onnx(model: Classifier) -> onnx.ModelProto:
    """Raises ConfigError where the extra is not installed."""
    require("onnx", "onnxscript", "onnxruntime")
    graph, outputs = program(model)
    with quiet():
        made = torch.onnx.export(graph, dynamo=True, opset_version=OPSET, input_names=[INPUT], output_names=outputs, verbose=False)
    assert made is not None
    proto: onnx.ModelProto = made.model_proto
    if proto.opset_import[0].version != OPSET:
        raise ConfigError(f"The installed onnxscript wrote opset {proto.opset_import[0].version}, not {OPSET}.", hint="Install the pinned versions.")
    _name_batch(proto)
    return proto


def quantized(proto: onnx.ModelProto, images: Iterable[np.ndarray], work: Path) -> onnx.ModelProto:
    """int8 weights, a scale for each output channel, and int8 activations, whose ranges are those of ``images``: batches of (n, C, H, W) uint8.

    ``work``: an empty folder.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source, prepared, target = (work / f"{name}.onnx" for name in ("float", "prepared", "int8"))
    onnx.save(proto, source)
    with quiet():
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            target,
            _Reader(images),
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            nodes_to_exclude=_behind_features(onnx.load(prepared)),
        )
    return onnx.load(target)


class _Reader:
    """What onnxruntime calls for images to calibrate on."""

    def __init__(self, images: Iterable[np.ndarray]) -> None:
        self._images = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._images, None)
        return None if batch is None else {INPUT: batch}


def set_temperature(proto: onnx.ModelProto, temperature: float, *, outlier_limit: float) -> None:
    """In a graph that is written already. ``outlier_limit``: the score that is to become 1."""
    import onnx

    weights = {weight.name: weight for weight in proto.graph.initializer}
    changed = {"tail.temperature": np.asarray(temperature)}
    changed |= {name: onnx.numpy_helper.to_array(weights[name]) / outlier_limit for name in ("tail.root", "tail.means") if name in weights}
    for name, values in changed.items():
        weights[name].CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), name))


def _behind_features(proto: onnx.ModelProto) -> list[str]:
    """The head, and the nodes that compute the probabilities and the outlier score: next to no work, where rounding costs the most."""
    made_by = {name: node for node in proto.graph.node for name in node.output}

    def before(names: Iterable[str]) -> set[str]:
        found: set[str] = set()
        waiting = list(names)
        while waiting:
            if (name := waiting.pop()) in made_by and name not in found:
                found.add(name)
                waiting += made_by[name].input
        return found

    needed = before(made_by["logits"].input)
    return [node.name for node in proto.graph.node if not needed & set(node.output)]


def _name_batch(proto: onnx.ModelProto) -> None:
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"


@contextmanager
def quiet() -> Iterator[None]:
    """The exporters tell their developers things."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
