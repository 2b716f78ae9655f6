"""The reference network on one GPU: images/s trained, the share of the card's peak, and the original's 12 epochs from the command to the end.

    python -m benchmarks --only gpu

Every contestant is ``scanvit train`` in a process of its own, on a pack of 33,100 training and 4,100 validation images of noise: what an image shows
does not matter to the time. images/s are those of the steps after the first epoch (median over epochs), as the run itself records them, with
the device waited for at an epoch's end. The time of the whole command holds imports, compiling, data, validation and checkpoints.
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

from .harness import Cost, Options, Skipped

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
)


def draw_pack(folder: Path, *, train: int, val: int, size_px: int = SIZE_PX) -> Path:
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


def run(options: Options) -> list[Cost]:
    import torch

    if not torch.cuda.is_available():
        raise Skipped("PyTorch sees no GPU on this machine")
    card, costs = torch.cuda.get_device_name(0), []
    epochs, images = (2, 8_000) if options.quick else (EPOCHS, TRAIN_IMAGES)
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        pack = draw_pack(Path(folder), train=images, val=images * VAL_IMAGES // TRAIN_IMAGES)
        for way in WAYS:
            rate, elapsed_s = train(pack, Path(folder) / way.name, ("trainer.accelerator=gpu", f"trainer.max_epochs={epochs}", *way.settings))
            what = f"{way.what}, {card}"
            costs.append(Cost(name=f"gpu/{way.name}/rate", what=f"{what}: {share_of_peak(rate, card)}", value=rate, unit="images/s"))
            costs.append(Cost(name=f"gpu/{way.name}/whole", what=f"{what}: {epochs} epochs of {images:,}, the whole command", value=elapsed_s, unit="s"))
    return costs
