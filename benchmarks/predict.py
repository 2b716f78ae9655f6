"""How much of ONNX Runtime's own speed `scanvit predict` keeps, with files to read, decode and describe.

    python -m benchmarks.predict --images FOLDER reference modern tiny -o benchmarks/results/predict.json

Untrained networks of these experiments (64 px, gray, nine classes) are exported. For each, in turns and ``--rounds`` times: ``bare``, a session of
onnxruntime with its own defaults on arrays that lie ready in memory, in batches of the size that predict takes; ``predict``, from paths to lines of
JSON in a file, the decoding in processes of its own; ``torch``, PyTorch on the same arrays. Start-up is not counted in any: a first pass warms
everything up. A figure is images a second, the median of the rounds; the ratio is the median of the rounds' ratios. Files are repeated until there
are ``--count``.

Where decoding is a large part of the work the ratio must fall below one: the same cores do both. ``decode`` is what decoding alone reaches on all
cores, and ``bound`` is the ratio that would be left if nothing but the two took time: decode / (decode + bare).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np


def images_per_s(count: int, work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)


def untrained(name: str, folder: Path) -> Path:
    from scanvit.core.contract import PixelContract
    from scanvit.core.loading import experiment_to_dict, load_experiment
    from scanvit.model.checkpoint import save_checkpoint
    from scanvit.model.vit import VisionTransformer

    experiment, names = load_experiment(name), [f"class-{k}" for k in range(9)]
    network = VisionTransformer(experiment.model, num_classes=len(names), image_size_px=64, channels=1)
    about = {"contract": PixelContract(), "experiment": experiment_to_dict(experiment), "fingerprint": "", "audit": [], "metrics": {}}
    save_checkpoint(folder / "checkpoint.pth", state_dict=network.state_dict(), class_names=names, **about)
    return folder


def measure(name: str, folder: Path, files: list[str], *, rounds: int, workers: int) -> dict[str, Any]:
    import onnxruntime
    import torch

    from scanvit.data.image_stream import Source, stream_images
    from scanvit.evaluation import predict
    from scanvit.evaluation.engine import TorchEngine, open_engine
    from scanvit.evaluation.export import export
    from scanvit.evaluation.onnx_record import INPUT
    from scanvit.model.checkpoint import load_model

    run = untrained(name, folder)
    export(run, run / "model.onnx", format="onnx")
    engine, model = open_engine(run / "model.onnx"), TorchEngine(load_model(run))
    threads = torch.get_num_threads()
    distinct = {path: image.pixels for path in dict.fromkeys(files) for image in stream_images([Source(path)], engine.contract, workers=0)}
    arrays = np.stack([distinct[path] for path in files])
    batches = [arrays[start : start + predict._AT_ONCE] for start in range(0, len(arrays), predict._AT_ONCE)]
    session = onnxruntime.InferenceSession(run / "model.onnx", providers=["CPUExecutionProvider"])

    def bare() -> None:
        for batch in batches:
            session.run(None, {INPUT: batch})

    def whole() -> None:
        with open(os.devnull, "w") as out:
            for result in predict.predict_files(engine, files, workers=workers):
                out.write(json.dumps(result.to_dict()) + "\n")

    def decoding() -> None:
        for _ in stream_images(map(Source, files), engine.contract, workers=workers):
            pass

    def pytorch() -> None:
        for batch in batches:
            model(batch)

    works = {"bare": bare, "predict": whole, "decode": decoding, "torch": pytorch}
    bare(), pytorch()
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            found[name].append(images_per_s(len(files), work))
    ratios = [ours / theirs for ours, theirs in zip(found["predict"], found["bare"], strict=True)]
    middle = {name: round(median(values), 1) for name, values in found.items()}
    bound = middle["decode"] / (middle["decode"] + middle["bare"])
    return {
        "experiment": name,
        "images": len(files),
        "threads": threads,
        **middle,
        "ratio": round(median(ratios), 3),
        "ratios": [round(r, 3) for r in ratios],
        "bound": round(bound, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="+")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("-o", "--out", type=Path)
    asked = parser.parse_args()

    from scanvit.core.contract import PixelContract
    from scanvit.data.files import expand
    from scanvit.data.image_stream import Source, decode_source

    usable = [path for path in expand([str(asked.images)]) if isinstance(decode_source(Source(path), PixelContract()), list)]
    files = list(islice(cycle(usable), asked.count))
    results = []
    for name in asked.experiments:
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(name, Path(folder), files, rounds=asked.rounds, workers=asked.workers))
        said = results[-1]
        print(f"{said['experiment']}: bare {said['bare']} images/s, PyTorch {said['torch']}, decoding {said['decode']}")
        print(f"  predict {said['predict']}: {said['ratio']:.0%} of bare (decoding on the same cores leaves {said['bound']:.0%})", flush=True)
    if asked.out:
        about = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "files": len(usable), "workers": asked.workers}
        asked.out.write_text(json.dumps(about | {"results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
