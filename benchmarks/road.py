"""What each stage of the road costs, from raw pixels to the report, and how that grows from 10,000 to 1,000,000 images.

    python -m benchmarks --only road

Each stage is the command that a user types, in a process of its own, on noise of 28 px in nine classes (every image its own patient), trained with
the shipped ``tiny``. The growth is a line through two sizes: measured at both, simulated beyond. What does not depend on the images says so.
Times inside a run are those that the run records. ``peak`` is the resident memory of the largest process of a command, memory-mapped pages included.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scanvit.core.events import read_events

from .harness import Cost, Options

SIZE_PX, CLASSES, EPOCHS = 28, 9, 2
_SETTINGS = (
    "trainer.accelerator=cpu",
    f"trainer.max_epochs={EPOCHS}",
    "trainer.log_every_n_steps=1",
    "trainer.early_stopping_patience=0",
    "tracking.mlflow=false",
)
WHAT = {
    "imports": ("what `scanvit train` imports", "s"),
    "prepare": ("scanvit data prepare", "s"),
    "audit": ("scanvit data audit", "s"),
    "first step": ("from scanvit train to the end of its first step", "s"),
    "epoch": ("an epoch's steps, tiny", "s"),
    "validation": ("validation on a tenth of the images", "s"),
    "checkpoint": ("what an epoch waits for its checkpoints", "s"),
    "evaluate": ("scanvit evaluate on a tenth: judging, 2,000 draws, trust, report", "s"),
    "prepare, peak": ("memory of scanvit data prepare", "MiB"),
    "train, peak": ("memory of scanvit train", "MiB"),
    "evaluate, peak": ("memory of scanvit evaluate", "MiB"),
}
_WATCH = """
import resource, subprocess, sys
code = subprocess.call([sys.executable, *sys.argv[1:]], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
"""Small, and between the benchmark and its command: to the kernel, a process has been as large as the one that started it."""
ALWAYS_THE_SAME = ("imports", "checkpoint")


def draw(file: Path, images: int) -> None:
    generator, arrays = np.random.default_rng(images), {}
    for split, count in (("train", images - 2 * (images // 10)), ("val", images // 10), ("test", images // 10)):
        labels = np.arange(count) % CLASSES
        arrays[f"{split}_images"] = (generator.integers(0, 100, (count, SIZE_PX, SIZE_PX)) + 15 * labels[:, None, None]).astype(np.uint8)
        arrays[f"{split}_labels"] = labels.astype(np.uint8)[:, None]
    np.savez(file, **arrays)


def command(arguments: Sequence[str | Path], *, may_fail: bool = False) -> tuple[float, float]:
    """Run Python with ``arguments``: (seconds, MiB of the largest process at its peak)."""
    start = time.perf_counter()
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run([sys.executable, "-c", _WATCH, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False)
    if done.returncode and not may_fail:
        raise SystemExit(f"{' '.join(map(str, arguments[:4]))} ended with {done.returncode}\n{done.stderr}")
    return time.perf_counter() - start, int(done.stdout) / 1024


def measure(folder: Path, images: int) -> dict[str, float]:
    """Each stage once, by its name in WHAT."""
    file, pack, run_dir = folder / "noise.npz", folder / "pack", folder / "run"
    draw(file, images)
    found = {"imports": command(["-c", "from scanvit.training.imports import quick_imports\nwith quick_imports():\n    import scanvit.training.fit"])[0]}
    found["prepare"], found["prepare, peak"] = command(["-m", "scanvit", "data", "prepare", file, "-o", pack, "--image-size", str(SIZE_PX)])
    found["audit"], _ = command(["-m", "scanvit", "data", "audit", pack], may_fail=True)  # noise fails a gate
    began = time.time()
    settings = [word for value in _SETTINGS for word in ("--set", value)]
    _, found["train, peak"] = command(["-m", "scanvit", "train", "tiny", "--pack", pack, "--run-dir", run_dir, *settings])
    found |= _inside(run_dir, began, images - 2 * (images // 10))
    found["evaluate"], found["evaluate, peak"] = command(["-m", "scanvit", "evaluate", run_dir])
    return found


def _inside(run_dir: Path, began: float, train_images: int) -> dict[str, float]:
    """Of the last epoch, as the run records it."""
    events = read_events(run_dir)
    first = next(event["time"] for event in events if "train_loss_step" in event["values"])
    *_, before, last = [event["values"] for event in events if "val_loss" in event["values"]]
    steps_s = train_images / last["images_per_s"]
    waited_s = last["checkpoint_time_s"] - before["checkpoint_time_s"]
    return {"first step": first - began, "epoch": steps_s, "validation": max(0.0, last["epoch_time_s"] - steps_s), "checkpoint": waited_s}


def growth(few: tuple[int, float], many: tuple[int, float], images: int) -> float:
    """The value at ``images`` on the line through two sizes; no less than nothing."""
    (n, low), (m, high) = few, many
    return max(0.0, low + (high - low) / (m - n) * (images - n))


def run(options: Options) -> list[Cost]:
    sizes = (1_000, 3_000) if options.quick else (10_000, 60_000)
    found = []
    for images in sizes:
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            found.append(measure(Path(folder), images))
        print("  ".join(f"{name} {value:.2f}" for name, value in found[-1].items()), flush=True)
    costs = []
    for name, (what, unit) in WHAT.items():
        few, many = ((images, values[name]) for images, values in zip(sizes, found, strict=True))
        if name in ALWAYS_THE_SAME:
            at, how = ("the same", "the same"), "does not depend on the images"
        else:
            at = tuple(f"{growth(few, many, images):,.{1 if unit == 's' else 0}f} {unit}" for images in (10_000, 1_000_000))  # type: ignore[assignment]
            how = f"simulated: a line through {sizes[0]:,} and {sizes[1]:,}, both measured"
        costs.append(Cost(name=f"road/{name}", what=f"{what}, {sizes[1]:,} images", value=many[1], unit=unit, at_10k=at[0], at_1m=at[1], how=how))
    return costs
