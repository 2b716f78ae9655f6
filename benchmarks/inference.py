"""One image's latency and the throughput of many: the network as scanvit runs it and as ONNX Runtime does, against a standard one, in turns."""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scanvit.core.runtime import usable_cores

from .contestants import baseline_network, make_setup, reference_network
from .harness import Cost, Figure, Options, Ratio, in_turns

BATCH = 64


def onnx_session(network: torch.nn.Module, path: Path) -> Callable[[np.ndarray], Any]:
    import onnxruntime

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example, batch = torch.zeros(2, 1, 64, 64), torch.export.Dim("batch")
        torch.onnx.export(network, (example,), path, dynamo=True, dynamic_shapes=({0: batch},), input_names=["images"], verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def run(options: Options) -> list[Figure]:
    torch.set_num_threads(usable_cores())
    rounds = 10 if options.quick else 200
    with tempfile.TemporaryDirectory(dir=options.work) as folder, torch.inference_mode():
        setup = make_setup(Path(folder) / "set", images=90)
        ours = reference_network(setup).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        standard = baseline_network("standard", setup).eval()
        one, many = torch.randn(1, 1, 64, 64), torch.randn(BATCH, 1, 64, 64)
        torch.testing.assert_close(ours(many), standard(many), rtol=1e-3, atol=1e-4)
        calls: dict[str, Callable[[torch.Tensor], Any]] = {"standard": standard, "scanvit": ours}
        if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnxscript"):
            with torch.inference_mode(False):
                session = onnx_session(ours, Path(folder) / "network.onnx")
            np.testing.assert_allclose(session(many.numpy()), ours(many).numpy(), rtol=1e-3, atol=1e-3)
            calls["onnx"] = lambda images: session(images.numpy())
        latency = in_turns({name: (lambda call=call: call(one)) for name, call in calls.items()}, rounds)
        throughput = in_turns({name: (lambda call=call: call(many)) for name, call in calls.items()}, max(2, rounds // 40))
    return [*_figures(latency, throughput)]


def _figures(latency: dict[str, list[float]], throughput: dict[str, list[float]]) -> list[Figure]:
    figures: list[Figure] = []
    for name, times_s in latency.items():
        for percent in (50, 99):
            value = 1e3 * float(np.percentile(times_s, percent))
            figures.append(Cost(name=f"latency/{name}/p{percent}", what="one image, float32", value=value, unit="ms", n=len(times_s)))
    for name in (name for name in latency if name != "standard"):
        ms = [1e3 * statistics.median(latency[key]) for key in (name, "standard")]
        rate = [BATCH / statistics.median(throughput[key]) for key in (name, "standard")]
        one, many = len(latency[name]), len(throughput[name])
        figures += [
            Ratio(name=f"latency/{name}", what="one image, median, against a standard network", ours=ms[0], baseline=ms[1], unit="ms", n=one),
            Ratio(name=f"throughput/{name}", what=f"batches of {BATCH}, the same", ours=rate[0], baseline=rate[1], unit="images/s", n=many),
        ]
    return figures
