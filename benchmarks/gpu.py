"""The reference network on one GPU: images/s trained against two baselines, the share of the card's peak, and the original's 12 epochs from command to end.

    python -m benchmarks --only gpu

The baselines read files with Pillow and take the loss from the device at every step, as a user would; the median of their steps counts, all in bf16. Ours is
``scanvit train`` in a process of its own: images/s are those of the steps after the first epoch, as the run itself records them, with the device waited
for at an epoch's end. The whole command is timed on 33,100 training and 4,100 validation images of noise (what an image shows does not matter to
the time): it holds imports, compiling, data, validation and checkpoints.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scanvit.core.events import read_events
from scanvit.data.prepare import prepare

from .contestants import Setup, make_setup, train_baseline
from .harness import Contestant, Cost, Figure, Options, Ratio, Skipped

TRAIN_IMAGES, VAL_IMAGES, CLASSES, SIZE_PX = 33_100, 4_100, 9, 64
EPOCHS = 12
GFLOP_AN_IMAGE = 21.9
"""Of the reference at 64 px, forward and backward, with the projections as they are written (not folded), two for each multiply-add."""
PEAK_TFLOPS = {"H200": 990, "H100": 990, "A100": 312, "MI100": 184.6, "L40": 181, "RTX 4090": 165}
"""Of dense bf16 products, by a part of the card's name; from the makers' data sheets."""


@dataclass(frozen=True, kw_only=True)
class Way:
    name: str
    what: str
    settings: tuple[str, ...]


_SMALL, _LARGE = ("trainer.per_device_batch_size=32",), ("trainer.per_device_batch_size=512", "optimizer.lr_scaling=sqrt")
_COMPILED = ("trainer.compile=true",)
WAYS = (
    Way(name="32", what="batch 32, as the original", settings=_SMALL),
    Way(name="32-graphs", what="batch 32, compiled, CUDA graphs", settings=(*_SMALL, *_COMPILED, "trainer.cuda_graphs=true")),
    Way(name="512", what="batch 512", settings=_LARGE),
    Way(name="512-compiled", what="batch 512, compiled", settings=(*_LARGE, *_COMPILED)),
    Way(name="512-graphs", what="batch 512, compiled, CUDA graphs", settings=(*_LARGE, *_COMPILED, "trainer.cuda_graphs=true")),
)


BASELINES = (("original", 32, 30), ("standard", 32, 30), ("standard", 512, 9))
"""Network, batch size, steps."""


def draw_pack(folder: Path, *, train: int, val: int, size_px: int = SIZE_PX) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", train), ("val", val), ("test", 9)):
        arrays[f"{split}_images"] = generator.integers(0, 256, (count, size_px, size_px), np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count, dtype=np.uint8) % CLASSES)[:, None]
    np.savez(folder / "noise.npz", **arrays)
    prepare(folder / "noise.npz", folder / "pack", settings={"image_size_px": size_px}, workers=1)
    return folder / "pack"


def train(pack: Path, run_dir: Path, settings: Sequence[str]) -> tuple[float, float]:
    """(images/s of the steps after the first epoch, seconds of the whole command)."""
    common = ("trainer.log_every_n_steps=100", "tracking.mlflow=false", "tracking.system_metrics_every_s=0", "trainer.devices=1")
    words = [word for value in (*common, *settings) for word in ("--set", value)]
    start = time.perf_counter()
    command = [sys.executable, "-m", "scanvit", "train", "reference", "--pack", str(pack), "--run-dir", str(run_dir), *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"})
    elapsed_s = time.perf_counter() - start
    rates = [event["values"]["images_per_s"] for event in read_events(run_dir) if "images_per_s" in event["values"]]
    return statistics.median(rates[1:] or rates), elapsed_s


def peak_tflops(card: str) -> float | None:
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in card), None)


def share_of_peak(images_per_s: float, card: str) -> str:
    peak = peak_tflops(card)
    return f"{images_per_s * GFLOP_AN_IMAGE / 1000 / peak:.1%} of {peak:g} TFLOP/s" if peak else "of an unknown peak"


def baseline_rate(kind: str, setup: Setup, batch_size: int, steps: int) -> float:
    contestant = Contestant(train_baseline, kind, setup, True, "cuda")
    try:
        seconds = [contestant.turn()[0] for _ in range(steps)]
    finally:
        contestant.close()
    return batch_size / statistics.median(seconds[steps // 3 :])


def run(options: Options) -> list[Figure]:
    import torch

    if not torch.cuda.is_available():
        raise Skipped("PyTorch sees no GPU on this machine")
    card, rates, figures = torch.cuda.get_device_name(0), {}, list[Figure]()
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        folder = Path(name)
        for kind, batch_size, steps in BASELINES:
            setup = make_setup(folder / f"{kind}-{batch_size}", f"trainer.per_device_batch_size={batch_size}", images=steps * batch_size * 3 // 2)
            rates[f"{kind}-{batch_size}"] = baseline_rate(kind, setup, batch_size, steps)
            print(f"{kind}, batch {batch_size}: {rates[f'{kind}-{batch_size}']:,.0f} images/s", flush=True)
        pack = draw_pack(folder / "few", train=8_192, val=1_024)
        for way in WAYS:
            rates[way.name], _ = train(pack, folder / way.name, ("trainer.accelerator=gpu", "trainer.max_epochs=3", *way.settings))
            print(f"scanvit, {way.what}: {rates[way.name]:,.0f} images/s", flush=True)
            what = f"{way.what}, {card}: {share_of_peak(rates[way.name], card)}"
            figures.append(Cost(name=f"gpu/{way.name}", what=what, value=rates[way.name], unit="images/s"))
        best = max(WAYS, key=lambda way: rates[way.name])
        for kind, batch_size, _ in BASELINES:
            theirs = rates[f"{kind}-{batch_size}"]
            what = f"training on {card}: {best.what} against the {kind} way, batch {batch_size}"
            figures.append(
                Ratio(
                    name=f"gpu/{kind}-{batch_size}",
                    what=what,
                    ours=rates[best.name],
                    baseline=theirs,
                    unit="images/s",
                    n=1,
                    ratios=(rates[best.name] / theirs,),
                )
            )
        epochs, images = (2, 8_192) if options.quick else (EPOCHS, TRAIN_IMAGES)
        pack = draw_pack(folder / "all", train=images, val=images * VAL_IMAGES // TRAIN_IMAGES)
        rate, elapsed_s = train(pack, folder / "whole", ("trainer.accelerator=gpu", f"trainer.max_epochs={epochs}", *best.settings))
        what = f"{best.what}, {card}: {epochs} epochs of {images:,} images, the whole command ({rate:,.0f} images/s in its steps)"
        figures.append(Cost(name="gpu/whole", what=what, value=elapsed_s, unit="s"))
    return figures
