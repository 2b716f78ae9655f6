"""How much of ONNX Runtime's own speed `scanvit predict` keeps, with files to read, decode, judge and describe.

    python -m benchmarks --only predict

Untrained, calibrated networks of two experiments (64 px, gray, nine classes) are exported. For each, in turns:

    predict   from paths to lines of JSON, decoding in processes of its own: all that the command does after its start
    bare      the very session that predict uses, asked by as many threads with batches of the same size, on arrays that lie ready in memory
    default   a session as onnxruntime makes it when asked for nothing (its own threads), on the same batches one after the other

The same cores decode and compute, so predict stays below bare by what decoding and the rest take, the less the larger the network; it may pass default.
What starting takes (processes, imports) is measured apart: a round times all files and a quarter of them, and the difference counts.
Files are chest X-rays of 224 x 224 pixels (JPEG) where they are at hand, else phantoms of that size; they are repeated.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scanvit.core.loading import experiment_to_dict, load_experiment
from scanvit.core.runtime import usable_cores
from scanvit.data.decode import decode_image
from scanvit.evaluation.engines import open_engine
from scanvit.evaluation.export import export
from scanvit.evaluation.onnx_record import INPUT
from scanvit.evaluation.predict import predict_files
from scanvit.model.checkpoint import save_checkpoint

from .contestants import Setup, make_setup, reference_network
from .data import SHARED, jpeg, scans
from .harness import Cost, Figure, Options, Ratio

COUNTS = {"reference": 240, "modern": 4000}
"""Files, so that a turn takes some seconds."""


def picture_files(folder: Path, count: int) -> list[str]:
    folder.mkdir()
    if SHARED.is_dir():
        with zipfile.ZipFile(SHARED / "chest_xray_224.zip") as archive:
            names = [name for name in archive.namelist() if name.endswith(".jpeg")]
            files = [archive.read(name) for name in names[:: max(1, len(names) // count)][:count]]
    else:
        files = [jpeg(image, (224, 224), 90) for image in scans(SHARED, count)[1]]
    for number, data in enumerate(files):
        (folder / f"{number:05d}.jpeg").write_bytes(data)
    return [str(path) for path in sorted(folder.iterdir())]


def exported(name: str, setup: Setup, folder: Path) -> Path:
    """An untrained network, calibrated on the setup's pack as every export is."""
    pack, experiment = setup.pack, load_experiment(name)
    experiment = replace(experiment, data=replace(experiment.data, pack=str(setup.folder / "pack")))
    network = reference_network(replace(setup, experiment=experiment_to_dict(experiment)))
    about: dict[str, Any] = {"contract": pack.contract, "experiment": experiment_to_dict(experiment), "fingerprint": pack.fingerprint}
    folder.mkdir()
    save_checkpoint(folder / "checkpoint.pth", state_dict=network.state_dict(), class_names=pack.class_names, audit=[], metrics={}, **about)
    export(folder, folder / "model.onnx", format="onnx")
    return folder / "model.onnx"


def contestants(model: Path, files: list[str]) -> dict[str, Callable[[int], None]]:
    """Each does its work on that many of the files."""
    import onnxruntime

    engine = open_engine(model, callers=usable_cores())
    distinct = {path: decode_image(Path(path).read_bytes(), engine.contract).pixels for path in dict.fromkeys(files)}
    arrays = np.stack([distinct[path] for path in files])
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])

    def batches(count: int) -> list[np.ndarray]:
        return [arrays[start : start + engine.batch] for start in range(0, count, engine.batch)]

    def predict(count: int) -> None:
        with open(os.devnull, "w") as out:
            for result in predict_files(engine, files[:count], workers=usable_cores()):
                out.write(json.dumps(result.to_dict()) + "\n")

    def bare(count: int) -> None:
        with ThreadPoolExecutor(engine.callers) as pool:
            for _ in pool.map(lambda batch: engine.session.run(None, {INPUT: batch}), batches(count)):  # type: ignore[attr-defined]
                pass

    def default(count: int) -> None:
        for batch in batches(count):
            session.run(None, {INPUT: batch})

    return {"predict": predict, "bare": bare, "default": default}


def rates(works: dict[str, Callable[[int], None]], count: int, rounds: int) -> tuple[dict[str, list[float]], float]:
    """(images a second of each in each round, seconds that predict takes to start)."""
    few, found, start_s = count // 4, dict[str, list[float]](), list[float]()
    for work in works.values():
        work(few)
    for _ in range(rounds):
        for name, work in works.items():
            times_s = []
            for files in (few, count):
                before = time.perf_counter()
                work(files)
                times_s.append(time.perf_counter() - before)
            found.setdefault(name, []).append((count - few) / max(times_s[1] - times_s[0], 1e-9))
            if name == "predict":
                start_s.append(max(0.0, times_s[0] - few / found[name][-1]))
    return found, statistics.median(start_s)


def run(options: Options) -> list[Figure]:
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        work = Path(folder)
        setup = make_setup(work / "set", images=270)
        distinct = picture_files(work / "pictures", 500)
        for name, most in COUNTS.items():
            count = most // 4 if options.quick else most
            torch.set_num_threads(usable_cores())
            files = list(islice(cycle(distinct), count))
            found, start_s = rates(contestants(exported(name, setup, work / name), files), count, 1 if options.quick else 3)
            figures += _figures(name, found, start_s)
    return figures


def _figures(name: str, found: dict[str, list[float]], start_s: float) -> list[Figure]:
    ours = found["predict"]
    middle = {who: statistics.median(values) for who, values in found.items()}
    told = {"bare": "files to JSON lines, against its own session on arrays", "default": "the same, against a session with ONNX Runtime's own settings"}
    figures: list[Figure] = [
        Ratio(
            name=f"predict/{name}/{who}",
            what=what,
            ours=middle["predict"],
            baseline=middle[who],
            unit="images/s",
            n=len(ours),
            ratios=tuple(mine / theirs for mine, theirs in zip(ours, found[who], strict=True)),
        )
        for who, what in told.items()
    ]
    return [*figures, Cost(name=f"predict/{name}/start", what="until the decoding processes are at work", value=start_s, unit="s", n=len(ours))]
